"""The compiled normalisations equal the portable ones: any shape and layout, NaN and Inf too, any number of threads."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_bn.backend import portable
from tinygrad_bn.backend.cpu import memory, threads

numba = pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'tinygrad_bn[fast]'")
pytest.importorskip("scipy", reason="compiled kernels need SciPy: pip install 'tinygrad_bn[fast]'")
from tinygrad_bn.backend import cpu  # noqa: E402
from tinygrad_bn.backend.cpu import layernorm, norm  # noqa: E402

LAYOUTS = ("contiguous", "channels last", "sliced", "reversed", "read-only", "read-only, last", "broadcast")
KINDS = ("batch", "group", "layer")
dtypes = st.sampled_from(["float32", "float64"])
seeds = st.integers(0, 2**32 - 1)


def channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def laid_out(x, layout):
    """The same values in other memory; "broadcast" repeats the first sample."""
    if layout == "channels last":
        return channels_last(x)
    if layout == "read-only, last":
        return frozen(channels_last(x))
    if layout == "sliced":
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), np.nan, x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "reversed":
        return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    if layout == "broadcast":
        return np.broadcast_to(x[:1], x.shape)
    return frozen(x.copy()) if layout == "read-only" else x.copy()


def frozen(x):
    root = x
    while root is not None:
        root.flags.writeable = False
        root = root.base
    x.flags.writeable = False
    return x


@contextlib.contextmanager
def cut(number, item=None):
    """That many threads; and, for small arrays too, several items of about ``item`` elements, each worth a thread."""
    before = threads._number, norm._LEAST_ITEM, norm._MOST_ITEM, norm.WORTH_THREADS
    threads.set_num_threads(number)
    if item:
        norm._LEAST_ITEM, norm._MOST_ITEM, norm.WORTH_THREADS = item, item, 0
        norm._plan.cache_clear()
    try:
        yield
    finally:
        threads._number, norm._LEAST_ITEM, norm._MOST_ITEM, norm.WORTH_THREADS = before
        norm._plan.cache_clear()


class Case:
    """One normalisation: ``module`` is cpu or portable, ``a`` a dict of arrays x, g, gamma and beta (these may be None)."""

    def __init__(self, kind, a, eps, groups=1, axes=()):
        self.kind, self.a, self.eps, self.groups, self.axes = kind, a, eps, groups, axes

    @property
    def options(self):
        return {"batch": (), "group": (self.groups,), "layer": (self.axes,)}[self.kind] + (self.eps,)

    def forward(self, module, a):
        return getattr(module, f"{self.kind}_norm")(a["x"], a["gamma"], a["beta"], *self.options)

    def backward(self, module, a, statistics):
        return getattr(module, f"{self.kind}_norm_backward")(a["g"], a["x"], a["gamma"], *statistics, *self.options)

    def arrays(self, dtype, layouts=("contiguous", "contiguous")):
        """The arrays in a dtype, x and g in layouts."""
        out = {k: v if v is None else v.astype(dtype) for k, v in self.a.items()}
        out["x"], out["g"] = laid_out(out["x"], layouts[0]), laid_out(out["g"], layouts[1])
        return out

    def check(self, dtype, layouts=("contiguous", "contiguous")):
        """Forward and backward against the portable kernels in float64."""
        a = self.arrays(dtype, layouts)
        wide = {k: v if v is None else np.array(v, "float64") for k, v in a.items()}
        copies = {k: v if v is None else v.copy() for k, v in a.items()}
        with np.errstate(all="ignore"):
            y_wanted, wanted = self.forward(portable, wide)
            gradients_wanted = self.backward(portable, wide, wanted)
        y, statistics = self.forward(cpu, a)
        gradients = self.backward(cpu, a, wanted)
        gamma = 1.0 if a["gamma"] is None else largest(wide["gamma"])
        beta = 0.0 if a["beta"] is None else largest(wide["beta"])
        inv_std = largest(1.0 / np.sqrt(wanted[1] + self.eps))
        ulp = np.finfo(dtype).eps * (1 if dtype == "float32" else 16)  # (portable rounds in float64 too)
        spread = largest(np.sqrt(wanted[1]))
        hats = 1.0 + largest(wide["x"] - np.broadcast_to(self.spread_out(wanted[0]), wide["x"].shape)) * inv_std
        same(y, y_wanted, dtype, 8 * ulp * (gamma * hats + beta))
        assert statistics[0].shape == wanted[0].shape and statistics[1].shape == wanted[1].shape
        same(statistics[0], wanted[0], "float64", 4 * ulp * spread + 1e-15 * largest(wanted[0]))
        same(statistics[1], wanted[1], "float64", 8 * ulp * spread**2)
        terms = largest(wide["g"]) * hats
        same(gradients[0], gradients_wanted[0], dtype, 16 * ulp * terms * hats * gamma * inv_std)
        if a["gamma"] is None:
            assert gradients[1] is None and gradients[2] is None
        else:
            count = wide["x"].size / wide["gamma"].size
            for v, w in zip(gradients[1:], gradients_wanted[1:], strict=True):
                same(v, w, dtype, 8 * ulp * terms * count)
        for name, v in copies.items():
            if v is not None:
                np.testing.assert_array_equal(a[name], v, f"{name} was changed")

    def spread_out(self, mean):
        """The mean as x is shaped."""
        n, c, *rest = self.a["x"].shape
        if self.kind == "batch":
            return mean.reshape(1, -1, *(1,) * len(rest))
        return mean if self.kind == "layer" else np.repeat(mean.reshape(n, -1, *(1,) * len(rest)), c // self.groups, 1)


def largest(x):
    """The largest finite magnitude."""
    x = np.abs(np.asarray(x, "float64"))
    return float(np.max(x[np.isfinite(x)], initial=0.0))


def same(found, wanted, dtype, atol):
    """Of that dtype and shape, and equal; NaN and Inf in the same places."""
    assert found.dtype == dtype and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=4 * np.finfo(dtype).eps, atol=atol + 1e-300)


def make(kind, shape, seed, affine=True, groups=1, axes=(), offset=0.0, spread=1.0, eps=1e-5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * spread + offset
    x = x.astype("float32").astype("float64")  # so that float32 begins with the same numbers
    g = rng.standard_normal(shape).astype("float32").astype("float64")
    own = tuple(shape[a] for a in axes) if kind == "layer" else shape[1:2]
    gamma, beta = (rng.standard_normal(own).astype("float32").astype("float64") if affine else None for _ in "gb")
    return Case(kind, {"x": x, "g": g, "gamma": gamma, "beta": beta}, eps, groups, axes)


@st.composite
def cases(draw, kind, special=False):
    if draw(st.integers(0, 3)):
        shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)) + draw(st.lists(st.integers(1, 4), max_size=2))
    else:
        shape = [
            draw(st.integers(1, 40)),
            draw(st.integers(1, 40)),
            *draw(st.sampled_from([(), (1,), (29,), (7, 7), (5, 31), (300,)])),
        ]
    shape = tuple(shape)
    groups = draw(st.sampled_from([d for d in range(1, shape[1] + 1) if shape[1] % d == 0]))
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    if draw(st.booleans()):
        axes = tuple(range(draw(st.integers(0, len(shape) - 1)), len(shape)))  # the usual ones
    offset, spread = (
        (0.0, 1.0) if special else draw(st.sampled_from([(0.0, 1.0), (3.0, 0.1), (1e6, 1.0), (-1e3, 1e-3), (0.0, 1e3)]))
    )
    case = make(kind, shape, draw(seeds), draw(st.booleans()), groups, axes, offset, spread)
    if special:
        for name in draw(st.sampled_from(["x", "g", "xg"])):
            flat = case.a[name].reshape(-1)
            for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=3)):
                flat[draw(st.integers(0, flat.size - 1))] = value
    return case


# ----- equal to the portable kernels


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), dtypes, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from([None, None, 8, 100]))
def test_equals_portable(kind, data, dtype, layout, layout_of_g, item):
    with cut(2, item):
        data.draw(cases(kind)).check(dtype, (layout, layout_of_g))


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), dtypes, st.sampled_from(LAYOUTS), st.sampled_from([None, 8]))
def test_nan_and_inf_are_where_portable_has_them(kind, data, dtype, layout, item):
    with cut(2, item), np.errstate(all="ignore"):  # (some axes of layer_norm are portable's)
        data.draw(cases(kind, special=True)).check(dtype, (layout, "contiguous"))


# Several items, threads, segments of a long plane; rows that are joined and rows that are not.
LARGE = [
    ("batch", (16, 24, 28, 28), {}), ("batch", (3, 5, 150, 151), {}), ("batch", (2, 1, 40001), {}), ("batch", (3001, 99), {}),
    ("batch", (17, 3, 100, 101), {}), ("batch", (9, 700, 7, 7), {}), ("group", (16, 24, 28, 28), {"groups": 4}),
    ("group", (2, 6, 20011), {"groups": 2}), ("group", (700, 300), {"groups": 10}), ("layer", (3001, 99), {"axes": (1,)}),
    ("layer", (16, 24, 28, 28), {"axes": (1, 2, 3)}), ("layer", (16, 24, 28, 28), {"axes": (1,)}),
    ("layer", (3, 70001), {"axes": (1,)}), ("layer", (16, 24, 28, 28), {"axes": (3,)}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize(("kind", "shape", "options"), LARGE)
def test_large_inputs_equal_portable(kind, shape, options, layout, dtype, rng):
    case = make(kind, shape, rng.integers(2**32), offset=3.0, **options)
    with cut(2):
        case.check(dtype, (layout, layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize(("kind", "shape", "options"), LARGE)
def test_the_same_bits_for_any_number_of_threads(kind, shape, options, layout, rng):
    case = make(kind, shape, rng.integers(2**32), **options)
    a = case.arrays("float32", (layout, layout))
    results = []
    for number in (1, 2, 3, 2):
        with cut(number):
            y, statistics = case.forward(cpu, a)
            results.append([v.copy() for v in (y, *statistics, *case.backward(cpu, a, statistics))])
            if kind == "batch":
                results[-1].append(norm.batch_norm_inference(a["x"], a["gamma"], a["beta"], a["beta"], a["gamma"] ** 2, 1e-5))
    for other in results[1:]:
        for v, w in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(v, w)


@given(cases("batch"), dtypes, st.sampled_from(LAYOUTS), seeds, st.sampled_from([None, 8]), st.booleans())
def test_inference_equals_portable(case, dtype, layout, seed, item, special):
    rng = np.random.default_rng(seed)
    a = case.arrays(dtype, (layout, "contiguous"))
    c = a["x"].shape[1]
    mean, var = rng.standard_normal(c).astype(dtype), rng.random(c).astype(dtype)
    if special:
        mean[0], var[-1] = rng.choice([np.nan, np.inf]), rng.choice([np.inf, 0.0])
        a["x"] = a["x"].copy()
        a["x"].reshape(-1)[rng.integers(a["x"].size)] = rng.choice([np.nan, np.inf])
    given = a["x"], a["gamma"], a["beta"], mean, var
    copies = [v if v is None else v.copy() for v in given]
    with np.errstate(all="ignore"):
        wanted = portable.batch_norm_inference(*(v if v is None else np.array(v, "float64") for v in given), 1e-5)
    with cut(2, item):
        y = norm.batch_norm_inference(*given, 1e-5)
    same(y, wanted, dtype, 8 * np.finfo(dtype).eps * (largest(a["x"]) + largest(mean) + 1) * 1e3)
    for v, w in zip(given, copies, strict=True):
        np.testing.assert_array_equal(v, w)


def cut_at_the_middle(kernels, a, others, eps=1e-5):
    """Batch normalisation in parts: this one's kernels, beside sums that are given, as if others had them."""
    count = a["x"].size // a["x"].shape[1]
    mean, m2 = moments = kernels.batch_norm_moments(a["x"])
    mean, var = mean + others[0], m2 / count + others[1] ** 2
    y = kernels.batch_norm_apply(a["x"], a["gamma"], a["beta"], mean, var, eps)
    sums = kernels.batch_norm_sums(a["g"], a["x"], mean)
    return moments, y, sums, kernels.batch_norm_input(a["g"], a["x"], a["gamma"], mean, var, eps, *others)


