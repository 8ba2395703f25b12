"""The fields of a sweep file: what they are to a cell, their role, and which numbers they admit."""

import itertools
import math
import re
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from subspace_adv.errors import UserError, brief
from subspace_adv.rows import nearest
from subspace_adv.spacing import read_spacing


class Role(NamedTuple):
    """What a setting is to the cells that have it; all that a sweep makes of the setting follows from this."""

    shapes: bool = False  # cells that differ in it may need different compiled programs
    is_switch: bool = False  # of a number that shapes: only whether it is 0 decides
    tells_points: bool = False  # the data are drawn from it
    tells_place: bool = False  # it tells where in R^d the span of the data lies, and changes nothing within the span
    entry: type | None = None  # of NumPy, of its entry in a cell's arrays; None where it has none
    replicate: bool = False  # cells that differ in it alone are repetitions of one experiment
    axis: bool = True  # it may be an axis
    is_list: bool = False  # its value is a list; an axis of such is written in a sweep file or in Python alone
    is_file: bool = False  # its value is the path of a file, whose content decides


DATA = Role(shapes=True, tells_points=True)
DATA_LIST, DATA_FILE = DATA._replace(axis=False, is_list=True), DATA._replace(is_file=True)
DATA_LIST_AXIS = DATA_LIST._replace(axis=True)
DATA_REPLICATE = DATA._replace(replicate=True)
PLACE = Role(shapes=True, tells_place=True)
STATIC = Role(shapes=True)
STATIC_LIST = STATIC._replace(axis=False, is_list=True)
SWITCH = STATIC._replace(axis=False)


def run_time(entry: type, *, shapes: bool = False, is_switch: bool = False, replicate: bool = False) -> Role:
    """The role of a setting whose values are entries of arrays, so that cells of one program may differ in it."""
    return Role(shapes=shapes, is_switch=is_switch, entry=entry, replicate=replicate)


class Table(BaseModel, frozen=True, extra="forbid", strict=True):
    """A table of a sweep file, or a part of one; each of its fields has a role."""

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a field without a role: nobody would know whether cells that differ in it share a program."""
        super().__pydantic_init_subclass__(**arguments)
        for leaf in cls.model_fields:
            role_in(cls, leaf)


def role_in(table: type[Table], leaf: str) -> Role:
    """The role of a field of a table.

    Raises:
        TypeError: if it is not annotated with exactly one.
    """
    roles = [mark for mark in table.model_fields[leaf].metadata if isinstance(mark, Role)]
    if len(roles) != 1:
        raise TypeError(
            f"{table.__name__}.{leaf}: has {len(roles)} roles; annotate it with one: DATA, DATA_LIST, DATA_LIST_AXIS, "
            "DATA_FILE, DATA_REPLICATE, PLACE, STATIC, STATIC_LIST, SWITCH or run_time(dtype)"
        )
    return roles[0]


def checked(table: type[Table], leaf: str, value: Any, where: str) -> Any:
    """The value of a field as its table holds it.

    Raises:
        UserError: telling `where`, the value, what it must be and the nearest good one.
    """
    try:
        return getattr(table.model_validate({leaf: value}), leaf)
    except ValidationError as error:
        raise UserError(f"{where} = {brief(value)}: {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    detail = error.errors()[0]
    kind, given = detail["type"], detail["input"]
    several = "; several values are an axis, in [axes]" if isinstance(given, list) else ""
    if kind == "literal_error":
        expected = detail.get("ctx", {}).get("expected", "")
        options = re.findall(r"'([^']+)'", expected)
        return f"must be {expected}{nearest(str(given), options, otherwise_all=False)}"
    if kind == "int_type":
        hint = f"; did you mean {round(given)}?" if isinstance(given, float) and math.isfinite(given) else several
        if isinstance(given, str) and ":" in given:
            hint = ", or as an axis a range start:stop of those from 0 on"
        return f"must be a whole number{hint}"
    plain = {"float_type": f"must be a number{several}", "string_type": "must be text", "tuple_type": "must be a list"}
    message = detail["msg"].removeprefix("Value error, ").removesuffix(" after validation, not 0")
    return plain.get(kind, re.sub(r"^(Input|Tuple|Value) should", "must", message))


def distinct(values: tuple) -> tuple:
    """The values, none of which may be listed twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} is listed twice")
        seen.add(value)
    return values


def distinct_in_float32(values: tuple) -> tuple:
    """Numbers, no two of which may be one in float32."""
    held: dict[float, float] = {}
    for value, number in zip(values, np.array(values, np.float32).tolist(), strict=True):
        if number in held:
            raise ValueError(f"{held[number]} and {value} are one number in float32, in which networks train")
        held[number] = value
    return values


def ascending(values: tuple) -> tuple:
    """The values, of which there must be some, each over the one before; none is listed twice."""
    if not values:
        raise ValueError("must list at least one value; leave it out for none")
    for before, after in itertools.pairwise(distinct(values)):
        if after < before:
            raise ValueError(f"must ascend; {after!r} comes after {before!r}")
    return values


def spaced_whole(written: Any) -> Any:
    """Whole numbers told by their ends, as a table `{log = [a, b], n = k}`; anything else as it is."""
    if not isinstance(written, dict):
        return written
    spacing = read_spacing(written)
    if not all(isinstance(end, int) for end in spacing.ends):
        raise ValueError("both ends must be whole numbers")
    if max(map(abs, spacing.ends)) > _EXACT:
        raise ValueError(f"both ends must be within {_EXACT:,}")
    return spacing.values(whole=True)


def _no_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must be a number, not NaN")
    return value


_EXACT = 2**53  # as far as double precision tells whole numbers apart
_TINY, _LARGEST = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def _in_float32(value: float) -> float:
    if 0 < abs(value) < _TINY:  # XLA takes subnormal numbers for 0
        least = math.copysign(1.2e-38, value)
        raise ValueError(f"is 0 in float32, in which networks train; the nearest to 0 is {least}")
    if _LARGEST < abs(value) < math.inf:
        largest = math.copysign(3.4e38, value)
        raise ValueError(f"is infinite in float32, in which networks train; the farthest from 0 is {largest}")
    return value


def _below_one_in_float32(value: float) -> float:
    if np.float32(value) == 1:
        raise ValueError("is 1 in float32, in which networks train; at most 0.9999999 is possible")
    return value


AS_TUPLE = BeforeValidator(
    lambda v: tuple(v.tolist() if isinstance(v, np.ndarray) else v) if isinstance(v, list | range | np.ndarray) else v
)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_in_float32)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_in_float32)]
BelowOne = Annotated[
    float, Field(ge=0, lt=1, allow_inf_nan=False), AfterValidator(_in_float32), AfterValidator(_below_one_in_float32)
]
Level = Annotated[float, AfterValidator(_no_nan), AfterValidator(_in_float32)]
Finite = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_in_float32)]
Count = Annotated[int, Field(ge=1, le=2**24)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
