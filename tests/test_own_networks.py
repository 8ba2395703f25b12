"""Networks trained elsewhere: read, refused in one line, bracketed and attacked on points in files."""

import itertools
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from test_cli import assert_refused, command  # noqa: F401, a fixture

import subspace_adv as sa
from subspace_adv import Network, Networks, Subspace, UserError, single
from subspace_adv.flax_layers import Layers
from subspace_adv.networkfile import read_network
from subspace_adv.receptive_fields import Convolution

Arrays = dict[str, np.ndarray]
SHALLOW, DEEP = (4, 6, 1), (4, 7, 6, 5, 1)
MEAN, STD = np.array([0.5, -1, 0, 2]), np.array([1, 0.5, 3, 2])


def sequential(rng: np.random.Generator, *widths: int) -> Arrays:
    """Arrays as a `torch.nn.Sequential` of linear layers, with ReLUs between, has them in its state dict."""
    arrays = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        arrays[f"{2 * layer}.weight"] = rng.normal(size=(outputs, inputs)) / np.sqrt(inputs)
        arrays[f"{2 * layer}.bias"] = rng.normal(size=outputs) / 3
    return arrays


def forward(arrays: Arrays, x: np.ndarray) -> np.ndarray:
    """What it makes of points: outputs (n, 1), or logits (n, 2)."""
    numbers = sorted(int(name.partition(".")[0]) for name in arrays if name.endswith("weight"))
    for number in numbers:
        x = x @ arrays[f"{number}.weight"].T + arrays[f"{number}.bias"]
        x = x if number == numbers[-1] else np.maximum(x, 0)
    return x


def outputs_of(arrays: Arrays, x: np.ndarray) -> np.ndarray:
    """Outputs (n,), of two logits the second less the first."""
    found = forward(arrays, x)
    return found[:, -1] - (found[:, 0] if found.shape[1] == 2 else 0)


def drawn(widths: tuple[int, ...] = DEEP, heads: int = 1, seed: int = 0) -> tuple[Arrays, np.ndarray]:
    """A network, and some points, half of them of either class."""
    rng = np.random.default_rng(seed)
    arrays, x = sequential(rng, *widths[:-1], heads), rng.normal(size=(8, widths[0]))
    arrays[f"{2 * len(widths) - 4}.bias"][-1] -= np.median(outputs_of(arrays, x))
    return arrays, x


CASES = list(itertools.product((SHALLOW, DEEP), (1, 2), (False, True)))


