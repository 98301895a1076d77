"""The arrays' libraries and kernels: NumPy on the CPU, CuPy on CUDA.

``portable.py`` has every kernel in plain array code; ``cpu/`` and ``cuda/`` have the same names, some of them faster.
"""

import numpy as _np

from . import cpu as _cpu
from . import cuda_settings
from .cpu.memory import empty_cache, leased
from .cpu.threads import get_num_threads, set_num_threads
from .exchange import export_array, import_array
from .libraries import (
    ARRAY_TYPES,
    Library,
    as_array,
    cuda_is_available,
    device_of,
    explain,
    kernels_of,
    library_for,
    load_cuda,
    register,
    to_device,
    to_numpy,
    type_name,
    unfit,
    xp_of,
    zeros,
)

register(_np.ndarray, Library(_np, _cpu, "cpu"))

__all__ = [
    "ARRAY_TYPES", "Library", "as_array", "cuda_is_available", "cuda_settings", "device_of", "empty_cache", "explain",
    "export_array", "get_num_threads", "import_array", "kernels_of", "leased", "library_for", "load_cuda", "register",
    "set_num_threads", "to_device", "to_numpy", "type_name", "unfit", "xp_of", "zeros",
]  # fmt: skip
