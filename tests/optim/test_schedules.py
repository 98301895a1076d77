"""Schedules give PyTorch's learning rates, also after a restart."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinygrad_bn as tg
from tinygrad_bn import optim

LRS = [0.1, 3.0, 0.0]


def our_optimizer():
    return optim.SGD([{"params": tg.tensor([1.0], requires_grad=True), "lr": lr} for lr in LRS])


def their_optimizer(torch):
    return torch.optim.SGD([{"params": torch.nn.Parameter(torch.ones(1)), "lr": lr} for lr in LRS])


def warm_up_then_cosine(lib, opt):
    parts = [lib.LinearLR(opt, 0.1, total_iters=5), lib.CosineAnnealingLR(opt, T_max=50, eta_min=1e-3)]
    return lib.SequentialLR(opt, parts, milestones=[5])


def three_parts(lib, opt):
    parts = [lib.LinearLR(opt, 0.25, 0.75, 4), lib.StepLR(opt, 3, 0.5), lib.CosineAnnealingLR(opt, 20)]
    return lib.SequentialLR(opt, parts, milestones=[7, 18])


MAKERS = {
    "step": lambda lib, opt: lib.StepLR(opt, step_size=4),
    "step gamma": lambda lib, opt: lib.StepLR(opt, 1, gamma=0.97),
    "cosine": lambda lib, opt: lib.CosineAnnealingLR(opt, T_max=30),
    "cosine eta_min": lambda lib, opt: lib.CosineAnnealingLR(opt, 17, eta_min=0.02),
    "cosine one": lambda lib, opt: lib.CosineAnnealingLR(opt, 1, eta_min=0.02),
    "linear": lambda lib, opt: lib.LinearLR(opt),
    "linear down": lambda lib, opt: lib.LinearLR(opt, start_factor=1.0, end_factor=0.0, total_iters=40),
    "linear warm-up": lambda lib, opt: lib.LinearLR(opt, 1e-3, total_iters=50),
    "warm-up then cosine": warm_up_then_cosine,
    "three parts": three_parts,
}


def close(ours, theirs):
    # PyTorch multiplies from step to step, so its error grows where it passes through small numbers: hence the absolute part.
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def walk(ours, theirs, steps):
    for _ in range(steps):
        for schedule in (ours, theirs):
            schedule.optimizer.step()  # PyTorch warns without
            schedule.step()
        same(ours, theirs)


def same(ours, theirs):
    close(ours.get_last_lr(), theirs.get_last_lr())
    close([g["lr"] for g in ours.optimizer.param_groups], [g["lr"] for g in theirs.optimizer.param_groups])
    assert ours.last_epoch == theirs.last_epoch


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_to_pytorch(torch, make):
    ours, theirs = make(optim, our_optimizer()), make(torch.optim.lr_scheduler, their_optimizer(torch))
    same(ours, theirs)
    walk(ours, theirs, steps=120)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("done", [0, 3, 7, 23])
def test_state_travels_to_pytorch_and_back(torch, make, done):
    ours, theirs = make(optim, our_optimizer()), make(torch.optim.lr_scheduler, their_optimizer(torch))
    walk(ours, theirs, done)

    ours_again, theirs_again = make(optim, our_optimizer()), make(torch.optim.lr_scheduler, their_optimizer(torch))
    ours_again.load_state_dict(theirs.state_dict())
    theirs_again.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    theirs_again.optimizer.load_state_dict(theirs.optimizer.state_dict())  # where PyTorch keeps lr
    same(ours_again, theirs_again)
    assert all(part.last_epoch >= 0 for part in getattr(ours_again, "schedulers", []))  # PyTorch's waiting parts say -1
    walk(ours_again, theirs_again, steps=40)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_state_has_pytorchs_keys(torch, make):
    ours, theirs = make(optim, our_optimizer()), make(torch.optim.lr_scheduler, their_optimizer(torch))
    walk(ours, theirs, 6)
    mine, reference = ours.state_dict(), theirs.state_dict()
    assert set(mine) - {"_step_count"} == set(reference) - {"_step_count", "_is_initial", "_get_lr_called_within_step"}
    assert mine["last_epoch"] == reference["last_epoch"]
    for a, b in zip(mine.get("_schedulers", []), reference.get("_schedulers", []), strict=True):
        assert set(a) == set(b) - {"_is_initial", "_get_lr_called_within_step"}


def test_a_part_may_have_parts(torch):
    def make(lib, opt):
        return lib.SequentialLR(opt, [warm_up_then_cosine(lib, opt), lib.StepLR(opt, 5)], milestones=[20])

    ours = make(optim, our_optimizer())
    flat = warm_up_then_cosine(optim, our_optimizer())
    step = optim.StepLR(our_optimizer(), 5)
    for epoch in range(40):
        assert ours.get_last_lr() == (flat if epoch < 20 else step).get_last_lr()
        assert ours.get_last_lr() == [ours.lr_at(epoch, base) for base in LRS]
        ours.step()
        (flat if epoch < 20 else step).step()
    again = make(optim, our_optimizer())
    again.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    assert again.get_last_lr() == ours.get_last_lr()


@example(kind="CosineAnnealingLR", n=21, a=1.0, b=1.0, steps=41)  # where PyTorch's recursion is off by 3.5e-12
@given(
    kind=st.sampled_from(["StepLR", "CosineAnnealingLR", "LinearLR"]),
    n=st.integers(1, 40),
    a=st.floats(0.01, 1),
    b=st.floats(0, 1),
    steps=st.integers(0, 60),
)
def test_any_options(torch, kind, n, a, b, steps):
    arguments = {"StepLR": (n, a), "CosineAnnealingLR": (n, b), "LinearLR": (a, b, n)}[kind]
    ours = getattr(optim, kind)(our_optimizer(), *arguments)
    theirs = getattr(torch.optim.lr_scheduler, kind)(their_optimizer(torch), *arguments)
    for _ in range(steps):
        for schedule in (ours, theirs):
            schedule.optimizer.step()  # PyTorch warns without
            schedule.step()
        close(ours.get_last_lr(), theirs._get_closed_form_lr())  # its recursion drifts, for some options by more than this


def test_the_optimizer_follows():
    w = tg.tensor([0.0], dtype="float64", requires_grad=True)
    opt = optim.SGD([w], lr=1.0)
    schedule = optim.StepLR(opt, 1, gamma=0.5)
    for _ in range(3):
        w.grad = tg.tensor([1.0], dtype="float64")
        opt.step()
        schedule.step()
    assert w.item() == -1.75
    assert opt.param_groups[0]["lr"] == 0.125 and opt.param_groups[0]["initial_lr"] == 1.0


def test_optimizer_state_carries_the_base_learning_rate(torch):
    opt = our_optimizer()
    optim.LinearLR(opt, 0.1, total_iters=10)
    again, theirs = our_optimizer(), their_optimizer(torch)
    again.load_state_dict(opt.state_dict())
    theirs.load_state_dict(opt.state_dict())
    for other in (again, theirs):
        assert [g["initial_lr"] for g in other.param_groups] == LRS
        close([g["lr"] for g in other.param_groups], [0.1 * lr for lr in LRS])


def test_get_last_lr_is_a_copy():
    schedule = optim.StepLR(our_optimizer(), 1)
    schedule.get_last_lr().clear()
    schedule.state_dict()["base_lrs"].clear()
    assert schedule.get_last_lr() == LRS


def test_a_group_that_came_later_is_not_ignored():
    opt = our_optimizer()
    schedule = optim.StepLR(opt, 1)
    opt.add_param_group({"params": tg.tensor([1.0], requires_grad=True)})
    for act in (schedule.step, lambda: schedule.load_state_dict(schedule.state_dict())):
        with pytest.raises(ValueError, match="made for 3 parameter groups, but the optimizer now has 4"):
            act()
    assert schedule.last_epoch == 0


opt = our_optimizer()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: optim.StepLR(None, 1), TypeError, "StepLR expected an Optimizer, got NoneType"),
        (lambda: optim.StepLR(opt, 0), ValueError, "step_size expected a whole number of at least 1, got 0"),
        (lambda: optim.StepLR(opt, 1.5), TypeError, "step_size expected a whole number, got 1.5"),
        (lambda: optim.StepLR(opt, True), TypeError, "step_size expected a whole number, got True"),
        (lambda: optim.StepLR(opt, 1, -0.1), ValueError, "gamma expected a finite number of at least 0, got -0.1"),
        (lambda: optim.StepLR(opt, 1, math.nan), ValueError, "gamma expected"),
        (lambda: optim.CosineAnnealingLR(opt, 0), ValueError, "T_max expected"),
        (lambda: optim.CosineAnnealingLR(opt, 10, -1), ValueError, "eta_min expected"),
        (lambda: optim.LinearLR(opt, 0.0), ValueError, "start_factor expected a number above 0 to 1, got 0.0"),
        (lambda: optim.LinearLR(opt, 1.5), ValueError, "start_factor expected a number above 0 to 1, got 1.5"),
        (lambda: optim.LinearLR(opt, 0.5, 1.5), ValueError, "end_factor expected a number from 0 to 1, got 1.5"),
        (lambda: optim.LinearLR(opt, 0.5, -0.5), ValueError, "end_factor expected"),
        (lambda: optim.LinearLR(opt, total_iters=0), ValueError, "total_iters expected"),
        (lambda: optim.LinearLR(opt, "half"), TypeError, "start_factor expected a number, got str"),
        (lambda: optim.SequentialLR(opt, [], []), ValueError, "rising milestones"),
        (lambda: optim.SequentialLR(opt, [optim.StepLR(opt, 1)], [3]), ValueError, r"expected 0 rising milestones .*got \[3\]"),
        (lambda: optim.SequentialLR(opt, [optim.StepLR(opt, 1)] * 3, [5, 3]), ValueError, r"expected 2 rising .*got \[5, 3\]"),
        (lambda: optim.SequentialLR(opt, [optim.StepLR(opt, 1)] * 2, [0]), ValueError, "milestones expected"),
        (lambda: optim.SequentialLR(opt, [opt], []), TypeError, "expected schedules, got SGD at position 0"),
        (lambda: optim.SequentialLR(our_optimizer(), [optim.StepLR(opt, 1)], []), ValueError, "position 0 has another"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
    assert [g["lr"] for g in opt.param_groups] == LRS


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"gamma": None}, TypeError, "gamma expected a number, got NoneType"),
        ({"step_size": -1}, ValueError, "step_size expected"),
        ({"base_lrs": [1.0]}, ValueError, "base_lrs expected 3 numbers, got 1"),
        ({"base_lrs": [1.0, 2.0, -3.0]}, ValueError, "base_lrs expected"),
        ({"last_epoch": 1.5}, TypeError, "last_epoch expected a whole number, got 1.5"),
        ({"T_max": 10}, ValueError, "expected the keys step_size, gamma, base_lrs, last_epoch, got T_max, base_lrs"),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change, error, message):
    schedule = optim.StepLR(our_optimizer(), 2)
    schedule.step()
    before = schedule.state_dict()
    with pytest.raises(error, match=message):
        schedule.load_state_dict({**before, "gamma": 0.5, "last_epoch": 4, **change})
    assert schedule.state_dict() == before


def test_a_sequence_checks_all_its_parts_first():
    schedule = warm_up_then_cosine(optim, our_optimizer())
    before = json.dumps(schedule.state_dict())
    state = json.loads(before)
    state["last_epoch"], state["_schedulers"][0]["start_factor"] = 3, 0.9
    with pytest.raises(ValueError, match="T_max expected"):
        schedule.load_state_dict({**state, "_schedulers": [state["_schedulers"][0], {**state["_schedulers"][1], "T_max": 0}]})
    with pytest.raises(ValueError, match="expected the state of 2 schedules, got 1"):
        schedule.load_state_dict({**state, "_schedulers": state["_schedulers"][:1]})
    with pytest.raises(TypeError, match="expected a dict, got list"):
        schedule.load_state_dict([])
    assert json.dumps(schedule.state_dict()) == before
