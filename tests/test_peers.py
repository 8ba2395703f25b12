"""Networks of PyTorch and of flax, saved by their own tools: against their own outputs and Foolbox's attacks."""

import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen, serialization
from flax.traverse_util import flatten_dict

import subspace_adv as sa

torch = pytest.importorskip("torch")
foolbox = pytest.importorskip("foolbox")
safetensors_torch = pytest.importorskip("safetensors.torch")
safetensors_flax = pytest.importorskip("safetensors.flax")

MEAN, STD = np.array([0.5, -1, 0, 2]), np.array([1, 0.5, 3, 2])
X = np.random.default_rng(0).normal(size=(12, 4)) * STD + MEAN
ORDERS = {"l2": 2, "linf": np.inf}
WIDTHS = {1: (16,), 3: (16, 12, 8)}
CASES = list(itertools.product(WIDTHS, (1, 2), (False, True)))


class Normalized(torch.nn.Module):
    """What a network is given is (x − mean)/std."""

    def __init__(self, network: torch.nn.Module, normalized: bool) -> None:
        """Around a network."""
        super().__init__()
        self.network, self.normalized = network, normalized

    def forward(self, x):
        """Its outputs (n, …)."""
        mean, std = (torch.as_tensor(a, dtype=x.dtype) for a in (MEAN, STD))
        return self.network((x - mean) / std if self.normalized else x)


class TwoLogits(torch.nn.Module):
    """Of one output, 0 and it."""

    def __init__(self, network: torch.nn.Module) -> None:
        """Around a network."""
        super().__init__()
        self.network = network

    def forward(self, x):
        """Logits (n, 2)."""
        found = self.network(x)
        return found if found.shape[1] == 2 else torch.cat([torch.zeros_like(found), found], dim=1)


def trained(depth: int, heads: int, normalized: bool) -> tuple[torch.nn.Sequential, Normalized]:
    """A network that learned a few labels in float32, alone and with what is before it."""
    torch.manual_seed(depth)
    widths = (4, *WIDTHS[depth], heads)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    whole, x = Normalized(network, normalized), torch.tensor(X, dtype=torch.float32)
    labels = torch.arange(len(X)) % 2
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(TwoLogits(whole)(x), labels).backward()
        optimizer.step()
    return network, whole


