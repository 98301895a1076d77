"""``import_onnx``: an ONNX file as a model whose weights can be trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import nn, ops
from ..backend import as_array, device_of, kernels_of, to_device, to_numpy, type_name
from ..core import Box
from ..nn import Buffer, Parameter
from ..tensor import Tensor
from . import onnx_windows  # noqa: F401  (adds to the table)
from .onnx_library import load
from .onnx_semantics import MEANINGS, NEWEST, OLDEST, Arguments

_NAME = "interop.import_onnx"


@dataclass
class Node:
    """One operation of the file. ``call`` computes its outputs from its inputs; ``done``: values that nobody reads after it."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    call: Arguments
    done: list[str]


@dataclass
class Declared:
    """An input of the file: its name, kind of dtype, and lengths (None where they are free; None for the lot of any shape)."""

    name: str
    kind: str
    shape: list[int | str | None] | None

    def fits(self, shape: tuple[int, ...]) -> bool:
        if self.shape is None:
            return True
        same_ndim = len(shape) == len(self.shape)
        return same_ndim and all(not isinstance(n, int) or n == m for n, m in zip(self.shape, shape, strict=True))

    def text(self) -> str:
        if self.shape is None:
            return "any"
        return f"({', '.join('?' if n is None else str(n) for n in self.shape)}{',' * (len(self.shape) == 1)})"


def import_onnx(path: str | os.PathLike) -> OnnxModel:
    """The graph of an ONNX file (opset 13 to 22) as a Module: called with Tensors or arrays, it returns Tensors.

    Every operation means what ONNX says of it. Floating initializers of at least one dimension are Parameters under their
    names, and the statistics of BatchNormalization are Buffers; all other arrays are constants. The model comes in evaluation
    mode. After ``train()`` every BatchNormalization takes its batch's statistics, and lets the running ones follow as ONNX
    does: ``momentum`` weighs the old value, and the variance is the population's, not the unbiased one of ``nn.BatchNorm2d``.

    Raises ValueError for what is no valid ONNX model, and for an operation, an attribute or a version that is not known here:
    the message names it. What ``export_onnx`` writes is known. Raises RuntimeError if onnx is not installed.
    """
    onnx = load(_NAME)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{_NAME} expected a path, got {type_name(path)}")
    file = os.fspath(path)
    with open(file, "rb"):  # what cannot be opened raises OSError, not a parser's complaint
        pass
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model)
    except OSError:
        raise
    except Exception as error:  # protobuf's, or the checker's
        raise ValueError(f"{_NAME} expected a valid ONNX model, got {file}: {error}") from error
    versions = {o.domain: o.version for o in model.opset_import}
    if not OLDEST <= versions.get("", 0) <= NEWEST:
        raise ValueError(
            f"{_NAME} expected opset {OLDEST} to {NEWEST}, got {versions.get('', 'none')}; onnx.version_converter translates"
        )
    return OnnxModel(model.graph)


