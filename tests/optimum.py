"""The proven least perturbation that flips a point, by mixed-integer programs; shares no code with the package.

With z = Wx + b, rates A = W·basis, v = s·u and s = sign N(x), a perturbation basis·c flips x if
Σ vᵢ·relu(zᵢ + aᵢ·c) + s·c₀ ≤ 0. A neuron with vᵢ > 0 is replaced by any y ≥ max(0, zᵢ + aᵢ·c): that only raises the
sum, and y = relu is allowed, so it needs no binary. One with vᵢ < 0 needs y ≤ relu, which is not convex: a binary
chooses whether y ≤ 0 or y ≤ zᵢ + aᵢ·c. Both are below relu, so a wrong choice raises the sum too. The known upper bound
on the norm bounds every zᵢ + aᵢ·c, and where its sign is settled the neuron is linear.
"""

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import reference
from scipy.optimize import Bounds, LinearConstraint, linprog, milp, nnls

from subspace_adv.network import Network

Norm = Literal["l2", "linf", "l1"]
ORDER = {"l2": 2, "linf": np.inf, "l1": 1}
DUAL_ORDER = {"l2": 2, "linf": 1, "l1": np.inf}
_SLACK = 1e-4  # over `upper`, so that it is well within the solvers' tolerances
_ROUNDING = 1e-6
_GAP = 1e-8
_CAP_ROUNDS = 30
_TANGENTS = 17
_FAINT = 1e-3  # beside the most that a neuron can add
_AT_KINK, _MOST_KINKS = 1e-5, 4
_MARGINS = (0.0, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9)  # depths below zero at which a flip is sought, past all rounding


class Optimum(NamedTuple):
    """Least norm of a flip within a region, from both sides."""

    lower: float  # proven: no flip is nearer (up to the solver's tolerance)
    upper: float  # norm of `delta`; inf if no flip was found
    delta: np.ndarray  # (d,), flips x in long double
    proven: bool  # whether the solver finished; else `lower` is what it had proven when its time ran out


class _Program(NamedTuple):
    """The problem in units in which the known upper bound is 1, and so is the reach of each neuron."""

    norm: Norm
    basis: np.ndarray  # (d, r)
    z: np.ndarray  # (m,)
    rates: np.ndarray  # (m, r)
    head: np.ndarray  # (m,), times s
    offset: float
    low: np.ndarray  # (m,), least z + rates·c
    high: np.ndarray  # (m,)

    @property
    def always_on(self) -> np.ndarray:
        return self.low >= 0

    @property
    def raising(self) -> np.ndarray:
        """Unsettled neurons that are convex."""
        return (self.low < 0) & (self.high > 0) & (self.head > 0)

    @property
    def lowering(self) -> np.ndarray:
        """Unsettled neurons that need a binary."""
        return (self.low < 0) & (self.high > 0) & (self.head < 0)

    @property
    def needed(self) -> np.ndarray:
        """Unsettled neurons of which a flip needs some one: all the others together leave the output positive.

        Asked where the output is faint, as after a training of large steps: solvers' tolerances hide it, but not that.
        """
        slope, rest = _settled(self)
        least = rest - (1 + _SLACK) * np.linalg.norm(self.basis @ slope, DUAL_ORDER[self.norm])
        most = np.where(self.lowering, -self.head * self.high, 0)
        weakest = np.argsort(most)
        strong = np.zeros(len(most), bool)
        strong[weakest] = np.cumsum(most[weakest]) >= least * (1 - _ROUNDING)
        return strong & self.lowering & (0 < least < _FAINT)


class _Solution(NamedTuple):
    """A solver's answer, in units of the known upper bound."""

    lower: float
    coefficients: np.ndarray | None
    proven: bool


