"""What is recorded of a trained network, a row each: its meaning, how it is rounded and what computes it."""

import dataclasses
import enum
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from subspace_adv.attacks import ATTACKS
from subspace_adv.brackets import Brackets, Effort
from subspace_adv.contracts import Model
from subspace_adv.data import HELDOUT
from subspace_adv.geometry import REGIONS, Region, Subspace
from subspace_adv.rows import Rows
from subspace_adv.subject import Subject
from subspace_adv.training import Loss, loss_value

Dimension = Literal["point", "heldout"]
"""Beside the sweep's axes: the training points, or those held out."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """Meaning of a variable of the Dataset."""

    dimensions: tuple[Dimension, ...]  # none where a cell has one value
    unit: str
    meaning: str

    def __post_init__(self) -> None:
        """Refuse what says nothing.

        Raises:
            ValueError: naming the field.
        """
        known = ((), ("point",), ("heldout",))
        if self.dimensions not in known:
            raise ValueError(f"dimensions {self.dimensions!r}: must be one of {', '.join(map(str, known))}")
        for field in ("unit", "meaning"):
            if not getattr(self, field):
                raise ValueError(f"{field}: must be told; a unit of what has none is '1'")

    def values(self, points: int) -> int:
        """How many a network has."""
        return self.shape(points)[0] if self.dimensions else 1

    def shape(self, points: int) -> tuple[int, ...]:
        """Of a network's."""
        return tuple({"point": points, "heldout": HELDOUT}[dimension] for dimension in self.dimensions)


class Rounding(enum.Enum):
    """Where the float32 of what was computed in float64 lies: a bound is one still if it is rounded outwards."""

    NEAREST = "nearest"
    DOWN = "down"
    UP = "up"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(Variable):
    """What is known of what is recorded.

    A name with {region} and {norm} in it is that of a family, of every region and norm: its meaning has both in it
    too, and they are arguments of `compute`.
    """

    rounding: Rounding
    off: bool  # whether it depends on weights off the subspace: if so, it is ranked among redraws of them
    of_region: Region | None = None  # recorded where distances in this region are; None: always
    compute: Callable[..., jax.Array]  # of a `Subject`, an array shaped by the dimensions

    def __post_init__(self) -> None:
        """As of a `Variable`.

        Raises:
            ValueError: naming the field.
        """
        super().__post_init__()
        if not isinstance(self.off, bool):
            raise ValueError(f"off {self.off!r}: must be True or False")
        if self.of_region not in (None, *REGIONS):
            raise ValueError(f"of_region {self.of_region!r}: must be a region, or None")
        if not isinstance(self.rounding, Rounding):
            raise ValueError(f"rounding {self.rounding!r}: must be a Rounding")
        if not callable(self.compute):
            raise ValueError(f"compute {self.compute!r}: must be a function of a Subject")


@dataclasses.dataclass(frozen=True)
class Recording:
    """What to record: static under jit."""

    regions: tuple[Region, ...]
    norms: tuple[str, ...]
    attack_steps: int
    restarts: int
    gap: float
    loss: Loss
    redraws: int = 0
    attacks: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(ATTACKS))
    measures: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(MEASURES))

    @property
    def effort(self) -> Effort:
        """Of the attacks and certificates."""
        return Effort(self.attack_steps, self.restarts, self.attacks, self.gap)

    @property
    def has_brackets(self) -> bool:
        """Whether distances within regions are recorded, which alone are searched for."""
        return any(map(_is_bracket, self.measures))

    @property
    def has_heldout(self) -> bool:
        """Whether anything is recorded at held-out points."""
        return any(map(_is_heldout, self.measures))

    @property
    def measured(self) -> dict[str, Measure]:
        """What is measured of a network, by name."""
        return _named(self.measures, self.regions, self.norms)

    def during(self, *, brackets: bool) -> "Recording":
        """What is recorded of a network before its stop: neither ranks among redraws nor what is at held-out points.

        Brackets are recorded only if asked for.
        """
        return dataclasses.replace(self, redraws=0, measures=_rows(self.measures, brackets))

    @property
    def variables(self) -> dict[str, Variable]:
        """What is recorded, by name: ranks among redraws too."""
        return self.measured | (_ranks(self.measured, self.redraws) if self.redraws else {})


