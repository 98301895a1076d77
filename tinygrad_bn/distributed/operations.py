"""Exchanges as operations: their gradients are exchanges too, so that one function may be spread over ranks, to any order.

What is differentiated is the sum over all ranks of what each makes of its results. There an exchange is a linear map from all
ranks' x to all ranks' y, and its rule is the adjoint map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import xp_of
from ..core import Box, primitive
from ..gradcheck import check_part
from ..ops.checks import is_int, need_one_of, shape_of
from .communicators import current


@primitive
def _all_reduce(x):
    """y of every rank = the sum of all ranks' x."""
    current().agree(f"all_reduce of {x.dtype} {x.shape}")
    return current().all_reduce(x)


@primitive
def _broadcast(x, *, root):
    """y of every rank = the x of ``root``."""
    current().agree(f"broadcast of {x.dtype} {x.shape} from {root}")
    return current().broadcast(x, root)


@primitive
def _reduce(x, *, root):
    """y of ``root`` = the sum of all ranks' x; y of the others = 0."""
    current().agree(f"reduce of {x.dtype} {x.shape} to {root}")
    total = current().all_reduce(x)
    return total if current().rank == root else xp_of(x).zeros_like(x)


_all_reduce.defvjp(lambda g, _out, _x: _all_reduce(g))
_broadcast.defvjp(lambda g, _out, _x, *, root: _reduce(g, root=root))
_reduce.defvjp(lambda g, _out, _x, *, root: _broadcast(g, root=root))


def all_reduce(x: Any, op: str = "sum") -> Any:
    """The sum (or, with ``op="mean"``, the mean) over all ranks of x, a Tensor or array of one shape and dtype on all of them.

    The same bits on every rank. Its gradient is the sum (or the mean) over all ranks of theirs. In a single process it returns
    x itself. Raises ValueError, on every rank, where shapes, dtypes or calls differ, TypeError for what holds no numbers.
    """
    _need_numbers("all_reduce", x)
    need_one_of("all_reduce", "op", op, "sum", "mean")
    if current().size == 1:
        return x
    total = _all_reduce(x)
    return total * (1.0 / current().size) if op == "mean" else total


def broadcast(x: Any, root: int = 0) -> Any:
    """The x of rank ``root``, on every rank; that of the others has the same shape and dtype, and does not count.

    The gradient of the root's x is the sum over all ranks of theirs, that of the others' is zero. In a single process it
    returns x itself. Raises ValueError, on every rank, where shapes, dtypes or calls differ, and for a rank that is not there.
    """
    _need_numbers("broadcast", x)
    if not is_int(root) or not 0 <= root < current().size:
        raise ValueError(f"broadcast expected root to be a rank from 0 to {current().size - 1}, got {root!r}")
    return x if current().size == 1 else _broadcast(x, root=int(root))


def _need_numbers(name: str, x: Any) -> None:
    shape_of(name, x)
    if (x._data if isinstance(x, Box) else x).dtype.kind not in "fiu":
        raise TypeError(f"{name} expected floats or integers, got {x.dtype}")


def check_grads(f: Callable, args: Any, order: int = 2, rtol: float = 1e-6, atol: float = 1e-8, seed: int = 0) -> None:
    """``tinygrad_bn.check_grads`` of a function that all ranks compute together: each calls this with its own arguments.

    What is checked is the sum over all ranks of their results, as a function of all ranks' arguments, whose shapes may differ.
    Every rank raises, or none.
    """
    sums = current()

    def total(mine: float) -> float:
        return float(sums.all_reduce(np.array(mine)))

    check_part(f, args, order, rtol, atol, np.random.default_rng((seed, sums.rank)), total)
