"""The kernels for NumPy arrays: the portable ones, and compiled ones of the same names and results.

The compiled ones need Numba and SciPy (the extra ``fast``); they are imported when one is first called. Without them the
portable ones serve.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as _np

from .. import portable as _portable
from ..portable import *  # noqa: F403
from .small import *  # noqa: F403
from .small import SMALL, fast

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
    setattr(fast, name, kernel)
    if name not in SMALL:
        globals()[name] = kernel


def _on_first_use(name: str) -> Callable:
    def kernel(*args: Any) -> Any:
        _load()
        return getattr(fast, name)(*args)

    return kernel


for _names in COMPILED.values():
    for _name in _names:
        _serve(_name, _on_first_use(_name))
