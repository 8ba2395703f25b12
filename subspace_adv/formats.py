"""A table of results, told once by its columns, and written as text, Markdown, LaTeX, CSV or JSON."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from subspace_adv.tables import Estimate

SHARE = "share"
"""The form of numbers from 0 to 1 that are told in per cent."""


class Column(NamedTuple):
    """A column: its cells as they are, and how they are rounded where people read them."""

    name: str  # in CSV and JSON; of an Estimate, what comes before _median, _low and _high
    head: str  # for people
    cells: Sequence[Any]  # numbers, text or Estimates; None where there is nothing to tell
    form: str = "g"  # of numbers: a format specification, or `SHARE`
    block: int | None = None  # tables for people are cut into such blocks; a column of None is in each


class Marks(NamedTuple):
    """How a format writes what is in a cell."""

    number: Callable[[str], str]
    text: Callable[[str], str]
    nothing: str


TEXT = Marks(str, str, "–")


def blocks(columns: Sequence[Column]) -> Iterator[list[Column]]:
    """The columns of each table for people."""
    told = (column for column in columns if column.block is not None)
    for _, block in itertools.groupby(told, key=lambda column: column.block):
        yield [*(column for column in columns if column.block is None), *block]


def rows(columns: Sequence[Column], marks: Marks = TEXT) -> Iterator[tuple[str, ...]]:
    """The cells of each row, rounded for people."""
    return zip(*([_shown(cell, column.form, marks) for cell in column.cells] for column in columns), strict=True)


def percent(share: float) -> str:
    """A share without decimals; 0 and 100 stand for none and all."""
    if math.isnan(share):
        return TEXT.nothing
    return "<1%" if 0 < share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN is null, and an infinite number the text inf or -inf."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _shown(value: Any, form: str, marks: Marks) -> str:
    """A cell as people read it."""
    if isinstance(value, Estimate):
        median, low, high = (_shown(number, form, marks) for number in value)
        return f"{median} [{low}, {high}]" if {low, high} != {marks.nothing} else marks.nothing
    if isinstance(value, str | bool):
        return marks.text(str(value))
    if value is None or math.isnan(value):
        return marks.nothing
    return marks.number(percent(value) if form == SHARE else f"{value:{form}}")


def _markdown(columns: Sequence[Column]) -> str:
    marks = Marks(str, lambda text: re.sub(r"([\\|*_`<\[\]])", r"\\\1", text), TEXT.nothing)

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    def table(block: list[Column]) -> str:
        heads = [marks.text(column.head) for column in block]
        return line(heads) + line(["---:"] * len(block)) + "".join(map(line, rows(block, marks)))

    return "\n".join(map(table, blocks(columns)))


def _latex(columns: Sequence[Column]) -> str:
    marks = Marks(_latex_number, _latex_text, "--")

    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(cells)} \\\\\n"

    def table(block: list[Column]) -> str:
        heads = line([marks.text(column.head) for column in block])
        body = "".join(map(line, rows(block, marks)))
        rules = f"\\toprule\n{heads}\\midrule\n{body}\\bottomrule\n"
        return f"\\begin{{tabular}}{{{'r' * len(block)}}}\n{rules}\\end{{tabular}}\n"

    return "% \\usepackage{booktabs}\n" + "\n".join(map(table, blocks(columns)))


def _latex_number(text: str) -> str:
    """A number in math mode, where a hyphen is a minus."""
    mantissa, _, exponent = text.partition("e")
    for character, command in ((",", "{,}"), ("%", r"\%"), ("inf", r"\infty")):
        mantissa = mantissa.replace(character, command)
    return f"${mantissa}$" if not exponent else rf"${mantissa} \times 10^{{{int(exponent)}}}$"


_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",  # which after a line's end would begin an argument
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _numbers(columns: Sequence[Column]) -> dict[str, list[Any]]:
    """All columns as they are, by name; of an Estimate three."""
    made: dict[str, list[Any]] = {}
    for column in columns:
        if any(isinstance(cell, Estimate) for cell in column.cells):
            for part in Estimate._fields:
                made[f"{column.name}_{part}"] = [None if one is None else getattr(one, part) for one in column.cells]
        else:
            made[column.name] = list(column.cells)
    return made


def _csv(columns: Sequence[Column]) -> str:
    return pd.DataFrame(_numbers(columns)).to_csv(index=False, lineterminator="\n")


def _json(columns: Sequence[Column]) -> str:
    made = _numbers(columns)
    told = [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]
    return json.dumps(plain(told), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Column]], str]] = {
    "md": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
"""What writes a table, by the name of a format other than text."""
