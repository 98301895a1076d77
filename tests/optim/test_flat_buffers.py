"""Parameters live in one flat array per dtype and device, and go back into it after somebody took them out."""

from __future__ import annotations

import numpy as np
import pytest
from test_sgd import SHAPES, Twins

import tinygrad_bn as tg
from tinygrad_bn import backend
from tinygrad_bn.optim import SGD, Adam, AdamW

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def base(p):
    """The array whose memory this parameter sees."""
    return p.data if p.data.base is None else p.data.base


def one_buffer(params):
    return len({id(base(p)) for p in params}) == 1 and base(params[0]).size == sum(p.size for p in params)


def twins_with_sgd(torch, device, rng, **options):
    twins = Twins(torch, device, rng)
    options = {**MOMENTUM, **options}
    return twins, SGD(twins.ours, **options), torch.optim.SGD(twins.theirs, **options)


def test_all_parameters_see_one_buffer(device, rng):
    values = [rng.normal(size=shape) for shape in SHAPES]
    ps = [tg.tensor(np.asarray(v), device=device.name, requires_grad=True) for v in values]
    SGD([{"params": ps[:2]}, {"params": ps[2:], "lr": 1.0}])
    assert one_buffer(ps)
    for p, v in zip(ps, values, strict=True):
        assert p.shape == np.shape(v)
        np.testing.assert_array_equal(device.numpy(p), v)


def test_one_buffer_per_dtype_and_device(cuda_stand_in, rng):
    places = [("float32", "cpu"), ("float64", "cpu"), ("float32", "cuda"), ("float32", "cpu"), ("float64", "cpu")]
    ps = [tg.tensor(rng.normal(size=3), dtype=dtype, device=d, requires_grad=True) for dtype, d in places]
    opt = Adam(ps, lr=0.5)
    assert one_buffer([ps[0], ps[3]]) and one_buffer([ps[1], ps[4]]) and one_buffer([ps[2]])
    before = [backend.to_numpy(p.data).copy() for p in ps]
    for p, (dtype, d) in zip(ps, places, strict=True):
        p.grad = tg.tensor(np.ones(3), dtype=dtype, device=d)
    opt.step()
    for p, b in zip(ps, before, strict=True):
        np.testing.assert_allclose(backend.to_numpy(p.data), b - 0.5, rtol=1e-6, atol=1e-6)


class Counting(SGD):
    """SGD that counts how often its rule runs."""

    calls = 0

    def _update(self, *arguments, **more):
        self.calls += 1
        super()._update(*arguments, **more)


def test_the_rule_runs_once_however_many_parameters(device):
    ps = [tg.tensor([float(i)], device=device.name, requires_grad=True) for i in range(50)]
    opt = Counting(ps, **MOMENTUM)
    for p in ps:
        p.grad = tg.tensor([1.0], device=device.name)
    opt.step()
    assert opt.calls == 1
    ps[20].grad = None
    opt.step()
    assert opt.calls == 3  # before and after the gap
    ps[20].grad = tg.tensor([1.0], device=device.name)
    opt.step()
    assert opt.calls == 4  # SGD knows the first step from the others, and nothing else


def test_a_step_does_not_copy_the_parameters_again(torch, device, rng):
    twins, ours, theirs = twins_with_sgd(torch, device, rng)
    views = [p.data for p in twins.ours]
    twins.walk(ours, theirs, steps=3)
    assert all(p.data is view for p, view in zip(twins.ours, views, strict=True))


