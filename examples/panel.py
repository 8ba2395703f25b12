"""Draw decision boundaries of networks trained on the line, with standard and with small initialization.

uv run examples/panel.py [FIGURE]

Without a path, the figure goes to panel.png in the folder for temporary files.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import subspace_adv as sa

ARMS = {1.0: "standard initialization", 0.25: "small initialization"}

sweep = sa.Sweep(
    "panel",
    data={"kind": "line"},
    network={"width": 100},
    measure={"regions": ["off"]},
    axes={"init_scale": list(ARMS), "seed": range(4)},
)
with tempfile.TemporaryDirectory() as folder:
    dataset = sa.run(sweep, folder)
    networks = sa.load_networks(folder)  # leading axes: init_scale, seed
    points = sa.load_points(folder, init_scale=1.0, seed=0)

ticks = np.linspace(-1.5, 1.5, 121)
plane = np.stack(np.meshgrid(ticks, ticks), axis=-1)  # (121, 121, 2)
figure = Figure(figsize=(7, 3.8), layout="constrained")
for i, (ax, (scale, title)) in enumerate(zip(figure.subplots(1, 2), ARMS.items(), strict=True)):
    for seed in range(4):
        weight, bias, head, head_bias = (part[i, seed] for part in networks)
        output = np.maximum(plane @ weight.T + bias, 0) @ head + head_bias
        ax.contour(ticks, ticks, output, levels=[0], colors="black", linewidths=0.8)
    ax.axline((0, 0), slope=1, color="grey", linestyle="--", linewidth=1)
    ax.scatter(*points.x.T, c=points.y, cmap="coolwarm", edgecolors="black", zorder=3)
    ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    distance = dataset["distance_off_l2_upper"].sel(init_scale=scale).median().item()
    print(f"{title}: median distance to a flip off the line {distance:.3f}")

path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "panel.png")
figure.savefig(path, dpi=150)
print(f"figure: {path}")
