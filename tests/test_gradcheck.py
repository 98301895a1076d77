"""check_grads finds wrong rules and kinks; jacobian and hvp equal PyTorch's; detect_anomaly names operation and line."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import ops
from tinygrad_bn.core import primitive
from tinygrad_bn.tensor import Tensor


def leaf(x, dtype="float64"):
    return Tensor(np.array(x, dtype)).requires_grad_()


# ----- check_grads


def wrong_cube(factor=2.0):
    @primitive
    def cube(x):
        return x**3

    cube.defvjp(lambda g, _out, x: factor * g * x * x)
    return cube


def test_check_grads_passes_what_is_right(rng):
    x, y = rng.standard_normal((2, 3)), rng.uniform(1, 2, 3)
    tg.check_grads(lambda x, y: (x * y).exp() / y, (x, y), order=3)
    tg.check_grads(lambda x: (x * 2.0, x.sin() if hasattr(x, "sin") else x * x), x)  # several outputs
    tg.check_grads(wrong_cube(3.0), x, order=3)
    tg.check_grads(ops.tanh, Tensor(x))
    tg.check_grads(ops.tanh, leaf(x))


def test_check_grads_catches_a_wrong_rule(rng):
    x = rng.standard_normal(4)
    with pytest.raises(
        AssertionError, match=r"order 1: .* by the rules, .* by finite differences \(argument shapes \[\(4,\)\]"
    ):
        tg.check_grads(wrong_cube(), x, order=1)
    with pytest.raises(AssertionError, match="order 1"):
        tg.check_grads(wrong_cube(3.0001), x)
    with pytest.raises(AssertionError, match="order 1"):
        tg.check_grads(lambda x: ops.exp(x) + Tensor(x.data) * 0.5, x)  # a part of the graph was lost


def test_check_grads_catches_a_wrong_rule_among_right_ones(rng):
    x, y = rng.standard_normal((3, 4)), rng.standard_normal(4)
    with pytest.raises(AssertionError):
        tg.check_grads(lambda x, y: ops.exp(x) * y + wrong_cube()(x[0, 0]), (x, y))


def test_check_grads_catches_a_rule_that_keeps_an_array(rng):
    """The saved x is a constant to the second order: right at the first, silently wrong above."""

    @primitive(aux=True)
    def cube(x):
        return x**3, x

    @cube.vjp
    def _(g, _out, _x, *, aux):
        return (3.0 * g * aux * aux,)

    x = rng.standard_normal(4)
    tg.check_grads(lambda x: cube(x)[0], x, order=1)
    with pytest.raises(AssertionError, match="derivative of order 2"):
        tg.check_grads(lambda x: cube(x)[0], x, order=2)


def test_check_grads_catches_a_rule_that_is_wrong_at_third_order_only(rng):
    """As PyTorch's batch_norm: what the second derivative keeps is a constant to the third."""

    @primitive
    def slope(g, x):
        return 4.0 * g * x**3

    slope.defvjp(lambda h, _out, _g, x: 4.0 * h * x**3, lambda h, _out, g, x: 12.0 * h * g * getattr(x, "_data", x) ** 2)

    @primitive
    def fourth(x):
        return x**4

    fourth.defvjp(lambda g, _out, x: slope(g, x))
    x = rng.uniform(0.5, 1.5, 4)
    tg.check_grads(fourth, x, order=2)
    with pytest.raises(AssertionError, match="derivative of order 3"):
        tg.check_grads(fourth, x, order=3)


def test_check_grads_catches_a_rule_that_forgets_an_argument(rng):
    @primitive
    def product(x, y):
        return x * y

    product.defvjp(lambda g, _out, _x, y: g * y, None)
    with pytest.raises(AssertionError, match="order 1"):
        tg.check_grads(product, (rng.standard_normal(3), rng.standard_normal(3)))


def test_check_grads_catches_a_fused_rule_that_differs(rng):
    @primitive
    def cube(x):
        return x**3

    cube.vjp(lambda g, _out, x: (3.0 * g * x * x,))
    cube.fused_vjp(lambda g, _out, x: (3.01 * g * x * x,))
    with pytest.raises(AssertionError, match="order 1"):
        tg.check_grads(cube, rng.standard_normal(3))


