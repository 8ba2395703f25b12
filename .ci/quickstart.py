"""The quickstart in its smallest form, as the Python of a fresh environment runs it from the wheel.

Usage: python quickstart.py fused|xla, which is the trainer that must serve.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import subspace_adv as sa

SWEEP = str(Path(__file__).parents[1] / "sweeps" / "quickstart.toml")
NETWORKS = 16  # of four seeds

[trainer] = sys.argv[1:]
package = Path(sa.__file__).parent
assert package.is_relative_to(sys.prefix), f"{package} is not the installed wheel's"
assert (package / "py.typed").exists(), "py.typed is missing"
assert (package / "_fused.so").exists() == (trainer == "fused"), "the kernel is there without a compiler, or missing"
assert not (package / "kernels").exists(), "the kernel's sources are installed"

with tempfile.TemporaryDirectory() as folder:

    def subspace_adv(*words: str) -> str:
        """What a command prints, and no warning beside it; the folder it runs in holds results alone."""
        command = [sys.executable, "-m", "subspace_adv", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stderr.strip()) == (0, ""), f"{command}: {done.returncode}, {done.stderr}"
        return done.stdout

    def expect(printed: str, part: str) -> None:
        """Part of what a command prints."""
        assert part in printed, f"{part!r} is missing from:\n{printed}"

    expect(subspace_adv("plan", SWEEP, "seed=0:4"), f"trained by {trainer}")
    printed = subspace_adv("run", SWEEP, "seed=0:4", "--out", "out")
    expect(printed, "gain off")
    expect(subspace_adv("status", "out"), f"{NETWORKS} of {NETWORKS} networks done")
    expect(subspace_adv("table", "out", "--epsilon", "0.1"), "robust off")
    expect(subspace_adv("check", "out"), "gradient")
    figures = list(Path(folder, "out/figures").iterdir())
    assert figures and all(file.stat().st_size > 1000 for file in figures), figures

    dataset = sa.open_results(Path(folder, "out"))
    assert dict(dataset.sizes).items() >= {"seed": 4, "init_scale": 2, "weight_decay": 2, "point": 7}.items()
    assert (dataset.status == 1).sum() >= NETWORKS / 2, "few networks converged"
    converged = dataset.where(dataset.status == 1)
    assert np.isfinite(converged.distance_off_l2_upper).sum() >= 7 * NETWORKS / 2
    assert (dataset.distance_off_l2_lower <= dataset.distance_off_l2_upper).all()
    networks = sa.load_networks(Path(folder, "out"), init_scale=0.5, weight_decay=0.0)
    assert networks.weight.shape == (4, 100, 2) and np.isfinite(networks.weight).all()
print(printed)
