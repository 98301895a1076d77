"""What a program may ask about CUDA on any machine: nothing here raises where there is none."""

from __future__ import annotations

from .backend import cuda_is_available, load_cuda


def is_available() -> bool:
    """Whether CuPy is installed and finds a GPU."""
    return cuda_is_available()


def synchronize() -> None:
    """Wait until the GPU has done all that it was asked to; return at once where there is none."""
    if cuda_is_available():
        load_cuda().xp.cuda.Device().synchronize()
