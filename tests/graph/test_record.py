"""record(): what is written down is what happened, bit for bit, and nothing happens because of it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import core, graph, nn, ops
from tinygrad_bn.core import Absent, primitive
from tinygrad_bn.tensor import Tensor


def leaf(x, dtype="float64"):
    return Tensor(np.array(x, dtype)).requires_grad_()


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()


@pytest.fixture
def batch(rng):
    return tg.tensor(rng.normal(size=(4, 2))), np.array([0, 1, 1, 0])


def step_of(tape, op, number=0):
    return [s for s in tape.steps if s.op == op][number]


def assert_adds_up(tape):
    """Each gradient is the sum of the contributions that lead to it, and each contribution has its input's shape and dtype."""
    for entry in [*tape.steps, *tape.leaves]:
        parts = [s.contributions[i] for s, i in tape.consumers(entry.id) if i in s.contributions]
        for part in parts:
            assert part.shape == entry.shape and str(part.dtype) == entry.dtype
        if parts:
            np.testing.assert_allclose(sum(parts), entry.grad, rtol=1e-12, atol=1e-15)
        elif entry.grad is not None:
            assert entry.id == tape.loss


# ----- what is written down


def test_a_training_step_is_written_down_whole(batch):
    model, (x, labels) = network(), batch
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1)
    before = model.state_dict()
    with graph.record(model) as tape:
        loss = tg.cross_entropy(model(x), labels)
        loss.backward()
        grads = {name: p.grad.data.copy() for name, p in model.named_parameters()}
        optimizer.step()
    assert [s.op for s in tape.steps] == ["linear", "batch_norm", "relu", "linear", "cross_entropy", "mean"]
    assert [s.module for s in tape.steps] == ["0", "1", "2", "3", "", ""]
    assert [s.order for s in tape.steps] == list(range(6))
    assert [s.backward for s in tape.steps] == [5, 4, 3, 2, 1, 0]
    assert {s.phase for s in tape.steps} == {"forward"}
    assert tape.loss == tape.steps[-1].id and tape.steps[-1].value == loss.data
    assert [s.arguments for s in tape.steps[:2]] == [["x", "w", "b"], ["x", "gamma", "beta"]]
    assert tape.steps[1].options == {"eps": 1e-5} and len(tape.steps[1].aux) == 2
    names = {leaf.name: leaf for leaf in tape.leaves}
    assert {n: v.kind for n, v in names.items()} == {
        **{n: "parameter" for n in grads},
        **{"input 1": "input", "input 2": "input"},
    }
    after = model.state_dict()
    for name, g in grads.items():
        np.testing.assert_array_equal(names[name].value, before[name])
        np.testing.assert_array_equal(names[name].grad, g)
        np.testing.assert_array_equal(names[name].after, after[name])
    assert (names["0.weight"].value != names["0.weight"].after).any()
    np.testing.assert_array_equal(tape.before["1.running_mean"], before["1.running_mean"])
    np.testing.assert_array_equal(tape.after["1.running_mean"], after["1.running_mean"])
    assert (tape.after["1.running_mean"] != tape.before["1.running_mean"]).any()
    assert_adds_up(tape)


def test_inputs_are_told_by_identity(batch):
    model, (x, labels) = network(), batch
    with graph.record(model) as tape:
        tg.cross_entropy(model(x), labels)
    by_name = {leaf.name: leaf.id for leaf in tape.leaves}
    first, norm, relu, last, entropy, mean = tape.steps
    assert first.inputs == [by_name["input 1"], by_name["0.weight"], by_name["0.bias"]]
    assert norm.inputs == [first.id, by_name["1.weight"], by_name["1.bias"]]
    assert [relu.inputs, last.inputs[0], mean.inputs] == [[norm.id], relu.id, [entropy.id]]
    assert entropy.inputs == [last.id, by_name["input 2"]]


