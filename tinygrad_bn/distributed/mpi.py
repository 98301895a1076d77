"""Exchange over MPI, by mpi4py: of arrays on the CPU, and of those on a GPU through the host's memory.

No CUDA-aware MPI is asked for: the ones on PyPI are not. MPI knows no sum of float16. It makes no progress by itself: an
exchange under way goes on only while somebody calls ``test`` or waits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_device, to_numpy
from .communicators import Array, Communicator, Request

# On one machine the cores themselves move every byte, so there is nothing to hide behind other work; and MPICH's blocking
# all-reduce of such sizes is faster: 1.9 MB add 0.4 ms to a step at its end, and 1.2 ms in pieces during backward (2 cores).
_POSTPONED_BYTES = 1 << 12


# Exchanges that an error left: MPI goes on reading and writing their arrays until they are over.
_left: list[tuple[Any, np.ndarray]] = []


class MPIRequest(Request):
    def __init__(self, request: Any, host: np.ndarray, target: Array):
        self._request, self._host, self._target = request, host, target
        self._over = False
        _left[:] = [(other, memory) for other, memory in _left if not other.Test()]

    def __del__(self) -> None:
        if not self._over:
            _left.append((self._request, self._host))

    def test(self) -> bool:
        self._over = self._over or self._request.Test()
        return self._over

    def wait(self) -> None:
        self._request.Wait()
        self._over = True
        if self._target is not self._host:
            self._target[...] = to_device(self._host, "cuda")


class PostponedSum(Request):
    """An all-reduce that all ranks begin, and end, when they wait for it."""

    def __init__(self, comm: Any, host: np.ndarray):
        self._comm, self._host = comm, host

    def test(self) -> bool:
        return False

    def wait(self) -> None:
        self._comm.Allreduce(_in_place(), self._host)


class MPICommunicator(Communicator):
    """The ranks of an mpi4py communicator."""

    name = "mpi"

    def __init__(self, comm: Any, local: tuple[int, int]):
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
        self.local_rank, self.local_size = local

    def all_reduce(self, x: Array) -> Array:
        host = to_numpy(x)
        total = np.array(host, "float32" if host.dtype == "float16" else host.dtype, order="C")
        self._comm.Allreduce(_in_place(), total)
        return _back(total.astype(host.dtype, copy=False), x)

    def all_gather(self, x: Array) -> Array:
        host = np.ascontiguousarray(to_numpy(x))
        gathered = np.empty((self.size, *x.shape), host.dtype)
        self._comm.Allgather(_bytes(host), _bytes(gathered))
        return _back(gathered, x)

    def broadcast(self, x: Array, root: int = 0) -> Array:
        host = np.array(to_numpy(x), order="C")
        self._comm.Bcast(_bytes(host), root)
        return _back(host, x)

    def start_all_reduce(self, flat: Array) -> Request:
        host = to_numpy(flat)
        if host is flat and self.local_size == self.size and host.nbytes > _POSTPONED_BYTES:
            return PostponedSum(self._comm, host)
        return MPIRequest(self._comm.Iallreduce(_in_place(), host), host, flat)

    def start_broadcast(self, flat: np.ndarray, root: int = 0) -> Request:
        return MPIRequest(self._comm.Ibcast(_bytes(flat), root), flat, flat)

    def gather_text(self, text: str) -> list[str]:
        mine = np.frombuffer(text.encode(), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self._comm.Allgather(np.array([len(mine)]), lengths)
        ends = np.cumsum(lengths)
        every = np.empty(ends[-1], np.uint8)
        self._comm.Allgatherv(mine, [every, lengths, ends - lengths, _mpi().BYTE])
        return [every[end - n : end].tobytes().decode() for n, end in zip(lengths, ends, strict=True)]

    def barrier(self) -> None:
        self._comm.Barrier()

    def duplicate(self) -> Communicator:
        return MPICommunicator(self._comm.Dup(), (self.local_rank, self.local_size))

    def _largest(self, x: np.ndarray) -> np.ndarray:
        largest = np.empty_like(x)
        self._comm.Allreduce(x, largest, _mpi().MAX)
        return largest


def _mpi() -> Any:
    from mpi4py import MPI

    return MPI


def _in_place() -> Any:
    return _mpi().IN_PLACE


def _bytes(x: np.ndarray) -> list:
    """What is only moved: so that every dtype passes."""
    return [x.reshape(-1).view(np.uint8), _mpi().BYTE]


def _back(host: np.ndarray, x: Array) -> Array:
    """Where x is."""
    return host if isinstance(x, np.ndarray) else to_device(host, "cuda")
