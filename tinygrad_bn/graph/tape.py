"""What a recording holds: steps (operations that ran) and leaves (arrays that no recorded operation made).

Everything here is data, copied to the host: a tape keeps no tensor, no node and no graph alive, and nothing that happens later
changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

Array = np.ndarray
Ref = int | float | None  # the id of a step or a leaf; a number (always a float, so that it is no id); None for an absent input


@dataclass(eq=False, repr=False)
class Leaf:
    """An array that went into the recorded run: a parameter, a buffer, an input or a constant.

    ``name`` is the path in the model ("0.weight"), or "input" or "constant", numbered where there are several. A leaf that
    changed between two uses (an optimizer's step) is a new leaf then, "0.weight, version 2". A *constant* is a single number, a
    mask of booleans, or an array that a gradient rule brought in; whatever else is not of a model is an *input*.
    """

    id: int
    name: str
    kind: str  # "parameter", "buffer", "input" or "constant"
    value: Array | None  # at its first use; None if the graph had let go of it (trace() only)
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool = False
    after: Array | None = None  # when it changed, or else when the recording ended
    grads: dict[int, Array] = field(default_factory=dict)  # by walk: the whole gradient that the walk brought here
    delivered: list[int] = field(default_factory=list)  # the walks that added theirs to the tensor's .grad
    hooked: list[int] = field(default_factory=list)  # the walks in which a user's hook saw it, and may have changed it

    @property
    def grad(self) -> Array | None:
        """What the recorded run added to ``.grad``; if nothing, the gradient of the first walk that came here, or None."""
        if not self.delivered:
            return next(iter(self.grads.values()), None)
        first, *others = (self.grads[walk] for walk in self.delivered)
        return sum(others, first)

    @property
    def nbytes(self) -> int:
        return _nbytes(self.shape, self.dtype)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.id}: {self.name} {self.shape} {self.dtype}>"


@dataclass(eq=False)
class Visit:
    """One backward walk at one step."""

    walk: int  # which of the recording's walks, from 0
    order: int | None  # the how-manieth rule of the recording; None if the step was only asked for its gradient
    grad: Array  # the whole gradient of the step's output
    contributions: dict[int, Array] = field(default_factory=dict)  # by input position
    seconds: float | None = 0.0
    hooked: bool = False  # whether a user's hook saw the gradient, and may have changed it


@dataclass(eq=False)
class Call:
    """One call of a module."""

    id: int
    path: str  # in the model; "" for the model itself
    kind: str  # the class's name
    parent: int | None  # the call that it was made in


@dataclass(eq=False, repr=False)
class Step:
    """One operation that ran.

    ``grad``, ``contributions``, ``backward`` and ``backward_s`` are those of the first walk that reached the step; ``visits``
    has them for every walk.
    """

    id: int
    op: str
    arguments: list[str]  # the names of the inputs
    inputs: list[Ref]
    options: dict[str, Any]
    value: Array | None  # the output; None if the graph had let go of it (trace() only)
    aux: Any
    shape: tuple[int, ...]
    dtype: str
    order: int  # of running, from 0
    phase: str = "forward"  # "backward": part of a gradient that is recorded itself
    call: int | None = None  # the innermost module call that it ran in
    module: str = ""  # its path
    source: str = ""  # "file.py:31": the caller's line, outside this package
    rule_of: int | None = None  # in phase "backward": the step whose gradient rule ran this
    requires_grad: bool = True  # whether it was recorded into a graph
    saved: list[str] = field(default_factory=list)  # arguments, "out", "aux": what its rules keep until backward
    view: bool = False  # whether the output shares memory with an input
    freed: bool = False  # whether the graph behind it was gone (trace() only)
    forward_s: float | None = None
    visits: list[Visit] = field(default_factory=list)

    @property
    def grad(self) -> Array | None:
        """The whole gradient of the output, after the user's hooks; None if no walk came here.

        Where a walk came only because ``grad()`` asked for this very result, it is the gradient before the hooks.
        """
        return self.visits[0].grad if self.visits else None

    @property
    def contributions(self) -> dict[int, Array]:
        """By input position: what the rule gave to that input, before it was accumulated, summed to the input's shape."""
        return self.visits[0].contributions if self.visits else {}

    @property
    def backward(self) -> int | None:
        """The place of its rule among all rules that ran, from 0."""
        return self.visits[0].order if self.visits else None

    @property
    def backward_s(self) -> float | None:
        """Seconds that its rule took, with the accumulation of what it gave."""
        return self.visits[0].seconds if self.visits else None

    @property
    def nbytes(self) -> int:
        """Bytes of the output."""
        return _nbytes(self.shape, self.dtype)

    @property
    def formula(self) -> str:
        """The formula of the operation over its argument names, as ``formulas`` states it; "" if it has none."""
        from .formulas import FORMULAS  # which knows nothing of tapes

        return FORMULAS[self.op].forward if self.op in FORMULAS else ""

    def __repr__(self) -> str:
        given = [f"{name}: {_ref(ref)}" for name, ref in zip(self.arguments, self.inputs, strict=True) if ref is not None]
        given += [f"{name}={value!r}" for name, value in self.options.items()]
        where = "".join(f", {text}" for text in (self.module, self.source) if text)
        return f"<step {self.id}: {self.op}({', '.join(given)}) -> {self.shape} {self.dtype}{where}>"


def _ref(ref: Ref) -> str:
    return f"#{ref}" if type(ref) is int else repr(ref)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    size = 1
    for n in shape:
        size *= n
    return size * np.dtype(dtype).itemsize


class Tape:
    """A recorded run: ``steps`` in the order in which they ran, and ``leaves`` in the order in which they were met.

    ``tape[id]`` is the step or leaf of that id, ``tape["0.weight"]`` the leaf of that name. ``calls`` are the module calls,
    ``loss`` is the id of the step that the first walk began at, ``walks`` the number of walks; ``before`` and ``after`` have
    every parameter and buffer of the modules that ran, by path, as the recording found and left them.
    """

    def __init__(self, model: Any = None):
        self.model = model
        self.steps: list[Step] = []
        self.leaves: list[Leaf] = []
        self.calls: list[Call] = []
        self.loss: int | None = None
        self.walks = 0
        self.before: dict[str, Array] = {}
        self.after: dict[str, Array] = {}
        self._entries: list[Step | Leaf] = []  # by id

    @overload
    def __getitem__(self, key: str) -> Leaf: ...

    @overload
    def __getitem__(self, key: int) -> Step | Leaf: ...

    def __getitem__(self, key: int | str) -> Step | Leaf:
        if isinstance(key, str):
            for leaf in self.leaves:
                if leaf.name == key:
                    return leaf
            raise KeyError(f"the tape has no leaf {key!r}; it has {', '.join(leaf.name for leaf in self.leaves) or 'none'}")
        if isinstance(key, bool) or not isinstance(key, int):
            raise TypeError(f"a tape is indexed by an id or by a leaf's name, got {type(key).__name__}")
        if not 0 <= key < len(self._entries):
            raise IndexError(f"the tape has ids from 0 to {len(self._entries) - 1}, got {key}")
        return self._entries[key]

    def step(self, key: int) -> Step:
        """The step of that id; ValueError if it is a leaf's."""
        entry = self[key]
        if not isinstance(entry, Step):
            raise ValueError(f"id {key} is that of a leaf, {entry.name}, expected a step's")
        return entry

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.steps)

    def add(self, entry: Step | Leaf) -> None:
        """Append a step or a leaf, whose id is the number of those before it."""
        assert entry.id == len(self._entries)
        self._entries.append(entry)
        if isinstance(entry, Step):
            self.steps.append(entry)
        else:
            self.leaves.append(entry)

    @property
    def next_id(self) -> int:
        return len(self._entries)

    def shape_of(self, ref: Ref) -> tuple[int, ...] | None:
        """The shape of an input: () for a number, None for an absent one."""
        return self[ref].shape if type(ref) is int else None if ref is None else ()

    def consumers(self, key: int) -> list[tuple[Step, int]]:
        """The steps that a step or leaf goes into, each with the position of the input."""
        return [(s, i) for s in self.steps for i, ref in enumerate(s.inputs) if type(ref) is int and ref == key]

    def __repr__(self) -> str:
        loss = "" if self.loss is None else f", walked back from #{self.loss} ({self._entries[self.loss].op})"  # type: ignore
        return f"<Tape of {len(self.steps)} steps and {len(self.leaves)} leaves{loss}>"

    # ----- to read and to look at

    def summary(self) -> str:
        """Tables of time, memory and floating-point operations, by operation and by module, and the formulas."""
        from .summary import summary

        return summary(self)

    def profile(self) -> str:
        """A table of time and memory by operation, the slowest first."""
        from .summary import profile

        return profile(self)

    def to_svg(self) -> str:
        """A picture of the graph: an SVG document. See ``draw.to_svg``."""
        from .draw import to_svg

        return to_svg(self)

    def to_dot(self) -> str:
        """The graph in the language of Graphviz."""
        from .dialects import to_dot

        return to_dot(self)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        from .dialects import to_mermaid

        return to_mermaid(self)

    _repr_svg_ = to_svg  # notebooks show it
