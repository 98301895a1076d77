"""The seam between the package and the array libraries; making, moving and printing tensors; random numbers; importing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest.mock

import fake_cupy
import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import backend, ops
from tinygrad_bn.backend import cpu, cuda, libraries
from tinygrad_bn.tensor import Tensor

# ----- which library an array belongs to


def test_the_library_follows_the_array(cuda_stand_in):
    x, y = np.ones(2), cuda_stand_in.array(np.ones(2))
    assert backend.xp_of(x) is np and backend.kernels_of(x) is cpu and backend.device_of(x) == "cpu"
    assert backend.xp_of(y) is fake_cupy and backend.kernels_of(y) is cuda and backend.device_of(y) == "cuda"
    assert backend.xp_of(np.float64(1)) is np
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        backend.xp_of([1.0])


def test_moving_arrays(cuda_stand_in):
    x = np.arange(3.0)
    assert backend.to_device(x, "cpu") is x and backend.to_numpy(x) is x
    y = backend.to_device(x, "cuda")
    assert type(y) is fake_cupy.ndarray and backend.to_device(y, "cuda:0") is y
    back = backend.to_numpy(y)
    np.testing.assert_array_equal(back, x)
    assert not np.shares_memory(back, x)
    with pytest.raises(ValueError, match="device expected 'cpu' or 'cuda', got 'gpu'"):
        backend.to_device(x, "gpu")


def test_the_environment_chooses_the_device(cuda_stand_in, monkeypatch):
    assert tg.tensor([1.0]).device == tg.zeros(2).device == tg.randn(2).device == "cpu"
    monkeypatch.setenv("TINYGRAD_BN_DEVICE", "cuda")
    assert tg.tensor([1.0]).device == tg.zeros(2).device == tg.ones(2).device == tg.randn(2).device == "cuda"
    assert tg.tensor(np.ones(2)).device == "cuda"  # as any data from the host
    here = tg.tensor(2.0, device="cpu")
    assert here.device == "cpu" and tg.tensor(here).device == "cpu"  # a Tensor stays where it is
    monkeypatch.setenv("TINYGRAD_BN_DEVICE", "cpu")
    assert tg.tensor(cuda_stand_in.array(np.ones(2))).device == "cuda"
    monkeypatch.setenv("TINYGRAD_BN_DEVICE", "tpu")
    with pytest.raises(ValueError, match="got 'tpu'"):
        tg.zeros(2)


def _without_cuda():
    return {k: v for k, v in libraries._libraries.items() if v.device == "cpu"}


def test_without_cupy_cuda_says_what_to_install(monkeypatch):
    monkeypatch.setattr(libraries, "_libraries", _without_cuda())
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it fails
    assert not tg.cuda.is_available()
    tg.cuda.synchronize()  # nothing to wait for
    with pytest.raises(RuntimeError, match=r"device 'cuda' needs CuPy: pip install 'tinygrad_bn\[cuda12\]'"):
        tg.zeros(2, device="cuda")
    with pytest.raises(RuntimeError, match="needs CuPy"):
        tg.tensor([1.0]).cuda()


def test_with_cupy_but_without_a_gpu(monkeypatch):
    monkeypatch.setattr(libraries, "_libraries", _without_cuda())
    with unittest.mock.patch.dict(sys.modules, fake_cupy.as_modules()):
        monkeypatch.setattr(fake_cupy.cuda, "is_available", lambda: False)
        assert not tg.cuda.is_available()
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU and its driver: CuPy is installed, but it found none"):
            tg.zeros(2, device="cuda")


def test_cupy_is_found_when_first_wanted(monkeypatch):
    monkeypatch.setattr(libraries, "_libraries", _without_cuda())
    types_before = set(libraries.ARRAY_TYPES)
    with unittest.mock.patch.dict(sys.modules, fake_cupy.as_modules()):
        assert tg.cuda.is_available()
        x = tg.ones(2, device="cuda")
        assert x.device == "cuda" and type(x.data) is fake_cupy.ndarray
        with fake_cupy.count_syncs() as counts:
            tg.cuda.synchronize()
        assert counts.device_syncs == 1
    libraries.ARRAY_TYPES.clear()
    libraries.ARRAY_TYPES.update(types_before)


# ----- two devices do not mix


def test_mixing_devices_names_them(cuda_stand_in):
    x, y = tg.ones(2), tg.ones(2, device="cuda")
    for f in (lambda: x + y, lambda: y * x, lambda: ops.matmul(x, y), lambda: ops.where(y > 0, x, x), lambda: y + x.data,
              lambda: ops.maximum(y, x), lambda: ops.linear(y.reshape(1, 2), tg.ones(3, 2))):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected its arrays on one device, got '\w+' on \w+ and '\w+' on"):
            f()


def test_mixing_devices_in_other_operations(cuda_stand_in):
    x = tg.ones(2, 3, device="cuda")
    host = tg.ones(2, 3)
    for f in (
        lambda: ops.concatenate([x, host]), lambda: ops.stack([host, x]), lambda: ops.einsum("ij,ij->i", x, host),
        lambda: ops.batch_norm(x, tg.ones(3), tg.zeros(3)), lambda: ops.cross_entropy(host, tg.tensor([0, 1], device="cuda")),
        lambda: ops.conv2d(tg.ones(1, 1, 3, 3, device="cuda"), tg.ones(1, 1, 2, 2)), lambda: ops.mse_loss(x, host),
        lambda: ops.layer_norm(host, tg.ones(3, device="cuda"), tg.zeros(3, device="cuda")),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match="on one device, got .* on cuda|on one device, got .* on cpu"):
            f()


def test_a_gradient_on_another_device(cuda_stand_in):
    x = tg.ones(2, device="cuda", requires_grad=True)
    with pytest.raises(ValueError, match=r"backward\(\) expected a gradient on cuda, got one on cpu"):
        (x * x).backward(np.ones(2, "float32"))


def test_moving_is_recorded(cuda_stand_in):
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    y = (x.cuda() * 3.0).square().sum()
    assert y.device == "cuda"
    y.backward()
    assert x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.data, [18, 36])
    z = tg.ones(2, device="cuda", requires_grad=True)
    (z.cpu() * np.float32(2)).sum().backward()
    assert z.grad.device == "cuda"
    assert x.to("cpu") is x and z.to("cuda") is z
    tg.check_grads(lambda x: (x.cuda() * x.cuda()).exp(), np.array([0.3, 0.7]), order=2)


# ----- Tensor: to Python and NumPy


def test_converting(device):
    x = tg.tensor([[1.0, 2.0], [3.0, 4.0]], device=device.name)
    assert (x.device, x.shape, x.ndim, x.size, len(x), x.dtype) == (device.name, (2, 2), 2, 4, 2, "float32")
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert type(x.numpy()) is np.ndarray
    one = x[1, 0]
    assert one.item() == 3.0 and type(one.item()) is float and float(one) == 3.0 and int(one) == 3 and bool(one)
    assert f"{one:.2f}" == "3.00" and f"{x}" == str(x)
    assert tg.tensor(5, device=device.name).item() == 5 and type(tg.tensor(5, device=device.name).item()) is int
    assert [row.tolist() for row in x] == x.tolist()
    with pytest.raises(ValueError, match=r"item\(\) expected a tensor of one element, got shape \(2, 2\)"):
        x.item()
    with pytest.raises(ValueError, match="the truth of a tensor of shape"):
        bool(x)
    with pytest.raises(TypeError, match="no dimensions"):
        len(one)
    with pytest.raises(TypeError, match="no dimensions"):
        list(one)


def test_numpy_is_the_same_memory_on_the_cpu():
    x = tg.tensor([1.0, 2.0])
    assert x.numpy() is x.data and np.asarray(x) is x.data
    assert np.array(x).dtype == "float32" and not np.shares_memory(np.array(x), x.data)
    assert np.asarray(x, dtype="float64").dtype == "float64"
    y = x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"does not leave the graph silently; use \.detach\(\)\.numpy\(\)"):
        y.numpy()
    with pytest.raises(RuntimeError, match="silently"):
        np.asarray(y)
    assert y.detach().numpy() is x.data


def test_numpy_of_a_device_is_a_copy_and_never_silent(cuda_stand_in):
    x = tg.tensor([1.0, 2.0], device="cuda")
    np.testing.assert_array_equal(x.numpy(), [1, 2])
    with pytest.raises(TypeError, match="a tensor on 'cuda' is not converted to NumPy silently"):
        np.asarray(x)


def test_an_ndarray_on_the_left_keeps_the_graph():
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    a = np.array([3.0, 4.0], "float32")
    for y in (a * x, a + x, a - x, a / x, a**x, a.reshape(1, 2) @ x, np.float32(2) * x, np.float64(2) + x, 2 * x, 2 / x):
        assert type(y) is Tensor and y.requires_grad
    with pytest.raises(TypeError):
        np.exp(x)
    (a * x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [3, 4])


def test_comparisons_give_plain_arrays(device):
    x, y = tg.tensor([1.0, 2.0, 3.0], device=device.name), tg.tensor([3.0, 2.0, 1.0], device=device.name)
    for found, expected in (
        (x < y, [1, 0, 0]), (x <= y, [1, 1, 0]), (x > y, [0, 0, 1]), (x >= y, [0, 1, 1]), (x == y, [0, 1, 0]),
        (x != y, [1, 0, 1]), (x > 1.5, [0, 1, 1]), (1.5 < x, [0, 1, 1]),
    ):  # fmt: skip
        assert type(found) is device.xp.ndarray and found.dtype == bool
        np.testing.assert_array_equal(device.numpy(found), np.array(expected, bool))


def test_tensors_are_keys_by_identity():
    x, y = tg.tensor([1.0, 1.0]), tg.tensor([1.0, 1.0])
    assert len({x, y, x}) == 2 and {x: 1}[x] == 1


def test_printing(device):
    on = "" if device.name == "cpu" else ", device='cuda'"
    x = tg.tensor([1.0, 2.0], device=device.name, requires_grad=True)
    assert repr(x) == f"tensor([1., 2.]{on}, requires_grad=True)"
    assert repr(x * 2.0) == f"tensor([2., 4.]{on}, made by mul)"
    assert repr(tg.tensor(np.array([1.5]), device=device.name)) == f"tensor([1.5], dtype=float64{on})"
    assert repr(tg.tensor([1, 2], device=device.name)) == f"tensor([1, 2]{on})"


def test_setting_items(device):
    x = tg.zeros(3, device=device.name)
    x[1] = 5.0
    x[2:] = tg.ones(1, device=device.name)
    assert x.tolist() == [0.0, 5.0, 1.0]


# ----- making tensors


@pytest.mark.parametrize("data, dtype", [
    (1.5, "float32"), ([1.5, 2.0], "float32"), ([1, 2.5], "float32"), (3, "int64"), ([[1], [2]], "int64"), (True, "bool"),
    ([True, False], "bool"), (np.float64(1.5), "float64"), (np.ones(2), "float64"), (np.ones(2, "float16"), "float16"),
    (np.arange(3, dtype="uint8"), "uint8"), ([], "float32"), (range(3), "int64"), ((1.0, 2.0), "float32"),
])  # fmt: skip
def test_dtypes_of_tensor(data, dtype):
    assert tg.tensor(data).dtype == dtype
    assert tg.tensor(data, dtype="float64").dtype == "float64"


def test_tensor_copies(device):
    x = np.array([1.0, 2.0])
    t = tg.tensor(x, device=device.name)
    x[0] = 9.0
    assert t.tolist() == [1.0, 2.0]
    u = tg.tensor(t)
    u[0] = 7.0
    assert t.tolist() == [1.0, 2.0] and u.device == device.name and u.node is None
    for dtype in (None, "float64", "float32"):
        a = np.array([1.0])
        t = tg.tensor(a, dtype=dtype)
        a[0] = 2.0
        assert t.tolist() == [1.0]


def test_misuse_of_tensor():
    with pytest.raises(ValueError, match=r"tensor\(\) expected numbers in lists of equal lengths"):
        tg.tensor([[1.0], [1.0, 2.0]])
    for data in ("abc", [None], np.array(["a"]), 1j, object()):
        with pytest.raises((TypeError, ValueError), match=r"tensor\(\) expected numbers"):
            tg.tensor(data)
    with pytest.raises(TypeError, match="only floating tensors can require grad, got int64"):
        tg.tensor([1, 2], requires_grad=True)


def test_zeros_ones_randn(device):
    for f, value in ((tg.zeros, 0.0), (tg.ones, 1.0)):
        for x in (f(2, 3, device=device.name), f((2, 3), device=device.name), f([2, 3], dtype="float64", device=device.name)):
            assert x.shape == (2, 3) and x.device == device.name and type(x.data) is device.xp.ndarray
            assert (device.numpy(x) == value).all()
        assert f(1, requires_grad=True).requires_grad and not f(1).requires_grad and f(device=device.name).shape == ()
        assert f(2).dtype == "float32" and f(2, dtype="int64").dtype == "int64"
    tg.manual_seed(0)
    here = tg.randn(1000, device=device.name)
    tg.manual_seed(0)
    assert here.dtype == "float32" and here.tolist() == tg.randn(1000).tolist()  # the same numbers on every device
    assert abs(device.numpy(here).mean()) < 0.15 and abs(device.numpy(here).std() - 1) < 0.1


def test_dtypes_are_kept_or_changed():
    x = tg.ones(2, requires_grad=True)
    assert x.float() is x and x.astype("float32") is x
    assert x.double().dtype == "float64" and x.to(dtype="float16").dtype == "float16"
    assert x.to("cpu", "float64").dtype == "float64"
    x.double().sum().backward()
    assert x.grad.dtype == "float32"


# ----- random numbers


def test_one_seed_for_everything():
    tg.manual_seed(7)
    a = tg.randn(5).tolist(), ops.dropout(np.ones(100), 0.5).tolist(), tg.randn(2).tolist()
    tg.manual_seed(7)
    b = tg.randn(5).tolist(), ops.dropout(np.ones(100), 0.5).tolist(), tg.randn(2).tolist()
    tg.manual_seed(8)
    c = tg.randn(5).tolist()
    assert a == b and c != a[0]
    tg.manual_seed(np.int64(7))
    assert tg.randn(5).tolist() == a[0]


def test_the_state_goes_through_json():
    tg.manual_seed(1)
    tg.randn(3)
    ops.dropout(np.ones(3), 0.5)
    state = json.loads(json.dumps(tg.get_rng_state()))
    first = tg.randn(4).tolist(), ops.dropout(np.ones(50), 0.5).tolist()
    tg.manual_seed(99)
    tg.set_rng_state(state)
    assert (tg.randn(4).tolist(), ops.dropout(np.ones(50), 0.5).tolist()) == first
    assert tg.get_rng_state() != state  # a copy, not the generator's own


def test_misuse_of_random():
    for seed in (-1, 1.5, "a", True, None):
        with pytest.raises(ValueError, match="manual_seed expected a non-negative int"):
            tg.manual_seed(seed)
    before = tg.get_rng_state()
    for state in ({}, {"bit_generator": "MT19937"}, None, 3):
        with pytest.raises(ValueError, match=r"set_rng_state expected a dict from get_rng_state\(\)"):
            tg.set_rng_state(state)
    assert tg.get_rng_state() == before


def test_dropout_makes_the_same_mask_everywhere(device):
    x = np.ones((7, 11))
    tg.manual_seed(4)
    expected = ops.dropout(x, 0.3) != 0
    for dtype in ("float16", "float32", "float64"):
        tg.manual_seed(4)
        with device.no_syncs():
            found = ops.dropout(device.array(x.astype(dtype)), 0.3)
        assert found.dtype == dtype
        np.testing.assert_array_equal(device.numpy(found) != 0, expected)


# ----- importing


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


def test_importing_the_package_imports_nothing_heavy():
    code = """
