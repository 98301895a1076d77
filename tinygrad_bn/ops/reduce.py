"""Reductions over ``axis`` (an int, a tuple, or None for all), with ``keepdims``, as in NumPy."""

# ruff: noqa: A001 (sum, max and min are the names that users know)
from __future__ import annotations

from math import prod

from ..backend import kernels_of, xp_of
from ..core import broadcast_to, primitive
from .checks import axes_of, need_elements, need_int, one_axis
from .elementwise import cast_like, exp
from .shape import flip, reshape

_SMALL = 1 << 13  # elements


def _kept(shape, axes):
    """The shape with each reduced axis left as 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _spread(g, shape, axis):
    """The gradient of a sum: g, repeated along the axes that were reduced."""
    axes = axes_of("sum", len(shape), axis)
    return broadcast_to(reshape(g, _kept(shape, axes)), shape=shape)


def _spread_array(g, shape, axis):
    """The same for an array; a small one is written out, which takes less time than NumPy's way to a view."""
    if g.ndim:
        g = g.reshape(_kept(shape, axes_of("sum", len(shape), axis)))
    if prod(shape) > _SMALL:
        return xp_of(g).broadcast_to(g, shape)
    out = xp_of(g).empty(shape, g.dtype)
    out[...] = g
    return out


@primitive
def sum(x, *, axis=None, keepdims=False):
    """The sum over ``axis``."""
    return x.sum(axis=axes_of("sum", x.ndim, axis, keepdims), keepdims=keepdims)


@primitive
def mean(x, *, axis=None, keepdims=False):
    """The mean over ``axis``; an empty one raises ValueError."""
    narrow = x.dtype.kind != "f" or x.dtype.itemsize < 4
    if axis is None and keepdims is False and x.size and not narrow:  # (the mean of a loss)
        return kernels_of(x).mean_all(x)
    axes = axes_of("mean", x.ndim, axis, keepdims)
    need_elements("mean", x, axes)
    if narrow:
        return x.mean(axis=axes, keepdims=keepdims)
    return x.sum(axis=axes, keepdims=keepdims) / prod(x.shape[a] for a in axes)  # the same, without NumPy's way to it


@primitive
def var(x, *, axis=None, ddof=0, keepdims=False):
    """The variance over ``axis``: the sum of squared distances from the mean over (n - ddof). Two passes."""
    axes = axes_of("var", x.ndim, axis, keepdims)
    need_int("var", "ddof", ddof, 0)
    n = prod(x.shape[a] for a in axes)
    if n <= ddof:
        raise ValueError(f"var expected more than ddof={ddof} elements along axis {axis}, got {n} (input of shape {x.shape})")
    d = x - x.mean(axis=axes, keepdims=True)
    return (d * d).sum(axis=axes, keepdims=keepdims) / float(n - ddof)


@primitive
def max(x, *, axis=None, keepdims=False):
    """The largest element over ``axis``; equal ones share the gradient. NaN if there is one."""
    axes = axes_of("max", x.ndim, axis, keepdims)
    need_elements("max", x, axes)
    return x.max(axis=axes, keepdims=keepdims)


@primitive
def min(x, *, axis=None, keepdims=False):
    """The smallest element over ``axis``; equal ones share the gradient. NaN if there is one."""
    axes = axes_of("min", x.ndim, axis, keepdims)
    need_elements("min", x, axes)
    return x.min(axis=axes, keepdims=keepdims)


@primitive
def logsumexp(x, *, axis=None, keepdims=False):
    """log(sum(e ** x)) over ``axis``, without overflow."""
    xp = xp_of(x)
    axes = axes_of("logsumexp", x.ndim, axis, keepdims)
    need_elements("logsumexp", x, axes)
    top = x.max(axis=axes, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0.0)
    out = top + xp.log(xp.exp(x - top).sum(axis=axes, keepdims=True))
    return out if keepdims else out.reshape([n for i, n in enumerate(x.shape) if i not in axes])


@primitive
def cumsum(x, *, axis):
    """The running sum along ``axis``."""
    return x.cumsum(axis=one_axis("cumsum", axis, x.ndim))


@primitive
def argmax(x, *, axis=None):
    """The position of the largest element along ``axis``, or in the flattened array. No gradient."""
    at = None if axis is None else one_axis("argmax", axis, x.ndim)
    need_elements("argmax", x, range(x.ndim) if at is None else (at,))
    return x.argmax(axis=at)


argmax.defvjp(None)
sum.defvjp(lambda g, _out, _x, *, axis, keepdims: _spread(g, _x.shape, axis))
cumsum.defvjp(lambda g, _out, _x, *, axis: flip(cumsum(flip(g, axis), axis), axis))


@sum.fused_vjp
def _(g, _out, _x, *, axis, keepdims):
    return (_spread_array(g, _x.shape, axis),)


def _elements_each(shape, reduced):
    """How many elements each mean is of; 0 where there is no mean."""
    return float(prod(shape) // (prod(reduced) or 1))


@mean.vjp
def _(g, _out, _x, *, axis, keepdims):
    return (_spread(g / _elements_each(_x.shape, g.shape), _x.shape, axis),)


@mean.fused_vjp
def _(g, _out, _x, *, axis, keepdims):
    n = _elements_each(_x.shape, g.shape)
    if not g.ndim and prod(_x.shape) <= _SMALL:
        return (kernels_of(g).spread(g, _x.shape, n),)
    return (_spread_array(g / n, _x.shape, axis),)


@var.vjp
def _(g, _out, x, *, axis, ddof, keepdims):
    axes = axes_of("var", len(x.shape), axis)
    n = prod(x.shape[a] for a in axes)
    return (_spread(g * (2.0 / (n - ddof)), x.shape, axis) * (x - mean(x, axis=axes, keepdims=True)),)


def _extremum_rule(g, out, x, *, axis, keepdims):
    axes = axes_of("max", len(x.shape), axis)
    chosen = cast_like(g, x == reshape(out, _kept(x.shape, axes)))  # ties share
    return (_spread(g, x.shape, axis) * (chosen / chosen.sum(axis=axes, keepdims=True)),)


max.vjp(_extremum_rule)
min.vjp(_extremum_rule)


@logsumexp.vjp
def _(g, out, x, *, axis, keepdims):
    axes = axes_of("logsumexp", len(x.shape), axis)
    return (_spread(g, x.shape, axis) * exp(x - reshape(out, _kept(x.shape, axes))),)
