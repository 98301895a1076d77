"""The table of operations: for each, inputs, a plain reference, PyTorch's equivalent, and how often it can be differentiated.

``test_ops.py`` drives it. A case's functions take its float64 inputs first, and then its constants (labels, indices, masks).
References are written in NumPy or plain loops, not with the package.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import ops


@dataclass(frozen=True)
class Case:
    op: str
    what: str
    f: Callable  # (*inputs, *constants) -> a result or a list of them, of Tensors or of arrays
    inputs: Any  # functions of a Generator, one for each input, or one that makes them all
    reference: Callable  # the same of NumPy arrays
    torch: Callable | None  # (torch, *tensors), or None where PyTorch has nothing alike
    order: int  # how many times it is differentiable where the inputs lie; 0: it has no gradient
    constants: tuple  # NumPy arrays of integers or booleans
    syncs: bool  # whether CUDA has to wait, by its nature

    def __str__(self) -> str:
        return f"{self.op}-{self.what}" if self.what else self.op

    def make(self, seed: int = 0) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([seed, zlib.crc32(str(self).encode())])
        made = self.inputs(rng) if callable(self.inputs) else [make(rng) for make in self.inputs]
        return tuple(np.asarray(x) for x in made)


CASES: list[Case] = []


def case(op, what, f, inputs, reference, torch=None, order=3, constants=(), syncs=False):
    CASES.append(Case(op, what, f, inputs, reference, torch, order, tuple(np.asarray(c) for c in constants), syncs))


# ----- inputs


def normal(*shape):
    return lambda rng: rng.standard_normal(shape)


def positive(*shape):
    return lambda rng: rng.uniform(0.3, 2.0, shape)


def away(*shape):
    """Away from a kink at 0."""
    return lambda rng: rng.uniform(0.2, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def apart(*shapes):
    """Arrays of which no two numbers, in one or in different ones, are near each other: away from ties."""

    def make(rng):
        sizes = [math.prod(s) for s in shapes]
        pool = rng.permutation(np.linspace(-2.0, 2.0, sum(sizes)))
        return [part.reshape(s) for part, s in zip(np.split(pool, np.cumsum(sizes)[:-1]), shapes, strict=True)]

    return make


def text(x) -> str:
    return str(x).replace(" ", "").replace("None", "none")


# ----- elementwise

_erf = np.vectorize(math.erf, otypes=[float])


def _binary(op, f, reference, torch, x, y):
    case(op, "same shape", f, (x(3, 4), y(3, 4)), reference, torch)
    case(op, "broadcast", f, (x(2, 1, 4), y(3, 1)), reference, torch)
    case(op, "0-d and an array", f, (x(), y(3)), reference, torch)
    case(op, "number second", lambda a: f(a, 1.5), (x(3, 4),), lambda a: reference(a, 1.5), lambda t, a: torch(t, a, 1.5))
    case(op, "number first", lambda b: f(1.5, b), (y(3, 4),), lambda b: reference(1.5, b), lambda t, b: torch(t, 1.5, b))


_binary("add", ops.add, lambda x, y: x + y, lambda t, x, y: x + y, normal, normal)
_binary("sub", ops.sub, lambda x, y: x - y, lambda t, x, y: x - y, normal, normal)
_binary("mul", ops.mul, lambda x, y: x * y, lambda t, x, y: x * y, normal, normal)
_binary("div", ops.div, lambda x, y: x / y, lambda t, x, y: x / y, normal, away)
_binary("pow", ops.pow, lambda x, y: x**y, lambda t, x, y: x**y, positive, normal)

for _p in (3, 2, 1, 0, -1, 3.0):
    case("pow", f"any base to {_p}", lambda x, p=_p: ops.pow(x, p), (away(3, 4),), lambda x, p=_p: x ** float(p),
         lambda t, x, p=_p: x**p)  # fmt: skip
for _p in (2.5, 0.5, -1.5):
    case("pow", f"positive base to {_p}", lambda x, p=_p: ops.pow(x, p), (positive(3, 4),), lambda x, p=_p: x**p,
         lambda t, x, p=_p: x**p)  # fmt: skip


def _unary(name, reference, torch, x, order=3, f=None, what=""):
    case(name, what, f or getattr(ops, name), (x(3, 4),), reference, torch, order)
    case(name, (what + " 0-d").strip(), f or getattr(ops, name), (x(),), reference, torch, order)


_unary("neg", np.negative, lambda t, x: -x, normal)
_unary("exp", np.exp, lambda t, x: t.exp(x), normal)
_unary("log", np.log, lambda t, x: t.log(x), positive)
_unary("log1p", np.log1p, lambda t, x: t.log1p(x), positive)
_unary("expm1", np.expm1, lambda t, x: t.expm1(x), normal)
_unary("sqrt", np.sqrt, lambda t, x: t.sqrt(x), positive)
_unary("rsqrt", lambda x: 1 / np.sqrt(x), lambda t, x: t.rsqrt(x), positive)
_unary("square", np.square, lambda t, x: t.square(x), normal)
_unary("tanh", np.tanh, lambda t, x: t.tanh(x), normal)
_unary("sigmoid", lambda x: 1 / (1 + np.exp(-x)), lambda t, x: t.sigmoid(x), normal)
_unary("softplus", lambda x: np.log(1 + np.exp(x)), lambda t, x: t.nn.functional.softplus(x), normal)
_unary("erf", _erf, lambda t, x: t.erf(x), normal)
_unary("silu", lambda x: x / (1 + np.exp(-x)), lambda t, x: t.nn.functional.silu(x), normal)
_unary("gelu", lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))), lambda t, x: t.nn.functional.gelu(x), normal)
_unary("abs", np.abs, lambda t, x: t.abs(x), away)
_unary("sign", np.sign, lambda t, x: t.sign(x), away, order=0)
_unary("relu", lambda x: np.where(x > 0, x, 0), lambda t, x: t.relu(x), away)
for _s in (0.01, 0.3):
    _unary("leaky_relu", lambda x, s=_s: np.where(x > 0, x, s * x), lambda t, x, s=_s: t.nn.functional.leaky_relu(x, s),
           away, f=lambda x, s=_s: ops.leaky_relu(x, s), what=f"slope {_s}")  # fmt: skip
for _s in (1.0, 0.7):
    _unary("elu", lambda x, s=_s: np.where(x > 0, x, s * (np.exp(x) - 1)), lambda t, x, s=_s: t.nn.functional.elu(x, s),
           away, f=lambda x, s=_s: ops.elu(x, s), what=f"alpha {_s}")  # fmt: skip

for _name in ("maximum", "minimum"):
    _f, _np = getattr(ops, _name), getattr(np, _name)
    case(_name, "same shape", _f, apart((3, 4), (3, 4)), _np, lambda t, x, y, n=_name: getattr(t, n)(x, y))
    case(_name, "broadcast", _f, apart((3, 1), (2, 1, 4)), _np, lambda t, x, y, n=_name: getattr(t, n)(x, y))
    case(_name, "number", lambda x, f=_f: f(x, 0.0), (away(3, 4),), lambda x, f=_np: f(x, 0.0))
    case(_name, "number first", lambda x, f=_f: f(0.0, x), (away(3, 4),), lambda x, f=_np: f(0.0, x))

_condition = np.arange(12).reshape(3, 4) % 3 == 0
case("where", "same shape", lambda x, y, c: ops.where(c, x, y), (normal(3, 4), normal(3, 4)),
     lambda x, y, c: np.where(c, x, y), lambda t, x, y, c: t.where(c, x, y), constants=(_condition,))  # fmt: skip
case("where", "broadcast", lambda x, y, c: ops.where(c, x, y), (normal(2, 1, 1), normal(4)),
     lambda x, y, c: np.where(c, x, y), lambda t, x, y, c: t.where(c, x, y), constants=(_condition,))  # fmt: skip
case("where", "numbers", lambda x, c: ops.where(c, x, -1.0) + ops.where(c, 2.0, x), (normal(3, 4),),
     lambda x, c: np.where(c, x, -1.0) + np.where(c, 2.0, x), constants=(_condition,))  # fmt: skip
case("where", "a condition of a Tensor", lambda x, y: ops.where(x > 0, x * y, y), (away(3, 4), normal(4)),
     lambda x, y: np.where(x > 0, x * y, y), lambda t, x, y: t.where(x > 0, x * y, y))  # fmt: skip

for _lo, _hi in ((-1.0, 0.5), (None, 0.5), (-1.0, None), (None, None), (0.0, 0)):
    case("clip", f"{text(_lo)} to {text(_hi)}", lambda x, lo=_lo, hi=_hi: ops.clip(x, lo, hi),
         lambda rng: [v + 1e-3 for v in apart((3, 4))(rng)], lambda x, lo=_lo, hi=_hi: np.clip(x, lo, hi),
         None if _lo is _hi is None else lambda t, x, lo=_lo, hi=_hi: t.clamp(x, lo, hi))  # fmt: skip

# ----- reduce


def _dims(axis, ndim=3):
    return tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)


def _np_logsumexp(x, axis, keepdims):
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


_REDUCTIONS = {
    "sum": (np.sum, lambda t, x, a, k: x.sum(_dims(a), k), normal),
    "mean": (np.mean, lambda t, x, a, k: x.mean(_dims(a), k), normal),
    "max": (np.max, lambda t, x, a, k: x.amax(_dims(a), k), None),
    "min": (np.min, lambda t, x, a, k: x.amin(_dims(a), k), None),
    "logsumexp": (_np_logsumexp, lambda t, x, a, k: t.logsumexp(x, _dims(a), k), normal),
    "var": (np.var, lambda t, x, a, k: t.var(x, _dims(a), correction=0, keepdim=k), normal),
}
for (_name, (_np, _torch, _make)), (_axis, _keep) in product(
    _REDUCTIONS.items(), ((None, False), (None, True), (1, False), (-1, True), ((0, 2), False), ((-1, 0), True), ((), False))
):
    if _axis == () and _name in ("var", "max", "min"):
        continue  # the variance of one number, and every number its own extremum: nothing to see
    _f = getattr(ops, _name)
    case(_name, f"axis {text(_axis)}{' keepdims' * _keep}",
         lambda x, f=_f, a=_axis, k=_keep: f(x, a, keepdims=k),
         (_make(2, 3, 4),) if _make else apart((2, 3, 4)),
         lambda x, f=_np, a=_axis, k=_keep: f(x, axis=a, keepdims=k),
         None if _axis == () else lambda t, x, f=_torch, a=_axis, k=_keep: f(t, x, a, k))  # fmt: skip
    if _axis is None:
        case(_name, f"of a vector{' keepdims' * _keep}", lambda x, f=_f, k=_keep: f(x, keepdims=k),
             (_make(5),) if _make else apart((5,)), lambda x, f=_np, k=_keep: f(x, axis=None, keepdims=k))  # fmt: skip
for _axis, _ddof, _keep in ((None, 1, False), (0, 1, True), ((1, 2), 2, False), (-1, 1, False)):
    case("var", f"axis {text(_axis)} ddof {_ddof}{' keepdims' * _keep}",
         lambda x, a=_axis, d=_ddof, k=_keep: ops.var(x, a, d, k), (normal(3, 3, 4),),
         lambda x, a=_axis, d=_ddof, k=_keep: np.var(x, axis=a, ddof=d, keepdims=k),
         lambda t, x, a=_axis, d=_ddof, k=_keep: t.var(x, _dims(a), correction=d, keepdim=k))  # fmt: skip
case("max", "ties share", lambda x: ops.max(ops.concatenate([x, x]), 0), (normal(1, 3),), lambda x: x[0],
     lambda t, x: t.cat([x, x]).amax(0))  # fmt: skip
case("min", "ties share", lambda x: ops.min(ops.concatenate([x, x]), 0), (normal(1, 3),), lambda x: x[0],
     lambda t, x: t.cat([x, x]).amin(0))  # fmt: skip
for _axis in (0, 1, -1):
    case("cumsum", f"axis {_axis}", lambda x, a=_axis: ops.cumsum(x, a), (normal(2, 3, 4),),
         lambda x, a=_axis: np.cumsum(x, a), lambda t, x, a=_axis: t.cumsum(x, a))  # fmt: skip
for _axis in (None, 0, -1):
    case("argmax", f"axis {text(_axis)}", lambda x, a=_axis: ops.argmax(x, a), apart((3, 4)),
         lambda x, a=_axis: np.argmax(x, a), lambda t, x, a=_axis: t.argmax(x, a), order=0)  # fmt: skip

# ----- shape

_X = (normal(2, 3, 4),)


def _move(op, what, f, reference, torch=None, x=_X, **more):
    case(op, what, f, x, reference, torch, **more)


_move("reshape", "tuple", lambda x: ops.reshape(x, (4, 6)), lambda x: x.reshape(4, 6), lambda t, x: x.reshape(4, 6))
_move("reshape", "ints", lambda x: ops.reshape(x, 3, 8), lambda x: x.reshape(3, 8), lambda t, x: x.reshape(3, 8))
_move("reshape", "-1", lambda x: ops.reshape(x, 2, -1), lambda x: x.reshape(2, -1), lambda t, x: x.reshape(2, -1))
_move("reshape", "to 0-d", lambda x: ops.reshape(x, ()), lambda x: x.reshape(()), x=(normal(1, 1),))
_move("transpose", "none", ops.transpose, np.transpose, lambda t, x: x.permute(2, 1, 0))
_move("transpose", "tuple", lambda x: ops.transpose(x, (1, 2, 0)), lambda x: x.transpose(1, 2, 0),
      lambda t, x: x.permute(1, 2, 0))  # fmt: skip
_move("transpose", "ints, negative", lambda x: ops.transpose(x, -2, 0, -1), lambda x: x.transpose(1, 0, 2),
      lambda t, x: x.permute(1, 0, 2))  # fmt: skip
_move("transpose", "of four axes", lambda x: ops.transpose(x, (2, 0, 3, 1)), lambda x: x.transpose(2, 0, 3, 1),
      lambda t, x: x.permute(2, 0, 3, 1), x=(normal(2, 3, 1, 4),))  # fmt: skip
_move("swapaxes", "", lambda x: ops.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, 2), lambda t, x: x.swapaxes(0, 2))
for _a, _b in ((0, 2), (2, 0), (-1, 1), (1, -1)):
    _move("moveaxis", f"{_a} to {_b}", lambda x, a=_a, b=_b: ops.moveaxis(x, a, b),
          lambda x, a=_a, b=_b: np.moveaxis(x, a, b), lambda t, x, a=_a, b=_b: t.moveaxis(x, a, b))  # fmt: skip
_move("expand", "tuple", lambda x: ops.expand(x, (2, 3, 4)), lambda x: np.broadcast_to(x, (2, 3, 4)),
      lambda t, x: x.expand(2, 3, 4), (normal(3, 1),))  # fmt: skip
_move("expand", "ints and -1", lambda x: ops.expand(x, 5, -1, 4), lambda x: np.broadcast_to(x, (5, 3, 4)),
      lambda t, x: x.expand(5, -1, 4), (normal(3, 1),))  # fmt: skip
_move("expand", "0-d", lambda x: ops.expand(x, 2, 2), lambda x: np.broadcast_to(x, (2, 2)),
      lambda t, x: x.expand(2, 2), (normal(),))  # fmt: skip
_move("broadcast_to", "", lambda x: ops.broadcast_to(x, shape=(2, 3, 4)), lambda x: np.broadcast_to(x, (2, 3, 4)),
      lambda t, x: x.expand(2, 3, 4), (normal(3, 1),))  # fmt: skip
_move("sum_to", "", lambda x: ops.sum_to(x, shape=(3, 1)), lambda x: x.sum((0, 2))[:, None],
      lambda t, x: x.sum_to_size(3, 1))  # fmt: skip
_move("sum_to", "0-d", lambda x: ops.sum_to(x, shape=()), lambda x: x.sum(), lambda t, x: x.sum())
_ONES = (normal(1, 3, 1, 2),)
_move("squeeze", "all", ops.squeeze, np.squeeze, lambda t, x: x.squeeze(), _ONES)
_move("squeeze", "one", lambda x: ops.squeeze(x, -2), lambda x: x.squeeze(2), lambda t, x: x.squeeze(2), _ONES)
_move("squeeze", "tuple", lambda x: ops.squeeze(x, (0, 2)), lambda x: x.squeeze((0, 2)), lambda t, x: x.squeeze((0, 2)), _ONES)
for _axis in (0, 1, -1):
    _move("unsqueeze", f"{_axis}", lambda x, a=_axis: ops.unsqueeze(x, a), lambda x, a=_axis: np.expand_dims(x, a),
          lambda t, x, a=_axis: x.unsqueeze(a))  # fmt: skip
_move("flatten", "all", ops.flatten, np.ravel, lambda t, x: x.flatten())
_move("flatten", "from 1", lambda x: ops.flatten(x, 1), lambda x: x.reshape(2, 12), lambda t, x: x.flatten(1))
_move("flatten", "0-d", ops.flatten, np.ravel, lambda t, x: x.flatten(), (normal(),))
_move("concatenate", "axis 0", lambda *xs: ops.concatenate(xs), lambda *xs: np.concatenate(xs), lambda t, *xs: t.cat(xs),
      (normal(2, 3), normal(1, 3), normal(4, 3)))  # fmt: skip
_move("concatenate", "last axis", lambda *xs: ops.concatenate(list(xs), -1), lambda *xs: np.concatenate(xs, -1),
      lambda t, *xs: t.cat(xs, -1), (normal(2, 3, 1), normal(2, 3, 4)))  # fmt: skip
_move("concatenate", "one array twice", lambda x, y: ops.concatenate([x, y, x], 1), lambda x, y: np.concatenate([x, y, x], 1),
      lambda t, x, y: t.cat([x, y, x], 1), (normal(2, 3), normal(2, 1)))  # fmt: skip
for _axis in (0, 1, -1):
    _move("stack", f"axis {_axis}", lambda *xs, a=_axis: ops.stack(xs, a), lambda *xs, a=_axis: np.stack(xs, a),
          lambda t, *xs, a=_axis: t.stack(xs, a), (normal(2, 3), normal(2, 3)))  # fmt: skip
_move("split", "sections", lambda x: ops.split(x, 2, -1), lambda x: np.split(x, 2, -1), lambda t, x: t.tensor_split(x, 2, -1))
_move("split", "indices", lambda x: ops.split(x, [1, 3], 2), lambda x: np.split(x, [1, 3], 2),
      lambda t, x: t.tensor_split(x, (1, 3), 2))  # fmt: skip
_move("split", "one part used", lambda x: ops.split(x, (1,))[1], lambda x: x[1:], lambda t, x: x[1:])
for _width, _torch_width in (
    (1, (1,) * 6), ((1, 2), (1, 2) * 3), (((0, 1), (2, 0), (0, 0)), (0, 0, 2, 0, 0, 1)), (0, (0,) * 6)
):  # fmt: skip
    for _value in (0.0, 1.5):
        _move("pad", f"{text(_width)} of {_value}", lambda x, w=_width, v=_value: ops.pad(x, w, v),
              lambda x, w=_width, v=_value: np.pad(x, w, constant_values=v),
              lambda t, x, w=_torch_width, v=_value: t.nn.functional.pad(x, w, value=v))  # fmt: skip
for _axis, _torch_axis in ((None, (0, 1, 2)), (1, (1,)), ((0, -1), (0, 2))):
    _move("flip", text(_axis), lambda x, a=_axis: ops.flip(x, a), lambda x, a=_axis: np.flip(x, a),
          lambda t, x, a=_torch_axis: t.flip(x, a))  # fmt: skip


class _Reader:
    """``reader[index]`` is ``ops.getitem(x, index)``."""

    def __init__(self, x):
        self.x = x

    def __getitem__(self, index):
        return ops.getitem(self.x, index)


def _index(what, read, *constants, torch=True, x=_X, syncs=False):
    """``read(x, *constants)`` says in subscripts what is meant, for all three libraries alike."""
    theirs = (lambda t, *args: read(*args)) if torch else None
    case("getitem", what, lambda x, *args: read(_Reader(x), *args), x, read, theirs, constants=constants, syncs=syncs)


_index("int", lambda x: x[1])
_index("negative int", lambda x: x[-1, -2])
_index("one element", lambda x: x[1, 2, 3])
_index("slice", lambda x: x[:, 1:3])
_index("step", lambda x: x[..., ::2])
_index("negative step", lambda x: x[:, ::-1, 3:0:-2], torch=False)
_index("None", lambda x: x[:, None, 1, None])
_index("Ellipsis", lambda x: x[..., 1])
_index("int, Ellipsis, slice, None", lambda x: x[0, ..., 1:, None])
_index("nothing", lambda x: x[()], torch=False)
_index("all", lambda x: x[:])
_index("empty slice", lambda x: x[1:1])
_index("list", lambda x: x[[1, 0, 1]])
_index("array", lambda x, i: x[i], [1, 0, 1, 1])
_index("negative array", lambda x, i: x[:, i], [-1, 0, -1])
_index("2-D array", lambda x, i: x[:, i], [[0, 2], [2, 2]])
_index("array and slice", lambda x, i: x[i, 1:], [1, 1, 0])
_index("two arrays", lambda x, i, j: x[i, j], [0, 1, 1], [2, 0, 0])
_index("two arrays, broadcast", lambda x, i, j: x[i, :, j], [[0], [1]], [3, 3, 1])
_index("two arrays around a slice", lambda x, i, j: x[i, :, j], [0, 1], [3, 3])
_index("array and int", lambda x, i: x[1, i], [0, 2, 2])
_index("array and None", lambda x, i: x[None, i, ..., 0], [0, 1, 1], torch=False)
_index("uint8 array", lambda x, i: x[i], np.array([1, 1, 0], "uint8"), torch=False)
_index("0-d array", lambda x, i: x[i], np.array(1))
_index("mask", lambda x, m: x[m], np.arange(24).reshape(2, 3, 4) % 5 < 2, syncs=True)
_index("mask of rows", lambda x, m: x[:, m], np.array([True, False, True]), syncs=True)
_index("mask of two axes", lambda x, m: x[m, 1:], np.array([[True, False, True], [False, False, True]]), syncs=True)
_index("mask of nothing", lambda x, m: x[m], np.zeros((2, 3), bool), syncs=True)
case("embedding", "", lambda w, i: ops.embedding(i, w), (normal(5, 3),), lambda w, i: w[i],
     lambda t, w, i: t.nn.functional.embedding(i, w), constants=([[0, 4, 4], [2, 0, 4]],))  # fmt: skip
case("embedding", "one row", lambda w, i: ops.embedding(i, w), (normal(5, 3),), lambda w, i: w[i],
     lambda t, w, i: t.nn.functional.embedding(i, w), constants=(np.array(3),))  # fmt: skip
case("cast", "", lambda x: ops.cast(x, dtype="float64"), (normal(3),), lambda x: x)
case("to_device", "", lambda x: ops.to_device(x, "cpu"), (normal(3),), lambda x: x, syncs=True)

# ----- linear algebra

for _a, _b in (
    ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)),
    ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (3, 4, 2)), ((4,), (2, 4, 3)), ((2, 3, 4), (4,)), ((2, 2, 3, 4), (4,)),
    ((1, 1), (1, 1)), ((4,), (3, 2, 4, 5)),
):  # fmt: skip
    case("matmul", f"{text(_a)}@{text(_b)}", ops.matmul, (normal(*_a), normal(*_b)), np.matmul, lambda t, x, y: x @ y)

for _shape in ((5, 3), (3,), (2, 5, 3)):
    case("linear", f"{text(_shape)} with bias", ops.linear, (normal(*_shape), normal(4, 3), normal(4)),
         lambda x, w, b: x @ w.T + b, lambda t, x, w, b: t.nn.functional.linear(x, w, b))  # fmt: skip
    case("linear", f"{text(_shape)} without", ops.linear, (normal(*_shape), normal(4, 3)),
         lambda x, w: x @ w.T, lambda t, x, w: t.nn.functional.linear(x, w))  # fmt: skip

for _s, *_shapes in (
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("ji", (2, 3)),
    ("ij->ji", (2, 3)),
    ("ij->", (2, 3)),
    ("ij->j", (2, 3)),
    ("ii", (3, 3)),
    ("ii->i", (3, 3)),
    ("iij->j", (3, 3, 2)),
    ("iii->i", (2, 2, 2)),
    ("ijij->ji", (2, 3, 2, 3)),
    ("ii,ij->j", (3, 3), (3, 2)),
    ("i,i", (3,), (3,)),
    ("i,i->i", (3,), (3,)),
    ("i,j->ij", (3,), (2,)),
    ("ij,k->k", (2, 3), (4,)),
    ("bij,bjk->bik", (2, 2, 3), (2, 3, 4)),
    ("ijk,ikl,l->j", (2, 3, 4), (2, 4, 2), (2,)),
    ("ab , a , b ->", (2, 3), (2,), (3,)),
    (",i->i", (), (3,)),
    ("...ij,...jk->...ik", (2, 2, 3), (2, 3, 4)),
    ("...ij,jk", (2, 2, 3), (3, 4)),
    ("i...->...", (2, 3, 4)),
    ("...i->...", (2, 3)),
    ("...i,...i->...", (2, 3, 4), (3, 4)),
    ("i...,i...->i...", (2, 3), (2, 3)),
    ("...ii->...i", (2, 3, 3)),
    ("...,...->...", (2, 3), (2, 3)),
    ("...i,...i->...", (3, 1, 4), (2, 4)),
    ("ij,ij->ij", (1, 3), (2, 3)),
):
    case("einsum", f"{_s} of {text(_shapes)}", lambda *xs, s=_s: ops.einsum(s, *xs), tuple(normal(*n) for n in _shapes),
         lambda *xs, s=_s: np.einsum(s, *xs), lambda t, *xs, s=_s: t.einsum(s, *xs))  # fmt: skip

# ----- convolution


def pair(v):
    return (v, v) if isinstance(v, int) else v


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """A convolution by its definition: one product of patch and filter for each output."""
    (sh, sw), (ph, pw), (dh, dw) = pair(stride), pair(padding), pair(dilation)
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    (n, _, h, wide), (o, per, kh, kw) = x.shape, w.shape
    y = np.zeros((n, o, (h - dh * (kh - 1) - 1) // sh + 1, (wide - dw * (kw - 1) - 1) // sw + 1))
    for f, i, j in np.ndindex(y.shape[1:]):
        channels = slice(f // (o // groups) * per, (f // (o // groups) + 1) * per)
        rows, columns = slice(i * sh, i * sh + dh * (kh - 1) + 1, dh), slice(j * sw, j * sw + dw * (kw - 1) + 1, dw)
        y[:, f, i, j] = (x[:, channels, rows, columns] * w[f]).sum((1, 2, 3)) + (0 if b is None else b[f])
    return y


def conv_transpose2d(x, w, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """Each input element, times the filter, added where the filter's window lies in the output."""
    (sh, sw), (ph, pw), (dh, dw), (eh, ew) = pair(stride), pair(padding), pair(dilation), pair(output_padding)
    (n, c, h, wide), (_, per, kh, kw) = x.shape, w.shape
    y = np.zeros((n, per * groups, (h - 1) * sh + dh * (kh - 1) + 1 + eh, (wide - 1) * sw + dw * (kw - 1) + 1 + ew))
    for f, i, j in np.ndindex(c, h, wide):
        channels = slice(f // (c // groups) * per, (f // (c // groups) + 1) * per)
        rows, columns = slice(i * sh, i * sh + dh * (kh - 1) + 1, dh), slice(j * sw, j * sw + dw * (kw - 1) + 1, dw)
        y[:, channels, rows, columns] += x[:, f, i, j][:, None, None, None] * w[f]
    y = y[:, :, ph : y.shape[2] - ph, pw : y.shape[3] - pw]
    return y if b is None else y + b[:, None, None]


# (input, weight, bias?, options)
CONVOLUTIONS = [
    ((2, 3, 5, 6), (4, 3, 3, 3), True, {}),
    ((2, 3, 5, 6), (4, 3, 3, 3), False, {"padding": 1}),
    ((2, 2, 5, 6), (3, 2, 3, 2), True, {"padding": (2, 1)}),
    ((1, 2, 7, 6), (3, 2, 3, 3), True, {"stride": 2}),
    ((2, 2, 6, 7), (3, 2, 2, 3), False, {"stride": (1, 3), "padding": (0, 2)}),
    ((2, 2, 7, 8), (3, 2, 3, 3), True, {"dilation": 2}),
    ((1, 2, 6, 8), (2, 2, 2, 3), False, {"dilation": (3, 1), "padding": 1}),
    ((2, 4, 5, 5), (6, 2, 3, 3), True, {"groups": 2}),
    ((2, 3, 5, 4), (3, 1, 3, 3), False, {"groups": 3, "padding": 1}),
    ((2, 2, 4, 4), (4, 1, 2, 2), True, {"groups": 2, "stride": 2}),
    ((2, 4, 9, 8), (4, 2, 3, 2), True, {"stride": (2, 3), "padding": (1, 2), "dilation": (2, 1), "groups": 2}),
    ((2, 3, 4, 4), (5, 3, 1, 1), True, {}),
    ((2, 2, 3, 3), (2, 2, 3, 3), True, {}),  # one window
    ((1, 1, 1, 1), (1, 1, 3, 3), False, {"padding": 1}),  # more padding than input
]


def _spelled(options):
    return text(",".join(f"{k}={v}" for k, v in options.items()))


for _x, _w, _bias, _how in CONVOLUTIONS:
    case("conv2d", f"{text(_x)}*{text(_w)}{'+b' * _bias} {_spelled(_how)}".strip(), lambda *a, how=_how: ops.conv2d(*a, **how),
         (normal(*_x), normal(*_w), *([normal(_w[0])] * _bias)), lambda *a, how=_how: conv2d(*a, **how),
         lambda t, *a, how=_how: t.nn.functional.conv2d(*a, **how))  # fmt: skip
case("conv2d", "options by position", lambda x, w, b: ops.conv2d(x, w, b, 2, 1),
     (normal(1, 2, 5, 5), normal(2, 2, 3, 3), normal(2)),
     lambda x, w, b: conv2d(x, w, b, 2, 1), lambda t, *a: t.nn.functional.conv2d(*a, 2, 1))  # fmt: skip

for _x, _w, _bias, _how in (
    ((2, 3, 8), (4, 3, 3), True, {}),
    ((2, 4, 9), (6, 2, 3), False, {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
    ((1, 2, 5), (2, 2, 1), True, {"stride": 3}),
):
    case("conv1d", f"{text(_x)}*{text(_w)}{'+b' * _bias} {_spelled(_how)}".strip(), lambda *a, how=_how: ops.conv1d(*a, **how),
         (normal(*_x), normal(*_w), *([normal(_w[0])] * _bias)),
         lambda x, w, b=None, how=_how: conv2d(x[:, :, None], w[:, :, None], b, **{
             k: v if k == "groups" else ({"padding": 0}.get(k, 1), v) for k, v in how.items()
         })[:, :, 0],
         lambda t, *a, how=_how: t.nn.functional.conv1d(*a, **how))  # fmt: skip

for _x, _w, _bias, _how in (
    ((2, 3, 3, 4), (3, 2, 3, 3), True, {}),
    ((2, 2, 3, 4), (2, 3, 3, 2), False, {"stride": 2, "padding": 1}),
    ((1, 2, 3, 3), (2, 2, 2, 3), True, {"stride": (2, 3), "padding": (0, 1), "output_padding": (1, 2)}),
    ((2, 4, 3, 3), (4, 2, 3, 3), True, {"groups": 2, "stride": 2, "output_padding": 1, "padding": 1}),
    ((1, 2, 3, 4), (2, 1, 2, 3), False, {"dilation": (2, 3), "output_padding": (1, 2), "groups": 2}),
):
    case("conv_transpose2d", f"{text(_x)}*{text(_w)}{'+b' * _bias} {_spelled(_how)}".strip(),
         lambda *a, how=_how: ops.conv_transpose2d(*a, **how),
         (normal(*_x), normal(*_w), *([normal(_w[1] * _how.get("groups", 1))] * _bias)),
         lambda *a, how=_how: conv_transpose2d(*a, **how),
         lambda t, *a, how=_how: t.nn.functional.conv_transpose2d(*a, **how))  # fmt: skip

# ----- pooling


def pool2d(x, kernel, stride, padding, reduce, value):
    (kh, kw), (sh, sw), (ph, pw) = pair(kernel), pair(kernel if stride is None else stride), pair(padding)
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=value)
    y = np.zeros((*x.shape[:2], (x.shape[2] - kh) // sh + 1, (x.shape[3] - kw) // sw + 1))
    for i, j in np.ndindex(y.shape[2:]):
        y[:, :, i, j] = reduce(x[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw], axis=(2, 3))
    return y


# (input, kernel, stride, padding)
POOLS = [
    ((2, 3, 4, 6), 2, None, 0),
    ((2, 2, 5, 7), 2, None, 0),  # a rest that no window covers
    ((1, 2, 6, 7), 3, 2, 1),  # overlapping, padded
    ((2, 2, 5, 6), (3, 2), 1, (1, 0)),
    ((1, 2, 7, 7), 2, 3, 0),  # gaps
    ((1, 1, 6, 5), (2, 3), (3, 1), (1, 1)),
    ((2, 2, 3, 3), 3, None, 0),
    ((2, 2, 3, 3), 1, None, 0),
]
for _x, _k, _s, _p in POOLS:
    _what = f"{text(_x)} kernel {text(_k)} stride {text(_s)} padding {text(_p)}"
    case("max_pool2d", _what, lambda x, k=_k, s=_s, p=_p: ops.max_pool2d(x, k, s, p), apart(_x),
         lambda x, k=_k, s=_s, p=_p: pool2d(x, k, s, p, np.max, -np.inf),
         lambda t, x, k=_k, s=_s, p=_p: t.nn.functional.max_pool2d(x, k, s, p))  # fmt: skip
    case("avg_pool2d", _what, lambda x, k=_k, s=_s, p=_p: ops.avg_pool2d(x, k, s, p), (normal(*_x),),
         lambda x, k=_k, s=_s, p=_p: pool2d(x, k, s, p, np.mean, 0.0),
         lambda t, x, k=_k, s=_s, p=_p: t.nn.functional.avg_pool2d(x, k, s, p))  # fmt: skip


def adaptive_avg_pool2d(x, size):
    (h, w), (oh, ow) = x.shape[2:], pair(size)
    y = np.zeros((*x.shape[:2], oh, ow))
    for i, j in np.ndindex(oh, ow):
        rows, columns = slice(i * h // oh, -(-(i + 1) * h // oh)), slice(j * w // ow, -(-(j + 1) * w // ow))
        y[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return y


for _x, _size in (
    ((2, 2, 4, 6), 2), ((2, 3, 5, 4), 1), ((1, 2, 7, 5), (3, 2)), ((1, 2, 3, 4), (5, 7)), ((1, 2, 5, 6), (2, 3)),
    ((1, 1, 3, 3), 3),
):  # fmt: skip
    case("adaptive_avg_pool2d", f"{text(_x)} to {text(_size)}", lambda x, n=_size: ops.adaptive_avg_pool2d(x, n),
         (normal(*_x),), lambda x, n=_size: adaptive_avg_pool2d(x, n),
         lambda t, x, n=_size: t.nn.functional.adaptive_avg_pool2d(x, n))  # fmt: skip

# ----- normalisation


def normalize(x, axes, eps=1e-5):
    """(x - mean) / sqrt(biased variance + eps), in two passes."""
    d = x - x.mean(axes, keepdims=True)
    return d / np.sqrt((d * d).mean(axes, keepdims=True) + eps)


def _channel_axes(x):
    return (0, *range(2, x.ndim))


def _column(v, x):
    return v.reshape(-1, *(1,) * (x.ndim - 2))


def batch_norm(x, gamma=None, beta=None, eps=1e-5):
    y = normalize(x, _channel_axes(x), eps)
    return y if gamma is None else _column(gamma, x) * y + _column(beta, x)


def _first_of(op):
    return lambda *a, **how: op(*a, **how)[0]  # the statistics are tested by themselves


def _batch_norm_cases(op, f):
    for shape in ((6, 3), (2, 3), (3, 2, 4), (2, 3, 4, 2), (2, 2, 2, 3, 2), (1, 2, 3), (4, 1)):
        c = shape[1]
        case(op, text(shape), f, (normal(*shape), normal(c), normal(c)), batch_norm,
             lambda t, x, g, b: t.nn.functional.batch_norm(x, None, None, g, b, True))  # fmt: skip
        case(op, f"{text(shape)} not affine", f, (normal(*shape),), batch_norm,
             lambda t, x: t.nn.functional.batch_norm(x, None, None, None, None, True))  # fmt: skip
    case(op, "a large eps", lambda x, g, b: f(x, g, b, eps=0.5), (normal(4, 3, 2, 2), normal(3), normal(3)),
         lambda x, g, b: batch_norm(x, g, b, 0.5),
         lambda t, x, g, b: t.nn.functional.batch_norm(x, None, None, g, b, True, 0.0, 0.5))  # fmt: skip
    rows = [[0, 1], [1, 0], [0, 0]]
    case(op, "an input made of gamma", lambda g, b: f(2.0 * ops.getitem(g, rows), g, b), (normal(2), normal(2)),
         lambda g, b: batch_norm(2.0 * g[rows], g, b))  # fmt: skip


_batch_norm_cases("batch_norm", _first_of(ops.batch_norm))
_batch_norm_cases("batch_norm_composed", _first_of(ops.batch_norm_composed))


def batch_norm_inference(x, gamma, beta, mean, var, eps=1e-5):
    y = (x - _column(mean, x)) / _column((var + eps) ** 0.5, x)
    return y if gamma is None else _column(gamma, x) * y + _column(beta, x)


for _shape in ((4, 3), (2, 3, 2), (2, 3, 4, 2)):
    _inputs = normal(*_shape), normal(3), normal(3), normal(3), positive(3)
    case("batch_norm_inference", text(_shape), ops.batch_norm_inference, _inputs, batch_norm_inference,
         lambda t, *a: batch_norm_inference(*a))  # fmt: skip
    case("batch_norm_inference", f"{text(_shape)} not affine",
         lambda x, m, v: ops.batch_norm_inference(x, None, None, m, v, eps=0.1), _inputs[:1] + _inputs[3:],
         lambda x, m, v: batch_norm_inference(x, None, None, m, v, 0.1),
         lambda t, x, m, v: batch_norm_inference(x, None, None, m, v, 0.1))  # fmt: skip


def layer_norm(x, gamma, beta, axes, eps=1e-5):
    axes = tuple(sorted(a % x.ndim for a in (axes if isinstance(axes, tuple) else (axes,))))
    y = normalize(x, axes, eps)
    view = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    return y if gamma is None else gamma.reshape(view) * y + beta.reshape(view)


for _axes, _affine in (
    (-1, (4,)), ((1, 2), (3, 4)), ((-1, -2), (3, 4)), ((0, 1, 2), (2, 3, 4)), (1, (3,)), ((0, 2), (2, 4)), (0, (2,))
):  # fmt: skip
    _last = _axes in (-1, (1, 2), (-1, -2), (0, 1, 2))  # those that PyTorch has
    case("layer_norm", f"axes {text(_axes)}", lambda x, g, b, a=_axes: ops.layer_norm(x, g, b, a),
         (normal(2, 3, 4), normal(*_affine), normal(*_affine)), lambda x, g, b, a=_axes: layer_norm(x, g, b, a),
         (lambda t, x, g, b: t.nn.functional.layer_norm(x, g.shape, g, b)) if _last else None)  # fmt: skip
    case("layer_norm", f"axes {text(_axes)} not affine", lambda x, a=_axes: ops.layer_norm(x, None, None, a, 1e-3),
         (normal(2, 3, 4),), lambda x, a=_axes: layer_norm(x, None, None, a, 1e-3),
         (lambda t, x, n=_affine: t.nn.functional.layer_norm(x, n, eps=1e-3)) if _last else None)  # fmt: skip


def group_norm(x, gamma, beta, groups, eps=1e-5):
    grouped = x.reshape(x.shape[0], groups, -1)
    y = normalize(grouped, (2,), eps).reshape(x.shape)
    return y if gamma is None else _column(gamma, x) * y + _column(beta, x)


for _shape, _groups in (((3, 4), 2), ((2, 4, 3), 1), ((2, 4, 3), 4), ((2, 6, 2, 3), 3), ((1, 2, 2, 2, 2), 2)):
    _c = _shape[1]
    case("group_norm", f"{text(_shape)} in {_groups}", lambda x, g, b, n=_groups: ops.group_norm(x, g, b, n),
         (normal(*_shape), normal(_c), normal(_c)), lambda x, g, b, n=_groups: group_norm(x, g, b, n),
         lambda t, x, g, b, n=_groups: t.nn.functional.group_norm(x, n, g, b))  # fmt: skip
    case("group_norm", f"{text(_shape)} in {_groups} not affine", lambda x, n=_groups: ops.group_norm(x, None, None, n, 1e-3),
         (normal(*_shape),), lambda x, n=_groups: group_norm(x, None, None, n, 1e-3),
         lambda t, x, n=_groups: t.nn.functional.group_norm(x, n, eps=1e-3))  # fmt: skip


def kept(shape, p, seed):
    """Dropout's mask from its definition: NumPy's Philox with the key that the seed gives, 53 bits of each number against p."""
    key = int(np.random.Generator(np.random.PCG64(seed)).integers(0, 2**64, dtype=np.uint64))
    bits = np.random.Philox(key=key).random_raw(math.prod(shape)) >> np.uint64(11)
    return (bits / 2.0**53 >= p).reshape(shape)


def _dropout(x, p, **how):
    tg.manual_seed(5)
    return ops.dropout(x, p, **how)


for _p in (0.4, 0.5, 0.9):
    case("dropout", f"p {_p}", lambda x, p=_p: _dropout(x, p), (normal(3, 7),),
         lambda x, p=_p: np.where(kept(x.shape, p, 5), x / (1 - p), 0.0))  # fmt: skip
case("dropout", "p 0", lambda x: _dropout(x, 0.0), (normal(3, 4),), lambda x: x)
case("dropout", "p 1", lambda x: _dropout(x, 1.0), (normal(3, 4),), lambda x: 0 * x)
case("dropout", "not training", lambda x: _dropout(x, 0.5, training=False), (normal(3, 4),), lambda x: x)

# ----- softmax and losses


def softmax(x, axis=-1):
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


for _axis in (-1, 0, 1, (0, 2), None):
    _one = isinstance(_axis, int)
    case("softmax", f"axis {text(_axis)}", lambda x, a=_axis: ops.softmax(x, a), _X, lambda x, a=_axis: softmax(x, a),
         (lambda t, x, a=_axis: t.softmax(x, a)) if _one else None)  # fmt: skip
    case("log_softmax", f"axis {text(_axis)}", lambda x, a=_axis: ops.log_softmax(x, a), _X,
         lambda x, a=_axis: np.log(softmax(x, a)), (lambda t, x, a=_axis: t.log_softmax(x, a)) if _one else None)  # fmt: skip

_REDUCE = {"mean": np.mean, "sum": np.sum, "none": lambda x: x}


def cross_entropy(x, labels, reduction="mean", label_smoothing=0.0):
    target = (1 - label_smoothing) * np.eye(x.shape[1])[labels] + label_smoothing / x.shape[1]
    return _REDUCE[reduction](-(target * np.log(softmax(x))).sum(1))


for _r, _s in product(_REDUCE, (0.0, 0.1, 1.0)):
    case("cross_entropy", f"{_r} smoothing {_s}", lambda x, y, r=_r, s=_s: ops.cross_entropy(x, y, r, s), (normal(4, 5),),
         lambda x, y, r=_r, s=_s: cross_entropy(x, y, r, s),
         lambda t, x, y, r=_r, s=_s: t.nn.functional.cross_entropy(x, y, reduction=r, label_smoothing=s),
         constants=([3, 0, 3, 4],))  # fmt: skip
case("cross_entropy", "uint8 labels", ops.cross_entropy, (normal(3, 4),), cross_entropy,
     constants=(np.array([1, 3, 0], "uint8"),))  # fmt: skip
for _r in _REDUCE:
    case("mse_loss", _r, lambda x, y, r=_r: ops.mse_loss(x, y, r), (normal(3, 4), normal(3, 4)),
         lambda x, y, r=_r: _REDUCE[r]((x - y) ** 2),
         lambda t, x, y, r=_r: t.nn.functional.mse_loss(x, y, reduction=r))  # fmt: skip
    case("bce_with_logits", _r, lambda x, y, r=_r: ops.bce_with_logits(x, y, r),
         (normal(3, 4), lambda rng: rng.uniform(0, 1, (3, 4))),
         lambda x, y, r=_r: _REDUCE[r](-y * np.log(1 / (1 + np.exp(-x))) - (1 - y) * np.log(1 / (1 + np.exp(x)))),
         lambda t, x, y, r=_r: t.nn.functional.binary_cross_entropy_with_logits(x, y, reduction=r))  # fmt: skip


def of(*names: str) -> Iterable[Case]:
    """The cases of some operations."""
    return [c for c in CASES if c.op in names]
