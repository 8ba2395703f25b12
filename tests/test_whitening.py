"""All off gradients of a network as one number: against pseudoinverses, and matrices built by loops over places."""

import jax
import jax.numpy as jnp
import layered
import numpy as np
import pytest
from layered import Shape

from subspace_adv.contracts import Design
from subspace_adv.models import architecture_of
from subspace_adv.whitening import whitened, whitened_gradients

N, K, L = 5, 7, 3


def weights_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Matrices A, of what makes trouble."""
    a = rng.standard_normal((N, K))
    match kind:
        case "more points than weights":
            a = rng.standard_normal((K, N))
        case "rank 2":
            a = rng.standard_normal((N, 2)) @ rng.standard_normal((2, K))
        case "equal points":
            a[1], a[3] = a[0], -2 * a[0]
        case "a point of none":
            a[2] = 0
        case "of all sizes":
            a = 10.0 ** np.array([-1, 0, 1, 0.5, -0.5])[:, None] * a
        case "tiny":
            a = 1e-30 * a
        case "huge":
            a = 1e30 * a
        case "zero":
            a = 0 * a
    return a


KINDS = (
    *("random", "more points than weights", "rank 2", "equal points", "a point of none", "of all sizes"),
    *("tiny", "huge", "zero"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_values_are_those_of_the_pseudoinverse(kind, x64):
    rng = np.random.default_rng(KINDS.index(kind))
    function = jax.jit(whitened)
    for _ in range(20):
        a = weights_of(kind, rng)
        y = a @ rng.standard_normal((a.shape[1], L))
        found = function(a, y)
        expected = np.trace(y.T @ np.linalg.pinv(a @ a.T, rcond=1e-12, hermitian=True) @ y)
        np.testing.assert_allclose(found.squares, expected, rtol=1e-6)
        assert int(found.rank) == np.linalg.matrix_rank(a, tol=1e-6 * np.linalg.norm(a, 2))


def test_whitened_values_are_chi_square_and_the_order_of_points_does_not_matter(x64):
    """As many squares as the rank times the columns, of mean 1 each, whatever the weights."""
    rng = np.random.default_rng(0)
    a = np.stack([weights_of(kind, rng) for kind in ("random", "rank 2", "equal points") for _ in range(500)])
    y = a @ rng.standard_normal((1500, K, L))
    found = jax.jit(jax.vmap(whitened))(a, y)
    assert found.rank.reshape(3, 500).tolist() == [500 * [5], 500 * [2], 500 * [3]]
    for squares, rank in zip(np.asarray(found.squares).reshape(3, 500), (5, 2, 3), strict=True):
        assert np.mean(squares) == pytest.approx(L * rank, abs=4 * np.sqrt(2 * L * rank / 500))
    other = jax.jit(jax.vmap(whitened))(a[:, ::-1], y[:, ::-1])
    np.testing.assert_allclose(other.squares, found.squares, rtol=1e-9)


def test_a_value_that_is_next_to_nothing_beside_others_is_not_counted(x64):
    """A ten-thousandth of them, as rounding could be: what is left is as if it were not there."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((N, K))
    y = a @ rng.standard_normal((K, L))
    small = np.array([1, 1, 1e-4, 1, 1])[:, None]
    function = jax.jit(whitened)
    found, without = function(small * a, small * y), function(np.delete(a, 2, axis=0), np.delete(y, 2, axis=0))
    assert int(found.rank) == int(without.rank) == 4
    assert float(found.squares) == pytest.approx(float(without.squares), rel=1e-9)


# d, the network, and how many directions of the complement of some subspace there are.
CONVOLUTIONS = {
    "patches": (12, Shape(2, kernel=4, stride=4, mixing=2), 6),
    "overlapping": (10, Shape(1, kernel=5, stride=2), 4),
    "valid": (9, Shape(2, kernel=4, stride=1, mixing=2, padding="valid"), 5),
    "images": (16, Shape(1, kernel=2, stride=2, layout="image"), 7),
}
WIDTH = 3


def network_of(d: int, shape: Shape, rng: np.random.Generator):
    """The model, parameters and first-layer fan-in of a convolution."""
    told = shape._asdict() | {"architecture": "cnn", "ambient_dim": d, "width": WIDTH, "parametrization": "standard"}
    design = Design(**told)
    fan_in = shape.kernel ** (2 if shape.layout == "image" else 1)
    taps = (shape.mixing,) if shape.layout == "signal" else (shape.mixing, shape.mixing)
    sizes = {"hidden_0": (fan_in, WIDTH)} | {f"hidden_{i}": (*taps, WIDTH, WIDTH) for i in range(1, shape.depth)}
    sizes["head"] = (WIDTH, 1)
    params = {
        name: {"kernel": rng.standard_normal(size), "bias": rng.standard_normal(size[-1])}
        for name, size in sizes.items()
    }
    return architecture_of("cnn").model(design), params, fan_in


