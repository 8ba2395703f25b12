"""What measures see of a trained network: it, its points, and what several of them need, computed once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from subspace_adv import streams
from subspace_adv.attacks import AttackResult, descent_distance, random_direction, universal_attack
from subspace_adv.brackets import Beginnings, Brackets, Effort, brackets
from subspace_adv.contracts import Model
from subspace_adv.geometry import Region, Subspace, region_basis
from subspace_adv.training import Loss, signed_outputs
from subspace_adv.whitening import Whitened, whitened_gradients


@dataclass(frozen=True)
class Subject:
    """A trained network, its points, and what is asked of it.

    What several measures need is computed where the first of them asks for it: not within the body of a loop, out of
    which JAX lets no value go.
    """

    network: Any  # parameters of the model's
    x: jax.Array  # (n, d), training points
    y: jax.Array  # (n,), labels −1 or +1; 0 of points that only fill up the arrays
    subspace: Subspace  # the data's
    heldout: jax.Array  # (h, d), further points of the subspace
    key: jax.Array  # typed PRNG key of the attacks' random starts and of the random direction
    unseen: int  # dimensions off the subspace that the coordinates leave out, as no weight has a part there
    model: Model  # kind of the network
    regions: tuple[Region, ...]  # of the distances, as are the norms
    norms: tuple[str, ...]
    effort: Effort  # of the attacks
    loss: Loss
    frozen: jax.Array | None  # projection on what no patch of the data spans, (fan-in, fan-in); read of convolutions
    # Of every training point, (n, d, t) and (n, d, d − t), to the manifold within the subspace; None if not curved.
    tangent: Subspace | None
    learned: int  # of the complement's columns, the first ones: those within the span of the data, where weights learn
    beside: bool  # whether points may lie beside a translate of the subspace that holds another one
    known: Brackets | None = None  # of the training points, where they were computed before

    @property
    def there(self) -> jax.Array:
        """Which training points there are, (n,)."""
        return self.y != 0

    def where_right(self, distances: jax.Array) -> jax.Array:
        """Distances (n,), and 0 where a point is misclassified."""
        return jnp.where(self.margins <= 0, 0, distances)

    @cached_property
    def outputs(self) -> jax.Array:
        """N at the training points, (n,): one for all that is made of it, or XLA would compute each with a rounding."""
        return jax.lax.optimization_barrier(self.model.output(self.network, self.x))

    @cached_property
    def margins(self) -> jax.Array:
        """y·N at the training points, (n,); inf where there is none."""
        return signed_outputs(self.y, self.outputs)

    @cached_property
    def gradients(self) -> jax.Array:
        """∇N at the training points, (n, d)."""
        return self.model.input_gradient(self.network, self.x)

    @property
    def gradient_norm_learned(self) -> jax.Array:
        """L2 norms (n,) of the gradients' parts off the subspace and within the span of the data."""
        return jnp.linalg.norm(self.gradients @ self.subspace.complement[:, : self.learned], axis=1)

    def gradient_norm(self, region: Region) -> jax.Array:
        """L2 norms (n,) of the gradients' parts within a region."""
        basis = region_basis(self.subspace, region, self.tangent)
        within = self.gradients @ basis if basis.ndim == 2 else jnp.einsum("nd,ndr->nr", self.gradients, basis)
        return jnp.linalg.norm(within, axis=1)

    @cached_property
    def sensitivities(self) -> jax.Array:
        """a(x) at the training points, (n, k): of two layers, the output weights of active neurons and 0 of others."""
        return jnp.where(self.there[:, None], self.model.sensitivity(self.network, self.x), 0)

    @cached_property
    def whitened(self) -> Whitened:
        """The gradients off the span of the data at all training points, as independent numbers."""
        space = self.subspace.complement[:, self.learned :]
        return whitened_gradients(self.model, self.network, self.sensitivities, space, self.frozen, self.unseen)

    @cached_property
    def universal_weights(self) -> jax.Array:
        """ā, (k,): what the first layer's preactivations weigh in the universal direction."""
        return self.model.universal_weights(self.network, self.sensitivities)

    @cached_property
    def universal(self) -> tuple[AttackResult, AttackResult]:
        """Flips along the universal direction, of the training points and of those held out."""

        def attack(point: jax.Array) -> AttackResult:
            weights = self.universal_weights
            return universal_attack(self.network, point, self.subspace.complement, model=self.model, weights=weights)

        flips = jax.vmap(attack)(self._all_points)
        n = len(self.x)
        return jax.tree.map(lambda a: a[:n], flips), jax.tree.map(lambda a: a[n:], flips)

    @cached_property
    def along_random(self) -> tuple[jax.Array, jax.Array]:
        """Distances along one random direction off the subspace, of the training points and of those held out."""
        drawn = random_direction(streams.direction_key(self.key), self.subspace.complement, self.unseen)
        distance = jax.vmap(lambda point: descent_distance(self.network, point, drawn, model=self.model))
        training, heldout = jnp.split(distance(self._all_points), [len(self.x)])
        return training, heldout

    @cached_property
    def brackets(self) -> Brackets:
        """Distances of the training points by region and norm."""
        if self.known is not None:
            return self.known
        begin = Beginnings.of(self.network, self.x, self.key, self.model, self.there)
        what = {"regions": self.regions, "norms": self.norms, "effort": self.effort, "model": self.model}
        what |= {"beside": self.beside, "tangent": self.tangent}
        return brackets(self.network, self.x, self.subspace, self.universal[0], begin, **what)

    @cached_property
    def _all_points(self) -> jax.Array:
        return jnp.concatenate([self.x, self.heldout])
