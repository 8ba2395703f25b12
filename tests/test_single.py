"""One network by hand, against NumPy in float64 and against what a sweep records of the same network."""

import numpy as np
import pytest
import reference
from shell import TINY, read

import subspace_adv as sa
from subspace_adv import Network, Subspace, UserError
from subspace_adv.manifest import describe
from subspace_adv.measures import MEASURES
from subspace_adv.store import Store

X = np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
Y = np.array([1, -1, 1, -1])
PLANE = Subspace.axis_aligned(3, 2)
SETTINGS = {"width": 8, "learning_rate": 0.1, "loss": "exponential"}


@pytest.fixture(scope="module")
def network() -> Network:
    return sa.train(X, Y, **SETTINGS).network


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "tiny"
    return folder, sa.run(read(TINY, "width=3", "seed=0:3"), folder)


def stepped(network: Network, x: np.ndarray, y: np.ndarray, rate: float, decay: float, steps: int) -> Network:
    """Gradient descent of the exponential loss with weight decay, in NumPy."""
    weight, bias, head, head_bias = (np.asarray(part, np.float64) for part in network)
    for _ in range(steps):
        z = x @ weight.T + bias
        slope = -y * np.exp(-y * (np.maximum(z, 0) @ head + head_bias)) / len(x)
        through = slope[:, None] * (z > 0) * head
        gradients = (through.T @ x, through.sum(0), slope @ np.maximum(z, 0), slope.sum())
        parts = (weight, bias, head, head_bias)
        weight, bias, head, head_bias = (p - rate * (g + decay * p) for p, g in zip(parts, gradients, strict=True))
    return Network(weight, bias, head, head_bias)


def test_training_is_gradient_descent_from_the_network_given():
    start = sa.train(X, Y, width=8, max_steps=0, seed=3)
    assert (start.status, start.steps) == ("step_limit", 0)
    trained = sa.train(
        X, Y, network=start.network, loss="exponential", learning_rate=0.05, weight_decay=0.1, max_steps=30
    )
    expected = stepped(start.network, X, Y, 0.05, 0.1, 30)
    for found, part in zip(trained.network, expected, strict=True):
        np.testing.assert_allclose(found, part, rtol=1e-4, atol=1e-6)
    assert trained.steps == 30


def test_training_stops_at_its_margin_and_depends_on_the_seed_alone():
    trained = sa.train(X, Y, **SETTINGS, stop_margin=0.2)
    margins = Y * [reference.output(trained.network, x) for x in X]
    assert trained.status == "converged" and 0.2 < margins.min() < 0.3 and 0 < trained.steps < 40_000
    again, other = sa.train(X, Y, **SETTINGS, stop_margin=0.2), sa.train(X, Y, **SETTINGS, stop_margin=0.2, seed=1)
    assert again.network.weight.tobytes() == trained.network.weight.tobytes() != other.network.weight.tobytes()


@pytest.mark.parametrize("where", [{"subspace": PLANE}, {"basis": np.eye(3)[:, 2:]}], ids=["subspace", "basis"])
def test_an_attack_flips_and_nothing_shorter_than_certified_does(network, where):
    found = sa.attack(network, X, **where, norm="linf")
    radii = sa.certify(network, X, **where, norm="linf")
    assert found.is_adv.any() and (radii <= found.distance).all()
    for x, delta, size, radius, flips in zip(X, found.delta, found.distance, radii, found.is_adv, strict=True):
        before = reference.output(network, x)
        assert not delta[:2].any() and np.isclose(np.abs(delta).max(), size if flips else 0)
        assert not flips or before * reference.output(network, x + (1 + 1e-9) * delta) <= 0
        for side in np.linspace(-1, 1, 101) * min(radius, 100) * (1 - 1e-9):
            assert before * reference.output(network, x + np.array([0, 0, side])) > 0
    one = sa.attack(network, X[1], **where, norm="linf")
    assert one.delta.tobytes() == found.delta[1].tobytes()
    assert sa.certify(network, X[1], **where, norm="linf") == radii[1]