def least_flip(
    network: Network, x: np.ndarray, basis: np.ndarray, norm: Norm, upper: float, *, time_limit: float = 60.0
) -> Optimum:
    """Least norm of a perturbation in a region after which the output has the other sign, or is zero.

    Args:
        network: weight (m, d), float64.
        x: point (d,).
        basis: orthonormal basis (d, r) of the perturbations allowed.
        norm: "l2" is solved by SCIP, "linf" and "l1" by HiGHS.
        upper: a finite norm at which a flip is known; only smaller ones, and this, are sought.
        time_limit: seconds.

    Returns:
        The optimum; lower = `upper` if nothing within `upper` flips.
    """
    network = Network(*(np.asarray(field, np.float64) for field in network))
    sign = 1 if reference.output(network, x) >= 0 else -1
    program = _scaled(network, sign, np.asarray(x, np.float64), np.asarray(basis, np.float64), norm, upper)
    solution = _solve_quadratic(program, time_limit) if norm == "l2" else _solve_linear(program, time_limit)
    found = Optimum(min(solution.lower, 1.0) * upper, np.inf, np.zeros(len(x)), solution.proven)
    for on in [] if solution.coefficients is None else _patterns(program, solution.coefficients):
        for margin in _MARGINS:
            polished = _polish(program, on, margin)
            if polished is not None:
                delta = upper * program.basis @ polished
                length = float(np.linalg.norm(delta, ORDER[norm]))
                if sign * reference.output(network, x + delta.astype(np.longdouble)) <= 0 and length < found.upper:
                    found = found._replace(upper=length, delta=delta)
                    break
    if found.upper < upper / 2 and found.lower < found.upper * (1 - _ROUNDING):  # so that tolerances are in its units
        return least_flip(network, x, basis, norm, found.upper, time_limit=time_limit)
    return found


def least_flip_in_cell(
    network: Network, x: np.ndarray, basis: np.ndarray, norm: Norm, delta: np.ndarray, *, margin: float = 0.0
) -> np.ndarray | None:
    """The least perturbation that flips x among those that turn neurons on and off as `delta` does, which flips it.

    Args:
        network: weight (m, d), float64.
        x: point (d,).
        basis: of the perturbations allowed, (d, r).
        norm: of the perturbation.
        delta: (d,).
        margin: beyond zero, of the most that a neuron can add.

    Returns:
        (d,), but for rounding; None where the solver finds none.
    """
    sign = 1 if reference.output(network, x) >= 0 else -1
    length = np.linalg.norm(delta, ORDER[norm])
    program = _scaled(network, sign, x, basis, norm, length)
    polished = _polish(program, program.z + program.rates @ (basis.T @ delta / length) > 0, margin)
    return None if polished is None else length * basis @ polished


def least_flip_in_plane(network: Network, x: np.ndarray, basis: np.ndarray, norm: Norm) -> Optimum:
    """As `least_flip` in a region of two dimensions, of any width, by a look at every piece of the decision boundary.

    Within a cell between kinks the boundary is straight, and begins on the kinks. Four more lines, the axes and
    diagonals through x, meet what meets no kink; and as the corners of the balls of L1 and L∞ lie on them, these norms
    are linear in a cell, so that some beginning is nearest. In L2 it may also be the foot of the perpendicular from x.
    """
    network = Network(*(np.asarray(field, np.longdouble) for field in network))
    begin = reference.output(network, x)
    sign = 1 if begin >= 0 else -1
    z, rates = network.weight @ x + network.bias, network.weight @ basis
    varies = rates.any(axis=1)
    plane = _Plane(
        z[varies],
        rates[varies],
        sign * network.head[varies],
        sign * (network.head @ np.where(varies, 0, np.maximum(z, 0)) + network.head_bias),
    )
    places, toward = _beginnings(plane)
    if norm == "l2":
        feet = _feet(plane, places)
        places, toward = np.concatenate([places, feet]), np.concatenate([toward, feet])
    lengths = np.linalg.norm(np.asarray(places @ basis.T, np.float64), ORDER[norm], axis=1)
    if not len(lengths):
        return Optimum(np.inf, np.inf, np.zeros(len(x)), True)
    nearest = np.argmin(lengths)
    beyond = toward[nearest] * (np.linalg.norm(places[nearest]) / np.linalg.norm(toward[nearest]))
    for margin in _MARGINS:
        delta = np.asarray(basis @ (places[nearest] + margin * beyond), np.float64)
        if sign * reference.output(network, x + delta.astype(np.longdouble)) <= 0:
            return Optimum(lengths[nearest], float(np.linalg.norm(delta, ORDER[norm])), delta, True)
    return Optimum(lengths[nearest], np.inf, np.zeros(len(x)), True)


