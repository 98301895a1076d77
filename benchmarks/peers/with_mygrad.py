"""The workloads on MyGrad, from the layers of ``mygrad.nnet``, all but resnet20; images as (N, C, H, W).

What MyGrad does not have is by hand in NumPy: the running statistics of BatchNorm, and SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from workloads import LR, MOMENTUM, WHOLE, Workload, batch

EPS, KEEP = 1e-5, 0.9  # of BatchNorm, and how much of its running statistics stays


def step(workload: Workload) -> Callable[[], Any]:
    """The step on MyGrad."""
    import mygrad as mg

    x, labels = batch(workload)
    if workload.model in WHOLE:
        return _whole(workload.model, x, labels)
    layer, params = _layer(workload.model, workload.input[1])
    leaf = mg.tensor(x)
    g = np.ones_like(layer(leaf).data)
    leaf.clear_graph()

    def forward_and_backward() -> None:
        for p in (leaf, *params):
            p.null_grad()
        layer(leaf).backward(g)

    return forward_and_backward


# ----- layers: the function, and the parameters that it trains


def _weight(*shape: int, fan_in: int) -> Any:
    """As large as PyTorch's are at first."""
    import mygrad as mg

    rng = np.random.default_rng(0)
    return mg.tensor((rng.standard_normal(shape) * (1 / (3 * fan_in)) ** 0.5).astype(np.float32))


def _zeros(*shape: int) -> Any:
    import mygrad as mg

    return mg.tensor(np.zeros(shape, np.float32))


def _linear(a: int, b: int, bias: bool) -> tuple[Callable, list]:
    import mygrad as mg

    w, shift = _weight(a, b, fan_in=a), [_zeros(b)] if bias else []
    return (lambda x: mg.matmul(x, w) + shift[0] if bias else mg.matmul(x, w)), [w, *shift]


def _conv(a: int, b: int) -> tuple[Callable, list]:
    from mygrad.nnet.layers import conv_nd

    w, shift = _weight(b, a, 3, 3, fan_in=9 * a), _zeros(1, b, 1, 1)
    return (lambda x: conv_nd(x, w, stride=1, padding=1) + shift), [w, shift]


def _batchnorm(channels: int) -> tuple[Callable, list]:
    import mygrad as mg
    from mygrad.nnet.layers import batchnorm

    gamma, beta = mg.tensor(np.ones(channels, np.float32)), _zeros(channels)
    running = {"mean": np.zeros(channels, np.float32), "var": np.ones(channels, np.float32)}

    def layer(x: Any) -> Any:
        y = batchnorm(x, gamma=gamma, beta=beta, eps=EPS)
        n = x.size // channels
        for name, new in (("mean", y.creator.mean), ("var", y.creator.var * (n / (n - 1)))):
            running[name] = KEEP * running[name] + (1 - KEEP) * new
        return y

    return layer, [gamma, beta]


def _max_pool() -> tuple[Callable, list]:
    from mygrad.nnet.layers import max_pool

    return (lambda x: max_pool(x, (2, 2), 2)), []


def _layer(model: str, channels: int) -> tuple[Callable, list]:
    return {"conv": lambda: _conv(channels, channels), "batchnorm": lambda: _batchnorm(channels), "maxpool": _max_pool}[model]()


# ----- networks


def _mlp() -> list[tuple[Callable, list]]:
    from mygrad.nnet.activations import sigmoid

    hidden = [(_linear(a, b, bias=False), _batchnorm(b), (sigmoid, [])) for a, b in pairwise((784, 100, 100, 100))]
    return [*(layer for three in hidden for layer in three), _linear(100, 10, bias=True)]


def _cnn() -> list[tuple[Callable, list]]:
    from mygrad.nnet.activations import relu

    layers: list[tuple[Callable, list]] = []
    for i, (a, b) in enumerate(pairwise((1, 32, 32, 64, 64))):
        layers += [_conv(a, b), _batchnorm(b), (relu, []), *([_max_pool()] if i % 2 else [])]
    flatten = (lambda x: x.reshape(len(x), -1)), []
    return [*layers, flatten, _linear(3136, 128, bias=True), (relu, []), _linear(128, 10, bias=True)]


def _whole(model: str, x: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
    from mygrad.nnet.losses import softmax_crossentropy

    layers = {"mlp": _mlp, "cnn": _cnn}[model]()
    params = [p for _, some in layers for p in some]
    velocity = [np.zeros_like(p.data) for p in params]

    def step() -> Any:
        for p in params:
            p.null_grad()
        y = x
        for layer, _ in layers:
            y = layer(y)
        loss = softmax_crossentropy(y, labels)
        loss.backward()
        for p, v in zip(params, velocity, strict=True):
            v *= MOMENTUM
            v += p.grad
            p.data -= LR * v
        return loss.item()

    return step
