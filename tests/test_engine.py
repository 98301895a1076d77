"""The engine's promises: recording, the walk back, memory, versions, modes, grad() and primitives."""

from __future__ import annotations

import copy
import gc
import re
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import core, ops
from tinygrad_bn.core import AddAt, Node, primitive, walk
from tinygrad_bn.ops import shape as shape_ops
from tinygrad_bn.tensor import Tensor


def leaf(x, dtype="float64"):
    return Tensor(np.array(x, dtype)).requires_grad_()


def counted():
    """y = 2 x, and the list of what its rule was given."""
    calls = []

    @primitive
    def double(x):
        return 2.0 * x

    def rule(g, _out, _x):
        calls.append(g)
        return 2.0 * g

    double.defvjp(rule)
    return double, calls


@pytest.fixture
def no_gc():
    """The garbage collector off: what is freed, is freed by its count of references."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ----- accumulation


def test_a_result_used_twice_runs_its_rule_once():
    double, calls = counted()
    x = leaf([1.0, 2.0])
    h = double(x)
    (h * h + 3.0 * h).sum().backward()
    np.testing.assert_array_equal(x.grad.data, 2 * (2 * 2 * np.array([1.0, 2.0]) + 3))
    assert len(calls) == 1


def test_diamond():
    x = leaf(3.0)
    a = x * x
    b, c = a.exp() * 1e-3, a.log()
    (b * c + a).backward()
    np.testing.assert_allclose(x.grad.data, 6 * (np.exp(9) * 1e-3 * (np.log(9) + 1 / 9) + 1), 1e-14)


def test_a_long_and_a_short_way_to_the_same_node():
    """The node is run when all of its gradient is there, however long the other way is."""
    double, calls = counted()
    x = leaf(1.0)
    start = far = double(x)
    for _ in range(50):
        far = far + 0.0
    (start + far).backward()
    assert float(x.grad) == 4.0 and len(calls) == 1


def test_a_leaf_used_twice_by_one_operation():
    x = leaf([1.0, -2.0, 3.0])
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [2, -4, 6])
    y = leaf([1.0, 2.0])
    (y + y).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(y.grad.data, [2, 20])


def test_gradients_add_up_over_walks():
    x = leaf([1.0, 2.0])
    for _ in range(3):
        (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [6, 6])
    x.zero_grad()
    assert x.grad is None


def test_only_those_who_want_a_gradient_get_one():
    x, y = leaf(2.0), Tensor(np.array(3.0))
    (x * y).backward()
    assert float(x.grad) == 3.0 and y.grad is None
    z = y * y
    assert z.node is None and not z.requires_grad


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (3, 1), (2, 1, 1), (1, 3, 4)])
def test_broadcasting_is_undone(shape, rng):
    big, small = leaf(rng.standard_normal((2, 3, 4))), leaf(rng.standard_normal(shape))
    (big * small).sum().backward()
    assert small.grad.shape == shape
    expected = np.broadcast_to(big.data, (2, 3, 4)) * 1.0
    lead = 3 - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1)
    np.testing.assert_allclose(small.grad.data.reshape(-1), expected.sum(axes).reshape(-1), 1e-13)


def test_numbers_of_no_dimensions_stay_arrays():
    x = leaf(2.0)
    y = x * x + 1.0
    for z in (y, y.sum(), y.exp(), y.reshape(1)[0], y.mean()):
        assert type(z.data) is np.ndarray and z.shape == ()
    y.backward()
    assert type(x.grad.data) is np.ndarray and x.grad.shape == ()
    (y_again,) = tg.grad(x * x, x)
    assert type(y_again.data) is np.ndarray


def test_dtypes_that_meet_in_one_graph():
    x, w = leaf([1.0, 2.0], "float32"), leaf([3.0, 4.0], "float64")
    y = x * w
    assert y.dtype == "float64"
    for create_graph in (False, True):
        gradients = tg.grad(y.sum(), [x, w], retain_graph=True, create_graph=create_graph)
        assert [g.dtype for g in gradients] == ["float32", "float64"]
    (x * 2.0 + 1).sum().backward()
    assert x.grad.dtype == "float32"
    h = x.double() * 3.0
    h.retain_grad()
    h.sum().backward()
    assert h.grad.dtype == "float64" and x.grad.dtype == "float32"
    half = leaf([1.0], "float16")
    (half.float() * x[:1]).sum().backward()
    assert half.grad.dtype == "float16"


# ----- walking twice, freeing


def test_backward_twice_raises_and_says_how():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="the graph behind this sum was freed by .*; pass retain_graph=True"):
        y.backward()
    np.testing.assert_array_equal(x.grad.data, [2, 4])


def test_a_graph_joined_to_a_freed_one_raises():
    x = leaf(2.0)
    h = x * x
    (h + 1.0).backward()
    with pytest.raises(RuntimeError, match="the graph behind this mul was freed"):
        (h * 3.0).backward()


def test_retain_graph():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad.data, [6, 12])
    with pytest.raises(RuntimeError, match="retain_graph"):
        y.backward()


def test_create_graph_retains_unless_told_otherwise():
    x = leaf(2.0)
    y = x * x * x
    tg.grad(y, x, create_graph=True)
    tg.grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="freed"):
        tg.grad(y, x)


def test_the_walk_frees_what_it_has_passed(no_gc):
    """In the middle of a walk the arrays of the nodes behind it are gone already."""
    x = leaf(np.ones(1000))
    seen = []
    h = x * 1.0
    middle = h * 1.0
    top = middle.exp()
    data = weakref.ref(top.data)
    node = top.node
    y = top.sum()
    del top
    h.register_hook(lambda g: seen.append(data() is None))  # one below: the walk may still have the last rule's arrays in hand
    assert data() is not None
    y.backward()
    assert seen == [True]
    assert repr(node) == f"<exp node {node.number}, freed>"
    assert node.parents == [] and node.inputs is None and node.out is None and node.aux is None


def test_without_backward_deleting_the_result_frees_the_graph(no_gc):
    x = leaf(np.ones(10))
    h = x.exp()
    y = (h * h).sum()
    watched = [weakref.ref(o) for o in (h, h.node, h.data, y, y.node, y.node.parents[0])]
    del h
    assert watched[0]() is None and watched[1]() is not None  # the Tensor is gone; its node and array are needed
    del y
    assert [w() for w in watched] == [None] * len(watched)


def test_nothing_outlives_its_last_name(no_gc, rng):
    """No reference cycle: of a training step, also one that was differentiated twice, nothing is left."""
    w = leaf(rng.standard_normal((4, 3)))
    gamma, beta = leaf(np.ones(4)), leaf(np.zeros(4))

    def step(create_graph):
        h, _ = ops.batch_norm(ops.linear(Tensor(rng.standard_normal((5, 3))), w), gamma, beta)
        loss = ops.cross_entropy(ops.relu(h), np.array([0, 1, 2, 3, 0]))
        loss.register_hook(lambda g: g * 1.0)
        h.retain_grad()
        watched = [weakref.ref(o) for o in (h, h.node, h.data, loss, loss.node)]
        if create_graph:
            first = tg.grad(loss, [w, gamma], create_graph=True)
            penalty = sum((g * g).sum() for g in first)
            watched += [weakref.ref(o) for o in (*first, *[g.node for g in first], penalty.node)]
            penalty.backward()
        else:
            loss.backward()
        return watched

    for create_graph in (False, True):
        assert [r() for r in step(create_graph)].count(None) == (5 if not create_graph else 10)
    for t in (w, gamma, beta):
        t.zero_grad()


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_thousand_steps_do_not_grow_memory(no_gc, create_graph, rng):
    x, labels = Tensor(rng.standard_normal((8, 1, 6, 6)).astype("float32")), np.arange(8) % 3
    weights = [leaf(rng.standard_normal(s) * 0.3, "float32") for s in ((4, 1, 3, 3), (4,), (4,), (3, 36))]

    def step():
        h, _ = ops.batch_norm(ops.conv2d(x, weights[0], None, 1, 1), weights[1], weights[2])
        h = ops.max_pool2d(ops.dropout(ops.relu(h), 0.2), 2)
        h = ops.flatten(ops.concatenate([h[:, 2:], h[:, :2]], 1), 1)
        loss = ops.cross_entropy(ops.linear(h, weights[3]), labels)
        if create_graph:
            loss = loss + (tg.grad(loss, weights[1], create_graph=True)[0] ** 2).sum()
        loss.backward()
        for w in weights:
            w.data = w.data - np.float32(0.01) * w.grad.data
            w.zero_grad()

    window = 100
    grown = []
    for _ in range(10):
        objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        for _ in range(window):
            step()
        grown.append(max(len(gc.get_objects()) - objects, sys.getallocatedblocks() - blocks))
    # One object a step would be `window` in each; caches and Python's lists of free tuples fill up, and are full then.
    assert min(grown) < window // 4, grown


@pytest.mark.parametrize("walked", [True, False])
def test_a_chain_of_200_000_is_walked_and_freed(walked, no_gc):
    x = leaf(1.0)
    y = x
    for _ in range(200_000):
        y = y + 0.0
    bottom = weakref.ref(y.node)
    if walked:
        y.backward()
        assert float(x.grad) == 1.0
    del y
    assert bottom() is None


def test_a_deep_chain_that_was_recorded_twice(no_gc):
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y * 1.0
    (g,) = tg.grad(y, x, create_graph=True)
    (g + x).backward()
    assert float(x.grad) == 1.0
    del g, y


# ----- AddAt


def test_a_loop_over_rows_makes_one_array_for_all(monkeypatch):
    """Reading 500 rows one by one costs one (500, 40) gradient, not 500 of them."""
    made = []
    for module in (walk, shape_ops):
        real = module.zeros
        monkeypatch.setattr(module, "zeros", lambda shape, *a, real=real, **k: made.append(shape) or real(shape, *a, **k))
    x = leaf(np.ones((500, 40)))
    total = 0.0
    for i in range(500):
        total = total + (x[i] * float(i)).sum()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    total.backward()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made == [(500, 40)]
    assert peak - before < 2 * x.data.nbytes + 200_000
    np.testing.assert_array_equal(x.grad.data, np.arange(500.0)[:, None] * np.ones(40))


def test_splitting_costs_one_array_for_all(monkeypatch):
    made = []
    real = walk.zeros
    monkeypatch.setattr(walk, "zeros", lambda shape, *a, **k: made.append(shape) or real(shape, *a, **k))
    x = leaf(np.ones((30, 2)))
    sum((part * float(i)).sum() for i, part in enumerate(ops.split(x, 15))).backward()
    assert made == [(30, 2)]
    np.testing.assert_array_equal(x.grad.data[:, 0], np.repeat(np.arange(15.0), 2))


@pytest.mark.parametrize("index", [
    1, -1, slice(1, 3), slice(None, None, -2), Ellipsis, None, (0, 1), (slice(None), 2), (None, 1, Ellipsis),
    np.array([0, 0, 2]), np.array([[1, 1], [1, 1]]), (np.array([0, 0]), np.array([1, 1])), (slice(None), np.array([2, 2, 2])),
    np.array([True, False, True]), np.eye(3, dtype=bool), (), np.array(1), [0, 0],
])  # fmt: skip
@pytest.mark.parametrize("again", ["first", "after a dense one", "before a dense one", "twice"])
def test_add_at_every_kind_of_index(index, again, rng):
    """Alone, and added to a gradient that may or may not be written into."""
    x = leaf(rng.standard_normal((3, 3)))
    read = Tensor(x.data)[index]
    weight = rng.standard_normal(read.shape)
    expected = np.zeros((3, 3))
    np.add.at(expected, [int(i) for i in index] if isinstance(index, list) else index, weight)
    if again == "first":
        (x[index] * weight).sum().backward()
    elif again == "twice":
        ((x[index] * weight).sum() + (x[index] * weight).sum()).backward()
        expected = 2 * expected
    elif again == "after a dense one":  # the younger operation goes first
        ((x[index] * weight).sum() + (x * 1.0).sum()).backward()
        expected = expected + 1
    else:
        dense = x.sum()  # its gradient is a read-only broadcast view
        ((x[index] * weight).sum() + dense).backward()
        expected = expected + 1
    np.testing.assert_allclose(x.grad.data, expected, 1e-12)


def test_a_rule_of_ones_own_may_return_add_at():
    @primitive
    def first(x):
        return x[0]

    first.defvjp(lambda g, _out, _x: AddAt(0, g))
    x = leaf(np.ones((3, 2)))
    (first(x) * 2.0 + first(x)).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[3, 3], [0, 0], [0, 0]])
    y = leaf(np.ones((3, 2)), "float32")
    (first(y.double()).sum() + 1.0).backward()
    np.testing.assert_array_equal(y.grad.data, [[1, 1], [0, 0], [0, 0]])
    assert y.grad.dtype == "float32"


# ----- who owns a gradient's memory


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_gradients_that_are_equal_do_not_share_memory(create_graph, given):
    """The rule of a sum passes one array on to both; then one of them is added to."""
    x, b, c = leaf([1.0, 2.0]), leaf([3.0, 4.0]), leaf([0.0, 0.0])
    seed = np.array([1.0, 1.0])
    y = x + b + (-c)
    if given:
        y.backward(seed, create_graph=create_graph)
    else:
        y.sum().backward(create_graph=create_graph)
    for t in (x, b):
        assert not np.shares_memory(t.grad.data, seed)
    assert not np.shares_memory(x.grad.data, b.grad.data)
    (x * 10.0).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [11, 11])
    np.testing.assert_array_equal(b.grad.data, [1, 1])
    np.testing.assert_array_equal(seed, [1, 1])


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_given_gradient_is_never_changed(kind, create_graph):
    seed = np.array([1.0, 2.0])
    given = seed if kind == "array" else Tensor(seed)
    x = leaf([1.0, 1.0])
    for y in (x, x + 0.0, (x + x).reshape(2), x[:], x + x * 3.0):
        y.backward(given, create_graph=create_graph)
        (x * x).sum().backward()
        (g,) = tg.grad(x + x.reshape(2), x, [given])
        g.data[:] = 9.0
        np.testing.assert_array_equal(seed, [1, 2])
        x.zero_grad()


def test_results_of_grad_are_the_callers_own():
    x = leaf([1.0, 2.0])
    h = x + 0.0
    y = h + h
    seed = np.array([1.0, 1.0])
    gh, gx, gy = tg.grad(y, [h, x, y], Tensor(seed))
    for a, b in ((gh, gx), (gh, gy), (gx, gy)):
        assert not np.shares_memory(a.data, b.data)
    assert not np.shares_memory(gy.data, seed)


def test_grad_of_one_input_twice():
    x = leaf(3.0)
    a, b = tg.grad(x * x, [x, x])
    assert float(a) == float(b) == 6.0


def test_what_a_hook_saw_stays_as_it_was():
    x = leaf([1.0, 2.0])
    h = x * 2.0
    seen = []
    h.register_hook(seen.append)
    x.register_hook(seen.append)
    kept = []
    for y in (h + h * 3.0 + x.sum(), x * x * 5.0, x.exp() + x):
        y.sum().backward()
        kept += [g.data.copy() for g in seen[len(kept) :]]
    assert len(seen) == 4
    for g, before in zip(seen, kept, strict=True):
        np.testing.assert_array_equal(g.data, before)


def test_a_gradient_that_a_hook_gave_is_not_written_into():
    mine = np.array([5.0, 5.0])
    x = leaf([1.0, 2.0])
    x.register_hook(lambda g: Tensor(mine))
    for _ in range(3):
        (x * 2.0).sum().backward()
    np.testing.assert_array_equal(mine, [5, 5])
    np.testing.assert_array_equal(x.grad.data, [15, 15])


def test_a_gradient_that_a_hook_gave_in_the_middle_is_not_written_into():
    mine = np.array([5.0, 5.0])
    x = leaf([1.0, 2.0])
    h = x + 0.0
    h.register_hook(lambda g: mine)
    (h.sum() + (x * 3.0).sum()).backward()
    np.testing.assert_array_equal(mine, [5, 5])
    np.testing.assert_array_equal(x.grad.data, [8, 8])


# ----- versions: a leaf that changed between forward and backward


CHANGES = {
    "data": lambda w: setattr(w, "data", w.data + 1.0),
    "in place, told": lambda w: (np.add(w.data, 1.0, out=w.data), w.bump_version()),
    "a detached name of it": lambda w: w.detach().__setitem__(0, 7.0),
    "data of an optimizer": lambda w: setattr(w, "data", np.zeros_like(w.data)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_kept_leaf_that_changed_raises_before_any_rule_runs(change):
    double, calls = counted()
    w, x = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = double(w * x).sum()
    change(w)
    with pytest.raises(RuntimeError, match=r"a leaf of shape \(2,\), which mul kept as its argument 'x', was changed in place"):
        y.backward()
    assert not calls and x.grad is None and w.grad is None
    with pytest.raises(RuntimeError, match="changed in place"):
        tg.grad(y, x)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_leaf_that_no_rule_keeps_may_change(change):
    b, x = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = ((x + b) * 2.0).sum()
    change(b)
    y.backward()
    np.testing.assert_array_equal(b.grad.data, [2, 2])


def test_a_change_before_the_forward_pass_or_after_the_walk_is_fine():
    w = leaf([1.0, 2.0])
    w.data = w.data * 2.0
    for _ in range(3):
        y = (w * w).sum()
        y.backward()
        w.data = w.data - 0.1 * w.grad.data
        w.zero_grad()


def test_the_value_of_one_leaf_is_kept_and_of_another_is_not():
    """In w * c only what the rules that run need is kept: for a constant c, c, so that w may change."""
    w, c = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    y = (w * c).sum()
    w.data = w.data + 1.0
    y.backward()
    np.testing.assert_array_equal(w.grad.data, [3, 4])
    y = (w * c).sum()
    c[0] = 9.0
    with pytest.raises(RuntimeError, match="kept as its argument 'y', was changed in place"):
        y.backward()


def test_a_kept_detached_tensor_shares_the_version_of_its_leaf():
    w = leaf([1.0, 2.0])
    y = (w.detach() * w).sum()
    CHANGES["in place, told"](w)
    with pytest.raises(RuntimeError, match="kept as its argument 'x', was changed"):
        y.backward()
    y = (w.detach().detach() * leaf([1.0, 1.0])).sum()
    w.data = w.data * 1.0
    with pytest.raises(RuntimeError, match="changed"):
        y.backward()


@pytest.mark.parametrize("alias", [lambda h: h.detach(), lambda h: h.detach()[1:]], ids=["detached", "a view of it"])
def test_a_result_changed_through_an_alias(alias):
    """What exp keeps is its own output: whoever shares its memory shares its version."""
    x = leaf([1.0, 2.0])
    h = x.exp()
    y = (h * 3.0).sum()
    alias(h)[0] = 7.0
    with pytest.raises(RuntimeError, match="the result of exp, which a gradient rule needs, was changed in place"):
        y.backward()
    h = x + 0.0
    y = h.sum()
    alias(h)[0] = 7.0  # nobody needs it
    y.backward()


def test_a_constant_changed_through_a_view():
    x, c = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    y = (x * c).sum()
    c.reshape(2, 1)[0] = 9.0
    with pytest.raises(RuntimeError, match="kept as its argument 'y', was changed in place"):
        y.backward()


def test_a_change_matters_to_the_graph_of_the_gradient_too():
    w, x = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (g,) = tg.grad((w * w * x).sum(), x, create_graph=True)
    w.data = w.data * 2.0
    with pytest.raises(RuntimeError, match="changed in place"):
        g.sum().backward()


def test_accumulating_changes_no_gradient_that_is_held_already():
    """Neither the user's name for it, nor a graph that kept it, goes on with the new value."""
    x, w = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    (x * 2.0).sum().backward()
    held = x.grad
    y = (w * x.grad).sum()
    (x * 2.0).sum().backward()
    y.backward()
    for g, expected in ((w.grad, 2), (held, 2), (x.grad, 4)):
        np.testing.assert_array_equal(g.data, [expected, expected])


