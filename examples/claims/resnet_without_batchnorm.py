"""BatchNorm makes residual branches small, and small branches train without it: SkipInit and Fixup against BatchNorm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import Data, accuracy, at_best_lr, best_lr, he_linear, train

import tinygrad_bn as tg

QUESTION = "Do residual networks need BatchNorm?"
SOURCE = (
    "De & Smith 2020: at random initial weights BatchNorm leaves the l-th residual branch a share of 1 / (l + 1), and a scalar "
    "that starts at 0 (SkipInit) does without it. Zhang, Dauphin & Ma 2019: so do scaled initial weights (Fixup)."
)
SETUP = (
    "784-128, L blocks h + branch(h), 10; branch: (norm, ReLU, 128) twice, He's weights. Share: 20 blocks of width 256 at "
    "random initial weights, 256 MNIST images, mean of 4 networks. Training: 300 steps of SGD on batches of 64; learning rate "
    "0.01, 0.1 or 1, chosen for each kind and depth by the validation accuracy of seed 0."
)
CRITERIA = {
    "share": Criterion(
        "With BatchNorm the l-th branch has a share of 1 / (l + 1) at random initial weights",
        "largest |share x (l + 1) - 1| over 20 blocks; share: mean square of the branch, divided by that of the block's output",
        high=0.1,
        rule="every seed",
    ),
    "needed": Criterion(
        "Without normalisation a residual network of 64 blocks does not train",
        "test accuracy of the best arm without normalisation, 64 blocks",
        high=90,
        rule="every seed",
        unit="%",
    ),
}

NORMS = {"batchnorm": "batch", "layernorm": "layer"}  # of the arms that have one
FREE = ("skipinit", "scaled", "fixup", "nothing")  # the arms without
ARMS = (*NORMS, *FREE)
BLOCKS, LRS = (4, 16, 64), (0.01, 0.1, 1.0)
WIDTH, BATCH = 128, 64
SHARE_WIDTH, SHARE_BLOCKS, SHARE_IMAGES, NETWORKS = 256, 20, 256, 4
SHARE_ARMS = ("batchnorm", "layernorm", "nothing")


def trials(setup: Setup, done: Results) -> list[Trial]:
    """Seed 0 at all learning rates, and the other seeds at the best."""

    def training(arm: str, blocks: int, lr: float, seed: int) -> Trial:
        return {"part": "training", "arm": arm, "blocks": blocks, "lr": lr, "seed": seed, "steps": 20 if setup.quick else 300}

    kinds = [(arm, blocks) for blocks in (BLOCKS[:2] if setup.quick else BLOCKS) for arm in ARMS]
    first, *others = setup.seeds
    grid = [training(*kind, lr, first) for kind in kinds for lr in (LRS[:2] if setup.quick else LRS)]
    wanted = [{"part": "share", "seed": seed} for seed in setup.seeds] + grid
    if not any(done.missing(grid)):
        rest = [(seed, *kind) for seed in others for kind in kinds]
        wanted += [training(arm, blocks, best_lr(done, arm=arm, blocks=blocks), seed) for seed, arm, blocks in rest]
    return wanted


class Block(tg.nn.Module):
    """h + branch(h), scaled as the arm says. Fixup's biases are those that layers have without normalisation anyway."""

    def __init__(self, arm: str, width: int, blocks: int):
        norm = NORMS.get(arm)
        first, last = (he_linear(width, width, norm is None) for _ in range(2))
        norms = [tg.models.normalisation(norm, width, spatial=False) for _ in range(2)]
        self.branch = tg.nn.Sequential(norms[0], tg.nn.ReLU(), first, norms[1], tg.nn.ReLU(), last)
        self.scale = 1 / math.sqrt(blocks) if arm == "scaled" else None
        if arm in ("skipinit", "fixup"):
            self.scale = tg.nn.Parameter(np.full(1, arm == "fixup", np.float32))  # learned, from 0 or 1
        if arm == "fixup":
            first.weight.data = first.weight.data * np.float32(blocks**-0.5)  # L^(-1 / (2m - 2)) for m = 2 layers
            tg.nn.init.zeros_(last.weight)

    def forward(self, h: tg.Tensor) -> tg.Tensor:
        branch = self.branch(h)
        return h + (branch if self.scale is None else branch * self.scale)


class Network(tg.nn.Module):
    def __init__(self, arm: str, width: int, blocks: int):
        self.first = tg.nn.Linear(784, width, bias=False)
        tg.nn.init.kaiming_normal_(self.first.weight, nonlinearity="linear")  # the first skip has variance 1
        self.blocks = tg.nn.Sequential(*(Block(arm, width, blocks) for _ in range(blocks)))
        last = he_linear(width, 10, True)
        if arm == "fixup":
            tg.nn.init.zeros_(last.weight)
        self.last = tg.nn.Sequential(tg.models.normalisation(NORMS.get(arm), width, spatial=False), tg.nn.ReLU(), last)

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return self.last(self.blocks(self.first(x)))


def run(trial: Trial, data: Data) -> dict[str, Any]:
    return shares(trial["seed"], data) if trial["part"] == "share" else training(trial, data)


def training(trial: Trial, data: Data) -> dict[str, Any]:
    tg.manual_seed(trial["seed"])
    network = Network(trial["arm"], WIDTH, trial["blocks"])
    r = train(network, data.train, trial["lr"], trial["steps"], BATCH, trial["seed"], data.device)
    valid, test = (0.0 if r.diverged else accuracy(network, part, data.device) for part in (data.valid.first(2000), data.test))
    return {"diverged": r.diverged, "loss": r.loss(), "valid": valid, "accuracy": test}


