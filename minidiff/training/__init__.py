"""Training as a generator that can be killed at any step and goes on to the same bits.

``loop`` has the generator, the average of the weights and resuming; ``update`` makes one update;
``distributed`` is for several processes; ``files`` reads and writes tensors.
"""

from .distributed import processes, share
from .files import load_weights, read_tensors, write_tensors
from .loop import EMA, FORMAT, Step, train

__all__ = [
    "EMA",
    "FORMAT",
    "Step",
    "load_weights",
    "processes",
    "read_tensors",
    "share",
    "train",
    "write_tensors",
]
