"""How long a first step may be: the loss after it, activations by depth, the tails of gradients, and small learning rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import Data, Line, accuracy, stream, train, weights

import tinygrad_bn as tg
from tinygrad_bn.core import Listener, listening

QUESTION = "Does a deep network without BatchNorm diverge at steps that one with it survives?"
SOURCE = (
    "Bjorck et al. 2018: without BatchNorm long steps diverge, by activations that grow with depth, and gradients are "
    "heavy-tailed; with a small learning rate both train alike (ResNet-110 on CIFAR-10)."
)
SETUP = (
    "784-128x20-10, ReLU, He's initial weights; one step of length a along the gradient of a batch of 256, at the start and "
    "after ten steps of SGD at 0.01. For small learning rates: 20 epochs of 10,000 images in batches of 128."
)
DIVERGES = "length of step, in units of the gradient, above which the loss grows more than 1000 times; with BatchNorm / without"
GROWTH = (
    "standard deviation of the outputs of layer 20's linear map over that of layer 1, after the shortest step that diverges "
    "without BatchNorm; without / with"
)
TAILS = "kurtosis of the gradient of layer 10's weights at the start; without / with"
SMALL = "test accuracy with BatchNorm minus without, at the smallest learning rate at which both reach 90 % in validation"
CRITERIA = {
    "start": Criterion("BatchNorm survives a first step ten times as long", DIVERGES, low=10, rule="every seed", ratio=True),
    "later": Criterion("It survives one ten times as long after ten steps", DIVERGES, low=10, rule="every seed", ratio=True),
    "growth": Criterion("In a diverging step activations grow with depth", GROWTH, low=10, rule="every seed", ratio=True),
    "tails": Criterion("Gradients have heavier tails without BatchNorm", TAILS, low=1, ratio=True),
    "small": Criterion("With a small learning rate both train alike", SMALL, low=-0.5, high=0.5, unit="points"),
}

ARMS = {"plain": None, "batchnorm": "batch"}
SIZES = (784, *[128] * 20, 10)
LENGTHS = [10 ** (k / 5) for k in range(-25, 11)]
LIMIT = 1000  # times the loss before the step: Bjorck et al.'s divergence
OVERFLOW = 1e12  # stands for whatever is not finite
AFTER = {"start": 0, "later": 10}
LRS = (0.003, 0.01, 0.03, 0.1)


def trials(setup: Setup, done: Results) -> list[Trial]:
    """Learning rates are chosen on the first seed: the small one, and the best of each arm."""
    first, *others = setup.seeds
    steps = [{"part": "step", "when": when, "seed": seed} for seed in setup.seeds for when in AFTER]
    small = {"part": "small", "epochs": 1 if setup.quick else 20}
    grid = [{**small, "arm": arm, "lr": lr, "seed": first} for arm in ARMS for lr in (LRS[1:3] if setup.quick else LRS)]
    if list(done.missing(grid)):
        return steps + grid
    rates = chosen(done, first)
    pairs = [(arm, lr) for arm in ARMS for lr in sorted({rates["small"], rates[arm]})]
    return steps + grid + [{**small, "arm": arm, "lr": lr, "seed": seed} for seed in others for arm, lr in pairs]


def chosen(done: Results, seed: int) -> dict[str, float]:
    """The smallest learning rate at which both arms train (if none, where the worse does best), and the best of each arm."""
    valid = {arm: {r.trial["lr"]: r.result["valid"] for r in done.of(part="small", arm=arm, seed=seed)} for arm in ARMS}
    worse = {lr: min(valid[arm][lr] for arm in ARMS) for lr in sorted(valid["plain"])}
    small = next((lr for lr, accuracy in worse.items() if accuracy >= 90), max(worse, key=worse.__getitem__))
    return {"small": small, **{arm: max(valid[arm], key=valid[arm].__getitem__) for arm in ARMS}}


def run(trial: Trial, data: Data) -> dict[str, Any]:
    if trial["part"] == "step":
        return one_step(AFTER[trial["when"]], trial["seed"], data)
    network, part = network_of(trial["arm"], trial["seed"]), data.train.first(10_000)
    steps = len(part.y) // 128 * trial["epochs"]
    failed = train(network, part, trial["lr"], steps, 128, trial["seed"], data.device).diverged
    return {
        "valid": 0.0 if failed else accuracy(network, data.valid, data.device),
        "test": 0.0 if failed else accuracy(network, data.test, data.device),
        "eta_eff": trial["lr"] / float(np.mean([(w**2).sum().item() for w in weights(network)[:-1]])),
    }


def network_of(arm: str, seed: int) -> tg.nn.Sequential:
    tg.manual_seed(seed)
    return tg.models.mlp(SIZES, norm=ARMS[arm], activation="relu")


def one_step(after: int, seed: int, data: Data) -> dict[str, Any]:
    """Both arms, since the activations of both are looked at after the step that is too long without BatchNorm."""
    x, y = next(stream(data.train, 1, 256, seed, data.device))
    result, lines = {}, {}
    for arm in ARMS:
        network = network_of(arm, seed)
        warm_up = train(network, data.train, 0.01, after, 256, seed, data.device)
        lines[arm] = line = Line(network, x, y)
        ratios = [line.loss(a) / line.height for a in LENGTHS]
        result[arm] = {
            "ratios": [min(r, OVERFLOW) if np.isfinite(r) else OVERFLOW for r in ratios],
            "limit": LENGTHS[0] if warm_up.diverged else limit(ratios),
            "kurtosis": kurtosis(line.slope[line.places(weights(network)[9:10])[0]]),
        }
    for arm, line in lines.items():
        result[arm]["moments"] = [moments(line, share * result["plain"]["limit"]) for share in (0, 0.5, 1)]
    return result


def limit(ratios: list[float]) -> float:
    """The shortest step that diverges; one beyond the longest tried if none does."""
    return next((a for a, r in zip(LENGTHS, ratios, strict=True) if not r <= LIMIT), LENGTHS[-1] ** 2 / LENGTHS[-2])


def kurtosis(g: np.ndarray) -> float:
    d = g.astype(float) - g.mean()
    return float((d**4).mean() / (d**2).mean() ** 2)


def moments(line: Line, a: float) -> dict[str, list[float]]:
    """For each layer but the last, over its channels: the mean of |mean|, and the mean standard deviation."""
    with listening(Outputs()) as heard:
        line.loss(a)
    values = [np.nan_to_num(out.astype(float), nan=1e30, posinf=1e30, neginf=-1e30) for out in heard.found[:-1]]
    return {"mean": [np.abs(v.mean(0)).mean() for v in values], "std": [v.std(0).mean() for v in values]}


class Outputs(Listener):
    """Hears the outputs of linear layers."""

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []

    def exit_module(self, module: Any, out: Any) -> None:
        if isinstance(module, tg.nn.Linear):
            self.found.append(out.cpu().numpy())


def growth(result: dict[str, Any], arm: str, share: int, moment: str = "std") -> float:
    """From the first layer to the 20th, after this share of the step: 0 none, 1 half of it, 2 all."""
    values = result[arm]["moments"][share][moment]
    return values[-1] / values[0]


def findings(done: Results) -> dict[str, Finding]:
    steps = {when: [r.result for r in done.of(part="step", when=when)] for when in AFTER}
    seeds = done.each("seed")
    lr = chosen(done, seeds[0])["small"]
    test = {arm: done.values("test", part="small", arm=arm, lr=lr) for arm in ARMS}
    values = {when: [r["batchnorm"]["limit"] / r["plain"]["limit"] for r in results] for when, results in steps.items()}
    values["growth"] = [growth(r, "plain", 2) / growth(r, "batchnorm", 2) for r in steps["start"]]
    values["tails"] = [r["plain"]["kurtosis"] / r["batchnorm"]["kurtosis"] for r in steps["start"]]
    values["small"] = [b - p for p, b in zip(test["plain"], test["batchnorm"], strict=True)]
    beyond = {when: any(r["batchnorm"]["limit"] > LENGTHS[-1] for r in results) for when, results in steps.items()}
    return {name: judge(CRITERIA[name], v, at_least=beyond.get(name, False)) for name, v in values.items()}


def headline(done: Results) -> str:
    start = findings(done)["start"]
    return f"20 layers survive a first step {'at least ' * start.at_least}{number(start.mean)} times as long with BatchNorm"


def remarks(done: Results) -> list[str]:
    rates, start = chosen(done, done.each("seed")[0]), [r.result for r in done.of(part="step", when="start")]
    before = {moment: number(np.median([growth(r, "plain", 0, moment) for r in start])) for moment in ("mean", "std")}
    best = {arm: f"{np.mean(done.values('test', part='small', arm=arm, lr=rates[arm])):.1f} %" for arm in ARMS}
    eta = [number(np.mean(done.values("eta_eff", part="small", arm=arm, lr=rates["small"]))) for arm in ARMS]
    return [
        f"Before any step the channels' mean distance from 0 is {before['mean']} times as large in layer 20 as in layer 1 "
        f"without BatchNorm, and their standard deviation {before['std']} times (medians).",
        f"Lengths were tried in steps of {number(LENGTHS[1] / LENGTHS[0])} times up to {number(LENGTHS[-1])}, in units of the "
        "gradient; a network that survives all counts as one step beyond.",
        f"The small learning rate was {rates['small']:g}; divided by the mean squared norm of a layer's weights at the end, it "
        f"is {eta[0]} without and {eta[1]} with BatchNorm.",
        f"Best against best ({rates['plain']:g} and {rates['batchnorm']:g}) test accuracy is {best['plain']} without and "
        f"{best['batchnorm']} with BatchNorm (a run that diverged counts as 0).",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    arms = (
        ("plain", "without BatchNorm", style.PLAIN, style.DASHED, "o open"),
        ("batchnorm", "with BatchNorm", style.BATCHNORM, style.SOLID, "o"),
    )
    line, depth, tails, small = canvas.panels(
        ["One step from the start", "Activations after a long step", "Gradient of layer 10", "Small learning rates"]
    )
    canvas.key(
        *(arm[1:] for arm in arms), ("before the step", style.TEXT, style.DOTTED, ""), ("diverged", style.WRONG, "", "x")
    )
    start = [r.result for r in done.of(part="step", when="start")]
    layers = range(1, len(SIZES) - 1)
    floor = min((value // 10 * 10 for value in done.values("test", part="small") if value > 0), default=0)
    for arm, _, colour, dashes, mark in arms:
        side, filled = (1, True) if mark == "o" else (-1, False)
        style.curve(line, LENGTHS, [r[arm]["ratios"] for r in start], colour, dashes)
        style.curve(depth, layers, [r[arm]["moments"][2]["std"] for r in start], colour, dashes)
        style.curve(depth, layers, [r[arm]["moments"][0]["std"] for r in start], colour, style.DOTTED)
        for place, when in enumerate(AFTER):
            values = [r.result[arm]["kurtosis"] for r in done.of(part="step", when=when)]
            style.dots(tails, [place + 0.1 * side] * len(values), values, colour, filled=filled)
        for lr in done.each("lr"):
            values = done.values("test", part="small", arm=arm, lr=lr)
            fine = [value for value in values if value > 0]
            style.dots(small, [lr * 1.05**side] * len(fine), fine, colour, filled=filled)
            if len(fine) < len(values):
                style.look.cross(small, lr * 1.05**side, floor)
    style.threshold(line, LIMIT, "diverges above", at=0.2)
    line.set(xscale="log", yscale="log", ylim=(0.1, 1e6), xlabel="length of the step / gradient", ylabel="loss after / before")
    style.look.plain_ticks(line.xaxis, [10.0**k for k in range(-5, 3)], [1e-3, 0.1, 10])
    line.set_yticks([1, 1e3, 1e6], ["1", "1,000", "a million"])
    line.minorticks_off()
    depth.set(yscale="log", xlabel="layer", ylabel="standard deviation", xticks=[1, 5, 10, 15, 20])
    depth.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    depth.minorticks_off()
    style.threshold(tails, 3, "Gaussian", at=0.5)
    tails.set(yscale="log", xlim=(-0.5, 1.5), ylabel="kurtosis")
    tails.set_xticks([0, 1], ["at the start", "after ten steps"])
    style.look.plain_ticks(tails.yaxis, [3, 5, 10, 20, 50, 100, 200])
    small.set(xscale="log", ylim=(floor, 100), xlabel="learning rate", ylabel="test accuracy, %")
    style.look.plain_ticks(small.xaxis, sorted(done.each("lr")))