@given(cases("batch"), dtypes, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), seeds, st.sampled_from([None, 8]))
def test_parts_equal_portable(case, dtype, layout, layout_of_g, seed, item):
    a = case.arrays(dtype, (layout, layout_of_g))
    wide = {k: v if v is None else np.array(v, "float64") for k, v in a.items()}
    copies = {k: v if v is None else v.copy() for k, v in a.items()}
    others = np.random.default_rng(seed).standard_normal((2, a["x"].shape[1]))
    wanted = cut_at_the_middle(portable, wide, others)
    with cut(2, item):
        moments, y, sums, dx = cut_at_the_middle(cpu, a, others)
    ulp = np.finfo(dtype).eps * (1 if dtype == "float32" else 16)
    spread, large, count = largest(np.std(wide["x"])), largest(wide["x"]), wide["x"].size / wide["x"].shape[1]
    gamma = 1.0 if a["gamma"] is None else largest(wide["gamma"])
    hats = 1.0 + largest(wanted[1]) + (spread + largest(others)) / np.sqrt(1e-5 + (others[1] ** 2).min())
    assert moments.dtype == sums.dtype == np.float64
    np.testing.assert_allclose(moments[0], wanted[0][0], rtol=1e-14, atol=4 * ulp * spread)
    np.testing.assert_allclose(moments[1], wanted[0][1], rtol=8 * ulp, atol=8 * ulp * spread**2 * count + 1e-300)
    same(y, wanted[1], dtype, 8 * ulp * (gamma * hats + (0.0 if a["beta"] is None else largest(wide["beta"]))) + 1e-30 * large)
    terms = largest(wide["g"]) * count
    np.testing.assert_allclose(sums[0], wanted[2][0], rtol=0, atol=8 * ulp * terms)
    np.testing.assert_allclose(sums[1], wanted[2][1], rtol=0, atol=8 * ulp * terms * (spread + largest(others[0]) + 1))
    inv_std = 1 / np.sqrt(1e-5 + (others[1] ** 2).min())
    same(dx, wanted[3], dtype, 16 * ulp * inv_std * (gamma * largest(wide["g"]) + largest(others) * (1 + hats)))
    for name, v in copies.items():
        if v is not None:
            np.testing.assert_array_equal(a[name], v, f"{name} was changed")


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize(("kind", "shape", "options"), [case for case in LARGE if case[0] == "batch"])
def test_parts_make_the_whole_with_the_same_bits_for_any_number_of_threads(kind, shape, options, layout, rng):
    case = make(kind, shape, rng.integers(2**32), offset=3.0)
    a = case.arrays("float32", (layout, layout))
    results = []
    for number in (1, 2, 3):
        with cut(number):
            results.append(cut_at_the_middle(cpu, a, np.ones((2, shape[1]))))
            found = cpu.batch_norm_moments(a["x"])
            _, (mean, var) = cpu.batch_norm(a["x"], None, None, 1e-5)
        np.testing.assert_array_equal(found[0], mean)
        np.testing.assert_allclose(found[1], var * (a["x"].size // shape[1]), rtol=1e-15)
    for other in results[1:]:
        for v, w in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(v, w)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 5)])