@pytest.mark.parametrize(("widths", "heads", "normalized"), CASES)
def test_outputs_are_those_of_the_network(widths, heads, normalized):
    arrays, x = drawn(widths, heads)
    inputs = (x - MEAN) / STD if normalized else x
    told = {"mean": MEAN, "std": STD} if normalized else {}
    network = Network.from_state_dict(arrays, x=x, outputs=forward(arrays, inputs), **told)
    assert isinstance(network, Network if len(widths) == 3 else Networks)
    np.testing.assert_allclose(network.apply(x), outputs_of(arrays, inputs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network.apply(x[0]), network.apply(x)[0], rtol=1e-5)


def test_one_mean_and_deviation_serve_all_inputs():
    arrays, x = drawn()
    network = Network.from_state_dict(arrays, mean=0.3, std=np.array([0.7]))
    np.testing.assert_allclose(network.apply(x), outputs_of(arrays, (x - 0.3) / 0.7), rtol=1e-5, atol=1e-5)


NAMES = {
    "attributes": ["net.fc1", "net.fc2", "net.fc3", "net.fc4"],
    "blocks": ["blocks.0.in", "blocks.0.out", "blocks.2.in", "blocks.10.out"],
    "words": ["trunk", "b", "a", "head"],
    "of ten": ["2", "9", "10", "100"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_the_order_of_arrays_does_not_matter(names):
    """Layers of unlike sizes follow as they fit, equal ones as their numbers say."""
    arrays, x = drawn((4, 7, 6, 5, 1) if names == NAMES["words"] else (4, 6, 6, 6, 1))
    called = {f"{names[int(name[0]) // 2]}.{name[2:]}": array for name, array in arrays.items()}
    if names == NAMES["blocks"]:
        called = {name.replace(".in.", ".fc.").replace(".out.", ".fc2."): array for name, array in called.items()}
        called = {name.replace("0.fc2.", "0.fc.1.").replace("0.fc.w", "0.fc.0.w"): a for name, a in called.items()}
        called = {name.replace("0.fc.b", "0.fc.0.b"): array for name, array in called.items()}
    expected = outputs_of(arrays, x)
    for order in (list(called), sorted(called), list(called)[::-1]):
        found = Network.from_state_dict({name: called[name] for name in order})
        np.testing.assert_allclose(found.apply(x), expected, rtol=1e-5, atol=1e-5)


def test_parameters_of_flax_are_read_as_they_are():
    """Kernels are (in, out); the head's name comes before those of hidden layers; a layer may be without bias."""
    arrays, x = drawn()
    params: dict[str, Any] = {
        f"hidden_{k}": {"kernel": arrays[f"{2 * k}.weight"].T, "bias": arrays[f"{2 * k}.bias"]} for k in (2, 0, 1)
    }
    params = {"head": {"kernel": arrays["6.weight"].T}} | params
    arrays["6.bias"] = np.zeros(1)
    flat = {f"{layer}/{part}": array for layer, parts in params.items() for part, array in parts.items()}
    for given in (params, {"params": params}, flat):
        found = Network.from_state_dict(given)
        np.testing.assert_allclose(found.apply(x), outputs_of(arrays, x), rtol=1e-5, atol=1e-5)


def changed(changes: dict[str, Any], heads: int = 1) -> Arrays:
    """A deep network with other entries; None leaves one out."""
    arrays = drawn(heads=heads)[0] | changes
    return {name: array for name, array in arrays.items() if array is not None}


DEEP_ARRAYS, POINTS = drawn()
MISTAKES: dict[str, tuple[Arrays, str]] = {
    "weight missing": (changed({"2.weight": None}), "2.bias: is the bias of a layer whose weight is missing"),
    "layer missing": (
        changed({"2.weight": None, "2.bias": None}),
        "4.weight takes 6 inputs, and no other layer yields as many: a layer is missing before it, or this one is too",
    ),
    "first missing": (changed({"0.weight": None, "0.bias": None, "2.weight": None, "2.bias": None, "4.weight": None,
                               "4.bias": None}), "holds one layer, 6.weight; must hold at least two"),
    "head missing": (changed({"6.weight": None, "6.bias": None}), "4.weight yields 5 outputs; must be 1, or 2 logits"),
    "layer extra": (
        changed({"8.weight": np.ones((9, 9))}),
        "8.weight takes 9 inputs, and no other layer yields as many: a layer is missing before it, or this one is too",
    ),
    "head extra": (
        changed({"7.weight": np.ones((3, 5))}),
        "7.weight yields 3, and no other layer takes as many: a layer is missing behind it, or this one is too many",
    ),
    "convolution": (changed({"8.weight": np.ones((3, 3, 3, 3))}), "8.weight: is of shape (3, 3, 3, 3); must be real"),
    "norm": (changed({"1.weight": np.ones(7)}), "1.weight: is of shape (7,); must be real numbers of shape (out, in)"),
    "statistics": (changed({"1.running_mean": np.ones(7)}), "1.running_mean: is no weight or bias of a dense layer"),
    "transposed": (
        changed({"2.weight": DEEP_ARRAYS["2.weight"].T}),
        "2.weight: is of shape (7, 6), but its bias is of shape (6,): it fits transposed; must be (out, in), as PyTor",
    ),
    "transposed without bias": (
        changed({"2.weight": DEEP_ARRAYS["2.weight"].T, "2.bias": None}),
        "2.weight: is of shape (7, 6), but the others do not fit it: it fits transposed; must be (out, in), as PyTorch",
    ),
    "all transposed": (
        {name: array.T for name, array in DEEP_ARRAYS.items() if name.endswith("weight")},
        "0.weight: is of shape (4, 7), but none fits another: it fits transposed; must be (out, in), as PyTorch's are",
    ),
    "kernel transposed": (
        {f"{k}.kernel": DEEP_ARRAYS[f"{k}.weight"] for k in (0, 2, 4, 6)},
        "0.kernel: is of shape (7, 4), but none fits another: it fits transposed; must be (in, out), as of flax's ker",
    ),
    "bias": (changed({"2.bias": np.ones(4)}), "2.weight yields 6 and its bias is of shape (4,); must be (6,)"),
    "ten classes": (changed({}, heads=10), "6.weight yields 10 outputs; must be 1, or 2 logits, whose difference is"),
    "NaN": (changed({"4.bias": np.full(5, np.nan)}), "4.bias: holds NaN or inf; must be finite"),
    "text": (changed({"4.bias": np.array(["a"] * 5)}), "4.bias: holds <U1 values; must be real numbers"),
    "complex": (changed({"4.bias": 1j * np.ones(5)}), "4.bias: holds complex128 values; must be real numbers"),
    "empty": (changed({"4.weight": np.ones((0, 6))}), "4.weight: is of shape (0, 6); must not be empty"),
    "nothing": ({}, "holds no layer; must hold at least two"),
    "no order": (
        {f"{'cab'[k]}.weight": np.eye(3)[: 3 - 2 * (k == 2)] for k in range(3)} ,
        "layers ['c.weight', 'a.weight', 'b.weight'] fit together in several orders; name them by numbers",
    ),
    "mean": (changed({"mean": np.ones(3)}), "mean: is of shape (3,); must be one number, or one for each of the 4"),
    "std": (changed({"std": np.array([1.0, 0, 1, 1])}), "std: holds 0; must be positive"),
    "tiny std": (changed({"std": 1e-320}), "mean and std: make weights of the first layer infinite"),
    "two of a name": (DEEP_ARRAYS | {"0/weight": np.ones((7, 4))}, "0.weight: there are two arrays of this name"),
    "outputs alone": (changed({"outputs": np.ones(3)}), "outputs: give both, points and the network's outputs there"),
    "x alone": (changed({"x": POINTS}), "x: give both, points and the network's outputs there"),
    "x of other space": (changed({"x": POINTS[:, :2], "outputs": np.ones(8)}), "x: is of shape (8, 2); must be points"),
    "logits of one output": (
        changed({"x": POINTS, "outputs": np.ones((8, 2))}),
        "outputs: is of shape (8, 2); must be (8, 1) or (8,), of 8 points",
    ),
    "other activation": (
        changed({"x": POINTS, "outputs": forward(DEEP_ARRAYS, POINTS) + np.eye(8)[:, 3:4] * 1e-3}),
        "outputs: given are ",
    ),
    "normalized": (changed({"x": POINTS, "outputs": forward(DEEP_ARRAYS, POINTS / 2)}), "outputs: given are "),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_arrays_get_one_sentence(tmp_path, command, mistake):  # noqa: F811
    arrays, told = MISTAKES[mistake]
    beside = {name: arrays[name] for name in ("mean", "std", "x", "outputs") if name in arrays}
    with pytest.raises(UserError) as error:
        Network.from_state_dict({name: array for name, array in arrays.items() if name not in beside}, **beside)
    assert str(error.value).startswith(f"from_state_dict: {told}") and "\n" not in str(error.value)
    network, points = tmp_path / "network.npz", tmp_path / "points.npz"
    np.savez(network, **arrays)
    np.savez(points, x=POINTS, y=np.arange(8) % 2)
    assert_refused(command("attack", network, points, "--out", tmp_path / "out.nc"), f"{network}: {told}")
    assert set(tmp_path.iterdir()) == {network, points}


def test_what_no_file_can_hold_gets_one_sentence_too():
    for told, call in {
        "std: is of shape (); must be real|std: holds object": lambda: Network.from_state_dict(
            DEEP_ARRAYS, std=[[1], [1, 2]]
        ),
        "0.bias: has masked values": lambda: Network.from_state_dict(
            DEEP_ARRAYS | {"0.bias": np.ma.array(np.zeros(7), mask=True)}
        ),
        "read_network: None: must be the path of a file": lambda: read_network(None),  # pyright: ignore
        r"apply: x of shape \(8, 3\); must be points \(…, 4\)": lambda: Network(
            np.ones((2, 4)), np.ones(2), np.ones(2), np.float64(0)
        ).apply(POINTS[:, :3]),
    }.items():
        with pytest.raises(UserError, match=told):
            call()


def test_the_point_at_which_outputs_differ_most_is_told():
    wrong = forward(DEEP_ARRAYS, POINTS) + np.array([0, 0, 1e-4, 1e-3, 0, 0, 0, 0])[:, None]
    with pytest.raises(
        UserError, match=r"at point 3, and the network yields .*; is its activation another one than Re"
    ):
        Network.from_state_dict(DEEP_ARRAYS, x=POINTS, outputs=wrong)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "from_state_dict: must be a mapping of names to arrays, as model.state_dict() is, not 3"),
        ({"0.weight": [[1, 2], [3]]}, "from_state_dict: 0.weight: holds object values; must be real numbers"),
    ],
)
def test_what_is_no_mapping_of_arrays(given, told):
    with pytest.raises(UserError) as error:
        Network.from_state_dict(given)
    assert str(error.value).startswith(told)


def test_what_numpy_cannot_read_is_told_as_its_owner_tells_it():
    class OnDevice:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")

    with pytest.raises(UserError) as error:
        Network.from_state_dict({"0.weight": OnDevice()})
    assert str(error.value).endswith("0.weight: cannot be read by NumPy: can't convert cuda:0 device type tensor to "
                                     "numpy. Use Tensor.cpu()")  # fmt: skip


# Files --------------------------------------------------------------------------------------------------------------


def test_files_are_read_as_their_arrays(tmp_path):
    numpy_of = pytest.importorskip("safetensors.numpy")
    arrays, x = drawn(heads=2)
    beside = {"mean": MEAN, "std": STD, "x": x, "outputs": forward(arrays, (x - MEAN) / STD)}
    np.savez(tmp_path / "network.npz", **arrays, **beside)
    numpy_of.save_file(arrays | beside, tmp_path / "network.safetensors")
    for name in ("network.npz", "network.safetensors"):
        found = read_network(tmp_path / name)
        np.testing.assert_allclose(found.apply(x), outputs_of(arrays, (x - MEAN) / STD), rtol=1e-5, atol=1e-5)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for name, content in {
        "torch.pt": b"",
        "damaged.npz": b"PK nothing",
        "damaged.safetensors": b"nothing",
        "h.h5": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "objects.npz", **{"0.weight": np.array([None])})
    np.savez(tmp_path / "brain.npz", **{"0.weight": np.ones((2, 3), ml_dtypes.bfloat16)})
    (tmp_path / "folder.npz").mkdir()
    with zipfile.ZipFile(tmp_path / "saved.npz", "w") as archive:  # as torch.save makes
        archive.writestr("saved/data.pkl", b"nothing")
    for name, told in {
        "torch.pt": "is a pickle, and reading it could run any code; save it by numpy.savez('network.npz', **model.st",
        "damaged.npz": "damaged, or no .npz file of numbers: ",
        "damaged.safetensors": "damaged, or no .safetensors file of NumPy's types: ",
        "h.h5": "has the ending '.h5'; networks are read from files that end in .npz or .safetensors",
        "one.npz": "holds one array; must hold arrays by name",
        "objects.npz": "0.weight is of type object, of Python objects; save numbers",
        "brain.npz": "0.weight is of type |V2, as bfloat16 and other types that NumPy lacks are saved; save it a",
        "saved.npz": "saved/data.pkl is no array of NumPy's, as torch.save makes such archives; save arrays by numpy",
        "objetcs.npz": "no such file; did you mean 'objects.npz'?",
        "folder.npz": "cannot be read: Is a directory",
    }.items():
        with pytest.raises(UserError) as error:
            read_network(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: {told}") and "\n" not in str(error.value)
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(UserError, match=re.escape("install it by pip install 'subspace-adv[networks]'")):
        read_network(tmp_path / "damaged.safetensors")


# Brackets -----------------------------------------------------------------------------------------------------------


def checked(arrays: Arrays, inputs: Any, network: Any, x: np.ndarray, norm: str, found: xr.Dataset) -> None:
    """Flips flip by the arrays' own forward pass, and nothing that is shorter than certified does."""
    order = {"l2": 2, "linf": np.inf}[norm]
    lower, upper = (found[f"distance_full_{norm}_{side}"].values for side in ("lower", "upper"))
    assert (0 < lower).all() and (lower <= upper).all() and np.isfinite(upper).all()
    before = outputs_of(arrays, inputs(x))
    np.testing.assert_allclose(found["output"], before, rtol=1e-9)
    attacked = sa.attack(network, x, region="full", norm=norm)
    np.testing.assert_allclose(np.linalg.norm(attacked.delta, order, axis=1), attacked.distance, rtol=1e-9)
    assert (upper <= attacked.distance * (1 + 1e-9)).all()
    assert (before * outputs_of(arrays, inputs(x + (1 + 1e-7) * attacked.delta)) <= 0).all()
    rng = np.random.default_rng(1)
    moves = np.concatenate([rng.normal(size=(300, *x.shape)), np.sign(rng.normal(size=(300, *x.shape)))])
    moves *= (lower / np.linalg.norm(moves, order, axis=-1))[..., None]
    assert all((before * outputs_of(arrays, inputs(x + move)) > 0).all() for move in moves)


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "heads", "normalized"), CASES)
def test_networks_are_bracketed_as_they_are(widths, heads, normalized):
    arrays, x = drawn(widths, heads)
    told = {"mean": MEAN, "std": STD} if normalized else {}
    network = Network.from_state_dict(arrays, **told)

    def inputs(x: np.ndarray) -> np.ndarray:
        return (x - MEAN) / STD if normalized else x

    for norm in ("l2", "linf"):
        checked(arrays, inputs, network, x, norm, sa.bracket(network, x, regions=["full"], norms=[norm]))


