"""How the ranks exchange arrays. Each rank has its end of a communicator; all call the same methods in the same order.

This one is a single process's, where every exchange is the identity; ``mpi.py`` and ``nccl.py`` have those for more.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

Array = Any


class Request:
    """An exchange under way. This one, of a single process, is over before it began."""

    def test(self) -> bool:
        """Let the exchange go on, which it may do only here; and whether it is over."""
        return True

    def wait(self) -> None:
        """Return when it is over."""


class Communicator:
    """A single process. ``local_rank`` and ``local_size`` count the ranks of this machine."""

    name = "single"
    rank, size = 0, 1
    local_rank, local_size = 0, 1

    def all_reduce(self, x: Array) -> Array:
        """The sum of all ranks' x, a new array, with the same bits on every rank. float16 is summed in float32."""
        return x.copy()

    def all_gather(self, x: Array) -> Array:
        """All ranks' x, of one shape and dtype, along a new first axis."""
        return x[None].copy()

    def broadcast(self, x: Array, root: int = 0) -> Array:  # noqa: ARG002
        """The x of ``root``, a new array; that of the others only says shape, dtype and device."""
        return x.copy()

    def start_all_reduce(self, flat: Array) -> Request:  # noqa: ARG002
        """Begin to replace ``flat``, an array in one piece, by the sum of all ranks'. Nobody may touch it until the end."""
        return Request()

    def start_broadcast(self, flat: np.ndarray, root: int = 0) -> Request:  # noqa: ARG002
        """Begin to replace ``flat``, in the host's memory, by that of ``root``."""
        return Request()

    def gather_text(self, text: str) -> list[str]:
        """All ranks' texts, on every rank."""
        return [text]

    def barrier(self) -> None:
        """Return when all ranks have called this."""

    def duplicate(self) -> Communicator:
        """Another one of the same ranks, whose exchanges are independent of those of this one."""
        return self

    def duplicate_for_host(self) -> Communicator:
        """The same for arrays in the host's memory alone."""
        return self.duplicate()

    def agree(self, call: str, number: int = 0) -> int:
        """Raise ValueError, on every rank, unless all say the same. Returns the largest of the ranks' numbers."""
        if self.size == 1:
            return number
        check = zlib.crc32(call.encode())
        *checks, largest = self._largest(np.array([check, -check, number])).tolist()
        if checks != [check, -check]:
            said = self.gather_text(call)
            other = next(r for r, text in enumerate(said) if text != said[0])
            raise ValueError(
                f"distributed: expected the same call on every rank, got {said[0]} on rank 0, and {said[other]} on rank {other}"
            )
        return largest

    def _largest(self, x: np.ndarray) -> np.ndarray:
        """The elementwise maximum over all ranks, of integers."""
        return x


active = [Communicator()]  # the one that init() chose


def current() -> Communicator:
    """The communicator of all ranks; a single process's before ``init()``."""
    return active[0]