def test_an_empty_part(shape):
    x, mean = np.zeros(shape, "float32"), np.ones(3)
    assert not cpu.batch_norm_moments(x).any() and cpu.batch_norm_moments(x).shape == (2, 3)
    assert cpu.batch_norm_apply(x, None, None, mean, mean, 1e-5).shape == shape
    assert cpu.batch_norm_sums(x, x, mean).tolist() == [[0.0] * 3] * 2
    assert cpu.batch_norm_input(x, x, None, mean, mean, 1e-5, mean, mean).shape == shape


# ----- accuracy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_a_large_mean_costs_no_accuracy(kind, layout, spread, rng):
    options = {"groups": 2, "axes": (1, 2, 3)}
    make(kind, (32, 4, 30, 30), rng.integers(2**32), offset=1e6, spread=spread, **options).check("float32", (layout, layout))
    case = make(kind, (32, 4, 30, 30), rng.integers(2**32), **options)
    case.a["x"] = case.a["x"] * 1e-6 + 1e6  # in float64 as close to its limit
    case.eps = 1e-20
    case.check("float64", (layout, layout))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("outlier", [1e4, 1e8, -1e12])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_outlier_as_the_first_element_costs_no_accuracy(kind, layout, outlier, dtype, rng):
    case = make(kind, (32, 4, 30, 30), rng.integers(2**32), groups=2, axes=(1, 2, 3))
    case.a["x"][0, :, 0, 0] = case.a["x"][0, 0, 0, 0] = np.float32(outlier)
    case.check(dtype, (layout, layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_samples_in_order_cost_no_accuracy(layout, rng):
    """The mean of the first is far from that of all, and the steps from one to the next are small."""
    case = make("batch", (64, 4, 30, 30), rng.integers(2**32), spread=1e-2)
    case.a["x"] += np.arange(64.0).reshape(-1, 1, 1, 1)
    case.a["x"] = case.a["x"].astype("float32").astype("float64")
    case.check("float32", (layout, layout))


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.sampled_from([(3, 4), (60, 100), (7, 6, 5), (5, 4, 3, 3), (8, 4, 40, 41), (2, 2, 9000)]),
    dtypes,
    st.floats(-1e30, 1e30) | st.sampled_from([1e39, -1e39]),  # (a third of these is nearly the largest float32)
    st.sampled_from(["contiguous", "channels last"]),
    st.sampled_from([None, 50]),
)
def test_a_constant_input_gives_exactly_beta(kind, shape, dtype, value, layout, item):
    axes = tuple(range(1, len(shape)))
    case = make(kind, shape, 0, groups=2, axes=axes)
    case.a["x"][...] = value / 3  # (a third has all digits, also in float64)
    a = case.arrays(dtype, (layout, layout))
    with cut(2, item):
        y, (mean, var) = case.forward(cpu, a)
    beta = a["beta"] if kind == "layer" else a["beta"].reshape(-1, *(1,) * (len(shape) - 2))
    np.testing.assert_array_equal(y, np.broadcast_to(beta, shape))
    np.testing.assert_array_equal(mean, a["x"].reshape(-1)[0])
    np.testing.assert_allclose(var, 0.0, atol=1e-30 * abs(value) ** 2 if dtype == "float64" else 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e30), ("float64", 1e200)])
