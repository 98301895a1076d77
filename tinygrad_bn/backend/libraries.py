"""Which library an array belongs to. The rest of the package asks here, by the array's type, and never names a library.

``cuda`` is served by CuPy, imported when an array is first wanted there, and by nothing else.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, NamedTuple

import numpy as np

from . import cuda_settings

Array = Any


class Library(NamedTuple):
    """An array library: its namespace, the kernels that serve it, and the name of its device."""

    xp: Any
    kernels: Any
    device: str


_libraries: dict[type, Library] = {}
ARRAY_TYPES: set[type] = set()  # what counts as an array


def register(array_type: type, library: Library) -> None:
    """Let arrays of this type be served by this library."""
    _libraries[array_type] = library
    ARRAY_TYPES.add(array_type)


def _library_of(x: Any) -> Library:
    kind = type(x)
    library = _libraries.get(kind)
    if library is None:
        if isinstance(x, (np.ndarray, np.generic)):
            return _libraries[np.ndarray]
        if kind.__module__.partition(".")[0] == "cupy":
            load_cuda()
            return _libraries[kind]
        raise TypeError(f"expected a NumPy or CuPy array, got {kind.__name__}")
    return library


def xp_of(x: Any) -> Any:
    """The namespace (``numpy`` or ``cupy``) that the array belongs to."""
    return _library_of(x).xp


def kernels_of(x: Any) -> Any:
    """The module with the kernels for this array."""
    library = _libraries.get(type(x))  # (asked by every operation)
    return (_library_of(x) if library is None else library).kernels


def device_of(x: Any) -> str:
    """``"cpu"`` or ``"cuda"``."""
    return _library_of(x).device


def load_cuda() -> Library:
    """CuPy and its kernels; a sentence that says what to install if there is none, or no GPU."""
    for library in _libraries.values():
        if library.device == "cuda":
            return library
    try:
        xp = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "device 'cuda' needs CuPy: pip install 'tinygrad_bn[cuda12]' or 'tinygrad_bn[cuda13]', as your driver has it"
        ) from error
    if not xp.cuda.is_available():
        raise RuntimeError("device 'cuda' needs an NVIDIA GPU and its driver: CuPy is installed, but it found none")
    library = Library(xp, importlib.import_module(".cuda", __package__), "cuda")
    cuda_settings.apply(xp)
    register(xp.ndarray, library)
    return library


def cuda_is_available() -> bool:
    """Whether arrays can be put on a GPU; never raises."""
    try:
        load_cuda()
    except Exception:
        return False
    return True


def library_for(device: str | None) -> Library:
    """The library of a device: ``"cpu"``, ``"cuda"``, or None for the environment's ``TINYGRAD_BN_DEVICE``, else cpu."""
    name = os.environ.get("TINYGRAD_BN_DEVICE", "cpu") if device is None else device
    if name == "cpu":
        return _libraries[np.ndarray]
    if name in ("cuda", "cuda:0"):
        return load_cuda()
    raise ValueError(f"{'TINYGRAD_BN_DEVICE' if device is None else 'device'} expected 'cpu' or 'cuda', got {name!r}")


def to_device(x: Array, device: str | None) -> Array:
    """The array on that device: itself if it is there already, else a copy."""
    target = library_for(device)
    source = _library_of(x)
    if target is source:
        return x
    return target.xp.asarray(x if source.device == "cpu" else source.xp.asnumpy(x))


def to_numpy(x: Any) -> np.ndarray:
    """The array in the host's memory: itself on the CPU, a copy from CUDA."""
    library = _library_of(x)
    return x if library.device == "cpu" else library.xp.asnumpy(x)


def as_array(x: Any) -> Array:
    """NumPy's 0-d scalars as 0-d arrays; anything else that is an array as it is."""
    if type(x) in ARRAY_TYPES:
        return x
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    _library_of(x)  # registers a CuPy array's type, or raises
    return x


def zeros(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """Zeros where ``like`` lives."""
    return xp_of(like).zeros(shape, dtype)


def type_name(x: Any) -> str:
    """What to call the type of x in an error: with its package, where that is another's and says more."""
    kind = type(x)
    package = kind.__module__.partition(".")[0]
    return f"{package}.{kind.__name__}" if kind.__name__ == "Tensor" and package != "tinygrad_bn" else kind.__name__


def unfit(name: str, argument: str, value: Any, number_fits: bool) -> TypeError:
    """The error for an argument that is no array."""
    wanted = "a Tensor, an array or a number" if number_fits else "a Tensor or an array"
    return TypeError(f"{name} expected {wanted} as {argument!r}, got {type_name(value)}")


def explain(error: Exception, name: str, arguments: list[str], values: list, required: int) -> Exception | None:
    """An error that says in the user's terms why operation ``name`` failed on ``values``, or None if ``error`` does.

    None is legal for the arguments after the first ``required``.
    """
    devices: dict[str, str] = {}
    numbers = []
    for position, (argument, value) in enumerate(zip(arguments, values, strict=True)):
        if value is None and position >= required:
            continue
        if isinstance(value, (bool, int, float, complex)):
            numbers.append((argument, value))
        elif not isinstance(value, np.generic):
            try:
                devices.setdefault(device_of(value), argument)
            except TypeError:
                return unfit(name, argument, value, len(values) > 1)
    if numbers and not devices:
        if len(values) == 1:
            return unfit(name, arguments[0], values[0], False)
        *others, last = [type_name(v) for v in values]
        return TypeError(f"{name} expected a Tensor or an array among its arguments, got {', '.join(others)} and {last}")
    if numbers and isinstance(error, AttributeError):  # the operation took it for an array
        return unfit(name, *numbers[0], False)
    if len(devices) > 1:
        places = " and ".join(f"{argument!r} on {device}" for device, argument in devices.items())
        return ValueError(f"{name} expected its arrays on one device, got {places}; move one with .to(device)")
    if "broadcast" in str(error) and "expected" not in str(error):
        shapes = " and ".join(str(v.shape) for v in values if hasattr(v, "shape"))
        return ValueError(f"{name} expected shapes that broadcast together, got {shapes}")
    return None