class _Plane(NamedTuple):
    """The signed output, offset + Σ headᵢ·relu(zᵢ + ratesᵢ·c), in long double; no rate is 0."""

    z: np.ndarray  # (m,)
    rates: np.ndarray  # (m, 2)
    head: np.ndarray  # (m,), times the sign at c = 0
    offset: np.longdouble

    def inputs(self, c: np.ndarray) -> np.ndarray:
        return self.z + c @ self.rates.T

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return np.maximum(inputs, 0) @ self.head + self.offset


def _beginnings(plane: _Plane) -> tuple[np.ndarray, np.ndarray]:
    """Where the output changes its sign along kinks, axes and diagonals, and which way it falls there, (k, 2) each."""
    normals = np.concatenate([plane.rates, [[1, 0], [0, 1], [1, 1], [1, -1]]]).astype(np.longdouble)
    sizes = np.sqrt((normals**2).sum(axis=1))[:, None]
    levels = np.concatenate([plane.z, np.zeros(4)])[:, None]
    start, along = -levels * normals / sizes**2, normals[:, ::-1] * [1, -1] / sizes
    at, speed = plane.inputs(start), along @ plane.rates.T
    itself = np.eye(len(at), len(plane.z), dtype=bool)
    at[itself] = 0
    speed[itself | (np.abs(speed) <= 1e-16 * sizes[: len(plane.z), 0])] = 0  # parallel to it
    places, ways = [], []
    for line, side in itertools.product(range(len(at)), (1, -1)):
        for t, way in _changes_of_sign(plane, at[line], side * speed[line]):
            places.append(start[line] + side * t * along[line])
            ways.append(way * side * along[line])
    return np.reshape(places, (-1, 2)), np.reshape(ways, (-1, 2))


