"""What it costs to hand a sweep to Ray's workers on this machine: time beside a plain run, and the driver's memory.

Claim: over a sweep of minutes, workers take at most 5 % longer than a plain run on the same cores, once Ray has begun;
the driver takes at most 300 MB more than Ray alone does, and no more at the end of a sweep than at its beginning,
whoever saves. benchmarks/README.md holds the last figures, and says how to run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from subspace_adv import cluster, process, run
from subspace_adv.store import Store
from subspace_adv.sweep import Sweep

LINE = Path(__file__).parent.parent / "sweeps" / "line.toml"


def memory() -> float:
    """Of this process, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1e3


class Sampled(process.Listener):
    """Notes the memory of this process whenever networks are done."""

    def __init__(self) -> None:
        """Begin with none."""
        self.done, self.samples = 0, []

    def progress(self, networks: int, net_steps: int) -> None:
        """Note it."""
        self.done += networks
        self.samples.append((self.done, memory()))


def measured(workers: str, overrides: list[str], out: Path) -> dict:
    """One run in this process: by whom chunks are computed and saved, seconds, and memory in MB."""
    told, begun = Sampled(), time.perf_counter()
    with nullcontext() if workers == "plain" else cluster.connected("ray") as executor:
        alone = noop = 0.0
        if executor:
            executor.submit(process.cores).result()
            started = time.perf_counter()
            for _ in range(100):
                executor.submit(process.cores).result()
            noop, alone = (time.perf_counter() - started) / 100, memory()
        starting, started = time.perf_counter() - begun, time.perf_counter()
        commit = "driver" if workers == "driver" else "workers"
        run(Sweep.from_toml(LINE, overrides), out, told, executor=executor, commit=commit)
        running = time.perf_counter() - started
    third = max(len(told.samples) // 3, 1)
    return {
        "starting": starting,
        "running": running,
        "task": noop,
        "ray": alone,
        "early": max(size for _, size in told.samples[:third]),
        "late": max(size for _, size in told.samples[-third:]),
    }


def main() -> None:
    """Run each way in a process of its own, the plain one before and after, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="of sweeps/line.toml, such as seed=0:25000")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.way, given.overrides, given.out)))
        return
    print(f"{'chunks by':10} {'start s':>8} {'run s':>8} {'no-op ms':>9} {'Ray MB':>7} {'early MB':>9} {'late MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for number, way in enumerate(("plain", "workers", "driver", "plain")):
            out = Path(folder) / str(number)
            command = [sys.executable, __file__, "--way", way, "--out", out, *given.overrides]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(told.splitlines()[-1])
            sizes = " ".join(f"{found[name]:{width}.0f}" for name, width in (("ray", 7), ("early", 9), ("late", 8)))
            times = f"{found['starting']:8.1f} {found['running']:8.1f} {1e3 * found['task']:9.1f}"
            print(f"{way:10} {times} {sizes}", flush=True)
        store = Store.open(out)
        chunks, files = len(store.entries), sum(path.is_file() for path in (out / "chunks").rglob("*"))
        print(f"{store.sweep.cells:,} networks in {chunks} chunks, of {files / chunks:.1f} files each")
        print(f"manifest: {(out / 'manifest.json').stat().st_size / chunks:.0f} bytes a chunk")


if __name__ == "__main__":
    main()
