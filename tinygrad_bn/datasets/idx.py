"""The idx format of the MNIST files: two zero bytes, a dtype code, the rank, the sizes, then the numbers, big-endian.

Source: "The IDX file format", at the foot of Yann LeCun's MNIST page (http://yann.lecun.com/exdb/mnist/).
"""

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_RANK = 32  # what every NumPy can hold
_CHUNK = 1 << 18


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read an idx file, gzip-compressed or not (its first bytes tell, not its name).

    Returns a new array of the file's shape and dtype (uint8, int8, int16, int32, float32 or float64), in native
    byte order. The array is allocated only after the file was found to hold exactly the bytes its header claims.

    Raises ValueError, naming the path, what came and what was expected, for a file that is damaged, truncated, too
    long, empty, or whose header lies; OSError if the file cannot be opened.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"read_idx expected a path, got {type(path).__name__}")
    size = os.stat(path).st_size
    with unzipped(path) as stream:
        shape, dtype = _read_header(stream, path)
        start, expected = 4 + 4 * len(shape), math.prod(shape) * dtype.itemsize
        held = _count(stream, expected + 1) if isinstance(stream, gzip.GzipFile) else size - start
        if held != expected:
            came = f"more than {expected}" if held > expected else str(held)
            raise ValueError(
                f"read_idx expected {expected} bytes of data for shape {shape} of {dtype.name} in {path}, got {came}"
            )
        stream.seek(start)
        body = np.empty(expected, np.uint8)
        filled = 0
        while filled < expected:
            count = stream.readinto(body[filled : filled + _CHUNK].data)
            if not count:
                raise ValueError(f"read_idx expected {path} to stay as it is, but it shrank while being read")
            filled += count
    array = body.view(dtype).reshape(shape)
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return array


@contextmanager
def unzipped(path: str | os.PathLike[str]) -> Iterator[BufferedIOBase]:
    """Open a file for reading, seen through gzip if it is gzip. Damage to the gzip data is a ValueError."""
    with open(os.fspath(path), "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not is_gzip:
            yield raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"read_idx expected intact gzip data in {path}, got: {error}") from error


def _read_header(stream: BufferedIOBase, path: str | os.PathLike[str]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the dtype, in the file's byte order."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise ValueError(f"read_idx expected a header of at least 4 bytes in {path}, got {len(magic)}")
    if magic[:2] != b"\0\0":
        raise ValueError(f"read_idx expected {path} to begin with two zero bytes, got {magic[:2].hex(' ')}")
    code, rank = magic[2], magic[3]
    if code not in _DTYPES:
        known = ", ".join(f"0x{c:02x}" for c in _DTYPES)
        raise ValueError(f"read_idx expected one of the dtype codes {known} in {path}, got 0x{code:02x}")
    if not 1 <= rank <= _MAX_RANK:
        raise ValueError(f"read_idx expected 1 to {_MAX_RANK} dimensions in {path}, got {rank}")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"read_idx expected {4 * rank} bytes of sizes in {path}, got {len(sizes)}")
    shape = tuple(np.frombuffer(sizes, ">i4").tolist())  # Python ints: their product cannot overflow
    if min(shape) < 1:
        raise ValueError(f"read_idx expected positive sizes in {path}, got {shape}")
    return shape, np.dtype(_DTYPES[code])


def _count(stream: BufferedIOBase, most: int) -> int:
    """The bytes left in the stream, counted to `most`. It costs a second decompression, and no memory for a liar."""
    held = 0
    while held < most:  # the read that finds the end is the one that checks gzip's CRC
        chunk = stream.read(min(_CHUNK, most - held))
        if not chunk:
            break
        held += len(chunk)
    return held
