"""Networks of any depth and convolutions: drawn, trained and padded as they should be."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import layered
import numpy as np
import pytest
from layered import Shape, descend, forward
from scipy import stats
from shell import read

from subspace_adv import engine
from subspace_adv.contracts import Design
from subspace_adv.datasets import load_data, load_span
from subspace_adv.initialization import Law
from subspace_adv.models import architecture_of
from subspace_adv.planning import in_ambient_coordinates, plan
from subspace_adv.streams import key_of

LAWS = ("theory", "paper-code", "torch", "he", "lecun")

SUBSPACE = """
[data]
kind = "subspace"
ambient_dim = {d}
subspace_dim = {k}
samples = 6
labels = "random"
data_seed = 1
[network]
{network}
width = 5
seed = 2
[training]
learning_rate = 0.1
stop_margin = inf
[measure]
regions = ["off"]
[axes]
weight_decay = [0.0, 0.01]
max_steps = [0, 1, 2, 5, 20, 100, 500]
"""
# d, the dimension of the data, the network, and the dimension of the span of what a neuron of the first layer sees.
FAMILIES = {
    "depth 2": (8, 2, Shape(2), 2),
    "depth 4": (8, 2, Shape(4), 2),
    "patches": (16, 1, Shape(2, kernel=8, stride=8, mixing=2), 2),
    "overlapping patches": (12, 2, Shape(1, kernel=5, stride=2), 5),  # which leave nothing unseen
    "valid": (12, 2, Shape(2, kernel=8, stride=2, mixing=2, padding="valid"), 6),
    "images": (36, 1, Shape(2, kernel=3, stride=3, mixing=2, layout="image"), 4),
}


def network_text(shape: Shape) -> str:
    if not shape.kernel:
        return f"depth = {shape.depth}"
    told = shape._asdict() | {"architecture": "cnn"}
    return "\n".join(f"{leaf} = {value!r}".replace("'", '"') for leaf, value in told.items())


def single(networks, index: int):
    return jax.tree.map(lambda a: np.asarray(a[index], np.float64), networks)


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_gradient_descent_in_float64(family, reduced, standard_promotion):
    """In coordinates of the span of what the first layer sees, and in all; from the weights before the first step."""
    d, k, shape, span = FAMILIES[family]
    init = "theory" if family == "depth 4" else "paper-code"
    sweep = read(SUBSPACE.format(d=d, k=k, network=network_text(shape) + f'\ninit = "{init}"'))
    todo = plan(sweep)
    assert todo.groups[0].program.reduced
    assert todo.groups[0].program.law.span_dim == span
    todo = todo if reduced else in_ambient_coordinates(todo)
    [chunk] = todo.chunks
    [(_, arrays)] = engine.train(sweep, chunk.group, [chunk])
    networks = engine.ambient_networks(sweep, chunk, arrays)
    settings = sweep.dataset({})
    x, y = load_data(settings).x.astype(np.float64) @ load_span(settings).basis.T, load_data(settings).y
    names = chunk.group.program.recipe.trained
    for row, decay in enumerate((0.0, 0.01)):
        start = single(networks, row * 7)
        exact = descend(start, x, y, shape, dict.fromkeys(names, 0.1), decay, 500)
        for column, steps in enumerate(sweep.values("max_steps")):
            found = single(networks, row * 7 + column)
            for name, layer in exact[steps].items():
                for part, values in layer.items():
                    error = np.linalg.norm(found[name][part] - values)
                    assert error <= 1e-4 * max(np.linalg.norm(values), 0.1), (steps, name, part, error)
        moved = np.linalg.norm(exact[-1]["hidden_0"]["kernel"] - start["hidden_0"]["kernel"])
        assert moved > 0.1
    assert (arrays["steps"] == np.tile(sweep.values("max_steps"), 2)).all()


def drawn(design: Design, law: Law, seed: int = 0, width: int | None = None, scale: float = 1.0):
    """Parameters of a network, as NumPy arrays."""
    model = architecture_of(design.architecture).model(design)
    width = law.padded_width if width is None else width
    params = model.init(key_of(seed), jnp.int32(width), jnp.float32(scale), law=law, basis=None)
    return jax.tree.map(np.asarray, params)


def design(**changes) -> Design:
    told = {"architecture": "mlp", "ambient_dim": 6, "width": 64, "depth": 3, "parametrization": "standard"}
    told |= {"kernel": 3, "stride": 1, "mixing": 3, "padding": "circular", "layout": "signal"}
    return Design(**told | changes)


@pytest.mark.parametrize("law", LAWS)
def test_the_law_of_every_layer(law):
    """Standard deviations, shapes and scales of weights and biases, against what the initial laws say."""
    convolution = design(architecture="cnn", depth=2, ambient_dim=9, kernel=6)
    for of, fan in ((design(), 6), (convolution, 6)):
        params = drawn(of, Law(law, 64, fan, fan), seed=3)
        doubled = drawn(of, Law(law, 64, fan, fan), seed=3, scale=2.0)
        taps = 3 if of.architecture == "cnn" else 1
        for name, layer in params.items():
            fan_in = {"hidden_0": fan, "head": 64}.get(name, 64 * taps)
            in_shape = (3, 64) if of.architecture == "cnn" and name == "hidden_1" else (fan_in,)  # as flax's `Conv`
            assert layer["kernel"].shape == (*in_shape, 1 if name == "head" else 64)
            gain = {"torch": 1 / 3**0.5, "he": 2**0.5}.get(law, 1.0)
            gain = 2**0.5 if law == "theory" and name not in ("hidden_0", "head") else gain
            sizes = layer["kernel"].ravel() * fan_in**0.5 / gain
            if law == "theory" and name == "head":
                assert (np.abs(sizes) == 1).all() or np.allclose(np.abs(sizes), 1)
            else:
                test = stats.uniform(-(3**0.5), 2 * 3**0.5) if law == "torch" else stats.norm()
                assert stats.kstest(sizes, test.cdf).pvalue > 1e-3, name
            scaled = 1 if law == "theory" and name != "hidden_0" else 2
            np.testing.assert_allclose(doubled[name]["kernel"], scaled * layer["kernel"], rtol=1e-6)
            biases = layer["bias"] * fan_in**0.5
            assert np.abs(biases).max() <= 1
            assert (biases == 0).all() == (law in ("theory", "he", "lecun"))
            np.testing.assert_array_equal(doubled[name]["bias"], layer["bias"])


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_narrow_and_shallow_networks_are_parts_of_wide_and_deep_ones(architecture):
    """Base draws are shared: a layer of a narrow network is a corner of a wide one's, times the ratio of scales."""
    wide = drawn(
        design(architecture=architecture, ambient_dim=9),
        Law("torch", 64, 9, 9) if architecture == "mlp" else Law("torch", 64, 3, 3),
    )
    law = Law("torch", 20, *((9, 9) if architecture == "mlp" else (3, 3)))
    narrow = drawn(design(architecture=architecture, ambient_dim=9, width=20, depth=2), law)
    padded = drawn(design(architecture=architecture, ambient_dim=9, width=20), law._replace(padded_width=64), width=20)
    taps = 1 if architecture == "mlp" else 3
    assert set(wide) - set(narrow) == {"hidden_2"}
    for name, layer in narrow.items():
        inputs = {"hidden_0": len(layer["kernel"])}.get(name, 20)
        ours = layered.matrix(layer)
        shrink = 1 if name == "hidden_0" else (20 / 64) ** 0.5
        for of, factor in ((wide, shrink), (padded, 1)):
            kernel = layered.matrix(of[name])
            kernel = kernel.reshape(taps if name == "hidden_1" else 1, -1, kernel.shape[1])
            kernel = kernel[:, :inputs, : ours.shape[1]]
            np.testing.assert_allclose(factor * ours, kernel.reshape(ours.shape), rtol=1e-6)
    for name, layer in padded.items():
        if name != "head":
            assert not layer["kernel"][..., 20:].any() and not layer["bias"][20:].any()
        if name != "hidden_0":
            assert not layer["kernel"].reshape(taps if name != "head" else 1, 64, -1)[:, 20:].any()