@pytest.mark.parametrize("f, at", [
    (ops.relu, [0.0, 1.0]), (ops.abs, [-1.0, 0.0]), (lambda x: ops.maximum(x, 1.0), [1.0, 2.0]), (ops.leaky_relu, [0.0]),
    (lambda x: ops.clip(x, 0.0, 2.0), [2.0, 1.0]), (lambda x: ops.max(x), [1.0, 1.0]), (ops.relu, [1e-5, 1.0]),
    (lambda x: ops.max_pool2d(x.reshape(1, 1, 2, 2), 2), [1.0, 0.0, 1.0, 0.0]), (ops.sign, [0.0, 1.0]),
    (lambda x: ops.relu(x * x * x - 1.0), [1.0, 3.0]), (lambda x: ops.where(x > 1.0, x + 1.0, x), [1.0, 0.0]),
    (lambda x: ops.where(x > 1.0, 2.0 * x, x), [1.0 - 1e-5, 0.0]),
])  # fmt: skip
def test_a_kink_or_a_jump_is_reported_as_one(f, at):
    with pytest.raises(tg.NonSmoothPoint, match="not smooth near this point at order 1.*move the arguments away from kinks"):
        tg.check_grads(f, np.array(at), order=1)


def test_a_kink_of_the_gradient_is_reported_at_its_order():
    """relu(x)^2 has a slope at 0, but a finite difference across the kink of the slope is less exact."""
    tg.check_grads(lambda x: ops.relu(x) * x, np.array([0.0, 1.0]), order=1, rtol=1e-3)
    with pytest.raises(tg.NonSmoothPoint, match="at order 2"):
        tg.check_grads(lambda x: ops.relu(x) * x, np.array([0.0, 1.0]), order=2, rtol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_a_wrong_rule_is_never_taken_for_a_kink_nor_a_right_one(seed):
    x = np.random.default_rng(seed).standard_normal((3, 5)) * 10 ** np.random.default_rng(seed).uniform(-1, 1)
    tg.check_grads(lambda x: ops.tanh(x).sum() * 100.0 + x.exp().mean(), x, seed=seed)
    with pytest.raises(AssertionError):
        tg.check_grads(lambda x: wrong_cube()(ops.tanh(x)).sum() * 1e-2, x, seed=seed)


def test_check_grads_draws_its_direction_from_the_seed(rng):
    seen = []

    def f(x):
        seen.append(x.data.copy())
        return x * x

    x = rng.standard_normal(3)
    for seed in (0, 0, 1):
        tg.check_grads(f, x, order=1, seed=seed)
    n = len(seen) // 3
    assert all((a == b).all() for a, b in zip(seen[:n], seen[n : 2 * n], strict=True))
    assert any((a != b).any() for a, b in zip(seen[:n], seen[2 * n :], strict=True))


def test_misuse_of_check_grads():
    with pytest.raises(TypeError, match="check_grads expected float64 arguments, got float32 at position 1"):
        tg.check_grads(ops.add, (np.ones(2), np.ones(2, "float32")))
    with pytest.raises(ValueError, match="order of at least 1, got 0"):
        tg.check_grads(ops.exp, np.ones(2), order=0)


def test_check_grads_leaves_its_arguments_alone(rng):
    x = rng.standard_normal(3)
    before, t = x.copy(), leaf(x)
    tg.check_grads(lambda a, b: a * b, (x, t), order=2)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(t.data, before)
    assert t.grad is None


def test_check_grads_on_every_device(device, rng):
    x, w = device.array(rng.standard_normal((3, 2))), device.array(rng.standard_normal((4, 2)))
    tg.check_grads(lambda x, w: ops.linear(x, w).tanh(), (x, w), order=2)
    with pytest.raises(AssertionError):
        tg.check_grads(wrong_cube(), x)


# ----- jacobian and hvp


def f_of(x):
    return (x[:, None] * x * x[0]).exp() if hasattr(x, "node") else (x[:, None] * x * x[0]).exp()


def test_jacobian_equals_pytorch(torch, rng):
    x = rng.standard_normal(3) * 0.5
    mine = tg.jacobian(f_of, x)
    assert type(mine) is Tensor and mine.shape == (3, 3, 3)
    np.testing.assert_allclose(mine.data, torch.autograd.functional.jacobian(f_of, torch.tensor(x)).numpy(), 1e-12)


def test_jacobian_of_several_arguments(torch, rng):
    x, y = rng.standard_normal((2, 3)), rng.standard_normal(3)
    mine = tg.jacobian(lambda x, y: x * y, (x, y))
    theirs = torch.autograd.functional.jacobian(lambda x, y: x * y, (torch.tensor(x), torch.tensor(y)))
    assert type(mine) is tuple
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.data, b.numpy(), 1e-14)