@pytest.mark.slow
def test_a_deep_network_with_a_subspace_is_measured_as_two_layers_are():
    """Of which the second layer is the identity: outputs after the first ReLU are positive."""
    (arrays, x), subspace = drawn(SHALLOW), Subspace.axis_aligned(4, 2)
    deeper = {
        "0.weight": arrays["0.weight"], "0.bias": arrays["0.bias"],
        "1.weight": np.eye(6),
        "2.weight": arrays["2.weight"], "2.bias": arrays["2.bias"],
    }  # fmt: skip
    y = np.sign(outputs_of(arrays, x)) * np.array([1, 1, 1, 1, 1, 1, 1, -1])
    two, three = (
        sa.measure(Network.from_state_dict(given), x, y, subspace=subspace, heldout=x[:3] + 1)
        for given in (arrays, deeper)
    )
    assert list(two) == list(three)
    universal = [name for name in two if "universal" in name or name == "head_sum_active"]  # of other weights
    for name in set(two) - set(universal) - {name for name in two if "_l2_" in str(name)}:
        np.testing.assert_allclose(three[name], two[name], rtol=1e-6, atol=1e-9, err_msg=str(name))
    for region in ("off", "on", "full"):  # certificates are others
        for one, other in ((two, three), (three, two)):
            lower, upper = one[f"distance_{region}_l2_lower"], other[f"distance_{region}_l2_upper"]
            assert (lower <= upper * (1 + 1e-9)).all()
    assert "exact" in two["distance_on_l2_lower"].attrs["long_name"]
    assert "exact" not in three["distance_on_l2_lower"].attrs["long_name"]