def _changes_of_sign(plane: _Plane, at: np.ndarray, speed: np.ndarray) -> Iterator[tuple[np.longdouble, int]]:
    """Each t ≥ 0 where the output of inputs at + t·speed changes its sign, and whether it falls (1) or rises (−1)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = -at / speed
    ahead = np.flatnonzero(np.isfinite(kinks) & (kinks > 0))
    ahead = ahead[np.argsort(kinks[ahead])]
    t = np.append(0, kinks[ahead])
    first = (plane.head * speed)[(at > 0) | ((at == 0) & (speed > 0))].sum()
    slopes = np.cumsum(np.append(first, (plane.head * np.abs(speed))[ahead]))
    values = plane(at) + np.append(0, np.cumsum(slopes[:-1] * np.diff(t)))
    left, right = values[:-1], values[1:]
    for i in np.flatnonzero((left < 0) != (right < 0)):
        yield t[i] + left[i] / (left[i] - right[i]) * (t[i + 1] - t[i]), 1 if left[i] >= 0 else -1
    if slopes[-1] and (values[-1] < 0) == (slopes[-1] > 0):
        yield t[-1] - values[-1] / slopes[-1], 1 if slopes[-1] < 0 else -1


def _feet(plane: _Plane, places: np.ndarray) -> np.ndarray:
    """Of the pieces that begin at places (k, 2), to either side of their lines: the feet of perpendiculars from x."""
    inputs = plane.inputs(places)
    doubt = 1e-15 * (np.abs(plane.z) + np.abs(places) @ np.abs(plane.rates).T)
    feet = []
    for place, around, close in zip(places, inputs, np.abs(inputs) <= doubt, strict=True):
        normal = plane.rates[np.argmin(np.abs(around))]
        for side in (1, -1):
            on = np.where(close, plane.rates @ normal * side > 0, around > 0)
            gradient = (plane.head * on) @ plane.rates
            size = gradient @ gradient
            if size > 0:
                foot = gradient * (gradient @ place) / size
                there = plane.inputs(foot)
                if ((there > 0) == on)[np.abs(there) > 1e-15 * (np.abs(plane.z) + np.abs(there))].all():
                    feet.append(foot)
    return np.reshape(feet, (-1, 2))


def _scaled(network: Network, sign: int, x: np.ndarray, basis: np.ndarray, norm: Norm, upper: float) -> _Program:
    z, rates = network.weight @ x + network.bias, upper * network.weight @ basis
    # Hölder's bound on |rates·c| over ‖basis·c‖ ≤ 1: tight where the basis is of coordinates, and for l2.
    reach = np.linalg.norm(rates @ basis.T, DUAL_ORDER[norm], axis=1)
    varies = reach > 0
    constant = network.head @ np.where(varies, 0, np.maximum(z, 0)) + network.head_bias
    z, rates, reach, head = z[varies], rates[varies], reach[varies], network.head[varies]
    head = sign * head * reach
    scale = np.max(np.abs(head), initial=0) or 1.0
    z = z / reach
    widest = 1 + _SLACK + _ROUNDING
    return _Program(
        norm, basis, z, rates / reach[:, None], head / scale, float(sign * constant / scale), z - widest, z + widest
    )


def _within_cap(program: _Program) -> _Program:
    """Bounds on the neurons' inputs over the part of the unit ball where a linear lower bound on the output is ≤ 0.

    A convex neuron is above any line through 0 of slope in [0, 1], one that lowers the output below its chord. Tighter
    bounds make a tighter line, so this is repeated.
    """
    radius = 1 + _SLACK
    for _ in range(_CAP_ROUNDS):
        low, high = program.low, program.high
        chord = high / np.where(program.lowering, high - low, 1)
        slope = np.where(program.lowering, chord, np.where(program.raising, high > -low, program.always_on))
        toward = (slope * program.head) @ program.rates
        steepness = np.linalg.norm(toward)
        lifted = -(program.head * chord * low)[program.lowering].sum()
        level = (slope * program.head) @ program.z + program.offset + lifted
        height = level / steepness - _ROUNDING if steepness else 0.0  # c is at least so far along −toward
        if not 0 < height < radius:
            break
        along = program.rates @ (-toward / steepness)
        across = np.sqrt(np.maximum((program.rates**2).sum(axis=1) - along**2, 0))
        # Farthest point of the cap along a direction: on the sphere if the cap holds it, else on its rim.
        rim = height * np.stack([along, -along]) + np.sqrt(max(radius**2 - height**2, 0)) * across
        length = np.hypot(along, across)
        inside = radius * np.stack([along, -along]) >= height * length
        up, down = np.where(inside, radius * length, rim)
        low, high = np.maximum(low, program.z - down - _ROUNDING), np.minimum(high, program.z + up + _ROUNDING)
        if (low > high).any():  # nothing flips: the solver will say so
            break
        program = program._replace(low=low, high=high)
    return program


def _solve_linear(program: _Program, time_limit: float) -> _Solution:
    """The least l1 or linf norm, by HiGHS.

    Its variables are the coefficients, the norm, the coordinates' sizes (l1), the neurons' outputs (first those that
    raise the network's output) and the binaries.
    """
    d, r = program.basis.shape
    up, down = np.flatnonzero(program.raising), np.flatnonzero(program.lowering)
    sizes = d if program.norm == "l1" else 0
    blocks = np.cumsum([0, r, 1, sizes, len(up), len(down), len(down)])
    c, tau, size, y_up, y_down, binary = (slice(*pair) for pair in itertools.pairwise(blocks))
    total = blocks[-1]
    rows, limits = [], []  # rows @ variables ≤ limits

    def constrain(limit: np.ndarray, *terms: tuple[slice, np.ndarray]) -> None:
        row = np.zeros((len(limit), total))
        for where, block in terms:
            row[:, where] = block
        rows.append(row)
        limits.append(limit)

    bound = (size, -np.eye(d)) if program.norm == "l1" else (tau, -np.ones((d, 1)))
    constrain(np.zeros(d), (c, program.basis), bound)
    constrain(np.zeros(d), (c, -program.basis), bound)
    if program.norm == "l1":
        constrain(np.zeros(1), (size, np.ones((1, d))), (tau, -np.ones((1, 1))))
    constrain(-program.z[up], (c, program.rates[up]), (y_up, -np.eye(len(up))))
    low, high = program.low[down], program.high[down]
    constrain(program.z[down] - low, (c, -program.rates[down]), (y_down, np.eye(len(down))), (binary, -np.diag(low)))
    constrain(np.zeros(len(down)), (y_down, np.eye(len(down))), (binary, -np.diag(high)))
    needed = program.needed[down]
    if needed.any():
        constrain(-np.ones(1), (binary, -needed[None].astype(float)))
    slope, rest = _settled(program)
    constrain(np.array([-rest]), (c, slope[None]), (y_up, program.head[up][None]), (y_down, program.head[down][None]))
    least, most = np.full(total, -np.inf), np.full(total, np.inf)
    least[tau], most[tau] = 0, 1 + _SLACK
    least[y_up], most[y_up] = 0, program.high[up]
    least[y_down], most[y_down] = 0, high
    least[binary], most[binary] = 0, 1
    objective, integrality = np.zeros(total), np.zeros(total)
    objective[tau], integrality[binary] = 1, 1
    result = milp(
        objective,
        integrality=integrality,
        bounds=Bounds(least, most),
        constraints=LinearConstraint(np.concatenate(rows), -np.inf, np.concatenate(limits)),
        options={"time_limit": time_limit, "mip_rel_gap": _GAP},
    )
    if result.status == 2:
        return _Solution(np.inf, None, True)
    least_norm = result.mip_dual_bound if len(down) else result.fun  # one linear program if nothing is binary
    return _Solution(least_norm or 0.0, None if result.x is None else result.x[c], result.status == 0)


def _solve_quadratic(program: _Program, time_limit: float) -> _Solution:
    """The least squared l2 norm, by SCIP."""
    from pyscipopt import SCIP_PARAMSETTING, Model, quicksum

    program = _within_cap(program)
    model = Model()
    model.hideOutput()
    model.setParams({"limits/time": time_limit, "limits/gap": _GAP, "numerics/feastol": 1e-9})
    model.setSeparating(SCIP_PARAMSETTING.OFF)  # neither is of use here, and they take most of the time
    model.setHeuristics(SCIP_PARAMSETTING.OFF)
    r = program.basis.shape[1]
    c = [model.addVar(lb=-1 - _SLACK, ub=1 + _SLACK) for _ in range(r)]
    squares = [model.addVar(lb=0, ub=(1 + _SLACK) ** 2) for _ in range(r)]
    for coefficient, square in zip(c, squares, strict=True):
        model.addCons(coefficient * coefficient <= square)
        for touching in np.linspace(-1, 1, _TANGENTS):  # implied, but SCIP proves faster from them
            model.addCons(square >= 2 * touching * coefficient - touching**2)
    model.addCons(quicksum(squares) <= (1 + _SLACK) ** 2)
    model.setObjective(quicksum(squares))
    slope, rest = _settled(program)
    signed_output, binaries = [slope[j] * c[j] for j in range(r)], {}
    unsettled = program.raising | program.lowering
    for i, (low, high, head) in enumerate(zip(program.low, program.high, program.head, strict=True)):
        moved = quicksum(program.rates[i, j] * c[j] for j in range(r)) + program.z[i]
        model.addCons(moved >= low)
        model.addCons(moved <= high)
        if not unsettled[i]:
            continue
        y = model.addVar(lb=0, ub=high)
        model.addCons(y >= moved)
        if head < 0:
            binary = model.addVar(vtype="B")
            model.addCons(y <= moved - low * (1 - binary))
            model.addCons(y <= high * binary)
            binaries[i] = binary
        signed_output.append(head * y)
    model.addCons(quicksum(signed_output) + rest <= 0)
    if program.needed.any():
        model.addCons(quicksum(binaries[i] for i in np.flatnonzero(program.needed)) >= 1)
    model.optimize()
    status = model.getStatus()
    if status == "infeasible":
        return _Solution(np.inf, None, True)
    found = np.array([model.getVal(variable) for variable in c]) if model.getNSols() else None
    return _Solution(np.sqrt(max(model.getDualbound(), 0)), found, status in ("optimal", "gaplimit"))


def _settled(program: _Program) -> tuple[np.ndarray, float]:
    """Slope and constant of the output's part that is linear in the coefficients."""
    head = np.where(program.always_on, program.head, 0)
    return head @ program.rates, float(head @ program.z + program.offset)


def _patterns(program: _Program, coefficients: np.ndarray) -> Iterator[np.ndarray]:
    """Which neurons are on at a solver's solution, (m,) each: those at their kinks, up to its tolerances, on or off."""
    inputs = program.z + program.rates @ coefficients
    at_kinks = np.argsort(np.abs(inputs))[:_MOST_KINKS]
    at_kinks = at_kinks[np.abs(inputs[at_kinks]) < _AT_KINK]
    for states in itertools.product([True, False], repeat=len(at_kinks)):
        on = inputs > 0
        on[at_kinks] = states
        yield on


def _polish(program: _Program, on: np.ndarray, margin: float) -> np.ndarray | None:
    """The least flip among those whose neurons are on and off as they are told, to machine precision.

    There the output is linear, so no tolerance on binaries is left. Neurons that lower the output need not keep their
    state, as the linear output is above the true one where they do not.
    """
    head = np.where(on, program.head, 0)
    kept = program.head > 0
    outward = np.where(on, -1, 1)[kept]
    rows = np.concatenate([(head @ program.rates)[None], outward[:, None] * program.rates[kept]])
    limits = np.concatenate([[-margin - head @ program.z - program.offset], -outward * program.z[kept]])
    if program.norm == "l2":
        return _least_distance(rows, limits)
    return _least_linear(program.basis, program.norm, rows, limits)


def _least_distance(rows: np.ndarray, limits: np.ndarray) -> np.ndarray | None:
    """The least ‖c‖₂ with rows @ c ≤ limits, as Lawson and Hanson reduce it to non-negative least squares."""
    stacked = np.concatenate([-rows.T, -limits[None]])
    target = np.zeros(len(stacked))
    target[-1] = 1
    residual = stacked @ nnls(stacked, target)[0] - target
    return -residual[:-1] / residual[-1] if residual[-1] else None


def _least_linear(basis: np.ndarray, norm: Norm, rows: np.ndarray, limits: np.ndarray) -> np.ndarray | None:
    """The least ‖basis·c‖ with rows @ c ≤ limits, in the l1 or the linf norm."""
    d, r = basis.shape
    sizes = d if norm == "l1" else 1
    of_size = -np.eye(d) if norm == "l1" else -np.ones((d, 1))
    solved = linprog(
        np.concatenate([np.zeros(r), np.ones(sizes)]),
        A_ub=np.block([[basis, of_size], [-basis, of_size], [rows, np.zeros((len(rows), sizes))]]),
        b_ub=np.concatenate([np.zeros(2 * d), limits]),
        bounds=(None, None),
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return solved.x[:r] if solved.status == 0 else None
