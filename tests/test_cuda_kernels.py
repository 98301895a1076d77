"""The CUDA kernels, without a GPU: each source compiles for three architectures without spilling registers; launches fit the
sources; the kernels' NumPy twins equal the portable kernels; and, where there is a g++, so do the sources themselves, run on a
CPU. With a GPU, the kernels themselves are held against the portable ones."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re

import fake_cupy
import fake_kernels
import numpy as np
import pytest
from emulated_gpu import build, sources
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_bn as tg
from tinygrad_bn import backend
from tinygrad_bn.backend import cuda, portable
from tinygrad_bn.backend.cuda import launch, patches, products

DTYPES = ["float16", "float32", "float64"]
TOLERANCE = {"float16": 2e-3, "float32": 3e-6, "float64": 1e-13}


# ----- the sources compile


@pytest.fixture(scope="module")
def nvrtc():
    """NVIDIA's compiler, from its wheel: it needs no GPU and no driver."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvrtc-cu12")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
    (library,) = [f.locate() for f in files or () if re.fullmatch(r"libnvrtc\.so\.12", f.name)]
    return ctypes.CDLL(str(library))


def compiled(nvrtc, source, options, what="ProgramLog"):
    """What the compiler says: its verdict and its log, or the code."""
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    given_options = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    verdict = nvrtc.nvrtcCompileProgram(program, len(options), given_options)
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return verdict, log.value.decode()


def defines_of(name):
    """All that a source may be told beside the dtype."""
    ways = {"pool": [("Place=unsigned char",), ("Place=int",)], "norm": [("WIDTH=4",), ("WIDTH=1",)]}.get(name, [()])
    return [*ways, (*ways[0], "LARGE=1")]


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", launch.SOURCES)
def test_sources_compile_and_spill_nothing(nvrtc, name, dtype, architecture):
    for defines in defines_of(name):
        options = [*launch.options(dtype, *defines), f"--gpu-architecture={architecture}", "--ptxas-options=-v"]
        verdict, log = compiled(nvrtc, launch.source(name), options)
        assert verdict == 0, log
        spills = dict(
            re.findall(r"Function properties for (\w+)\n.*?(\d+ bytes spill stores, \d+ bytes spill loads)", log, re.DOTALL)
        )
        assert spills == {k: "0 bytes spill stores, 0 bytes spill loads" for k in fake_kernels.kernels(launch.source(name))}, (
            log
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_reads_and_writes_four_values_at_a_time(nvrtc, dtype):
    """In one instruction, or two for doubles: what a source asks for, a compiler may take apart, and nobody would see."""
    options = [*launch.options(dtype, "WIDTH=4"), "--gpu-architecture=sm_80"]
    verdict, code = compiled(nvrtc, launch.source("norm"), options, what="PTX")
    assert verdict == 0
    each = 2 if dtype == "float64" else 4
    for kernel, reads, writes in [
        ("batch_norm_parts", 4, 0), ("batch_norm_joined", 4, 4), ("batch_norm_inference", 4, 4), ("batch_norm", 4, 4),
        ("batch_norm_backward_parts", 8, 0), ("batch_norm_backward_joined", 8, 4), ("batch_norm_backward", 8, 4),
    ]:  # fmt: skip
        (body,) = re.findall(rf"\.entry {kernel}\(.*?\n}}", code, re.DOTALL)
        assert len(re.findall(rf"ld\.global\.v{each}\.", body)) >= reads * 4 // each
        assert len(re.findall(rf"st\.global\.v{each}\.", body)) == writes * 4 // each
        others = {"batch_norm_joined": 2, "batch_norm": 2, "batch_norm_parts": 3, "batch_norm_inference": 0}
        assert len(re.findall(r"st\.global\.[a-u]", body)) == others.get(kernel, 2)  # statistics


def test_the_compiler_notices(nvrtc):
    broken = launch.source("elementwise").replace("Index first = ", "Index i = ", 1)
    verdict, log = compiled(nvrtc, broken, [*launch.options("float32"), "--gpu-architecture=sm_80"])
    assert verdict != 0 and 'identifier "first" is undefined' in log


# ----- and do what the portable kernels do


def _engines():
    emulated = pytest.mark.skipif(build.COMPILER is None, reason="no g++, which would run the sources on the CPU")
    return ["twin", pytest.param("source", marks=emulated), pytest.param("gpu", marks=pytest.mark.gpu)]


class Side:
    """Where kernels are run: ``run(kernel, *args)`` with NumPy arrays gives NumPy arrays."""

    def __init__(self, engine, xp):
        self.engine, self.xp = engine, xp

    def there(self, a):
        return self.xp.asarray(a) if isinstance(a, np.ndarray) else a

    def back(self, a):
        return type(a)(map(self.back, a)) if type(a) in (tuple, list) else self.xp.asnumpy(a) if hasattr(a, "get") else a

    def run(self, kernel, *args):
        there = [self.there(a) for a in args]
        out = kernel(*there)
        return self.back(out), [self.back(a) for a in there]


@pytest.fixture(params=_engines())
def side(request, monkeypatch):
    """The kernels' twins, their sources on the CPU, and the kernels themselves."""
    if request.param == "gpu":
        try:
            return Side("gpu", backend.load_cuda().xp)
        except RuntimeError as why:
            pytest.skip(str(why))
    request.getfixturevalue("cuda_stand_in")
    if request.param == "source":
        monkeypatch.setattr(fake_kernels.RawModule, "run", sources.run)
    return Side(request.param, fake_cupy)


def agree(got, expected, dtype, scale=1.0, size=0.0):
    """Equal within rounding of the largest finite value (or of ``size``, one for all or one each), NaN and infinities alike."""
    sizes = size if isinstance(size, tuple) else (size,) * len(got)
    for a, b, size in zip(got, expected, sizes, strict=True):
        if b is None or a is None:
            assert a is b
            continue
        assert a.dtype == b.dtype and a.shape == b.shape
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b)
            continue
        finite = np.isfinite(b)
        tolerance = TOLERANCE[dtype] * scale * float(np.abs(b[finite].astype(float)).max(initial=max(size, 1e-30)))
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=0, atol=tolerance, equal_nan=True)


