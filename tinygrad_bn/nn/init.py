"""Initial weights. Each function fills a tensor with new values, drawn on the host, and returns it.

fan_in and fan_out of a weight (out, in, *kernel) are in * prod(kernel) and out * prod(kernel).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import random
from ..backend import to_device, type_name
from ..ops.checks import need_number, need_one_of
from ..tensor import Tensor


def _check(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} expected a Tensor, got {type_name(t)}")
    if t.node is not None:
        raise TypeError(f"{name} expected a leaf, got a result of {t.node.name}")


def _check_floating(name: str, t: Any) -> None:
    _check(name, t)
    if t.dtype.kind != "f":
        raise TypeError(f"{name} expected a floating Tensor, got {t.dtype}")


def _fill(t: Tensor, values: np.ndarray) -> Tensor:
    t.data = to_device(np.ascontiguousarray(values, dtype=t.dtype), t.device)
    return t


def _fans(name: str, t: Tensor) -> tuple[int, int]:
    _check_floating(name, t)
    if t.ndim < 2:
        raise ValueError(f"{name} expected a weight of at least 2 dimensions (out, in, *kernel), got shape {t.shape}")
    field = math.prod(t.shape[2:])
    return t.shape[1] * field, t.shape[0] * field


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """By what to multiply the initial standard deviation so that this nonlinearity keeps the variance; PyTorch's values.

    ``param`` is leaky_relu's slope (0.01 by default). He et al. 2015 for the rectifiers.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1.0 + slope * slope))
    gains = {"linear": 1.0, "conv": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3.0, "relu": math.sqrt(2.0)}
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain expected one of {', '.join([*gains, 'leaky_relu'])}, got {nonlinearity!r}")
    return gains[nonlinearity]


def constant_(t: Tensor, value: float) -> Tensor:
    """Every element is ``value``."""
    return _constant("constant_", t, value)


def _constant(name: str, t: Tensor, value: float) -> Tensor:
    _check(name, t)
    return _fill(t, np.full(t.shape, need_number(name, "value", value)))


def zeros_(t: Tensor) -> Tensor:
    """Every element is 0."""
    return _constant("zeros_", t, 0.0)


def ones_(t: Tensor) -> Tensor:
    """Every element is 1."""
    return _constant("ones_", t, 1.0)


def uniform_(t: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform between ``low`` and ``high``."""
    _check_floating("uniform_", t)
    low, high = need_number("uniform_", "low", low), need_number("uniform_", "high", high)
    if not low <= high:
        raise ValueError(f"uniform_ expected low <= high, got {low} and {high}")
    return _fill(t, random.generator().uniform(low, high, t.shape))


def normal_(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal with this mean and standard deviation."""
    _check_floating("normal_", t)
    mean, std = need_number("normal_", "mean", mean), need_number("normal_", "std", std, 0)
    return _fill(t, mean + std * random.generator().standard_normal(t.shape))


def _fan(name: str, t: Tensor, mode: str) -> int:
    fan_in, fan_out = _fans(name, t)
    need_one_of(name, "mode", mode, "fan_in", "fan_out")
    fan = fan_in if mode == "fan_in" else fan_out
    if not fan:
        raise ValueError(f"{name} expected a weight of at least one element, got shape {t.shape}")
    return fan


def kaiming_normal_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Normal with standard deviation gain / sqrt(fan); ``a`` is leaky_relu's slope. He et al. 2015, eq. 14."""
    return normal_(t, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan("kaiming_normal_", t, mode)))


def kaiming_uniform_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Uniform between -b and b, b = gain * sqrt(3 / fan); ``a`` is leaky_relu's slope. He et al. 2015."""
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3.0 / _fan("kaiming_uniform_", t, mode))
    return uniform_(t, -bound, bound)


def xavier_normal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 12."""
    return normal_(t, 0.0, gain * math.sqrt(2.0 / sum(_fans("xavier_normal_", t))))


def xavier_uniform_(t: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform between -b and b, b = gain * sqrt(6 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 16."""
    bound = gain * math.sqrt(6.0 / sum(_fans("xavier_uniform_", t)))
    return uniform_(t, -bound, bound)


def default_(weight: Tensor, bias: Any, fan_in: int) -> None:
    """What the layers begin with, as PyTorch's do: both uniform between -b and b, b = 1 / sqrt(fan_in). LeCun et al. 1998."""
    bound = 1.0 / math.sqrt(fan_in) if fan_in else 0.0
    uniform_(weight, -bound, bound)
    if bias is not None:
        uniform_(bias, -bound, bound)
