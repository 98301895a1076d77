"""What ``fake_cupy`` claims about CuPy 14, as tests: the fake must pass them all, and so must CuPy on a real GPU."""

from __future__ import annotations

import copy
import inspect
import math
import operator
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import emulated_gpu
import fake_cupy
import numpy as np
import pytest

FLOATS = ["float16", "float32", "float64"]


@pytest.fixture(params=["fake", pytest.param("cupy", marks=pytest.mark.gpu)])
def cp(request):
    if request.param == "fake":
        return fake_cupy
    cupy = _installed_cupy()
    if not cupy.is_available():
        pytest.skip("CuPy is installed, but finds no GPU")
    return cupy


def _installed_cupy():
    try:
        import cupy
    except Exception as why:  # a broken installation is as good as none
        pytest.skip(f"CuPy cannot be imported: {why!r}")
    return cupy


@pytest.fixture
def counts():
    with fake_cupy.count_syncs() as counts:
        yield counts


def same(x, expected, dtype=None):
    host = x.get()
    np.testing.assert_array_equal(host, expected)
    assert dtype is None or host.dtype == dtype


# ----------------------------------------------------------------------------------------- host and device do not mix


@pytest.mark.parametrize(
    "mix",
    [
        lambda cp, d, h: d + h, lambda cp, d, h: h + d, lambda cp, d, h: d @ h, lambda cp, d, h: h @ d,
        lambda cp, d, h: d < h, lambda cp, d, h: d == h, lambda cp, d, h: operator.iadd(d, h),
        lambda cp, d, h: operator.iadd(h, d), lambda cp, d, h: np.add(d, h), lambda cp, d, h: np.matmul(h, d),
        lambda cp, d, h: cp.exp(h), lambda cp, d, h: cp.maximum(d, h), lambda cp, d, h: cp.where(d > 0, d, h),
        lambda cp, d, h: cp.concatenate([d, h]), lambda cp, d, h: np.concatenate([d, h]),
        lambda cp, d, h: np.exp(d, out=h), lambda cp, d, h: cp.matmul(d, h), lambda cp, d, h: d.dot(h),
        lambda cp, d, h: d * np.array(2.0), lambda cp, d, h: np.array(2.0) * d, lambda cp, d, h: d.clip(h, None),
    ],
)  # fmt: skip
def test_arrays_of_the_host_and_of_the_device_do_not_mix(cp, mix):
    with pytest.raises(TypeError):
        mix(cp, cp.ones((2, 2)), np.ones((2, 2)))


def test_message_names_the_unsupported_type(cp):
    with pytest.raises(TypeError, match="Unsupported type <class 'numpy.ndarray'>"):
        cp.ones(3) + np.ones(3)
    with pytest.raises(TypeError, match="Unsupported type <class 'list'>"):
        cp.exp([1.0])


@pytest.mark.parametrize("make", [np.asarray, lambda x: np.asarray([x, x]), lambda x: x.__array__(), np.float64])
def test_no_implicit_conversion_to_numpy(cp, make):
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        make(cp.ones(2))


def test_numpy_functions_of_a_device_array_stay_on_the_device(cp):
    x = cp.asarray(np.float32([[1, 2], [3, 4]]))
    for r in (np.exp(x), np.sum(x), np.add.reduce(x), np.transpose(x), np.concatenate([x, x]), np.mean(x, axis=0)):
        assert type(r) is cp.ndarray
    same(np.add(x, 1), [[2, 3], [4, 5]], "float32")
    a = cp.zeros(3)
    np.add.at(a, cp.asarray([0, 0, 2]), 1.0)
    same(a, [2, 0, 1])


@pytest.mark.parametrize("scalar", [2, 2.0, True, np.float32(2), np.int64(2)])
def test_scalars_mix(cp, scalar):
    x = cp.ones(2, "float32")
    for r in (x + scalar, scalar + x, cp.add(x, scalar), x * scalar, cp.maximum(scalar, x)):
        assert type(r) is cp.ndarray


def test_promotion_is_that_of_numpy_2(cp):
    x = cp.ones(3, "float32")
    assert (x * 2.5).dtype == "float32" and (x * np.float64(2)).dtype == "float64"
    assert (x * cp.asarray(2.0)).dtype == "float64"  # a 0-d array is not weak either
    assert (cp.ones(3, "int8") + 1).dtype == "int8" and (cp.ones(3, "int32") / 2).dtype == "float64"
    assert cp.where(x > 0, x, 0.0).dtype == "float32"
    with pytest.raises(OverflowError):
        cp.ones(3, "int8") + 1000


class Deferred:
    __array_ufunc__ = None

    def __radd__(self, other):
        return "radd"

    __rmatmul__ = __lt__ = __gt__ = __eq__ = __radd__
    __hash__ = None


class Plain:
    def __radd__(self, other):
        return "radd"


class Overriding:
    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return ufunc.__name__

    def __radd__(self, other):
        return "radd"