def test_old_buffers_may_be_replaced():
    """Running statistics are replaced, not changed: the graph that kept the old ones goes on with them."""
    x, mean = leaf([[1.0, 2.0]]), np.zeros(2)
    y = ops.batch_norm_inference(x, None, None, mean, np.ones(2), eps=0.0)
    mean = mean + 1.0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[1, 1]])
    np.testing.assert_array_equal(mean, [1, 1])


def test_assigning_data():
    x = leaf([1.0])
    x.data = Tensor(np.array([2.0]))
    assert type(x.data) is np.ndarray and float(x) == 2.0
    with pytest.raises(TypeError, match=".data expected a NumPy or CuPy array, got list"):
        x.data = [1.0]
    with pytest.raises(TypeError, match=".data of a result of mul cannot be assigned"):
        (x * 2.0).data = np.zeros(1)


def test_a_parameter_without_dimensions_steps_like_any_other():
    """NumPy makes a scalar of 0-d arithmetic."""
    x = leaf(1.0)
    x.data = x.data - 0.25
    assert type(x.data) is np.ndarray and float(x) == 0.75


def test_no_in_place_operations_on_what_requires_grad():
    x = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match="not changed in place"):
        x[0] = 1.0
    with pytest.raises(TypeError, match="not changed in place"):
        (x * 2.0)[0] = 1.0
    with pytest.raises(TypeError, match=r"a leaf that requires grad is not changed in place by \+="):
        x += 1.0
    h = y = x * 1.0
    y += 1.0  # a new tensor
    assert y is not h and y.node.name == "add"
    np.testing.assert_array_equal(h.data, [1, 2])


