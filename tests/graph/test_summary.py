"""The tables of a tape, and the count of floating-point operations."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import graph, nn, ops
from tinygrad_bn.graph import flops, summary
from tinygrad_bn.graph.names import primitives
from tinygrad_bn.tensor import Tensor


def leaf(*shape):
    return Tensor(np.ones(shape) + np.arange(np.prod(shape)).reshape(shape)).requires_grad_()


@pytest.fixture
def step(rng):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = tg.tensor(rng.normal(size=(4, 2)))
    with graph.record(model) as tape:
        tg.cross_entropy(model(x), np.array([0, 1, 1, 0])).backward()
    return tape


def rows(table):
    """The cells of a table by the first word."""
    return {line.split()[0]: line.split()[1:] for line in table.splitlines() if line and not line.startswith(("-", " "))}


def table(text, what):
    return next(part for part in text.split("\n\n") if part.startswith(what))


def test_the_profile_has_calls_times_shares_and_bytes(step):
    text = step.profile()
    found = rows(text)
    assert set(found) == {"operation", "linear", "batch_norm", "relu", "cross_entropy", "mean", "total"}
    assert found["linear"][0] == "2" and found["total"][0] == "6"
    assert [found[op][-2:] for op in ("linear", "batch_norm", "relu", "mean")] == [
        [str(12 * 8 + 8 * 8), str(8 * 8)],  # the inputs are kept: the batch here, the relu's own output there, counted with it
        [str(12 * 8), str(12 * 8 + 2 * 3 * 8)],  # its input, and the statistics
        [str(12 * 8), str(12 * 8)],
        ["8", "0"],
    ]
    shares = [float(found[op][3]) for op in found if op not in ("operation", "total")]
    assert sum(shares) == pytest.approx(100, abs=0.3) and found["total"][3] == "100.0"
    lines = text.splitlines()[3:-2]
    took = [sum(s.forward_s + s.backward_s for s in step.steps if s.op == line.split()[0]) for line in lines]
    assert took == sorted(took, reverse=True)


def test_the_summary_has_operations_modules_and_formulas(step):
    text = step.summary()
    assert text.startswith(f"6 operations, 8 leaves, 23 parameters, loss {step.steps[-1].value.item():.6g}\n")
    by_op = rows(table(text, "operation"))
    assert by_op["linear"][-2:] == ["116", "164"] and by_op["relu"][-2:] == ["12", "12"]
    by_module = table(text, "module")
    for name in ("0 Linear", "1 BatchNorm1d", "2 ReLU", "3 Linear", "(outside)"):
        assert f"\n{name} " in by_module
    assert rows(by_module)["total"] == by_op["total"]
    assert "maximum(x, 0)" in table(text, "formulas")


def test_the_models_own_operations_have_a_row(rng):
    class Net(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2).double()

        def forward(self, x):
            return self.layer(x).relu()

    model = Net()
    with graph.record(model) as tape:
        model(tg.tensor(rng.normal(size=(1, 2))))
    assert "\n(model) Net " in tape.summary() and "\nlayer Linear " in tape.summary()


def test_a_recorded_gradient_has_a_row_of_its_own():
    x = leaf(2)
    with graph.record() as tape:
        tg.grad(nn.ReLU()(x).sum(), x, create_graph=True)
    assert "\n(backward) " in tape.summary()


@pytest.mark.parametrize("columns", ["summary", "profile"])
def test_tables_fit_a_terminal_and_have_no_control_characters(columns, step):
    class Layer(nn.Module):
        def forward(self, x):
            return x * 1.0

    name = "\x1b[31m" + "a_very_long_name_" * 20 + "\n"
    model = nn.Module()
    setattr(model, name, Layer())
    with graph.record(model) as tape:
        y = getattr(model, name)(Tensor(np.ones((300, 1000))).requires_grad_())
        for _ in range(20):
            y = y @ Tensor(np.ones((1000, 1000))).requires_grad_() * 1e-3
        y.sum().backward()
    for t in (tape, step):
        text = getattr(t, columns)()
        assert max(map(len, text.splitlines())) <= 100 and all(c.isprintable() or c == "\n" for c in text)


def test_an_empty_tape_has_tables():
    with graph.record() as tape:
        pass
    assert tape.summary().startswith("0 operations") and "total" in tape.profile()


def test_views_take_no_memory_and_what_two_keep_counts_once():
    x = leaf(10, 10)
    with graph.record() as tape:
        y = x.exp()
        y.reshape(100).square()
        y.T.square()
    assert rows(tape.profile())["reshape"][-2:] == ["0", "0"] and rows(tape.profile())["transpose"][-2:] == ["0", "0"]
    assert rows(tape.profile())["total"][-1] == rows(tape.profile())["exp"][-1] == "800"


def test_parameters_count_as_kept_by_nobody():
    p, x = nn.Parameter(np.ones((5, 5))), leaf(5, 5)
    with graph.record() as tape:
        x @ p
    assert rows(tape.profile())["matmul"][-1] == "200"  # x


def test_bytes_of_a_device_are_those_of_the_arrays(device):
    x = Tensor(device.array(np.ones((4, 8), "float32"))).requires_grad_()
    with graph.record() as tape:
        x.exp()
    assert rows(tape.profile())["exp"][-2:] == ["128", "128"]


# ----- floating-point operations


def test_every_primitive_is_counted():
    known = {**flops.PRODUCTS, **flops.POOLS, **flops.FOR_EACH_INPUT, **flops.FOR_EACH_OUTPUT, **dict.fromkeys(flops.MOVES)}
    mine = {name for name, p in primitives().items() if p.function.__module__.startswith("tinygrad_bn.")}
    assert mine - set(known) == set()
    assert len(known) == sum(map(len, (flops.PRODUCTS, flops.POOLS, flops.FOR_EACH_INPUT, flops.FOR_EACH_OUTPUT, flops.MOVES)))


COUNTS = {
    "matmul": (lambda: leaf(2, 3) @ leaf(3, 4), 2 * 2 * 3 * 4, 2 * 48),
    "batched matmul": (lambda: leaf(5, 2, 3) @ leaf(3, 4), 5 * 48, 2 * 5 * 48),
    "vector": (lambda: leaf(2, 3) @ leaf(3), 2 * 2 * 3, 2 * 12),
    "linear": (lambda: ops.linear(leaf(2, 3), leaf(4, 3), leaf(4)), 48 + 8, 2 * 48 + 8),
    "linear without bias": (lambda: ops.linear(leaf(2, 3), leaf(4, 3)), 48, 96),
    "einsum": (lambda: ops.einsum("ij,jk->ik", leaf(2, 3), leaf(3, 4)), 48, 96),
    "conv2d": (lambda: ops.conv2d(leaf(1, 2, 5, 5), leaf(3, 2, 3, 3), leaf(3)), 2 * 27 * 18 + 27, 2 * 2 * 27 * 18 + 27),
    "grouped conv2d": (lambda: ops.conv2d(leaf(1, 2, 5, 5), leaf(2, 1, 3, 3), groups=2), 2 * 18 * 9, 2 * 2 * 18 * 9),
    "conv_transpose2d": (lambda: ops.conv_transpose2d(leaf(1, 3, 3, 3), leaf(3, 2, 3, 3)), 2 * 27 * 18, 2 * 2 * 27 * 18),
    "exp": (lambda: leaf(2, 3).exp(), 6, 6),
    "mul": (lambda: leaf(2, 3) * leaf(2, 3), 6, 12),
    "broadcast add": (lambda: leaf(2, 3) + leaf(3), 6, 12),
    "sum": (lambda: leaf(2, 3).sum(), 6, 6),
    "batch_norm": (lambda: ops.batch_norm(leaf(4, 3), leaf(3), leaf(3))[0], 84, 84 + 2 * 12),
    "reshape": (lambda: leaf(2, 3).reshape(6), 0, 0),
    "max_pool2d": (lambda: ops.max_pool2d(leaf(1, 1, 4, 4), 2), 16, 16),
    "avg_pool2d": (lambda: ops.avg_pool2d(leaf(1, 1, 4, 4), 2), 16, 16),
}


@pytest.mark.parametrize("case", COUNTS)
def test_counts(case):
    run, forward, backward = COUNTS[case]
    with graph.record() as tape:
        run().sum().backward()
    step = tape.steps[0]
    assert flops.forward_flops(tape, step) == forward and flops.backward_flops(tape, step) == backward


def test_only_gradients_that_were_made_count():
    with graph.record() as tape:
        (leaf(2, 3).detach() @ leaf(3, 4)).sum().backward()
    assert flops.backward_flops(tape, tape.steps[0]) == 48


def test_a_convolutions_gradients_count_as_much_as_the_convolution():
    x, w = leaf(1, 2, 5, 5), leaf(3, 2, 3, 3)
    with graph.record() as tape:
        tg.grad(ops.conv2d(x, w).sum(), [x, w], create_graph=True)
    counted = {s.op: flops.forward_flops(tape, s) for s in tape.steps}
    assert counted["conv2d"] == counted["conv2d_input"] == counted["conv2d_weight"] == 2 * 27 * 18


def test_an_operation_of_the_users_own_is_not_counted_and_not_hidden():
    @tg.primitive
    def mine(x):
        return x * 2.0

    mine.defvjp(lambda g, _out, _x: g * 2.0)
    with graph.record() as tape:
        mine(leaf(3)).sum().backward()
    step = tape.steps[0]
    assert flops.forward_flops(tape, step) is None and flops.backward_flops(tape, step) is None
    assert rows(tape.summary().split("\n\n")[1])["mine"][-2:] == ["0", "0"]


# ----- text


def test_names_are_shortened_in_the_middle_and_made_printable():
    assert summary.shortened("short") == "short"
    assert summary.shortened("a" * 20 + "b" * 20, 21) == "a" * 9 + "..." + "b" * 9
    assert summary.shortened("a\nb\x1b") == "a\\nb\\x1b" and summary.shortened("\ud800") == "\\ud800"


def test_units_and_decimals():
    assert summary._unit((0.5, 3.0), summary._TIMES) == (1e-3, "ms")
    assert summary._numbers([0.0123, 0.5], (1e-3, "ms")) == ["12.3", "500.0"]
    assert summary._numbers([3, 2048.0], (1.0, "B")) == ["3", "2,048"]
