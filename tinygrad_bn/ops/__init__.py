"""The differentiable operations: a kernel call above, its gradient rule below.

Rules for whoever writes a rule ``(g, out, *inputs, **options)``:

1. Use operators and functions of ``ops`` only, so that raw arrays and Tensors both pass.
2. Comparisons of Tensors give plain arrays, so masks are constants.
3. Constants are Python floats: ``np.float64(2) * float32_array`` is float64 under NumPy 2.
4. Save no array that depends on a differentiable input in a rule that can be recorded: what is not recomputed from the
   inputs is a constant to the next order of differentiation, and the result is silently wrong.
5. None means: no gradient.
6. Never write into ``g``.
7. An argument named with a leading underscore is not kept; of an input so named only ``.shape`` is known.
8. A rule's gradient may have the shape that broadcasting gave, and any floating dtype: the walk sums and casts.

``README.md`` adds an operation step by step.
"""

from ..core import broadcast_to, cast, sum_to
from .conv import conv1d, conv2d, conv_transpose2d
from .elementwise import (
    abs,
    add,
    clip,
    div,
    elu,
    erf,
    exp,
    expm1,
    gelu,
    leaky_relu,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    relu,
    rsqrt,
    sigmoid,
    sign,
    silu,
    softplus,
    sqrt,
    square,
    sub,
    tanh,
    where,
)
from .linalg import einsum, linear, matmul
from .loss import bce_with_logits, cross_entropy, log_softmax, mse_loss, softmax
from .norm import batch_norm, batch_norm_composed, batch_norm_inference, dropout, group_norm, layer_norm
from .pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from .reduce import argmax, cumsum, logsumexp, max, mean, min, sum, var
from .shape import (
    concatenate,
    embedding,
    expand,
    flatten,
    flip,
    getitem,
    moveaxis,
    pad,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
    to_device,
    transpose,
    unsqueeze,
)

__all__ = [
    "abs", "adaptive_avg_pool2d", "add", "argmax", "avg_pool2d", "batch_norm", "batch_norm_composed",
    "batch_norm_inference", "bce_with_logits",
    "broadcast_to", "cast", "clip", "concatenate", "conv1d", "conv2d", "conv_transpose2d", "cross_entropy", "cumsum", "div",
    "dropout", "einsum", "elu", "embedding", "erf", "exp", "expand", "expm1", "flatten", "flip", "gelu", "getitem",
    "group_norm", "layer_norm", "leaky_relu", "linear", "log", "log1p", "log_softmax", "logsumexp", "matmul", "max",
    "max_pool2d", "maximum", "mean", "min", "minimum", "moveaxis", "mse_loss", "mul", "neg", "pad", "pow", "relu", "reshape",
    "rsqrt", "sigmoid", "sign", "silu", "softmax", "softplus", "split", "sqrt", "square", "squeeze", "stack", "sub", "sum",
    "sum_to", "swapaxes", "tanh", "to_device", "transpose", "unsqueeze", "var", "where",
]  # fmt: skip