def test_the_users_line_is_the_source():
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        x.exp()  # this line
        nn.ReLU()(x)  # and this one
    lines = Path(__file__).read_text().splitlines()
    numbers = [
        lines.index(next(line for line in lines if line.endswith(mark))) + 1 for mark in ("# this line", "# and this one")
    ]
    assert [s.source for s in tape.steps] == [f"test_record.py:{n}" for n in numbers]


def test_numbers_among_the_inputs_are_floats_so_that_they_are_no_ids():
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        x**2 + True
    assert tape.steps[0].inputs == [0, 2.0] and type(tape.steps[0].inputs[1]) is float
    assert tape.steps[1].inputs == [1, 1.0] and type(tape.steps[1].inputs[1]) is float


def test_an_absent_input_is_none():
    x, w = leaf(np.ones((2, 3))), leaf(np.ones((4, 3)))
    with graph.record() as tape:
        ops.linear(x, w)
    assert tape.steps[0].inputs == [0, 1, None]


def test_a_tensor_used_twice_gets_both_contributions():
    x = leaf([2.0, 3.0])
    with graph.record() as tape:
        h = x * x
        (h + h.exp()).sum().backward()
    mul, exp, add, _ = (s for op in ("mul", "exp", "add", "sum") for s in tape.steps if s.op == op)
    np.testing.assert_array_equal(add.contributions[0] + exp.contributions[0], mul.grad)
    np.testing.assert_array_equal(mul.contributions[0], mul.grad * x.data)
    np.testing.assert_array_equal(mul.contributions[1], mul.grad * x.data)
    np.testing.assert_array_equal(tape.leaves[0].grad, x.grad.data)
    assert [(s.op, i) for s, i in tape.consumers(mul.id)] == [("exp", 0), ("add", 0)]


def test_contributions_are_told_apart_where_one_rule_has_none():
    @primitive
    def second(x, y):
        return y * 1.0

    second.defvjp(None, lambda g, _out, _x, _y: g)
    x, gamma = leaf(np.ones((3, 2)) + np.arange(6).reshape(3, 2)), leaf([1.0, 2.0])
    with graph.record() as tape:
        ops.where(x > 2, x, 2.0 * x).sum().backward()
        ops.batch_norm(x.detach(), gamma, gamma)[0].sum().backward()  # no gradient for x, two for gamma
        second(x, x).sum().backward()
        tg.grad((x * gamma).sum(), gamma)  # none for x, which was not asked for
    assert list(step_of(tape, "where").contributions) == [1, 2] and list(step_of(tape, "second").contributions) == [1]
    assert list(tape.steps[-2].contributions) == [1] and tape.steps[-2].op == "mul"
    norm = step_of(tape, "batch_norm")
    assert list(norm.contributions) == [1, 2]
    np.testing.assert_allclose(norm.contributions[1], [0, 0], atol=1e-12)
    np.testing.assert_allclose(norm.contributions[2], [3, 3])


def test_broadcasting_is_undone_in_contributions():
    x, b = leaf(np.ones((3, 2))), leaf([1.0, 2.0])
    with graph.record() as tape:
        (x + b).sum().backward()
    np.testing.assert_array_equal(tape.steps[0].contributions[1], [3.0, 3.0])
    np.testing.assert_array_equal(tape.steps[0].contributions[0], np.ones((3, 2)))


def test_a_contribution_in_another_dtype_arrives_in_the_inputs():
    x = leaf([1.0, 2.0], "float32")
    with graph.record() as tape:
        (x.double() * x).sum().backward()
    assert {str(c.dtype) for s in tape.steps for i, c in s.contributions.items() if s.inputs[i] == 0} == {"float32"}
    assert_adds_up(tape)


def test_a_contribution_to_a_part_is_spread_out():
    x = leaf([1.0, 2.0, 3.0])
    with graph.record() as tape:
        (x[1] * 5.0 + x[np.array([0, 0])].sum()).backward()
    assert [list(s.contributions[0]) for s in tape.steps if s.op == "getitem"] == [[0, 5, 0], [2, 0, 0]]
    np.testing.assert_array_equal(tape.leaves[0].grad, [2, 5, 0])