def test_points_in_batches_are_bracketed_as_all_at_once(monkeypatch):
    """The last batch is not full; all are drawn through what shows progress."""
    arrays, _ = drawn(SHALLOW)
    x = np.random.default_rng(2).normal(size=(11, 4))
    network, subspace = Network.from_state_dict(arrays), Subspace.axis_aligned(4, 1)
    seen: list[int] = []

    def progress(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    def found():
        bases = np.broadcast_to(np.eye(4)[:, 1:], (11, 4, 3))
        along = sa.bracket(network, x, basis=bases, progress=progress)
        return [
            sa.bracket(network, x, subspace=subspace, progress=progress), along,
            sa.measure(network, x, np.where(np.arange(11) < 5, 1, -1), subspace=subspace, progress=progress),
        ]  # fmt: skip

    together = found()
    assert seen == [0, 0, 0]
    seen.clear()
    monkeypatch.setattr(single, "_AT_ONCE", 4)
    for one, other in zip(together, found(), strict=True):
        assert list(one) == list(other)
        xr.testing.assert_allclose(one, other, rtol=1e-12)
    assert seen == 3 * [0, 4, 8]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda net: sa.attack(net, np.ones((2, 3)), region="full"),
            "network: takes points of 4 coordinates, and x has 3",
        ),
        (lambda net: sa.attack(net, POINTS), "attack: give subspace=, the data's, or basis=, the directions allowed"),
        (lambda net: sa.bracket(net, POINTS, regions=["full", "on"]), "bracket: give subspace=, the data's, or basis="),
        (lambda net: sa.measure(net, POINTS, np.ones(8), subspace=None, regions=["full"]), "measure: give subspace="),
        (
            lambda net: sa.attack(net.replace(params=stacked(net.params)), POINTS, region="full"),
            "attack: network: takes one network; select one",
        ),
        (
            lambda net: sa.attack(net.replace(module=None), POINTS, region="full"),
            "attack: network: of which class these networks are is not known",
        ),
        (
            lambda net: sa.attack(net.replace(params=spoilt(net.params)), POINTS, region="full"),
            "attack: network.head.bias: holds NaN or inf; must be finite",
        ),
        (lambda net: sa.train(POINTS, np.ones(8), network=net), "train: network: must be a Network(weight, bias, head"),
    ],
)
def test_wrong_networks_get_one_sentence(call, told):
    with pytest.raises(UserError) as error:
        call(Network.from_state_dict(DEEP_ARRAYS))
    assert told in str(error.value) and "\n" not in str(error.value)


