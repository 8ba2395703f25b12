"""What networks take: operations, bytes and time, by models with measured rates; rough, to plan with."""

from typing import Literal, NamedTuple

from subspace_adv.training import Trainer

Measurer = Literal["kernel", "xla"]
"""What measures distances on the CPU."""

# Measured by benchmarks/cost.py and peers.py on an idle core with AVX-512 (tables in benchmarks/README.md), and whole
# runs of sweeps/ on two of them.
FLOPS_PER_SECOND: dict[Trainer, float] = {"fused": 5e10, "xla": 1e10}  # of small networks in training
_ATTACK_FLOPS_PER_SECOND = 3e10
# A neuron and point: outputs, exact crossings, and what else is recorded of every point.
_POINT_SECONDS: dict[Measurer, float] = {"kernel": 1.3e-7, "xla": 4e-7}
_FORM_SECONDS: dict[Measurer, float] = {"kernel": 1e-8, "xla": 0.0}  # a cube of dimensions: certificates' matrices
_START_SECONDS = 14.0  # of the program, its figures and tables
_PROGRAM_SECONDS = 11.0  # to compile a group's programs, but for what searches
_XLA_SECONDS = 3.0  # more, where XLA compiles the training
# For each pair of region and norm that is searched, or a plane.
_SEARCH_SECONDS: dict[Measurer, float] = {"kernel": 1.0, "xla": 8.0}
MEASURE_SECONDS = 4.0  # to compile one more program that measures, and searches nothing
# A pair of neurons: all crossings of the kinks of a plane.
_PLANE_SECONDS: dict[Measurer, float] = {"kernel": 2e-9, "xla": 1.1e-7}
_TYPICAL_STEPS = 0.3  # of max_steps: networks of sweeps/ stop after 0.03 to 0.5 of theirs, on the average


class Seconds(NamedTuple):
    """What a sweep takes on some cores; added and scaled in each part."""

    starting: float
    compiling: float  # nothing, where programs are kept from an earlier run
    training: float  # if networks stop at a typical share of max_steps
    training_most: float  # if none stops before max_steps
    measuring: float

    @property
    def typical(self) -> float:
        """Of a whole run."""
        return self.starting + self.compiling + self.training + self.measuring

    @property
    def most(self) -> float:
        """Of a whole run, if no network stops before max_steps."""
        return self.typical - self.training + self.training_most


class Search(NamedTuple):
    """Sizes of the search for a point's least perturbation, in one region and norm."""

    dimension: int  # of the region
    steps: int
    restarts: int


def seconds(*, net_steps: float, step: float, networks: int, measuring: float, compiling: float, cores: int) -> Seconds:
    """Time of a group on some cores.

    Args:
        net_steps: gradient steps of all networks, if none stops before max_steps.
        step: seconds of one of them.
        networks: how many.
        measuring: seconds of one of them.
        compiling: seconds, on one core whatever there are.
        cores: that share the work.
    """
    most = net_steps * step / cores
    return Seconds(0, compiling, _TYPICAL_STEPS * most, most, networks * measuring / cores)


def whole(parts: list[Seconds]) -> Seconds:
    """Time of a run of several groups."""
    return Seconds(*(sum(values) for values in zip(*parts, strict=True)))._replace(starting=_START_SECONDS)


def measuring_seconds(
    samples: int, heldout: int, width: int, searches: list[Search], planes: int, by: Measurer
) -> float:
    """Of one network on one core: what is recorded of every point, the searches at training points, and planes."""
    evaluations = sum(search_evaluations(s.steps, s.restarts) * (4 * s.dimension + 6) for s in searches)
    searched = samples * width * evaluations / _ATTACK_FLOPS_PER_SECOND
    searched += samples * sum(s.dimension**3 for s in searches) * _FORM_SECONDS[by]
    return (samples + heldout) * width * _POINT_SECONDS[by] + searched + planes * width**2 * _PLANE_SECONDS[by]


def search_evaluations(steps: int, restarts: int) -> float:
    """Times that a search evaluates output and gradient: two fifths of its steps for all runs, the rest for a quarter.

    The rest is for what goes before and after, the other attack and the certificates.
    """
    return steps * restarts * (0.4 + 0.6 / 4) + 6 * (2 * restarts + 8) + steps / 2 + 60


def compiling_seconds(searches: int, trainer: Trainer, by: Measurer) -> float:
    """Of a group's programs, that search so many pairs of region and norm, planes among them."""
    return _PROGRAM_SECONDS + _SEARCH_SECONDS[by] * searches + (_XLA_SECONDS if trainer == "xla" else 0)


def training_bytes(samples: int, width: int, inputs: int, parameters: int, moments: int) -> int:
    """Of one network under training, with its activations.

    Args:
        samples: points.
        width: neurons.
        inputs: coordinates of a point.
        parameters: of the network.
        moments: copies of the parameters that the optimizer keeps.
    """
    kept = 2 + moments  # parameters and changes
    # A refill holds the fresh networks beside the old ones; a step holds gradients and updates, and four arrays of
    # activations, preactivations and what is between them.
    return 4 * (2 * kept * parameters + 2 * parameters + 4 * samples * width + samples * (inputs + 1))


def drawing_bytes(width: int, dimension: int, off: int) -> int:
    """Of one network drawn in float64 in all of R^d: weights, and the orthonormal directions that they are drawn along.

    Args:
        width: neurons.
        dimension: d.
        off: dimensions that the weights off the span take.
    """
    return 8 * (3 * width * dimension + 3 * dimension * off)


def measuring_bytes(samples: int, heldout: int, width: int, coordinates: int, restarts: int, has_planes: bool) -> int:
    """Of one network that is measured, all its points at once.

    Args:
        samples: training points.
        heldout: other points.
        width: neurons.
        coordinates: that its points have.
        restarts: of the search; 0 if nothing is searched.
        has_planes: whether a region is a plane: they are taken one by one.
    """
    rays = 2 * restarts + 8
    searched = 4 * samples * rays * (4 * width + 2 * coordinates)  # float32: four arrays over rays and neurons
    exact = 8 * (samples + heldout) * (10 * width + coordinates)  # float64: kinks sorted, slopes, values
    network = 8 * 3 * width * coordinates
    regions = 8 * samples * width * coordinates  # how preactivations vary
    plane = 8 * 16 * width**2 if has_planes else 0  # all kinks along every kink
    return searched + exact + network + regions + plane
