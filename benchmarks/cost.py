"""What it costs to train the networks of a sweep and to measure them, on one core, compilation left out.

Claim: in sweeps/line.toml, measuring a network takes at most a third of the time of training it; in sweeps/claims.toml,
with nine pairs of region and norm, it takes several times as long as training by the fused kernel.
benchmarks/README.md holds the last table.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np

from subspace_adv import engine, planning
from subspace_adv.sweep import Sweep

SWEEPS = Path(__file__).parent.parent / "sweeps"
TABLE = "{:10} {:>6} {:>9} {:>10} {:>10} {:>11} {:>9}"


def rows_of(name: str, seeds: int) -> list[tuple]:
    """For each group of a sweep: width, networks, mean steps, milliseconds a network to train and to measure it."""
    sweep = Sweep.from_toml(SWEEPS / f"{name}.toml", [f"seed=0:{seeds}"])
    todo, rows = planning.plan(sweep), []
    for group in todo.groups:
        chunks = [chunk for chunk in todo.chunks if chunk.group is group]
        engine.train_and_measure(sweep, chunks[0])  # compiles
        begin = time.perf_counter()
        trained = list(engine.train(sweep, group, chunks))
        between = time.perf_counter()
        for chunk, arrays in trained:
            engine.measure(sweep, chunk, arrays)
        end, cells = time.perf_counter(), len(group.cells)
        steps = np.mean(np.concatenate([arrays["steps"] for _, arrays in trained]))
        each = (1e3 * (between - begin) / cells, 1e3 * (end - between) / cells)
        rows.append((name, group.program.law.padded_width, cells, steps, *each))
    return rows


def main() -> None:
    """Train, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", nargs="+", default=["line", "claims"], help="names of files in sweeps/")
    parser.add_argument("--seeds", type=int, default=16, help="of every arm")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    print(f"jax {jax.__version__}, Python {platform.python_version()}, 1 core, {platform.machine()}")
    print(TABLE.format("sweep", "width", "networks", "steps", "train, ms", "measure, ms", "measure/"))
    print(TABLE.format("", "", "", "(mean)", "a network", "a network", "train"))
    for name in arguments.sweeps:
        for sweep, width, cells, steps, train, measure in rows_of(name, arguments.seeds):
            figures = (f"{steps:,.0f}", f"{train:.2f}", f"{measure:.2f}", f"{measure / train:.2f}")
            print(TABLE.format(sweep, width, cells, *figures), flush=True)


if __name__ == "__main__":
    main()
