"""The optimizers' update rules: one kernel for up to 128 parameters, whose gradients are read where they lie."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np

from .. import portable
from .launch import FLOATS, for_each, launch, plain

_PIECES = 128  # PIECES in optim.cu
_GRADIENT = np.dtype([("count", "i8"), ("stop", "i8"), ("starts", "i8", (_PIECES,)), ("addresses", "u8", (_PIECES,))])


def _fit(weights, grads):
    return weights.dtype in FLOATS and weights.size > 0 and all(g.dtype == weights.dtype for g in grads)


def _run(kernel, weights, grads, *args):
    """Run the kernel for at most _PIECES gradients at a time. It keeps no gradient alive: who calls does."""
    stop = 0
    for first in range(0, len(grads), _PIECES):
        some = [plain(g) for g in grads[first : first + _PIECES]]
        table = np.zeros(1, _GRADIENT)
        table["count"] = len(some)
        start, ends = stop, list(accumulate((g.size for g in some), initial=stop))
        table["starts"][0, : len(some)], stop = ends[:-1], ends[-1]
        table["addresses"][0, : len(some)] = [g.data.ptr for g in some]
        table["stop"] = stop
        if stop > start:
            launch("optim", kernel, for_each(stop - start), weights, weights, table, *args)


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
