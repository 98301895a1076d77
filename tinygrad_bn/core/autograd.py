"""What a user asks for: ``backward`` and ``grad``. Both check what they were given, and start the walk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import ARRAY_TYPES, device_of, type_name, xp_of
from . import graph
from .graph import Box
from .modes import recording
from .walk import walk_back


def _seed(t: Any, given: Any, what: str) -> Any:
    """The gradient to start from at output ``t``: what was given, checked, or one for a single element."""
    if not isinstance(t, Box):
        raise TypeError(f"{what} expected a Tensor, got {type(t).__name__}")
    if not t._requires_grad:
        raise RuntimeError(
            f"{what}: this tensor of shape {t._data.shape} does not require grad; was it made under no_grad(), detached, or "
            "made from tensors none of which requires grad?"
        )
    if given is None:
        if t._data.size != 1:
            raise ValueError(
                f"{what} of a tensor of shape {t._data.shape} needs a gradient of that shape; without one it expects a "
                "single element"
            )
        return xp_of(t._data).ones(t._data.shape, t._data.dtype)
    raw = given._data if isinstance(given, Box) else given
    if type(raw) not in ARRAY_TYPES:
        raise TypeError(f"{what} expected a gradient that is a Tensor or an array, got {type(given).__name__}")
    if raw.shape != t._data.shape:
        raise ValueError(f"{what} expected a gradient of shape {t._data.shape}, got {raw.shape}")
    if type(raw) is not type(t._data):
        raise ValueError(f"{what} expected a gradient on {device_of(t._data)}, got one on {device_of(raw)}")
    return given


def _start(t: Any, given: Any, what: str, record: bool) -> Any:
    """``_seed``, as the walk wants it: a Tensor if it is recorded, else an array."""
    seed = _seed(t, given, what)
    if record:
        return seed if isinstance(seed, Box) else graph.box_type(seed)
    return seed._data if isinstance(seed, Box) else seed


def backward(tensor: Box, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
    """Add the gradient of ``tensor`` (of ``sum(tensor * gradient)``, if one is given) to ``.grad`` of every leaf behind it.

    The graph is freed on the way unless ``retain_graph`` (default: the value of ``create_graph``). With ``create_graph``
    the gradients are themselves recorded, and can be differentiated again.
    """
    with recording(create_graph):
        seeds = [_start(tensor, gradient, "backward()", create_graph)]
        walk_back([tensor], seeds, None, create_graph if retain_graph is None else retain_graph, create_graph)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple:
    """The gradients of the outputs' sum, weighted by ``grad_outputs``, for each of ``inputs``, as a tuple of Tensors.

    ``outputs`` and ``inputs`` are a Tensor or a sequence of them; inputs may be results of operations. ``.grad`` of no
    tensor changes. An input that the outputs do not depend on raises, or gives None with ``allow_unused``.
    """
    outs, ins = _tensors("outputs", outputs), _tensors("inputs", inputs)
    one = grad_outputs is None or isinstance(grad_outputs, Box) or type(grad_outputs) in ARRAY_TYPES
    if not one and not isinstance(grad_outputs, (list, tuple)):
        got = type(grad_outputs).__name__
        raise TypeError(f"grad() expected grad_outputs that are a Tensor, an array or a sequence of them, got {got}")
    given = [None] * len(outs) if grad_outputs is None else [grad_outputs] if one else list(grad_outputs)
    if not outs:
        raise ValueError("grad() expected at least one output, got none")
    if len(given) != len(outs):
        raise ValueError(f"grad() got {len(outs)} outputs and {len(given)} grad_outputs; expected as many of each")
    for position, t in enumerate(ins):
        if not isinstance(t, Box):
            raise TypeError(f"grad() expected Tensors as inputs, got {type_name(t)} at position {position}")
        if not t._requires_grad:
            raise RuntimeError(f"grad(): input {position}, of shape {t._data.shape}, does not require grad")

    def unused(position: int) -> None:
        if not allow_unused:
            raise RuntimeError(
                f"grad(): the outputs do not depend on input {position}, of shape {ins[position]._data.shape}; "
                "pass allow_unused=True to get None for it"
            )

    with recording(create_graph):
        seeds = [_start(t, g, "grad()", create_graph) for t, g in zip(outs, given, strict=True)]
        targets = [t if t.node is None else t.node for t in ins]
        retain = create_graph if retain_graph is None else retain_graph
        found = walk_back(outs, seeds, targets, retain, create_graph, unused)
    for position, g in enumerate(found):
        if g is None:
            unused(position)  # there is a way, but a rule on it gives no gradient
    return tuple(found)


def _tensors(what: str, given: Any) -> list[Any]:
    if isinstance(given, Box):
        return [given]
    if not isinstance(given, Iterable) or hasattr(given, "dtype"):
        raise TypeError(f"grad() expected {what} that are a Tensor or a sequence of them, got {type_name(given)}")
    return list(given)
