"""The kernels for CuPy arrays: so far the portable ones."""

from ..portable import *  # noqa: F403
