"""What a model computes, heard twice: on the example, and on other values in a batch of another size.

Where the two recordings differ in a length, it follows the batch. Where they differ in a constant, that constant was made from
the input by something other than an operation (a comparison, NumPy), and a file that held it would be wrong: so it is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import core, nn, random
from ..backend import device_of, to_device, to_numpy, type_name
from ..core import Box, Listener, listening, no_grad
from ..tensor import Tensor


@dataclass(frozen=True)
class Batch:
    """A length that is ``times`` the batch's."""

    times: int


Length = int | Batch | None  # None: it follows the batch in some other way


@dataclass(eq=False)
class Value:
    """An array of the recording. ``kind``: "input", "parameter", "buffer", "constant" or "result"."""

    kind: str
    name: str
    array: Any
    shape: tuple[Length, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numpy(self) -> np.ndarray:
        return to_numpy(self.array)


@dataclass(eq=False)
class Step:
    """One operation. ``inputs``: Values, numbers, or None for what was left out. ``path``, ``layer``: the module it ran in."""

    op: str
    inputs: list[Any]
    options: dict[str, Any]
    out: Value
    path: str
    layer: nn.Module | None
    changing: list[str] = field(default_factory=list)  # the options that differ between the two runs

    def place(self) -> str:
        return f"{self.op!r} in {self.path or 'the model'!r}" + (
            "" if self.layer is None else f" ({type(self.layer).__name__})"
        )


@dataclass
class Trace:
    steps: list[Step]
    inputs: list[Value]
    outputs: list[Value]


class ExportError(ValueError):
    """Why a model cannot be written as ONNX."""


class _Run(Listener):
    """What one run of the model told: (op, inputs, options, out, module) of each operation of this thread, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple, dict, Any, nn.Module | None]] = []
        self.outputs: Any = None
        self._modules: list[nn.Module] = []
        self._thread = threading.get_ident()

    def apply(self, name: str, inputs: tuple, options: dict, out: Any, aux: Any, node: Any) -> None:  # noqa: ARG002
        if threading.get_ident() == self._thread:
            self.events.append((name, inputs, dict(options), out, self._modules[-1] if self._modules else None))

    def enter_module(self, module: Any) -> None:
        if threading.get_ident() == self._thread:
            self._modules.append(module)

    def exit_module(self, module: Any, out: Any) -> None:  # noqa: ARG002
        if threading.get_ident() == self._thread:
            self._modules.pop()


def trace(model: nn.Module, inputs: list[Any], dynamic_batch: bool) -> Trace:
    """The operations by which ``model``, in evaluation mode, makes its outputs from raw arrays, its inputs."""
    n = inputs[0].shape[0] if dynamic_batch else 0
    m = 2 * n + 7  # so much larger that every second, or every eighth, of the batch is more of it too
    others = [_other(x, m if dynamic_batch else None) for x in inputs]
    with _quietly(model):
        changes = core.graph.last_change
        first = _run(model, inputs)
        try:
            with np.errstate(all="ignore"):
                second = _run(model, others)
        except Exception as error:  # whatever the model's own code raises
            what = f"a batch of {m}; pass dynamic_batch=False if it should not" if dynamic_batch else "other values"
            raise ExportError(f"the model ran on the example, but not on {what}: {type(error).__name__} {error}") from error
        if core.graph.last_change != changes:
            raise ExportError("the model changes a tensor in place while it runs, which no recording can follow")
    return _Pairing(model, (first, second), (inputs, others), (n, m)).trace()


def _run(model: nn.Module, inputs: list[Any]) -> _Run:
    run = _Run()
    with no_grad(), listening(run):
        run.outputs = model(*map(Tensor, inputs))
    return run


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards the modes and the random numbers are as they were."""
    modes, state = [(m, m.training) for m in model.modules()], random.get_rng_state()
    try:
        model.eval()
        yield
    finally:
        random.set_rng_state(state)
        for module, mode in modes:
            module.training = mode


def _other(x: Any, rows: int | None) -> Any:
    """Other values like those of x, in so many rows."""
    raw = to_numpy(x)
    if rows is not None:
        raw = raw[np.arange(rows) % len(raw)]
    if raw.dtype.kind == "f":
        finite = raw[np.isfinite(raw)].astype(np.float64)
        noise = np.random.default_rng(0).standard_normal(raw.shape) * ((finite.std() if finite.size else 0.0) or 1.0)
        raw = np.asarray(raw + noise).astype(raw.dtype)
    else:
        raw = raw[tuple(slice(None, None, -1) for _ in raw.shape)].copy()  # indices stay in range
    return to_device(raw, device_of(x))


class _Pairing:
    """Makes one Trace of two runs."""

    def __init__(self, model: nn.Module, runs: tuple[_Run, _Run], inputs: tuple[list, list], batches: tuple[int, int]):
        self._runs, self._batches = runs, batches
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._values: tuple[dict[int, Value], dict[int, Value]] = {}, {}  # by the array's id; the runs keep them alive
        for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
            for name, t in named:
                value = Value(kind, name, t._data, t._data.shape)
                for known in self._values:
                    known[id(t._data)] = value
        single = len(inputs[0]) == 1
        self._inputs = [
            self._value("input", "input" if single else f"input_{i + 1}", a, b)
            for i, (a, b) in enumerate(zip(*inputs, strict=True))
        ]

    def _value(self, kind: str, name: str, a: Any, b: Any) -> Value:
        value = Value(kind, name, a, tuple(map(self._length, a.shape, b.shape)))
        self._values[0][id(a)] = self._values[1][id(b)] = value
        return value

    def _length(self, a: int, b: int) -> Length:
        if a == b:
            return a
        n, m = self._batches
        return Batch(a // n) if a % n == 0 and b == a // n * m else None

    def trace(self) -> Trace:
        first, second = self._runs
        told = [([event[0] for event in run.events], len(_outputs(run))) for run in self._runs]
        if told[0] != told[1]:
            raise ExportError("the model runs other operations for other values or another batch size; ONNX holds one path")
        steps = [self._step(a, b) for a, b in zip(first.events, second.events, strict=True)]
        outputs = [self._output(a, b) for a, b in zip(_outputs(first), _outputs(second), strict=True)]
        return Trace(needed(steps, outputs), self._inputs, outputs)

    def _step(self, a: tuple, b: tuple) -> Step:
        op, inputs, options, out, layer = a
        step = Step(op, [], {}, None, self._paths.get(id(layer), ""), layer)  # type: ignore[arg-type]
        step.inputs = [self._operand(step, x, y) for x, y in zip(inputs, b[1], strict=True)]
        for name, value in options.items():
            step.options[name] = self._option(step, name, value, b[2][name])
        if out.dtype != b[3].dtype or out.ndim != b[3].ndim:
            raise ExportError(f"{step.place()} gives {out.ndim} dimensions, and {b[3].ndim} for another batch size")
        step.out = self._value("result", "", out, b[3])
        return step

    def _operand(self, step: Step, x: Any, y: Any) -> Any:
        """An input as a Value, a number or None."""
        if not hasattr(x, "dtype"):
            if x != y and x == x:
                raise ExportError(f"{step.place()} gets the number {x}, and {y} for other values or another batch size")
            return x
        known = self._values[0].get(id(x))
        if known is not None and self._values[1].get(id(y)) is known:
            return known
        if known is not None or id(y) in self._values[1]:
            raise ExportError(f"{step.place()} gets another tensor for other values or another batch size")
        a, b = np.asarray(to_numpy(x)), np.asarray(to_numpy(y))
        if a.shape != b.shape:
            raise ExportError(
                f"{step.place()} gets an array of shape {a.shape}, and {b.shape} for another batch size, that no operation "
                "made; make it by operations on the input, or pass dynamic_batch=False"
            )
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            raise ExportError(
                f"{step.place()} gets an array of shape {a.shape} that changes from run to run, but no operation made it (a "
                "comparison, NumPy or a random number did); the file would hold it as a constant"
            )
        value = Value("constant", "constant", x, a.shape)
        if not isinstance(x, np.generic):  # of whose kind each is another object
            self._values[0][id(x)] = self._values[1][id(y)] = value
        return value

    def _option(self, step: Step, name: str, x: Any, y: Any) -> Any:
        """An option, with Values for arrays. Whether it differs between the runs is noted on the step."""
        if type(x) is tuple and type(y) is tuple and len(x) == len(y):
            return tuple(self._option(step, name, a, b) for a, b in zip(x, y, strict=True))
        if isinstance(x, np.integer):
            x, y = int(x), int(y)
        if hasattr(x, "dtype"):
            return self._operand(step, x, y)
        if type(x) is not type(y) or (x != y and x == x):
            step.changing.append(name)
        return x

    def _output(self, a: Any, b: Any) -> Value:
        for t in (a, b):
            if not isinstance(t, Box) and not hasattr(t, "dtype"):
                raise TypeError(f"interop.export_onnx expected the model to return Tensors, got {type_name(t)}")
        a, b = (t._data if isinstance(t, Box) else t for t in (a, b))
        known = self._values[0].get(id(a))
        if known is None or self._values[1].get(id(b)) is not known:
            raise ExportError(f"no operation made the model's output of shape {a.shape}: it does not depend on the input")
        return known


def _outputs(run: _Run) -> list[Any]:
    return list(run.outputs) if isinstance(run.outputs, (tuple, list)) else [run.outputs]


def values_of(step: Step) -> list[Value]:
    """The Values that a step reads."""

    def inside(x: Any) -> list[Value]:
        return [x] if isinstance(x, Value) else [v for item in x for v in inside(item)] if type(x) is tuple else []

    return [v for x in (*step.inputs, *step.options.values()) for v in inside(x)]


def needed(steps: list[Step], outputs: list[Value]) -> list[Step]:
    """The steps on which the outputs depend, in their order."""
    wanted, kept = set(map(id, outputs)), []
    for step in reversed(steps):
        if id(step.out) in wanted:
            kept.append(step)
            wanted.update(map(id, values_of(step)))
    return kept[::-1]
