"""Training on several processes at once, over MPI or NCCL: the same script runs on one and on many.

A *rank* is one of the processes; all run the same script, and meet where they exchange something. What one rank calls, all must
call, in the same order: one that waits for the others waits for ever. ``docs/distributed.md`` tells how to start them.
"""

from .checkpoint import Checkpoint
from .data_parallel import DataParallel
from .operations import all_reduce, broadcast, check_grads
from .sharding import shard
from .start import barrier, init, rank, size
from .sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

__all__ = [
    "Checkpoint", "DataParallel", "SyncBatchNorm", "all_reduce", "barrier", "broadcast", "check_grads",
    "convert_sync_batchnorm", "init", "rank", "shard", "size",
]  # fmt: skip