def test_jacobian_of_what_does_not_depend(rng):
    x, y = rng.standard_normal(2), rng.standard_normal(3)
    jx, jy = tg.jacobian(lambda x, y: x * 2.0, (x, y))
    np.testing.assert_array_equal(jx.data, 2 * np.eye(2))
    np.testing.assert_array_equal(jy.data, np.zeros((2, 3)))
    np.testing.assert_array_equal(tg.jacobian(lambda x: Tensor(np.ones(2)), x).data, np.zeros((2, 2)))


def test_jacobian_of_a_scalar_and_of_nothing():
    assert float(tg.jacobian(lambda x: x * x, np.array(3.0))) == 6.0
    assert tg.jacobian(lambda x: x[:0], np.ones(3)).shape == (0, 3)


def test_jacobian_can_be_differentiated():
    x = leaf([0.5, 1.5])
    j = tg.jacobian(lambda x: x**3, x, create_graph=True)
    (g,) = tg.grad(j.sum(), x)
    np.testing.assert_allclose(g.data, 6 * x.data)
    hessian = tg.jacobian(lambda x: tg.jacobian(lambda x: (x**3).sum() * x[0], x, create_graph=True), x)
    a, b = x.data
    np.testing.assert_allclose(hessian.data, [[12 * a**2, 3 * b**2], [3 * b**2, 6 * a * b]])


def test_jacobian_works_under_no_grad_and_changes_no_gradient():
    x = leaf([1.0, 2.0])
    with tg.no_grad():
        j = tg.jacobian(lambda x: x * x, x)
    np.testing.assert_array_equal(j.data, np.diag([2.0, 4.0]))
    assert x.grad is None and not j.requires_grad


def test_hvp_equals_pytorch(torch, rng):
    x, v = rng.standard_normal((3, 2)), rng.standard_normal((3, 2))

    def f(x):
        return (x.T @ x).exp().sum() * x[0, 0]

    mine = tg.hvp(f, x, v)
    _, theirs = torch.autograd.functional.hvp(f, torch.tensor(x), torch.tensor(v))
    np.testing.assert_allclose(mine.data, theirs.numpy(), 1e-11)


def test_hvp_of_several_arguments(torch, rng):
    args, vectors = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    mine = tg.hvp(lambda x, y: (x * x * y).sum(), list(args), list(vectors))
    _, theirs = torch.autograd.functional.hvp(
        lambda x, y: (x * x * y).sum(), tuple(torch.tensor(args)), tuple(torch.tensor(vectors))
    )
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.data, b.numpy(), 1e-13)


def test_hvp_of_a_linear_function_is_zero():
    np.testing.assert_array_equal(tg.hvp(lambda x: x.sum(), np.ones(3), np.ones(3)).data, np.zeros(3))
    a, b = tg.hvp(lambda x, y: (x * x).sum(), (np.ones(2), np.ones(3)), (np.ones(2), np.ones(3)))
    np.testing.assert_array_equal(a.data, [2, 2])
    np.testing.assert_array_equal(b.data, np.zeros(3))


def test_misuse_of_hvp():
    with pytest.raises(ValueError, match=r"hvp expected a function of one value, got an output of shape \(2,\)"):
        tg.hvp(lambda x: x * x, np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match=r"hvp expected vectors of shapes \[\(2,\)\], got \[\(3,\)\]"):
        tg.hvp(lambda x: x.sum(), np.ones(2), np.ones(3))


# ----- detect_anomaly


