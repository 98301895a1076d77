"""The networks of the examples, the tests and the benchmarks, each with or without a normalisation.

``norm`` is "batch", "layer", "group" or None. A layer before a normalisation has no bias: the normalisation would subtract it.
The same seed gives the same initial weights whatever the norm, since normalisations draw nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import numpy as np

from . import nn
from .nn import init
from .ops import pad
from .ops.checks import need_int
from .tensor import Tensor

_NORMS = "batch", "layer", "group", None


def normalisation(norm: str | None, channels: int, spatial: bool) -> nn.Module:
    """The layer that ``norm`` names for (N, channels) or, if ``spatial``, (N, channels, H, W).

    "layer" is over all of an example's channels and positions (GroupNorm with one group), "group" over groups of 8 channels or
    of as many as divide them.
    """
    _check_norm(norm)
    if norm == "batch":
        return nn.BatchNorm2d(channels) if spatial else nn.BatchNorm1d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "group":
        return nn.GroupNorm(channels // gcd(channels, 8), channels)
    return nn.Identity()


def _check_norm(norm: object) -> None:
    if norm not in _NORMS:
        raise ValueError(f"norm expected one of {', '.join(map(repr, _NORMS))}, got {norm!r}")


def _check_sizes(model: str, what: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(sizes, str) or not hasattr(sizes, "__iter__"):
        raise TypeError(f"{model} expected {what} to be a sequence of ints, got {sizes!r}")
    return tuple(sizes)


def _activation(name: str) -> nn.Module:
    known = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
    if name not in known:
        raise ValueError(f"activation expected one of {', '.join(known)}, got {name!r}")
    return known[name]()


def _he(layer: nn.Module, bias: bool) -> nn.Module:
    """Initial weights by He et al. 2015; ``layer`` was made without a bias, and gets one of zeros if it should have one."""
    init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[attr-defined]
    return _zero_bias(layer, bias)


def _zero_bias(layer: nn.Module, wanted: bool) -> nn.Module:
    """A layer's own bias would be drawn, and the weights after it would then differ from those of the model without it."""
    if wanted:
        layer.bias = nn.Parameter(np.zeros(layer.weight.shape[0], np.float32))  # type: ignore[attr-defined]
    return layer


def mlp(
    sizes: Sequence[int] = (784, 100, 100, 100, 10), norm: str | None = "batch", activation: str = "sigmoid"
) -> nn.Sequential:
    """(N, ...) -> (N, sizes[-1]): Linear layers of these sizes, each but the last with a normalisation and an activation.

    The default is the network of Ioffe & Szegedy 2015, section 4.1. Weights by Glorot & Bengio 2010 (He et al. 2015 for relu).
    """
    sizes = _check_sizes("mlp", "sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(f"mlp expected at least two sizes, got {sizes}")
    _check_norm(norm)
    _activation(activation)
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        last = i == len(sizes) - 2
        linear = nn.Linear(a, b, bias=False)
        if activation == "relu":
            _he(linear, last or norm is None)
        else:
            init.xavier_normal_(linear.weight)
            _zero_bias(linear, last or norm is None)
        layers += [linear] if last else [linear, *_norm_layers(norm, b, False), _activation(activation)]
    return nn.Sequential(*layers)


def _norm_layers(norm: str | None, channels: int, spatial: bool) -> list[nn.Module]:
    layer = normalisation(norm, channels, spatial)
    return [] if norm is None else [layer]


def cnn(
    channels: Sequence[int] = (8, 16),
    hidden: int = 64,
    norm: str | None = "batch",
    in_channels: int = 1,
    image_size: int = 28,
    classes: int = 10,
) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, classes): conv3x3-norm-ReLU-maxpool2 for each of ``channels``, Linear-norm-ReLU, Linear.

    Weights by He et al. 2015.
    """
    channels = _check_sizes("cnn", "channels", channels)
    for what, value in {"hidden": hidden, "in_channels": in_channels, "image_size": image_size, "classes": classes}.items():
        need_int("cnn", what, value, 1)
    _check_norm(norm)
    layers: list[nn.Module] = []
    before, size = in_channels, image_size
    for width in channels:
        layers += [_he(nn.Conv2d(before, width, 3, padding=1, bias=False), norm is None)]
        layers += [*_norm_layers(norm, width, True), nn.ReLU(), nn.MaxPool2d(2)]
        before, size = width, size // 2
    layers += [nn.Flatten(), _he(nn.Linear(before * size * size, hidden, bias=False), norm is None)]
    layers += [*_norm_layers(norm, hidden, False), nn.ReLU(), _he(nn.Linear(hidden, classes, bias=False), True)]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, subsampled and padded with zero channels where shapes change."""

    def __init__(self, before: int, width: int, stride: int, norm: str | None):
        self.conv1 = _he(nn.Conv2d(before, width, 3, stride, 1, bias=False), norm is None)
        self.norm1 = normalisation(norm, width, True)
        self.conv2 = _he(nn.Conv2d(width, width, 3, 1, 1, bias=False), norm is None)
        self.norm2 = normalisation(norm, width, True)
        self.stride, self.new_channels = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y))
        if self.stride != 1 or self.new_channels:
            x = pad(x[:, :, :: self.stride, :: self.stride], ((0, 0), (0, self.new_channels), (0, 0), (0, 0)))
        return (y + x).relu()


class ResNet20(nn.Module):
    """(N, in_channels, H, W) -> (N, classes). He et al. 2016, section 4.2: n = 3, 16 to 64 channels, shortcuts of option A."""

    def __init__(self, norm: str | None = "batch", in_channels: int = 1, classes: int = 10):
        _check_norm(norm)
        self.conv = _he(nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), norm is None)
        self.norm = normalisation(norm, 16, True)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]  # of the first convolution, then of each block
        self.blocks = nn.Sequential(*(_Block(a, b, b // a, norm) for a, b in pairwise(widths)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = _he(nn.Linear(64, classes, bias=False), True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.fc(self.pool(self.blocks(x)).flatten(1))


def resnet20(norm: str | None = "batch", in_channels: int = 1, classes: int = 10) -> ResNet20:
    """The residual network of He et al. 2016 for CIFAR-10 with 20 layers of weights; see ``ResNet20``."""
    return ResNet20(norm, in_channels, classes)
