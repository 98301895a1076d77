"""One run of a model, heard through the engine's hooks: which layer's output is whose input."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import nn
from ..core import Box, Listener, listening, no_grad


class Op(NamedTuple):
    """An operation: its name, raw inputs and output, and the innermost module that it ran in (None outside)."""

    name: str
    inputs: tuple
    out: Any
    module: Any


class Visit(NamedTuple):
    """A module's call: what its first operation was given, and its output."""

    module: Any
    x: Any
    out: Any


class Trace(Listener):
    """Every operation and module call of a run, in order. It holds the arrays, so that two of them never share an id."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.visits: list[Visit] = []
        self._open: list[tuple[Any, int]] = []

    def enter_module(self, module: Any) -> None:
        self._open.append((module, len(self.ops)))

    def exit_module(self, module: Any, out: Any) -> None:
        _, start = self._open.pop()
        x = self.ops[start].inputs[0] if start < len(self.ops) else None
        self.visits.append(Visit(module, x, out._data if isinstance(out, Box) else out))

    def apply(self, name: str, inputs: tuple, _options: dict, out: Any, _aux: Any, _node: Any) -> None:
        self.ops.append(Op(name, inputs, out, self._open[-1][0] if self._open else None))

    def consumers(self, array: Any) -> list[Op]:
        """The operations that took this array, in order."""
        return [op for op in self.ops if any(a is array for a in op.inputs)]

    def made_by(self, array: Any, kinds: Any) -> nn.Module | None:
        """The module of one of these classes whose output this array is."""
        return next((v.module for v in self.visits if v.out is array and isinstance(v.module, kinds)), None)

    def calls(self, module: nn.Module) -> list[Visit]:
        return [v for v in self.visits if v.module is module]


def trace(model: nn.Module, x: Any) -> Trace:
    """The run of the model on x in the mode that it is in, without recording."""
    found = Trace()
    with no_grad(), listening(found):
        model(x)
    return found
