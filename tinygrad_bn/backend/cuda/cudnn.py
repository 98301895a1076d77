"""Convolution by cuDNN, through the graphs of its frontend, for float16 and float32.

What was found about the frontend: layouts must be said with every tensor, for without PyTorch it guesses them; the sizes of
gradients too, since they do not follow from those of their factors; and from version 1.27 on it comes with 190 MB of others.
"""

from __future__ import annotations

import importlib
import warnings
from functools import lru_cache
from threading import get_ident
from typing import Any, NamedTuple

from .. import cuda_settings as settings
from ..libraries import xp_of
from .elementwise import add_bias
from .launch import counts, empty, plain

_AT_LEAST, _BELOW = (1, 12), (1, 27)
_ALIGNED = 16  # bytes: what a graph takes for granted of every pointer


class Frontend(NamedTuple):
    """The package ``cudnn``, and a handle to the library."""

    cudnn: Any
    handle: Any


@lru_cache(None)
def _load(device: int, thread: int) -> tuple[Frontend | None, str]:
    """The frontend for a thread on a device, whose handle nobody else may use; or None and a sentence that says why not."""
    try:
        cudnn = importlib.import_module("cudnn")
    except ImportError:
        return None, "nvidia-cudnn-frontend is not installed: pip install 'tinygrad_bn[cudnn12]' or 'tinygrad_bn[cudnn13]'"
    version = tuple(int(n) for n in cudnn.__version__.split(".")[:2])
    if not _AT_LEAST <= version < _BELOW:
        return None, f"nvidia-cudnn-frontend {cudnn.__version__} is installed, expected one from 1.12 and before 1.27"
    try:
        return Frontend(cudnn, cudnn.create_handle()), ""
    except Exception as error:  # what it raises where the library or the driver is missing is its own
        return None, f"cuDNN cannot be used: {error}"


def _here(xp: Any) -> tuple[Frontend | None, str]:
    return _load(xp.cuda.runtime.getDevice(), get_ident())


def why_not(xp: Any) -> str:
    """Why cuDNN does not serve; empty if it does."""
    return _here(xp)[1]


_SERVED = {"f": "float32", "e": "float16"}
_KEPT = 1 << 24  # bytes to work in that a handle keeps for the next convolution; what is larger is given back


class _State:
    """The stream that a handle was last told, which takes longer than to remember it, and memory to work in on that stream."""

    def __init__(self) -> None:
        self.stream: int | None = None
        self.memory: Any = None


_states: dict[Any, _State] = {}  # by handle


def _workspace(state: _State, nbytes: int, like: Any) -> Any:
    """Memory in which a convolution may work: convolutions of one stream come one after the other."""
    if state.memory is None or state.memory.size < nbytes:
        memory = empty(like, max(1, nbytes), "uint8")
        if nbytes > _KEPT:
            return memory
        state.memory = memory
    return state.memory


