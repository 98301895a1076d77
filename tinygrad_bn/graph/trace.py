"""``trace()``: the graph behind a tensor, without a recording."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..backend import type_name
from ..core import Box, Node
from .arrays import frozen, host_copy
from .names import Names
from .record import kept_by
from .tape import Leaf, Ref, Step, Tape


def trace(tensor: Any, model: Any = None) -> Tape:
    """The graph that a tensor points at, as a tape to draw: also one of gradients, made with ``create_graph=True``.

    ``model`` names parameters and buffers by their paths. A graph keeps only what its rules need: other values are None, and
    there are no source lines, module paths or times. A step whose graph was freed stands alone, and says so. Raises TypeError
    for what is no Tensor, and ValueError for one whose graph is gone.
    """
    if not isinstance(tensor, Box):
        raise TypeError(f"graph.trace expected a Tensor, got {type_name(tensor)}")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"graph.trace expected a Module or None as model, got {type_name(model)}")
    names = Names(model)
    tape = Tape(model)
    refs: dict[int, int] = {}  # by the identity of a Node, a leaf or an array
    raw = tensor._data
    if tensor.node is None:
        _leaf(tape, names, refs, raw, tensor, raw.shape, str(raw.dtype))
        names.number(tape.leaves)
        return tape
    if tensor.node.inputs is None:
        raise ValueError(
            f"graph.trace: the graph behind this {tensor.node.name} was freed by backward; trace it before, or pass "
            "retain_graph=True to backward"
        )
    nodes = _behind(tensor.node)
    shapes, values = {id(tensor.node): raw.shape}, {id(tensor.node): raw}
    for node in nodes:
        for parent, x in zip(node.parents, node.inputs or (), strict=bool(node.inputs)):
            if type(parent) is Node:
                shapes[id(parent)] = x.shape
                if hasattr(x, "dtype"):
                    values[id(parent)] = x
    for node in nodes:
        inputs = [_ref(tape, names, refs, x, p, node) for x, p in zip(node.inputs or (), node.parents, strict=True)]
        value = node.out if node.out is not None else values.get(id(node))
        step = Step(
            id=tape.next_id,
            op=names.operation(node),
            arguments=list(names.arguments(node.name, len(inputs), node)) if inputs else [],
            inputs=inputs,
            options={k: frozen(v) for k, v in node.options.items()},
            value=None if value is None else host_copy(value),
            aux=frozen(node.aux),
            shape=shapes[id(node)],
            dtype=str(node.dtype),
            order=len(tape.steps),
            saved=kept_by(node) if inputs else [],
            freed=node.inputs is None,
        )
        tape.add(step)
        refs[id(node)] = step.id
    names.number(tape.leaves)
    return tape


def _behind(root: Node) -> list[Node]:
    """All nodes behind one, the oldest first."""
    stack, seen = [root], {root}
    while stack:
        for parent in stack.pop().parents:
            if type(parent) is Node and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda node: node.number)


def _ref(tape: Tape, names: Names, refs: dict[int, int], x: Any, parent: Any, node: Node) -> Ref:
    if type(parent) is Node:
        return refs[id(parent)]
    if parent is not None:
        found = refs.get(id(parent))
        return _leaf(tape, names, refs, parent._data, parent, parent.shape, str(parent.dtype)) if found is None else found
    if x is None or (not hasattr(x, "dtype") and not hasattr(x, "shape")):
        return float(x) if isinstance(x, (bool, int, float)) else None
    if not hasattr(x, "dtype"):  # a stand-in: a constant that no rule needs, of which only the shape is known
        return _leaf(tape, names, {}, None, None, x.shape, str(node.dtype))
    found = refs.get(id(x))
    return _leaf(tape, names, refs, x, None, x.shape, str(x.dtype)) if found is None else found


def _leaf(tape: Tape, names: Names, refs: dict[int, int], x: Any, box: Any, shape: tuple[int, ...], dtype: str) -> int:
    value = None if x is None else host_copy(x)
    name, kind = names.of(x, box, value, in_rule=value is None)
    grad = None if box is None or box._grad is None else host_copy(box._grad)
    leaf = Leaf(tape.next_id, name, kind, value, shape, dtype, box is not None and box._requires_grad, value)
    if grad is not None:
        leaf.grads[0] = grad
    tape.add(leaf)
    refs[id(x if box is None else box)] = leaf.id
    return leaf.id
