"""The workloads on JAX: the whole step compiled by ``jax.jit``, images as (N, H, W, C), parameters passed in and out.

The work is that of the others: BatchNorm with batch statistics that keeps running ones, gradients of everything that is trained
(and of a single layer's input), SGD with momentum by hand. A step ends when its results are there (``block_until_ready``). The
arrays that a step replaces are given to it to write into (``donate_argnums``), as the others write in place.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from workloads import LR, MOMENTUM, WHOLE, Workload, batch

EPS, KEEP = 1e-5, 0.9  # of BatchNorm, and how much of its running statistics stays


def step(workload: Workload) -> Callable[[], Any]:
    """The step on JAX."""
    import jax

    x, labels = batch(workload)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if workload.model in WHOLE:
        return _whole(workload.model, jax.device_put(x), jax.device_put(labels.astype(np.int32)))
    return _layer(workload.model, jax.device_put(x))


# ----- layers: parameters in; what comes out, and of BatchNorm the new running statistics too


def _linear(p: dict, x: Any) -> Any:
    y = x @ p["w"]
    return y + p["b"] if "b" in p else y


def _conv(p: dict, x: Any, stride: int = 1) -> Any:
    from jax import lax

    y = lax.conv_general_dilated(x, p["w"], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + p["b"] if "b" in p else y


def _batchnorm(p: dict, running: dict, x: Any) -> tuple[Any, dict]:
    """Biased variance for the output, unbiased for the running one, over all axes but the last."""
    from jax import lax

    axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    mean, var = x.mean(axes), x.var(axes)
    y = (x - mean) * (p["gamma"] * lax.rsqrt(var + EPS)) + p["beta"]
    new = {"mean": mean, "var": var * (n / (n - 1))}
    return y, {k: KEEP * running[k] + (1 - KEEP) * lax.stop_gradient(new[k]) for k in running}


def _max_pool(x: Any) -> Any:
    from jax import lax

    return lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


# ----- parameters


def _weights(rng: np.random.Generator, *shape: int, bias: bool) -> dict:
    """A product's weight (inputs before outputs), as large as PyTorch's are at first, and a bias."""
    w = rng.standard_normal(shape) * (1 / (3 * np.prod(shape[:-1]))) ** 0.5
    return {"w": w.astype(np.float32)} | ({"b": np.zeros(shape[-1], np.float32)} if bias else {})


def _norm(channels: int) -> tuple[dict, dict]:
    one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return {"gamma": one, "beta": zero}, {"mean": zero, "var": one}


# ----- networks: parameters, running statistics, and forward(parameters, running, x) -> logits, new running statistics


def _mlp(rng: np.random.Generator) -> tuple[dict, list, Callable]:
    sizes = (784, 100, 100, 100)
    norms = [_norm(b) for b in sizes[1:]]
    params = {
        "linears": [_weights(rng, a, b, bias=False) for a, b in pairwise(sizes)],
        "norms": [p for p, _ in norms],
        "last": _weights(rng, 100, 10, bias=True),
    }

    def forward(params: dict, running: list, x: Any) -> tuple[Any, list]:
        import jax

        new = []
        for linear, norm, old in zip(params["linears"], params["norms"], running, strict=True):
            x, kept = _batchnorm(norm, old, _linear(linear, x))
            x = jax.nn.sigmoid(x)
            new.append(kept)
        return _linear(params["last"], x), new

    return params, [r for _, r in norms], forward


def _cnn(rng: np.random.Generator) -> tuple[dict, list, Callable]:
    widths = (1, 32, 32, 64, 64)
    norms = [_norm(b) for b in widths[1:]]
    params = {
        "convs": [_weights(rng, 3, 3, a, b, bias=True) for a, b in pairwise(widths)],
        "norms": [p for p, _ in norms],
        "linears": [_weights(rng, 3136, 128, bias=True), _weights(rng, 128, 10, bias=True)],
    }

    def forward(params: dict, running: list, x: Any) -> tuple[Any, list]:
        import jax

        new = []
        for i, (conv, norm, old) in enumerate(zip(params["convs"], params["norms"], running, strict=True)):
            x, kept = _batchnorm(norm, old, _conv(conv, x))
            x = jax.nn.relu(x)
            if i % 2:
                x = _max_pool(x)
            new.append(kept)
        x = jax.nn.relu(_linear(params["linears"][0], x.reshape(len(x), -1)))
        return _linear(params["linears"][1], x), new

    return params, [r for _, r in norms], forward


def _resnet20(rng: np.random.Generator) -> tuple[dict, list, Callable]:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]  # of the first convolution, then of each block
    convs = [(1, 16)] + [pair for a, b in pairwise(widths) for pair in ((a, b), (b, b))]
    norms = [_norm(b) for _, b in convs]
    params = {
        "convs": [_weights(rng, 3, 3, a, b, bias=False) for a, b in convs],
        "norms": [p for p, _ in norms],
        "last": _weights(rng, 64, 10, bias=True),
    }

    def forward(params: dict, running: list, x: Any) -> tuple[Any, list]:
        import jax
        import jax.numpy as jnp

        new = []

        def conv_norm(x: Any, stride: int = 1) -> Any:
            i = len(new)
            y, kept = _batchnorm(params["norms"][i], running[i], _conv(params["convs"][i], x, stride))
            new.append(kept)
            return y

        x = jax.nn.relu(conv_norm(x))
        for a, b in pairwise(widths):
            stride = b // a
            y = conv_norm(jax.nn.relu(conv_norm(x, stride)))
            if stride != 1:
                x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, b - a)))
            x = jax.nn.relu(y + x)
        return _linear(params["last"], x.mean((1, 2))), new

    return params, [r for _, r in norms], forward


# ----- steps


def _whole(model: str, x: Any, labels: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    params, running, forward = {"mlp": _mlp, "cnn": _cnn, "resnet20": _resnet20}[model](np.random.default_rng(0))

    def loss_of(params: dict, running: list, x: Any, labels: Any) -> tuple[Any, list]:
        logits, new = forward(params, running, x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean(), new

    def train(params: dict, velocity: dict, running: list, x: Any, labels: Any) -> tuple:
        (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(params, running, x, labels)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - LR * v, params, velocity)
        return params, velocity, running, loss

    compiled = jax.jit(train, donate_argnums=(0, 1, 2))
    state = jax.tree.map(jnp.array, (params, jax.tree.map(np.zeros_like, params), running))

    def step() -> Any:
        nonlocal state
        *new, loss = jax.block_until_ready(compiled(*state, x, labels))
        state = tuple(new)
        return loss

    return step


def _layer(model: str, x: Any) -> Callable[[], Any]:
    """Forward and backward; all that the others compute is returned, so that the compiler leaves nothing out."""
    import jax
    import jax.numpy as jnp

    channels = x.shape[-1]
    params, running = {
        "conv": lambda: (_weights(np.random.default_rng(0), 3, 3, channels, channels, bias=True), {}),
        "batchnorm": lambda: _norm(channels),
        "maxpool": lambda: ({}, {}),
    }[model]()

    def forward(params: dict, running: dict, x: Any) -> tuple[Any, dict]:
        if model == "batchnorm":
            return _batchnorm(params, running, x)
        return (_conv(params, x) if model == "conv" else _max_pool(x)), running

    def forward_and_backward(running: dict, params: dict, x: Any, g: Any) -> tuple:
        y, back, new = jax.vjp(lambda params, x: forward(params, running, x), params, x, has_aux=True)
        return new, y, back(g)

    compiled = jax.jit(forward_and_backward, donate_argnums=0)
    params, running = jax.tree.map(jnp.array, (params, running))
    g = jnp.ones_like(forward(params, running, x)[0])

    def step() -> None:
        nonlocal running
        running, _, _ = jax.block_until_ready(compiled(running, params, x, g))

    return step
