"""Affine maps, dropout, pooling and reshaping: each layer holds its parameters and options, and calls one operation."""

from __future__ import annotations

from math import prod
from typing import Any

from .. import ops
from ..ops.checks import need_bool, need_int, need_number, one_axis, pair, shape_of
from ..tensor import Tensor
from . import init
from .common import expect, fresh, need_positive, shape_or_none
from .module import Module


class Linear(Module):
    """(..., in_features) -> (..., out_features): y = x W.T + b, with W of shape (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        need_positive("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = fresh(out_features, in_features)
        self.bias = fresh(out_features) if need_bool("Linear", "bias", bias) else None
        init.default_(self.weight, self.bias, in_features)

    def forward(self, x: Tensor) -> Tensor:
        if getattr(x, "shape", ())[-1:] != (self.in_features,):  # (the sentence takes longer to write than the check)
            expect("Linear", x, False, f"(..., {self.in_features})")
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
        need_positive(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name} expected groups={groups} to divide in_channels={in_channels} and out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.weight = fresh(*shape)
        self.bias = fresh(out_channels) if need_bool(name, "bias", bias) else None
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
        need_positive("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        self._setup(in_channels, out_channels, groups, (out_channels, in_channels // groups, *self.kernel_size), bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = shape_or_none(x)
        ok = len(shape) == 4 and shape[1] == self.in_channels
        expect("Conv2d", x, ok, f"(N, {self.in_channels}, H, W)")
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
        need_positive("Conv1d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        need_positive("Conv1d", kernel_size=kernel_size, stride=stride, dilation=dilation)
        need_int("Conv1d", "padding", padding, 0)
        self.kernel_size, self.stride, self.padding, self.dilation = (kernel_size,), (stride,), (padding,), (dilation,)
        self._setup(in_channels, out_channels, groups, (out_channels, in_channels // groups, kernel_size), bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = shape_or_none(x)
        ok = len(shape) == 3 and shape[1] == self.in_channels
        expect("Conv1d", x, ok, f"(N, {self.in_channels}, L)")
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
        need_positive(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        self._setup(in_channels, out_channels, groups, (in_channels, out_channels // groups, *self.kernel_size), bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = shape_or_none(x)
        ok = len(shape) == 4 and shape[1] == self.in_channels
        expect("ConvTranspose2d", x, ok, f"(N, {self.in_channels}, H, W)")
        how = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return ops.conv_transpose2d(x, self.weight, self.bias, *how)


class Embedding(Module):
    """(...) integers -> (..., embedding_dim): rows of a table of shape (num_embeddings, embedding_dim), initially normal."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        need_positive("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = init.normal_(fresh(num_embeddings, embedding_dim))

    def forward(self, indices: Any) -> Tensor:
        return ops.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Dropout(Module):
    """In training each element is zeroed with probability p, the others divided by 1 - p; else nothing. See ``ops.dropout``."""

    def __init__(self, p: float = 0.5):
        self.p = need_number("Dropout", "a probability p", p, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


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
        return ops.reshape(x, (*shape[:start], prod(shape[start:]))) if start < len(shape) - 1 else x

    def extra_repr(self) -> str:
        return f"start_axis={self.start_axis}"


class Identity(Module):
    """x itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x