def test_an_operand_with_array_ufunc_none_gets_its_turn(cp):
    x = cp.ones((2, 2))
    assert x + Deferred() == x @ Deferred() == (x < Deferred()) == "radd"
    with pytest.raises(TypeError):  # without the mark, NumPy's ufunc is asked, which fails before __radd__ is tried
        x + Plain()
    assert x + Overriding() == "add"  # CuPy's __array_ufunc__ declines, then this one is asked; __radd__ is not
    with pytest.raises(TypeError):  # in-place operators never defer
        operator.iadd(x, Deferred())


def test_comparison_with_none(cp):
    same(cp.ones(2) == None, [False, False])  # noqa: E711
    same(cp.ones(2) != None, [True, True])  # noqa: E711


# ------------------------------------------------------------------------------------------------------------- ufuncs


def test_ufunc_keywords(cp):
    x = cp.asarray([1.0, 4.0])
    for bad in (dict(where=x > 1), dict(order="C"), dict(subok=True)):
        with pytest.raises(TypeError, match="Wrong arguments"):
            cp.sqrt(x, **bad)
    with pytest.raises(TypeError, match="Wrong arguments"):
        np.sqrt(x, where=x > 1)
    out = cp.empty(2)
    assert cp.sqrt(x, out=out) is out and cp.sqrt(x, out) is out and cp.sqrt(x, out=(out,)) is out
    same(out, [1, 2])
    assert cp.sqrt(x, dtype="float32").dtype == "float32"
    i = cp.zeros(2, "int32")
    with pytest.raises(TypeError):
        cp.add(x, 1, out=i)
    same(cp.add(x, 1, out=i, casting="unsafe"), [2, 5], "int32")
    with pytest.raises(TypeError):
        operator.iadd(i, 1.5)
    with pytest.raises(ValueError):
        cp.add(cp.ones((2, 2)), 1, out=cp.empty(2))


def test_ufunc_results_are_c_contiguous(cp):
    x = cp.asarray(np.arange(24.0).reshape(2, 3, 4)).transpose(0, 2, 1)
    assert not x.flags.c_contiguous
    wide = cp.broadcast_to(x[0, 0], (5, 3))
    for r in (x + 1, cp.exp(x), x + x, x > 0, cp.where(x > 0, x, 0), x.max(axis=0), x.sum(axis=0), wide * 2):
        assert r.flags.c_contiguous and r.flags.owndata
    keeps = cp.empty_like(x)
    assert keeps.strides == x.strides and not keeps.flags.c_contiguous
    assert cp.exp(x, out=keeps) is keeps and keeps.strides == x.strides
    assert x.copy().flags.c_contiguous and cp.copy(x).strides == x.strides == x.astype("float64").strides


def test_no_warning_for_division_by_zero_or_overflow(cp):
    x = cp.asarray(np.float32([0.0, 1.0, -1.0]))
    same(1 / x, [np.inf, 1, -1])
    same(cp.exp(x * 1000), [1, np.inf, 0])
    assert math.isnan(cp.sqrt(x)[2]) and cp.log(x)[0] == -np.inf
    same((x * 1e5).astype("float16"), [0, np.inf, -np.inf])


ADD = "int32 int64 uint32 uint64 float16 float32 float64".split()


@pytest.mark.parametrize("dtype", [*ADD, "int8", "int16", "uint8", "uint16", "bool", "complex64", "complex128"])
def test_add_at(cp, dtype):
    a, i, v = cp.zeros(4, dtype), cp.asarray([1, 1, 3, 5, -1]), cp.ones(5, dtype)
    if dtype not in ADD:
        with pytest.raises(TypeError, match=r"add\.at only supports"):
            cp.add.at(a, i, v)
        return
    cp.add.at(a, i, v)  # 5 wraps to 1
    same(a, [0, 3, 0, 2], dtype)
    m = cp.zeros((2, 3, 2), dtype).transpose(2, 0, 1)
    cp.add.at(m, (slice(None), cp.asarray([0, 0]), cp.asarray([1, 1])), cp.asarray([[1, 2], [3, 4]]).astype(dtype))
    same(m[:, 0, 1], [3, 7])
    assert int(m.sum()) == 10


@pytest.mark.parametrize(("name", "dtype", "ok"), [
    ("subtract", "int32", True), ("subtract", "uint32", True), ("subtract", "float32", False),
    ("subtract", "int64", False), ("maximum", "float32", True), ("maximum", "int64", True),
    ("minimum", "float16", False), ("bitwise_or", "int32", True), ("bitwise_or", "float32", False),
])  # fmt: skip
def test_other_ufuncs_at(cp, name, dtype, ok):
    a, v = cp.full(3, 8, dtype), cp.full(2, 1, dtype)
    at, i = getattr(cp, name).at, cp.asarray([0, 0])
    if ok:
        at(a, i, v)
        expected = np.full(3, 8, dtype)
        getattr(np, name).at(expected, [0, 0], 1)
        same(a, expected)
    else:
        with pytest.raises(TypeError, match="only supports"):
            at(a, i, v)


