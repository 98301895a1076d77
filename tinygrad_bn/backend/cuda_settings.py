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
    if _xp is not None and name == "allow_tf32":
        _tell(_xp, value)
    globals()[name] = value


def apply(xp: Any) -> None:
    """What was chosen before CuPy was loaded."""
    global _xp
    _tell(xp, allow_tf32)
    _xp = xp


def _tell(xp: Any, tf32: bool) -> None:
    """CuPy has a switch of its own for the products of cuBLAS. It warns where the GPU has no TensorFloat-32."""
    routines = xp._core._routines_linalg
    routines.set_compute_type("float32", routines.COMPUTE_TYPE_TF32 if tf32 else routines.COMPUTE_TYPE_DEFAULT)
