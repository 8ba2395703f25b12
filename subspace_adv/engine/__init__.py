"""The only place that vmaps, shards and compiles: trains and measures the cells of a chunk, many networks at once."""

from subspace_adv.engine.chunks import Cancelled, ambient_networks, measure, saved, train, train_and_measure
from subspace_adv.engine.programs import alone, compiled

__all__ = ["Cancelled", "alone", "ambient_networks", "compiled", "measure", "saved", "train", "train_and_measure"]
