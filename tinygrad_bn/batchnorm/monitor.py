"""``Monitor``: what the inputs of the activations, the gradients and the running statistics do during training."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from .. import nn
from ..backend import to_numpy
from ..core import Box, Listener, listening
from ..nn.layers import _Conv
from ..optim.optimizer import Optimizer
from .layers import BatchNorm, layers, need_model

PERCENTILES = (15, 50, 85)  # those of Ioffe & Szegedy 2015, figure 1


class Monitor(Listener):
    """Records every ``every`` steps, for each BatchNorm, what happens there: ``with Monitor(model, every=10) as monitor: ...``.

    A step is a backward pass, counted from 1. Of each layer, by its path, ``monitor.records[path]`` has lists over the recorded
    steps (``monitor.steps``), a row each::

        percentiles     the 15th, 50th and 85th percentile of its output y = gamma x_hat + beta, the input of the activation,
                        over all channels; of the first channel in ``unit``, as in Ioffe & Szegedy 2015, figure 1b
        gradient_norm   of the weight of the Linear or Conv before it (of its gamma, if none), as in ``.grad`` after this pass
        running_mean, running_var    the median over channels
        effective_lr    lr / |w|^2 of that weight, the rate that matters before a BatchNorm; NaN without ``optimizer``

    ``monitor.losses`` has the loss that each recorded backward pass began at. A line on ``stream`` (standard error if that is
    a terminal, else nothing; False for none) shows the step, the loss and the steps a second. ``plot(path)`` draws it all.

    Nothing in the model changes. Raises TypeError for no Module or no Optimizer, ValueError for ``every`` below 1 or no
    BatchNorm.
    """

    def __init__(
        self, model: nn.Module, every: int = 10, *, optimizer: Optimizer | None = None, stream: TextIO | bool | None = None
    ):
        self.layers = dict(layers(need_model("Monitor", model)))
        if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
            raise ValueError(f"Monitor expected every to be an int of at least 1, got {every!r}")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"Monitor expected optimizer to be an Optimizer, got {type(optimizer).__name__}")
        self.model, self.every, self.optimizer = model, int(every), optimizer
        self.stream: Any = (sys.stderr if sys.stderr.isatty() else None) if stream is None else stream or None
        self.step, self.steps, self.losses = 0, [], []  # type: ignore[var-annotated]
        names = ("percentiles", "unit", "gradient_norm", "running_mean", "running_var", "effective_lr")
        self.records: dict[str, dict[str, list]] = {path: {name: [] for name in names} for path in self.layers}
        self._paths = {id(layer): path for path, layer in self.layers.items()}
        self._outputs: dict[str, np.ndarray] = {}
        self._makers: list[tuple[Any, Any]] = []  # outputs of this pass's Linears and Convs, and those modules
        self._weights: dict[str, Any] = {}  # by path: the weight before the BatchNorm
        self._entered: list[Any] = []
        self._loss: float | None = None
        self._before = 0.0
        self._context: Any = None

    def __enter__(self) -> Monitor:
        self._context = listening(self)
        self._context.__enter__()
        self._before = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._context.__exit__(kind, error, trace)
        self._makers.clear()
        if self.stream is not None and self.steps:
            print(file=self.stream)

    @property
    def _wanted(self) -> bool:
        return (self.step + 1) % self.every == 0

    # ----- what the engine tells

    def enter_module(self, module: Any) -> None:
        if module is self.model:
            self._makers.clear()
        self._entered.append(module)

    def apply(self, _name: str, inputs: tuple, *_rest: Any) -> None:
        module = self._entered[-1] if self._entered else None
        if isinstance(module, BatchNorm) and (path := self._paths.get(id(module))) and path not in self._weights:
            maker = next((m for out, m in self._makers if out is inputs[0]), None)
            if maker is not None:
                self._weights[path] = maker.weight

    def exit_module(self, module: Any, out: Any) -> None:
        self._entered.pop()
        if not isinstance(out, Box):
            return
        if isinstance(module, (nn.Linear, _Conv)) and len(self._weights) < len(self.layers):
            self._makers.append((out._data, module))
        elif id(module) in self._paths and module.training and self._wanted and out._requires_grad:
            self._outputs[self._paths[id(module)]] = to_numpy(out._data)

    def before_rule(self, node: Any, _g: Any) -> None:
        if self._loss is None and node.out is not None and node.out.size == 1:
            self._loss = float(to_numpy(node.out))

    def backward_end(self) -> None:
        if self._wanted and self._outputs:
            self._record()
        self.step += 1
        self._loss = None
        self._outputs.clear()

    def _record(self) -> None:
        self.steps.append(self.step + 1)
        self.losses.append(float("nan") if self._loss is None else self._loss)
        for path, layer in self.layers.items():
            row = self.records[path]
            y = self._outputs.get(path)
            nothing = [float("nan")] * 3
            row["percentiles"].append(nothing if y is None else np.percentile(y, PERCENTILES).tolist())
            row["unit"].append(nothing if y is None else np.percentile(y[:, 0], PERCENTILES).tolist())
            weight = self._weights.get(path, layer.weight)
            g = None if weight is None else weight.grad
            row["gradient_norm"].append(float("nan") if g is None else float(np.linalg.norm(to_numpy(g._data))))
            for name in ("running_mean", "running_var"):
                buffer = getattr(layer, name)
                row[name].append(float("nan") if buffer is None else float(np.median(to_numpy(buffer._data))))
            row["effective_lr"].append(self._effective_lr(path))
        self._say()

    def _effective_lr(self, path: str) -> float:
        weight = self._weights.get(path)
        if weight is None or self.optimizer is None:
            return float("nan")
        for group in self.optimizer.param_groups:
            if any(p is weight for p in group["params"]):
                return float(group["lr"]) / max(float((to_numpy(weight._data).astype(float) ** 2).sum()), 1e-300)
        return float("nan")

    def _say(self) -> None:
        if self.stream is None:
            return
        now = time.perf_counter()
        rate = self.step + 1 if len(self.steps) == 1 else self.every
        speed = rate / max(now - self._before, 1e-9)
        self._before = now
        print(
            f"\rstep {self.step + 1:,}  loss {self.losses[-1]:.4g}  {speed:,.0f} steps/s   ",
            end="",
            file=self.stream,
            flush=True,
        )

    # ----- what it shows

    def plot(self, path: str | Path, only: Sequence[str] | None = None) -> Path:
        """Draw a row of panels for each layer (of ``only`` these paths): percentiles, gradient norm, running variance,
        effective learning rate, over the steps; needs matplotlib. Returns the picture's path.

        Raises ValueError if nothing was recorded, or for a path that is none; ImportError without matplotlib.
        """
        chosen = list(self.layers) if only is None else list(only)
        if unknown := [p for p in chosen if p not in self.layers]:
            raise ValueError(f"plot expected paths of BatchNorm layers ({', '.join(self.layers)}), got {unknown[0]!r}")
        if not self.steps:
            raise ValueError(f"plot expected recorded steps, got none: fewer than {self.every} backward passes in the block")
        from .monitor_plot import draw  # matplotlib is slow to import, and an extra

        return draw(self, Path(path), chosen)
