"""How a sweep will be carried out: which cells share a compiled program, and which run and are saved together."""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv import costs, devices
from subspace_adv.classes import import_class, own_classes
from subspace_adv.contracts import Design, Kernel, Model, affine, named
from subspace_adv.costs import Seconds
from subspace_adv.data import HELDOUT, DataSettings
from subspace_adv.datasets import input_span
from subspace_adv.devices import Device
from subspace_adv.dimensions import place
from subspace_adv.errors import UserError, brief
from subspace_adv.initialization import Law
from subspace_adv.measures import TRAINED, Recording
from subspace_adv.models import ASKED, architecture_of, unread
from subspace_adv.network import padded_size
from subspace_adv.optimizers import OPTIMIZERS
from subspace_adv.pitfalls import warn_of_pitfalls
from subspace_adv.program import LARGE_PRODUCT, Program, parameter_shapes
from subspace_adv.reduction import reduction
from subspace_adv.rows import nearest
from subspace_adv.settings import NetworkSettings, resolved_trainable, role
from subspace_adv.snapshots import Snapshots, during, snapshots_of
from subspace_adv.sweep import Sweep, Values
from subspace_adv.training import SETTLING_STEPS, Recipe, Trainer

_FEW_FUSED_LANES, _FUSED_LANES = 64, 512  # the kernel keeps 16 in cache at a time, and looks for the next one by itself
_MEASURED_NETWORKS = 32  # a call and device, of groups that have as many
_CALL_SECONDS = 0.25  # between two looks at what the kernel has done
_CHUNK_SECONDS = 40  # of one core, if all its networks run to max_steps: what is lost when the machine dies
_MAX_CHUNK_NETWORKS = 4096  # held until a chunk is saved: of each cell one, and those before its stop
_MIN_CHUNK_CELLS = {"fused": 256, "xla": 64}  # the kernel's lanes are many, and all cores share them
_MIN_CHUNKS = 16  # of a large enough group, so that cores share it evenly


class Chunk(NamedTuple):
    """Cells of one group that run, are saved and are resumed together."""

    number: int
    group: "Group"
    cells: np.ndarray  # flat indices into the grid


