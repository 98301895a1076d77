"""tinygrad_bn: a small tensor engine with reverse-mode automatic differentiation over NumPy or CuPy, with BatchNorm at its heart."""

from . import cuda, ops
from .core import enable_grad, grad, is_grad_enabled, no_grad, primitive, set_grad_enabled
from .gradcheck import NonSmoothPoint, check_grads, detect_anomaly, hvp, jacobian
from .ops import *  # noqa: F403
from .random import get_rng_state, manual_seed, set_rng_state
from .tensor import Tensor, ones, randn, tensor, zeros
