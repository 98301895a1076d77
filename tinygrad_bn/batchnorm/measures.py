"""A model run over batches in both modes: the statistics that each BatchNorm meets, and what the modes score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import exp, lgamma, sqrt
from typing import Any

import numpy as np

from .. import nn
from ..backend import device_of, to_device, to_numpy
from ..core import Box, Listener, listening, no_grad
from ..nn.ghost import _GhostBatchNorm
from ..tensor import Tensor
from .layers import BatchNorm, layers
from .moments import Moments
from .report import Score

Pairs = list[tuple[Any, Any]]


def slope(m: float) -> float:
    """E[sigma_B] / sigma for batches of m independent Gaussian values: sqrt(2 / m) G(m / 2) / G((m - 1) / 2).

    It is by how much a normalised value follows the true one; the rest of its variance, 1 - slope^2, is noise from the
    batchmates. In evaluation they are 1 and 0.
    """
    return sqrt(2.0 / m) * exp(lgamma(m / 2) - lgamma((m - 1) / 2)) if m > 1 else 0.0


@dataclass
class Met:
    """What the input of one BatchNorm was, batch by batch in training mode. Values by batch and channel, in float64."""

    path: str
    layer: BatchNorm
    m: list[int] = field(default_factory=list)  # values per channel
    means: list[np.ndarray] = field(default_factory=list)
    variances: list[np.ndarray] = field(default_factory=list)  # biased
    examples: list[np.ndarray] = field(default_factory=list)  # (N, C): each example's means over its positions
    whole: Moments = field(default_factory=Moments)
    top: np.ndarray | None = None  # the largest output of each channel in evaluation with precise statistics

    def add(self, x: np.ndarray) -> None:
        x = np.moveaxis(x.reshape(*x.shape[:2], -1), 1, 2).astype(np.float64)  # (N, positions, C)
        self.examples.append(x.mean(1))
        size = self.layer.ghost_size if isinstance(self.layer, _GhostBatchNorm) else len(x)
        for i in range(0, len(x), size):
            flat = x[i : i + size].reshape(-1, x.shape[2])
            mean = flat.mean(0)
            centred = ((flat - mean) ** 2).sum(0)
            self.m.append(len(flat))
            self.means.append(mean)
            self.variances.append(centred / len(flat))
            self.whole.merge(len(flat), mean, centred)

    @property
    def slope(self) -> float:
        """The measured slope of normalised on true values, median over channels: sum of m var_B / (sigma_B sigma) over m."""
        var = np.array(self.variances)
        sigma = np.sqrt(self.whole.var)
        live = sigma > 0
        if not live.any():
            return float("nan")
        weights = np.array(self.m)[:, None]
        top = (weights * var / np.sqrt(var + self.layer.eps)).sum(0)[live]
        return float(np.median(top / weights.sum() / sigma[live]))


class _Meet(Listener):
    def __init__(self, met: dict[int, Met]):
        self.met = met
        self.inside: Met | None = None
        self.order: list[str] = []

    def enter_module(self, module: Any) -> None:
        if id(module) in self.met:
            self.inside = self.met[id(module)]

    def apply(self, _name: str, inputs: tuple, *_rest: Any) -> None:
        if self.inside is not None:
            self.inside.add(to_numpy(inputs[0]))
            if self.inside.path not in self.order:
                self.order.append(self.inside.path)
            self.inside = None

    def exit_module(self, _module: Any, _out: Any) -> None:
        self.inside = None


class _Tops(Listener):
    """The largest output of each channel."""

    def __init__(self, met: dict[int, Met]):
        self.met = met

    def exit_module(self, module: Any, out: Any) -> None:
        if (met := self.met.get(id(module))) is not None and isinstance(out, Box):
            y = to_numpy(out._data)
            top = y.max(axis=(0, *range(2, y.ndim)))
            met.top = top if met.top is None else np.maximum(met.top, top)


def on_device(model: nn.Module, pairs: Pairs) -> Pairs:
    """The inputs where the model's parameters are."""
    first = next(model.parameters(), None)
    device = "cpu" if first is None else device_of(first._data)
    return [(x if x.device == device else Tensor(to_device(x._data, device)), y) for x, y in pairs]


@contextmanager
def quietly() -> Iterator[None]:
    """What is not finite is a finding, and needs no warning."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def meet(model: nn.Module, pairs: Pairs) -> tuple[list[Met], list[int]]:
    """Each BatchNorm's inputs over all batches in training mode, in order of calls; and the sizes of batches that it refused.

    The running statistics follow, as always in training mode.
    """
    met = {id(layer): Met(path, layer) for path, layer in layers(model)}
    ear, refused = _Meet(met), []
    model.train()
    for x, _ in pairs:
        try:
            with no_grad(), quietly(), listening(ear):
                model(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            refused.append(x.shape[0])
    known = {m.path: m for m in met.values() if m.m}
    return [known[path] for path in ear.order if path in known], refused


def score(
    model: nn.Module, pairs: Pairs, loss: Callable, batch_statistics: bool = False, tops: list[Met] | None = None
) -> tuple[Score, np.ndarray]:
    """Loss and accuracy in evaluation mode, and which examples were right (empty without classes).

    With ``batch_statistics`` BatchNorm is in training mode, and nothing else; batches that it refuses are left out.
    """
    model.eval()
    for _, layer in layers(model):
        layer.training = batch_statistics
    ear = _Tops({id(m.layer): m for m in tops or ()})
    total, count, right = 0.0, 0, []
    for x, y in pairs:
        try:
            with no_grad(), quietly(), listening(ear):
                out = model(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            continue
        if y is None:
            continue
        labels = y if isinstance(y, Box) else Tensor(y)
        with no_grad(), quietly():
            total += float(loss(out, labels).item()) * x.shape[0]
        count += x.shape[0]
        raw, told = to_numpy(out._data), to_numpy(labels._data)
        if raw.ndim == 2 and raw.shape[1] > 1 and told.ndim == 1 and told.dtype.kind in "iu":  # one logit has no classes
            finite = np.isfinite(raw).all(1)
            right.append((raw.argmax(1) == told) & finite)
    hits = np.concatenate(right) if right else np.array([], bool)
    return Score(total / count if count else None, 100 * float(hits.mean()) if len(hits) else None), hits


@dataclass
class Harm:
    """How many points of accuracy evaluation loses against precise statistics, and how many standard deviations that is."""

    points: float | None = None
    sigmas: float = 0.0

    @property
    def serious(self) -> bool:
        return self.points is not None and self.points >= 1 and self.sigmas > 2

    @property
    def grave(self) -> bool:
        """So large that it alone says that something is wrong."""
        return self.points is not None and self.points >= 3 and self.sigmas > 3


def harm_of(evaluated: np.ndarray, precise: np.ndarray) -> Harm:
    """By McNemar's test on the examples that only one of the two gets right."""
    if not len(evaluated) or len(evaluated) != len(precise):
        return Harm()
    lost, won = int((precise & ~evaluated).sum()), int((evaluated & ~precise).sum())
    return Harm(100 * (lost - won) / len(precise), (lost - won) / sqrt(max(1, lost + won)))
