"""Where networks that train side by side pause on the way to their stop, to be measured there."""

from typing import NamedTuple

import numpy as np

from subspace_adv.optimizers import Hyper
from subspace_adv.snapshots import Snapshots
from subspace_adv.training import CONVERGED, DIVERGED, PENDING, STEP_LIMIT


class Reached(NamedTuple):
    """What lanes have come to in a call of the trainer."""

    stopped: np.ndarray  # (lanes,) bool: training is over
    paused: np.ndarray  # (lanes,) bool: it goes on
    lanes: np.ndarray  # (k,) whose network is one of the snapshots of its cell now; a lane may have two of them
    snapshots: np.ndarray  # (k,) which one


class Pauses:
    """The pauses that the networks of lanes come to next.

    A trainer knows none: it is given a stop rule that holds sooner, and a network that it stopped goes on as if
    nothing had been.
    """

    def __init__(self, snapshots: Snapshots, lanes: int) -> None:
        """Of fresh networks."""
        self._steps = np.array([*snapshots.steps, np.iinfo(np.int32).max], np.int32)  # the last is never reached
        self._margins = np.array([*snapshots.margins, np.inf], np.float32)
        self._step, self._margin = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)  # the next ones

    def begin(self, lanes: np.ndarray) -> None:
        """Lanes have fresh networks."""
        self._step[lanes] = self._margin[lanes] = 0

    def pack(self, kept: np.ndarray) -> None:
        """Go on with some lanes."""
        self._step, self._margin = self._step[kept], self._margin[kept]

    def sooner(self, hyper: Hyper) -> Hyper:
        """What the trainer is given: it stops where a network pauses, if that is before its stop."""
        return hyper._replace(
            max_steps=np.minimum(hyper.max_steps, self._steps[self._step]),
            stop_margin=np.minimum(hyper.stop_margin, self._margins[self._margin]),
        )

    def reached(self, status: np.ndarray, step: np.ndarray, hyper: Hyper, busy: np.ndarray) -> Reached:
        """Tell stops from pauses, and look out for the pauses after those.

        Args:
            status: that the trainer left, (lanes,).
            step: gradient steps taken, (lanes,).
            hyper: true settings of the lanes' cells.
            busy: lanes that have a cell.
        """
        has_cell = np.isin(np.arange(len(status)), busy)
        over = has_cell & (status != PENDING)
        next_step, level = self._steps[self._step], self._margins[self._margin]
        exceeded = over & (status == CONVERGED) & (level <= hyper.stop_margin) & np.isfinite(level)
        paused = (exceeded & (level < hyper.stop_margin)) | (over & (status == STEP_LIMIT) & (step < hyper.max_steps))
        # At one step a network comes to levels before it comes to the step: the stop rule asks for the margin first.
        there = over & (step == next_step) & (status != DIVERGED) & ~(paused & exceeded)
        at_step, at_level = np.flatnonzero(there), np.flatnonzero(exceeded)
        snapshots = np.concatenate([self._step[at_step], len(self._steps) - 1 + self._margin[at_level]])
        self._step[at_step] += 1
        self._margin[at_level] += 1
        return Reached(over & ~paused, paused, np.concatenate([at_step, at_level]), snapshots)