def test_ufunc_methods_that_exist(cp):
    x = cp.asarray([[1.0, 2.0], [3.0, 4.0]])
    same(cp.add.reduce(x), [4, 6])
    same(cp.multiply.reduce(x, axis=1), [2, 12])
    same(cp.add.accumulate(x), [[1, 2], [4, 6]])
    same(cp.add.outer(x[0], x[1]), [[4, 5], [5, 6]])
    for missing in (
        lambda: cp.multiply.at(x, cp.asarray([0]), 2.0), lambda: cp.maximum.reduce(x), lambda: cp.logical_or.reduce(x),
        lambda: cp.maximum.accumulate(x), lambda: cp.multiply.reduceat(x, cp.asarray([0])),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError):
            missing()


# --------------------------------------------------------------------------------------------- reductions and scalars


@pytest.mark.parametrize("name", "sum prod mean var std max min argmax argmin any all ptp".split())
def test_reductions_give_0d_device_arrays(cp, name):
    x = cp.asarray([[1.0, 2.0], [3.0, 5.0]])
    for r in (getattr(cp, name)(x), getattr(x, name)() if name != "ptp" else cp.ptp(x)):
        assert type(r) is cp.ndarray and r.shape == ()
        np.testing.assert_allclose(r.get(), getattr(np, name)(x.get()))
    assert getattr(cp, name)(x, axis=1, keepdims=True).shape == (2, 1)
    for bad in ("where", "initial"):
        with pytest.raises(TypeError):
            getattr(cp, name)(x, **{bad: True})


def test_reductions_take_out_and_dtype(cp):
    x, out = cp.ones((2, 3), "float32"), cp.empty(3, "float32")
    assert x.sum(axis=0, out=out) is out and x.sum(dtype="float64").dtype == "float64"
    same(out, [2, 2, 2])
    assert cp.ones(3, "int32").sum().dtype == "int64" and cp.ones(3, bool).mean().dtype == "float64"
    assert cp.ones(3, "float16").mean().dtype == "float16"
    assert x.argmax(axis=1).dtype == "int64" and x.argmax(axis=1, dtype="int32").dtype == "int32"


def test_comparisons_of_whole_arrays_give_0d_arrays_not_bools(cp):
    x = cp.ones(3)
    for r in (cp.allclose(x, x), cp.array_equal(x, x), cp.array_equal(x, cp.ones(4))):
        assert type(r) is cp.ndarray and r.shape == () and r.dtype == bool


def test_a_0d_array_as_a_python_number(cp):
    x = cp.asarray(3.0)
    assert (float(x), int(x), bool(x), complex(x), x.item(), x.tolist(), f"{x:.1f}") == (3, 3, True, 3, 3, 3, "3.0")
    assert str(x) == "3.0" and repr(cp.ones(2)) == "array([1., 1.])" and math.sqrt(x) > 1
    with pytest.raises(TypeError):
        range(cp.asarray(3))
    with pytest.raises(ValueError):
        cp.ones(2).item()
    with pytest.raises(TypeError):
        cp.ones(2).item(0)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(cp.ones(2))


@pytest.mark.parametrize("use", [
    float, int, bool, complex, repr, str, bytes, operator.methodcaller("item"), operator.methodcaller("get"),
    operator.methodcaller("tolist"), fake_cupy.asnumpy, lambda x: f"{x:.2f}", math.sqrt, pickle.dumps,
])  # fmt: skip
def test_each_copy_to_the_host_is_one_sync(counts, use):
    x = fake_cupy.asarray(1.0)
    before = fake_cupy.sync_count()
    use(x)
    assert counts.syncs == fake_cupy.sync_count() - before == 1
    assert Path(__file__).name in counts.sites[0]


@pytest.mark.parametrize(("n", "use"), [
    (1, lambda cp, x, m: x[m]), (1, lambda cp, x, m: operator.setitem(x, m, 0.0)), (1, lambda cp, x, m: x.nonzero()),
    (1, lambda cp, x, m: cp.where(m)), (1, lambda cp, x, m: cp.argwhere(m)), (1, lambda cp, x, m: cp.unique(x)),
    (1, lambda cp, x, m: cp.flatnonzero(m)), (1, lambda cp, x, m: cp.repeat(x, cp.asarray([1, 2, 3, 1]))),
    (1, lambda cp, x, m: cp.lib.stride_tricks.sliding_window_view(x, 2)), (4, lambda cp, x, m: 7.0 in x),
    (0, lambda cp, x, m: cp.where(m, x, 0.0)), (0, lambda cp, x, m: cp.copyto(x, 0.0, where=m)),
    (0, lambda cp, x, m: cp.allclose(x, x)), (0, lambda cp, x, m: cp.array_equal(x, x)),
    (0, lambda cp, x, m: x[cp.asarray([1, 0])]), (0, lambda cp, x, m: cp.count_nonzero(m)),
    (0, lambda cp, x, m: list(x)), (0, lambda cp, x, m: cp.add.at(x, cp.asarray([0, 0]), 1.0)),
    (0, lambda cp, x, m: cp.repeat(x, 2)), (0, lambda cp, x, m: x[x.argmax()]), (0, lambda cp, x, m: x.sum() > 1),
    (0, lambda cp, x, m: copy.deepcopy(x)), (0, lambda cp, x, m: cp.linalg.norm(x)), (0, lambda cp, x, m: cp.sort(x)),
    (0, lambda cp, x, m: cp.cuda.Device().synchronize()), (0, lambda cp, x, m: x.get(blocking=False)),
])  # fmt: skip
def test_what_syncs_and_what_does_not(counts, n, use):
    x = fake_cupy.asarray([1.0, 2.0, 3.0, 4.0])
    use(fake_cupy, x, x > 2)
    assert counts.syncs == n, counts


