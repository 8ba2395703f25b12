"""What of the first layers of a sweep's networks never learns (F13, F19 in docs/theory.md), by cell."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from subspace_adv.contracts import Design
from subspace_adv.data import DataSettings
from subspace_adv.datasets import input_span
from subspace_adv.models import architecture_of, is_class_name
from subspace_adv.receptive_fields import Dense
from subspace_adv.reduction import InputSpan
from subspace_adv.sweep import DESIGNED, Sweep


class Frozen(NamedTuple):
    """What never learns in the first layer of some networks, on one dataset."""

    span: InputSpan  # of all that a neuron sees
    exists: bool  # whether something is off it
    all_off: bool  # whether nothing else is off the subspace, which then is the span of the data
    is_dense: bool  # whether a neuron sees the whole point, whose off gradient then is that of frozen weights alone
    # Dimensions of frozen weights that the off gradient at each point has, alike in each: those off the span of the
    # data; of convolutions what a filter has where patches tile the points, and all points with patches in their span
    # are in the data's subspace. 0 where there are none such.
    freedom: int


def frozen_part(design: Design, settings: DataSettings) -> Frozen | None:
    """Of networks of a design on a dataset; None of a user's own class, of which nothing is known."""
    if is_class_name(design.architecture):
        return None
    model = architecture_of(design.architecture).model(design)
    if not model.has_frozen_part:
        return None
    shape, fields = settings.shape, model.fields
    span = input_span(settings, fields)
    if isinstance(fields, Dense):
        all_off = shape.subspace_dim == shape.span_dim
        return Frozen(span, not span.is_whole, all_off, True, shape.ambient_dim - shape.span_dim)
    places = fields.places(0) ** fields.dimensions
    tiled = fields.kernel == fields.stride and places * fields.fan_in == shape.ambient_dim
    alike = tiled and places * span.dimension == shape.subspace_dim
    return Frozen(span, not span.is_whole, True, False, span.fan_in - span.dimension if alike else 0)


def over_grid(
    sweep: Sweep,
    datasets: Sequence[DataSettings],
    which: np.ndarray,
    fact: Callable[[Frozen], Any],
    otherwise: Any,
) -> np.ndarray:
    """A fact of the frozen part, shaped to broadcast over the grid; of networks of which nothing is known, another."""
    designed = [leaf for leaf in DESIGNED if leaf in sweep.axes and leaf != "width"]
    sizes: dict[str, int] = {leaf: len(sweep.axes[leaf]) for leaf in designed}
    shape = [sizes[axis] if axis in sizes else of_data for axis, of_data in zip(sweep.axes, which.shape, strict=True)]
    found = np.empty(shape, np.result_type(type(otherwise)))
    for place in itertools.product(*(range(size) for size in sizes.values())):
        at = dict(zip(designed, place, strict=True))
        told = {leaf: sweep.axes[leaf][i] for leaf, i in at.items()}
        frozen = [frozen_part(sweep.design(told, settings.shape), settings) for settings in datasets]
        facts = np.array([otherwise if one is None else fact(one) for one in frozen], found.dtype)
        found[tuple(slice(at[axis], at[axis] + 1) if axis in at else slice(None) for axis in sweep.axes)] = facts[which]
    return found
