"""What users do wrong, and the exact sentence that each mistake gets.

A row is a name, a call, the type of error and the whole message, compared for equality (a compiled pattern where a part is
not ours to know). What a failing call must leave as it was is in the tests at the end.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import operator
import pickle
import re
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import backend, datasets, models, nn, ops, optim
from tinygrad_bn.nn import init


class Row(NamedTuple):
    name: str
    call: Callable[[], Any]
    error: type[Exception]
    message: str | re.Pattern


def x(*shape: int, dtype: str = "float32", device: str = "cpu") -> tg.Tensor:
    """A tensor of this shape."""
    return tg.zeros(*shape, dtype=dtype, device=device)


def leaf(*shape: int, device: str = "cpu") -> tg.Tensor:
    """A tensor of this shape that requires grad."""
    return tg.ones(*shape, device=device, requires_grad=True)


def ints(*values: int, device: str = "cpu") -> tg.Tensor:
    return tg.tensor(list(values), dtype="int64", device=device)


def on_cuda(*shape: int) -> tg.Tensor:
    return x(*shape, device="cuda")


W = leaf(3)

# ----- sentences that come more than once

LEAVES_SILENTLY = "a tensor that requires grad does not leave the graph silently; use .detach().numpy()"
IN_PLACE = "a tensor that requires grad is not changed in place; use where(), concatenate(), or assign .data"
NOT_RECORDED = "was it made under no_grad(), detached, or made from tensors none of which requires grad?"


def freed(operation: str) -> str:
    return (
        f"the graph behind this {operation} was freed by an earlier backward; pass retain_graph=True to that one to go "
        "through it again"
    )


def changed(operation: str, argument: str, shape: tuple) -> str:
    return (
        f"a leaf of shape {shape}, which {operation} kept as its argument {argument!r}, was changed in place after the forward "
        "pass; run the forward pass again, or change it (optimizer.step(), .data = ..., load_state_dict) only after backward"
    )


def too_few(count: int, shape: tuple) -> str:
    return (
        f"batch_norm expected more than 1 value per channel in training, got {count} (input of shape {shape}); is this a last, "
        "partial batch? Leave it out with drop_last=True"
    )


# ----- mistakes that take more than an expression


def assign(name: str, value: Any, to: Any) -> None:
    setattr(to, name, value)


def put(t: Any, index: Any, value: Any) -> None:
    t[index] = value


def backward_again() -> None:
    loss = (leaf(3) * 2.0).sum()
    loss.backward()
    loss.backward()


def backward_through_a_shared_part() -> None:
    shared = leaf(3) * leaf(3)
    shared.sum().backward()
    (shared * 2.0).sum().backward()


def change_then_backward(change: Callable[[tg.Tensor], Any]) -> None:
    w = leaf(3)
    loss = (w * w).sum()
    change(w)
    loss.backward()


def change_a_constant_then_backward() -> None:
    w, constant = leaf(3), x(3)
    loss = (w * constant).sum()
    constant[0] = 1.0
    loss.backward()


def step_then_backward() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = optim.SGD(model.parameters(), 0.1)
    loss = model(x(4, 3)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    loss.backward()


def without_grad() -> tg.Tensor:
    with tg.no_grad():
        return (leaf(3) * 2.0).sum()


def grad_again() -> None:
    w = leaf(3)
    loss = (w * w).sum()
    tg.grad(loss, w)
    tg.grad(loss, w)


def second_grad_without_create_graph() -> None:
    w = leaf(3)
    (g,) = tg.grad((w * w).sum(), w)
    tg.grad(g.sum(), w)


def grad_of(inputs: Any, grad_outputs: Any = None) -> None:
    w = leaf(3)
    tg.grad((w * 2.0).sum() if grad_outputs is None else w * 2.0, [w] if inputs is None else inputs, grad_outputs)


def hooked(hook: Any) -> None:
    w = leaf(3)
    w.register_hook(hook)
    (w * 2.0).sum().backward()


def product(*rules: Any) -> Any:
    """x * y with these rules."""

    @tg.primitive
    def product(x, y):
        return x * y

    return product.defvjp(*rules)


def several() -> Any:
    @tg.primitive
    def several(*xs):
        return xs[0]

    return several


def load(model: nn.Module, strict: bool = True, **changes: Any) -> None:
    """The model's own state dict with these changes; a value of None takes a key out."""
    state = {**model.state_dict(), **changes}
    model.load_state_dict({k: v for k, v in state.items() if v is not None}, strict)


def sgd(lr: Any = 0.1, *others: Any, **options: Any) -> optim.SGD:
    return optim.SGD(nn.Linear(3, 2).parameters(), lr, *others, **options)


def adam(*options: Any, **more: Any) -> optim.Adam:
    return optim.Adam(nn.Linear(3, 2).parameters(), *options, **more)


def step_with(**attributes: Any) -> None:
    """A step of an optimizer whose first parameter got these attributes."""
    optimizer = sgd()
    for name, value in attributes.items():
        setattr(optimizer.param_groups[0]["params"][0], name, value)
    optimizer.step()


def step_with_lr(lr: Any) -> None:
    optimizer = sgd()
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


def reshape_after_a_step() -> None:
    w = leaf(2, 3)
    optimizer = optim.SGD([w], 0.1, momentum=0.9)
    w.grad = x(2, 3)
    optimizer.step()
    w.data, w.grad = x(3, 3), x(3, 3)
    optimizer.step()


def load_momentum(**changes: Any) -> None:
    """The state of an optimizer with momentum, that of its first parameter changed."""
    optimizer = sgd(momentum=0.9)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = tg.Tensor(p.data)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0] = changes
    optimizer.load_state_dict(state)


def load_group(optimizer: optim.Optimizer, **changes: Any) -> None:
    state = optimizer.state_dict()
    state["param_groups"][0].update(changes)
    optimizer.load_state_dict(state)


def grow_under_a_schedule() -> None:
    optimizer = sgd()
    schedule = optim.StepLR(optimizer, 1)
    optimizer.add_param_group({"params": leaf(3)})
    schedule.step()


def schedules_of_two() -> None:
    optim.SequentialLR(sgd(), [optim.StepLR(sgd(), 1)], [])


def two_schedules_and(milestones: Any) -> None:
    optimizer = sgd()
    optim.SequentialLR(optimizer, [optim.StepLR(optimizer, 1), optim.StepLR(optimizer, 2)], milestones)


def batches(x_shape: tuple = (5, 2), y_shape: tuple = (5,), batch_size: Any = 2, **options: Any) -> datasets.Batches:
    return datasets.batches(np.zeros(x_shape), np.zeros(y_shape), batch_size, **options)


def resume(**changes: Any) -> None:
    b = batches()
    b.load_state_dict({**b.state_dict(), **changes})


def look_into_log_of_zero() -> None:
    with np.errstate(divide="ignore"), tg.detect_anomaly():
        (leaf(1) - 1.0).log()


def manual_step(step: Callable[[Any], Any]) -> None:
    """The loop by hand that PyTorch's users write."""
    model = nn.Linear(2, 2)
    model(x(1, 2)).sum().backward()
    with tg.no_grad():
        step(model)


def subtract_in_a_loop(model: Any) -> None:
    for p in model.parameters():
        p -= 0.1 * p.grad


def subtract_from_the_weight(model: Any) -> None:
    model.weight -= 0.1 * model.weight.grad


def change_a_result_then_backward(change: Callable[[tg.Tensor], Any]) -> None:
    y = leaf(3).exp()
    change(y)
    y.sum().backward()


def change_a_view_of_a_constant_then_backward() -> None:
    w, constant = leaf(3), x(3)
    loss = (w * constant).sum()
    constant.reshape(3, 1)[0] = 1.0
    loss.backward()


def backward_onto(grad: Any, device: str = "cpu") -> None:
    w = leaf(3, device=device)
    w.grad = grad
    (w * 2.0).sum().backward()


def with_rule(rule: Any) -> None:
    """Backward through 2 x, the rule of which is this."""

    @tg.primitive
    def double(x):
        return 2.0 * x

    double.defvjp(rule)
    double(leaf(3)).sum().backward()


def with_joint_rule(rule: Any) -> None:
    @tg.primitive
    def product(x, y):
        return x * y

    product.vjp(rule)
    product(leaf(3), leaf(3)).sum().backward()


def with_aux(result: Any) -> None:
    @tg.primitive(aux=True)
    def operation(x):
        return result

    operation(leaf(3))


def with_result(result: Any) -> None:
    @tg.primitive
    def operation(x):
        return result

    operation(leaf(3))


def step_without_lr() -> None:
    optimizer = sgd()
    del optimizer.param_groups[0]["lr"]
    optimizer.step()


def clip_grad_that_is_a_number() -> None:
    w = leaf(3)
    w.grad = 5
    optim.clip_grad_norm_([w], 1.0)


def load_schedule(**changes: Any) -> None:
    schedule = optim.StepLR(sgd(), 1)
    schedule.load_state_dict({**schedule.state_dict(), **changes})


def torch_tensor() -> Any:
    """Something that calls itself a Tensor and is not ours."""
    return type("Tensor", (), {"__module__": "torch"})()


