"""Names for what a recording meets: the paths of parameters, buffers and modules, and the names of an operation's inputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import Box, Node, Primitive
from ..nn import Buffer, Module, Parameter
from .arrays import host_copy
from .formulas import FORMULAS
from .tape import Leaf


class Names:
    """Knows the modules that ran, and whose each tensor and each array is."""

    def __init__(self, model: Module | None):
        self.before: dict[str, np.ndarray] = {}
        self._roots: list[tuple[str, Module]] = []
        self._paths: dict[int, str] = {}  # by a module's identity
        self._known: dict[int, tuple[str, str]] = {}  # by a tensor's or an array's identity: name and kind
        self._boxes: dict[int, tuple[Box, str, str]] = {}
        self._alive: list[Any] = []
        self._counts: dict[str, int] = {}
        self._primitives: dict[str, Primitive] = {}
        if model is not None:
            self._adopt("", model)

    # ----- modules and their tensors

    def _adopt(self, prefix: str, model: Module) -> None:
        self._roots.append((prefix, model))
        for path, module in model.named_modules(prefix):
            if id(module) not in self._paths:
                self._paths[id(module)] = path
                self._alive.append(module)
                self._take(path, module)
        self.before.update(_state(prefix, model))

    def know(self, box: Box, name: str, kind: str) -> None:
        """Remember what a tensor is to be called."""
        self._boxes.setdefault(id(box), (box, name, kind))
        self._known[id(box._data)] = self._boxes[id(box)][1:]
        self._alive.append(box._data)

    def _take(self, path: str, module: Module) -> None:
        """Remember a module's own tensors, as they are now: buffers are replaced in each step."""
        for name, value in vars(module).items():
            if isinstance(value, (Parameter, Buffer)):
                kind = "parameter" if isinstance(value, Parameter) else "buffer"
                self.know(value, f"{path}.{name}" if path else name, kind)

    def enter(self, module: Module) -> str:
        """The path of a module that is called. One that no known model has becomes a root, under its class's name."""
        if id(module) not in self._paths:
            self._adopt(self._numbered(type(module).__name__), module)
        path = self._paths[id(module)]
        self._take(path, module)
        return path

    def state(self) -> dict[str, np.ndarray]:
        """All parameters and buffers of the modules that were met, as they are now."""
        found: dict[str, np.ndarray] = {}
        for prefix, module in self._roots:
            found.update(_state(prefix, module))
        return found

    # ----- leaves

    def of(self, x: Any, box: Box | None, value: np.ndarray | None, in_rule: bool) -> tuple[str, str]:
        """Name and kind of a leaf that is met for the first time."""
        if box is not None and id(box) in self._boxes:
            return self._boxes[id(box)][1:]
        known = self._known.get(id(x))
        if known is None and x is not None:  # an optimizer may have moved it since
            known = next(((name, kind) for b, name, kind in self._boxes.values() if b._data is x), None)
        if known is not None:
            return known
        if isinstance(box, (Parameter, Buffer)):
            kind = "parameter" if isinstance(box, Parameter) else "buffer"
        else:
            needs = box is not None and box._requires_grad
            plain = value is None or value.ndim == 0 or value.dtype.kind == "b"
            kind = "constant" if in_rule or (plain and not needs) else "input"
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind} {self._counts[kind]}", kind

    def next_version(self, name: str) -> str:
        name = name.partition(", version ")[0]
        key = f"{name}, version "
        self._counts[key] = self._counts.get(key, 1) + 1
        return f"{key}{self._counts[key]}"

    def number(self, leaves: list[Leaf]) -> None:
        """An only input is "input", not "input 1"; and so on."""
        for kind in ("parameter", "buffer", "input", "constant"):
            if self._counts.get(kind) == 1:
                for leaf in leaves:
                    name, comma, rest = leaf.name.partition(",")
                    if leaf.kind == kind and name == f"{kind} 1":
                        leaf.name = kind + comma + rest

    def _numbered(self, name: str) -> str:
        self._counts[name] = self._counts.get(name, 0) + 1
        return name if self._counts[name] == 1 else f"{name} {self._counts[name]}"

    # ----- an operation, and its inputs

    def operation(self, node: Node) -> str:
        """Its name; that of a user's primitive which is called as one of this package's with its module's in front."""
        home = node.primitive.function.__module__
        ours = node.name not in FORMULAS or home.partition(".")[0] == __name__.partition(".")[0]
        return node.name if ours else f"{home}.{node.name}"

    def arguments(self, op: str, count: int, node: Node | None) -> Sequence[str]:
        if node is not None:
            self._primitives[op] = node.primitive
        elif op not in self._primitives:
            self._primitives = {**primitives(), **self._primitives}
        known = self._primitives.get(op)
        names = [] if known is None else known.argument_names(count)
        return names if len(names) == count else [f"input {i}" for i in range(count)]


def _state(prefix: str, model: Module) -> dict[str, np.ndarray]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {f"{prefix}.{path}" if prefix else path: host_copy(t) for path, t in tensors.items()}


def primitives() -> dict[str, Primitive]:
    """Every primitive of this package by its name."""
    package = __name__.partition(".")[0]
    found: dict[str, Primitive] = {}
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] == package:
            for value in list(vars(module).values()):
                me = getattr(value, "primitive", None)
                if isinstance(me, Primitive):
                    found[me.name] = me
    return found
