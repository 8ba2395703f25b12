"""What a user should know of a sweep before it runs: data on which training cannot do what it is meant to."""

import itertools
import math
import warnings
from collections.abc import Collection

from subspace_adv.data import KINDS, DataSettings
from subspace_adv.settings import leaves, replicates
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
    datasets = dict.fromkeys(dataset.unplaced() for dataset in sweep.datasets_but_for_replicates())
    small = [dataset for dataset in datasets if dataset.shape.samples < _MANY_POINTS]
    if not small:
        return None
    seeds = [leaf for leaf in replicates() if leaves()[leaf] == "data"]
    most = min(_MOST_DATASETS, _MOST_NUMBERS // max(dataset.label_draws for dataset in small))
    found: dict[str, None] = {}
    occurring = _occurring(sweep, seeds)
    for values in itertools.islice(itertools.product(*map(sweep.values, seeds), small), most):
        *numbers, but_for_seeds = values
        own = type(but_for_seeds).model_fields
        drawn_from = {leaf: n for leaf, n in zip(seeds, numbers, strict=True) if leaf in own}
        dataset = but_for_seeds.model_copy(update=drawn_from)
        if occurring is not None and dataset not in occurring:
            continue
        if drawn_from and abs(dataset.draw_labels().sum()) == dataset.shape.samples:
            told = drawn_from | {"samples": dataset.shape.samples}
            found[" and ".join(f"{leaf} = {value}" for leaf, value in told.items())] = None
    if not found:
        return None
    named = "; ".join(list(found)[:_NAMED])
    more = f"; and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    number = math.prod(len(sweep.values(leaf)) for leaf in seeds) * len(small)
    among = f" among the first {most:,} datasets" if number > most else ""
    return f"all points have one label, which is no task, at {named}{more}{among}; take more samples or other seeds"


def _occurring(sweep: Sweep, seeds: Collection[str]) -> set[DataSettings] | None:
    """The datasets that there are, where seeds move together with other fields; None where all come with all."""
    fields = [leaf for leaf, table in leaves().items() if table == "data"]
    together = (of.keys() & fields for of in sweep.dimensions.values())
    if not any(len(of) > 1 and of.intersection(seeds) for of in together):
        return None
    return {sweep.dataset(at).unplaced() for at in sweep.combinations(fields)}


def _at_the_origin(sweep: Sweep) -> str | None:
    for at in sweep.combinations(["kind", "stop_margin", "architecture", "init"]):
        kind, margin = at["kind"], at["stop_margin"]
        perceptrons = at["architecture"] == "mlp" and at["init"] == "theory"
        if perceptrons and KINDS[kind].has_origin and 0 <= margin < math.inf:
            return (
                f"no network of init 'theory' converges on kind {kind!r}: without biases its output is 0 at the point "
                f"0, and so no margin exceeds stop_margin = {margin}; choose another init or kind"
            )
    return None
