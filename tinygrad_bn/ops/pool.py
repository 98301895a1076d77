"""Pooling. Scatter and gather, and averaging and spreading, are each other's rules."""

from __future__ import annotations

from ..backend import kernels_of, xp_of
from ..core import primitive
from .checks import need_floating, pair, shape_of
from .conv import window_count
from .linalg import matmul


@primitive(aux=True)
def _max_pool2d(x, *, kernel, stride, padding):
    return kernels_of(x).max_pool2d(x, kernel, stride, padding)


@primitive
def _max_pool2d_scatter(g, place, *, shape, kernel, stride, padding):
    """Each element of g at the place that its window's maximum had."""
    return kernels_of(g).max_pool2d_scatter(g, place, shape, kernel, stride, padding)


@primitive
def _max_pool2d_gather(x, place, *, kernel, stride, padding):
    """Of each window the element at the place that the maximum had."""
    return kernels_of(x).max_pool2d_gather(x, place, kernel, stride, padding)


@_max_pool2d.vjp
def _(g, _out, _x, *, aux, **how):
    return (_max_pool2d_scatter(g, aux, shape=_x.shape, **how),)


_max_pool2d_scatter.defvjp(lambda g, _out, _g, place, *, shape, **how: _max_pool2d_gather(g, place, **how), None)
_max_pool2d_gather.defvjp(
    lambda g, _out, _x, place, **how: _max_pool2d_scatter(g, place, shape=_x.shape, **how),
    None,
)


@primitive
def _avg_pool2d(x, *, kernel, stride, padding):
    return kernels_of(x).avg_pool2d(x, kernel, stride, padding)


@primitive
def _avg_pool2d_spread(g, *, shape, kernel, stride, padding):
    return kernels_of(g).avg_pool2d_spread(g, shape, kernel, stride, padding)


_avg_pool2d.defvjp(lambda g, _out, _x, **how: _avg_pool2d_spread(g, shape=_x.shape, **how))
_avg_pool2d_spread.defvjp(lambda g, _out, _g, *, shape, **how: _avg_pool2d(g, **how))


def _window(name, x, kernel_size, stride, padding):
    if len(shape_of(name, x)) != 4:
        raise ValueError(f"{name} expected an input of shape (N, C, H, W), got {x.shape}")
    need_floating(name, x)
    kernel = pair(name, "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair(name, "stride", stride, 1)
    padding = pair(name, "padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"{name} expected a padding of at most half the kernel {kernel}, got {padding}")
    if any(window_count(n, k, s, p) < 1 for n, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True)):
        raise ValueError(
            f"{name} expected an input at least as large as its kernel {kernel}, got {x.shape[2:]} with padding {padding}"
        )
    return {"kernel": kernel, "stride": stride, "padding": padding}


def max_pool2d(x, kernel_size, stride=None, padding=0):
    """(N, C, H, W) -> (N, C, H', W'): the largest element of each window; of equal ones the first gets the gradient.

    ``stride`` is the kernel's size unless given; padding counts as -inf. NaN wins. H' as for conv2d.
    """
    return _max_pool2d(x, **_window("max_pool2d", x, kernel_size, stride, padding))[0]


def avg_pool2d(x, kernel_size, stride=None, padding=0):
    """(N, C, H, W) -> (N, C, H', W'): the mean of each window; padding counts as zeros, as in PyTorch by default."""
    return _avg_pool2d(x, **_window("avg_pool2d", x, kernel_size, stride, padding))


def adaptive_avg_pool2d(x, output_size):
    """(N, C, H, W) -> (N, C, *output_size): means over windows from floor(i H / H') to ceil((i + 1) H / H'), as in PyTorch."""
    size = pair("adaptive_avg_pool2d", "output_size", output_size, 1)
    if len(shape_of("adaptive_avg_pool2d", x)) != 4 or min(x.shape[2:]) < 1:
        raise ValueError(f"adaptive_avg_pool2d expected an input of shape (N, C, H, W), got {x.shape}")
    need_floating("adaptive_avg_pool2d", x)
    (h, w), (oh, ow) = x.shape[2:], size
    if h % oh == 0 and w % ow == 0:
        return avg_pool2d(x, (h // oh, w // ow))
    # A mean over windows is a product with a matrix of weights, along each axis by itself.
    raw = x._data if hasattr(x, "_data") else x
    return matmul(matmul(_means(raw, h, oh), x), _means(raw, w, ow).T)


def _means(like, n, m):
    """(m, n): row i holds the weights of window i."""
    rows = [[0.0] * n for _ in range(m)]
    for i, row in enumerate(rows):
        a, b = i * n // m, -(-(i + 1) * n // m)
        row[a:b] = [1.0 / (b - a)] * (b - a)
    return xp_of(like).array(rows, dtype=like.dtype)
