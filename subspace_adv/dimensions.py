"""The dimensions of a grid as a sweep tells them: axes, fields that move together (zips), and draws from ranges."""

import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from subspace_adv.errors import UserError, brief
from subspace_adv.fields import checked, distinct, distinct_in_float32
from subspace_adv.geometry import REGIONS
from subspace_adv.measures import TRAINED, variables
from subspace_adv.norms import NORMS
from subspace_adv.rows import nearest, one_of
from subspace_adv.settings import leaves, role, tables
from subspace_adv.snapshots import MARGIN_LEVEL, STEP, at_margin
from subspace_adv.spacing import MOST_SPACED, read_range, read_spacing

Dimension = dict[str, tuple]
"""Values by field, as many of each: cells have those at one place together."""
Source = Callable[[str], str]
"""Where a field was written, as messages tell it: a file, the command line, or Python."""

FIELDS = "fields"
"""Attribute of a dimension of the Dataset that is no axis: the names of its fields."""
SAMPLE = "sample"
"""The dimension of draws from ranges."""
_DRAWS = ("n", "method", "draw_seed")  # what [sample] says beside the ranges of fields
_METHODS = ("sobol", "random")
_OF_DATASETS = ("point", "heldout", "feature", STEP, MARGIN_LEVEL, "label", "input", "heldout_input", "span_dim")
_OF_LOADING = ("folder", "module")  # arguments that dimensions stand beside


def read_dimensions(document: Mapping[str, Any], source: Source) -> dict[str, Dimension]:
    """The dimensions of a document by name, in the grid's order: axes, zips, and the sample.

    Raises:
        UserError: for the first of them with something wrong.
    """
    found: dict[str, Dimension] = {}
    for leaf, values in document.get("axes", {}).items():
        found[leaf] = {leaf: _axis(leaf, values, f"{source(leaf)}: axes.{leaf}")}
    for number, zipped in enumerate(document.get("zip", []), 1):
        name = _name(zipped, f"{source('zip')}: zip number {number}", found)
        found[name] = _zipped(name, {leaf: values for leaf, values in zipped.items() if leaf != "name"}, source, found)
    if "sample" in document:
        if SAMPLE in found:
            raise UserError(f"{source('sample')}: sample: there is a zip of this name; give that another one")
        found[SAMPLE] = _sample(document["sample"], source, found)
    return found


def written_fields(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Where, in which table, every field of a document's dimensions is written, the field, and what is written."""
    yield from (("axes", leaf, values) for leaf, values in document.get("axes", {}).items())
    for zipped in document.get("zip", []):
        yield from ((f"zip.{zipped['name']}", leaf, values) for leaf, values in zipped.items() if leaf != "name")
    for leaf, ends in document.get("sample", {}).items():
        if leaf not in _DRAWS:
            yield "sample", leaf, ends


def is_axis(name: str) -> bool:
    """Whether a dimension is an axis, which has the name of its field; no other dimension may have that of one."""
    return name in leaves()


def place(dimensions: Mapping[str, Dimension], leaf: str) -> str:
    """The table in which a field is told: that of its dimension, or else its own."""
    name = next((name for name, of in dimensions.items() if leaf in of), None)
    return leaves()[leaf] if name is None else _table(name)


def check_rows(dimensions: Mapping[str, Dimension], source: Source) -> None:
    """Refuse a zip or a sample with two places of equal values.

    Raises:
        UserError: naming their places.
    """
    for name, of in dimensions.items():
        if is_axis(name):
            continue
        columns = (np.array(v, np.float32).tolist() if isinstance(v[0], float) else v for v in of.values())
        first: dict[tuple, int] = {}
        for number, row in enumerate(zip(*columns, strict=True)):
            if (before := first.setdefault(row, number)) != number:
                told = ", ".join(f"{leaf} = {brief(values[number])}" for leaf, values in of.items())
                way_out = "draw fewer, or from wider ranges" if name == SAMPLE else "leave one of them out"
                both = f"numbers {before} and {number} (from 0) are alike, {told}"
                raise UserError(f"{source(next(iter(of)))}: {_table(name)}: {both}; {way_out}")


def _table(name: str) -> str:
    return "axes" if is_axis(name) else SAMPLE if name == SAMPLE else f"zip.{name}"


def _name(zipped: Mapping[str, Any], where: str, found: Mapping[str, Dimension]) -> str:
    """The name of a zip, which will be that of a dimension of the Dataset."""
    name = zipped.get("name")
    if name is None:
        raise UserError(f'{where}: has no name; name the dimension that it is, such as name = "arm"')
    told = f"{where}: name = {brief(name)}"
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f'{told}: must be a word of letters, digits and "_", as it names a dimension')
    if name in leaves():
        raise UserError(f"{told}: is the name of a field; give it another one")
    if name in _taken() or name.startswith("predicted_") or name.endswith(("_value", at_margin(""))):
        raise UserError(f"{told}: is a name that results have already, or load_networks; give it another one")
    if name in found:
        raise UserError(f"{told}: is the name of another zip; give it another one")
    return name


def _taken() -> set[str]:
    """Names of the Dataset's own, and of what stands beside dimensions where networks are loaded."""
    return {*_OF_DATASETS, *_OF_LOADING, *TRAINED, *variables(REGIONS, tuple(NORMS), redraws=1)}


