"""tinygrad_bn: a small tensor engine with automatic differentiation over NumPy or CuPy, and BatchNorm on its graph."""

from . import cuda as cuda
from . import datasets as datasets
from . import models as models
from . import nn as nn
from . import ops as ops
from . import optim as optim
from .core import enable_grad, grad, is_grad_enabled, no_grad, primitive, set_grad_enabled
from .gradcheck import NonSmoothPoint, check_grads, detect_anomaly, hvp, jacobian
from .ops import *  # noqa: F403
from .ops import __all__ as _operations
from .random import get_rng_state, manual_seed, set_rng_state
from .tensor import Tensor, ones, randn, tensor, zeros

__all__ = [
    *_operations,
    "NonSmoothPoint", "Tensor", "check_grads", "cuda", "datasets", "detect_anomaly", "enable_grad", "get_rng_state", "grad",
    "hvp", "is_grad_enabled", "jacobian", "manual_seed", "models", "nn", "no_grad", "ones", "ops", "optim", "primitive",
    "randn", "set_grad_enabled", "set_rng_state", "tensor", "zeros",
]  # fmt: skip
