"""Noise after BatchNorm makes the layers' inputs drift: does it slow training? And does BatchNorm reduce covariate shift?"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import GUESSING, Data, evaluate, train, weights

import tinygrad_bn as tg
from tinygrad_bn import nn

QUESTION = "Does BatchNorm help because it keeps the distributions of the layers' inputs stable?"
SOURCE = (
    "Santurkar et al. 2018, section 2 and figure 2: BatchNorm with noise after it, and covariate shift as change of gradients."
)
SETUP = (
    "Sigmoid 784-100x3-10 at learning rate 0.3 (batches of 60), and ReLU 784-128x6-10 at 0.1 (batches of 128); 1,500 steps of "
    "SGD without momentum on MNIST. Noise as in the paper: y becomes s y + m; each layer and step draws a mean from "
    "U(-0.5, 0.5) and a scale from U(1, 1.25), and around them each element its m (U(-0.1, 0.1)) and s (N(0, 0.1)). The same "
    "weights, batches and noise in all arms."
)
_KEPT = (
    "F = (A with noisy BatchNorm - A with BatchNorm) / (A without - A with BatchNorm), where A is the mean logarithm of the "
    "training loss over all steps; F = 1 if BatchNorm gains nothing"
)
_DRIFT = (
    "change from step to step of the mean input of a unit's activation, in standard deviations (last hidden layer; mean over "
    "steps, median over units), with noisy BatchNorm divided by without BatchNorm"
)
_SHIFT = (
    "cosine of a layer's gradient before and after the layers below it have made their step (median over layers and steps), "
    "with BatchNorm minus without"
)
CRITERIA = {
    f"{what}_{net}": criterion
    for net, name in (("sigmoid", "sigmoid"), ("relu", "ReLU"))
    for what, criterion in (
        ("kept", Criterion(f"Noisy BatchNorm trains almost as fast as BatchNorm ({name})", _KEPT, high=0.25)),
        (
            "drift",
            Criterion(f"Yet its inputs are less stable than without BatchNorm ({name})", _DRIFT, low=1, ratio=True),
        ),
        ("shift", Criterion(f"BatchNorm does not reduce internal covariate shift ({name})", _SHIFT, high=0)),
    )
}

NETS = {"sigmoid": ((784, 100, 100, 100, 10), 60, 0.3), "relu": ((784, *[128] * 6, 10), 128, 0.1)}  # sizes, batch, rate
ARMS = {  # normalisation; whether there is noise for each layer and step, and for each element
    "plain": (None, False, False),
    "plain_noise": (None, True, True),
    "batchnorm": ("batch", False, False),
    "batchnorm_noise": ("batch", True, True),
    "batchnorm_elements": ("batch", False, True),
}
TUNED = ("plain", "batchnorm", "batchnorm_noise")
GRID = [0.03, 0.1, 0.3, 1.0, 3.0]
POINTS, SHIFTS = 50, 20  # how many points a loss curve has, and how often the change of gradients is measured


class Noise(nn.Module):
    """In training, s x + m with fresh noise at every step. It remembers each unit's mean and deviation of the last step."""

    def __init__(self, seed: int, common: bool, each: bool):
        self.random, self.common, self.each = np.random.default_rng(seed), common, each

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        if self.training and self.each:
            mean, scale = (self.random.uniform(-0.5, 0.5), self.random.uniform(1, 1.25)) if self.common else (0.0, 1.0)
            m = mean - 0.1 + 0.2 * self.random.random(x.shape, np.float32)
            s = scale + 0.1 * self.random.standard_normal(x.shape, np.float32)
            x = x * tg.tensor(s, "float32", x.device) + tg.tensor(m, "float32", x.device)  # leaves that need no gradient
        self.seen = x.detach().data.mean(0), x.detach().data.std(0)
        return x


def network_of(trial: Trial) -> tuple[nn.Sequential, Noise]:
    """The network, with noise before each activation, and the last of these layers."""
    tg.manual_seed(trial["seed"])
    norm, *noise = ARMS[trial["arm"]]
    layers: list[nn.Module] = []
    for layer in tg.models.mlp(NETS[trial["net"]][0], norm, trial["net"]):
        if isinstance(layer, (nn.Sigmoid, nn.ReLU)):
            last = Noise(1000 * trial["seed"] + len(layers), *noise)
            layers.append(last)
        layers.append(layer)
    return nn.Sequential(*layers), last


