"""Copies from the host to a GPU that go on while it computes: from pinned memory, on a stream of their own."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from .libraries import load_cuda

# Pinned memory, and the event after which nobody reads it. It outlives the uploader that took it: were it given back to CuPy's
# pool while a copy goes on, the next to ask for memory would write into it.
_pinned: list[tuple[Any, np.ndarray]] = []
_taking = threading.Lock()


class Sent(NamedTuple):
    """Arrays on their way to the GPU, the event that they have arrived, and the stream on which they were allocated."""

    arrays: tuple[Any, ...]
    arrived: Any
    owner: Any


class Uploader:
    """``send`` starts a copy and returns at once; ``receive`` gives its arrays to the current stream.

    The arrays are allocated on the current stream, in whose order the pool hands memory out again: so the copy waits for what
    that stream was asked to do before, and goes on beside all that it is asked to do after; and whatever was sent must be
    received, also if nobody wants it any more. Nobody on the host waits: memory that a copy may still read is left alone, and
    more is taken.
    """

    def __init__(self) -> None:
        self._xp = load_cuda().xp
        self._stream = self._xp.cuda.Stream(non_blocking=True)

    def send(self, *arrays: np.ndarray) -> Sent:
        """Start to copy host arrays, which may be changed as soon as this returns."""
        cuda = self._xp.cuda
        owner = cuda.get_current_stream()
        targets = tuple(self._xp.empty(a.shape, a.dtype) for a in arrays)
        memory = self._memory(sum(-(-a.nbytes // 64) * 64 for a in arrays))
        free = cuda.Event(disable_timing=True)
        free.record(owner)
        self._stream.wait_event(free)
        at = 0
        for a, target in zip(arrays, targets, strict=True):
            if a.nbytes:
                staged = memory[at : at + a.nbytes].view(a.dtype).reshape(a.shape)
                staged[...] = a
                target.set(staged, stream=self._stream)
                at += -(-a.nbytes // 64) * 64
        arrived = cuda.Event(disable_timing=True)
        arrived.record(self._stream)
        with _taking:
            _pinned.append((arrived, memory))
        return Sent(targets, arrived, owner)

    def receive(self, sent: Sent) -> tuple[Any, ...]:
        """The arrays, for what the current stream is asked to do from now on."""
        here = self._xp.cuda.get_current_stream()
        for stream in {here.ptr: here, sent.owner.ptr: sent.owner}.values():
            stream.wait_event(sent.arrived)
        return sent.arrays

    def _memory(self, nbytes: int) -> np.ndarray:
        """Pinned memory that no copy reads any more."""
        with _taking:
            for i, (arrived, memory) in enumerate(_pinned):
                if memory.nbytes >= nbytes and arrived.done:
                    del _pinned[i]
                    return memory
        return np.frombuffer(self._xp.cuda.alloc_pinned_memory(max(1, nbytes)), np.uint8, max(1, nbytes))
