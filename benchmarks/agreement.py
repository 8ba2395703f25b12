"""Networks of sweeps/line-deep.toml trained once more by PyTorch, from the same weights: do they stop at the same step?

Ours train in float32 in coordinates of the line, PyTorch's in the plane, in float32 and in float64. What float32 does
to step counts at all is how far PyTorch's are from one another. benchmarks/README.md holds the last table.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subspace_adv import Networks, Sweep, load_networks, load_points, run

SWEEP = Path(__file__).parents[1] / "sweeps" / "line-deep.toml"
_LOOK = 200  # steps between two looks at which networks have stopped


def layers_of(folder: Path, depth: int, decay: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (networks, i, o) and biases (networks, o) of all layers as they were drawn."""
    found = load_networks(folder, depth=depth, weight_decay=decay)
    params: Any
    if isinstance(found, Networks):
        params = found.params
        layers = [*(params[f"hidden_{layer}"] for layer in range(depth)), params["head"]]
        arrays = [(layer["kernel"], layer["bias"]) for layer in layers]
    else:
        arrays = [(np.swapaxes(found.weight, -1, -2), found.bias), (found.head[..., None], found.head_bias[..., None])]
    return [(w.reshape(-1, *w.shape[-2:]), b.reshape(-1, b.shape[-1])) for w, b in arrays]


def torch_steps(
    layers: list[tuple[np.ndarray, np.ndarray]],
    x: np.ndarray,
    y: np.ndarray,
    training: Any,
    decay: float,
    dtype: torch.dtype,
) -> np.ndarray:
    """Gradient steps (networks,) until each network's least margin exceeds the stop margin, max_steps at most."""
    inputs, labels = (torch.tensor(a, dtype=dtype) for a in (x, y))
    arrays = [torch.tensor(a, dtype=dtype) for layer in layers for a in layer]
    steps = np.full(len(arrays[0]), training.max_steps)
    left, taken = np.arange(len(steps)), 0
    while len(left) and taken < training.max_steps:
        parameters = [a.clone().requires_grad_() for a in arrays]
        optimizer = torch.optim.SGD(parameters, lr=training.learning_rate, weight_decay=decay)
        stopped = np.zeros(len(left), bool)
        for _ in range(min(_LOOK, training.max_steps - taken)):
            h = inputs.expand(len(left), *inputs.shape)
            for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
                h = torch.relu(torch.baddbmm(bias[:, None], h, weight))
            outputs = torch.baddbmm(parameters[-1][:, None], h, parameters[-2])[..., 0]
            margins = (labels * outputs).amin(dim=1).detach().numpy()
            now = (margins > training.stop_margin) & ~stopped & (taken > 0)
            steps[left[now]], stopped = taken, stopped | now
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                outputs, ((labels + 1) / 2).expand_as(outputs), reduction="sum"
            )
            optimizer.zero_grad()
            (loss / len(labels)).backward()
            optimizer.step()
            taken += 1
        arrays, left = [parameter.detach()[~stopped] for parameter in parameters], left[~stopped]
    return steps


def told(first: np.ndarray, second: np.ndarray) -> str:
    """How many step counts are the same, or within 1 and 1 % of one another."""
    apart = np.abs(first - second)
    shares = [(apart <= most).mean() for most in (0, 1, 0.01 * np.maximum(first, second))]
    return "".join(f"{share:9.0%}" for share in shares)


def main() -> None:
    """Run the sweep, train its networks by PyTorch, and print how many step counts agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=24, help="of each cell")
    seeds = f"seed=0:{parser.parse_args().seeds}"
    torch.set_num_threads(1)  # products are small
    whole = Sweep.from_toml(SWEEP, [seeds])
    with tempfile.TemporaryDirectory() as place:
        drawn, trained = Path(place) / "drawn", Path(place) / "trained"
        run(Sweep.from_toml(SWEEP, [seeds, "max_steps=0"]), drawn)
        dataset, points = run(whole, trained), load_points(trained, seed=0, depth=1, init_scale=1.0, weight_decay=0.0)
        print(f"{'':24}{'ours and float64':>27}{'float32 and float64':>27}")
        print(f"{'depth':>6}{'decay':>8}{'networks':>10}" + 2 * f"{'same':>9}{'± 1':>9}{'± 1 %':>9}")
        for depth, decay in itertools.product(whole.axes["depth"], whole.axes["weight_decay"]):
            layers = layers_of(drawn, depth, decay)
            ours = dataset["steps"].sel(depth=depth, weight_decay=decay).values.ravel()
            single, double = (
                torch_steps(layers, points.x, points.y, whole.training, decay, dtype)
                for dtype in (torch.float32, torch.float64)
            )
            print(f"{depth:6}{decay:8}{len(ours):10}{told(ours, double)}{told(single, double)}", flush=True)


if __name__ == "__main__":
    main()