def test_several_inputs_of_a_variadic_operation():
    x, y = leaf([1.0]), leaf([2.0])
    with graph.record() as tape:
        (ops.concatenate([x, y, x]) * tg.tensor(np.array([1.0, 10.0, 100.0]))).sum().backward()
    assert [float(c[0]) for c in tape.steps[0].contributions.values()] == [1, 10, 100]
    assert tape.steps[0].arguments == ["arrays[0]", "arrays[1]", "arrays[2]"]
    np.testing.assert_array_equal(tape.leaves[0].grad, x.grad.data)


CASES = {
    "add": lambda x: x + 2.0,
    "mul": lambda x: x * x.detach(),
    "exp": lambda x: x.exp(),
    "relu": lambda x: x.relu(),
    "softplus": lambda x: ops.softplus(x),
    "linear": lambda x: ops.linear(x, leaf(np.ones((3, 2))), leaf(np.ones(3))),
    "linear of a constant": lambda x: ops.linear(x.detach(), leaf(np.ones((3, 2)))),
    "batch_norm": lambda x: ops.batch_norm(x, leaf([1.0, 2.0]), leaf([1.0, 2.0]))[0],
    "sum": lambda x: x.sum(),
    "max": lambda x: x.max(axis=0),
    "concatenate": lambda x: ops.concatenate([x, x]),
}


@pytest.mark.parametrize("case", CASES)
def test_saved_is_what_a_node_keeps_while_nobody_listens(case, rng):
    x = leaf(rng.normal(size=(4, 2)))
    node = CASES[case](x).node
    with graph.record() as tape:
        CASES[case](x)
    names = node.primitive.argument_names(len(node.parents))
    kept = [n for n, v in zip(names, node.inputs, strict=True) if type(v) is not Absent and hasattr(v, "dtype")]
    kept += ["out"] * (node.out is not None) + ["aux"] * (node.aux is not None)
    assert tape.steps[-1].saved == kept


def test_views_are_marked():
    x = leaf(np.arange(6.0).reshape(2, 3))
    with graph.record() as tape:
        x.reshape(3, 2)
        x.T  # noqa: B018
        x[0]
        x * 1.0
    assert [s.view for s in tape.steps] == [True, True, True, False]


def test_equal_arrays_are_two_leaves_and_one_array_is_one():
    a, b = np.ones(2), np.ones(2)
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        x * a + b * x + x.detach() * a
    assert len(tape.leaves) == 3 and tape.steps[0].inputs[1] == tape.steps[3].inputs[1]
    assert tape.steps[3].inputs[0] == tape.steps[0].inputs[0]  # a detached tensor has the same memory


def test_what_was_freed_is_not_taken_for_what_has_its_place_now():
    x = tg.tensor(np.ones(3))
    with graph.record() as tape, tg.no_grad():
        for _ in range(30):
            x * 2.0  # freed at once
            Tensor(np.full(3, 2.0)) + 1.0  # equal numbers, perhaps in the same memory
    assert all(isinstance(tape[s.inputs[0]], graph.Leaf) for s in tape.steps)


def test_kinds_and_names_of_what_is_of_no_model():
    x, y, n = leaf([1.0, 2.0]), tg.tensor([3.0, 4.0]), tg.tensor(5.0)
    p = nn.Parameter(np.ones(2))
    with graph.record() as tape:
        ops.where(x > 1, x, y) * n * p
    assert [(v.name, v.kind) for v in tape.leaves] == [
        ("constant 1", "constant"), ("input 1", "input"), ("input 2", "input"), ("constant 2", "constant"),
        ("parameter", "parameter"),
    ]  # fmt: skip