@tg.no_grad()
def shares(seed: int, data: Data) -> dict[str, Any]:
    """By arm, the share of each block's branch in its output; mean of a few networks."""
    x = tg.tensor(data.train.first(SHARE_IMAGES).x, device=data.device)
    found: dict[str, Any] = {}
    for arm in SHARE_ARMS:
        tg.manual_seed(seed)
        networks = []
        for _ in range(NETWORKS):
            network = Network(arm, SHARE_WIDTH, SHARE_BLOCKS).to(data.device)
            h, of_blocks = network.first(x), []
            for block in network.blocks:
                branch = block.branch(h)
                h = h + branch
                of_blocks.append(mean_square(branch) / mean_square(h))
            networks.append(of_blocks)
        found[arm] = np.mean(networks, axis=0)
    return found


def mean_square(h: tg.Tensor) -> float:
    return float((h * h).mean().item())


def predicted() -> np.ndarray:
    """The share of each block's branch where every branch has variance 1 and the first skip too."""
    return 1 / (np.arange(SHARE_BLOCKS) + 2)


def accuracies(done: Results, arm: str) -> list[float]:
    """By seed, the test accuracy of the deepest networks."""
    return at_best_lr(done, "blocks", arm=arm).values("accuracy", blocks=max(done.each("blocks")))


def findings(done: Results) -> dict[str, Finding]:
    errors = [float(np.max(np.abs(np.array(share) / predicted() - 1))) for share in done.values("batchnorm", part="share")]
    best = [max(of_seed) for of_seed in zip(*(accuracies(done, arm) for arm in FREE), strict=True)]
    return {"share": judge(CRITERIA["share"], errors), "needed": judge(CRITERIA["needed"], best)}


def headline(done: Results) -> str:
    mean = {arm: float(np.mean(accuracies(done, arm))) for arm in ARMS}
    best = max(FREE, key=lambda arm: mean[arm])
    return (
        f"{max(done.each('blocks'))} residual blocks reach {mean[best]:.1f} % without normalisation ({NAMES[best]}), "
        f"{mean['batchnorm']:.1f} % with BatchNorm"
    )


def remarks(done: Results) -> list[str]:
    most, lrs, seed = max(done.each("blocks")), sorted(done.each("lr")), min(done.each("seed"))
    best = ", ".join(
        f"{NAMES[arm]} {np.mean(accuracies(done, arm)):.1f} ({number(best_lr(done, arm=arm, blocks=most))})" for arm in ARMS
    )
    middle = lrs[len(lrs) // 2]
    runs = {arm: done.one(part="training", arm=arm, lr=middle, seed=seed, blocks=most)["accuracy"] for arm in ARMS}
    same = ", ".join(f"{NAMES[arm]} {reached:.1f}" for arm, reached in runs.items())
    return [
        f"Best against best with {most} blocks, test accuracy in % and in brackets the learning rate: {best}.",
        f"At the same learning rate for all, {number(middle)}, with seed {seed}: {same}; 0 is a run that diverged.",
        f"Learning rates below {number(lrs[0])} were not tried, and a network without normalisation may train at one.",
        "The papers compare on larger images, where it takes regularisation to reach the accuracy of BatchNorm.",
    ]


NAMES = {
    "batchnorm": "BatchNorm", "layernorm": "LayerNorm", "skipinit": "SkipInit", "scaled": "1 / sqrt(L)", "fixup": "Fixup",
    "nothing": "nothing",
}  # fmt: skip


def draw(done: Results, canvas: style.Canvas) -> None:
    looks = {
        "batchnorm": (style.BATCHNORM, style.SOLID, "o"),
        "layernorm": (style.LAYERNORM, style.DOTTED, "s"),
        "skipinit": (style.PARAMETER, style.DASHDOT, "D"),
        "scaled": (style.STATISTIC, style.DASHED, "s open"),
        "fixup": (style.GRADIENT, style.DASHDOT, "D open"),
        "nothing": (style.PLAIN, style.DASHED, "o open"),
    }
    left, right = canvas.panels(["Share of the branch, random weights", "Training"])
    canvas.key(*((NAMES[arm], *looks[arm]) for arm in ARMS), ("diverged", style.WRONG, "", "x"))
    blocks = np.arange(SHARE_BLOCKS) + 1
    left.plot(blocks, predicted(), color=style.TEXT, linewidth=1)
    left.annotate("1 / (l + 1)", (blocks[2], predicted()[2]), (4, 6), textcoords="offset points")
    for arm in SHARE_ARMS:
        colour, _, mark = looks[arm]
        for share in done.values(arm, part="share"):
            style.dots(left, blocks, share, colour, mark[0], filled=mark[1:] == "")
    left.set_xscale("log")
    left.set_yscale("log")
    style.look.plain_ticks(left.xaxis, [1, 2, 5, 10, 20])
    style.look.plain_ticks(left.yaxis, [0.05, 0.1, 0.2, 0.5, 1])
    left.set_ylim(0.04, 1)
    left.set_xlabel("block l")
    left.set_ylabel("share")
    style.accuracies(right, [(at_best_lr(done, "blocks", arm=arm), *looks[arm]) for arm in ARMS], "blocks")
    style.threshold(right, CRITERIA["needed"].high, "trains above", at=0.75, below=True)
