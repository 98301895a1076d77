"""The compiled pooling kernels equal the portable ones: any window and layout, ties, NaN and Inf too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinygrad_bn.backend import portable
from tinygrad_bn.backend.cpu import memory, threads

pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
pytest.importorskip("scipy", reason="compiled kernels need SciPy: pip install 'tinygrad_bn[fast]'")
from test_cpu_conv import LAYOUTS, laid_out  # noqa: E402

from tinygrad_bn.backend.cpu import layout, pool  # noqa: E402

SPECIAL = [np.nan, np.inf, -np.inf, -0.0]
pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
layouts = st.sampled_from(LAYOUTS)
dtypes = st.sampled_from(["float32", "float64"])


def places_laid_out(place, how):
    return np.repeat(place, 2, axis=-1)[..., ::2] if how == "sliced" else laid_out(place, how)


@st.composite
def windows(draw):
    """The shape of an image, a kernel, a stride and a padding that go together; often 2x2 or beside each other."""
    kernel = draw(st.sampled_from([(2, 2), (2, 2), (2, 2), (3, 3)]) | pairs(1, 4))
    stride = draw(st.just(kernel) | pairs(1, 5))
    padding = draw(st.just((0, 0)) | st.just((0, 0)) | st.tuples(*(st.integers(0, k // 2) for k in kernel)))
    shape = draw(st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 5, 16, 33]), st.integers(1, 9), st.integers(1, 9)))
    counts = portable.window_counts(shape, kernel, stride, padding)
    assume(min(counts) >= 1)
    return shape, (*shape[:2], *counts), (kernel, stride, padding)


def draw_numbers(rng, shape, kind):
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "ties":
        return rng.integers(0, 3, shape).astype("float64")
    if kind == "-inf":
        return np.where(rng.random(shape) < 0.9, -np.inf, rng.standard_normal(shape))
    x = rng.integers(0, 3, shape).astype("float64")
    return np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), x)


kinds = st.sampled_from(["special", "ties", "-inf", "normal"])
seeds = st.integers(0, 2**32 - 1)


def equal(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)


def close(a, b):
    """Equal up to the rounding of a few additions."""
    assert a.dtype == b.dtype and a.shape == b.shape
    rounding = 16 * np.finfo(a.dtype).eps
    np.testing.assert_allclose(a, b, rounding, rounding)


@given(seeds, windows(), kinds, dtypes, layouts)
def test_max_and_gather_equal_portable_exactly(seed, drawn, kind, dtype, how):
    shape, _, window = drawn
    rng = np.random.default_rng(seed)
    x, other = (laid_out(draw_numbers(rng, shape, kind).astype(dtype), how) for _ in range(2))
    before = x.copy()
    y, place = pool.max_pool2d(x, *window)
    expected, expected_place = portable.max_pool2d(x, *window)
    equal(y, expected)
    equal(place, expected_place)
    for p in (place, places_laid_out(place, how)):
        before_place = p.copy()
        equal(pool.max_pool2d_gather(other, p, *window), portable.max_pool2d_gather(other, p, *window))
        np.testing.assert_array_equal(p, before_place)
    np.testing.assert_array_equal(x, before)


@pytest.mark.filterwarnings("ignore:invalid value")  # inf - inf, in the portable sums
@given(seeds, windows(), kinds, dtypes, layouts, layouts)
def test_scatter_and_averages_equal_portable(seed, drawn, kind, dtype, how, how_place):
    shape, pooled, window = drawn
    rng = np.random.default_rng(seed)
    x, g = (laid_out(draw_numbers(rng, s, kind).astype(dtype), how) for s in (shape, pooled))
    place = places_laid_out(rng.integers(0, window[0][0] * window[0][1], pooled).astype("uint8"), how_place)
    befores = [a.copy() for a in (x, g, place)]
    equal(pool.max_pool2d_scatter(g, place, shape, *window), portable.max_pool2d_scatter(g, place, shape, *window))
    equal(pool.avg_pool2d(x, *window), portable.avg_pool2d(x, *window))
    close(pool.avg_pool2d_spread(g, shape, *window), portable.avg_pool2d_spread(g, shape, *window))
    for a, before in zip((x, g, place), befores, strict=True):
        np.testing.assert_array_equal(a, before)


@given(seeds, windows(), layouts)
def test_scatter_is_the_adjoint_of_gather_and_spread_of_the_average(seed, drawn, how):
    shape, pooled, window = drawn
    rng = np.random.default_rng(seed)
    x, z, y = (laid_out(rng.standard_normal(s), how) for s in (shape, shape, pooled))
    best, place = pool.max_pool2d(x, *window)
    equal(pool.max_pool2d_gather(x, place, *window), best)
    for forward, backward in (
        (pool.max_pool2d_gather(z, place, *window), pool.max_pool2d_scatter(y, place, shape, *window)),
        (pool.avg_pool2d(z, *window), pool.avg_pool2d_spread(y, shape, *window)),
    ):
        assert abs(np.vdot(forward, y) - np.vdot(z, backward)) < 1e-11 * (1 + np.abs(z).sum())


LARGE = [
    ((9, 32, 28, 28), ((2, 2), (2, 2), (0, 0))),  # the usual
    ((5, 33, 29, 31), ((2, 2), (2, 2), (0, 0))),  # a row and a column are in no window
    ((9, 32, 28, 28), ((3, 3), (2, 2), (1, 1))),
    ((5, 33, 29, 31), ((3, 2), (3, 2), (0, 0))),
    ((5, 17, 40, 40), ((2, 3), (4, 5), (1, 1))),  # gaps between windows
    ((300, 1, 28, 28), ((3, 3), (1, 1), (1, 1))),
    ((1, 8, 150, 150), ((5, 5), (2, 3), (2, 2))),
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "window"), LARGE)
def test_large_inputs_on_several_threads(rng, monkeypatch, shape, window, dtype):
    x = layout.images(*shape, dtype)
    x[...] = draw_numbers(rng, shape, "special")
    assert x.nbytes >= layout.WORTH_THREADS
    results = []
    for number in (1, 2, 3):
        monkeypatch.setattr(threads, "_number", number)
        y, place = pool.max_pool2d(x, *window)
        g = np.where(np.isfinite(y), y, 0.5).astype(dtype)
        results.append((
            y, place, pool.max_pool2d_scatter(g, place, shape, *window), pool.max_pool2d_gather(x, place, *window),
            pool.avg_pool2d(x, *window), pool.avg_pool2d_spread(g, shape, *window),
        ))  # fmt: skip
    y, place, *rest = results[0]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))
    expected, expected_place = portable.max_pool2d(x, *window)
    equal(y, expected)
    equal(place, expected_place)
    equal(rest[0], portable.max_pool2d_scatter(g, place, shape, *window))
    equal(rest[1], portable.max_pool2d_gather(x, place, *window))
    equal(rest[2], portable.avg_pool2d(x, *window))
    close(rest[3], portable.avg_pool2d_spread(g, shape, *window))


def test_results_lie_in_blocks_channels_last(rng):
    x = rng.standard_normal((16, 32, 28, 28))
    window = ((2, 2), (2, 2), (0, 0))
    y, place = pool.max_pool2d(x, *window)
    for a in (y, pool.max_pool2d_scatter(y, place, x.shape, *window), pool.max_pool2d_gather(x, place, *window),
              pool.avg_pool2d(x, *window), pool.avg_pool2d_spread(y, x.shape, *window)):  # fmt: skip
        assert isinstance(a.base, memory.Block) and a.transpose(0, 2, 3, 1).flags.c_contiguous
    assert place.transpose(0, 2, 3, 1).flags.c_contiguous


def test_places_of_large_windows(rng):
    x = rng.standard_normal((2, 3, 40, 20)).astype("float32")
    for kernel, dtype in (((16, 16), "uint8"), ((17, 16), "int32"), ((40, 20), "int32")):
        window = (kernel, (1, 2), (0, 0))
        y, place = pool.max_pool2d(x, *window)
        expected, expected_place = portable.max_pool2d(x, *window)
        assert place.dtype == dtype
        equal(y, expected)
        equal(place, expected_place)
        equal(pool.max_pool2d_gather(x, place, *window), y)
        equal(pool.max_pool2d_scatter(y, place, x.shape, *window), portable.max_pool2d_scatter(y, place, x.shape, *window))


@pytest.mark.parametrize(("kernel", "padding"), [((2, 2), (0, 0)), ((3, 2), (0, 0)), ((3, 2), (1, 1))])
@pytest.mark.parametrize("where", range(6))
def test_one_nan_wins_wherever_it_is(kernel, padding, where):
    x = np.arange(6.0 * 5).reshape(1, 5, 3, 2)
    x[:, 2].reshape(-1)[where] = np.nan
    for mine, theirs in zip(
        pool.max_pool2d(x, kernel, (1, 1), padding), portable.max_pool2d(x, kernel, (1, 1), padding), strict=True
    ):
        equal(mine, theirs)


def test_a_broadcast_gradient(rng):
    x = rng.standard_normal((2, 3, 4, 4)).astype("float32")
    window = ((2, 2), (2, 2), (0, 0))
    _, place = pool.max_pool2d(x, *window)
    g = np.broadcast_to(np.float32(2), place.shape)
    equal(pool.max_pool2d_scatter(g, place, x.shape, *window), portable.max_pool2d_scatter(g, place, x.shape, *window))
    equal(pool.avg_pool2d_spread(g, x.shape, *window), portable.avg_pool2d_spread(g, x.shape, *window))


@pytest.mark.parametrize("dtype", ["float16", ">f4", "int64"])
def test_other_dtypes_are_served_by_portable(rng, dtype):
    x = rng.integers(-9, 9, (2, 3, 4, 4)).astype(dtype)
    window = ((2, 2), (2, 2), (0, 0))
    if dtype == "int64":
        with pytest.raises(TypeError):  # as portable: there is no share of an integer
            pool.avg_pool2d(x, *window)
        return
    y, place = pool.max_pool2d(x, *window)
    expected, expected_place = portable.max_pool2d(x, *window)
    equal(y, expected)
    equal(place, expected_place)
    equal(pool.max_pool2d_scatter(y, place, x.shape, *window), portable.max_pool2d_scatter(y, place, x.shape, *window))
    equal(pool.max_pool2d_gather(x, place, *window), y)
    equal(pool.avg_pool2d(x, *window), portable.avg_pool2d(x, *window))
    equal(pool.avg_pool2d_spread(y, x.shape, *window), portable.avg_pool2d_spread(y, x.shape, *window))


def test_places_of_another_dtype_are_served_by_portable(rng):
    x = rng.standard_normal((2, 3, 4, 4))
    window = ((2, 2), (2, 2), (0, 0))
    y, place = pool.max_pool2d(x, *window)
    equal(pool.max_pool2d_gather(x, place.astype("int64"), *window), y)
    equal(
        pool.max_pool2d_scatter(y, place.astype("int16"), x.shape, *window), pool.max_pool2d_scatter(y, place, x.shape, *window)
    )


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 0, 0)])
def test_empty_images(shape):
    x = np.zeros(shape, "float32")
    window = ((2, 2), (2, 2), (1, 1))  # with which an image without rows has windows of padding alone
    y, place = pool.max_pool2d(x, *window)
    expected, expected_place = portable.max_pool2d(x, *window)
    equal(y, expected)
    equal(place, expected_place)
    equal(pool.max_pool2d_scatter(y, place, shape, *window), x)
    equal(pool.max_pool2d_gather(x, place, *window), portable.max_pool2d_gather(x, place, *window))
    equal(pool.avg_pool2d(x, *window), portable.avg_pool2d(x, *window))
    equal(pool.avg_pool2d_spread(y, shape, *window), x)
