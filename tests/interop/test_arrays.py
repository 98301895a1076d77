"""Tensors and the arrays of NumPy, PyTorch, JAX and CuPy: one memory, and nothing leaves the graph unasked."""

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import backend

KINDS = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


@pytest.fixture(scope="session")
def jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    jax.config.update("jax_platforms", "cpu")
    return jax


# ----- NumPy's protocol


def test_asarray_is_the_same_memory():
    t = tg.tensor([1.0, 2.0])
    a = np.asarray(t)
    a[0] = 7
    assert t.data[0] == 7 and np.shares_memory(np.asarray(t, copy=False), t.data)


def test_array_copies_where_asked():
    t = tg.tensor([1.0, 2.0])
    assert not np.shares_memory(np.array(t), t.data) and not np.shares_memory(np.asarray(t, copy=True), t.data)
    assert np.asarray(t, "float64").dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, "float64", copy=False)


def test_arithmetic_with_arrays_stays_in_the_graph():
    t = tg.tensor([1.0, 2.0], requires_grad=True)
    a = np.array([3.0, 4.0], np.float32)
    for product in (a * t, t * a, np.float32(3) * t):
        assert isinstance(product, tg.Tensor) and product.node is not None
    with pytest.raises(TypeError):
        np.add(a, t)
    with pytest.raises(TypeError):
        a += t
    assert a.tolist() == [3, 4]


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t * 2.0], ids=["leaf", "result"])
def test_what_requires_grad_does_not_leave_silently(make, torch):
    t = make(tg.tensor([1.0, 2.0], requires_grad=True))
    with pytest.raises(RuntimeError, match=r"use \.detach\(\)"):
        np.asarray(t)
    for leave in (np.from_dlpack, torch.from_dlpack, tg.from_dlpack, lambda t: t.__dlpack__()):
        with pytest.raises(BufferError, match=r"does not leave the graph silently; use \.detach\(\)"):
            leave(t)
    assert np.shares_memory(np.from_dlpack(t.detach()), t.data)


# ----- DLPack


def test_numpy_gets_the_memory_or_a_copy_as_it_asks():
    t = tg.tensor([1.0, 2.0])
    for copy, shared in [(None, True), (False, True), (True, False)]:
        assert np.shares_memory(np.from_dlpack(t, copy=copy), t.data) == shared


@pytest.mark.parametrize("dtype", KINDS)
def test_pytorchs_memory_is_shared_both_ways(torch, dtype):
    theirs = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    ours = tg.from_dlpack(theirs)
    assert ours.dtype == dtype and ours.shape == (2, 3) and ours.data.ctypes.data == theirs.data_ptr()
    theirs[1, 2] = 0
    assert ours.data[1, 2] == 0
    ours.data[0, 1] = 0
    assert not theirs[0, 1]
    back = torch.from_dlpack(ours)
    assert back.data_ptr() == theirs.data_ptr() and back.dtype == theirs.dtype
    back[1, 1] = 0
    assert not ours.data[1, 1] and not theirs[1, 1]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "float32"])
def test_jaxs_memory_is_shared_both_ways(jax, dtype):
    theirs = jax.numpy.arange(64).reshape(8, 8).astype(dtype)
    ours = tg.from_dlpack(theirs)
    assert ours.data.ctypes.data == theirs.unsafe_buffer_pointer() and not ours.data.flags.writeable  # JAX's do not change
    assert_array_equal(ours.data, np.arange(64).reshape(8, 8).astype(dtype))
    made = tg.Tensor(np.zeros(1 << 16, dtype))  # JAX takes memory of its alignment without a copy
    if made.data.ctypes.data % 64 == 0:
        assert jax.dlpack.from_dlpack(made).unsafe_buffer_pointer() == made.data.ctypes.data


