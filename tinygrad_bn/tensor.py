"""class Tensor: an array with a place in the graph. Its methods are the operations; each is one line onto ``ops``."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from . import core, ops, random
from .backend import (
    ARRAY_TYPES,
    as_array,
    device_of,
    explain,
    export_array,
    import_array,
    library_for,
    to_device,
    to_numpy,
    type_name,
)
from .core import Box, LeafHooks, Wishes


def _raw(x: Any) -> Any:
    return x._data if isinstance(x, Box) else x


def _compare(sign: str, compare: Callable, x: Tensor, y: Any) -> Any:
    """An array of booleans; for ``==`` and ``!=`` with what is no array or number, Python's own answer."""
    raw = _raw(y)
    try:
        return compare(x._data, raw)
    except (TypeError, ValueError) as error:
        better = explain(error, sign, ["x", "y"], [x._data, raw], 2)
        if better is None:
            raise
        raise better from error


def _not_on_a_leaf(sign: str, op: Callable) -> Callable:
    """``t += x`` makes a new tensor, as ``t = t + x`` does; but a leaf that requires grad would no longer be the parameter."""

    def assign(self: Tensor, other: Any) -> Tensor:
        if self.node is None and self._requires_grad:
            raise TypeError(
                f"a leaf that requires grad is not changed in place by {sign}=; assign its .data, or write t = t {sign} ... "
                "for a new tensor"
            )
        return op(self, other)

    return assign


_where = {"shape": "of shape", "dtype": "of", "device": "on"}


class HookHandle:
    """What registering a hook returns; ``remove()`` takes the hook back."""

    def __init__(self, registered: list, hook: Callable):
        self._registered, self._hook = registered, hook

    def remove(self) -> None:
        """Take the hook back; a second call does nothing."""
        if self._hook in self._registered:
            self._registered.remove(self._hook)
        self._registered = []


