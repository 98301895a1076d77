"""Module: a tree of parameters, buffers and other modules, found by walking attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import core
from ..backend import as_array, device_of, to_device, to_numpy, type_name
from ..core import Box, Listener, listening, no_grad
from ..tensor import Tensor
from .state_array import state_array


class Parameter(Tensor):
    """A tensor that training changes. It requires grad unless told otherwise."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True):
        raw = _array("Parameter", data)
        super().__init__(raw if isinstance(data, Box) or device_of(raw) == "cuda" else to_device(raw, None))
        self.requires_grad = requires_grad


class Buffer(Tensor):
    """A tensor that belongs to a module's state and is not trained, such as a running mean. It is replaced, never changed."""

    __slots__ = ()

    def __init__(self, data: Any):
        super().__init__(_array("Buffer", data))

    @classmethod
    def of(cls, raw: Any) -> Buffer:
        """A buffer of what is surely an array, without the constructor's checks."""
        buffer = cls.__new__(cls)
        Box.__init__(buffer, raw)
        return buffer


def _array(name: str, data: Any) -> Any:
    if isinstance(data, Box):
        return data._data
    if not hasattr(data, "dtype"):
        raise TypeError(f"{name} expected a Tensor or an array, got {type(data).__name__}")
    return as_array(data)


class Keys(NamedTuple):
    """What load_state_dict(strict=False) could not match."""

    missing: list[str]
    unexpected: list[str]


