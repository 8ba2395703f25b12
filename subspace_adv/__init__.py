"""Train and attack thousands of two-layer ReLU networks on low-dimensional data as one compiled program."""

import os
import sys

# Of every program that it loads from its cache, XLA's CPU backend says at length, as an error, that the processor lacks
# "features" which are none (https://github.com/openxla/xla/issues/44565). What fails still raises.
if "jaxlib" not in sys.modules and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # which is what JAX sets
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from subspace_adv.comparison import Comparison, compare
from subspace_adv.errors import UserError
from subspace_adv.exports import export
from subspace_adv.geometry import Subspace
from subspace_adv.loading import Points, load_networks, load_points
from subspace_adv.network import Network, Networks
from subspace_adv.networkfile import read_network
from subspace_adv.planning import Plan, plan
from subspace_adv.results import open_results
from subspace_adv.runner import run
from subspace_adv.single import Trained, attack, bracket, certify, measure, train
from subspace_adv.sweep import Sweep

__all__ = [
    "Comparison",
    "Network",
    "Networks",
    "Plan",
    "Points",
    "Subspace",
    "Sweep",
    "Trained",
    "UserError",
    "attack",
    "bracket",
    "certify",
    "compare",
    "export",
    "load_networks",
    "load_points",
    "measure",
    "open_results",
    "plan",
    "read_network",
    "run",
    "train",
]