def trials(setup: Setup, done: Results) -> list[Trial]:
    short, long = (20, 100) if setup.quick else (300, 1500)
    grid = GRID[1:3] if setup.quick else GRID
    pick = {"kind": "pick", "seed": setup.seeds[0], "steps": short}
    picks = [{**pick, "net": net, "arm": arm, "lr": lr} for net, arm, lr in product(NETS, TUNED, grid)]
    if list(done.missing(picks)):
        return picks
    pairs = {net: dict.fromkeys([(a, NETS[net][2]) for a in ARMS] + [(a, best(done, net, a)) for a in TUNED]) for net in NETS}
    return picks + [
        {"kind": "run", "net": net, "arm": arm, "lr": lr, "seed": seed, "steps": long}
        for seed in setup.seeds
        for net in NETS
        for arm, lr in pairs[net]
    ]


def best(done: Results, net: str, arm: str) -> float:
    """The learning rate of the lowest validation loss."""
    return min(done.of(kind="pick", net=net, arm=arm), key=lambda r: r.result["loss"]).trial["lr"]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    network, last = network_of(trial)
    _, batch, same = NETS[trial["net"]]
    steps, measured = trial["steps"], trial["kind"] == "run" and trial["lr"] == same
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    cosines: list[list[float]] = []

    def look(step: int, x: tg.Tensor, y: tg.Tensor) -> None:
        if step:
            seen.append(last.seen)
        if measured and not ARMS[trial["arm"]][2] and step % (steps // SHIFTS) == 0:
            cosines.append(shift(network, x, y, same))

    r = train(network, data.train, trial["lr"], steps, batch, trial["seed"], data.device, before_step=look)
    if trial["kind"] == "pick":
        return {"loss": GUESSING if r.diverged else evaluate(network, data.valid, data.device)[1]}
    logs = np.log(np.maximum(r.losses + [r.loss()] * (steps - len(r.losses)), 1e-9))
    return {
        "diverged": r.diverged,
        "area": logs.mean(),
        "curve": np.exp(logs.reshape(POINTS, -1).mean(1)),  # geometric means of equally many steps
        "drift": None if r.diverged else drift(np.array([[tg.tensor(v).cpu().numpy() for v in pair] for pair in seen])),
        "cosines": np.median(cosines, 0) if cosines else None,
        "weight": float(np.mean([(w.detach().cpu().numpy() ** 2).sum(1).mean() for w in weights(network)])),
    }


def drift(seen: np.ndarray) -> float:
    """How far a unit's mean moves in a step, in standard deviations. From (step, mean and deviation, unit)."""
    mean, deviation = seen[:, 0].astype(float), seen[:, 1].astype(float)
    return float(np.median((np.abs(np.diff(mean, axis=0)) / np.maximum(deviation[:-1], 1e-9)).mean(0)))


def shift(network: nn.Module, x: tg.Tensor, y: tg.Tensor, lr: float) -> list[float]:
    """For each matrix of weights but the first: cos(G, G'), before and after the parameters below it made their step."""
    before, parameters, cosines = network.state_dict(), list(network.parameters()), []
    for p, g in zip(parameters, tg.grad(tg.cross_entropy(network(x), y), parameters), strict=True):
        if p.ndim == 2 and p is not parameters[0]:
            (later,) = tg.grad(tg.cross_entropy(network(x), y), [p])
            lengths = math.sqrt((g * g).sum().item() * (later * later).sum().item())
            cosines.append((g * later).sum().item() / max(lengths, 1e-30))
        p.data = p.data - lr * g.data
    network.load_state_dict(before)
    return cosines


def area(done: Results, net: str, arm: str, tuned: bool = False) -> list[float]:
    return done.values("area", kind="run", net=net, arm=arm, lr=best(done, net, arm) if tuned else NETS[net][2])


def kept(done: Results, net: str, tuned: bool = False) -> list[float]:
    """F for each seed."""
    arms = [area(done, net, arm, tuned) for arm in TUNED]
    return [(noisy - bn) / (plain - bn) if plain > bn else 1.0 for plain, bn, noisy in zip(*arms, strict=True)]


def at_same(done: Results, net: str, arm: str) -> list[dict[str, Any]]:
    return [r.result for r in done.of(kind="run", net=net, arm=arm, lr=NETS[net][2])]


def drift_ratios(done: Results, net: str) -> list[float]:
    """A diverged run speaks against the claim."""
    pairs = zip(at_same(done, net, "batchnorm_noise"), at_same(done, net, "plain"), strict=True)
    return [1e-3 if a["diverged"] or b["diverged"] else a["drift"] / max(b["drift"], 1e-6) for a, b in pairs]


def findings(done: Results) -> dict[str, Finding]:
    found = {}
    for net in NETS:
        cosines = [np.array([np.median(r["cosines"]) for r in at_same(done, net, arm)]) for arm in ("batchnorm", "plain")]
        found[f"kept_{net}"] = judge(CRITERIA[f"kept_{net}"], kept(done, net))
        found[f"drift_{net}"] = judge(CRITERIA[f"drift_{net}"], drift_ratios(done, net))
        found[f"shift_{net}"] = judge(CRITERIA[f"shift_{net}"], (cosines[0] - cosines[1]).tolist())
    return found


def headline(done: Results) -> str:
    parts = []
    for net, name in (("sigmoid", "sigmoid"), ("relu", "ReLU")):
        f = findings(done)[f"kept_{net}"].mean
        words = "no speed" if f <= 0 else "little speed" if f < 0.25 else "part of its gain" if f < 1 else "all of its gain"
        parts.append(f"{words} ({name}, F = {number(f)})")
    return f"Noise after BatchNorm costs {' and '.join(parts)}"


def remarks(done: Results) -> list[str]:
    f = {net: number(float(np.mean(kept(done, net, tuned=True)))) for net in NETS}
    rates = {net: ", ".join(number(best(done, net, arm)) for arm in TUNED) for net in NETS}
    elements = {}
    for net in NETS:
        plain, bn, noisy = (np.mean(area(done, net, arm)) for arm in ("plain", "batchnorm", "batchnorm_elements"))
        elements[net] = number(float((noisy - bn) / (plain - bn)) if plain > bn else 1.0)
    eta = {net: number(NETS[net][2] / float(np.mean([r["weight"] for r in at_same(done, net, "batchnorm")]))) for net in NETS}
    return [
        f"Best against best (learning rates {rates['sigmoid']} for the sigmoids without BatchNorm, with it, and with noise; "
        f"{rates['relu']} for ReLU), F is {f['sigmoid']} and {f['relu']}.",
        "The noise that a whole batch shares is undone by the next BatchNorm as far as the layer between is linear; "
        f"with each element's noise alone, F is {elements['sigmoid']} and {elements['relu']}.",
        "The drift counts the sampling of batches too, which BatchNorm without noise removes from its outputs by construction.",
        f"At the end the effective rate, learning rate / |w|^2 (mean over rows), is {eta['sigmoid']} and {eta['relu']} with "
        "BatchNorm; the paper trained a VGG network on CIFAR-10.",
    ]


LOOKS = {
    "plain": ("without", style.PLAIN, style.DASHED, "o open"),
    "plain_noise": ("without, noise", style.PLAIN, style.DOTTED, "s open"),
    "batchnorm": ("BatchNorm", style.BATCHNORM, style.SOLID, "o"),
    "batchnorm_noise": ("BatchNorm, noise", style.STATISTIC, style.SOLID, "D"),
    "batchnorm_elements": ("BatchNorm, elements", style.STATISTIC, style.DOTTED, "D open"),
}


def draw(done: Results, canvas: style.Canvas) -> None:
    names = {"sigmoid": "3 layers, sigmoid", "relu": "6 layers, ReLU"}
    panels = canvas.panels([f"{what}, {name}" for what in ("Loss", "Drift", "Gradients") for name in names.values()])
    canvas.key(*LOOKS.values())
    ticks = [0.03, 0.1, 0.3, 1, 2.3]
    for k, net in enumerate(NETS):
        loss, drifts, shifts = panels[k::2]
        steps = done.of(kind="run")[0].trial["steps"]
        for row, (arm, (_, colour, line, mark)) in enumerate(LOOKS.items()):
            results, filled = at_same(done, net, arm), not mark.endswith("open")
            style.curve(loss, (np.arange(POINTS) + 0.5) * steps / POINTS, [r["curve"] for r in results], colour, line)
            found = [r["drift"] for r in results if not r["diverged"]]
            style.dots(drifts, found, [row] * len(found), colour, mark[:1], filled)
            if results[0]["cosines"]:
                layers = np.arange(2, len(results[0]["cosines"]) + 2)
                style.curve(shifts, layers, [r["cosines"] for r in results], colour, line)
                for r in results:
                    style.dots(shifts, layers, r["cosines"], colour, mark[:1], filled)
        loss.set_yscale("log")
        style.look.plain_ticks(loss.yaxis, ticks)
        loss.set(xlabel="steps", ylabel="training loss")
        drifts.set_xscale("log")
        drifts.set_yticks(range(len(LOOKS)), ["without", "+ noise", "BatchNorm", "+ noise", "+ elements'"])
        drifts.set(ylim=(len(LOOKS) - 0.5, -0.5), xlabel="drift in a step, standard deviations")
        drifts.grid(axis="x")
        style.look.plain_ticks(drifts.xaxis, [10.0**e for e in range(-4, 1)])
        shifts.set(xlabel="layer", ylabel="cosine of G and G'", ylim=(min(0, shifts.get_ylim()[0]), 1))
        shifts.set_xticks(layers)
