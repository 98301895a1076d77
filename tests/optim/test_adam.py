"""Adam and AdamW, equal to PyTorch's step by step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sgd import Twins, as_torch

import tinygrad_bn as tg
from tinygrad_bn.optim import Adam, AdamW

OPTIONS = [
    {"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay}
    for (lr, eps), betas, decay in itertools.product(
        ((1e-2, 1e-8), (0.3, 1e-1)), ((0.9, 0.999), (0.5, 0.8), (0.0, 0.0)), (0, 0.1)
    )
]


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_pytorch(torch, device, rng, kind, options):
    twins = Twins(torch, device, rng)
    twins.walk(kind(twins.ours, **options), getattr(torch.optim, kind.__name__)(twins.theirs, **options))


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_equal_to_pytorch_in_float32(torch, device, rng, kind):
    twins = Twins(torch, device, rng, dtype="float32")
    twins.walk(kind(twins.ours), getattr(torch.optim, kind.__name__)(twins.theirs))


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_defaults_are_pytorchs(torch, device, rng, kind):
    twins = Twins(torch, device, rng)
    ours, theirs = kind(twins.ours), getattr(torch.optim, kind.__name__)(twins.theirs)
    assert ours.defaults == {name: theirs.defaults[name] for name in ours.defaults}
    twins.walk(ours, theirs, steps=3)


@given(
    kind=st.sampled_from([Adam, AdamW]),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=6),
    lr=st.floats(0, 1),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)),
    eps=st.floats(1e-10, 1),
    weight_decay=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_shapes_and_options(torch, device, kind, shapes, lr, betas, eps, weight_decay, seed):
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    twins = Twins(torch, device, np.random.default_rng(seed), shapes)
    twins.walk(kind(twins.ours, **options), getattr(torch.optim, kind.__name__)(twins.theirs, **options), steps=4)


def test_the_first_step_is_lr_long_whatever_the_gradient(device):
    w = tg.tensor([1.0, 1.0], dtype="float64", device=device.name, requires_grad=True)
    w.grad = tg.tensor([1e-3, -1e5], dtype="float64", device=device.name)
    Adam([w], lr=0.25, eps=0.0).step()
    np.testing.assert_allclose(device.numpy(w), [0.75, 1.25], rtol=1e-14)


def test_decoupled_decay_is_not_scaled_by_the_gradient(device):
    w = tg.tensor([4.0], dtype="float64", device=device.name, requires_grad=True)
    w.grad = tg.tensor([0.0], dtype="float64", device=device.name)
    AdamW([w], lr=0.5, weight_decay=0.25).step()
    assert w.item() == 4 * (1 - 0.5 * 0.25)


def test_each_parameter_counts_its_own_steps(device):
    ps = [tg.tensor([1.0], device=device.name, requires_grad=True) for _ in range(4)]
    opt = Adam(ps)
    for present in ((0, 1, 3), (0, 3), (0, 1, 3)):
        opt.zero_grad()
        for i in present:
            ps[i].grad = tg.tensor([1.0], device=device.name)
        opt.step()
    assert {i: state["step"] for i, state in opt.state_dict()["state"].items()} == {0: 3, 1: 2, 3: 3}


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_groups_and_changed_options(torch, device, rng, kind):
    twins = Twins(torch, device, rng)
    our_groups, their_groups = twins.groups(lr=0.01, betas=(0.8, 0.9), weight_decay=0.0)
    ours, theirs = kind(our_groups, weight_decay=0.1), getattr(torch.optim, kind.__name__)(their_groups, weight_decay=0.1)
    twins.walk(ours, theirs, steps=5)
    for opt in (ours, theirs):
        opt.param_groups[0]["lr"] = 0.05
        opt.param_groups[1]["betas"] = (0.5, 0.7)
    twins.walk(ours, theirs, steps=5)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_state_travels_to_pytorch_and_back(torch, device, rng, kind):
    twins = Twins(torch, device, rng)
    other = getattr(torch.optim, kind.__name__)
    our_groups, their_groups = twins.groups(lr=0.05)
    ours, theirs = kind(our_groups, weight_decay=0.1), other(their_groups, weight_decay=0.1)
    twins.walk(ours, theirs, steps=5, skip=0.5)

    mine, reference = ours.state_dict(), theirs.state_dict()
    assert mine["state"].keys() == reference["state"].keys()
    for i, state in mine["state"].items():
        assert list(state) == list(reference["state"][i])
        for name, value in state.items():
            np.testing.assert_allclose(
                device.numpy(np.asarray(value) if name == "step" else value),
                reference["state"][i][name].numpy(),
                rtol=1e-12,
                atol=1e-15,
            )
    for a, b in zip(mine["param_groups"], reference["param_groups"], strict=True):
        assert a == {name: b[name] for name in a}

    ours_again, theirs_again = kind(twins.groups()[0], lr=7), other(twins.groups()[1], lr=7)
    ours_again.load_state_dict(reference)
    theirs_again.load_state_dict(as_torch(torch, mine))
    twins.walk(ours_again, theirs_again, steps=5, skip=0.5)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_an_empty_state_starts_anew(torch, device, rng, kind):
    twins = Twins(torch, device, rng)
    ours, theirs = kind(twins.ours), getattr(torch.optim, kind.__name__)(twins.theirs)
    twins.walk(ours, theirs, steps=3)
    for opt in (ours, theirs):
        opt.load_state_dict({**opt.state_dict(), "state": {}})
    twins.walk(ours, theirs, steps=3)


def test_state_is_brought_to_the_parameters_dtype(device):
    def stepped(dtype):
        p = tg.tensor(np.ones(2, dtype), device=device.name, requires_grad=True)
        opt = Adam([p])
        p.grad = tg.tensor(np.ones(2, dtype), device=device.name)
        opt.step()
        return opt

    opt = stepped("float32")
    opt.load_state_dict(stepped("float64").state_dict())
    assert opt.state_dict()["state"][0]["exp_avg"].dtype == "float32"
    opt.step()


def test_nan_gradients_spread_as_in_pytorch(torch, device, rng):
    twins = Twins(torch, device, rng, shapes=[(3,), (2,)])
    ours, theirs = AdamW(twins.ours), torch.optim.AdamW(twins.theirs)
    twins.set_gradients()
    g = np.array([1.0, math.nan, 2.0])
    twins.ours[0].grad, twins.theirs[0].grad = tg.tensor(g, device=device.name), torch.tensor(g)
    ours.step(), theirs.step()
    twins.check()
    twins.walk(ours, theirs, steps=3)
    assert np.isnan(device.numpy(twins.ours[0])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"lr": -1}, ValueError, "lr expected"),
        ({"lr": math.nan}, ValueError, "lr expected .*got nan"),
        ({"eps": -1e-8}, ValueError, "eps expected a finite number of at least 0, got -1e-08"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay expected"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] expected a finite number of at least 0 and below 1, got 1.0"),
        ({"betas": (0.9, 1)}, ValueError, r"betas\[1\] expected a finite number of at least 0 and below 1, got 1.0"),
        ({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\] expected"),
        ({"betas": (0.9, math.nan)}, ValueError, r"betas\[1\] expected .*got nan"),
        ({"betas": 0.9}, ValueError, "betas expected two numbers, got 0.9"),
        ({"betas": (0.9,)}, ValueError, r"betas expected two numbers, got \(0.9,\)"),
        ({"betas": ("0.9", 0.9)}, TypeError, r"betas\[0\] expected a number, got str"),
    ],
)
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_bad_options(kind, options, error, message):
    with pytest.raises(error, match=f"^{kind.__name__}: {message}"):
        kind([tg.tensor([1.0], requires_grad=True)], **options)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"step": 1}, "parameter 0 expected exp_avg, exp_avg_sq, step, got step"),
        (
            {"step": 1, "exp_avg": [0.0], "exp_avg_sq": [0.0], "max_exp_avg_sq": [0.0]},
            "got exp_avg, exp_avg_sq, max_exp_avg_sq",
        ),
        ({"step": 1.5, "exp_avg": [0.0], "exp_avg_sq": [0.0]}, "step expected one whole number, got 1.5"),
        ({"step": -1, "exp_avg": [0.0], "exp_avg_sq": [0.0]}, "step expected one whole number, got -1"),
        ({"step": math.nan, "exp_avg": [0.0], "exp_avg_sq": [0.0]}, "step expected one whole number, got nan"),
        ({"step": [1, 2], "exp_avg": [0.0], "exp_avg_sq": [0.0]}, r"step expected one whole number, got \[1, 2\]"),
        ({"step": 1, "exp_avg": [0.0], "exp_avg_sq": [[0.0]]}, r"exp_avg_sq expected shape \(1,\), got \(1, 1\)"),
    ],
)
def test_bad_state(state, message):
    opt = Adam([tg.tensor([1.0], requires_grad=True)])
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict({**opt.state_dict(), "state": {0: state}})
    assert opt.state_dict()["state"] == {}


def test_amsgrad_state_is_refused(torch):
    theirs = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], amsgrad=True)
    with pytest.raises(ValueError, match="expected amsgrad=False, got amsgrad=True"):
        Adam([tg.tensor([1.0], requires_grad=True)]).load_state_dict(theirs.state_dict())