def test_uploads_are_counted_apart(counts):
    x = fake_cupy.asarray(np.ones(4))
    fake_cupy.array([1, 2]), fake_cupy.asarray(x), fake_cupy.asarray(3.0), fake_cupy.array([x, x])
    assert (counts.uploads, counts.implicit_uploads) == (2, 0)
    x[[0, 1]], x[np.array([0])], x.take([1]), operator.setitem(x, fake_cupy.asarray(0), 1.0)
    assert (counts.uploads, counts.implicit_uploads, counts.syncs) == (2, 3, 0)
    fake_cupy.cuda.Device().synchronize(), fake_cupy.cuda.Stream.null.synchronize()
    assert counts.device_syncs == 2 and len(counts.sites) == 7


# ------------------------------------------------------------------------------------------------------ views, layout


def test_views_share_memory_and_know_their_base(cp):
    x = cp.zeros((2, 3, 4))
    views = [x[0], x[:, 1:], x[..., None], x.T, x.reshape(6, 4), x.ravel(), x.transpose(1, 0, 2), x.swapaxes(0, 1)]
    views += [x.view(), cp.expand_dims(x, 0), cp.moveaxis(x, 0, 2), cp.flip(x, 1), cp.squeeze(x[:1]), x.mT, x[0, 0, 0]]
    views += [cp.broadcast_to(x, (5, 2, 3, 4)), *cp.split(x, 2), x[0].T[1]]
    for v in views:
        assert v.base is x and not v.flags.owndata and cp.may_share_memory(v, x)
    x[...] = 7
    assert all(bool((v == 7).all()) for v in views)
    one = cp.zeros(3)
    assert one.T is one and one.real is one and one.conj() is one and one.base is None and one.flags.owndata
    z = cp.zeros(2, "complex64")
    z.real[...], z.imag[...] = 1, 2
    same(z, [1 + 2j, 1 + 2j])
    one[1][...] = 5  # x[1] of a vector is a 0-d view
    one[2:].fill(6)
    same(one, [0, 5, 6])


def test_copies_do_not(cp):
    x = cp.zeros((2, 3))
    copies = [x.copy(), x.T.reshape(6), x.T.ravel(), x.flatten(), x[cp.asarray([0, 1])], x[cp.asarray(0)], x.take(0, 0)]
    copies += [x[x == 0], x.astype("float64"), copy.copy(x), copy.deepcopy(x), cp.array(x), cp.ascontiguousarray(x.T)]
    for c in copies:
        assert c.base is None and not cp.may_share_memory(c, x)
    assert cp.asarray(x) is x and x.astype("float64", copy=False) is x and cp.ascontiguousarray(x) is x


def test_attributes(cp):
    x = cp.asarray(np.float32([[1, 2, 3], [4, 5, 6]]))
    assert (x.shape, x.ndim, x.size, x.itemsize, x.nbytes, x.strides) == ((2, 3), 2, 6, 4, 24, (12, 4))
    assert x.dtype is np.dtype("float32") and x.device == cp.cuda.Device(x.device.id) and isinstance(x.data.ptr, int)
    assert x[1].data.ptr - x.data.ptr == 12 and len(x) == 2 and x.__array_priority__ == 100
    assert [r.tolist() for r in x] == [[1, 2, 3], [4, 5, 6]]
    assert x.flags["C_CONTIGUOUS"] and x.flags.c_contiguous and not x.flags.f_contiguous and x.T.flags.fnc
    x.shape = (3, 2)
    assert x.shape == (3, 2) and weakref.ref(x)() is x
    for bad in (lambda: hash(x), lambda: len(cp.asarray(1)), lambda: iter(cp.asarray(1)), lambda: x.flags["WRITEABLE"]):
        with pytest.raises((TypeError, KeyError)):
            bad()
    with pytest.raises(AttributeError):
        x.note = 1


def test_as_strided_and_windows(cp):
    x, tricks = cp.arange(6.0), cp.lib.stride_tricks
    w = tricks.as_strided(x, (5, 2), (8, 8))
    same(w, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]])
    assert cp.may_share_memory(w, x) and w.base is None
    with pytest.raises(TypeError):
        tricks.as_strided(x, (5, 2), (8, 8), writeable=False)
    same(tricks.sliding_window_view(x, 2), w.get())
    with pytest.raises(NotImplementedError):
        tricks.sliding_window_view(x, 2, writeable=True)


# ----------------------------------------------------------------------------------------------------------- indexing


