"""Figures of a results folder: boundaries and surfaces, what the remedies change, robust accuracy and tightness."""

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from xarray import Dataset

from subspace_adv.data import KINDS
from subspace_adv.errors import UserError
from subspace_adv.loading import load_networks
from subspace_adv.plots.chessboard import surfaces
from subspace_adv.plots.line import boundaries
from subspace_adv.plots.medians import SIZES, codimension, drawn_against, remedies, size
from subspace_adv.plots.panels import Load, are_known, first_values, is_trained, panels, varies
from subspace_adv.plots.phase import is_map, phase
from subspace_adv.plots.robustness import fooling_rates, robust_accuracies
from subspace_adv.plots.tightness import is_open, tightnesses
from subspace_adv.plots.trajectories import trajectories
from subspace_adv.results import open_results
from subspace_adv.snapshots import MARGIN_LEVEL, STEP, final
from subspace_adv.tables import regions_and_norms, settings_of
from subspace_adv.training import PENDING

Format = Literal["png", "svg"]

# Figures that show the input space of one kind of data.
_OF_A_KIND: dict[str, tuple[str, Callable[[Dataset, Load], Figure]]] = {
    "line": ("boundaries", boundaries),
    "chessboard": ("surfaces", surfaces),
}

_STYLE: dict[Any, Any] = {"axes.titlesize": 10, "figure.titlesize": 11, "legend.frameon": False}
_STYLE |= {"legend.columnspacing": 1.4, "svg.hashsalt": "subspace_adv"}


def plot(directory: str | Path, formats: Sequence[Format] = ("png", "svg")) -> list[Path]:
    """Draw every figure that fits a results folder into its subfolder `figures`.

    Args:
        directory: a results folder, complete or not.
        formats: file types of each figure.

    Returns:
        Paths of the files, the same to the byte if drawn again; none where all diverged.

    Raises:
        UserError: if the folder is no results folder, the sweep has not yet begun, or a file cannot be written.
    """
    return draw(open_results(directory), directory, formats)


def draw(dataset: Dataset, directory: str | Path, formats: Sequence[Format] = ("png", "svg")) -> list[Path]:
    """As `plot`, of a folder whose results are open."""
    if (dataset["status"] == PENDING).all():
        raise UserError(f"{directory}: no network is trained yet; run the sweep first")
    if not is_trained(dataset["status"]).any():
        return []
    load = partial(load_networks, directory)
    whole, dataset = dataset, final(dataset)
    kind: Any = settings_of(dataset, first_values(dataset)).get("kind", dataset.attrs.get("kind"))
    some, flips_off = bool(panels(dataset)), bool(np.isfinite(dataset["distance_random_heldout"]).any())
    seen = some and are_known(dataset)
    figures: dict[str, tuple[bool, Callable[[], Figure]]] = {  # name → whether it fits, how to draw it
        name: (seen and kind == shown, partial(draw, dataset, load)) for shown, (name, draw) in _OF_A_KIND.items()
    }
    figures |= {
        "codimension": (
            "ambient_dim" in KINDS[kind].model_fields and varies(dataset, "ambient_dim"),
            lambda: codimension(dataset),
        ),
        **{along: (varies(dataset, along), partial(size, dataset, along)) for along in SIZES},
        "remedies": (bool(drawn_against(dataset)), lambda: remedies(dataset)),
        "phase": (is_map(dataset), lambda: phase(dataset)),
        "robust_accuracy": (some and bool(regions_and_norms(dataset)), lambda: robust_accuracies(dataset)),
        "tightness": (is_open(dataset), lambda: tightnesses(dataset)),
        "fooling_rate": (some and flips_off, lambda: fooling_rates(dataset)),
    }
    dimensions = [one for one in (STEP, MARGIN_LEVEL) if one in whole.dims]
    figures |= {
        name: (some, partial(trajectories, whole, dimension))
        for name, dimension in zip(("trajectories", "trajectories_at_margin"), dimensions, strict=False)
    }
    folder = Path(directory) / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    paths = []
    for name in (name for name, (fits, _) in figures.items() if fits):
        with mpl.rc_context():
            mpl.rcdefaults()  # the user's own settings are for other figures
            mpl.rcParams.update(_STYLE)
            figure = figures[name][1]()
            for suffix in formats:
                paths.append(folder / f"{name}.{suffix}")
                _save(figure, paths[-1])
    return paths


def _save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(_encoded(figure, path.suffix))
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _encoded(figure: Figure, suffix: str) -> bytes:
    """A figure as a file of a format; a PNG with 256 colours, which takes a third of the bytes."""
    buffer = io.BytesIO()
    if suffix != ".png":
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata={"Date": None})
        return buffer.getvalue()
    figure.savefig(buffer, format="png", dpi=150)
    reduced = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256).save(reduced, format="PNG", optimize=True)
    return reduced.getvalue()
