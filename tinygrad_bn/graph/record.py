"""``record()``: a listener that writes down what the engine does. It touches no operation."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from os.path import basename, sep
from time import perf_counter
from typing import Any

import numpy as np

from .. import core, cuda, nn
from ..backend import type_name
from ..core import AddAt, Box, Listener, Node, Primitive, listening
from .arrays import arrived, frozen, host_copy, same, shares
from .names import Names
from .tape import Call, Leaf, Ref, Step, Tape, Visit

_PACKAGE = core.__file__.rpartition(sep)[0].rpartition(sep)[0] + sep
_STUDIES = (__file__.rpartition(sep)[0] + sep, _PACKAGE + "__main__.py")  # what stands above the engine, as a user's code does
_PRIMITIVE = sys.modules[Primitive.__module__].__file__
_WALK = sys.modules[core.sum_to.__module__].__file__


def record(model: Any = None) -> AbstractContextManager[Tape]:
    """Write down every operation and every gradient of this block: ``with graph.record(model) as tape: ...``.

    ``model`` is a Module whose paths name parameters, buffers and modules; without one, a module that is called names its own,
    with its class's name in front. Only what the calling thread does is written down, also under ``no_grad``. Arrays are
    copied to the host, so a recording takes as much memory again as the run's results; it changes no number. Recording ends
    with the block, also by an error, and leaves what was written so far.

    Times are from one event to the next, without the recorder's own: an operation's has in it the Python code since the event
    before (another operation, a module's call or return). On CUDA each event waits for the device.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"graph.record expected a Module or None, got {type_name(model)}")
    return recording(Recorder(model))


@contextmanager
def recording(recorder: Recorder) -> Iterator[Tape]:
    """A block that the recorder hears."""
    with listening(recorder):
        try:
            yield recorder.tape
        finally:
            recorder.finish()


class Recorder(Listener):
    """Fills a Tape. Steps are told by their Node, arrays by their identity; it keeps both alive.

    ``studied``: a source file of this package whose lines are to be named as a user's are. ``named``: tensors with the names
    and kinds that their leaves are to have.
    """

    def __init__(self, model: Any = None, studied: str = "", named: Sequence[tuple[Box, str, str]] = ()):
        self.tape = Tape(model)
        self._names = Names(model)
        for box, name, kind in named:
            self._names.know(box, name, kind)
        self._studied = studied
        self._thread = threading.get_ident()
        self._alive: list[Any] = []  # what the next three tell apart by identity
        self._by_node: dict[int, int] = {}
        self._by_array: dict[int, int] = {}
        self._by_box: dict[int, list[int]] = {}  # the versions of a leaf
        self._sources: dict[int, Any] = {}  # by a leaf's id: the Box or array that it was
        self._calls: list[tuple[Any, int]] = []
        self._rule: Visit | None = None  # the rule that runs, and
        self._node: Node | None = None
        self._left: list[int] = []  # the positions for which it may still give a contribution
        self._walk: int | None = None  # the walk that runs, and
        self._last = 0  # the number of the node that it was at
        self._watched = False  # whether the walk is itself recorded
        self._sums: dict[int, np.ndarray] = {}
        self._rules = 0
        self._clock = perf_counter()

    # ----- forward

    def apply(self, name: str, inputs: tuple, options: dict, out: Any, aux: Any, node: Node | None) -> None:
        if threading.get_ident() != self._thread:
            return
        began = self._time(out)
        source, nested, walking = self._stack()
        if self._walk is not None and not walking:
            self._end_walk()  # it ended by an error
        if nested or (walking and node is None and not self._watched):  # inside a primitive, or a rule that nobody watches
            self._clock += perf_counter() - began
            return
        parents: list[Any] = [None] * len(inputs) if node is None else node.parents
        phase = "backward" if walking else "forward"
        refs = [self._ref(x, p, phase) for x, p in zip(inputs, parents, strict=True)]
        call = self._calls[-1][1] if self._calls else None
        value = host_copy(out)
        step = Step(
            id=self.tape.next_id,
            op=name if node is None else self._names.operation(node),
            arguments=list(self._names.arguments(name, len(inputs), node)),
            inputs=refs,
            options={k: frozen(v) for k, v in options.items()},
            value=value,
            aux=frozen(aux),
            shape=value.shape,
            dtype=str(value.dtype),
            order=len(self.tape.steps),
            phase=phase,
            call=call,
            module="" if call is None else self.tape.calls[call].path,
            source=source,
            rule_of=self._by_node.get(id(self._node)) if walking else None,
            requires_grad=node is not None,
            saved=[] if node is None else kept_by(node),
            view=any(shares(out, x) for x in inputs),
            forward_s=began - self._clock,
        )
        self.tape.add(step)
        self._alive.append((out, node))
        self._by_array[id(out)] = step.id
        if node is not None:
            self._by_node[id(node)] = step.id
        self._clock = perf_counter()

    def enter_module(self, module: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        path = self._names.enter(module)
        parent = self._calls[-1][1] if self._calls else None
        call = Call(len(self.tape.calls), path, type(module).__name__, parent)
        self.tape.calls.append(call)
        self._calls.append((module, call.id))
        self._clock = perf_counter()

    def exit_module(self, module: Any, out: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if self._calls and self._calls[-1][0] is module:  # not one that was entered before the recording began
            self._calls.pop()
        self._clock = perf_counter()

    def _stack(self) -> tuple[str, bool, bool]:
        """The user's line; whether inside another primitive; whether inside a walk."""
        frame: Any = sys._getframe(2)
        source, primitives, previous = "", 0, None
        walking = False
        while frame is not None and not (walking and source):
            file = frame.f_code.co_filename
            if file == _WALK:
                walking = True
            elif file == _PRIMITIVE and not walking:
                primitives += previous != _PRIMITIVE
            elif not source and (file == self._studied or not file.startswith(_PACKAGE) or file.startswith(_STUDIES)):
                source = f"{basename(file)}:{frame.f_lineno}"
            previous, frame = file, frame.f_back
        return source, primitives > 1, walking

    def _ref(self, x: Any, parent: Any, phase: str) -> Ref:
        """The id of what an operation got as an input."""
        if not hasattr(x, "dtype"):
            return float(x) if isinstance(x, (bool, int, float)) else None
        if type(parent) is Node:
            found = self._by_node.get(id(parent))
        elif parent is not None:
            found = self._by_box.get(id(parent), [None])[-1]
            if found is None:  # it may have been met without its tensor, under no_grad
                found = self._by_array.get(id(x))
                leaf = None if found is None else self.tape[found]
                if found is not None and isinstance(leaf, Leaf):
                    self._by_box[id(parent)] = [found]
                    self._alive.append(parent)
                    self._sources[found] = parent
                    leaf.requires_grad = parent._requires_grad
                else:
                    found = None
        else:
            found = self._by_array.get(id(x))
        if found is not None and same(self.tape[found].value, x):
            return found
        return self._new_leaf(x, parent, phase, None if found is None else self.tape[found])

    def _new_leaf(self, x: Any, parent: Any, phase: str, before: Step | Leaf | None) -> int:
        """A leaf for an array that was not met yet, or has changed since it was ``before``."""
        box = parent if isinstance(parent, Box) else None
        value = host_copy(x)
        if isinstance(before, Leaf):
            name, kind = self._names.next_version(before.name), before.kind
            before.after = value
        else:
            name, kind = self._names.of(x, box, value, phase == "backward")
        leaf = Leaf(self.tape.next_id, name, kind, value, value.shape, str(value.dtype), parent is not None)
        self.tape.add(leaf)
        self._alive.append((x, parent))
        self._sources[leaf.id] = x if box is None else box
        if type(parent) is Node:
            self._by_node[id(parent)] = leaf.id
        else:
            self._by_array[id(x)] = leaf.id
        if box is not None:
            self._by_box.setdefault(id(box), []).append(leaf.id)
        return leaf.id

    # ----- backward

    def before_rule(self, node: Node, g: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        now = self._time(g)
        self._charge(now)
        if self._walk is not None and node.number >= self._last:
            self._end_walk()  # walks go to ever older nodes: the one before ended by an error
        if self._walk is None:
            self._walk, self._sums = self.tape.walks, {}
            self.tape.walks += 1
        self._watched, self._last, self._node, self._rule = isinstance(g, Box), node.number, node, None
        found = self._by_node.get(id(node))
        hooked = node.wishes is not None and bool(node.wishes.on_grad)
        if found is not None:
            entry = self.tape[found]
            if isinstance(entry, Leaf):
                entry.grads[self._walk] = host_copy(g)
                entry.hooked += [self._walk] * hooked
            else:
                self._rule = Visit(self._walk, self._rules, host_copy(g), hooked=hooked)
                entry.visits.append(self._rule)
                if self.tape.loss is None:
                    self.tape.loss = entry.id
        self._rules += 1
        rules = None if node.primitive.joint is not None else node.primitive.rules
        self._left = [i for i, p in enumerate(node.parents) if p is not None and (rules is None or rules[i] is not None)]
        self._clock = perf_counter()

    def contribution(self, node: Node, parent: Any, value: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        now = self._time(value)
        self._charge(now)
        while self._left:  # they come in the order of the inputs
            i = self._left.pop(0)
            if node.parents[i] is parent:
                break
        else:
            return
        found = self._by_node.get(id(node))
        if self._rule is None or found is None:
            return
        assert node.inputs is not None
        c = arrived(value, node.inputs[i].shape, parent.dtype if type(parent) is Node else parent._data.dtype)
        ref = self.tape.step(found).inputs[i]
        if c is not None and type(ref) is int:
            self._rule.contributions[i] = c
            before = self._sums.get(ref)
            self._sums[ref] = c if before is None else before + c
        self._clock = perf_counter()

    def leaf_ready(self, leaf: Box, g: Any) -> None:
        if threading.get_ident() != self._thread or self._walk is None:
            return
        self._charge(perf_counter())
        reached = [i for i in self._by_box.get(id(leaf), []) if i in self._sums]
        for i in reached:  # more than one if it changed between two uses; then each has its own part
            entry = self.tape[i]
            assert isinstance(entry, Leaf)
            entry.grads[self._walk] = host_copy(g) if len(reached) == 1 else self._sums[i]
            entry.delivered.append(self._walk)
            entry.hooked += [self._walk] * (leaf._hooks is not None and bool(leaf._hooks.on_grad))
        self._clock = perf_counter()

    def backward_end(self) -> None:
        if threading.get_ident() != self._thread:
            return
        self._charge(perf_counter())
        if self._walk is not None:
            self._end_walk()
        self._clock = perf_counter()

    def _end_walk(self) -> None:
        """Note the gradients of what was asked for by ``grad()``: no event tells of these."""
        walk = self._walk
        assert walk is not None
        for i, total in self._sums.items():
            entry = self.tape[i]
            if isinstance(entry, Leaf):
                entry.grads.setdefault(walk, total)
            elif all(v.walk != walk for v in entry.visits):
                entry.visits.append(Visit(walk, None, total, seconds=None))
        self._walk, self._rule, self._node, self._sums, self._watched = None, None, None, {}, False

    # ----- time, and the end

    def _time(self, x: Any) -> float:
        x = x._data if isinstance(x, Box) else x.value if isinstance(x, AddAt) else x
        if not isinstance(x, (np.ndarray, np.generic, float, int)):
            cuda.synchronize()
        return perf_counter()

    def _charge(self, now: float) -> None:
        """Give the time since the last event to the rule that runs."""
        if self._rule is not None and self._rule.seconds is not None:
            self._rule.seconds += now - self._clock

    def finish(self) -> None:
        """Note how the run left its leaves. After this the recorder is good for nothing, and nobody holds it."""
        tape = self.tape
        if self._walk is not None:
            self._end_walk()
        tape.before, tape.after = self._names.before, self._names.state()
        for leaf in tape.leaves:
            if leaf.after is None:
                source = self._sources[leaf.id]
                state = tape.after.get(leaf.name) if leaf.kind == "buffer" else None
                leaf.after = host_copy(source) if state is None else state
        self._names.number(tape.leaves)


def kept_by(node: Node) -> list[str]:
    """The names of what a node keeps until backward while nobody listens: arguments, "out", "aux"."""
    count = len(node.parents)
    needs = sum(1 << i for i, p in enumerate(node.parents) if p is not None) & node.primitive.mask
    keeps_out, dropped = node.primitive.plan(needs, count)
    inputs = node.inputs or [None] * count
    names = node.primitive.argument_names(count)
    kept = [names[i] for i in range(count) if i not in dropped and getattr(inputs[i], "dtype", None) is not None]
    return kept + ["out"] * keeps_out + ["aux"] * (node.aux is not None)
