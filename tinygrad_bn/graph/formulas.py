"""The formula of every primitive: the one place that states what an operation computes, and what its gradients are.

A formula is a small Python expression over the primitive's arguments and options by their own names, ``out`` (what the
operation returned), ``g`` (the whole gradient that came in), and the functions of ``FUNCTIONS``. An argument that is itself
called g is called ``y`` here. The same string is printed, drawn, evaluated by ``formula_numpy`` (which the tests hold to the
engine's rules) and evaluated again by the explorer's page: ``parse`` brings it into nested lists for that, and nothing is ever
executed as code.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Formula:
    """``forward``: the value; ``gradients``: by argument, the gradient that goes to it; ``where``: names that these use.

    A line of ``where`` is ``name = expression``. It may use the lines above it, and give an argument a new meaning for the
    lines below it and the formulas. An operation with a variable number of arrays has one gradient for all of them, under
    the name of their list, in which ``i`` is the position.
    """

    forward: str
    gradients: dict[str, str] = field(default_factory=dict)
    where: tuple[str, ...] = ()


_AFFINE = ("gamma = per_channel(gamma, x, 1)", "beta = per_channel(beta, x, 0)")
_NORMALISED_X = "gamma / std * (g - mean(g, axes, True) - x_hat * mean(g * x_hat, axes, True))"
_SCALED_X = "(h - mean(h, axes, True) - x_hat * mean(h * x_hat, axes, True)) / std"
_SPREAD = "spread(g, x.shape, axis)"
_EXTREMUM = (
    "chosen = where(x == spread(out, x.shape, axis), 1, 0)",
    "ties = spread(sum(chosen, axis), x.shape, axis)",
)
_SHARE_X = "g * where(x == y, 0.5, {})"

FORMULAS: dict[str, Formula] = {
    # ----- elementwise
    "add": Formula("x + y", {"x": "g", "y": "g"}),
    "sub": Formula("x - y", {"x": "g", "y": "-g"}),
    "mul": Formula("x * y", {"x": "g * y", "y": "g * x"}),
    "div": Formula("x / y", {"x": "g / y", "y": "-g * x / y ** 2"}),
    "neg": Formula("-x", {"x": "-g"}),
    "pow": Formula("x ** y", {"x": "where(y == 0, 0, g * y * x ** (y - 1))", "y": "where(x == 0, 0, g * out * log(x))"}),
    "exp": Formula("exp(x)", {"x": "g * out"}),
    "log": Formula("log(x)", {"x": "g / x"}),
    "log1p": Formula("log1p(x)", {"x": "g / (1 + x)"}),
    "expm1": Formula("expm1(x)", {"x": "g * (out + 1)"}),
    "sqrt": Formula("sqrt(x)", {"x": "g / (2 * out)"}),
    "rsqrt": Formula("1 / sqrt(x)", {"x": "-g * out ** 3 / 2"}),
    "square": Formula("x ** 2", {"x": "2 * g * x"}),
    "tanh": Formula("tanh(x)", {"x": "g * (1 - out ** 2)"}),
    "sigmoid": Formula("1 / (1 + exp(-x))", {"x": "g * out * (1 - out)"}),
    "softplus": Formula("maximum(x, 0) + log1p(exp(-abs(x)))", {"x": "g / (1 + exp(-x))"}),
    "erf": Formula("erf(x)", {"x": "g * 2 / sqrt(pi) * exp(-x ** 2)"}),
    "silu": Formula("x * s", {"x": "g * (s + x * s * (1 - s))"}, ("s = 1 / (1 + exp(-x))",)),
    "gelu": Formula(
        "x * cdf",
        {"x": "g * (cdf + x * density)"},
        ("cdf = (1 + erf(x / sqrt(2))) / 2", "density = exp(-x ** 2 / 2) / sqrt(2 * pi)"),
    ),
    "abs": Formula("abs(x)", {"x": "g * sign(x)"}),
    "sign": Formula("sign(x)"),
    "relu": Formula("maximum(x, 0)", {"x": "g * (out > 0)"}),
    "leaky_relu": Formula("where(x > 0, x, negative_slope * x)", {"x": "where(x > 0, g, negative_slope * g)"}),
    "elu": Formula("where(x > 0, x, alpha * expm1(x))", {"x": "where(x > 0, g, alpha * g * exp(minimum(x, 0)))"}),
    "maximum": Formula("maximum(x, y)", {"x": _SHARE_X.format("x > y"), "y": _SHARE_X.format("y > x")}),
    "minimum": Formula("minimum(x, y)", {"x": _SHARE_X.format("x < y"), "y": _SHARE_X.format("y < x")}),
    "where": Formula("where(condition, x, y)", {"x": "where(condition, g, 0)", "y": "where(condition, 0, g)"}),
    "clip": Formula("clip(x, lo, hi)", {"x": "g * (x == clip(x, lo, hi))"}),
    # ----- reductions
    "sum": Formula("sum(x, axis, keepdims)", {"x": _SPREAD}),
    "mean": Formula("mean(x, axis, keepdims)", {"x": f"{_SPREAD} / count(x, axis)"}),
    "var": Formula(
        "sum(d ** 2, axis, keepdims) / (count(x, axis) - ddof)",
        {"x": f"{_SPREAD} * 2 * d / (count(x, axis) - ddof)"},
        ("d = x - mean(x, axis, True)",),
    ),
    "max": Formula("max(x, axis, keepdims)", {"x": f"{_SPREAD} * chosen / ties"}, _EXTREMUM),
    "min": Formula("min(x, axis, keepdims)", {"x": f"{_SPREAD} * chosen / ties"}, _EXTREMUM),
    "logsumexp": Formula(
        "finite_or_0(max(x, axis, keepdims)) + log(sum(exp(x - top), axis, keepdims))",
        {"x": f"{_SPREAD} * exp(x - spread(out, x.shape, axis))"},
        ("top = finite_or_0(max(x, axis, True))",),
    ),
    "cumsum": Formula("cumsum(x, axis)", {"x": "flip(cumsum(flip(g, axis), axis), axis)"}),
    "argmax": Formula("argmax(x, axis)"),
    "sum_to": Formula("sum_to(x, shape)", {"x": "broadcast_to(g, x.shape)"}),
    "broadcast_to": Formula("broadcast_to(x, shape)", {"x": "sum_to(g, x.shape)"}),
    # ----- products
    "matmul": Formula(
        "x @ y",
        {
            "x": "column(g) * y if y.ndim == 1 else sum(row(g) * y, -1) if x.ndim == 1 else g @ y.mT",
            "y": "column(g) * x if y.ndim == 1 else column(x) * row(g) if x.ndim == 1 else x.mT @ g",
        },
    ),
    "linear": Formula(
        "x @ w.T if b is None else x @ w.T + b",
        {"x": "g @ w", "w": "rows(g).T @ rows(x)", "b": "sum(rows(g), 0)"},
    ),
    "einsum": Formula(
        "einsum(inputs, output, operands)", {"operands": "einsum_gradient(g, inputs, output, operands, i)"}
    ),
    "conv2d": Formula(
        "conv2d(x, w, stride, padding, dilation, groups) + per_channel(b, x, 0)",
        {
            "x": "conv2d_input(g, w, x.shape, stride, padding, dilation, groups)",
            "w": "conv2d_weight(g, x, w.shape, stride, padding, dilation, groups)",
            "b": "sum(g, (0, 2, 3))",
        },
    ),
    "conv2d_input": Formula(
        "conv2d_input(y, w, shape, stride, padding, dilation, groups)",
        {
            "y": "crop(conv2d(g, w, stride, padding, dilation, groups), y.shape)",
            "w": "conv2d_weight(y, g, w.shape, stride, padding, dilation, groups)",
        },
    ),
    "conv2d_weight": Formula(
        "conv2d_weight(y, x, shape, stride, padding, dilation, groups)",
        {
            "y": "crop(conv2d(x, g, stride, padding, dilation, groups), y.shape)",
            "x": "conv2d_input(y, g, x.shape, stride, padding, dilation, groups)",
        },
    ),
    "sum_pixels": Formula("sum(y, (0, 2, 3))", {"y": "spread(g, y.shape, (0, 2, 3))"}),
    # ----- pooling
    "max_pool2d": Formula(
        "max_pool2d(x, kernel, stride, padding)",
        {"x": "max_pool2d_scatter(g, place, x.shape, kernel, stride, padding)"},
        ("place = max_pool2d_place(x, kernel, stride, padding)",),
    ),
    "max_pool2d_scatter": Formula(
        "max_pool2d_scatter(y, place, shape, kernel, stride, padding)",
        {"y": "max_pool2d_gather(g, place, kernel, stride, padding)"},
    ),
    "max_pool2d_gather": Formula(
        "max_pool2d_gather(x, place, kernel, stride, padding)",
        {"x": "max_pool2d_scatter(g, place, x.shape, kernel, stride, padding)"},
    ),
    "avg_pool2d": Formula(
        "avg_pool2d(x, kernel, stride, padding)", {"x": "avg_pool2d_spread(g, x.shape, kernel, stride, padding)"}
    ),
    "avg_pool2d_spread": Formula(
        "avg_pool2d_spread(y, shape, kernel, stride, padding)", {"y": "avg_pool2d(g, kernel, stride, padding)"}
    ),
    # ----- normalisation
    "batch_norm": Formula(
        "gamma * x_hat + beta",
        {"x": _NORMALISED_X, "gamma": "sum(g * x_hat, axes)", "beta": "sum(g, axes)"},
        (
            "axes = all_but_channels(x)", *_AFFINE, "mu = mean(x, axes, True)", "var = mean((x - mu) ** 2, axes, True)",
            "std = sqrt(var + eps)", "x_hat = (x - mu) / std",
        ),
    ),
    "batch_norm_inference": Formula(
        "gamma * (x - mean) / std + beta",
        {
            "x": "g * gamma / std",
            "gamma": "sum(g * (x - mean) / std, axes)",
            "beta": "sum(g, axes)",
            "mean": "-sum(g * gamma / std, axes)",
            "var": "-sum(g * gamma * (x - mean) / (2 * std ** 3), axes)",
        },
        (
            "axes = all_but_channels(x)", *_AFFINE, "mean = per_channel(mean, x, 0)", "var = per_channel(var, x, 1)",
            "std = sqrt(var + eps)",
        ),
    ),
    "layer_norm": Formula(
        "gamma * x_hat + beta",
        {"x": _SCALED_X, "gamma": "sum(g * x_hat, others)", "beta": "sum(g, others)"},
        (
            "others = other_axes(x, axes)", "gamma = along(gamma, x, axes, 1)", "beta = along(beta, x, axes, 0)",
            "mu = mean(x, axes, True)", "var = mean((x - mu) ** 2, axes, True)", "std = sqrt(var + eps)",
            "x_hat = (x - mu) / std", "h = g * gamma",
        ),
    ),
    "group_norm": Formula(
        "gamma * reshape(x_hat, x.shape) + beta",
        {
            "x": "reshape((h - mean(h, 2, True) - x_hat * mean(h * x_hat, 2, True)) / std, x.shape)",
            "gamma": "sum(g * reshape(x_hat, x.shape), axes)",
            "beta": "sum(g, axes)",
        },
        (
            "axes = all_but_channels(x)", *_AFFINE, "v = grouped(x, num_groups)", "mu = mean(v, 2, True)",
            "var = mean((v - mu) ** 2, 2, True)", "std = sqrt(var + eps)", "x_hat = (v - mu) / std",
            "h = grouped(g * gamma, num_groups)",
        ),
    ),
    "dropout": Formula(
        "0 * x if p == 1 else where(keep, x / (1 - p), 0)",
        {"x": "0 * g if p == 1 else where(keep, g / (1 - p), 0)"},
        ("keep = kept(x.shape, p, key)",),
    ),
    # ----- softmax and losses
    "softmax": Formula(
        "e / sum(e, axis, True)", {"x": "out * (g - sum(g * out, axis, True))"}, ("e = exp(x - max(x, axis, True))",)
    ),
    "log_softmax": Formula(
        "d - log(sum(exp(d), axis, True))", {"x": "g - exp(out) * sum(g, axis, True)"}, ("d = x - max(x, axis, True)",)
    ),
    "cross_entropy": Formula(
        "-pick(log_p, labels) if label_smoothing == 0 else "
        "(label_smoothing - 1) * pick(log_p, labels) - label_smoothing * mean(log_p, 1)",
        {
            "x": "column(g) * (exp(log_p) - one_hot(labels, x)) if label_smoothing == 0 else "
            "column(g) * (exp(log_p) - (1 - label_smoothing) * one_hot(labels, x) - label_smoothing / count(x, 1))"
        },
        ("d = x - max(x, 1, True)", "log_p = d - log(sum(exp(d), 1, True))"),
    ),
    # ----- shape
    "reshape": Formula("reshape(x, shape)", {"x": "reshape(g, x.shape)"}),
    "transpose": Formula("transpose(x, axes)", {"x": "transpose_back(g, axes)"}),
    "flip": Formula("flip(x, axes)", {"x": "flip(g, axes)"}),
    "concatenate": Formula("concatenate(arrays, axis)", {"arrays": "part(g, arrays, axis, i)"}),
    "pad": Formula("pad(x, pad_width, value)", {"x": "unpad(g, x.shape, pad_width)"}),
    "getitem": Formula("x[index]", {"x": "put(g, index, x.shape)"}),
    "put": Formula("put(x, index, shape)", {"x": "g[index]"}),
    "cast": Formula("cast(x, dtype)", {"x": "g"}),
    "to_device": Formula("x", {"x": "g"}),
}  # fmt: skip

FUNCTIONS: dict[str, str] = {
    "abs": "the absolute value",
    "all_but_channels": "the axes over which BatchNorm takes its statistics: all but axis 1",
    "along": "a parameter, laid along these axes so that it multiplies each element of x; the number given, if there is none",
    "argmax": "the position of the largest element along an axis, or in the flattened array",
    "avg_pool2d": "the mean of each window, padding counted as zeros",
    "avg_pool2d_spread": "each element, divided evenly over its window",
    "broadcast_to": "repeated along new axes and axes of length 1",
    "cast": "in another dtype",
    "clip": "limited to lo and hi; None is no limit",
    "column": "with a new last axis of length 1",
    "concatenate": "joined along an axis",
    "conv2d": "for each window, the sum of its elements times the filter's",
    "conv2d_input": "each element times the filter, added up where the filter's window lies",
    "conv2d_weight": "for each place in the filter, the sum of what was multiplied with it",
    "count": "how many elements are reduced to one",
    "crop": "without the rows and columns that the shape has no room for",
    "cumsum": "the running sum",
    "einsum": "for each output index, the sum over all other letters of the product of the operands",
    "einsum_gradient": "the sum, over all letters that operand i does not have, of g times the other operands",
    "erf": "the error function",
    "exp": "e to the power of",
    "expm1": "exp(x) - 1, exact near 0",
    "finite_or_0": "0 where it is infinite or NaN",
    "flip": "with the order reversed along an axis",
    "grouped": "(N, C, ...) as (N, groups, elements of a group)",
    "kept": "which elements dropout keeps: a function of the recorded key and the position",
    "log": "the natural logarithm",
    "log1p": "log(1 + x), exact near 0",
    "max": "the largest element",
    "max_pool2d": "the largest element of each window",
    "max_pool2d_gather": "of each window the element at the place of its maximum",
    "max_pool2d_place": "where in its window the largest element is, the first of equals",
    "max_pool2d_scatter": "each element at the place where its window's maximum was",
    "maximum": "the larger of two",
    "mean": "the mean",
    "min": "the smallest element",
    "minimum": "the smaller of two",
    "one_hot": "1 at the label, 0 elsewhere",
    "other_axes": "all axes but these",
    "pad": "with a border",
    "part": "the piece that array i had",
    "per_channel": "a parameter, one value for each channel (axis 1); the number given, if there is none",
    "pick": "in each row, the element at the label",
    "put": "zeros, with this added at the index",
    "reshape": "the same elements in another shape",
    "row": "with a new axis of length 1 before the last",
    "rows": "as a matrix: all axes but the last made one",
    "sign": "-1, 0 or 1",
    "spread": "repeated along the axes that were reduced",
    "sqrt": "the square root",
    "sum": "the sum",
    "sum_to": "summed back to a shape that was broadcast",
    "tanh": "the hyperbolic tangent",
    "transpose": "the axes in another order",
    "transpose_back": "the axes in their old order",
    "unpad": "without the border",
    "where": "the second where the first holds, else the third",
}

# ----- reading them

Tree = Any  # a number, a bool, None, or a list whose first element says what it is: ["name", "x"], ["+", a, b], ...

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.MatMult: "@"}
_COMPARED = {ast.Eq: "==", ast.Gt: ">", ast.Lt: "<", ast.GtE: ">=", ast.LtE: "<="}
ATTRIBUTES = "shape", "ndim", "T", "mT"


def formula_name(argument: str) -> str:
    """What an argument is called in its formula: y if its name is g, which there is the incoming gradient."""
    return "y" if argument == "g" else argument


@cache
def parse(text: str) -> Tree:
    """An expression as nested lists, as the page evaluates it.

    ``["name", n]``, ``["call", function, [arguments]]``, ``["get", attribute, a]``, ``["[]", a, index]``,
    ``["tuple", [items]]``, ``["if", test, a, b]``, ``["is None", a]``, ``["neg", a]``, and ``[operator, a, b]``; numbers, True,
    False and None are themselves. Raises ValueError for anything else, naming it.
    """
    try:
        return _tree(ast.parse(text, mode="eval").body, text)
    except SyntaxError as error:
        raise ValueError(f"parse expected an expression, got {text!r}: {error.msg}") from None


def _tree(node: ast.AST, text: str) -> Tree:
    match node:
        case ast.Constant(value=int() | float() | None as value):  # a bool is an int
            return value
        case ast.Name(id=name):
            return ["name", name]
        case ast.UnaryOp(op=ast.USub(), operand=a):
            return ["neg", _tree(a, text)]
        case ast.BinOp(left=a, op=op, right=b) if type(op) in _BINARY:
            return [_BINARY[type(op)], _tree(a, text), _tree(b, text)]
        case ast.Compare(left=a, ops=[ast.Is()], comparators=[ast.Constant(value=None)]):
            return ["is None", _tree(a, text)]
        case ast.Compare(left=a, ops=[op], comparators=[b]) if type(op) in _COMPARED:
            return [_COMPARED[type(op)], _tree(a, text), _tree(b, text)]
        case ast.IfExp(test=test, body=a, orelse=b):
            return ["if", _tree(test, text), _tree(a, text), _tree(b, text)]
        case ast.Attribute(value=a, attr=name) if name in ATTRIBUTES:
            return ["get", name, _tree(a, text)]
        case ast.Subscript(value=a, slice=index):
            return ["[]", _tree(a, text), _tree(index, text)]
        case ast.Tuple(elts=items):
            return ["tuple", [_tree(i, text) for i in items]]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return ["call", name, [_tree(a, text) for a in args]]
    raise ValueError(f"parse does not know {ast.unparse(node)!r} of the formula {text!r}")


def names_in(tree: Tree) -> set[str]:
    """The names (not of functions) that an expression uses."""
    if not isinstance(tree, list):
        return set()
    if tree[0] == "name":
        return {tree[1]}
    parts = tree[-1] if tree[0] in ("call", "tuple") else tree[1:]
    return set().union(*map(names_in, parts))


@cache
def lines_of(where: tuple[str, ...]) -> tuple[tuple[str, Tree], ...]:
    """The lines of ``where`` as (name, expression)."""
    return tuple((name.strip(), parse(text.strip())) for name, _, text in (line.partition(" = ") for line in where))


def needed(tree: Tree, where: tuple[str, ...]) -> list[int]:
    """The positions of the lines of ``where`` that an expression needs, in their order."""
    wanted, found = names_in(tree), []
    for position, (name, line) in reversed(list(enumerate(lines_of(where)))):
        if name in wanted:
            found.append(position)
            wanted = (wanted - {name}) | names_in(line)
    return found[::-1]
