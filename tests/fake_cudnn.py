"""A stand-in for the package ``cudnn`` (cuDNN's frontend), with as much of a graph as a convolution needs.

It reads and writes where the pointers point, with the strides that the tensors were given, by the portable kernels; and it
insists on the order of the calls, and on what the real one only needs to be right: sizes and strides of every result.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from tinygrad_bn.backend import portable

__version__ = "1.26.0"
data_type = SimpleNamespace(HALF="float16", FLOAT="float32")
heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
numerical_note = SimpleNamespace(
    TENSOR_CORE="TENSOR_CORE", NONDETERMINISTIC="NONDETERMINISTIC", DOWN_CONVERT_INPUTS="DOWN_CONVERT_INPUTS"
)

built: list[pygraph] = []  # all graphs whose plans were built
refuse = False  # whether to know no way
streams: list[tuple] = []


def create_handle():
    return "handle"


def set_stream(*, handle, stream):
    streams.append((handle, stream))


class Tensor:
    def __init__(self, dim=None, stride=None, data_type=None, name=""):
        self.dim, self.stride, self.type, self.name = dim, stride, data_type, name

    def set_output(self, yes):
        assert yes
        return self

    def set_dim(self, dim):
        assert type(dim) is list
        self.dim = dim
        return self

    def set_stride(self, stride):
        assert type(stride) is list
        self.stride = stride
        return self

    def set_data_type(self, kind):
        self.type = kind
        return self

    def at(self, pointer):
        """The array that lies at the pointer."""
        dtype = np.dtype(self.type)
        count = 1 + sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True))
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
        return np.ndarray(self.dim, dtype, memory, 0, [s * dtype.itemsize for s in self.stride])


class pygraph:  # noqa: N801 (its name there)
    steps = ["validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans"]

    def __init__(self, *, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert intermediate_data_type == compute_data_type == "float32" and handle == "handle"
        self.io, self.done, self.unwanted = io_data_type, [], []

    def tensor(self, *, name, dim, stride, data_type):
        assert type(dim) is type(stride) is list and data_type == self.io
        return Tensor(dim, stride, data_type, name)

    def _conv(self, kind, first, second, padding, stride, dilation):
        self.kind, self.how = kind, (tuple(stride), tuple(padding), tuple(dilation))
        self.factors, self.result = (first, second), Tensor()
        return self.result

    def conv_fprop(self, *, image, weight, padding, stride, dilation):
        return self._conv("conv2d", image, weight, padding, stride, dilation)

    def conv_dgrad(self, *, loss, filter, padding, stride, dilation):  # noqa: A002
        return self._conv("conv2d_input", loss, filter, padding, stride, dilation)

    def conv_wgrad(self, *, image, loss, padding, stride, dilation):
        return self._conv("conv2d_weight", image, loss, padding, stride, dilation)

    def _step(self, name):
        assert self.done == self.steps[: len(self.done)] and self.steps[len(self.done)] == name
        self.done.append(name)

    def validate(self):
        assert self.result.dim and self.result.stride and self.result.type
        self._step("validate")

    def build_operation_graph(self):
        self._step("build_operation_graph")

    def create_execution_plans(self, modes):
        assert modes == ["A", "FALLBACK"]
        self._step("create_execution_plans")

    def deselect_numeric_notes(self, notes):
        assert self.done[-1] == "create_execution_plans"
        self.unwanted = notes

    def check_support(self):
        if refuse:
            raise RuntimeError("No valid engine configs")
        self._step("check_support")

    def build_plans(self):
        self._step("build_plans")
        built.append(self)

    def get_workspace_size(self):
        return 1000

    def execute(self, pointers, workspace, handle):
        assert self.done == self.steps and handle == "handle" and workspace
        assert all(pointer % 16 == 0 for pointer in pointers.values()), "a graph takes aligned pointers for granted"
        first, second = (t.at(pointers[t]) for t in self.factors)
        out = self.result.at(pointers[self.result])
        channels = {"conv2d": first, "conv2d_input": out, "conv2d_weight": first}[self.kind].shape[1]
        weight = {"conv2d": second, "conv2d_input": second, "conv2d_weight": out}[self.kind]
        how = (*self.how, channels // weight.shape[1])
        wide = (a.astype("float32") for a in (first, second))
        if self.kind == "conv2d":
            out[...] = portable.conv2d(*wide, None, *how)
        elif self.kind == "conv2d_input":
            out[...] = portable.conv2d_input(*wide, out.shape, *how)
        else:
            x, g = wide
            out[...] = portable.conv2d_weight(g, x, out.shape, *how)