def test_every_point_may_have_a_basis_of_its_own(network):
    """Lines are crossed as each point's alone is."""
    turn = np.linspace(0, np.pi, len(X), endpoint=False)
    zero = np.zeros_like(turn)
    lines = np.stack([np.cos(turn), zero, np.sin(turn)], axis=1)[:, :, None]
    found, radii = sa.attack(network, X, basis=lines, norm="linf"), sa.certify(network, X, basis=lines, norm="linf")
    for i, (point, line) in enumerate(zip(X, lines, strict=True)):
        alone = sa.attack(network, point, basis=line, norm="linf")
        assert alone.delta.tobytes() == found.delta[i].tobytes() and alone.distance == found.distance[i]
        assert sa.certify(network, point, basis=line, norm="linf") == radii[i]


def test_a_basis_a_little_off_certifies_no_more_than_is_true():
    """Of a linear output at distance 2 from its zero, along a column that is too short by less than is refused."""
    linear = Network(np.zeros((8, 3)), np.zeros(8), np.zeros(8), np.zeros(()))
    linear.weight[:2, 2], linear.head[:2] = [1, -1], [1, -1]
    for basis in ((1 - 4e-7) * np.eye(3)[:, 2:], np.eye(3)[:, 2:]):
        radii = sa.certify(linear, np.array([[0, 0, 2.0]] * 4), basis=basis, norm="linf")
        assert ((2 - 1e-6 < radii) & (radii <= 2)).all()


def test_points_may_have_planes_of_their_own(network):
    """Equal ones are as one; flips lie in the plane of their point."""
    shared, own = (sa.bracket(network, X, basis=b) for b in (np.eye(3)[:, 1:], np.stack([np.eye(3)[:, 1:]] * len(X))))
    for name in shared:
        np.testing.assert_allclose(own[name], shared[name], rtol=1e-9, err_msg=name)
    turn = np.linspace(0, np.pi, len(X), endpoint=False)
    lines, upright = (
        np.stack([np.cos(t), np.zeros_like(t), np.sin(t)], axis=1)[:, :, None] for t in (turn, turn + np.pi / 2)
    )
    planes = np.concatenate([lines, upright], axis=2)
    planes[::2, :, 1] = [0, 1, 0]
    attacked = sa.attack(network, X, basis=planes)
    assert attacked.is_adv.any()
    for x, delta, plane, flips in zip(X, attacked.delta, planes, attacked.is_adv, strict=True):
        np.testing.assert_allclose(plane @ (plane.T @ delta), delta, atol=1e-12)
        assert not flips or reference.output(network, x) * reference.output(network, x + (1 + 1e-9) * delta) <= 0
    assert (sa.certify(network, X, basis=planes) <= attacked.distance).all()


def test_a_bracket_is_of_the_network_s_own_prediction_unless_labels_are_given(network):
    wrong = Y * [1, 1, -1, 1]
    own, labelled = (sa.bracket(network, X, y, subspace=PLANE, regions=["off"]) for y in (None, wrong))
    np.testing.assert_allclose(own["output"], [reference.output(network, x) for x in X], rtol=1e-12)
    right = np.sign(own["output"].values) == wrong
    assert set(right) == {False, True}
    for side in ("lower", "upper"):
        name = f"distance_off_l2_{side}"
        assert (own[name] > 0).all() and np.array_equal(labelled[name], np.where(right, own[name], 0))
        assert own[name].attrs["units"] == "input length" and "orthogonal to" in own[name].attrs["long_name"]
    along = sa.bracket(network, X, wrong, basis=PLANE.complement, norms=("linf", "l2"))
    assert list(along) == ["output"] + [f"distance_basis_{n}_{s}" for n in ("linf", "l2") for s in ("lower", "upper")]
    np.testing.assert_array_equal(along["distance_basis_l2_upper"], labelled["distance_off_l2_upper"])
    assert (
        along["distance_basis_l2_upper"].attrs["long_name"].startswith("L2 distance to a flip by a perturbation along")
    )


