"""Each rank's part of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..backend import type_name
from ..datasets import Batches
from ..ops.checks import is_int, need_int
from .communicators import current
from .start import need_init


class Shard:
    """What ``shard`` returns: iterate over it once for each epoch. Its place in the data is that of the Batches."""

    def __init__(self, batches: Batches, rank: int, size: int):
        self._batches, self._rank, self._size = batches, rank, size

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._batches.part(self._rank, self._size)


def shard(batches: Batches, rank: int | None = None, size: int | None = None, epoch: int | None = None) -> Shard:
    """The rows of each batch that belong to this rank: with the other ranks' they are the batch, each row once, in order.

    ``batches`` is a ``datasets.batches(...)`` with the same arguments on every rank, so that all shuffle alike; its
    ``batch_size`` is that of all ranks together. A batch of n rows is cut into ``size`` parts that differ by one row at most: a
    batch smaller than ``size`` leaves some ranks an empty one. The order of the data so does not depend on the number of ranks.
    ``rank`` and ``size`` are by default this process's, ``epoch`` the one where ``batches`` stands.

    Raises TypeError for anything but Batches, ValueError for a rank that is not below size.
    """
    if not isinstance(batches, Batches):
        raise TypeError(f"shard expected what datasets.batches() returns, got {type_name(batches)}")
    if size is None or rank is None:
        need_init("shard")
    size = current().size if size is None else need_int("shard", "size", size, 1)
    rank = current().rank if rank is None else rank
    if not is_int(rank) or not 0 <= rank < size:
        raise ValueError(f"shard expected rank to be an int from 0 to {size - 1}, got {rank!r}")
    if epoch is not None:
        batches.set_epoch(epoch)
    return Shard(batches, int(rank), size)
