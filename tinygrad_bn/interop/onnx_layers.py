"""How products, convolutions, pooling, normalisations and losses are written in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ops.checks import axes_of
from .onnx_emit import Emitter
from .onnx_table import reduced, writes
from .onnx_trace import Step, Value

# ----- products


@writes("matmul")
def _(e: Emitter, step: Step) -> str:
    return e("MatMul", e.operand(0, step.out.dtype), e.operand(1, step.out.dtype))


@writes("linear")
def _(e: Emitter, step: Step) -> str:
    x, w, b = e.operand(0), e.operand(1), e.optional(2)
    if step.inputs[0].ndim == 2:
        return e("Gemm", x, w, *([b] if b else []), transB=1)
    y = e("MatMul", x, e("Transpose", w, perm=[1, 0]))
    return e("Add", y, b) if b else y


@writes("einsum")
def _(e: Emitter, step: Step) -> str:
    letters, operands = list(step.options["inputs"]), []
    longest: dict[str, Any] = {}
    for text, x in zip(letters, step.inputs, strict=True):
        longest.update({c: n for c, n in zip(text, x.shape, strict=True) if n != 1})
    for k, x in enumerate(step.inputs):
        name = e.operand(k, step.out.dtype)
        # NumPy repeats an axis of length 1; ONNX does not, so such an axis is left out.
        short = [i for i, (c, n) in enumerate(zip(letters[k], x.shape, strict=True)) if n == 1 and c in longest]
        if short:
            name = e("Squeeze", name, e.ints(*short))
            letters[k] = "".join(c for i, c in enumerate(letters[k]) if i not in short)
        operands.append(name)
    return e("Einsum", *operands, equation=f"{','.join(letters)}->{step.options['output']}")


# ----- convolution and pooling: ONNX wants the padding before and after each axis


def _both(padding: tuple[int, ...]) -> list[int]:
    return [*padding, *padding]


@writes("conv1d", "conv2d")
def _(e: Emitter, step: Step) -> str:
    how = step.options
    b = e.optional(2)
    return e(
        "Conv", e.operand(0), e.operand(1), *([b] if b else []),
        kernel_shape=list(step.inputs[1].shape[2:]), strides=list(how["stride"]), pads=_both(how["padding"]),
        dilations=list(how["dilation"]), group=how["groups"],
    )  # fmt: skip


@writes("conv2d_input", "conv_transpose2d")
def _(e: Emitter, step: Step) -> str:
    how, (x, w) = step.options, step.inputs[:2]
    sizes = zip(step.out.shape[2:], x.shape[2:], w.shape[2:], how["stride"], how["padding"], how["dilation"], strict=True)
    b = e.optional(2) if len(step.inputs) > 2 else ""
    return e(
        "ConvTranspose", e.operand(0), e.operand(1), *([b] if b else []),
        kernel_shape=list(w.shape[2:]), strides=list(how["stride"]), pads=_both(how["padding"]),
        dilations=list(how["dilation"]), group=how["groups"],
        output_padding=[m - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for m, n, k, s, p, d in sizes],
    )  # fmt: skip


@writes("sum_pixels")
def _(e: Emitter, _: Step) -> str:
    return e("ReduceSum", e.operand(0), e.ints(0, 2, 3), keepdims=0)


@writes("max_pool2d")
def _(e: Emitter, step: Step) -> str:
    return e("MaxPool", e.operand(0), **_window(step))


@writes("avg_pool2d")
def _(e: Emitter, step: Step) -> str:
    how = step.options
    if how["kernel"] == step.inputs[0].shape[2:] and how["padding"] == (0, 0):
        return e("GlobalAveragePool", e.operand(0))
    return e("AveragePool", e.operand(0), **_window(step), count_include_pad=1)


def _window(step: Step) -> dict[str, list[int]]:
    how = step.options
    return {"kernel_shape": list(how["kernel"]), "strides": list(how["stride"]), "pads": _both(how["padding"])}


# ----- normalisation


def momentum_of(layer: Any) -> float:
    """ONNX's momentum, which weighs the old value. It has none for the average of all batches, which None asks for here."""
    ours = getattr(layer, "momentum", None)
    return 0.9 if ours is None else 1.0 - ours


@writes("batch_norm_inference")
def _(e: Emitter, step: Step) -> str:
    x, gamma, _beta, mean, var = step.inputs
    c, dtype = (x.shape[1],), mean.dtype
    scale = [e.operand(1), e.operand(2)] if gamma is not None else [_full(e, c, 1, dtype), _full(e, c, 0, dtype)]
    statistics = [e.name_of(v, statistic=True) for v in (mean, var)]
    return e(
        "BatchNormalization", e.operand(0), *scale, *statistics,
        epsilon=step.options["eps"], momentum=momentum_of(step.layer), training_mode=0,
    )  # fmt: skip


