"""The kernels for NumPy arrays: the portable ones, and compiled ones of the same names and results.

The compiled ones need Numba and SciPy (the extra ``fast``); they are imported when one is first called. Without them the
portable ones serve.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as _np

from .. import portable as _portable
from ..portable import *  # noqa: F403

# Which module has the compiled kernels of which names.
COMPILED = {
    "conv": ("conv2d", "conv2d_input", "conv2d_weight"),
    "elementwise": ("add", "relu", "relu_backward", "sigmoid", "sigmoid_backward", "sum_pixels"),
    "layernorm": ("layer_norm", "layer_norm_backward"),
    "linalg": ("einsum", "linear", "linear_backward", "matmul"),
    "loss": ("cross_entropy", "cross_entropy_backward"),
    "norm": (
        "batch_norm",
        "batch_norm_backward",
        "batch_norm_inference",
        "group_norm",
        "group_norm_backward",
    ),
    "optim": ("sgd", "adam"),
    "philox": ("dropout",),
    "pool": ("max_pool2d", "max_pool2d_scatter", "max_pool2d_gather", "avg_pool2d", "avg_pool2d_spread"),
    "running": ("follow",),
    "sync_norm": ("batch_norm_moments", "batch_norm_apply", "batch_norm_sums", "batch_norm_input"),
}
_fast: Any = SimpleNamespace()  # what serves under these names: until one is first called, what loads them


# ----- where the portable kernel is as fast for small arrays, and nothing need be imported

_ELEMENTS, _MULTIPLICATIONS = 1 << 13, 1 << 17  # OpenBLAS does products of so few on one thread
SMALL = (
    *("relu", "relu_backward", "sigmoid", "sigmoid_backward", "sum_pixels"),
    *("einsum", "linear", "linear_backward", "matmul", "sgd", "adam"),
)


def relu(x):
    return (_portable if x.size < _ELEMENTS else _fast).relu(x)


def relu_backward(g, y):
    return (_portable if g.size < _ELEMENTS else _fast).relu_backward(g, y)


def sigmoid(x):
    return (_portable if x.size < _ELEMENTS // 4 else _fast).sigmoid(x)


def sigmoid_backward(g, y):
    return (_portable if g.size < _ELEMENTS // 4 else _fast).sigmoid_backward(g, y)


def sum_pixels(x):
    return (_portable if x.size < _ELEMENTS else _fast).sum_pixels(x)


def einsum(subscripts, operands):
    return (_portable if sum(x.size for x in operands) < _ELEMENTS else _fast).einsum(subscripts, operands)


def linear(x, w, b):
    return (_portable if x.size * len(w) < _MULTIPLICATIONS else _fast).linear(x, w, b)


def linear_backward(g, x, w, want_x, want_w):
    small = g.size * x.shape[-1] < _MULTIPLICATIONS
    return (_portable if small else _fast).linear_backward(g, x, w, want_x, want_w)


def matmul(x, y):
    small = x.size * (1 if y.ndim < 2 else y.shape[-1]) < _MULTIPLICATIONS
    return (_portable if small else _fast).matmul(x, y)


def sgd(weights, *args):
    return (_portable if weights.size < _ELEMENTS // 4 else _fast).sgd(weights, *args)


def adam(weights, *args):
    return (_portable if weights.size < _ELEMENTS // 4 else _fast).adam(weights, *args)


# ----- how the compiled ones are loaded


def _dropout(x, p, key):
    """portable.dropout, with the numbers from NumPy's own Philox4x64-10: the same bits."""
    return _portable.thin_out(x, p, _np.random.Philox(key=key).random_raw(x.size))


# What serves instead of a compiled kernel, where that is not the portable one.
_INSTEAD: dict[str, Callable] = {"dropout": _dropout}


def why_not() -> str:
    """Why the compiled kernels do not serve; empty if they do. Loads them."""
    _load()
    return _why_not


_why_not = ""


def _load() -> None:
    """Put the compiled kernels in the place of those that wait for their first call, or the portable ones."""
    global _why_not
    modules: dict[str, Any] = {}
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        _why_not = "NUMBA_DISABLE_JIT is set"
    else:
        try:
            modules = {module: importlib.import_module(f".{module}", __name__) for module in COMPILED}
        except ImportError as error:
            _why_not = f"Numba or SciPy cannot be imported ({error}): pip install 'tinygrad_bn[fast]'"
            if (error.name or "").partition(".")[0] not in ("numba", "llvmlite", "scipy") or type(error) is ImportError:
                # It is there, but does not work: with this NumPy, for instance.
                warnings.warn(f"Numba or SciPy fails, so the slower kernels serve: {error}", RuntimeWarning, stacklevel=4)
    for module, names in COMPILED.items():
        for name in names:
            compiled = getattr(modules[module], name) if module in modules else None
            _serve(name, compiled or _INSTEAD.get(name) or getattr(_portable, name))


def _serve(name: str, kernel: Callable) -> None:
    """Let the kernel serve under that name: always, or where the arrays are not small."""
    setattr(_fast, name, kernel)
    if name not in SMALL:
        globals()[name] = kernel


def _on_first_use(name: str) -> Callable:
    def kernel(*args: Any) -> Any:
        _load()
        return getattr(_fast, name)(*args)

    return kernel


for _names in COMPILED.values():
    for _name in _names:
        _serve(_name, _on_first_use(_name))
