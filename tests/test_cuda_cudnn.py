"""Convolution on CUDA by cuDNN's frontend: on a stand-in for it everywhere, on the real one where there is a GPU."""

from __future__ import annotations

import importlib
import sys
import threading
from types import SimpleNamespace

import fake_cudnn
import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn.backend import cuda, portable
from tinygrad_bn.backend.cuda import cudnn, launch, patches


@pytest.fixture(autouse=True)
def anew():
    """What was found, and the plans, are of this test alone."""
    cudnn._load.cache_clear()
    cudnn._plan.cache_clear()
    yield
    cudnn._load.cache_clear()
    cudnn._plan.cache_clear()


@pytest.fixture
def frontend(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", fake_cudnn)
    monkeypatch.setattr(fake_cudnn, "built", [])
    monkeypatch.setattr(fake_cudnn, "streams", [])
    monkeypatch.setattr(cudnn, "_states", {})
    return fake_cudnn


CASES = [
    # n, c, h, w, o, kernel, stride, padding, dilation, groups
    ((2, 3, 8, 9), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 4, 9, 7), 6, (3, 2), (2, 1), (0, 1), (1, 2), 2),
    ((3, 2, 5, 5), 2, (1, 1), (2, 2), (0, 0), (1, 1), 1),
]


def convolved(device, shape, o, kernel, stride, padding, dilation, groups, dtype, rng):
    how = stride, padding, dilation, groups
    x, w = rng.standard_normal(shape).astype(dtype), rng.standard_normal((o, shape[1] // groups, *kernel)).astype(dtype)
    b = rng.standard_normal(o).astype(dtype)
    y = portable.conv2d(x, w, b, *how)
    g = rng.standard_normal(y.shape).astype(dtype)
    there = [device.array(a) for a in (x, w, b, g)]
    x2, w2, b2, g2 = there
    got = cuda.conv2d(x2, w2, b2, *how), cuda.conv2d_input(g2, w2, x.shape, *how), cuda.conv2d_weight(g2, x2, w.shape, *how)
    wide = [a.astype("float64") for a in (x, w, b, g)]
    expected = (
        portable.conv2d(*wide[:3], *how),
        portable.conv2d_input(wide[3], wide[1], x.shape, *how),
        portable.conv2d_weight(wide[3], wide[0], w.shape, *how),
    )
    return [device.numpy(a) for a in got], expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_serves_where_it_is_installed(cuda_stand_in, frontend, rng, case, dtype):
    got, expected = convolved(cuda_stand_in, *case, dtype, rng)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, atol={"float16": 2e-2, "float32": 1e-5}[dtype] * np.abs(b).max())
    assert [g.kind for g in frontend.built] == ["conv2d", "conv2d_input", "conv2d_weight"]
    convolved(cuda_stand_in, *case, dtype, rng)
    assert len(frontend.built) == 3  # the plans are kept
    unwanted = (
        ["DOWN_CONVERT_INPUTS", "TENSOR_CORE"] if dtype == "float32" else []
    )  # a half has no more bits than a tensor core keeps
    assert all(g.unwanted == unwanted for g in frontend.built)
    assert frontend.streams[-1] == ("handle", cuda_stand_in.xp.cuda.get_current_stream().ptr)


def test_settings_choose_other_plans(cuda_stand_in, frontend, rng):
    convolved(cuda_stand_in, *CASES[0], "float32", rng)
    tg.cuda.deterministic = True
    try:
        convolved(cuda_stand_in, *CASES[0], "float32", rng)
        tg.cuda.allow_tf32 = True
        convolved(cuda_stand_in, *CASES[0], "float32", rng)
    finally:
        tg.cuda.deterministic = tg.cuda.allow_tf32 = False
    unwanted = [g.unwanted for g in frontend.built[::3]]
    down = "DOWN_CONVERT_INPUTS"
    assert unwanted == [[down, "TENSOR_CORE"], [down, "TENSOR_CORE", "NONDETERMINISTIC"], [down, "NONDETERMINISTIC"]]


def test_float64_and_empty_arrays_are_for_cublas(cuda_stand_in, frontend, rng):
    got, expected = convolved(cuda_stand_in, *CASES[1], "float64", rng)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert cuda.conv2d(cuda_stand_in.array(np.zeros((0, 3, 8, 8), "f")), cuda_stand_in.array(np.zeros((2, 3, 3, 3), "f")),
                       None, (1, 1), (1, 1), (1, 1), 1).shape == (0, 2, 8, 8)  # fmt: skip
    assert frontend.built == []


def test_where_it_knows_no_way_cublas_serves_and_it_says_so_once(cuda_stand_in, frontend, rng, monkeypatch):
    monkeypatch.setattr(frontend, "refuse", True)
    with pytest.warns(RuntimeWarning, match=r"cuDNN knows no way to compute conv_\w+ of shapes .* No valid engine") as said:
        for _ in range(2):
            got, expected = convolved(cuda_stand_in, *CASES[0], "float32", rng)
    assert len(said) == 3
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_weight_may_begin_anywhere_in_its_optimizers_memory(cuda_stand_in, frontend):
    network = tg.models.cnn((5, 10)).to("cuda")  # 45 floats before the second convolution's weight
    optimizer = tg.optim.SGD(network.parameters(), 0.1)
    tg.cross_entropy(network(tg.randn(4, 1, 28, 28, device="cuda")), tg.tensor([0, 1, 2, 3], device="cuda")).backward()
    optimizer.step()
    assert network[4].weight.data.data.ptr % 16 and len(frontend.built) == 5


def test_without_memory_to_work_in_cublas_serves(cuda_stand_in, frontend, rng, monkeypatch):
    def none(like, shape, dtype):
        if dtype == "uint8":
            refused.append(shape)
            raise MemoryError("of the GPU")  # CuPy's is one
        return empty(like, shape, dtype)

    empty, refused = cudnn.empty, []
    monkeypatch.setattr(cudnn, "empty", none)
    monkeypatch.setattr(cudnn, "_states", {})
    got, expected = convolved(cuda_stand_in, *CASES[0], "float32", rng)
    assert len(refused) == 3
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_handle_hears_of_each_new_stream_and_works_in_memory_of_its_own(cuda_stand_in, frontend, rng, monkeypatch):
    kept = []
    for pointer in (7, 7, 8, 7):
        stream = SimpleNamespace(ptr=pointer)
        monkeypatch.setattr(cuda_stand_in.xp.cuda, "get_current_stream", lambda s=stream: s)
        convolved(cuda_stand_in, *CASES[0], "float32", rng)
        (state,) = cudnn._states.values()
        kept.append(state.memory)
    assert frontend.streams == [("handle", 7), ("handle", 8), ("handle", 7)]
    assert kept[0] is kept[1] and len({id(memory) for memory in kept}) == 3


def test_integers_are_for_the_portable_kernels(cuda_stand_in, frontend, rng):
    xp, how = cuda_stand_in.xp, ((1, 1), (1, 1), (1, 1), 1)
    for dtype in ("int64", "uint8"):
        x, w = (rng.integers(0, 5, s).astype(dtype) for s in ((2, 3, 6, 6), (4, 3, 3, 3)))
        y = cuda.conv2d(xp.asarray(x), xp.asarray(w), None, *how)
        np.testing.assert_array_equal(y.get(), portable.conv2d(x, w, None, *how))
    assert not frontend.built
    with pytest.raises(TypeError, match="CUDA kernels are of floating arrays, got uint8"):
        launch.launch("elementwise", "relu", (1,), xp.asarray(x), xp.asarray(x), 1, xp.asarray(x))


def test_memory_to_work_in_is_kept_for_the_next_convolution_unless_it_is_large(cuda_stand_in):
    x, state = cuda_stand_in.xp.ones(3), cudnn._State()
    kept = cudnn._workspace(state, 100, x)
    assert cudnn._workspace(state, 50, x) is kept and cudnn._workspace(state, 0, x) is kept and kept.size == 100
    assert cudnn._workspace(state, cudnn._KEPT + 1, x).size > cudnn._KEPT and state.memory is kept
    assert cudnn._workspace(state, 200, x) is state.memory and state.memory.size == 200


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("settings", [(False, False), (True, False), (False, True)], ids=["", "TF32", "deterministic"])
@pytest.mark.parametrize("case", [*CASES, ((8, 32, 14, 14), 64, (3, 3), (1, 1), (1, 1), (1, 1), 1)])
def test_on_the_real_library(device, rng, case, settings, dtype):
    if why := cudnn.why_not(device.xp):
        pytest.skip(why)
    tg.cuda.allow_tf32, tg.cuda.deterministic = settings
    try:
        got, expected = convolved(device, *case, dtype, rng)
    finally:
        tg.cuda.allow_tf32 = tg.cuda.deterministic = False
    assert cudnn._plan.cache_info().misses == 3  # it was cuDNN that served
    within = 2e-2 if dtype == "float16" else 5e-3 if settings[0] else 1e-5
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=within * np.abs(b).max())