import sys, tinygrad_bn
x = tinygrad_bn.tensor([1.0], requires_grad=True)
(x * x).backward()
heavy = {"cupy", "matplotlib", "tqdm", "pooch", "torch", "numba", "scipy", "pytest"}
print(sorted({m.partition(".")[0] for m in sys.modules} & heavy))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_asking_for_cuda_without_it_is_no_traceback_of_imports():
    code = """
import sys
sys.modules["cupy"] = None
import tinygrad_bn as tg
assert not tg.cuda.is_available()
tg.cuda.synchronize()
try:
    tg.tensor([1.0]).cuda()
except RuntimeError as error:
    print(error)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("device 'cuda' needs CuPy")


# ----- settings for CUDA


def test_settings_for_cuda(cuda_stand_in, monkeypatch):
    assert tg.cuda.allow_tf32 is False and tg.cuda.deterministic is False
    monkeypatch.setattr(backend.cuda_settings, "_xp", None)
    tg.cuda.allow_tf32 = True  # also before there is any
    try:
        backend.cuda_settings.apply(fake_cupy)
        assert fake_cupy._compute_types["float32"] == "tf32"
        tg.cuda.allow_tf32 = False
        assert fake_cupy._compute_types["float32"] == "default"
        for wrong in (1, "yes", None):
            with pytest.raises(TypeError, match=r"tinygrad_bn.cuda.deterministic expected True or False, got"):
                tg.cuda.deterministic = wrong
        tg.cuda.deterministic = True
        assert backend.cuda_settings.deterministic and tg.cuda.deterministic
        with pytest.raises(
            AttributeError, match="tinygrad_bn.cuda has no setting 'allow_TF32'; it has allow_tf32 and deterministic"
        ):
            tg.cuda.allow_TF32 = True

        def warns(*_):
            raise RuntimeWarning("this GPU has no TensorFloat-32")

        monkeypatch.setattr(fake_cupy._core._routines_linalg, "set_compute_type", warns)
        with pytest.raises(RuntimeWarning):
            tg.cuda.allow_tf32 = True
        assert tg.cuda.allow_tf32 is False
        monkeypatch.undo()
    finally:
        tg.cuda.allow_tf32 = tg.cuda.deterministic = False
