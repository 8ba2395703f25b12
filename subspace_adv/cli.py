"""The command line `subspace-adv`: arguments to calls, and results to people."""

import gc
import itertools
import math
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table
from xarray import Dataset

from subspace_adv import checks, planning, results, runner, tables, training
from subspace_adv.progress import Display, count
from subspace_adv.sweep import Sweep, UserError, brief, nearest

app = App(
    name="subspace-adv",
    help="Train and attack thousands of two-layer ReLU networks on low-dimensional data.",
    help_epilogue="Example: subspace-adv run sweeps/quickstart.toml",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # it would say nothing
)

SweepFile = Annotated[Path, Parameter(help="Sweep file (TOML).")]
Overrides = Annotated[
    str, Parameter(help="name=value sets a field; name=a,b or name=start:stop makes it an axis.", negative=())
]
TrainerName = Annotated[
    training.Trainer | None,
    Parameter(name="--trainer", help="What trains: fused or xla. By default fused, a kernel for CPUs, where it can."),
]
Folder = Annotated[Path, Parameter(help="Results folder.")]


@app.command
def run(
    sweep: SweepFile,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, Parameter(name="--out")] = None,
    trainer: TrainerName = None,
) -> None:
    """Train and measure a sweep, or what is left of it; then print its table and draw its figures.

    Example: subspace-adv run sweeps/line.toml seed=0:100 init_scale=1,0.5 --out results/mine

    Parameters
    ----------
    out
        Results folder; results/NAME by default. If it holds the same sweep, the run is resumed.
    """
    specified = Sweep.from_toml(sweep, overrides)
    folder = out or runner.default_out(specified)
    with Display() as display:
        try:
            dataset = runner.run(specified, folder, display, trainer)
        except KeyboardInterrupt:
            again = shlex.join(["subspace-adv", "run", str(sweep), *overrides, "--out", str(folder)])
            again += f" --trainer {trainer}" if trainer else ""
            raise _Interrupted(f"interrupted; what is done is kept. Resume with: {again}") from None
    _print_table(dataset)
    _draw(folder)


@app.command
def plan(sweep: SweepFile, /, *overrides: Overrides, trainer: TrainerName = None) -> None:
    """Tell what a sweep would take: cells, groups, compiled programs, chunks, bytes and time. Runs nothing.

    Example: subspace-adv plan sweeps/line.toml seed=0:100000
    """
    todo = planning.plan(Sweep.from_toml(sweep, overrides), trainer)
    print(f"cells      {todo.cells:,}")
    print(f"groups     {len(todo.groups):,}")
    print(f"programs   {todo.programs:,} to compile, each once")
    print(f"chunks     {len(todo.chunks):,}")
    print(f"bytes      {count(todo.bytes, 'B')} on disk, before compression")
    print(f"net-steps  at most {todo.max_net_steps:.3g}")
    seconds = todo.max_seconds(runner.workers())
    print(f"time       roughly {_duration(seconds)} of training here, if no network stops before max_steps")
    table = _table(
        "group", "cells", "chunks", "width (padded)", "points", "ambient dim", "trained in", "optimizer", "loss"
    )
    for i, group in enumerate(todo.groups):
        p = group.program
        chunks = sum(chunk.group is group for chunk in todo.chunks)
        row = (i, len(group.cells), chunks, p.law.padded_width, p.shape.samples, p.shape.ambient_dim, p.inputs)
        table.add_row(*map(str, row), p.recipe.optimizer, p.recipe.loss)
    _stdout().print(table)
    paths: dict[str, list[str]] = {}
    for i, group in enumerate(todo.groups):
        where = "the span of the data, exactly" if group.program.reduced else "all ambient coordinates"
        told = f"trained in {where}: {group.why[0]}; by {group.program.recipe.trainer}: {group.why[1]}"
        paths.setdefault(told, []).append(str(i))
    for told, places in paths.items():
        print(f"group {', '.join(places)}: {told}")


@app.command
def status(folder: Folder, /) -> None:
    """Tell how far a results folder is.

    Example: subspace-adv status results/line
    """
    dataset = results.open_results(folder)
    codes = dataset["status"].values.ravel()
    print(f"{dataset.attrs['name']}: {(codes != training.PENDING).sum():,} of {codes.size:,} networks done")
    for code, meaning in enumerate(training.STATUS_MEANINGS):
        print(f"  {meaning:<11}{(codes == code).sum():,}")
    if (codes == training.PENDING).any():
        again = shlex.join(["subspace-adv", "run", str(folder / "sweep.toml"), "--out", str(folder)])
        print(f"resume with: {again}")


