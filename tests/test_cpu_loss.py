"""The compiled softmax cross-entropy equals the portable one, and is closer to the exact one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_bn.backend import portable
from tinygrad_bn.backend.cpu import memory, threads

pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
pytest.importorskip("scipy", reason="compiled kernels need SciPy: pip install 'tinygrad_bn[fast]'")
from tinygrad_bn.backend.cpu import loss  # noqa: E402

LABELS = ["int8", "uint8", "int32", "int64", "uint64", ">i4"]


def laid_out(x, how):
    """The same values in other memory."""
    if how == "columns":
        return np.asfortranarray(x)
    if how == "sliced":
        wide = np.full((len(x), 2 * x.shape[1] + 1), np.nan, x.dtype)
        wide[:, 1::2] = x
        return wide[:, 1::2]
    if how == "reversed":
        return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    x = x.copy()
    x.flags.writeable = how != "read-only"
    return x


def compare(x, labels, g, smoothing):
    with np.errstate(invalid="ignore"):  # inf - inf
        expected = portable.cross_entropy(x, labels, smoothing)
        expected_dx = portable.cross_entropy_backward(g, x, labels, smoothing)
    y, dx = loss.cross_entropy(x, labels, smoothing), loss.cross_entropy_backward(g, x, labels, smoothing)
    assert y.dtype == dx.dtype == x.dtype and y.shape == labels.shape and dx.shape == x.shape
    finite = x[np.isfinite(x)]
    scale = 1.0 + float(np.max(np.abs(finite), initial=0.0))
    eps = np.finfo(x.dtype).eps
    np.testing.assert_allclose(y, expected, 16 * eps, 16 * eps * scale)
    np.testing.assert_allclose(dx, expected_dx, 16 * eps, 64 * eps * scale)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 10, 31, 32, 33, 64, 100]) | st.integers(1, 140)),
    dtype=st.sampled_from(["float32", "float64"]),
    label_dtype=st.sampled_from(LABELS),
    how=st.sampled_from(["contiguous", "columns", "sliced", "reversed", "read-only"]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    special=st.sampled_from([0.0, 0.0, 0.02, 0.3]),
    outside=st.booleans(),
)
def test_equal_to_portable(seed, shape, dtype, label_dtype, how, scale, smoothing, special, outside):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * scale
    x = np.where(rng.random(shape) < special, rng.choice([np.nan, np.inf, -np.inf, -0.0], shape), x)
    x = laid_out(x.astype(dtype), how)
    labels = rng.integers(0, min(shape[1], 127), shape[0]).astype(label_dtype)
    if outside:
        labels[rng.integers(0, len(labels))] = np.iinfo(label_dtype).max
        if np.iinfo(label_dtype).min:
            labels[rng.integers(0, len(labels))] = -1
    g = rng.standard_normal(shape[0]).astype(dtype)
    g.flags.writeable = labels.flags.writeable = how != "read-only"
    before = x.copy(), labels.copy(), g.copy()
    compare(x, labels, g, smoothing)
    for a, b in zip((x, labels, g), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(7000, 10), (700, 100), (70, 1001), (1, 70000), (3, 25000)])
def test_large_inputs_on_several_threads(rng, monkeypatch, shape, dtype):
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    assert x.size >= loss._WORTH_THREADS
    labels, g = rng.integers(0, shape[1], shape[0]), rng.standard_normal(shape[0]).astype(dtype)
    results = []
    for number in (1, 2, 3):
        monkeypatch.setattr(threads, "_number", number)
        results.append((loss.cross_entropy(x, labels, 0.1), loss.cross_entropy_backward(g, x, labels, 0.1)))
        compare(x, labels, g, 0.1)
    for y, dx in results[1:]:
        assert y.tobytes() == results[0][0].tobytes() and dx.tobytes() == results[0][1].tobytes()
    assert isinstance(dx.base, memory.Block)


def exact(x, labels):
    """Losses and softmax minus target, in extended precision."""
    x = x.astype(np.longdouble)
    d = x - x.max(axis=1, keepdims=True)
    e = np.exp(d)
    total = e.sum(axis=1)
    rows = np.arange(len(x))
    p = e / total[:, None]
    p[rows, labels] = -np.where(np.arange(x.shape[1]) == labels[:, None], 0, e).sum(axis=1) / total  # without cancellation
    return np.log(total) - d[rows, labels], p


@pytest.mark.parametrize("classes", [10, 1000, 20000])
def test_as_accurate_as_portable(rng, classes):
    x = (4 * rng.standard_normal((40, classes))).astype("float32")
    labels = x.argmax(axis=1)
    labels[::2] = rng.integers(0, classes, 20)
    y, p = exact(x, labels)
    one = np.ones(40, "float32")
    for mine, theirs, truth in (
        (loss.cross_entropy(x, labels, 0.0), portable.cross_entropy(x, labels, 0.0), y),
        (loss.cross_entropy_backward(one, x, labels, 0.0), portable.cross_entropy_backward(one, x, labels, 0.0), p),
    ):
        error, error_of_portable = (float(np.max(np.abs(a - truth))) for a in (mine, theirs))
        assert error <= 1.01 * error_of_portable
        np.testing.assert_allclose(mine, truth.astype("float64"), 1e-6, 1e-12)


def test_the_exponential():
    """Within an ulp or so over its whole range, through the gradient of two classes: e ** x / (1 + e ** x)."""
    x = np.linspace(-708.0, 0.0, 20001)
    logits = np.stack([np.zeros_like(x), x], axis=1)
    dx = loss.cross_entropy_backward(np.ones_like(x), logits, np.zeros(len(x), "int64"), 0.0)
    e = np.exp(x.astype(np.longdouble))
    assert np.max(np.abs(dx[:, 1] / (e / (1 + e)) - 1)) < 4 * np.finfo("float64").eps
    far = np.array([[0.0, -709.0], [0.0, -1e300], [0.0, -np.inf]])
    np.testing.assert_array_equal(loss.cross_entropy_backward(np.ones(3), far, np.zeros(3, "int64"), 0.0), np.zeros((3, 2)))


def test_a_broadcast_gradient(rng):
    x, labels = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    compare(x, labels, np.broadcast_to(np.float64(1 / 6), 6), 0.0)


@pytest.mark.parametrize("dtype", ["float16", ">f8"])
def test_other_dtypes_are_served_by_portable(rng, dtype):
    x, labels, g = rng.standard_normal((4, 5)).astype(dtype), rng.integers(0, 5, 4), np.ones(4, dtype)
    np.testing.assert_array_equal(loss.cross_entropy(x, labels, 0.1), portable.cross_entropy(x, labels, 0.1))
    mine, theirs = (m.cross_entropy_backward(g, x, labels, 0.1) for m in (loss, portable))
    assert mine.dtype == theirs.dtype
    np.testing.assert_array_equal(mine, theirs)


def test_no_rows():
    x, labels = np.zeros((0, 5), "float32"), np.zeros(0, "int64")
    assert loss.cross_entropy(x, labels, 0.0).shape == (0,)
    assert loss.cross_entropy_backward(np.zeros(0, "float32"), x, labels, 0.0).shape == (0, 5)
