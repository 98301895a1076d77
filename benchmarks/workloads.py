"""The workloads of compare.py and footprint.py: what one step does, on this project and on PyTorch; other peers are in peers/.

A whole step is: forget the gradients, forward, softmax cross-entropy, backward, SGD with momentum; float32. A single layer's is
forward and backward. Each function here builds everything once, and returns the step as a function without arguments.

A layer gets its input, and the gradient of its output, in the memory layout in which it gets them inside a network: logically
always (N, C, H, W), on this project with the channels of a pixel beside each other, since that is what its convolutions leave
behind; without Numba, and in PyTorch's default, contiguous. The workloads "(NCHW input)" are for the cost of the other case on
this project: there it gets contiguous arrays too, as from a user who calls a single layer on data of his own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

LR, MOMENTUM = 0.05, 0.9


class Workload(NamedTuple):
    """``input``: the shape of a batch; ``model``: which network or layer; ``products``: (rows, inner, columns, times) of the
    GEMMs of a step; ``moved``: how often a layer that only moves memory must read or write an array of its input's size;
    ``nchw``: this project too gets contiguous (N, C, H, W); ``device``: where it runs, "cpu" or "cuda"."""

    input: tuple[int, ...]
    model: str
    products: list[tuple[int, int, int, int]]
    moved: float = 0.0
    nchw: bool = False
    device: str = "cpu"

    def flops(self) -> int:
        return sum(2 * m * k * n * times for m, k, n, times in self.products)

    def bytes(self) -> float:
        return self.moved * prod(self.input) * 4


def _mlp(batch: int) -> list[tuple[int, int, int, int]]:
    sizes = (784, 100, 100, 100, 10)
    return [(batch, a, b, 3 if i else 2) for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))]


def _conv(batch: int, before: int, width: int, size: int, times: int = 3) -> tuple[int, int, int, int]:
    """A 3x3 convolution as a product: forward, and the gradients of weight and (3 times, not 2) input."""
    return batch * size * size, 9 * before, width, times


def _resnet20(batch: int) -> list[tuple[int, int, int, int]]:
    stages = [(16, 16, 28)] * 6 + [(16, 32, 14)] + [(32, 32, 14)] * 5 + [(32, 64, 7)] + [(64, 64, 7)] * 5
    return [_conv(batch, 1, 16, 28, 2), *(_conv(batch, *stage) for stage in stages), (batch, 64, 10, 3)]


def _cnn_products(batch: int) -> list[tuple[int, int, int, int]]:
    convolutions = [_conv(batch, 1, 32, 28, 2), _conv(batch, 32, 32, 28), _conv(batch, 32, 64, 14), _conv(batch, 64, 64, 14)]
    return [*convolutions, (batch, 3136, 128, 3), (batch, 128, 10, 3)]


def _network(model: str, products: Callable, batch: int) -> Workload:
    return Workload((batch, 784) if model == "mlp" else (batch, 1, 28, 28), model, products(batch))


WORKLOADS = {
    "mlp-bn 60": _network("mlp", _mlp, 60),
    "mlp-bn 256": _network("mlp", _mlp, 256),
    "cnn-bn 64": _network("cnn", _cnn_products, 64),
    "resnet20-bn 64": _network("resnet20", _resnet20, 64),
    "BatchNorm2d f+b": Workload((64, 32, 28, 28), "batchnorm", [], 8),
    "conv 32@28 f+b": Workload((64, 32, 28, 28), "conv", [_conv(64, 32, 32, 28)]),
    "conv 64@14 f+b": Workload((64, 64, 14, 14), "conv", [_conv(64, 64, 64, 14)]),
    "max_pool2d f+b": Workload((64, 32, 28, 28), "maxpool", [], 2.5),
}
WHOLE = "mlp", "cnn", "resnet20"
WORKLOADS |= {f"{name} (NCHW input)": w._replace(nchw=True) for name, w in WORKLOADS.items() if w.model not in WHOLE}

ON_CUDA = {
    "mlp-bn 60": _network("mlp", _mlp, 60),
    "mlp-bn 256": _network("mlp", _mlp, 256),
    "cnn-bn 64": _network("cnn", _cnn_products, 64),
    "cnn-bn 1024": _network("cnn", _cnn_products, 1024),
    "resnet20-bn 64": _network("resnet20", _resnet20, 64),
    "resnet20-bn 1024": _network("resnet20", _resnet20, 1024),
    "BatchNorm2d 256@56 f+b": Workload((64, 256, 56, 56), "batchnorm", [], 8),
    "BatchNorm2d 512@14 f+b": Workload((64, 512, 14, 14), "batchnorm", [], 8),
    "conv 256@56 f+b": Workload((64, 256, 56, 56), "conv", [_conv(64, 256, 256, 56)]),
    "conv 512@14 f+b": Workload((64, 512, 14, 14), "conv", [_conv(64, 512, 512, 14)]),
}
WORKLOADS |= {f"cuda {name}": w._replace(device="cuda", nchw=True) for name, w in ON_CUDA.items()}


def batch(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(workload.input).astype(np.float32)
    return x, rng.integers(0, 10, workload.input[0])


def _cnn(nn: Any) -> Any:
    """The same layers have the same names here and in PyTorch."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def _layer(nn: Any, workload: Workload) -> Any:
    channels = workload.input[1]
    if workload.model == "conv":
        return nn.Conv2d(channels, channels, 3, padding=1)
    return nn.BatchNorm2d(channels) if workload.model == "batchnorm" else nn.MaxPool2d(2)