def compare(side, name, *args, dtype, scale=1.0, size=0.0):
    fast, mine = side.run(getattr(cuda, name), *args)
    slow = getattr(portable, name)(*[a.copy() if isinstance(a, np.ndarray) else a for a in args])
    as_tuple = lambda r: r if isinstance(r, tuple) else (r,)  # noqa: E731
    agree(as_tuple(fast), as_tuple(slow), dtype, scale, size)
    for before, after in zip(args, mine, strict=True):
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after)  # no input is changed
    return slow


SHAPES = [(60, 100), (2, 1), (64, 3, 28, 28), (5, 7, 3), (4, 2, 3, 5, 7), (3, 2, 70, 70), (2, 2, 64, 4100), (300000, 1)]
SHAPES += [(1, 5), (7, 3, 2, 2), (1, 3, 1, 4), (17, 2, 29, 29), (260, 2, 12, 12), (8, 2, 50, 51), (1, 1, 1100, 1001)]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(side, rng, shape, affine):
    if side.engine == "source" and np.prod(shape) > 100_000:
        shape = (*shape[:2], *(min(n, 70) for n in shape[2:])) if len(shape) > 2 else (9000, 1)
    for dtype in DTYPES:
        x, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        x = (3 * x + 7).astype(dtype)
        gamma, beta = ((1 + rng.standard_normal(shape[1]) / 4).astype(dtype) if affine else None for _ in range(2))
        (y, statistics), _ = side.run(cuda.batch_norm, x, gamma, beta, 1e-5)
        expected, (mean, var) = portable.batch_norm(x, gamma, beta, 1e-5)
        agree((y,), (expected,), dtype)
        agree(statistics, (mean, var), "float32" if dtype != "float64" else dtype)
        largest = float(np.abs(g).max() / np.sqrt(var.min() + 1e-5))  # dx of two values is what is left of such
        sums = float(np.sqrt(x.size / shape[1]))  # which may cancel, but are of as many terms
        sizes = largest, sums, sums
        compare(side, "batch_norm_backward", g, x, gamma, mean, var, 1e-5, dtype=dtype, scale=4, size=sizes)
        running = rng.standard_normal(shape[1]).astype(dtype), (1 + rng.random(shape[1])).astype(dtype)
        compare(side, "batch_norm_inference", x, gamma, beta, *running, 1e-5, dtype=dtype, scale=4)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(60, 100), (5, 7, 3), (3, 2, 70, 70), (0, 3, 4, 4)])