@pytest.mark.slow
def test_a_network_of_a_sweep_measured_by_hand_is_as_recorded(ran):
    folder, dataset = ran
    for seed in range(3):
        at = {"width": 3, "init_scale": 0.5, "seed": seed}
        points = sa.load_points(folder, **at)
        subspace = Subspace.from_directions(points.basis)
        network = sa.load_networks(folder, **at)
        found = sa.measure(network, points.x, points.y, subspace=subspace, heldout=points.heldout, regions=["off"])
        assert set(found) == {name for name in dataset if name not in ("status", "steps") and "predicted" not in name}
        for name in set(found) - {name for name in found if "random" in name}:  # another one in other coordinates
            recorded = dataset[name].sel(at)
            np.testing.assert_allclose(found[name], recorded, rtol=1e-4, atol=1e-6, err_msg=name)
            assert {key: found[name].attrs[key] for key in ("long_name", "units")} == recorded.attrs


def test_without_held_out_points_what_is_measured_there_is_left_out(network):
    found = sa.measure(network, X, Y, subspace=PLANE, regions=["off"])
    left_out = {name for name, row in MEASURES.items() if "heldout" in row.dimensions}
    assert left_out and not left_out & set(found) and "heldout" not in found.dims


def test_a_point_on_the_decision_boundary_is_misclassified_whatever_its_label():
    """N = relu(x₁) + relu(x₃) is 0 at the second to the fourth point."""
    network = Network(np.eye(3)[[0, 2]], np.zeros(2), np.ones(2), 0.0)
    for labels in (Y, -Y):
        found = sa.measure(network, X, labels, subspace=PLANE, regions=["off"])
        for name in ("distance_universal", "distance_off_l2_lower", "distance_off_l2_upper"):
            assert (found[name].values[1:] == 0).all()


def test_points_of_a_folder_are_those_that_its_networks_saw(ran, tmp_path):
    folder, dataset = ran
    points = sa.load_points(folder)
    assert points.x.shape == (1, 3, 2, 7, 2) and points.heldout.shape == (1, 3, 2, 16, 2)
    np.testing.assert_allclose(points.x[0, 1, 0], dataset["input"], atol=1e-6)
    np.testing.assert_array_equal(points.y[0, 2, 1], dataset["label"])
    np.testing.assert_allclose(np.abs(points.basis[0, 0, 0]), np.full((2, 1), 0.5**0.5))


def test_points_of_several_datasets_are_padded(tmp_path):
    axes = {"kind": ["line", "subspace"], "samples": [5, 9], "ambient_dim": [2, 4]}
    sweep = sa.Sweep("mixed", data={"data_seed": 1, "subspace_dim": 2}, training={"max_steps": 0}, axes=axes)
    Store.create(tmp_path / "mixed", describe(sa.plan(sweep))).close()
    points = sa.load_points(tmp_path / "mixed", ambient_dim=[4, 2], samples=5)
    assert points.x.shape == (2, 2, 7, 4) and points.basis.shape == (2, 2, 4, 2)
    for i, kind in enumerate(axes["kind"]):
        for j, d in enumerate((4, 2)):
            dataset = sweep.dataset({"kind": kind, "samples": 5, "ambient_dim": d})
            data, n, (size, k) = dataset.draw(), dataset.shape.samples, dataset.span().shape
            np.testing.assert_allclose(points.x[i, j, :n, :size], data.x @ dataset.span().T, atol=1e-6)
            assert np.isnan(points.x[i, j, n:]).all() and not points.x[i, j, :n, size:].any()
            assert points.y[i, j].tolist() == [*data.y, *(7 - n) * [0]]
            np.testing.assert_allclose(points.basis[i, j, :size, :k], dataset.span())
            assert not points.basis[i, j, size:].any() and not points.basis[i, j, :, k:].any()


