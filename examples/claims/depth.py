"""BatchNorm makes gradients explode with depth, as a law predicts; what trains deep networks is BatchNorm with skips."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import Data, accuracy, at_best_lr, best_lr, he_linear, train

import tinygrad_bn as tg

QUESTION = "Does BatchNorm let deep networks train?"
SOURCE = (
    "Yang et al. 2019, theorem 8: in a network of ReLUs with BatchNorm the squared gradient grows by at least pi / (pi - 1) = "
    "1.47 a layer; deeper than about 50 layers they do not train, unless beta is large. Skips: He et al. 2016."
)
SETUP = (
    "Law: 24 layers of width 512 at random initial weights, Gaussian inputs and output gradients in batches of 16, 64 and "
    "256, layers 4 to 20, mean of 4 networks. Training: 784-128xL-10 (ReLU, He's weights), 300 steps of SGD on batches "
    "of 64 MNIST images; learning rate 0.01, 0.03 or 0.1, chosen for each kind and depth by the validation accuracy of seed 0."
)
CRITERIA = {
    "law": Criterion(
        "The gradient grows from layer to layer as the mean-field law says",
        "largest |measured / predicted - 1| of the growth of the squared gradient a layer, for batches of 16, 64 and 256",
        high=0.03,
        rule="every seed",
    ),
    "batchnorm": Criterion(
        "BatchNorm alone does not train networks of more than 50 layers",
        "deepest network with BatchNorm and without skips that reaches 90 % test accuracy",
        high=50,
        rule="every seed",
        unit="layers",
    ),
    "skips": Criterion(
        "BatchNorm with skips trains a network of 80 layers",
        "deepest network with BatchNorm and skips that reaches 90 % test accuracy",
        low=80,
        rule="every seed",
        unit="layers",
    ),
}

NAMES = {"plain": "plain", "batchnorm": "BatchNorm", "skips": "BatchNorm and skips", "beta": "BatchNorm, beta = 2"}
ARMS = tuple(NAMES)
DEPTHS, LRS = (5, 10, 20, 40, 80), (0.01, 0.03, 0.1)
WIDTH, BATCH, TRAINS = 128, 64, 90
BATCHES = (16, 64, 256)
THEORY_WIDTH, THEORY_DEPTH, NETWORKS, MIDDLE = 512, 24, 4, (4, 20)


def trials(setup: Setup, done: Results) -> list[Trial]:
    """Seed 0 at all learning rates, and the other seeds at the best."""

    def training(arm: str, depth: int, lr: float, seed: int) -> Trial:
        return {"part": "training", "arm": arm, "depth": depth, "lr": lr, "seed": seed, "steps": 20 if setup.quick else 300}

    kinds = [(arm, depth) for depth in (DEPTHS[:3:2] if setup.quick else DEPTHS) for arm in ARMS]
    first, *others = setup.seeds
    grid = [training(*kind, lr, first) for kind in kinds for lr in (LRS[1:] if setup.quick else LRS)]
    wanted = [{"part": "law", "seed": seed} for seed in setup.seeds] + grid
    if not any(done.missing(grid)):
        rest = [(seed, *kind) for seed in others for kind in kinds]
        wanted += [training(arm, depth, best_lr(done, arm=arm, depth=depth), seed) for seed, arm, depth in rest]
    return wanted


class Network(tg.nn.Module):
    """``depth`` layers of weights and a last one; skips lead around all between the first and the last."""

    def __init__(self, arm: str, depth: int):
        def norm() -> list[tg.nn.Module]:
            layers = [] if arm == "plain" else [tg.nn.BatchNorm1d(WIDTH)]
            for layer in layers if arm == "beta" else []:
                tg.nn.init.constant_(layer.bias, 2.0)
            return [*layers, tg.nn.ReLU()]

        self.skips = arm == "skips"
        self.first = he_linear(784, WIDTH, arm == "plain")
        self.blocks = tg.nn.ModuleList(
            tg.nn.Sequential(*norm(), he_linear(WIDTH, WIDTH, arm == "plain")) for _ in range(depth - 1)
        )
        self.last = tg.nn.Sequential(*norm(), he_linear(WIDTH, 10, True))

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h) if self.skips else block(h)
        return self.last(h)


def run(trial: Trial, data: Data) -> dict[str, Any]:
    return law(trial["seed"], data.device) if trial["part"] == "law" else training(trial, data)


def training(trial: Trial, data: Data) -> dict[str, Any]:
    tg.manual_seed(trial["seed"])
    network = Network(trial["arm"], trial["depth"])
    r = train(network, data.train, trial["lr"], trial["steps"], BATCH, trial["seed"], data.device)
    valid, test = (0.0 if r.diverged else accuracy(network, part, data.device) for part in (data.valid.first(2000), data.test))
    return {"diverged": r.diverged, "loss": r.loss(), "valid": valid, "accuracy": test}


def law(seed: int, device: str) -> dict[str, Any]:
    """By batch size: by what the squared gradient, mean of a few networks, grows a layer in the middle of the network."""
    squares = {batch: np.zeros(THEORY_DEPTH + 1) for batch in BATCHES}
    for i in range(NETWORKS):
        tg.manual_seed(NETWORKS * seed + i)
        sizes = [THEORY_WIDTH] * (THEORY_DEPTH + 2)
        network = tg.models.mlp(sizes, "batch", "relu").to(device).requires_grad_(False)  # no gradients of weights
        for batch, total in squares.items():
            h = tg.randn(batch, THEORY_WIDTH, device=device, requires_grad=True)
            inputs = []
            for layer in network:
                if isinstance(layer, tg.nn.Linear):
                    inputs.append(h)
                h = layer(h)
            gradients = tg.grad(h, inputs, tg.randn(*h.shape, device=device))
            total += [float((g * g).sum().item()) for g in gradients]
    low, high = MIDDLE
    return {str(batch): (total[low] / total[high]) ** (1 / (high - low)) for batch, total in squares.items()}


def predicted(batch: int) -> float:
    """By what the squared gradient grows a layer, for a batch of this size. Yang et al. 2019, theorem 8."""
    c = -1 / (batch - 1)  # the correlation of two examples
    j = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    slope = (math.pi - math.acos(c)) / math.pi
    return (slope + batch - 1) / ((batch - 3) * (1 - j)) - 1 / (batch - 3)


def deepest(records: Results) -> int:
    """The depth of the deepest network that trains; 0 if none does."""
    return max((r.trial["depth"] for r in records if r.result["accuracy"] >= TRAINS), default=0)


def limits(done: Results, arm: str) -> list[int]:
    """By seed, the deepest network that trains."""
    records = at_best_lr(done, "depth", arm=arm)
    return [deepest(records.of(seed=seed)) for seed in sorted(done.each("seed"))]


def findings(done: Results) -> dict[str, Finding]:
    laws = done.of(part="law")
    errors = [max(abs(r.result[str(batch)] / predicted(batch) - 1) for batch in BATCHES) for r in laws]
    return {
        "law": judge(CRITERIA["law"], errors),
        **{arm: judge(CRITERIA[arm], limits(done, arm)) for arm in ("batchnorm", "skips")},
    }


def headline(done: Results) -> str:
    limit = {arm: number(float(np.median(limits(done, arm)))) for arm in ARMS}
    return f"BatchNorm trains {limit['batchnorm']} layers, with skips {limit['skips']}; a plain network trains {limit['plain']}"


def remarks(done: Results) -> list[str]:
    depths, lrs, seed = sorted(done.each("depth")), sorted(done.each("lr")), min(done.each("seed"))
    by_batch = ", ".join(
        f"{np.mean(done.values(str(batch), part='law')):.3f} for {batch} ({predicted(batch):.3f})" for batch in BATCHES
    )
    same = ", ".join(f"{deepest(done.of(arm=arm, lr=lrs[-1], seed=seed))} ({name})" for arm, name in NAMES.items())
    runs = {arm: at_best_lr(done, "depth", arm=arm).values("accuracy", depth=depths[-1]) for arm in ARMS}
    reached = {arm: float(np.mean(values)) for arm, values in runs.items()}
    return [
        f"The squared gradient grows a layer, by batch size and in brackets as predicted, by {by_batch}, mean over seeds.",
        f"The depths tried are {', '.join(map(str, depths))}, and a limit lies between one and the next. At the same learning "
        f"rate for all, {number(lrs[-1])}, the deepest networks of seed {seed} that train are {same}.",
        "A limit depends on the time given: the paper trained for ten epochs, 384 units a layer, at a learning rate of 1e-5 "
        "times the batch size.",
        f"With beta = 2, which damps the explosion, BatchNorm reaches {reached['beta']:.1f} % with {depths[-1]} layers; "
        f"with beta = 0 {reached['batchnorm']:.1f} %, and without BatchNorm {reached['plain']:.1f} % (mean over seeds).",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    arms = (
        ("plain", NAMES["plain"], style.PLAIN, style.DASHED, "o open"),
        ("batchnorm", NAMES["batchnorm"], style.BATCHNORM, style.SOLID, "o"),
        ("skips", NAMES["skips"], style.GRADIENT, style.DASHDOT, "s"),
        ("beta", NAMES["beta"], style.PARAMETER, style.DOTTED, "D"),
    )
    left, right = canvas.panels(["Squared gradient, random weights", "Training"])
    runs = [(at_best_lr(done, "depth", arm=arm), *how) for arm, _, *how in arms]
    diverged = any(r.result["diverged"] for records, *_ in runs for r in records)
    canvas.key(*(arm[1:] for arm in arms), *[("diverged", style.WRONG, "", "x")] * diverged)
    sizes = np.geomspace(10, 400, 50)
    law = np.array([predicted(batch) for batch in sizes])
    error = CRITERIA["law"].high
    left.fill_between(sizes, law * (1 - error), law * (1 + error), color=style.TEXT, alpha=0.1, linewidth=0)
    left.plot(sizes, law, color=style.TEXT, linewidth=1)
    left.annotate("predicted, ±3 %", (sizes[12], law[12]), (30, 18), textcoords="offset points")
    for batch in BATCHES:
        values = done.values(str(batch), part="law")
        style.dots(left, [batch] * len(values), values, style.BATCHNORM)
    left.set_xscale("log")
    style.look.plain_ticks(left.xaxis, BATCHES)
    left.set_xlabel("batch size")
    left.set_ylabel("growth a layer")
    style.accuracies(right, runs, "depth")
    style.threshold(right, TRAINS, "trains above", at=0.16, below=True)
    right.set_xlabel("layers")