def stacked(params: Any) -> Any:
    return {layer: {part: np.stack([a, a]) for part, a in parts.items()} for layer, parts in params.items()}


def spoilt(params: Any) -> Any:
    return params | {"head": params["head"] | {"bias": np.array([np.nan])}}


@pytest.mark.slow
def test_deep_networks_of_a_folder_are_measured_by_hand_as_recorded(tmp_path):
    sweep = sa.Sweep(
        "deep",
        network={"depth": 2, "width": 5},
        training={"max_steps": 200},
        measure={"regions": ["off"]},
        axes={"seed": range(2)},
    )
    dataset = sa.run(sweep, tmp_path / "deep")
    for seed in range(2):
        points, networks = sa.load_points(tmp_path / "deep", seed=seed), sa.load_networks(tmp_path / "deep", seed=seed)
        what = {"subspace": Subspace.from_directions(points.basis), "regions": ["off"], "heldout": points.heldout}
        found = sa.measure(networks, points.x, points.y, **what)
        assert set(found) == {name for name in dataset if name not in ("status", "steps") and "predicted" not in name}
        for name in set(found) - {name for name in found if "random" in str(name)}:  # another one in other coordinates
            recorded = dataset[name].sel(seed=seed)
            np.testing.assert_allclose(found[name], recorded, rtol=1e-4, atol=1e-6, err_msg=str(name))
            assert found[name].attrs == recorded.attrs


