"""The CUDA sources beside this file: compiled for a dtype when first wanted, and launched."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from ..libraries import xp_of

THREADS = 256  # of a block: THREADS in common.cuh
FLOATS = np.dtype("float16"), np.dtype("float32"), np.dtype("float64")  # what kernels are compiled for
_LARGE = 1 << 31  # elements, which 32 bits do not count
SOURCES = "conv", "elementwise", "loss", "norm", "optim", "philox", "pool", "sums"


@lru_cache
def source(name: str) -> str:
    """The text of a source, with what all have in common before it."""
    folder = files(__package__)
    return "\n".join((folder / file).read_text(encoding="utf-8") for file in ("common.cuh", f"{name}.cu"))


def options(dtype: Any, *defines: str) -> tuple[str, ...]:
    """How a source is compiled for arrays of a dtype. ``defines``: what else it wants to know, as ``NAME=value``."""
    return "-std=c++17", f"-DDTYPE={8 * np.dtype(dtype).itemsize}", *(f"-D{d}" for d in defines)


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


def for_each(n: int) -> tuple[int]:
    """A grid with a thread for each of n elements."""
    return (-(-n // THREADS),)


def plain(x: Any) -> Any:
    """x itself if it is contiguous, else such a copy."""
    return x if x.flags.c_contiguous else xp_of(x).ascontiguousarray(x)


def fits(*arrays: Any) -> bool:
    """Whether there are kernels for these arrays, of which those after the first may be None: of one dtype, and not empty."""
    x = arrays[0]
    return x.dtype in FLOATS and x.size > 0 and all(a is None or a.dtype == x.dtype for a in arrays)


def struct(*numbers: int) -> np.ndarray:
    """Whole numbers as one argument: a struct of ``int``."""
    return np.array(numbers, np.int32).view([("numbers", np.int32, (len(numbers),))])
