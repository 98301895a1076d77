"""SGD, and what it shares with all optimizers: equal to PyTorch's step by step, and clear about bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_bn as tg
from tinygrad_bn.optim import SGD, Adam, AdamW

SHAPES = [(3, 4), (5,), (), (0, 2), (2, 3, 2), (1,)]


class Twins:
    """The same parameters here and in PyTorch, which get the same gradients."""

    def __init__(self, torch, device, rng, shapes=SHAPES, dtype="float64"):
        self.torch, self.device, self.rng, self.dtype = torch, device, rng, dtype
        values = [rng.normal(size=shape).astype(dtype) for shape in shapes]
        self.ours = [tg.tensor(np.asarray(v), device=device.name, requires_grad=True) for v in values]
        self.theirs = [torch.nn.Parameter(torch.tensor(v)) for v in values]

    def set_gradients(self, skip=0.0):
        """New gradients; each parameter has none with probability ``skip``."""
        for p, q in zip(self.ours, self.theirs, strict=True):
            p.grad = q.grad = None
            if self.rng.random() >= skip:
                g = np.asarray(self.rng.normal(size=p.shape)).astype(self.dtype)
                p.grad, q.grad = tg.tensor(g, device=self.device.name), self.torch.tensor(g)

    def walk(self, ours, theirs, steps=20, skip=0.3):
        """Step both optimizers, and expect the same values after each step."""
        for _ in range(steps):
            self.set_gradients(skip)
            with self.device.no_syncs():
                ours.step()
            theirs.step()
            self.check()

    def check(self):
        rtol, atol = (1e-12, 1e-14) if self.dtype == "float64" else (1e-6, 1e-6)
        for p, q in zip(self.ours, self.theirs, strict=True):
            assert p.dtype == self.dtype
            np.testing.assert_allclose(self.device.numpy(p), q.detach().numpy(), rtol=rtol, atol=atol)

    def groups(self, cut=2, **options):
        """The parameters as two groups, the second with options of its own, for both."""
        return [[{"params": ps[:cut]}, {"params": ps[cut:], **options}] for ps in (self.ours, self.theirs)]


def as_torch(torch, state_dict):
    """Our state dict with arrays as PyTorch's tensors."""

    def convert(value):
        return torch.tensor(tg.backend.to_numpy(value)) if hasattr(value, "shape") else value

    state = {i: {name: convert(v) for name, v in state.items()} for i, state in state_dict["state"].items()}
    return {"state": state, "param_groups": state_dict["param_groups"]}