class Group(NamedTuple):
    """Cells that share compiled programs."""

    program: Program
    why: tuple[str, str]  # it is reduced or not, and has this trainer
    cells: np.ndarray  # flat indices into the grid, ascending
    max_steps: int
    lanes: int  # networks that train side by side
    tail_lanes: int  # the same at the end of a chunk, when few are left
    measured: int  # networks that one call measures
    least_chunk: int  # cells below which the device has too little to do
    snapshots: Snapshots = Snapshots()  # of every network
    measured_during: int = 0  # networks before their stop that one call measures, if any are

    @property
    def step_flops(self) -> int:
        """Floating-point operations of one gradient step of one network."""
        p = self.program
        return p.recipe.model.step_flops(p.parameters, p.shape.samples, p.recipe.trained)

    @property
    def fused(self) -> bool:
        """Whether the kernel trains it, which uses all cores by itself."""
        return self.program.recipe.trainer == "fused"

    @property
    def alone(self) -> bool:
        """Whether one thread trains it: the kernel, and XLA for large products, use all cores by themselves.

        Where two threads run large products at once on CPU, both may wait for ever.
        """
        return self.fused or self.program.largest_product > LARGE_PRODUCT

    @property
    def measurer(self) -> costs.Measurer:
        """What measures distances here: the model's kernel wherever it can."""
        kernel = self.program.recipe.model.kernel
        return "xla" if kernel is None or kernel.unavailable(None) else "kernel"

    @property
    def step_seconds(self) -> float:
        """Rough time of one gradient step of one network on one core."""
        return self.step_flops / costs.FLOPS_PER_SECOND[self.program.recipe.trainer]

    @property
    def steps_per_call(self) -> int:
        """Gradient steps of each network between two looks at which ones have stopped."""
        if self.program.recipe.trainer == "xla":
            return SETTLING_STEPS  # a network that has stopped costs as much as any other
        return max(int(_CALL_SECONDS / (self.lanes * self.step_seconds)), 1)

    @property
    def chunk_cells(self) -> int:
        """Cells in each chunk of the group but the last."""
        affordable = int(_CHUNK_SECONDS / (self.step_seconds * max(self.max_steps, 1)))
        share = max(-(-len(self.cells) // _MIN_CHUNKS), _MIN_CHUNK_CELLS[self.program.recipe.trainer])
        held = 1 + self.snapshots.number
        return max(min(affordable, share, _MAX_CHUNK_NETWORKS // held), self.least_chunk // held, 1)

    @property
    def programs(self) -> int:
        """Compiled programs: fill, advance, advance few, measure, measure before the stop."""
        return 3 + (self.lanes != self.tail_lanes) + (self.program_during not in (None, self.program))

    @property
    def program_during(self) -> Program | None:
        """What measures networks before their stop, if any are."""
        recording = self.program.recording.during(brackets=self.snapshots.brackets)
        return self.program._replace(recording=recording) if self.snapshots.number else None

    @property
    def cell_bytes(self) -> int:
        """Bytes a cell takes in the results folder, uncompressed."""

        def of_one(program: Program) -> int:
            return sum(4 * v.values(program.shape.samples) for v in program.recording.variables.values())

        size, then = 4 * self.program.size, self.program_during
        during = self.snapshots.number * (of_one(then) + 4 + self.snapshots.networks * size) if then else 0
        return size + 5 + of_one(self.program) + during


class Plan(NamedTuple):
    """A sweep cut into groups and chunks."""

    sweep: Sweep
    groups: tuple[Group, ...]
    chunks: tuple[Chunk, ...]

    @property
    def cells(self) -> int:
        """Number of networks."""
        return self.sweep.cells

    @property
    def programs(self) -> int:
        """Number of compiled programs, each traced once."""
        return sum(group.programs for group in self.groups)

    @property
    def bytes(self) -> int:
        """Size of the results folder, uncompressed."""
        return sum(group.cell_bytes * len(group.cells) for group in self.groups)

    @property
    def max_net_steps(self) -> int:
        """Gradient steps of all networks if none stops early."""
        return int(self.sweep.column("max_steps", np.arange(self.cells)).sum(dtype=np.int64))

    def seconds(self, cores: int) -> Seconds:
        """Rough time of a whole run on some cores of a CPU."""
        return costs.whole([self._seconds(group, cores) for group in self.groups])

    def _seconds(self, group: Group, cores: int) -> Seconds:
        p, searches, planes, by = group.program, group.program.searches, group.program.planes, group.measurer
        sizes = p.shape.samples, HELDOUT, p.law.padded_width
        measuring = costs.measuring_seconds(*sizes, searches, sum(planes), by)
        then = measuring if group.snapshots.brackets else costs.measuring_seconds(*sizes, [], 0, by)
        compiling = costs.compiling_seconds(len(searches) + len(planes), p.recipe.trainer, by)
        return costs.seconds(
            net_steps=int(self.sweep.column("max_steps", group.cells).sum(dtype=np.int64)),
            step=group.step_seconds,
            networks=len(group.cells),
            measuring=measuring + group.snapshots.number * then,
            compiling=compiling + costs.MEASURE_SECONDS * (group.program_during not in (None, p)),
            cores=cores,
        )


def choose_trainer(
    model: Model, design: Design, optimizer: str, requested: Trainer | None, device: Device
) -> tuple[Trainer, str]:
    """What advances networks, and why: the model's kernel wherever it can, unless another trainer is requested.

    Args:
        model: of the networks.
        design: that it has.
        optimizer: by name.
        requested: by the user, if any.
        device: what to plan for.

    Raises:
        UserError: if the kernel is requested and cannot serve.
    """
    known = get_args(Trainer)
    if requested not in (None, *known):
        raise UserError(f"trainer {requested!r}: there is none of this name{nearest(str(requested), known)}")
    if requested == "xla":
        return "xla", "as requested"
    serving = _kernel(model, design, optimizer, device)
    if isinstance(serving, Kernel):
        return "fused", f"the kernel serves ({serving.instruction_set()})"
    if requested:
        raise UserError(f"trainer {requested!r} cannot serve: {serving}; leave the trainer out, or request 'xla'")
    return "xla", serving


def _kernel(model: Model, design: Design, optimizer: str, device: Device) -> Kernel | str:
    """The kernel that can serve, or why none can."""
    kernel = model.kernel
    if kernel is None:
        deep = design._replace(depth=1)
        has_one = architecture_of(design.architecture).model(deep).kernel is not None
        told = f" of depth {design.depth}; there is one of depth 1" if has_one else ""
        return f"there is no kernel of architecture {design.architecture}{told}"
    if model.rates is not None:
        return f"the kernel has one learning rate for all layers, and parametrization {design.parametrization} more"
    unknown = None if OPTIMIZERS[optimizer].in_kernel else f"the kernel does not know {optimizer}"
    return kernel.unavailable(device.platform) or unknown or kernel


def plan(sweep: Sweep, trainer: Trainer | None = None, device: Device | None = None) -> Plan:
    """Cut a sweep into groups that share compiled programs and chunks that are saved together.

    Args:
        sweep: the sweep.
        trainer: what is to advance the networks; where none is given, what is fastest on the device.
        device: what to plan for; what is here, where none is given.

    Warns:
        Of data on which training cannot do what it is meant to.

    Raises:
        UserError: if that trainer cannot serve, there is no device, or what is given is no sweep.
    """
    if not isinstance(sweep, Sweep):
        raise UserError(f"{sweep!r} is no Sweep; Sweep.from_toml reads one from a file")
    _import_classes(sweep)
    warn_of_pitfalls(sweep)
    return cut(sweep, trainer, device)


def _import_classes(sweep: Sweep) -> None:
    """Import the user's own classes, and refuse settings that none of them is told."""
    names = own_classes(sweep)
    for name in names:
        import_class(name)
    if len(names) < len(set(sweep.values("architecture"))):
        return  # others read them
    for leaf in ASKED:
        default = NetworkSettings.model_fields[leaf].default
        if set(sweep.values(leaf)) != {default} and all(leaf in unread(name) for name in names):
            told = f"changes nothing, as {' and '.join(names)} has no field of this name; leave it out"
            written = list(sweep.axes[leaf]) if leaf in sweep.axes else sweep.values(leaf)[0]
            raise UserError(f"{place(sweep.dimensions, leaf)}.{leaf} = {brief(written)}: {told}")


def cut(sweep: Sweep, trainer: Trainer | None = None, device: Device | None = None) -> Plan:
    """As `plan`, without its warnings."""
    device = device or devices.local()
    datasets: dict[Program, set[DataSettings]] = {}
    reasons: dict[Program, tuple[str, str]] = {}
    parts = list(sweep.distinct([leaf for leaf in sweep.axes if role(leaf).shapes], _decisive))
    programs = []  # of all combinations of the parts of each dimension
    for chosen in itertools.product(*(values for values, _ in parts)):
        values = {leaf: value for part in chosen for leaf, value in part.items()}
        program, settings, why = _program(sweep, values, trainer, device)
        datasets.setdefault(program, set()).add(settings)
        reasons.setdefault(program, why)
        programs.append(program)
    groups = []
    for program, cells in zip(datasets, _members(parts, programs), strict=True):
        lanes, tail_lanes = _lanes(program, len(cells), device)
        max_steps = int(sweep.column("max_steps", cells).max())
        why = reasons[program]
        program = program._replace(shared_data=len(datasets[program]) == 1)
        measured, least_chunk = _measured(program, len(cells), device), 1 if device.is_cpu else lanes
        snapshots = snapshots_of(sweep.measure)
        group = Group(program, why, cells, max_steps, lanes, tail_lanes, measured, least_chunk, snapshots)
        if then := group.program_during:
            group = group._replace(measured_during=_measured(then, len(cells) * snapshots.number, device))
        groups.append(group)
    chunks = []
    for group in groups:
        for start in range(0, len(group.cells), group.chunk_cells):
            chunks.append(Chunk(len(chunks), group, group.cells[start : start + group.chunk_cells]))
    return Plan(sweep, tuple(groups), tuple(chunks))


def chunks_of(todo: Plan, cuts: Iterable[tuple[int, np.ndarray]]) -> tuple[Chunk, ...]:
    """The chunks of a plan as a results folder has them: of each its number and its cells, all of one group."""
    which = np.empty(todo.cells, np.int32)
    for i, group in enumerate(todo.groups):
        which[group.cells] = i
    return tuple(Chunk(number, todo.groups[which[cells[0]]], cells) for number, cells in cuts)


def _decisive(leaf: str, value: Any) -> Any:
    """What of a field's value decides on the program."""
    return bool(value) if role(leaf).is_switch else value


def _members(parts: Sequence[tuple[list[Values], np.ndarray]], programs: Sequence[Program]) -> list[np.ndarray]:
    """The cells of each program, ascending, of programs in the order in which they first come.

    Args:
        parts: of each dimension, as from `Sweep.distinct`.
        programs: of all combinations of these.
    """
    number = {program: i for i, program in enumerate(dict.fromkeys(programs))}
    kind = np.min_scalar_type(len(number))  # small numbers are sorted in linear time
    of_parts = np.array([number[program] for program in programs], kind).reshape([len(values) for values, _ in parts])
    of_cells = of_parts[np.ix_(*(of for _, of in parts))].ravel()
    counts = np.bincount(of_cells, minlength=len(number))
    return np.split(np.argsort(of_cells, kind="stable"), np.cumsum(counts)[:-1])


def in_ambient_coordinates(todo: Plan) -> Plan:
    """The same plan without the reduction to the span of the data: what it saves, and whether it is right."""
    groups = {
        group.cells[0]: group._replace(
            program=group.program._replace(reduced=False), why=("as requested", group.why[1])
        )
        for group in todo.groups
    }
    chunks = (chunk._replace(group=groups[chunk.group.cells[0]]) for chunk in todo.chunks)
    return Plan(todo.sweep, tuple(groups.values()), tuple(chunks))


def _program(
    sweep: Sweep, values: dict, requested: Trainer | None, device: Device
) -> tuple[Program, DataSettings, tuple[str, str]]:
    """Program and data of cells, given their values of the varying fields that shape it, and why it is what it is."""

    def value(leaf: str) -> Any:
        return values[leaf] if leaf in values else sweep.values(leaf)[0]

    settings = sweep.dataset(values)
    shape = settings.shape
    init = value("init")
    trainable = resolved_trainable(init, value("trainable"))
    design = sweep.design(values, shape)
    model = architecture_of(design.architecture).model(design)
    trainer, why_trainer = choose_trainer(model, design, value("optimizer"), requested, device)
    recipe = Recipe(model, value("loss"), value("optimizer"), tuple(model.trained(init, trainable)), trainer)
    recording = Recording(
        sweep.measure.regions,
        sweep.measure.norms,
        value("attack_steps"),
        value("restarts"),
        value("gap"),
        recipe.loss,
        value("redraws"),
    )
    span = input_span(settings, model.fields)
    law = Law(init, design.width, span.fan_in, span.dimension, design.parametrization)
    reduced, why_reduced = False, f"nothing is known to be frozen in networks of {design.architecture}"
    if model.has_frozen_part:
        reduced, why_reduced = reduction(span, recipe.optimizer, value("weight_decay"))
    if settings.pads and OPTIMIZERS[recipe.optimizer].full_batch:  # minibatches are drawn of all points
        shape = shape._replace(samples=padded_size(shape.samples))
    program = Program(law, recipe, recording, shape, reduced, shared_data=True)
    _check_model(design.architecture, program)
    return program, settings, (why_reduced, why_trainer)


@functools.lru_cache(maxsize=256)
def _check_model(architecture: str, program: Program) -> None:
    """Refuse a model that does not keep its contract, as far as shapes and names tell.

    Raises:
        ValueError: naming the architecture.
    """
    model, parameters = program.recipe.model, named(program.parameters)
    told = f"architecture {architecture!r}: "
    recorded = {*TRAINED, *program.recording.variables}
    taken = (recorded | {during(name) for name in (*recorded, *parameters)}) & parameters.keys()
    if taken:
        raise UserError(f"{told}calls a parameter {min(taken)!r}, as what is recorded is; give it another name")
    if not model.has_frozen_part:
        return
    wrong = _wrong_shapes(model, program.law._replace(span_dim=program.inputs), (3, *program.input_shape[1:]))
    if wrong:
        raise ValueError(told + wrong)
    for name in program.recipe.trained:
        if name not in parameters:
            raise ValueError(f"{told}trains {name!r}{nearest(name, parameters)}")
    marker: Any = jax.ShapeDtypeStruct((), jnp.float32)  # stands for the weight, to be found again
    first = [
        name for name, leaf in named(model.with_first_weight(program.parameters, marker)).items() if leaf is marker
    ]
    if not set(first) & set(program.recipe.trained):
        raise ValueError(f"{told}does not train its first weight, whose part off the span would yet decay")


@functools.lru_cache(maxsize=256)
def _wrong_shapes(model: Model, law: Law, points: Any) -> str | None:
    """What of a model's parameters and outputs is not as its contract says, at points of a shape."""
    m, r, parameters = law.padded_width, law.span_dim, parameter_shapes(model, law)
    if len(named(parameters)) < len(jax.tree.leaves(parameters)):
        return "two of its parameters have one name"
    weight, bias = jax.eval_shape(model.first, parameters)
    for what, found, expected in (("weight", weight.shape, (m, r)), ("bias", bias.shape, (m,))):
        if found != expected:
            return f"its first {what} is of shape {found}; must be {expected}, of {m} neurons on {r} inputs"
    seen: Any = jax.ShapeDtypeStruct(points, weight.dtype)
    many = jax.eval_shape(lambda *of: model.fields.flat(affine(*of)), weight, bias, seen)
    for z in (jax.ShapeDtypeStruct(many.shape[1:], many.dtype), many):
        found = jax.eval_shape(model.rest, parameters, z).shape
        if found != z.shape[:-1]:
            return f"its rest makes {found} of preactivations {z.shape}; must make {z.shape[:-1]}"
    return None


def _lanes(program: Program, cells: int, device: Device) -> tuple[int, int]:
    """Networks that train side by side on all devices, at first and when few are left."""
    count, n, m = device.number, program.shape.samples, program.law.padded_width
    if program.recipe.trainer == "fused":
        lanes = min(max(cells // 4, _FEW_FUSED_LANES), _FUSED_LANES, cells)  # some are left for other threads
        lanes = -(-lanes // count) * count
        return lanes, lanes
    if device.is_cpu:
        parameters = 0 if program.recipe.model.form.compensated else 4 * program.size
        lanes = devices.lanes_in_cache(4 * math.prod(program.input_shape[:-1]) * m, parameters)
        tail = max(lanes // 4, 2)
    else:
        size = costs.training_bytes(n, m, program.inputs, program.size, OPTIMIZERS[program.recipe.optimizer].moments)
        if not program.reduced:  # drawn in float64, with a basis of all dimensions
            size += costs.drawing_bytes(m, program.law.ambient_dim, program.law.off_dim)
        lanes = min(devices.filling(device, n * m, size), -(-cells // count))
        tail = max(lanes // 8, 1)
    return (tail * count, tail * count) if cells <= tail * count else (lanes * count, tail * count)


def _measured(program: Program, cells: int, device: Device) -> int:
    """Of so many networks those that one call measures, on all devices."""
    if device.is_cpu:
        block = program.measured_at_once  # whole blocks, or XLA would compile the last one apart
        blocks = (
            2 if cells < _MEASURED_NETWORKS and program.recording.has_brackets else max(_MEASURED_NETWORKS // block, 1)
        )
        return device.number * blocks * block
    n, m, restarts = program.shape.samples, program.law.padded_width, program.recording.restarts
    rays = restarts if program.searches else 1
    searched = restarts if program.searches else 0
    size = costs.measuring_bytes(n, HELDOUT, m, program.measured_coordinates, searched, bool(program.planes))
    return device.number * min(devices.filling(device, (n + HELDOUT) * m * rays, size), -(-cells // device.number))
