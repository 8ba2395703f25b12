"""What a user should know of a sweep before it runs: data on which training cannot do what it is meant to."""

import itertools
import math
import warnings

from subspace_adv.data import subspace_labels
from subspace_adv.sweep import Sweep

_MOST_DATASETS, _MOST_NUMBERS = 2_000, 10**7  # looked at and drawn, so that it takes no more than a second
_MANY_POINTS = 64  # are of one class in one of 2⁶³ datasets
_NAMED = 3


def warn_of_pitfalls(sweep: Sweep) -> None:
    """Warn of datasets of one class, and of networks that cannot converge."""
    for text in (_of_one_class(sweep), _at_the_origin(sweep)):
        if text:
            warnings.warn(text, stacklevel=3)


def _of_one_class(sweep: Sweep) -> str | None:
    samples = [n for n in sweep.values("samples") if n < _MANY_POINTS]
    dims, labels, seeds = (sweep.values(leaf) for leaf in ("subspace_dim", "labels", "data_seed"))
    if "subspace" not in sweep.values("kind") or not samples:
        return None
    sizes = list(itertools.product(samples, dims, labels))
    numbers = max(samples) * (max(dims) if "halfspace" in labels else 1)
    most = min(_MOST_DATASETS, _MOST_NUMBERS // numbers)
    looked_at = itertools.islice(itertools.product(seeds, sizes), most)
    found = {
        (seed, n): f"data_seed = {seed} and samples = {n}"
        for seed, (n, k, kind) in looked_at
        if abs(subspace_labels(subspace_dim=k, samples=n, labels=kind, data_seed=seed).sum()) == n
    }
    if not found:
        return None
    named = "; ".join(list(found.values())[:_NAMED])
    more = f"; and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    among = f" among the first {most:,} datasets" if len(seeds) * len(sizes) > most else ""
    return f"all points have one label, which is no task, at {named}{more}{among}; take more samples or other seeds"


def _at_the_origin(sweep: Sweep) -> str | None:
    """Of the points, only one of the line is 0: the chessboard lies at height ½, and what is drawn is never 0."""
    margins = [margin for margin in sweep.values("stop_margin") if 0 <= margin < math.inf]
    if "theory" not in sweep.values("init") or "line" not in sweep.values("kind") or not margins:
        return None
    return (
        "no network of init 'theory' converges on kind 'line': without biases its output is 0 at the point 0, and so "
        f"no margin exceeds stop_margin = {margins[0]}; choose another init or kind"
    )
