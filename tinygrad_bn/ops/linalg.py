"""Products: matmul, linear, einsum."""

from __future__ import annotations

from itertools import chain
from math import prod

from ..backend import kernels_of, xp_of
from ..core import primitive
from .checks import need_one_dtype, shape_of
from .reduce import sum as sum_
from .shape import expand, getitem, reshape, swapaxes, unsqueeze


@primitive
def matmul(x, y):
    """x @ y as in NumPy: (..., n, k) @ (..., k, m) -> (..., n, m), the leading axes broadcast; 1-D is a row, or a column."""
    if not x.ndim or not y.ndim:
        raise ValueError(f"matmul expected arrays of at least one dimension, got shapes {x.shape} and {y.shape}")
    if x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(f"matmul expected shapes (..., n, k) and (..., k, m), got {x.shape} and {y.shape}")
    return kernels_of(x).matmul(x, y)


def _rows(x):
    """(..., n) as a matrix of n columns."""
    return x if len(x.shape) == 2 else reshape(x, (prod(x.shape[:-1]), x.shape[-1]))


def _matmul_x(g, _out, _x, y):
    if len(y.shape) == 1:
        return unsqueeze(g, -1) * y
    if len(_x.shape) == 1:
        return getitem(matmul(y, unsqueeze(g, -1)), (..., 0))
    return matmul(g, swapaxes(y, -1, -2))


def _matmul_y(g, _out, x, _y):
    if len(x.shape) == 1:
        return g * x if len(_y.shape) == 1 else unsqueeze(x, -1) * unsqueeze(g, -2)
    if len(_y.shape) == 1:
        return unsqueeze(g, -1) * x
    if len(_y.shape) == 2 and len(x.shape) > 2:  # one large product instead of many that are summed
        x, g = _rows(x), _rows(g)
    return matmul(swapaxes(x, -1, -2), g)


matmul.defvjp(_matmul_x, _matmul_y)


@primitive
def linear(x, w, b=None):
    """(..., in), (out, in), (out,) or None -> (..., out): x @ w.T + b."""
    if w.ndim != 2 or not x.ndim or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear expected an input (..., in) and a weight (out, in), got shapes {x.shape} and {w.shape}")
    need_one_dtype("linear", x, w, b)
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"linear expected a bias of shape {w.shape[:1]}, got {b.shape}")
    return kernels_of(x).linear(x, w, b)


linear.defvjp(
    lambda g, _out, _x, w, _b: matmul(g, w),
    lambda g, _out, x, _w, _b: matmul(_rows(g).T, _rows(x)),
    lambda g, _out, _x, _w, _b: sum_(g, tuple(range(len(g.shape) - 1))),
)


@linear.fused_vjp
def _(g, _out, x, w, _b, *, wanted):
    if not x.shape or 0 in g.shape or not (wanted[0] or wanted[1]):
        dx, dw = (matmul(g, w) if wanted[0] else None), (matmul(_rows(g).T, _rows(x)) if wanted[1] else None)
    else:
        dx, dw = kernels_of(g).linear_backward(g, x, w, *wanted[:2])
    return dx, dw, kernels_of(g).sum_rows(g) if wanted[2] else None


# ----- einsum

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def einsum(subscripts, *operands):
    """NumPy's einsum, also with ``...`` and with a letter twice in one operand ("ii->i")."""
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum expected the subscripts as a string first, got {type(subscripts).__name__}")
    shapes = [shape_of("einsum", x, f"operands[{i}]") for i, x in enumerate(operands)]
    inputs, output = _explicit(subscripts, shapes)
    return _einsum(*operands, inputs=inputs, output=output)


@primitive
def _einsum(*operands, inputs, output):
    subscripts = f"{','.join(inputs)}->{output}"
    return kernels_of(operands[0]).einsum(subscripts, operands)


@_einsum.vjp
def _(g, _out, *xs, inputs, output):
    grads = []
    for i, (letters, x) in enumerate(zip(inputs, xs, strict=True)):
        others = [(inputs[j], xs[j]) for j in range(len(xs)) if j != i]
        # A letter that stands twice in this operand means its diagonal: rename the second, and tie the two by an identity.
        unique, ties = "", []
        spare = (c for c in _LETTERS if c not in "".join(inputs) + output)
        for letter, n in zip(letters, x.shape, strict=True):
            if letter in unique:
                new = next(spare)
                ties.append((letter + new, _eye(g, n)))
                letter = new
            unique += letter
        terms = [(output, g), *others, *ties]
        present = [c for c in unique if any(c in t for t, _ in terms)]
        d = _einsum(*[t for _, t in terms], inputs=tuple(t for t, _ in terms), output="".join(present))
        # A letter that only this operand has was summed over: its gradient is the same everywhere along it.
        sizes = dict(zip(present, d.shape, strict=True))
        d = reshape(d, tuple(sizes.get(c, 1) for c in unique))
        grads.append(expand(d, tuple(sizes.get(c, n) for c, n in zip(unique, x.shape, strict=True))))
    return grads


def _eye(g, n):
    raw = g._data if hasattr(g, "_data") else g
    return xp_of(raw).eye(n, dtype=raw.dtype)


def _explicit(subscripts, shapes):
    """Operand and output letters, with ``...`` spelled out and the implied output written."""
    ndims = [len(shape) for shape in shapes]
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(ndims):
        raise ValueError(f"einsum {subscripts!r} names {len(parts)} operands, got {len(ndims)}")
    pieces = [*parts, right]
    letters = "".join(pieces).replace("...", "")
    if set(letters) - set(_LETTERS) or any(p.count("...") > 1 for p in pieces):
        raise ValueError(f"einsum expected letters, commas, '...' and one '->', got {subscripts!r}")
    spare = [c for c in reversed(_LETTERS) if c not in text]
    dots = [n - len(p.replace("...", "")) for p, n in zip(parts, ndims, strict=True)]
    for p, n, extra in zip(parts, ndims, dots, strict=True):
        if extra < 0 or (extra and "..." not in p):
            raise ValueError(f"einsum {subscripts!r} gives {p!r} to an operand of {n} dimensions")
    most = max([d for p, d in zip(parts, dots, strict=True) if "..." in p], default=0)
    names = "".join(spare[:most])
    full = tuple(p.replace("...", names[most - d :]) for p, d in zip(parts, dots, strict=True))
    lengths = {}
    for letter, n in zip("".join(full), chain(*shapes), strict=True):
        if n != lengths.setdefault(letter, n) and n != 1:
            if lengths[letter] != 1:
                what = "..." if letter in names else letter
                raise ValueError(f"einsum {subscripts!r} expected one length for {what!r}, got {lengths[letter]} and {n}")
            lengths[letter] = n
    if not arrow:
        return full, names + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    output = right.replace("...", names)
    for letter in output:
        if letter not in lengths or output.count(letter) > 1:
            raise ValueError(f"einsum {subscripts!r} expected each output letter once, and in an operand, got {letter!r}")
    return full, output
