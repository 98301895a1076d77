"""Normalisations that do not look at the batch, and what BatchNorm shares with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..ops.checks import need_bool, need_number
from ..tensor import Tensor
from . import init
from .common import expect, fresh, need_positive, shape_or_none
from .module import Module, Parameter


class AffineNorm(Module):
    """What LayerNorm and GroupNorm share: gamma (weight) and beta (bias), kept in at least float32."""

    weight: Parameter | None
    bias: Parameter | None

    def _setup(self, shape: tuple[int, ...], affine: bool, name: str = "affine") -> None:
        need_bool(type(self).__name__, name, affine)
        self.weight = init.ones_(fresh(*shape)) if affine else None  # type: ignore[assignment]
        self.bias = init.zeros_(fresh(*shape)) if affine else None  # type: ignore[assignment]

    def _dtype_for(self, dtype: np.dtype) -> np.dtype:
        return np.dtype("float32") if dtype == "float16" else dtype


class LayerNorm(AffineNorm):
    """(..., *normalized_shape) -> the same: each example normalised over its last axes; see ``ops.layer_norm``."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True):
        shape = tuple(normalized_shape) if hasattr(normalized_shape, "__iter__") else (normalized_shape,)
        if not shape:
            raise ValueError("LayerNorm expected normalized_shape to be an int or a tuple of at least one, got ()")
        for n in shape:
            need_positive("LayerNorm", normalized_shape=n)
        self.normalized_shape, self.eps = shape, need_number("LayerNorm", "eps", eps, 0)
        self.elementwise_affine = elementwise_affine
        self._setup(shape, elementwise_affine, "elementwise_affine")

    def forward(self, x: Tensor) -> Tensor:
        k = len(self.normalized_shape)
        ok = shape_or_none(x)[-k:] == self.normalized_shape
        expect("LayerNorm", x, ok, f"(..., {', '.join(map(str, self.normalized_shape))})")
        return ops.layer_norm(x, self.weight, self.bias, tuple(range(-k, 0)), self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(AffineNorm):
    """(N, num_channels, *S) -> the same: each example normalised over each group of channels; see ``ops.group_norm``."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True):
        need_positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm expected num_groups={num_groups} to divide num_channels={num_channels}")
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = need_number("GroupNorm", "eps", eps, 0), affine
        self._setup((num_channels,), affine)

    def forward(self, x: Tensor) -> Tensor:
        shape = shape_or_none(x)
        ok = len(shape) >= 2 and shape[1] == self.num_channels
        expect("GroupNorm", x, ok, f"(N, {self.num_channels}, ...)")
        return ops.group_norm(x, self.weight, self.bias, self.num_groups, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
