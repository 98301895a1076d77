"""BatchNorm computes one thing in training and another in evaluation: three kinds of statistics, and eight classic bugs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge
from training import Data, Part, accuracy, train

import tinygrad_bn as tg
from tinygrad_bn import nn

QUESTION = "What does it cost to confuse the statistics of training with those of evaluation?"
SOURCE = "Wu & Johnson 2021, 'Rethinking Batch in BatchNorm'; Singh & Shrivastava 2019, 'EvalNorm'."
SETUP = (
    "784-100-100-100-10, sigmoid, 2,000 steps of SGD at learning rate 0.3 in batches of 60 on MNIST; each bug in the same "
    "network. Precise statistics: the average over 10,000 training images; cumulative ones: of all batches since the first."
)
CRITERIA = {
    "start": Criterion(
        "After k steps the running statistics still hold (1 - momentum)^k of what they began with",
        "largest |measured share / (1 - momentum)^k - 1|, momentum 0.1 and 0.01, k from 1 to 200, shares above 0.001",
        high=0.01,
        rule="every seed",
    ),
    "biased": Criterion(
        "With a biased running variance from batches of 4, activations in evaluation are sqrt(4/3) too large",
        "standard deviation over test images of the first layer's normalised values (median over units), divided by sqrt(4/3)",
        low=0.95,
        high=1.05,
        ratio=True,
    ),
    "sorted": Criterion(
        "Without eval(), accuracy collapses on batches of one class",
        "test accuracy in training mode, test images sorted by class, batches of 60",
        high=40,
        unit="%",
    ),
    "every": Criterion(
        "Each of the eight bugs costs accuracy", "smallest cost of the eight, in points of test accuracy", low=0, unit="points"
    ),
}

STEPS, BATCH, LR = [1, 5, 20, 50, 100, 200], 60, 0.3
TRACKERS = {"0.1": 0.1, "0.01": 0.01, "cumulative": None}  # the name and the momentum
SIZES = [2, 4, 8, 16, 32, 64, 128, 500]  # of batches in training mode
BUGS = {
    "early": "evaluated at step 20",
    "eval": "eval() forgotten",
    "train": "train() forgotten",
    "buffers": "buffers not saved",
    "biased": "biased variance",
    "momentum": "0.9 for 0.1",
    "tail": "last batch of 2",
    "pass": "validated unevenly",
}


def norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d)]


def network_of(seed: int, momentum: float | None = 0.1, variance: str = "unbiased") -> nn.Sequential:
    tg.manual_seed(seed)
    network = tg.models.mlp()
    for layer in norms(network):
        layer.momentum, layer.variance = momentum, variance
    return network


def pass_over(network: nn.Module, x: np.ndarray, batch: int) -> np.ndarray:
    """The classes that it tells in training mode; its running statistics follow, as always there."""
    network.train()
    with tg.no_grad():
        return np.concatenate([network(tg.tensor(x[i : i + batch])).numpy().argmax(1) for i in range(0, len(x), batch)])


def precise(network: nn.Module, data: Data) -> float:
    """Accuracy with the statistics that the network has now, over many images; then everything as before."""
    before, momenta = network.state_dict(), [layer.momentum for layer in norms(network)]
    for layer in norms(network):
        layer.reset_running_stats()
        layer.momentum = None  # the average of all batches
    pass_over(network, data.train.x[:10_000], 500)
    found = accuracy(network, data.test)
    network.load_state_dict(before)
    for layer, momentum in zip(norms(network), momenta, strict=True):
        layer.momentum = momentum
    return found


def sorted_by_class(part: Part) -> Part:
    order = np.argsort(part.y, kind="stable")
    return Part(part.x[order], part.y[order])


def trials(setup: Setup, done: Results) -> list[Trial]:  # noqa: ARG001
    steps = 200 if setup.quick else 2000
    return [{"kind": kind, "seed": seed, "steps": steps} for seed in setup.seeds for kind in ("start", "bugs")]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    return {"start": start, "bugs": bugs}[trial["kind"]](trial["seed"], trial["steps"], data)


def seen_at(steps: list[int], network: nn.Module, data: Data, seed: int, look: Callable[[nn.Module], Any]) -> list[Any]:
    """What ``look(network)`` gives after each of these numbers of steps of training."""
    seen: list[Any] = []

    def before(step: int, *_: Any) -> None:
        if step in steps:
            seen.append(look(network))

    train(network, data.train, LR, steps[-1] + 1, BATCH, seed, before_step=before)
    return seen


def running_mean(network: nn.Module) -> np.ndarray:
    return norms(network)[0].running_mean.numpy()


def start(seed: int, steps: int, data: Data) -> dict[str, Any]:  # noqa: ARG001
    """Accuracy in evaluation mode after a few steps, and the share of the initial running mean that is left."""
    accuracies, shares = {}, {}
    for name, momentum in TRACKERS.items():
        network, twin = (network_of(seed, momentum) for _ in range(2))
        norms(twin)[0].running_mean = nn.Buffer(np.ones(100, np.float32))  # instead of 0; in training it changes nothing
        looks = lambda net: (accuracy(net, data.test), precise(net, data), running_mean(net))  # noqa: E731
        *found, means = zip(*seen_at(STEPS, network, data, seed, looks), strict=True)
        accuracies[name], accuracies["precise"] = found  # the latter is the same for every momentum
        others = seen_at(STEPS, twin, data, seed, running_mean)
        shares[name] = [float((b - a).mean()) for a, b in zip(means, others, strict=True)]
    return {"accuracy": accuracies, "share": shares}


def bugs(seed: int, steps: int, data: Data) -> dict[str, Any]:
    """The accuracy that each bug leaves, and what it would be without."""
    test, found = data.test, {}

    def trained(at: int = steps, batch: int = BATCH, **how: Any) -> nn.Sequential:
        network = network_of(seed, **how)
        train(network, data.train, LR, at, batch, seed)
        return network

    network = trained()
    right, state = accuracy(network, test), network.state_dict()
    early = trained(20)
    found["early"] = precise(early, data), accuracy(early, test)

    def in_training(part: Part, size: int) -> float:
        return 100 * float((pass_over(network, part.x, size) == part.y).mean())

    found["eval"], by_size = (right, in_training(sorted_by_class(test), BATCH)), [in_training(test, size) for size in SIZES]

    frozen = trained(100)  # then validated, and never put back into training mode
    train(frozen.eval(), data.train, LR, steps - 100, BATCH, seed + 1000)
    found["train"] = right, accuracy(frozen, test)

    bare = network_of(seed)
    bare.load_state_dict({name: value for name, value in state.items() if "running" not in name}, strict=False)
    found["buffers"] = right, accuracy(bare, test)

    small = [trained(batch=4, momentum=0.01, variance=variance) for variance in ("unbiased", "biased")]
    found["biased"] = tuple(accuracy(network, test) for network in small)
    first = norms(small[1])[0]
    with tg.no_grad():
        normalised = (first(small[1].eval()[:2](tg.tensor(test.x))) - first.bias) / first.weight
    found["momentum"] = right, accuracy(trained(momentum=0.9), test)

    for name, x, batch in (("tail", data.train.x[-2:], 2), ("pass", sorted_by_class(data.valid).x, BATCH)):
        network.load_state_dict(state)
        pass_over(network, x, batch)
        found[name] = right, accuracy(network, test)
    return {"accuracy": found, "in_training": by_size, "deviation": float(np.median(normalised.numpy().std(0)))}


def share_error(share: dict[str, list[float]]) -> float:
    """The largest |measured / (1 - momentum)^k - 1|."""
    known = [(left, (1 - TRACKERS[name]) ** k) for name in ("0.1", "0.01") for k, left in zip(STEPS, share[name], strict=True)]
    return max(abs(left / law - 1) for left, law in known if law > 1e-3)


def costs(done: Results, bug: str) -> list[float]:
    return [right - wrong for right, wrong in (found[bug] for found in done.values("accuracy", kind="bugs"))]


def findings(done: Results) -> dict[str, Finding]:
    values = {
        "start": [share_error(share) for share in done.values("share", kind="start")],
        "biased": [sd / (4 / 3) ** 0.5 for sd in done.values("deviation", kind="bugs")],
        "sorted": [found["eval"][1] for found in done.values("accuracy", kind="bugs")],
        "every": [min(seed) for seed in zip(*(costs(done, bug) for bug in BUGS), strict=True)],
    }
    return {name: judge(CRITERIA[name], v) for name, v in values.items()}


def headline(done: Results) -> str:
    mean = {BUGS[bug]: float(np.mean(costs(done, bug))) for bug in BUGS}
    worst = max(mean, key=lambda bug: mean[bug])
    dear = sum(cost >= 0.5 for cost in mean.values())
    return f"{dear} of eight bugs cost half a point of accuracy or more; the worst ({worst}) costs {mean[worst]:.1f}"


def remarks(done: Results) -> list[str]:
    free = [f"{BUGS[bug]} ({np.mean(costs(done, bug)):.1f})" for bug in BUGS if np.mean(costs(done, bug)) < 0.5]
    shuffled = np.mean(
        [r.result["accuracy"]["eval"][0] - r.result["in_training"][SIZES.index(64)] for r in done.of(kind="bugs")]
    )
    return [
        f"Of the bugs, these cost less than half a point here: {', '.join(free) or 'none'}.",
        "Two of the bugs are shown on images sorted by class (eval() forgotten; a validation pass in training mode); on "
        f"shuffled batches of 64, training mode costs {shuffled:.1f} points.",
        "A last batch of a single image costs nothing, since the engine refuses it with an error.",
        "A forgotten train() freezes the statistics of step 100, and what trains on is a network of fixed affine maps.",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    panels = canvas.panels(["Evaluated early", "What the start leaves", "Left in training mode", "Cost of each bug"])
    names = {name: f"momentum {name}" if name[0] == "0" else name for name in HOW}
    canvas.key(*((names[name], *how) for name, how in HOW.items()))
    early, share, mode, cost = panels
    for name, (colour, line, mark) in HOW.items():
        values = [found[name] for found in done.values("accuracy", kind="start")]
        style.curve(early, STEPS, values, colour, line)
        for seed in values:
            style.dots(early, STEPS, seed, colour, mark[:1], not mark.endswith("open"))
        if name[0] == "0":
            k = np.arange(1, STEPS[-1] + 1)
            share.plot(k, (1 - TRACKERS[name]) ** k, color=colour, linestyle=line)
            for found in done.values("share", kind="start"):
                style.dots(share, STEPS, found[name], colour, mark[:1], not mark.endswith("open"))
    for axes, ticks, named in ((early, STEPS, [1, 5, 20, 100]), (share, STEPS, [1, 5, 20, 100]), (mode, SIZES, SIZES[::2])):
        axes.set_xscale("log")
        style.look.plain_ticks(axes.xaxis, ticks, named)
    early.set(xlabel="steps", ylabel="test accuracy, %", ylim=(0, 100))
    share.set(xlabel="steps k (lines: predicted)", ylabel="share", ylim=(0, 1))
    style.curve(mode, SIZES, done.values("in_training", kind="bugs"), style.BATCHNORM)
    for found in done.of(kind="bugs"):
        style.dots(mode, SIZES, found.result["in_training"], style.BATCHNORM)
        style.dots(mode, [BATCH], [found.result["accuracy"]["eval"][1]], style.WRONG, "x")
    mode.annotate("sorted by class", (BATCH, done.of(kind="bugs")[0].result["accuracy"]["eval"][1]), (-6, 0), color=style.WRONG,
                  textcoords="offset points", ha="right", va="center")  # fmt: skip
    mode.set(xlabel="images in a batch", ylabel="test accuracy, %", ylim=(0, 100))
    rows = sorted(BUGS, key=lambda bug: -np.mean(costs(done, bug)))
    cost.barh(range(len(rows)), [np.mean(costs(done, bug)) for bug in rows], color=style.BATCHNORM, alpha=0.25)
    for i, bug in enumerate(rows):
        style.dots(cost, costs(done, bug), [i] * len(costs(done, bug)), style.BATCHNORM)
    cost.set_yticks(range(len(rows)), [BUGS[bug] for bug in rows])
    cost.set(xlabel="test accuracy lost, points", ylim=(len(rows) - 0.5, -0.5))
    cost.grid(visible=False, axis="y")
    cost.grid(axis="x")


HOW = {
    "0.1": (style.BATCHNORM, style.SOLID, "o"),
    "0.01": (style.STATISTIC, style.DASHED, "D"),
    "cumulative": (style.PARAMETER, style.DASHDOT, "s"),
    "precise": (style.TEXT, style.DOTTED, "o open"),
}
