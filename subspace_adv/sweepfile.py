"""A sweep file and the overrides of a command line, as one document: its tables, not yet checked."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from subspace_adv.errors import UserError, brief
from subspace_adv.pointfile import absolute, near_files
from subspace_adv.rows import nearest
from subspace_adv.settings import leaves, role, tables
from subspace_adv.spacing import is_spacing

GRID = ("axes", "zip", "sample")
"""What tells the grid's dimensions, beside the tables of settings."""


def read(
    path: str | Path, overrides: Any = (), *, text: str | None = None, moved: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], set[str]]:
    """The document of a sweep file with overrides written into it, and the names they set.

    Args:
        path: a TOML file.
        overrides: a text, or some, such as "seed=0:20".
        text: what the file tells, where that is known; else it is read.
        moved: where files that it names are now, by the paths at which they would be.

    Raises:
        UserError: if the file cannot be read, or what is written is no table or no override.
    """
    path = Path(path)
    document = _parsed(path) if text is None else tomllib.loads(text)
    document.setdefault("name", path.stem)
    known = ["name", *tables(), *GRID]
    for name, content in document.items():
        if name not in known:
            belongs = f"; it belongs in [{leaves()[name]}]" if name in leaves() else None
            raise UserError(f"{path}: {name}: no such table{belongs or nearest(name, known)}")
        if name == "zip" and not (isinstance(content, list) and all(isinstance(one, dict) for one in content)):
            raise UserError(f"{path}: zip = {brief(content)}: must be tables, [[zip]]")
        if name not in ("name", "zip") and not isinstance(content, dict):
            raise UserError(f"{path}: {name} = {brief(content)}: must be a table, [{name}]")
    overridden = _override(document, _texts(overrides))
    _place(document, path.parent, overridden, moved or {})
    return document, overridden


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{near_files(path, ['.toml'])}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _place(document: dict[str, Any], folder: Path, overridden: set[str], moved: Mapping[str, str]) -> None:
    """Make paths that the file tells relative to the folder it lies in; those of the command line are to another."""

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(one) for one in value]
        if not isinstance(value, str):
            return value
        there = absolute(value, folder)
        return moved.get(there, there)

    for table in (*document.values(), *document.get("zip", [])):
        for leaf in table if isinstance(table, dict) else ():
            if leaf in leaves() and role(leaf).is_file and leaf not in overridden:
                table[leaf] = placed(table[leaf])


def _texts(overrides: Any) -> list[str]:
    """The overrides, each a text."""
    if isinstance(overrides, str):
        return [overrides]
    texts = list(overrides) if isinstance(overrides, Iterable) else [overrides]
    if isinstance(overrides, Mapping) or not all(isinstance(text, str) for text in texts):
        raise UserError(f'overrides: write texts such as ["seed=0:20"], not {brief(overrides)}')
    return texts


def _override(document: dict[str, Any], overrides: Iterable[str]) -> set[str]:
    """Write overrides into the document; returns the names they set."""
    names = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name or not text:
            forms = "name=value, name=a,b, name=start:stop or name=log:a:b:n"
            raise UserError(f"command line: {override!r}: write {forms}")
        if name in names:
            raise UserError(f"command line: {name} is set twice")
        names.add(name)
        if name == "name":
            document["name"] = text
        elif name not in leaves():
            raise UserError(f"command line: {name}: no such field{nearest(name, leaves())}")
        elif text.startswith("["):
            plain = re.sub(r"[][\s\"']", "", text).strip(",")
            raise UserError(f"command line: {override!r}: a list has no brackets here; write {name}={plain or 'a,b'}")
        else:
            _check_free(document, name)
            _set(document.setdefault("axes", {}), document.setdefault(leaves()[name], {}), name, text)
    return names


def _check_free(document: dict[str, Any], name: str) -> None:
    """Refuse a field that moves together with others, or is drawn."""
    together = [("sample", document.get("sample", {}))]
    together += [(f"zip {brief(zipped.get('name'))}", zipped) for zipped in document.get("zip", [])]
    for told, fields in together:
        if name in fields:
            raise UserError(f"command line: {name}: is in the file's {told}; change it there")


def _set(axes: dict[str, Any], table: dict[str, Any], name: str, text: str) -> None:
    """Write a field into its table, or as an axis: where it is one, or has several values."""
    if text.startswith("{"):  # as a file would write it
        (table if role(name).is_list else axes)[name] = _parse(text)
        return
    if is_spacing(text) and not role(name).is_list:
        axes[name] = text
        return
    values: list[Any] = [_parse(token) for token in text.split(",")]
    if role(name).is_list:
        values = [values]
    if len(values) > 1 or name in axes:
        axes[name] = values
    else:
        table[name] = values[0]


def _parse(token: str) -> Any:
    try:
        return tomllib.loads(f"value = {token}")["value"]
    except (ValueError, RecursionError):
        pass
    try:
        return float(token)  # TOML has no .5 and no 1.
    except ValueError:
        return token
