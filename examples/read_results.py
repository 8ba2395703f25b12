"""Read a results folder: medians by arm, the trained networks, and their points.

uv run examples/read_results.py [FOLDER]

Without a folder, a small sweep is run into a temporary one.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import subspace_adv as sa


def small_sweep() -> sa.Sweep:
    """Ten seeds of two arms, on the line."""
    return sa.Sweep(
        "small",
        data={"kind": "line"},
        network={"width": 50},
        measure={"regions": ["off"]},
        axes={"init_scale": [1.0, 0.5], "seed": range(10)},
    )


def read(folder: Path) -> None:
    """Print what a folder holds."""
    dataset = sa.open_results(folder)
    print("axes:", dict(dataset["status"].sizes))

    # An arm is what is left of the axes without repetitions. A point that is not flipped has distance inf.
    repetitions = [axis for axis in ("seed", "data_seed") if axis in dataset["steps"].dims]
    gradient = dataset["gradient_norm_off"].median("point").median(repetitions)
    print("median of the gradient off the subspace, by arm:")
    print(gradient.to_dataframe()["gradient_norm_off"].to_string() if gradient.dims else gradient.item())

    # One network: the first value of every axis.
    first = {axis: dataset[axis].values[0].item() for axis in dataset["status"].dims}
    network, points = sa.load_networks(folder, **first), sa.load_points(folder, **first)
    there = points.y != 0  # a smaller dataset has fewer points
    weight, bias, head, head_bias = (np.asarray(part, np.float64) for part in network)
    outputs = np.maximum(points.x[there] @ weight.T + bias, 0) @ head + head_bias
    recorded = dataset["output"].sel(first).values[there]
    print("network of", first)
    print("outputs by NumPy:", outputs.round(3))
    print(f"largest difference from those recorded: {np.abs(outputs - recorded).max():.1e}")


if len(sys.argv) > 1:
    read(Path(sys.argv[1]))
else:
    with tempfile.TemporaryDirectory() as temporary:
        sa.run(small_sweep(), temporary)
        read(Path(temporary))