class OnnxModel(nn.Module):
    """An imported graph; see ``import_onnx``."""

    def __init__(self, graph: Any):
        onnx = load(_NAME)
        if graph.sparse_initializer:
            raise ValueError(f"{_NAME}: sparse initializers are not supported")
        self.training = False
        self._title = graph.name
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self._inputs = [_declared(onnx, v) for v in graph.input if v.name not in arrays]
        self._outputs = [v.name for v in graph.output]
        self._constants: dict[str, Any] = {}
        self._on: dict[str, dict[str, Any]] = {"cpu": self._constants}  # the constants, by device
        self._nodes = [self._read(onnx, node) for node in graph.node if node.op_type != "Constant"]
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _constant(onnx, node)
        statistics = {n for node in self._nodes if node.op == "BatchNormalization" for n in node.inputs[3:]}
        self._attributes: dict[str, str] = {}  # the name of each initializer, as an attribute of this module
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise ValueError(f"{_NAME}: the initializer {name!r} is of {array.dtype}, which NumPy has not")
            if array.dtype.kind != "f" or not array.ndim:
                self._constants[name] = array
                continue
            attribute = name
            while hasattr(self, attribute):  # such as "training"
                attribute += "_"
            kept = array.copy()  # what the file lent is read-only
            setattr(self, attribute, Buffer(kept) if name in statistics else Parameter(kept))
            self._attributes[name] = attribute
        self._find_last_uses()

    def _read(self, onnx: Any, node: Any) -> Node:
        where = f"{node.op_type!r}" + (f" (node {node.name!r})" if node.name else "")
        meaning = MEANINGS.get(node.op_type)
        if meaning is None or node.domain not in ("", "ai.onnx"):
            domain = f" of the domain {node.domain!r}" if node.domain else ""
            raise ValueError(
                f"{_NAME}: the operation {where}{domain} is not supported; known are {', '.join(sorted(MEANINGS))}"
            )
        given = {a.name: _attribute(onnx, where, a) for a in node.attribute}
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        if len(outputs) > meaning.outputs:
            raise ValueError(f"{_NAME}: {where} has {len(outputs)} outputs, expected {meaning.outputs} at most")
        try:
            call = meaning.with_attributes(given)
        except ValueError as error:
            raise ValueError(f"{_NAME}: {where} {error}") from error
        return Node(node.op_type, where, list(node.input), outputs, call, [])

    def _find_last_uses(self) -> None:
        seen = set(self._outputs)
        for node in reversed(self._nodes):
            for name in (*node.inputs, *node.outputs):
                if name and name not in seen:
                    seen.add(name)
                    node.done.append(name)

    def forward(self, *inputs: Any) -> Any:
        values = self._given(inputs)
        for node in self._nodes:
            arguments = [values[name] if name else None for name in node.inputs]
            if node.op == "BatchNormalization":
                out = self._batch_norm(node, *arguments)
            else:
                out = node.call(*arguments)
            values.update(zip(node.outputs, out if isinstance(out, tuple) else (out,), strict=False))
            for name in node.done:
                values.pop(name, None)
        results = [v if isinstance(v, Box) else Tensor(v) for v in (values[name] for name in self._outputs)]
        return results[0] if len(results) == 1 else tuple(results)

    def _given(self, inputs: tuple) -> dict[str, Any]:
        """The values before the first node."""
        names = [d.name for d in self._inputs]
        if len(inputs) != len(names):
            raise TypeError(f"OnnxModel expected {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")
        values: dict[str, Any] = {}
        for declared, x in zip(self._inputs, inputs, strict=True):
            if not hasattr(x, "dtype"):
                raise TypeError(f"OnnxModel expected a Tensor or an array as {declared.name!r}, got {type_name(x)}")
            t = x if isinstance(x, Box) else Tensor(as_array(x))
            if not _same_kind(t._data.dtype.kind, declared.kind):
                raise TypeError(f"OnnxModel expected {declared.name!r} of {_KINDS[declared.kind]}, got {t._data.dtype}")
            if not declared.fits(t._data.shape):
                raise ValueError(f"OnnxModel expected {declared.name!r} of shape {declared.text()}, got {t._data.shape}")
            values[declared.name] = t
        device = device_of(values[names[0]]._data) if names else "cpu"
        if device not in self._on:  # ints are shapes, axes and indices: they stay on the host, where they are read
            self._on[device] = {k: v if v.dtype.kind in "iu" else to_device(v, device) for k, v in self._constants.items()}
        return {**self._on[device], **{name: getattr(self, a) for name, a in self._attributes.items()}, **values}

    def _batch_norm(self, node: Node, x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        """y, and for a node in training mode the statistics as they then are. ONNX's momentum weighs the old ones."""
        how = node.call.attributes
        if not (self.training or how["training_mode"]):
            return ops.batch_norm_inference(x, gamma, beta, mean, var, eps=how["epsilon"])
        y, batch = ops.batch_norm(x, gamma, beta, eps=how["epsilon"])
        old = [v._data if isinstance(v, Box) else v for v in (mean, var)]
        new = kernels_of(old[0]).follow(*old, *batch, 1.0 - how["momentum"], 1.0)[:2]
        if self.training:
            for name, statistic in zip(node.inputs[3:], new, strict=True):
                if name in self._attributes:
                    setattr(self, self._attributes[name], Buffer(statistic))
        return y, *map(Tensor, new)

    def extra_repr(self) -> str:
        inputs = ", ".join(f"{d.name} {d.text()}" for d in self._inputs)
        return f"{self._title}: {len(self._nodes)} operations on {inputs}"


_KINDS = {"f": "floating numbers", "i": "integers", "b": "booleans"}


def _same_kind(given: str, declared: str) -> bool:
    return given.replace("u", "i") == declared


def _declared(onnx: Any, value: Any) -> Declared:
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"{_NAME}: the input {value.name!r} is no tensor")
    tensor = value.type.tensor_type
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).kind.replace("u", "i")
    if kind not in _KINDS:
        raise ValueError(f"{_NAME}: the input {value.name!r} is of a dtype that NumPy has not")
    shape = None
    if tensor.HasField("shape"):
        shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    return Declared(value.name, kind, shape)


def _constant(onnx: Any, node: Any) -> np.ndarray:
    """The array of a Constant node, whichever of its attributes has it."""
    attribute = node.attribute[0]
    value = _attribute(onnx, "'Constant'", attribute)
    dtype = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name == "value":
        return value
    if attribute.name not in dtype:
        raise ValueError(f"{_NAME}: a Constant of {attribute.name} is not supported")
    return np.array(value, dtype[attribute.name])


def _attribute(onnx: Any, where: str, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return to_numpy(onnx.numpy_helper.to_array(value))
    if isinstance(value, (int, float)):
        return value
    if hasattr(value, "__iter__") and all(isinstance(v, (int, float)) for v in value):
        return list(value)
    raise ValueError(f"{_NAME}: the attribute {attribute.name} of {where} is not supported")
