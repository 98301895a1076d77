"""tinygrad_bn: a small tensor engine with automatic differentiation over NumPy or CuPy, and BatchNorm on its graph."""

from typing import TYPE_CHECKING, Any

from . import cuda as cuda
from . import models as models
from . import nn as nn
from . import ops as ops
from . import optim as optim
from .backend import empty_cache, get_num_threads, set_num_threads
from .core import enable_grad, grad, is_grad_enabled, no_grad, primitive, set_grad_enabled
from .gradcheck import NonSmoothPoint, check_grads, detect_anomaly, hvp, jacobian
from .ops import *  # noqa: F403
from .ops import __all__ as _operations
from .random import get_rng_state, manual_seed, set_rng_state
from .tensor import Tensor, from_dlpack, ones, randn, tensor, zeros

if TYPE_CHECKING:
    from . import batchnorm as batchnorm
    from . import datasets as datasets
    from . import distributed as distributed
    from . import graph as graph
    from . import interop as interop

__all__ = [
    *_operations,
    "NonSmoothPoint", "Tensor", "batchnorm", "check_grads", "cuda", "datasets", "detect_anomaly", "distributed", "empty_cache",
    "enable_grad", "from_dlpack", "get_num_threads", "get_rng_state", "grad", "graph", "hvp", "interop", "is_grad_enabled",
    "jacobian", "manual_seed", "models", "nn", "no_grad", "ones", "ops", "optim", "primitive", "randn", "set_grad_enabled",
    "set_num_threads", "set_rng_state", "tensor", "zeros",
]  # fmt: skip

_ON_DEMAND = "batchnorm", "datasets", "distributed", "graph", "interop"


def __getattr__(name: str) -> Any:
    """The packages that need modules which are slow to import, when they are first asked for."""
    if name in _ON_DEMAND:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
