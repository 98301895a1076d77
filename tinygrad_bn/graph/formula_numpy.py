"""The formulas, evaluated in NumPy: what the tests hold to the engine's rules, and what a node copied as Python runs.

Each function of a formula is written from its definition, not with the package's kernels. The explorer's page has the same
functions, in JavaScript.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, product
from math import erf, pi, prod
from typing import Any

import numpy as np

from .formulas import FORMULAS, FUNCTIONS, Tree, formula_name, lines_of, needed, parse

Array = Any


def forward(op: str, inputs: Mapping[str, Any] | Sequence[Any], options: Mapping[str, Any] | None = None) -> Array:
    """The value of a primitive by its formula.

    ``inputs``: arrays, numbers or None, by argument name, or a sequence of them where there may be any number. Raises
    ValueError for a primitive without a formula.
    """
    formula = _formula(op)
    return np.asarray(_with_where(formula.forward, formula.where, _environment(inputs, options or {})))


def gradient(
    op: str,
    argument: str | int,
    g: Array,
    out: Array,
    inputs: Mapping[str, Any] | Sequence[Any],
    options: Mapping[str, Any] | None = None,
) -> Array | None:
    """What goes to one argument (a name, or a position where there are any number) by its formula, in that argument's shape.

    None if the argument gets no gradient.
    """
    formula, environment = _formula(op), _environment(inputs, options or {})
    environment |= {"g": g, "out": out}
    if isinstance(argument, int):
        target, environment["i"] = inputs[argument], argument  # type: ignore[index]
        text = next(iter(formula.gradients.values()))
    else:
        target = inputs[argument]  # type: ignore[call-overload]
        text = formula.gradients.get(formula_name(argument), "")
    if not text:
        return None
    return sum_to(np.asarray(_with_where(text, formula.where, environment)), np.shape(target))


def _formula(op: str):
    if op not in FORMULAS:
        raise ValueError(f"expected a primitive that has a formula, got {op!r}")
    return FORMULAS[op]


def _environment(inputs: Mapping[str, Any] | Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return {**{formula_name(name): value for name, value in inputs.items()}, **options}
    return {"operands": inputs, "arrays": inputs, **options}


def _with_where(text: str, where: tuple[str, ...], environment: dict[str, Any]) -> Any:
    tree, names = parse(text), {"pi": pi, **environment}
    with np.errstate(all="ignore"):  # where() evaluates both of its sides
        for position in needed(tree, where):
            name, line = lines_of(where)[position]
            names[name] = evaluate(line, names)
        return evaluate(tree, names)


_OPERATORS: dict[str, Callable] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow, "@": np.matmul,
    "==": operator.eq, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le, "[]": operator.getitem,
}  # fmt: skip


def evaluate(tree: Tree, names: Mapping[str, Any]) -> Any:
    """A parsed expression with these meanings of its names."""
    if not isinstance(tree, list):
        return tree
    match tree:
        case ["name", name]:
            return names[name]
        case ["neg", a]:
            return -evaluate(a, names)
        case ["tuple", items]:
            return tuple(evaluate(i, names) for i in items)
        case ["if", test, a, b]:
            return evaluate(a if evaluate(test, names) else b, names)
        case ["is None", a]:
            return evaluate(a, names) is None
        case ["get", attribute, a]:
            return getattr(np.asarray(evaluate(a, names)), attribute)
        case ["call", name, arguments]:
            return _FUNCTIONS[name](*(evaluate(a, names) for a in arguments))
        case [op, a, b]:
            left, right = evaluate(a, names), evaluate(b, names)
            if op == "**" and not isinstance(left, np.ndarray):
                left = np.float64(left)  # Python raises for 0.0 ** -1
            return _OPERATORS[op](left, right)
    raise ValueError(f"no such expression: {tree!r}")


# ----- the functions of the formulas


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    given = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(a % ndim for a in given)


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Summed back to a shape that was broadcast."""
    lead = x.ndim - len(shape)
    axes = tuple(i for i, n in enumerate(x.shape) if i < lead or (n != 1 and shape[i - lead] == 1))
    return x.sum(axes, keepdims=True).reshape(shape)


def _spread(g, shape, axis):
    axes = _axes(axis, len(shape))
    return np.broadcast_to(np.reshape(g, [1 if i in axes else n for i, n in enumerate(shape)]), shape)


def _count(x, axis):
    return prod(x.shape[a] for a in _axes(axis, x.ndim))


def _all_but_channels(x):
    return (0, *range(2, x.ndim))


def _per_channel(v, x, otherwise):
    return otherwise if v is None else np.reshape(v, (1, -1) + (1,) * (x.ndim - 2))


def _along(v, x, axes, otherwise):
    return otherwise if v is None else np.reshape(v, [n if i in axes else 1 for i, n in enumerate(x.shape)])


