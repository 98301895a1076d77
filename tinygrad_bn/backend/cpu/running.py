"""The running statistics of BatchNorm: a handful of numbers, so what counts is the number of calls."""

from __future__ import annotations

import math

import numpy as np

from .. import portable
from .jit import compiled
from .layout import FLOATS

__all__ = ["follow"]

_FLOAT64 = np.dtype("float64")


def follow(running_mean, running_var, mean, var, weight, correction):
    """portable.follow, but None for the last result where all statistics are finite."""
    dtype, shape = running_mean.dtype, running_mean.shape
    simple = running_mean.flags.carray and running_var.flags.carray and mean.flags.carray and var.flags.carray
    if dtype not in FLOATS or mean.dtype is not _FLOAT64 or not simple:
        return portable.follow(running_mean, running_var, mean, var, weight, correction)
    new_mean, new_var = np.empty(shape, dtype), np.empty(shape, dtype)
    good = _follow(running_mean, running_var, mean, var, float(weight), float(correction), new_mean, new_var)
    return new_mean, new_var, None if good else np.isfinite(mean) & np.isfinite(var)


@compiled
def _follow(running_mean, running_var, mean, var, weight, correction, new_mean, new_var):
    """Whether the statistics are finite everywhere."""
    good = True
    for c in range(mean.size):
        if math.isfinite(mean[c]) and math.isfinite(var[c]):
            new_mean[c] = (1.0 - weight) * running_mean[c] + weight * mean[c]
            new_var[c] = (1.0 - weight) * running_var[c] + weight * (var[c] * correction)
        else:
            new_mean[c], new_var[c] = running_mean[c], running_var[c]
            good = False
    return good