def test_a_module_that_no_model_has_names_its_own(batch):
    x, _ = batch
    with graph.record() as tape:
        for _ in range(2):
            nn.Sequential(nn.Linear(2, 1).double())(x)
    assert [s.module for s in tape.steps] == ["Sequential.0", "Sequential 2.0"]
    assert tape["Sequential.0.weight"].kind == tape["Sequential 2.0.bias"].kind == "parameter"
    assert [(c.path, c.kind, c.parent) for c in tape.calls[:2]] == [
        ("Sequential", "Sequential", None),
        ("Sequential.0", "Linear", 0),
    ]


def test_buffers_are_named():
    model = nn.Sequential(nn.BatchNorm1d(2).double()).eval()
    with graph.record(model) as tape, tg.no_grad():
        model(tg.tensor(np.ones((3, 2))))
    assert {v.name: v.kind for v in tape.leaves} == {
        "input": "input", "0.weight": "parameter", "0.bias": "parameter", "0.running_mean": "buffer", "0.running_var": "buffer",
    }  # fmt: skip
    assert tape.steps[0].requires_grad is False and tape.steps[0].arguments == ["x", "gamma", "beta", "mean", "var"]


def test_a_buffer_that_was_replaced_keeps_its_name():
    model = nn.Sequential(nn.BatchNorm1d(2).double())
    x = tg.tensor(np.arange(6.0).reshape(3, 2))
    with graph.record(model) as tape, tg.no_grad():
        model(x)
        mean = model[0].running_mean.data.copy()
        model.eval()(x)
        end = model[0].running_mean.data.copy()
    np.testing.assert_array_equal(tape["0.running_mean"].value, mean)
    np.testing.assert_array_equal(tape["0.running_mean"].after, end)


def test_a_parameter_is_known_where_an_optimizer_moved_it_to():
    model = nn.Linear(2, 1).double()
    with graph.record(model) as tape, tg.no_grad():
        model.weight.data = model.weight.data.copy()  # as an optimizer does, to have all in one buffer
        ops.linear(tg.tensor(np.ones((1, 2))), model.weight)
    assert [(v.name, v.kind) for v in tape.leaves] == [("input", "input"), ("weight", "parameter")]


def test_a_parameter_that_an_optimizer_changed_is_a_new_version(batch):
    model, (x, labels) = network(), batch
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1)
    with graph.record(model) as tape:
        for _ in range(2):
            optimizer.zero_grad()
            tg.cross_entropy(model(x), labels).backward()
            optimizer.step()
    old, new = tape["0.weight"], tape["0.weight, version 2"]
    np.testing.assert_array_equal(old.after, new.value)
    np.testing.assert_array_equal(new.after, model[0].weight.data)
    np.testing.assert_array_equal(new.grad, model[0].weight.grad.data)
    assert (old.value != new.value).any() and (old.grad != new.grad).any() and tape.walks == 2


def test_an_array_that_was_written_into_is_a_new_version():
    a, x = np.ones(2), leaf([1.0, np.nan])
    with graph.record() as tape:
        x * a
        x * a  # unchanged, NaN and all
        a[0] = 7.0
        x * a
    assert [v.name for v in tape.leaves] == ["input 1", "input 2", "input 2, version 2"]
    np.testing.assert_array_equal(tape["input 2"].after, [7.0, 1.0])
    np.testing.assert_array_equal(tape["input 2"].value, [1.0, 1.0])


def test_gradients_that_two_walks_deliver_are_summed():
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        (x * 3.0).sum().backward()
        x.exp().sum().backward()
    np.testing.assert_array_equal(tape.leaves[0].grad, x.grad.data)
    assert tape.walks == 2 and list(tape.leaves[0].grads) == [0, 1]
    assert [s.backward for s in tape.steps] == [1, 0, 3, 2]


