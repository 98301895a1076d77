"""``export_onnx``: a model's recorded operations as an ONNX file."""

from __future__ import annotations

import os
from typing import Any

from .. import nn
from ..backend import ARRAY_TYPES, as_array, type_name
from ..core import Box
from ..ops.checks import need_bool
from . import onnx_layers  # noqa: F401  (fills the table)
from .files import write_whole
from .onnx_emit import OPSET, Emitter, dims
from .onnx_fold import fold, merge
from .onnx_library import load
from .onnx_table import BY_SHAPE, TABLE
from .onnx_trace import ExportError, Trace, trace

_NAME = "interop.export_onnx"


def export_onnx(
    model: nn.Module, example: Any, path: str | os.PathLike, dynamic_batch: bool = True, fold_batchnorm: bool = False
) -> None:
    """Write what ``model`` computes in evaluation mode as an ONNX file of opset 17, for other runtimes, and for Netron.

    ``example`` is an input, a Tensor or an array (a tuple of them for a model of several). With ``dynamic_batch`` the length
    of axis 0 of every input is free in the file, else every length is the example's. ``fold_batchnorm`` multiplies each
    BatchNorm that directly follows a linear or convolution layer into that layer's weights (a new bias among them); one before
    a layer, or after a layer whose output is used elsewhere too, stays. The model is run twice, on the example and on other
    values; its mode, its buffers and the random numbers stay as they are.

    Parameters are initializers under their own names, and so are the statistics of BatchNorm; other arrays are constants. The
    inputs are called "input" (or "input_1" ...), the outputs "output".

    Raises ValueError that names the operation and its module where ONNX has no counterpart, and where the second run shows
    that the input's values or the batch size have a say by other ways than operations (a comparison, NumPy, an ``if``).
    Nothing is written then. Raises RuntimeError if onnx is not installed.
    """
    load(_NAME)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{_NAME} expected a Module, got {type_name(model)}")
    need_bool(_NAME, "dynamic_batch", dynamic_batch)
    need_bool(_NAME, "fold_batchnorm", fold_batchnorm)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{_NAME} expected a path, got {type_name(path)}")
    inputs = _inputs(example, dynamic_batch)
    try:
        recorded = merge(trace(model, inputs, dynamic_batch))
        written = _write(fold(recorded) if fold_batchnorm else recorded, type(model).__name__)
    except ExportError as error:
        raise ValueError(f"{_NAME}: {error}") from error
    write_whole(os.fspath(path), written)


def _inputs(example: Any, dynamic_batch: bool) -> list[Any]:
    """The example as raw arrays, at least one."""
    given = list(example) if isinstance(example, (tuple, list)) else [example]
    if not given:
        raise ValueError(f"{_NAME} expected at least one example input, got none")
    arrays = []
    for x in given:
        raw = x._data if isinstance(x, Box) else x
        if type(raw) not in ARRAY_TYPES:
            if not hasattr(raw, "dtype") or hasattr(raw, "detach"):
                raise TypeError(f"{_NAME} expected an example as a Tensor or an array, or a tuple of them, got {type_name(x)}")
            raw = as_array(raw)
        arrays.append(raw.copy())  # so that an array given twice is two inputs
    if dynamic_batch:
        rows = {x.shape[0] if x.ndim else 0 for x in arrays}
        if len(rows) > 1 or not min(rows):
            shapes = " and ".join(str(x.shape) for x in arrays)
            raise ValueError(
                f"{_NAME} expected inputs of one batch size of at least 1 along axis 0, got shapes {shapes}; pass "
                "dynamic_batch=False if axis 0 is not the batch"
            )
    return arrays


def _write(recorded: Trace, name: str) -> bytes:
    names = ["output"] if len(recorded.outputs) == 1 else [f"output_{i + 1}" for i in range(len(recorded.outputs))]
    onnx, e = load(_NAME), Emitter(recorded.inputs, names)
    for step in recorded.steps:
        e.step = step
        entry = TABLE.get(step.op)
        if entry is None:
            raise ExportError(f"{step.place()} has no ONNX counterpart at opset {OPSET}")
        if step.changing and step.op not in BY_SHAPE:
            raise ExportError(
                f"the option {step.changing[0]} of {step.place()} changes with the batch size or the input's values"
            )
        e.define(step.out, entry(e, step))
    e.finish(recorded.outputs, names)

    def declared(name, value):
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), dims(value.shape))

    graph = onnx.helper.make_graph(
        e.nodes,
        name,
        [declared(v.name, v) for v in recorded.inputs],
        [declared(n, v) for n, v in zip(names, recorded.outputs, strict=True)],
        [onnx.numpy_helper.from_array(a, n) for n, a in e.initializers.items()],
    )
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8, producer_name="tinygrad_bn"
    )  # (IR version 8 came with opset 17's runtimes)
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)  # Netron shows the shapes
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()
