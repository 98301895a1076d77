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
# Where the portable kernel is as fast, and nothing need be imported. OpenBLAS does such small products on one thread.
_ELEMENTS, _MULTIPLICATIONS = 1 << 13, 1 << 17
SMALL: dict[str, Callable[..., bool]] = {
    "relu": lambda x: x.size < _ELEMENTS,
    "relu_backward": lambda g, _y: g.size < _ELEMENTS,
    "sigmoid": lambda x: x.size < _ELEMENTS // 4,
    "sigmoid_backward": lambda g, _y: g.size < _ELEMENTS // 4,
    "sum_pixels": lambda x: x.size < _ELEMENTS,
    "einsum": lambda _subscripts, operands: sum(x.size for x in operands) < _ELEMENTS,
    "linear": lambda x, w, _b: x.size * len(w) < _MULTIPLICATIONS,
    "linear_backward": lambda g, x, _w, *_: g.size * x.shape[-1] < _MULTIPLICATIONS,
    "sgd": lambda weights, *_: weights.size < _ELEMENTS // 4,
    "adam": lambda weights, *_: weights.size < _ELEMENTS // 4,
    "matmul": lambda x, y: x.size * (1 if y.ndim < 2 else y.shape[-1]) < _MULTIPLICATIONS,
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
            portable = _INSTEAD.get(name) or getattr(_portable, name)
            compiled = getattr(modules[module], name) if module in modules else portable
            globals()[name] = compiled if compiled is portable or name not in SMALL else _choose(name, portable, compiled)


def _choose(name: str, portable: Callable, compiled: Callable) -> Callable:
    """The portable kernel for small arrays, the compiled one for others."""
    is_small = SMALL[name]

    def kernel(*args: Any) -> Any:
        return (portable if is_small(*args) else compiled)(*args)

    return kernel


def _on_first_use(name: str) -> Callable:
    def kernel(*args: Any) -> Any:
        _load()
        return globals()[name](*args)

    return kernel


for _names in COMPILED.values():
    for _name in _names:
        _waiting = _on_first_use(_name)
        globals()[_name] = _choose(_name, getattr(_portable, _name), _waiting) if _name in SMALL else _waiting
