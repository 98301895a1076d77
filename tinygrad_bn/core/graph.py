"""What a graph is made of: Box (an array with a place in it), Node (a recorded operation), and what stands in for arrays."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..backend import ARRAY_TYPES, as_array

if TYPE_CHECKING:
    from .primitive import Primitive

Array = Any  # numpy.ndarray or cupy.ndarray


class Box:
    """An array, and its place in the graph. ``tensor.Tensor`` is the one subclass, and has the methods."""

    __slots__ = ("_data", "node", "_requires_grad", "_grad", "_version", "_hooks", "__weakref__")

    def __init__(self, data: Array, node: Node | None = None, requires_grad: bool = False):
        self._data = data if type(data) in ARRAY_TYPES else wrapped(data)
        if requires_grad and self._data.dtype.kind != "f":
            raise TypeError(f"only floating tensors can require grad, got {self._data.dtype}")
        self.node = node  # None for a leaf
        self._requires_grad = requires_grad
        self._grad: Box | None = None
        self._version: list[int] | None = None  # one cell for all boxes that share this memory; made when first needed
        self._hooks: LeafHooks | None = None

    def version_cell(self) -> list[int]:
        """The number of the last in-place change of this memory, in a cell shared by all boxes that share the memory."""
        if self._version is None:
            shared = None if self.node is None else self.node.version
            self._version = [-1] if shared is None else shared
        return self._version

    def share_version(self, other: Box) -> None:
        """Say that ``other`` is made of this box's memory: a change of one is a change of both."""
        cell = other._version = self.version_cell()
        for box in (self, other):
            if box.node is not None:
                box.node.version = cell

    def bump_version(self) -> None:
        """Say that the array was changed in place: a graph that kept the old value will refuse to go backward."""
        bump_versions((self,))


def bump_versions(boxes: Iterable[Box]) -> None:
    """``bump_version`` of each."""
    global last_change
    for box in boxes:
        cell = box._version or box.version_cell()
        cell[0] = number = next_number()
        last_change = max(last_change, number)


next_number = itertools.count().__next__  # numbers nodes and in-place changes, so that it is known which came first
last_change = -1


def wrapped(data: Any) -> Array:
    """An array for a box: NumPy's scalars as 0-d arrays."""
    try:
        return as_array(data)
    except TypeError:
        raise TypeError(
            f"Tensor() expected a NumPy or CuPy array, got {type(data).__name__}; tensor() makes one of numbers and lists"
        ) from None


box_type: type[Box] = Box  # the one late binding: tensor.py sets it to Tensor


def boxed(data: Array, node: Node | None, requires_grad: bool) -> Box:
    """A Tensor of what is surely an array, without the constructor's checks: for the engine itself, which makes many."""
    t = _new(box_type)
    t._data = data
    t.node = node
    t._requires_grad = requires_grad
    t._grad = t._version = t._hooks = None
    return t


_new = object.__new__


class LeafHooks:
    """What the user asked to hear about a leaf's gradient."""

    exist = False  # whether any leaf ever had some: while none has, no walk looks for them

    def __init__(self) -> None:
        LeafHooks.exist = True
        self.on_grad: list[Callable] = []
        self.after_accumulate: list[Callable] = []


class Absent:
    """Stands in for an argument that no rule needs, so that its memory is free. Only the shape is known."""

    __slots__ = ("shape",)

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __repr__(self) -> str:
        return f"Absent(shape={self.shape})"


absent: dict[tuple, Absent] = {}


def stand_in(shape: tuple) -> Absent:
    if len(absent) > 4096:  # shapes of a program are few; a program with many is not worth remembering
        absent.clear()
    return absent.setdefault(shape, Absent(shape))


class AddAt:
    """A gradient that is zero but at ``index``, where ``value`` is added. The walk adds it in place.

    A loop over the rows of a matrix so costs time linear in the rows, not quadratic.
    """

    __slots__ = ("index", "value")

    def __init__(self, index: Any, value: Array):
        self.index = index
        self.value = value


class Node:
    """One recorded operation: what it was, what it came from, and the arrays that its rules need.

    ``name``, ``parents`` (for each input a Node, a leaf Tensor, or None where no gradient is needed), ``inputs`` (arrays,
    or ``Absent``), ``options``, ``out`` (None if no rule needs it), ``aux``, ``dtype`` (of the output) and ``number`` (order of
    recording) are for reading. A Tensor points at its node, never the reverse, so a graph has no reference cycles.
    """

    __slots__ = (
        "primitive", "parents", "inputs", "options", "out", "aux", "dtype", "number", "constants", "version", "wishes",
        "__weakref__",
    )  # fmt: skip

    def __init__(self, primitive, parents, inputs, options, out, aux, dtype, constants):
        self.primitive: Primitive = primitive
        self.parents: list = parents
        self.inputs: list | None = inputs  # None once freed
        self.options: dict = options
        self.out = out
        self.aux = aux
        self.dtype = dtype
        self.number: int = next_number()
        self.constants: list | None = constants  # (argument, version cell) of kept Tensors that need no gradient
        self.version: list[int] | None = None  # the version cell of the output, once somebody shares its memory
        self.wishes: Wishes | None = None

    @property
    def name(self) -> str:
        return self.primitive.name

    def free(self) -> None:
        """Let go of the saved arrays and of the parents."""
        self.parents = []
        self.inputs = self.out = self.aux = self.constants = None

    def __repr__(self) -> str:
        if self.inputs is None:
            return f"<{self.name} node {self.number}, freed>"
        arguments = ", ".join(
            f"{name}: {p.name} node {p.number}" if type(p) is Node else f"{name}: {'constant' if p is None else 'leaf'}"
            for name, p in zip(self.primitive.argument_names(len(self.parents)), self.parents, strict=True)
        )
        options = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"<{self.name} node {self.number} of ({arguments}{options})>"


class Wishes:
    """What the user asked of a node's gradient: functions to call with it, and a Tensor (held weakly) to keep it on."""

    __slots__ = ("on_grad", "retained")

    def __init__(self) -> None:
        self.on_grad: list[Callable] = []
        self.retained: weakref.ref | None = None