# ----- grad modes


def test_no_grad_nests():
    x = leaf(1.0)
    assert tg.is_grad_enabled()
    with tg.no_grad():
        assert not tg.is_grad_enabled() and not (x * x).requires_grad
        with tg.enable_grad():
            assert (x * x).requires_grad
            with tg.set_grad_enabled(False):
                assert (x * x).node is None
            assert (x * x).requires_grad
        assert not (x * x).requires_grad
    assert (x * x).requires_grad


def test_grad_mode_may_be_set_without_a_block():
    x = leaf(1.0)
    tg.set_grad_enabled(False)
    try:
        assert not (x * x).requires_grad
    finally:
        tg.set_grad_enabled(True)
    assert (x * x).requires_grad


def test_one_block_may_stand_in_itself():
    block = tg.no_grad()
    with block:
        with block:
            assert not tg.is_grad_enabled()
        assert not tg.is_grad_enabled()
    assert tg.is_grad_enabled()


def test_grad_mode_survives_an_error():
    with pytest.raises(KeyError), tg.no_grad():
        raise KeyError
    assert tg.is_grad_enabled()
    x = leaf(1.0)
    x.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (x * x).backward()
    assert tg.is_grad_enabled()


def test_grad_mode_as_a_decorator():
    @tg.no_grad()
    def f(x):
        """doc"""
        return x * x

    @tg.enable_grad()
    def g(x):
        return x * x

    x = leaf(1.0)
    for _ in range(2):
        assert not f(x).requires_grad
    with tg.no_grad():
        assert g(x).requires_grad
    assert f.__name__ == "f" and f.__doc__ == "doc"