def test_squares_that_overflow_make_the_variance_infinite_as_in_portable(kind, layout, dtype, size):
    case = make(kind, (3, 4, 5, 2), 0, groups=2, axes=(1, 2, 3))
    case.a["x"] *= size
    a = case.arrays(dtype, (layout, layout))
    with np.errstate(over="ignore"):
        wanted, (mean, var) = case.forward(portable, a)
    y, found = case.forward(cpu, a)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_allclose(found[0], mean, rtol=1e-5 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(found[1], np.inf)
    np.testing.assert_array_equal(var, np.inf)


def test_a_variance_beyond_the_dtype_is_infinite_however_few_rows_there_are():
    x = np.zeros((6, 3), "float32")
    x[:, 1] = np.tile([-1e30, 1e30], 3)
    y, (mean, var) = norm.batch_norm(x, None, None, 1e-5)
    np.testing.assert_array_equal(y, 0.0)
    np.testing.assert_array_equal(var, [0.0, np.inf, 0.0])
    assert np.isfinite(mean).all()


# ----- memory, and what has no compiled kernel


def lie_alike(x, y):
    """Of the same strides, but those of axes of one element, which mean nothing."""
    return [s for s, n in zip(x.strides, x.shape, strict=True) if n > 1] == [
        s for s, n in zip(y.strides, y.shape, strict=True) if n > 1
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_results_lie_as_x_does_and_directly_in_their_block(kind, rng):
    for shape in ((60, 100), (2048, 100), (16, 8, 28, 28), (4, 8, 16, 16, 16), (16, 8, 1000), (300, 200, 1, 1)):
        case = make(kind, shape, rng.integers(2**32), groups=2, axes=tuple(range(1, len(shape))))
        for layout in ("contiguous", "channels last"):
            a = case.arrays("float32", (layout, "contiguous"))
            y, statistics = case.forward(cpu, a)
            for out in (y, case.backward(cpu, a, statistics)[0]):
                assert lie_alike(out, a["x"])
                assert out.nbytes < memory.SMALLEST or type(out.base) is memory.Block
            if kind == "batch":
                out = norm.batch_norm_inference(a["x"], None, None, a["beta"], np.abs(a["beta"]), 1e-5)
                assert lie_alike(out, a["x"])
                assert out.nbytes < memory.SMALLEST or type(out.base) is memory.Block


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["read-only", "read-only, last"])
def test_nothing_is_compiled_anew_for_read_only_arrays(kind, layout):
    case = make(kind, (5, 4, 3, 3), 0, groups=2, axes=(1, 2, 3))
    a = {k: frozen(v) if k in ("gamma", "beta") else v for k, v in case.arrays("float32", (layout, layout)).items()}
    _, statistics = case.forward(cpu, a)
    case.backward(cpu, a, [frozen(v) for v in statistics])
    kernels = [k for k in [*vars(norm).values(), *vars(layernorm).values()] if hasattr(k, "signatures")]
    arrays = [t for k in kernels for signature in k.signatures for t in signature if isinstance(t, numba.types.Array)]
    assert arrays and all(t.mutable for t in arrays)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "shape"), [("float16", (3, 4, 5)), (">f4", (3, 4, 5)), ("float32", (0, 4, 5))])