def _in_layout(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """x, contiguous, or with the channels of a pixel beside each other."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if channels_last else np.ascontiguousarray(x)


def _tf32() -> bool:
    """Whether both may use TensorFloat-32 on CUDA: neither, unless compare.py is told so."""
    return os.environ.get("COMPARE_TF32") == "1"


def waits(library: str) -> Callable[[], None]:
    """What waits until the GPU has done all that ``library``, this project or torch, has asked of it."""
    if library == "torch":
        import torch

        return torch.cuda.synchronize
    import tinygrad_bn as tg

    return tg.cuda.synchronize


def ours_model(name: str) -> Any:
    """A network of this project."""
    import tinygrad_bn as tg
    from tinygrad_bn import nn

    return {"mlp": tg.models.mlp, "resnet20": tg.models.resnet20, "cnn": lambda: _cnn(nn)}[name]()


def ours_network(name: str, device: str = "cpu") -> Callable[[np.ndarray, np.ndarray], Callable[[], Any]]:
    """A network of this project: a function of images and labels that gives the training step on them."""
    import tinygrad_bn as tg

    model = ours_model(name).to(device)
    optimizer = tg.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def on(x: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
        images, targets = tg.tensor(x, device=device), tg.tensor(labels, device=device)

        def step() -> Any:
            optimizer.zero_grad()
            loss = tg.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            return loss

        return step

    return on


def ours(workload: Workload, channels_last: bool = True) -> Callable[[], Any]:
    """The step on this project; a layer's arrays in channels-last memory unless told otherwise."""
    import tinygrad_bn as tg
    from tinygrad_bn import nn

    tg.cuda.allow_tf32 = _tf32()
    x, labels = batch(workload)
    if workload.model in WHOLE:
        return ours_network(workload.model, workload.device)(x, labels)
    channels_last = channels_last and not workload.nchw
    layer = _layer(nn, workload).to(workload.device)
    # (tensor() would copy it to contiguous memory)
    leaf = tg.Tensor(_in_layout(x, channels_last)).to(workload.device).requires_grad_()
    g = tg.Tensor(_in_layout(np.ones(layer(leaf).shape, x.dtype), channels_last)).to(workload.device)

    def forward_and_backward() -> None:
        leaf.grad = None
        layer.zero_grad()
        layer(leaf).backward(g)

    return forward_and_backward


def torchs_network(
    name: str, channels_last: bool, device: str = "cpu"
) -> Callable[[np.ndarray, np.ndarray], Callable[[], Any]]:
    """The same network on PyTorch, in its default layout or in channels_last: images and labels give the training step."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, before: int, width: int):
            super().__init__()
            self.stride, self.new = width // before, width - before
            self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
            if self.new:
                x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
            return (y + x).relu()

    def mlp() -> Any:
        sizes = (784, 100, 100, 100)
        hidden = [
            (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.Sigmoid()) for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        return nn.Sequential(nn.Flatten(), *(layer for three in hidden for layer in three), nn.Linear(100, 10))

    def resnet20() -> Any:
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        first = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        blocks = [Block(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    layout = torch.channels_last if channels_last and name != "mlp" else torch.contiguous_format
    model = {"mlp": mlp, "cnn": lambda: _cnn(nn), "resnet20": resnet20}[name]().to(device, memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def on(x: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
        images, targets = torch.from_numpy(x).contiguous(memory_format=layout).to(device), torch.from_numpy(labels).to(device)

        def step() -> Any:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            return loss

        return step

    return on


def torchs(workload: Workload, channels_last: bool) -> Callable[[], Any]:
    """The same step on PyTorch, in its default layout or in channels_last."""
    import torch
    from torch import nn

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = _tf32()
    x, labels = batch(workload)
    if workload.model in WHOLE:
        return torchs_network(workload.model, channels_last, workload.device)(x, labels)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    layer = _layer(nn, workload).to(workload.device, memory_format=layout)
    leaf = torch.from_numpy(x).contiguous(memory_format=layout).to(workload.device).requires_grad_()
    g = torch.ones_like(layer(leaf))

    def forward_and_backward() -> None:
        leaf.grad = None
        layer.zero_grad()
        layer(leaf).backward(g)

    return forward_and_backward
