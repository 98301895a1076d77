"""Exchange over NCCL, by CuPy: from GPU to GPU, on a stream of its own beside the one that computes.

More than one rank has run on emulated GPUs only. The ranks find each other, and exchange what is no array on a GPU, over MPI.
Source: the NCCL user guide, "Collective operations"; CuPy's ``cupy.cuda.nccl``.
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import numpy as np

from ..backend import load_cuda
from .communicators import Array, Communicator, Request

_ID_BYTES = 128  # NCCL_UNIQUE_ID_BYTES of nccl.h, which CuPy's module does not name


def gpus() -> int:
    """The number of GPUs of this machine that the process may use."""
    return load_cuda().xp.cuda.runtime.getDeviceCount()


def library() -> Any:
    """CuPy's module for NCCL; None where NCCL itself is not installed."""
    xp = load_cuda().xp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's, that there is none: who asks for NCCL gets our error
        nccl = importlib.import_module(f"{xp.__name__}.cuda.nccl")
    return nccl if nccl.available else None


class NCCLRequest(Request):
    """An exchange on the side stream. It needs nobody to make progress, and to wait costs the host no time."""

    def __init__(self, xp: Any, done: Any):
        self._xp, self._done = xp, done

    def test(self) -> bool:
        return bool(self._done.done)

    def wait(self) -> None:
        self._xp.cuda.get_current_stream().wait_event(self._done)


class NCCLCommunicator(Communicator):
    """One GPU for each rank of ``host``, a communicator over MPI, which serves arrays in the host's memory."""

    name = "nccl"

    def __init__(self, host: Communicator):
        self._host, self._xp = host, load_cuda().xp
        self.rank, self.size = host.rank, host.size
        self.local_rank, self.local_size = host.local_rank, host.local_size
        if self.local_rank >= gpus():
            raise RuntimeError(
                f"distributed: NCCL needs a GPU for each rank of a machine; rank {self.rank} is its number {self.local_rank}, "
                f"and there are {gpus()}"
            )
        self._library = library()
        if self._library is None:
            raise RuntimeError(
                "distributed: NCCL is not installed: pip install nvidia-nccl-cu12 (or nvidia-nccl-cu13, as your CuPy is), or "
                "init('mpi') to exchange over the host"
            )
        self._xp.cuda.Device(self.local_rank).use()
        unique = self._library.get_unique_id() if self.rank == 0 else bytes(_ID_BYTES)
        unique = host.broadcast(np.frombuffer(unique, np.uint8)).tobytes()
        self._nccl = self._library.NcclCommunicator(self.size, unique, self.rank)
        self._stream = self._xp.cuda.Stream(non_blocking=True)

    def all_reduce(self, x: Array) -> Array:
        if isinstance(x, np.ndarray):
            return self._host.all_reduce(x)
        total = self._xp.array(x, "float32" if x.dtype == "float16" else x.dtype, order="C")
        self.start_all_reduce(total).wait()
        return total.astype(x.dtype, copy=False)

    def all_gather(self, x: Array) -> Array:
        if isinstance(x, np.ndarray):
            return self._host.all_gather(x)
        x = self._xp.ascontiguousarray(x)
        gathered = self._xp.empty((self.size, *x.shape), x.dtype)
        self._launch("allGather", x.data.ptr, gathered.data.ptr, x.nbytes, self._library.NCCL_CHAR).wait()
        return gathered

    def broadcast(self, x: Array, root: int = 0) -> Array:
        if isinstance(x, np.ndarray):
            return self._host.broadcast(x, root)
        x = self._xp.array(x, order="C")
        self._launch("broadcast", x.data.ptr, x.data.ptr, x.nbytes, self._library.NCCL_CHAR, root).wait()
        return x

    def start_all_reduce(self, flat: Array) -> Request:
        if isinstance(flat, np.ndarray):
            return self._host.start_all_reduce(flat)
        nccl = self._library
        kinds = {"f4": nccl.NCCL_FLOAT32, "f8": nccl.NCCL_FLOAT64, "i4": nccl.NCCL_INT32, "i8": nccl.NCCL_INT64}
        kind = kinds[flat.dtype.str[1:]]
        return self._launch("allReduce", flat.data.ptr, flat.data.ptr, math.prod(flat.shape), kind, nccl.NCCL_SUM)

    def start_broadcast(self, flat: np.ndarray, root: int = 0) -> Request:
        return self._host.start_broadcast(flat, root)

    def gather_text(self, text: str) -> list[str]:
        return self._host.gather_text(text)

    def barrier(self) -> None:
        self._host.barrier()

    def duplicate(self) -> Communicator:
        return NCCLCommunicator(self._host.duplicate())

    def duplicate_for_host(self) -> Communicator:
        return self._host.duplicate()

    def _largest(self, x: np.ndarray) -> np.ndarray:
        return self._host._largest(x)

    def _launch(self, collective: str, *args: Any) -> Request:
        """Start after what the current stream has to do, on the side stream."""
        self._stream.wait_event(self._xp.cuda.get_current_stream().record())
        getattr(self._nccl, collective)(*args, self._stream.ptr)
        return NCCLRequest(self._xp, self._stream.record())
