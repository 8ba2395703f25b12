"""Train and attack thousands of two-layer ReLU networks on low-dimensional data as one compiled program."""

from subspace_adv.network import Network
from subspace_adv.planning import Plan, plan
from subspace_adv.results import load_networks, open_results
from subspace_adv.runner import run
from subspace_adv.sweep import Sweep, UserError

__all__ = ["Network", "Plan", "Sweep", "UserError", "load_networks", "open_results", "plan", "run"]
