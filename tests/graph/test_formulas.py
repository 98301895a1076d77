"""Every primitive has a formula, and the formula is the rule: the same value and gradients, over the table of operations."""

from __future__ import annotations

import gc
import importlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cases import CASES

import tinygrad_bn as tg
from tinygrad_bn import core, ops
from tinygrad_bn.core import Listener, Primitive, listening
from tinygrad_bn.graph import formula_numpy, formulas
from tinygrad_bn.graph.formulas import FORMULAS, FUNCTIONS, Formula, parse
from tinygrad_bn.tensor import Tensor


def primitives():
    """All that the package registers, found without their help; but those of ranks, which test_what_ranks_exchange names."""
    return {name: p for name, p in registered().items() if not p.function.__module__.startswith("tinygrad_bn.distributed.")}


def registered():
    found = [p for p in gc.get_objects() if type(p) is Primitive]  # (to ask for __class__ makes other libraries' objects warn)
    return {p.name: p for p in found if p.function.__module__.startswith("tinygrad_bn.")}


known_primitives = cache(primitives)


class Heard(Listener):
    """Each node's primitive, inputs, options, output, gradient, and what its rule sent to which parent."""

    def __init__(self):
        self.applied, self.ran = [], []

    def apply(self, name, inputs, options, out, aux, node):
        self.applied.append((name, inputs, options, out, node))

    def before_rule(self, node, g):
        raw = g._data if isinstance(g, Tensor) else g
        kept = node.primitive, list(node.parents), list(node.inputs), node.options, node.out  # the walk frees the node
        self.ran.append((*kept, raw.copy(), []))

    def contribution(self, node, parent, value):
        if isinstance(value, core.AddAt):
            dense = np.zeros(node.inputs[0].shape)
            np.add.at(dense, value.index, value.value)
            value = dense
        self.ran[-1][-1].append((parent, np.array(value._data if isinstance(value, Tensor) else value)))


def given(primitive, inputs):
    return list(inputs) if primitive.variadic else dict(zip(primitive.arrays, inputs, strict=True))


def check(heard, seen=None):
    """Hold every operation that was heard to its formula."""
    known = known_primitives()
    for name, inputs, options, out, _ in heard.applied:
        if out.size and name in known:
            value = formula_numpy.forward(name, given(known[name], inputs), options)
            np.testing.assert_allclose(value, out, 1e-9, 1e-11, err_msg=f"{name}: {FORMULAS[name].forward}")
            assert value.shape == out.shape, name
    for p, parents, arrays, options, out, g, sent in heard.ran:
        if p.name not in known:
            continue
        inputs, waiting = given(p, arrays), list(sent)
        for position, parent in enumerate(parents):
            if parent is None or not waiting or waiting[0][0] is not parent:
                continue
            value = waiting.pop(0)[1]
            argument = position if p.variadic else p.arrays[position]
            mine = formula_numpy.gradient(p.name, argument, g, out, inputs, options)
            text = f"{p.name}, {argument}: {FORMULAS[p.name].gradients}"
            assert mine is not None, text
            expected = formula_numpy.sum_to(value, np.shape(arrays[position]))
            np.testing.assert_allclose(mine, expected, 1e-9, 1e-11, err_msg=text)
            if seen is not None and expected.size:
                seen.add((p.name, 0 if p.variadic else formulas.formula_name(p.arrays[position])))
        assert not waiting


def run(case, create_graph):
    heard, leaves = Heard(), [Tensor(x).requires_grad_() for x in case.make(4)]
    with listening(heard):
        out = case.f(*leaves, *case.constants)
        outs = [o for o in (out if isinstance(out, (list, tuple)) else [out]) if o.requires_grad]
        rng = np.random.default_rng(7)
        for order in range(3 if create_graph else 1):  # the rules of the rules: put, conv2d_input, max_pool2d_gather ...
            if not outs:
                break
            seeds = [Tensor(rng.standard_normal(o.shape)).requires_grad_() for o in outs]
            found = tg.grad(outs, leaves, seeds, create_graph=create_graph and order < 2, allow_unused=True)
            outs = [g for g in found if g is not None and g.requires_grad]
            leaves = leaves + seeds
    return heard


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_formula_is_the_rule(case):
    """The fused rules, which raw gradients take."""
    check(run(case, create_graph=False))


def test_every_primitive_and_every_gradient_has_a_formula():
    missing = {}
    for name, p in primitives().items():
        assert name in FORMULAS, f"{name} has no formula: write it in graph/formulas.py"
        has = [p.joint is not None or rule is not None for rule in (p.rules or [None] * len(p.arrays))]
        expected = {formulas.formula_name(a) for a, yes in zip(p.arrays, has, strict=True) if yes} - {"labels"}
        if expected != set(FORMULAS[name].gradients):
            missing[name] = expected ^ set(FORMULAS[name].gradients)
    assert not missing
    assert set(FORMULAS) == set(primitives())


def test_what_ranks_exchange_has_no_formula():
    """It is no function of one rank's arrays, so no page can compute it again; ``weigh`` stands between ranks alone."""
    importlib.import_module("tinygrad_bn.distributed")
    between_ranks = {"all_reduce", "broadcast", "reduce", "sync_batch_norm", "weigh"}
    assert registered().keys() - primitives().keys() == between_ranks
    assert between_ranks.isdisjoint(FORMULAS)