def test_batch_norm_in_parts(side, rng, shape, affine):
    for dtype in DTYPES:
        x, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        x = (3 * x + 7).astype(dtype)
        gamma, beta = ((1 + rng.standard_normal(shape[1]) / 4).astype(dtype) if affine else None for _ in range(2))
        mean, var = rng.standard_normal(shape[1]) + 7, 1 + rng.random(shape[1])
        one, along = rng.standard_normal((2, shape[1]))
        exact = dtype if dtype == "float64" else "float32"
        compare(side, "batch_norm_moments", x, dtype=exact)
        compare(side, "batch_norm_apply", x, gamma, beta, mean, var, 1e-5, dtype=dtype)
        compare(side, "batch_norm_sums", g, x, mean, dtype=exact, scale=4)
        compare(side, "batch_norm_input", g, x, gamma, mean, var, 1e-5, one, along, dtype=dtype, scale=4)


@pytest.mark.parametrize("shape", [(9, 2, 60, 50), (23, 2, 31, 31)])
def test_batch_norm_of_few_long_parts(side, rng, shape, monkeypatch):
    """As very long channels have them."""
    monkeypatch.setattr(cuda.norm, "_PARTS", 2)
    for dtype in DTYPES:
        x, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        x, gamma, beta = (3 * x + 7).astype(dtype), np.array([2, -1], dtype), np.array([1, 3], dtype)
        (y, statistics), _ = side.run(cuda.batch_norm, x, gamma, beta, 1e-5)
        expected, (mean, var) = portable.batch_norm(x, gamma, beta, 1e-5)
        agree((y,), (expected,), dtype)
        agree(statistics, (mean, var), "float32" if dtype != "float64" else dtype)
        compare(side, "batch_norm_backward", g, x, gamma, mean, var, 1e-5, dtype=dtype, scale=4)


@pytest.mark.parametrize("shape", [(7, 3, 4, 5), (9, 2, 50, 40), (9, 2, 43, 47)])
def test_batch_norm_counts_in_64_bits_too(side, rng, shape, monkeypatch):
    """As arrays of 2^31 values want it; that changes no bit of the results."""
    x, g = (rng.standard_normal(shape).astype("float32") for _ in range(2))
    gamma, beta, mean, var = (1 + rng.random((4, shape[1]))).astype("float32")
    results = []
    for least in (1, 1 << 31):
        monkeypatch.setattr(launch, "_LARGE", least)
        (y, statistics), _ = side.run(cuda.batch_norm, x, gamma, beta, 1e-5)
        gradients, _ = side.run(cuda.batch_norm_backward, g, x, gamma, *statistics, 1e-5)
        inference, _ = side.run(cuda.batch_norm_inference, x, gamma, beta, mean, var, 1e-5)
        results.append((y, *statistics, *gradients, inference))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (9, 2, 50, 40), (9, 2, 43, 47)])
def test_batch_norm_wherever_an_array_begins(side, rng, shape):
    """A view of memory from its second element on is contiguous, but no vector may be read there. The bits are the same."""
    size = int(np.prod(shape))
    for dtype in DTYPES:
        memory = [side.there(rng.standard_normal(1 + size).astype(dtype)) for _ in range(2)]
        gamma, beta, mean, var = (side.there((1 + rng.random(2)).astype(kind)) for kind in (dtype, dtype, "float64", "float64"))
        results = []
        for x, g in ([m[1:].reshape(shape) for m in memory], [m[1:].copy().reshape(shape) for m in memory]):
            y, statistics = cuda.batch_norm(x, gamma, beta, 1e-5)
            gradients = cuda.batch_norm_backward(g, x, gamma, *statistics, 1e-5)
            others = cuda.batch_norm_moments(x), cuda.batch_norm_sums(g, x, mean)
            maps = (
                cuda.batch_norm_apply(x, gamma, beta, mean, var, 1e-5),
                cuda.batch_norm_inference(x, gamma, beta, mean, var, 1e-5),
            )
            results.append([side.back(a) for a in (y, *statistics, *gradients, *others, *maps)])
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(6, 2, 50, 40), (9, 2, 50, 40), (7, 2, 51, 51), (3, 2)])
def test_batch_norm_of_constants(side, shape):
    for dtype in DTYPES:
        x = np.full(shape, 0.1, dtype)
        (y, (mean, var)), _ = side.run(cuda.batch_norm, x, None, None, 1e-5)
        assert not y.any() and not var.any() and (mean == float(x.flat[0])).all()


