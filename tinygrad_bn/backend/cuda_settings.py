"""What a program has chosen for CUDA, whether or not there is any. It chooses through ``tinygrad_bn.cuda``."""

from __future__ import annotations

from typing import Any

allow_tf32 = False
deterministic = False
_xp: Any = None  # CuPy, once it is loaded


def choose(name: str, value: bool) -> None:
    """Set ``allow_tf32`` or ``deterministic``. Raises TypeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"tinygrad_bn.cuda.{name} expected True or False, got {value!r}")
    globals()[name] = value
    if _xp is not None:
        apply(_xp)


def apply(xp: Any) -> None:
    """Tell CuPy, which has a switch of its own for the products of cuBLAS."""
    global _xp
    _xp = xp
    routines = xp._core._routines_linalg
    routines.set_compute_type("float32", routines.COMPUTE_TYPE_TF32 if allow_tf32 else routines.COMPUTE_TYPE_DEFAULT)
