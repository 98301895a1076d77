"""The walk backwards through a graph, and the three operations that it needs itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from sys import getrefcount
from typing import Any

from ..backend import ARRAY_TYPES, as_array, device_of, leased, xp_of, zeros
from . import graph, modes
from .graph import Absent, AddAt, Box, LeafHooks, Node
from .primitive import Primitive, primitive

# ----- operations of the walk's own


@primitive
def sum_to(x, *, shape):
    """Sum a broadcast array back to ``shape``: the adjoint of ``broadcast_to``."""
    lead = len(x.shape) - len(shape)
    axes = tuple(i for i, n in enumerate(x.shape) if i < lead or (n != 1 and shape[i - lead] == 1))
    return x.sum(axis=axes, keepdims=True).reshape(shape)


@primitive
def broadcast_to(x, *, shape):
    """x, repeated along new and unit axes to ``shape`` (a read-only view for a raw array)."""
    return xp_of(x).broadcast_to(x, shape)


@primitive
def cast(x, *, dtype):
    """x in another floating dtype. The gradient goes back in the dtype of x."""
    return x.astype(dtype)


sum_to.defvjp(lambda g, _out, _x, *, shape: broadcast_to(g, shape=_x.shape))
broadcast_to.defvjp(lambda g, _out, _x, *, shape: sum_to(g, shape=_x.shape))
cast.defvjp(lambda g, _out, _x, *, dtype: g)  # the walk brings it into the dtype of x


# ----- the walk


def _reachable(roots: Iterable[Node]) -> list[Node]:
    """All nodes behind the roots, the oldest first, each checked to be still fit to go backward."""
    stack = list(dict.fromkeys(roots))
    seen = set(stack)
    order = []
    while stack:
        node = stack.pop()
        order.append(node)
        if node.inputs is None:
            raise RuntimeError(
                f"the graph behind this {node.name} was freed by an earlier backward; pass retain_graph=True to that one to "
                "go through it again"
            )
        for parent in node.parents:
            if type(parent) is Node and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    order.sort(key=attrgetter("number"))
    if order and graph.last_change > order[0].number:
        for node in order:
            _check_unchanged(node)
    return order


def _check_unchanged(node: Node) -> None:
    """Raise if a value that the node kept, of a leaf or of a result, was changed in place since."""
    leaves = [(i, p.version_cell()) for i, p in enumerate(node.parents) if isinstance(p, Box)] + (node.constants or [])
    needs = sum(1 << i for i, p in enumerate(node.parents) if p is not None)
    _, unneeded = node.primitive.plan(needs, len(node.parents))  # kept all the same while somebody listens
    for i, parent in enumerate(node.parents):
        if type(parent) is Node and parent.version is not None and i not in unneeded:
            _check_result(parent, node.number)
    if node.version is not None and node.out is not None:
        _check_result(node, node.number)
    for argument, cell in leaves:
        if argument in unneeded:
            continue
        value = node.inputs[argument] if node.inputs is not None else None
        if cell[0] > node.number and value is not None and type(value) is not Absent:
            raise RuntimeError(
                f"a leaf of shape {value.shape}, which {node.name} kept as its argument "
                f"{node.primitive.argument_names(len(node.parents))[argument]!r}, was changed in place after the forward pass; "
                "run the forward pass again, or change it (optimizer.step(), .data = ..., load_state_dict) only after backward"
            )


def _check_result(node: Node, number: int) -> None:
    """Raise if the result of ``node``, which a rule recorded under ``number`` needs, was changed through an alias."""
    if node.version is not None and node.version[0] > number:
        raise RuntimeError(
            f"the result of {node.name}, which a gradient rule needs, was changed in place after the forward pass; run the "
            "forward pass again, or change a copy"
        )


def _boxed_inputs(node: Node) -> list:
    """The kept inputs as Tensors linked into the graph, for a rule whose own operations are recorded."""
    boxed = []
    for value, parent in zip(node.inputs or (), node.parents, strict=True):
        if parent is None or type(value) is Absent:
            boxed.append(value)
        elif type(parent) is Node:
            boxed.append(graph.box_type(value, parent, True))
        else:
            boxed.append(parent)  # a leaf, whose version was checked
    return boxed


def _references() -> int:
    """What getrefcount says of an array that only the table of gradients, and the variable it was just read into, hold."""
    table = {None: object()}
    before = table.get(None)
    return getrefcount(before)


_ALONE = min(_references(), 3)  # less in newer versions of Python; more, and then too much, only while a debugger looks on


class _Walk:
    """One run backwards: a table of gradients, keyed by Node or leaf, each popped when used.

    Contributions are added in place if nobody else holds the array: not another key of the table (``add`` gives one gradient to
    both its inputs), not a node or a view, not the user's hook. The reference count knows them all; an array that shares memory
    by other means (a pointer handed to C) it does not know.
    """

    def __init__(self, record: bool):
        self.record = record
        self.table: dict[Any, Any] = {}

    def add(self, key: Any, c: Any, shape: tuple[int, ...], dtype: Any) -> None:
        """Add the contribution ``c``, brought to ``shape`` and ``dtype``, to the gradient of ``key``."""
        if type(c) is AddAt:
            if self.record:
                raise TypeError("a rule that is recorded gave an AddAt, expected a Tensor; give AddAt from a fused_vjp only")
            self._add_at(key, c, shape, dtype)
            return
        if self.record and not isinstance(c, Box):
            c = graph.box_type(c)
        if c.shape != shape:
            c = sum_to(c, shape=shape)
        if c.dtype is not dtype and c.dtype != dtype:
            c = cast(c, dtype=dtype)
        before = self.table.get(key)
        self.table[key] = c if before is None else before + c

    def _add_at(self, key: Any, c: AddAt, shape: tuple[int, ...], dtype: Any) -> None:
        value = c.value if c.value.dtype == dtype else c.value.astype(dtype)
        total = self.table.get(key)
        if total is None:
            total = zeros(shape, dtype, like=value)
        elif not (total.base is None or leased(total)) or getrefcount(total) > _ALONE:
            total = total.copy()
        total = self.table[key] = as_array(total)
        if _selects_once(c.index):
            total[c.index] += value
        else:
            xp_of(total).add.at(total, c.index, value)

    def take(self, key: Any) -> Box:
        """The gradient of ``key``, after the hooks of a leaf, as a Tensor on memory that is nobody else's."""
        g = self.table[key]
        if self.record:
            g = cast(g, dtype=g._data.dtype)  # a recorded copy
        elif type(g) not in ARRAY_TYPES or not (g.base is None or leased(g)) or getrefcount(g) > _ALONE:
            g = graph.boxed(as_array(g.copy()), None, False)  # (NumPy's 0-d results are scalars)
        else:
            g = graph.boxed(g, None, False)
        del self.table[key]
        if type(key) is not Node and key._hooks is not None and key._hooks.on_grad:
            for hook in list(key._hooks.on_grad):  # a hook may remove itself
                g = _replaced(g, hook(g))
            g = cast(g, dtype=g._data.dtype)  # the hook may have kept the one that it saw
        return g

    def through_hooks(self, node: Node, g: Any) -> Any:
        """The gradient of ``node`` after the user's hooks, which may replace it; kept for retain_grad()."""
        hooks = list(node.wishes.on_grad)  # type: ignore[union-attr]
        if not self.record:
            g = graph.box_type(as_array(g.copy() if hooks else g))  # a hook may write into what it gets
        for hook in hooks:
            g = _replaced(g, hook(g))
        retained = node.wishes.retained  # type: ignore[union-attr]
        tensor = retained() if retained is not None else None
        if tensor is not None:
            tensor._grad = g if self.record else graph.box_type(g._data.copy())
        return g if self.record else g._data

    def for_leaf(self, leaf: Box) -> Box:
        """``take``, for a leaf whose ``.grad`` it can be added to."""
        old = leaf._grad
        if old is not None:
            was, now = ((a.shape, a.dtype, device_of(a)) for a in (old._data, leaf._data))
            if was != now:
                raise ValueError(
                    f"backward() found a .grad of shape {was[0]} and {was[1]} on {was[2]}, from before its leaf became one of "
                    f"shape {now[0]} and {now[1]} on {now[2]}; call zero_grad() first"
                )
        return self.take(leaf)

    def deliver(self, leaf: Box, g: Box) -> None:
        """Give a leaf its gradient of this walk: added to ``.grad``, then told to who asked to hear."""
        if leaf._grad is None:
            leaf._grad = g
        elif self.record or leaf._grad.node is not None:
            leaf._grad = leaf._grad + g  # type: ignore[operator]
        else:
            leaf._grad = graph.box_type(as_array(leaf._grad._data + g._data))  # a new one: the user may hold the old
        if modes.hooks is not None:
            modes.hooks.leaf_ready(leaf, g._data)
        if leaf._hooks is not None:
            for hook in list(leaf._hooks.after_accumulate):
                hook(leaf)


