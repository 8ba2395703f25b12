"""Values written by their ends: "start:stop", "start:stop:step", {log = [a, b], n = 7} and {lin = [a, b], n = 5}."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

FORMS = 'a list, "start:stop", "start:stop:step" of whole numbers, {log = [a, b], n = 7} or {lin = [a, b], n = 5}'
"""How several values are written in a sweep file."""
MOST_VALUES = 10**7
MOST_SPACED = 10_000
_RANGE = re.compile(r"(\d+):(\d+)(?::(\d+))?")
_SPACED = re.compile(r"(log|lin):([^:]*):([^:]*):([^:]*)")
_NEGLIGIBLE = 1e-12  # beside the largest: what rounding leaves where 0 is meant
Number = int | float


class Spacing(NamedTuple):
    """Numbers from one end to another."""

    scale: str  # "log", "lin", or "step": from the first one up to the last, which is not one of them
    first: Number
    last: Number
    number: int  # how many, or the step

    @property
    def ends(self) -> tuple[Number, Number]:
        """The first and the last value."""
        if self.scale == "step":
            values = range(int(self.first), int(self.last), self.number)
            return values[0], values[-1]
        return self.first, self.last

    def values(self, *, whole: bool) -> tuple[Number, ...]:
        """All of them, none twice: whole numbers, or else those of float32, in which networks train, told shortly.

        Raises:
            ValueError: if some that are not whole are one number in float32.
        """
        if self.scale == "step":
            return tuple(range(int(self.first), int(self.last), self.number))
        spaced = {"log": np.geomspace, "lin": np.linspace}[self.scale](self.first, self.last, self.number)
        if self.scale == "lin":
            spaced[np.abs(spaced) < _NEGLIGIBLE * np.abs(spaced).max()] = 0
        found = tuple(dict.fromkeys(_told(spaced, whole=whole)))
        if len(found) < self.number and not whole:
            raise ValueError(f"only {len(found)} of {self.number:,} numbers differ in float32, in which networks train")
        return found

    def at(self, shares: np.ndarray, *, whole: bool) -> tuple[Number, ...]:
        """Those at some shares of the way from the first to the last, on the scale; as `values` tells them."""
        ends = np.array([self.first, self.last], np.float64)
        first, last = np.log(ends) if self.scale == "log" else ends
        on_scale = first + (last - first) * shares
        found = np.exp(on_scale) if self.scale == "log" else on_scale
        return tuple(_told(np.clip(found, min(ends), max(ends)), whole=whole))


def is_spacing(text: str) -> bool:
    """Whether a text of a command line tells values by their ends."""
    return bool(_RANGE.fullmatch(text) or text.startswith(("log:", "lin:")))


def read_spacing(written: Any) -> Spacing:
    """What a text or a table tells.

    Raises:
        ValueError: telling what it must be.
    """
    if isinstance(written, str) and (found := _RANGE.fullmatch(written)):
        first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
        if last <= first:
            raise ValueError("no values; stop must be over start")
        if not step:
            raise ValueError("step must be 1 or more")
        if (number := -((first - last) // step)) > MOST_VALUES:
            raise ValueError(f"{number:,} values; at most {MOST_VALUES:,} are possible")
        return Spacing("step", first, last, step)
    if isinstance(written, str) and (found := _SPACED.fullmatch(written)):
        scale, *told = found.groups()
        return _checked(scale, *(_number(text) for text in told))
    if isinstance(written, str) and is_spacing(written):
        raise ValueError(f"must be {written[:3]}:a:b:n, such as {written[:3]}:0.001:1:7")
    match written:
        case {"log": [first, last], "n": number, **others} if not others:
            return _checked("log", first, last, number)
        case {"lin": [first, last], "n": number, **others} if not others:
            return _checked("lin", first, last, number)
    raise ValueError(f"must be {FORMS}")


def read_range(written: Any) -> Spacing:
    """What a table tells that names a scale and its ends alone.

    Raises:
        ValueError: telling what it must be.
    """
    match written:
        case {"log": [first, last], **others} if not others:
            return _checked("log", first, last, 2)
        case {"lin": [first, last], **others} if not others:
            return _checked("lin", first, last, 2)
    raise ValueError("must be a range, {log = [a, b]} or {lin = [a, b]}")


def _told(values: np.ndarray, *, whole: bool) -> list[Number]:
    """Whole numbers, or else those of float32, in which networks train, told shortly."""
    return np.rint(values).astype(np.int64).tolist() if whole else [float(str(v)) for v in values.astype(np.float32)]


def _number(text: str) -> Any:
    """The number that a text tells; if it is none, the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _checked(scale: str, first: Any, last: Any, number: Any) -> Spacing:
    for end in (first, last):
        if isinstance(end, bool) or not isinstance(end, int | float) or not abs(end) < math.inf:
            raise ValueError(f"{end!r} is no end; both must be finite numbers")
        if scale == "log" and end <= 0:
            raise ValueError(f"{end} has no place on a logarithmic scale; both ends must be over 0")
    if first == last:
        raise ValueError(f"both ends are {first}; they must differ")
    if isinstance(number, bool) or not isinstance(number, int) or not 2 <= number <= MOST_SPACED:
        raise ValueError(f"n is {number!r}; must be a whole number from 2 to {MOST_SPACED:,}")
    return Spacing(scale, first, last, number)
