"""Checks and uses of derivatives: check_grads, jacobian, hvp, detect_anomaly."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import core
from .backend import as_array, to_device, to_numpy, type_name, xp_of
from .core import Box, Listener, Node, grad, listening
from .ops import stack
from .ops.checks import need_one_device, shape_of
from .tensor import Tensor

_STEP = 1e-4  # with Richardson's extrapolation the error is about 1e-11, of truncation and of rounding alike


class NonSmoothPoint(ValueError):
    """The function given to check_grads has a kink or a jump so near the point that no finite difference can tell its slope."""


def check_grads(f: Callable, args: Any, order: int = 2, rtol: float = 1e-6, atol: float = 1e-8, seed: int = 0) -> None:
    """Compare the derivatives of ``f(*args)`` up to ``order`` with finite differences, in float64.

    ``args`` is a Tensor or array, or a sequence of them, float64; ``f`` returns a Tensor or a tuple of them. At each order one
    random direction through all arguments, and one random weighting of all outputs, drawn from ``seed``, is compared, which
    is enough: a wrong derivative agrees along a random direction with probability zero. Order k + 1 checks the gradient,
    recorded with create_graph, as a function of the arguments and of the weights. Both that gradient and the unrecorded one
    are compared, since they may come from different rules (``vjp`` and ``fused_vjp``). Raises AssertionError with both numbers
    where they differ by more than ``atol + rtol * |number|``, and NonSmoothPoint where the one-sided slopes differ: move the
    point then.
    """
    check_part(f, args, order, rtol, atol, np.random.default_rng(seed), float)


def check_part(
    f: Callable, args: Any, order: int, rtol: float, atol: float, rng: np.random.Generator, total: Callable[[float], float]
) -> None:
    """``check_grads`` of a function of which ``f`` is a part: ``total`` adds up the numbers of all parts.

    Where several processes compute one function together, a process has only some of its arguments and results, and sums over
    all of them are sums of what each has.
    """
    _single, points = _arguments("check_grads", f, args)
    raw = [a._data if isinstance(a, Box) else a for a in points]
    for i, a in enumerate(raw):
        if a.dtype != np.float64:
            raise TypeError(f"check_grads expected float64 arguments, got {a.dtype} at position {i}")
    if order < 1:
        raise ValueError(f"check_grads expected an order of at least 1, got {order}")
    _check(f, raw, order, rtol, atol, rng, total, 1)


def _check(
    f: Callable,
    points: list,
    order: int,
    rtol: float,
    atol: float,
    rng: np.random.Generator,
    total: Callable[[float], float],
    level: int,
) -> None:
    def like(x: Any) -> Any:
        return to_device(np.asarray(rng.standard_normal(x.shape)), "cpu" if isinstance(x, np.ndarray) else "cuda")

    directions = [like(x) for x in points]
    outs = _outputs("check_grads", f, [Tensor(x) for x in points])
    weights = [like(o._data) for o in outs]

    def along(t: float) -> float:
        values = _outputs("check_grads", f, [Tensor(as_array(x + t * d)) for x, d in zip(points, directions, strict=True)])
        return total(sum(float((w * o._data).sum()) for w, o in zip(weights, values, strict=True)))

    here = along(0.0)
    forward, back = (along(_STEP) - here) / _STEP, (here - along(-_STEP)) / _STEP
    forward2, back2 = (along(_STEP / 2) - here) / (_STEP / 2), (here - along(-_STEP / 2)) / (_STEP / 2)
    numeric = (4.0 * (forward2 + back2) / 2.0 - (forward + back) / 2.0) / 3.0

    leaves = [Tensor(x.copy(), None, True) for x in points]
    values = _outputs("check_grads", f, leaves)
    tracked = [(o, w) for o, w in zip(values, weights, strict=True) if o.requires_grad]

    def by_rules(record: bool) -> float:
        """The slope by the rules: those that run on raw arrays, or those that are recorded."""
        if not tracked:
            return total(0.0)
        given = [Tensor(w) for _, w in tracked]
        found = grad([o for o, _ in tracked], leaves, given, retain_graph=True, create_graph=record, allow_unused=True)
        return total(sum(float((g._data * d).sum()) for g, d in zip(found, directions, strict=True) if g is not None))

    # A smooth function's two one-sided slopes come half as close when the step is halved; a kink's stay apart, a jump's part.
    noise = 1e-7 * (1.0 + abs(numeric)) + 1e-11 * abs(here) / _STEP
    if abs(forward2 - back2) > max(0.75 * abs(forward - back), noise) or abs(forward + back - forward2 - back2) > 1e-3 * (
        noise + abs(forward) + abs(back)
    ):
        raise NonSmoothPoint(
            f"the function is not smooth near this point at order {level}: along a random direction its slope is {back2:.6g} "
            f"on one side and {forward2:.6g} on the other; move the arguments away from kinks"
        )
    for record in (False, True) if level < order else (False,):
        analytic = by_rules(record)
        if not abs(analytic - numeric) <= atol + rtol * abs(numeric):
            raise AssertionError(
                f"derivative of order {level}{', recorded' if record else ''}: {analytic!r} by the rules, {numeric!r} by "
                f"finite differences (argument shapes {[x.shape for x in points]})"
            )
    if level < order:
        count = len(points)

        def gradient(*both: Tensor) -> tuple:
            xs = [x if x.requires_grad else x.detach().requires_grad_() for x in both[:count]]
            ys = _outputs("check_grads", f, xs)
            pairs = [(y, w) for y, w in zip(ys, both[count:], strict=True) if y.requires_grad]
            if not pairs:
                return ()
            gs = grad([y for y, _ in pairs], xs, [w for _, w in pairs], create_graph=True, allow_unused=True)
            return tuple(g for g in gs if g is not None)

        if tracked:
            _check(gradient, [*points, *weights], order, rtol, atol, rng, total, level + 1)


def _arguments(name: str, f: Callable, args: Any) -> tuple[bool, list[Any]]:
    """Whether ``args``, of the function f, is one Tensor or array, and all of them."""
    if not callable(f):
        raise TypeError(f"{name} expected a function first, got {type_name(f)}")
    return _several(name, "args", args)


def _several(name: str, what: str, values: Any) -> tuple[bool, list[Any]]:
    """Whether this is one Tensor or array, and all of them."""
    single = hasattr(values, "shape") or not hasattr(values, "__iter__")
    found = [values] if single else list(values)
    for i, value in enumerate(found):
        shape_of(name, value, what if single else f"{what}[{i}]")
    return single, found


def _outputs(name: str, f: Callable, args: Sequence[Tensor], several: bool = True) -> list[Tensor]:
    """What f returns: one Tensor, or also a tuple of ``several``."""
    out = f(*args)
    outs = list(out) if several and isinstance(out, (tuple, list)) else [out]
    for o in outs:
        if not isinstance(o, Tensor):
            raise TypeError(
                f"{name} expected a function that returns {'Tensors' if several else 'a Tensor'}, got {type_name(o)}"
            )
    return outs


def _leaf(x: Any) -> Tensor:
    """x itself if a gradient can be taken for it, else a copy that requires one."""
    if isinstance(x, Tensor) and x.requires_grad:
        return x
    return Tensor((x._data if isinstance(x, Box) else x).copy()).requires_grad_()


def jacobian(f: Callable, args: Any, create_graph: bool = False) -> Any:
    """All derivatives of ``f(*args)``: a Tensor of shape ``output.shape + arg.shape``, or a tuple of them for several args.

    One backward walk for each element of the output; with create_graph the result can itself be differentiated.
    """
    single, points = _arguments("jacobian", f, args)
    leaves = [_leaf(a) for a in points]
    with core.enable_grad():
        [out] = _outputs("jacobian", f, leaves, several=False)
        flat = out.reshape(-1)
        rows: list[list[Tensor]] = [[] for _ in leaves]
        for i in range(flat.shape[0]):
            found: Sequence[Any] = [None] * len(leaves)
            if flat.requires_grad:
                found = grad(flat[i], leaves, retain_graph=True, create_graph=create_graph, allow_unused=True)
            for row, g, leaf in zip(rows, found, leaves, strict=True):
                row.append(Tensor(xp_of(leaf._data).zeros_like(leaf._data)) if g is None else g)
        whole = [_stacked(row, leaf).reshape(*out.shape, *leaf.shape) for row, leaf in zip(rows, leaves, strict=True)]
    return whole[0] if single else tuple(whole)


def _stacked(rows: list[Tensor], leaf: Tensor) -> Tensor:
    return stack(rows) if rows else Tensor(xp_of(leaf._data).zeros((0, *leaf.shape), leaf.dtype))


def hvp(f: Callable, args: Any, vectors: Any) -> Any:
    """The Hessian of the scalar ``f(*args)`` times ``vectors`` (of the args' shapes), by differentiating twice.

    A Tensor, or a tuple of them for a sequence of args. Pearlmutter 1994.
    """
    single, points = _arguments("hvp", f, args)
    leaves = [_leaf(a) for a in points]
    given = [v if isinstance(v, Box) else Tensor(v) for v in _several("hvp", "vectors", vectors)[1]]
    if [v._data.shape for v in given] != [leaf.shape for leaf in leaves]:
        raise ValueError(f"hvp expected vectors of shapes {[t.shape for t in leaves]}, got {[v._data.shape for v in given]}")
    for leaf, v in zip(leaves, given, strict=True):
        need_one_device("hvp", args=leaf, vectors=v)
    with core.enable_grad():
        [out] = _outputs("hvp", f, leaves, several=False)
        if out.size != 1:
            raise ValueError(f"hvp expected a function of one value, got an output of shape {out.shape}")
        first = grad(out, leaves, create_graph=True, allow_unused=True)
        pairs = [(g, v) for g, v in zip(first, given, strict=True) if g is not None and g.requires_grad]
        found: Sequence[Any] = [None] * len(leaves)
        if pairs:
            found = grad([g for g, _ in pairs], leaves, [v for _, v in pairs], allow_unused=True)
    whole = [
        Tensor(xp_of(leaf._data).zeros_like(leaf._data)) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    ]
    return whole[0] if single else tuple(whole)


# ----- anomalies

_PACKAGE = __file__.rpartition(os.sep)[0] + os.sep  # (pathlib takes 3 ms to import)


def _calling_line() -> str:
    """File and line of the innermost frame outside this package."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return "an unknown line" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _trouble(x: Any) -> str | None:
    """ "NaN", "Inf" or None."""
    if not hasattr(x, "dtype") or x.dtype.kind != "f":
        return None
    xp = xp_of(x)
    if bool(to_numpy(xp.isfinite(x).all())):
        return None
    return "NaN" if bool(to_numpy(xp.isnan(x).any())) else "Inf"


class _AnomalyDetector(Listener):
    def __init__(self) -> None:
        self.lines: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()

    def apply(self, name: str, inputs: tuple, options: dict, out: Any, aux: Any, node: Node | None) -> None:
        line = _calling_line()
        if node is not None:
            self.lines[node] = line
        trouble = _trouble(out)
        if trouble:
            blamed = next((f"; its input {i} already had {t}" for i, x in enumerate(inputs) if (t := _trouble(x))), "")
            raise FloatingPointError(f"{name}, called at {line}, produced {trouble} in the forward pass{blamed}")

    def contribution(self, node: Node, parent: Any, value: Any) -> None:
        raw = value.value if isinstance(value, core.AddAt) else value
        trouble = _trouble(raw._data if isinstance(raw, Box) else raw)
        if trouble:
            line = self.lines.get(node, "a line outside detect_anomaly()")
            raise FloatingPointError(f"the gradient of {node.name}, called at {line}, produced {trouble} in the backward pass")


@contextmanager
def detect_anomaly():
    """In this block raise FloatingPointError at the first NaN or Inf, with the operation and the line of its forward call.

    Checks every result and every gradient, so it is slow, and waits for CUDA at every operation: for looking, not for training.
    """
    with listening(_AnomalyDetector()):
        yield