def test_layers_take_memory_that_may_not_be_written():
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)
    w = np.ones((2, 3, 3, 3), np.float32)
    x.flags.writeable = w.flags.writeable = False
    x, w = tg.from_dlpack(x), tg.from_dlpack(w)
    y = tg.max_pool2d(tg.nn.BatchNorm2d(2)(tg.conv2d(x, w)).relu(), 2)
    assert y.shape == (4, 2, 2, 2) and not x.data.flags.writeable


@given(
    hnp.arrays(
        st.sampled_from(["float32", "int64", "bool"]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0), elements=st.just(1)
    ),
    st.data(),
)
def test_any_view_arrives_as_it_is(torch, array, data):
    """Whatever was transposed and sliced: same values, same memory; what runs backwards only as a copy."""
    array = np.arange(array.size).reshape(array.shape).astype(array.dtype)
    axes = data.draw(st.permutations(range(array.ndim)))
    steps = data.draw(st.lists(st.sampled_from([1, 2, -1]), min_size=array.ndim, max_size=array.ndim))
    view = array.transpose(axes)[tuple(slice(None, None, s) for s in steps)]
    view = np.asarray(view)
    t = tg.Tensor(view)
    if any(s < 0 and n > 1 for s, n in zip(view.strides, view.shape, strict=True)):
        with pytest.raises(BufferError, match="runs backwards in memory"):
            torch.from_dlpack(t)
        assert_array_equal(torch.from_dlpack(t, copy=True).numpy(), view)
        assert_array_equal(torch.from_dlpack(tg.tensor(t)).numpy(), view)
        return
    theirs = torch.from_dlpack(t)
    assert_array_equal(theirs.numpy(), view, strict=True)
    again = tg.from_dlpack(theirs)
    assert_array_equal(again.data, view, strict=True)
    if view.size:
        assert theirs.data_ptr() == again.data.ctypes.data == view.ctypes.data


def test_a_tensor_from_a_tensor_shares_its_version():
    t = tg.tensor([1.0, 2.0])
    w = tg.tensor([3.0, 4.0], requires_grad=True)
    same = tg.from_dlpack(t)
    y = (w * t).sum()
    same[0] = 5.0
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_exported_memory_is_not_used_again(torch):
    """Large results lie in memory that goes back to a pool; not while another library looks at it."""
    x = tg.Tensor(np.ones((512, 1024), np.float32))
    theirs = torch.from_dlpack((x + x).detach())
    array = np.from_dlpack(x + x)
    gc.collect()
    for _ in range(8):
        assert (x * 5.0).data[0, 0] == 5
    assert bool((theirs == 2).all()) and (array == 2).all()


def test_imported_memory_outlives_its_owner(torch):
    t = tg.from_dlpack(torch.full((1000,), 3.0))
    gc.collect()
    torch.full((1000,), 4.0)
    assert (t.data == 3).all()


def test_a_shared_tensor_trains(torch):
    """Gradients pass through memory that another library owns."""
    w = tg.from_dlpack(torch.ones(3)).requires_grad_()
    (w * w).sum().backward()
    assert w.grad.tolist() == [2, 2, 2]


class Elsewhere:
    """What a library of another device would offer."""

    def __dlpack_device__(self):
        return (7, 0)

    def __dlpack__(self, **_):
        raise AssertionError("asked for memory that cannot be taken")


@pytest.mark.parametrize("what", [3.0, [1.0], None, "x", object(), np.ndarray, Elsewhere], ids=lambda x: type(x).__name__)
def test_what_has_no_dlpack_is_refused(what):
    with pytest.raises(TypeError, match="from_dlpack expected an object with __dlpack__ and __dlpack_device__, got "):
        tg.from_dlpack(what)


