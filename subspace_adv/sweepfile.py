"""A sweep file and the overrides of a command line, as one document: tables of settings and axes, not yet checked."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from subspace_adv.errors import UserError, brief
from subspace_adv.rows import near_files, nearest
from subspace_adv.settings import leaves, role, tables

RANGE = re.compile(r"(\d+):(\d+)")
"""An axis of whole numbers from the first up to the second, which is not one of them."""


def read(path: str | Path, overrides: Any = ()) -> tuple[dict[str, Any], set[str]]:
    """The document of a sweep file with overrides written into it, and the names they set.

    Args:
        path: a TOML file.
        overrides: a text, or some, such as "seed=0:20".

    Raises:
        UserError: if the file cannot be read, or what is written is no table or no override.
    """
    path = Path(path)
    document = _parsed(path)
    document.setdefault("name", path.stem)
    for name, content in document.items():
        if name not in {"name", "axes", *tables()}:
            belongs = f"; it belongs in [{leaves()[name]}]" if name in leaves() else None
            raise UserError(f"{path}: {name}: no such table{belongs or nearest(name, ['name', 'axes', *tables()])}")
        if name != "name" and not isinstance(content, dict):
            raise UserError(f"{path}: {name} = {brief(content)}: must be a table, [{name}]")
    return document, _override(document, _texts(overrides))


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
            raise UserError(f"command line: {override!r}: write name=value, name=a,b or name=start:stop")
        if name in names:
            raise UserError(f"command line: {name} is set twice")
        names.add(name)
        values = [_parse(token) for token in text.split(",")]
        axes = document.setdefault("axes", {})
        if name == "name":
            document["name"] = text
        elif name not in leaves():
            raise UserError(f"command line: {name}: no such field{nearest(name, leaves())}")
        elif text.startswith("["):
            plain = re.sub(r"[][\s\"']", "", text).strip(",")
            raise UserError(f"command line: {override!r}: a list has no brackets here; write {name}={plain or 'a,b'}")
        elif not role(name).axis:
            document.setdefault(leaves()[name], {})[name] = values
        elif RANGE.fullmatch(text):
            axes[name] = text
        elif len(values) > 1 or name in axes:
            axes[name] = values
        else:
            document.setdefault(leaves()[name], {})[name] = values[0]
    return names


def _parse(token: str) -> Any:
    try:
        return tomllib.loads(f"value = {token}")["value"]
    except (ValueError, RecursionError):
        pass
    try:
        return float(token)  # TOML has no .5 and no 1.
    except ValueError:
        return token
