"""What the layers share: fresh parameters, and checks of sizes and inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import type_name
from ..ops.checks import need_int
from .module import Parameter


def need_positive(layer: str, **numbers: Any) -> None:
    for name, value in numbers.items():
        need_int(layer, name, value, 1)


def fresh(*shape: int) -> Parameter:
    return Parameter(np.empty(shape, np.float32))


def shape_or_none(x: Any) -> tuple[int, ...]:
    """The shape of x; () for what has none, which ``expect`` then refuses."""
    return getattr(x, "shape", ())


def expect(layer: str, x: Any, ok: bool, shape: str) -> None:
    if not ok:
        if not hasattr(x, "shape"):
            raise TypeError(f"{layer} expected a Tensor or an array of shape {shape}, got {type_name(x)}")
        raise ValueError(f"{layer} expected an input of shape {shape}, got {x.shape}")