def _zipped(name: str, fields: Mapping[str, Any], source: Source, found: Mapping[str, Dimension]) -> Dimension:
    """The fields of a zip, which have as many values each."""
    table = _table(name)
    if not fields:
        raise UserError(f"{source('zip')}: {table}: has no fields; list values of some, such as init_scale = [1, 0.5]")
    of: Dimension = {}
    for leaf, values in fields.items():
        where = f"{source(leaf)}: {table}.{leaf}"
        _check_leaf(leaf, where, found)
        of[leaf] = _values(leaf, values, where)
    first = next(iter(of))
    for leaf, values in of.items():
        if len(values) != len(of[first]):
            told = f"{first} has {len(of[first]):,} values and {leaf} has {len(values):,}"
            raise UserError(f"{source(leaf)}: {table}: {told}; they move together, so give both as many")
    return of


def _sample(settings: Mapping[str, Any], source: Source, found: Mapping[str, Dimension]) -> Dimension:
    """Draws from ranges; the first of them are the same however many there are."""
    ranges = {leaf: ends for leaf, ends in settings.items() if leaf not in _DRAWS}
    number, method, seed = (
        settings.get(name, default) for name, default in zip(_DRAWS, (None, "sobol", 0), strict=True)
    )
    _check_whole("n", number, 2, MOST_SPACED, source)
    _check_whole("draw_seed", seed, 0, 2**32 - 1, source)
    try:
        one_of(method, _METHODS)
    except ValueError as error:
        raise UserError(f"{source('method')}: sample.method = {brief(method)}: {error}") from None
    if not ranges:
        told = "draws no field; give ranges of some, such as init_scale = {log = [0.001, 1]}"
        raise UserError(f"{source('sample')}: sample: {told}")
    shares = _shares(method, number, len(ranges), seed)
    of: Dimension = {}
    for (leaf, ends), column in zip(ranges.items(), shares.T, strict=True):
        where = f"{source(leaf)}: sample.{leaf}"
        _check_leaf(leaf, where, found)
        try:
            spacing = read_range(ends)
        except ValueError as error:
            raise UserError(f"{where} = {brief(ends)}: {error}") from None
        kind = _kind(leaf, spacing.ends, where)
        of[leaf] = tuple(map(kind, spacing.at(column, whole=kind is int)))
        if kind is float:
            _check_least(leaf, of[leaf], where)
    return of


def _check_whole(name: str, value: Any, least: int, most: int, source: Source) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        must_be = f"must be a whole number from {least} to {most:,}"
        given = f"sample.{name} = {brief(value)}" if value is not None else f"sample.{name} is not set"
        raise UserError(f"{source(name)}: {given}: {must_be}")


def _shares(method: str, number: int, fields: int, seed: int) -> np.ndarray:
    """Points of the unit cube, (number, fields)."""
    generator = np.random.default_rng(seed)
    if method == "random":
        return generator.random((number, fields))
    from scipy.stats import qmc  # takes long to import

    sequence = qmc.Sobol(fields, scramble=True, seed=generator)  # pyright: ignore[reportCallIssue]  # rng since 1.15
    return sequence.random_base2((number - 1).bit_length())[:number]


def _check_leaf(leaf: str, where: str, found: Mapping[str, Dimension]) -> None:
    """Refuse what cannot vary, or varies already."""
    if leaf not in leaves():
        raise UserError(f"{where}: no such field{nearest(leaf, [one for one in leaves() if role(one).axis])}")
    if not role(leaf).axis:
        why = f"{leaf} is a list already" if role(leaf).is_list else f"{leaf} is one for all networks"
        raise UserError(f"{where}: cannot be an axis; {why}; set it in [{leaves()[leaf]}]")
    if any(leaf in of for of in found.values()):
        raise UserError(f"{where}: is in {place(found, leaf)} already; leave one of the two out")


def _axis(leaf: str, written: Any, where: str) -> tuple:
    """The values of an axis, of which no two may be one."""
    if leaf not in leaves():
        raise UserError(f"{where}: no such axis{nearest(leaf, [one for one in leaves() if role(one).axis])}")
    _check_leaf(leaf, where, {})
    values = _values(leaf, written, where)
    try:
        if isinstance(written, list | tuple):
            distinct(values)
        if isinstance(values[0], float):
            distinct_in_float32(values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return values


def _values(leaf: str, written: Any, where: str) -> tuple:
    """The values of a field, written as a list or by their ends."""
    if not isinstance(written, list | tuple | range):
        return _spaced(leaf, written, where)
    if not written:
        raise UserError(f"{where} = []: no values; list at least one")
    model = tables()[leaves()[leaf]]
    values = tuple(checked(model, leaf, value, where) for value in written)
    if len({isinstance(value, str) for value in values}) > 1:
        raise UserError(f"{where}: must be all numbers or all text")
    return values


def _spaced(leaf: str, written: Any, where: str) -> tuple:
    """The values of a field written by their ends, of the field's type."""
    try:
        spacing = read_spacing(written)
    except ValueError as error:
        raise UserError(f"{where} = {brief(written)}: {error}") from None
    kind = _kind(leaf, spacing.ends, where)
    try:
        values = tuple(map(kind, spacing.values(whole=kind is int)))
    except ValueError as error:
        raise UserError(f"{where} = {brief(written)}: {error}") from None
    if kind is float:
        _check_least(leaf, values, where)
    return values


def _check_least(leaf: str, values: Sequence[float], where: str) -> None:
    """Refuse a number between the ends that a list may not have: one that float32 has no room for near 0."""
    least = min((value for value in values if value), key=abs, default=None)
    if least is not None:
        checked(tables()[leaves()[leaf]], leaf, least, where)


def _kind(leaf: str, ends: Sequence[Any], where: str) -> type:
    """The type of a field's numbers, which both ends must be."""
    model = tables()[leaves()[leaf]]
    first, _ = (checked(model, leaf, end, where) for end in ends)
    return type(first)
