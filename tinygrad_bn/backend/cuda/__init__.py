"""The kernels for CuPy arrays: the portable ones, and CUDA kernels of the same names and results.

The sources lie as text beside the Python that launches them, ``norm.cu`` beside ``norm.py``. CuPy compiles them when they are
first launched, for the dtype at hand, and keeps the result on disk.
"""

from ..portable import *  # noqa: F403
from .conv import conv2d, conv2d_input, conv2d_weight
from .elementwise import relu, relu_backward, sigmoid, sigmoid_backward
from .linalg import linear, linear_backward
from .loss import cross_entropy, cross_entropy_backward
from .norm import (
    batch_norm,
    batch_norm_apply,
    batch_norm_backward,
    batch_norm_inference,
    batch_norm_moments,
    batch_norm_sums,
    follow,
)
from .optim import adam, sgd
from .philox import dropout
from .pool import avg_pool2d, avg_pool2d_spread, max_pool2d, max_pool2d_gather, max_pool2d_scatter
from .reduce import mean_all, spread
from .sums import sum_pixels, sum_rows

CONVOLUTIONS = ["conv2d", "conv2d_input", "conv2d_weight"]  # by cuDNN or by patches and cuBLAS
FUSED = [
    "adam", "avg_pool2d", "avg_pool2d_spread", "batch_norm", "batch_norm_apply", "batch_norm_backward", "batch_norm_inference",
    "batch_norm_moments", "batch_norm_sums", "cross_entropy", "cross_entropy_backward", "dropout", "follow", "max_pool2d",
    "max_pool2d_gather", "max_pool2d_scatter", "mean_all", "relu", "relu_backward", "sgd", "sigmoid", "sigmoid_backward",
    "spread", "sum_pixels", "sum_rows",
]  # fmt: skip