def test_gradients_that_grad_returns_are_written_down_too():
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        h = x * 3.0
        y = h.exp() + h
        g = tg.grad(y.sum(), [h, x], retain_graph=True)
        only = tg.grad(y.sum(), h)
    mul = step_of(tape, "mul")
    np.testing.assert_array_equal(mul.grad, g[0].data)
    np.testing.assert_array_equal(tape.leaves[0].grad, g[1].data)
    np.testing.assert_array_equal(mul.visits[1].grad, only[0].data)
    assert mul.backward is not None and mul.visits[1].order is None and x.grad is None


def test_the_gradient_is_the_one_after_the_users_hooks():
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        h = x * 2.0
        h.register_hook(lambda g: g * 10.0)
        x.register_hook(lambda g: g + 1.0)
        h.sum().backward()
    np.testing.assert_array_equal(tape.steps[0].grad, [10, 10])
    np.testing.assert_array_equal(tape.leaves[0].grad, x.grad.data)
    assert tape.leaves[0].hooked == [0] and [s.visits[0].hooked for s in tape.steps] == [True, False], "and where hooks were"


def test_a_users_primitive_with_a_name_of_this_package_is_not_taken_for_it():
    @primitive
    def gelu(x):
        return 3.0 * x

    gelu.defvjp(lambda g, _out, _x: 3.0 * g)
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        y = gelu(x)
        ops.gelu(y).sum().backward()
    for told in (tape, graph.trace(ops.gelu(gelu(x)))):
        mine, ours = told.steps[:2]
        assert (mine.op, mine.formula, mine.arguments) == (f"{__name__}.gelu", "", ["x"])
        assert ours.op == "gelu" and "cdf" in ours.formula


# ----- gradients that are recorded themselves


def test_the_operations_of_a_recorded_gradient_are_steps(batch):
    model, (x, labels) = network(), batch
    w = model[0].weight
    with graph.record(model) as tape:
        loss = tg.cross_entropy(model(x), labels)
        (g,) = tg.grad(loss, w, create_graph=True)
        (g * g).sum().backward()
    kinds = [s.phase for s in tape.steps]
    assert kinds == ["forward"] * 6 + ["backward"] * (len(kinds) - 8) + ["forward"] * 2
    assert tape.loss == tape.steps[5].id and tape.walks == 2
    forward = {s.id for s in tape.steps[:6]}
    rules = [s.rule_of for s in tape.steps if s.phase == "backward"]
    assert set(rules[:-1]) <= forward and rules[-1] is None  # the last is the copy that grad() returns
    np.testing.assert_array_equal(tape["0.weight"].grads[0], g.data)
    np.testing.assert_array_equal(tape["0.weight"].grad, w.grad.data)
    assert step_of(tape, "linear").visits[1].order > step_of(tape, "linear").visits[0].order
    assert all(v.kind == "constant" for v in tape.leaves if v.name.startswith("constant"))
    assert sum(v.kind == "input" for v in tape.leaves) == 2


def test_what_happens_inside_a_rule_that_nobody_watches_is_no_step():
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        ops.softplus(x).sum().backward()  # its rule calls sigmoid
    assert [s.op for s in tape.steps] == ["softplus", "sum"] and len(tape.leaves) == 1


def test_a_users_own_rule_is_no_step_either():
    @primitive
    def cube(x):
        return x**3

    cube.defvjp(lambda g, _out, x: ops.mul(ops.mul(3.0, x), ops.mul(g, x)))
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        cube(x).sum().backward()
    assert [s.op for s in tape.steps] == ["cube", "sum"]
    np.testing.assert_array_equal(tape.steps[0].contributions[0], [3, 12])


def test_a_primitive_inside_a_primitive_is_no_step():
    @primitive
    def outer(x):
        return ops.exp(ops.neg(x))

    outer.defvjp(lambda g, out, _x: -g * out)
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        outer(x)
        ops.exp(x.data)  # raw arrays alone, by the user
    assert [s.op for s in tape.steps] == ["outer", "exp"]


# ----- nothing happens because of it