# Names of the distances ------------------------------------------------------------------------------------------

Side = Literal["lower", "upper"]


def distance_name(region: str, norm: str, side: Side) -> str:
    """Name of an end of the bracket of a distance."""
    return f"distance_{region}_{norm}_{side}"


_DISTANCE = re.compile(distance_name(f"({'|'.join(REGIONS)})", "(.+)", "(lower|upper)"))  # pyright: ignore


def distance_parts(name: str) -> tuple[Region, str, Side] | None:
    """The region, norm and side that `distance_name` was given; None of any other name."""
    match = _DISTANCE.fullmatch(name)
    return (match[1], match[2], match[3]) if match else None  # pyright: ignore[reportReturnType]


# The table -------------------------------------------------------------------------------------------------------

_REGION_WORDS: dict[Region, str] = {
    "off": "orthogonal to the data's subspace",
    "normal": "normal to the data's manifold at the point",
    "tangent": "tangent to the data's manifold at the point; a straight step leaves a curved one, by about the square "
    "of its length over twice the radius of curvature",
    "on": "within the data's subspace",
    "full": "anywhere",
}
_GRADIENT_UNIT = "output per input length"
_FLIP = "{norm} distance to a flip by a perturbation {region}"
_MISSES = "0 where misclassified"

MEASURES: Rows[Measure] = Rows(
    "measure",
    {
        "loss": Measure(
            dimensions=(),
            unit="nat",
            meaning="training loss, averaged over the points, without the weight penalty",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: jnp.sum(loss_value(of.margins, of.loss)) / jnp.sum(jnp.abs(of.y)),
        ),
        "margin": Measure(
            dimensions=(),
            unit="output",
            meaning="least signed output y·N(x) over the training points",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: jnp.min(of.margins),
        ),
        "output": Measure(
            dimensions=("point",),
            unit="output",
            meaning="network output N(x)",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: of.outputs,
        ),
        "gradient_norm_off": Measure(
            dimensions=("point",),
            unit=_GRADIENT_UNIT,
            meaning="L2 norm of the input gradient's part orthogonal to the subspace",
            rounding=Rounding.NEAREST,
            off=True,
            compute=lambda of: of.gradient_norm("off"),
        ),
        "gradient_norm_off_learned": Measure(
            dimensions=("point",),
            unit=_GRADIENT_UNIT,
            meaning="L2 norm of the part of gradient_norm_off that training changes: within the span of the data; 0 "
            "where the subspace is that span",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: of.gradient_norm_learned,
        ),
        "gradient_norm_on": Measure(
            dimensions=("point",),
            unit=_GRADIENT_UNIT,
            meaning="L2 norm of the input gradient's part within the subspace",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: of.gradient_norm("on"),
        ),
        "gradient_norm_normal": Measure(
            dimensions=("point",),
            unit=_GRADIENT_UNIT,
            meaning="L2 norm of the input gradient's part normal to the data's manifold at the point: the bend within "
            "the subspace, and all that is orthogonal to that",
            rounding=Rounding.NEAREST,
            off=True,
            of_region="normal",
            compute=lambda of: of.gradient_norm("normal"),
        ),
        "gradient_norm_tangent": Measure(
            dimensions=("point",),
            unit=_GRADIENT_UNIT,
            meaning="L2 norm of the input gradient's part tangent to the data's manifold at the point",
            rounding=Rounding.NEAREST,
            off=False,
            of_region="tangent",
            compute=lambda of: of.gradient_norm("tangent"),
        ),
        "head_norm_active": Measure(
            dimensions=("point",),
            unit="1",
            meaning="L2 norm of the output's gradient in the first layer's preactivations: of two layers, that of "
            "the output weights of the neurons active at the point",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: jnp.linalg.norm(of.sensitivities, axis=1),
        ),
        "head_sum_active": Measure(
            dimensions=("point",),
            unit="1",
            meaning="product of that gradient with the signs of the universal direction: of two layers, the sum of the "
            "sizes of the output weights of the neurons active at the point",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: jnp.sum(of.sensitivities * of.universal_weights[None], axis=1),
        ),
        "gradient_off_whitened": Measure(
            dimensions=(),
            unit="(output per input length)²",
            meaning="sum of squares of the gradients off the span of the data at all training points, whitened: of as "
            "many independent numbers as gradient_off_freedom tells, of the variance of the first layer's weights "
            "that never learn",
            rounding=Rounding.NEAREST,
            off=True,
            compute=lambda of: of.whitened.squares,
        ),
        "gradient_off_freedom": Measure(
            dimensions=(),
            unit="1",
            meaning="number of the independent numbers that these gradients are made of",
            rounding=Rounding.NEAREST,
            off=False,
            compute=lambda of: of.whitened.rank,
        ),
        "distance_universal": Measure(
            dimensions=("point",),
            unit="input length",
            meaning="L2 distance to a flip along the one direction off the subspace that serves every point, exact; "
            f"{_MISSES}, inf where that direction never flips the point",
            rounding=Rounding.UP,
            off=True,
            compute=lambda of: of.where_right(of.universal[0].distance),
        ),
        "distance_random": Measure(
            dimensions=("point",),
            unit="input length",
            meaning="L2 distance to a flip along one random direction off the subspace, or against it, whichever "
            f"lowers |N| to first order, exact; {_MISSES}, inf where it never flips the point",
            rounding=Rounding.UP,
            off=True,
            compute=lambda of: of.where_right(of.along_random[0]),
        ),
        "distance_universal_heldout": Measure(
            dimensions=("heldout",),
            unit="input length",
            meaning="as distance_universal, of the network's own prediction at held-out points",
            rounding=Rounding.UP,
            off=True,
            compute=lambda of: of.universal[1].distance,
        ),
        "distance_random_heldout": Measure(
            dimensions=("heldout",),
            unit="input length",
            meaning="as distance_random, of the network's own prediction at held-out points",
            rounding=Rounding.UP,
            off=True,
            compute=lambda of: of.along_random[1],
        ),
        distance_name("{region}", "{norm}", "upper"): Measure(
            dimensions=("point",),
            unit="input length",
            meaning=f"{_FLIP}: least found by an attack; {_MISSES}, inf where none was found",
            rounding=Rounding.UP,
            off=True,
            compute=lambda of, region, norm: of.where_right(of.brackets[region, norm].upper),
        ),
        distance_name("{region}", "{norm}", "lower"): Measure(
            dimensions=("point",),
            unit="input length",
            meaning=f"{_FLIP}: certified, none is smaller; {_MISSES}",
            rounding=Rounding.DOWN,
            off=True,
            compute=lambda of, region, norm: of.where_right(of.brackets[region, norm].lower),
        ),
    },
)