class Tensor(Box):
    """An n-dimensional array that remembers how it was made, so that gradients flow back. Make one with ``tensor(data)``."""

    __slots__ = ()
    __array_ufunc__ = None  # so that `ndarray * tensor` asks Tensor.__rmul__, and the graph is never lost
    __hash__ = Box.__hash__

    # ----- what it is

    @property
    def data(self) -> Any:
        """The raw array. Assigning one is not recorded; a graph that kept the old value will refuse to go backward.

        Writing *into* the raw array is not noticed by any graph.
        """
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if self.node is not None:
            raise TypeError(f".data of a result of {self.node.name} cannot be assigned; use .detach() for a tensor of its own")
        raw = _raw(value)
        if isinstance(raw, (np.generic, np.ndarray)):  # NumPy makes a scalar of 0-d arithmetic; a state dict's are a subclass
            raw = as_array(raw)
        if type(raw) not in ARRAY_TYPES:
            raise TypeError(f".data expected a NumPy or CuPy array, got {type_name(value)}")
        if self._requires_grad and raw.dtype.kind != "f":
            raise TypeError(f".data of a tensor that requires grad expected a floating array, got {raw.dtype}")
        self._data = raw
        self.bump_version()

    @property
    def grad(self) -> Tensor | None:
        """The gradient that ``backward`` has gathered, or None."""
        return self._grad  # type: ignore[return-value]

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Box):
                raise TypeError(f".grad expected a Tensor or None, got {type_name(value)}")
            for what in ("shape", "dtype", "device"):
                mine, others = getattr(self, what), getattr(value, what)
                if mine != others:
                    raise ValueError(f".grad of a tensor {_where[what]} {mine} expected the same {what}, got {others}")
        self._grad = value

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded, and gradients computed for it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.node is not None:
            raise RuntimeError(f"requires_grad of a result of {self.node.name} cannot be changed; use .detach()")
        if not isinstance(value, bool):
            raise TypeError(f"requires_grad expected True or False, got {value!r}")
        if value and self._data.dtype.kind != "f":
            raise TypeError(f"only floating tensors can require grad, got {self._data.dtype}")
        self._requires_grad = bool(value)

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set ``requires_grad``, and return this tensor."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self.node is None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return device_of(self._data)

    def __len__(self) -> int:
        if not self._data.ndim:
            raise TypeError("a tensor of no dimensions has no length")
        return self._data.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        text = np.array2string(to_numpy(self._data), separator=", ", prefix="tensor(")
        parts = [text]
        if str(self.dtype) not in ("float32", "int64", "bool"):
            parts.append(f"dtype={self.dtype}")
        if self.device != "cpu":
            parts.append(f"device='{self.device}'")
        if self.node is not None:
            parts.append(f"made by {self.node.name}")
        elif self._requires_grad:
            parts.append("requires_grad=True")
        return f"tensor({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: shape, dtype, device, and the place in the graph, above the values."""
        from html import escape

        place = f", made by {self.node.name}" if self.node is not None else ", requires grad" if self._requires_grad else ""
        head = f"{self.shape}, {self.dtype}, on {self.device}{place}"
        values = np.array2string(to_numpy(self._data), separator=", ")
        return f"<div><b>tensor</b> {escape(head)}<pre>{escape(values)}</pre></div>"

    # ----- to Python and NumPy

    def item(self) -> bool | int | float:
        """The one element as a Python number. Waits for CUDA."""
        if self._data.size != 1:
            raise ValueError(f"item() expected a tensor of one element, got shape {self.shape}")
        return self._data.item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers. Waits for CUDA."""
        return to_numpy(self._data).tolist()

    def numpy(self) -> np.ndarray:
        """The elements as a NumPy array: the same memory on the CPU, a copy from CUDA. Raises if this tensor requires grad."""
        if self._requires_grad:
            raise RuntimeError("a tensor that requires grad does not leave the graph silently; use .detach().numpy()")
        return to_numpy(self._data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """For ``np.asarray(t)``: ``numpy()``, copied only if ``dtype`` or ``copy`` wants it. Raises TypeError on CUDA."""
        if self.device != "cpu":
            raise TypeError("a tensor on 'cuda' is not converted to NumPy silently; use .cpu()")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, *, copy: bool | None = None, **wishes: Any) -> Any:
        """For ``torch.from_dlpack(t)``, CuPy's, JAX's and NumPy's: the same memory. A graph does not notice what they write.

        ``copy=True`` exports a copy; ``wishes`` are the protocol's other options, max_version, dl_device and stream. Raises
        BufferError if this tensor requires grad, or runs backwards in memory and is not copied.
        """
        self._must_not_require_grad()
        return export_array(self._data, copy, **wishes)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's numbers of the kind of device, and of the device."""
        return self._data.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For libraries that read CUDA memory without DLPack, such as Numba. AttributeError on the CPU, where there is none."""
        if self.device != "cuda":
            raise AttributeError(f"a tensor on {self.device!r} has no __cuda_array_interface__")
        self._must_not_require_grad()
        return self._data.__cuda_array_interface__

    def _must_not_require_grad(self) -> None:
        if self._requires_grad:
            raise BufferError("a tensor that requires grad does not leave the graph silently; use .detach()")

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous; compare elements and use .any() or .all()"
            )
        return bool(self._data)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and self._data.size == 1 else str(self)

    # ----- out of the graph, to other devices and dtypes

    def detach(self) -> Tensor:
        """A tensor on the same memory that is not part of the graph."""
        other = Tensor(self._data)
        self.share_version(other)
        return other

    def to(self, device: str | None = None, dtype: Any = None) -> Tensor:
        """This tensor on a device and in a dtype: itself if it is so already, else a recorded copy."""
        t = self
        if device is not None:
            library_for(device)  # raises with a sentence before anything is done
            t = ops.to_device(t, device)
        return t if dtype is None else t.astype(dtype)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def cuda(self) -> Tensor:
        return self.to("cuda")

    def astype(self, dtype: Any) -> Tensor:
        """This tensor in another dtype: itself if it has it already. Integers and booleans leave the graph."""
        wanted = np.dtype(dtype)
        if self.dtype == wanted:
            return self
        return ops.cast(self, dtype=wanted) if wanted.kind == "f" else Tensor(self._data.astype(wanted))

    def float(self) -> Tensor:
        return self.astype("float32")

    def double(self) -> Tensor:
        return self.astype("float64")

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self.node is not None:
            raise RuntimeError(f"a result of {self.node.name} cannot be copied with its graph; copy .detach()")
        other = type(self).__new__(type(self))
        Box.__init__(other, self._data.copy(), None, self._requires_grad)
        memo[id(self)] = other
        if self.grad is not None:
            other._grad = Tensor(self.grad._data.copy())
        return other

    def __reduce__(self):
        raise TypeError("tensors are not pickled; save .numpy(), or a module's state_dict()")

    # ----- gradients

    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Add this tensor's gradient to ``.grad`` of every leaf behind it; see ``core.backward``."""
        core.backward(self, gradient, retain_graph, create_graph)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def register_hook(self, hook: Callable) -> HookHandle:
        """Call ``hook(g)`` with the whole gradient of this tensor in each backward; what it returns, if not None, is g then."""
        self._must_require_grad("register_hook")
        if not callable(hook):
            raise TypeError(f"register_hook expected a function of the gradient, got {type_name(hook)}")
        if self.node is None:
            registered = self._leaf_hooks().on_grad
        else:
            registered = self._node_wishes().on_grad
        registered.append(hook)
        return HookHandle(registered, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable) -> HookHandle:
        """Call ``hook(self)`` each time ``.grad`` of this leaf has got its last contribution, while backward goes on."""
        self._must_require_grad("register_post_accumulate_grad_hook")
        if not callable(hook):
            raise TypeError(f"register_post_accumulate_grad_hook expected a function of the tensor, got {type_name(hook)}")
        if self.node is not None:
            raise RuntimeError("register_post_accumulate_grad_hook expects a leaf; use register_hook for a result")
        registered = self._leaf_hooks().after_accumulate
        registered.append(hook)
        return HookHandle(registered, hook)

    def retain_grad(self) -> None:
        """Keep this result's gradient in ``.grad`` too (a leaf's is kept anyway)."""
        self._must_require_grad("retain_grad")
        if self.node is not None:
            self._node_wishes().retained = weakref.ref(self)

    def _must_require_grad(self, name: str) -> None:
        if not self._requires_grad:
            raise RuntimeError(f"{name} expects a tensor that requires grad")

    def _leaf_hooks(self) -> LeafHooks:
        self._hooks = self._hooks or LeafHooks()
        return self._hooks

    def _node_wishes(self) -> Wishes:
        assert self.node is not None
        self.node.wishes = self.node.wishes or Wishes()
        return self.node.wishes

    # ----- operators

    __add__ = ops.add
    __sub__ = ops.sub
    __mul__ = ops.mul
    __truediv__ = ops.div
    __pow__ = ops.pow
    __matmul__ = ops.matmul
    __neg__ = ops.neg
    __abs__ = ops.abs
    __getitem__ = ops.getitem

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.sub(other, self)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.mul(other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.div(other, self)

    def __rpow__(self, other: Any) -> Tensor:
        return ops.pow(other, self)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if self._requires_grad:
            raise TypeError("a tensor that requires grad is not changed in place; use where(), concatenate(), or assign .data")
        if isinstance(value, Box) and value._requires_grad:
            raise TypeError(
                "a value that requires grad is not written into a tensor, the graph would be lost; use where() or "
                "concatenate(), or write its .detach()"
            )
        raw = _raw(value)
        if type(raw) in ARRAY_TYPES and device_of(raw) != self.device:
            raise ValueError(
                f"a value on {device_of(raw)} is not written into a tensor on {self.device}; move it with .to(device)"
            )
        try:
            self._data[_raw(index)] = raw
        except ValueError as error:
            if "broadcast" not in str(error):
                raise
            shape = getattr(self._data[_raw(index)], "shape", ())
            raise ValueError(f"an assignment to [{index}] of shape {shape} got a value of shape {np.shape(raw)}") from error
        self.bump_version()

    __iadd__ = _not_on_a_leaf("+", ops.add)
    __isub__ = _not_on_a_leaf("-", ops.sub)
    __imul__ = _not_on_a_leaf("*", ops.mul)
    __itruediv__ = _not_on_a_leaf("/", ops.div)

    # Comparisons give plain arrays of booleans: constants to the graph.

    def __eq__(self, other: Any) -> Any:
        return _compare("==", operator.eq, self, other)

    def __ne__(self, other: Any) -> Any:
        return _compare("!=", operator.ne, self, other)

    def __lt__(self, other: Any) -> Any:
        return _compare("<", operator.lt, self, other)

    def __le__(self, other: Any) -> Any:
        return _compare("<=", operator.le, self, other)

    def __gt__(self, other: Any) -> Any:
        return _compare(">", operator.gt, self, other)

    def __ge__(self, other: Any) -> Any:
        return _compare(">=", operator.ge, self, other)

    # ----- operations as methods

    abs, exp, log, log1p, expm1 = ops.abs, ops.exp, ops.log, ops.log1p, ops.expm1
    sqrt, rsqrt, square, sign, erf = ops.sqrt, ops.rsqrt, ops.square, ops.sign, ops.erf
    tanh, sigmoid, softplus, relu, leaky_relu = ops.tanh, ops.sigmoid, ops.softplus, ops.relu, ops.leaky_relu
    elu, gelu, silu, clip, pow = ops.elu, ops.gelu, ops.silu, ops.clip, ops.pow
    maximum, minimum = ops.maximum, ops.minimum
    sum, mean, var, max, min = ops.sum, ops.mean, ops.var, ops.max, ops.min
    logsumexp, cumsum, argmax = ops.logsumexp, ops.cumsum, ops.argmax
    softmax, log_softmax = ops.softmax, ops.log_softmax
    reshape, transpose, swapaxes, moveaxis, expand = ops.reshape, ops.transpose, ops.swapaxes, ops.moveaxis, ops.expand
    squeeze, unsqueeze, flatten, flip, split = ops.squeeze, ops.unsqueeze, ops.flatten, ops.flip, ops.split
    matmul = ops.matmul

    @property
    def T(self) -> Tensor:
        """The axes reversed."""
        return ops.transpose(self)


core.graph.box_type = Tensor  # the one late binding


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor with a copy of ``data``: a number, nested lists of numbers, an array, or a Tensor.

    Python floats become float32, ints int64, bools bool; arrays keep their dtype. ``device`` is "cpu" or "cuda"; by default
    Tensors and CuPy arrays stay where they are, and other data goes to the environment's TINYGRAD_BN_DEVICE, else to the CPU.
    """
    raw = _raw(data)
    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except TypeError:
        raise TypeError(f"tensor() expected a dtype, got {dtype!r}") from None
    if isinstance(raw, np.ndarray) or type(raw) in ARRAY_TYPES or type(raw).__module__.partition(".")[0] == "cupy":
        array = as_array(raw)
        array = array.astype(wanted) if wanted is not None else array.copy()  # (astype copies)
    else:
        if isinstance(raw, (list, tuple)) and any(isinstance(item, Box) for item in raw):
            raise TypeError(
                "tensor() expected numbers, got a list of Tensors; stack() or concatenate() joins them, in the graph"
            )
        try:
            array = np.array(raw, dtype=wanted)
        except ValueError as error:
            what = "lists of different lengths" if "inhomogeneous" in str(error) else str(error)
            raise ValueError(f"tensor() expected numbers in lists of equal lengths, got {what}") from None
        if wanted is None and array.dtype == np.float64 and not isinstance(raw, np.generic):
            array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"tensor() expected numbers, got data of dtype {array.dtype}")
    if device is not None or not (isinstance(data, Box) or device_of(array) == "cuda"):
        array = to_device(array, device)
    return Tensor(array).requires_grad_(requires_grad)


def from_dlpack(x: Any) -> Tensor:
    """A Tensor on the memory of ``x``, an array or tensor of another library: NumPy, CuPy, PyTorch, JAX or whoever has DLPack.

    Nothing is copied: what one writes the other sees, and no graph notices. Raises TypeError for what has no DLPack, or
    another dtype than NumPy's real numbers and booleans; ValueError for memory neither of the CPU nor of CUDA; BufferError
    where the owner refuses, as PyTorch does if ``x`` requires grad, and where PyTorch has yet to negate the memory.
    """
    if isinstance(x, Tensor):
        x._must_not_require_grad()
        return x.detach()  # which also shares the version
    return Tensor(import_array(x))


def zeros(*shape: int, dtype: Any = "float32", device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros."""
    return Tensor(library_for(device).xp.zeros(_shape("zeros", shape), dtype)).requires_grad_(requires_grad)


def ones(*shape: int, dtype: Any = "float32", device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of ones."""
    return Tensor(library_for(device).xp.ones(_shape("ones", shape), dtype)).requires_grad_(requires_grad)


def randn(*shape: int, dtype: Any = "float32", device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of standard normal numbers, drawn on the host from the generator that ``manual_seed`` sets."""
    size, wanted = _shape("randn", shape), np.dtype(dtype)
    if wanted.kind != "f":
        raise TypeError(f"randn expected a floating dtype, got {wanted}")
    library_for(device)  # raises before anything is drawn
    drawn = np.asarray(random.generator().standard_normal(size)).astype(wanted)
    return Tensor(to_device(drawn, device)).requires_grad_(requires_grad)


def _shape(name: str, shape: tuple) -> tuple[int, ...]:
    flat = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    for n in flat:
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"{name} expected a shape of ints of at least 0, got {flat}")
        if n < 0:
            raise ValueError(f"{name} expected a shape of ints of at least 0, got {flat}")
    return flat