def test_grad_mode_belongs_to_the_thread():
    x, inside, seen = leaf(1.0), threading.Event(), []

    def other():
        inside.wait()
        seen.append((x * x).requires_grad)
        with tg.no_grad():
            seen.append((x * x).requires_grad)
        inside.clear()

    thread = threading.Thread(target=other)
    thread.start()
    with tg.no_grad():
        inside.set()
        thread.join()
        assert not tg.is_grad_enabled()
    assert seen == [True, False] and tg.is_grad_enabled()


def test_backward_runs_under_no_grad_and_records_nothing():
    x = leaf(2.0)
    y = x * x
    with tg.no_grad():
        y.backward()
    assert float(x.grad) == 4.0 and not x.grad.requires_grad
    y = x * x * x
    with tg.no_grad():
        (g,) = tg.grad(y, x, create_graph=True)  # asked for in so many words
    assert g.requires_grad


def test_threads_may_build_and_walk_graphs_at_once(rng):
    w = rng.standard_normal((20, 20))
    results = {}

    def work(k):
        x = leaf(w * k)
        for _ in range(30):
            x.zero_grad()
            ((x @ x).tanh() * x).sum().backward()
        results[k] = x.grad.data

    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2, 3, 4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in (1, 2, 3, 4):
        x = leaf(w * k)
        ((x @ x).tanh() * x).sum().backward()
        np.testing.assert_array_equal(results[k], x.grad.data)


# ----- grad()


def test_grad_of_several_outputs_and_inputs():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    a, b = x * y, x * x
    gx, gy = tg.grad([a, b], [x, y], [np.array([1.0, 2.0]), Tensor(np.array([10.0, 20.0]))])
    np.testing.assert_array_equal(gx.data, [3 + 20, 8 + 80])
    np.testing.assert_array_equal(gy.data, [1, 4])
    assert x.grad is None and y.grad is None


def test_grad_of_a_sum_of_outputs_of_which_one_is_behind_the_other():
    x = leaf(2.0)
    h = x * x
    y = h * h
    gx, gh = tg.grad([y, h], [x, h])
    assert float(gh) == 2 * 4 + 1 and float(gx) == 9 * 4