@app.command
def table(folder: Folder, /, *, epsilon: Annotated[str | None, Parameter(name="--epsilon")] = None) -> None:
    """Print medians over seeds with 95 % bootstrap intervals, paired gains of the remedies, and robust accuracy.

    Example: subspace-adv table results/line --epsilon 0.1,0.3

    Parameters
    ----------
    epsilon
        Perturbation sizes at which robust accuracy is told, such as 0.1,0.3; some that suit the results by default.
    """
    epsilons = None if epsilon is None else [_size(text) for text in epsilon.split(",")]
    _print_table(results.open_results(folder), epsilons)


@app.command
def check(folder: Folder, /) -> None:
    """Compare the predicted law of the gradient off the subspace with what was measured.

    Example: subspace-adv check results/dimension
    """
    _print_check(checks.check(results.open_results(folder)))


@app.command
def plot(folder: Folder, /) -> None:
    """Draw the figures of a results folder, as PNG and SVG.

    Example: subspace-adv plot results/line
    """
    _draw(folder)


class _Interrupted(Exception):
    """An interrupt, with the words for the user."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit status 0 done, 2 bad input, 130 interrupted and resumable."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _tell(str(message))
        try:
            _call(arguments)
        except CycloptsError as error:
            _fail(_explain(error), 2)
        except UserError as error:
            _fail(str(error), 2)
        except _Interrupted as interrupt:
            _fail(str(interrupt), 130)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; a moment later if Python is in a garbage-collection callback, and would swallow it."""
    if frame and any(frame.f_code is getattr(callback, "__code__", None) for callback in gc.callbacks):
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # SIGALRM
    else:
        raise KeyboardInterrupt


def _call(arguments: Sequence[str] | None) -> None:
    try:
        app(arguments, exit_on_error=False, print_error=False)
    finally:
        sys.stdout.flush()  # where nobody reads on, it should show here


def _tell(message: str) -> None:
    print(f"subspace-adv: {' '.join(message.splitlines())}", file=sys.stderr)


def _fail(message: str, code: int) -> None:
    _tell(message)
    sys.exit(code)


def _explain(error: CycloptsError) -> str:
    message = str(error).strip().rstrip(".") or type(error).__name__
    unused = getattr(error, "unused_tokens", None)
    if unused and "Did you mean" not in message:
        message += nearest(unused[0], app, otherwise_all=False)
    return f"command line: {message}; see subspace-adv --help"


def _draw(folder: Path) -> None:
    from subspace_adv import plots  # matplotlib takes long to import

    for path in plots.plot(folder):
        print(f"figure: {path}")


def _stdout() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=250)


def _table(*columns: Hashable) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(str(column), justify="right")
    return made


def _size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise UserError(f"command line: --epsilon: {brief(text)} is no perturbation size; give numbers such as 0.1,0.3")
    return size


def _print_table(dataset: Dataset, epsilons: Sequence[float] | None = None) -> None:
    rows = tables.summarize(dataset)
    varying = [axis for axis in rows[0].arm if dataset.sizes[axis] > 1]
    first, *others = rows[0].distance
    gains = len(rows) > 1

    def heads(region: str) -> list[str]:
        return [f"distance {region}", f"gain {region}"][: 1 + gains]

    def cells(row: tables.Row, region: str) -> list[str]:
        return [_interval(row.distance[region]), _interval(row.gain.get(region), signed=True)][: 1 + gains]

    made = _table(*varying, "networks", "converged", "steps", "gradient off", *heads(first))
    other = _table(*varying, *itertools.chain.from_iterable(map(heads, others)))
    for row in rows:
        arm = _values(row.arm, varying)
        counts = [f"{row.networks:,}", f"{row.converged:.0%}", f"{row.steps:,.0f}"]
        made.add_row(*arm, *counts, _interval(row.gradient_off), *cells(row, first))
        other.add_row(*arm, *itertools.chain.from_iterable(cells(row, region) for region in others))
    _stdout().print(made)
    if others:
        _stdout().print(other)
    print(
        "Medians over seeds of each network's median over its points, with 95 % bootstrap intervals. Distances are\n"
        "the least L2 norm found that flips a point."
    )
    if gains:
        print("A gain is the paired difference, seed by seed, from the standard arm (marked –).")
    _print_robustness(dataset, varying, epsilons)


