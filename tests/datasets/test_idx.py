"""read_idx: every dtype, every kind of damage, and no memory for a file that lies."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinygrad_bn.datasets import read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def header(code: int, *sizes: int) -> bytes:
    return bytes([0, 0, code, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


def idx_bytes(array: np.ndarray) -> bytes:
    return header(CODES[array.dtype.name], *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", CODES)
def test_reads_every_dtype(tmp_path, name, pack):
    array = np.arange(-60, 60).astype(name).reshape(2, 3, 4, 5)
    got = read_idx(write(tmp_path, pack(idx_bytes(array))))
    np.testing.assert_array_equal(got, array, strict=True)
    assert got.dtype.isnative and got.flags.writeable and got.flags.c_contiguous


def test_reads_a_file_longer_than_a_chunk(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (1000, 700), np.uint8)
    for pack in (bytes, gzip.compress):
        np.testing.assert_array_equal(read_idx(str(write(tmp_path, pack(idx_bytes(array))))), array, strict=True)


def test_reads_gzip_in_several_members(tmp_path):
    content = idx_bytes(np.arange(100, dtype=np.int32))
    path = write(tmp_path, gzip.compress(content[:37]) + gzip.compress(content[37:]))
    np.testing.assert_array_equal(read_idx(path), np.arange(100))


GOOD = header(0x08, 2, 3) + bytes(6)
BAD = {
    "empty": (b"", "at least 4 bytes .* got 0"),
    "short magic": (b"\0\0\x08", "at least 4 bytes .* got 3"),
    "not idx": (b"PK\x03\x04" + GOOD, "two zero bytes.* got 50 4b"),
    "unknown dtype": (header(0x0A, 2) + bytes(2), "dtype codes 0x08.* got 0x0a"),
    "rank 0": (bytes([0, 0, 8, 0, 1]), "1 to 32 dimensions .* got 0"),
    "rank 33": (header(0x08, *[1] * 33) + b"1", "1 to 32 dimensions .* got 33"),
    "short sizes": (GOOD[:10], "8 bytes of sizes .* got 6"),
    "zero size": (header(0x08, 2, 0), r"positive sizes .* got \(2, 0\)"),
    "negative size": (header(0x08, 2, 0xFFFFFFFF) + bytes(2), r"positive sizes .* got \(2, -1\)"),
    "truncated": (GOOD[:-1], r"6 bytes of data for shape \(2, 3\) of uint8 .* got 5"),
    "trailing": (GOOD + b"x", "6 bytes of data .* got (7|more than 6)"),
    "overflow": (header(0x0E, 1 << 30, 1 << 30, 1 << 3) + bytes(64), f"{1 << 66} bytes of data .* got 64"),
    "wraps to the truth": (
        header(0x08, 1 << 30, 1 << 30, 1 << 4),
        "(bytes of data|at most 1032 times) .* got",
    ),  # the product is 0 mod 2**64
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_file_is_a_clear_error(tmp_path, content, message, pack):
    path = write(tmp_path, pack(content))
    with pytest.raises(ValueError, match=f"read_idx expected .*{message}") as error:
        read_idx(path)
    assert str(path) in str(error.value)


def with_byte(content: bytes, position: int, change: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= change
    return bytes(damaged)


ZIPPED = gzip.compress(GOOD)
BAD_GZIP = {
    "only its magic": ZIPPED[:2],
    "truncated header": ZIPPED[:8],
    "truncated data": ZIPPED[:14],
    "truncated trailer": ZIPPED[:-1],
    "wrong CRC": with_byte(ZIPPED, -8, 1),
    "wrong length": with_byte(ZIPPED, -4, 1),
    "unknown method": with_byte(ZIPPED, 2, 1),
    "broken deflate data": with_byte(ZIPPED, 10, 6),
    "trailing garbage": ZIPPED + b"garbage",
}


@pytest.mark.parametrize("content", BAD_GZIP.values(), ids=BAD_GZIP)
def test_bad_gzip_is_a_clear_error(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"read_idx expected intact gzip data in .*file, got: "):
        read_idx(path)


def test_missing_file_and_directory_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")
    with pytest.raises(OSError):
        read_idx(tmp_path)


BODY = gzip.compress(bytes(1 << 25))  # 32 MiB of zeros in 32 KiB
LIARS = {
    "plain": header(0x08, 0x7FFFFFFF) + bytes(64),
    "gzip that claims more than deflate could hold": gzip.compress(header(0x08, 0x7FFFFFFF) + bytes(64)),
    "gzip that claims a byte more than it holds": gzip.compress(header(0x08, (1 << 25) + 1)) + BODY,
    "gzip bomb that claims little": gzip.compress(header(0x08, 64)) + BODY,
    "gzip with a wrong CRC at the end": with_byte(gzip.compress(header(0x08, 1 << 25)) + BODY, -8, 1),
}


@pytest.mark.parametrize("content", LIARS.values(), ids=LIARS)
def test_nothing_is_allocated_for_a_liar(tmp_path, content):
    path = write(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="read_idx expected"):
            read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20  # the buffers of gzip and of one chunk


def test_honest_file_is_held_in_memory_once(tmp_path):
    path = write(tmp_path, gzip.compress(header(0x0B, 1 << 24)) + BODY)
    tracemalloc.start()
    try:
        array = read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert array.nbytes == 1 << 25
    assert peak < array.nbytes + (3 << 20)


arrays = st.sampled_from(sorted(CODES)).flatmap(
    lambda name: (
        hnp.arrays(name, hnp.array_shapes(max_dims=4, max_side=6), elements={"allow_nan": False})
        if name.startswith("float")
        else hnp.arrays(name, hnp.array_shapes(max_dims=4, max_side=6))
    )
)


@settings(deadline=None, max_examples=60)
@given(array=arrays, zipped=st.booleans())
def test_round_trip(folder, array, zipped):
    content = idx_bytes(array)
    got = read_idx(write(folder, gzip.compress(content) if zipped else content))
    np.testing.assert_array_equal(got, array, strict=True)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), zip_before=st.booleans(), zip_after=st.booleans())
def test_fuzzed_file_is_read_or_a_value_error(folder, data, zip_before, zip_after):
    """Bytes changed, dropped or added, before or after compression: an array that fits the file, or ValueError."""
    content = idx_bytes(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    if zip_before:
        content = gzip.compress(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        drop, insert = data.draw(st.integers(0, 4)), data.draw(st.binary(max_size=4))
        content = content[:at] + insert + content[at + drop :]
    path = write(folder, gzip.compress(content) if zip_after else content)
    try:
        array = read_idx(path)
    except ValueError as error:
        assert "read_idx expected" in str(error) and str(path) in str(error)
    else:
        assert isinstance(array, np.ndarray) and array.nbytes <= 1032 * path.stat().st_size


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=64), prefix=st.sampled_from([b"", b"\0\0", b"\0\0\x08\x01\0\0", b"\x1f\x8b\x08"]))
def test_noise_is_read_or_a_value_error(folder, content, prefix):
    path = write(folder, prefix + content)
    try:
        read_idx(path)
    except ValueError as error:
        assert "read_idx expected" in str(error)