def test_grad_of_intermediate_results():
    x = leaf(3.0)
    h = x * x
    y = h * h + h
    gh, gx = tg.grad(y, [h, x])
    assert float(gh) == 19 and float(gx) == 19 * 6


def test_grad_of_an_output_for_itself():
    x = leaf([1.0, 2.0])
    y = x * 2.0
    (g,) = tg.grad(y, y, Tensor(np.array([3.0, 4.0])))
    np.testing.assert_array_equal(g.data, [3, 4])
    (g,) = tg.grad(x, x, [np.array([3.0, 4.0])])
    np.testing.assert_array_equal(g.data, [3, 4])


def test_only_the_rules_on_the_way_run():
    double, calls = counted()
    other, other_calls = counted()
    x, y = leaf(1.0), leaf(2.0)
    z = double(x) * other(y)
    tg.grad(z, x, retain_graph=True)
    assert len(calls) == 1 and not other_calls
    z.backward(retain_graph=True)
    assert len(calls) == 2 and len(other_calls) == 1
    tg.grad(z * 1.0, other(y), allow_unused=True)
    assert len(other_calls) == 1


def test_the_rule_of_an_intermediate_that_is_asked_for_does_not_run():
    calls = []

    @primitive
    def triple(x):
        return 3.0 * x

    @triple.vjp
    def _(g, _out, _x):
        calls.append(g)
        return (3.0 * g,)

    x = leaf(1.0)
    h = triple(x)
    tg.grad(h * h, h)
    assert not calls


def test_what_is_behind_an_intermediate_is_not_freed():
    """A walk in two parts, as PyTorch allows: down to h, and on from h with a gradient of one's own."""
    x = leaf(3.0)
    h = x * x
    (gh,) = tg.grad(h * h, h)
    h.backward(gh)
    assert float(x.grad) == 18 * 6