@pytest.mark.parametrize("shape", [(64, 2, 30, 30), (64, 2, 14, 14), (64, 2, 7, 7)])
def test_batch_norm_of_large_means(side, shape):
    for dtype in ("float32", "float64"):
        noise = np.random.default_rng(0).standard_normal(shape)
        x = (1e4 + noise).astype(dtype)
        (y, (mean, var)), _ = side.run(cuda.batch_norm, x, None, None, 1e-5)
        np.testing.assert_allclose(mean, x.astype(float).mean((0, 2, 3)), rtol=1e-10)
        np.testing.assert_allclose(var, x.astype(float).var((0, 2, 3)), rtol=1e-6)
        exact_y, _ = portable.batch_norm(x.astype(float), None, None, 1e-5)
        agree([y.astype(float)], [exact_y], "float32")
        g = (exact_y + np.random.default_rng(1).standard_normal(x.shape)).astype(dtype)
        got, _ = side.run(cuda.batch_norm_backward, g, x, np.ones(2, dtype), mean, var, 1e-5)
        exact = portable.batch_norm_backward(g.astype(float), x.astype(float), np.ones(2), mean, var, 1e-5)
        agree([a.astype(float) for a in got], exact, "float32")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(2, 1, 4, 5), (0, 1, 0, 0)])
@pytest.mark.parametrize("shape", [(8, 3, 30, 30), (24, 3, 28, 28), (24, 3, 27, 27)])
def test_batch_norm_hides_nothing(side, rng, bad, where, shape):
    x, g = (rng.standard_normal(shape).astype("float32") for _ in range(2))
    x[where] = bad
    (y, (mean, var)), _ = side.run(cuda.batch_norm, x, None, None, 1e-5)
    assert not np.isfinite(mean[1]) and not np.isfinite(var[1]) and np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all() and np.isfinite(mean[[0, 2]]).all()
    (dx, dgamma, dbeta), _ = side.run(cuda.batch_norm_backward, g, x, np.ones(3, "float32"), mean, var, 1e-5)
    assert np.isnan(dx[:, 1]).all() and np.isnan(dgamma[1]) and np.isfinite(dbeta).all()
    assert np.isfinite(dx[:, [0, 2]]).all() and np.isfinite(dgamma[[0, 2]]).all()
    old = np.zeros(3, "float32"), np.ones(3, "float32")
    (new_mean, new_var, finite), _ = side.run(cuda.follow, *old, mean, var, 0.1, 1.01)
    expected = portable.follow(*old, mean, var, 0.1, 1.01)
    assert finite is None and new_mean[1] == 0 and new_var[1] == 1
    agree((new_mean, new_var), expected[:2], "float32")


def test_elementwise(side, rng):
    for dtype in DTYPES:
        x, g = (4 * rng.standard_normal((3, 1, 1000)).astype(dtype) for _ in range(2))
        x[0, 0, :4] = np.nan, np.inf, -np.inf, 0
        with np.errstate(all="ignore"):
            y = compare(side, "relu", x, dtype=dtype)
            compare(side, "relu_backward", g, y, dtype=dtype)
            y = compare(side, "sigmoid", x, dtype=dtype)
            compare(side, "sigmoid_backward", g, y, dtype=dtype)


@pytest.mark.parametrize("shape", [(1, 1), (60, 784), (2, 3, 70), (0, 5), (5, 0)])
def test_linear(side, rng, shape):
    for dtype in DTYPES:
        x, w, b = (rng.standard_normal(s).astype(dtype) for s in (shape, (9, shape[-1]), 9))
        for bias in (b, None):
            compare(side, "linear", x, w, bias, dtype=dtype, scale=10)
        g = rng.standard_normal((*shape[:-1], 9)).astype(dtype)
        for want_x, want_w in ((True, True), (True, False), (False, True)):
            compare(side, "linear_backward", g, x, w, want_x, want_w, dtype=dtype, scale=10)
        turned = np.asarray(x.T).T  # a product reads memory without gaps
        compare(side, "linear", turned, np.asfortranarray(w), b, dtype=dtype, scale=10)


def test_mean_and_its_gradient(side, rng):
    for dtype in DTYPES:
        for shape in ((), (1,), (255,), (3, 5, 100)):
            x = rng.standard_normal(shape).astype(dtype)
            y = np.asarray(compare(side, "mean_all", x, dtype=dtype, size=1.0))  # (NumPy's 0-d results are scalars)
            compare(side, "spread", y, shape, float(max(1, x.size)), dtype=dtype)
    if side.engine != "gpu":
        assert side.run(cuda.mean_all, np.ones(1 << 15, "float32"))[0] == 1  # by the portable kernel


pooling = st.tuples(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from(["float32", "float64"]),
)


