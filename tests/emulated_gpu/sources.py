"""The CUDA sources themselves, in place of their NumPy twins, for the stand-in for CuPy."""

from __future__ import annotations

import ctypes

import numpy as np
from fake_kernels import THREADS, Parameter, RawModule

from .build import kernels


def run(module: RawModule, name: str, grid: tuple[int, ...], wanted: list[Parameter], args: list) -> None:
    """In place of ``RawModule.by_twin``."""
    kept = []
    for p, a in zip(wanted, args, strict=True):
        if a is None or isinstance(a, np.ndarray) and p.kind.endswith("*"):
            kept.append(ctypes.c_void_p(None if a is None else a.ctypes.data))
        elif isinstance(a, np.ndarray):
            kept.append((ctypes.c_char * a.nbytes).from_buffer_copy(a.tobytes()))
        else:
            kept.append(
                (ctypes.c_double if type(a) is float else ctypes.c_ulonglong if p.kind == "Word" else ctypes.c_longlong)(a)
            )
    library = ctypes.CDLL(str(kernels(module.code, module.options)))
    blocks, threads = ((ctypes.c_uint * 3)(*size, *(1,) * (3 - len(size))) for size in (grid, (THREADS,)))
    wrong = library[f"run_{name}"](
        blocks, threads, ctypes.c_size_t(0), (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))
    )
    assert not wrong, f"some threads of {name} waited for others that had ended"
