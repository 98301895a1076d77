"""What ONNX's convolutions, pooling and normalisations mean: windows with their padding, and channels with their statistics."""

# ruff: noqa: ARG001 (an attribute that says nothing new is known too)
from __future__ import annotations

from math import inf
from typing import Any

from .. import ops
from .onnx_semantics import means

# ----- padding: before and after each axis, or by the two SAME rules, which depend on the input's size


def _pads(name, x, kernel, strides, pads, dilations, auto_pad):
    """(before, after) for each spatial axis."""
    if auto_pad == "NOTSET":
        n = len(kernel)
        widths = [0] * (2 * n) if pads is None else pads
        return list(zip(widths[:n], widths[n:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * len(kernel)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"{name} expected auto_pad NOTSET, VALID, SAME_UPPER or SAME_LOWER, got {auto_pad!r}")
    found = []
    for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)  # so that ceil(n / s) windows fit
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return found


def _padded(x, pairs, value, enough=None):
    """x with what its convolution cannot pad itself, and the padding that is left to it: the same before and after an axis."""
    even = all(a == b for a, b in pairs) and (enough is None or all(a <= n for (a, _), n in zip(pairs, enough, strict=True)))
    if even:
        return x, tuple(a for a, _ in pairs)
    return ops.pad(x, pad_width=((0, 0), (0, 0), *pairs), value=value), (0,) * len(pairs)


def _need_axes(name: str, x: Any, *expected: int) -> int:
    n = len(x.shape) - 2
    if n not in expected:
        axes = " or ".join(map(str, expected))
        raise ValueError(f"{name} expected an input of {axes} axes after batch and channels, got shape {x.shape}")
    return n


# ----- convolution


@means("Conv")
def _conv(
    x, w, b=None, *, kernel_shape=None, strides=None, pads=None, dilations=None, group=1, auto_pad="NOTSET"
):  # fmt: skip
    n = _need_axes("Conv", x, 1, 2)
    kernel, strides, dilations = w.shape[2:], strides or [1] * n, dilations or [1] * n
    x, padding = _padded(x, _pads("Conv", x, kernel, strides, pads, dilations, auto_pad), 0.0)
    if n == 1:
        return ops.conv1d(x, w, b, strides[0], padding[0], dilations[0], group)
    return ops.conv2d(x, w, b, tuple(strides), padding, tuple(dilations), group)


@means("ConvTranspose")
def _conv_transpose(
    x, w, b=None, *, kernel_shape=None, strides=None, pads=None, dilations=None, group=1, auto_pad="NOTSET",
    output_padding=None,
):  # fmt: skip
    n = _need_axes("ConvTranspose", x, 2)
    if auto_pad not in ("NOTSET", "VALID"):
        raise ValueError(f"ConvTranspose expected auto_pad NOTSET or VALID, got {auto_pad!r}")
    strides, dilations, extra = strides or [1] * n, dilations or [1] * n, output_padding or [0] * n
    pairs = _pads("ConvTranspose", x, w.shape[2:], strides, pads, dilations, auto_pad)
    even = all(a == b_ for a, b_ in pairs)
    padding = tuple(a for a, _ in pairs) if even else (0,) * n
    y = ops.conv_transpose2d(x, w, b, tuple(strides), padding, tuple(extra), group, tuple(dilations))
    if even:
        return y
    cut = [slice(a, m - b_) for (a, b_), m in zip(pairs, y.shape[2:], strict=True)]
    return ops.getitem(y, (slice(None), slice(None), *cut))


# ----- pooling


@means("MaxPool")
def _max_pool(
    x, *, kernel_shape, strides=None, pads=None, dilations=None, auto_pad="NOTSET", ceil_mode=0, storage_order=0
):  # fmt: skip
    strides = _plain_window("MaxPool", x, strides, dilations, ceil_mode)
    pairs = _pads("MaxPool", x, kernel_shape, strides, pads, [1, 1], auto_pad)
    x, padding = _padded(x, pairs, -inf, [k // 2 for k in kernel_shape])
    return ops.max_pool2d(x, tuple(kernel_shape), tuple(strides), padding)


@means("AveragePool")
def _average_pool(
    x, *, kernel_shape, strides=None, pads=None, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0
):  # fmt: skip
    strides = _plain_window("AveragePool", x, strides, None, ceil_mode)
    pairs = _pads("AveragePool", x, kernel_shape, strides, pads, [1, 1], auto_pad)
    how, enough = (tuple(kernel_shape), tuple(strides)), [k // 2 for k in kernel_shape]
    padded, padding = _padded(x, pairs, 0.0, enough)
    y = ops.avg_pool2d(padded, *how, padding)
    if count_include_pad or not any(map(any, pairs)):
        return y
    raw = x._data if hasattr(x, "_data") else x
    ones, _ = _padded(raw[:1, :1] * 0.0 + 1.0, pairs, 0.0, enough)
    return ops.div(y, ops.avg_pool2d(ones, *how, padding))  # the part of each window that is no padding


@means("GlobalAveragePool")
def _global_average_pool(x):
    return ops.mean(x, axis=tuple(range(2, len(x.shape))), keepdims=True)


def _plain_window(name, x, strides, dilations, ceil_mode):
    n = _need_axes(name, x, 2)
    if ceil_mode or (dilations is not None and any(d != 1 for d in dilations)):
        raise ValueError(f"{name} expected ceil_mode 0 and no dilations, got {ceil_mode} and {dilations}")
    return strides or [1] * n


# ----- normalisation


@means("BatchNormalization", outputs=3)  # OnnxModel does it, since it has the statistics
def _batch_normalization(*, epsilon=1e-5, momentum=0.9, training_mode=0):
    raise NotImplementedError


@means("InstanceNormalization")
def _instance_normalization(x, scale, b, *, epsilon=1e-5):
    return ops.group_norm(x, scale, b, x.shape[1], epsilon)


@means("LayerNormalization")
def _layer_normalization(x, scale, b=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    axes = tuple(range(axis % len(x.shape), len(x.shape)))
    tail = tuple(x.shape[a] for a in axes)
    if scale.shape == tail and b is not None and b.shape == tail:
        return ops.layer_norm(x, scale, b, axes, epsilon)
    y = ops.mul(ops.layer_norm(x, None, None, axes, epsilon), scale)
    return y if b is None else ops.add(y, b)