def test_draws_within_a_neuron_are_prefixes_of_longer_ones():
    """On which the pairing of widths rests."""
    long, short = (jax.random.uniform(key_of(1), (count,)) for count in (7, 5))
    np.testing.assert_array_equal(long[:5], short)


@pytest.mark.parametrize("padding", ["circular", "valid"])
@pytest.mark.parametrize("layout", ["signal", "image"])
def test_convolutions_are_those_of_flax(layout, padding):
    """The same numbers as flax's `Conv`, layer by layer."""
    of = design(
        architecture="cnn",
        ambient_dim=36,
        width=4,
        depth=2,
        kernel=4,
        stride=2,
        mixing=2,
        padding=padding,
        layout=layout,
    )
    fan = 16 if layout == "image" else 4
    params = drawn(of, Law("paper-code", 4, fan, fan))
    model = architecture_of("cnn").model(of)
    dimensions = 2 if layout == "image" else 1
    side = 6 if layout == "image" else 36
    x = np.random.default_rng(0).standard_normal((3, 36)).astype(np.float32)
    h = x.reshape(3, *[side] * dimensions, 1)
    for layer, (kernel, stride) in enumerate(((4, 2), (2, 1))):
        if padding == "circular":
            h = np.pad(h, [(0, 0), *[(0, kernel - 1)] * dimensions, (0, 0)], mode="wrap")
        conv = nn.Conv(4, (kernel,) * dimensions, (stride,) * dimensions, padding="VALID")
        weights = params[f"hidden_{layer}"]
        shaped = weights["kernel"].reshape(*[kernel] * dimensions, h.shape[-1], 4)
        h = nn.relu(conv.apply({"params": {"kernel": shaped, "bias": weights["bias"]}}, h))
    h = np.asarray(h).mean(axis=tuple(range(1, 1 + dimensions)))
    expected = h @ params["head"]["kernel"][:, 0] + params["head"]["bias"]
    np.testing.assert_allclose(model.output(params, x), expected, rtol=1e-4, atol=1e-6)
    shape = Shape(2, 4, 2, 2, padding, layout)
    np.testing.assert_allclose(
        forward(layered.double(params), x.astype(np.float64), shape).outputs, expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_sensitivities_and_input_gradients(standard_promotion):
    """Against the chain rule in NumPy; pulled back, the first are the second."""
    for family, (d, k, shape, _) in FAMILIES.items():
        sweep = read(SUBSPACE.format(d=d, k=k, network=network_text(shape) + '\ninit = "torch"'))
        of = sweep.design({}, sweep.dataset({}).shape)
        model, fan = architecture_of(of.architecture).model(of), (shape.kernel or d) ** (1 + (shape.layout == "image"))
        params = drawn(of, Law("torch", of.width, fan, fan))
        x = np.random.default_rng(0).standard_normal((3, d)).astype(np.float32)
        _, exact = layered.backward(layered.double(params), x.astype(np.float64), shape, np.ones(3))
        found = model.sensitivity(params, x)
        np.testing.assert_allclose(found, exact.reshape(3, -1), rtol=1e-4, atol=1e-6, err_msg=family)
        gradient = jax.vmap(functools.partial(model.pulled_back, params))(found)
        np.testing.assert_allclose(gradient, model.input_gradient(params, x), rtol=1e-4, atol=1e-6)
        basis = np.random.default_rng(1).standard_normal((d, 2)).astype(np.float32)
        along = model.preactivations_along(params, basis)
        apart = model.preactivations(params, x[0] + basis[:, 1]) - model.preactivations(params, x[0])
        np.testing.assert_allclose(along[:, 1], apart, rtol=1e-3, atol=1e-4)
