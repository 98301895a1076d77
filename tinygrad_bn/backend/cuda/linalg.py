"""Products with a layer's weight, in one call of cuBLAS each, which CuPy's matmul reaches by a longer way."""

from __future__ import annotations

from .. import portable
from ..portable import rows_of
from .elementwise import add_bias
from .launch import fits, plain
from .products import product


def linear(x, w, b):
    """portable.linear."""
    if not fits(x, w, b) or not w.size:
        return portable.linear(x, w, b)
    y = product(plain(rows_of(x)), plain(w), turn_b=True)
    if b is not None:
        add_bias(y, b, 1)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], w.shape[0])


def linear_backward(g, x, w, want_x, want_w):
    """portable.linear_backward."""
    if not fits(g, x if want_w else None, w if want_x else None) or not x.shape[-1]:  # (what is not wanted may not be there)
        return portable.linear_backward(g, x, w, want_x, want_w)
    rows = plain(rows_of(g))
    dx = product(rows, plain(w)) if want_x else None
    dw = product(rows, plain(rows_of(x)), turn_a=True) if want_w else None
    return (dx if dx is None or g.ndim == 2 else dx.reshape(x.shape)), dw