def _sum(x, axis=None, keepdims=False):
    return np.sum(x, axis, keepdims=keepdims)


def _mean(x, axis=None, keepdims=False):
    return np.mean(x, axis, keepdims=keepdims)


def _put(x, index, shape):
    out = np.zeros(shape)
    np.add.at(out, index, x)
    return out


def _width(pad_width, ndim):
    return np.broadcast_to(np.asarray(pad_width), (ndim, 2))


def _unpad(g, shape, pad_width):
    return g[tuple(slice(a, a + n) for n, (a, _) in zip(shape, _width(pad_width, len(shape)), strict=True))]


def _part(g, arrays, axis, i):
    ends = list(accumulate(a.shape[axis] for a in arrays))
    return g[(slice(None),) * axis + (slice(ends[i] - arrays[i].shape[axis], ends[i]),)]


def _pick(x, labels):
    return x[np.arange(len(labels)), labels]


def _one_hot(labels, x):
    return np.asarray(labels)[:, None] == np.arange(x.shape[1])


def _kept(shape, p, key):
    """NumPy's own Philox, with the recorded key; 53 bits of each number against p."""
    bits = np.random.Philox(key=key).random_raw(prod(shape)) >> np.uint64(11)
    return (bits >= np.uint64(int(p * 2**53))).reshape(shape)


def _einsum(inputs, output, operands):
    return np.einsum(f"{','.join(inputs)}->{output}", *operands, optimize=False)


def _einsum_gradient(g, inputs, output, operands, i):
    """Over all values of all letters: g at the output's letters times the other operands, added at this operand's letters."""
    sizes: dict[str, int] = {}
    for letters, x in zip(inputs, operands, strict=True):
        for letter, n in zip(letters, x.shape, strict=True):
            sizes[letter] = max(n, sizes.get(letter, 1)) if n else 0
    total = np.zeros(operands[i].shape)

    def at(letters, shape, values):
        return tuple(values[c] if n > 1 else 0 for c, n in zip(letters, shape, strict=True))  # a length of 1 is broadcast

    for chosen in product(*map(range, sizes.values())):
        values = dict(zip(sizes, chosen, strict=True))
        terms = [x[at(t, x.shape, values)] for j, (t, x) in enumerate(zip(inputs, operands, strict=True)) if j != i]
        total[at(inputs[i], total.shape, values)] += g[at(output, g.shape, values)] * prod(terms)
    return total


def _windows(kernel, counts, stride, dilation):
    """For each place in the filter, what all windows have there: (number of the place, row, column, slices)."""
    (kh, kw), (oh, ow), (sh, sw), (dh, dw) = kernel, counts, stride, dilation
    for i, j in np.ndindex(kh, kw):
        yield i * kw + j, i, j, (slice(i * dh, i * dh + oh * sh, sh)), (slice(j * dw, j * dw + ow * sw, sw))


def _bordered(shape, padding, kernel, stride, dilation=(1, 1), value=0.0):
    """An empty image with its border, and how many windows fit along each axis; room for the last window's stride."""
    n, c, h, w = shape
    counts = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, k, s, d in zip((h, w), padding, kernel, stride, dilation, strict=True)
    ]
    return np.full((n, c, h + 2 * padding[0] + stride[0], w + 2 * padding[1] + stride[1]), value), counts


def _inside(image, shape, padding):
    return image[:, :, padding[0] : padding[0] + shape[2], padding[1] : padding[1] + shape[3]]


