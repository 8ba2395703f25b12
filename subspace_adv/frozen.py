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
    designed = list(sweep.distinct([leaf for leaf in DESIGNED if leaf != "width"]))
    shape = [
        len(of) if len(values) > 1 else of_data for (values, of), of_data in zip(designed, which.shape, strict=True)
    ]
    found = np.empty(shape, np.result_type(type(otherwise)))
    for place in itertools.product(*(range(len(values)) for values, _ in designed)):
        told = {leaf: v for (values, _), i in zip(designed, place, strict=True) for leaf, v in values[i].items()}
        along = [
            np.flatnonzero(of == i) if len(values) > 1 else np.arange(size)
            for (values, of), i, size in zip(designed, place, which.shape, strict=True)
        ]
        here = which[np.ix_(*(i if size > 1 else [0] for i, size in zip(along, which.shape, strict=True)))]
        facts = np.empty(len(datasets), found.dtype)
        for number in np.unique(here):  # no other has networks of this design
            settings = datasets[number]
            frozen = frozen_part(sweep.design(told, settings.shape), settings)
            facts[number] = otherwise if frozen is None else fact(frozen)
        found[np.ix_(*along)] = facts[here]
    return found