OPTIONS = [
    {"lr": 0.1, "momentum": m, "dampening": d, "weight_decay": w, "nesterov": n}
    for m, d, w, n in itertools.product((0, 0.9), (0, 0.3), (0, 0.05), (False, True))
    if not (n and (d or not m))
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_pytorch(torch, device, rng, options):
    twins = Twins(torch, device, rng)
    twins.walk(SGD(twins.ours, **options), torch.optim.SGD(twins.theirs, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_pytorch_in_float32(torch, device, rng, options):
    twins = Twins(torch, device, rng, dtype="float32")
    twins.walk(SGD(twins.ours, **options), torch.optim.SGD(twins.theirs, **options))


def test_defaults_are_pytorchs(torch, device, rng):
    twins = Twins(torch, device, rng)
    ours, theirs = SGD(twins.ours), torch.optim.SGD(twins.theirs)
    assert ours.defaults == {name: theirs.defaults[name] for name in ours.defaults}
    twins.walk(ours, theirs, steps=3)


@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=6),
    lr=st.floats(0, 2),
    momentum=st.floats(0, 1.2),
    dampening=st.floats(-1, 1),
    weight_decay=st.floats(0, 1),
    nesterov=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shapes_and_options(torch, device, shapes, lr, momentum, dampening, weight_decay, nesterov, seed):
    nesterov = nesterov and momentum > 0
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    options["dampening"] = 0.0 if nesterov else dampening
    twins = Twins(torch, device, np.random.default_rng(seed), shapes)
    twins.walk(SGD(twins.ours, **options), torch.optim.SGD(twins.theirs, **options), steps=4)


def test_the_first_gradient_enters_the_buffer_undampened(device):
    w = tg.tensor([1.0], dtype="float64", device=device.name, requires_grad=True)
    opt = SGD([w], lr=0.5, momentum=0.5, dampening=0.75)
    values = []
    for _ in range(2):
        w.grad = tg.tensor([2.0], dtype="float64", device=device.name)
        opt.step()
        values.append(w.item())
    assert values == [1 - 0.5 * 2, 0 - 0.5 * (0.5 * 2 + 0.25 * 2)]


def test_groups_with_options_of_their_own(torch, device, rng):
    twins = Twins(torch, device, rng)
    ours, theirs = twins.groups(lr=0.01, momentum=0.5, weight_decay=0.0, nesterov=True)
    common = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    twins.walk(SGD(ours, **common), torch.optim.SGD(theirs, **common))


def test_options_changed_between_steps(torch, device, rng):
    twins = Twins(torch, device, rng)
    options = {"lr": 0.1, "dampening": 0.5}
    ours, theirs = SGD(twins.ours, **options), torch.optim.SGD(twins.theirs, **options)
    for change in ({"lr": 0.02}, {"momentum": 0.9}, {"momentum": 0}, {"momentum": 0.5, "lr": np.float64(0.3)}):
        twins.walk(ours, theirs, steps=3)
        ours.param_groups[0].update(change)
        theirs.param_groups[0].update({k: float(v) for k, v in change.items()})
    twins.walk(ours, theirs, steps=3)


def test_frozen_parameters_stand_still(torch, device, rng):
    """As in PyTorch: what counts is the gradient. A parameter frozen after backward takes that last gradient."""
    twins = Twins(torch, device, rng)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    ours, theirs = SGD(twins.ours, **options), torch.optim.SGD(twins.theirs, **options)
    twins.walk(ours, theirs, steps=2, skip=0)
    twins.set_gradients()
    twins.ours[0].requires_grad = twins.theirs[0].requires_grad = False
    ours.step(), theirs.step()
    twins.check()
    ours.zero_grad(), theirs.zero_grad()
    assert all(p.grad is None for p in twins.ours)
    before = twins.device.numpy(twins.ours[0]).copy()
    for p, q in zip(twins.ours[1:], twins.theirs[1:], strict=True):
        p.sum().backward()
        q.sum().backward()
    ours.step(), theirs.step()
    twins.check()
    np.testing.assert_array_equal(twins.device.numpy(twins.ours[0]), before)


def test_zero_gradients_are_not_missing_gradients(torch, device, rng):
    twins = Twins(torch, device, rng)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    ours, theirs = SGD(twins.ours, **options), torch.optim.SGD(twins.theirs, **options)
    twins.walk(ours, theirs, steps=2)
    for opt in (ours, theirs):
        opt.zero_grad(set_to_none=False)
        opt.step()
    twins.check()
    assert [p.grad is None for p in twins.ours] == [q.grad is None for q in twins.theirs]


def test_nan_gradients_spread_as_in_pytorch(torch, device, rng):
    twins = Twins(torch, device, rng, shapes=[(4,)])
    ours, theirs = SGD(twins.ours, lr=0.1, momentum=0.9), torch.optim.SGD(twins.theirs, lr=0.1, momentum=0.9)
    g = np.array([1.0, math.nan, 2.0, 3.0])
    twins.ours[0].grad, twins.theirs[0].grad = tg.tensor(g, device=device.name), torch.tensor(g)
    ours.step(), theirs.step()
    twins.check()
    assert np.isnan(device.numpy(twins.ours[0])).tolist() == [False, True, False, False]
    twins.walk(ours, theirs, steps=2)


def test_a_shared_parameter_moves_once(device):
    w = tg.tensor([2.0, 3.0], device=device.name, requires_grad=True)
    opt = SGD([w], lr=0.5)
    (w * 1.0 + w * 2.0).sum().backward()
    opt.step()
    np.testing.assert_array_equal(device.numpy(w), [0.5, 1.5])


def test_closure(device):
    w = tg.tensor([2.0], device=device.name, requires_grad=True)
    opt = SGD([w], lr=0.25)

    def closure():
        opt.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with tg.no_grad():
        assert opt.step(closure).item() == 4.0
    assert w.item() == 1.0
    assert opt.step() is None


# ----- state dicts


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_state_travels_to_pytorch_and_back(torch, device, rng, momentum):
    twins = Twins(torch, device, rng)
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01}
    (our_groups, their_groups) = twins.groups(lr=0.05)
    ours, theirs = SGD(our_groups, **options), torch.optim.SGD(their_groups, **options)
    twins.walk(ours, theirs, steps=5, skip=0.5)

    ours_again = SGD(twins.groups()[0], lr=7)
    ours_again.load_state_dict(theirs.state_dict())
    theirs_again = torch.optim.SGD(twins.groups()[1], lr=7)
    theirs_again.load_state_dict(as_torch(torch, ours.state_dict()))
    twins.walk(ours_again, theirs_again, steps=5, skip=0.5)
    assert [g["lr"] for g in ours_again.param_groups] == [0.1, 0.05]


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_state_dict_has_pytorchs_structure(torch, device, rng, momentum):
    twins = Twins(torch, device, rng)
    ours, theirs = SGD(twins.groups()[0], momentum=momentum), torch.optim.SGD(twins.groups()[1], momentum=momentum)
    twins.walk(ours, theirs, steps=1, skip=0.5)
    mine, reference = ours.state_dict(), theirs.state_dict()
    assert mine["state"].keys() == reference["state"].keys()
    for i, state in mine["state"].items():
        assert state.keys() == reference["state"][i].keys()
        assert state["momentum_buffer"].shape == tuple(reference["state"][i]["momentum_buffer"].shape)
    for a, b in zip(mine["param_groups"], reference["param_groups"], strict=True):
        assert a == {name: b[name] for name in a}


def test_a_snapshot_is_a_snapshot(device, rng):
    w = tg.tensor(rng.normal(size=3), device=device.name, requires_grad=True)
    opt = SGD([w], lr=0.1, momentum=0.9)

    def step():
        w.grad = tg.tensor(np.ones(3), device=device.name)
        opt.step()

    step()
    snapshot = opt.state_dict()
    step()
    np.testing.assert_array_equal(device.numpy(snapshot["state"][0]["momentum_buffer"]), np.ones(3))
    opt.load_state_dict(snapshot)
    step()
    np.testing.assert_array_equal(device.numpy(snapshot["state"][0]["momentum_buffer"]), np.ones(3))
    opt.load_state_dict({**snapshot, "state": {}})
    assert opt.state_dict()["state"] == {}


def broken(state_dict, change):
    """A copy of the state dict, changed, or what ``change`` gives instead."""
    copy = {
        "state": {i: dict(s) for i, s in state_dict["state"].items()},
        "param_groups": [dict(g) for g in state_dict["param_groups"]],
    }
    return change(copy) or copy


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda d: {"state": {}}, ValueError, "'state' and 'param_groups'"),
        (lambda d: [1], ValueError, "'state' and 'param_groups'"),
        (lambda d: d["param_groups"].__delitem__(1), ValueError, r"expected 2 groups, of \[2, 1\] parameters, got 1, of \[2\]"),
        (lambda d: d["param_groups"][0].update(params=[0]), ValueError, r"of \[2, 1\] parameters, got 2, of \[1, 1\]"),
        (lambda d: d["param_groups"][0].update(params=[0, 2]), ValueError, "one key for each of 3 parameters, got 2"),
        (lambda d: d["param_groups"][1].__delitem__("params"), ValueError, "dict with 'params'"),
        (
            lambda d: d["param_groups"][1].__delitem__("momentum"),
            ValueError,
            "group 1 expected the options .*missing: momentum",
        ),
        (lambda d: d["param_groups"][1].update(speed=1), ValueError, "unknown: speed"),
        (lambda d: d["param_groups"][1].update(lr=-1), ValueError, "lr expected a finite number of at least 0, got -1"),
        (lambda d: d["param_groups"][1].update(maximize=True), ValueError, "expected maximize=False, got maximize=True"),
        (lambda d: d["param_groups"][1].update(initial_lr="x"), TypeError, "initial_lr expected a number"),
        (lambda d: d["state"].update({3: {}}), ValueError, "unknown keys"),
        (lambda d: d["state"].update({1: 5}), TypeError, "state of parameter 1 expected a dict, got int"),
        (lambda d: d["state"][0].update(exp_avg=0), ValueError, "parameter 0 expected momentum_buffer, got exp_avg, mom"),
        (lambda d: d["state"][1].update(momentum_buffer=[1.0]), ValueError, r"expected shape \(2, 2\), got \(1,\)"),
        (lambda d: d["state"][1].update(momentum_buffer="abc"), TypeError, "expected an array of numbers, got str"),
        (lambda d: d["state"][1].update(momentum_buffer=[[1], [1, 2]]), TypeError, "expected an array of numbers, got list"),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change, error, message):
    ps = [tg.tensor(np.ones(shape), requires_grad=True) for shape in ((3,), (2, 2), ())]
    opt = SGD([{"params": ps[:2]}, {"params": ps[2]}], lr=0.1, momentum=0.9)
    for p in ps:
        p.grad = tg.tensor(np.ones(p.shape))
    opt.step()
    before = opt.state_dict()
    damaged = broken(before, change)
    if isinstance(damaged, dict) and damaged.get("param_groups"):
        damaged["param_groups"][0]["lr"] = 99.0
    with pytest.raises(error, match=message):
        opt.load_state_dict(damaged)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i in before["state"]:
        np.testing.assert_array_equal(after["state"][i]["momentum_buffer"], before["state"][i]["momentum_buffer"])