def test_basic_indexing_checks_its_bounds(cp):
    x = cp.arange(6).reshape(2, 3)
    for key in (2, -3, (0, 3), (0, 0, 0), (Ellipsis, Ellipsis), 1.5 + 0j):
        with pytest.raises((IndexError, TypeError)):
            x[key]
    same(x[1, -1], 5)
    same(x[::-1, 1:], [[4, 5], [1, 2]])
    same(x[None, 1, ..., np.int64(0)], [3])


def test_index_arrays_wrap_silently(cp):
    x = cp.arange(4)
    same(x[cp.asarray([4, -5, 7])], [0, 3, 3])
    same(x.take(cp.asarray([4, -5])), [0, 3])
    same(cp.take_along_axis(x, cp.asarray([5]), 0), [1])
    x[cp.asarray([6])] = 9
    same(x, [0, 1, 9, 3])
    same(x.reshape(2, 2)[cp.asarray([3]), cp.asarray([-3])], [3])
    with pytest.raises(IndexError):
        x[cp.asarray([1.0])]


@pytest.mark.parametrize("key", [
    lambda a: ([1, 0], [2, 2]), lambda a: (slice(None), a([2, 0])), lambda a: (a([[1], [0]]), a([0, 2])),
    lambda a: (a([0, 1]), slice(None), a([1, 0])), lambda a: (Ellipsis, a([1, 1])), lambda a: (None, a([1]), 2),
    lambda a: a([[True, False, True], [False, False, True]]), lambda a: (slice(None), a([True, False, True])),
    lambda a: np.array([1, 0]), lambda a: [], lambda a: (a(1), a([0, 2])), lambda a: (0, a([True, False, True])),
])  # fmt: skip
def test_advanced_indexing_agrees_with_numpy(cp, key):
    h = np.arange(24.0).reshape(2, 3, 4)
    d = cp.asarray(h)
    kd, kh = key(cp.asarray), key(np.asarray)
    same(d[kd], h[kh])
    assert d[kd].flags.c_contiguous
    d[kd], h[kh] = 100 + d[kd], 100 + h[kh]
    same(d, h)
    d.T[...] = 0
    h[...] = 0
    d[kd] = h[kh] = -1
    same(d, h)


def test_the_winner_of_duplicate_indices_is_one_of_them():
    n = 64
    x, v = fake_cupy.zeros(2), fake_cupy.arange(float(n))
    x[fake_cupy.arange(n) % 2] = v
    assert x.tolist() != [62, 63], "NumPy's winner, by luck: the scrambling is off"
    assert x[0].item() % 2 == 0 and x[1].item() % 2 == 1


def test_what_may_be_assigned(cp):
    x = cp.zeros((2, 2))
    x[0], x[1] = cp.ones((1, 1, 2)), np.float32(3)
    x[0, 0] = np.array(5.0)
    same(x, [[5, 1], [3, 3]])
    for value in ([1.0, 2.0], np.ones(2)):
        with pytest.raises(ValueError, match="non-scalar"):
            x[0] = value
        x[cp.asarray([0])] = value  # with an index array CuPy uploads the value, though
    i = cp.zeros(2, "int32")
    i[...] = cp.asarray([1.7, 2.7])
    same(i, [1, 2])


def test_put_along_axis_and_copyto(cp):
    x = cp.zeros((2, 3))
    cp.put_along_axis(x, cp.asarray([[1], [2]]), 1.0, 1)
    same(x, [[0, 1, 0], [0, 0, 1]])
    cp.copyto(x, cp.asarray([7.0, 8.0, 9.0]), where=x == 0)
    same(x, [[7, 1, 9], [7, 8, 1]])
    with pytest.raises(TypeError):
        cp.copyto(cp.zeros(2, "int32"), 1.5)
    with pytest.raises(ValueError):
        cp.copyto(x, np.ones((2, 3)))


# ---------------------------------------------------------------------------------------------------------- functions