def _conv(x, w, g, shape, stride, padding, dilation, groups):
    """One of the three products of a convolution: the one whose argument is None, of ``shape``."""
    x_shape, w_shape = (shape if x is None else x.shape), (shape if w is None else w.shape)
    image, counts = _bordered(x_shape, padding, w_shape[2:], stride, dilation)
    if x is not None:
        _inside(image, x_shape, padding)[...] = x
    if g is not None:
        counts = g.shape[2:]  # an output may be smaller than the input has room for
    weight = np.zeros(shape) if w is None else w
    result = np.zeros((x_shape[0], w_shape[0], *counts)) if g is None else g
    for group in range(groups):
        ins = slice(group * w_shape[1], (group + 1) * w_shape[1])
        outs = slice(group * (w_shape[0] // groups), (group + 1) * (w_shape[0] // groups))
        for _, i, j, rows, columns in _windows(w_shape[2:], counts, stride, dilation):
            part = image[:, ins, rows, columns]
            if x is None:
                part += np.einsum("nohw,oc->nchw", result[:, outs], weight[outs, :, i, j])
            elif w is None:
                weight[outs, :, i, j] = np.einsum("nohw,nchw->oc", result[:, outs], part)
            else:
                result[:, outs] += np.einsum("nchw,oc->nohw", part, weight[outs, :, i, j])
    return _inside(image, x_shape, padding) if x is None else weight if w is None else result


def _conv2d(x, w, stride, padding, dilation, groups):
    return _conv(x, w, None, None, stride, padding, dilation, groups)


def _conv2d_input(g, w, shape, stride, padding, dilation, groups):
    return _conv(None, w, g, shape, stride, padding, dilation, groups)


def _conv2d_weight(g, x, shape, stride, padding, dilation, groups):
    return _conv(x, None, g, shape, stride, padding, dilation, groups)


def _stacked(x, kernel, stride, padding, value):
    """(places, N, C, H', W'): what each window has at each place in it."""
    image, counts = _bordered(x.shape, padding, kernel, stride, value=value)
    _inside(image, x.shape, padding)[...] = x
    return np.stack([image[:, :, rows, columns] for *_, rows, columns in _windows(kernel, counts, stride, (1, 1))])


def _unstacked(parts, shape, kernel, stride, padding):
    """The adjoint: each part added where its windows lie."""
    image, _ = _bordered(shape, padding, kernel, stride)
    for place, _, _, rows, columns in _windows(kernel, parts.shape[3:], stride, (1, 1)):
        image[:, :, rows, columns] += parts[place]
    return _inside(image, shape, padding)


def _max_pool2d(x, kernel, stride, padding):
    return _stacked(x, kernel, stride, padding, -np.inf).max(0)


def _max_pool2d_place(x, kernel, stride, padding):
    return _stacked(x, kernel, stride, padding, -np.inf).argmax(0)


def _max_pool2d_scatter(g, place, shape, kernel, stride, padding):
    return _unstacked(np.stack([np.where(place == k, g, 0.0) for k in range(prod(kernel))]), shape, kernel, stride, padding)


def _max_pool2d_gather(x, place, kernel, stride, padding):
    return np.take_along_axis(_stacked(x, kernel, stride, padding, 0.0), np.asarray(place, "int64")[None], 0)[0]


def _avg_pool2d(x, kernel, stride, padding):
    return _stacked(x, kernel, stride, padding, 0.0).mean(0)


def _avg_pool2d_spread(g, shape, kernel, stride, padding):
    return _unstacked(np.broadcast_to(g / prod(kernel), (prod(kernel), *g.shape)), shape, kernel, stride, padding)


_FUNCTIONS: dict[str, Callable] = {
    "abs": np.abs, "all_but_channels": _all_but_channels, "along": _along, "argmax": np.argmax, "avg_pool2d": _avg_pool2d,
    "avg_pool2d_spread": _avg_pool2d_spread, "broadcast_to": np.broadcast_to, "cast": lambda x, dtype: np.asarray(x, dtype),
    "clip": np.clip, "column": lambda x: np.expand_dims(x, -1), "concatenate": np.concatenate, "conv2d": _conv2d,
    "conv2d_input": _conv2d_input, "conv2d_weight": _conv2d_weight, "count": _count,
    "crop": lambda x, shape: x[tuple(map(slice, shape))], "cumsum": np.cumsum, "einsum": _einsum,
    "einsum_gradient": _einsum_gradient, "erf": lambda x: np.vectorize(erf, otypes=[float])(x), "exp": np.exp,
    "expm1": np.expm1,
    "finite_or_0": lambda x: np.where(np.isfinite(x), x, 0.0), "flip": np.flip,
    "grouped": lambda x, groups: np.reshape(x, (x.shape[0], groups, -1)), "kept": _kept, "log": np.log, "log1p": np.log1p,
    "max": lambda x, axis=None, keepdims=False: np.max(x, axis, keepdims=keepdims), "max_pool2d": _max_pool2d,
    "max_pool2d_gather": _max_pool2d_gather, "max_pool2d_place": _max_pool2d_place, "max_pool2d_scatter": _max_pool2d_scatter,
    "maximum": np.maximum, "mean": _mean, "min": lambda x, axis=None, keepdims=False: np.min(x, axis, keepdims=keepdims),
    "minimum": np.minimum, "one_hot": _one_hot, "other_axes": lambda x, axes: tuple(i for i in range(x.ndim) if i not in axes),
    "pad": lambda x, width, value: np.pad(x, _width(width, x.ndim), constant_values=value), "part": _part,
    "per_channel": _per_channel, "pick": _pick, "put": _put, "reshape": np.reshape, "row": lambda x: np.expand_dims(x, -2),
    "rows": lambda x: np.reshape(x, (prod(x.shape[:-1]), x.shape[-1])), "sign": np.sign, "spread": _spread, "sqrt": np.sqrt,
    "sum": _sum, "sum_to": sum_to, "tanh": np.tanh, "transpose": np.transpose,
    "transpose_back": lambda x, axes: np.transpose(x, np.argsort(axes)), "unpad": _unpad, "where": np.where,
}  # fmt: skip

assert _FUNCTIONS.keys() == FUNCTIONS.keys()