TRAINED = ("status", "steps")
"""Saved beside what is recorded, as are the network's parameters."""


def variables(regions: tuple[Region, ...], norms: tuple[str, ...], redraws: int = 0) -> dict[str, Variable]:
    """What is recorded of all rows, by name."""
    measured = _named(MEASURES, regions, norms)
    return measured | (_ranks(measured, redraws) if redraws else {})


def variables_during(regions: tuple[Region, ...], norms: tuple[str, ...], *, brackets: bool) -> dict[str, Variable]:
    """What is recorded of all rows before a network's stop, by name."""
    return {**_named(_rows(tuple(MEASURES), brackets), regions, norms)}


def _rows(names: tuple[str, ...], brackets: bool) -> tuple[str, ...]:
    """Some rows, but for what is at held-out points, and for brackets unless these are asked for."""
    return tuple(name for name in names if not _is_heldout(name) and (brackets or not _is_bracket(name)))


def _is_heldout(row: str) -> bool:
    """Whether a row of `MEASURES` is recorded at held-out points."""
    return "heldout" in MEASURES[row].dimensions


def _is_bracket(row: str) -> bool:
    """Whether a row is an end of the brackets within regions, which alone are searched for."""
    return row in (distance_name("{region}", "{norm}", "lower"), distance_name("{region}", "{norm}", "upper"))


