"""Hearing what the engine does: hooks on tensors, and listeners to everything."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import core, ops
from tinygrad_bn.core import AddAt, Listener, listening
from tinygrad_bn.tensor import Tensor


def leaf(x, dtype="float64"):
    return Tensor(np.array(x, dtype)).requires_grad_()


class Log(Listener):
    """Writes down every event."""

    def __init__(self):
        self.events = []

    def apply(self, name, inputs, options, out, aux, node):
        self.events.append(("apply", name, inputs, options, out, aux, node))

    def before_rule(self, node, g):
        self.events.append(("before_rule", node, g))

    def contribution(self, node, parent, value):
        self.events.append(("contribution", node, parent, value))

    def leaf_ready(self, leaf, g):
        self.events.append(("leaf_ready", leaf, g))

    def backward_end(self):
        self.events.append(("backward_end",))

    def of(self, kind):
        return [e[1:] for e in self.events if e[0] == kind]


# ----- Tensor.register_hook


@pytest.mark.parametrize("where", ["leaf", "result"])
def test_a_hook_gets_the_whole_gradient_once_a_walk(where):
    x = leaf([1.0, 2.0])
    h = x * 2.0 if where == "result" else x
    seen = []
    h.register_hook(lambda g: seen.append(g))
    (h * 3.0 + h * h).sum().backward()
    assert len(seen) == 1 and type(seen[0]) is Tensor and not seen[0].requires_grad
    np.testing.assert_array_equal(seen[0].data, 3 + 2 * h.data)
    np.testing.assert_array_equal(x.grad.data, (3 + 2 * h.data) * (2 if where == "result" else 1))


@pytest.mark.parametrize("where", ["leaf", "result"])
@pytest.mark.parametrize("answer", ["tensor", "array"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_what_a_hook_returns_replaces_the_gradient(where, answer, create_graph):
    x = leaf([1.0, 2.0])
    h = x * 2.0 if where == "result" else x
    h.register_hook(lambda g: g * 10.0 if answer == "tensor" else g.data * 10.0)
    h.register_hook(lambda g: g + 1.0)  # gets what the first one made
    (h * h).sum().backward(create_graph=create_graph)
    np.testing.assert_allclose(x.grad.data, (20 * h.data + 1) * (2 if where == "result" else 1))


def test_a_hook_is_part_of_a_recorded_walk():
    x = leaf(3.0)
    h = x * x
    handle = h.register_hook(lambda g: g * h)
    (g,) = tg.grad(h * 2.0, x, create_graph=True)  # 2 h * 2 x = 4 x^3
    assert float(g) == 4 * 27
    handle.remove()  # else it would be asked in the next walk, which goes through h too
    (g2,) = tg.grad(g, x)
    assert float(g2) == 12 * 9


def test_hooks_are_removed():
    x = leaf(1.0)
    seen = []
    first, second = x.register_hook(lambda g: seen.append(1)), x.register_hook(lambda g: seen.append(2))
    (x * x).backward()
    first.remove()
    first.remove()  # twice does no harm
    (x * x).backward()
    second.remove()
    (x * x).backward()
    assert seen == [1, 2, 2]
    h = x * x
    handle = h.register_hook(lambda g: g * 0.0)
    handle.remove()
    x.zero_grad()
    h.backward()
    assert float(x.grad) == 2.0


def test_a_hook_of_a_wrong_shape():
    for h in (leaf([1.0, 2.0]), leaf([1.0, 2.0]) * 1.0):
        h.register_hook(lambda g: np.ones(3))
        with pytest.raises(ValueError, match=r"a gradient hook was given shape \(2,\), but returned shape \(3,\)"):
            (h * h).sum().backward()


def test_hooks_need_a_gradient():
    x = Tensor(np.ones(2))
    for method in (x.register_hook, x.register_post_accumulate_grad_hook):
        with pytest.raises(RuntimeError, match="expects a tensor that requires grad"):
            method(lambda g: None)
    with pytest.raises(RuntimeError, match="retain_grad expects a tensor that requires grad"):
        x.retain_grad()
    with pytest.raises(RuntimeError, match="register_post_accumulate_grad_hook expects a leaf"):
        (leaf(1.0) * 2.0).register_post_accumulate_grad_hook(lambda t: None)


def test_a_hook_on_a_result_also_runs_in_grad():
    x = leaf(2.0)
    h = x * x
    seen = []
    h.register_hook(lambda g: seen.append(float(g)))
    (gx,) = tg.grad(h * 3.0, x)
    assert seen == [3.0] and float(gx) == 12.0


def test_a_hook_on_a_result_changes_what_grad_gives_for_it():
    x = leaf(2.0)
    h = x * x
    h.register_hook(lambda g: g * 10.0)
    gh, gx = tg.grad(h * 3.0, [h, x])
    assert float(gh) == 30.0 and float(gx) == 120.0


def test_a_hook_on_a_leaf_also_runs_in_grad():
    """As in PyTorch: the hook is on the tensor, however its gradient is asked for."""
    x = leaf(2.0)
    x.register_hook(lambda g: g * 10.0)
    (gx,) = tg.grad(x * 3.0, x)
    assert float(gx) == 30.0


def test_a_hook_may_run_a_walk_of_its_own():
    x, z = leaf(2.0), leaf(5.0)

    def walk(g):
        with tg.enable_grad():
            (z * z).backward()

    x.register_hook(walk)
    (x * x).backward()
    assert float(x.grad) == 4.0 and float(z.grad) == 10.0


# ----- retain_grad


def test_retain_grad():
    x = leaf([1.0, 2.0])
    h = x * 2.0
    h.retain_grad()
    x.retain_grad()  # a leaf keeps it anyway
    y = (h * h).sum()
    assert h.grad is None
    y.backward()
    np.testing.assert_array_equal(h.grad.data, 2 * h.data)
    np.testing.assert_array_equal(x.grad.data, 4 * h.data)
    assert not np.shares_memory(h.grad.data, x.grad.data)


def test_without_retain_grad_a_result_keeps_none():
    x = leaf(1.0)
    h = x * 2.0
    (h * h).backward()
    assert h.grad is None


def test_retain_grad_holds_the_tensor_weakly():
    gc.disable()
    try:
        x = leaf([1.0, 2.0])
        h = x * 2.0
        h.retain_grad()
        watch = weakref.ref(h)
        y = (h * h).sum()
        del h
        assert watch() is None
        y.backward()
    finally:
        gc.enable()


def test_retain_grad_comes_after_the_hooks_and_is_recorded_too():
    x = leaf(3.0)
    h = x * x
    h.retain_grad()
    handle = h.register_hook(lambda g: g * 10.0)
    (h * h).backward(create_graph=True)
    assert float(h.grad) == 2 * 9 * 10 and h.grad.requires_grad
    handle.remove()
    (g,) = tg.grad(h.grad, x)
    assert float(g) == 20 * 6


# ----- register_post_accumulate_grad_hook


def test_the_post_accumulate_hook_gets_the_leaf_with_its_gradient():
    x = leaf([1.0, 2.0])
    seen = []
    handle = x.register_post_accumulate_grad_hook(lambda t: seen.append((t is x, t.grad.data.copy())))
    (x * x).sum().backward()
    (x * x).sum().backward()
    assert [same for same, _ in seen] == [True, True]
    np.testing.assert_array_equal(seen[0][1], [2, 4])
    np.testing.assert_array_equal(seen[1][1], [4, 8])  # with what was there before
    handle.remove()
    (x * x).sum().backward()
    assert len(seen) == 2


def test_the_post_accumulate_hook_runs_while_the_walk_goes_on():
    """Layer by layer, the last first: each leaf as soon as its last contribution is in, before the rules behind it run."""
    order = []
    weights = [leaf([[float(i + 1)]]) for i in range(3)]
    for i, w in enumerate(weights):
        w.register_post_accumulate_grad_hook(lambda t, i=i: order.append(f"w{i}"))
    h = leaf([[1.0]])
    h.register_hook(lambda g: order.append("input"))
    for i, w in enumerate(weights):
        h = ops.linear(h, w)
        h.register_hook(lambda g, i=i: order.append(f"layer {i}"))
    h.sum().backward()
    assert order[:5] == ["layer 2", "w2", "layer 1", "w1", "layer 0"] and set(order[5:]) == {"w0", "input"}


def test_a_shared_weight_waits_for_its_last_contribution():
    order = []
    w, v = leaf(2.0), leaf(3.0)
    w.register_post_accumulate_grad_hook(lambda t: order.append(("w", float(t.grad))))
    v.register_post_accumulate_grad_hook(lambda t: order.append(("v", float(t.grad))))
    (((w * 1.0) * v) * w).backward()
    assert order == [("v", 4.0), ("w", 12.0)]


def test_an_edge_that_no_gradient_comes_along_does_not_hold_a_leaf_up():
    """sign gives no gradient, a rule may answer None: the leaf is delivered all the same."""

    @core.primitive
    def nothing(x):
        return x * 1.0

    nothing.defvjp(lambda g, _out, _x: None)
    order = []
    x, w = leaf(2.0), leaf(1.0)
    x.register_post_accumulate_grad_hook(lambda t: order.append("x"))
    w.register_post_accumulate_grad_hook(lambda t: order.append("w"))
    h = nothing(x * 1.0) + ops.sign(x)
    (w * (h + x * x)).backward()
    assert order == ["w", "x"] and float(x.grad) == 4.0


def test_a_leaf_may_be_updated_in_its_hook():
    """An optimizer in the backward pass: what the rest of the walk needs was checked before."""
    x, w = leaf([2.0]), leaf([3.0])
    w.register_post_accumulate_grad_hook(lambda t: setattr(t, "data", t.data - 0.1 * t.grad.data))
    (x.exp().log() * w).sum().backward()
    assert float(w) == pytest.approx(2.8) and float(x.grad) == pytest.approx(3.0)


def test_grad_calls_no_post_accumulate_hook():
    x = leaf(2.0)
    x.register_post_accumulate_grad_hook(lambda t: 1 / 0)
    tg.grad(x * x, x)


def test_the_post_accumulate_hook_with_create_graph():
    x, seen = leaf(2.0), []
    x.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.requires_grad))
    (x * x).backward(create_graph=True)
    assert seen == [True]


# ----- listeners


def test_apply_tells_everything():
    log, x, y = Log(), leaf([3.0, 4.0]), np.array([1.0, 2.0])
    with listening(log) as same:
        assert same is log
        h = x * y
        z = ops.sum(h, 0)
    (name, inputs, options, out, aux, node), (name2, _, options2, out2, _, node2) = log.of("apply")
    assert name == "mul" and inputs[0] is x.data and inputs[1] is y and out is h.data and aux is None and node is h.node
    assert options == {}
    assert name2 == "sum" and options2 == {"axis": 0, "keepdims": False} and out2 is z.data and node2 is z.node
    x * y
    assert len(log.events) == 2  # out of the block it hears nothing


def test_apply_is_heard_under_no_grad_and_without_any_gradient():
    log, x = Log(), leaf([1.0])
    with listening(log):
        with tg.no_grad():
            x * 2.0
        Tensor(np.ones(2)).exp()
        ops.add(np.ones(1), np.ones(1))  # raw arrays too
    assert [(name, node) for name, _, _, _, _, node in log.of("apply")] == [("mul", None), ("exp", None), ("add", None)]


def test_apply_tells_aux():
    log = Log()
    with listening(log):
        _, aux = ops.batch_norm(leaf(np.arange(6.0).reshape(3, 2)))
    (event,) = [e for e in log.of("apply") if e[0] == "batch_norm"]
    assert event[4] is aux and event[2] == {"eps": 1e-5}


def test_the_walk_tells_everything_in_order():
    log, x, w = Log(), leaf([1.0, 2.0]), leaf([3.0, 4.0])
    h = x * w
    y = h.sum()
    with listening(log):
        y.backward()
    assert [e[0] for e in log.events if e[0] != "apply"] == [
        "before_rule", "contribution", "before_rule", "contribution", "contribution", "leaf_ready", "leaf_ready", "backward_end"
    ]  # fmt: skip
    assert [n for n, _ in log.of("before_rule")] == [y.node, h.node]
    assert [e[:2] for e in log.of("contribution")] == [(y.node, h.node), (h.node, x), (h.node, w)]
    np.testing.assert_array_equal(log.of("contribution")[1][2], [3, 4])
    ready = log.of("leaf_ready")
    assert [t for t, _ in ready] == [x, w]
    np.testing.assert_array_equal(ready[1][1], [1, 2])


def test_contributions_are_told_before_they_are_accumulated_and_stay_so():
    log, x = Log(), leaf([1.0, 2.0])
    y = (x * 2.0 + x * 3.0 + x.exp() * 0.0).sum()
    with listening(log):
        y.backward()
    values = [v for _, p, v in log.of("contribution") if p is x]
    assert len(values) == 3
    np.testing.assert_array_equal(sum(values), x.grad.data)
    for v, expected in zip(values, (0, 3, 2), strict=True):
        np.testing.assert_array_equal(v, [expected, expected])
    (ready,) = log.of("leaf_ready")
    np.testing.assert_array_equal(ready[1], [5, 5])


def test_leaf_ready_means_that_all_contributions_are_in():
    order = []

    class Order(Listener):
        def before_rule(self, node, g):
            order.append(node.name)

        def leaf_ready(self, leaf, g):
            order.append((leaf, g.copy()))

    x, w = leaf(2.0), leaf(3.0)
    y = (x.exp() * w).log()
    with listening(Order()):
        y.backward()
    assert order[:2] == ["log", "mul"] and order[2][0] is w and order[3] == "exp" and order[4][0] is x
    assert float(order[4][1]) == pytest.approx(1.0)


def test_add_at_is_told_as_it_is():
    log, x = Log(), leaf(np.ones((3, 2)))
    y = x[1].sum()
    with listening(log):
        y.backward()
    (value,) = [v for _, p, v in log.of("contribution") if p is x]
    assert type(value) is AddAt and value.index == 1


def test_a_recorded_walk_is_heard_too():
    log, x = Log(), leaf(2.0)
    y = x * x * x
    with listening(log):
        tg.grad(y, x, create_graph=True)
    assert {type(g) for _, g in log.of("before_rule")} == {Tensor}
    assert {type(v) for _, _, v in log.of("contribution")} == {Tensor}
    assert "mul" in [e[0] for e in log.of("apply")]  # the rules' own operations
    assert len(log.of("backward_end")) == 1 and not log.of("leaf_ready")  # grad() delivers nothing


def test_two_listeners_hear_the_same():
    a, b, x = Log(), Log(), leaf(2.0)
    with listening(a):
        x * 2.0
        with listening(b):
            (x * x).backward()
        x * 3.0
    assert [e[0] for e in b.events] == [e[0] for e in a.events[1:-1]] and len(b.events) >= 4
    assert core.modes.hooks is None


def test_a_listener_leaves_also_after_an_error():
    with pytest.raises(KeyError), listening(Log()):
        raise KeyError
    assert core.modes.hooks is None


def test_every_thread_is_heard():
    log, x = Log(), leaf(2.0)
    with listening(log):
        thread = threading.Thread(target=lambda: (x * x).backward())
        thread.start()
        thread.join()
    assert [e[0] for e in log.of("apply")][:1] == ["mul"] and len(log.of("backward_end")) == 1


def test_nodes_keep_all_their_arrays_while_somebody_listens():
    x = leaf([1.0, -2.0])
    assert not isinstance(ops.relu(x).node.inputs[0], np.ndarray)
    with listening(Listener()):
        y = ops.relu(x)
        z = y + 1.0
    assert y.node.inputs[0] is x.data and y.node.out is y.data
    assert z.node.inputs[0] is y.data and z.node.out is z.data


def test_listening_changes_no_number():
    rng = np.random.default_rng(0)
    x, w = leaf(rng.standard_normal((4, 3))), leaf(rng.standard_normal((3, 3)))

    def run():
        x.zero_grad()
        w.zero_grad()
        h, _ = ops.batch_norm(ops.linear(x, w))
        (h.tanh() * x[:, 1:2] + x[0] + h).square().sum().backward()
        return x.grad.data.copy(), w.grad.data.copy()

    quiet = run()
    with listening(Log()), listening(Log()):
        heard = run()
    for a, b in zip(quiet, heard, strict=True):
        np.testing.assert_array_equal(a, b)


def test_listening_forbids_nothing():
    """A bias that is only added may change before backward, whoever looks on."""
    x, b = leaf([1.0]), leaf([1.0])
    with listening(Listener()):
        y = (x + b).sum()
        b.data = b.data * 2.0
        y.backward()
    assert float(b.grad) == 1.0


@pytest.mark.parametrize("how", ["retain_grad", "hook", "rule"])
def test_who_writes_into_the_first_gradient_writes_into_no_other(device, how):
    """The one that backward begins with is made anew each time. Broken by: keeping it."""

    @tg.primitive
    def doubled(x):
        return 2.0 * x

    @doubled.vjp
    def _(g, _out, _x):
        g *= 2.0
        return (g,)

    loss = tg.tensor(3.0, device=device.name, requires_grad=True) * 1.0
    if how == "rule":
        doubled(loss).backward()
    elif how == "hook":
        loss.register_hook(lambda g: g.data.fill(5.0))
        loss.backward(create_graph=True)
    else:
        loss.retain_grad()
        loss.backward(create_graph=True)
        loss.grad.data[...] = 7.0
    other = tg.tensor(3.0, device=device.name, requires_grad=True)
    other.backward()
    assert float(other.grad) == 1.0
