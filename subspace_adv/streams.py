"""Every random stream, by name: which number of which seed draws what.

A network's seed makes keys of JAX, a data seed generators of NumPy. No stream depends on what another one draws, or how
much of it; so a number that stands here is never given to anything else.

Two pairs are alike where they should not be, and stay so until results may change. As the engine pins threefry, item i
of a split is the key folded with i: the key of measuring is that of minibatches, whose epochs and attacked points so
share keys, which draw different things. And the generator of `FIXED_DATA_SEED` is that of the points of data seed 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

KEY_IMPLEMENTATION = "threefry2x32"
"""Of all keys: what is drawn again at another time must be drawn alike."""

# Of a key that draws a network, beside its neurons, which are numbered from 0.
HEAD_BIAS, OFF_FRAME = 2**31 - 1, 2**31 - 2
OFF_REDRAWN = 2**31 - 2**16  # the key of redrawn weights off the span
HIDDEN_LAYER = 2**31 - 2  # less the number of a layer between the first and the head, from 1 on: keys of its neurons
# Of a neuron: what it learns from; its weights off the span of the data; the blocks of a uniform law's coordinates,
# which take all numbers from this one on.
PARAMETERS, OFF_WEIGHTS, COORDINATE_BLOCKS = range(3)
# Of a network's seed, beside the two that its split yields, and of the key that this makes.
_MEASURING, _RANDOM_DIRECTION = 1, 2**32 - 1
_FURTHER = 2  # of an attack's key, beside the two that its split yields, and the numbers behind it

# Of a data seed.
POINTS, LABEL_SIGNS, SPAN, HELDOUT_POINTS, HYPERPLANE, CENTRES, HELDOUT_CENTRES, HELDOUT_RADII, CHOSEN = range(9)
FIXED_DATA_SEED = 0
"""Draws the held-out points of kinds of data that have no seed."""


def key_of(seed: jax.Array | int) -> jax.Array:
    """The typed threefry key of a seed (uint32 scalar), whatever default generator or seed offset JAX is given."""
    words = jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])
    return random.wrap_key_data(words, impl=KEY_IMPLEMENTATION)


def training_keys(seed: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Of a network's seed: the key that draws the network, and that of the order of minibatches."""
    init_key, order_key = random.split(key_of(seed))
    return init_key, order_key


def epoch_key(order_key_data: jax.Array, epoch: jax.Array) -> jax.Array:
    """The key of the order of points in an epoch, given the data (2,) of the key of minibatches."""
    return random.fold_in(random.wrap_key_data(order_key_data, impl=KEY_IMPLEMENTATION), epoch)


def neuron_keys(key: jax.Array, neurons: jax.Array) -> jax.Array:
    """Keys of some neurons (m,), given that of their network: those of a narrow network are the first of a wide one."""
    return jax.vmap(lambda neuron: random.fold_in(key, neuron))(neurons)


def off_keys(key: jax.Array, redraws: int) -> jax.Array:
    """Of the key that draws a network: itself, which draws its weights off the span, and others to draw them again."""
    others = jax.vmap(lambda number: random.fold_in(random.fold_in(key, OFF_REDRAWN), number))(
        jnp.arange(redraws, dtype=jnp.int32)
    )
    data = jnp.concatenate([random.key_data(key)[None], random.key_data(others)])
    return random.wrap_key_data(data, impl=KEY_IMPLEMENTATION)


def measuring_key(seed: jax.Array | int) -> jax.Array:
    """Of a network's seed: the key of all that is drawn to measure it."""
    return random.fold_in(key_of(seed), _MEASURING)


def direction_key(key: jax.Array) -> jax.Array:
    """Of a measuring key: the key of the random direction off the subspace, apart from `attack_keys`."""
    return random.fold_in(key, _RANDOM_DIRECTION)


def attack_keys(key: jax.Array, points: int) -> jax.Array:
    """Of a measuring key: the keys of the attacks on some points, (points,), whatever the region and the norm."""
    return random.split(key, points)


def search_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of an attack's key: that of the rays of its first round, and that of the starts of its second."""
    ray_key, near_key = random.split(key)
    return ray_key, near_key


def further_keys(key: jax.Array, rounds: int) -> jax.Array:
    """Of an attack's key: those of the rounds of a further search, (rounds,), apart from `search_keys`."""
    return jax.vmap(lambda number: random.fold_in(key, number))(_FURTHER + jnp.arange(rounds, dtype=jnp.int32))


def far_rays_key() -> jax.Array:
    """The key of the rays along which descents beyond all kinks begin: the same for all networks and points.

    That of seed 0, which itself draws nothing else.
    """
    return key_of(0)


def unseen_key(key: jax.Array) -> jax.Array:
    """Of a direction's key: that of its length in dimensions that its coordinates leave out."""
    return random.fold_in(key, 0)


def tie_key(key: jax.Array) -> jax.Array:
    """Of a measuring key: the key that breaks ties between a network and its redraws."""
    return random.fold_in(direction_key(key), 1)


def data_generator(data_seed: int, *stream: int) -> np.random.Generator:
    """The generator of a stream of a data seed."""
    return np.random.default_rng([data_seed, *stream])