MISTAKES = {
    "ragged bases": (
        lambda net: sa.attack(net, X, basis=[np.eye(3)[:, :1], np.eye(3)]),
        "attack: basis: holds object values; must be real numbers of shape (3, r), or (4, 3, r) for a basis of each",
    ),
    "bases of too few points": (
        lambda net: sa.attack(net, X, basis=np.stack([np.eye(3)] * 2)),
        "attack: basis: is of shape (2, 3, 3); must be (3, r), or (4, 3, r) for a basis of each of the 4 points",
    ),
    "scaled subspace": (
        lambda net: sa.certify(net, X, subspace=Subspace(np.eye(3)[:, 2:], 0.5 * np.eye(3)[:, :2])),
        "certify: subspace: its basis and its complement are not orthonormal; Subspace.from_directions(directions)",
    ),
    "one norm for several": (
        lambda net: sa.bracket(net, X, subspace=PLANE, norms="l2"),
        "bracket: norms = 'l2': must be a list of names, such as ['l2']",
    ),
    "no directions": (lambda net: sa.attack(net, X), "attack: give subspace=, the data's, or basis=, the directions"),
    "two": (lambda net: sa.attack(net, X, subspace=PLANE, basis=np.eye(3)), "attack: subspace: leave it out where"),
    "region of a basis": (
        lambda net: sa.certify(net, X, basis=np.eye(3), region="on"),
        "certify: region: leave it out",
    ),
    "regions of a basis": (
        lambda net: sa.bracket(net, X, basis=np.eye(3), regions=["on"]),
        "bracket: regions: leave",
    ),
    "norm": (
        lambda net: sa.attack(net, X, subspace=PLANE, norm="l3"),
        "attack: norm = 'l3': must be 'l2', 'linf' or 'l1'",
    ),
    "norms": (lambda net: sa.bracket(net, X, subspace=PLANE, norms="l3"), "bracket: norms = "),
    "region": (
        lambda net: sa.attack(net, X, subspace=PLANE, region="of"),
        "attack: region = 'of': must be 'off', 'on' or",
    ),
    "rotated": (
        lambda net: sa.attack(net, X, basis=np.linalg.qr(np.ones((3, 3)) + np.eye(3))[0], norm="l1"),
        "attack: norm 'l1': cannot be measured in directions off the coordinate axes",
    ),
    "a column rotated": (
        lambda net: sa.attack(net, X, basis=[[0.6, 0], [0.8, 0], [0, 1]], norm="l1"),
        "attack: norm 'l1': cannot be measured in directions off the coordinate axes",
    ),
    "array": (
        lambda net: sa.attack(net, X, subspace=np.eye(3)),
        "attack: subspace: must be a Subspace, such as Subspace.from_directions(directions (d, k)), not ndarray",
    ),
    "other space": (
        lambda net: sa.attack(net, X, subspace=Subspace.axis_aligned(4, 2)),
        "attack: subspace: has bases of shapes (4, 2) and (4, 2); must be of R^3",
    ),
    "not orthonormal": (
        lambda net: sa.attack(net, X, basis=np.ones((3, 2))),
        "attack: basis: its columns are not orthonormal; Subspace.from_directions(columns).basis makes those of one",
    ),
    "effort": (
        lambda net: sa.attack(net, X, subspace=PLANE, restart=3),
        "attack: restart: no such argument; did you mean",
    ),
    "effort's value": (
        lambda net: sa.attack(net, X, subspace=PLANE, restarts=0),
        "attack: restarts = 0: must be greater",
    ),
    "coordinates": (
        lambda net: sa.attack(net, X[:, :2], subspace=PLANE),
        "attack: network.weight: is of shape (8, 3); must be (8, 2), of 8 neurons on points of 2 coordinates",
    ),
    "networks": (
        lambda net: sa.attack(Network(*(np.stack([part, part]) for part in net)), X, subspace=PLANE),
        "attack: network: holds 2 networks; choose one",
    ),
    "no network": (
        lambda _: sa.attack(None, X, subspace=PLANE),
        "attack: network: must be a Network(weight, bias, head, head_bias), not NoneType",
    ),
    "many axes": (lambda _: Subspace.axis_aligned(3, 5), "axis_aligned: subspace_dim = 5: must be at most ambient_dim"),
    "no axes": (lambda _: Subspace.axis_aligned(3, -1), "axis_aligned: subspace_dim = -1: must be a whole number"),
    "half an axis": (
        lambda _: Subspace.axis_aligned(2.5, 1),
        "axis_aligned: ambient_dim = 2.5: must be a whole number",
    ),
    "infinite": (
        lambda net: sa.attack(net._replace(head=net.head + np.inf), X, subspace=PLANE),
        "attack: network.head: holds NaN or inf; must be finite",
    ),
    "text": (lambda _: sa.train("a", Y), "train: x: holds <U1 values; must be real numbers of shape (n, d)"),
    "ragged": (lambda _: sa.train([[1, 2], [3]], Y), "train: x: holds object values; must be real numbers of shape"),
    "labels": (lambda _: sa.train(X, [0, 1, 1, 1]), "train: y: holds 0; labels must be -1 or 1"),
    "few labels": (lambda _: sa.train(X, Y[:2]), "train: y: holds 2 labels; must hold one for each of the 4 points"),
    "no points": (
        lambda _: sa.train(np.zeros((0, 3)), []),
        "train: x: is of shape (0, 3); must hold at least one point",
    ),
    "setting": (lambda _: sa.train(X, Y, widht=3), "train: widht: no such argument; did you mean 'width'?"),
    "setting's value": (lambda _: sa.train(X, Y, width=-1), "train: width = -1: must be greater than or equal to 1"),
    "unread": (
        lambda _: sa.train(X, Y, momentum=0.5),
        "train: momentum = 0.5: changes nothing; it is read where optimizer",
    ),
    "batch": (
        lambda _: sa.train(X, Y, optimizer="sgd", batch_size=5),
        "train: batch_size = 5: over the 4 points; at most 4",
    ),
    **{
        f"{leaf} of other models": (
            lambda _, given={leaf: value}: sa.train(X, Y, **given),
            f"train: {leaf}: no such argument",
        )
        for leaf, value in {"architecture": "cnn", "depth": 2, "parametrization": "ntk", "stride": 2}.items()
    },
    "width of a network": (lambda net: sa.train(X, Y, network=net, width=3), "train: width: no such argument"),
    "measure": (lambda net: sa.measure(net, X, None, subspace=PLANE), "measure: y: is None; must be the labels"),
    "held out": (
        lambda net: sa.measure(net, X, Y, subspace=PLANE, heldout=X[:, :2]),
        "measure: heldout: is of shape (4, 2); must be (n, 3), as x is",
    ),
    "loss": (
        lambda net: sa.measure(net, X, Y, subspace=PLANE, loss="hinge"),
        "measure: loss = 'hinge': must be 'logistic'",
    ),
    "directions": (
        lambda _: Subspace.from_directions(np.ones((3, 2))),
        "directions: must be finite, and linearly indep",
    ),
    "flat directions": (
        lambda _: Subspace.from_directions(np.ones(3)),
        "directions: float64 of shape (3,): must be a real",
    ),
    "sweep": (
        lambda _: sa.Sweep(network={"width": -1}),
        "Sweep: network.width = -1: must be greater than or equal to 1",
    ),
    "sweep's axis": (lambda _: sa.Sweep(axes={"sed": [1]}), "Sweep: axes.sed: no such axis; did you mean 'seed'?"),
    "sweep's table": (lambda _: sa.Sweep(data=3), "Sweep: data = 3: must be a mapping, of fields to values"),
    "sweep's unread field": (
        lambda _: sa.Sweep(data={"samples": 3}),
        "Sweep: data.samples = 3: changes nothing; it is",
    ),
    "sweep's name": (lambda _: sa.Sweep("a/b"), "Sweep: name = 'a/b': must be letters, digits"),
    "no sweep": (lambda _: sa.run(3), "3 is no Sweep"),
    "no file": (lambda _: sa.run("nowhere.toml"), "nowhere.toml: no such file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_arguments_get_one_sentence(network, mistake):
    call, told = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        call(network)
    assert str(error.value).startswith(told) and "\n" not in str(error.value)