def test_state_of_another_rule_is_refused():
    def stepped(kind):
        p = tg.tensor([1.0], requires_grad=True)
        opt = kind([p])
        p.grad = tg.tensor([1.0])
        opt.step()
        return opt

    with pytest.raises(
        ValueError, match="missing: dampening, momentum, nesterov, unknown: amsgrad, betas, decoupled_weight_decay, eps"
    ):
        stepped(SGD).load_state_dict(stepped(Adam).state_dict())
    with pytest.raises(ValueError, match="decoupled_weight_decay=False, got decoupled_weight_decay=True"):
        stepped(Adam).load_state_dict(stepped(AdamW).state_dict())


# ----- bad input


def w(**options):
    return tg.tensor([1.0, 2.0], **{"requires_grad": True, **options})


one = w()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: SGD([]), ValueError, "SGD expected parameters, got none"),
        (lambda: SGD([{"params": []}]), ValueError, "SGD expected parameters, got none"),
        (lambda: SGD(w()), TypeError, r"expected an iterable of Tensors, got one Tensor; pass \[tensor\]"),
        (lambda: SGD(5), TypeError, "got int"),
        (lambda: SGD({"params": [w()]}), TypeError, "got dict"),
        (lambda: SGD({w(), w()}), TypeError, "ordered iterable .*got set"),
        (lambda: SGD([{"params": {w(), w()}}]), TypeError, "ordered iterable, got set"),
        (lambda: SGD([{"params": [w()]}, w()]), TypeError, "each parameter group to be a dict with 'params', got Tensor"),
        (lambda: SGD([{"lr": 1.0}]), TypeError, r"got the keys \['lr'\]"),
        (lambda: SGD([w(), np.ones(2)]), TypeError, "expected Tensors, got ndarray as parameter 1 of group 0"),
        (lambda: SGD([("weight", w())]), TypeError, "got tuple"),
        (lambda: SGD([w() * 2]), ValueError, "expected leaves, got a result of mul as parameter 0 of group 0"),
        (lambda: SGD([tg.tensor([1, 2])]), TypeError, "expected floating Tensors, got int64"),
        (lambda: SGD([one, one]), ValueError, r"each parameter once, got parameter 1 of group 0, of shape \(2,\), again"),
        (lambda: SGD([{"params": one}, {"params": [w(), one]}]), ValueError, "got parameter 1 of group 1"),
        (lambda: SGD([{"params": one, "speed": 1}]), ValueError, "SGD has no option speed; it has lr, momentum"),
        (lambda: SGD([{"params": one, "lr": -1.0}]), ValueError, "lr expected a finite number of at least 0, got -1.0"),
        (lambda: SGD([w()], lr=-0.1), ValueError, "SGD: lr expected a finite number of at least 0, got -0.1"),
        (lambda: SGD([w()], lr=math.nan), ValueError, "lr expected .*got nan"),
        (lambda: SGD([w()], lr=math.inf), ValueError, "lr expected .*got inf"),
        (lambda: SGD([w()], lr="0.1"), TypeError, "SGD: lr expected a number, got str"),
        (lambda: SGD([w()], lr=True), TypeError, "SGD: lr expected a number, got bool"),
        (lambda: SGD([w()], lr=tg.tensor(0.1)), TypeError, "SGD: lr expected a number, got Tensor"),
        (lambda: SGD([w()], momentum=-1), ValueError, "momentum expected"),
        (lambda: SGD([w()], dampening=-math.inf), ValueError, "dampening expected a finite number, got -inf"),
        (lambda: SGD([w()], dampening=math.nan), ValueError, "dampening expected a finite number, got nan"),
        (lambda: SGD([w()], weight_decay=-1), ValueError, "weight_decay expected"),
        (lambda: SGD([w()], nesterov=True), ValueError, "nesterov expected momentum > 0 and dampening = 0, got 0"),
        (lambda: SGD([w()], momentum=0.9, dampening=0.1, nesterov=True), ValueError, "nesterov expected"),
        (lambda: SGD([w()], momentum="x", nesterov=True), TypeError, "momentum expected a number, got str"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_failed_constructor_leaves_the_parameters_alone():
    p = w()
    data = p.data
    with pytest.raises(TypeError):
        SGD([{"params": [p]}, {"params": [3]}])
    assert p.data is data


@pytest.mark.parametrize(
    "new, message",
    [
        (
            lambda: np.ones(3),
            r"gradient of parameter 1 to be float64 of shape \(3,\) on cpu, got float64 of shape \(2,\) on cpu",
        ),
        (lambda: np.ones(1), r"float64 of shape \(1,\) on cpu, got float64 of shape \(2,\)"),
        (lambda: np.ones(2, "float32"), "to be float32 .*got float64"),
        (lambda: tg.backend.to_device(np.ones(2), "cuda"), "on cuda, got float64 .*on cpu"),
    ],
)
def test_a_gradient_from_before_the_parameter_changed_stops_the_step(cuda_stand_in, new, message):
    ps = [tg.tensor(np.ones(2), requires_grad=True) for _ in range(2)]
    opt = SGD(ps, lr=0.1, momentum=0.9)
    for p in ps:
        p.grad = tg.tensor(np.ones(2))
    ps[1].data = new()
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert ps[0].tolist() == [1.0, 1.0]
    assert opt.state_dict()["state"] == {}


def test_a_bad_option_stops_the_step(device):
    p = w(device=device.name)
    opt = SGD([p], lr=0.1)
    p.grad = tg.tensor([1.0, 1.0], device=device.name)
    opt.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr expected"):
        opt.step()
    assert p.tolist() == [1.0, 2.0]
