"""Where the portable kernel is as fast: of small arrays, for which nothing need be imported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from .. import portable

__all__ = [
    *("relu", "relu_backward", "sigmoid", "sigmoid_backward", "sum_pixels"),
    *("einsum", "linear", "linear_backward", "matmul", "sgd", "adam"),
]
SMALL = frozenset(__all__)

fast: Any = SimpleNamespace()  # the kernels for others; ``cpu/__init__.py`` puts them there

_ELEMENTS, _MULTIPLICATIONS = 1 << 13, 1 << 15  # (OpenBLAS itself does products of 1 << 17 on one thread)


def relu(x):
    return (portable if x.size < _ELEMENTS else fast).relu(x)


def relu_backward(g, y):
    return (portable if g.size < _ELEMENTS else fast).relu_backward(g, y)


def sigmoid(x):
    return (portable if x.size < _ELEMENTS // 4 else fast).sigmoid(x)


def sigmoid_backward(g, y):
    return (portable if g.size < _ELEMENTS // 4 else fast).sigmoid_backward(g, y)


def sum_pixels(x):
    return (portable if x.size < _ELEMENTS else fast).sum_pixels(x)


def einsum(subscripts, operands):
    return (portable if sum(x.size for x in operands) < _ELEMENTS else fast).einsum(subscripts, operands)


def linear(x, w, b):
    return (portable if x.size * len(w) < _MULTIPLICATIONS else fast).linear(x, w, b)


def linear_backward(g, x, w, want_x, want_w):
    small = g.size * x.shape[-1] < _MULTIPLICATIONS
    return (portable if small else fast).linear_backward(g, x, w, want_x, want_w)


def matmul(x, y):
    small = x.size * (1 if y.ndim < 2 else y.shape[-1]) < _MULTIPLICATIONS
    return (portable if small else fast).matmul(x, y)


def sgd(weights, *args):
    return (portable if weights.size < _ELEMENTS // 4 else fast).sgd(weights, *args)


def adam(weights, *args):
    return (portable if weights.size < _ELEMENTS // 4 else fast).adam(weights, *args)