def training(steps, recorded):
    tg.manual_seed(3)
    model = tg.models.cnn()
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = np.random.default_rng(0)
    x, labels = tg.tensor(data.normal(size=(4, 1, 28, 28)).astype("float32")), np.array([0, 1, 2, 3])
    for _ in range(steps):
        optimizer.zero_grad()
        if recorded:
            with graph.record(model):
                tg.cross_entropy(model(x), labels).backward()
        else:
            tg.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.state_dict()


def test_recording_changes_no_number():
    plain, recorded = training(2, False), training(2, True)
    assert plain.keys() == recorded.keys()
    for name in plain:
        np.testing.assert_array_equal(plain[name], recorded[name])


def test_the_tape_keeps_copies(batch):
    model, (x, labels) = network(), batch
    with graph.record(model) as tape:
        loss = tg.cross_entropy(model(x), labels)
        loss.backward()
    value, weight = tape.steps[0].value.copy(), tape["0.weight"].value.copy()
    gradient = tape["0.weight"].grad.copy()
    model[0].weight.data[...] = 9.0
    model[0].weight.grad.data[...] = 9.0
    x.data[...] = 9.0
    np.testing.assert_array_equal(tape.steps[0].value, value)
    np.testing.assert_array_equal(tape["0.weight"].value, weight)
    np.testing.assert_array_equal(tape["0.weight"].grad, gradient)
    assert (tape["input 1"].value != 9.0).all()


def test_nothing_of_the_run_outlives_it():
    x = leaf([1.0, 2.0])
    gc.disable()
    try:
        with graph.record() as tape:
            h = x.exp()
            node, array = weakref.ref(h.node), weakref.ref(h)
            h.sum().backward()
        tensor = weakref.ref(x)
        del h, x
        assert node() is None and array() is None and tensor() is None
    finally:
        gc.enable()
    assert len(tape) == 2


def test_a_recording_that_is_kept_keeps_nothing_of_the_run():
    model = nn.Linear(2, 1).double()
    recording = graph.record(model)
    gc.disable()
    try:
        with recording:
            h = model(tg.tensor(np.ones((1, 2))))
        node, weight = weakref.ref(h.node), weakref.ref(model.weight)
        del h, model
        assert node() is None and weight() is None
    finally:
        gc.enable()
    del recording


def test_two_recordings_at_once_hear_the_same():
    x = leaf([1.0, 2.0])
    with graph.record() as outer:
        x.exp()
        with graph.record() as inner:
            x.log().sum().backward()
    assert [s.op for s in outer.steps] == ["exp", "log", "sum"] and [s.op for s in inner.steps] == ["log", "sum"]
    np.testing.assert_array_equal(outer.steps[1].grad, inner.steps[0].grad)


def test_other_threads_are_not_heard():
    x = leaf([1.0, 2.0])

    def elsewhere():
        nn.ReLU()(x).sum().backward()

    with graph.record() as tape:
        x.exp()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert [s.op for s in tape.steps] == ["exp"] and not tape.calls and tape.walks == 0 and tape.leaves[0].grad is None


# ----- broken and odd runs


def test_an_error_ends_the_recording_and_leaves_what_was_written():
    x = leaf([1.0, 2.0])
    with pytest.raises(ZeroDivisionError), graph.record() as tape:
        nn.ReLU()(x)
        raise ZeroDivisionError
    assert [s.op for s in tape.steps] == ["relu"] and core.modes.hooks is None
    assert tape.leaves[0].name == "input" and tape.leaves[0].after is not None


def test_a_walk_that_ends_by_an_error_is_over():
    @primitive
    def bad(x):
        return x * 1.0

    bad.defvjp(lambda g, _out, _x: 1 / 0)
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        with pytest.raises(ZeroDivisionError):
            bad(x * 2.0).sum().backward()
        (x * 3.0).sum().backward()
    assert [s.op for s in tape.steps] == ["mul", "bad", "sum", "mul", "sum"] and {s.phase for s in tape.steps} == {"forward"}
    assert tape.walks == 2 and tape.steps[0].grad is None
    np.testing.assert_array_equal(tape.steps[3].grad, [1, 1])
    np.testing.assert_array_equal(tape.leaves[0].grad, [3, 3])


