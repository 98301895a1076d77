"""``diagnose``: reads a model, runs it in both modes, and says what is wrong between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import nn
from ..ops import cross_entropy
from ..optim.optimizer import Optimizer
from . import reading, running
from .layers import as_pairs, layers, need_model, unchanged
from .measures import Harm, Pairs, harm_of, meet, on_device, quietly, score
from .recalibration import measure
from .report import Cost, Finding, Report
from .trace import Trace, trace

# What explains statistics_far: these anywhere, and those in a layer before.
CAUSES = ("dependent_batches", "dropout_before_batchnorm", "nonfinite_statistics", "small_statistics_batch")
UPSTREAM = ("dead_channel", "gamma_near_zero")


def diagnose(
    model: nn.Module,
    train_batches: Any,
    eval_batches: Any = None,
    *,
    loss: Callable = cross_entropy,
    optimizer: Optimizer | None = None,
) -> Report:
    """Examine a model with BatchNorm by reading it and running it in both modes; returns a Report, worst finding first.

    ``train_batches`` and ``eval_batches`` are iterables of (x, y) or x, that end; a few dozen training batches, as training
    sees them, are enough. The running statistics are held against those of the training batches. Losses and accuracies are
    measured on ``eval_batches``, or on the training batches if there are none; ``loss(output, y)`` gives a scalar. With the
    ``optimizer``, its weight decay is looked at too.

    The model is not changed: buffers, modes and the random state are restored, also after an error; no gradient is touched.

    Raises TypeError for what is no Module, no batches or no optimizer, ValueError for no batches or a model without BatchNorm,
    and whatever the model raises on the batches, unless reading it has found an error that explains that.
    """
    layers(need_model("diagnose", model))
    if not callable(loss):
        raise TypeError(f"diagnose expected loss to be a function of output and labels, got {type(loss).__name__}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"diagnose expected optimizer to be an Optimizer, got {type(optimizer).__name__}")
    pairs = on_device(model, as_pairs("diagnose", train_batches))
    held_out = pairs if eval_batches is None else on_device(model, as_pairs("diagnose", eval_batches))
    with unchanged(model):
        return _Examination(model, pairs, held_out, eval_batches is not None, loss).report(optimizer)


class _Examination:
    """What is measured in one diagnosis. Every pass leaves the buffers as the next one needs them."""

    def __init__(self, model: nn.Module, pairs: Pairs, held_out: Pairs, given: bool, loss: Callable):
        self.model, self.pairs, self.held_out, self.given, self.loss = model, pairs, held_out, given, loss
        self.trouble: list[str] = []
        self.harm = Harm()
        self.cost: Cost | None = None

    def report(self, optimizer: Optimizer | None) -> Report:
        model = self.model
        found = [*reading.half_precision(model), *reading.weight_decay(model, optimizer), *reading.small_gamma(model)]
        rows: list[dict[str, Any]] = []
        try:
            rows = self.run(found)
        except Exception as error:
            found += reading.nonfinite(model, [])
            if not any(f.severity == "error" for f in found):
                raise
            self.trouble.append(f"the model could not be run: {type(error).__name__}: {error}")
        for finding in found:
            finding.cost = self.cost
        return Report(type(model).__name__, found, self.cost, rows, "; ".join(self.trouble))

    def run(self, found: list[Finding]) -> list[dict[str, Any]]:
        model = self.model
        with unchanged(model):
            met, refused = meet(model, self.pairs)
        usable = [pair for pair in self.pairs if pair[0].shape[0] > 1] or self.pairs
        with unchanged(model), quietly():
            in_training = trace(model.train(), usable[0][0]) if met else Trace()
        found += reading.nonfinite(model, [m.path for m in met])
        if unmet := running.unmet(model, met):
            self.trouble.append(f"never called: {', '.join(unmet)}")
        precise = self.measure_cost(met)
        rows = running.rows_of(met, precise)
        found += running.batch_of_one(refused, len(self.pairs), layers(model)[0][0])
        found += running.dependent(met, self.pairs, self.harm)
        found += running.small_batches(rows)
        found += running.dropout(model, in_training, met, rows, precise, self.harm)
        found += reading.dead_channels(model, met, in_training)
        found += self.unexplained(found, list(running.statistics(rows, self.harm)), [m.path for m in met])
        found += reading.variance_near_eps(met)
        found += reading.bias_before(model, in_training)
        return rows

    def unexplained(self, found: list[Finding], about: list[Finding], order: list[str]) -> list[Finding]:
        """Without ``statistics_far`` where it is the effect of what was found already: the cause then has its severity."""
        for finding in [f for f in about if f.code == "statistics_far"]:
            at = min(order.index(path) for path in finding.evidence["layers"])
            for cause in [f for f in found if f.severity != "note"]:
                upstream = cause.code in UPSTREAM and cause.layer in order[:at]
                if cause.code in CAUSES or upstream:
                    about = [f for f in about if f is not finding]
                    cause.severity = "error" if upstream and finding.severity == "error" else cause.severity
        return about

    def measure_cost(self, met: list[Any]) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
        """Scores the model in three ways; returns the precise statistics, None where they cannot be taken."""
        model, loss, held_out = self.model, self.loss, self.held_out
        with unchanged(model):
            by_batch, _ = score(model, held_out, loss, batch_statistics=True)
        evaluated, right = score(model, held_out, loss)
        precise, precise_score, precise_right = None, None, np.array([], bool)
        if any(layer.running_mean is not None for _, layer in layers(model)):
            with unchanged(model), quietly():
                try:
                    precise = measure(model, [x for x, _ in self.pairs])
                    precise_score, precise_right = score(model, held_out, loss, tops=met)
                except ValueError as error:
                    self.trouble.append(f"precise statistics could not be taken: {error}")
        on = "evaluation data" if self.given else "training data"
        self.cost = Cost(by_batch, evaluated, precise_score, on, sum(x.shape[0] for x, _ in held_out))
        self.harm = harm_of(right, precise_right)
        return precise
