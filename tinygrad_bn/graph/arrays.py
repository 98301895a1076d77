"""Copies of the engine's arrays in the host's memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import core
from ..backend import to_numpy, xp_of, zeros
from ..core import AddAt, Box

_sum_to = core.sum_to.primitive.function


def host_copy(x: Any) -> np.ndarray:
    """A Tensor, an array or a NumPy scalar as a new C-ordered array in the host's memory."""
    raw = x._data if isinstance(x, Box) else x
    return np.array(raw if isinstance(raw, np.generic) else to_numpy(raw), order="C")


def frozen(x: Any) -> Any:
    """Options, or aux, with their arrays copied."""
    if type(x) in (tuple, list):
        return type(x)(map(frozen, x))
    return host_copy(x) if isinstance(x, (Box, np.ndarray)) or hasattr(x, "__cuda_array_interface__") else x


def arrived(value: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray | None:
    """What the walk makes of a rule's gradient before it accumulates it; None for what the walk will refuse."""
    if type(value) is AddAt:
        dense = zeros(shape, dtype, like=value.value)
        xp_of(dense).add.at(dense, value.index, value.value.astype(dtype))
        return host_copy(dense)
    raw = value._data if isinstance(value, Box) else value
    if not hasattr(raw, "dtype"):
        return None
    if raw.shape != shape:
        try:
            raw = _sum_to(raw, shape=shape)
        except (ValueError, IndexError):
            return None
    return host_copy(raw).astype(dtype, copy=False)


def same(value: np.ndarray | None, x: Any) -> bool:
    """Whether an array still holds what was copied from it, NaN being NaN."""
    now = x if isinstance(x, np.generic) else to_numpy(x)
    if value is None or now.shape != value.shape or now.dtype != value.dtype:
        return False
    equal = now == value
    return bool(equal.all()) or (now.dtype.kind in "fc" and bool((equal | ((now != now) & (value != value))).all()))


def shares(out: Any, x: Any) -> bool:
    """Whether an output is an input, or a view of it."""
    if isinstance(out, np.ndarray):
        return isinstance(x, np.ndarray) and out.size > 0 and np.may_share_memory(out, x)
    return out is x or (getattr(out, "base", None) is not None and out.base is x)