def test_a_walk_after_a_broken_one_through_an_older_graph():
    @primitive
    def bad(x):
        return x * 1.0

    bad.defvjp(lambda g, _out, _x: 1 / 0)
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        older = (x * 3.0).sum()
        with pytest.raises(ZeroDivisionError):
            bad(x).sum().backward()
        x.exp()
        older.backward()
    assert tape.walks == 2 and [v.walk for v in tape.steps[0].visits] == [1]


def test_two_walks_that_end_by_errors_one_after_the_other():
    @primitive
    def bad(x):
        return x * 1.0

    bad.defvjp(lambda g, _out, _x: 1 / 0)
    x = leaf([1.0, 2.0])
    with graph.record() as tape:
        y = bad(x).sum()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                y.backward(retain_graph=True)
    assert tape.walks == 2


@pytest.mark.parametrize("wrong", [1.0, np.ones((3, 3))])
def test_a_rule_that_gives_nonsense_gets_the_engines_error(wrong):
    @primitive
    def bad(x):
        return x * 1.0

    bad.defvjp(lambda g, _out, _x: wrong)
    with graph.record() as tape, pytest.raises((TypeError, ValueError), match="the rule of bad gave a gradient"):
        bad(leaf([1.0, 2.0])).sum().backward()
    assert step_of(tape, "bad").contributions == {}


def test_a_graph_from_before_the_recording():
    x = leaf([1.0, 2.0])
    h = x.exp()
    with graph.record() as tape:
        (h * 2.0).sum().backward()
    assert [s.op for s in tape.steps] == ["mul", "sum"]
    assert [(v.name, v.kind) for v in tape.leaves] == [("input", "input")]
    np.testing.assert_array_equal(tape.leaves[0].grad, [2, 2])
    h = x.exp()
    h.register_hook(lambda g: g * 10.0)
    with graph.record() as tape:
        (h * 2.0).sum().backward()
    np.testing.assert_array_equal(tape.leaves[0].grad, [20, 20])
    with graph.record() as later:
        x.exp().sum()
        h = x.log().sum()
    with graph.record() as later:
        h.backward()
    assert len(later) == 0 and later.loss is None


def test_values_that_are_not_finite_0d_or_empty():
    x, e, s = leaf([np.nan, np.inf]), leaf(np.ones((0, 3))), leaf(2.0)
    with graph.record() as tape, np.errstate(invalid="ignore"):
        ((x * 2.0).sum() + (e * 2.0).sum() + s * s).backward()
    assert [v.shape for v in tape.leaves] == [(2,), (0, 3), ()]
    assert np.isnan(tape.steps[0].value[0]) and tape.steps[2].value.shape == (0, 3) and tape.leaves[2].grad == 4
    assert tape.steps[0].nbytes == 16 and tape.steps[2].nbytes == 0
    assert len(tape.leaves) == 3


def test_a_hostile_name_is_a_name_like_any_other():
    name = "</script><img onerror=alert(1)>"
    model = nn.Module()
    setattr(model, name, nn.Parameter(np.ones(2)))
    with graph.record(model) as tape:
        getattr(model, name).exp()
    assert tape.leaves[0].name == name and tape[name] is tape.leaves[0]


def test_on_a_device_values_come_to_the_host(device, rng):
    x = Tensor(device.array(rng.normal(size=(4, 2)))).requires_grad_()
    w = Tensor(device.array(rng.normal(size=(3, 2)))).requires_grad_()
    with graph.record() as tape:
        y = ops.linear(x, w).relu()
        (y[0].sum() + y.sum()).backward()
    assert all(type(s.value) is np.ndarray and type(s.grad) is np.ndarray for s in tape.steps)
    np.testing.assert_array_equal(tape.leaves[0].grad, device.numpy(x.grad))
    np.testing.assert_array_equal(tape.leaves[1].grad, device.numpy(w.grad))
    assert len(tape.leaves) == 2 and all(type(c) is np.ndarray for s in tape.steps for c in s.contributions.values())


