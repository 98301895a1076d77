"""All weights stay as they were drawn; only BatchNorm's gamma and beta are trained. How far does that get?"""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import Data, accuracy, train, weights

import tinygrad_bn as tg
from tinygrad_bn import nn

QUESTION = "How much does a network learn if only BatchNorm's gamma and beta are trained?"
SOURCE = (
    "Frankle, Schwab & Morcos 2021, 'Training BatchNorm and only BatchNorm': 82 % on CIFAR-10 with all other weights random."
)
SETUP = (
    "784-256-256-256-10, ReLU, He's initial weights, BatchNorm; three epochs of MNIST in batches of 128, SGD without momentum. "
    "Trained are the 1,536 numbers of gamma and beta, or as many weights: two, drawn at random, of each hidden unit. All else, "
    "the output layer too, stays as drawn. Learning rates from 0.3 to 100, each arm's best after 600 steps, on validation."
)
CRITERIA = {
    "gain": Criterion(
        "Training only gamma and beta is better than training as many random weights",
        "test accuracy with gamma and beta trained minus that with two random weights a unit, at each arm's best learning rate",
        low=0,
        unit="points",
    ),
    "off": Criterion(
        "About a third of the units are switched off", "share of the units whose |gamma| ends below 0.01", low=0.2, high=0.5
    ),
}

SIZES, BATCH, SAME, GRID = (784, 256, 256, 256, 10), 128, 1.0, [0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
EDGES = np.linspace(-2, 6, 41)  # of the histogram of gamma; what is beyond is in the outer bins
ARMS = {
    "gamma_beta": ("gamma and beta", style.PARAMETER, style.SOLID, "s"),
    "random": ("as many random weights", style.PLAIN, style.DASHED, "o open"),
    "all": ("everything", style.BATCHNORM, style.SOLID, "o"),
}


def trials(setup: Setup, done: Results) -> list[Trial]:
    short, long = (30, 90) if setup.quick else (600, 1170)
    grid = GRID[:3] if setup.quick else GRID
    picks = [{"kind": "pick", "arm": arm, "lr": lr, "seed": setup.seeds[0], "steps": short} for arm in ARMS for lr in grid]
    if list(done.missing(picks)):
        return picks
    rates = dict.fromkeys([(arm, SAME) for arm in ARMS] + [(arm, best(done, arm)) for arm in ARMS])
    return picks + [
        {"kind": "run", "arm": arm, "lr": lr, "seed": seed, "steps": long} for seed in setup.seeds for arm, lr in rates
    ]


def best(done: Results, arm: str) -> float:
    """The learning rate of the highest validation accuracy."""
    return max(done.of(kind="pick", arm=arm), key=lambda r: r.result["accuracy"]).trial["lr"]


def freeze(network: nn.Sequential, arm: str, seed: int) -> int:
    """Leave to training what this arm trains, and say how many numbers that is."""
    if arm == "all":
        return sum(p.size for p in network.parameters())
    network.requires_grad_(False)
    if arm == "gamma_beta":
        for layer in norms(network):
            layer.requires_grad_()
        return sum(layer.weight.size + layer.bias.size for layer in norms(network))
    rng, trained = np.random.default_rng(seed), 0
    for weight in weights(network)[:-1]:  # the gradients of all but two weights of each unit become 0
        chosen = rng.random(weight.shape).argsort(1) < 2
        mask = tg.tensor(chosen.astype(np.float32), device=weight.device)
        weight.requires_grad_().register_hook(lambda g, mask=mask: g * mask)
        trained += int(chosen.sum())
    return trained


def norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d)]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    tg.manual_seed(trial["seed"])
    network = tg.models.mlp(SIZES, "batch", "relu").to(data.device)
    trained = freeze(network, trial["arm"], trial["seed"])
    optimizer = tg.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=trial["lr"])
    r = train(network, data.train, trial["lr"], trial["steps"], BATCH, trial["seed"], data.device, optimizer=optimizer)
    seen = data.valid if trial["kind"] == "pick" else data.test
    gammas = np.concatenate([layer.weight.detach().cpu().numpy() for layer in norms(network)])
    return {
        "diverged": r.diverged,
        "accuracy": 0.0 if r.diverged else accuracy(network, seen, data.device),
        "trained": trained,
        "off": 0.0 if r.diverged else float((abs(gammas) < 0.01).mean()),
        "histogram": np.histogram(np.clip(gammas, EDGES[0], EDGES[-1]), EDGES)[0] / len(gammas),
        "weight": float(np.mean([(w.detach().cpu().numpy() ** 2).sum(1).mean() for w in weights(network)[:-1]])),
    }


