"""Layer normalisation: statistics of rows (M, K), and gamma, beta (K,) along them. A row is in the cache when it is applied."""

from __future__ import annotations

import math

import numpy as np

from .. import portable
from .jit import compiled, inlined
from .layout import empty_like, plain
from .norm import fits, item_elements, run_kernel
from .sums import LANES, add, clear, copy, less, moments, plane_sums, variance_of
from .team import join, leave, take

__all__ = ["layer_norm", "layer_norm_backward"]


@inlined
def _scaled(g, gamma, h):
    for k in range(h.size):
        h[k] = g[k] * gamma[k]


@inlined
def _apply_row(x, near, rest, inv_std, gamma, beta, y):
    for k in range(y.size):
        y[k] = ((x[k] - near) - rest) * inv_std * gamma[k] + beta[k]


@inlined
def _apply_row_gradient(x, near, slope, shift, inv_std, h):
    for k in range(h.size):
        h[k] = (h[k] - ((x[k] - near) * slope + shift)) * inv_std


@inlined
def _add_row_products(g, x, near, rest, inv_std, out):
    for k in range(out.size):
        out[k] += g[k] * (((x[k] - near) - rest) * inv_std)


@compiled
def _layer_rows(team, items, x, item_rows, gamma, beta, eps, statistics, y):
    """y (M, K), and mean and variance of each row, statistics (2, M): each row is in the cache when it is applied."""
    slot = join(team)
    sums, squares = np.empty(LANES), np.empty(LANES)
    cast = x.dtype.type
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for i in range(item * item_rows, min((item + 1) * item_rows, x.shape[0])):
            near, rest, spread = moments(x[i], sums, squares)
            mean = near + rest
            variance = variance_of(mean, spread, x.shape[1], gamma)
            statistics[0, i] = mean if math.isfinite(mean) else np.nan
            statistics[1, i] = variance
            _apply_row(x[i], near, cast(rest), cast(1.0 / math.sqrt(variance + eps)), gamma, beta, y[i])


@compiled
def _layer_gradient(team, items, g, x, item_rows, gamma, mean, var, eps, parts, dx):
    """dx (M, K), and each item's share of dgamma and dbeta, parts (2, items, K)."""
    slot = join(team)
    sums, products = np.empty(LANES), np.empty(LANES)
    cast = x.dtype.type
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        dgamma, dbeta = parts[0, item], parts[1, item]
        clear(dgamma)
        clear(dbeta)
        for i in range(item * item_rows, min((item + 1) * item_rows, x.shape[0])):
            h = dx[i]
            near = cast(mean[i])
            rest = mean[i] - np.float64(near)
            inv_std = 1.0 / math.sqrt(var[i] + eps)
            _scaled(g[i], gamma, h)
            total, product = plane_sums(h, x[i], near, sums, products)
            slope = inv_std * (inv_std * (less(product, rest, total) / h.size))
            shift = less(total / h.size, rest, slope)
            _apply_row_gradient(x[i], near, cast(slope), cast(shift), cast(inv_std), h)
            _add_row_products(g[i], x[i], near, cast(rest), cast(inv_std), dgamma)
            add(g[i], dbeta)


@compiled
def _add_parts(parts, out):
    """(K, items, C) -> (K, C), item by item; parts[:, 0] become the sums."""
    for i in range(parts.shape[0]):
        for item in range(1, parts.shape[1]):
            add(parts[i, item], parts[i, 0])
        copy(parts[i, 0], out[i])


def _memory_order(x, axes):
    """The axes of x as they lie in memory, if the given ones lie last; else None."""
    order = sorted(range(x.ndim), key=lambda i: (i in axes, -x.strides[i]))
    return order if x.transpose(order).flags.c_contiguous else None


def _layer(x, axes):
    """x or a copy, its axes as they lie in memory with the normalised ones last, and the order of these in gamma; or None."""
    order = _memory_order(x, axes)
    if order is None:
        x = plain(x)
        order = _memory_order(x, axes)
        if order is None:
            return None
    elif not x.flags.behaved:
        x = plain(x.transpose(order)).transpose(np.argsort(order))
    inner = order[x.ndim - len(axes) :]
    return x, order, [axes.index(i) for i in inner]


def _layer_plan(x, axes):
    """Elements in a row, rows in an item, and items."""
    k = math.prod(x.shape[a] for a in axes)
    m = x.size // k
    each = max(1, item_elements(x.size) // k)
    return k, each, -(-m // each)


def layer_norm(x, gamma, beta, axes, eps):
    """y, and mean and variance of each example (kept axes) in float64."""
    found = _layer(x, axes) if fits(x, gamma, beta) else None
    if found is None:
        return portable.layer_norm(x, gamma, beta, axes, eps)
    x, order, places = found
    k, each, items = _layer_plan(x, axes)
    if gamma is None:
        weight, bias = np.ones(k, x.dtype), np.zeros(k, x.dtype)
    else:
        weight, bias = (plain(p.transpose(places)).reshape(-1) for p in (gamma, beta))
    y = empty_like(x)
    source, target = (a.transpose(order).reshape(-1, k) for a in (x, y))
    statistics = np.empty((2, len(source)))
    run_kernel(_layer_rows, items, x.nbytes, source, each, weight, bias, eps, statistics, target)
    outer = order[: x.ndim - len(axes)]
    return y, tuple(_kept(v, x.shape, outer) for v in statistics)


def _kept(v, shape, outer):
    """Statistics (M,) of examples that lie in memory in the order ``outer``, in the shape with kept axes."""
    v = v.reshape([shape[i] for i in outer]).transpose(np.argsort(outer))
    return v.reshape([n if i in outer else 1 for i, n in enumerate(shape)])


def layer_norm_backward(g, x, gamma, mean, var, axes, eps):
    """dx, dgamma, dbeta."""
    found = _layer(x, axes) if fits(x, g, gamma) else None
    if found is None:
        return portable.layer_norm_backward(g, x, gamma, mean, var, axes, eps)
    x, order, places = found
    k, each, items = _layer_plan(x, axes)
    weight = np.ones(k, x.dtype) if gamma is None else plain(gamma.transpose(places)).reshape(-1)
    dx = empty_like(x)
    source, target = (a.transpose(order).reshape(-1, k) for a in (x, dx))
    grad = plain(g.transpose(order)).reshape(-1, k)
    mean, var = (plain(v.transpose(order)).reshape(-1) for v in (mean, var))
    parts = np.empty((2, items, k))
    run_kernel(_layer_gradient, items, x.nbytes, grad, source, each, weight, mean, var, eps, parts, target)
    if gamma is None:
        return dx, None, None
    sums = np.empty((2, k), x.dtype)
    _add_parts(parts, sums)
    lying = [gamma.shape[i] for i in places]
    return dx, *(v.reshape(lying).transpose(np.argsort(places)) for v in sums)
