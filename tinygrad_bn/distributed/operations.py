"""Exchanges as operations: their gradients are exchanges too, so that one function may be spread over ranks, to any order.

What is differentiated is the sum over all ranks of what each makes of its results. There an exchange is a linear map from all
ranks' x to all ranks' y, and its rule is the adjoint map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import as_array, xp_of
from ..core import Box, cast, is_grad_enabled, primitive
from ..gradcheck import check_part
from ..ops.checks import is_int, need_one_of, shape_of
from ..tensor import Tensor
from .communicators import current
from .start import need_init


@primitive
def _all_reduce(x):
    """y of every rank = the sum of all ranks' x."""
    return current().all_reduce(x)


@primitive
def _broadcast(x, *, root):
    """y of every rank = the x of ``root``."""
    return current().broadcast(x, root)


@primitive
def _reduce(x, *, root):
    """y of ``root`` = the sum of all ranks' x; y of the others = 0."""
    total = current().all_reduce(x)
    return total if current().rank == root else xp_of(x).zeros_like(x)


def _agreed(call: str, x: Any) -> Any:
    """x, once all ranks have said that they make the same call; recorded if any rank's is, for backward is an exchange too."""
    mine = isinstance(x, Box) and x._requires_grad and is_grad_enabled()
    mode = "" if is_grad_enabled() else ", under no_grad()"
    anybodys = current().agree(f"{call} of {x.dtype} {x.shape}{mode}", mine)
    return x if mine or not anybodys else Tensor(x._data if isinstance(x, Box) else x).requires_grad_()


_all_reduce.defvjp(lambda g, _out, _x: _all_reduce(_agreed("the gradient of all_reduce", g)))
_broadcast.defvjp(lambda g, _out, _x, *, root: _reduce(_agreed(f"the gradient of broadcast from {root}", g), root=root))
_reduce.defvjp(lambda g, _out, _x, *, root: _broadcast(_agreed(f"the gradient of reduce to {root}", g), root=root))


def all_reduce(x: Any, op: str = "sum") -> Any:
    """The sum (or, with ``op="mean"``, the mean) over all ranks of x, a Tensor or array of one shape and dtype on all of them.

    The same bits on every rank. Its gradient is the sum (or the mean) over all ranks of theirs, on all ranks if x requires grad
    on any. The mean of float16 is taken in float32, that of integers is float64; the sum of small integers may wrap, as NumPy's
    does. In a single process it returns x itself, but for the mean of integers. Raises ValueError, on every rank, where shapes,
    dtypes or calls differ, TypeError for what holds no numbers.
    """
    x = _numbers("all_reduce", x)
    need_one_of("all_reduce", "op", op, "sum", "mean")
    if current().size == 1:
        return x if op == "sum" or x.dtype.kind == "f" else x * 1.0
    if op == "sum":
        return _all_reduce(_agreed("all_reduce", x))
    half = x.dtype == "float16"
    mean = _all_reduce(_agreed("all_reduce", cast(x, dtype="float32") if half else x)) * (1.0 / current().size)
    return cast(mean, dtype="float16") if half else mean


def broadcast(x: Any, root: int = 0) -> Any:
    """The x of rank ``root``, on every rank; that of the others has the same shape and dtype, and does not count.

    The gradient of the root's x is the sum over all ranks of theirs, that of the others' is zero; all ranks take part in it if
    x requires grad on any. In a single process it returns x itself. Raises ValueError, on every rank, where shapes, dtypes or
    calls differ, and for a rank that is not there.
    """
    x = _numbers("broadcast", x)
    if not is_int(root) or not 0 <= root < current().size:
        raise ValueError(f"broadcast expected root to be a rank from 0 to {current().size - 1}, got {root!r}")
    return x if current().size == 1 else _broadcast(_agreed(f"broadcast from {root}", x), root=int(root))


def _numbers(name: str, x: Any) -> Any:
    """x, a scalar of NumPy as an array; raises unless it holds numbers that can be exchanged."""
    need_init(name)
    shape_of(name, x)
    dtype = x.dtype
    if dtype.kind not in "fiu":
        raise TypeError(f"{name} expected floats or integers, got {dtype}")
    if not dtype.isnative:
        raise TypeError(f"{name} expected this machine's byte order, got {dtype.str}")
    return as_array(x) if not isinstance(x, Box) else x


def check_grads(f: Callable, args: Any, order: int = 2, rtol: float = 1e-6, atol: float = 1e-8, seed: int = 0) -> None:
    """``tinygrad_bn.check_grads`` of a function that all ranks compute together: each calls this with its own arguments.

    What is checked is the sum over all ranks of their results, as a function of all ranks' arguments, whose shapes may differ.
    Every rank raises, or none.
    """
    sums = current()

    def total(mine: float) -> float:
        return float(sums.all_reduce(np.array(mine)))

    check_part(f, args, order, rtol, atol, np.random.default_rng((seed, sums.rank)), total)