class Plan(NamedTuple):
    """A graph of one convolution, its tensors (two factors and the result), and how much memory it wants to work in."""

    graph: Any
    tensors: tuple[Any, Any, Any]
    workspace: int


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Of a contiguous array, in elements."""
    strides = [1]
    for n in reversed(shape[1:]):
        strides.insert(0, strides[0] * n)
    return strides


def graph_of(frontend, kind, shapes, dtype, stride, padding, dilation):
    """The graph of one convolution, and its tensors: two factors and the result, of ``shapes``.

    ``kind``: conv_fprop of (image, weight), conv_dgrad of (loss, filter), or conv_wgrad of (image, loss).
    """
    cudnn, handle = frontend
    stored = cudnn.data_type.HALF if dtype == "float16" else cudnn.data_type.FLOAT
    wide = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=stored, intermediate_data_type=wide, compute_data_type=wide, handle=handle)
    names = {"conv_fprop": ("image", "weight"), "conv_dgrad": ("loss", "filter"), "conv_wgrad": ("image", "loss")}[kind]
    factors = {
        name: graph.tensor(name=name, dim=list(shape), stride=_strides(shape), data_type=stored)
        for name, shape in zip(names, shapes, strict=False)
    }
    result = getattr(graph, kind)(**factors, padding=list(padding), stride=list(stride), dilation=list(dilation))
    result.set_output(True).set_dim(list(shapes[2])).set_stride(_strides(shapes[2])).set_data_type(stored)
    graph.validate()
    return graph, (*factors.values(), result)


@lru_cache(1024)
def _plan(frontend, kind, shapes, dtype, stride, padding, dilation, allow_tf32, deterministic) -> Plan | None:
    """How to compute it, or None where cuDNN knows no way; then it warns, once."""
    try:
        return _built(frontend, kind, shapes, dtype, stride, padding, dilation, allow_tf32, deterministic)
    except Exception as error:  # of its own kinds, which differ from version to version
        warnings.warn(
            f"cuDNN knows no way to compute {kind} of shapes {shapes[0]} and {shapes[1]} in {dtype} (stride {stride}, padding "
            f"{padding}, dilation {dilation}), so cuBLAS serves: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _built(frontend, kind, shapes, dtype, stride, padding, dilation, allow_tf32, deterministic) -> Plan:
    cudnn, _ = frontend
    graph, tensors = graph_of(frontend, kind, shapes, dtype, stride, padding, dilation)
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    unwanted = []
    if dtype == "float32":
        unwanted.append(cudnn.numerical_note.DOWN_CONVERT_INPUTS)  # to halves, which know nothing above 65504
        if not allow_tf32:
            unwanted.append(cudnn.numerical_note.TENSOR_CORE)
    if deterministic:
        unwanted.append(cudnn.numerical_note.NONDETERMINISTIC)
    if unwanted:
        graph.deselect_numeric_notes(unwanted)
    graph.check_support()
    graph.build_plans()
    return Plan(graph, tensors, graph.get_workspace_size())


def _aligned(a):
    """The array, contiguous, where a graph may read it: a weight within its optimizer's memory may begin anywhere."""
    a = plain(a)
    return a.copy() if a.data.ptr % _ALIGNED else a


def _run(kind, first, second, shape, stride, padding, dilation):
    """The result; None where cuDNN is not there, does not take the dtype, knows no way, or finds no memory."""
    dtype = _SERVED.get(first.dtype.char)
    if dtype is None or not first.size:
        return None
    xp = xp_of(first)
    frontend = _here(xp)[0]
    if frontend is None:
        return None
    shapes = first.shape, second.shape, tuple(shape)
    plan = _plan(frontend, kind, shapes, dtype, stride, padding, dilation, settings.allow_tf32, settings.deterministic)
    if plan is None:
        return None
    first, second, out = _aligned(first), _aligned(second), empty(first, shape, dtype)
    cudnn, handle = frontend
    stream = xp.cuda.get_current_stream().ptr
    state = _states.setdefault(handle, _State())
    if state.stream != stream:
        cudnn.set_stream(handle=handle, stream=stream)
        state.stream, state.memory = stream, None
    try:
        workspace = _workspace(state, plan.workspace, first)
    except MemoryError:
        return None  # patches work in less
    one, other, result = plan.tensors
    plan.graph.execute({one: first.data.ptr, other: second.data.ptr, result: out.data.ptr}, workspace.data.ptr, handle=handle)
    return out


def conv2d(x, w, b, stride, padding, dilation, groups):
    """portable.conv2d."""
    shape = (x.shape[0], w.shape[0], *counts(x.shape, w.shape[2:], stride, padding, dilation))
    y = _run("conv_fprop", x, w, shape, stride, padding, dilation)
    if b is not None and y is not None:
        add_bias(y, b, shape[2] * shape[3])
    return y


def conv2d_input(g, w, shape, stride, padding, dilation, groups):
    """portable.conv2d_input."""
    return _run("conv_dgrad", g, w, shape, stride, padding, dilation)


def conv2d_weight(g, x, shape, stride, padding, dilation, groups):
    """portable.conv2d_weight."""
    return _run("conv_wgrad", x, g, shape, stride, padding, dilation)
