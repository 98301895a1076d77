"""The compiled dropout equals the portable one, to the bit; and so does what serves without Numba."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_bn.backend import cpu, portable
from tinygrad_bn.backend.cpu import layout, memory, threads

keys = st.integers(0, 2**64 - 1)
shares = st.sampled_from([0.0, 1e-300, 2.0**-53, 0.1, 0.5, 0.9, 1 - 2.0**-53, 1.0]) | st.floats(0, 1)
SIZES = [1, 2, 3, 4, 5, 7, 8, 8191, 8192, 8193, 16387]


@pytest.fixture(scope="module")
def dropout():
    pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
    pytest.importorskip("scipy", reason="compiled kernels need SciPy: pip install 'tinygrad_bn[fast]'")
    return importlib.import_module("tinygrad_bn.backend.cpu.philox").dropout


def equal(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)


def laid_out(x, how):
    if how == "channels last" and x.ndim == 4:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if how == "transposed":
        return np.ascontiguousarray(x.T).T
    if how == "sliced" and x.ndim:
        return np.repeat(x, 2, axis=-1)[..., ::2]
    if how == "reversed":
        return np.flip(np.flip(x).copy())
    x = x.copy()
    x.flags.writeable = how != "read-only"
    return x


shapes = st.tuples() | st.tuples(st.sampled_from(SIZES)) | st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)


@given(
    shape=shapes,
    dtype=st.sampled_from(["float32", "float64"]),
    p=shares,
    key=keys,
    how=st.sampled_from(["contiguous", "channels last", "transposed", "sliced", "reversed", "read-only"]),
)
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")  # 1 / (1 - p) beyond float32
def test_equal_to_portable(dropout, shape, dtype, p, key, how):
    x = np.random.default_rng(key).standard_normal(shape).astype(dtype)
    if x.ndim:
        x[..., :1] = np.random.default_rng(key).choice([np.nan, np.inf, -np.inf, 1.0])
    x = laid_out(x, how)
    before = x.copy()
    equal(dropout(x, p, key), portable.dropout(x, p, key))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("size", SIZES)
def test_the_numbers_are_those_of_numpy(dropout, size):
    """Through masks at several levels, of ones."""
    key = 0x9E3779B97F4A7C15
    numbers = np.random.Philox(key=key).random_raw(size) >> np.uint64(11)
    for p in (0.001, 0.25, 0.5, 0.75, 0.999, *(numbers[-4:] / 2.0**53)):  # (a number equal to p is kept)
        np.testing.assert_array_equal(dropout(np.ones(size), float(p), key) != 0, numbers / 2.0**53 >= p)


@pytest.mark.parametrize("place", range(4))
def test_a_number_equal_to_p_is_kept(dropout, place):
    """Also where the 11 bits that are not compared are zero, as of one number in 2048."""
    key = 2024
    numbers = np.random.Philox(key=key).random_raw(1 << 18)  # of which 128 are to be expected
    at = 4 * np.flatnonzero(numbers[place::4] % 2048 == 0)[0] + place
    p = float(numbers[at] >> np.uint64(11)) / 2.0**53
    assert dropout(np.ones(at + 1), p, key)[at] != 0
    assert dropout(np.ones(at + 1), p + 2.0**-53, key)[at] == 0


@pytest.mark.parametrize("how", ["contiguous", "channels last", "reversed"])
@pytest.mark.parametrize("shape", [(5, 33, 29, 31), (1, 3, 150, 150), (70, 3, 21, 17)])
def test_large_inputs_on_several_threads(dropout, rng, monkeypatch, shape, how):
    x = laid_out(rng.standard_normal(shape).astype("float32"), how)
    assert x.size > 1 << 16
    results = []
    for number in (1, 2, 3):
        monkeypatch.setattr(threads, "_number", number)
        results.append(dropout(x, 0.3, 12345))
        equal(results[-1], portable.dropout(x, 0.3, 12345))
        assert isinstance(results[-1].base, memory.Block)
        assert results[-1].tobytes() == results[0].tobytes()
    assert (results[0].strides == x.strides) == (how != "reversed")


def test_it_is_its_own_adjoint(dropout, rng):
    """In any layouts: <Dx, y> = <x, Dy>."""
    x = rng.standard_normal((3, 5, 4, 6))
    y = layout.images(3, 5, 4, 6, "float64")
    y[...] = rng.standard_normal(y.shape)
    np.testing.assert_allclose(np.vdot(dropout(x, 0.4, 7), y), np.vdot(x, dropout(y, 0.4, 7)), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", ">f4", "int32"])
def test_other_dtypes_are_served_by_portable(dropout, dtype):
    x = np.arange(1, 14).astype(dtype)
    equal(dropout(x, 0.3, 5), portable.dropout(x, 0.3, 5))


def test_nothing(dropout):
    equal(dropout(np.zeros((0, 3), "float32"), 0.3, 5), np.zeros((0, 3), "float32"))


@given(size=st.integers(0, 40), p=shares, key=keys)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_without_numba_numpy_draws_the_same_bits(size, p, key):
    x = np.arange(1.0, size + 1)
    equal(cpu._dropout(x, p, key), portable.dropout(x, p, key))
