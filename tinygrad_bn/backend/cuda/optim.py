"""The optimizers' update rules: one kernel for up to 128 parameters, whose gradients are read where they lie."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate

import numpy as np

from .. import portable
from .launch import FLOATS, for_each, launch, opaque, plain

_PIECES = 128  # PIECES in optim.cu


def _fit(weights, grads):
    return weights.dtype in FLOATS and weights.size > 0 and all(g.dtype == weights.dtype for g in grads)


@lru_cache(256)
def _tables(sizes):
    """For so many gradients of these sizes, _PIECES at a time: the struct Gradient without the addresses, and the grid."""
    tables, start = [], 0
    for first in range(0, len(sizes), _PIECES):
        *starts, stop = accumulate(sizes[first : first + _PIECES], initial=start)
        table = np.zeros(2 + 2 * _PIECES, np.int64)
        table[:2] = len(starts), stop
        table[2 : 2 + len(starts)] = starts
        tables.append((table, for_each(stop - start) if stop > start else None))
        start = stop
    return tables


def _run(kernel, weights, grads, *args):
    """Run the kernel for at most _PIECES gradients at a time. It keeps no gradient alive: who calls does."""
    grads = [plain(g) for g in grads]
    first = 0
    for numbers, grid in _tables(tuple([g.size for g in grads])):
        some = grads[first : first + _PIECES]
        first += _PIECES
        if grid is not None:
            table = numbers.copy()
            table[2 + _PIECES : 2 + _PIECES + len(some)] = [g.data.ptr for g in some]
            launch("optim", kernel, grid, weights, weights, opaque(table), *args)


def sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    """portable.sgd."""
    if not _fit(weights, grads):
        return portable.sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov)
    numbers = (float(v) for v in (lr, momentum, dampening, weight_decay))
    _run("sgd", weights, grads, buffer, int(first), *numbers, int(nesterov))


def adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled):
    """portable.adam."""
    if not _fit(weights, grads):
        return portable.adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled)
    beta1, beta2 = betas
    scale, root = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    decay, keep = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    _run("adam", weights, grads, mean, square, *(float(v) for v in (beta1, beta2, scale, root, eps, decay, keep)))
