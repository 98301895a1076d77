"""Batches of two classes: what they cost BatchNorm, and what Batch Renormalization makes good."""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import Data, Part, accuracy, train, weights

import tinygrad_bn as tg
from tinygrad_bn import nn

QUESTION = "Can a network with BatchNorm learn from batches of only two classes?"
SOURCE = "Ioffe 2017, 'Batch Renormalization': batches in which few classes occur, more than once each."
SETUP = (
    "784-100-100-100-10, sigmoid, 1,500 steps of SGD without momentum on MNIST, in batches of 32: sixteen images of each of "
    "two classes, or shuffled. Batch Renormalization with r from 1/3 to 3 and d up to 5, after a fifth of the steps with "
    "r = 1 and d = 0. Learning rates from 0.01 to 1, each arm's best on validation images in runs of one seed."
)
CRITERIA = {
    "recovered": Criterion(
        "Batch Renormalization makes good more than half of what batches of two classes cost BatchNorm",
        "(Renorm - BatchNorm) / (BatchNorm on shuffled batches - BatchNorm), test accuracy after batches of two classes, at "
        "each arm's best learning rate (0 if they cost less than a point)",
        low=0.5,
    ),
}

ARMS = {
    "shuffled": ("BatchNorm, shuffled", style.BATCHNORM, style.DASHED, "o open"),
    "batchnorm": ("BatchNorm", style.BATCHNORM, style.SOLID, "o"),
    "renorm": ("Batch Renormalization", style.STATISTIC, style.SOLID, "D"),
    "layernorm": ("LayerNorm", style.LAYERNORM, style.DOTTED, "s"),
}
GRID, SAME, BATCH = [0.01, 0.03, 0.1, 0.3, 1.0], 0.1, 32


class BatchRenorm(nn.BatchNorm1d):
    """gamma (x_hat r + d) + beta; r and d, constants for the gradient, lead from the batch's statistics to the running ones."""

    warm_up = 0  # steps with r = 1 and d = 0, while the running statistics form

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        mean, sd = self.running_mean, (self.running_var + self.eps).sqrt()  # before this batch
        y = super().forward(x)
        if not self.training or self.num_batches_tracked <= self.warm_up:
            return y
        batch = x.detach()
        r = ((batch.var(0) + self.eps).sqrt() / sd).clip(1 / 3, 3)
        d = ((batch.mean(0) - mean) / sd).clip(-5, 5)
        return (y - self.bias) * r + self.weight * d + self.bias


def paired_classes(part: Part, steps: int, seed: int) -> Part:
    """Batches of 32: sixteen images of each of two classes."""
    rng = np.random.default_rng(seed)
    of = [np.flatnonzero(part.y == c) for c in range(10)]
    rows = np.concatenate([rng.choice(of[c], 16) for _ in range(steps) for c in rng.choice(10, 2, replace=False)])
    return Part(part.x[rows], part.y[rows])


def trials(setup: Setup, done: Results) -> list[Trial]:
    steps = 60 if setup.quick else 1500
    grid = GRID[2:4] if setup.quick else GRID
    picks = [{"kind": "pick", "arm": arm, "lr": lr, "seed": setup.seeds[0], "steps": steps} for arm in ARMS for lr in grid]
    if list(done.missing(picks)):
        return picks
    rates = dict.fromkeys([(arm, SAME) for arm in ARMS] + [(arm, best(done, arm)) for arm in ARMS])
    return picks + [
        {"kind": "run", "arm": arm, "lr": lr, "seed": seed, "steps": steps} for seed in setup.seeds for arm, lr in rates
    ]


def best(done: Results, arm: str) -> float:
    """The learning rate of the highest validation accuracy."""
    return max(done.of(kind="pick", arm=arm), key=lambda r: r.result["accuracy"]).trial["lr"]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    arm, seed, steps = trial["arm"], trial["seed"], trial["steps"]
    tg.manual_seed(seed)
    network = tg.models.mlp(norm="layer" if arm == "layernorm" else "batch")
    if arm == "renorm":
        network = nn.Sequential(*(BatchRenorm(100) if isinstance(layer, nn.BatchNorm1d) else layer for layer in network))
        for layer in network:
            layer.warm_up = steps // 5
    part = data.train if arm == "shuffled" else paired_classes(data.train, steps, seed)
    r = train(network, part, trial["lr"], steps, BATCH, seed, data.device, shuffle=arm == "shuffled")
    seen = data.valid if trial["kind"] == "pick" else data.test
    return {
        "diverged": r.diverged,
        "accuracy": 0.0 if r.diverged else accuracy(network, seen, data.device),
        "weight": float((weights(network)[2].detach().cpu().numpy() ** 2).sum(1).mean()),
    }


def accuracies(done: Results, arm: str, tuned: bool = True) -> list[float]:
    return done.values("accuracy", kind="run", arm=arm, lr=best(done, arm) if tuned else SAME)


def recovered(done: Results, tuned: bool = True) -> list[float]:
    """The share for each seed."""
    arms = (accuracies(done, arm, tuned) for arm in ("shuffled", "batchnorm", "renorm"))
    return [(renorm - bn) / (iid - bn) if iid - bn >= 1 else 0.0 for iid, bn, renorm in zip(*arms, strict=True)]


def findings(done: Results) -> dict[str, Finding]:
    return {"recovered": judge(CRITERIA["recovered"], recovered(done))}


def headline(done: Results) -> str:
    iid, bn, renorm = (np.mean(accuracies(done, arm)) for arm in ("shuffled", "batchnorm", "renorm"))
    return f"On batches of two classes BatchNorm ends at {bn:.1f} %, Batch Renorm at {renorm:.1f} % (shuffled: {iid:.1f} %)"


def remarks(done: Results) -> list[str]:
    same = {arm: np.mean(accuracies(done, arm, tuned=False)) for arm in ARMS}
    rates = ", ".join(f"{name} {number(best(done, arm))}" for arm, (name, *_) in ARMS.items())
    runs = done.of(kind="run", arm="batchnorm", lr=best(done, "batchnorm"))
    eta = np.mean([r.trial["lr"] / r.result["weight"] for r in runs])
    return [
        f"The best learning rates are: {rates}.",
        f"At {SAME} in all arms the accuracies are {', '.join(f'{a:.1f} %' for a in same.values())} (same order), and the "
        f"recovered share is {number(float(np.mean(recovered(done, tuned=False))))}.",
        f"LayerNorm, which depends on no batch, ends at {np.mean(accuracies(done, 'layernorm')):.1f} % on batches of two "
        "classes: their order costs something without batch statistics too.",
        f"The effective rate of BatchNorm's last hidden layer, learning rate / |w|^2, is {number(float(eta))} at the end; "
        "the paper trained Inception on batches of 16 labels with two images each.",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    panels = canvas.panels([f"Learning rate {SAME}", "Each arm's best rate"], sharex=True)
    for axes, tuned in zip(panels, (False, True), strict=True):
        for i, (arm, (_, colour, _, mark)) in enumerate(ARMS.items()):
            values = accuracies(done, arm, tuned)
            style.dots(axes, values, [i] * len(values), colour, mark[:1], not mark.endswith("open"))
            axes.plot([np.median(values)] * 2, [i - 0.25, i + 0.25], color=colour)
        axes.tick_params(labelbottom=True)  # though the axis is shared
        axes.set_yticks(range(len(ARMS)), [name.replace("Renormalization", "Renorm") for name, *_ in ARMS.values()])
        axes.set(xlabel="test accuracy, %", ylim=(len(ARMS) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x")