def rank_name(name: str) -> str:
    """Name of the rank of a variable."""
    return f"rank_{name}"


def _ranks(measured: Mapping[str, Measure], redraws: int) -> dict[str, Variable]:
    """The ranks of all variables that depend on weights off the subspace (F16 in docs/theory.md)."""
    told = f"among it and {redraws} redraws of the weights off the subspace, from 0 on, ties broken at random"
    return {
        rank_name(name): Variable(row.dimensions, "1", f"rank of {name} {told}; NaN where these are not redrawn")
        for name, row in measured.items()
        if row.off
    }


def _named(names: Iterable[str], regions: tuple[Region, ...], norms: tuple[str, ...]) -> dict[str, Measure]:
    """Variables of some rows by name; a family's are one for every region and norm, told and computed for it.

    Raises:
        ValueError: if two have a name, or one has that of what is saved of a network beside them.
    """
    table: dict[str, Measure] = {}
    for name, row in _each(names, regions, norms):
        if name in table or name in TRAINED:
            raise ValueError(f"measure {name!r}: there is a variable of this name already")
        table[name] = row
    return table


def _each(names: Iterable[str], regions: tuple[Region, ...], norms: tuple[str, ...]) -> Iterator[tuple[str, Measure]]:
    families = [name for name in names if "{" in name]
    rows = ((name, MEASURES[name]) for name in names if name not in families)
    yield from ((name, row) for name, row in rows if row.of_region in (None, *regions))
    for region, norm in itertools.product(regions, norms):
        words = {"region": _REGION_WORDS[region], "norm": norm.upper()}
        for name in families:
            row = MEASURES[name]
            meaning, of_one = row.meaning.format(**words), _of_one(row, region, norm)
            off = row.off and region not in ("on", "tangent")
            told = dataclasses.replace(row, meaning=meaning, compute=of_one, off=off)
            yield name.format(region=region, norm=norm), told


def _of_one(row: Measure, region: Region, norm: str) -> Callable[[Subject], jax.Array]:
    return lambda of: row.compute(of, region, norm)


def measure(
    network: Any,
    x: jax.Array,
    y: jax.Array,
    subspace: Subspace,
    heldout: jax.Array,
    key: jax.Array,
    *,
    recording: Recording,
    model: Model,
    unseen: int = 0,
    frozen: jax.Array | None = None,
    tangent: Subspace | None = None,
    learned: int = 0,
    beside: bool = True,
    known: Brackets | None = None,
) -> dict[str, jax.Array]:
    """Record one trained network, in the dtype of its arguments.

    Coordinates may be those of R^d or, for L2 alone, canonical ones (F6 in docs/theory.md). Arguments are the fields
    of `Subject`; those behind the star are static.

    Returns:
        The arrays named by `recording.measured`: () per cell, (n,) per point and (h,) per held-out point.

    Raises:
        ValueError: if what a row computes is not of the shape that it says.
    """
    what = {"regions": recording.regions, "norms": recording.norms, "effort": recording.effort, "loss": recording.loss}
    what |= {"frozen": frozen, "tangent": tangent, "learned": learned, "beside": beside, "known": known}
    subject = Subject(network, x, y, subspace, heldout, key, unseen, model, **what)
    record = {}
    for name, row in recording.measured.items():
        record[name] = row.compute(subject)
        _check(name, row, record[name], {"point": len(x), "heldout": len(heldout)})
        if "point" in row.dimensions:
            record[name] = jnp.where(subject.there, record[name], jnp.nan)
    return record


def _check(name: str, row: Measure, values: Any, sizes: dict[str, int]) -> None:
    expected = tuple(sizes[dimension] for dimension in row.dimensions)
    if jnp.shape(values) != expected:
        raise ValueError(f"measure {name!r}: is of shape {jnp.shape(values)}, and by its dimensions of {expected}")
