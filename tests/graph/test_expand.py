"""expand(): a fused BatchNorm opened into primitive operations, from a second run."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import graph, nn, ops
from tinygrad_bn.graph.expand import largest_difference
from tinygrad_bn.tensor import Tensor


def recorded(rng, shape=(6, 3), affine=True, dtype="float64", backward=True, needs=True):
    model = nn.BatchNorm1d(3, affine=affine).to(dtype=dtype)
    x = Tensor(rng.normal(3.0, 2.0, shape).astype(dtype)).requires_grad_(needs)
    weight = rng.normal(size=shape).astype(dtype)
    with graph.record(model) as tape:
        y = model(x)
        if backward:
            (y * weight).sum().backward()
    return tape, next(s for s in tape.steps if s.op == "batch_norm")


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_parts_give_what_the_fused_one_gave(shape, affine, rng):
    tape, step = recorded(rng, shape, affine)
    opened = graph.expand(tape, step)
    parts = opened.tape
    assert "batch_norm" not in {s.op for s in parts.steps} and len(parts) >= 9
    np.testing.assert_allclose(parts.step(opened.output).value, step.value, rtol=1e-12, atol=1e-12)
    for position, c in step.contributions.items():
        np.testing.assert_allclose(parts[opened.inputs[position]].grad, c, rtol=1e-10, atol=1e-12)
    assert set(opened.differences) == {"out", *(step.arguments[i] for i in step.contributions)}
    assert 0 <= max(opened.differences.values()) < 1e-13
    assert opened.differences["out"] == np.abs(parts.step(opened.output).value - step.value).max()
    assert parts.loss == opened.output
    np.testing.assert_array_equal(parts.step(opened.output).grad, step.grad)


def test_leaves_have_the_arguments_names_and_lines_are_the_compositions(rng):
    tape, step = recorded(rng)
    opened = graph.expand(tape, step.id)  # the id will do
    assert {i: opened.tape[k].name for i, k in opened.inputs.items()} == {0: "x", 1: "gamma", 2: "beta"}
    assert [opened.tape[k].kind for k in opened.inputs.values()] == ["input", "parameter", "parameter"]
    assert all(s.source.startswith("norm.py:") for s in opened.tape.steps)
    assert len({s.source for s in opened.tape.steps}) > 5
    assert repr(opened).startswith(f"<Expansion into {len(opened.tape)} steps; largest differences: out ")


def test_only_inputs_that_got_a_gradient_get_one_again(rng):
    tape, step = recorded(rng, needs=False)
    opened = graph.expand(tape, step)
    assert set(opened.differences) == {"out", "gamma", "beta"} and opened.tape[opened.inputs[0]].grad is None


def test_without_a_backward_run_only_forward_is_compared(rng):
    tape, step = recorded(rng, backward=False)
    opened = graph.expand(tape, step)
    assert set(opened.differences) == {"out"} and opened.tape.loss is None


def test_a_wrong_value_and_a_wrong_gradient_show_as_differences(rng):
    tape, step = recorded(rng)
    step.value[0, 0] += 0.5
    step.contributions[1][2] -= 0.25
    opened = graph.expand(tape, step)
    assert opened.differences["out"] == pytest.approx(0.5) and opened.differences["gamma"] == pytest.approx(0.25)
    assert opened.differences["x"] < 1e-13


def test_nothing_global_changes(rng):
    tape, step = recorded(rng)
    count = len(tape)
    with tg.no_grad():
        graph.expand(tape, step)
        assert not tg.is_grad_enabled()
    assert len(tape) == count


def test_inside_a_recording_it_is_heard_like_any_other_run(rng):
    tape, step = recorded(rng)
    with graph.record() as outer:
        opened = graph.expand(tape, step)
    assert [s.op for s in outer.steps] == [s.op for s in opened.tape.steps]


def test_what_cannot_be_opened(rng):
    tape, _ = recorded(rng)
    with pytest.raises(ValueError, match="expand expected a step of batch_norm, got mul"):
        graph.expand(tape, next(s for s in tape.steps if s.op == "mul"))
    with pytest.raises(ValueError, match="expand expected a step of batch_norm, got the leaf weight"):
        graph.expand(tape, tape["weight"].id)
    with pytest.raises(ValueError, match=r"expand expected a step of this tape, got <step 3: batch_norm\(.*> of another"):
        graph.expand(tape, recorded(rng)[1])
    with pytest.raises(TypeError, match="expand expected a Tape, as graph.record\\(\\) gives, got int"):
        graph.expand(3, 3)
    x = Tensor(rng.normal(size=(4, 2))).requires_grad_()
    traced = graph.trace(ops.batch_norm(x)[0].sum())
    with pytest.raises(ValueError, match="a step with all of its values, got batch_norm of a graph that kept only some"):
        graph.expand(traced, traced.steps[0])


@pytest.mark.parametrize(
    "a, b, expected",
    [([1, 2], [1, 2.5], 0.5), ([np.nan], [np.nan], 0), ([np.inf], [np.inf], 0), ([np.nan], [1], np.inf), ([], [], 0), (3, 1, 2),
     ([np.inf], [-np.inf], np.inf), ([np.inf], [1], np.inf)],
)  # fmt: skip
def test_the_largest_difference(a, b, expected):
    assert largest_difference(a, b) == expected
