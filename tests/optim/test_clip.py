"""clip_grad_norm_, equal to PyTorch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_bn as tg
from tinygrad_bn.optim import clip_grad_norm_

SHAPES = [(3, 4), (5,), (), (0, 2), (2, 3, 2)]


def twins(torch, device, rng, shapes=SHAPES, dtypes=("float64",), skip=()):
    """Parameters with the same gradients here and in PyTorch."""
    ours, theirs = [], []
    for i, shape in enumerate(shapes):
        g = np.asarray(rng.normal(size=shape)).astype(dtypes[i % len(dtypes)])
        ours.append(tg.tensor(np.zeros_like(g), device=device.name, requires_grad=True))
        theirs.append(torch.nn.Parameter(torch.zeros(shape, dtype=torch.tensor(g).dtype)))
        if i not in skip:
            ours[-1].grad, theirs[-1].grad = tg.tensor(g, device=device.name), torch.tensor(g)
    return ours, theirs


def check(device, torch, ours, theirs, max_norm, norm_type=2.0, rtol=1e-12):
    kept = [p.grad for p in ours]
    with device.no_syncs():
        total = clip_grad_norm_(ours, max_norm, norm_type)
    # PyTorch refuses the largest of nothing; here an empty gradient simply has no say.
    expected = torch.nn.utils.clip_grad_norm_([q for q in theirs if q.numel()], max_norm, norm_type)
    assert isinstance(total, tg.Tensor) and total.shape == () and total.device == device.name
    np.testing.assert_allclose(device.numpy(total), expected.numpy(), rtol=rtol)
    for p, q, g in zip(ours, theirs, kept, strict=True):
        assert p.grad is g  # changed in place
        if g is not None:
            assert g.dtype == p.dtype
            np.testing.assert_allclose(device.numpy(g), q.grad.numpy(), rtol=rtol)


@pytest.mark.parametrize("norm_type", [2, 1, 3.5, 0.5, math.inf])
@pytest.mark.parametrize("max_norm", [0, 0.5, 1e6, math.inf])
def test_equal_to_pytorch(torch, device, rng, norm_type, max_norm):
    check(device, torch, *twins(torch, device, rng), max_norm, norm_type)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_float32_and_mixed_dtypes(torch, device, rng, norm_type):
    check(device, torch, *twins(torch, device, rng, dtypes=("float32",)), 0.5, norm_type, rtol=1e-6)
    check(device, torch, *twins(torch, device, rng, dtypes=("float32", "float64")), 0.5, norm_type, rtol=1e-6)


def test_parameters_without_a_gradient_do_not_count(torch, device, rng):
    check(device, torch, *twins(torch, device, rng, skip=(0, 3)), 0.5)


@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=6),
    max_norm=st.floats(0, 10),
    norm_type=st.sampled_from([1.0, 2.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_any_shapes(torch, device, shapes, max_norm, norm_type, seed):
    check(device, torch, *twins(torch, device, np.random.default_rng(seed), shapes), max_norm, norm_type, rtol=1e-11)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_nothing_to_clip(device, norm_type):
    bare = tg.tensor([1.0], device=device.name, requires_grad=True)
    assert clip_grad_norm_([], 1.0, norm_type).item() == 0.0
    total = clip_grad_norm_([bare], 1.0, norm_type)
    assert total.item() == 0.0 and total.device == device.name and bare.grad is None
    empty = tg.tensor(np.zeros((0, 3)), device=device.name, requires_grad=True)
    empty.grad = tg.tensor(np.zeros((0, 3)), device=device.name)
    assert clip_grad_norm_(iter([empty]), 1.0, norm_type).item() == 0.0


def test_one_tensor_and_plain_numbers(device):
    p = tg.tensor([0.0, 0.0], dtype="float64", device=device.name, requires_grad=True)
    p.grad = tg.tensor([3.0, -4.0], dtype="float64", device=device.name)
    assert clip_grad_norm_(p, 1.0).item() == 5.0
    np.testing.assert_allclose(device.numpy(p.grad), np.array([3.0, -4.0]) / (5 + 1e-6), rtol=1e-15)
    assert clip_grad_norm_(p, 7.0, math.inf).item() == pytest.approx(0.8)
    np.testing.assert_allclose(device.numpy(p.grad), np.array([3.0, -4.0]) / (5 + 1e-6), rtol=1e-15)


@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_a_nan_spreads(torch, device, rng, norm_type):
    ours, theirs = twins(torch, device, rng)
    g = np.array([1.0, math.nan, 2.0, 3.0, 4.0])
    ours[1].grad, theirs[1].grad = tg.tensor(g, device=device.name), torch.tensor(g)
    check(device, torch, ours, theirs, 1.0, norm_type)
    assert np.isnan(device.numpy(ours[0].grad)).all()


def test_an_infinite_norm_makes_the_rest_zero(torch, device, rng):
    ours, theirs = twins(torch, device, rng)
    g = np.array([1.0, math.inf, 2.0, 3.0, 4.0])
    ours[1].grad, theirs[1].grad = tg.tensor(g, device=device.name), torch.tensor(g)
    with np.errstate(invalid="ignore"):  # NumPy warns of inf * 0; CuPy and PyTorch do not
        check(device, torch, ours, theirs, 1.0)


def test_the_graph_hears_that_a_gradient_changed(device):
    p = tg.tensor([1.0, 2.0], device=device.name, requires_grad=True)
    p.grad = tg.tensor([3.0, 4.0], device=device.name)
    loss = (p * p.grad).sum()
    clip_grad_norm_([p], 1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_recorded_gradient_keeps_its_graph(device):
    p = tg.tensor([1.0, 2.0], dtype="float64", device=device.name, requires_grad=True)
    (p * p * p).sum().backward(create_graph=True)
    recorded = p.grad
    clip_grad_norm_([p], 1.0)
    assert np.linalg.norm(device.numpy(p.grad)) == pytest.approx(1.0) and p.grad.is_leaf
    (curvature,) = tg.grad((recorded * recorded).sum(), [p])
    np.testing.assert_allclose(device.numpy(curvature), [36.0, 288.0], rtol=1e-14)  # of 9 x ** 4


def test_gradients_on_two_devices(cuda_stand_in):
    ps = [tg.tensor([1.0], device=d, requires_grad=True) for d in ("cpu", "cuda")]
    for p in ps:
        p.grad = tg.tensor([1.0], device=p.device)
    with pytest.raises(ValueError, match="gradients on one device, got cpu and cuda"):
        clip_grad_norm_(ps, 0.1)
    assert [p.grad.item() for p in ps] == [1.0, 1.0]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([1], 1.0), TypeError, "expected Tensors, got int at position 0"),
        (([], -1.0), ValueError, "max_norm expected a finite number of at least 0, got -1.0"),
        (([], math.nan), ValueError, "max_norm expected"),
        (([], "1"), TypeError, "max_norm expected a number, got str"),
        (([], 1.0, 0), ValueError, "norm_type expected a number above 0, got 0"),
        (([], 1.0, -2), ValueError, "norm_type expected"),
        (([], 1.0, -math.inf), ValueError, "norm_type expected"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        clip_grad_norm_(*arguments)