@given(drawn=pooling, seed=st.integers(0, 2**32 - 1))
def test_pooling(side, drawn, seed):
    shape, kernel, stride, padding, dtype = drawn
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    if any(n + 2 * p < k for n, p, k in zip(shape[2:], padding, kernel, strict=True)):
        return
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, shape).astype(dtype)  # with ties
    x[rng.random(shape) < 0.03] = np.nan
    how = kernel, stride, padding
    y, place = compare(side, "max_pool2d", x, *how, dtype=dtype)
    g = rng.standard_normal(y.shape).astype(dtype)
    compare(side, "max_pool2d_scatter", g, place, shape, *how, dtype=dtype)
    compare(side, "max_pool2d_gather", x, place, *how, dtype=dtype)
    compare(side, "avg_pool2d", x, *how, dtype=dtype)
    compare(side, "avg_pool2d_spread", g, shape, *how, dtype=dtype)


def test_a_window_of_many_pixels(side, rng):
    x = rng.standard_normal((2, 2, 20, 20)).astype("float32")
    y, place = compare(side, "max_pool2d", x, (17, 16), (2, 3), (0, 0), dtype="float32")
    assert place.dtype == "int32"
    compare(side, "max_pool2d_scatter", y, place, x.shape, (17, 16), (2, 3), (0, 0), dtype="float32")


