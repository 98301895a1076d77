"""The optimizers' update rules, compiled: one pass over weights, gradients and state, and no other memory.

Each gradient is an array of its own, and read where it lies: to gather them first would take as long as the step, since a part
of each lies in another core's cache, where that core's share of the step finds it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray

from .. import portable
from .jit import compiled, elements_at, inlined, place
from .layout import FLOATS
from .team import join, leave, run, take

# Elements of an item of work: a few microseconds' worth.
_ITEM = 1 << 13

# Weights of fewer bytes are done on one thread, in hardly more time than it takes two to work together.
_WORTH_THREADS = 1 << 16

_AT_ONCE = 8  # gradients that ``_note`` takes


def _noted(weights: np.ndarray, grads: list[np.ndarray], memory: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where each gradient lies, and where in the weights its parameter begins: (N + 1, 2). And what has to live so long.

    A gradient in which weights lie that change, or that lies as no kernel is compiled for, is copied first, into ``memory``.
    """
    flat = [(g if g.flags.carray else np.array(g, order="C")).ravel() for g in grads]
    where = np.zeros((len(flat) + 1, 2), np.int64)
    for first in range(0, len(flat), _AT_ONCE):
        some = flat[first : first + _AT_ONCE]
        if _note(where, first, len(some), weights, *some, *[some[0]] * (_AT_ONCE - len(some))):
            return _noted(weights, [np.concatenate(flat, out=memory)], memory)
    return where, flat


@compiled
def _note(where, first, many, weights, a, b, c, d, e, f, g, h):
    """Write down so many of the gradients a to h. Returns whether one of them lies where weights lie."""
    places = place(a), place(b), place(c), place(d), place(e), place(f), place(g), place(h)
    sizes = a.size, b.size, c.size, d.size, e.size, f.size, g.size, h.size
    begin, end = place(weights), place(weights) + weights.size * weights.itemsize
    overlaps = False
    for i in range(many):
        overlaps |= sizes[i] > 0 and places[i] < end and places[i] + sizes[i] * weights.itemsize > begin
        where[first + i, 0] = places[i]
        where[first + i + 1, 1] = where[first + i, 1] + sizes[i]
    return overlaps


@inlined
def _which(where, element):
    """The number of the gradient that belongs to that weight."""
    i = 0
    while where[i + 1, 1] <= element:
        i += 1
    return i


@inlined
def _part(where, i, start, stop, weights):
    """Gradient i, from weight ``start`` to ``stop`` of all."""
    return carray(elements_at(where[i, 0], weights), where[i + 1, 1] - where[i, 1])[start - where[i, 1] : stop - where[i, 1]]


def _run(kernel, weights, *args):
    items = -(-weights.size // _ITEM)
    run(kernel, items, weights, *args, threads=1 if weights.nbytes < _WORTH_THREADS else None)


@compiled
def _sgd(team, items, weights, where, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    slot = join(team)
    dtype = weights.dtype.type
    rate, keep, share, decay = dtype(lr), dtype(momentum), dtype(1 - dampening), dtype(weight_decay)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        start, stop = item * _ITEM, min((item + 1) * _ITEM, weights.size)
        while start < stop:
            n = _which(where, start)
            end = min(stop, where[n + 1, 1])
            w, gradient, state = weights[start:end], _part(where, n, start, end, weights), buffer[start:end]
            for i in range(w.size):
                g = gradient[i]
                if weight_decay != 0:  # asked, since zero times an infinite weight is NaN
                    g += decay * w[i]
                if momentum != 0:
                    b = g if first else keep * state[i] + share * g
                    state[i] = b
                    g = g + keep * b if nesterov else b
                w[i] -= rate * g
            start = end


def sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    """portable.sgd."""
    if weights.dtype not in FLOATS:
        return portable.sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov)
    if buffer is None:
        buffer = spare  # which the kernel then leaves alone
    where, _alive = _noted(weights, grads, grad)
    _run(_sgd, weights, where, buffer, first, lr, momentum, dampening, weight_decay, nesterov)


@compiled
def _adam(team, items, weights, where, mean, square, beta1, beta2, scale, root, eps, weight_decay, keep):
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
        while start < stop:
            n = _which(where, start)
            end = min(stop, where[n + 1, 1])
            w, gradient = weights[start:end], _part(where, n, start, end, weights)
            first, second = mean[start:end], square[start:end]
            for i in range(w.size):
                g = gradient[i]
                if weight_decay != 0:
                    g += decay * w[i]
                m = beta1 * first[i] + share1 * g
                v = beta2 * second[i] + share2 * (g * g)
                first[i] = m
                second[i] = v
                w[i] = keep * w[i] - scale * (m / (np.sqrt(v) * root + eps))
            start = end


def adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled):
    """portable.adam."""
    if weights.dtype not in FLOATS:
        return portable.adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled)
    beta1, beta2 = betas
    scale, root = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    decay, keep = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    where, _alive = _noted(weights, grads, grad)
    _run(_adam, weights, where, mean, square, beta1, beta2, scale, root, eps, decay, keep)
