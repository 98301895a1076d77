"""What the experiments train on, and how: data in three parts, one loop, one way to count a run as failed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from claim import Results, Setup

import tinygrad_bn as tg

GUESSING = math.log(10)  # the loss of a network that knows nothing of ten classes
EVALUATED = 500  # images at a time


class Part(NamedTuple):
    """Images (N, 784) float32, and their labels (N,) int64."""

    x: np.ndarray
    y: np.ndarray

    def first(self, n: int) -> Part:
        return Part(self.x[:n], self.y[:n])


class Data(NamedTuple):
    """Pixels are standardised: mean 0 and variance 1 over the images to train on. Learning rates are chosen on ``valid``."""

    train: Part
    valid: Part
    test: Part
    mean: float
    std: float
    device: str

    def binary(self) -> Data:
        """The same images in black and white, 0 and 1, as in Ioffe & Szegedy 2015, section 4.1."""
        parts = [Part((part.x * self.std + self.mean > 0.5).astype(np.float32), part.y) for part in self[:3]]
        return self._replace(train=parts[0], valid=parts[1], test=parts[2])


def load(setup: Setup) -> Data:
    """The last sixth of the training images (10,000 of 60,000) is for validation. For a smoke test, a few images."""
    (x, y), test = tg.datasets.mnist(setup.data)
    train, valid = Part(x[: len(x) * 5 // 6], y[: len(x) * 5 // 6]), Part(x[len(x) * 5 // 6 :], y[len(x) * 5 // 6 :])
    parts = train, valid, Part(*test)
    if setup.quick:
        parts = train.first(4000), valid.first(500), parts[2].first(500)
    mean, std = float(parts[0].x.mean()), float(parts[0].x.std())
    flat = [Part(((p.x - mean) / std).reshape(len(p.x), -1), p.y) for p in parts]
    return Data(*flat, mean, std, setup.device)


class Run(NamedTuple):
    """Training losses, one a step, up to a diverged one, which is left out."""

    losses: list[float]
    diverged: bool

    def loss(self) -> float:
        """The median of the last 20 losses; of a diverged run, that of guessing or the last one, whichever is larger."""
        last = float(np.median(self.losses[-20:])) if self.losses else GUESSING
        return max(GUESSING, last) if self.diverged else last


def train(
    network: tg.nn.Module,
    part: Part,
    lr: float,
    steps: int,
    batch: int,
    seed: int,
    device: str = "cpu",
    optimizer: Any = None,
    before_step: Callable[[int, Any, Any], None] | None = None,
    loss_of: Callable = tg.cross_entropy,
    shuffle: bool = True,
) -> Run:
    """Train by SGD without momentum (or ``optimizer``) on shuffled batches: the same seed gives the same batches.

    A run has diverged, and ends, when its loss is not finite or more than ten times the first one.
    ``before_step(step, images, labels)`` is called before each step; images and labels are tensors.
    """
    network.to(device)
    optimizer = tg.optim.SGD(network.parameters(), lr=lr) if optimizer is None else optimizer
    losses: list[float] = []
    with quietly():
        for step, (x, y) in enumerate(stream(part, steps, batch, seed, device, shuffle)):
            if before_step is not None:
                before_step(step, x, y)
            loss = loss_of(network(x), y)
            value = float(loss.item())
            if not value <= 10 * (losses[0] if losses else math.inf):
                return Run(losses, True)
            losses.append(value)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Run(losses, False)


def stream(
    part: Part, steps: int, batch: int, seed: int, device: str = "cpu", shuffle: bool = True
) -> Iterator[tuple[tg.Tensor, tg.Tensor]]:
    """Batches, shuffled unless told otherwise, epoch after epoch."""
    batches = tg.datasets.batches(part.x, part.y, batch, shuffle=shuffle, drop_last=True, seed=seed, device=device)

    def forever():
        while True:
            yield from batches

    for x, y in islice(forever(), steps):
        yield tg.Tensor(x), tg.Tensor(y)


@contextmanager
def quietly() -> Iterator[None]:
    """A network that diverges overflows; its loss tells."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def evaluate(network: Callable, part: Part, device: str = "cpu") -> tuple[float, float]:
    """Accuracy in per cent and mean loss, in eval mode; of a network whose output is not finite, 0 and the loss of guessing."""
    right, total = 0, 0.0
    was_training = network.training  # type: ignore[attr-defined]
    network.eval()  # type: ignore[attr-defined]
    with tg.no_grad(), quietly():
        for x, y in tg.datasets.batches(part.x, part.y, EVALUATED):
            logits = network(tg.tensor(x, device=device)).cpu()
            right += int((logits.numpy().argmax(1) == y).sum()) if np.isfinite(logits.numpy()).all() else 0
            total += float(tg.cross_entropy(logits, tg.Tensor(y)).item()) * len(y)
    network.train(was_training)  # type: ignore[attr-defined]
    loss = total / len(part.y)
    return (100 * right / len(part.y), loss) if math.isfinite(loss) else (0.0, GUESSING)


def accuracy(network: Callable, part: Part, device: str = "cpu") -> float:
    return evaluate(network, part, device)[0]


def weights(network: tg.nn.Module) -> list[tg.nn.Parameter]:
    """Those of its linear layers, in order."""
    return [module.weight for module in network.modules() if isinstance(module, tg.nn.Linear)]


class Line:
    """A network whose parameters can be moved against the gradient that the loss of a batch has where they are now."""

    def __init__(self, network: tg.nn.Module, x: tg.Tensor, y: tg.Tensor):
        self.network, self.x, self.y = network, x, y
        self.parameters = list(network.parameters())
        self.start = [p.data for p in self.parameters]
        self.slope: list[Any] = self.start
        self.height, self.slope = self.gradient(0)

    def places(self, wanted: list[tg.nn.Parameter]) -> list[int]:
        """Where these are among the parameters, and so in a gradient."""
        return [i for i, p in enumerate(self.parameters) if any(p is w for w in wanted)]

    def move(self, a: float) -> None:
        """To where a step of this length leads, in units of the gradient."""
        for p, start, g in zip(self.parameters, self.start, self.slope, strict=True):
            p.data = start - np.float32(a) * g if a else start

    def loss(self, a: float) -> float:
        self.move(a)
        with tg.no_grad(), quietly():
            return tg.cross_entropy(self.network(self.x), self.y).item()

    def gradient(self, a: float) -> tuple[float, list[Any]]:
        """The loss there, and an array for each of the parameters."""
        self.move(a)
        with quietly():
            loss = tg.cross_entropy(self.network(self.x), self.y)
            return loss.item(), [g.data for g in tg.grad(loss, self.parameters)]


def he_linear(inputs: int, outputs: int, bias: bool) -> tg.nn.Linear:
    """A layer with He's initial weights, and zeros for its bias: the same weights with one and without."""
    layer = tg.nn.Linear(inputs, outputs, bias=False)
    tg.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if bias:
        layer.bias = tg.nn.Parameter(np.zeros(outputs, np.float32))
    return layer


def best_lr(done: Results, **where: Any) -> float:
    """The learning rate at which the first seed has the highest validation accuracy."""
    records = done.of(**where, seed=min(done.each("seed")))
    return max(records, key=lambda r: r.result["valid"]).trial["lr"]


def at_best_lr(done: Results, over: str, **where: Any) -> Results:
    """The runs at the learning rate chosen for each value of ``over``."""
    best = {r.trial[over]: best_lr(done, **where, **{over: r.trial[over]}) for r in done.of(**where)}
    return Results(r for r in done.of(**where) if r.trial["lr"] == best[r.trial[over]])
