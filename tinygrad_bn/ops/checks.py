"""What operations and layers check about their arguments: each function raises with a sentence that names both, or returns."""

from __future__ import annotations

import numbers
import operator
from math import prod

import numpy as np

from ..backend import explain, unfit
from ..core import Box

# ----- arrays


def shape_of(name, x, argument="x"):
    """The shape of a Tensor or an array."""
    try:
        return x.shape
    except AttributeError:
        raise unfit(name, argument, x, False) from None


def need_floating(name, x):
    if x.dtype.kind != "f":
        raise TypeError(f"{name} expected a floating input, got {x.dtype}")


def need_one_dtype(name, x, w, b):
    """An input, a weight, and a bias or None: what is multiplied and added has one dtype."""
    if x.dtype != w.dtype or (b is not None and b.dtype != w.dtype):
        bias = "" if b is None else f" and a bias of {b.dtype}"
        raise TypeError(
            f"{name} expected one dtype, got an input of {x.dtype}{',' if bias else ' and'} a weight of {w.dtype}{bias}"
        )


def need_one_device(name, **arrays):
    raw = [a._data if isinstance(a, Box) else a for a in arrays.values()]
    error = explain(ValueError(), name, list(arrays), raw, len(raw))
    if error is not None:
        raise error


def need_elements(name, x, axes):
    """At least one element along these axes."""
    if prod(x.shape[a] for a in axes) == 0:
        raise ValueError(f"{name} expected at least one element to reduce, got an input of shape {x.shape}")


# ----- axes and shapes


def is_int(value):
    """Whether this is an int, Python's or NumPy's, and no bool."""
    if type(value) is int:
        return True
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def ints_of(name, what, values):
    """A tuple or separate ints as a tuple of ints."""
    if len(values) == 1 and isinstance(values[0], (tuple, list)):
        values = tuple(values[0])
    for v in values:
        if not is_int(v):
            raise TypeError(f"{name} expected {what} as ints, got {values!r}")
    return tuple(int(v) for v in values)


def one_axis(name, axis, ndim):
    """One axis as a non-negative int."""
    if not is_int(axis):
        raise TypeError(f"{name} expected axis to be an int, got {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name} expected an axis from {-ndim} to {ndim - 1}, got {axis}")
    return int(axis) % ndim


def axes_of(name, ndim, axis, keepdims=False):
    """The axes of a reduction as a tuple of non-negative ints, each of them there, and there once."""
    if type(keepdims) is not bool:
        need_bool(name, "keepdims", keepdims, "; several axes are given as a tuple")
    given = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    for a in given:
        if not is_int(a):
            raise TypeError(f"{name} expected axis to be an int, a tuple of ints or None, got {axis!r}")
        if not -ndim <= a < ndim:
            there = f"an axis from {-ndim} to {ndim - 1}" if ndim else "axis None"
            raise ValueError(f"{name} expected {there} for an input of {ndim} dimensions, got {axis}")
    axes = tuple(a % ndim for a in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name} expected each axis once, got {axis}")
    return axes


def pair(name, what, value, least):
    """An int, or a pair of them, as a pair, none less than ``least``."""
    if type(value) is tuple and len(value) == 2:  # as layers have it
        one, other = value
        if type(one) is type(other) is int and one >= least and other >= least:
            return value
    both = (value, value) if is_int(value) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(both) != 2 or not all(is_int(v) and v >= least for v in both):
        raise ValueError(f"{name} expected {what} to be an int, or a pair of ints, of at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


# ----- options


def need_int(name, what, value, least):
    """An int of at least ``least``."""
    if not is_int(value) or value < least:
        raise ValueError(f"{name} expected {what} to be an int of at least {least}, got {value!r}")
    return int(value)


def need_number(name, what, value, low=None, high=None, otherwise=""):
    """A number, Python's or NumPy's, from ``low`` to ``high``, as Python's; NaN only where there is no ``low``."""
    fits = type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    if not fits or not (low is None or low <= value) or not (high is None or value <= high):
        limits = " to be a number" if low is None else f" to be a number of at least {low}"
        limits = limits if high is None else f" from {low} to {high}"
        raise ValueError(f"{name} expected {what}{limits}{otherwise}, got {value!r}")
    return value if type(value) in (int, float) else float(value)


def need_bool(name, what, value, hint=""):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} expected {what} to be True or False, got {value!r}{hint}")
    return bool(value)


def need_one_of(name, what, value, *known):
    if not isinstance(value, str) or value not in known:
        *most, last = map(repr, known)
        raise ValueError(f"{name} expected {what} to be {', '.join(most)} or {last}, got {value!r}")