def device_from_the_environment(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGRAD_BN_DEVICE", name)
        tg.tensor([1.0])


def scaled_without_option() -> None:
    @tg.primitive
    def scaled(x, *, k):
        return k * x

    scaled.defvjp(lambda g, out, x: g)


def hooked_on_cuda() -> None:
    w = leaf(3, device="cuda")
    w.register_hook(lambda g: g.cpu())
    (w * 2.0).sum().backward()


# fmt: off
MISUSES = [
    # making tensors
    Row("text in a tensor", lambda: tg.tensor("abc"), TypeError, "tensor() expected numbers, got data of dtype <U3"),
    Row("None in a tensor", lambda: tg.tensor(None), TypeError, "tensor() expected numbers, got data of dtype object"),
    Row("complex numbers", lambda: tg.tensor(1 + 2j), TypeError, "tensor() expected numbers, got data of dtype complex128"),
    Row("an array of objects", lambda: tg.tensor(np.array([1, 2], dtype=object)),
        TypeError, "tensor() expected numbers, got data of dtype object"),
    Row("an int tensor that requires grad", lambda: tg.tensor([1, 2], requires_grad=True),
        TypeError, "only floating tensors can require grad, got int64"),
    Row("a bool tensor that requires grad", lambda: tg.tensor([True], requires_grad=True),
        TypeError, "only floating tensors can require grad, got bool"),
    Row("requires_grad_ of ints", lambda: ints(1, 2).requires_grad_(),
        TypeError, "only floating tensors can require grad, got int64"),
    Row("zeros of ints that require grad", lambda: tg.zeros(2, dtype="int64", requires_grad=True),
        TypeError, "only floating tensors can require grad, got int64"),
    Row("an int Parameter", lambda: nn.Parameter(np.arange(3)), TypeError, "only floating tensors can require grad, got int64"),
    Row("an unknown device", lambda: tg.tensor([1.0], device="gpu"), ValueError, "device expected 'cpu' or 'cuda', got 'gpu'"),
    Row("a device by number", lambda: tg.tensor([1.0], device=0), ValueError, "device expected 'cpu' or 'cuda', got 0"),
    Row("a second GPU", lambda: tg.tensor([1.0], device="cuda:1"), ValueError, "device expected 'cpu' or 'cuda', got 'cuda:1'"),
    Row("a dtype where a device goes", lambda: nn.Linear(2, 2).to("float64"),
        ValueError, "device expected 'cpu' or 'cuda', got 'float64'"),
    Row("an unknown device of ones", lambda: tg.ones(2, 3, device="tpu"),
        ValueError, "device expected 'cpu' or 'cuda', got 'tpu'"),
    Row("a list as data", lambda: assign("data", [1.0, 2.0], leaf(2)),
        TypeError, ".data expected a NumPy or CuPy array, got list"),
    Row("a number as data", lambda: assign("data", 3.0, leaf(2)), TypeError, ".data expected a NumPy or CuPy array, got float"),
    Row("data of a result", lambda: assign("data", np.ones(3), leaf(3) * 2.0),
        TypeError, ".data of a result of mul cannot be assigned; use .detach() for a tensor of its own"),
    # leaving the graph
    Row("numpy() of a leaf", lambda: leaf(3).numpy(), RuntimeError, LEAVES_SILENTLY),
    Row("numpy() of a result", lambda: (leaf(3) * 2.0).numpy(), RuntimeError, LEAVES_SILENTLY),
    Row("np.asarray of a leaf", lambda: np.asarray(leaf(3)), RuntimeError, LEAVES_SILENTLY),
    Row("item() of three", lambda: x(3).item(), ValueError, "item() expected a tensor of one element, got shape (3,)"),
    Row("float() of three", lambda: float(x(3)), ValueError, "item() expected a tensor of one element, got shape (3,)"),
    Row("int() of three", lambda: int(x(3)), ValueError, "item() expected a tensor of one element, got shape (3,)"),
    Row("bool() of three", lambda: bool(x(3)),
        ValueError, "the truth of a tensor of shape (3,) is ambiguous; compare elements and use .any() or .all()"),
    Row("`and` of tensors", lambda: x(3) and x(3),
        ValueError, "the truth of a tensor of shape (3,) is ambiguous; compare elements and use .any() or .all()"),
    Row("bool() of none", lambda: bool(x(0)),
        ValueError, "the truth of a tensor of shape (0,) is ambiguous; compare elements and use .any() or .all()"),
    Row("len() of a number", lambda: len(tg.tensor(1.0)), TypeError, "a tensor of no dimensions has no length"),
    Row("a loop over a number", lambda: list(tg.tensor(1.0)), TypeError, "a tensor of no dimensions has no length"),
    Row("pickle", lambda: pickle.dumps(leaf(3)),
        TypeError, "tensors are not pickled; save .numpy(), or a module's state_dict()"),
    Row("deepcopy of a result", lambda: copy.deepcopy(leaf(3) * 2.0),
        RuntimeError, "a result of mul cannot be copied with its graph; copy .detach()"),
    # in place
    Row("an element of a leaf", lambda: put(leaf(3), 0, 1.0), TypeError, IN_PLACE),
    Row("an element of a result", lambda: put(leaf(3) * 2.0, 0, 1.0), TypeError, IN_PLACE),
    Row("requires_grad of a result", lambda: assign("requires_grad", False, leaf(3) * 2.0),
        RuntimeError, "requires_grad of a result of mul cannot be changed; use .detach()"),
    Row("requires_grad_ of a result", lambda: (leaf(3) * 2.0).requires_grad_(),
        RuntimeError, "requires_grad of a result of mul cannot be changed; use .detach()"),
    # operands
    Row("shapes that do not broadcast", lambda: x(3) + x(4),
        ValueError, "add expected shapes that broadcast together, got (3,) and (4,)"),
    Row("NumPy first, and shapes that do not broadcast", lambda: np.ones(4) * x(3),
        ValueError, "mul expected shapes that broadcast together, got (4,) and (3,)"),
    Row("a quotient of shapes that do not broadcast", lambda: x(3) / x(2),
        ValueError, "div expected shapes that broadcast together, got (3,) and (2,)"),
    Row("three shapes that do not broadcast", lambda: ops.where(x(3) > 0, x(3), x(4)),
        ValueError, "where expected shapes that broadcast together, got (3,) and (3,) and (4,)"),
    Row("maximum of shapes that do not broadcast", lambda: ops.maximum(x(3), x(4)),
        ValueError, "maximum expected shapes that broadcast together, got (3,) and (4,)"),
    Row("a string as operand", lambda: x(3) * "a", TypeError, "mul expected a Tensor, an array or a number as 'y', got str"),
    Row("a string as exponent", lambda: x(3) ** "2", TypeError, "pow expected a Tensor, an array or a number as 'y', got str"),
    Row("a dict as operand", lambda: x(3) - {"a": 1},
        TypeError, "sub expected a Tensor, an array or a number as 'y', got dict"),
    Row("a list to exp", lambda: ops.exp([1.0, 2.0]), TypeError, "exp expected a Tensor or an array as 'x', got list"),
    Row("a list to relu", lambda: nn.ReLU()([1.0]), TypeError, "relu expected a Tensor or an array as 'x', got list"),
    Row("a string to sign", lambda: ops.sign("a"), TypeError, "sign expected a Tensor or an array as 'x', got str"),
    Row("no operand", lambda: ops.add(x(2)), TypeError, "add misses its argument 'y'"),
    Row("no operand at all", lambda: ops.relu(), TypeError, "relu misses its argument 'x'"),
    Row("too many operands", lambda: ops.add(x(2), x(2), x(2)), TypeError, "add takes at most 2 arguments (x, y), got 3"),
    Row("PyTorch's second operand's name", lambda: ops.add(x(2), x(2), out=x(2)),
        TypeError, "add has no option 'out'; it has none"),
    Row("an operand twice", lambda: ops.relu(x(2), x=x(2)), TypeError, "relu got two values for 'x'"),
    Row("an option twice", lambda: ops.sum(x(2), 0, axis=0), TypeError, "sum got two values for 'axis'"),
    Row("PyTorch's dim", lambda: x(3, 3).sum(dim=0), TypeError, "sum has no option 'dim'; it has axis, keepdims"),
    Row("PyTorch's dim in softmax", lambda: x(3).softmax(dim=0), TypeError, "softmax has no option 'dim'; it has axis"),
    Row("NumPy's min in clip", lambda: x(3).clip(min=0.0), TypeError, "clip has no option 'min'; it has lo, hi"),
    Row("PyTorch's mode in pad", lambda: ops.pad(x(2), 1, mode="reflect"),
        TypeError, "pad has no option 'mode'; it has pad_width, value"),
    Row("an option left out", lambda: x(3).cumsum(), TypeError, "cumsum misses its argument 'axis'"),
    Row("pad_width left out", lambda: ops.pad(x(3)), TypeError, "pad misses its argument 'pad_width'"),
    # reductions
    Row("an axis out of range", lambda: x(3, 3).sum(5),
        ValueError, "sum expected an axis from -2 to 1 for an input of 2 dimensions, got 5"),
    Row("a negative axis out of range", lambda: x(3, 3).mean(-3),
        ValueError, "mean expected an axis from -2 to 1 for an input of 2 dimensions, got -3"),
    Row("an axis twice", lambda: x(3, 3).sum((0, -2)), ValueError, "sum expected each axis once, got (0, -2)"),
    Row("a float axis", lambda: x(3, 3).sum(1.0),
        TypeError, "sum expected axis to be an int, a tuple of ints or None, got 1.0"),
    Row("a string axis", lambda: x(3, 3).mean("0"),
        TypeError, "mean expected axis to be an int, a tuple of ints or None, got '0'"),
    Row("a list of axes", lambda: x(3, 3).sum([0, 1]),
        TypeError, "sum expected axis to be an int, a tuple of ints or None, got [0, 1]"),
    Row("a bool axis", lambda: x(3, 3).sum(True),
        TypeError, "sum expected axis to be an int, a tuple of ints or None, got True"),
    Row("mean of nothing", lambda: x(0).mean(),
        ValueError, "mean expected at least one element to reduce, got an input of shape (0,)"),
    Row("max of nothing", lambda: x(0, 3).max(0),
        ValueError, "max expected at least one element to reduce, got an input of shape (0, 3)"),
    Row("logsumexp of nothing", lambda: x(0).logsumexp(),
        ValueError, "logsumexp expected at least one element to reduce, got an input of shape (0,)"),
    Row("a variance of too few", lambda: x(3).var(ddof=3),
        ValueError, "var expected more than ddof=3 elements along axis None, got 3 (input of shape (3,))"),
    Row("argmax along a missing axis", lambda: x(3).argmax(1), ValueError, "argmax expected an axis from -1 to 0, got 1"),
    Row("softmax along a missing axis", lambda: x(3).softmax(1),
        ValueError, "softmax expected an axis from -1 to 0 for an input of 1 dimensions, got 1"),
    # shapes
    Row("reshape to another size", lambda: x(3).reshape(2, 2),
        ValueError, "reshape cannot bring shape (3,) (3 elements) to (2, 2)"),
    Row("reshape with two unknowns", lambda: x(4).reshape(-1, -1),
        ValueError, "reshape cannot bring shape (4,) (4 elements) to (-1, -1)"),
    Row("reshape with an unknown that does not fit", lambda: x(4).reshape(-1, 3),
        ValueError, "reshape cannot bring shape (4,) (4 elements) to (-1, 3)"),
    Row("reshape with an unknown beside zero", lambda: x(0).reshape(-1, 0),
        ValueError, "reshape cannot bring shape (0,) (0 elements) to (-1, 0)"),
    Row("reshape to a negative length", lambda: x(4).reshape(-2, -2),
        ValueError, "reshape cannot bring shape (4,) (4 elements) to (-2, -2)"),
    Row("reshape to floats", lambda: x(4).reshape(2.0, 2), TypeError, "reshape expected the new shape as ints, got (2.0, 2)"),
    Row("reshape to a string", lambda: x(4).reshape("2,2"), TypeError, "reshape expected the new shape as ints, got ('2,2',)"),
    Row("reshape to a shape and more", lambda: x(4).reshape((2, 2), 1),
        TypeError, "reshape expected the new shape as ints, got ((2, 2), 1)"),
    Row("transpose twice the same", lambda: x(2, 3).transpose(0, 0),
        ValueError, "transpose expected each of the 2 axes once, got (0, 0)"),
    Row("transpose as PyTorch does", lambda: x(2, 3, 4).transpose(0, 1),
        ValueError, "transpose expected each of the 3 axes once, got (0, 1)"),
    Row("transpose of floats", lambda: x(2, 3).transpose(1.0, 0),
        TypeError, "transpose expected the axes as ints, got (1.0, 0)"),
    Row("swapaxes with a missing axis", lambda: x(2, 3).swapaxes(0, 2),
        ValueError, "swapaxes expected an axis from -2 to 1, got 2"),
    Row("moveaxis with tuples", lambda: x(2, 3).moveaxis((0, 1), (1, 0)),
        TypeError, "moveaxis expected axis to be an int, got (0, 1)"),
    Row("moveaxis to a missing axis", lambda: x(2, 3).moveaxis(0, 5),
        ValueError, "moveaxis expected an axis from -2 to 1, got 5"),
    Row("expand of a longer axis", lambda: x(2, 3).expand(3, 3),
        ValueError, "expand cannot bring shape (2, 3) to (3, 3): only axes of length 1 and new ones in front repeat"),
    Row("expand to fewer axes", lambda: x(2, 3).expand(3),
        ValueError, "expand cannot bring shape (2, 3) to (3,): only axes of length 1 and new ones in front repeat"),
    Row("expand keeps a new axis", lambda: x(2, 3).expand(-1, -1, 3),
        ValueError, "expand cannot bring shape (2, 3) to (-1, -1, 3): only axes of length 1 and new ones in front repeat"),
    Row("squeeze of a long axis", lambda: x(2, 3).squeeze(0),
        ValueError, "squeeze expected axis 0 to have length 1, got 2 (shape (2, 3))"),
    Row("squeeze of a missing axis", lambda: x(2, 3).squeeze(5), ValueError, "squeeze expected an axis from -2 to 1, got 5"),
    Row("unsqueeze at a missing axis", lambda: x(2).unsqueeze(3), ValueError, "unsqueeze expected an axis from -2 to 1, got 3"),
    Row("flatten from a missing axis", lambda: x(2, 3).flatten(3), ValueError, "flatten expected an axis from -2 to 1, got 3"),
    Row("flip of a missing axis", lambda: x(2, 3).flip(2),
        ValueError, "flip expected an axis from -2 to 1 for an input of 2 dimensions, got 2"),
    Row("split in unequal parts", lambda: x(2, 3).split(2, 1),
        ValueError, "split expected a number of sections that divides axis 1 of length 3, got 2"),
    Row("split in no parts", lambda: x(2, 3).split(0),
        ValueError, "split expected a number of sections that divides axis 0 of length 2, got 0"),
    Row("split of a missing axis", lambda: x(2, 3).split(2, axis=7), ValueError, "split expected an axis from -2 to 1, got 7"),
    Row("concatenate of nothing", lambda: ops.concatenate([]), ValueError, "concatenate expected at least one array, got none"),
    Row("concatenate of ranks", lambda: ops.concatenate([x(2), x(2, 3)]),
        ValueError, "concatenate expected shapes that agree but along axis 0, got (2,), (2, 3)"),
    Row("concatenate of shapes", lambda: ops.concatenate([x(2, 3), x(2, 4)]),
        ValueError, "concatenate expected shapes that agree but along axis 0, got (2, 3), (2, 4)"),
    Row("concatenate along a missing axis", lambda: ops.concatenate([x(2, 3), x(2, 4)], axis=2),
        ValueError, "concatenate expected an axis from -2 to 1, got 2"),
    Row("concatenate with a number", lambda: ops.concatenate([x(2), 3.0]),
        TypeError, "concatenate expected Tensors or arrays, got float at position 1"),
    Row("concatenate with a list", lambda: ops.concatenate([x(2), [1.0]]),
        TypeError, "concatenate expected Tensors or arrays, got list at position 1"),
    Row("stack of shapes", lambda: ops.stack([x(2), x(3)]), ValueError, "stack expected arrays of one shape, got (2,), (3,)"),
    Row("stack of numbers", lambda: ops.stack([1, 2]), TypeError, "stack expected Tensors or arrays, got int at position 0"),
    Row("stack along a missing axis", lambda: ops.stack([x(2), x(2)], axis=5),
        ValueError, "stack expected an axis from -2 to 1, got 5"),
    Row("a negative pad", lambda: ops.pad(x(3), -1),
        ValueError, "pad expected an int, (before, after), or 1 such pairs, none negative, for an input of shape (3,); got -1"),
    Row("too few pads", lambda: ops.pad(x(2, 3), ((1, 1),)),
        ValueError, "pad expected an int, (before, after), or 2 such pairs, none negative, for an input of shape (2, 3); got "
        "((1, 1),)"),
    Row("a pad by name", lambda: ops.pad(x(2, 3), "same"),
        ValueError, "pad expected an int, (before, after), or 2 such pairs, none negative, for an input of shape (2, 3); got "
        "'same'"),
    # indexing
    Row("a float index", lambda: x(3)[1.0],
        IndexError, "an index expected ints, slices, None, Ellipsis or arrays, got the float 1.0"),
    Row("a float array as index", lambda: x(3)[np.float32(1)],
        IndexError, "an index expected integers or booleans, got an array of float32"),
    Row("a float tensor as index", lambda: x(3)[x(3)],
        IndexError, "an index expected integers or booleans, got an array of float32"),
    Row("a list of floats as index", lambda: x(3)[[0.5, 1.0]],
        IndexError, "an index expected integers or booleans, got an array of float64"),
    Row("an index out of range", lambda: x(3)[3], IndexError, "index 3 is out of bounds for axis 0 with size 3"),
    Row("too many indices", lambda: x(3)[0, 0],
        IndexError, "too many indices for array: array is 1-dimensional, but 2 were indexed"),
    Row("a list with an index out of range", lambda: leaf(3)[[0, 7]],
        IndexError, "index 7 is out of bounds for axis 0 with size 3"),
    Row("a mask of another length", lambda: x(3)[np.array([True, False])],
        IndexError, "boolean index did not match indexed array along axis 0; size of axis is 3 but size of corresponding "
        "boolean axis is 2"),
    # products
    Row("matmul of inner sizes", lambda: x(2, 3) @ x(2, 3),
        ValueError, "matmul expected shapes (..., n, k) and (..., k, m), got (2, 3) and (2, 3)"),
    Row("matmul of vectors", lambda: x(3) @ x(4),
        ValueError, "matmul expected shapes (..., n, k) and (..., k, m), got (3,) and (4,)"),
    Row("matmul with a number tensor", lambda: tg.tensor(2.0) @ x(3),
        ValueError, "matmul expected arrays of at least one dimension, got shapes () and (3,)"),
    Row("matmul of batches", lambda: x(2, 2, 3) @ x(3, 3, 4),
        ValueError, "matmul expected shapes that broadcast together, got (2, 2, 3) and (3, 3, 4)"),
    Row("linear with the weight transposed", lambda: ops.linear(x(2, 3), x(3, 4)),
        ValueError, "linear expected an input (..., in) and a weight (out, in), got shapes (2, 3) and (3, 4)"),
    Row("linear with a vector as weight", lambda: ops.linear(x(2, 3), x(3)),
        ValueError, "linear expected an input (..., in) and a weight (out, in), got shapes (2, 3) and (3,)"),
    Row("linear with a bias of another size", lambda: ops.linear(x(2, 3), x(4, 3), x(5)),
        ValueError, "linear expected a bias of shape (4,), got (5,)"),
    Row("linear in two dtypes", lambda: ops.linear(x(2, 3, dtype="float64"), x(4, 3)),
        TypeError, "linear expected one dtype, got an input of float64 and a weight of float32"),
    Row("einsum with an operand missing", lambda: ops.einsum("ij,jk", x(2, 3)),
        ValueError, "einsum 'ij,jk' names 2 operands, got 1"),
    Row("einsum with too many letters", lambda: ops.einsum("ij->", x(2)),
        ValueError, "einsum 'ij->' gives 'ij' to an operand of 1 dimensions"),
    Row("einsum with too few letters", lambda: ops.einsum("i->i", x(2, 3)),
        ValueError, "einsum 'i->i' gives 'i' to an operand of 2 dimensions"),
    Row("einsum with half an arrow", lambda: ops.einsum("ij-", x(2, 3)),
        ValueError, "einsum expected letters, commas, '...' and one '->', got 'ij-'"),
    Row("einsum with a digit", lambda: ops.einsum("1j", x(2, 3)),
        ValueError, "einsum expected letters, commas, '...' and one '->', got '1j'"),
    Row("einsum with two dots", lambda: ops.einsum("i..j", x(2, 3)),
        ValueError, "einsum expected letters, commas, '...' and one '->', got 'i..j'"),
    Row("einsum with the subscripts last", lambda: ops.einsum(x(2, 3), "ij"),
        TypeError, "einsum expected the subscripts as a string first, got Tensor"),
    # convolution and pooling
    Row("conv2d of other channels", lambda: ops.conv2d(x(8, 1, 28, 28), x(4, 3, 3, 3)),
        ValueError, "conv2d expected an input of shape (N, 3, H, W) for a weight of shape (4, 3, 3, 3) and groups=1, got (8, "
        "1, 28, 28)"),
    Row("conv2d without a batch", lambda: ops.conv2d(x(3, 28, 28), x(4, 3, 3, 3)),
        ValueError, "conv2d expected an input (N, C, H, W) and a weight of 4 dimensions, got shapes (3, 28, 28) and (4, 3, "
        "3, 3)"),
    Row("conv2d with a flat weight", lambda: ops.conv2d(x(1, 3, 5, 5), x(4, 3, 3)),
        ValueError, "conv2d expected an input (N, C, H, W) and a weight of 4 dimensions, got shapes (1, 3, 5, 5) and (4, 3, "
        "3)"),
    Row("conv2d with stride 0", lambda: ops.conv2d(x(1, 3, 5, 5), x(4, 3, 3, 3), stride=0),
        ValueError, "conv2d expected stride to be an int, or a pair of ints, of at least 1, got 0"),
    Row("conv2d with three strides", lambda: ops.conv2d(x(1, 3, 5, 5), x(4, 3, 3, 3), stride=(1, 2, 3)),
        ValueError, "conv2d expected stride to be an int, or a pair of ints, of at least 1, got (1, 2, 3)"),
    Row("conv2d with a float stride", lambda: ops.conv2d(x(1, 3, 5, 5), x(4, 3, 3, 3), stride=1.5),
        ValueError, "conv2d expected stride to be an int, or a pair of ints, of at least 1, got 1.5"),
    Row("conv2d with a negative padding", lambda: ops.conv2d(x(1, 3, 5, 5), x(4, 3, 3, 3), padding=-1),
        ValueError, "conv2d expected padding to be an int, or a pair of ints, of at least 0, got -1"),
    Row("conv2d with padding by name", lambda: nn.Conv2d(3, 8, 3, padding="same"),
        ValueError, "Conv2d expected padding to be an int, or a pair of ints, of at least 0, got 'same'"),
    Row("conv2d with dilation 0", lambda: ops.conv2d(x(1, 3, 5, 5), x(4, 3, 3, 3), dilation=0),
        ValueError, "conv2d expected dilation to be an int, or a pair of ints, of at least 1, got 0"),
    Row("conv2d of too small an input", lambda: ops.conv2d(x(1, 3, 5, 5), x(4, 3, 3, 3), dilation=3),
        ValueError, "conv2d expected an input at least as large as its kernel, got (5, 5) with padding (0, 0) for a kernel "
        "of (3, 3) with dilation (3, 3)"),
    Row("conv2d with groups that do not divide", lambda: ops.conv2d(x(1, 4, 5, 5), x(3, 2, 3, 3), groups=2),
        ValueError, "conv2d expected groups=2 to divide the number of filters, got a weight of shape (3, 2, 3, 3)"),
    Row("conv2d with no groups", lambda: ops.conv2d(x(1, 4, 5, 5), x(3, 2, 3, 3), groups=0),
        ValueError, "conv2d expected groups to be an int of at least 1, got 0"),
    Row("conv2d with a bias of another size", lambda: ops.conv2d(x(1, 4, 5, 5), x(4, 4, 3, 3), x(3)),
        ValueError, "conv2d expected a bias of shape (4,), got (3,)"),
    Row("conv2d in two dtypes", lambda: ops.conv2d(x(1, 4, 5, 5, dtype="float64"), x(4, 4, 3, 3)),
        TypeError, "conv2d expected one dtype, got an input of float64 and a weight of float32"),
    Row("conv1d of images", lambda: ops.conv1d(x(1, 4, 5, 5), x(4, 4, 3)),
        ValueError, "conv1d expected an input (N, C, L) and a weight of 3 dimensions, got shapes (1, 4, 5, 5) and (4, 4, 3)"),
    Row("conv_transpose2d with the weight of conv2d", lambda: ops.conv_transpose2d(x(1, 3, 5, 5), x(4, 3, 3, 3)),
        ValueError, "conv_transpose2d expected an input of shape (N, 4, H, W) for a weight of shape (4, 3, 3, 3) and "
        "groups=1, got (1, 3, 5, 5)"),
    Row("conv_transpose2d with too large an output_padding",
        lambda: ops.conv_transpose2d(x(1, 3, 5, 5), x(3, 4, 3, 3), stride=2, output_padding=2),
        ValueError, "conv_transpose2d expected output_padding less than stride (2, 2) or dilation (1, 1), got (2, 2)"),
    Row("conv_transpose2d to nothing", lambda: ops.conv_transpose2d(x(1, 3, 1, 1), x(3, 4, 1, 1), padding=1),
        ValueError, "conv_transpose2d would give an output of size (-1, -1) for an input of shape (1, 3, 1, 1)"),
    Row("conv_transpose2d with a bias of another size", lambda: ops.conv_transpose2d(x(1, 3, 5, 5), x(3, 4, 3, 3), x(3)),
        ValueError, "conv_transpose2d expected a bias of shape (4,), got (3,)"),
    Row("max_pool2d without a batch", lambda: ops.max_pool2d(x(3, 4, 4), 2),
        ValueError, "max_pool2d expected an input of shape (N, C, H, W), got (3, 4, 4)"),
    Row("max_pool2d larger than its input", lambda: nn.MaxPool2d(5)(x(1, 1, 4, 4)),
        ValueError, "max_pool2d expected an input at least as large as its kernel (5, 5), got (4, 4) with padding (0, 0)"),
    Row("max_pool2d of nothing", lambda: nn.MaxPool2d(0),
        ValueError, "MaxPool2d expected kernel_size to be an int, or a pair of ints, of at least 1, got 0"),
    Row("max_pool2d with a string", lambda: ops.max_pool2d(x(1, 1, 4, 4), "2"),
        ValueError, "max_pool2d expected kernel_size to be an int, or a pair of ints, of at least 1, got '2'"),
    Row("max_pool2d with a large padding", lambda: ops.max_pool2d(x(1, 1, 4, 4), 2, padding=2),
        ValueError, "max_pool2d expected a padding of at most half the kernel (2, 2), got (2, 2)"),
    Row("max_pool2d with a negative stride", lambda: nn.MaxPool2d(2, stride=-1),
        ValueError, "MaxPool2d expected stride to be an int, or a pair of ints, of at least 1, got -1"),
    Row("avg_pool2d with a string", lambda: nn.AvgPool2d("a"),
        ValueError, "AvgPool2d expected kernel_size to be an int, or a pair of ints, of at least 1, got 'a'"),
    Row("avg_pool2d larger than its input", lambda: ops.avg_pool2d(x(1, 1, 4, 4), 5),
        ValueError, "avg_pool2d expected an input at least as large as its kernel (5, 5), got (4, 4) with padding (0, 0)"),
    Row("adaptive_avg_pool2d to nothing", lambda: nn.AdaptiveAvgPool2d(0),
        ValueError, "AdaptiveAvgPool2d expected output_size to be an int, or a pair of ints, of at least 1, got 0"),
    Row("adaptive_avg_pool2d without a batch", lambda: nn.AdaptiveAvgPool2d(2)(x(1, 4, 4)),
        ValueError, "adaptive_avg_pool2d expected an input of shape (N, C, H, W), got (1, 4, 4)"),
    # embedding and dropout
    Row("an embedding index too large", lambda: nn.Embedding(5, 2)(ints(0, 5)),
        ValueError, "embedding expected indices from 0 to 4, got values from 0 to 5"),
    Row("a negative embedding index", lambda: nn.Embedding(5, 2)(ints(-1)),
        ValueError, "embedding expected indices from 0 to 4, got values from -1 to -1"),
    Row("float embedding indices", lambda: nn.Embedding(5, 2)(x(2)),
        TypeError, "embedding expected an integer array of indices, got float32"),
    Row("bool embedding indices", lambda: nn.Embedding(5, 2)(np.array([True])),
        TypeError, "embedding expected an integer array of indices, got bool"),
    Row("a list of embedding indices", lambda: nn.Embedding(5, 2)([0, 1]),
        TypeError, "embedding expected an integer array of indices, got list"),
    Row("an empty embedding", lambda: nn.Embedding(0, 2),
        ValueError, "Embedding expected num_embeddings to be an int of at least 1, got 0"),
    Row("dropout in percent", lambda: nn.Dropout(50), ValueError, "Dropout expected a probability p from 0 to 1, got 50"),
    Row("dropout of a negative p", lambda: ops.dropout(x(3), -0.1),
        ValueError, "dropout expected a probability p from 0 to 1, got -0.1"),
    Row("dropout by name", lambda: ops.dropout(x(3), "half"),
        ValueError, "dropout expected a probability p from 0 to 1, got 'half'"),
    Row("dropout with the mode as p", lambda: ops.dropout(x(3), True),
        ValueError, "dropout expected a probability p from 0 to 1, got True"),
    Row("dropout of NaN", lambda: nn.Dropout(float("nan")),
        ValueError, "Dropout expected a probability p from 0 to 1, got nan"),
    Row("dropout of ints", lambda: nn.Dropout(0.5)(ints(1, 2)), TypeError, "dropout expected a floating input, got int64"),
    # losses
    Row("logits without a batch", lambda: ops.cross_entropy(x(3), ints(0, 1, 2)),
        ValueError, "cross_entropy expected logits of shape (N, C), got (3,)"),
    Row("logits of a segmentation", lambda: ops.cross_entropy(x(2, 3, 4), ints(0, 1)),
        ValueError, "cross_entropy expected logits of shape (N, C), got (2, 3, 4)"),
    Row("float labels", lambda: ops.cross_entropy(x(3, 4), x(3)),
        TypeError, "cross_entropy expected integer labels (class numbers), got float32"),
    Row("one-hot labels", lambda: ops.cross_entropy(x(3, 4), x(3, 4)),
        TypeError, "cross_entropy expected integer labels (class numbers), got float32"),
    Row("bool labels", lambda: ops.cross_entropy(x(2, 4), np.array([True, False])),
        TypeError, "cross_entropy expected integer labels (class numbers), got bool"),
    Row("a list of labels", lambda: ops.cross_entropy(x(2, 4), [0, 1]),
        TypeError, "cross_entropy expected labels as a Tensor or an array, got list"),
    Row("labels of another length", lambda: ops.cross_entropy(x(3, 4), ints(0, 1)),
        ValueError, "cross_entropy expected labels of shape (3,) for logits of shape (3, 4), got (2,)"),
    Row("labels in a column", lambda: ops.cross_entropy(x(3, 4), ints(0, 1, 2).reshape(3, 1)),
        ValueError, "cross_entropy expected labels of shape (3,) for logits of shape (3, 4), got (3, 1)"),
    Row("a label too large", lambda: ops.cross_entropy(x(3, 4), ints(0, 1, 4)),
        ValueError, "cross_entropy expected labels from 0 to 3 for 4 classes, got values from 0 to 4"),
    Row("labels from 1", lambda: nn.CrossEntropyLoss()(x(2, 10), np.array([1, 10])),
        ValueError, "cross_entropy expected labels from 0 to 9 for 10 classes, got values from 1 to 10"),
    Row("PyTorch's label to ignore", lambda: ops.cross_entropy(x(2, 4), ints(1, -100)),
        ValueError, "cross_entropy expected labels from 0 to 3 for 4 classes, got values from -100 to 1"),
    Row("logits and labels exchanged", lambda: ops.cross_entropy(ints(0, 1, 2), x(3, 4)),
        ValueError, "cross_entropy expected logits of shape (N, C), got (3,)"),
    Row("an unknown reduction", lambda: ops.cross_entropy(x(2, 4), ints(0, 1), reduction="avg"),
        ValueError, "cross_entropy expected reduction to be 'mean', 'sum' or 'none', got 'avg'"),
    Row("reduction=None", lambda: ops.mse_loss(x(2), x(2), reduction=None),
        ValueError, "mse_loss expected reduction to be 'mean', 'sum' or 'none', got None"),
    Row("too much label smoothing", lambda: ops.cross_entropy(x(2, 4), ints(0, 1), label_smoothing=1.5),
        ValueError, "cross_entropy expected label_smoothing from 0 to 1, got 1.5"),
    Row("label smoothing in text", lambda: ops.cross_entropy(x(2, 4), ints(0, 1), label_smoothing="a"),
        ValueError, "cross_entropy expected label_smoothing from 0 to 1, got 'a'"),
    Row("mse_loss that would broadcast", lambda: ops.mse_loss(x(3), x(3, 1)),
        ValueError, "mse_loss expected an input and a target of one shape, got (3,) and (3, 1)"),
    Row("bce_with_logits of shapes", lambda: nn.BCEWithLogitsLoss()(x(3), x(4)),
        ValueError, "bce_with_logits expected an input and a target of one shape, got (3,) and (4,)"),
    # normalisation
    Row("a batch of one", lambda: nn.BatchNorm1d(3)(x(1, 3)), ValueError, too_few(1, (1, 3))),
    Row("a batch of one image of one pixel", lambda: nn.BatchNorm2d(3)(x(1, 3, 1, 1)), ValueError, too_few(1, (1, 3, 1, 1))),
    Row("an empty batch", lambda: nn.BatchNorm1d(3)(x(0, 3)), ValueError, too_few(0, (0, 3))),
    Row("images of no pixels", lambda: nn.BatchNorm2d(3)(x(4, 3, 0, 2)), ValueError, too_few(0, (4, 3, 0, 2))),
    Row("a batch of one at the end of a model", lambda: models.mlp((4, 3, 2))(x(1, 4)), ValueError, too_few(1, (1, 3))),
    Row("a batch of one, composed", lambda: nn.BatchNorm1d(3, fused=False)(x(1, 3)), ValueError, too_few(1, (1, 3))),
    Row("BatchNorm1d of other features", lambda: nn.BatchNorm1d(3)(x(4, 5)),
        ValueError, "BatchNorm1d expected an input of shape (N, 3) or (N, 3, L), got (4, 5)"),
    Row("BatchNorm1d of images", lambda: nn.BatchNorm1d(3)(x(4, 3, 2, 2)),
        ValueError, "BatchNorm1d expected an input of shape (N, 3) or (N, 3, L), got (4, 3, 2, 2)"),
    Row("BatchNorm1d of one example", lambda: nn.BatchNorm1d(3)(x(3)),
        ValueError, "BatchNorm1d expected an input of shape (N, 3) or (N, 3, L), got (3,)"),
    Row("BatchNorm2d of features", lambda: nn.BatchNorm2d(3)(x(4, 3)),
        ValueError, "BatchNorm2d expected an input of shape (N, 3, H, W), got (4, 3)"),
    Row("BatchNorm2d of channels last", lambda: nn.BatchNorm2d(3)(x(4, 8, 8, 3)),
        ValueError, "BatchNorm2d expected an input of shape (N, 3, H, W), got (4, 8, 8, 3)"),
    Row("BatchNorm3d of images", lambda: nn.BatchNorm3d(3)(x(4, 3, 2, 2)),
        ValueError, "BatchNorm3d expected an input of shape (N, 3, D, H, W), got (4, 3, 2, 2)"),
    Row("BatchNorm of another dtype", lambda: nn.BatchNorm1d(3)(x(4, 3, dtype="float64")),
        TypeError, "batch_norm expected one dtype, got an input of float64 and gamma of float32"),
    Row("BatchNorm of another dtype in evaluation", lambda: nn.BatchNorm1d(3).eval()(x(4, 3, dtype="float64")),
        TypeError, "batch_norm_inference expected one dtype, got an input of float64 and gamma of float32"),
    Row("BatchNorm of ints", lambda: nn.BatchNorm1d(3)(x(4, 3, dtype="int64")),
        TypeError, "batch_norm expected a floating input, got int64"),
    Row("BatchNorm of no features", lambda: nn.BatchNorm1d(0),
        ValueError, "BatchNorm1d expected num_features to be an int of at least 1, got 0"),
    Row("BatchNorm of a float", lambda: nn.BatchNorm1d(3.0),
        ValueError, "BatchNorm1d expected num_features to be an int of at least 1, got 3.0"),
    Row("a negative eps", lambda: nn.BatchNorm1d(3, eps=-1e-5),
        ValueError, "BatchNorm1d expected eps to be a number of at least 0, got -1e-05"),
    Row("eps in text", lambda: nn.BatchNorm2d(3, eps="a"),
        ValueError, "BatchNorm2d expected eps to be a number of at least 0, got 'a'"),
    Row("eps of NaN", lambda: nn.BatchNorm2d(3, eps=float("nan")),
        ValueError, "BatchNorm2d expected eps to be a number of at least 0, got nan"),
    Row("momentum above 1", lambda: nn.BatchNorm1d(3, momentum=1.5),
        ValueError, "BatchNorm1d expected momentum from 0 to 1, or None for the average of all batches, got 1.5"),
    Row("a negative momentum", lambda: nn.BatchNorm1d(3, momentum=-0.1),
        ValueError, "BatchNorm1d expected momentum from 0 to 1, or None for the average of all batches, got -0.1"),
    Row("momentum in text", lambda: nn.BatchNorm1d(3, momentum="a"),
        ValueError, "BatchNorm1d expected momentum from 0 to 1, or None for the average of all batches, got 'a'"),
    Row("momentum that is a bool", lambda: nn.BatchNorm1d(3, momentum=True),
        ValueError, "BatchNorm1d expected momentum from 0 to 1, or None for the average of all batches, got True"),
    Row("an unknown variance", lambda: nn.BatchNorm1d(3, variance="paper"),
        ValueError, "BatchNorm1d expected variance to be 'unbiased' or 'biased', got 'paper'"),
    Row("gamma of another size", lambda: ops.batch_norm(x(4, 3), x(4), x(4)),
        ValueError, "batch_norm expected gamma of shape (3,) (one value per channel) for an input of shape (4, 3), got (4,)"),
    Row("gamma without beta", lambda: ops.batch_norm(x(4, 3), x(3)),
        ValueError, "batch_norm expected both gamma and beta, or neither"),
    Row("batch_norm of a vector", lambda: ops.batch_norm(x(3)),
        ValueError, "batch_norm expected an input of shape (N, C, ...), got (3,)"),
    Row("running variance of another size", lambda: ops.batch_norm_inference(x(4, 3), None, None, x(3), x(4)),
        ValueError, "batch_norm_inference expected var of shape (3,) (one value per channel) for an input of shape (4, 3), "
        "got (4,)"),
    Row("running variance left out", lambda: ops.batch_norm_inference(x(4, 3), None, None, x(3)),
        TypeError, "batch_norm_inference expected a Tensor or an array as 'var', got NoneType"),
    Row("LayerNorm of other features", lambda: nn.LayerNorm(3)(x(2, 4)),
        ValueError, "LayerNorm expected an input of shape (..., 3), got (2, 4)"),
    Row("LayerNorm of too few axes", lambda: nn.LayerNorm((3, 4))(x(4)),
        ValueError, "LayerNorm expected an input of shape (..., 3, 4), got (4,)"),
    Row("LayerNorm of nothing", lambda: nn.LayerNorm(()),
        ValueError, "LayerNorm expected normalized_shape to be an int or a tuple of at least one, got ()"),
    Row("LayerNorm of zero", lambda: nn.LayerNorm(0),
        ValueError, "LayerNorm expected normalized_shape to be an int of at least 1, got 0"),
    Row("layer_norm over a missing axis", lambda: ops.layer_norm(x(4, 3), axes=2),
        ValueError, "layer_norm expected an axis from -2 to 1 for an input of 2 dimensions, got 2"),
    Row("layer_norm over nothing", lambda: ops.layer_norm(x(4, 0)),
        ValueError, "layer_norm expected at least one element to normalise over, got an input of shape (4, 0)"),
    Row("layer_norm of ints", lambda: ops.layer_norm(ints(1, 2)), TypeError, "layer_norm expected a floating input, got int64"),
    Row("groups that do not divide the channels", lambda: nn.GroupNorm(3, 4),
        ValueError, "GroupNorm expected num_groups=3 to divide num_channels=4"),
    Row("group_norm with groups that do not divide", lambda: ops.group_norm(x(4, 6), num_groups=4),
        ValueError, "group_norm expected num_groups to divide the 6 channels, got 4"),
    Row("group_norm with a float", lambda: ops.group_norm(x(4, 6), num_groups=2.0),
        ValueError, "group_norm expected num_groups to divide the 6 channels, got 2.0"),
    Row("GroupNorm of other channels", lambda: nn.GroupNorm(2, 4)(x(2, 6)),
        ValueError, "GroupNorm expected an input of shape (N, 4, ...), got (2, 6)"),
    # gradients
    Row("backward of a vector", lambda: (leaf(3) * 2.0).backward(),
        ValueError, "backward() of a tensor of shape (3,) needs a gradient of that shape; without one it expects a single "
        "element"),
    Row("backward without grad", lambda: x(3).sum().backward(),
        RuntimeError, f"backward(): this tensor of shape () does not require grad; {NOT_RECORDED}"),
    Row("backward of a detached tensor", lambda: leaf(3).detach().sum().backward(),
        RuntimeError, f"backward(): this tensor of shape () does not require grad; {NOT_RECORDED}"),
    Row("backward of what was made under no_grad", lambda: without_grad().backward(),
        RuntimeError, f"backward(): this tensor of shape () does not require grad; {NOT_RECORDED}"),
    Row("backward of ints", lambda: ints(1).backward(),
        RuntimeError, f"backward(): this tensor of shape (1,) does not require grad; {NOT_RECORDED}"),
    Row("a number as gradient", lambda: leaf(1).sum().backward(1.0),
        TypeError, "backward() expected a gradient that is a Tensor or an array, got float"),
    Row("a list as gradient", lambda: leaf(3).backward([1.0, 1.0, 1.0]),
        TypeError, "backward() expected a gradient that is a Tensor or an array, got list"),
    Row("a gradient of another shape", lambda: leaf(3).backward(x(4)),
        ValueError, "backward() expected a gradient of shape (3,), got (4,)"),
    Row("backward twice", lambda: backward_again(), RuntimeError, freed("sum")),
    Row("backward twice through a part", lambda: backward_through_a_shared_part(), RuntimeError, freed("mul")),
    Row("data assigned before backward", lambda: change_then_backward(lambda w: assign("data", np.zeros(3, "float32"), w)),
        RuntimeError, changed("mul", "x", (3,))),
    Row("a detached alias changed before backward", lambda: change_then_backward(lambda w: put(w.detach(), 0, 5.0)),
        RuntimeError, changed("mul", "x", (3,))),
    Row("a constant changed before backward", lambda: change_a_constant_then_backward(),
        RuntimeError, changed("mul", "y", (3,))),
    Row("a step before backward", lambda: step_then_backward(), RuntimeError, changed("linear", "w", (1, 2))),
    Row("grad of an unused input", lambda: grad_of(leaf(2)),
        RuntimeError, "grad(): the outputs do not depend on input 0, of shape (2,); pass allow_unused=True to get None for it"),
    Row("grad of the second input, unused", lambda: tg.grad(W.sum(), [W, leaf(2)]),
        RuntimeError, "grad(): the outputs do not depend on input 1, of shape (2,); pass allow_unused=True to get None for it"),
    Row("grad of an input without grad", lambda: grad_of(x(3)),
        RuntimeError, "grad(): input 0, of shape (3,), does not require grad"),
    Row("grad of a name", lambda: grad_of(["w"]), TypeError, "grad() expected Tensors as inputs, got str at position 0"),
    Row("grad of a vector", lambda: tg.grad(leaf(3), leaf(3)),
        ValueError, "grad() of a tensor of shape (3,) needs a gradient of that shape; without one it expects a single element"),
    Row("grad twice", lambda: grad_again(), RuntimeError, freed("sum")),
    Row("a second grad without create_graph", lambda: second_grad_without_create_graph(),
        RuntimeError, f"grad(): this tensor of shape () does not require grad; {NOT_RECORDED}"),
    Row("too few grad_outputs", lambda: grad_of(None, []),
        ValueError, "grad() got 1 outputs and 0 grad_outputs; expected as many of each"),
    Row("grad_outputs of another shape", lambda: grad_of(None, [x(4)]),
        ValueError, "grad() expected a gradient of shape (3,), got (4,)"),
    Row("grad_outputs that are numbers", lambda: grad_of(None, [1.0]),
        TypeError, "grad() expected a gradient that is a Tensor or an array, got float"),
    Row("a hook on what needs no grad", lambda: x(3).register_hook(print),
        RuntimeError, "register_hook expects a tensor that requires grad"),
    Row("retain_grad of what needs no grad", lambda: x(3).retain_grad(),
        RuntimeError, "retain_grad expects a tensor that requires grad"),
    Row("a leaf's hook on a result", lambda: (leaf(3) * 2.0).register_post_accumulate_grad_hook(print),
        RuntimeError, "register_post_accumulate_grad_hook expects a leaf; use register_hook for a result"),
    Row("a hook that changes the shape", lambda: hooked(lambda g: g.sum()),
        ValueError, "a gradient hook was given shape (3,), but returned shape ()"),
    Row("too few rules", lambda: product(lambda g, out, x, y: g), TypeError, "product takes 2 arrays, but 1 rules were given"),
    Row("rules for any number of arrays", lambda: several().defvjp(lambda g, out, x: g),
        TypeError, "several takes any number of arrays: give it one rule for all, with @several.vjp"),
    Row("check_grads in float32", lambda: tg.check_grads(lambda t: t * t, x(3)),
        TypeError, "check_grads expected float64 arguments, got float32 at position 0"),
    Row("check_grads of order 0", lambda: tg.check_grads(lambda t: t * t, x(3, dtype="float64"), order=0),
        ValueError, "check_grads expected an order of at least 1, got 0"),
    Row("hvp of a vector", lambda: tg.hvp(lambda t: t * 2.0, x(3), x(3)),
        ValueError, "hvp expected a function of one value, got an output of shape (3,)"),
    Row("hvp with a vector of another shape", lambda: tg.hvp(lambda t: t.sum(), x(3), x(4)),
        ValueError, "hvp expected vectors of shapes [(3,)], got [(4,)]"),
    Row("jacobian of ints", lambda: tg.jacobian(lambda t: t * 2, ints(1, 2)),
        TypeError, "only floating tensors can require grad, got int64"),
    # modules
    Row("Linear of other features", lambda: nn.Linear(3, 4)(x(2, 5)),
        ValueError, "Linear expected an input of shape (..., 3), got (2, 5)"),
    Row("Linear of a number", lambda: nn.Linear(3, 4)(tg.tensor(1.0)),
        ValueError, "Linear expected an input of shape (..., 3), got ()"),
    Row("Linear of bytes", lambda: nn.Linear(3, 4)(x(2, 3, dtype="uint8")),
        TypeError, "linear expected one dtype, got an input of uint8, a weight of float32 and a bias of float32"),
    Row("Linear of float64", lambda: nn.Linear(3, 4)(np.ones((2, 3))),
        TypeError, "linear expected one dtype, got an input of float64, a weight of float32 and a bias of float32"),
    Row("Linear from nothing", lambda: nn.Linear(0, 4),
        ValueError, "Linear expected in_features to be an int of at least 1, got 0"),
    Row("Linear to a negative number", lambda: nn.Linear(3, -1),
        ValueError, "Linear expected out_features to be an int of at least 1, got -1"),
    Row("Linear from a float", lambda: nn.Linear(3.0, 4),
        ValueError, "Linear expected in_features to be an int of at least 1, got 3.0"),
    Row("Linear from a bool", lambda: nn.Linear(True, 4),
        ValueError, "Linear expected in_features to be an int of at least 1, got True"),
    Row("Conv2d of other channels", lambda: nn.Conv2d(3, 8, 3)(x(8, 1, 28, 28)),
        ValueError, "Conv2d expected an input of shape (N, 3, H, W), got (8, 1, 28, 28)"),
    Row("Conv2d of channels last", lambda: nn.Conv2d(3, 8, 3)(x(1, 28, 28, 3)),
        ValueError, "Conv2d expected an input of shape (N, 3, H, W), got (1, 28, 28, 3)"),
    Row("Conv2d without a batch", lambda: nn.Conv2d(3, 8, 3)(x(3, 28, 28)),
        ValueError, "Conv2d expected an input of shape (N, 3, H, W), got (3, 28, 28)"),
    Row("Conv2d of too small an input", lambda: nn.Conv2d(3, 8, 5)(x(1, 3, 4, 4)),
        ValueError, "conv2d expected an input at least as large as its kernel, got (4, 4) with padding (0, 0) for a kernel "
        "of (5, 5) with dilation (1, 1)"),
    Row("Conv2d with kernel 0", lambda: nn.Conv2d(3, 8, 0),
        ValueError, "Conv2d expected kernel_size to be an int, or a pair of ints, of at least 1, got 0"),
    Row("Conv2d with one of a pair", lambda: nn.Conv2d(3, 8, (3,)),
        ValueError, "Conv2d expected kernel_size to be an int, or a pair of ints, of at least 1, got (3,)"),
    Row("Conv2d with groups that do not divide", lambda: nn.Conv2d(3, 8, 3, groups=2),
        ValueError, "Conv2d expected groups=2 to divide in_channels=3 and out_channels=8"),
    Row("Conv2d from no channels", lambda: nn.Conv2d(0, 8, 3),
        ValueError, "Conv2d expected in_channels to be an int of at least 1, got 0"),
    Row("Conv1d of other channels", lambda: nn.Conv1d(3, 8, 3)(x(1, 4, 8)),
        ValueError, "Conv1d expected an input of shape (N, 3, L), got (1, 4, 8)"),
    Row("Conv1d with a pair", lambda: nn.Conv1d(3, 8, (3,)),
        ValueError, "Conv1d expected kernel_size to be an int of at least 1, got (3,)"),
    Row("Conv1d with a negative padding", lambda: nn.Conv1d(3, 8, 3, padding=-1),
        ValueError, "Conv1d expected padding to be an int of at least 0, got -1"),
    Row("ConvTranspose2d of other channels", lambda: nn.ConvTranspose2d(3, 8, 3)(x(1, 4, 8, 8)),
        ValueError, "ConvTranspose2d expected an input of shape (N, 3, H, W), got (1, 4, 8, 8)"),
    Row("a list in Sequential", lambda: nn.Sequential([nn.ReLU()]),
        TypeError, "Sequential expected Modules, got list at position 0; pass modules one by one, not in a list"),
    Row("a function in Sequential", lambda: nn.Sequential(nn.Linear(2, 2), tg.relu),
        TypeError, "Sequential expected Modules, got function at position 1"),
    Row("a number appended to Sequential", lambda: nn.Sequential(nn.ReLU()).append(5),
        TypeError, "Sequential expected Modules, got int at position 1"),
    Row("a number in ModuleList", lambda: nn.ModuleList([nn.ReLU(), 5]),
        TypeError, "ModuleList expected Modules, got int at position 1"),
    Row("a class appended to ModuleList", lambda: nn.ModuleList([]).append(nn.ReLU),
        TypeError, "ModuleList expected Modules, got the class ReLU at position 0; make one: ReLU()"),
    Row("a call of ModuleList", lambda: nn.ModuleList([nn.ReLU()])(x(3)), TypeError, "ModuleList has no forward method"),
    Row("a call of Module", lambda: nn.Module()(x(3)), TypeError, "Module has no forward method"),
    Row("train by name", lambda: nn.Linear(2, 2).train("yes"), TypeError, "train() expected True or False, got 'yes'"),
    Row("ints as a module's dtype", lambda: nn.Linear(2, 2).to(dtype="int64"),
        TypeError, "Module.to expected a floating dtype, got int64"),
    Row("summary of another shape", lambda: models.cnn().summary((1, 28, 28)),
        ValueError, "Conv2d expected an input of shape (N, 1, H, W), got (1, 28, 28)"),
    # state dicts
    Row("an empty state dict", lambda: nn.Linear(2, 3).load_state_dict({}),
        ValueError, "load_state_dict of Linear: missing weight, bias"),
    Row("a state dict with DataParallel's prefix",
        lambda: nn.Linear(2, 3).load_state_dict({"module.weight": np.ones((3, 2)), "module.bias": np.ones(3)}),
        ValueError, "load_state_dict of Linear: missing weight, bias; unexpected module.weight, module.bias"),
    Row("a key missing", lambda: load(nn.Linear(2, 3), bias=None), ValueError, "load_state_dict of Linear: missing bias"),
    Row("a key too many", lambda: load(nn.Linear(2, 3), extra=np.ones(1)),
        ValueError, "load_state_dict of Linear: unexpected extra"),
    Row("a weight transposed", lambda: load(nn.Linear(2, 3), weight=np.ones((2, 3))),
        ValueError, "load_state_dict of Linear: misshapen weight: expected (3, 2), got (2, 3)"),
    Row("a weight transposed, not strict", lambda: load(nn.Linear(2, 3), strict=False, weight=np.ones((2, 3))),
        ValueError, "load_state_dict of Linear: misshapen weight: expected (3, 2), got (2, 3)"),
    Row("all three at once", lambda: load(nn.Linear(2, 3), weight=None, bias=np.ones(4), gamma=np.ones(1)),
        ValueError, "load_state_dict of Linear: missing weight; unexpected gamma; misshapen bias: expected (3,), got (4,)"),
    Row("BatchNorm of another size", lambda: nn.BatchNorm1d(3).load_state_dict(nn.BatchNorm1d(4).state_dict()),
        ValueError, "load_state_dict of BatchNorm1d: misshapen weight: expected (3,), got (4,), bias: expected (3,), got "
        "(4,), running_mean: expected (3,), got (4,), running_var: expected (3,), got (4,)"),
    Row("a counter missing", lambda: load(nn.BatchNorm1d(3), num_batches_tracked=None),
        ValueError, "load_state_dict of BatchNorm1d: missing num_batches_tracked"),
    Row("two counters", lambda: load(nn.BatchNorm1d(3), num_batches_tracked=np.array([1, 2])),
        ValueError, "load_state_dict of BatchNorm1d: misshapen num_batches_tracked: expected (), got (2,)"),
    Row("running statistics where there are none",
        lambda: nn.BatchNorm1d(3, track_running_stats=False).load_state_dict(nn.BatchNorm1d(3).state_dict()),
        ValueError, "load_state_dict of BatchNorm1d: unexpected running_mean, running_var, num_batches_tracked"),
    Row("text as a bias", lambda: load(nn.Linear(2, 3), bias="abc"),
        TypeError, "load_state_dict expected numbers for bias, got str of dtype <U3"),
    Row("complex numbers as a bias", lambda: load(nn.Linear(2, 3), bias=np.ones(3, "complex64")),
        TypeError, "load_state_dict expected numbers for bias, got ndarray of dtype complex64"),
    Row("a module as a state dict", lambda: nn.Linear(2, 3).load_state_dict(nn.Linear(2, 3)),
        TypeError, "load_state_dict expected a dict from names to arrays, got Linear"),
    Row("a file name as a state dict", lambda: nn.Linear(2, 3).load_state_dict("model.npz"),
        TypeError, "load_state_dict expected a dict from names to arrays, got str"),
    Row("no state dict", lambda: nn.Linear(2, 3).load_state_dict(None),
        TypeError, "load_state_dict expected a dict from names to arrays, got NoneType"),
    # models, initial weights, random numbers
    Row("one size", lambda: models.mlp((784,)), ValueError, "mlp expected at least two sizes, got (784,)"),
    Row("a float size", lambda: models.mlp((784, 10.0)),
        ValueError, "Linear expected out_features to be an int of at least 1, got 10.0"),
    Row("an unknown norm", lambda: models.resnet20(norm="bn"),
        ValueError, "norm expected one of 'batch', 'layer', 'group', None, got 'bn'"),
    Row("an activation with PyTorch's name", lambda: models.mlp((4, 3, 2), activation="ReLU"),
        ValueError, "activation expected one of relu, sigmoid, tanh, gelu, silu, got 'ReLU'"),
    Row("images of another size", lambda: models.cnn()(x(2, 1, 32, 32)),
        ValueError, "Linear expected an input of shape (..., 784), got (2, 1024)"),
    Row("images in colour", lambda: models.cnn()(x(2, 3, 28, 28)),
        ValueError, "Conv2d expected an input of shape (N, 1, H, W), got (2, 3, 28, 28)"),
    Row("fan-in of a vector", lambda: init.kaiming_normal_(x(3)),
        ValueError, "kaiming_normal_ expected a weight of at least 2 dimensions (out, in, *kernel), got shape (3,)"),
    Row("Xavier of a vector", lambda: init.xavier_uniform_(x(3)),
        ValueError, "xavier_uniform_ expected a weight of at least 2 dimensions (out, in, *kernel), got shape (3,)"),
    Row("an unknown mode", lambda: init.kaiming_normal_(x(3, 3), mode="fanin"),
        ValueError, "kaiming_normal_ expected mode to be 'fan_in' or 'fan_out', got 'fanin'"),
    Row("an unknown nonlinearity", lambda: init.calculate_gain("swish"),
        ValueError, "calculate_gain expected one of linear, conv, sigmoid, tanh, relu, leaky_relu, got 'swish'"),
    Row("initial values for a result", lambda: init.constant_(leaf(3) * 2.0, 1.0),
        TypeError, "constant_ expected a leaf, got a result of mul"),
    Row("a negative seed", lambda: tg.manual_seed(-1), ValueError, "manual_seed expected a non-negative int, got -1"),
    Row("a float seed", lambda: tg.manual_seed(1.5), ValueError, "manual_seed expected a non-negative int, got 1.5"),
    Row("no seed", lambda: tg.manual_seed(None), ValueError, "manual_seed expected a non-negative int, got None"),
    Row("a seed that is a bool", lambda: tg.manual_seed(True), ValueError, "manual_seed expected a non-negative int, got True"),
    Row("an empty rng state", lambda: tg.set_rng_state({}),
        ValueError, "set_rng_state expected a dict from get_rng_state(), got {}"),
    Row("no rng state", lambda: tg.set_rng_state(None),
        ValueError, "set_rng_state expected a dict from get_rng_state(), got None"),
    Row("another generator's rng state", lambda: tg.set_rng_state({"bit_generator": "MT19937"}),
        ValueError, "set_rng_state expected a dict from get_rng_state(), got {'bit_generator': 'MT19937'}"),
    Row("half an rng state",
        lambda: tg.set_rng_state({"bit_generator": "PCG64", "state": {"state": 1}, "has_uint32": 0, "uinteger": 0}),
        ValueError, "set_rng_state expected a dict from get_rng_state(), got {'bit_generator': 'PCG64', 'state': {'state': "
        "1}, 'has_uint32': 0, 'uinteger': 0}"),
    # optimizers and schedules
    Row("a module as parameters", lambda: optim.SGD(nn.Linear(2, 2), 0.1),
        TypeError, "SGD expected an ordered iterable of Tensors or of dicts, got Linear"),
    Row("parameters not called", lambda: optim.SGD(nn.Linear(2, 2).parameters, 0.1),
        TypeError, "SGD expected an ordered iterable of Tensors or of dicts, got method"),
    Row("named parameters", lambda: optim.SGD(nn.Linear(2, 2).named_parameters(), 0.1),
        TypeError, "SGD expected Tensors, got tuple as parameter 0 of group 0"),
    Row("a state dict as parameters", lambda: optim.SGD(nn.Linear(2, 2).state_dict(), 0.1),
        TypeError, "SGD expected an ordered iterable of Tensors or of dicts, got dict"),
    Row("a set of parameters", lambda: optim.SGD({leaf(3)}, 0.1),
        TypeError, "SGD expected an ordered iterable of Tensors or of dicts, got set"),
    Row("one tensor as parameters", lambda: optim.SGD(leaf(3), 0.1),
        TypeError, "SGD expected an iterable of Tensors, got one Tensor; pass [tensor]"),
    Row("no parameters", lambda: optim.SGD([], 0.1), ValueError, "SGD expected parameters, got none"),
    Row("a result as a parameter", lambda: optim.SGD([leaf(3) * 2.0], 0.1),
        ValueError, "SGD expected leaves, got a result of mul as parameter 0 of group 0"),
    Row("ints as a parameter", lambda: optim.SGD([ints(1, 2)], 0.1),
        TypeError, "SGD expected floating Tensors, got int64 as parameter 0 of group 0"),
    Row("an array as a parameter", lambda: optim.SGD([np.ones(3)], 0.1),
        TypeError, "SGD expected Tensors, got ndarray as parameter 0 of group 0"),
    Row("a parameter twice", lambda: optim.SGD([W, W], 0.1),
        ValueError, "SGD expected each parameter once, got parameter 1 of group 0, of shape (3,), again"),
    Row("a parameter in two groups", lambda: optim.SGD([{"params": W}, {"params": [W]}], 0.1),
        ValueError, "SGD expected each parameter once, got parameter 0 of group 1, of shape (3,), again"),
    Row("a group without params", lambda: optim.SGD([{"param": W}], 0.1),
        TypeError, "SGD expected each parameter group to be a dict with 'params', got the keys ['param']"),
    Row("an unknown option of a group", lambda: optim.SGD([{"params": W, "learning_rate": 1.0}], 0.1),
        ValueError, "SGD has no option learning_rate; it has lr, momentum, dampening, weight_decay, nesterov"),
    Row("a negative lr", lambda: sgd(-1.0), ValueError, "SGD: lr expected a finite number of at least 0, got -1.0"),
    Row("lr in text", lambda: sgd("0.1"), TypeError, "SGD: lr expected a number, got str"),
    Row("lr of None", lambda: sgd(None), TypeError, "SGD: lr expected a number, got NoneType"),
    Row("lr of NaN", lambda: sgd(float("nan")), ValueError, "SGD: lr expected a finite number of at least 0, got nan"),
    Row("lr that is a Tensor", lambda: sgd(tg.tensor(0.1)), TypeError, "SGD: lr expected a number, got Tensor"),
    Row("a negative momentum of SGD", lambda: sgd(momentum=-1),
        ValueError, "SGD: momentum expected a finite number of at least 0, got -1.0"),
    Row("a negative weight decay", lambda: sgd(weight_decay=-1),
        ValueError, "SGD: weight_decay expected a finite number of at least 0, got -1.0"),
    Row("nesterov without momentum", lambda: sgd(nesterov=True),
        ValueError, "SGD with nesterov expected momentum > 0 and dampening = 0, got 0.0 and 0.0"),
    Row("one beta", lambda: adam(betas=0.9), ValueError, "Adam: betas expected two numbers, got 0.9"),
    Row("a beta of 1", lambda: adam(betas=(0.9, 1.0)),
        ValueError, "Adam: betas[1] expected a finite number of at least 0 and below 1, got 1.0"),
    Row("a negative eps of Adam", lambda: adam(eps=-1e-8),
        ValueError, "Adam: eps expected a finite number of at least 0, got -1e-08"),
    Row("a negative lr later", lambda: step_with_lr(-5.0),
        ValueError, "SGD: lr expected a finite number of at least 0, got -5.0"),
    Row("lr in text later", lambda: step_with_lr("a"), TypeError, "SGD: lr expected a number, got str"),
    Row("an array as .grad", lambda: step_with(grad=np.ones((2, 3))),
        TypeError, ".grad expected a Tensor or None, got ndarray"),
    Row("a .grad of another shape", lambda: step_with(grad=x(3, 2)),
        ValueError, ".grad of a tensor of shape (2, 3) expected the same shape, got (3, 2)"),
    Row("a .grad of another dtype", lambda: step_with(grad=x(2, 3, dtype="float64")),
        ValueError, ".grad of a tensor of float32 expected the same dtype, got float64"),
    Row("another shape after a step", lambda: reshape_after_a_step(),
        ValueError, "SGD: a parameter of group 0 had shape (2, 3), now (3, 3), but its state belongs to the old shape; "
        "expected the same shape, or a new optimizer"),
    Row("an empty optimizer state", lambda: sgd().load_state_dict({}),
        ValueError, "SGD.load_state_dict() expected a dict with 'state' and 'param_groups'"),
    Row("a model's state for an optimizer", lambda: sgd().load_state_dict(nn.Linear(3, 2).state_dict()),
        ValueError, "SGD.load_state_dict() expected a dict with 'state' and 'param_groups'"),
    Row("the state of another model's optimizer", lambda: sgd().load_state_dict(optim.SGD([leaf(3)], 0.1).state_dict()),
        ValueError, "SGD.load_state_dict() expected 1 groups, of [2] parameters, got 1, of [1]"),
    Row("the state of another optimizer", lambda: sgd().load_state_dict(adam().state_dict()),
        ValueError, "SGD.load_state_dict(): group 0 expected the options lr, momentum, dampening, weight_decay, nesterov; "
        "missing: dampening, momentum, nesterov, unknown: amsgrad, betas, decoupled_weight_decay, eps"),
    Row("a negative lr in a state dict", lambda: load_group(sgd(), lr=-1.0),
        ValueError, "SGD: lr expected a finite number of at least 0, got -1.0"),
    Row("PyTorch's amsgrad in a state dict", lambda: load_group(adam(), amsgrad=True),
        ValueError, "Adam.load_state_dict(): group 0 expected amsgrad=False, got amsgrad=True"),
    Row("momentum of another shape", lambda: load_momentum(momentum_buffer=np.ones(3)),
        ValueError, "SGD.load_state_dict(): state of parameter 0: momentum_buffer expected shape (2, 3), got (3,)"),
    Row("momentum under another name", lambda: load_momentum(velocity=np.ones(3)),
        ValueError, "SGD.load_state_dict(): state of parameter 0 expected momentum_buffer, got velocity"),
    Row("a momentum buffer in text", lambda: load_momentum(momentum_buffer="x"),
        TypeError, "SGD.load_state_dict(): state of parameter 0: momentum_buffer expected an array of numbers, got str"),
    Row("a parameter added again", lambda: optim.SGD([W], 0.1).add_param_group({"params": W}),
        ValueError, "SGD expected each parameter once, got parameter 0 of group 1, of shape (3,), again"),
    Row("a Tensor added as a group", lambda: sgd().add_param_group(leaf(3)),
        TypeError, "SGD expected each parameter group to be a dict with 'params', got Tensor"),
    Row("a schedule of a module", lambda: optim.StepLR(nn.Linear(2, 2), 1),
        TypeError, "StepLR expected an Optimizer, got Linear"),
    Row("a schedule of no steps", lambda: optim.StepLR(sgd(), 0),
        ValueError, "StepLR: step_size expected a whole number of at least 1, got 0"),
    Row("a schedule of half a step", lambda: optim.StepLR(sgd(), 1.5),
        TypeError, "StepLR: step_size expected a whole number, got 1.5"),
    Row("a negative gamma", lambda: optim.StepLR(sgd(), 1, -0.1),
        ValueError, "StepLR: gamma expected a finite number of at least 0, got -0.1"),
    Row("a cosine of no steps", lambda: optim.CosineAnnealingLR(sgd(), 0),
        ValueError, "CosineAnnealingLR: T_max expected a whole number of at least 1, got 0"),
    Row("a warm-up from 0", lambda: optim.LinearLR(sgd(), 0.0),
        ValueError, "LinearLR: start_factor expected a number above 0 to 1, got 0.0"),
    Row("a warm-up of no steps", lambda: optim.LinearLR(sgd(), 0.1, total_iters=0),
        ValueError, "LinearLR: total_iters expected a whole number of at least 1, got 0"),
    Row("a milestone too few", lambda: two_schedules_and([]),
        ValueError, "SequentialLR expected 1 rising milestones for 2 schedules, got []"),
    Row("an optimizer among schedules", lambda: optim.SequentialLR((o := sgd()), [o], []),
        TypeError, "SequentialLR expected schedules, got SGD at position 0"),
    Row("schedules of two optimizers", lambda: schedules_of_two(),
        ValueError, "SequentialLR expected schedules of its own optimizer; that at position 0 has another"),
    Row("a group added under a schedule", lambda: grow_under_a_schedule(),
        ValueError, "StepLR was made for 1 parameter groups, but the optimizer now has 2; make the schedule after the last "
        "add_param_group"),
    Row("the state of another schedule",
        lambda: optim.StepLR(sgd(), 1).load_state_dict(optim.CosineAnnealingLR(sgd(), 3).state_dict()),
        ValueError, "StepLR.load_state_dict(): expected the keys step_size, gamma, base_lrs, last_epoch, got T_max, "
        "base_lrs, eta_min, last_epoch"),
    Row("a negative max_norm", lambda: optim.clip_grad_norm_([leaf(3)], -1.0),
        ValueError, "clip_grad_norm_: max_norm expected a finite number of at least 0, got -1.0"),
    Row("max_norm of NaN", lambda: optim.clip_grad_norm_([leaf(3)], float("nan")),
        ValueError, "clip_grad_norm_: max_norm expected a finite number of at least 0, got nan"),
    Row("norm_type 0", lambda: optim.clip_grad_norm_([leaf(3)], 1.0, norm_type=0),
        ValueError, "clip_grad_norm_: norm_type expected a number above 0, got 0"),
    Row("arrays to clip", lambda: optim.clip_grad_norm_([np.ones(3)], 1.0),
        TypeError, "clip_grad_norm_ expected Tensors, got ndarray at position 0"),
    # data
    Row("lists in batches", lambda: datasets.batches([1, 2], [1, 2], 1),
        TypeError, "batches expected x to be an array of shape (N, ...), got list"),
    Row("x and y of two lengths", lambda: batches(y_shape=(4,)),
        ValueError, "batches expected x and y of equal length, got 5 and 4"),
    Row("no examples", lambda: batches((0, 2), (0,)),
        ValueError, "batches expected x and y to hold at least one example, got none"),
    Row("batches of none", lambda: batches(batch_size=0), ValueError, "batches expected batch_size to be at least 1, got 0"),
    Row("batches of a half", lambda: batches(batch_size=2.5),
        TypeError, "batches expected batch_size to be an integer, got 2.5"),
    Row("batches of True", lambda: batches(batch_size=True),
        TypeError, "batches expected batch_size to be an integer, got True"),
    Row("a batch larger than the data, dropped", lambda: batches(batch_size=10, drop_last=True),
        ValueError, "batches expected batch_size <= 5, the number of examples, with drop_last=True, got 10: no batch would "
        "be left"),
    Row("shuffle by name", lambda: batches(shuffle="yes"),
        TypeError, "batches expected shuffle to be True or False, got 'yes'"),
    Row("a negative seed of batches", lambda: batches(seed=-1), ValueError, "batches expected seed to be at least 0, got -1"),
    Row("a seed of None", lambda: batches(seed=None), TypeError, "batches expected seed to be an integer, got None"),
    Row("a negative epoch", lambda: batches().set_epoch(-1), ValueError, "set_epoch expected epoch to be at least 0, got -1"),
    Row("a position in other batches", lambda: resume(batch_size=3),
        ValueError, "load_state_dict expected batch_size to be 2 as in batches(), got 3"),
    Row("a position after the end", lambda: resume(batch=3),
        ValueError, "load_state_dict expected batch to be less than 3, got 3"),
    Row("no position", lambda: batches().load_state_dict({}),
        ValueError, "load_state_dict expected the keys ['batch', 'batch_size', 'drop_last', 'epoch', 'examples', 'seed', "
        "'shuffle'], got []"),
    Row("an unknown source", lambda: datasets.mnist("embeded"),
        ValueError, "mnist expected source to be 'embedded', 'full' or an existing directory, got 'embeded'"),
    Row("a number as source", lambda: datasets.mnist(5), TypeError, "mnist expected source to be a string or a path, got int"),
    Row("None as source", lambda: datasets.fashion_mnist(None),
        TypeError, "fashion_mnist expected source to be a string or a path, got NoneType"),
    # anomalies
    Row("Inf under detect_anomaly", look_into_log_of_zero,
        FloatingPointError, re.compile(r"log, called at .*test_misuse\.py:\d+, produced Inf in the forward pass")),
    Row("a kink under check_grads", lambda: tg.check_grads(ops.abs, x(1, dtype="float64")),
        tg.NonSmoothPoint,
        re.compile(
            r"the function is not smooth near this point at order 1: along a random direction its slope is \S+ on one side "
            r"and \S+ on the other; move the arguments away from kinks"
        )),
    Row("a function that leaves the graph under check_grads",
        lambda: tg.check_grads(lambda t: t.detach() * 2.0, x(1, dtype="float64")),
        AssertionError, re.compile(r"derivative of order 1: 0.0 by the rules, \S+ by finite differences .*")),
    # more
    Row("BatchNorm of another dtype, composed", lambda: nn.BatchNorm1d(3, fused=False)(x(4, 3, dtype="float64")),
        TypeError, "batch_norm expected one dtype, got an input of float64 and gamma of float32"),
    Row("BatchNorm of ints, composed", lambda: nn.BatchNorm1d(3, fused=False)(x(4, 3, dtype="int64")),
        TypeError, "batch_norm expected a floating input, got int64"),
    Row("cumsum over two axes", lambda: x(3, 3).cumsum((0, 1)), TypeError, "cumsum expected axis to be an int, got (0, 1)"),
    Row("cumsum over None", lambda: x(3).cumsum(None), TypeError, "cumsum expected axis to be an int, got None"),
    Row("p -= lr * p.grad", lambda: manual_step(subtract_in_a_loop),
        TypeError, "a leaf that requires grad is not changed in place by -=; assign its .data, or write t = t - ... for a "
        "new tensor"),
    Row("leaf += 1", lambda: operator.iadd(leaf(3), 1.0),
        TypeError, "a leaf that requires grad is not changed in place by +=; assign its .data, or write t = t + ... for a "
        "new tensor"),
    Row("leaf *= 2", lambda: operator.imul(leaf(3), 2.0),
        TypeError, "a leaf that requires grad is not changed in place by *=; assign its .data, or write t = t * ... for a "
        "new tensor"),
    Row("leaf /= 2", lambda: operator.itruediv(leaf(3), 2.0),
        TypeError, "a leaf that requires grad is not changed in place by /=; assign its .data, or write t = t / ... for a "
        "new tensor"),
    Row("weight -= lr * weight.grad", lambda: manual_step(subtract_from_the_weight),
        TypeError, "a leaf that requires grad is not changed in place by -=; assign its .data, or write t = t - ... for a "
        "new tensor"),
    Row("an array over a Parameter", lambda: assign("weight", np.ones((2, 2), "float32"), nn.Linear(2, 2)),
        TypeError, "weight of Linear is a Parameter, and can be replaced by a Parameter or None, got ndarray; to change its "
        "values assign its .data"),
    Row("an array over a Buffer", lambda: assign("running_mean", np.zeros(3), nn.BatchNorm1d(3)),
        TypeError, "running_mean of BatchNorm1d is a Buffer, and can be replaced by a Buffer or None, got ndarray"),
    Row("a value that requires grad, assigned", lambda: put(x(3), slice(None), leaf(3) * 2.0),
        TypeError, "a value that requires grad is not written into a tensor, the graph would be lost; use where() or "
        "concatenate(), or write its .detach()"),
    Row("a view of a detached leaf changed before backward",
        lambda: change_then_backward(lambda w: put(w.detach()[:2], 0, 5.0)),
        RuntimeError, changed("mul", "x", (3,))),
    Row("a reshaped alias changed before backward",
        lambda: change_then_backward(lambda w: put(w.detach().reshape(3, 1), 0, 5.0)),
        RuntimeError, changed("mul", "x", (3,))),
    Row("a view of a constant changed before backward", change_a_view_of_a_constant_then_backward,
        RuntimeError, changed("mul", "y", (3,))),
    Row("adaptive_avg_pool2d of ints", lambda: ops.adaptive_avg_pool2d(x(1, 1, 5, 5, dtype="int64"), 2),
        TypeError, "adaptive_avg_pool2d expected a floating input, got int64"),
    Row("axes one by one", lambda: x(3, 3).sum(0, 1),
        TypeError, "sum expected keepdims to be True or False, got 1; several axes are given as a tuple"),
    Row("axes one by one in mean", lambda: x(3, 3).mean(0, 1),
        TypeError, "mean expected keepdims to be True or False, got 1; several axes are given as a tuple"),
    Row("axes one by one in max", lambda: x(3, 3).max(0, 1),
        TypeError, "max expected keepdims to be True or False, got 1; several axes are given as a tuple"),
    Row("keepdims where ddof goes", lambda: x(3, 3).var(0, True),
        ValueError, "var expected ddof to be an int of at least 0, got True"),
    Row("ddof in text", lambda: x(3).var(ddof="a"), ValueError, "var expected ddof to be an int of at least 0, got 'a'"),
    Row("a negative ddof", lambda: x(3).var(ddof=-1), ValueError, "var expected ddof to be an int of at least 0, got -1"),
    Row("a tensor plus a list", lambda: x(3) + [1, 2, 3],
        TypeError, "add expected a Tensor, an array or a number as 'y', got list"),
    Row("BatchNorm of another dtype without parameters", lambda: nn.BatchNorm1d(3, affine=False)(x(4, 3, dtype="float64")),
        TypeError, "BatchNorm1d expected one dtype, got an input of float64 and running_mean of float32"),
    Row("beta without gamma in evaluation", lambda: ops.batch_norm_inference(x(4, 3), None, x(3), x(3), x(3)),
        ValueError, "batch_norm_inference expected both gamma and beta, or neither"),
    Row("gamma without beta in evaluation", lambda: ops.batch_norm_inference(x(4, 3), x(3), None, x(3), x(3)),
        ValueError, "batch_norm_inference expected both gamma and beta, or neither"),
    Row("a hook that changes the dtype", lambda: hooked(lambda g: g.double()),
        ValueError, "a gradient hook was given float32 on cpu, but returned float64 on cpu"),
    Row("a negative counter", lambda: load(nn.BatchNorm1d(3), num_batches_tracked=np.array(-5)),
        ValueError, "load_state_dict of BatchNorm1d: num_batches_tracked expected a whole number of at least 0, got -5"),
    Row("half a batch", lambda: load(nn.BatchNorm1d(3), num_batches_tracked=np.array(1.5)),
        ValueError, "load_state_dict of BatchNorm1d: num_batches_tracked expected a whole number of at least 0, got 1.5"),
    Row("a counter of NaN", lambda: load(nn.BatchNorm1d(3), num_batches_tracked=np.array(np.nan)),
        ValueError, "load_state_dict of BatchNorm1d: num_batches_tracked expected a whole number of at least 0, got nan"),
    Row("split by sizes that do not rise", lambda: x(3).split([2, 1]),
        ValueError, "split expected rising indices between 0 and 3 where axis 0 of length 3 is cut (not the sizes of the "
        "parts), got [2, 1]"),
    Row("split by sizes", lambda: x(4).split([2, 2]),
        ValueError, "split expected rising indices between 0 and 4 where axis 0 of length 4 is cut (not the sizes of the "
        "parts), got [2, 2]"),
    Row("split past the end", lambda: x(3).split([1, 5]),
        ValueError, "split expected rising indices between 0 and 3 where axis 0 of length 3 is cut (not the sizes of the "
        "parts), got [1, 5]"),
    Row("a string as condition", lambda: ops.where("x > 0", x(2), x(2)),
        TypeError, "where expected a Tensor, an array or a number as 'condition', got str"),
    Row("floats as condition", lambda: ops.where(x(2), x(2), x(2)),
        TypeError, "where expected a condition of booleans, got float32"),
    Row("where without a value", lambda: ops.where(x(2) > 0, x(2), None),
        TypeError, "where expected a Tensor, an array or a number as 'y', got NoneType"),
    Row("a loss called on its class", lambda: nn.CrossEntropyLoss(x(2, 3), ints(0, 1)),
        ValueError, re.compile(r"(?s)cross_entropy expected reduction to be 'mean', 'sum' or 'none', got tensor\(.*")),
    Row("an unknown reduction of a layer", lambda: nn.MSELoss("avg"),
        ValueError, "mse_loss expected reduction to be 'mean', 'sum' or 'none', got 'avg'"),
    Row("too much label smoothing of a layer", lambda: nn.CrossEntropyLoss(label_smoothing=2.0),
        ValueError, "cross_entropy expected label_smoothing from 0 to 1, got 2.0"),
    Row("a negative eps of LayerNorm", lambda: nn.LayerNorm(3, eps=-1.0),
        ValueError, "LayerNorm expected eps to be a number of at least 0, got -1.0"),
    Row("eps in text of LayerNorm", lambda: nn.LayerNorm(3, eps="a"),
        ValueError, "LayerNorm expected eps to be a number of at least 0, got 'a'"),
    Row("eps of None of GroupNorm", lambda: nn.GroupNorm(2, 4, eps=None),
        ValueError, "GroupNorm expected eps to be a number of at least 0, got None"),
    Row("a negative eps of batch_norm", lambda: ops.batch_norm(x(4, 3), eps=-1.0),
        ValueError, "batch_norm expected eps to be a number of at least 0, got -1.0"),
    Row("a negative eps of layer_norm", lambda: ops.layer_norm(x(4, 3), eps=-1.0),
        ValueError, "layer_norm expected eps to be a number of at least 0, got -1.0"),
    Row("eps in text of group_norm", lambda: ops.group_norm(x(4, 6), num_groups=2, eps="a"),
        ValueError, "group_norm expected eps to be a number of at least 0, got 'a'"),
    Row("Flatten from a missing axis", lambda: nn.Flatten(5)(x(2, 3)),
        ValueError, "Flatten expected an axis from -2 to 1, got 5"),
    Row("Flatten from a letter", lambda: nn.Flatten("a")(x(2, 3)), TypeError, "Flatten expected axis to be an int, got 'a'"),
    Row("int data for a leaf", lambda: assign("data", np.ones(3, "int64"), leaf(3)),
        TypeError, ".data of a tensor that requires grad expected a floating array, got int64"),
    Row("an array as gradient of a leaf", lambda: backward_onto(np.ones(3, "float32")),
        TypeError, ".grad expected a Tensor or None, got ndarray"),
    Row("a number as gradient of a leaf", lambda: backward_onto(5), TypeError, ".grad expected a Tensor or None, got int"),
    Row("a gradient of a leaf of another shape", lambda: backward_onto(x(4)),
        ValueError, ".grad of a tensor of shape (3,) expected the same shape, got (4,)"),
    Row("to clip a number", clip_grad_that_is_a_number, TypeError, ".grad expected a Tensor or None, got int"),
    Row("a hook that is a number", lambda: leaf(3).register_hook(5),
        TypeError, "register_hook expected a function of the gradient, got int"),
    Row("a leaf's hook that is None", lambda: leaf(3).register_post_accumulate_grad_hook(None),
        TypeError, "register_post_accumulate_grad_hook expected a function of the tensor, got NoneType"),
    Row("requires_grad by name", lambda: tg.tensor([1.0], requires_grad="no"),
        TypeError, "requires_grad expected True or False, got 'no'"),
    Row("bias by name", lambda: nn.Linear(2, 2, bias="no"), TypeError, "Linear expected bias to be True or False, got 'no'"),
    Row("affine by name", lambda: nn.BatchNorm1d(3, affine="no"),
        TypeError, "BatchNorm1d expected affine to be True or False, got 'no'"),
    Row("an unknown norm that is not used", lambda: models.mlp((4, 2), norm="bn"),
        ValueError, "norm expected one of 'batch', 'layer', 'group', None, got 'bn'"),
    Row("an unknown activation that is not used", lambda: models.mlp((4, 2), activation="foo"),
        ValueError, "activation expected one of relu, sigmoid, tanh, gelu, silu, got 'foo'"),
    Row("int logits", lambda: ops.cross_entropy(x(2, 3, dtype="int64"), ints(0, 1)),
        TypeError, "cross_entropy expected a floating input, got int64"),
    Row("None as initial value", lambda: init.constant_(leaf(3), None),
        ValueError, "constant_ expected value to be a number, got None"),
    Row("a negative std", lambda: init.normal_(leaf(3), std=-1.0),
        ValueError, "normal_ expected std to be a number of at least 0, got -1.0"),
    Row("normal ints", lambda: init.normal_(ints(1, 2)), TypeError, "normal_ expected a floating Tensor, got int64"),
    Row("conv2d with an empty kernel", lambda: ops.conv2d(x(1, 4, 5, 5), x(4, 4, 0, 3)),
        ValueError, "conv2d expected a weight of at least one element, got shape (4, 4, 0, 3)"),
    Row("an rng state of a half",
        lambda: tg.set_rng_state({"bit_generator": "PCG64", "state": {"state": 1.5, "inc": 1}, "has_uint32": 0, "uinteger": 0}),
        ValueError, "set_rng_state expected a dict from get_rng_state(), got {'bit_generator': 'PCG64', 'state': {'state': "
        "1.5, 'inc': 1}, 'has_uint32': 0, 'uinteger': 0}"),
    Row("linear with a bias of another dtype", lambda: ops.linear(x(2, 3), x(4, 3), x(4, dtype="float64")),
        TypeError, "linear expected one dtype, got an input of float32, a weight of float32 and a bias of float64"),
    Row("conv2d with a bias of another dtype", lambda: ops.conv2d(x(1, 4, 5, 5), x(4, 4, 3, 3), x(4, dtype="float64")),
        TypeError, "conv2d expected one dtype, got an input of float32, a weight of float32 and a bias of float64"),
    Row("a foreign Tensor as operand", lambda: x(3) * torch_tensor(),
        TypeError, "mul expected a Tensor, an array or a number as 'y', got torch.Tensor"),
    Row("a foreign Tensor as data", lambda: assign("data", torch_tensor(), leaf(3)),
        TypeError, ".data expected a NumPy or CuPy array, got torch.Tensor"),
    Row("a list in Linear", lambda: nn.Linear(3, 4)([[1.0, 2.0, 3.0]]),
        TypeError, "Linear expected a Tensor or an array of shape (..., 3), got list"),
    Row("None in Linear", lambda: nn.Linear(3, 4)(None),
        TypeError, "Linear expected a Tensor or an array of shape (..., 3), got NoneType"),
    Row("a list in Conv2d", lambda: nn.Conv2d(3, 8, 3)([[1.0]]),
        TypeError, "Conv2d expected a Tensor or an array of shape (N, 3, H, W), got list"),
    Row("a list in BatchNorm1d", lambda: nn.BatchNorm1d(3)([[1.0, 2.0, 3.0]]),
        TypeError, "BatchNorm1d expected a Tensor or an array of shape (N, 3) or (N, 3, L), got list"),
    Row("a list in Flatten", lambda: nn.Flatten()([1.0]), TypeError, "Flatten expected a Tensor or an array as 'x', got list"),
    Row("a list in Dropout", lambda: nn.Dropout(0.5)([1.0]),
        TypeError, "dropout expected a Tensor or an array as 'x', got list"),
    Row("matmul with a number", lambda: x(3) @ 2.0, TypeError, "matmul expected a Tensor or an array as 'y', got float"),
    Row("softmax of a list", lambda: ops.softmax([1.0, 2.0]),
        TypeError, "softmax expected a Tensor or an array as 'x', got list"),
    Row("sum of a list", lambda: ops.sum([1.0, 2.0]), TypeError, "sum expected a Tensor or an array as 'x', got list"),
    Row("linear with a number as bias", lambda: ops.linear(x(2, 3), x(4, 3), 1.0),
        TypeError, "linear expected a Tensor or an array as 'b', got float"),
    Row("batch_norm with numbers", lambda: ops.batch_norm(x(4, 3), 1.0, 0.0),
        TypeError, "batch_norm expected a Tensor or an array as 'gamma', got float"),
    Row("layer_norm with the shape where gamma goes", lambda: ops.layer_norm(x(4, 3), [3]),
        TypeError, "layer_norm expected a Tensor or an array as 'gamma', got list"),
    Row("group_norm with the groups where gamma goes", lambda: ops.group_norm(x(4, 6), 3),
        TypeError, "group_norm expected a Tensor or an array as 'gamma', got int"),
    Row("batch_norm_inference without statistics", lambda: ops.batch_norm_inference(x(4, 3), None, None, None, None),
        TypeError, "batch_norm_inference expected a Tensor or an array as 'mean', got NoneType"),
    Row("conv2d of a list", lambda: ops.conv2d([[1.0]], x(4, 4, 3, 3)),
        TypeError, "conv2d expected a Tensor or an array as 'x', got list"),
    Row("conv2d with the stride where the bias goes", lambda: ops.conv2d(x(1, 4, 5, 5), x(4, 4, 3, 3), 1),
        TypeError, "conv2d expected a Tensor or an array as 'b', got int"),
    Row("conv1d of a string", lambda: ops.conv1d("a", x(4, 4, 3)),
        TypeError, "conv1d expected a Tensor or an array as 'x', got str"),
    Row("max_pool2d of a list", lambda: ops.max_pool2d([[1.0]], 2),
        TypeError, "max_pool2d expected a Tensor or an array as 'x', got list"),
    Row("einsum of a list", lambda: ops.einsum("ij,jk->ik", x(2, 3), [[1.0]]),
        TypeError, "einsum expected a Tensor or an array as 'operands[1]', got list"),
    Row("reshape of a list", lambda: ops.reshape([1.0, 2.0], (2, 1)),
        TypeError, "reshape expected a Tensor or an array as 'x', got list"),
    Row("logits in a list", lambda: ops.cross_entropy([[1.0, 2.0]], ints(0)),
        TypeError, "cross_entropy expected a Tensor or an array as 'x', got list"),
    Row("a list as target", lambda: ops.mse_loss(x(3), [1.0, 2.0, 3.0]),
        TypeError, "mse_loss expected a Tensor or an array as 'target', got list"),
    Row("a number as target", lambda: ops.mse_loss(x(3), 1.0),
        TypeError, "mse_loss expected a Tensor or an array as 'target', got float"),
    Row("a list of binary targets", lambda: nn.BCEWithLogitsLoss()(x(3), [0, 1, 1]),
        TypeError, "bce_with_logits expected a Tensor or an array as 'target', got list"),
    Row("an embedding without a table", lambda: ops.embedding(ints(1), 3),
        TypeError, "embedding expected a Tensor or an array as 'weight', got int"),
    Row("an embedding in a vector", lambda: ops.embedding(ints(0), tg.tensor(1.0)),
        ValueError, "embedding expected a weight (num_embeddings, dim) of at least one row, got shape ()"),
    Row("a summary of text", lambda: nn.Linear(2, 2).summary("a"),
        TypeError, "summary() expected an example input or its shape, got str"),
    Row("a summary of a number", lambda: nn.Linear(2, 2).summary(3),
        TypeError, "summary() expected an example input or its shape, got int"),
    Row("a summary of a negative shape", lambda: nn.Linear(2, 2).summary((-1, 2)),
        ValueError, "summary() expected a shape of ints of at least 0, got (-1, 2)"),
    Row("initial values for an array", lambda: init.zeros_(np.ones(3)), TypeError, "zeros_ expected a Tensor, got ndarray"),
    Row("initial values for a layer", lambda: init.normal_(nn.Linear(2, 2)),
        TypeError, "normal_ expected a Tensor, got Linear"),
    Row("check_grads of a number", lambda: tg.check_grads(lambda t: t * t, 3.0),
        TypeError, "check_grads expected a Tensor or an array as 'args', got float"),
    Row("check_grads of numbers", lambda: tg.check_grads(lambda t: t * t, [3.0]),
        TypeError, "check_grads expected a Tensor or an array as 'args[0]', got float"),
    Row("check_grads of a function of numbers", lambda: tg.check_grads(lambda t: 5.0, x(3, dtype="float64")),
        TypeError, "check_grads expected a function that returns Tensors, got float"),
    Row("check_grads of a function that leaves the graph", lambda: tg.check_grads(lambda t: t.data * 2, x(3, dtype="float64")),
        TypeError, "check_grads expected a function that returns Tensors, got ndarray"),
    Row("jacobian of two results", lambda: tg.jacobian(lambda t: (t, t), x(3)),
        TypeError, "jacobian expected a function that returns a Tensor, got tuple"),
    Row("jacobian at a number", lambda: tg.jacobian(lambda t: t * 2.0, 3.0),
        TypeError, "jacobian expected a Tensor or an array as 'args', got float"),
    Row("hvp of a number", lambda: tg.hvp(lambda t: 3.0, x(3), x(3)),
        TypeError, "hvp expected a function that returns a Tensor, got float"),
    Row("hvp with a number", lambda: tg.hvp(lambda t: t.sum(), x(3), 1.0),
        TypeError, "hvp expected a Tensor or an array as 'vectors', got float"),
    Row("a Tensor of a list", lambda: tg.Tensor([1.0, 2.0]),
        TypeError, "Tensor() expected a NumPy or CuPy array, got list; tensor() makes one of numbers and lists"),
    Row("a Tensor of a shape", lambda: tg.Tensor(2, 3),
        TypeError, "Tensor() expected a NumPy or CuPy array, got int; tensor() makes one of numbers and lists"),
    Row("a Parameter of a list", lambda: nn.Parameter([1.0, 2.0]),
        TypeError, "Parameter expected a Tensor or an array, got list"),
    Row("a Buffer of a list", lambda: nn.Buffer([1.0]), TypeError, "Buffer expected a Tensor or an array, got list"),
    Row("exp of a number", lambda: ops.exp(3.0), TypeError, "exp expected a Tensor or an array as 'x', got float"),
    Row("exp of None", lambda: ops.exp(None), TypeError, "exp expected a Tensor or an array as 'x', got NoneType"),
    Row("maximum of numbers", lambda: ops.maximum(1, 2),
        TypeError, "maximum expected a Tensor or an array among its arguments, got int and int"),
    Row("None as operand", lambda: x(3) + None, TypeError, "add expected a Tensor, an array or a number as 'y', got NoneType"),
    Row("None in maximum", lambda: ops.maximum(x(3), None),
        TypeError, "maximum expected a Tensor, an array or a number as 'y', got NoneType"),
    Row("grad of a number", lambda: tg.grad(W.sum(), 3),
        TypeError, "grad() expected inputs that are a Tensor or a sequence of them, got int"),
    Row("grad of None", lambda: tg.grad(W.sum(), None),
        TypeError, "grad() expected inputs that are a Tensor or a sequence of them, got NoneType"),
    Row("grad of a module", lambda: tg.grad(W.sum(), nn.Linear(2, 2)),
        TypeError, "grad() expected inputs that are a Tensor or a sequence of them, got Linear"),
    Row("grad from a number", lambda: tg.grad(3.0, W),
        TypeError, "grad() expected outputs that are a Tensor or a sequence of them, got float"),
    Row("a number as grad_outputs", lambda: tg.grad(W.sum(), W, 1.0),
        TypeError, "grad() expected grad_outputs that are a Tensor, an array or a sequence of them, got float"),
    Row("grad from nothing", lambda: tg.grad([], W), ValueError, "grad() expected at least one output, got none"),
    Row("ModuleList of one module", lambda: nn.ModuleList(nn.ReLU()),
        TypeError, "ModuleList expected a sequence of Modules, got ReLU"),
    Row("ModuleList of a number", lambda: nn.ModuleList(5), TypeError, "ModuleList expected a sequence of Modules, got int"),
    Row("LayerNorm of a float", lambda: nn.LayerNorm(3.0),
        ValueError, "LayerNorm expected normalized_shape to be an int of at least 1, got 3.0"),
    Row("mlp of a number", lambda: models.mlp(784), TypeError, "mlp expected sizes to be a sequence of ints, got 784"),
    Row("cnn of a number", lambda: models.cnn(channels=8), TypeError, "cnn expected channels to be a sequence of ints, got 8"),
    Row("cnn with the norm first", lambda: models.cnn("batch"),
        TypeError, "cnn expected channels to be a sequence of ints, got 'batch'"),
    Row("concatenate of a number", lambda: ops.concatenate(5),
        TypeError, "concatenate expected a sequence of Tensors or arrays, got int"),
    Row("concatenate without a list", lambda: ops.concatenate(x(2), x(2)),
        TypeError, "concatenate expected axis to be an int, got a Tensor; pass the arrays as one sequence"),
    Row("clip_grad_norm_ of a module", lambda: optim.clip_grad_norm_(nn.Linear(2, 2), 1.0),
        TypeError, "clip_grad_norm_ expected a Tensor or an iterable of them, got Linear; pass .parameters()"),
    Row("milestones that are a number", lambda: two_schedules_and(5),
        TypeError, "SequentialLR: milestones expected a sequence of whole numbers, got int"),
    Row("a schedule of one schedule", lambda: optim.SequentialLR((o := sgd()), optim.StepLR(o, 1), [5]),
        TypeError, "SequentialLR expected a sequence of schedules, got StepLR"),
    Row("base_lrs that are a number", lambda: load_schedule(base_lrs=5),
        TypeError, "StepLR: base_lrs expected a sequence of numbers, got int"),
    Row("argmax over two axes", lambda: x(3, 3).argmax((0, 1)), TypeError, "argmax expected axis to be an int, got (0, 1)"),
    Row("split in halves", lambda: x(4).split(1.5),
        TypeError, "split expected a number of sections or the indices to cut at, got 1.5"),
    Row("pad with a float", lambda: ops.pad(x(2, 3), 1.5),
        ValueError, "pad expected an int, (before, after), or 2 such pairs, none negative, for an input of shape (2, 3); got "
        "1.5"),
    Row("pad as PyTorch does", lambda: ops.pad(x(2, 3), (1, 1, 1, 1)),
        ValueError, "pad expected an int, (before, after), or 2 such pairs, none negative, for an input of shape (2, 3); got "
        "(1, 1, 1, 1)"),
    Row("reshape to an array", lambda: x(4).reshape(np.array([2, 2])),
        TypeError, "reshape expected the new shape as ints, got (array([2, 2]),)"),
    Row("softmax over nothing", lambda: x(2, 0).softmax(),
        ValueError, "softmax expected at least one element to reduce, got an input of shape (2, 0)"),
    Row("log_softmax over nothing", lambda: x(2, 0).log_softmax(),
        ValueError, "log_softmax expected at least one element to reduce, got an input of shape (2, 0)"),
    Row("argmax of nothing", lambda: x(0).argmax(),
        ValueError, "argmax expected at least one element to reduce, got an input of shape (0,)"),
    Row("log_softmax of ints", lambda: ints(1, 2).log_softmax(), TypeError, "log_softmax expected a floating input, got int64"),
    Row("avg_pool2d of ints", lambda: ops.avg_pool2d(x(1, 1, 4, 4, dtype="int64"), 2),
        TypeError, "avg_pool2d expected a floating input, got int64"),
    Row("max_pool2d of padded ints", lambda: ops.max_pool2d(x(1, 1, 4, 4, dtype="int64"), 2, padding=1),
        TypeError, "max_pool2d expected a floating input, got int64"),
    Row("a Tensor as a limit", lambda: x(3).clip(x(3), None),
        TypeError, "clip expected lo and hi to be numbers or None, got Tensor and NoneType; use maximum and minimum"),
    Row("a string as a limit", lambda: x(3).clip("a", 1.0),
        TypeError, "clip expected lo and hi to be numbers or None, got str and float; use maximum and minimum"),
    Row("a slope in text", lambda: nn.LeakyReLU("a"), ValueError, "LeakyReLU expected negative_slope to be a number, got 'a'"),
    Row("an unknown dtype", lambda: tg.tensor([1.0], dtype="float33"), TypeError, "tensor() expected a dtype, got 'float33'"),
    Row("a device where a dtype goes", lambda: tg.tensor([1.0], "cpu"), TypeError, "tensor() expected a dtype, got 'cpu'"),
    Row("ragged lists", lambda: tg.tensor([[1.0, 2.0], [3.0]]),
        ValueError, "tensor() expected numbers in lists of equal lengths, got lists of different lengths"),
    Row("a list of leaves", lambda: tg.tensor([leaf(2), leaf(2)]),
        TypeError, "tensor() expected numbers, got a list of Tensors; stack() or concatenate() joins them, in the graph"),
    Row("a negative length", lambda: tg.zeros(-1, 2), ValueError, "zeros expected a shape of ints of at least 0, got (-1, 2)"),
    Row("a float length", lambda: tg.ones(2.0, 3), TypeError, "ones expected a shape of ints of at least 0, got (2.0, 3)"),
    Row("a negative number of draws", lambda: tg.randn(-2),
        ValueError, "randn expected a shape of ints of at least 0, got (-2,)"),
    Row("the dtype after the shape", lambda: tg.zeros(2, 3, "float64"),
        TypeError, "zeros expected a shape of ints of at least 0, got (2, 3, 'float64')"),
    Row("einsum of two lengths", lambda: ops.einsum("ij,jk->ik", x(2, 3), x(4, 5)),
        ValueError, "einsum 'ij,jk->ik' expected one length for 'j', got 3 and 4"),
    Row("einsum of a diagonal that is none", lambda: ops.einsum("ii->i", x(2, 3)),
        ValueError, "einsum 'ii->i' expected one length for 'i', got 2 and 3"),
    Row("einsum to an unknown letter", lambda: ops.einsum("ij->k", x(2, 3)),
        ValueError, "einsum 'ij->k' expected each output letter once, and in an operand, got 'k'"),
    Row("einsum to a letter twice", lambda: ops.einsum("ij->ii", x(2, 3)),
        ValueError, "einsum 'ij->ii' expected each output letter once, and in an operand, got 'i'"),
    Row("einsum with two arrows", lambda: ops.einsum("ij->i->j", x(2, 3)),
        ValueError, "einsum expected letters, commas, '...' and one '->', got 'ij->i->j'"),
    Row("einsum with dots twice", lambda: ops.einsum("...i...", x(2, 3)),
        ValueError, "einsum expected letters, commas, '...' and one '->', got '...i...'"),
    Row("a comparison of shapes", lambda: x(3) < x(4),
        ValueError, "< expected shapes that broadcast together, got (3,) and (4,)"),
    Row("equality of shapes", lambda: x(3) == x(4),
        ValueError, "== expected shapes that broadcast together, got (3,) and (4,)"),
    Row("flip an axis twice", lambda: x(2, 3).flip((0, 0)), ValueError, "flip expected each axis once, got (0, 0)"),
    Row("a keepdims by name", lambda: x(3).sum(None, "yes"),
        TypeError, "sum expected keepdims to be True or False, got 'yes'; several axes are given as a tuple"),
    Row("an axis of a number", lambda: tg.tensor(1.0).sum(0),
        ValueError, "sum expected axis None for an input of 0 dimensions, got 0"),
    Row("conv2d with no filters", lambda: ops.conv2d(x(1, 4, 5, 5), x(0, 4, 3, 3)),
        ValueError, "conv2d expected a weight of at least one element, got shape (0, 4, 3, 3)"),
    Row("unsorted keys", lambda: nn.Linear(2, 3).load_state_dict({1: 2}),
        ValueError, "load_state_dict of Linear: missing weight, bias; unexpected 1"),
    Row("fan-in of nothing", lambda: init.kaiming_normal_(x(3, 0)),
        ValueError, "kaiming_normal_ expected a weight of at least one element, got shape (3, 0)"),
    Row("uniform from 1 to 0", lambda: init.uniform_(x(3), 1.0, 0.0),
        ValueError, "uniform_ expected low <= high, got 1.0 and 0.0"),
    Row("a negative rng state",
        lambda: tg.set_rng_state({"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}, "has_uint32": 0, "uinteger": 0}),
        ValueError, "set_rng_state expected a dict from get_rng_state(), got {'bit_generator': 'PCG64', 'state': {'state': "
        "-1, 'inc': 1}, 'has_uint32': 0, 'uinteger': 0}"),
    Row("an empty batch in a loss", lambda: ops.cross_entropy(x(0, 4), x(0, dtype="int64")),
        ValueError, "cross_entropy expected at least one loss to average, got none"),
    Row("mse_loss of nothing", lambda: ops.mse_loss(x(0), x(0)),
        ValueError, "mse_loss expected at least one loss to average, got none"),
    Row("no classes", lambda: ops.cross_entropy(x(3, 0), ints(0, 0, 0)),
        ValueError, "cross_entropy expected logits of at least one class, got shape (3, 0)"),
    Row("an empty embedding table", lambda: ops.embedding(ints(0), x(0, 2)),
        ValueError, "embedding expected a weight (num_embeddings, dim) of at least one row, got shape (0, 2)"),
    Row("conv1d of other channels", lambda: ops.conv1d(x(1, 4, 5), x(4, 3, 3)),
        ValueError, "conv1d expected an input of shape (N, 3, L) for a weight of shape (4, 3, 3) and groups=1, got (1, 4, 5)"),
    Row("Conv1d of too small an input", lambda: nn.Conv1d(3, 8, 3)(x(1, 3, 2)),
        ValueError, "conv1d expected an input at least as large as its kernel, got (2,) with padding (0,) for a kernel of "
        "(3,) with dilation (1,)"),
    Row("conv1d with stride 0", lambda: ops.conv1d(x(1, 4, 5), x(4, 4, 3), stride=0),
        ValueError, "conv1d expected stride to be an int of at least 1, got 0"),
    Row("Conv1d in two dtypes", lambda: nn.Conv1d(3, 8, 3)(x(1, 3, 8, dtype="float64")),
        TypeError, "conv1d expected one dtype, got an input of float64, a weight of float32 and a bias of float32"),
    Row("conv1d with a bias of another size", lambda: ops.conv1d(x(1, 4, 5), x(4, 4, 3), x(5)),
        ValueError, "conv1d expected a bias of shape (4,), got (5,)"),
    Row("conv_transpose2d with groups that do not divide", lambda: ops.conv_transpose2d(x(1, 3, 5, 5), x(3, 4, 3, 3), groups=2),
        ValueError, "conv_transpose2d expected groups=2 to divide the 3 input channels"),
    Row("an image size in text", lambda: models.cnn(image_size="28"),
        ValueError, "cnn expected image_size to be an int of at least 1, got '28'"),
    Row("no hidden features", lambda: models.cnn(hidden=0),
        ValueError, "cnn expected hidden to be an int of at least 1, got 0"),
    Row("a class in a Sequential", lambda: nn.Sequential(nn.ReLU),
        TypeError, "Sequential expected Modules, got the class ReLU at position 0; make one: ReLU()"),
    Row("a dict in a Sequential", lambda: nn.Sequential({"a": nn.ReLU()}),
        TypeError, "Sequential expected Modules, got dict at position 0; pass modules one by one"),
    Row("the first of three modules", lambda: nn.Sequential(nn.ReLU())[3], IndexError, "Sequential has 1 modules, got index 3"),
    Row("a primitive of a number", lambda: tg.primitive(5), TypeError, "primitive expected a function, got int"),
    Row("a rule that is a number", lambda: product(5, None),
        TypeError, "product expected rules that are functions or None, got int for 'x'"),
    Row("a rule of too few arguments", lambda: product(lambda g, out, x: g, None),
        TypeError, "the rule of product for 'x' takes 3 arguments, expected (g, out, x, y)"),
    Row("a joint rule of too few arguments", lambda: with_joint_rule(lambda g, out, x: (g, g)),
        TypeError, "the rule of product takes 3 arguments, expected (g, out, x, y)"),
    Row("a rule without the options", lambda: scaled_without_option(),
        TypeError, "the rule of scaled for 'x' misses the option k"),
    Row("a rule of another shape", lambda: with_rule(lambda g, out, x: g[:2]),
        ValueError, "the rule of double gave a gradient of shape (2,) for 'x' of shape (3,)"),
    Row("a rule that gives a number", lambda: with_rule(lambda g, out, x: 5),
        TypeError, "the rule of double gave a gradient that is an int for 'x', expected an array"),
    Row("a joint rule that gives one of two", lambda: with_joint_rule(lambda g, out, x, y: (g * y,)),
        TypeError, "the rule of product gave 1 gradients, expected one for each of 2 inputs"),
    Row("a joint rule that gives an array", lambda: with_joint_rule(lambda g, out, x, y: g * y),
        TypeError, "the rule of product gave ndarray, expected a tuple of one gradient for each of 2 inputs"),
    Row("aux left out", lambda: with_aux(np.ones(3)),
        TypeError, "operation was made with aux=True, and expected to return (y, aux), got ndarray"),
    Row("an operation that gives a list", lambda: with_result([1, 2]),
        TypeError, "operation expected to return an array, got list"),
    Row("an operation that gives nothing", lambda: with_result(None),
        TypeError, "operation expected to return an array, got NoneType"),
    Row("a Tensor over a Parameter", lambda: assign("weight", x(2, 2), nn.Linear(2, 2)),
        TypeError, "weight of Linear is a Parameter, and can be replaced by a Parameter or None, got Tensor; to change its "
        "values assign its .data"),
    Row("a Tensor over a Buffer", lambda: assign("running_mean", x(3), nn.BatchNorm1d(3)),
        TypeError, "running_mean of BatchNorm1d is a Buffer, and can be replaced by a Buffer or None, got Tensor"),
    Row("a detached result changed before backward", lambda: change_a_result_then_backward(lambda y: put(y.detach(), 0, 5.0)),
        RuntimeError, "the result of exp, which a gradient rule needs, was changed in place after the forward "
        "pass; run the forward pass again, or change a copy"),
    Row("a list times a tensor", lambda: [1, 2, 3] * x(3),
        TypeError, "mul expected a Tensor, an array or a number as 'x', got list"),
    Row("where of numbers", lambda: ops.where(True, 1.0, 2.0),
        TypeError, "where expected a Tensor or an array among its arguments, got bool, float and float"),
    Row("nesterov by name", lambda: sgd(momentum=0.9, nesterov="no"),
        TypeError, "SGD: nesterov expected True or False, got 'no'"),
    Row("a foreign Tensor as parameter", lambda: optim.SGD([torch_tensor()], 0.1),
        TypeError, "SGD expected Tensors, got torch.Tensor as parameter 0 of group 0"),
    Row("matmul with a list", lambda: x(1, 1) @ [[1.0]],
        TypeError, "matmul expected a Tensor, an array or a number as 'y', got list"),
    Row("linear of a list", lambda: ops.linear([[1.0]], x(1, 1)),
        TypeError, "linear expected a Tensor, an array or a number as 'x', got list"),
    Row("batch_norm of a list", lambda: ops.batch_norm([[1.0], [2.0]]),
        TypeError, "batch_norm expected a Tensor, an array or a number as 'x', got list"),
    Row("check_grads the wrong way round", lambda: tg.check_grads(x(3, dtype="float64"), lambda t: t),
        TypeError, "check_grads expected a function first, got Tensor"),
    Row("a value of another shape", lambda: put(x(3), slice(None), x(2)),
        ValueError, "an assignment to [slice(None, None, None)] of shape (3,) got a value of shape (2,)"),
    Row("ragged lists as a bias", lambda: load(nn.Linear(2, 3), bias=[[1.0], [1.0, 2.0]]),
        TypeError, "load_state_dict expected an array for bias, got list"),
    Row("an idx file of None", lambda: datasets.read_idx(None), TypeError, "read_idx expected a path, got NoneType"),
    Row("a device of the environment", lambda: device_from_the_environment("gpu"),
        ValueError, "TINYGRAD_BN_DEVICE expected 'cpu' or 'cuda', got 'gpu'"),
    Row("a step without lr", step_without_lr, ValueError, "SGD: group 0 misses the option lr"),
    Row("no_grad without parentheses", lambda: tg.no_grad(backward_again),
        TypeError, "no_grad takes no arguments: write @no_grad() or `with no_grad():`"),
]
# fmt: on


@pytest.mark.parametrize("row", MISUSES, ids=lambda row: row.name)
def test_misuse(row: Row):
    fails_as_said(row)


def fails_as_said(row: Row, **names: Any) -> None:
    with pytest.raises(row.error) as caught:
        row.call(**names)
    assert type(caught.value) is row.error
    message = str(caught.value)
    if isinstance(row.message, str):
        assert message == row.message.format(**names) if names else message == row.message
    else:
        assert row.message.fullmatch(message), message


def test_names_are_unique():
    names = [row.name for row in (*MISUSES, *ON_TWO_DEVICES, *WITHOUT_CUDA, *IN_A_DIRECTORY)]
    assert sorted(set(names)) == sorted(names)


# ----- two devices: nothing is copied from one to the other silently


def across(name: str, first: str, second: str) -> str:
    return f"{name} expected its arrays on one device, got {first} and {second}; move one with .to(device)"


# fmt: off
ON_TWO_DEVICES = [
    Row("add", lambda: x(3) + on_cuda(3), ValueError, across("add", "'x' on cpu", "'y' on cuda")),
    Row("mul", lambda: on_cuda(3) * x(3), ValueError, across("mul", "'x' on cuda", "'y' on cpu")),
    Row("mul by a NumPy array", lambda: on_cuda(3) * np.ones(3), ValueError, across("mul", "'x' on cuda", "'y' on cpu")),
    Row("a NumPy array times", lambda: np.ones(3) * on_cuda(3), ValueError, across("mul", "'x' on cpu", "'y' on cuda")),
    Row("a tensor of one number", lambda: on_cuda(3) + tg.tensor(1.0), ValueError, across("add", "'x' on cuda", "'y' on cpu")),
    Row("matmul", lambda: on_cuda(2, 3) @ x(3, 2), ValueError, across("matmul", "'x' on cuda", "'y' on cpu")),
    Row("where", lambda: ops.where(x(3) > 0, on_cuda(3), 0.0),
        ValueError, across("where", "'condition' on cpu", "'x' on cuda")),
    Row("maximum", lambda: ops.maximum(on_cuda(3), x(3)), ValueError, across("maximum", "'x' on cuda", "'y' on cpu")),
    Row("logits on the CPU", lambda: ops.cross_entropy(x(2, 3), ints(0, 1, device="cuda")),
        ValueError, across("cross_entropy", "'x' on cpu", "'labels' on cuda")),
    Row("Linear on the CPU", lambda: nn.Linear(3, 4)(on_cuda(2, 3)), ValueError, across("linear", "'x' on cuda", "'w' on cpu")),
    Row("Linear on CUDA", lambda: nn.Linear(3, 4).cuda()(x(2, 3)), ValueError, across("linear", "'x' on cpu", "'w' on cuda")),
    Row("half a model on CUDA", lambda: nn.Sequential(nn.Linear(3, 2).cuda(), nn.Linear(2, 2))(on_cuda(1, 3)),
        ValueError, across("linear", "'x' on cuda", "'w' on cpu")),
    Row("Conv2d", lambda: nn.Conv2d(1, 2, 3)(on_cuda(1, 1, 5, 5)), ValueError, across("conv2d", "'x' on cuda", "'w' on cpu")),
    Row("BatchNorm2d", lambda: nn.BatchNorm2d(1)(on_cuda(2, 1, 5, 5)),
        ValueError, across("batch_norm", "'x' on cuda", "'gamma' on cpu")),
    Row("BatchNorm2d in evaluation", lambda: nn.BatchNorm2d(1).cuda().eval()(x(2, 1, 5, 5)),
        ValueError, across("batch_norm_inference", "'x' on cpu", "'gamma' on cuda")),
    Row("BatchNorm2d without parameters in evaluation", lambda: nn.BatchNorm2d(1, affine=False).eval()(on_cuda(2, 1, 5, 5)),
        ValueError, across("batch_norm_inference", "'x' on cuda", "'mean' on cpu")),
    Row("LayerNorm", lambda: nn.LayerNorm(3)(on_cuda(2, 3)), ValueError, across("layer_norm", "'x' on cuda", "'gamma' on cpu")),
    Row("GroupNorm", lambda: nn.GroupNorm(1, 3)(on_cuda(2, 3)),
        ValueError, across("group_norm", "'x' on cuda", "'gamma' on cpu")),
    Row("a gradient on the CPU", lambda: leaf(3, device="cuda").backward(x(3)),
        ValueError, "backward() expected a gradient on cuda, got one on cpu"),
    Row("a NumPy gradient", lambda: leaf(3, device="cuda").backward(np.ones(3, "float32")),
        ValueError, "backward() expected a gradient on cuda, got one on cpu"),
    Row("np.asarray of CUDA's", lambda: np.asarray(on_cuda(3)),
        TypeError, "a tensor on 'cuda' is not converted to NumPy silently; use .cpu()"),
    Row("numpy() of a leaf on CUDA", lambda: leaf(3, device="cuda").numpy(), RuntimeError, LEAVES_SILENTLY),
    Row("shapes on CUDA", lambda: on_cuda(3) + on_cuda(4),
        ValueError, "add expected shapes that broadcast together, got (3,) and (4,)"),
    Row("a string on CUDA", lambda: on_cuda(3) * "a", TypeError, "mul expected a Tensor, an array or a number as 'y', got str"),
    Row("a list on CUDA", lambda: on_cuda(3) + [1, 2, 3],
        TypeError, "add expected a Tensor, an array or a number as 'y', got list"),
    Row("gradients on two devices", lambda: optim.clip_grad_norm_([with_grad(leaf(3)), with_grad(leaf(3, device="cuda"))], 1.0),
        ValueError, "clip_grad_norm_ expected gradients on one device, got cpu and cuda"),
    Row("a .grad on another device", lambda: step_with(grad=on_cuda(2, 3)),
        ValueError, ".grad of a tensor on cpu expected the same device, got cuda"),
    Row("CUDA: BatchNorm2d without parameters", lambda: nn.BatchNorm2d(1, affine=False)(on_cuda(2, 1, 5, 5)),
        ValueError, across("BatchNorm2d", "'x' on cuda", "'running_mean' on cpu")),
    Row("CUDA: an index", lambda: x(3)[ints(0, 1, device="cuda")],
        ValueError, "an index on cuda cannot be used on a tensor on cpu; move it with .to(device)"),
    Row("CUDA: a mask", lambda: x(3)[on_cuda(3) > 0],
        ValueError, "an index on cuda cannot be used on a tensor on cpu; move it with .to(device)"),
    Row("CUDA: embedding indices", lambda: nn.Embedding(3, 2)(ints(0, 1, device="cuda")),
        ValueError, across("embedding", "'indices' on cuda", "'weight' on cpu")),
    Row("CUDA: an assignment", lambda: put(on_cuda(3), slice(None), x(3)),
        ValueError, "a value on cpu is not written into a tensor on cuda; move it with .to(device)"),
    Row("CUDA: an assignment from it", lambda: put(x(3), slice(None), on_cuda(3)),
        ValueError, "a value on cuda is not written into a tensor on cpu; move it with .to(device)"),
    Row("CUDA: a comparison", lambda: on_cuda(3) < x(3), ValueError, across("<", "'x' on cuda", "'y' on cpu")),
    Row("CUDA: mse_loss", lambda: ops.mse_loss(on_cuda(3), x(3)),
        ValueError, across("mse_loss", "'x' on cuda", "'target' on cpu")),
    Row("CUDA: bce_with_logits", lambda: ops.bce_with_logits(on_cuda(3), x(3)),
        ValueError, across("bce_with_logits", "'x' on cuda", "'target' on cpu")),
    Row("CUDA: concatenate", lambda: ops.concatenate([on_cuda(3), x(3)]),
        ValueError, across("concatenate", "'arrays[0]' on cuda", "'arrays[1]' on cpu")),
    Row("CUDA: stack", lambda: ops.stack([on_cuda(3), x(3)]),
        ValueError, across("concatenate", "'arrays[0]' on cuda", "'arrays[1]' on cpu")),
    Row("CUDA: einsum", lambda: ops.einsum("i,i", on_cuda(3), x(3)),
        ValueError, across("einsum", "'operands[0]' on cuda", "'operands[1]' on cpu")),
    Row("CUDA: a bias of conv_transpose2d", lambda: ops.conv_transpose2d(on_cuda(1, 1, 5, 5), on_cuda(1, 1, 3, 3), x(1)),
        ValueError, across("conv_transpose2d", "'x' on cuda", "'b' on cpu")),
    Row("CUDA: None", lambda: on_cuda(3) + None, TypeError, "add expected a Tensor, an array or a number as 'y', got NoneType"),
    Row("CUDA: a list of tensors", lambda: tg.tensor([on_cuda(1), on_cuda(1)]),
        TypeError, "tensor() expected numbers, got a list of Tensors; stack() or concatenate() joins them, in the graph"),
    Row("CUDA: a hook that moves the gradient", lambda: hooked_on_cuda(),
        ValueError, "a gradient hook was given float32 on cuda, but returned float32 on cpu"),
    Row("CUDA: a gradient of a leaf", lambda: backward_onto(x(3), "cuda"),
        ValueError, ".grad of a tensor on cuda expected the same device, got cpu"),
    Row("CUDA: hvp", lambda: tg.hvp(lambda t: (t * t).sum(), on_cuda(3), x(3)),
        ValueError, across("hvp", "'args' on cuda", "'vectors' on cpu")),
]
# fmt: on


def with_grad(t: tg.Tensor) -> tg.Tensor:
    t.grad = tg.Tensor(t.data)
    return t


@pytest.mark.parametrize("row", ON_TWO_DEVICES, ids=lambda row: row.name)
def test_two_devices(row: Row, cuda_stand_in):
    fails_as_said(row)


def test_a_label_out_of_range_on_cuda_makes_its_loss_nan(cuda_stand_in):
    losses = ops.cross_entropy(on_cuda(2, 3), ints(0, 7, device="cuda"), reduction="none")
    assert np.isnan(cuda_stand_in.numpy(losses)).tolist() == [False, True]


NO_CUPY = "device 'cuda' needs CuPy: pip install 'tinygrad_bn[cuda12]' or 'tinygrad_bn[cuda13]', as your driver has it"

# fmt: off
WITHOUT_CUDA = [
    Row("a tensor without CUDA", lambda: tg.tensor([1.0], device="cuda"), RuntimeError, NO_CUPY),
    Row("zeros without CUDA", lambda: tg.zeros(3, device="cuda:0"), RuntimeError, NO_CUPY),
    Row("cuda() of a tensor", lambda: x(3).cuda(), RuntimeError, NO_CUPY),
    Row("to('cuda') of a leaf", lambda: leaf(3).to("cuda"), RuntimeError, NO_CUPY),
    Row("cuda() of a module", lambda: nn.Linear(3, 2).cuda(), RuntimeError, NO_CUPY),
]
# fmt: on


@pytest.fixture
def no_cuda(monkeypatch):
    """A machine without CuPy, also where there is one."""
    libraries = backend.libraries._libraries
    monkeypatch.setattr(backend.libraries, "_libraries", {k: v for k, v in libraries.items() if v.device == "cpu"})
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.mark.parametrize("row", WITHOUT_CUDA, ids=lambda row: row.name)
def test_without_cuda(row: Row, no_cuda):
    fails_as_said(row)
    assert not tg.cuda.is_available()
    tg.cuda.synchronize()


def test_without_a_gpu(no_cuda, monkeypatch):
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    message = "device 'cuda' needs an NVIDIA GPU and its driver: CuPy is installed, but it found none"
    fails_as_said(Row("no GPU", lambda: x(3).cuda(), RuntimeError, message))


# ----- files

HEADER = b"\0\0\x08\x01"  # one axis of bytes
LIAR = b"\0\0\x08\x03" + 3 * b"\x7f\xff\xff\xff"
FILES = "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array: Any) -> bytes:
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def read(directory: Any, content: bytes) -> None:
    path = directory / "file"
    path.write_bytes(content)
    datasets.read_idx(path)


def read_mnist(directory: Any, **changes: Any) -> None:
    """A directory of four small files, with these changes; None leaves a file out."""
    contents = dict(zip(FILES, 2 * (np.zeros((2, 3, 3)), np.zeros(2)), strict=True))
    contents.update({name.replace("_", "-"): value for name, value in changes.items()})
    for name, content in contents.items():
        if content is not None:
            (directory / name).write_bytes(idx(content))
    datasets.mnist(directory)


SPELLINGS = ", ".join(f"{name} or {name.replace('-idx', '.idx')}" for name in FILES)

# fmt: off
IN_A_DIRECTORY = [
    Row("an empty file", lambda directory: read(directory, b""),
        ValueError, "read_idx expected a header of at least 4 bytes in {directory}/file, got 0"),
    Row("a zip file", lambda directory: read(directory, b"PK\x03\x04"),
        ValueError, "read_idx expected {directory}/file to begin with two zero bytes, got 50 4b"),
    Row("an unknown dtype code", lambda directory: read(directory, b"\0\0\x07\x01"),
        ValueError, "read_idx expected one of the dtype codes 0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e in {directory}/file, got "
        "0x07"),
    Row("no axes", lambda directory: read(directory, b"\0\0\x08\0"),
        ValueError, "read_idx expected 1 to 32 dimensions in {directory}/file, got 0"),
    Row("sizes cut off", lambda directory: read(directory, HEADER + b"\0\0"),
        ValueError, "read_idx expected 4 bytes of sizes in {directory}/file, got 2"),
    Row("data cut off", lambda directory: read(directory, idx([1, 2, 3, 4, 5])[:-2]),
        ValueError, "read_idx expected 5 bytes of data for shape (5,) of uint8 in {directory}/file, got 3"),
    Row("data to spare", lambda directory: read(directory, idx([1, 2]) + b"3"),
        ValueError, "read_idx expected 2 bytes of data for shape (2,) of uint8 in {directory}/file, got more than 2"),
    Row("a negative size", lambda directory: read(directory, HEADER + b"\xff\xff\xff\xff"),
        ValueError, "read_idx expected positive sizes in {directory}/file, got (-1,)"),
    Row("a header that claims a billion terabytes", lambda directory: read(directory, LIAR),
        ValueError, "read_idx expected 9903520300447984150353281023 bytes of data for shape (2147483647, 2147483647, "
        "2147483647) of uint8 in {directory}/file, got 0"),
    Row("gzip cut off", lambda directory: read(directory, gzip.compress(idx([1, 2]))[:-4]),
        ValueError, "read_idx expected intact gzip data in {directory}/file, got: Compressed file ended before the "
        "end-of-stream marker was reached"),
    Row("labels missing", lambda directory: read_mnist(directory, train_labels_idx1_ubyte=None),
        FileNotFoundError, "mnist expected these files in {directory}, and did not find: train-labels-idx1-ubyte or "
        "train-labels.idx1-ubyte (each with or without .gz)"),
    Row("no such directory", lambda directory: datasets.mnist(directory / "none"),
        FileNotFoundError,
        f"mnist expected a directory {{directory}}/none, and did not find: {SPELLINGS} (each with or without .gz)"),
    Row("fewer labels than images", lambda directory: read_mnist(directory, train_labels_idx1_ubyte=np.zeros(1)),
        ValueError, "mnist expected as many labels as images, got 1 in {directory}/train-labels-idx1-ubyte and 2 in "
        "{directory}/train-images-idx3-ubyte"),
    Row("a label above 9", lambda directory: read_mnist(directory, t10k_labels_idx1_ubyte=[3, 10]),
        ValueError, "mnist expected labels 0 to 9 in {directory}/t10k-labels-idx1-ubyte, got 10"),
    Row("labels where images belong", lambda directory: read_mnist(directory, train_images_idx3_ubyte=np.zeros(2)),
        ValueError, "mnist expected uint8 images (N, H, W) in {directory}/train-images-idx3-ubyte, got uint8 (2,)"),
    Row("images of two sizes", lambda directory: read_mnist(directory, t10k_images_idx3_ubyte=np.zeros((2, 4, 4))),
        ValueError, "mnist expected training and test images of one size in {directory}, got (3, 3) and (4, 4)"),
]
# fmt: on


@pytest.mark.parametrize("row", IN_A_DIRECTORY, ids=lambda row: row.name)
def test_files(row: Row, tmp_path):
    fails_as_said(row, directory=tmp_path)


# ----- what a failing call leaves as it was


def snapshot(value: Any) -> Any:
    """A copy that can be compared: arrays as bytes, dicts and lists through and through."""
    if isinstance(value, tg.Tensor):
        value = value.data
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {k: snapshot(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [snapshot(v) for v in value]
    return value


@contextlib.contextmanager
def unchanged(*get: Callable[[], Any], error: type[Exception] | tuple = (TypeError, ValueError, RuntimeError)):
    """The block raises, and changes nothing of what these functions give."""
    before = [snapshot(g()) for g in get]
    with pytest.raises(error):
        yield
    assert [snapshot(g()) for g in get] == before


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (4, 5), (4, 3, 2, 2)])
def test_a_failing_batchnorm_keeps_its_statistics(shape, fused):
    norm = nn.BatchNorm1d(3, fused=fused)
    norm(tg.tensor(np.arange(12.0, dtype="float32").reshape(4, 3)))
    mean, var = norm.running_mean, norm.running_var
    with unchanged(norm.state_dict, lambda: norm.num_batches_tracked, tg.get_rng_state):
        norm(x(*shape))
    assert norm.running_mean is mean and norm.running_var is var


def test_a_failing_layer_before_batchnorm_keeps_its_statistics():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with unchanged(model.state_dict):
        model(x(4, 5))


def test_load_state_dict_loads_all_or_nothing():
    model = models.mlp((4, 3, 2))
    good = {k: v + 1 for k, v in model.state_dict().items()}
    for bad in (
        {**good, "4.bias": np.ones(7)},
        {**good, "4.bias": "text"},
        {**good, "extra": np.ones(1)},
        {k: v for k, v in good.items() if k != "4.bias"},
    ):
        with unchanged(model.state_dict):
            model.load_state_dict(bad)
    with unchanged(model.state_dict):
        model.load_state_dict({**good, "4.bias": np.ones(7)}, strict=False)


def test_a_refused_backward_gives_no_gradient():
    w, v = leaf(3), leaf(3)
    loss = (w * v).sum() + (v * 2.0).sum()
    put(w.detach(), 0, 5.0)
    with unchanged(lambda: [w.grad, v.grad, tg.is_grad_enabled()]):
        loss.backward()
    with unchanged(lambda: [w.grad, v.grad]):
        (w * v).backward()  # not a single element
    with unchanged(lambda: [w.grad, v.grad]):
        (w * v).backward(x(4))


def test_a_second_backward_adds_nothing():
    w = leaf(3)
    loss = (w * w).sum()
    loss.backward()
    with unchanged(lambda: w.grad):
        loss.backward()


def test_grad_of_an_unused_input_changes_no_grad():
    w, other = leaf(3), leaf(2)
    with unchanged(lambda: [w.grad, other.grad, tg.is_grad_enabled()]):
        tg.grad((w * w).sum(), [w, other])


def test_what_a_hook_was_given_stays_as_it_was():
    seen: list[tg.Tensor] = []
    w = leaf(3)
    w.register_hook(seen.append)
    (w * 2.0).sum().backward()
    (w * 2.0).sum().backward()
    assert seen[0].tolist() == [2.0, 2.0, 2.0]


def test_a_failing_operation_keeps_its_operands_and_the_grad_mode():
    a, b = leaf(3), leaf(4)
    with tg.no_grad():
        with unchanged(lambda: [a, b, tg.is_grad_enabled()]):
            a * b
        assert not tg.is_grad_enabled()


@pytest.mark.parametrize(
    "state",
    [
        {},
        None,
        {"bit_generator": "MT19937"},
        {"bit_generator": "PCG64", "state": {"state": 1}, "has_uint32": 0, "uinteger": 0},
        {"bit_generator": "PCG64", "state": {"state": 1, "inc": "a"}, "has_uint32": 0, "uinteger": 0},
        {"bit_generator": "PCG64", "state": {"state": 1, "inc": 1}, "has_uint32": "x", "uinteger": 0},
        {"bit_generator": "PCG64", "state": {"state": 1.5, "inc": 1}, "has_uint32": 0, "uinteger": 0},
        {"bit_generator": "PCG64", "state": {"state": 1, "inc": -1}, "has_uint32": 0, "uinteger": 0},
    ],
    ids=["empty", "None", "another generator", "no inc", "inc in text", "has_uint32 in text", "half a state", "negative"],
)
def test_a_refused_rng_state_leaves_the_generator(state):
    with unchanged(tg.get_rng_state):
        tg.set_rng_state(state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(3, "a"),
        lambda: nn.Conv2d(3, 8, 3, groups=2),
        lambda: nn.Embedding(5, -1),
        lambda: ops.dropout(x(3), 1.5),
        lambda: nn.Dropout(0.5)(ints(1)),
        lambda: init.kaiming_normal_(x(3, 3), mode="fanin"),
        lambda: init.xavier_uniform_(x(3)),
        lambda: init.normal_(leaf(3) * 2.0),
        lambda: init.normal_(leaf(3), std=-1.0),
        lambda: models.mlp((4, 3, 2), norm="bn"),
        lambda: models.mlp((4, 3, 2), activation="foo"),
        lambda: models.cnn(norm="bn"),
        lambda: models.cnn(classes=0),
        lambda: models.resnet20(norm="bn"),
        lambda: tg.randn(2, dtype="foo"),
        lambda: tg.randn(2, device="gpu"),
        lambda: tg.randn(2, dtype="int64", requires_grad=True),
    ],
)
def test_what_fails_draws_no_random_numbers(make):
    with unchanged(tg.get_rng_state):
        make()


def test_numpy_numbers_are_numbers():
    assert nn.Dropout(np.float32(0.5)).p == 0.5
    norm = nn.BatchNorm1d(3, eps=np.float64(1e-5), momentum=np.float32(0.5))
    assert (type(norm.eps), type(norm.momentum)) == (float, float)
    ops.cross_entropy(x(2, 3), ints(0, 1), label_smoothing=np.float32(0.1))
    assert ops.batch_norm(x(4, 3), eps=np.float64(1e-5))[0].dtype == "float32"
    assert ops.layer_norm(x(4, 3), eps=np.float64(1e-5)).dtype == "float32"


def test_a_failing_move_leaves_the_module(no_cuda):
    model = models.mlp((4, 3, 2))
    for arguments in (("cuda",), ("cuda", "float64"), ("gpu",), (None, "int64")):
        with unchanged(model.state_dict):
            model.to(*arguments)


def test_a_failing_summary_leaves_the_modes():
    model = models.mlp((4, 3, 2))
    model[2].eval()
    with unchanged(lambda: [m.training for m in model.modules()], model.state_dict, tg.is_grad_enabled):
        model.summary((1, 5))


def test_a_failing_train_leaves_the_modes():
    model = models.mlp((4, 3, 2)).eval()
    with unchanged(lambda: [m.training for m in model.modules()]):
        model.train("yes")


def test_a_failing_assignment_leaves_the_tensor():
    t = x(3)
    with unchanged(lambda: t):
        t[:] = x(2)


def trained(make: Callable[[list], optim.Optimizer]) -> tuple[list, optim.Optimizer]:
    """Two parameters, and an optimizer that made a step with them."""
    params = [leaf(2, 3), leaf(3)]
    optimizer = make(params)
    for p in params:
        with_grad(p)
    optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("make", [lambda ps: optim.SGD(ps, 0.1, momentum=0.9), optim.Adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("bad", [np.ones(3), 5, "shape", "dtype"], ids=["array", "number", "shape", "dtype"])
def test_a_failing_step_leaves_all_parameters(make, bad):
    params, optimizer = trained(make)
    with unchanged(lambda: params, optimizer.state_dict):
        params[1].grad = x(4) if bad == "shape" else x(3, dtype="float64") if bad == "dtype" else bad
        optimizer.step()


@pytest.mark.parametrize("make", [lambda ps: optim.SGD(ps, 0.1, momentum=0.9), optim.Adam], ids=["SGD", "Adam"])
def test_a_refused_option_leaves_all_parameters(make):
    params, optimizer = trained(make)
    optimizer.add_param_group({"params": leaf(2)})
    optimizer.param_groups[1]["lr"] = -1.0
    with unchanged(lambda: params, optimizer.state_dict):
        optimizer.step()


@pytest.mark.parametrize("make", [lambda ps: optim.SGD(ps, 0.1, momentum=0.9), optim.Adam], ids=["SGD", "Adam"])
def test_optimizers_load_all_or_nothing(make):
    params, optimizer = trained(make)
    name = optimizer.state_names[0]
    for spoil in (
        lambda s: s["state"][1].update({name: np.ones(7)}),
        lambda s: s["state"][1].update({name: "text"}),
        lambda s: s["state"][1].clear() or s["state"][1].update(foo=1),
        lambda s: s["param_groups"][0].update(lr=-1.0),
        lambda s: s["param_groups"].append(s["param_groups"][0]),
        lambda s: s.pop("param_groups"),
    ):
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0]["lr"] = 7.0
        spoil(state)
        with unchanged(lambda: params, optimizer.state_dict):
            optimizer.load_state_dict(state)


def test_a_refused_group_leaves_the_optimizer():
    params, optimizer = trained(lambda ps: optim.SGD(ps, 0.1, momentum=0.9))
    for group in ({"params": params[0]}, {"params": leaf(2), "lr": "a"}, {"param": leaf(2)}, leaf(2)):
        with unchanged(lambda: params, optimizer.state_dict):
            optimizer.add_param_group(group)


def test_a_refused_schedule_leaves_the_optimizer():
    _, optimizer = trained(lambda ps: optim.SGD(ps, 0.1))
    with unchanged(optimizer.state_dict):
        optim.StepLR(optimizer, 0)
    schedule = optim.StepLR(optimizer, 2)
    with unchanged(optimizer.state_dict, schedule.state_dict):
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": "a", "gamma": 0.5})


def test_a_refused_position_leaves_the_batches():
    b = batches()
    next(iter(b))
    for change in ({"batch": 7}, {"epoch": -1}, {"seed": 5}, {"extra": 1}):
        with unchanged(b.state_dict):
            b.load_state_dict({**b.state_dict(), "batch": 2, **change})


def test_a_parameter_stays_on_its_device(cuda_stand_in):
    assert nn.Parameter(on_cuda(3)).device == "cuda"
    assert nn.Parameter(cuda_stand_in.xp.ones(3, "float32")).device == "cuda"


def test_a_state_dict_with_a_bad_counter_changes_nothing():
    norm = nn.BatchNorm1d(3)
    state = {k: v + 1.0 for k, v in norm.state_dict().items()}
    with unchanged(norm.state_dict):
        norm.load_state_dict({**state, "num_batches_tracked": np.array(np.nan)})


def test_a_state_dict_that_overflows_changes_nothing():
    model = nn.Linear(2, 2)
    with unchanged(model.state_dict, error=RuntimeWarning):
        model.load_state_dict({"weight": np.zeros((2, 2)), "bias": np.full(2, 1e300)})


def test_a_graph_survives_a_refused_grad():
    w = leaf(3)
    loss = (w * w).sum()
    with pytest.raises(RuntimeError):
        tg.grad(loss, [w, leaf(2)])
    loss.backward()


def test_set_grad_enabled_acts_at_once():
    tg.set_grad_enabled(False)
    try:
        assert not tg.is_grad_enabled()
    finally:
        tg.set_grad_enabled(True)


# ----- proposed: what these calls should say. NOT part of any test: today they say something unhelpful, or nothing at all.
# A row that the package fulfils moves to the table above. The comment says what happens today.


# fmt: off
PROPOSED = [
    # the module's weight is a constant from then on: not in parameters(), not in state_dict()
    # wrong gradients
    # float64 results, on the CPU only
    # a tensor of objects
    # "no" is true
    # "expected a Tensor, got Tensor"
    # AttributeError: 'list' object has no attribute 'shape', and the like
    # NumPy's words
    # another operation is named than the one called
]
# fmt: on


# fmt: off
PROPOSED_ON_TWO_DEVICES = [
]
# fmt: on


def proposed_a_refused_hook_or_grad_gives_no_gradient_at_all():
    """Today other leaves may have got theirs, and the graph is freed."""
    w, v = leaf(3), leaf(3)
    v.register_hook(lambda g: g.sum())
    loss = (w * v).sum()
    with unchanged(lambda: [w.grad, v.grad]):
        loss.backward()
