"""The command line `subspace-adv`: arguments to calls, and results to people."""

import gc
import io
import math
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Collection, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, CycloptsError, Parameter, Token, UnknownCommandError

from subspace_adv import devices, planning, process, progress, results, runner, tasks, training
from subspace_adv.cluster import connected
from subspace_adv.errors import UserError, brief
from subspace_adv.geometry import LINEAR_REGIONS
from subspace_adv.norms import NORMS
from subspace_adv.progress import Display, count
from subspace_adv.rows import nearest, one_of
from subspace_adv.shards import Shard
from subspace_adv.store import Store
from subspace_adv.sweep import Sweep

if TYPE_CHECKING:
    from xarray import Dataset

app = App(
    name="subspace-adv",
    help="Train and attack thousands of two-layer ReLU networks on low-dimensional data.",
    help_epilogue="Example: subspace-adv run sweeps/quickstart.toml",
    help_format="plaintext",
    console=progress.Terminal(),
    version=lambda: metadata.version("subspace-adv"),
    suppress_keyboard_interrupt=False,  # it would say nothing
)


def _path(_: type, tokens: Sequence[Token]) -> Path:
    """A path; none is empty, as a shell variable that is not set would make it."""
    if not tokens[0].value:
        raise ValueError("the path is empty")
    return Path(tokens[0].value)


