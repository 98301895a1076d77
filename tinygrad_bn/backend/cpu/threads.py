"""How many threads the kernels on the CPU use."""

from __future__ import annotations

import os

import numpy as np

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_number = 0  # of threads; 0: as many as cores


def get_num_threads() -> int:
    """How many threads a kernel uses at most."""
    return _number or _CORES


def set_num_threads(n: int) -> None:
    """Let kernels on the CPU use at most n threads. The results are the same bits for any n.

    Raises TypeError for what is no whole number, ValueError for less than one.
    """
    global _number
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"set_num_threads expected a whole number, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"set_num_threads expected at least 1, got {n}")
    _number = int(n)


def threads_for(items: int) -> int:
    """How many threads ``run`` would use: for who needs scratch memory for each, and passes the number on."""
    return min(_number or _CORES, items)
