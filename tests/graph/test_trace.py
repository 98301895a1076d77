"""trace(): the graph behind any tensor, without a recording."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import graph, nn, ops
from tinygrad_bn.tensor import Tensor


def leaf(x, dtype="float64"):
    return Tensor(np.array(x, dtype)).requires_grad_()


def edges(tape):
    return [(s.op, [tape[r].op if isinstance(tape[r], graph.Step) else tape[r].name for r in s.inputs]) for s in tape.steps]


def test_the_graph_is_the_one_that_a_recording_shows(rng):
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()
    x, labels = tg.tensor(rng.normal(size=(4, 2))), np.array([0, 1, 0, 1])
    with graph.record(model) as recorded:
        tg.cross_entropy(model(x), labels)
    loss = tg.cross_entropy(model(x), labels)
    traced = graph.trace(loss, model)
    assert edges(traced) == edges(recorded)
    assert [(s.shape, s.dtype, s.saved, s.arguments) for s in traced.steps] == [
        (s.shape, s.dtype, s.saved, s.arguments) for s in recorded.steps
    ]
    known = [s for s in traced.steps if s.value is not None]
    assert len(known) >= 4  # what rules keep, and the tensor itself
    by_order = {s.order: s for s in recorded.steps}
    for step in known:
        np.testing.assert_array_equal(step.value, by_order[step.order].value)
    assert {v.name: v.kind for v in traced.leaves} == {v.name: v.kind for v in recorded.leaves}
    assert traced.loss is None and not traced.calls


def test_without_a_model_parameters_are_numbered():
    model = nn.Linear(2, 3)
    tape = graph.trace(model(tg.tensor(np.ones((1, 2), "float32"))))
    assert [(v.name, v.kind) for v in tape.leaves] == [
        ("input", "input"), ("parameter 1", "parameter"), ("parameter 2", "parameter"),
    ]  # fmt: skip


def test_a_graph_of_gradients():
    x = leaf([1.0, 2.0])
    (g,) = tg.grad((x**3).sum(), x, create_graph=True)
    (h,) = tg.grad(g.sum(), x, create_graph=True)
    first, second = graph.trace(g), graph.trace(h)
    assert [s.op for s in first.steps] == ["pow", "mul", "mul", "cast"]  # 3 x ** 2, times what came in, copied
    assert len(second) > 2 and second.steps[-1].op == "cast"
    np.testing.assert_array_equal(second.steps[-1].value, [6, 12])
    assert [v.name for v in first.leaves if v.requires_grad] == ["input 1"]
    assert first.to_svg().startswith("<svg") and "pow" in first.to_dot()


def test_values_that_the_graph_let_go_of_are_none_and_shapes_are_known():
    x = leaf(np.ones((3, 2)))
    tape = graph.trace((x + np.ones((3, 1)) + 1.0).sum())
    assert [s.value is None for s in tape.steps] == [True, True, False]
    assert [s.shape for s in tape.steps] == [(3, 2), (3, 2), ()]
    assert [v.shape for v in tape.leaves] == [(3, 2), (3, 1), ()]
    assert tape.leaves[1].value is None and tape.leaves[1].kind == "constant"
    assert "(3, 1)" in tape.to_svg()


def test_one_leaf_one_array_one_entry():
    x, a = leaf([1.0, 2.0]), np.ones(2)
    tape = graph.trace(x * a + x.exp() * a)
    assert len(tape.leaves) == 2 and tape.steps[0].inputs[1] == tape.steps[2].inputs[1]


def test_gradients_of_leaves_are_there():
    x = leaf([1.0, 2.0])
    y = x.exp().sum()
    y.backward(retain_graph=True)
    tape = graph.trace(y)
    np.testing.assert_array_equal(tape.leaves[0].grad, x.grad.data)


def test_a_leaf_and_a_result_without_a_graph_stand_alone():
    for tensor in (leaf([1.0, 2.0]), tg.tensor([1.0]), leaf([1.0]).exp().detach()):
        tape = graph.trace(tensor)
        assert len(tape) == 0 and len(tape.leaves) == 1 and tape.leaves[0].shape == tensor.shape
        assert "no operation" in tape.to_svg()


def test_a_freed_graph():
    x = leaf([1.0, 2.0])
    h = x.exp()
    y = h.sum()
    y.backward()
    with pytest.raises(ValueError, match="the graph behind this sum was freed by backward; .* retain_graph=True"):
        graph.trace(y)
    tape = graph.trace(h * 2.0)
    assert [(s.op, s.freed, s.inputs) for s in tape.steps] == [("exp", True, []), ("mul", False, [0, 2.0])]
    assert "was freed" in tape.to_svg()


def test_tracing_changes_nothing():
    x = leaf([1.0, 2.0])
    y = ops.softplus(x).sum()
    before = repr(y.node)
    graph.trace(y).to_svg()
    assert repr(y.node) == before and x.grad is None
    y.backward()
    assert x.grad is not None


def test_a_deep_graph():
    x = leaf([1.0])
    y = x
    for _ in range(3000):
        y = y * 1.0
    assert len(graph.trace(y)) == 3000


@pytest.mark.parametrize("wrong", [3.0, np.ones(2), None])
def test_what_is_no_tensor(wrong):
    with pytest.raises(TypeError, match="graph.trace expected a Tensor, got"):
        graph.trace(wrong)


def test_a_model_that_is_no_module():
    with pytest.raises(TypeError, match="graph.trace expected a Module or None as model, got int"):
        graph.trace(leaf([1.0]), 3)