def _whole(_: type, tokens: Sequence[Token]) -> int:
    """A whole number, which 2.5 is not."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


SweepFile = Annotated[Path, Parameter(help="Sweep file (TOML).", converter=_path)]
Overrides = Annotated[
    str,
    Parameter(help="name=value sets a field; name=a,b, start:stop or log:a:b:n makes it an axis.", negative=()),
]
TrainerName = Annotated[
    training.Trainer | None,
    Parameter(name="--trainer", help="What trains: fused or xla. By default fused, a kernel for CPUs, where it can."),
]
Folder = Annotated[Path, Parameter(help="Results folder.", converter=_path)]


@app.command(help_epilogue="Example: subspace-adv run sweeps/line.toml seed=0:100 init_scale=1,0.5 --out results/mine")
def run(
    sweep: SweepFile,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, Parameter(name="--out", converter=_path)] = None,
    trainer: TrainerName = None,
    shard: Annotated[str | None, Parameter(name="--shard")] = None,
    grow: Annotated[bool, Parameter(name="--grow", negative=())] = False,
    reuse: Annotated[tuple[Path, ...], Parameter(name="--reuse", consume_multiple=True, negative=())] = (),
    cluster: Annotated[str | None, Parameter(name="--cluster")] = None,
    commit: Annotated[tasks.Commit | None, Parameter(name="--commit")] = None,
) -> None:
    """Train and measure a sweep, or what is left of it; then print its table and draw its figures.

    Parameters
    ----------
    out
        Results folder; results/NAME by default. If it holds the same sweep, the run is resumed.
    shard
        Part i of n, such as 2/3, of a sweep that several machines run into one folder at a time. It draws nothing;
        a run without it finishes what is left, prints and draws.
    grow
        Add to a folder that holds a smaller grid: further values of an axis, another axis, other seeds. What is there
        is kept, and what would drop any of it is refused.
    reuse
        Results folders, whose networks are taken over where they are the same, instead of training them anew.
    cluster
        Workers of Ray that compute: ray starts some on this machine, ray://host:port are those of a cluster.
    commit
        Who saves what they compute: workers, in a folder that all machines see, as by default, or driver: this process.
    """
    part = None if shard is None else Shard.read(shard)
    if commit and not cluster:
        raise UserError(f"command line: --commit {commit}: tells who saves what a --cluster computes; leave it out")
    if cluster and shard:
        raise UserError(f"command line: --shard {shard}: --cluster hands out the whole sweep; leave one of them out")
    specified = Sweep.from_toml(sweep, overrides)
    folder = out or runner.default_out(specified)
    with Display() as display:
        try:
            # Ray prints what befalls its workers.
            with redirect_stdout(sys.stderr), nullcontext() if cluster is None else connected(cluster) as workers:
                common: dict[str, Any] = {"grow": grow, "reuse": reuse}
                if part is not None:
                    found = runner.run_shard(specified, part, folder, display, trainer, **common)
                else:
                    common |= {"executor": workers, "commit": commit or "workers"}
                    found = runner.run(specified, folder, display, trainer, **common)
        except KeyboardInterrupt:
            again = shlex.join(["subspace-adv", "run", str(sweep), *overrides, "--out", str(folder)])
            chosen = {"trainer": trainer, "shard": shard, "cluster": cluster, "commit": commit}
            again += "".join(f" --{option} {value}" for option, value in chosen.items() if value)
            again += " --grow" if grow else ""
            again += shlex.join(["", "--reuse", *map(str, reuse)]) if reuse else ""
            raise _Interrupted(f"interrupted; what is done is kept. Resume with: {again}") from None
    if isinstance(found, tuple):
        _print_progress(specified.name, *found)
        return
    from subspace_adv import reports  # takes long to import, as pandas does

    figures: list[Path] = []
    try:
        figures = _draw(found, folder)  # before anything is printed, as whoever reads it may stop
    finally:
        reports.print_results(found)
    _print_figures(figures)


@app.command(help_epilogue="Example: subspace-adv plan sweeps/line.toml seed=0:100000")
def plan(
    sweep: SweepFile,
    /,
    *overrides: Overrides,
    trainer: TrainerName = None,
    out: Annotated[Path | None, Parameter(name="--out", converter=_path)] = None,
) -> None:
    """Tell what a sweep would take: cells, groups, compiled programs, chunks, bytes and time. Runs nothing.

    Parameters
    ----------
    out
        A results folder, of which it tells what the sweep would keep, and what it would compute again.
    """
    todo = planning.plan(Sweep.from_toml(sweep, overrides), trainer)
    if out is not None:
        for line in runner.foresee(todo, out):
            print(line)
    print(f"cells      {todo.cells:,}")
    print(f"groups     {len(todo.groups):,}")
    print(f"programs   {todo.programs:,} to compile, each once")
    print(f"chunks     {len(todo.chunks):,}")
    print(f"bytes      {count(todo.bytes, 'B')} on disk, before compression")
    print(f"net-steps  at most {todo.max_net_steps:.3g}")
    for line in _times(todo):
        print(line)
    table = progress.table(
        *("group", "cells", "chunks", "side by side", "width (padded)", "points", "ambient dim", "trained in"),
        *("optimizer", "loss"),
    )
    for i, group in enumerate(todo.groups):
        p = group.program
        chunks = sum(chunk.group is group for chunk in todo.chunks)
        sizes = (p.law.padded_width, p.shape.samples, p.shape.ambient_dim, p.inputs)
        table.add_row(*map(str, (i, len(group.cells), chunks, group.lanes, *sizes)), p.recipe.optimizer, p.recipe.loss)
    progress.print_table(table)
    reasons: dict[str, list[str]] = {}
    for i, group in enumerate(todo.groups):
        where = "the span of the data, exactly" if group.program.reduced else "all ambient coordinates"
        told = (f"trained in {where}: {group.why[0]}", f"trained by {group.program.recipe.trainer}: {group.why[1]}")
        for reason in told:
            reasons.setdefault(reason, []).append(str(i))
    for reason, places in reasons.items():
        print(f"group {', '.join(places)}: {reason}")


@app.command(help_epilogue="Example: subspace-adv status results/line")
def status(folder: Folder, /) -> None:
    """Tell how far a results folder is."""
    store = Store.open(folder)
    found = results.outcomes(store)
    pending = found[training.STATUS_MEANINGS[training.PENDING]]
    _print_progress(store.sweep.name, store.sweep.cells - pending, store.sweep.cells)
    for meaning, number in found.items():
        print(f"  {meaning:<11}{number:,}")
    if pending:
        for line in runner.shards_left(folder):
            print(line)
        print(runner.how_to_resume(folder))


@app.command(help_epilogue="Example: subspace-adv table results/line --epsilon 0.1,0.3")
def table(
    folder: Folder,
    /,
    *,
    epsilon: Annotated[str | None, Parameter(name="--epsilon")] = None,
    form: Annotated[Literal["text", "md", "csv", "latex", "json"], Parameter(name="--format")] = "text",
) -> None:
    """Print medians over seeds with 95 % bootstrap intervals, paired gains of the remedies, and robust accuracy.

    Parameters
    ----------
    epsilon
        Perturbation sizes at which robust accuracy is told, such as 0.1,0.3; some that suit the results by default.
    form
        All of it as text, or the medians and gains of each arm alone: as Markdown (md), as tabulars of LaTeX that need
        the package booktabs (latex), or unrounded in one table of all norms (csv, json).
    """
    epsilons = _sizes(epsilon)
    if form != "text" and epsilons is not None:
        raise UserError(f"command line: --epsilon: changes nothing with --format {form}, which has no robust accuracy")
    from subspace_adv import formats, reports

    dataset = results.open_results(folder)
    if form == "text":
        reports.print_results(dataset, epsilons)
    else:
        print(formats.FORMATS[form](reports.summary(dataset)), end="")


@app.command(help_epilogue="Example: subspace-adv compare results/line results/mine")
def compare(
    a: Annotated[Path, Parameter(help="Results folder.", converter=_path)],
    b: Annotated[Path, Parameter(help="Another one.", converter=_path)],
    /,
) -> None:
    """Tell what differs between two results folders, and what networks of the same seeds gain from A to B.

    Settings that differ are told one a line. Arms of equal settings are compared network by network, where the
    folders share seeds, with 95 % bootstrap intervals.
    """
    from subspace_adv import comparison, reports

    reports.print_comparison(comparison.compare(a, b), str(a), str(b))


@app.command(help_epilogue="Example: subspace-adv export results/line line.parquet")
def export(folder: Folder, file: Annotated[Path, Parameter(converter=_path)], /) -> None:
    """Write results for other programs: .nc or .zarr, for xarray, or tables, .parquet or .csv.

    Parameters
    ----------
    file
        Where to. The name of a table goes before the ending: line-cells.csv, a row for each network,
        line-points.csv, one for each of its points, and so on. A file that is there is overwritten.
    """
    from subspace_adv import exports, reports

    reports.print_written(exports.export(folder, file))


@app.command(
    help_epilogue="Example: subspace-adv attack network.npz points.csv --classes 3,8 --subspace-dim 10 --out found.nc"
)
def attack(
    network: Annotated[Path, Parameter(converter=_path)],
    data: Annotated[Path, Parameter(converter=_path)],
    /,
    *,
    regions: Annotated[str | None, Parameter(name="--regions")] = None,
    norms: Annotated[str, Parameter(name="--norms")] = "l2",
    subspace_dim: Annotated[int | None, Parameter(name="--subspace-dim", converter=_whole)] = None,
    classes: Annotated[str | None, Parameter(name="--classes", allow_leading_hyphen=True)] = None,
    label: Annotated[str | None, Parameter(name="--label")] = None,
    epsilon: Annotated[str | None, Parameter(name="--epsilon")] = None,
    out: Annotated[Path | None, Parameter(name="--out", converter=_path)] = None,
) -> None:
    """Attack a network of your own, and certify it, on points of your own; print distances and robust accuracy.

    Parameters
    ----------
    network
        Its arrays by name (.npz, .safetensors): dense layers with ReLUs between, one output or two logits.
    data
        Labelled points: .npz with x (n, d) and y (n,), .csv or .parquet.
    regions
        Where perturbations may lie: off, on, full, as a list with commas. By default all where a subspace is known.
    norms
        Of perturbations: l2, linf, l1, as a list with commas.
    subspace_dim
        Dimension of the data's subspace, the linear one nearest to the points. By default that of the basis in DATA.
    classes
        Two labels, such as 3,8, of which the second is +1. By default the two that there are.
    label
        Name of the column of labels of a table, .csv or .parquet; label by default.
    epsilon
        Perturbation sizes at which robust accuracy is told, such as 0.1,0.3; some that suit the results by default.
    out
        File to write all that was measured to, as netCDF (.nc), which xarray.open_dataset reads; one that is there is
        overwritten.
    """
    epsilons = _sizes(epsilon)
    wheres: Any = None if regions is None else _words("--regions", regions, LINEAR_REGIONS)
    lengths = _words("--norms", norms, NORMS)
    if out is not None:
        if out.suffix != ".nc":
            raise UserError(f"command line: --out: {out} has the ending {out.suffix!r}; must be .nc, of netCDF")
        _check_writable(out)
    from subspace_adv import assessment, exports, reports

    dataset = assessment.assess(
        network,
        data,
        label_column=label,
        classes=None if classes is None else classes.split(","),
        subspace_dim=subspace_dim,
        regions=wheres,
        norms=lengths,
        progress=lambda batches: progress.track(batches, "attacking", first="compiling"),
    )
    try:
        if out is not None:
            exports.export(dataset, out)
    finally:
        reports.print_assessment(dataset, epsilons)


@app.command(help_epilogue="Example: subspace-adv check results/dimension")
def check(folder: Folder, /) -> None:
    """Compare the predicted law of the gradient off the subspace with what was measured."""
    from subspace_adv import checks, reports

    reports.print_check(checks.check(results.open_results(folder)))


@app.command(help_epilogue="Example: subspace-adv plot results/line")
def plot(folder: Folder, /) -> None:
    """Draw the figures of a results folder, as PNG and SVG."""
    _print_figures(_draw(results.open_results(folder), folder))


@app.command(help_epilogue="Example: subspace-adv bench --json bench.json")
def bench(
    *, trainer: TrainerName = None, json: Annotated[Path | None, Parameter(name="--json", converter=_path)] = None
) -> None:
    """Time training here: net-steps, operations and memory by problem and path, beside the machine's own peak.

    Parameters
    ----------
    json
        File to write the figures to as well.
    """
    from subspace_adv import bench, reports

    if json:
        _check_writable(json)  # a mistake is told now and not in minutes
    done = bench.run(progress.track(bench.pairs(trainer), "timing"))
    if json:
        json.write_text(bench.to_json(done), encoding="utf-8")
    reports.print_bench(done)


class _Interrupted(Exception):
    """An interrupt, with the words for the user."""


_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")  # Windows lacks the last two


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit status 0 done, 2 bad input or nowhere to write, 130 interrupted and resumable."""
    for number in (getattr(signal, name) for name in _ENDING if hasattr(signal, name)):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _tell(str(message))
        try:
            _check_streams()
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
            pass  # whoever read the output has seen enough
        except OSError as error:
            _fail(f"{error.filename or 'output'}: {error.strerror or error}", 2)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; a moment later if Python is in a garbage-collection callback, and would swallow it."""
    collecting = frame and any(frame.f_code is getattr(callback, "__code__", None) for callback in gc.callbacks)
    if collecting and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # SIGALRM
    else:
        raise KeyboardInterrupt


def _check_streams() -> None:
    """See to it that everything can be printed, whatever its encoding."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if sys.stdout is None:
        raise UserError("standard output is closed; send it to a file, or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # standard error does so by itself


def _call(arguments: Sequence[str] | None) -> None:
    try:
        app(arguments, exit_on_error=False, print_error=False)
    finally:
        try:
            sys.stdout.flush()  # what cannot be written should show here
        except OSError:
            _discard(sys.stdout)
            raise


def _tell(message: str) -> None:
    try:
        print(f"subspace-adv: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    except OSError:  # as where the terminal is gone
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what is left in a stream go nowhere: Python would fail to write it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int) -> None:
    _tell(message)
    sys.exit(code)


def _explain(error: CycloptsError) -> str:
    message = re.sub(r"(?<!\.)\.$", "", str(error).strip()) or type(error).__name__  # not of a list that is cut short
    if isinstance(error, UnknownCommandError) and error.unused_tokens and "Did you mean" not in message:
        message += nearest(error.unused_tokens[0], app, otherwise_all=False)
    return f"command line: {message}; see {' '.join(['subspace-adv', *(error.command_chain or ())])} --help"


def _print_progress(name: str, done: int, networks: int) -> None:
    print(f"{name}: {done:,} of {networks:,} networks done")


def _draw(dataset: "Dataset", folder: Path) -> list[Path]:
    os.environ["MPLBACKEND"] = "agg"  # matplotlib refuses a backend that is not installed, such as a notebook's
    from subspace_adv import plots  # matplotlib takes long to import

    return plots.draw(dataset, folder)


def _print_figures(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"figure: {path}")


def _check_writable(path: Path) -> None:
    """Refuse a file that cannot be written; what it holds stays."""
    there = path.exists()
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    if not there:
        path.unlink()


def _words(option: str, text: str, known: Collection[str]) -> list[str]:
    words = text.split(",")
    for word in words:
        try:
            one_of(word, known)
        except ValueError as error:
            raise UserError(f"command line: {option}: {brief(word)}: {error}") from None
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise UserError(f"command line: {option}: {brief(text)}: {twice!r} is listed twice")
    return words


def _sizes(text: str | None) -> list[float] | None:
    return None if text is None else [_size(one) for one in text.split(",")]


def _size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise UserError(f"command line: --epsilon: {brief(text)} is no perturbation size; give numbers such as 0.1,0.3")
    return size


def _times(todo: planning.Plan) -> list[str]:
    """What a run of a plan would take here, and of what that is made up."""
    if not devices.local().is_cpu:
        return ["time       not known: rates were measured on CPUs alone"]
    taken = todo.seconds(process.cores())
    begin = taken.starting + taken.compiling
    return [
        f"time       about {_duration(taken.typical)} on {process.cores()} cores, the first time; "
        f"up to {_duration(taken.most)} if no network stops before max_steps",
        f"           {_duration(begin)} to start and compile ({_duration(taken.starting)} once that is kept), "
        f"{_duration(taken.training)} to train, {_duration(taken.measuring)} to measure",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
