"""Products of matrices by cuBLAS, from and into memory as it lies, in one call for many.

CuPy's matmul copies a transposed stack, points to each matrix where one serves for many, and knows no float16 there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import cuda_settings as settings
from ..libraries import xp_of
from .launch import empty

_FACTORS = {d: np.array([0, 1], d) for d in ("float32", "float64")}  # where cuBLAS reads them: on the host, when it is called


class _Types(NamedTuple):
    """What cuBLAS calls the dtypes of factors and of results, what it computes in, and how; and where 0 and 1 of that lie."""

    stored: int
    result: int
    compute: int
    algorithm: int
    zero: int
    one: int


@lru_cache(None)
def _types(xp: Any, stored: np.dtype, result: np.dtype, tf32: bool) -> _Types:
    """float16 and float32 are summed in float32, of which TensorFloat-32 is a part only where that is allowed."""
    names = {"float16": "CUDA_R_16F", "float32": "CUDA_R_32F", "float64": "CUDA_R_64F"}
    cublas, wide = xp.cuda.cublas, "float64" if stored == "float64" else "float32"
    compute = cublas.CUBLAS_COMPUTE_64F if wide == "float64" else cublas.CUBLAS_COMPUTE_32F
    if tf32 and stored == "float32":
        compute = cublas.CUBLAS_COMPUTE_32F_FAST_TF32
    of_factors, of_result = (getattr(xp.cuda.runtime, names[dtype.name]) for dtype in (stored, result))
    zero = _FACTORS[wide].ctypes.data
    return _Types(of_factors, of_result, compute, cublas.CUBLAS_GEMM_DEFAULT, zero, zero + _FACTORS[wide].itemsize)


def _tf32(xp: Any) -> bool:
    return settings.allow_tf32 and int(xp.cuda.Device().compute_capability) >= 80


class _Stack(NamedTuple):
    """How matrices (p, q, rows, columns) lie: whether by columns, the way from one of the others to the next, and that to the
    next matrix along p, in bytes, and along q, in elements."""

    by_columns: int
    lead: int
    outer: int
    inner: int


def _stack(x: Any) -> _Stack:
    outer, inner, down, right = x.strides
    size, (p, q, _, columns) = x.itemsize, x.shape
    outer, inner = outer if p > 1 else 0, inner // size if q > 1 else 0
    if right == size or columns == 1:
        return _Stack(0, max(down // size, columns), outer, inner)
    return _Stack(1, right // size, outer, inner)


def product(a: Any, b: Any, turn_a: bool = False, turn_b: bool = False) -> Any:
    """a @ b of contiguous matrices of one dtype, with elements; a turned one stands for its transpose."""
    xp, (rows, inner) = xp_of(a), a.shape[::-1] if turn_a else a.shape
    columns = b.shape[0] if turn_b else b.shape[1]
    out = empty(a, (rows, columns), a.dtype)
    types = _types(xp, a.dtype, a.dtype, _tf32(xp))
    xp.cuda.cublas.gemmEx(  # by columns: out.T = b.T @ a.T
        xp.cuda.get_cublas_handle(), int(turn_b), int(turn_a), columns, rows, inner, types.one,
        b.data.ptr, types.stored, b.shape[1], a.data.ptr, types.stored, a.shape[1],
        types.zero, out.data.ptr, types.result, columns, types.compute, types.algorithm,
    )  # fmt: skip
    return out


def multiply(a: Any, b: Any, out: Any, add: bool = False) -> None:
    """out = a @ b for stacks of matrices (p, q, rows, columns); or += with ``add``. One may serve for all along p, or along q.

    In each matrix the elements of a row lie side by side, or those of a column, but not so in ``out``; else strides are free.
    What is summed over is not empty. float16 is summed in float32, and ``out`` may be float32 then. cuBLAS is called once if p
    or q is 1, else once for each along the shorter. Sizes from 2^31 on it does not know, and OverflowError says so.
    """
    if not out.size:
        return
    xp, (p, q, rows, columns) = xp_of(out), out.shape
    if p > q:
        a, b, out = (x.swapaxes(0, 1) for x in (a, b, out))
        p, q = q, p
    types = _types(xp, a.dtype, out.dtype, _tf32(xp))
    left, right, result = _stack(a), _stack(b), _stack(out)
    batched, handle = xp.cuda.cublas.gemmStridedBatchedEx, xp.cuda.get_cublas_handle()
    for i in range(p):
        # cuBLAS counts by columns: to it each matrix is its transpose, and out.T = b.T @ a.T.
        batched(
            handle, right.by_columns, left.by_columns, columns, rows, a.shape[-1], types.one,
            b.data.ptr + i * right.outer, types.stored, right.lead, right.inner,
            a.data.ptr + i * left.outer, types.stored, left.lead, left.inner,
            types.one if add else types.zero,
            out.data.ptr + i * result.outer, types.result, result.lead, result.inner,
            q, types.compute, types.algorithm,
        )  # fmt: skip
