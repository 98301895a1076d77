"""Convolution, and its two gradients: three bilinear operations whose rules name only each other.

With y = conv2d(x, w), the gradients are ``_conv2d_input(g, w)`` and ``_conv2d_weight(g, x)``; each of the three is linear in
both of its arguments, so these six rules give every order of differentiation.
"""

from __future__ import annotations

from ..backend import kernels_of
from ..core import broadcast_to, primitive
from .checks import need_int, need_one_device, need_one_dtype, pair, shape_of
from .shape import getitem, reshape, squeeze, unsqueeze


def window_count(size, kernel, stride, padding, dilation=1):
    """How many windows of ``kernel`` elements, ``dilation`` apart, fit along an axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@primitive
def _conv2d(x, w, b=None, *, stride, padding, dilation, groups):
    return kernels_of(x).conv2d(x, w, b, stride, padding, dilation, groups)


@primitive
def _conv2d_input(g, w, *, shape, stride, padding, dilation, groups):
    return kernels_of(g).conv2d_input(g, w, shape, stride, padding, dilation, groups)


@primitive
def _conv2d_weight(g, x, *, shape, stride, padding, dilation, groups):
    return kernels_of(g).conv2d_weight(g, x, shape, stride, padding, dilation, groups)


@primitive
def _sum_pixels(g):
    return kernels_of(g).sum_pixels(g)


_conv2d.defvjp(
    lambda g, _out, _x, w, _b, **how: _conv2d_input(g, w, shape=_x.shape, **how),
    lambda g, _out, x, _w, _b, **how: _conv2d_weight(g, x, shape=_w.shape, **how),
    lambda g, _out, _x, _w, _b, **how: _sum_pixels(g),
)
_sum_pixels.defvjp(lambda g, _out, _g: broadcast_to(reshape(g, (1, -1, 1, 1)), shape=_g.shape))
_conv2d_input.defvjp(  # here g has the shape of x
    lambda g, _out, _g, w, *, shape, **how: _crop(_conv2d(g, w, **how), _g.shape),
    lambda g, _out, y, _w, *, shape, **how: _conv2d_weight(y, g, shape=_w.shape, **how),
)
_conv2d_weight.defvjp(  # here g has the shape of w
    lambda g, _out, _g, x, *, shape, **how: _crop(_conv2d(x, g, **how), _g.shape),
    lambda g, _out, y, _x, *, shape, **how: _conv2d_input(y, g, shape=_x.shape, **how),
)


def _crop(y, shape):
    """y without the windows that ``shape`` has no room for: a transposed convolution may leave some out (output_padding)."""
    return y if y.shape == shape else getitem(y, tuple(slice(n) for n in shape))


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """(N, C, H, W), (O, C / groups, kh, kw), (O,) or None -> (N, O, H', W'): cross-correlation, as in PyTorch.

    H' = floor((H + 2 padding - dilation (kh - 1) - 1) / stride) + 1; stride, padding and dilation are ints or pairs. Each of
    the ``groups`` has its own C / groups channels and O / groups filters.
    """
    stride, padding = pair("conv2d", "stride", stride, 1), pair("conv2d", "padding", padding, 0)
    dilation = pair("conv2d", "dilation", dilation, 1)
    _check_filters("conv2d", "H, W", x, w, b, stride, padding, dilation, groups)
    return _conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv1d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """(N, C, L), (O, C / groups, k), (O,) or None -> (N, O, L'): conv2d along one axis; the options are ints."""
    stride, padding = need_int("conv1d", "stride", stride, 1), need_int("conv1d", "padding", padding, 0)
    dilation = need_int("conv1d", "dilation", dilation, 1)
    _check_filters("conv1d", "L", x, w, b, (stride,), (padding,), (dilation,), groups)
    how = {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation), "groups": groups}
    return squeeze(_conv2d(unsqueeze(x, 2), unsqueeze(w, 2), b, **how), 2)


def conv_transpose2d(x, w, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """(N, C, H, W), (C, O / groups, kh, kw), (O,) or None -> (N, O, H', W'): the input gradient of conv2d, as a layer.

    H' = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1. Zeiler et al. 2010.
    """
    stride, padding = pair("conv_transpose2d", "stride", stride, 1), pair("conv_transpose2d", "padding", padding, 0)
    dilation = pair("conv_transpose2d", "dilation", dilation, 1)
    extra = pair("conv_transpose2d", "output_padding", output_padding, 0)
    _check("conv_transpose2d", "H, W", x, w, b, groups)
    if x.shape[1] != w.shape[0]:
        raise ValueError(
            f"conv_transpose2d expected an input of shape (N, {w.shape[0]}, H, W) for a weight of shape {w.shape} and "
            f"groups={groups}, got {x.shape}"
        )
    if x.shape[1] % groups:
        raise ValueError(f"conv_transpose2d expected groups={groups} to divide the {x.shape[1]} input channels")
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ValueError(
            f"conv_transpose2d expected output_padding less than stride {stride} or dilation {dilation}, got {extra}"
        )
    if b is not None and b.shape != (w.shape[1] * groups,):
        raise ValueError(f"conv_transpose2d expected a bias of shape ({w.shape[1] * groups},), got {b.shape}")
    size = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(x.shape[2:], stride, padding, dilation, w.shape[2:], extra, strict=True)
    ]
    if min(size) < 1:
        raise ValueError(f"conv_transpose2d would give an output of size {tuple(size)} for an input of shape {x.shape}")
    if b is not None:
        need_one_device("conv_transpose2d", x=x, w=w, b=b)
    shape = (x.shape[0], w.shape[1] * groups, *size)
    y = _conv2d_input(x, w, shape=shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return y if b is None else y + b.reshape(1, -1, 1, 1)


def _check(name, axes, x, w, b, groups):
    """What all convolutions expect of their arrays, with these axes after the batch and the channels."""
    ndim = 3 + axes.count(",")
    if len(shape_of(name, x)) != ndim or len(shape_of(name, w, "w")) != ndim:
        raise ValueError(
            f"{name} expected an input (N, C, {axes}) and a weight of {ndim} dimensions, got shapes {x.shape} and {w.shape}"
        )
    if b is not None:
        shape_of(name, b, "b")
    if 0 in w.shape:
        raise ValueError(f"{name} expected a weight of at least one element, got shape {w.shape}")
    need_int(name, "groups", groups, 1)
    need_one_dtype(name, x, w, b)


def _check_filters(name, axes, x, w, b, stride, padding, dilation, groups):
    """What a cross-correlation with the filters w expects."""
    _check(name, axes, x, w, b, groups)
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError(
            f"{name} expected an input of shape (N, {w.shape[1] * groups}, {axes}) for a weight of shape {w.shape} and "
            f"groups={groups}, got {x.shape}"
        )
    if w.shape[0] % groups:
        raise ValueError(f"{name} expected groups={groups} to divide the number of filters, got a weight of shape {w.shape}")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"{name} expected a bias of shape {w.shape[:1]}, got {b.shape}")
    if min(map(window_count, x.shape[2:], w.shape[2:], stride, padding, dilation)) < 1:
        raise ValueError(
            f"{name} expected an input at least as large as its kernel, got {x.shape[2:]} with padding {padding} for a kernel "
            f"of {w.shape[2:]} with dilation {dilation}"
        )