@pytest.mark.parametrize("which", [[0], [2], [1, 4], range(len(SHAPES))])
def test_assigned_data_is_packed_again_and_keeps_its_momentum(torch, device, rng, which):
    twins, ours, theirs = twins_with_sgd(torch, device, rng)
    twins.walk(ours, theirs, steps=3)
    assigned = {}
    for i in which:
        new = np.asarray(rng.normal(size=twins.ours[i].shape))
        assigned[i] = twins.ours[i].data = device.array(new)
        twins.theirs[i].data = torch.tensor(new)
    twins.walk(ours, theirs, steps=3, skip=0)
    assert one_buffer(twins.ours)
    for i, array in assigned.items():  # what was assigned was copied, so a step does not write into it
        assert array.size == 0 or not np.array_equal(device.numpy(array), device.numpy(twins.ours[i]))


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_parameters_that_move_take_their_state_along(torch, cuda_stand_in, rng, kind):
    options = MOMENTUM if kind is SGD else {"lr": 0.1}
    twins = Twins(torch, cuda_stand_in, rng)
    for p in twins.ours:
        p.data = backend.to_numpy(p.data)
    cuda_stand_in.name = "cpu"
    ours, theirs = kind(twins.ours, **options), getattr(torch.optim, kind.__name__)(twins.theirs, **options)
    twins.walk(ours, theirs, steps=3)
    cuda_stand_in.name = "cuda"
    for p in twins.ours:
        p.data = backend.to_device(p.data, "cuda")
    twins.walk(ours, theirs, steps=1, skip=0)  # packs
    twins.walk(ours, theirs, steps=3)
    assert all(p.device == "cuda" for p in twins.ours) and one_buffer(twins.ours)
    arrays = [s[name] for s in ours.state_dict()["state"].values() for name in kind.state_names]
    assert arrays and all(backend.device_of(array) == "cuda" for array in arrays)


def test_a_parameter_in_another_dtype_keeps_its_momentum(device):
    p = tg.tensor(np.zeros(2, "float32"), device=device.name, requires_grad=True)
    opt = SGD([p], lr=1.0, momentum=0.5)
    p.grad = tg.tensor(np.ones(2, "float32"), device=device.name)
    opt.step()
    p.data = p.data.astype("float64")
    p.grad = tg.tensor(np.ones(2), device=device.name)
    opt.step()
    assert p.dtype == "float64"
    assert p.tolist() == [-2.5, -2.5]


def test_a_parameter_of_another_shape(device):
    def set_shape(p, n):
        p.grad, p.data = None, device.array(np.zeros(n))
        p.grad = tg.tensor(np.ones(n), device=device.name)

    p = tg.tensor(np.zeros(2), device=device.name, requires_grad=True)
    plain = SGD([p], lr=1.0)
    set_shape(p, 3)
    plain.step()
    assert p.tolist() == [-1.0, -1.0, -1.0]
    with_momentum = SGD([p], lr=1.0, momentum=0.9)
    with_momentum.step()
    set_shape(p, 4)
    with pytest.raises(ValueError, match=r"group 0 had shape \(3,\), now \(4,\), but its state belongs to the old shape"):
        with_momentum.step()
    assert p.tolist() == [0.0] * 4


def test_two_optimizers_on_the_same_parameters(torch, device, rng):
    twins, ours, theirs = twins_with_sgd(torch, device, rng)
    ours2, theirs2 = Adam(twins.ours, lr=0.01), torch.optim.Adam(twins.theirs, lr=0.01)
    for _ in range(3):
        twins.walk(ours, theirs, steps=2)
        twins.walk(ours2, theirs2, steps=1)
    assert one_buffer(twins.ours)


def test_optimizers_that_share_some_parameters(torch, device, rng):
    twins = Twins(torch, device, rng)
    ours = [SGD(twins.ours[:4], **MOMENTUM), SGD(twins.ours[2:], **MOMENTUM)]
    theirs = [torch.optim.SGD(twins.theirs[:4], **MOMENTUM), torch.optim.SGD(twins.theirs[2:], **MOMENTUM)]
    for _ in range(3):
        for mine, reference in zip(ours, theirs, strict=True):
            twins.walk(mine, reference, steps=1)


def test_a_group_added_later(torch, device, rng):
    twins = Twins(torch, device, rng)
    ours, theirs = SGD(twins.ours[:2], **MOMENTUM), torch.optim.SGD(twins.theirs[:2], **MOMENTUM)
    twins.walk(ours, theirs, steps=3)
    ours.add_param_group({"params": (p for p in twins.ours[2:]), "lr": 0.5})
    theirs.add_param_group({"params": twins.theirs[2:], "lr": 0.5})
    assert one_buffer(twins.ours)
    twins.walk(ours, theirs, steps=3)
    with pytest.raises(ValueError, match="each parameter once"):
        ours.add_param_group({"params": twins.ours[0]})
    assert len(ours.param_groups) == 2