@pytest.mark.slow
def test_convolutions_are_attacked_and_certified():
    module = Layers((3, 4), 2, Convolution(6, 3, 1, 2, "circular", "signal"))
    x = np.random.default_rng(0).normal(size=(5, 6))
    params = jax.tree.map(np.asarray, module.init(jax.random.key(1), np.float32(x[0]))["params"])
    params["head"]["bias"] = -np.median(module.apply({"params": params}, np.float32(x)), keepdims=True)
    networks = Networks(params, module, 6)
    found, radii = (of(networks, x, region="full") for of in (sa.attack, sa.certify))
    before, after = (networks.apply(points) for points in (x, x + (1 + 1e-4) * found.delta))
    assert found.is_adv.sum() >= 2 and (before * after <= 1e-6)[found.is_adv].all()
    assert (radii <= found.distance).all() and (radii > 0).any()
    moves = np.random.default_rng(1).normal(size=(200, 5, 6))
    for move in moves / np.linalg.norm(moves, axis=2, keepdims=True):
        assert (before * networks.apply(x + radii[:, None] * move) >= -1e-6).all()
    with pytest.raises(UserError, match="measure: network: is convolutional"):
        sa.measure(networks, x, np.ones(5), subspace=Subspace.axis_aligned(6, 2))


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """A two-layer network, and points of three classes near a plane, in files."""
    rng = np.random.default_rng(5)
    arrays, _ = drawn(SHALLOW)
    x = rng.normal(size=(30, 2)) @ np.eye(2, 4) + 0.01 * rng.normal(size=(30, 4))
    y = np.where(outputs_of(arrays, x) > 0, 8, 3)
    y[:4] = [5, 5, 3, 8]
    np.savez(tmp_path / "network.npz", **arrays)
    np.savez(tmp_path / "points.npz", x=x, y=y, heldout_x=x + 0.1, heldout_y=y)
    return tmp_path / "network.npz", tmp_path / "points.npz"