def _replaced(g: Box, answer: Any) -> Box:
    """What a gradient hook made of g: None keeps it."""
    if answer is None:
        return g
    if not isinstance(answer, Box):
        answer = graph.box_type(as_array(answer))
    if answer._data.shape != g._data.shape:
        raise ValueError(f"a gradient hook was given shape {g._data.shape}, but returned shape {answer._data.shape}")
    if answer._data.dtype != g._data.dtype or type(answer._data) is not type(g._data):
        raise ValueError(
            f"a gradient hook was given {g._data.dtype} on {device_of(g._data)}, but returned {answer._data.dtype} on "
            f"{device_of(answer._data)}"
        )
    return answer


def _selects_once(index: Any) -> bool:
    """Whether NumPy's basic indexing takes this index: then it selects no element twice."""
    items = index if type(index) is tuple else (index,)
    return all(i is None or i is Ellipsis or (isinstance(i, (int, slice)) and not isinstance(i, bool)) for i in items)


def walk_back(
    outputs: Sequence[Box],
    seeds: Sequence[Any],
    targets: Sequence[Any] | None,
    retain: bool,
    record: bool,
    unreached: Callable[[int], None] = lambda _: None,
) -> list[Any]:
    """Run the rules from ``outputs`` backwards.

    With ``targets`` (Nodes and leaves) the rules on the way to them run, and their gradients are returned, None where there is
    no way; ``unreached`` hears of these before any rule runs, and may raise. Without, all rules run, and every leaf gets its
    ``.grad``.
    """
    walk = _Walk(record)
    add, table, hooks = walk.add, walk.table, modes.hooks
    order = _reachable([t.node for t in outputs if t.node is not None])
    useful: set | None = None  # what a gradient is wanted for
    on_the_way: set[Node] = set()  # the nodes whose rules lead to a target
    edges: dict[Any, int] | None = None
    if targets is not None:
        reached = {t if t.node is None else t.node for t in outputs}.union(order, *(node.parents for node in order))
        for position, target in enumerate(targets):
            if target not in reached:
                unreached(position)
        useful = set(targets)
        for node in order:
            if not useful.isdisjoint(node.parents):
                useful.add(node)
                on_the_way.add(node)
    else:
        edges = _edges_to_leaves(order)
    found: dict[Any, Any] = dict.fromkeys(targets or ())

    for t, seed in zip(outputs, seeds, strict=True):
        key = t if t.node is None else t.node
        if useful is None or key in useful:
            add(key, seed, t._data.shape, t._data.dtype)

    while order:
        node = order.pop()
        if useful is not None and node not in useful:
            continue
        g = table.pop(node, None)
        if g is not None:
            if node.wishes is not None:
                g = walk.through_hooks(node, g)
            if useful is not None:
                if node in found:
                    found[node] = g
                if node not in on_the_way:
                    continue
            if hooks is not None:
                hooks.before_rule(node, g)
            me = node.primitive
            inputs: Any = _boxed_inputs(node) if record else node.inputs
            out = graph.box_type(node.out, node, True) if record and node.out is not None else node.out
            options = {**node.options, "aux": node.aux} if me.has_aux else node.options
            joint = me.joint if record or me.fused is None else me.fused
            if joint is me.fused and me.fused_asks:
                options = {**options, "wanted": [p is not None and (useful is None or p in useful) for p in node.parents]}
            together = None if joint is None else joint(g, out, *inputs, **options)
            if together is not None and (type(together) not in (tuple, list) or len(together) != len(inputs)):
                raise _wrong_count(me, together, len(inputs))
            i = -1
            for parent in node.parents:
                i += 1
                if parent is None or (useful is not None and parent not in useful):
                    continue
                if together is not None:
                    c = together[i]
                else:
                    rule = me.rules[i]
                    if rule is None:
                        continue
                    c = rule(g, out, *inputs, **options) if options else rule(g, out, *inputs)
                if c is None:
                    continue
                if hooks is not None:
                    hooks.contribution(node, parent, c)
                dtype = parent.dtype if type(parent) is Node else parent._data.dtype
                if record or type(c) is AddAt or getattr(c, "dtype", None) is not dtype or c.shape != inputs[i].shape:
                    _check_contribution(me, i, c, inputs)
                    add(parent, c, inputs[i].shape, dtype)
                    continue
                # What add() does, without a call, in the case that is nearly every case; and in place where it can be.
                before = table.get(parent)
                if before is None:
                    table[parent] = c
                elif (before.base is None or leased(before)) and getrefcount(before) == _ALONE:
                    before += c
                    table[parent] = before  # (NumPy's 0-d results are scalars, and are not changed in place)
                else:
                    table[parent] = before + c
        if edges is not None:
            for parent in node.parents:
                if parent in edges:
                    edges[parent] -= 1
                    if edges[parent] == 0 and parent in table:
                        walk.deliver(parent, walk.for_leaf(parent))
        if not retain:
            node.free()

    g = c = before = together = None  # so that take() counts no references of this function
    if targets is None:
        take, for_leaf = walk.take, walk.for_leaf
        # First all, in case a hook raises.
        ready = [(leaf, take(leaf) if leaf._grad is None else for_leaf(leaf)) for leaf in list(table)]
        for leaf, total in ready:
            if leaf._grad is None and leaf._hooks is None and hooks is None:
                leaf._grad = total
            else:
                walk.deliver(leaf, total)
    else:
        table.update({key: value for key, value in found.items() if value is not None})  # results, beside leaves
        found.clear()
    if hooks is not None:
        hooks.backward_end()
    if targets is None:
        return []
    taken = {key: walk.take(key) for key in dict.fromkeys(targets) if key in table}
    return [taken.get(key) for key in targets]