def _print_robustness(dataset: Dataset, varying: Sequence[Hashable], epsilons: Sequence[float] | None) -> None:
    """Robust accuracy and fooling rates, arm by arm at each size of perturbation."""
    pairs = tables.regions_and_norms(dataset)
    norms = list(dict.fromkeys([norm for _, norm in pairs] + ["l2"]))  # the one in which steps are measured
    regions = list(dict.fromkeys(region for region, _ in pairs))
    made = _table("norm", "epsilon", *varying, *(f"robust {r}" for r in regions), "fooled universal", "fooled random")
    for norm in norms:
        for e in tables.typical_epsilons(dataset, norm) if epsilons is None else epsilons:
            for arm in tables.arms(dataset):
                cells = ["–"] * len(regions) + ["–"] * len(tables.DIRECTIONS)
                for i, region in enumerate(regions):
                    if (region, norm) in pairs:
                        cells[i] = " – ".join(_ends(tables.robust_accuracy(dataset, arm, region, norm, [e])))
                for i, direction in enumerate(tables.DIRECTIONS, start=len(regions)):
                    if norm == "l2":
                        fooled = tables.fooling_rate(dataset, arm, direction, [e])
                        cells[i] = " / ".join(_percent(curve.mean[0]) for curve in fooled)
                made.add_row(norm, f"{e:g}", *_values(arm, varying), *cells)
    print()
    _stdout().print(made)
    print(
        "Robust: mean share of training points classified correctly whatever perturbation of norm epsilon is added,\n"
        "certified – attacked (the truth lies between). Fooled: mean share of the correctly classified training\n"
        "points / of held-out points whose prediction a step of at most epsilon changes, along the universal\n"
        "direction or along a random one off the subspace."
    )


def _ends(robust: tables.RobustAccuracy) -> list[str]:
    return list(dict.fromkeys(_percent(curve.mean[0]) for curve in robust))


def _percent(share: float) -> str:
    """Without decimals; 0 and 100 stand for none and all."""
    if math.isnan(share):
        return "–"
    return "<1%" if 0 < share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def _values(arm: tables.Arm, axes: Sequence[Hashable]) -> list[str]:
    return [f"{arm[axis]:g}" if isinstance(arm[axis], float) else str(arm[axis]) for axis in axes]


def _print_check(found: checks.Check) -> None:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
    print("law       gradient_norm_off g is |ρ|·β·√A·χ in law given the run, χ of l degrees of freedom (F3)")
    print(f"networks  {found.networks:,} checked; left out: {left_out}")
    print(f"points    {found.points:,}, of which {found.idle_points:,} left out as no neuron is active there")
    print(f"sample    {found.sample:,} independent points: one of each seed, from changing cells")
    print(f"fit       p = {found.p_value:.3g} (Kolmogorov–Smirnov, exact law)")
    print(f"scale     {_precise(found.scale)} measured over predicted, sample, 95 % interval")
    bounds = _table("bound", "held by", "of the sample", "promised")
    for bound in found.bounds:
        sample = " ".join((f"{bound.sample.estimate:.2%}", f"[{bound.sample.low:.2%}, {bound.sample.high:.2%}]"))
        bounds.add_row(bound.side, f"{bound.share:.2%}", sample, f"≥ {bound.promised:.2%}")
    _stdout().print(bounds)
    if found.exponents:
        powers = _table("exponent of", "in the root mean square of", "seeds", "fitted", "predicted")
        for power in found.exponents:
            powers.add_row(
                power.axis, power.quantity, f"{power.seeds:,}", _precise(power.fitted), f"{power.predicted:g}"
            )
        _stdout().print(powers)


def _precise(found: checks.Interval) -> str:
    return f"{found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _interval(estimate: tables.Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "–"
    sign = "+" if signed else ""
    return f"{estimate.median:{sign}.3g} [{estimate.low:{sign}.3g}, {estimate.high:{sign}.3g}]"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
