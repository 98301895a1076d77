"""Arrays of other libraries, and arrays for them, on the same memory: DLPack, by the protocol of the Python array API.

Source: "Data interchange mechanisms", https://data-apis.org/array-api/latest/design_topics/data_interchange.html
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .libraries import Array, load_cuda, type_name

_CPU, _CUDA, _CUDA_MANAGED = 1, 2, 13  # how DLPack numbers the kinds of device


def import_array(x: Any) -> Array:
    """What an object with ``__dlpack__`` holds, as an array on the same memory."""
    try:
        kind = int(x.__dlpack_device__()[0])
        x.__dlpack__  # noqa: B018
    except (AttributeError, TypeError):  # (that of a class is not bound)
        raise TypeError(f"from_dlpack expected an object with __dlpack__ and __dlpack_device__, got {type_name(x)}") from None
    if kind not in (_CPU, _CUDA, _CUDA_MANAGED):
        raise ValueError(f"from_dlpack expected memory of the CPU (DLPack's device 1) or of CUDA (2, 13), got device {kind}")
    if hasattr(x, "is_neg") and x.is_neg():  # PyTorch's: its DLPack offers the memory, and forgets the sign
        raise BufferError("from_dlpack expected a tensor whose memory has its sign; use .resolve_neg()")
    try:
        array = (np if kind == _CPU else load_cuda().xp).from_dlpack(x)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        raise TypeError(f"from_dlpack expected a dtype that NumPy has, got {getattr(x, 'dtype', 'another')}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"from_dlpack expected real numbers or booleans, got {array.dtype}")
    return array


def export_array(array: Array, copy: bool | None, **wishes: Any) -> Any:
    """A DLPack capsule of the array, or of a copy of it; ``wishes`` are the other options of ``__dlpack__``."""
    backwards = any(stride < 0 and length > 1 for length, stride in zip(array.shape, array.strides, strict=True))
    if backwards and not copy:  # legal, but PyTorch 2.13 ends the whole process at such an array
        raise BufferError("a tensor that runs backwards in memory is not exported by DLPack; export a copy, tensor(t)")
    return array.__dlpack__(**wishes) if copy is None else array.__dlpack__(copy=copy, **wishes)
