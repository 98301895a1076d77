"""Writing nodes of an ONNX graph: names, types, constants and lengths, for the tables that say how operations are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .onnx_library import load
from .onnx_trace import Batch, ExportError, Length, Step, Value

OPSET = 17


class Emitter:
    """Gathers the nodes of a graph. What the tables pass around are names of ONNX values, as strings.

    Parameters, and the statistics of BatchNorm, become initializers; every other array becomes a Constant node. So a reader of
    the file knows what training changes.
    """

    def __init__(self, inputs: list[Value], outputs: list[str]):
        self.onnx = load("interop.export_onnx")
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._inputs = inputs
        self._names: dict[int, str] = {id(v): v.name for v in inputs}
        self._taken: dict[str, int] = dict.fromkeys([*(v.name for v in inputs), *outputs], 1)
        self._constants: dict[Any, str] = {}
        self._batch = ""
        self.step: Step = None  # type: ignore[assignment]  # the one that is being written

    # ----- names

    def fresh(self, name: str) -> str:
        """The name, with a number if it is taken."""
        count = self._taken.get(name, 0)
        self._taken[name] = count + 1
        return name if not count else self.fresh(f"{name}_{count}")

    def define(self, value: Value, name: str) -> None:
        """Say that the recording's value is this one of the graph."""
        self._names[id(value)] = name

    def name_of(self, value: Value, statistic: bool = False) -> str:
        """The name of a value; an array that is met for the first time is put into the graph."""
        found = self._names.get(id(value))
        if found is None:
            if value.kind == "parameter" or (value.kind == "buffer" and statistic):
                found = self.fresh(value.name)
                self.initializers[found] = value.numpy()
            else:
                found = self.constant(value.numpy(), value.name)
            self._names[id(value)] = found
        return found

    # ----- nodes

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output, and return that output's name. An empty input is one that is left out."""
        path = (self.step.path if self.step else "") or "model"
        name = self.fresh(f"{path}/{op_type}")
        given = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(self.onnx.helper.make_node(op_type, list(inputs), [name], name=name, **given))
        return name

    def constant(self, array: np.ndarray, name: str = "constant") -> str:
        """The name of a Constant node with this array; equal small ones are shared."""
        array = np.ascontiguousarray(array) if array.ndim else np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        found = self._constants.get(key)
        if found is None:
            found = self.fresh(name)
            value = self.onnx.numpy_helper.from_array(array, found)
            self.nodes.append(self.onnx.helper.make_node("Constant", [], [found], name=found, value=value))
            if key is not None:
                self._constants[key] = found
        return found

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float, dtype: Any) -> str:
        return self.constant(np.array(value, dtype))

    # ----- operands

    def operand(self, i: int, dtype: Any = None) -> str:
        """The name of the step's input i, cast to ``dtype`` if it has another."""
        return self.cast_to(self.step.inputs[i], dtype)

    def optional(self, i: int, dtype: Any = None) -> str:
        """The same, or an empty name for None."""
        return "" if self.step.inputs[i] is None else self.operand(i, dtype)

    def cast_to(self, x: Any, dtype: Any = None) -> str:
        if not isinstance(x, Value):
            return self.number(x, dtype)
        name = self.name_of(x)
        return name if dtype is None or x.dtype == dtype else self.cast(name, dtype)

    def cast(self, name: str, dtype: Any) -> str:
        return self("Cast", name, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    # ----- lengths

    def lengths(self, shape: Sequence[Length]) -> str:
        """A shape as a 1-D tensor of ints, computed from the input's where it follows the batch."""
        if all(isinstance(n, int) for n in shape):
            return self.ints(*shape)  # type: ignore[arg-type]
        parts = []
        for n in shape:
            if n is None:
                raise ExportError(
                    f"{self.step.place()} makes a shape that is no multiple of the batch size; pass dynamic_batch=False"
                )
            if isinstance(n, int):
                parts.append(self.ints(n))
            else:
                parts.append(self._batch_length(n.times))
        return parts[0] if len(parts) == 1 else self("Concat", *parts, axis=0)

    def _batch_length(self, times: int) -> str:
        if not self._batch:
            self._batch = self("Shape", self._inputs[0].name, start=0, end=1)
        return self._batch if times == 1 else self("Mul", self._batch, self.ints(times))

    def reshape(self, name: str, shape: Sequence[Length]) -> str:
        """A Reshape, with -1 for the length that follows the batch, if it is the only one."""
        following = [n for n in shape if not isinstance(n, int)]
        if 0 in shape:
            return self("Reshape", name, self.lengths(shape), allowzero=1)
        if len(following) > 1:
            return self("Reshape", name, self.lengths(shape))
        return self("Reshape", name, self.ints(*(n if isinstance(n, int) else -1 for n in shape)))

    # ----- the end

    def finish(self, outputs: list[Value], names: list[str]) -> None:
        """Give the outputs their names."""
        made = {name for node in self.nodes for name in node.output if node.op_type != "Constant"}
        renamed: dict[str, str] = {}
        for value, name in zip(outputs, names, strict=True):
            now = self.name_of(value)
            if now in made and now not in renamed:
                renamed[now] = name
            else:  # an input or a constant, or an output for the second time
                self.nodes.append(self.onnx.helper.make_node("Identity", [now], [name], name=self.fresh(f"{name}/Identity")))
        for node in self.nodes:
            for names_ in (node.input, node.output):
                for i, n in enumerate(names_):
                    names_[i] = renamed.get(n, n)


def dims(shape: Sequence[Length]) -> list[Any]:
    """A shape as ONNX declares it: lengths that follow the batch by name."""
    named = {1: "batch"}
    return [named.get(n.times, f"{n.times}*batch") if isinstance(n, Batch) else n for n in shape]