def test_unused_inputs():
    x, y = leaf(1.0), leaf([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"the outputs do not depend on input 1, of shape \(2,\); pass allow_unused=True"):
        tg.grad(x * x, [x, y])
    gx, gy = tg.grad(x * x, [x, y], allow_unused=True)
    assert float(gx) == 2.0 and gy is None


def test_a_rule_that_gives_none_leaves_its_input_unused():
    @primitive
    def first_of(x, y):
        return x * 1.0

    first_of.defvjp(lambda g, _out, _x, _y: g, lambda g, _out, _x, _y: None)
    x, y = leaf(1.0), leaf(1.0)
    assert tg.grad(first_of(x, y), [x, y], allow_unused=True)[1] is None
    first_of(x, y).backward()
    assert y.grad is None


def test_third_derivative_by_grad_of_grad_of_grad():
    x = leaf([0.5, 1.5])
    y = (x**4).sum()
    for expected in (4 * x.data**3, 12 * x.data**2, 24 * x.data):
        (y,) = tg.grad(y.sum(), x, create_graph=True)
        np.testing.assert_allclose(y.data, expected, 1e-13)
    (last,) = tg.grad(y.sum(), x)
    np.testing.assert_allclose(last.data, [24, 24], 1e-13)
    assert not last.requires_grad


def test_create_graph_through_an_intermediate():
    x = leaf(2.0)
    h = x * x
    (gh,) = tg.grad(h * h * h, h, create_graph=True)
    (gx,) = tg.grad(gh, x)
    assert float(gx) == 6 * 4 * 4


def test_backward_with_create_graph():
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    g = x.grad
    x.zero_grad()
    (g * g).sum().backward()
    np.testing.assert_allclose(x.grad.data, 36 * np.array([1.0, 2.0]) ** 3)


def test_accumulating_onto_a_recorded_gradient():
    """Twice backward(create_graph=True) gives the sum, recorded; a plain walk after it changes no graph."""
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    (x**2).sum().backward(create_graph=True)
    np.testing.assert_allclose(x.grad.data, [3 + 2, 12 + 4])
    np.testing.assert_allclose(first.data, [3, 12])
    second = x.grad
    (x * 1.0).sum().backward()
    np.testing.assert_allclose(second.data, [5, 16])
    np.testing.assert_allclose(x.grad.data, [6, 17])
    (g,) = tg.grad(second.sum(), x)
    np.testing.assert_allclose(g.data, [6 + 2, 12 + 2])


def test_grad_outputs_can_be_differentiated():
    x, v = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (g,) = tg.grad(x * x, x, v, create_graph=True)
    (gv,) = tg.grad(g.sum(), v)
    np.testing.assert_array_equal(gv.data, [2, 4])


def test_the_gradient_of_a_linear_function_is_a_constant():
    x = leaf([1.0, 2.0])
    (g,) = tg.grad((3.0 * x).sum(), x, create_graph=True)
    assert not g.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        tg.grad(g.sum(), x)


def test_misuse_of_backward():
    x = leaf([1.0, 2.0])
    y = x * x
    with pytest.raises(ValueError, match=r"backward\(\) of a tensor of shape \(2,\) needs a gradient of that shape"):
        y.backward()
    with pytest.raises(ValueError, match=r"backward\(\) expected a gradient of shape \(2,\), got \(3,\)"):
        y.backward(np.ones(3))
    with pytest.raises(TypeError, match="expected a gradient that is a Tensor or an array, got list"):
        y.backward([1.0, 1.0])
    with pytest.raises(RuntimeError, match=r"backward\(\): this tensor of shape \(2,\) does not require grad"):
        y.detach().backward(np.ones(2))
    with pytest.raises(RuntimeError, match="does not require grad; was it made under no_grad"):
        with tg.no_grad():
            z = x * x
        z.backward(np.ones(2))
    y.backward(np.ones(2))  # nothing was freed by the refusals
    np.testing.assert_array_equal(x.grad.data, [2, 4])


def test_misuse_of_grad():
    x, y = leaf([1.0, 2.0]), Tensor(np.array([1.0, 2.0]))
    z = (x * x).sum()
    with pytest.raises(TypeError, match=r"grad\(\) expected Tensors as inputs, got ndarray at position 0"):
        tg.grad(z, [x.data])
    with pytest.raises(RuntimeError, match=r"grad\(\): input 0, of shape \(2,\), does not require grad"):
        tg.grad(z, y)
    with pytest.raises(ValueError, match=r"grad\(\) got 1 outputs and 2 grad_outputs"):
        tg.grad(z, x, [np.array(1.0), np.array(1.0)])
    with pytest.raises(TypeError, match=r"grad\(\) expected a Tensor, got float"):
        tg.grad([1.0], x)
    with pytest.raises(ValueError, match=r"grad\(\) expected a gradient of shape \(\), got \(1,\)"):
        tg.grad(z, x, [np.ones(1)])


def test_one_array_is_the_gradient_of_one_output():
    x = leaf([1.0, 2.0])
    (g,) = tg.grad((x * x).sum(), x, np.array(2.0))
    np.testing.assert_array_equal(g.data, [4, 8])
    (g,) = tg.grad(x * x, x, np.array([1.0, 10.0]))
    np.testing.assert_array_equal(g.data, [2, 40])
    (g,) = tg.grad((x[:1] * x[:1]), x, np.array([3.0]))
    np.testing.assert_array_equal(g.data, [6, 0])


def test_backward_from_a_leaf():
    x = leaf(3.0)
    x.backward()
    assert float(x.grad) == 1.0
    x.backward(np.array(5.0))
    assert float(x.grad) == 6.0


# ----- nodes, for reading


def test_node_attributes():
    x, y = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    h = x * y
    z = ops.sum(h, 0, keepdims=True)
    assert z.node.name == "sum" and z.node.parents == [h.node] and z.node.options == {"axis": 0, "keepdims": True}
    assert h.node.parents[0] is x and h.node.parents[1] is None
    assert h.node.inputs[1] is y.data and h.node.out is None  # mul's rule for x needs y alone
    assert h.node.inputs[0].shape == (2,) and not isinstance(h.node.inputs[0], np.ndarray)
    assert repr(h.node.inputs[0]) == "Absent(shape=(2,))"
    assert h.node.dtype == "float64" and h.node.number < z.node.number
    assert repr(h.node) == f"<mul node {h.node.number} of (x: leaf, y: constant)>"
    assert repr(z.node) == f"<sum node {z.node.number} of (x: mul node {h.node.number}, axis=0, keepdims=True)>"
    e = x.exp()
    assert e.node.out is e.data
    joined = ops.concatenate([x, h])
    parts = rf"\w+\[0\]: leaf, \w+\[1\]: mul node {h.node.number}"
    assert re.fullmatch(rf"<concatenate node {joined.node.number} of \({parts}, axis=0\)>", repr(joined.node))
    assert x.is_leaf and not h.is_leaf and isinstance(h.node, Node)


def test_reading_a_graph_from_the_loss_to_the_leaves():
    x, w = leaf([[1.0, 2.0]]), leaf([[3.0, 4.0]])
    loss = ops.relu(ops.linear(x, w)).sum()
    names, node = [], loss.node
    while isinstance(node, Node):
        names.append(node.name)
        node = node.parents[0]
    assert names == ["sum", "relu", "linear"] and node is x


# ----- primitives of one's own


def test_a_primitive_is_a_plain_function():
    @primitive
    def hypot(x, y):
        """The longest side."""
        return np.sqrt(x * x + y * y)

    hypot.defvjp(lambda g, out, x, _y: g * x / out, lambda g, out, _x, y: g * y / out)
    assert hypot.__name__ == "hypot" and hypot.__doc__ == "The longest side."
    assert type(hypot(np.array([3.0]), np.array([4.0]))) is np.ndarray
    x, y = leaf([3.0, 1.0]), leaf([4.0, 2.0])
    hypot(x, y).sum().backward()
    np.testing.assert_allclose(x.grad.data, [0.6, 1 / 5**0.5])
    tg.check_grads(hypot, [x, y], order=3)
    scalar = hypot(np.array(3.0), np.array(4.0))  # NumPy's 0-d scalars become arrays
    assert type(scalar) is np.ndarray and scalar.shape == ()


@pytest.fixture
def scaled():
    @primitive
    def scaled(x, b=None, *, factor, shift=0.0):
        y = x * factor + shift
        return y if b is None else y + b

    scaled.defvjp(lambda g, _out, _x, _b, *, factor, shift: g * factor, lambda g, _out, _x, _b, **how: g)
    return scaled


def test_options_by_position_and_by_name(scaled):
    x, b = np.array([1.0, 2.0]), np.array([10.0, 20.0])
    for found in (scaled(x, b, 2.0, 1.0), scaled(x, b, factor=2.0, shift=1.0), scaled(x, shift=1.0, factor=2.0, b=b),
                  scaled(b=b, x=x, factor=2.0, shift=1.0), scaled(x, b, 2.0, shift=1.0)):  # fmt: skip
        np.testing.assert_array_equal(found, [13, 25])
    np.testing.assert_array_equal(scaled(x, factor=3.0), [3, 6])
    t = leaf(x)
    scaled(t, None, 3.0).sum().backward()
    np.testing.assert_array_equal(t.grad.data, [3, 3])
    seen = scaled(t, factor=3.0).node.options
    assert seen == {"factor": 3.0, "shift": 0.0}  # defaults filled in


def test_wrong_arguments(scaled):
    x = np.ones(2)
    for call, message in (
        (lambda: scaled(x), "scaled misses its argument 'factor'"),
        (lambda: scaled(factor=1.0), "scaled misses its argument 'x'"),
        (lambda: scaled(x, None, 1.0, factor=2.0), "scaled got two values for 'factor'"),
        (lambda: scaled(x, x=x, factor=2.0), "scaled got two values for 'x'"),
        (lambda: scaled(x, None, 1.0, 2.0, 3.0), r"scaled takes at most 4 arguments \(x, b, factor, shift\), got 5"),
        (lambda: scaled(x, factor=1.0, scale=2.0), "scaled has no option 'scale'; it has factor, shift"),
        (lambda: ops.add(x), "add misses its argument 'y'"),
        (lambda: ops.add(x, x, 1), r"add takes at most 2 arguments \(x, y\), got 3"),
        (lambda: ops.relu(x, inplace=True), "relu has no option 'inplace'; it has none"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_wrong_rules():
    @primitive
    def f(x, y):
        return x + y

    with pytest.raises(TypeError, match="f takes 2 arrays, but 1 rules were given"):
        f.defvjp(lambda g, _out, _x, _y: g)
    with pytest.raises(TypeError, match=r"the rule of f for 'x' takes 3 arguments, expected \(g, out, x, y\)"):
        f.defvjp(lambda g, _out, _x: g, lambda g, _out, _x: g)

    @primitive
    def g(*xs):
        return xs[0]

    with pytest.raises(TypeError, match=r"one rule for all, with @g\.vjp"):
        g.defvjp(lambda g, _out, *xs: g)


def test_any_number_of_arrays():
    @primitive
    def total(*xs, scale=1.0):
        return sum(xs) * scale

    @total.vjp
    def _(g, _out, *_xs, scale):
        return [g * scale for _ in _xs]

    x, y, z = leaf([1.0]), leaf([2.0]), np.array([3.0])
    out = total(x, y, z, x, scale=2.0)
    out.backward()
    assert float(out) == 14.0 and float(x.grad) == 4.0 and float(y.grad) == 2.0
    tg.check_grads(lambda a, b: total(a, b, a * b), [x, y], order=3)


def test_aux_goes_to_the_caller_and_to_the_rules():
    seen = []

    @primitive(aux=True)
    def largest(x):
        at = int(x.argmax())
        return x[at], at

    @largest.vjp
    def _(g, _out, _x, *, aux):
        seen.append(aux)
        return (ops.pad(ops.reshape(g, 1), (aux, _x.shape[0] - 1 - aux)),)

    x = leaf([1.0, 5.0, 2.0])
    value, at = largest(x)
    assert at == 1 and float(value) == 5.0 and value.node.aux == 1
    raw, at = largest(x.data)
    assert type(raw) is np.ndarray and at == 1
    value.backward()
    np.testing.assert_array_equal(x.grad.data, [0, 1, 0])
    assert seen == [1]


def test_the_fused_rule_runs_for_raw_gradients_only():
    calls = []

    @primitive
    def cube(x):
        return x**3

    @cube.vjp
    def _(g, _out, x):
        calls.append(("joint", type(g), type(x)))
        return (3.0 * g * x * x,)

    @cube.fused_vjp
    def _(g, _out, x):
        calls.append(("fused", type(g), type(x)))
        return (3.0 * g * x * x,)

    x = leaf(2.0)
    cube(x).backward()
    assert float(x.grad) == 12.0
    tg.grad(cube(x), x, create_graph=True)
    assert calls == [("fused", np.ndarray, np.ndarray), ("joint", Tensor, Tensor)]
    tg.check_grads(cube, x, order=3)


def test_a_fused_rule_is_told_what_is_wanted_if_it_asks(no_gc):
    told = []

    @primitive
    def product(x, y):
        return x * y

    product.defvjp(lambda g, _out, _x, y: g * y, lambda g, _out, x, _y: g * x)

    @product.fused_vjp
    def _(g, _out, x, y, *, wanted):
        told.append((wanted, hasattr(x, "dtype"), hasattr(y, "dtype")))
        return g * y if wanted[0] else None, g * x if wanted[1] else None

    x, y, constant = leaf(2.0), leaf(3.0), Tensor(np.array(5.0))
    product(x, y).backward()
    assert float(x.grad) == 3.0 and float(y.grad) == 2.0
    product(constant, y).backward()  # y itself is not needed, so it is not kept
    assert float(y.grad) == 7.0
    (g,) = tg.grad(product(x, y), x)
    assert float(g) == 3.0
    assert told == [([True, True], True, True), ([False, True], True, False), ([True, False], True, True)]
    tg.check_grads(product, [x, y], order=2)


def test_an_argument_named_with_an_underscore_is_not_kept(no_gc):
    @primitive
    def shift(x, y):
        return x + y

    shapes = []

    def rule(g, _out, _x, _y):
        shapes.append((_x.shape, _y.shape, hasattr(_x, "dtype")))
        return g

    shift.defvjp(rule, rule)
    x = leaf(np.ones(1000))
    h, k = x * 2.0, x * 3.0
    kept = [weakref.ref(h.data), weakref.ref(k.data)]
    y = shift(h, k)
    out = weakref.ref(y.data)
    z = y.sum()
    del h, k, y
    assert [r() for r in (*kept, out)] == [None, None, None]
    z.backward()
    assert shapes == [((1000,), (1000,), False)] * 2


def test_relu_keeps_its_output_alone_and_batch_norm_its_input(no_gc):
    x = leaf(np.ones((10, 3)))
    h = x * 2.0
    kept = weakref.ref(h.data)
    y = ops.relu(h)
    out = weakref.ref(y.data)
    z = y.sum()
    del h, y
    assert kept() is None and out() is not None
    h = x * 2.0
    kept = weakref.ref(h.data)
    y = ops.batch_norm(h, leaf(np.ones(3)), leaf(np.zeros(3)))[0]
    out = weakref.ref(y.data)
    z = y.sum()
    del h, y
    assert kept() is not None and out() is None
    del z


def test_only_what_the_rules_that_run_need_is_kept():
    x, y = leaf([1.0]), Tensor(np.array([2.0]))
    inputs = (x * y).node.inputs
    assert not isinstance(inputs[0], np.ndarray) and inputs[1] is y.data
    inputs = (y * x).node.inputs
    assert inputs[0] is y.data and not isinstance(inputs[1], np.ndarray)
    z = leaf([3.0])
    assert all(isinstance(i, np.ndarray) for i in (x * z).node.inputs)


def test_a_primitive_whose_rule_was_forgotten_says_so():
    """Else it would be a constant to the graph, silently."""

    @primitive
    def rounded(x):
        return np.round(x)

    x = leaf([1.4])
    with pytest.raises(TypeError, match="rounded has no gradient rule: give it one"):
        rounded(x)
    with tg.no_grad():
        assert float(rounded(x)) == 1.0
    assert float(rounded(Tensor(np.array([1.4])))) == 1.0


def test_a_primitive_whose_rule_is_none_records_nothing():
    @primitive
    def rounded(x):
        return np.round(x)

    rounded.defvjp(None)
    x = leaf([1.4])
    y = rounded(x)
    assert type(y) is Tensor and not y.requires_grad and y.node is None
    assert not ops.sign(x).requires_grad and not ops.argmax(x).requires_grad


def test_rules_get_raw_arrays_when_nobody_watches():
    seen = []

    @primitive
    def f(x):
        return x * 1.0

    f.defvjp(lambda g, out, x: seen.append({type(g), type(out), type(x)}) or g)
    x = leaf([1.0])
    f(x).sum().backward()
    tg.grad(f(x).sum(), x, create_graph=True)
    assert seen == [{np.ndarray}, {Tensor}]


def test_g_comes_in_the_dtype_of_the_output():
    seen = []

    @primitive
    def f(x):
        return x * np.float32(1)

    f.defvjp(lambda g, _out, _x: seen.append(g.dtype) or g)
    x = leaf([1.0], "float32")
    (f(x).double() * 2.0).sum().backward()
    (f(x) * leaf([1.0])).sum().backward()
    assert seen == ["float32", "float32"]


def test_errors_of_the_array_library_are_told_in_the_users_terms():
    x = leaf(np.ones(2))
    with pytest.raises(ValueError, match=r"add expected shapes that broadcast together, got \(2,\) and \(3,\)"):
        x + np.ones(3)
    with pytest.raises(TypeError, match="mul expected a Tensor, an array or a number as 'y', got str"):
        x * "a"
    with pytest.raises(TypeError, match="add expected a Tensor, an array or a number as 'y', got list"):
        ops.add(x, [[1.0], "a"])


# ----- copies


def test_deepcopy():
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert type(y) is Tensor and y.requires_grad and y.grad is not x.grad
    assert not np.shares_memory(y.data, x.data) and not np.shares_memory(y.grad.data, x.grad.data)
    np.testing.assert_array_equal(y.grad.data, [2, 4])
    a, b = copy.deepcopy([x, x])
    assert a is b
    with pytest.raises(RuntimeError, match="a result of mul cannot be copied with its graph"):
        copy.deepcopy(x * x)


def test_detach():
    x = leaf([1.0, 2.0])
    for t in (x, x * 1.0):
        d = t.detach()
        assert d.data is t.data and d.is_leaf and not d.requires_grad
    (x * x.detach()).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 2])


def test_requires_grad():
    x = Tensor(np.ones(2))
    assert x.requires_grad_() is x and x.requires_grad
    assert not x.requires_grad_(False).requires_grad
    with pytest.raises(TypeError, match="only floating tensors can require grad, got int64"):
        Tensor(np.arange(3)).requires_grad_()
    y = leaf([1.0]) * 2.0
    with pytest.raises(RuntimeError, match="requires_grad of a result of mul cannot be changed"):
        y.requires_grad = False


def test_core_knows_two_operations_of_its_own():
    made = [v for v in vars(walk).values() if hasattr(v, "primitive") and isinstance(v.primitive, core.Primitive)]
    assert {f.primitive.name for f in made} == {"sum_to", "broadcast_to", "cast"}


# ----- memory that is seen through views, and hooks that change things


@pytest.mark.parametrize("view", ["T", "reshape", "rows"])
def test_a_view_of_a_leaf_shares_its_version(view):
    """The product keeps the view, the step changes the leaf."""
    w, x = leaf(np.ones((2, 2))), leaf(np.ones((4, 2)))
    seen = {"T": lambda: w.T, "reshape": lambda: w.reshape(4).reshape(2, 2), "rows": lambda: w[0:2]}[view]()
    y = (x @ seen).sum()
    w.data[...] = 5.0
    w.bump_version()
    with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
        y.backward()


def test_labels_that_change_before_backward_are_noticed():
    labels = Tensor(np.array([0, 1]))
    loss = ops.cross_entropy(leaf(np.ones((2, 3))), labels)
    labels[0] = 2
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_hook_may_remove_itself():
    x, ran = leaf([1.0]), []
    h = x * 2.0
    handles = [h.register_hook(lambda g: (ran.append(1), handles[0].remove())[0])]
    h.register_hook(lambda g: ran.append(2))
    h.sum().backward()
    assert ran == [1, 2]


def test_removing_a_hook_twice_removes_one():
    x, ran = leaf([1.0]), []
    first = x.register_hook(ran.append)
    x.register_hook(ran.append)
    first.remove()
    first.remove()
    (x * 1.0).sum().backward()
    assert len(ran) == 1


def test_a_hook_that_writes_into_its_gradient_changes_nobody_elses():
    a, b = leaf([1.0]), leaf([1.0])
    p, q = a * 2.0, b * 2.0
    q.register_hook(lambda g: g.data.fill(100.0))
    ((p + q) * 1.0).sum().backward()
    assert float(a.grad) == 2.0


def test_add_at_belongs_into_a_fused_rule():
    @primitive
    def first(x):
        return x[0]

    first.defvjp(lambda g, _out, _x: AddAt(0, g))
    x = leaf([1.0, 2.0])
    first(x).backward()
    np.testing.assert_array_equal(x.grad.data, [1, 0])
    with pytest.raises(TypeError, match="AddAt.*fused_vjp"):
        tg.grad(first(x), x, create_graph=True)


def test_a_gradient_of_an_old_shape_is_refused_before_it_is_added_to():
    x, y = leaf([1.0, 2.0]), leaf([1.0])
    (x * 1.0).sum().backward()
    for changed in (np.ones(3), np.ones(2, "float32")):
        x.data = changed
        with pytest.raises(ValueError, match=r"\.grad of shape \(2,\) and float64 on cpu.*zero_grad"):
            ((x * 1.0).sum() + y.sum()).backward()
        assert y.grad is None


def test_plans_of_variadic_operations_do_not_pile_up():
    plans = ops.concatenate([leaf([1.0])] * 20).node.primitive.plans
    before = len(plans)
    for i in range(50):
        ops.concatenate([leaf([1.0]) if i >> k & 1 or k == 0 else Tensor(np.ones(1)) for k in range(20)])
    assert len(plans) == before


@pytest.mark.parametrize("recorded", [False, True])
def test_large_means_do_not_cost_the_composed_norm_its_digits(recorded, rng):
    x = (1000.0 + 1e-3 * rng.standard_normal((4096, 1))).astype("float32")
    wide = x.astype("float64")
    for f in (ops.batch_norm, ops.batch_norm_composed):
        assert np.abs(f(x, eps=1e-10)[0] - ops.batch_norm(wide, eps=1e-10)[0]).max() < 1e-4
    w = rng.standard_normal((4096, 1))
    t, exact = leaf(x, "float32"), leaf(wide)
    (g,) = tg.grad((ops.batch_norm(t, eps=1e-10)[0] * w.astype("float32")).sum(), t, create_graph=recorded)
    (e,) = tg.grad((ops.batch_norm(exact, eps=1e-10)[0] * w).sum(), exact)
    assert np.abs(g.data - e.data).max() < 1e-4 * np.abs(e.data).max()
