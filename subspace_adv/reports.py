"""What the command line tells about results, in tables and words."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from xarray import Dataset

from subspace_adv import bench, checks, comparison, exports, formats, tables
from subspace_adv.measures import distance_name, distance_parts
from subspace_adv.progress import count, print_table, table
from subspace_adv.snapshots import final


def print_results(dataset: Dataset, epsilons: Sequence[float] | None = None) -> None:
    """Medians by arm, gains of the remedies, tightness of brackets, and robust accuracy and fooling rates at sizes.

    Args:
        dataset: as of `open_results`.
        epsilons: the sizes; some typical ones by default.
    """
    dataset = final(dataset)
    columns = summary(dataset)
    for block in formats.blocks(columns):
        _print_columns(block)
    print(
        "Medians over seeds of each network's median over its points, with 95 % bootstrap intervals. Distances are\n"
        f"those of the nearest flips found, in norm {tables.regions_and_norms(dataset)[0][1]} where no other is named."
    )
    if any(column.name.startswith("gain_") for column in columns):
        print("A gain is the paired difference, seed by seed, from the standard arm, which has none (–).")
    _print_tightness(dataset)
    _print_robustness(dataset, _varying(dataset), epsilons)


def summary(dataset: Dataset) -> list[formats.Column]:
    """The table of arms: medians over seeds with intervals, and gains. What is not the stop is left out."""
    dataset = final(dataset)
    found = tables.summarize(dataset)
    counts = [
        formats.Column("networks", "networks", [row.networks for row in found], ",", 0),
        formats.Column("converged", "converged", [row.converged for row in found], formats.SHARE, 0),
        formats.Column("steps", "steps", [row.steps for row in found], ",.0f", 0),
        formats.Column("gradient_norm_off", "gradient off", [row.gradient_off for row in found], ".3g", 0),
    ]
    first, *_ = wheres = list(found[0].distance)
    norms = [None, *dict.fromkeys(norm for _, norm in wheres)]  # blocks: the first region, then the others of a norm
    measured = []
    for region, norm in wheres:
        place = region if norm == first[1] else f"{region} {norm}"
        block = norms.index(None if (region, norm) == first else norm)
        distances = [row.distance[region, norm] for row in found]
        gains = [row.gain.get((region, norm)) for row in found]
        measured.append(
            formats.Column(distance_name(region, norm, "upper"), f"distance {place}", distances, ".3g", block)
        )
        if len(found) > 1:
            measured.append(formats.Column(f"gain_{region}_{norm}", f"gain {place}", gains, "+.3g", block))
    settings = [tables.settings_of(dataset, row.arm) for row in found]
    return [*_settings(settings, _varying(dataset)), *counts, *measured]


def _varying(dataset: Dataset) -> list[str]:
    """The fields that tell arms apart."""
    along = (axis for axis in tables.arm_dimensions(dataset) if dataset.sizes[axis] > 1)
    return [leaf for axis in along for leaf in tables.fields_along(dataset, axis)]


def _settings(arms: Sequence[Mapping[Any, Any]], names: Sequence[Hashable]) -> list[formats.Column]:
    """Columns of the settings of some arms."""
    columns = {str(name): [arm[name] for arm in arms] for name in names}
    return [
        formats.Column(name, name, cells, "d" if isinstance(cells[0], int) else "g") for name, cells in columns.items()
    ]


def _print_columns(columns: Sequence[formats.Column]) -> None:
    made = table(*(column.head for column in columns))
    for row in formats.rows(columns):
        made.add_row(*row)
    print_table(made)


def print_comparison(found: comparison.Comparison, a: str, b: str) -> None:
    """What differs between two results folders, of these names, and the gains from one to the other."""
    print(f"A  {a}\nB  {b}")
    if found.differences:
        made = table("", "A", "B")
        for one in found.differences:
            made.add_row(*map(escape, (f"{one.table}.{one.field}", one.a, one.b)))
        print_table(made)
    if not any(one.table != comparison.MADE_WITH for one in found.differences):
        print("no settings differ")
    print("\n".join(["", *found.paired]))
    if not found.gains:
        return
    pairs = formats.Column("pairs", "pairs", [gain.pairs for gain in found.gains], ",", 0)
    columns = [*_settings([gain.arm for gain in found.gains], list(found.gains[0].arm)), pairs]
    for name in found.gains[0].gains:
        told = " ".join(parts[:2]) if (parts := distance_parts(name)) else "gradient off"
        gains = [gain.gains[name] for gain in found.gains]
        columns.append(formats.Column(name, f"gain {told}", gains, "+.3g", 0))
    for block in formats.blocks(columns):
        _print_columns(block)
    print(
        "A gain is the median of the differences B − A, network by network, of the gradient or of the distance to the\n"
        "nearest flip found, each the median over a network's points, with a 95 % bootstrap interval."
    )


def print_written(written: Sequence[exports.Written]) -> None:
    """The files that results were exported to."""
    for one in written:
        rows = "" if one.rows is None else f"{one.rows:,} rows, "
        print(f"{one.path}: {rows}{count(one.bytes, 'B')}")


def print_assessment(dataset: Dataset, epsilons: Sequence[float] | None = None) -> None:
    """How far the points of one network are from a flip, tightness of brackets, and robust accuracy at sizes.

    Args:
        dataset: as of `assess`.
        epsilons: the sizes; some typical ones by default.
    """
    right = (dataset["label"] * dataset["output"] > 0).values
    told = f"{dataset.attrs['network']}: {formats.percent(right.mean())} of {right.size:,} points classified correctly"
    if "gradient_norm_off" in dataset:
        [gradient] = tables.per_network(dataset, "gradient_norm_off", {})
        told += f"; median gradient off the subspace {_number(gradient, '.3g')}"
    print(told)
    made = table("norm", "region", "distance certified", "distance found")
    for region, norm in tables.regions_and_norms(dataset):
        names = (distance_name(region, norm, side) for side in ("lower", "upper"))
        medians = [_number(tables.per_network(dataset, name, {})[0], ".3g") for name in names]
        made.add_row(norm, region, *medians)
    print()
    print_table(made)
    print(
        "Medians over the points, a misclassified one at distance 0: of what no flip is nearer than, and of the\n"
        "nearest flips found."
    )
    _print_tightness(dataset)
    _print_robustness(dataset, (), epsilons)


def _print_tightness(dataset: Dataset) -> None:
    """How near upper and lower distances are, by norm and region."""
    made = table("norm", "region", "points", "unflippable", "exact", *(f"within {gap:.0%}" for gap in tables.TIGHT))
    for region, norm in tables.regions_and_norms(dataset):
        found = tables.tightness(dataset, region, norm)
        shares = [formats.percent(found.share(gap)) for gap in (tables.EXACT, *tables.TIGHT)]
        made.add_row(norm, region, f"{len(found.gaps):,}", f"{found.unflippable:,}", *shares)
    print()
    print_table(made)
    print(
        "Shares of the points: those whose nearest flip found is certified to be nearest but for rounding (exact), or\n"
        "but for 1 % or 5 %. Counted are the correctly classified points of all networks; those that no perturbation\n"
        "flips, for certain, are counted apart as unflippable."
    )


def _print_robustness(dataset: Dataset, varying: Sequence[Hashable], epsilons: Sequence[float] | None) -> None:
    """Robust accuracy and fooling rates, arm by arm at each size of perturbation."""
    pairs = tables.regions_and_norms(dataset)
    norms = list(dict.fromkeys([norm for _, norm in pairs] + ["l2"]))  # the one in which steps are measured
    regions = list(dict.fromkeys(region for region, _ in pairs))
    made = table("norm", "epsilon", *varying, *(f"robust {r}" for r in regions), "fooled universal", "fooled random")
    for norm in norms:
        for e in tables.typical_epsilons(dataset, norm) if epsilons is None else epsilons:
            for arm in tables.arms(dataset):
                cells = ["–"] * len(regions) + ["–"] * len(tables.DIRECTIONS)
                for i, region in enumerate(regions):
                    if (region, norm) in pairs:
                        cells[i] = " – ".join(_ends(tables.robust_accuracy(dataset, arm, region, norm, [e])))
                for i, direction in enumerate(tables.DIRECTIONS, start=len(regions)):
                    if norm == "l2" and f"distance_{direction}" in dataset:
                        fooled = tables.fooling_rate(dataset, arm, direction, [e])
                        cells[i] = " / ".join(formats.percent(curve.mean[0]) for curve in fooled)
                made.add_row(norm, f"{e:g}", *_values(tables.settings_of(dataset, arm), varying), *cells)
    print()
    print_table(made)
    print(
        "Robust: mean share of training points classified correctly whatever perturbation of norm epsilon is added,\n"
        "certified – attacked (the truth lies between). Fooled: mean share of the correctly classified training\n"
        "points / of held-out points whose prediction a step of at most epsilon changes, along the universal\n"
        "direction or along a random one off the subspace."
    )


def _ends(robust: tables.RobustAccuracy) -> list[str]:
    return list(dict.fromkeys(formats.percent(curve.mean[0]) for curve in robust))


def _values(settings: Mapping[Any, Any], names: Sequence[Hashable]) -> list[str]:
    told = (settings[name] for name in names)
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in told]


def print_check(found: checks.Check) -> None:
    """What became of the comparison with the predicted law."""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
    print("law       gradient_norm_off g is |ρ|·β·√A·χ in law given the run, χ of l degrees of freedom (F3, F14)")
    print(f"networks  {found.networks:,} checked; left out: {left_out}")
    print(f"points    {found.points:,}, of which {found.idle_points:,} left out as no neuron is active there")
    fits = table("law of", "networks", "sample", "p", "measured over predicted scale")
    for name, fit in [
        ("the gradient at a point", found.at_points),
        *(("all gradients, whitened", f) for f in found.whitened),
    ]:
        if fit:
            fits.add_row(name, fit.of or "all", f"{fit.sample:,}", f"{fit.p_value:.3g}", _precise(fit.scale))
    print_table(fits)
    print("A sample has one number of each seed, from changing cells; p of Kolmogorov and Smirnov, intervals of 95 %.")
    _print_snapshots(found.snapshots)
    bounds = table("bound", "held by", "of the sample", "promised")
    for bound in found.bounds:
        sample = " ".join((f"{bound.sample.estimate:.2%}", f"[{bound.sample.low:.2%}, {bound.sample.high:.2%}]"))
        bounds.add_row(bound.side, f"{bound.share:.2%}", sample, f"≥ {bound.promised:.2%}")
    if found.bounds:
        print_table(bounds)
    if found.exponents:
        powers = table("exponent of", "in the root mean square of", "seeds", "fitted", "predicted")
        for power in found.exponents:
            powers.add_row(
                power.axis, power.quantity, f"{power.seeds:,}", _precise(power.fitted), f"{power.predicted:g}"
            )
        print_table(powers)
    if found.ranks:
        ranks = table("rank among redrawn off parts of", "sample", "p")
        for one in found.ranks:
            ranks.add_row(one.variable, f"{one.sample:,}", f"{one.p_value:.3g}")
        print_table(ranks)
        print("Ranks are uniform whatever the variable, attacks and certificates included (F16); p of the χ² test.")


def _print_snapshots(found: Sequence[checks.AtSnapshot]) -> None:
    """The law before the stop, a line a snapshot; of several depths, one each."""
    for dimension, of_it in itertools.groupby(found, key=lambda one: one.dimension):
        made = table(dimension, "networks", *("sample, a point", "p", "scale"), *("sample, whitened", "p", "scale"))
        for one in of_it:
            for fit in one.whitened or [None]:
                made.add_row(f"{one.at:g}", fit.of or "all" if fit else "all", *_fit(one.at_points), *_fit(fit))
        print_table(made)
        print("The same of networks before their stop, and not yet stopped.")


def _fit(fit: checks.Fit | None) -> list[str]:
    return [f"{fit.sample:,}", f"{fit.p_value:.3g}", _precise(fit.scale)] if fit else 3 * ["–"]


def _precise(found: checks.Interval) -> str:
    return f"{found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else f"{value:{form}}"


def print_bench(done: bench.Bench) -> None:
    """Throughput by problem and path."""
    print("; ".join(f"{name} {value}" for name, value in done.machine.items()))
    print(f"float32 matrix product, all cores: {done.peak_flops / 1e9:.0f} GFLOP/s")
    made = table("problem", "path", "networks", "net-steps/s", "GFLOP/s", "of peak", "compile", "program", "a network")
    for row in done.rows:
        speed = [f"{row.net_steps:,.0f}", f"{row.flops / 1e9:.1f}", f"{row.peak:.0%}"]
        sizes = [f"{row.compile_seconds:.1f} s", count(row.program_bytes, "B"), count(row.network_bytes, "B")]
        made.add_row(row.problem, row.path, f"{row.networks:,}", *speed, *sizes)
    print_table(made)
    print(
        "Useful gradient steps only: those of networks that had not stopped. A step of n points, m neurons and r\n"
        "inputs (a bias is one more) counts n·m·(4r + 5) + m·(4r + 6) operations; r is the dimension of the data's\n"
        "span but on path ambient, where it is that of the space."
    )
