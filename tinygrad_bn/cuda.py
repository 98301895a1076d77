"""What a program may ask about CUDA, and choose for it, on any machine: nothing here raises where there is none.

``allow_tf32`` (False): whether products and convolutions of float32 may be computed in TensorFloat-32, which keeps 10 bits of
the fraction instead of 23, several times as fast on a GPU that has it. (PyTorch's default is False for products, but True for
convolutions.) For products of matrices it is CuPy's own switch: it holds for the program's other products in CuPy too, and
CUPY_TF32 is not read. Products of more axes stay in float32.

``deterministic`` (False): whether only algorithms may be used that give the same bits in each run. The kernels of this package
always do; this holds for cuDNN's. The gradient of indexing with an array that selects an element twice adds in no fixed order
either way.
"""

from __future__ import annotations

import sys
import types

from .backend import cuda_is_available, cuda_settings, load_cuda

allow_tf32: bool
deterministic: bool


def is_available() -> bool:
    """Whether CuPy is installed and finds a GPU."""
    return cuda_is_available()


def synchronize() -> None:
    """Wait until the GPU has done all that it was asked to; return at once where there is none."""
    if cuda_is_available():
        load_cuda().xp.cuda.Device().synchronize()


class _Cuda(types.ModuleType):
    """This module, whose settings are checked when they are set."""

    def __setattr__(self, name: str, value: object) -> None:
        if not hasattr(self, name):
            raise AttributeError(f"tinygrad_bn.cuda has no setting {name!r}; it has allow_tf32 and deterministic")
        super().__setattr__(name, value)

    @property
    def allow_tf32(self) -> bool:
        return cuda_settings.allow_tf32

    @allow_tf32.setter
    def allow_tf32(self, value: bool) -> None:
        cuda_settings.choose("allow_tf32", value)

    @property
    def deterministic(self) -> bool:
        return cuda_settings.deterministic

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        cuda_settings.choose("deterministic", value)


sys.modules[__name__].__class__ = _Cuda