def test_what_is_attacked_is_told_and_saved(tmp_path, command, saved):  # noqa: F811
    network, points = saved
    out = tmp_path / "out.nc"
    options = ("--classes", "3,8", "--subspace-dim", "2", "--epsilon", "0.25", "--out", out)
    status, told, warned = command("attack", network, points, *options)
    assert (status, warned) == (0, "")
    held = np.load(points)
    kept = held["y"] != 5
    x, y = held["x"][kept], np.where(held["y"][kept] == 8, 1, -1)
    directions = np.linalg.svd(x)[2][:2].T
    subspace, given = Subspace.from_directions(directions), read_network(network)
    expected = sa.measure(given, x, y, subspace=subspace, heldout=held["heldout_x"][kept])
    with xr.open_dataset(out) as found:
        assert set(found) == {*expected, "label"} and found.attrs["network"] == str(network)
        np.testing.assert_array_equal(found["label"], y)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, err_msg=name)
            assert found[name].attrs == expected[name].attrs
        right = (found["label"] * found["output"] > 0).values
        assert f"{network}: {right.mean():.0%} of 28 points classified correctly; median gradient off" in told
        for region in ("off", "on", "full"):
            lower, upper = (found[f"distance_{region}_l2_{side}"].values for side in ("lower", "upper"))
            assert re.search(rf"l2 +{region} +{np.median(lower):.3g} +{np.median(upper):.3g}\n", told)
            robust = {f"{(side > 0.25).mean():.0%}" for side in (lower, upper)}
            assert all(share in told for share in robust)
    assert "within 1%" in told and not (tmp_path / "out.nc.partial").exists()


def test_a_table_of_points_and_text_for_labels(tmp_path, command, saved):  # noqa: F811
    """Without a subspace distances in the full space alone are told."""
    import pandas as pd

    network, points = saved
    held = np.load(points)
    kept = held["y"] != 5
    table = pd.DataFrame(held["x"][kept], columns=list("abcd")).assign(
        kind=np.where(held["y"][kept] == 8, "ham", "spam")
    )
    table.to_csv(tmp_path / "points.csv", index=False)
    status, told, _ = command(
        "attack", network, tmp_path / "points.csv", "--label", "kind", "--classes", "spam,ham", "--norms", "linf"
    )
    assert status == 0 and re.search(r"norm +region +distance certified +distance found\nlinf +full ", told)
    assert "off" not in told.splitlines()[0] and "\n  l2" not in told.split("epsilon")[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "points have 3 labels, 3, 5, 8; choose two of them, as classes"),
        (("--classes", "3,9"), "points.npz: no point has the label 9; there: 3, 5, 8"),
        (("--classes", "3"), "command line: --classes: '3': must be two labels, of which the first bec"),
        (("--classes", "3,3"), "command line: --classes: '3,3': must be two labels"),
        (
            ("--classes", "3,8", "--regions", "off"),
            "--regions: off takes a subspace; give --subspace-dim, or a basis in",
        ),
        (("--regions", "of"), "command line: --regions: 'of': must be 'off', 'on' or 'full'; did you mean 'off'?"),
        (("--norms", "l3"), "command line: --norms: 'l3': must be 'l2', 'linf' or 'l1'"),
        (("--classes", "3,8", "--subspace-dim", "5"), "--subspace-dim 5: the 28 points span 4 dimensions; must be"),
        (("--classes", "3,8", "--subspace-dim", "0"), "--subspace-dim 0: the 28 points span 4 dimensions; must be"),
        (("--classes", "3,8", "--subspace-dim", "2", "--norms", "linf"), "norm 'linf': cannot be measured in directi"),
        (("--out", "found.csv"), "command line: --out: found.csv has the ending '.csv'; must be .nc"),
        (("--out", "nowhere/found.nc"), "nowhere/found.nc: cannot be written: No such file or directory"),
        (("--label", "kind"), "command line: --label: 'kind' changes nothing; an .npz has its labels in y; leave it"),
        (("--epsilon", "big"), "command line: --epsilon: 'big' is no perturbation size"),
    ],
)
def test_wrong_options_get_one_sentence(tmp_path, monkeypatch, command, saved, options, told):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    given = options if "--out" in options else (*options, "--out", "found.nc")
    assert_refused(command("attack", *saved, *given), told)
    assert set(tmp_path.iterdir()) == set(saved)