@pytest.mark.parametrize("family", CONVOLUTIONS)
def test_off_gradients_of_convolutions_are_linear_in_what_never_learned_of_filters(family, x64):
    """Each as a row of a matrix L of all filters' entries, place by place; what training made of it is left out."""
    d, shape, codimension = CONVOLUTIONS[family]
    rng = np.random.default_rng(1)
    model, params, fan_in = network_of(d, shape, rng)
    x = rng.standard_normal((2, d))
    complement = np.linalg.qr(rng.standard_normal((d, codimension)))[0]
    seen = np.linalg.qr(rng.standard_normal((fan_in, fan_in // 2)))[0]  # what patches of the data span
    frozen = np.eye(fan_in) - seen @ seen.T
    _, of_hidden = layered.backward(params, x, shape, np.ones(len(x)))  # (n, places, m)
    places = layered.sights(shape, d)[0]
    rows, values = [], []
    never_learned = frozen @ params["hidden_0"]["kernel"]  # (fan-in, m)
    for point in of_hidden:
        for direction in complement.T:
            row = np.zeros((fan_in, WIDTH))
            for place, of_place in zip(places, point, strict=True):
                row += frozen @ np.outer(direction[place], of_place)
            rows.append(row.ravel())
            values.append(row.ravel() @ never_learned.ravel())
    linear, values = np.array(rows), np.array(values)
    expected = values @ np.linalg.pinv(linear @ linear.T, rcond=1e-10, hermitian=True) @ values
    sensitivities = model.sensitivity(params, x)
    np.testing.assert_allclose(sensitivities, of_hidden.reshape(len(x), -1), rtol=1e-9, atol=1e-12)
    measure = jax.jit(lambda params, a: whitened_gradients(model, params, a, complement, frozen, 0))
    found = measure(params, sensitivities)
    np.testing.assert_allclose(found.squares, expected, rtol=1e-6)
    assert int(found.rank) == np.linalg.matrix_rank(linear, tol=1e-6 * np.linalg.norm(linear, 2))
    trained = params | {
        "hidden_0": params["hidden_0"] | {"kernel": never_learned + seen @ np.ones((fan_in // 2, WIDTH))}
    }
    np.testing.assert_allclose(measure(trained, sensitivities).squares, expected, rtol=1e-6)  # given the same a(x)


def test_of_convolutions_it_must_be_told_what_patches_span(x64):
    model, params, _ = network_of(10, CONVOLUTIONS["overlapping"][1], np.random.default_rng(0))
    a = jnp.ones((1, 15))
    with pytest.raises(ValueError, match="frozen: of convolutions it must be told what no patch of the data spans"):
        whitened_gradients(model, params, a, jnp.eye(10)[:, :2], None, 0)


def test_off_gradients_of_perceptrons_have_as_many_numbers_as_the_codimension(x64):
    """Those that canonical coordinates leave out too; the squares are of Wᵀa off the subspace."""
    rng = np.random.default_rng(2)
    model = architecture_of("mlp").model(
        Design("mlp", 6, WIDTH, 2, "standard", 3, 1, 3, padding="circular", layout="signal")
    )
    sizes = {"hidden_0": (6, WIDTH), "hidden_1": (WIDTH, WIDTH), "head": (WIDTH, 1)}
    params = {name: {"kernel": rng.standard_normal(s), "bias": rng.standard_normal(s[1])} for name, s in sizes.items()}
    x, complement = rng.standard_normal((4, 6)), np.eye(6)[:, 2:]
    a = np.asarray(model.sensitivity(params, x))
    y = layered.backward(params, x, Shape(2), np.ones(4))[1][:, 0] @ params["hidden_0"]["kernel"].T @ complement
    found = whitened_gradients(model, params, jnp.asarray(a), jnp.asarray(complement), None, 5)
    expected = np.trace(y.T @ np.linalg.pinv(a @ a.T, rcond=1e-10, hermitian=True) @ y)
    np.testing.assert_allclose(found.squares, expected, rtol=1e-6)
    assert int(found.rank) == np.linalg.matrix_rank(a) * (4 + 5)