@pytest.mark.parametrize("classes", [1, 10, 256, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(side, rng, classes, smoothing):
    for dtype in DTYPES:
        x, g = (5 * rng.standard_normal((7, classes))).astype(dtype), rng.standard_normal(7).astype(dtype)
        for labels in (rng.integers(0, classes, 7), np.array([-1, classes, 0, 0, 0, 0, 0], "int32")):
            scale = 3 if dtype == "float16" else 1
            compare(side, "cross_entropy", x, labels, smoothing, dtype=dtype, scale=scale)
            compare(side, "cross_entropy_backward", g, x, labels, smoothing, dtype=dtype, scale=scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_cross_entropy_of_logits_that_are_not_finite(side, rng, bad):
    x, g = rng.standard_normal((5, 300)).astype("float32"), np.ones(5, "float32")
    x[1, 7] = x[2, 299] = bad
    labels = np.array([0, 7, 3, 299, 1])
    for smoothing in (0.0, 0.1):
        with np.errstate(all="ignore"):
            compare(side, "cross_entropy", x, labels, smoothing, dtype="float32")
            compare(side, "cross_entropy_backward", g, x, labels, smoothing, dtype="float32")


@pytest.mark.parametrize("n", [1, 4, 1023, 5000])
def test_dropout_has_the_same_bits(side, rng, n):
    for dtype in DTYPES:
        x = rng.standard_normal(n).astype(dtype)
        for p, key in ((0.5, 0), (0.1, 2**64 - 1), (0.9, 123456789)):
            fast, _ = side.run(cuda.dropout, x, p, key)
            np.testing.assert_array_equal(fast == 0, portable.dropout(x, p, key) == 0)
            agree((fast,), (portable.dropout(x, p, key),), dtype)


SGD = [(0.0, 0.0, 0.0, False), (0.9, 0.0, 0.0, False), (0.9, 0.3, 0.01, False), (0.9, 0.0, 0.01, True)]


@pytest.mark.parametrize("many", [1, 5, 300])
def test_optimizers(side, rng, many):
    for dtype in DTYPES:
        shapes = [tuple(rng.integers(1, 9, rng.integers(0, 4))) for _ in range(many)]
        size = sum(int(np.prod(s)) for s in shapes)

        def made(size=size, dtype=dtype):
            return rng.standard_normal(size).astype(dtype)

        gradients = [rng.standard_normal(s).astype(dtype) for s in shapes]

        def both(name, weights, state, *rest, gradients=gradients, size=size, dtype=dtype):
            results = []
            for kernels, there in ((cuda, side.there), (portable, lambda a: a)):
                grads = [there(g.copy()) for g in gradients]
                w, *s = [None if a is None else there(a.copy()) for a in (weights, *state)]
                memory = [there(np.zeros(size, dtype)) for _ in range(2)]
                getattr(kernels, name)(w, grads, *memory, *s, *rest)
                results.append([side.back(a) for a in (w, *s) if a is not None])
            agree(*results, dtype, scale=4)

        for momentum, dampening, decay, nesterov in SGD:
            for first in (True, False):
                buffer = made() if momentum else None
                both("sgd", made(), [buffer], first, 0.1, momentum, dampening, decay, nesterov)
        for decoupled in (True, False):
            state = [made() / 4, np.abs(made())]
            both("adam", made(), state, 3, 0.01, (0.9, 0.999), 1e-4, 0.1, decoupled)


convolutions = st.tuples(
    st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(1, 2),
)


@given(drawn=convolutions, seed=st.integers(0, 2**32 - 1))
def test_convolution(side, drawn, seed):
    (n, c, h, w), o, kernel, stride, padding, dilation, groups = drawn
    c, o = c * groups, o * groups
    how = stride, padding, dilation, groups
    if any(size < 1 for size in portable.window_counts((n, c, h, w), kernel, stride, padding, dilation)):
        return
    rng = np.random.default_rng(seed)
    x, weight, b = (rng.standard_normal(s) for s in ((n, c, h, w), (o, c // groups, *kernel), o))
    y = compare(side, "conv2d", x, weight, b, *how, dtype="float64", scale=10)
    g = rng.standard_normal(y.shape)
    compare(side, "conv2d_input", g, weight, x.shape, *how, dtype="float64", scale=10)
    compare(side, "conv2d_weight", g, x, weight.shape, *how, dtype="float64", scale=10)


CONVOLUTIONS = {
    # n, c, h, w; o; kernel, stride, padding, dilation, groups
    "plain": ((3, 4, 9, 8), 6, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    "uneven": ((2, 6, 9, 10), 9, ((3, 2), (2, 3), (2, 1), (2, 1), 3)),
    "dilated": ((5, 4, 8, 9), 4, ((3, 3), (1, 2), (1, 0), (2, 3), 2)),
    "depthwise": ((3, 8, 6, 6), 8, ((3, 3), (1, 1), (1, 1), (1, 1), 8)),
    "1x1": ((4, 6, 5, 6), 8, ((1, 1), (1, 1), (0, 0), (1, 1), 2)),
    "1x1 with gaps": ((3, 2, 5, 5), 4, ((1, 1), (2, 2), (0, 0), (1, 1), 1)),
    "1x1 with a margin": ((3, 2, 5, 5), 4, ((1, 1), (1, 1), (1, 0), (1, 1), 1)),
    "one window": ((3, 2, 5, 4), 4, ((5, 4), (1, 1), (0, 0), (1, 1), 1)),
    "one of all": ((1, 1, 1, 1), 1, ((1, 1), (1, 1), (0, 0), (1, 1), 1)),
}


@pytest.mark.parametrize("nbytes", [1 << 27, 3000, 1], ids=["in one", "in parts", "each sample"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_by_patches(side, rng, monkeypatch, case, nbytes):
    monkeypatch.setattr(patches, "_PATCH_BYTES", nbytes)
    shape, o, (kernel, *how) = CONVOLUTIONS[case]
    for dtype in DTYPES:
        x, w, b = (rng.standard_normal(s).astype(dtype) for s in (shape, (o, shape[1] // how[3], *kernel), o))
        g = rng.standard_normal(portable.conv2d(x, w, b, *how).shape).astype(dtype)
        for name, *args in (("conv2d", x, w, b), ("conv2d_input", g, w, shape), ("conv2d_weight", g, x, w.shape)):
            got, mine = side.run(getattr(patches, name), *args, *how)
            exact = getattr(portable, name)(*[a.astype(float) if isinstance(a, np.ndarray) else a for a in args], *how)
            agree((got,), (exact.astype(dtype),), dtype, size=1)
            assert all(np.array_equal(a, c) for a, c in zip(args, mine, strict=False) if a is not None)  # no input is changed


def test_convolution_of_nothing(side):
    one, none = (1, 1), (0, 0)
    x, w = np.zeros((0, 2, 5, 5)), np.ones((3, 2, 3, 3))
    g = np.zeros((0, 3, 3, 3))
    compare(side, "conv2d", x, w, np.ones(3), one, none, one, 1, dtype="float64")
    compare(side, "conv2d_input", g, w, x.shape, one, none, one, 1, dtype="float64")
    compare(side, "conv2d_weight", g, x, w.shape, one, none, one, 1, dtype="float64")
    compare(side, "conv2d_input", np.ones((2, 3, 1, 4)), w[:, :, :2, :1], (2, 2, 0, 4), one, (1, 0), one, 1, dtype="float64")
    no_windows = np.zeros((2, 3, 0, 3))  # of which a transposed convolution makes images of two rows
    (dx, _), (dw, _) = (
        side.run(kernel, no_windows, *args, one, none, one, 1)
        for kernel, *args in ((patches.conv2d_input, w, (2, 2, 2, 5)), (patches.conv2d_weight, np.ones((2, 2, 2, 5)), w.shape))
    )
    assert dx.shape == (2, 2, 2, 5) and not dx.any() and dw.shape == w.shape and not dw.any()
    y, _ = side.run(patches.conv2d, np.ones((2, 2, 2, 5)), w, np.ones(3), one, none, one, 1)
    assert y.shape == (2, 3, 0, 3)


def test_an_image_larger_than_its_1x1_windows_need(side, rng):
    """As a transposed convolution with an output_padding makes it."""
    g, w = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((3, 2, 1, 1))
    compare(side, "conv2d_input", g, w, (2, 2, 5, 4), (1, 1), (0, 0), (2, 1), 1, dtype="float64")
    compare(side, "conv2d_input", g, w, (2, 2, 4, 4), (1, 1), (1, 0), (3, 1), 1, dtype="float64")  # as large, but moved


def test_a_half_is_no_place_for_a_sum_on_its_way(side, monkeypatch):
    """200 x 200 + 200 x 200 is more than a half can be."""
    monkeypatch.setattr(patches, "_PATCH_BYTES", 1)
    x = np.full((4, 1, 1, 1), 200, "float16")
    g = x * np.array([1, 1, -1, -1], "float16").reshape(4, 1, 1, 1)
    dw, _ = side.run(patches.conv2d_weight, g, x, (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1)
    assert dw == 0 and dw.dtype == "float16"
    for f, shape in ((cuda.sum_pixels, (300, 1, 10, 10)), (cuda.sum_rows, (30000, 1))):
        half = np.full(shape, 60000, "float16")
        half[len(half) // 2 :] *= -1
        assert side.run(f, half)[0] == 0


STACKS = {
    # the shapes of a and b, with rows and columns last, and whether each lies by columns
    "one": ((1, 1, 3, 4), (1, 1, 4, 5), False, False),
    "one for many": ((1, 1, 3, 4), (1, 7, 4, 5), False, False),
    "transposed": ((2, 1, 3, 4), (2, 7, 4, 5), True, False),
    "both": ((7, 2, 3, 4), (7, 2, 4, 5), True, True),
    "a row, a column": ((1, 3, 1, 4), (1, 3, 4, 1), True, True),
    "a number": ((2, 3, 1, 1), (2, 3, 1, 1), False, True),
    "outer": ((1, 3, 5, 1), (1, 1, 1, 6), False, True),
    "none": ((1, 0, 3, 4), (1, 0, 4, 5), False, False),
}


@pytest.mark.parametrize("case", STACKS)
def test_products(side, rng, case):
    *shapes, a_by_columns, b_by_columns = STACKS[case]
    for dtype, result in (*zip(DTYPES, DTYPES, strict=True), ("float16", "float32")):
        a, b = (rng.standard_normal(s).astype(dtype) for s in shapes)
        expected = np.matmul(a.astype(float), b.astype(float))
        base = rng.standard_normal((expected.shape[2], *expected.shape[:2], expected.shape[3])).astype(result)

        def lie(x, by_columns):
            """x on the device, its matrices by columns."""
            return side.there(np.ascontiguousarray(x.swapaxes(2, 3))).swapaxes(2, 3) if by_columns else side.there(x)

        out = side.there(base).transpose(1, 2, 0, 3)  # the rows of all first matrices, then those of all second ones
        for add in (False, True):
            products.multiply(lie(a, a_by_columns), lie(b, b_by_columns), out, add)
            agree((side.back(out),), ((expected * (1 + add)).astype(result),), dtype, scale=2)


def test_a_product_with_a_column_that_has_gaps(side):
    base = np.arange(24.0).reshape(1, 1, 4, 6)
    out, b = side.there(np.ones((1, 1, 3, 5))), np.arange(5.0).reshape(1, 1, 1, 5)
    products.multiply(side.there(base).swapaxes(2, 3)[:, :, ::2, :1], side.there(b), out)
    assert (side.back(out) == base[:, :, 0, ::2].reshape(1, 1, 3, 1) * b).all()


@pytest.mark.parametrize(("p", "q", "calls"), [(1, 9, 1), (9, 1, 1), (2, 9, 2), (9, 3, 3)])
def test_products_are_asked_for_together(cuda_stand_in, monkeypatch, p, q, calls):
    asked, real = [], fake_cupy.cuda.cublas.gemmStridedBatchedEx
    monkeypatch.setattr(fake_cupy.cuda.cublas, "gemmStridedBatchedEx", lambda *args: asked.append(args) or real(*args))
    out = fake_cupy.empty((p, q, 3, 5))
    products.multiply(fake_cupy.ones((1, 1, 3, 4)), fake_cupy.ones((p, q, 4, 5)), out)
    assert bool((out == 4).all()) and len(asked) == calls


def test_what_is_computed_in(cuda_stand_in):
    """TensorFloat-32 is for float32, where it is allowed; 1 + 2^-12 is 1 in it."""
    for dtype, tf32, expected in (("float32", False, 1 + 2**-12), ("float32", True, 1), ("float64", True, 1 + 2**-12)):
        tg.cuda.allow_tf32 = tf32
        try:
            out = fake_cupy.empty((1, 1, 1, 1), dtype)
            products.multiply(fake_cupy.full((1, 1, 1, 1), 1 + 2**-12, dtype), fake_cupy.ones((1, 1, 1, 1), dtype), out)
        finally:
            tg.cuda.allow_tf32 = False
        assert float(out[0, 0, 0, 0]) == expected


# ----- sums

PLANES = [(1, 1, 1, 1), (3, 5, 1, 1), (2, 3, 7, 9), (60, 3, 14, 14), (700, 2, 11, 13), (3, 70, 1, 2), (2, 1, 400, 400)]
ROWS = [(7,), (1, 5), (3, 1), (700, 10), (5, 40, 33), (3000, 1), (20000, 65), (130, 300)]


@pytest.mark.parametrize(("name", "shape"), [*(("sum_pixels", s) for s in PLANES), *(("sum_rows", s) for s in ROWS)])
def test_sums(side, rng, name, shape):
    for dtype in DTYPES:
        x = rng.standard_normal(shape).astype(dtype)
        got, _ = side.run(getattr(cuda, name), x)
        exact = getattr(portable, name)(x.astype(float))
        agree((got,), (exact.astype(dtype),), dtype, size=np.abs(x.astype(float)).sum() / exact.size / 10)
    x.reshape(-1, shape[-1])[0, -1] = np.nan
    got, _ = side.run(cuda.sum_rows, x)
    assert np.isnan(got[-1]) and np.isfinite(got[:-1]).all()


def test_sums_of_what_has_no_kernel(side):
    for x in (np.zeros((0, 3, 2, 2)), np.ones((2, 3, 2, 2), "int64")):
        assert (side.run(cuda.sum_pixels, x)[0] == portable.sum_pixels(x)).all()
        assert (side.run(cuda.sum_rows, x)[0] == portable.sum_rows(x)).all()
    x = np.ones((4, 3, 5, 6)).transpose(2, 1, 0, 3)
    x[1, 2] = 5
    assert (side.run(cuda.sum_pixels, x)[0] == portable.sum_pixels(x)).all()


# ----- what the stand-in refuses, as a GPU would not


def test_launches_are_checked():
    source = launch.source("elementwise")
    module = fake_cupy.RawModule(code=source, options=launch.options("float32"))
    relu = module.get_function("relu")
    x, y = fake_cupy.zeros(1300, "float32"), fake_cupy.zeros(1300, "float32")
    relu((2,), (256,), (x, 1300, y))
    for wrong, error in [
        (((2,), (128,), (x, 1300, y)), ValueError),
        (((0,), (256,), (x, 1300, y)), ValueError),
        (((2,), (256,), (x, 1300.0, y)), TypeError),
        (((2,), (256,), (x, np.int32(1300), y)), TypeError),
        (((2,), (256,), (x, 1300)), TypeError),
        (((2,), (256,), (x.astype("float64"), 1300, y)), TypeError),
        (((2,), (256,), (fake_cupy.zeros((20, 65), "float32").T, 1300, y)), TypeError),
        (((2,), (256,), (x._a, 1300, y)), TypeError),
        (((1,), (256,), (x, 1300, y)), AssertionError),  # the twin: not a thread for each
    ]:
        with pytest.raises(error):
            relu(*wrong)
    with pytest.raises(LookupError, match="no kernel 'tanh'"):
        module.get_function("tanh")


@pytest.mark.parametrize("eps", [1, np.float32(1e-3)], ids=str)
def test_eps_as_a_user_may_write_it(cuda_stand_in, rng, eps):
    """A kernel reads a double: an int in its place would be another number, and nobody would say so."""
    x = rng.standard_normal((6, 3)).astype("float32")
    results = []
    for device in ("cpu", "cuda"):
        t = tg.tensor(x, device=device, requires_grad=True)
        y, _ = tg.batch_norm(t, eps=eps)
        (y * y * y).sum().backward()
        inference = tg.batch_norm_inference(t, None, None, *(tg.ones(3, device=device) for _ in range(2)), eps=eps)
        results.append([a.cpu().numpy() for a in (y.detach(), t.grad, inference.detach())])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
