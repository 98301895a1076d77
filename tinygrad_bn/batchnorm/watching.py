"""``watch``: listens to the user's own training and evaluation, and says which modes and batches it saw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import nn
from ..backend import to_numpy
from ..core import Box, Listener, listening
from .diagnosis import diagnose
from .layers import BatchNorm, examining, layers, need_model
from .measures import quietly
from .reading import RECALIBRATE
from .report import Finding, Report


@dataclass
class Pass:
    """One forward pass of the model: its examples, how many BatchNorms normalised by the batch, whether a gradient ran back."""

    examples: int = 0
    by_batch: int = 0
    by_running: int = 0
    frozen: int = 0
    learned: bool = False
    refused: bool = False  # an error ended it in a BatchNorm
    single: bool = False  # whose input had one value per channel
    moved: float = 0.0  # how far the running means went, in standard deviations
    first: str = ""  # the first BatchNorm
    scores: list[tuple[float, float | None]] = field(default_factory=list)  # of cross_entropy: loss, accuracy


class Watch(Listener):
    """Hears the forward passes of one model, and the gradients that run back through them. ``watch`` makes it."""

    def __init__(self, model: nn.Module):
        self.model = need_model("watch", model)
        self.paths = {id(layer): path for path, layer in layers(model)}
        self.passes: list[Pass] = []
        self._depth = 0
        self._now: Pass | None = None
        self._in: list[tuple[Any, Any]] = []  # BatchNorms being called, and their running mean and variance before
        self._of_node: dict[int, Pass] = {}  # by the number of a node recorded in a BatchNorm: its pass
        self._outputs: list[tuple[Any, Pass]] = []
        self._heard = False  # whether the innermost BatchNorm has begun
        self._last: int | None = None  # values per channel of what the last operation outside made

    # ----- what the engine tells

    def enter_module(self, module: Any) -> None:
        if examining.get():  # diagnose() or recalibrate() within the block
            return
        if module is self.model:
            self._depth += 1
            if self._depth == 1:
                self._now = Pass()
                self.passes.append(self._now)
        if id(module) in self.paths:
            if self._now is None:  # a part of the model, called by itself
                self._now = Pass()
                self.passes.append(self._now)
            self._in.append((module, (module.running_mean, module.running_var)))
            self._heard = False
            self._now.first = self._now.first or self.paths[id(module)]
            if module.frozen:
                self._now.frozen += 1
            elif module.training or module.running_mean is None:
                self._now.by_batch += 1
            else:
                self._now.by_running += 1

    def apply(self, name: str, inputs: tuple, _options: dict, out: Any, _aux: Any, node: Any) -> None:
        if examining.get():
            return
        if self._in and self._now is not None:
            x = inputs[0]
            if node is not None:
                self._of_node[node.number] = self._now
            if not self._heard:  # the first operation in the layer is given the layer's input
                self._heard = True
                self._now.examples = max(self._now.examples, x.shape[0])
        elif name == "cross_entropy" and len(inputs) >= 2:
            self._score(inputs[0], inputs[1], out)
        if not self._in:
            self._last = out.size // out.shape[1] if out.ndim > 1 and out.shape[1] else None

    def exit_module(self, module: Any, out: Any) -> None:
        if examining.get():
            return
        if self._in and self._in[-1][0] is module:
            _, before = self._in.pop()
            if self._now is not None:
                if out is None:
                    self._now.refused = True
                    self._now.single = not self._heard and self._last == 1  # it raised before its first operation
                elif before[0] is not None and module.running_mean is not before[0]:
                    self._now.moved = max(self._now.moved, _distance(module, before))
                if self._depth == 0 and not self._in:
                    self._now = None
        if module is self.model:
            self._depth -= 1
            if self._depth == 0 and self._now is not None:
                if isinstance(out, Box):
                    self._outputs = [(out._data, self._now), *self._outputs[:7]]
                self._now = None

    def before_rule(self, node: Any, _g: Any) -> None:
        if (found := self._of_node.pop(node.number, None)) is not None:
            found.learned = True

    def _score(self, logits: Any, labels: Any, loss: Any) -> None:
        for made, its in self._outputs:
            if made is logits:
                raw, told = to_numpy(logits), to_numpy(labels)
                right = 100 * float((raw.argmax(1) == told).mean()) if raw.ndim == 2 and told.ndim == 1 else None
                its.scores.append((float(to_numpy(loss).mean()), right))

    # ----- what it says

    def report(self, train_batches: Any = None, eval_batches: Any = None, **options: Any) -> Report:
        """What was seen so far, worst finding first.

        A pass through which a gradient ran back counts as training, any other as evaluation. Accuracy and loss in the evidence
        are those of the program's own ``cross_entropy``, if it took any. Without batches the model is not run, and findings
        have no ``cost``; with them it is ``diagnose(model, train_batches, eval_batches, **options)`` beside what was seen.
        """
        with quietly():
            seen = [*self._modes(), *self._ones()]
        if train_batches is None:
            return Report(type(self.model).__name__, seen, by="watch")
        run = diagnose(self.model, train_batches, eval_batches, **options)
        for finding in seen:
            finding.cost = run.cost
        both = [f for f in run.findings if f.code not in {s.code for s in seen}]
        return Report(run.model, seen + both, run.cost, run.layers, run.trouble, by="watch and diagnose")

    def _modes(self) -> Iterator[Finding]:
        training = [p for p in self.passes if p.learned]
        others = [p for p in self.passes if not p.learned and not p.refused]
        wrong = [p for p in others if p.by_batch]
        proper = [p for p in others if not p.by_batch and p.by_running]
        frozen = [p for p in training if p.by_running]
        trained = [p for p in training if p.by_batch]
        tracking = [p for p in wrong if p.moved > 0]
        if wrong and not proper:
            yield Finding(
                "evaluated_in_training_mode",
                "error",
                wrong[0].first,
                "Passes through which no gradient went back normalised by the batch: evaluation in training mode. What is "
                "said of an example then depends on the others in its batch, Dropout drops, and the running statistics "
                "learn from evaluation data. Call model.eval() before evaluating.",
                "model.eval()  # before evaluating; and model.train() before training goes on",
                {
                    "passes": len(wrong),
                    "examples": sum(p.examples for p in wrong),
                    "of_evaluation_passes": len(others),
                    **_seen(wrong),
                },
            )
        if tracking and proper:
            yield Finding(
                "updated_by_evaluation",
                "error",
                tracking[0].first,
                "Passes without a gradient, in training mode, moved the running statistics: a validation loss taken before "
                "model.eval(), or a pass to look at something. Evaluation then uses statistics of that data, in its order. "
                "no_grad() does not stop this: BatchNorm follows every batch in training mode.",
                f"{RECALIBRATE}  # and call model.eval() before every evaluation",
                {
                    "passes": len(tracking),
                    "running_mean_moved_by": sum(p.moved for p in tracking),
                    **_seen(tracking),
                    "proper_evaluation": _seen(proper),
                },
            )
        elif wrong and proper:
            yield Finding(
                "evaluated_in_training_mode",
                "warning",
                wrong[0].first,
                "Some passes through which no gradient went back normalised by the batch, others by the running statistics.",
                "model.eval()  # before evaluating; and model.train() before training goes on",
                {"passes": len(wrong), "of_evaluation_passes": len(others), **_seen(wrong)},
            )
        if frozen:
            yield Finding(
                "trained_in_eval_mode",
                "error" if len(frozen) > len(trained) else "warning",
                frozen[0].first,
                "Gradients went back through BatchNorm in evaluation mode: it did not normalise, and its running statistics "
                "did not follow the weights, which moved on. As a rule model.train() is missing after an evaluation. To "
                "hold BatchNorm still on purpose, tg.batchnorm.freeze(model) says so, and is not reported.",
                "model.train()  # then train on",
                {"training_passes_in_evaluation_mode": len(frozen), "of_training_passes": len(training), **_seen(frozen)},
            )

    def _ones(self) -> Iterator[Finding]:
        ones = [p for p in self.passes if p.by_batch and (p.refused and p.single or p.examples == 1)]
        if ones:
            refused = sum(p.refused for p in ones)
            yield Finding(
                "batch_of_one",
                "error" if refused else "warning",
                ones[0].first,
                "A batch of one example in training mode: "
                + (
                    "a channel with a single value has no variance, and BatchNorm raises."
                    if refused
                    else "each channel is normalised by the positions of that one image."
                ),
                "train_batches = [batch for batch in train_batches if len(batch[0]) > 1]",
                {"passes": len(ones), "refused": refused},
            )


def _distance(layer: BatchNorm, before: tuple[Any, Any]) -> float:
    """How far the running mean went: median over channels, in running standard deviations."""
    old, var = (to_numpy(b._data).astype(float) for b in before)
    new = to_numpy(layer.running_mean._data).astype(float)  # type: ignore[union-attr]
    return float(np.median(np.abs(new - old) / np.sqrt(var + layer.eps)))


def _seen(passes: list[Pass]) -> dict[str, Any]:
    """The mean loss and accuracy that the program took of these passes."""
    scores = [s for p in passes for s in p.scores]
    known = [a for _, a in scores if a is not None]
    found: dict[str, Any] = {"loss_seen": float(np.mean([s for s, _ in scores]))} if scores else {}
    return {**found, "accuracy_seen": float(np.mean(known))} if known else found


@contextmanager
def watch(model: nn.Module) -> Iterator[Watch]:
    """Listen to what this block does with the model: ``with watch(model) as seen: ...``, then ``seen.report()``.

    Nothing in the model changes, and no operation is touched; the engine tells what it does. While somebody listens, nodes keep
    all their arrays, so a block uses more memory than without. Raises TypeError for no Module, ValueError for no BatchNorm.
    """
    with listening(Watch(model)) as seen:
        yield seen