def test_each_thread_has_a_handle_of_its_own(cuda_stand_in, frontend, monkeypatch):
    made = []
    monkeypatch.setattr(frontend, "create_handle", lambda: made.append("handle") or "handle")
    assert cudnn.why_not(cuda_stand_in.xp) == cudnn.why_not(cuda_stand_in.xp) == ""
    other = threading.Thread(target=cudnn.why_not, args=(cuda_stand_in.xp,))
    other.start()
    other.join()
    assert len(made) == 2


def test_why_it_does_not_serve(cuda_stand_in, frontend, monkeypatch):
    def why_not():
        return cudnn.why_not(cuda_stand_in.xp)

    assert why_not() == ""
    for version, says in (("1.11.0", "1.11.0 is installed, expected one from 1.12"), ("1.27.0", "1.27.0 is installed")):
        cudnn._load.cache_clear()
        monkeypatch.setattr(frontend, "__version__", version)
        assert says in why_not()
    monkeypatch.setattr(frontend, "__version__", "1.26.0")

    def fails():
        raise RuntimeError("Unable to find symbol cudnnCreate")

    cudnn._load.cache_clear()
    monkeypatch.setattr(frontend, "create_handle", fails)
    assert why_not() == "cuDNN cannot be used: Unable to find symbol cudnnCreate"
    cudnn._load.cache_clear()
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert "pip install 'tinygrad_bn[cudnn12]'" in why_not()


