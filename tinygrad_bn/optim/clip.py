"""Gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import device_of, type_name, xp_of
from ..core import Box
from ..tensor import Tensor
from .optimizer import Array, number


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)), in place, and return ``norm``, that of before, as a Tensor.

    ``norm`` is sum(|g| ** norm_type) ** (1 / norm_type) over all elements of all gradients; for ``norm_type=math.inf`` the
    largest |g|. Parameters without a gradient do not count. Never waits for the device, so it cannot refuse a norm that is
    not finite: that makes the gradients NaN or zero, as in PyTorch. Pascanu, Mikolov and Bengio, "On the difficulty of
    training recurrent neural networks" (2013).

    Raises ValueError for a max_norm below 0, a norm_type not above 0, or gradients on several devices; TypeError for what is
    not a Tensor.
    """
    max_norm = max_norm if max_norm == math.inf else number("clip_grad_norm_: max_norm", max_norm)
    norm_type = norm_type if norm_type == math.inf else number("clip_grad_norm_: norm_type", norm_type)
    if norm_type == 0:
        raise ValueError("clip_grad_norm_: norm_type expected a number above 0, got 0")
    if not isinstance(parameters, (Box, Iterable)):
        raise TypeError(
            f"clip_grad_norm_ expected a Tensor or an iterable of them, got {type_name(parameters)}; pass .parameters()"
        )
    params: list[Any] = [parameters] if isinstance(parameters, Box) else list(parameters)
    for position, p in enumerate(params):
        if not isinstance(p, Box):
            raise TypeError(f"clip_grad_norm_ expected Tensors, got {type_name(p)} at position {position}")
    grads = [p.grad for p in params if p.grad is not None]
    devices = sorted({device_of(g._data) for g in grads})
    if len(devices) > 1:
        raise ValueError(f"clip_grad_norm_ expected gradients on one device, got {' and '.join(devices)}")
    if not grads:
        return Tensor((xp_of(params[0]._data) if params else np).zeros((), "float32"))
    flat = [g._data.ravel() for g in grads]
    xp = xp_of(flat[0])
    per_dtype = [
        _norm(xp.concatenate([g for g in flat if g.dtype == dtype]), norm_type)
        for dtype in dict.fromkeys(g.dtype for g in flat)
    ]
    total = per_dtype[0] if len(per_dtype) == 1 else _norm(xp.stack(per_dtype), norm_type)
    scale = xp.minimum(max_norm / (total + 1e-6), 1.0)
    for p in params:
        if p.grad is None:
            continue
        if p.grad.node is None:
            p.grad._data *= scale
            p.grad.bump_version()
        else:  # recorded by create_graph=True: its graph needs the old values
            p.grad = Tensor(p.grad._data * scale)
    return Tensor(xp.asarray(total))


def _norm(flat: Array, norm_type: float) -> Array:
    xp = xp_of(flat)
    if not flat.size:
        return xp.zeros((), flat.dtype)
    if norm_type == math.inf:
        return xp.abs(flat).max()
    if norm_type == 2:
        return xp.sqrt(xp.dot(flat, flat))
    return (xp.abs(flat) ** norm_type).sum() ** (1 / norm_type)