def test_other_devices_and_dtypes_are_refused(torch):
    with pytest.raises(ValueError, match=r"CPU \(DLPack's device 1\) or of CUDA \(2, 13\), got device 7"):
        tg.from_dlpack(Elsewhere())
    with pytest.raises(TypeError, match="expected a dtype that NumPy has, got torch.bfloat16"):
        tg.from_dlpack(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="expected real numbers or booleans, got complex64"):
        tg.from_dlpack(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(BufferError, match="detach"):
        tg.from_dlpack(torch.zeros(2, requires_grad=True))


# ----- CUDA


def test_a_sign_that_pytorch_has_yet_to_apply_is_not_lost(torch):
    """Its own DLPack leaves it out: NumPy would get 2."""
    lazy = torch.tensor([1 + 2j]).conj().imag
    with pytest.raises(BufferError, match="from_dlpack expected a tensor whose memory has its sign; use .resolve_neg()"):
        tg.from_dlpack(lazy)
    assert tg.from_dlpack(lazy.resolve_neg()).item() == lazy.item() == -2.0


def test_the_cpu_has_no_cuda_array_interface():
    t = tg.tensor([1.0])
    assert not hasattr(t, "__cuda_array_interface__") and t.__dlpack_device__() == (1, 0)
    with pytest.raises(AttributeError, match="a tensor on 'cpu' has no __cuda_array_interface__"):
        t.__cuda_array_interface__  # noqa: B018


def test_cuda_memory_is_offered_as_the_array_offers_it(cuda_stand_in, monkeypatch):
    """The stand-in has none of these protocols: what it would say is put in its mouth."""
    kind = cuda_stand_in.xp.ndarray
    said = []
    monkeypatch.setattr(kind, "__dlpack_device__", lambda self: (2, 0), raising=False)
    monkeypatch.setattr(kind, "__dlpack__", lambda self, **options: said.append(options) or "a capsule", raising=False)
    monkeypatch.setattr(kind, "__cuda_array_interface__", property(lambda self: {"shape": self.shape}), raising=False)
    monkeypatch.setattr(kind, "strides", property(lambda self: self._a.strides), raising=False)
    t = tg.tensor([1.0, 2.0], device="cuda")
    assert t.__dlpack_device__() == (2, 0) and t.__cuda_array_interface__ == {"shape": (2,)}
    assert t.__dlpack__(stream=1, max_version=(1, 0)) == "a capsule"
    t.__dlpack__(copy=True)
    assert said == [{"stream": 1, "max_version": (1, 0)}, {"copy": True}]
    t.requires_grad = True
    for leave in (lambda: t.__dlpack__(), lambda: t.__cuda_array_interface__):
        with pytest.raises(BufferError, match="detach"):
            leave()
    with pytest.raises(TypeError, match=r"not converted to NumPy silently; use \.cpu\(\)"):
        np.asarray(t.detach())


@pytest.mark.parametrize("kind", [2, 13], ids=["its own memory", "managed memory"])
def test_cuda_memory_goes_to_cupy(cuda_stand_in, monkeypatch, kind):
    array = cuda_stand_in.array(np.ones(3))
    monkeypatch.setattr(cuda_stand_in.xp, "from_dlpack", lambda x: array, raising=False)

    class OnCuda:
        __dlpack__ = None

        def __dlpack_device__(self):
            return (kind, 0)

    t = tg.from_dlpack(OnCuda())
    assert t.data is array and t.device == "cuda"


@pytest.mark.gpu
def test_cupy_shares_memory_on_a_gpu():
    try:
        cupy = backend.load_cuda().xp
    except RuntimeError as why:
        pytest.skip(str(why))
    theirs = cupy.arange(6, dtype="float32").reshape(2, 3)
    t = tg.from_dlpack(theirs.T)
    theirs[0, 1] = 9
    assert t.data[1, 0].get() == 9 and t.data.data.ptr == theirs.data.ptr
    back = cupy.from_dlpack(t)
    assert back.data.ptr == theirs.data.ptr and cupy.asarray(t.detach()).data.ptr == theirs.data.ptr
    assert t.__cuda_array_interface__["data"][0] == theirs.data.ptr