def _full(e: Emitter, shape: tuple, value: float, dtype: Any) -> str:
    return e.constant(np.full(shape, value, dtype))


def _normalised(e: Emitter, x: str, axes: tuple[int, ...], eps: float, dtype: Any) -> str:
    d = e("Sub", x, reduced(e, "mean", x, axes, True))
    var = reduced(e, "mean", e("Mul", d, d), axes, True)
    return e("Div", d, e("Sqrt", e("Add", var, e.number(eps, dtype))))


def _in_float32(write: Callable) -> Callable:
    """Let ``write(e, step, x, dtype)`` have its input in at least float32, and bring the result back."""

    def entry(e: Emitter, step: Step) -> str:
        half = step.out.dtype == np.float16
        dtype = np.dtype(np.float32) if half else step.out.dtype
        y = write(e, step, e.operand(0, dtype), dtype)
        return e.cast(y, np.float16) if half else y

    return entry


def _affine(e: Emitter, step: Step, y: str, view: list[int], dtype: Any) -> str:
    """gamma y + beta, if there are any."""
    if step.inputs[1] is None:
        return y
    gamma, beta = (e.reshape(e.operand(i, dtype), view) for i in (1, 2))
    return e("Add", e("Mul", y, gamma), beta)


@writes("batch_norm")  # with the batch's statistics also in evaluation: a layer that tracks none
@_in_float32
def _(e: Emitter, step: Step, x: str, dtype: Any) -> str:
    ndim = step.inputs[0].ndim
    y = _normalised(e, x, (0, *range(2, ndim)), step.options["eps"], dtype)
    return _affine(e, step, y, [1, -1, *[1] * (ndim - 2)], dtype)


@writes("layer_norm")
@_in_float32
def _(e: Emitter, step: Step, x: str, dtype: Any) -> str:
    shape = step.inputs[0].shape
    axes, eps = step.options["axes"], step.options["eps"]
    lengths = [n if i in axes else 1 for i, n in enumerate(shape)]
    # ONNX's takes its statistics in float32, whatever the input, over the last axes.
    if dtype == np.float32 and axes == tuple(range(axes[0], len(shape))) and all(isinstance(n, int) for n in lengths):
        tail = tuple(lengths[axes[0] :])
        scale = _full(e, tail, 1, dtype) if step.inputs[1] is None else e.operand(1, dtype)
        shift = [] if step.inputs[2] is None else [e.operand(2, dtype)]
        return e("LayerNormalization", x, scale, *shift, axis=axes[0] - len(shape), epsilon=eps)
    return _affine(e, step, _normalised(e, x, axes, eps, dtype), lengths, dtype)  # type: ignore[arg-type]


@writes("group_norm")
@_in_float32
def _(e: Emitter, step: Step, x: str, dtype: Any) -> str:
    """Each group as one channel of an instance normalisation."""
    value, groups = step.inputs[0], step.options["num_groups"]
    scale, shift = (_full(e, (groups,), v, dtype) for v in (1, 0))
    y = e("Reshape", x, e.ints(0, groups, -1))
    y = e("InstanceNormalization", y, scale, shift, epsilon=step.options["eps"])
    return _affine(e, step, e.reshape(y, value.shape), [1, -1, *[1] * (value.ndim - 2)], dtype)


# ----- softmax and losses


@writes("softmax", "log_softmax")
def _(e: Emitter, step: Step) -> str:
    axes = axes_of(step.op, step.inputs[0].ndim, step.options["axis"])
    x, log = e.operand(0, step.out.dtype), step.op == "log_softmax"
    if len(axes) == 1:
        return e("LogSoftmax" if log else "Softmax", x, axis=axes[0])
    d = e("Sub", x, reduced(e, "max", x, axes, True)) if axes else e("Sub", x, x)
    exp = e("Exp", d)
    total = reduced(e, "sum", exp, axes, True) if axes else exp
    return e("Sub", d, e("Log", total)) if log else e("Div", exp, total)


@writes("cross_entropy")
def _(e: Emitter, step: Step) -> str:
    x, labels = step.inputs
    s, dtype = step.options["label_smoothing"], step.out.dtype
    logs = e("LogSoftmax", e.operand(0), axis=1)
    wanted = labels.dtype if isinstance(labels, Value) and labels.dtype in (np.int32, np.int64) else np.int64
    loss = e("NegativeLogLikelihoodLoss", logs, e.operand(1, wanted), reduction="none")
    if not s:
        return loss
    everywhere = e("Mul", e("ReduceSum", logs, e.ints(1), keepdims=0), e.number(-s / x.shape[1], dtype))
    return e("Add", e("Mul", loss, e.number(1.0 - s, dtype)), everywhere)
