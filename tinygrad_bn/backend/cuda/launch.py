"""The CUDA sources beside this file: compiled for a dtype when first wanted, and launched.

A step of a small network is dozens of launches, each of which takes microseconds of the host's time. So what stands here is
written for few calls.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from ..libraries import xp_of
from ..portable import window_counts

THREADS = 256  # of a block: THREADS in common.cuh
FLOATS = frozenset(map(np.dtype, ("float16", "float32", "float64")))  # what kernels are compiled for
_LARGE = 1 << 31  # elements, which 32 bits do not count
SOURCES = "conv", "elementwise", "loss", "norm", "optim", "philox", "pool", "reduce", "sums"


@lru_cache
def source(name: str) -> str:
    """The text of a source, with what all have in common before it."""
    folder = files(__package__)
    return "\n".join((folder / file).read_text(encoding="utf-8") for file in ("common.cuh", f"{name}.cu"))


def options(dtype: Any, *defines: str) -> tuple[str, ...]:
    """How a source is compiled for arrays of a dtype. ``defines``: what else it wants to know, as ``NAME=value``."""
    dtype = np.dtype(dtype)
    if dtype not in FLOATS:
        raise TypeError(f"CUDA kernels are of floating arrays, got {dtype}")
    return "-std=c++17", f"-DDTYPE={8 * dtype.itemsize}", *(f"-D{d}" for d in defines)


@lru_cache(None)
def _module(xp: Any, name: str, dtype: Any, defines: tuple[str, ...]) -> Any:
    return xp.RawModule(code=source(name), options=options(dtype, *defines))


@lru_cache(None)
def _kernel(xp: Any, name: str, kernel: str, dtype: Any, defines: tuple[str, ...]) -> Any:
    return _module(xp, name, dtype, defines).get_function(kernel)


def launch(name: str, kernel: str, grid: tuple[int, ...], like: Any, *args: Any, defines: tuple[str, ...] = ()) -> None:
    """Run a kernel of the source ``name`` on ``grid`` blocks, compiled for the dtype of the array ``like``, its largest.

    The kernels take arrays that are contiguous, Python's int as ``long long``, float as ``double``, None as a null pointer, and
    a NumPy array of one element as the struct that it is.
    """
    if like.size >= _LARGE:
        defines = (*defines, "LARGE=1")
    _kernel(xp_of(like), name, kernel, like.dtype, defines)(grid, (THREADS,), args)


counts = lru_cache(1024)(window_counts)  # of windows: portable.window_counts, remembered


def for_each(n: int) -> tuple[int]:
    """A grid with a thread for each of n elements."""
    return (-(-n // THREADS),)


def plain(x: Any) -> Any:
    """x itself if it is contiguous, else such a copy."""
    return x if x._c_contiguous else xp_of(x).ascontiguousarray(x)  # (what x.flags asks, in a fifth of the time)


def empty(like: Any, shape: Any, dtype: Any) -> Any:
    """What ``xp.empty(shape, dtype)`` gives, where ``like`` lives."""
    return type(like)(shape, dtype)


def fits(x: Any, *others: Any) -> bool:
    """Whether there are kernels for these arrays, of which the others may be None: of one dtype, and not empty."""
    dtype = x.dtype
    if dtype not in FLOATS or not x.size:
        return False
    for a in others:  # noqa: SIM110 (a generator takes twice the time)
        if a is not None and a.dtype != dtype:
            return False
    return True


def struct(*numbers: int) -> np.ndarray:
    """Whole numbers as one argument: a struct of ``int``."""
    return opaque(np.array(numbers, np.int32))


def opaque(numbers: np.ndarray) -> np.ndarray:
    """An array as one element, whose bytes a kernel takes for a struct. (Without names, which CuPy takes long to ask for.)"""
    return numbers.view(f"V{numbers.nbytes}")