def at(done: Results, name: str, arm: str, tuned: bool = True) -> list[Any]:
    """One value a seed, at the arm's best learning rate or at that of all arms."""
    return done.values(name, kind="run", arm=arm, lr=best(done, arm) if tuned else SAME)


def gains(done: Results, tuned: bool = True) -> list[float]:
    return [
        a - b for a, b in zip(at(done, "accuracy", "gamma_beta", tuned), at(done, "accuracy", "random", tuned), strict=True)
    ]


def findings(done: Results) -> dict[str, Finding]:
    return {
        "gain": judge(CRITERIA["gain"], gains(done)),
        "off": judge(CRITERIA["off"], at(done, "off", "gamma_beta")),
    }


def headline(done: Results) -> str:
    few, control, everything = (np.mean(at(done, "accuracy", arm)) for arm in ARMS)
    return f"gamma and beta alone reach {few:.1f} %, as many random weights {control:.1f} %, all weights {everything:.1f} %"


def remarks(done: Results) -> list[str]:
    rates = ", ".join(f"{name} {number(best(done, arm))}" for arm, (name, *_) in ARMS.items())
    shares = [np.array(h)[EDGES[:-1] < -1e-9].sum() for h in at(done, "histogram", "gamma_beta")]
    eta = SAME / np.mean(at(done, "weight", "gamma_beta"))
    few, all_ = (at(done, "trained", arm)[0] for arm in ("gamma_beta", "all"))
    return [
        f"Trained are {few} of {all_} numbers; the best learning rates are: {rates}.",
        f"At learning rate {number(SAME)} in all arms the gain is {number(float(np.mean(gains(done, tuned=False))))} points; "
        f"frozen weights keep their effective rate, learning rate / |w|^2, at {number(float(eta))}.",
        "The paper trains convolutional networks on CIFAR-10 and ImageNet, far longer and with momentum; its third of units "
        f"switched off is of those networks (here {number(100 * float(np.mean(shares)))} % of gamma end below 0).",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    same, tuned, gamma = canvas.panels([f"Learning rate {number(SAME)}", "Each arm's best rate", "gamma at its end"], per_row=3)
    canvas.key(*ARMS.values())
    least = min(min(at(done, "accuracy", arm, tuned)) for arm in ARMS for tuned in (False, True))
    for axes, best_rate in ((same, False), (tuned, True)):
        for i, (arm, (_, colour, _, mark)) in enumerate(ARMS.items()):
            values = at(done, "accuracy", arm, best_rate)
            style.dots(axes, [i] * len(values), values, colour, mark[:1], not mark.endswith("open"))
            axes.plot([i - 0.25, i + 0.25], [np.median(values)] * 2, color=colour)
        axes.set_xticks(range(len(ARMS)), ["gamma\nbeta", "random", "all"])
        axes.set(ylabel="test accuracy, %", xlim=(-0.6, len(ARMS) - 0.4), ylim=(least - 2, 100))
    for arm in ("all", "gamma_beta"):
        _, colour, line, _ = ARMS[arm]
        style.curve(gamma, (EDGES[:-1] + EDGES[1:]) / 2, 100 * np.array(at(done, "histogram", arm)), colour, line)
    gamma.axvline(1, color=style.TEXT, linewidth=0.8, linestyle=":")
    gamma.set(xlabel="gamma (begins at 1)", ylabel="units, %", ylim=(0, None))
