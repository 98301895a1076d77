"""How each operation is written in ONNX: elementwise, reductions, shapes and indexing. ``onnx_layers`` has the others.

An entry is a function of the Emitter ``e`` and the Step; it adds nodes, and returns the name of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ops.checks import axes_of, one_axis
from ..ops.shape import _pairs as pad_pairs
from .onnx_emit import Emitter
from .onnx_trace import ExportError, Step, Value

TABLE: dict[str, Callable[[Emitter, Step], str]] = {}
BY_SHAPE = {"broadcast_to", "conv2d_input", "conv_transpose2d", "reshape", "sum_to"}  # their shape is read off the result


def writes(*names: str) -> Callable:
    def register(entry: Callable) -> Callable:
        TABLE.update(dict.fromkeys(names, entry))
        return entry

    return register


# ----- elementwise: operands are cast to the result's dtype first, as NumPy promotes and ONNX does not

_SAME = {
    "abs": "Abs", "add": "Add", "div": "Div", "erf": "Erf", "exp": "Exp", "log": "Log", "maximum": "Max", "minimum": "Min",
    "mul": "Mul", "neg": "Neg", "pow": "Pow", "relu": "Relu", "sigmoid": "Sigmoid", "sign": "Sign", "sqrt": "Sqrt",
    "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip


@writes(*_SAME)
def _(e: Emitter, step: Step) -> str:
    return e(_SAME[step.op], *(e.operand(i, step.out.dtype) for i in range(len(step.inputs))))


_FORMULAS: dict[str, Callable[[Emitter, str, Callable[[float], str]], str]] = {
    "square": lambda e, x, _: e("Mul", x, x),
    "rsqrt": lambda e, x, _: e("Reciprocal", e("Sqrt", x)),
    "log1p": lambda e, x, c: e("Log", e("Add", x, c(1.0))),
    "expm1": lambda e, x, c: e("Sub", e("Exp", x), c(1.0)),
    # Softplus overflows in some runtimes, as log(1 + e ** x) does; this does not.
    "softplus": lambda e, x, c: e("Add", e("Relu", x), e("Log", e("Add", e("Exp", e("Neg", e("Abs", x))), c(1.0)))),
    "silu": lambda e, x, _: e("Mul", x, e("Sigmoid", x)),
    "gelu": lambda e, x, c: e("Mul", e("Mul", x, c(0.5)), e("Add", e("Erf", e("Mul", x, c(math.sqrt(0.5)))), c(1.0))),
}


@writes(*_FORMULAS)
def _(e: Emitter, step: Step) -> str:
    return _FORMULAS[step.op](e, e.operand(0, step.out.dtype), lambda v: e.number(v, step.out.dtype))


@writes("leaky_relu")
def _(e: Emitter, step: Step) -> str:
    return e("LeakyRelu", e.operand(0, step.out.dtype), alpha=float(step.options["negative_slope"]))


@writes("elu")
def _(e: Emitter, step: Step) -> str:
    return e("Elu", e.operand(0, step.out.dtype), alpha=float(step.options["alpha"]))


@writes("where")
def _(e: Emitter, step: Step) -> str:
    return e("Where", e.operand(0, np.bool_), e.operand(1, step.out.dtype), e.operand(2, step.out.dtype))


@writes("clip")
def _(e: Emitter, step: Step) -> str:
    x = e.operand(0, step.out.dtype)
    limits = [step.options["lo"], step.options["hi"]]
    if any(isinstance(v, Value) and v.ndim for v in limits):
        raise ExportError(f"{step.place()} has an array as a limit, which ONNX has not; use maximum and minimum")
    return e("Clip", x, *("" if v is None else e.cast_to(v, step.out.dtype) for v in limits))


@writes("cast")
def _(e: Emitter, step: Step) -> str:
    return e.cast(e.operand(0), step.out.dtype)


@writes("to_device")
def _(e: Emitter, _: Step) -> str:
    return e("Identity", e.operand(0))


# ----- reductions

_REDUCED = {"logsumexp": "ReduceLogSumExp", "max": "ReduceMax", "mean": "ReduceMean", "min": "ReduceMin"}


@writes("sum", *_REDUCED)
def _(e: Emitter, step: Step) -> str:
    x, axes = e.operand(0, step.out.dtype), axes_of(step.op, step.inputs[0].ndim, step.options["axis"])
    if not axes:  # ONNX takes no axes for all of them
        return e("Identity", x)
    return reduced(e, step.op, x, axes, step.options["keepdims"])


def reduced(e: Emitter, op: str, x: str, axes: tuple[int, ...], keepdims: bool) -> str:
    if op == "sum":
        return e("ReduceSum", x, e.ints(*axes), keepdims=int(keepdims))
    return e(_REDUCED[op], x, axes=list(axes), keepdims=int(keepdims))


@writes("var")
def _(e: Emitter, step: Step) -> str:
    dtype, value = step.out.dtype, step.inputs[0]
    x, axes, ddof = e.operand(0, dtype), axes_of("var", value.ndim, step.options["axis"]), step.options["ddof"]
    if not axes:
        return e("Sub", x, x)
    d = e("Sub", x, reduced(e, "mean", x, axes, True))
    keepdims = step.options["keepdims"]
    if not ddof:
        return reduced(e, "mean", e("Mul", d, d), axes, keepdims)
    n = e.cast(e("ReduceProd", e("Gather", e("Shape", x), e.ints(*axes)), axes=[0], keepdims=0), dtype)
    return e("Div", reduced(e, "sum", e("Mul", d, d), axes, keepdims), e("Sub", n, e.number(ddof, dtype)))


@writes("cumsum")
def _(e: Emitter, step: Step) -> str:
    at = one_axis("cumsum", step.options["axis"], step.inputs[0].ndim)
    return e("CumSum", e.operand(0, step.out.dtype), e.constant(np.array(at, np.int64)))


@writes("argmax")
def _(e: Emitter, step: Step) -> str:
    axis = step.options["axis"]
    x = e.operand(0) if axis is not None else e("Reshape", e.operand(0), e.ints(-1))
    return e("ArgMax", x, axis=0 if axis is None else one_axis("argmax", axis, step.inputs[0].ndim), keepdims=0)


# ----- shapes


@writes("reshape")
def _(e: Emitter, step: Step) -> str:
    before, after = step.inputs[0].shape, step.out.shape
    if len(before) > 2 == len(after) and before[0] == after[0] is not None:
        return e("Flatten", e.operand(0), axis=1)
    return e.reshape(e.operand(0), after)


@writes("transpose")
def _(e: Emitter, step: Step) -> str:
    return e("Transpose", e.operand(0), perm=list(step.options["axes"]))


@writes("flip")
def _(e: Emitter, step: Step) -> str:
    axes = axes_of("flip", step.inputs[0].ndim, step.options["axes"])
    return sliced(e, e.operand(0), [(a, slice(None, None, -1)) for a in axes])


@writes("broadcast_to")
def _(e: Emitter, step: Step) -> str:
    before, after = step.inputs[0].shape, step.out.shape
    lead = len(after) - len(before)
    # Expand broadcasts both ways: where x has the length already, 1 says the same, also of a length that follows the batch.
    return e("Expand", e.operand(0), e.lengths([1 if i >= lead and before[i - lead] == n else n for i, n in enumerate(after)]))


@writes("sum_to")
def _(e: Emitter, step: Step) -> str:
    before, after = step.inputs[0].shape, step.out.shape
    lead = len(before) - len(after)
    axes = tuple(i for i, n in enumerate(before) if i < lead or (n != 1 and after[i - lead] == 1))
    x = e.operand(0)
    return e.reshape(reduced(e, "sum", x, axes, True) if axes else x, after)


@writes("concatenate")
def _(e: Emitter, step: Step) -> str:
    return e("Concat", *(e.operand(i, step.out.dtype) for i in range(len(step.inputs))), axis=step.options["axis"])


@writes("pad")
def _(e: Emitter, step: Step) -> str:
    pairs = pad_pairs(step.inputs[0], step.options["pad_width"])
    value = e.number(step.options["value"], step.out.dtype)
    return e("Pad", e.operand(0), e.ints(*(a for a, _ in pairs), *(b for _, b in pairs)), value, mode="constant")


# ----- indexing

_ENDS = np.iinfo(np.int64)


def sliced(e: Emitter, x: str, cuts: list[tuple[int, slice]]) -> str:
    """x with Python's slices along these axes; ONNX clamps as Python does."""
    if not cuts:
        return x
    starts, ends, steps = [], [], []
    for _, s in cuts:
        back = s.step is not None and s.step < 0
        starts.append(s.start if s.start is not None else _ENDS.max if back else 0)
        ends.append(s.stop if s.stop is not None else _ENDS.min if back else _ENDS.max)
        steps.append(1 if s.step is None else s.step)
    return e("Slice", x, e.ints(*starts), e.ints(*ends), e.ints(*(a for a, _ in cuts)), e.ints(*steps))