def test_a_list_of_parameters_that_was_changed_by_hand(torch, device, rng):
    twins, ours, theirs = twins_with_sgd(torch, device, rng)
    twins.walk(ours, theirs, steps=3)
    for opt in (ours, theirs):
        params = opt.param_groups[0]["params"]
        params.append(params.pop(0))
        del params[1]
    twins.walk(ours, theirs, steps=3)
    ours.param_groups[0]["params"].append("weight")
    with pytest.raises(TypeError, match="expected Tensors, got str"):
        ours.step()


def test_state_dicts_follow_a_list_that_was_changed_by_hand(torch, device, rng):
    twins, ours, theirs = twins_with_sgd(torch, device, rng)
    twins.walk(ours, theirs, steps=1, skip=0)
    for opt in (ours, theirs):
        opt.param_groups[0]["params"].reverse()
    state, reference = ours.state_dict(), theirs.state_dict()
    for i in range(len(SHAPES)):
        buffer = device.numpy(state["state"][i]["momentum_buffer"])
        np.testing.assert_allclose(buffer, reference["state"][i]["momentum_buffer"].numpy(), rtol=1e-12)
    for opt in (ours, theirs):
        opt.param_groups[0]["params"].reverse()
    for s in (state, reference):
        s["state"] = {len(SHAPES) - 1 - i: arrays for i, arrays in s["state"].items()}
    ours.load_state_dict(state)
    theirs.load_state_dict(reference)
    twins.walk(ours, theirs, steps=2)


def test_a_state_dict_taken_and_loaded_while_unpacked(torch, device, rng):
    twins, ours, theirs = twins_with_sgd(torch, device, rng)
    twins.walk(ours, theirs, steps=3)
    for p in twins.ours:
        p.data = p.data.copy()
    state = ours.state_dict()
    for p in twins.ours:
        p.data = p.data.copy()
    ours.load_state_dict(state)
    twins.walk(ours, theirs, steps=3)


# ----- versions


def graph_through(p):
    return (p * p).sum()


def test_a_graph_from_before_the_step_refuses_to_go_backward(device):
    p, q = (tg.tensor([1.0, 2.0], device=device.name, requires_grad=True) for _ in range(2))
    opt = SGD([p, q], lr=0.1)
    loss_p, loss_q = graph_through(p), graph_through(q)
    p.grad = tg.tensor([1.0, 1.0], device=device.name)
    opt.step()
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
        loss_p.backward()
    loss_q.backward()  # q had no gradient, so it was not changed
    np.testing.assert_array_equal(device.numpy(q.grad), [2.0, 4.0])


def test_packing_changes_no_value_and_so_no_graph(device):
    p = tg.tensor([1.0, 2.0], device=device.name, requires_grad=True)
    loss = graph_through(p)
    SGD([p], lr=0.1)
    loss.backward()
    np.testing.assert_array_equal(device.numpy(p.grad), [2.0, 4.0])


def test_a_detached_twin_follows_the_steps(device):
    p = tg.tensor([1.0, 2.0], device=device.name, requires_grad=True)
    opt = SGD([p], lr=1.0)
    twin = p.detach()
    p.grad = tg.tensor([1.0, 1.0], device=device.name)
    opt.step()
    assert twin.tolist() == [0.0, 1.0]


def test_training_waits_for_nothing(device, rng):
    x = tg.tensor(rng.normal(size=(8, 3)), device=device.name)
    w1, w2 = (tg.tensor(rng.normal(size=s), device=device.name, requires_grad=True) for s in ((3, 4), (4, 1)))
    opt = AdamW([w1, w2], lr=0.05)
    losses = []
    with device.no_syncs():
        for _ in range(30):
            opt.zero_grad()
            loss = ((x @ w1).relu() @ w2 - 1.0).square().mean()
            loss.backward()
            opt.step()
            losses.append(loss)
    assert losses[-1].item() < losses[0].item()
