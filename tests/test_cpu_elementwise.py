"""The compiled elementwise functions and products equal the portable ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_bn.backend import portable
from tinygrad_bn.backend.cpu import threads
from tinygrad_bn.core import Absent

pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
from test_cpu_conv import LAYOUTS, laid_out  # noqa: E402

from tinygrad_bn.backend.cpu import elementwise, linalg  # noqa: E402

SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40]


@pytest.fixture
def numbers_of_threads():
    before = threads._number

    def each():
        for threads._number in (1, 2, 3):
            yield threads._number

    yield each
    threads._number = before


def draw_arrays(seed, shape, dtype, layout, count=2):
    rng = np.random.default_rng(seed)
    arrays = []
    for _ in range(count):
        x = rng.standard_normal(shape).astype(dtype)
        special = rng.integers(0, 4 * len(SPECIAL), shape)
        for i, value in enumerate(SPECIAL):
            x[special == i] = value
        arrays.append(laid_out(x, layout))
    return arrays


shapes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=shapes,
    dtype=st.sampled_from(["float32", "float64"]),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
)
@pytest.mark.filterwarnings("ignore:invalid value")  # portable's inf * 0
def test_equal_to_portable(seed, shape, dtype, layouts):
    (x, y), (u, v) = draw_arrays(seed, shape, dtype, layouts[0]), draw_arrays(seed + 1, shape, dtype, layouts[1])
    before = x.copy()
    for mine, expected in (
        (elementwise.relu(x), portable.relu(x)),
        (elementwise.relu_backward(x, v), portable.relu_backward(x, v)),
        (elementwise.add(x, u), portable.add(x, u)),
    ):
        assert mine.shape == expected.shape and mine.dtype == expected.dtype
        np.testing.assert_array_equal(mine, expected)
    np.testing.assert_allclose(elementwise.sigmoid(x), portable.sigmoid(x), rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(elementwise.sigmoid_backward(x, v), portable.sigmoid_backward(x, v), rtol=1e-6)
    np.testing.assert_array_equal(x, before)
    finite = np.nan_to_num(y, nan=0.5, posinf=2.0, neginf=-2.0)
    wide = portable.sum_pixels(finite.astype("float64"))
    np.testing.assert_allclose(elementwise.sum_pixels(finite), wide, rtol=1e-6 if dtype == "float32" else 1e-13, atol=1e-5)


def test_sigmoid_to_the_last_digits(rng):
    """From where it is nearly 0 to where it is 1; relatively as exact as absolutely."""
    x = np.concatenate([np.linspace(-87, 100, 100_001), rng.standard_normal(1000) * 1e-6]).astype(np.float32)
    exact = 1.0 / (1.0 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(elementwise.sigmoid(x), exact, rtol=4e-7)
    extreme = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, -88.0, 1e-40], np.float32)
    np.testing.assert_allclose(elementwise.sigmoid(extreme), [np.nan, 1, 0, 0.5, 0.5, 1, 0, 0, 0.5], atol=1e-37)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_ones(dtype, numbers_of_threads, rng):
    x, y = (laid_out(rng.standard_normal((16, 40, 30, 31)).astype(dtype), "channels last") for _ in range(2))
    results = []
    for _ in numbers_of_threads():
        results.append(
            [elementwise.relu(x), elementwise.relu_backward(x, y), elementwise.add(x, y), elementwise.sigmoid_backward(x, y),
             elementwise.sum_pixels(x)]
        )  # fmt: skip
    expected = [portable.relu(x), portable.relu_backward(x, y), portable.add(x, y), portable.sigmoid_backward(x, y)]
    for mine, theirs in zip(results[0], expected, strict=False):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        assert mine.strides == x.strides  # the layout stays
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_sums_of_many_numbers_far_from_zero():
    x = np.full((64, 4, 40, 40), 1000.1, np.float32)
    np.testing.assert_allclose(elementwise.sum_pixels(x), 64 * 1600 * np.float64(np.float32(1000.1)), rtol=1e-7)


def test_what_has_gaps_or_is_no_float_is_left_to_portable(rng):
    x = rng.standard_normal((6, 7))
    np.testing.assert_array_equal(elementwise.relu(x[:, ::2]), np.maximum(x[:, ::2], 0))
    whole = np.array([-1, 2])
    assert elementwise.relu(whole).dtype == portable.relu(whole).dtype
    np.testing.assert_array_equal(elementwise.add(x.T, x.reshape(7, 6)), x.T + x.reshape(7, 6))


# ----- products

sizes = st.integers(1, 70)


def matrix(rng, shape, dtype, layout):
    x = rng.standard_normal(shape).astype(dtype)
    if layout == "transposed":
        return np.ascontiguousarray(x.T).T
    if layout == "sliced":
        return np.repeat(x, 2, axis=1)[:, ::2]
    if layout == "read-only":
        x.flags.writeable = False
    return x


layouts = st.sampled_from(["contiguous", "transposed", "sliced", "read-only"])


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(sizes, sizes, sizes),
    dtype=st.sampled_from(["float32", "float64"]),
    layout=st.tuples(layouts, layouts),
    with_bias=st.booleans(),
)
def test_products_equal_portable(seed, shape, dtype, layout, with_bias):
    rng = np.random.default_rng(seed)
    m, k, n = shape
    x, y = matrix(rng, (m, k), dtype, layout[0]), matrix(rng, (k, n), dtype, layout[1])
    b = rng.standard_normal(n).astype(dtype) if with_bias else None
    near = {"rtol": 0, "atol": (1e-5 if dtype == "float32" else 1e-13) * k}
    np.testing.assert_allclose(linalg.matmul(x, y), portable.matmul(x, y), **near)
    np.testing.assert_allclose(linalg.linear(x, y.T, b), portable.linear(x, y.T, b), **near)
    assert linalg.matmul(x, y).dtype == dtype


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(sizes, sizes, sizes),
    dtype=st.sampled_from(["float32", "float64"]),
    layout=st.tuples(layouts, layouts, layouts),
    lead=st.booleans(),
    wanted=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_gradients_of_linear_equal_portable(seed, shape, dtype, layout, lead, wanted):
    rng = np.random.default_rng(seed)
    m, k, n = shape
    g, x = matrix(rng, (m, n), dtype, layout[0]), matrix(rng, (m, k), dtype, layout[1])
    w = matrix(rng, (n, k), dtype, layout[2])
    if lead:
        g, x = g[:, None], x[:, None]
    kept = x if wanted[1] else Absent(x.shape), w if wanted[0] else Absent(w.shape)  # what nodes keep for these rules
    for mine, expected in zip(
        linalg.linear_backward(g, *kept, *wanted), portable.linear_backward(g, *kept, *wanted), strict=True
    ):
        if expected is None:
            assert mine is None
        else:
            assert mine.shape == expected.shape and mine.dtype == dtype
            np.testing.assert_allclose(mine, expected, rtol=0, atol=(1e-5 if dtype == "float32" else 1e-13) * max(m, n))


def test_gradients_of_a_large_linear_have_the_same_bits_for_any_number_of_threads(numbers_of_threads, rng):
    g, x, w = (rng.standard_normal(shape, np.float32) for shape in ((300, 200), (300, 500), (200, 500)))
    results = [linalg.linear_backward(g, x, w, True, True) for _ in numbers_of_threads()]
    for i, expected in enumerate((g.astype(float) @ w, g.T.astype(float) @ x)):
        np.testing.assert_allclose(results[0][i], expected, rtol=0, atol=1e-6 * 300)
        assert all(np.array_equal(results[0][i], other[i]) for other in results[1:])


@pytest.mark.parametrize(("m", "k", "n"), [(256, 784, 100), (100, 256, 784), (64, 3136, 128), (1, 4000, 2000), (3000, 5, 700)])
@pytest.mark.parametrize("turned", ["", "left", "right", "both"])
def test_large_products_and_the_same_bits_for_any_number_of_threads(m, k, n, turned, numbers_of_threads, rng):
    x = matrix(rng, (m, k), np.float32, "transposed" if turned in ("left", "both") else "contiguous")
    y = matrix(rng, (k, n), np.float32, "transposed" if turned in ("right", "both") else "contiguous")
    results = [linalg.matmul(x, y) for _ in numbers_of_threads()]
    np.testing.assert_allclose(results[0], x.astype(float) @ y.astype(float), rtol=0, atol=1e-6 * k)
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((7, 5, 30, 40), (40, 20)),
        ((4, 30, 40), (4, 40, 20)),
        ((40,), (40, 9)),
        ((9, 40), (40,)),
        ((3, 0), (0, 2)),
        ((0, 3), (3, 2)),
    ],
    ids=str,
)
def test_other_dimensions(x, y, rng):
    a, b = rng.standard_normal(x), rng.standard_normal(y)
    np.testing.assert_allclose(linalg.matmul(a, b), np.matmul(a, b), rtol=1e-12, atol=1e-12)


def test_infinite_factors(rng):
    x, y = rng.standard_normal((70, 60), np.float32), rng.standard_normal((60, 80), np.float32)
    x[3, 4], y[7, 5] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        expected = x @ y
    np.testing.assert_array_equal(np.isnan(linalg.matmul(x, y)), np.isnan(expected))
