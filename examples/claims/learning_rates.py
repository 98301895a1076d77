"""BatchNorm lets the learning rate rise: the highest that trains deep networks of ReLUs and of sigmoids, with and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import GUESSING, Data, accuracy, train

import tinygrad_bn as tg

QUESTION = "Does BatchNorm let a network train at a higher learning rate?"
SOURCE = (
    "Ioffe & Szegedy 2015, section 4.2: with BatchNorm, Inception trains at 5 and at 30 times its learning rate, and with "
    "sigmoids too."
)
SETUP = (
    "784-128x8-10, ReLU with He's initial weights, and sigmoid with Glorot's; one epoch of MNIST in batches of 128, SGD "
    "without momentum; learning rates from 0.001 to 31.6 in half decades. The same weights and batches in both arms."
)
CRITERIA = {
    "ratio": Criterion(
        "BatchNorm raises the highest learning rate that trains at least five times (ReLU)",
        "highest learning rate that trains with BatchNorm, divided by that without; it trains if it does not diverge and its "
        "training loss at the end is below half of guessing",
        low=5,
        rule="every seed",
        ratio=True,
    ),
    "sigmoid_plain": Criterion(
        "Eight layers of sigmoids do not train without BatchNorm",
        "best test accuracy over all learning rates, without BatchNorm",
        high=20,
        rule="every seed",
        unit="%",
    ),
    "sigmoid_batchnorm": Criterion(
        "With BatchNorm they train",
        "best test accuracy over all learning rates, with BatchNorm",
        low=90,
        rule="every seed",
        unit="%",
    ),
}

GRID = [10 ** (k / 2) for k in range(-6, 4)]
ARMS = {"plain": None, "batchnorm": "batch"}
SIZES = (784, *[128] * 8, 10)
BATCH = 128


def trials(setup: Setup, done: Results) -> list[Trial]:
    return [
        {"activation": activation, "arm": arm, "lr": lr, "seed": seed, "steps": 20 if setup.quick else 390}
        for seed in setup.seeds
        for activation in ("relu", "sigmoid")
        for arm in ARMS
        for lr in (GRID[2::3] if setup.quick else GRID)
    ]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    tg.manual_seed(trial["seed"])
    network = tg.models.mlp(SIZES, norm=ARMS[trial["arm"]], activation=trial["activation"])
    r = train(network, data.train, trial["lr"], trial["steps"], BATCH, trial["seed"], data.device)
    return {
        "diverged": r.diverged,
        "loss": r.loss(),
        "trains": not r.diverged and r.loss() < GUESSING / 2,
        "accuracy": 0.0 if r.diverged else accuracy(network, data.test, data.device),
    }


def highest(done: Results, arm: str, seed: int) -> float:
    """The highest learning rate that trains the ReLU network; below the grid if none does."""
    records = done.of(activation="relu", arm=arm, seed=seed)
    below = GRID[0] / (GRID[1] / GRID[0])
    return max((r.trial["lr"] for r in records if r.result["trains"]), default=below)


def findings(done: Results) -> dict[str, Finding]:
    seeds = done.each("seed")
    ratios = [highest(done, "batchnorm", seed) / highest(done, "plain", seed) for seed in seeds]
    best = {arm: [max(done.values("accuracy", activation="sigmoid", arm=arm, seed=seed)) for seed in seeds] for arm in ARMS}
    return {
        "ratio": judge(CRITERIA["ratio"], ratios),
        "sigmoid_plain": judge(CRITERIA["sigmoid_plain"], best["plain"]),
        "sigmoid_batchnorm": judge(CRITERIA["sigmoid_batchnorm"], best["batchnorm"]),
    }


def headline(done: Results) -> str:
    ratio = findings(done)["ratio"].mean
    return f"BatchNorm raises the highest learning rate that trains {number(ratio)} times"


def remarks(done: Results) -> list[str]:
    best = {
        arm: max(np.mean(done.values("accuracy", activation="relu", arm=arm, lr=lr)) for lr in done.each("lr")) for arm in ARMS
    }
    return [
        "The grid steps by a factor of 3.16, so the ratio is known to within that factor.",
        f"Best against best, the ReLU networks end at {best['plain']:.1f} % without and {best['batchnorm']:.1f} % with "
        "BatchNorm (test accuracy, mean over seeds, after one epoch).",
        "The paper's often quoted factor of 14 in steps is BatchNorm and six other changes together; BatchNorm alone gave 2.3.",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    top = 3.0
    arms = (
        ("plain", "without BatchNorm", style.PLAIN, style.DASHED, "o open"),
        ("batchnorm", "with BatchNorm", style.BATCHNORM, style.SOLID, "o"),
    )
    panels = canvas.panels(["8 layers, ReLU", "8 layers, sigmoid"])
    canvas.key(*(arm[1:] for arm in arms), ("diverged", style.WRONG, "", "x"))
    lrs = sorted(done.each("lr"))
    for axes, activation in zip(panels, ("relu", "sigmoid"), strict=True):
        axes.set_xscale("log")
        axes.set_ylim(0, top)
        for arm, _, colour, line, mark in arms:
            aside = 1.06 if arm == "batchnorm" else 1 / 1.06  # so that both can be told apart
            middle = []
            for lr in lrs:
                results = [r.result for r in done.of(activation=activation, arm=arm, lr=lr)]
                losses = [top if r["diverged"] else min(r["loss"], top) for r in results]
                fine = [loss for loss, r in zip(losses, results, strict=True) if not r["diverged"]]
                style.dots(axes, [lr * aside] * len(fine), fine, colour, filled=mark == "o")
                if len(fine) < len(losses):
                    style.look.cross(axes, lr * aside, top)
                middle.append(np.median(losses))
            axes.plot(lrs, middle, color=colour, linestyle=line)
        style.threshold(axes, GUESSING / 2, "trains below", at=0.66 if activation == "relu" else 0.4)
        style.look.plain_ticks(axes.xaxis, lrs, [lr for lr in lrs if abs(np.log10(lr) - round(np.log10(lr))) < 0.01])
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss at the end")
