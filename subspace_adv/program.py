"""What shapes a group's compiled programs, and what follows from it."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv import streams
from subspace_adv.brackets import is_exact
from subspace_adv.contracts import Model
from subspace_adv.costs import Search
from subspace_adv.data import Shape
from subspace_adv.geometry import Region
from subspace_adv.initialization import Law
from subspace_adv.measures import Recording
from subspace_adv.norms import NORMS
from subspace_adv.receptive_fields import Dense
from subspace_adv.training import Recipe

LARGE_PRODUCT = 2**21
"""Multiplications from which on XLA's own threads share a product."""
# Of networks measured side by side: whose search a core's cache holds, and of measures that search for nothing.
_SEARCHED_POINTS, _MEASURED_POINTS = 32, 512


class Program(NamedTuple):
    """Everything that shapes a group's compiled code; static and hashable."""

    law: Law
    recipe: Recipe
    recording: Recording
    shape: Shape  # of the data, the samples padded
    reduced: bool  # trained in coordinates of the data's span, or of all of R^d
    shared_data: bool  # one dataset for all cells of the group, or one of equal shape for each

    @property
    def inputs(self) -> int:
        """Coordinates of what a neuron of the first layer sees, as networks train on them."""
        return self.law.span_dim if self.reduced else self.law.ambient_dim

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what the first layer sees of all training points, (n, inputs) or (n, places, inputs)."""
        point: Any = jax.ShapeDtypeStruct((self.shape.samples, self.shape.ambient_dim), jnp.float32)
        return (*jax.eval_shape(self.recipe.model.fields.patches, point).shape[:-1], self.inputs)

    @property
    def parameters(self) -> Any:
        """Shapes of a network's parameters, in the coordinates that it trains in: a pytree."""
        return parameter_shapes(self.recipe.model, self.law._replace(span_dim=self.inputs))

    @property
    def size(self) -> int:
        """Number of a network's parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.parameters))

    @property
    def largest_product(self) -> int:
        """Multiplications of the largest product of matrices that a gradient step of one network takes."""
        rows = math.prod(self.input_shape[:-1])
        matrices = [math.prod(leaf.shape) for leaf in jax.tree.leaves(self.parameters) if len(leaf.shape) > 1]
        return rows * max(matrices)

    @property
    def canonical(self) -> bool:
        """Whether networks are measured in canonical coordinates: only L2 is the same in them, of perceptrons."""
        model = self.recipe.model
        of_points = isinstance(model.fields, Dense) and model.has_frozen_part
        return of_points and all(NORMS[norm].is_euclidean for norm in self.recording.norms)

    @property
    def measured_coordinates(self) -> int:
        """Coordinates that networks are measured in."""
        return self.law.span_dim + self.law.off_dim if self.canonical else self.shape.ambient_dim

    @property
    def searches(self) -> list[Search]:
        """What is searched at every point: in each norm the regions in which distances are not exact."""
        model, effort = self.recipe.model, (self.recording.attack_steps, self.recording.restarts)
        dimensions = (dim for _, dim in self._regions for _ in self.recording.norms)
        return [Search(dim, *effort) for dim in dimensions if not is_exact(dim, model)]

    @property
    def planes(self) -> list[int]:
        """In each norm the regions that are planes of exact distances: how many of them hold all points."""
        model = self.recipe.model
        exact = (region for region, dim in self._regions if dim == 2 and is_exact(dim, model))
        of_all = ("on", "full") if self.shape.tangent_dim else ("on", "tangent", "full")
        return [1 if region in of_all else self.shape.samples for region in exact for _ in self.recording.norms]

    @property
    def _regions(self) -> list[tuple[Region, int]]:
        """Those recorded, and their dimensions."""
        measured = self.shape._replace(ambient_dim=self.measured_coordinates)
        return [(region, measured.region_dim(region)) for region in self.recording.regions]

    @property
    def measured_at_once(self) -> int:
        """Networks that a core measures side by side: a few points' search fits its cache, and a chunk's does not."""
        points = _SEARCHED_POINTS if self.recording.has_brackets else _MEASURED_POINTS
        return max(points // self.shape.samples, 1)

    @property
    def reads_basis(self) -> bool:
        """Whether it matters where the span of what the first layer sees lies."""
        return not (self.reduced and self.canonical and (self.law.is_gaussian or not self.law.off_dim))


@functools.lru_cache(maxsize=256)
def parameter_shapes(model: Model, law: Law) -> Any:
    """Shapes of the parameters of a network drawn by a law: a pytree."""

    def drawn(seed: jax.Array, width: jax.Array, init_scale: jax.Array, basis: jax.Array) -> Any:
        init_key, _ = streams.training_keys(seed)
        return model.init(init_key, width, init_scale, law=law, basis=basis)

    kinds = ((), jnp.uint32), ((), jnp.int32), ((), jnp.float32), ((law.ambient_dim, law.span_dim), jnp.float32)
    return jax.eval_shape(drawn, *(jax.ShapeDtypeStruct(*kind) for kind in kinds))