@pytest.mark.parametrize("call", [
    lambda xp, x: xp.arange(5), lambda xp, x: xp.arange(1.0, 3.0, 0.5), lambda xp, x: xp.linspace(0, 1, 5),
    lambda xp, x: xp.eye(3, k=1), lambda xp, x: xp.full((2, 2), 3), lambda xp, x: xp.ones_like(x, dtype="int8"),
    lambda xp, x: xp.full_like(x, 2), lambda xp, x: xp.zeros(3), lambda xp, x: xp.concatenate([x, x], axis=1),
    lambda xp, x: xp.concatenate([x, x], axis=None), lambda xp, x: xp.stack([x, x], axis=-1),
    lambda xp, x: xp.vstack([x, x]), lambda xp, x: xp.pad(x, ((1, 0), (2, 1))),
    lambda xp, x: xp.pad(x, 1, constant_values=-1.0), lambda xp, x: xp.tile(x, (2, 1)),
    lambda xp, x: xp.roll(x, 1, axis=1), lambda xp, x: xp.cumsum(x, axis=0),
    lambda xp, x: xp.einsum("ij,kj->ik", x, x), lambda xp, x: xp.einsum("ij->ji", x),
    lambda xp, x: xp.tensordot(x, x, axes=2), lambda xp, x: xp.tensordot(x, x, axes=([1], [1])), lambda xp, x: x @ x.T,
    lambda xp, x: xp.matmul(x[None], x.T), lambda xp, x: xp.dot(x[0], x[1]), lambda xp, x: xp.outer(x[0], x[1]),
    lambda xp, x: xp.clip(x, 1, None), lambda xp, x: x.clip(None, 3), lambda xp, x: xp.clip(x, 1.0, 4.0),
    lambda xp, x: xp.argsort(-x, axis=1), lambda xp, x: xp.var(x, axis=0, ddof=1), lambda xp, x: xp.diff(x),
    lambda xp, x: xp.tril(x), lambda xp, x: divmod(x, 2)[1], lambda xp, x: x**2, lambda xp, x: 2**x,
    lambda xp, x: x % 2, lambda xp, x: -abs(x), lambda xp, x: ~(x > 1), lambda xp, x: xp.linalg.norm(x),
    lambda xp, x: xp.linalg.norm(x, axis=1), lambda xp, x: xp.sign(x), lambda xp, x: xp.logaddexp(x, 0),
    lambda xp, x: xp.bincount(x.astype(int).ravel()), lambda xp, x: xp.unique(x),
    lambda xp, x: xp.isclose(x, x + 1e-9), lambda xp, x: xp.searchsorted(x[0], x[1]), lambda xp, x: x.round(1),
    lambda xp, x: xp.nan_to_num(x), lambda xp, x: xp.broadcast_arrays(x, x[0])[1],
    lambda xp, x: xp.repeat(x, 2, axis=0), lambda xp, x: xp.array([x[0], x[1]]),
    lambda xp, x: xp.count_nonzero(x, axis=0), lambda xp, x: xp.trace(x), lambda xp, x: xp.isfinite(x),
    lambda xp, x: xp.array_split(x, 2, axis=1)[1], lambda xp, x: xp.astype(x, "float32"),
])  # fmt: skip
def test_values_agree_with_numpy(cp, call):
    if emulated_gpu.installed() and {"unique", "argsort", "rand"} & {*call.__code__.co_names}:
        pytest.skip("the emulated GPU has no Thrust and no cuRAND")
    h = np.array([[0.0, 1.5, 2.0], [3.0, -4.25, 5.0]])
    h = abs(h) if "bincount" in inspect.getsource(call) else h
    r, expected = call(cp, cp.asarray(h)), np.asarray(call(np, h))
    assert type(r) is cp.ndarray and r.dtype == expected.dtype
    np.testing.assert_allclose(r.get(), expected, rtol=1e-12)


def test_what_functions_refuse(cp):
    x = cp.ones((2, 2))
    for bad in (
        lambda: cp.einsum("ij->i", x, out=x[0]), lambda: cp.clip(x, min=0, max=1), lambda: cp.take(x, 0, mode="clip"),
        lambda: cp.where(True, x, x), lambda: cp.reshape(x, shape=4), lambda: cp.take_along_axis(x, x.astype(int)),
        lambda: x.astype("float32", casting="safe"), lambda: cp.concatenate([x, 1.0]), lambda: cp.matmul(x, 2.0),
        lambda: cp.zeros(2, device="cpu"), lambda: cp.sum(x, axis=0, keepdims=True, initial=0.0),
        lambda: cp.stack([[1.0], [2.0]]),
    ):  # fmt: skip
        with pytest.raises((TypeError, AttributeError)):
            bad()
    for bad in (lambda: cp.where(x > 0, x), lambda: cp.asarray(["a"]), lambda: cp.asarray(1.0).nonzero()):
        with pytest.raises(ValueError):
            bad()


def test_dtype_helpers(cp):
    x = cp.ones(2, "float32")
    assert cp.result_type(x, "float64") == cp.promote_types("f4", "f8") == "float64" != cp.result_type(x, 1.0)
    assert cp.can_cast(x, "float64") and cp.issubdtype(x.dtype, cp.floating) and cp.isscalar(1) and cp.newaxis is None
    assert (cp.float32, cp.bool_, cp.bool, cp.int64) == (np.float32, np.bool_, np.bool_, np.int64)
    assert cp.finfo("float32").eps > 0 and (cp.pi, cp.e, cp.inf) == (np.pi, np.e, np.inf) and cp.nan != cp.nan
    assert cp.ndim(x) == 1 and cp.shape(x) == (2,) and cp.size(x) == 2 and cp.broadcast_shapes((2, 1), (3,)) == (2, 3)


def test_asnumpy_and_get(cp):
    h = np.ones(2)
    assert cp.asnumpy(h) is h and type(cp.asnumpy(cp.ones(2))) is np.ndarray
    assert cp.asarray(h).get(out=h) is h
    with pytest.raises(TypeError):
        cp.ones(2).get(out=np.ones(2, "float32"))
    x = cp.zeros(2)
    x.set(h)
    same(x, h)
    assert cp.get_array_module(h) is np and cp.get_array_module(1, x).__name__.endswith("cupy")


def test_pickle(cp):
    x = pickle.loads(pickle.dumps(cp.arange(3.0)))
    assert type(x) is cp.ndarray
    same(x, [0, 1, 2])


