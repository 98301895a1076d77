"""safetensors files: named arrays and a few strings, with nothing in them that could run. Written whole, or not at all.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import to_numpy

_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_STORED = {np.dtype(code) for code in _DTYPES.values()}


def _library(caller: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise RuntimeError(f"{caller} needs safetensors: pip install 'tinygrad_bn[interop]'") from error
    return safetensors


def plain(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays on the host, each in one piece, in the order of its axes and in the byte order of the format."""
    # safetensors 0.8.0 writes the memory of an array as it lies, whatever its strides: its issue 825.
    host = {name: to_numpy(a) for name, a in arrays.items()}
    return {name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")).reshape(a.shape) for name, a in host.items()}


def packed(caller: str, arrays: Mapping[str, Any], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file; arrays of CUDA are fetched. Raises for what the file could not give back."""
    library, whole = _library(caller), plain(arrays)
    if "__metadata__" in whole:
        raise ValueError(f"{caller} expected no tensor of the name '__metadata__', which the format has for itself")
    for name, array in whole.items():
        if array.dtype not in _STORED:
            raise TypeError(f"{caller} expected {name} of a dtype that safetensors has, got {array.dtype}")
    return library.numpy.save(whole, metadata)


def read(caller: str, path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file. bfloat16 becomes float32, of the same values.

    Raises ValueError, which names the path, for a file that is damaged, or holds a dtype that NumPy has not; OSError if it
    cannot be read. It takes a few times the file's size of memory, whatever the file says.
    """
    _library(caller)  # what is missing is told before what is wrong with the file
    with open(os.fspath(path), "rb") as file:
        return parsed(caller, path, file.read())


def parsed(caller: str, path: str | os.PathLike[str], content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The same, of the content of a file that was read from ``path``."""
    safetensors = _library(caller)
    try:
        entries = safetensors.deserialize(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
        arrays = {name: _array(name, entry) for name, entry in sorted(entries, key=lambda entry: entry[0])}
    except (safetensors.SafetensorError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{caller} expected an intact safetensors file {os.fspath(path)}, got: {error}") from error
    return arrays, metadata


def _array(name: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtype, shape, data = entry["dtype"], tuple(entry["shape"]), entry["data"]
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in _DTYPES:
        raise ValueError(f"{name} of dtype {dtype}; expected one of {', '.join(_DTYPES)}, BF16")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def write_whole(path: str, content: bytes) -> None:
    """Write a file under a temporary name, let it and its folder reach the disk, and rename: it is all there, or not at all.

    An error on the way (OSError, such as a full disk) leaves what was at ``path`` before, and no temporary file. It names
    ``path``.
    """
    try:
        _write_and_rename(path, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _write_and_rename(path: str, content: bytes) -> None:
    folder, name = os.path.split(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(suffix=TEMPORARY, prefix=f".{name}.", dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


TEMPORARY = ".being-written"


def sync_folder(folder: str) -> None:
    """Let the names in a folder reach the disk, where the system has a way to ask for it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
