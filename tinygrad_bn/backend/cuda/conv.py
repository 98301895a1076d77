"""Convolution by cuDNN where that is installed, takes the dtype and knows a way; else by patches and cuBLAS.

Integers are for the portable kernels.
"""

from __future__ import annotations

from .. import portable
from . import cudnn, patches
from .launch import FLOATS


def conv2d(x, w, b, stride, padding, dilation, groups):
    """portable.conv2d."""
    return _either("conv2d", x, w, b, stride, padding, dilation, groups)


def conv2d_input(g, w, shape, stride, padding, dilation, groups):
    """portable.conv2d_input."""
    return _either("conv2d_input", g, w, shape, stride, padding, dilation, groups)


def conv2d_weight(g, x, shape, stride, padding, dilation, groups):
    """portable.conv2d_weight."""
    return _either("conv2d_weight", g, x, shape, stride, padding, dilation, groups)


def _either(name, first, *args):
    if first.dtype not in FLOATS:
        return getattr(portable, name)(first, *args)
    out = getattr(cudnn, name)(first, *args)
    return getattr(patches, name)(first, *args) if out is None else out