def test_patches_are_made_for_some_samples_at_a_time(cuda_stand_in, rng, monkeypatch):
    monkeypatch.setattr(patches, "_PATCH_BYTES", 1)
    got, expected = convolved(cuda_stand_in, *CASES[1], "float64", rng)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_graphs_of_the_real_frontend():
    """It infers the sizes of forward itself: they must be ours. Without a GPU this is as far as it goes."""
    real = pytest.importorskip("cudnn", reason="cuDNN's frontend is not installed")
    try:
        handle = None
        real.backend_version()
        handle = 0
    except Exception as why:
        pytest.skip(f"cuDNN itself is not installed: {why}")
    assert importlib.import_module("cudnn") is real
    for shape, o, kernel, stride, padding, dilation, groups in CASES:
        weight = (o, shape[1] // groups, *kernel)
        out = (shape[0], o, *portable.window_counts(shape, kernel, stride, padding, dilation))
        for kind, shapes in (
            ("conv_fprop", (shape, weight, out)),
            ("conv_dgrad", (out, weight, shape)),
            ("conv_wgrad", (shape, out, weight)),
        ):
            _, tensors = cudnn.graph_of(cudnn.Frontend(real, handle), kind, shapes, "float32", stride, padding, dilation)
            assert [tuple(t.get_dim()) for t in tensors] == list(shapes)
            assert [t.get_stride() for t in tensors] == [cudnn._strides(s) for s in shapes]
