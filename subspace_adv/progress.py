"""What a terminal shows: tables and live displays."""

import contextlib
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from subspace_adv import process

Item = TypeVar("Item")
_WIDEST = 10_000  # more than any table needs
_CUT = "…"  # what rich puts for what it leaves out


def count(number: float, unit: str) -> str:
    """A number to three digits with its unit and a prefix."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} T{unit}"


class Terminal(Console):
    """Standard output or error, for tables and displays."""

    def on_broken_pipe(self) -> None:
        """Raise what is being handled; rich would end the process, with status 1."""
        raise


def print_table(made: Table) -> None:
    """Print a table as wide as it needs; within a terminal's width if no word or number is cut by that."""
    console = Terminal()
    with console.capture() as captured:
        console.print(made)
    whole = console.is_terminal and _CUT not in captured.get()
    (console if whole else Terminal(width=_WIDEST)).print(made)


def table(*columns: Hashable) -> Table:
    """A table to be filled."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(str(column), justify="right")
    return made


def track(items: Sequence[Item], what: str, first: str | None = None) -> Iterator[Item]:
    """Items one by one, with a bar and a time estimate on a terminal's stderr; another word until the first is done."""
    console = Terminal(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(first or what, total=len(items))
        for item in items:
            yield item
            bar.update(task, advance=1, description=what)


class _Rate(ProgressColumn):
    """Gradient steps per second since the first."""

    def render(self, task: Task) -> Text:
        """Text of the column."""
        return Text(count(task.fields["rate"], "net-steps/s"), style="cyan")


class Display(process.Listener):
    """A live display on a terminal's stderr; elsewhere only messages."""

    def __init__(self) -> None:
        """Begin with nothing shown."""
        self._console = Terminal(stderr=True)
        self._steps, self._begun, self._doing = 0, 0.0, "training"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("networks"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("planning", total=None, rate=0.0)

    def __enter__(self) -> "Display":
        """Show it."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it as it stands."""
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._progress.stop()

    def message(self, text: str) -> None:
        """Print a line."""
        with contextlib.suppress(OSError):
            self._console.print(f"subspace-adv: {text}", highlight=False, markup=False, soft_wrap=True)

    def start(self, networks: int, done: int) -> None:
        """Show the totals."""
        self._progress.update(self._task, total=networks, completed=done)

    def compiling(self, number: int, total: int) -> None:
        """Show that a group is being compiled."""
        self._progress.update(self._task, description=f"compiling {number}/{total}")

    def workers(self, number: int) -> None:
        """Show how many work."""
        self._doing = f"training on {number} worker{'s' if number > 1 else ''}" if number else "starting workers"
        self._progress.update(self._task, description=self._doing)

    def progress(self, networks: int, net_steps: int) -> None:
        """Advance the bar."""
        self._begun = self._begun or time.monotonic()
        self._steps += net_steps
        rate = self._steps / max(time.monotonic() - self._begun, 0.1)
        self._progress.update(self._task, advance=networks, rate=rate, description=self._doing)
