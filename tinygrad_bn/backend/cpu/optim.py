"""The optimizers' update rules, compiled: one pass over weights, gradient and state, and no other memory."""

from __future__ import annotations

import math

import numpy as np

from .. import portable
from .jit import compiled
from .layout import FLOATS
from .team import join, leave, run, take

# Elements of an item of work: a few microseconds' worth.
_ITEM = 1 << 13

# Weights of fewer bytes are done on one thread. (Each thread has some of their rows in its cache, from the forward pass.)
_WORTH_THREADS = 1 << 16

# A gradient of so many elements is read where it lies. Smaller neighbours are gathered first: a copy costs less than a call.
_ALONE = 1 << 15


def _pieces(weights: np.ndarray, grads: list[np.ndarray], out: np.ndarray) -> list[tuple[slice, np.ndarray]]:
    """The gradient as flat arrays, each with its place: long ones as they are, runs of short ones gathered in ``out``."""
    pieces = []
    short: list[np.ndarray] = []
    start = stop = 0
    for g in grads:
        size = g.size
        if size >= _ALONE and _readable(g, weights):
            if short:
                pieces.append((slice(start, stop), np.concatenate(short, out=out[start:stop])))
                short = []
            start = stop + size
            pieces.append((slice(stop, start), g.reshape(-1)))
            stop = start
        else:
            short.append(g if g.ndim == 1 else g.ravel())
            stop += size
    if short:
        pieces.append((slice(start, stop), np.concatenate(short, out=out[start:stop])))
    return pieces


def _readable(g: np.ndarray, weights: np.ndarray) -> bool:
    """Whether kernels are compiled for such an array, and no weight that changes lies in it."""
    return g.flags.carray and not np.may_share_memory(g, weights)


def _run(kernel, weights, *args):
    items = -(-weights.size // _ITEM)
    run(kernel, items, weights, *args, threads=1 if weights.nbytes < _WORTH_THREADS else None)


@compiled
def _sgd(team, items, weights, grad, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    slot = join(team)
    dtype = weights.dtype.type
    rate, keep, share, decay = dtype(lr), dtype(momentum), dtype(1 - dampening), dtype(weight_decay)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        start, stop = item * _ITEM, min((item + 1) * _ITEM, weights.size)
        w, gradient, state = weights[start:stop], grad[start:stop], buffer[start:stop]
        for i in range(w.size):
            g = gradient[i]
            if weight_decay != 0:  # asked, since zero times an infinite weight is NaN
                g += decay * w[i]
            if momentum != 0:
                b = g if first else keep * state[i] + share * g
                state[i] = b
                g = g + keep * b if nesterov else b
            w[i] -= rate * g


def sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    """portable.sgd."""
    if weights.dtype not in FLOATS:
        return portable.sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov)
    if buffer is None:
        buffer = spare  # which the kernel then leaves alone
    for at, g in _pieces(weights, grads, grad):
        _run(_sgd, weights[at], g, buffer[at], first, lr, momentum, dampening, weight_decay, nesterov)


@compiled
def _adam(team, items, weights, grad, mean, square, beta1, beta2, scale, root, eps, weight_decay, keep):
    """``weight_decay`` of the gradient, and ``keep``, the share of the weights that decoupled decay leaves."""
    slot = join(team)
    dtype = weights.dtype.type
    beta1, share1, beta2, share2 = dtype(beta1), dtype(1 - beta1), dtype(beta2), dtype(1 - beta2)
    scale, root, eps, decay, keep = dtype(scale), dtype(root), dtype(eps), dtype(weight_decay), dtype(keep)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        start, stop = item * _ITEM, min((item + 1) * _ITEM, weights.size)
        w, gradient, first, second = weights[start:stop], grad[start:stop], mean[start:stop], square[start:stop]
        for i in range(w.size):
            g = gradient[i]
            if weight_decay != 0:
                g += decay * w[i]
            m = beta1 * first[i] + share1 * g
            v = beta2 * second[i] + share2 * (g * g)
            first[i] = m
            second[i] = v
            w[i] = keep * w[i] - scale * (m / (np.sqrt(v) * root + eps))


def adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled):
    """portable.adam."""
    if weights.dtype not in FLOATS:
        return portable.adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled)
    beta1, beta2 = betas
    scale, root = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    decay, keep = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    for at, g in _pieces(weights, grads, grad):
        _run(_adam, weights[at], g, mean[at], square[at], beta1, beta2, scale, root, eps, decay, keep)
