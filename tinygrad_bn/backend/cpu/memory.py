"""Memory for large arrays, which is used again as soon as nobody refers to it.

The C library gives the memory of a freed array of some megabytes back to the system, and gets it anew for the next one, a page
fault for each 4 KiB: thousands in a training step. Here it stays. An array lies in a block, which all of its views refer to;
a block that the pool alone refers to is free, which its reference count tells, so none is ever handed out twice. Neighbours
that are free make room for larger arrays together.
"""

from __future__ import annotations

import mmap
import sys
import threading
from math import prod
from typing import Any

import numpy as np

SMALLEST = 1 << 17  # bytes; the C library keeps smaller ones itself
_SLAB = 1 << 28  # bytes that are asked of the system at a time; it counts those that have been written to
_PAGE = mmap.PAGESIZE


class Block(np.ndarray):
    """A part of a slab, as bytes. An array that lies in it has it as its ``base``."""


class _Slab:
    """Memory of the system's own, cut into blocks; a part without a block was never used, or was given back."""

    def __init__(self, size: int):
        self.memory = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)  # of this process alone, also after a fork
        self.parts: list[tuple[int, int, Block | None]] = [(0, size, None)]  # start, size, block

    def block(self, start: int, size: int) -> Block:
        return np.ndarray.__new__(Block, (size,), np.uint8, self.memory, start)  # type: ignore[call-overload]

    def lease(self, size: int) -> Block | None:
        """A block of the first free parts, side by side, that have room for it."""
        first = room = 0
        for i, (_, length, block) in enumerate(self.parts):
            if block is not None and sys.getrefcount(block) != _FREE:
                first, room = i + 1, 0
                continue
            if length == size and block is not None:
                return block
            room += length
            if room >= size:
                at = self.parts[first][0]
                used = self.parts[i][2] is not None
                found = self.block(at, size)
                rest = (at + size, room - size, self.block(at + size, room - size) if used else None)
                del block  # (another reference would be counted)
                self.parts[first : i + 1] = [(at, size, found), *([rest] if room > size else [])]
                return found
        return None

    def give_back(self) -> int:
        """Let the system have the memory of the free blocks. Returns their bytes."""
        freed = 0
        for i, (start, size, block) in enumerate(self.parts):
            if block is not None and sys.getrefcount(block) == _FREE:
                if hasattr(self.memory, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
                    self.memory.madvise(mmap.MADV_DONTNEED, start, size)
                self.parts[i] = start, size, None
                freed += size
        return freed


def _references() -> int:
    """What getrefcount says, where a slab asks, of a block that only the slab refers to."""
    parts = [(0, 0, object())]
    for _, (_, _, block) in enumerate(parts):  # noqa: B007
        pass
    return sys.getrefcount(block)


_FREE = _references()
_slabs: list[_Slab] = []
_lock = threading.Lock()


def _counts_tell() -> bool:
    """Whether reference counts are what they are taken for: of all threads, and told in the way that is tried here."""
    if hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled():
        return False
    slab = _Slab(_PAGE)
    x = np.ndarray((1,), np.uint8, slab.lease(_PAGE))
    taken = slab.lease(_PAGE) is None
    del x
    return taken and slab.lease(_PAGE) is not None


_pooling = _counts_tell()


def _lease(size: int) -> Block:
    for slab in _slabs:
        block = slab.lease(size)
        if block is not None:
            return block
    try:
        slab = _Slab(max(_SLAB, size))
    except OSError:  # a system that promises no more than it has
        slab = _Slab(size)
    _slabs.append(slab)
    block = slab.lease(size)
    assert block is not None
    return block


def empty(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> np.ndarray:
    """``numpy.empty``, for a large array in memory that was used before if there is some. ``strides`` cover the same bytes."""
    size = prod(shape)
    if strides is None and size < SMALLEST // 16:  # (so often that the rest would cost time; an element has at most 16 bytes)
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    nbytes = size * dtype.itemsize
    if nbytes < SMALLEST or not _pooling:
        return np.empty(shape, dtype) if strides is None else np.ndarray(shape, dtype, np.empty(nbytes, "u1"), 0, strides)
    with _lock:
        return np.ndarray(shape, dtype, _lease(-(-nbytes // _PAGE) * _PAGE), 0, strides)


def leased(x: Any) -> bool:
    """Whether x is an array that ``empty`` made in a block, not a view of it: as good as one that owns its memory."""
    return type(x.base) is Block


def empty_cache() -> int:
    """Give the memory that no array uses back to the system. Returns how many bytes that were."""
    with _lock:
        freed = sum(slab.give_back() for slab in _slabs)
        _slabs[:] = [slab for slab in _slabs if any(block is not None for _, _, block in slab.parts)]
    return freed