def test_other_dtypes_and_empty_arrays_go_to_the_portable_kernels(kind, dtype, shape):
    case = make(kind, shape, 0, affine=False, groups=2, axes=(1, 2))
    a = case.arrays(dtype)
    with np.errstate(all="ignore"):
        wanted, statistics = case.forward(portable, a)
        y, found = case.forward(cpu, a)
        dx, dx_wanted = (case.backward(module, a, statistics)[0] for module in (cpu, portable))
    for v, w in zip((y, dx, *found), (wanted, dx_wanted, *statistics), strict=True):
        assert v.dtype == w.dtype
        np.testing.assert_array_equal(v, w)


def test_calls_at_once_do_not_share_memory():
    """The kernels let go of Python's lock, so several calls of one shape may run; each has memory of its own."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(i, 1 + i, (64, 16, 14, 14)).astype(np.float32) for i in range(4)]
    gamma, beta = rng.standard_normal((2, 16)).astype(np.float32)

    def both_ways(x):
        y, (mean, var) = cpu.batch_norm(x, gamma, beta, 1e-5)
        return y, mean, var, *cpu.batch_norm_backward(y, x, gamma, mean, var, 1e-5)

    with cut(1):
        expected = [both_ways(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                for got, wanted in zip(pool.map(both_ways, inputs), expected, strict=True):
                    for a, b in zip(got, wanted, strict=True):
                        np.testing.assert_array_equal(a, b)
