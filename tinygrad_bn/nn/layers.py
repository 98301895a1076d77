"""The layers: each holds its parameters and options, checks its input, and calls one operation."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import ops
from ..backend import type_name
from ..ops.checks import need_bool, need_int, need_number, one_axis, pair, shape_of
from ..ops.loss import check_reduction, check_smoothing
from ..tensor import Tensor
from . import init
from .module import Module, Parameter


def _positive(layer: str, **numbers: Any) -> None:
    for name, value in numbers.items():
        need_int(layer, name, value, 1)


def _new(*shape: int) -> Parameter:
    return Parameter(np.empty(shape, np.float32))


def _shape(x: Any) -> tuple[int, ...]:
    """The shape of x; () for what has none, which ``_expect`` then refuses."""
    return getattr(x, "shape", ())


def _expect(layer: str, x: Any, ok: bool, shape: str) -> None:
    if not ok:
        if not hasattr(x, "shape"):
            raise TypeError(f"{layer} expected a Tensor or an array of shape {shape}, got {type_name(x)}")
        raise ValueError(f"{layer} expected an input of shape {shape}, got {x.shape}")


# ----- affine maps


class Linear(Module):
    """(..., in_features) -> (..., out_features): y = x W.T + b, with W of shape (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        _positive("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = _new(out_features, in_features)
        self.bias = _new(out_features) if need_bool("Linear", "bias", bias) else None
        init.default_(self.weight, self.bias, in_features)

    def forward(self, x: Tensor) -> Tensor:
        shape = _shape(x)
        ok = len(shape) > 0 and shape[-1] == self.in_features
        _expect("Linear", x, ok, f"(..., {self.in_features})")
        return ops.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Conv(Module):
    """What the convolutions share: sizes, and the parameters."""

    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any

    def _setup(self, in_channels: int, out_channels: int, groups: int, shape: tuple[int, ...], bias: bool) -> None:
        name = type(self).__name__
        _positive(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name} expected groups={groups} to divide in_channels={in_channels} and out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.weight = _new(*shape)
        self.bias = _new(out_channels) if need_bool(name, "bias", bias) else None
        init.default_(self.weight, self.bias, self.weight.size // self.weight.shape[0])

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name, usual)
            if value not in (usual, (usual, usual), (usual,)):
                text += f", {name}={value}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text + ("" if self.bias is not None else ", bias=False")


class Conv2d(_Conv):
    """(N, in_channels, H, W) -> (N, out_channels, H', W'): see ``ops.conv2d``. W has shape (out, in / groups, kh, kw)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        self.kernel_size, self.stride = pair("Conv2d", "kernel_size", kernel_size, 1), pair("Conv2d", "stride", stride, 1)
        self.padding, self.dilation = pair("Conv2d", "padding", padding, 0), pair("Conv2d", "dilation", dilation, 1)
        _positive("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        self._setup(in_channels, out_channels, groups, (out_channels, in_channels // groups, *self.kernel_size), bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = _shape(x)
        ok = len(shape) == 4 and shape[1] == self.in_channels
        _expect("Conv2d", x, ok, f"(N, {self.in_channels}, H, W)")
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv1d(_Conv):
    """(N, in_channels, L) -> (N, out_channels, L'): see ``ops.conv1d``. W has shape (out, in / groups, k)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        _positive("Conv1d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        _positive("Conv1d", kernel_size=kernel_size, stride=stride, dilation=dilation)
        need_int("Conv1d", "padding", padding, 0)
        self.kernel_size, self.stride, self.padding, self.dilation = (kernel_size,), (stride,), (padding,), (dilation,)
        self._setup(in_channels, out_channels, groups, (out_channels, in_channels // groups, kernel_size), bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = _shape(x)
        ok = len(shape) == 3 and shape[1] == self.in_channels
        _expect("Conv1d", x, ok, f"(N, {self.in_channels}, L)")
        return ops.conv1d(x, self.weight, self.bias, self.stride[0], self.padding[0], self.dilation[0], self.groups)


class ConvTranspose2d(_Conv):
    """(N, in_channels, H, W) -> (N, out_channels, H', W'): see ``ops.conv_transpose2d``. W: (in, out / groups, kh, kw)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
    ):
        name = "ConvTranspose2d"
        self.kernel_size, self.stride = pair(name, "kernel_size", kernel_size, 1), pair(name, "stride", stride, 1)
        self.padding, self.dilation = pair(name, "padding", padding, 0), pair(name, "dilation", dilation, 1)
        self.output_padding = pair(name, "output_padding", output_padding, 0)
        _positive(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        self._setup(in_channels, out_channels, groups, (in_channels, out_channels // groups, *self.kernel_size), bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = _shape(x)
        ok = len(shape) == 4 and shape[1] == self.in_channels
        _expect("ConvTranspose2d", x, ok, f"(N, {self.in_channels}, H, W)")
        how = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return ops.conv_transpose2d(x, self.weight, self.bias, *how)


class Embedding(Module):
    """(...) integers -> (..., embedding_dim): rows of a table of shape (num_embeddings, embedding_dim), initially normal."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        _positive("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = init.normal_(_new(num_embeddings, embedding_dim))

    def forward(self, indices: Any) -> Tensor:
        return ops.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


# ----- normalisation that does not look at the batch


class _AffineNorm(Module):
    """What LayerNorm and GroupNorm share: gamma (weight) and beta (bias), kept in at least float32."""

    weight: Parameter | None
    bias: Parameter | None

    def _setup(self, shape: tuple[int, ...], affine: bool, name: str = "affine") -> None:
        need_bool(type(self).__name__, name, affine)
        self.weight = init.ones_(_new(*shape)) if affine else None  # type: ignore[assignment]
        self.bias = init.zeros_(_new(*shape)) if affine else None  # type: ignore[assignment]

    def _dtype_for(self, dtype: np.dtype) -> np.dtype:
        return np.dtype("float32") if dtype == "float16" else dtype


class LayerNorm(_AffineNorm):
    """(..., *normalized_shape) -> the same: each example normalised over its last axes; see ``ops.layer_norm``."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True):
        shape = tuple(normalized_shape) if hasattr(normalized_shape, "__iter__") else (normalized_shape,)
        if not shape:
            raise ValueError("LayerNorm expected normalized_shape to be an int or a tuple of at least one, got ()")
        for n in shape:
            _positive("LayerNorm", normalized_shape=n)
        self.normalized_shape, self.eps = shape, need_number("LayerNorm", "eps", eps, 0)
        self.elementwise_affine = elementwise_affine
        self._setup(shape, elementwise_affine, "elementwise_affine")

    def forward(self, x: Tensor) -> Tensor:
        k = len(self.normalized_shape)
        ok = _shape(x)[-k:] == self.normalized_shape
        _expect("LayerNorm", x, ok, f"(..., {', '.join(map(str, self.normalized_shape))})")
        return ops.layer_norm(x, self.weight, self.bias, tuple(range(-k, 0)), self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(_AffineNorm):
    """(N, num_channels, *S) -> the same: each example normalised over each group of channels; see ``ops.group_norm``."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True):
        _positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm expected num_groups={num_groups} to divide num_channels={num_channels}")
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = need_number("GroupNorm", "eps", eps, 0), affine
        self._setup((num_channels,), affine)

    def forward(self, x: Tensor) -> Tensor:
        shape = _shape(x)
        ok = len(shape) >= 2 and shape[1] == self.num_channels
        _expect("GroupNorm", x, ok, f"(N, {self.num_channels}, ...)")
        return ops.group_norm(x, self.weight, self.bias, self.num_groups, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


# ----- without parameters


class Dropout(Module):
    """In training each element is zeroed with probability p, the others divided by 1 - p; else nothing. See ``ops.dropout``."""

    def __init__(self, p: float = 0.5):
        self.p = need_number("Dropout", "a probability p", p, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class LeakyReLU(Module):
    """x where x > 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01):
        self.negative_slope = need_number("LeakyReLU", "negative_slope", negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x, negative_slope=self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """x where x > 0, else alpha * (e ** x - 1)."""

    def __init__(self, alpha: float = 1.0):
        self.alpha = need_number("ELU", "alpha", alpha)

    def forward(self, x: Tensor) -> Tensor:
        return ops.elu(x, alpha=self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class GELU(Module):
    """x * (1 + erf(x / sqrt(2))) / 2."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class SiLU(Module):
    """x * sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + e ** -x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Softplus(Module):
    """log(1 + e ** x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.softplus(x)


class Softmax(Module):
    """e ** x / sum(e ** x) along ``axis``."""

    def __init__(self, axis: int = -1):
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return ops.softmax(x, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class LogSoftmax(Softmax):
    """The logarithm of softmax along ``axis``."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.log_softmax(x, self.axis)


class _Pool(Module):
    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0):
        name = type(self).__name__
        pair(name, "kernel_size", kernel_size, 1)
        pair(name, "padding", padding, 0)
        self.kernel_size, self.stride, self.padding = kernel_size, kernel_size if stride is None else stride, padding
        pair(name, "stride", self.stride, 1)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool):
    """(N, C, H, W) -> (N, C, H', W'): the largest element of each window; see ``ops.max_pool2d``."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool):
    """(N, C, H, W) -> (N, C, H', W'): the mean of each window; see ``ops.avg_pool2d``."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class AdaptiveAvgPool2d(Module):
    """(N, C, H, W) -> (N, C, *output_size); see ``ops.adaptive_avg_pool2d``."""

    def __init__(self, output_size: Any):
        pair("AdaptiveAvgPool2d", "output_size", output_size, 1)
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class Flatten(Module):
    """(N, *S) -> (N, prod(S)): all axes from ``start_axis`` on become one."""

    def __init__(self, start_axis: int = 1):
        self.start_axis = start_axis

    def forward(self, x: Tensor) -> Tensor:
        shape = shape_of("Flatten", x)
        start = one_axis("Flatten", self.start_axis, len(shape))
        return ops.reshape(x, (*shape[:start], prod(shape[start:])))

    def extra_repr(self) -> str:
        return f"start_axis={self.start_axis}"


class Identity(Module):
    """x itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x


# ----- losses


class CrossEntropyLoss(Module):
    """(N, C) logits, (N,) integer labels -> a number; see ``ops.cross_entropy``."""

    def __init__(self, reduction: str = "mean", label_smoothing: float = 0.0):
        check_reduction("cross_entropy", reduction)
        self.reduction, self.label_smoothing = reduction, check_smoothing(label_smoothing)

    def forward(self, x: Tensor, labels: Any) -> Tensor:
        return ops.cross_entropy(x, labels, self.reduction, self.label_smoothing)


class MSELoss(Module):
    """The mean of squared differences; see ``ops.mse_loss``."""

    def __init__(self, reduction: str = "mean"):
        check_reduction("mse_loss", reduction)
        self.reduction = reduction

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(x, target, self.reduction)


class BCEWithLogitsLoss(Module):
    """Binary cross-entropy of logits; see ``ops.bce_with_logits``."""

    def __init__(self, reduction: str = "mean"):
        check_reduction("bce_with_logits", reduction)
        self.reduction = reduction

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return ops.bce_with_logits(x, target, self.reduction)