# ----- time


def test_times_add_up_to_no_more_than_the_run_took():
    x = leaf(np.ones((100, 100)))
    began = time.perf_counter()
    with graph.record() as tape:
        y = x
        for _ in range(20):
            y = y @ x * 0.01
        y.sum().backward()
    took = time.perf_counter() - began
    times = [t for s in tape.steps for t in (s.forward_s, s.backward_s)]
    assert all(t > 0 for t in times) and sum(times) < took


def test_a_slow_operation_and_a_slow_rule_are_charged_to_themselves():
    @primitive
    def slow(x):
        time.sleep(0.05)
        return x * 1.0

    def rule(g, _out, _x):
        time.sleep(0.05)
        return g * 1.0

    slow.defvjp(rule)
    x = leaf([1.0])
    with graph.record() as tape:
        slow(x.exp()).sum().backward()
    exp, middle, total = tape.steps
    assert middle.forward_s >= 0.05 and middle.backward_s >= 0.05
    assert max(exp.forward_s, exp.backward_s, total.forward_s, total.backward_s) < 0.05


def test_on_cuda_each_event_waits_for_the_device(cuda_stand_in, monkeypatch):
    waited = []
    monkeypatch.setattr(tg.cuda, "synchronize", lambda: waited.append(None))
    x = Tensor(cuda_stand_in.array([1.0, 2.0])).requires_grad_()
    with graph.record():
        x.exp().sum().backward()
    assert len(waited) == 6  # two operations, two rules, two contributions
    with graph.record():
        leaf([1.0, 2.0]).exp().sum().backward()
    assert len(waited) == 6


# ----- asking


@pytest.mark.parametrize("wrong, named", [(3, "int"), ("model", "str"), (nn.Linear, "type")])
def test_a_model_that_is_no_module(wrong, named):
    with pytest.raises(TypeError, match=f"graph.record expected a Module or None, got {named}"):
        graph.record(wrong)


def test_looking_things_up(batch):
    model, (x, labels) = network(), batch
    with graph.record(model) as tape:
        tg.cross_entropy(model(x), labels)
    assert len(tape) == 6 and tape[tape.steps[2].id] is tape.steps[2] is tape.step(tape.steps[2].id)
    assert tape[tape.leaves[1].id] is tape.leaves[1]
    assert repr(tape) == "<Tape of 6 steps and 8 leaves>"
    assert "linear(x: #0, w: #1, b: #2) -> (4, 3) float64" in repr(tape.steps[0])
    assert repr(tape.leaves[1]) == "<parameter 1: 0.weight (3, 2) float64>"
    with pytest.raises(KeyError, match="has no leaf 'weight'; it has input 1, 0.weight"):
        tape["weight"]
    with pytest.raises(IndexError, match="has ids from 0 to 13, got 14"):
        tape[14]
    with pytest.raises(TypeError, match="by an id or by a leaf's name, got float"):
        tape[1.0]
    with pytest.raises(ValueError, match="id 0 is that of a leaf, input 1, expected a step's"):
        tape.step(0)


def test_what_grad_asked_for_is_recorded_before_its_hooks():
    x = Tensor(np.array([1.0, 2.0])).requires_grad_()
    with graph.record() as tape:
        h = x * 2.0
        h.register_hook(lambda g: 10.0 * g)
        (g,) = tg.grad((h * h).sum(), h)
    np.testing.assert_array_equal(tape.steps[0].grad, [4.0, 8.0])
    np.testing.assert_array_equal(g.numpy(), [40.0, 80.0])