@pytest.mark.parametrize("name", sorted(fake_cupy._LACKING))
def test_what_the_module_lacks(cp, name):
    assert not hasattr(cp, name)


@pytest.mark.parametrize(
    "name",
    """__array_namespace__ to_device __index__ __contains__ __imatmul__ __array_interface__
resize setflags ctypes __round__ __array_wrap__ getfield""".split(),
)
def test_what_the_ndarray_lacks(cp, name):
    assert not hasattr(cp.ndarray, name)


def test_a_missing_name_says_who_lacks_it():
    with pytest.raises(AttributeError, match=r"'errstate': CuPy 14\.2 lacks it"):
        _ = fake_cupy.errstate
    with pytest.raises(AttributeError, match="'fft': fake_cupy does not wrap it"):
        _ = fake_cupy.fft


# ------------------------------------------------------------------------------------------------------- random, cuda


def test_what_tells_that_memory_has_no_gaps(cp):
    x = cp.ones((3, 4))
    assert [a._c_contiguous for a in (x, x.T, x[1:], x[:, 1:], x[:, :0])] == [True, False, True, False, True]
    assert all(a._c_contiguous is a.flags.c_contiguous for a in (x, x.T, x[1:], x[:, 1:]))
    y = type(x)((2, 3), np.dtype("float32"))
    assert type(y) is cp.ndarray and y.shape == (2, 3) and y.dtype == "float32" and y.base is None


def test_generator(cp):
    if emulated_gpu.installed():
        pytest.skip("the emulated GPU has no cuRAND")
    rng = cp.random.default_rng(0)
    x = rng.standard_normal((100, 2), dtype="float32")
    assert type(x) is cp.ndarray and x.dtype == "float32" and x.shape == (100, 2)
    assert rng.random(3).dtype == "float64" and rng.integers(0, 5, size=4).dtype == "int64" and rng.random().shape == ()
    assert float(rng.uniform(2, 3, size=10).min()) >= 2
    again = [cp.random.default_rng(7).random(5).tolist() for _ in range(2)]
    assert again[0] == again[1] != np.random.default_rng(7).random(5).tolist()
    for name in "normal choice permutation permuted shuffle bytes multinomial laplace lognormal spawn".split():
        assert not hasattr(rng, name)
    assert cp.random.rand(2, 3).shape == (2, 3) and cp.random.normal(size=4, dtype="float32").dtype == "float32"


def test_cuda(cp):
    assert cp.is_available() and cp.cuda.is_available() and cp.cuda.runtime.getDeviceCount() >= 1
    with cp.cuda.Device(0) as device, cp.cuda.Stream(non_blocking=True) as stream:
        cp.ones(2).sum()
        stream.synchronize()
        device.synchronize()
    assert device.id == int(device) == 0 and device == cp.cuda.Device(0) != cp.cuda.Device(1)
    event = cp.cuda.get_current_stream().record()
    event.synchronize()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError), cp.cuda.Device(99):
        pass
    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    assert pool.used_bytes() >= 0 and cp.cuda.Stream.null.ptr == 0


