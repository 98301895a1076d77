"""Dropout, with its random numbers made where they are used."""

from __future__ import annotations

import numpy as np

from .. import portable
from .launch import empty, fits, for_each, launch, plain


def dropout(x, p, key):
    """portable.dropout: the same bits."""
    if not fits(x) or p >= 1.0:
        return portable.dropout(x, p, key)
    y = empty(x, x.shape, x.dtype)
    threshold, key = np.uint64(int(p * 2**53)), np.uint64(key)
    launch("philox", "dropout", for_each(-(-x.size // 4)), x, plain(x), x.size, 1.0 / (1.0 - p), threshold, key, y)
    return y
