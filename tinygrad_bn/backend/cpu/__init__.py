"""The kernels for NumPy arrays: the portable ones, and faster ones of the same names and results."""

import numpy as _np

from ..portable import *  # noqa: F403
from ..portable import thin_out as _thin_out


def dropout(x, p, key):  # type: ignore[no-redef]
    """portable.dropout, with the numbers from NumPy's own Philox4x64-10: the same bits."""
    return _thin_out(x, p, _np.random.Philox(key=key).random_raw(x.size))