def _wrong_count(me: Primitive, together: Any, count: int) -> TypeError:
    if type(together) in (tuple, list):
        return TypeError(f"the rule of {me.name} gave {len(together)} gradients, expected one for each of {count} inputs")
    got = type(together).__name__
    return TypeError(f"the rule of {me.name} gave {got}, expected a tuple of one gradient for each of {count} inputs")


def _check_contribution(me: Primitive, i: int, c: Any, inputs: Sequence[Any]) -> None:
    """Raise unless ``c`` is a gradient that the input's shape could have been broadcast to."""
    if type(c) is AddAt:
        return
    argument, shape = me.argument_names(len(inputs))[i], inputs[i].shape
    if not hasattr(c, "dtype"):
        raise TypeError(
            f"the rule of {me.name} gave a gradient that is an {type(c).__name__} for {argument!r}, expected an array"
        )
    tail = c.shape[len(c.shape) - len(shape) :]
    if len(c.shape) < len(shape) or any(n != m and m != 1 for n, m in zip(tail, shape, strict=True)):
        raise ValueError(f"the rule of {me.name} gave a gradient of shape {c.shape} for {argument!r} of shape {shape}")


def _edges_to_leaves(order: list[Node]) -> dict[Any, int] | None:
    """How many edges lead to each leaf, if somebody wants to hear of a leaf as soon as its last contribution is in."""
    if modes.hooks is None and not LeafHooks.exist:
        return None
    leaves = [p for node in order for p in node.parents if p is not None and type(p) is not Node]
    if modes.hooks is None and not any(leaf._hooks is not None and leaf._hooks.after_accumulate for leaf in leaves):
        return None
    edges: dict[Any, int] = {}
    for leaf in leaves:
        edges[leaf] = edges.get(leaf, 0) + 1
    return edges
