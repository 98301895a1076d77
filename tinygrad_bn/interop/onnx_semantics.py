"""What ONNX's operations mean, in operations of ours: everything that ``export_onnx`` writes, as of opset 13 to 22.

An entry is a function of the node's inputs (Tensors or arrays; None for one left out) and its attributes as keywords, whose
defaults are ONNX's. An attribute that an entry does not name is refused when a file is read.
Source: https://github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from .. import ops
from ..backend import device_of, to_device, to_numpy
from ..core import Box
from .onnx_library import load

OLDEST, NEWEST = 13, 22  # 13 was the first in which ReduceSum, Squeeze and Unsqueeze take their axes as an input


class Meaning:
    """A function, the attributes that it knows, and how many outputs there are at most."""

    def __init__(self, function: Callable, outputs: int):
        self.function, self.outputs = function, outputs
        parameters = inspect.signature(function).parameters.values()
        self.defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def with_attributes(self, given: dict[str, Any]) -> Arguments:
        for name in given:
            if name not in self.defaults:
                raise ValueError(f"has the attribute {name}, which is not supported")
        return Arguments(self.function, {**self.defaults, **given})


@dataclass
class Arguments:
    """A function with its attributes."""

    function: Callable
    attributes: dict[str, Any]

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs, **self.attributes)


MEANINGS: dict[str, Meaning] = {}


def means(*names: str, outputs: int = 1) -> Callable:
    def register(function: Callable) -> Callable:
        MEANINGS.update({name: Meaning(function, outputs) for name in names})
        return function

    return register


def ints(x: Any) -> tuple[int, ...]:
    """A tensor of ints, such as a shape, as a tuple."""
    return tuple(int(n) for n in to_numpy(x._data if isinstance(x, Box) else x).reshape(-1))


# ----- elementwise

_ELEMENTWISE: dict[str, Callable] = {
    "Abs": ops.abs, "Add": ops.add, "Erf": ops.erf, "Exp": ops.exp, "Identity": lambda x: x, "Log": ops.log, "Mul": ops.mul,
    "Neg": ops.neg, "Reciprocal": lambda x: 1.0 / x, "Relu": ops.relu, "Sigmoid": ops.sigmoid, "Sign": ops.sign,
    "Softplus": ops.softplus, "Sqrt": ops.sqrt, "Sub": ops.sub, "Tanh": ops.tanh, "Where": ops.where,
}  # fmt: skip

for _name, _op in _ELEMENTWISE.items():
    means(_name)((lambda op: lambda *inputs: op(*inputs))(_op))


@means("Div")
def _div(x, y):
    if x.dtype.kind == "f":
        return ops.div(x, y)
    x, y = (to_numpy(v._data if isinstance(v, Box) else v) for v in (x, y))
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)  # ONNX rounds towards zero


@means("Pow")
def _pow(x, y):
    return cast(ops.pow(x, y), x.dtype)  # of the base's dtype, whatever the exponent's


@means("Max")
def _max(*xs):
    return reduce(ops.maximum, xs)


@means("Min")
def _min(*xs):
    return reduce(ops.minimum, xs)


@means("LeakyRelu")
def _leaky_relu(x, *, alpha=0.01):
    return ops.leaky_relu(x, negative_slope=alpha)


@means("Elu")
def _elu(x, *, alpha=1.0):
    return ops.elu(x, alpha=alpha)


@means("Clip")
def _clip(x, low=None, high=None):
    x = x if low is None else ops.maximum(x, low)
    return x if high is None else ops.minimum(x, high)


def cast(x: Any, dtype: Any) -> Any:
    if x.dtype == dtype:
        return x
    return ops.cast(x, dtype=np.dtype(dtype)) if x.dtype.kind == "f" and np.dtype(dtype).kind == "f" else x.astype(dtype)


@means("Cast")
def _cast(x, *, to, saturate=1):  # noqa: ARG001 (it speaks of 8-bit floats)
    dtype = np.dtype(load("interop.import_onnx").helper.tensor_dtype_to_np_dtype(to))
    if dtype.kind not in "fiub":
        raise ValueError(f"Cast expected a dtype that NumPy has, got {dtype}")
    return cast(x, dtype)


# ----- reductions: no axes are all of them, unless noop_with_empty_axes. From opset 18 on all take the axes as an input


def _reduction(op: Callable) -> Callable:
    def reduction(x, axes_input=None, *, axes=None, keepdims=1, noop_with_empty_axes=0):
        chosen = tuple(axes or ()) if axes_input is None else ints(axes_input)
        if not chosen and noop_with_empty_axes:
            return x
        return op(x, axis=chosen or None, keepdims=bool(keepdims))

    return reduction


def _product(x, axis, keepdims):
    """Of shapes only: it has no gradient."""
    return np.asarray(to_numpy(x._data if isinstance(x, Box) else x).prod(axis=axis, keepdims=keepdims))


for _name, _op in {
    "ReduceLogSumExp": ops.logsumexp, "ReduceMax": ops.max, "ReduceMean": ops.mean, "ReduceMin": ops.min,
    "ReduceProd": _product, "ReduceSum": ops.sum,
}.items():  # fmt: skip
    means(_name)(_reduction(_op))


@means("CumSum")
def _cum_sum(x, axis, *, exclusive=0, reverse=0):
    (at,) = ints(axis)
    y = ops.flip(x, at) if reverse else x
    total = ops.cumsum(y, axis=at)
    total = ops.sub(total, y) if exclusive else total
    return ops.flip(total, at) if reverse else total


@means("ArgMax")
def _arg_max(x, *, axis=0, keepdims=1, select_last_index=0):
    n = x.shape[axis]
    found = n - 1 - ops.argmax(ops.flip(x, axis), axis=axis) if select_last_index else ops.argmax(x, axis=axis)
    return ops.unsqueeze(found, axis % len(x.shape)) if keepdims else found


# ----- shapes


@means("Shape")
def _shape(x, *, start=0, end=None):
    return np.array(x.shape[start:end], np.int64)


@means("Reshape")
def _reshape(x, shape, *, allowzero=0):
    wanted = ints(shape)
    if not allowzero:
        wanted = tuple(x.shape[i] if n == 0 else n for i, n in enumerate(wanted))
    return ops.reshape(x, wanted)


@means("Flatten")
def _flatten(x, *, axis=1):
    at = axis % len(x.shape) if axis < 0 else axis
    return ops.reshape(x, (prod(x.shape[:at]), prod(x.shape[at:])))


@means("Transpose")
def _transpose(x, *, perm=None):
    return ops.transpose(x, *(() if perm is None else perm))


@means("Squeeze")
def _squeeze(x, axes=None):
    return ops.squeeze(x, None if axes is None else ints(axes))


@means("Unsqueeze")
def _unsqueeze(x, axes):
    ndim = len(x.shape) + len(ints(axes))
    for at in sorted(a % ndim for a in ints(axes)):  # they count in the result
        x = ops.unsqueeze(x, at)
    return x


@means("Expand")
def _expand(x, shape):
    return ops.broadcast_to(x, shape=np.broadcast_shapes(x.shape, ints(shape)))


@means("Concat")
def _concat(*xs, axis):
    return ops.concatenate(xs, axis=axis)


@means("Slice")
def _slice(x, starts, ends, axes=None, steps=None):
    first = ints(starts)
    chosen = range(len(first)) if axes is None else ints(axes)
    index = [slice(None)] * len(x.shape)
    for axis, a, b, step in zip(chosen, first, ints(ends), (1,) * len(first) if steps is None else ints(steps), strict=True):
        index[axis] = slice(a, b, step)  # ends beyond the array are cut off, as in Python
    return ops.getitem(x, tuple(index))


@means("Gather")
def _gather(x, indices, *, axis=0):
    raw = indices._data if isinstance(indices, Box) else indices
    if isinstance(x, Box):
        raw = to_device(raw, device_of(x._data))
    return ops.getitem(x, (slice(None),) * (axis % len(x.shape)) + (raw,))


@means("Pad")
def _pad(x, pads, value=None, axes=None, *, mode="constant"):
    if mode != "constant":
        raise ValueError(f"Pad expected mode 'constant', got {mode!r}")
    widths, ndim = ints(pads), len(x.shape)
    chosen = range(ndim) if axes is None else [a % ndim for a in ints(axes)]
    given = dict(zip(chosen, zip(widths[: len(chosen)], widths[len(chosen) :], strict=True), strict=True))
    pairs = tuple(given.get(a, (0, 0)) for a in range(ndim))
    filler = 0 if value is None else to_numpy(value._data if isinstance(value, Box) else value).item()
    return ops.pad(x, pad_width=pairs, value=filler)


# ----- products and softmax


@means("MatMul")
def _matmul(x, y):
    return ops.matmul(x, y)


@means("Gemm")
def _gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):  # noqa: N803 (ONNX's names)
    if alpha == beta == 1.0 and transB and not transA and (c is None or c.shape == b.shape[:1]):
        return ops.linear(a, b, c)
    y = ops.matmul(ops.transpose(a) if transA else a, ops.transpose(b) if transB else b)
    y = y if alpha == 1.0 else ops.mul(y, alpha)
    return y if c is None else ops.add(y, c if beta == 1.0 else ops.mul(c, beta))


@means("Einsum")
def _einsum(*xs, equation):
    return ops.einsum(equation, *xs)


@means("Softmax")
def _softmax(x, *, axis=-1):
    return ops.softmax(x, axis=axis)


@means("LogSoftmax")
def _log_softmax(x, *, axis=-1):
    return ops.log_softmax(x, axis=axis)


@means("NegativeLogLikelihoodLoss")
def _nll(logs, labels, *, reduction="mean"):
    if len(logs.shape) != 2:
        raise ValueError(f"NegativeLogLikelihoodLoss expected log probabilities (N, C), got shape {logs.shape}")
    rows = operator.neg(ops.getitem(logs, (np.arange(logs.shape[0]), labels)))
    return {"none": lambda v: v, "mean": ops.mean, "sum": ops.sum}[reduction](rows)
