"""Batch normalisation in parts: norm's kernels, one pass of two at a time; in between, other parts have their say.

What is to be done for each channel in between is little, and done by NumPy in float64.
"""

from __future__ import annotations

import numpy as np

from .. import portable
from .layout import empty_like, plain
from .norm import (
    FIRST,
    SECOND,
    _differentiate_planes,
    _differentiate_rows,
    _like,
    _map_planes,
    _map_rows,
    _normalise_planes,
    _normalise_rows,
    _plan,
    _settled,
    fits,
    run_kernel,
)


def batch_norm_moments(x):
    """portable.batch_norm_moments."""
    if not fits(x):
        return portable.batch_norm_moments(x)
    x, rows = _settled(x)
    plan = _plan(x.shape, x.dtype, rows, 1)
    lent = parts, joined, coefficients, flat = plan.lend(3)
    found, matrix = np.empty((2, x.shape[1])), plan.seen(x)
    run_kernel(
        _normalise_rows if rows else _normalise_planes, plan.items, x.nbytes, FIRST, matrix, plan.each, *plan.counts, 1,
        *plan.unit, 1.0, parts, joined, found, coefficients, flat, matrix,
    )  # fmt: skip
    plan.give_back(lent)
    found[1] *= x.size // x.shape[1]
    return found


def batch_norm_apply(x, gamma, beta, mean, var, eps):
    """portable.batch_norm_apply."""
    if not fits(x, gamma, beta):
        return portable.batch_norm_apply(x, gamma, beta, mean, var, eps)
    x, rows = _settled(x)
    y = empty_like(x)
    plan = _plan(x.shape, x.dtype, rows, 1)
    lent = _, _, coefficients, flat = plan.lend(3)
    weight, bias = plan.unit if gamma is None else (gamma, beta)
    with np.errstate(all="ignore"):
        near, rest = _near(mean, x.dtype)
        scale = weight / np.sqrt(var + eps)
        coefficients[:, 0] = np.stack([near, scale, _less(bias, rest, scale)])[:, None]
    run_kernel(_map_rows if rows else _map_planes, plan.items, x.nbytes, plan.seen(x), plan.each, flat, plan.seen(y))
    plan.give_back(lent)
    return y


def batch_norm_sums(g, x, mean):
    """portable.batch_norm_sums."""
    if not fits(x, g):
        return portable.batch_norm_sums(g, x, mean)
    x, rows = _settled(x)
    plan = _plan(x.shape, x.dtype, rows, 1)
    lent = plan.lend(4)
    _differentiate(FIRST, plan, lent, _like(g, rows), x, plain(mean), x)
    sums = lent[1][:, 0, 0].copy()
    plan.give_back(lent)
    with np.errstate(all="ignore"):
        sums[1] = _less(sums[1], _near(mean, x.dtype)[1], sums[0])
    return sums


def batch_norm_input(g, x, gamma, mean, var, eps, along_one, along_x_hat):
    """portable.batch_norm_input."""
    if not fits(x, g, gamma):
        return portable.batch_norm_input(g, x, gamma, mean, var, eps, along_one, along_x_hat)
    x, rows = _settled(x)
    dx = empty_like(x)
    plan = _plan(x.shape, x.dtype, rows, 1)
    lent = _, _, coefficients, _ = plan.lend(4)
    with np.errstate(all="ignore"):
        near, rest = _near(mean, x.dtype)
        inv_std = 1.0 / np.sqrt(var + eps)
        scale = inv_std if gamma is None else inv_std * gamma
        slope = inv_std * (inv_std * along_x_hat)
        coefficients[:, 0] = np.stack([near, scale, slope, _less(inv_std * along_one, rest, slope)])[:, None]
    _differentiate(SECOND, plan, lent, _like(g, rows), x, plain(mean), dx)
    plan.give_back(lent)
    return dx


def _differentiate(passes, plan, lent, g, x, mean, dx):
    """One pass of batch_norm_backward: the sums of g and g (x - near) in the first of each part, or dx by the coefficients."""
    parts, joined, coefficients, flat = lent
    dgamma, dbeta = np.empty((2, x.shape[1]), x.dtype)  # without the other parts they say nothing
    run_kernel(
        _differentiate_rows if plan.rows else _differentiate_planes, plan.items, x.nbytes, passes, plan.seen(g), plan.seen(x),
        plan.each, 1.0, 1, plan.unit[0], 1.0, mean, mean, parts, joined, coefficients, flat, dgamma, dbeta, plan.seen(dx),
    )  # fmt: skip


def _near(mean, dtype):
    """A mean as near, in the dtype of x, so that the difference of x is hardly rounded; and the little rest."""
    near = mean.astype(dtype)
    return near, mean - near


def _less(value, rest, slope):
    """value - rest slope: what the rest of a mean, which is not subtracted from x, does to a sum. inf - inf is not wanted."""
    correction = rest * slope
    return value - np.where(np.isfinite(correction), correction, 0.0)