@pytest.mark.parametrize(("stored", "result", "compute"), [
    ("float16", "float16", "CUBLAS_COMPUTE_32F"), ("float16", "float32", "CUBLAS_COMPUTE_32F"),
    ("float32", "float32", "CUBLAS_COMPUTE_32F"), ("float64", "float64", "CUBLAS_COMPUTE_64F"),
])  # fmt: skip
@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_products_of_cublas(cp, stored, result, compute, transposed):
    """By columns: three matrices c (2, 3) = 2 a (2, 4) b (4, 3) + c, with gaps after the columns of a, and one b for all."""
    kinds = {d: getattr(cp.cuda.runtime, f"CUDA_R_{d[5:]}F") for d in ("float16", "float32", "float64")}
    a, b, c = np.arange(72.0).reshape(3, 4, 6) % 7, np.arange(12.0).reshape(3, 4) % 5, np.arange(18.0).reshape(3, 3, 2)
    there = [cp.asarray(x.astype(dtype)) for x, dtype in ((a, stored), (b, stored), (c, result))]
    factors = np.array([2, 1], compute[-3:].replace("32F", "float32").replace("64F", "float64"))
    ta, tb = transposed
    left = a.reshape(3, 4, 6)[:, :2, :4] if ta else a[:, :, :2].transpose(0, 2, 1)
    right = b.reshape(4, 3) if tb else b.T
    expected = 2 * (left @ right) + c.transpose(0, 2, 1)
    cp.cuda.cublas.gemmStridedBatchedEx(
        cp.cuda.get_cublas_handle(), ta, tb, 2, 3, 4, factors.ctypes.data,
        there[0].data.ptr, kinds[stored], 6, 24, there[1].data.ptr, kinds[stored], 3 if tb else 4, 0,
        factors.ctypes.data + factors.itemsize, there[2].data.ptr, kinds[result], 2, 6,
        3, getattr(cp.cuda.cublas, compute), cp.cuda.cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    same(there[2], expected.transpose(0, 2, 1), result)
    cp.cuda.cublas.gemmEx(
        cp.cuda.get_cublas_handle(), ta, tb, 2, 3, 4, factors.ctypes.data,
        there[0].data.ptr, kinds[stored], 6, there[1].data.ptr, kinds[stored], 3 if tb else 4,
        factors.ctypes.data + factors.itemsize, there[2].data.ptr, kinds[result], 2,
        getattr(cp.cuda.cublas, compute), cp.cuda.cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    expected[0] += 2 * (left @ right)[0]
    same(there[2], expected.transpose(0, 2, 1), result)


# -------------------------------------------------------------------------------------------------- of the fake alone


def test_stands_in_for_cupy_in_import_statements():
    code = """if True:
        import sys, fake_cupy
        sys.modules["cupy"] = fake_cupy
        import cupy
        assert cupy is fake_cupy and cupy.cuda.is_available() and cupy.sum(cupy.ones(3)) == 3
        sys.modules.update(fake_cupy.as_modules())
        import cupy.cuda.runtime, cupy.lib.stride_tricks
        from cupy import exp, sum, ndarray
        from cupy.random import default_rng
        print("fine")"""
    here = Path(fake_cupy.__file__).parent
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=here)
    assert done.stdout == "fine\n", done.stderr


def test_stricter_than_cupy_on_purpose():
    x, h = fake_cupy.ones(3), np.ones(3)
    for bad in (lambda: fake_cupy.sum(h), lambda: fake_cupy.isclose(x, h), lambda: fake_cupy.einsum("i,i", x, h)):
        with pytest.raises(TypeError, match="Unsupported type"):
            bad()
    assert np.isnan(fake_cupy.empty(2)._a).all() and (fake_cupy.empty(2, int)._a > 10**9).all()
    wide = fake_cupy.broadcast_to(x, (2, 3))
    with pytest.raises(ValueError, match="broadcast view"):
        wide[0, 0] = 1
    with pytest.raises(ValueError):
        wide += 1


# --------------------------------------------------------------- against an installed CuPy, which needs no GPU for it


def _names_of_the_fake():
    own = """Counts Flags Generator XORWOW Device Event Stream CUDARuntimeError cublas ctypes gemmEx gemmStridedBatchedEx Any
    Callable Iterator as_modules count_syncs
    sync_count syncs uploads implicit_uploads device_syncs runtime np contextlib functools operator sys types warnings
    annotations""".split()
    return [name for name in dir(fake_cupy) if not name.startswith("_") and name not in own]


def test_every_name_of_the_fake_is_a_name_of_cupy():
    cupy = _installed_cupy()
    assert [n for n in _names_of_the_fake() if not hasattr(cupy, n)] == []
    assert [n for n in dir(fake_cupy.ndarray) if not hasattr(cupy.ndarray, n) and n not in ("_a", "_base", "__weakref__")] == []
    for module in ("random", "linalg", "cuda", "cuda.runtime", "lib.stride_tricks"):
        ours, theirs = operator.attrgetter(module)(fake_cupy), operator.attrgetter(module)(cupy)
        names = [n for n in vars(ours) if not n.startswith("__") and n != "cublas"]  # (which wants the library itself)
        assert [n for n in names if not hasattr(theirs, n)] == []
    for name in ("Generator", "default_rng"):
        assert hasattr(cupy.random, name)
    theirs = {n for n in dir(cupy.random.Generator) if not n.startswith("_")}
    assert {n for n in dir(fake_cupy.random.Generator) if not n.startswith("_")} == theirs
    assert not [n for n in fake_cupy._LACKING if hasattr(cupy, n)]
    ufuncs = {n for n in dir(cupy) if isinstance(getattr(cupy, n), cupy.ufunc)}
    ours = {n for n in dir(fake_cupy) if isinstance(getattr(fake_cupy, n), fake_cupy.ufunc)}
    assert ours == ufuncs - {"fix", "i0", "sinc"}


def test_every_function_of_the_fake_has_the_parameters_of_cupy():
    cupy, wrong = _installed_cupy(), []
    for module in ("", "linalg.", "lib.stride_tricks."):
        ours = operator.attrgetter(module[:-1])(fake_cupy) if module else fake_cupy
        for name in _names_of_the_fake() if not module else vars(ours):
            f, g = getattr(ours, name), operator.attrgetter(module + name)(cupy)
            if not inspect.isfunction(f) or not inspect.isfunction(g):
                continue
            p, q = ([(v.name, v.default) for v in inspect.signature(h).parameters.values()] for h in (f, g))
            if [(n.replace("self", "a"), default) for n, default in p] != q:
                wrong.append(f"{name}{inspect.signature(f)} is {inspect.signature(g)} in CuPy")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", "Device Stream".split())
def test_cuda_classes_have_no_member_that_cupy_lacks(name):
    theirs = getattr(_installed_cupy().cuda, name)
    known = {"id", "compute_capability", "done", "null"}
    assert not [n for n in vars(getattr(fake_cupy.cuda, name)) if n[:2] != "__" and not hasattr(theirs, n) and n not in known]