class Module:
    """The base class of layers and models: give it attributes that are Parameters, Buffers and Modules, and a ``forward``."""

    training = True  # set by train() and eval() on each instance

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hooks, out = core.modes.hooks, None
        if hooks is None:
            return self.forward(*args, **kwargs)
        hooks.enter_module(self)
        try:
            out = self.forward(*args, **kwargs)
        finally:
            hooks.exit_module(self, out)
        return out

    def __setattr__(self, name: str, value: Any) -> None:
        old = self.__dict__.get(name)
        if old is not None and isinstance(old, (Parameter, Buffer)) and value is not None and not isinstance(value, type(old)):
            kind = type(old).__name__
            advice = "; to change its values assign its .data" if isinstance(old, Parameter) else ""
            raise TypeError(
                f"{name} of {type(self).__name__} is a {kind}, and can be replaced by a {kind} or None, got {type_name(value)}"
                f"{advice}"
            )
        object.__setattr__(self, name, value)

    # ----- the tree

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one, each once."""
        seen: set[int] = set()
        for name, value in vars(self).items():
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def children(self) -> Iterator[Module]:
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "", _seen: set[int] | None = None) -> Iterator[tuple[str, Module]]:
        """This module (as ``prefix``) and all below it, each once, with their paths."""
        seen = set() if _seen is None else _seen
        if id(self) not in seen:
            seen.add(id(self))
            yield prefix, self
            for name, child in self.named_children():
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def _named(self, kind: type, every_name: bool = False) -> Iterator[tuple[str, Module, str, Any]]:
        """(path, module, attribute, tensor) of all tensors of a kind; a shared one once, unless ``every_name`` is wanted."""
        seen: set[int] = set()
        for path, module in self.named_modules() if not every_name else _all_paths(self):
            for name, value in vars(module).items():
                if isinstance(value, kind) and (every_name or id(value) not in seen):
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, module, name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their paths; a shared one once, under its first name."""
        return ((path, p) for path, _, _, p in self._named(Parameter))

    def parameters(self) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        return ((path, b) for path, _, _, b in self._named(Buffer))

    def buffers(self) -> Iterator[Buffer]:
        return (b for _, b in self.named_buffers())

    # ----- modes

    def train(self, mode: bool = True) -> Module:
        """Set this module and all below it to training mode (BatchNorm uses the batch's statistics, Dropout drops)."""
        if not isinstance(mode, bool):
            raise TypeError(f"train() expected True or False, got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set this module and all below it to evaluation mode (BatchNorm uses its running statistics, Dropout does nothing)."""
        return self.train(False)

    def requires_grad_(self, value: bool = True) -> Module:
        """Freeze (False) or thaw all parameters."""
        for p in self.parameters():
            p.requires_grad = value
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.grad = None

    # ----- devices and dtypes

    def _dtype_for(self, dtype: np.dtype) -> np.dtype:
        """The dtype that this module's own tensors get when the model is asked for ``dtype``."""
        return dtype

    def to(self, device: str | None = None, dtype: Any = None) -> Module:
        """Move parameters, buffers and gradients to a device ("cpu", "cuda") and a floating dtype, in place."""
        wanted = None if dtype is None else np.dtype(dtype)
        if wanted is not None and wanted.kind != "f":
            raise TypeError(f"Module.to expected a floating dtype, got {wanted}")

        def moved(module: Module, raw: Any) -> Any:
            if wanted is not None and raw.dtype.kind == "f":
                raw = raw.astype(module._dtype_for(wanted), copy=False)
            return raw if device is None else to_device(raw, device)

        parameters = [(p, m, moved(m, p._data)) for _, m, _, p in self._named(Parameter)]
        buffers = {id(b): Buffer(moved(m, b._data)) for _, m, _, b in self._named(Buffer)}
        for p, module, raw in parameters:  # only once every copy has been made
            if raw is not p._data:
                g = p.grad
                p.data = raw
                p.grad = None if g is None else Tensor(moved(module, g._data))
        for _, module, name, b in list(self._named(Buffer, every_name=True)):  # a shared one is replaced everywhere
            if id(b) in buffers:
                setattr(module, name, buffers[id(b)])
        return self

    def cpu(self) -> Module:
        return self.to("cpu")

    def cuda(self) -> Module:
        return self.to("cuda")

    def float(self) -> Module:
        return self.to(dtype="float32")

    def double(self) -> Module:
        return self.to(dtype="float64")

    # ----- state

    def _extra_state(self) -> dict[str, Any]:
        """State that is no tensor, as arrays; such as num_batches_tracked."""
        return {}

    def _extra_value(self, name: str, value: np.ndarray) -> Any:
        """What the attribute ``name`` becomes when loaded, or ValueError; a subclass with extra state has its own."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of all parameters and buffers: a dict from PyTorch's keys to arrays (copies, where the tensors live).

        PyTorch's ``load_state_dict`` takes those of the CPU as they are.
        """
        state: dict[str, Any] = {}
        for path, module in _all_paths(self):
            prefix = f"{path}." if path else ""
            for kind in (Parameter, Buffer):
                state.update({prefix + k: state_array(v._data) for k, v in vars(module).items() if isinstance(v, kind)})
            state.update({prefix + k: state_array(v) for k, v in module._extra_state().items()})
        return state

    def load_state_dict(self, state: Any, strict: bool = True) -> Keys:
        """Take over parameters and buffers from a dict from path to array, Tensor or PyTorch tensor.

        Values are cast to the dtype, and copied to the device, that the tensors here have. Raises ValueError that lists
        missing, unexpected and misshapen keys, before anything is changed; with ``strict=False`` the first two are returned.
        """
        if not hasattr(state, "keys"):
            raise TypeError(f"load_state_dict expected a dict from names to arrays, got {type(state).__name__}")
        here: dict[str, tuple[Module, str, Any]] = {}
        for path, module in _all_paths(self):
            prefix = f"{path}." if path else ""
            for name, value in vars(module).items():
                if isinstance(value, (Parameter, Buffer)):
                    here[prefix + name] = module, name, value
            for name, value in module._extra_state().items():
                here[prefix + name] = module, name, value
        keys = Keys([k for k in here if k not in state], [str(k) for k in state if k not in here])
        given = {k: _plain(k, state[k]) for k in here if k in state}
        shapes = {k: here[k][2].shape for k in given}
        misshapen = [f"{k}: expected {shapes[k]}, got {v.shape}" for k, v in given.items() if v.shape != shapes[k]]
        problems = (
            []
            if not strict
            else [f"{what} {', '.join(ks)}" for what, ks in zip(("missing", "unexpected"), keys, strict=True) if ks]
        )
        problems += [f"misshapen {', '.join(misshapen)}"] if misshapen else []
        if problems:
            raise ValueError(f"load_state_dict of {type(self).__name__}: {'; '.join(problems)}")
        ready: list[tuple[Module, str, Any, Any]] = []
        for key, value in given.items():
            module, name, t = here[key]
            try:
                new = to_device(value.astype(t.dtype), t.device) if isinstance(t, Tensor) else module._extra_value(name, value)
            except ValueError as error:
                raise ValueError(f"load_state_dict of {type(self).__name__}: {key} {error}") from None
            ready.append((module, name, t, new))
        for module, name, t, new in ready:  # nothing above has changed anything
            if isinstance(t, Parameter):
                t.data = new
            else:
                setattr(module, name, Buffer(new) if isinstance(t, Buffer) else new)
        return keys

    # ----- to read

    def extra_repr(self) -> str:
        """What stands between the parentheses of this module's repr."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in vars(self).items() if isinstance(child, Module)
        ]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n  ".join([f"{type(self).__name__}({extra}", *lines]) + "\n)"

    def _repr_html_(self) -> str:
        """What a notebook shows: a table of the layers, with the shapes of their parameters and buffers."""
        from .notebook import table

        return table(self)

    def summary(self, example: Any) -> str:
        """A table of the layers: path, type, output shape, number of parameters. ``example`` is an input, or its shape.

        The model runs once in evaluation mode, without recording; its mode, buffers and gradients stay as they are.
        """
        if not hasattr(example, "shape") and not isinstance(example, (tuple, list)):
            raise TypeError(f"summary() expected an example input or its shape, got {type(example).__name__}")
        if isinstance(example, (tuple, list)):
            if not all(isinstance(n, int) and n >= 0 for n in example):
                raise ValueError(f"summary() expected a shape of ints of at least 0, got {example}")
            first = next(self.parameters(), None)
            dtype, device = ("float32", None) if first is None else (first.dtype, first.device)
            example = Tensor(to_device(np.zeros(example, dtype), device))
        shapes = _OutputShapes()
        modes = [(m, m.training) for m in self.modules()]
        try:
            with no_grad(), listening(shapes):
                self.eval()(example)
        finally:
            for module, mode in modes:
                module.training = mode
        rows = [("layer", "type", "output shape", "parameters")]
        counted: set[int] = set()
        for path, module in self.named_modules():
            own = [p for p in vars(module).values() if isinstance(p, Parameter) and id(p) not in counted]
            counted.update(id(p) for p in own)
            shape = shapes.found.get(id(module))
            rows.append(
                (
                    path or "(model)",
                    type(module).__name__,
                    "-" if shape is None else str(shape),
                    f"{sum(p.size for p in own):,}",
                )
            )
        trained = sum(p.size for p in self.parameters() if p.requires_grad)
        total = sum(p.size for p in self.parameters())
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        text = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
        rule = "-" * len(text[0])
        return "\n".join([text[0], rule, *text[1:], rule, f"{total:,} parameters, {trained:,} of them trained"])


class _OutputShapes(Listener):
    def __init__(self) -> None:
        self.found: dict[int, tuple[int, ...]] = {}

    def exit_module(self, module: Any, out: Any) -> None:
        if isinstance(out, Box):
            self.found[id(module)] = out._data.shape


def _all_paths(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """Every module under every one of its names: a shared one has several, and PyTorch's state dicts list them all."""
    yield path, module
    for name, child in vars(module).items():
        if isinstance(child, Module):
            yield from _all_paths(child, f"{path}.{name}" if path else name)


def _plain(key: str, value: Any) -> np.ndarray:
    """An array, a Tensor or a PyTorch tensor as a NumPy array."""
    if isinstance(value, Box):
        return to_numpy(value._data)
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()  # NumPy has no bfloat16
    try:
        array = to_numpy(value) if hasattr(value, "dtype") else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"load_state_dict expected an array for {key}, got {type(value).__name__}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"load_state_dict expected numbers for {key}, got {type(value).__name__} of dtype {array.dtype}")
    return array
