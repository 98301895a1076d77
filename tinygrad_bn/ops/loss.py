"""Softmax and the losses."""

from __future__ import annotations

from math import isfinite

from ..backend import device_of, kernels_of, to_device, xp_of
from ..core import Box, primitive
from .checks import axes_of, need_elements, need_floating, need_number, need_one_device, need_one_of, shape_of
from .elementwise import exp, softplus, square
from .reduce import mean
from .reduce import sum as sum_


@primitive
def softmax(x, *, axis=-1):
    """e ** x / sum(e ** x) along ``axis``, without overflow."""
    axes = axes_of("softmax", x.ndim, axis)
    need_elements("softmax", x, axes)
    y = xp_of(x).exp(x - x.max(axis=axes, keepdims=True))
    y /= y.sum(axis=axes, keepdims=True)
    return y


@primitive
def log_softmax(x, *, axis=-1):
    """The logarithm of softmax, exact where softmax itself rounds to 0."""
    xp = xp_of(x)
    axes = axes_of("log_softmax", x.ndim, axis)
    need_elements("log_softmax", x, axes)
    need_floating("log_softmax", x)
    d = x - x.max(axis=axes, keepdims=True)
    d -= xp.log(xp.exp(d).sum(axis=axes, keepdims=True))
    return d


@softmax.vjp
def _(g, out, _x, *, axis):
    h = g * out
    return (h - out * sum_(h, axis, keepdims=True),)


log_softmax.defvjp(lambda g, out, _x, *, axis: g - exp(out) * sum_(g, axis, keepdims=True))


def check_reduction(name, reduction):
    need_one_of(name, "reduction", reduction, "mean", "sum", "none")


def check_smoothing(label_smoothing):
    return need_number("cross_entropy", "label_smoothing", label_smoothing, 0, 1)


def _reduce(name, losses, reduction):
    check_reduction(name, reduction)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return sum_(losses)
    if 0 in losses.shape:
        raise ValueError(f"{name} expected at least one loss to average, got none")
    return mean(losses)


@primitive
def _cross_entropy(x, labels, *, label_smoothing):
    return kernels_of(x).cross_entropy(x, labels, label_smoothing)


@_cross_entropy.vjp
def _(g, _out, x, labels, *, label_smoothing):
    raw = x._data if isinstance(x, Box) else x
    target = kernels_of(raw).smooth_labels(labels, raw.shape[1], label_smoothing, raw.dtype)
    return (g.reshape(-1, 1) * (softmax(x, axis=1) - target), None)


@_cross_entropy.fused_vjp
def _(g, _out, x, labels, *, label_smoothing):
    return kernels_of(x).cross_entropy_backward(g, x, labels, label_smoothing), None


def cross_entropy(x, labels, reduction="mean", label_smoothing=0.0):
    """(N, C) logits, (N,) integer labels -> the mean (or "sum", or "none": each, (N,)) of -log softmax(x)[label].

    With label_smoothing s the target is 1 - s on the label plus s / C everywhere. Szegedy et al. 2016. A label outside
    0..C-1 raises ValueError if the labels are on the CPU; on CUDA, where the check would wait for the device, it makes its loss
    NaN. Labels on the CPU beside logits on CUDA are copied there once they are checked.
    """
    logits, raw = (a._data if isinstance(a, Box) else a for a in (x, labels))
    shape = shape_of("cross_entropy", logits)
    if len(shape) != 2:
        raise ValueError(f"cross_entropy expected logits of shape (N, C), got {shape}")
    need_floating("cross_entropy", logits)
    if not shape[1]:
        raise ValueError(f"cross_entropy expected logits of at least one class, got shape {shape}")
    if not hasattr(raw, "dtype"):
        raise TypeError(f"cross_entropy expected labels as a Tensor or an array, got {type(labels).__name__}")
    if raw.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy expected integer labels (class numbers), got {raw.dtype}")
    if raw.shape != shape[:1]:
        raise ValueError(f"cross_entropy expected labels of shape {shape[:1]} for logits of shape {shape}, got {raw.shape}")
    label_smoothing = check_smoothing(label_smoothing)
    here = device_of(raw) == "cpu"
    if here and type(logits) is not type(raw) and device_of(logits) == "cuda":
        _check_labels(raw, shape[1])
        labels, here = to_device(raw, "cuda"), False
    loss = _reduce("cross_entropy", _cross_entropy(x, labels, label_smoothing=label_smoothing), reduction)
    if here and not _finite(loss):  # a label outside makes its loss NaN
        _check_labels(raw, shape[1])
    return loss


def _check_labels(labels, classes):
    """Raise for a label on the CPU that is no class."""
    if labels.size and not (0 <= int(labels.min()) and int(labels.max()) < classes):
        raise ValueError(
            f"cross_entropy expected labels from 0 to {classes - 1} for {classes} classes, got values from "
            f"{labels.min()} to {labels.max()}"
        )


def _finite(loss):
    """Whether a loss, or all of them, are finite, of an array on the CPU."""
    raw = loss._data if isinstance(loss, Box) else loss
    return isfinite(raw.sum() if raw.ndim else raw)


def _check_target(name, x, target):
    if shape_of(name, x) != shape_of(name, target, "target"):
        raise ValueError(f"{name} expected an input and a target of one shape, got {x.shape} and {target.shape}")
    need_one_device(name, x=x, target=target)


def mse_loss(x, target, reduction="mean"):
    """(*S), (*S) -> the mean ("sum", "none") of (x - target)**2."""
    _check_target("mse_loss", x, target)
    return _reduce("mse_loss", square(x - target), reduction)


def bce_with_logits(x, target, reduction="mean"):
    """(*S) logits, (*S) targets in [0, 1] -> the mean ("sum", "none") of -t log s(x) - (1 - t) log(1 - s(x)), s the sigmoid."""
    _check_target("bce_with_logits", x, target)
    return _reduce("bce_with_logits", target * softplus(-x) + (1.0 - target) * softplus(x), reduction)