def line() -> int:
    return inspect.currentframe().f_back.f_lineno


def test_an_anomaly_of_the_forward_pass():
    x = leaf([-1.0, 2.0])
    with np.errstate(all="ignore"), tg.detect_anomaly():
        h = x * 2.0
        with pytest.raises(FloatingPointError) as caught:
            at = line() + 1
            ops.log(h)
    assert str(caught.value) == f"log, called at {__file__}:{at}, produced NaN in the forward pass"
    with np.errstate(all="ignore"), tg.detect_anomaly(), pytest.raises(FloatingPointError) as caught:
        at = line() + 1
        1.0 / (x * 0.0 + 0.0)
    assert f"div, called at {__file__}:{at}, produced Inf" in str(caught.value)


def test_an_anomaly_that_came_from_an_input():
    x = Tensor(np.array([np.nan, 1.0]))
    with tg.detect_anomaly(), pytest.raises(FloatingPointError, match="mul, called at .*; its input 0 already had NaN"):
        x * 2.0


def test_an_anomaly_of_the_backward_pass():
    x = leaf([0.0, 4.0])
    with np.errstate(all="ignore"), tg.detect_anomaly():
        at = line() + 1
        h = ops.sqrt(x)
        y = (h * 3.0).sum()
        with pytest.raises(FloatingPointError) as caught:
            y.backward()
    assert str(caught.value) == f"the gradient of sqrt, called at {__file__}:{at}, produced Inf in the backward pass"


def test_an_anomaly_of_a_composed_operation_is_placed_in_the_users_file():
    x = leaf(np.zeros((2, 2)))
    with np.errstate(all="ignore"), tg.detect_anomaly(), pytest.raises(FloatingPointError) as caught:
        at = line() + 1
        ops.mse_loss(x, Tensor(np.full((2, 2), np.inf)))
    assert f"{__file__}:{at}" in str(caught.value)


def test_an_anomaly_of_a_recorded_gradient():
    x = leaf([0.0])
    with np.errstate(all="ignore"), tg.detect_anomaly(), pytest.raises(FloatingPointError, match="div, called at|sqrt"):
        tg.grad(ops.sqrt(x).sum(), x, create_graph=True)


def test_a_node_made_before_the_block_has_no_line():
    x = leaf([0.0])
    y = ops.sqrt(x).sum()
    message = r"a line outside detect_anomaly\(\)"
    with np.errstate(all="ignore"), tg.detect_anomaly(), pytest.raises(FloatingPointError, match=message):
        y.backward()


def test_no_anomaly():
    x = leaf([1.0, 2.0])
    with tg.detect_anomaly():
        (ops.log(x) * x[0] + ops.argmax(x)).sum().backward()
    assert np.isfinite(x.grad.data).all()
    with np.errstate(all="ignore"):
        ops.log(x - 5.0)  # outside nothing is said


def test_an_anomaly_in_add_at():
    x = leaf([1.0, 2.0])
    with np.errstate(all="ignore"), tg.detect_anomaly(), pytest.raises(FloatingPointError, match="the gradient of"):
        x[0].backward(np.array(np.nan))


def test_anomalies_on_the_device(device):
    x = Tensor(device.array(np.array([-1.0, 2.0]))).requires_grad_()
    with np.errstate(all="ignore"), tg.detect_anomaly(), pytest.raises(FloatingPointError, match="log, .* produced NaN"):
        ops.log(x)


@pytest.mark.parametrize("wrong", ["recorded", "fused"])
def test_check_grads_compares_both_rules_of_an_operation_that_has_two(wrong):
    """One serves the gradient of every day, the other the derivatives of higher order."""

    @primitive
    def three_squares(x):
        return 3.0 * x * x

    three_squares.vjp(lambda g, _out, x: ((5.0 if wrong == "recorded" else 6.0) * g * x,))
    three_squares.fused_vjp(lambda g, _out, x: ((5.0 if wrong == "fused" else 6.0) * g * x,))
    with pytest.raises(AssertionError, match="order 1, recorded" if wrong == "recorded" else "order 1: "):
        tg.check_grads(three_squares, np.array([0.5, 2.0]), order=2)