def differences(network: torch.nn.Module, x: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """Of the two logits."""
    with torch.no_grad():
        logits = TwoLogits(network).to(dtype)(torch.tensor(x, dtype=dtype)).double().numpy()
    return logits[:, 1] - logits[:, 0]


def attacks(norm: str) -> dict[str, Callable]:
    library = foolbox.attacks
    if norm == "l2":
        carlini = library.L2CarliniWagnerAttack(steps=100, binary_search_steps=6, stepsize=0.05)
        found = {"DDN": library.DDNAttack(), "Carlini and Wagner": carlini, "DeepFool": library.L2DeepFoolAttack()}
        return found | {"basic iterative": library.L2BasicIterativeAttack(steps=40)}
    found = {"FMN": library.LInfFMNAttack(), "DeepFool": library.LinfDeepFoolAttack()}
    return found | {"basic iterative": library.LinfBasicIterativeAttack(steps=40)}


def lengths_of_flips(network: torch.nn.Module, norm: str, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Least lengths of Foolbox's flips of X, by attack; inf where it found none. Some attack at a few sizes alone."""
    model = foolbox.PyTorchModel(TwoLogits(network).double().eval(), bounds=(-100, 100), device="cpu")
    x, before = torch.tensor(X), differences(network, X)
    criterion = foolbox.criteria.Misclassification(torch.tensor(before > 0).long())
    least = {}
    for name, attack in attacks(norm).items():
        epsilons = None if name != "basic iterative" else sizes.tolist()
        _, found, _ = attack(model, x, criterion, epsilons=epsilons)
        moves = np.stack([one.numpy() for one in (found if epsilons else [found])]) - X
        flips = np.array([before * differences(network, X + move) < 0 for move in moves])
        least[name] = np.where(flips, np.linalg.norm(moves, ORDERS[norm], axis=-1), np.inf).min(axis=0)
    return least


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "heads", "normalized"), CASES)
def test_networks_of_pytorch(tmp_path: Path, depth, heads, normalized):
    network, whole = trained(depth, heads, normalized)
    told = {"mean": MEAN, "std": STD} if normalized else {}
    with torch.no_grad():
        given = whole(torch.tensor(X, dtype=torch.float32))
    np.savez(tmp_path / "network.npz", **network.state_dict(), **told, x=X, outputs=given)
    beside = {name: torch.tensor(array) for name, array in told.items()}
    safetensors_torch.save_file(network.state_dict() | beside, tmp_path / "network.safetensors")
    read = [sa.read_network(tmp_path / name) for name in ("network.npz", "network.safetensors")]
    read.append(sa.Network.from_state_dict(network.state_dict(), **told))
    assert {type(one) for one in read} == {sa.Network if depth == 1 else sa.Networks}
    for one in read[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, read[0])), strict=True))
    before = differences(whole, X, torch.float32)
    np.testing.assert_allclose(read[0].apply(X), before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
    for norm in ORDERS:
        bracket = sa.bracket(read[0], X, regions=["full"], norms=[norm])
        np.testing.assert_allclose(bracket["output"], before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
        lower, upper = (bracket[f"distance_full_{norm}_{side}"].values for side in ("lower", "upper"))
        flip = sa.attack(read[0], X, region="full", norm=norm)
        assert flip.is_adv.all() and np.allclose(flip.distance, upper, rtol=1e-9)
        after = differences(whole, X + flip.delta, torch.float32)
        assert (np.sign(before) * after <= 1e-5 * np.abs(before).max()).all()
        assert (before * differences(whole, X + (1 + 1e-4) * flip.delta) < 0).all()
        least = lengths_of_flips(whole, norm, np.quantile(upper, [0.25, 0.5, 0.75, 1]) * 1.05)
        for name, lengths in least.items():
            assert np.isfinite(lengths).sum() >= 3, name
            assert (lower <= lengths).all(), name
        assert (upper <= 1.01 * np.min(list(least.values()), axis=0)).all()


class Perceptron(linen.Module):
    """Of three hidden layers."""

    @linen.compact
    def __call__(self, x):
        """Outputs (..., 1) of points (..., 4)."""
        for width in WIDTHS[3]:
            x = linen.relu(linen.Dense(width)(x))
        return linen.Dense(1)(x)


@pytest.mark.slow
def test_a_network_of_flax(tmp_path: Path, standard_promotion):
    module = Perceptron()
    x = np.float32((X - MEAN) / STD)
    params = module.init(jax.random.key(3), x)["params"]
    outputs = np.asarray(module.apply({"params": params}, x))[:, 0]
    params["Dense_3"]["bias"] -= np.median(outputs)
    outputs = np.asarray(module.apply({"params": params}, x))[:, 0]
    safetensors_flax.save_file(flatten_dict(params, sep="."), tmp_path / "network.safetensors")
    np.savez(tmp_path / "network.npz", **flatten_dict(params, sep="/"))
    read = [sa.read_network(tmp_path / name) for name in ("network.npz", "network.safetensors")]
    read += [sa.Network.from_state_dict(given) for given in (params, serialization.to_state_dict({"params": params}))]
    for one in read:
        np.testing.assert_allclose(one.apply(x), outputs, rtol=1e-5, atol=1e-5)
    bracket = sa.bracket(read[0], x, regions=["full"])
    np.testing.assert_allclose(bracket["output"], outputs, rtol=1e-5, atol=1e-5)
    flip = sa.attack(read[0], x, region="full")
    after = np.asarray(module.apply({"params": params}, np.float32(x + (1 + 1e-4) * flip.delta)))[:, 0]
    assert flip.is_adv.any() and (outputs * after <= 1e-9)[flip.is_adv].all()
    assert (0 < bracket["distance_full_l2_lower"]).all()
    assert (bracket["distance_full_l2_lower"] <= bracket["distance_full_l2_upper"]).all()