@pytest.mark.parametrize("number", [1, 6])
def test_points_of_one_class_are_attacked_by_the_sign_that_is_told(tmp_path, command, saved, number):  # noqa: F811
    network, points = saved
    held = np.load(points)
    of_one = np.flatnonzero(held["y"] == 8)[:number]
    np.savez(points, x=held["x"][of_one], y=held["y"][of_one])
    told = f"{points}: all points have the label 8; tell by --classes whether it is the first of two, −1, or not"
    assert_refused(command("attack", network, points), told)
    assert_refused(command("attack", network, points, "--classes", "3,5"), "no point has the label 3; there: 8")
    rank, out = min(number, 4), tmp_path / "out.nc"
    for options, expected in ((("3,8", "--subspace-dim", rank), 1), (("8,3",), -1)):
        status, _, warned = command("attack", network, points, "--out", out, "--classes", *options)
        assert (status, warned) == (0, "")
        with xr.open_dataset(out) as found:
            assert (found["label"] == expected).all() and found.sizes["point"] == number
            wrong = (found["label"] * found["output"] <= 0).values
            assert ((found["distance_full_l2_upper"] == 0).values == wrong).all()
    assert_refused(
        command("attack", network, points, "--classes", "3,8", "--subspace-dim", rank + 1), f"must be from 1 to {rank}"
    )


def test_classes_are_told_as_numbers_however_labels_are_written(tmp_path, command, saved):  # noqa: F811
    """Whole numbers tell labels in float64 too; the first may be negative."""
    network, points = saved
    held = np.load(points)
    np.savez(points, x=held["x"], y=np.where(held["y"] == 8, 1.0, -1.0))
    outputs = []
    for classes in ("-1,1", "-1.0,1.0"):
        out = tmp_path / "out.nc"
        assert command("attack", network, points, "--classes", classes, "--out", out)[0] == 0
        with xr.open_dataset(out) as found:
            np.testing.assert_array_equal(found["label"], np.where(held["y"] == 8, 1, -1))
            outputs.append(found.load())
    xr.testing.assert_equal(*outputs)


def test_points_of_another_space_and_a_basis_of_another_dimension(tmp_path, command, saved):  # noqa: F811
    network, points = saved
    held = dict(np.load(points))
    np.savez(points, **held | {"basis": np.eye(4, 2)})
    options = ("--classes", "3,8", "--subspace-dim", "3")
    assert_refused(
        command("attack", network, points, *options),
        "command line: --subspace-dim 3: ",
        "a basis of 2 columns; leave it",
    )
    np.savez(points, x=0 * held["x"], y=held["y"])
    told = f"command line: --subspace-dim 3: all points of {points} are 0, and span nothing; leave it out"
    assert_refused(command("attack", network, points, *options), told)
    np.savez(points, x=held["x"][:, :3], y=held["y"])
    assert_refused(command("attack", network, points), f"{points}: points have 3 coordinates, and {network} takes 4")