@writes("getitem")
def _(e: Emitter, step: Step) -> str:
    items, ndim = _full_index(step), step.inputs[0].ndim
    cuts: list[tuple[int, slice]] = []
    takes: list[tuple[int, str]] = []
    new: list[int] = []
    axis = place = arrays = 0
    for item in items:
        if item is None:
            new.append(place)
            place += 1
            continue
        if isinstance(item, slice):
            if item != slice(None):
                cuts.append((axis, item))
            place += 1
        elif isinstance(item, Value):
            takes.append((axis, e.cast_to(item, item.dtype if item.dtype in (np.int32, np.int64) else np.int64)))
            arrays += 1
            place += item.ndim
        else:
            takes.append((axis, e.constant(np.array(item, np.int64))))
        axis += 1
    if arrays and len(takes) > 1:
        raise ExportError(f"{step.place()} is indexed by an array beside other arrays or ints, which is not exported")
    assert axis == ndim
    x = sliced(e, e.operand(0), cuts)
    for axis, index in reversed(takes):  # an int takes its axis away, so the last goes first
        x = e("Gather", x, index, axis=axis)
    return e("Unsqueeze", x, e.ints(*new)) if new else x


def _full_index(step: Step) -> list[Any]:
    """One item for each axis, and None for new ones."""
    index = step.options["index"]
    items = list(index) if type(index) is tuple else [index]
    if any(isinstance(i, (bool, np.bool_)) or (isinstance(i, Value) and i.dtype == np.bool_) for i in items):
        raise ExportError(f"{step.place()} is indexed by a mask: the shape of its result depends on values")
    missing = step.inputs[0].ndim - sum(i is not None and i is not Ellipsis for i in items)
    at = next((k for k, i in enumerate(items) if i is Ellipsis), len(items))
    return [*items[:at], *[slice(None)] * missing, *items[at + 1 :]]