def test_the_table_of_operations_reaches_every_formula():
    """Also the rules that are exact at every order, and the operations that only they use, are held to their formulas."""
    values, gradients = set(), set()
    for case in {(c.op, len(c.make())): c for c in reversed(CASES)}.values():  # the first of each operation
        heard = run(case, create_graph=True)
        values |= {name for name, *_ in heard.applied}
        check(heard, gradients)
    assert set(FORMULAS) - values == {"to_device"}, "which does nothing where there is one device"
    expected = {(name, 0 if a in ("operands", "arrays") else a) for name, f in FORMULAS.items() for a in f.gradients}
    assert expected - gradients == {("to_device", "x")}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_made_of_known_words(name):
    """Every expression parses; its names are arguments, options, out, g, i, pi, or stand in a line of where above."""
    p, formula = known_primitives()[name], FORMULAS[name]
    known = {formulas.formula_name(a) for a in p.arrays} | set(p.option_names) | {"pi"}
    for target, line in formulas.lines_of(formula.where):
        assert formulas.names_in(line) <= known | {"out", "g"}, target
        known.add(target)
    assert formulas.names_in(parse(formula.forward)) <= known, "out and g are not known forward"
    for text in formula.gradients.values():
        assert formulas.names_in(parse(text)) <= known | {"out", "g", "i"}


def test_every_line_of_where_and_every_function_is_used():
    used = set()

    def walk(tree):
        if isinstance(tree, list):
            if tree and tree[0] == "call":
                used.add(tree[1])
            for part in tree:
                walk(part)

    for name, formula in FORMULAS.items():
        texts = [formula.forward, *formula.gradients.values()]
        lines = set().union(*(formulas.needed(parse(t), formula.where) for t in texts))
        assert lines == set(range(len(formula.where))), name
        for tree in [*map(parse, texts), *(line for _, line in formulas.lines_of(formula.where))]:
            walk(tree)
    assert used == set(FUNCTIONS)
    assert all(text and text[0].islower() or text[0] in "0-(NeP" or text[0].isdigit() for text in FUNCTIONS.values())


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [
        ("batch_norm", "x", "gamma / std * (g - mean(g, axes, True))"),  # without the projection on x_hat
        ("batch_norm", "x", "gamma / std * (g - x_hat * mean(g * x_hat, axes, True))"),  # without the mean
        ("batch_norm", "gamma", "sum(g, axes)"),
        ("linear", "w", "rows(x).T @ rows(g)"),
        ("tanh", "x", "g * (1 - out)"),
        ("div", "y", "g * x / y ** 2"),
        ("var", "x", "spread(g, x.shape, axis) * 2 * d / count(x, axis)"),
        ("conv2d", "w", "conv2d_weight(g, x, w.shape, stride, padding, dilation, 1)"),
    ],
)
def test_a_wrong_formula_is_found(monkeypatch, name, argument, wrong):
    right = FORMULAS[name]
    monkeypatch.setitem(FORMULAS, name, replace(right, gradients={**right.gradients, argument: wrong}))
    with pytest.raises((AssertionError, ValueError)):
        for case in [c for c in CASES if c.op == name]:
            check(run(case, create_graph=False))


def test_a_primitive_without_a_formula_is_found():
    @core.primitive
    def nameless(x):
        return x * 1.0

    nameless.primitive.function.__module__ = "tinygrad_bn.ops.elementwise"
    assert "nameless" in primitives()
    with pytest.raises(AssertionError, match="nameless has no formula"):
        test_every_primitive_and_every_gradient_has_a_formula()
    nameless.primitive.function.__module__ = __name__


# ----- parsing, and evaluating by hand


def test_parse_gives_nested_lists():
    assert parse("g * (1 - out ** 2)") == ["*", ["name", "g"], ["-", 1, ["**", ["name", "out"], 2]]]
    assert parse("x @ w.T if b is None else -sum(x, (0, 1), True)[index]") == [
        "if", ["is None", ["name", "b"]], ["@", ["name", "x"], ["get", "T", ["name", "w"]]],
        ["neg", ["[]", ["call", "sum", [["name", "x"], ["tuple", [0, 1]], True]], ["name", "index"]]],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "x.__class__",
        "open(x)",
        "[x for x in y]",
        "lambda: 0",
        "x if y",
        "f'{x}'",
        "sum(x, axis=0)",
        "'text'",
        "x <= y < z",
    ],
)
def test_parse_raises_for_what_is_no_formula(text):
    with pytest.raises(ValueError, match="parse (does not know|expected an expression)"):
        parse(text)


def test_needed_follows_names_through_the_lines():
    where = FORMULAS["batch_norm"].where
    assert [where[i].split(" = ")[0] for i in formulas.needed(parse("sum(g, axes)"), where)] == ["axes"]
    assert len(formulas.needed(parse("gamma * x_hat + beta"), where)) == len(where)


def test_forward_and_gradient_by_name():
    x, w = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])
    inputs = {"x": x, "w": w, "b": None}
    out = formula_numpy.forward("linear", inputs)
    np.testing.assert_array_equal(out, [[11.0]])
    np.testing.assert_array_equal(formula_numpy.gradient("linear", "w", np.array([[2.0]]), out, inputs), [[2.0, 4.0]])
    np.testing.assert_array_equal(
        formula_numpy.gradient("concatenate", 1, np.arange(3.0), np.zeros(3), [np.zeros(1), np.zeros(2)], {"axis": 0}), [1, 2]
    )
    np.testing.assert_array_equal(  # an argument that is called g is y in the formula
        formula_numpy.gradient("sum_pixels", "g", np.ones(1), np.ones(1), {"g": np.ones((1, 1, 2, 2))}), np.ones((1, 1, 2, 2))
    )
    assert formula_numpy.gradient("sign", "x", x, x, {"x": x}) is None
    with pytest.raises(ValueError, match="expected a primitive that has a formula, got 'cosh'"):
        formula_numpy.forward("cosh", {"x": x})


def test_a_formula_is_frozen():
    assert Formula("x") == Formula("x", {}, ())
    assert ops.relu.primitive.name in FORMULAS
