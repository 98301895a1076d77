"""The compiled convolutions equal the portable ones: any shape, options and layout, NaN and Inf too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinygrad_bn.backend import portable
from tinygrad_bn.backend.cpu import threads

pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
from tinygrad_bn.backend.cpu import conv, winograd  # noqa: E402

LAYOUTS = ("contiguous", "channels last", "sliced", "reversed", "read-only")


def laid_out(x, layout):
    """The same values in other memory."""
    if layout == "channels last":
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if layout == "sliced":
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), np.nan, x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "reversed":
        return np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1]
    x = x.copy()
    x.flags.writeable = layout != "read-only"
    return x


@st.composite
def convolutions(draw, winograd_only=False):
    """Arrays x, w, b, g in float64 and the options of a convolution."""
    pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    kernel = (3, 3) if winograd_only else draw(st.one_of(st.just((1, 1)), st.just((3, 3)), pairs(1, 4)))
    stride = (1, 1) if winograd_only else draw(st.one_of(st.just((1, 1)), pairs(1, 3)))
    dilation = (1, 1) if winograd_only else draw(st.one_of(st.just((1, 1)), pairs(1, 2)))
    padding = draw(pairs(0, 2))
    groups = 1 if winograd_only else draw(st.sampled_from([1, 1, 2, 3]))
    low = 8 if winograd_only else 1
    each, filters = draw(st.integers(low, low + 9)), draw(st.integers(low, low + 9))
    x_shape = (draw(st.integers(1, 3)), each * groups, *draw(pairs(1, 11)))
    counts = portable.window_counts(x_shape, kernel, stride, padding, dilation)
    assume(min(counts) >= 1)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = [rng.standard_normal(s) for s in (x_shape, (filters * groups, each, *kernel), filters * groups)]
    g = rng.standard_normal((x_shape[0], filters * groups, *counts))
    return *arrays, g, (stride, padding, dilation, groups)


def kernels(x, w, b, g, how, module, dtype, layout="contiguous"):
    """All three: output, gradient of the input, gradient of the weight."""
    x, g = (laid_out(a.astype(dtype), layout) for a in (x, g))
    w, b = w.astype(dtype), b.astype(dtype)
    return module.conv2d(x, w, b, *how), module.conv2d_input(g, w, x.shape, *how), module.conv2d_weight(g, x, w.shape, *how)


def assert_close(mine, expected, dtype):
    for a, b in zip(mine, expected, strict=True):
        assert a.shape == b.shape and a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=(1e-5 if dtype == "float32" else 1e-13) * max(1.0, np.abs(b).max()))


@given(case=convolutions(), dtype=st.sampled_from(["float32", "float64"]), layout=st.sampled_from(LAYOUTS))
def test_equal_to_portable(case, dtype, layout):
    assert_close(kernels(*case, conv, dtype, layout), kernels(*case, portable, "float64"), dtype)


@given(case=convolutions(winograd_only=True), layout=st.sampled_from(LAYOUTS))
def test_winograd_within_a_hundred_thousandth_of_the_largest(case, layout):
    x, w, _, _, how = case
    assert conv._by_winograd(np.dtype("float32"), x.shape[1], w.shape, *how)
    assert_close(kernels(*case, conv, "float32", layout), kernels(*case, portable, "float64"), "float32")


SHAPES = [  # large enough for several items: x, w, stride, padding, dilation, groups
    ((64, 1, 28, 28), (32, 1, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((16, 32, 28, 28), (32, 32, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((16, 33, 27, 13), (17, 33, 3, 3), (1, 1), (0, 2), (1, 1), 1),
    ((16, 16, 28, 28), (32, 16, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((16, 64, 14, 14), (48, 64, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((16, 64, 14, 14), (48, 64, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((8, 16, 20, 20), (16, 1, 5, 5), (1, 1), (2, 2), (1, 1), 16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_ones_and_the_same_bits_for_any_number_of_threads(shape, dtype, rng):
    x, w = rng.standard_normal(shape[0]), rng.standard_normal(shape[1])
    how = shape[2:]
    g = rng.standard_normal((len(x), len(w), *portable.window_counts(x.shape, w.shape[2:], *how[:3])))
    case = x, w, rng.standard_normal(len(w)), g, how
    before, results = threads._number, []
    try:
        for threads._number in (1, 2, 3):
            results.append(kernels(*case, conv, dtype, "channels last"))
    finally:
        threads._number = before
    # sums of thousands of terms: the weight's gradient is compared with its own size
    for mine, expected in zip(results[0], kernels(*case, portable, "float64"), strict=True):
        np.testing.assert_allclose(
            mine, expected, rtol=0, atol=(1e-5 if dtype == "float32" else 1e-13) * np.abs(expected).max()
        )
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value")  # portable's inf - inf
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [3, 8], ids=["patches", "winograd"])
def test_what_is_not_finite_is_never_hidden_and_spreads_by_at_most_one_pixel(bad, channels, rng):
    how = (1, 1), (1, 1), (1, 1), 1
    x, w = rng.standard_normal((2, channels, 9, 8), np.float32), rng.standard_normal((channels, channels, 3, 3), np.float32)
    for where in [(0, 1, 4, 4), (1, 0, 0, 0), (1, 2, 8, 7), (0, 2, 3, 5)]:
        damaged = x.copy()
        damaged[where] = bad
        for mine, expected in (
            (conv.conv2d(damaged, w, None, *how), portable.conv2d(damaged, w, None, *how)),
            (conv.conv2d_input(damaged, w, x.shape, *how), portable.conv2d_input(damaged, w, x.shape, *how)),
        ):
            wrong, must = ~np.isfinite(mine), ~np.isfinite(expected)
            assert (wrong | ~must).all(), "hidden"
            may = np.zeros_like(must)
            n, _, i, j = where
            may[n, :, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3] = True
            assert not (wrong & ~may).any(), "spread too far"
            if channels == 3:
                np.testing.assert_array_equal(wrong, must)
        mine = conv.conv2d_weight(x[:, :, ::-1].copy(), damaged, w.shape, *how)
        expected = portable.conv2d_weight(x[:, :, ::-1].copy(), damaged, w.shape, *how)
        assert (~np.isfinite(mine) | np.isfinite(expected)).all()
        assert np.isfinite(np.delete(mine, where[1], axis=1)).all()


def test_the_adjoint_identity(rng):
    """<conv2d(x, w), g> = <x, conv2d_input(g, w)> = <w, conv2d_weight(g, x)>."""
    for channels, dtype, near in ((3, np.float64, 1e-12), (16, np.float32, 1e-4)):
        how = (1, 1), (1, 1), (1, 1), 1
        x, w = rng.standard_normal((4, channels, 10, 11)).astype(dtype), rng.standard_normal((12, channels, 3, 3)).astype(dtype)
        g = rng.standard_normal((4, 12, 10, 11)).astype(dtype)
        products = (
            np.vdot(conv.conv2d(x, w, None, *how), g),
            np.vdot(x, conv.conv2d_input(g, w, x.shape, *how)),
            np.vdot(w, conv.conv2d_weight(g, x, w.shape, *how)),
        )
        assert max(products) - min(products) <= near * np.abs(g).sum()


def test_inputs_are_not_changed_and_the_rest_is_left_to_portable(rng):
    how = (1, 1), (1, 1), (1, 1), 1
    x, w = rng.standard_normal((2, 8, 6, 6), np.float32), rng.standard_normal((8, 8, 3, 3), np.float32)
    before = x.copy(), w.copy()
    kernels(x, w, w[:, 0, 0, 0], x, how, conv, "float32")
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(w, before[1])
    half = conv.conv2d(x.astype("float16"), w.astype("float16"), None, *how)
    assert half.dtype == "float16"
    assert conv.conv2d(x[:0], w, None, *how).shape == (0, 8, 6, 6)
    np.testing.assert_array_equal(conv.conv2d_weight(x[:0], x[:0], w.shape, *how), np.zeros_like(w))


def test_which_convolutions_go_by_winograd():
    f32, one, pad = np.dtype("float32"), (1, 1), (1, 1)
    assert conv._by_winograd(f32, 32, (32, 32, 3, 3), one, pad, one, 1)
    for dtype, c, shape, stride, padding, dilation, groups in [
        (np.dtype("float64"), 32, (32, 32, 3, 3), one, pad, one, 1),
        (f32, 1, (32, 1, 3, 3), one, pad, one, 1),
        (f32, 32, (32, 32, 5, 5), one, pad, one, 1),
        (f32, 32, (32, 32, 3, 3), (2, 1), pad, one, 1),
        (f32, 32, (32, 32, 3, 3), one, (3, 3), one, 1),
        (f32, 32, (32, 32, 3, 3), one, pad, (1, 2), 1),
        (f32, 32, (32, 16, 3, 3), one, pad, one, 2),
    ]:
        assert not conv._by_winograd(dtype, c, shape, stride, padding, dilation, groups)
    assert winograd.PARTS == 8  # the number of sums is part of the bits
