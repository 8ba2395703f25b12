"""Tables whose rows are found by name: what the package can do more is a row more, and an unknown name is an error."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

Row = TypeVar("Row")
_TOLD = 30  # names that a message lists at most


class UnknownName(ValueError, KeyError):
    """A table has no row of a name."""

    def __str__(self) -> str:
        """The message as it is; a KeyError's would be quoted."""
        return str(self.args[0])


class Rows(MutableMapping[str, Row]):
    """A table of rows by name, in the order in which they are told; no lookup ends in a default."""

    def __init__(self, what: str, rows: Mapping[str, Row], check: Callable[[str, Row], None] | None = None) -> None:
        """A table of `what`, as messages call one row of it.

        Args:
            what: the word.
            rows: by name.
            check: raises an error if a row leaves something out; called of each row before it is added.
        """
        self.what, self._check = what, check
        self._rows: dict[str, Row] = {}
        self._all: tuple[tuple[str, Row], ...] | None = None
        self.update(rows)

    def __getitem__(self, name: str) -> Row:
        """The row of a name.

        Raises:
            UnknownName: naming the nearest one.
        """
        if name not in self:
            raise UnknownName(f"{self.what} {name!r}: there is none of this name{nearest(str(name), self)}")
        return self._rows[name]

    def __setitem__(self, name: str, row: Row) -> None:
        """Add a row.

        Raises:
            ValueError: if there is one of this name; and what the table's check raises.
        """
        if name in self:
            raise ValueError(f"{self.what} {name!r}: there is one of this name already")
        if self._check:
            self._check(name, row)
        self._rows[name], self._all = row, None

    def __delitem__(self, name: str) -> None:
        """Take a row away."""
        del self._rows[name]
        self._all = None

    def __contains__(self, name: object) -> bool:
        """Whether there is a row of this name."""
        return isinstance(name, str) and name in self._rows

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def all(self) -> tuple[tuple[str, Row], ...]:
        """All names and rows, as they are now."""
        if self._all is None:
            self._all = tuple(self._rows.items())
        return self._all

    def name(self, value: object) -> str:
        """A value of a setting, which must be the name of a row.

        Raises:
            ValueError: telling what it must be.
        """
        return one_of(value, self)


def one_of(value: object, known: Collection[str]) -> str:
    """A value, which must be one of some names.

    Raises:
        ValueError: telling what it must be.
    """
    if value not in known:
        *others, last = map(repr, known)
        names = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"must be {names}{nearest(str(value), known, otherwise_all=False)}")
    return str(value)


def nearest(name: str, known: Iterable[str], *, otherwise_all: bool = True) -> str:
    """A hint naming the known names nearest to a mistyped one, or some or all of them where none is near."""
    known = sorted(known)
    if close := near(name, known):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    if not known or not otherwise_all:
        return ""
    more = ", …" if len(known) > _TOLD else ""
    return f"; known: {', '.join(known[:_TOLD])}{more}"


def near(name: str, known: list[str]) -> list[str]:
    """The names most like a mistyped one, as a whole or in a part such as the scale of init_scale."""

    def likeness(text: str) -> float:
        return difflib.SequenceMatcher(None, text.casefold(), name.casefold()).ratio()

    wholes = {whole: likeness(whole) for whole in known}
    parts = {whole: max(map(likeness, re.split("[_-]", whole))) for whole in known}
    best_whole, best_part = max(wholes.values(), default=0), max(parts.values(), default=0)
    if best_whole >= max(best_part, 0.6):
        return [next(whole for whole in known if wholes[whole] == best_whole)]
    return [whole for whole in known if parts[whole] == best_part >= 0.75]
