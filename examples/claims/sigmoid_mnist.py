"""The experiment of the BatchNorm paper on MNIST: three layers of sigmoids, with and without; accuracy and sigmoid inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import GUESSING, Data, accuracy, evaluate, train, weights

import tinygrad_bn as tg
from tinygrad_bn import nn

QUESTION = "Does BatchNorm make a small network of sigmoids train faster, and keep the inputs of its sigmoids stable?"
SOURCE = "Ioffe & Szegedy 2015, section 4.1 and figure 1: three hidden layers of 100 sigmoids on binary MNIST images."
SETUP = (
    "784-100-100-100-10, sigmoid, binary images, batches of 60, 50,000 steps of SGD without momentum; initial weights Gaussian "
    "with standard deviation 0.01, and Glorot's as a third arm. Learning rate 0.01, and each arm's best of 0.1 to 10 on "
    "validation images after 5,000 steps of one seed. Three seeds; the same draws and batches in all arms. Inputs of sigmoids "
    "are those of 1,000 validation images in training mode."
)
_SPEED = (
    "steps to 97 % test accuracy without BatchNorm, divided by those with (a run that does not get there counts as having got "
    "there at its last step)"
)
_SPEED_90 = (
    "the same to 90 % (added after the first runs: at this rate BatchNorm needs more than a third of all steps for 97 %)"
)
_DRIFT = (
    "drift of a sigmoid's input in the last hidden layer, without BatchNorm divided by with: the sum over time of "
    "|change of its median| / its interquartile range at that time; the median over 100 units"
)
_USUAL = "the same, in units of each sigmoid's usual interquartile range, the median over time (added after the first runs)"
CRITERIA = {
    "speed": Criterion(
        "At learning rate 0.01, BatchNorm takes a third of the steps or fewer", _SPEED, low=3, rule="every seed", ratio=True
    ),
    "speed_90": Criterion("So it does for 90 %", _SPEED_90, low=3, rule="every seed", ratio=True),
    "speed_best": Criterion("So it does at each arm's best learning rate", _SPEED, low=3, rule="every seed", ratio=True),
    "drift": Criterion(
        "At learning rate 0.01, the inputs of the sigmoids are more stable with BatchNorm", _DRIFT, low=1, ratio=True
    ),
    "drift_best": Criterion("So they are at each arm's best learning rate", _DRIFT, low=1, ratio=True),
    "usual_best": Criterion("So they are if their narrow beginning does not count", _USUAL, low=1, ratio=True),
}

LR, GRID = 0.01, [0.1, 0.3, 1.0, 3.0, 10.0]
ARMS = ("plain", "batchnorm", "glorot")  # glorot is plain, with larger initial weights
SD, BATCH, GOALS, PROBE = 0.01, 60, (90, 97), 1000
POINTS, CURVE = 100, 25  # how often a run is looked at, and how many of these times are kept for the picture


def trials(setup: Setup, done: Results) -> list[Trial]:
    short, long = (300, 600) if setup.quick else (5000, 50_000)
    grid = GRID[1:4:2] if setup.quick else GRID
    picks = [{"kind": "pick", "arm": arm, "lr": lr, "seed": setup.seeds[0], "steps": short} for arm in ARMS for lr in grid]
    if list(done.missing(picks)):
        return picks
    arms = [("plain", LR), ("batchnorm", LR), *((arm, best(done, arm)) for arm in ARMS)]
    return picks + [
        {"kind": "run", "arm": arm, "lr": lr, "seed": seed, "steps": long} for seed in setup.seeds[:3] for arm, lr in arms
    ]


def best(done: Results, arm: str) -> float:
    """The learning rate of the lowest validation loss."""
    return min(done.of(kind="pick", arm=arm), key=lambda r: r.result["loss"]).trial["lr"]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    data, steps = data.binary(), trial["steps"]
    tg.manual_seed(trial["seed"])
    network = tg.models.mlp(norm="batch" if trial["arm"] == "batchnorm" else None)
    if trial["arm"] != "glorot":
        for weight in weights(network):
            nn.init.normal_(weight, std=SD)
    if trial["kind"] == "pick":
        r = train(network, data.train, trial["lr"], steps, BATCH, trial["seed"], data.device)
        return {"loss": GUESSING if r.diverged else evaluate(network, data.valid, data.device)[1]}

    last_inputs, probe = network[:-2], tg.tensor(data.valid.x[:PROBE], device=data.device)
    percentiles, curve = [], []  # percentiles: (time, which, unit)
    first: dict[str, int | None] = dict.fromkeys(map(str, GOALS))

    def look(step: int, *_: Any) -> None:
        if step % (steps // POINTS):
            return
        before = network.state_dict()
        with tg.no_grad():  # in training mode, and then the running statistics as before
            percentiles.append(np.percentile(last_inputs(probe).cpu().numpy(), (15, 25, 50, 75, 85), axis=0))
        network.load_state_dict(before)
        kept = step % (steps // CURVE) == 0
        if kept or None in first.values():
            now = accuracy(network, data.test, data.device)
            first.update({goal: step for goal, at in first.items() if at is None and now >= int(goal)})
            curve.extend([now] * kept)

    r = train(network, data.train, trial["lr"], steps, BATCH, trial["seed"], data.device, before_step=look)
    if not r.diverged:
        look(steps)
    seen = np.array(percentiles)
    drift, usual = (np.full(seen.shape[2], 1e6),) * 2 if r.diverged else (drifts(seen), drifts(seen, usual=True))
    typical = np.argsort(drift)[len(drift) // 2]
    return {
        "diverged": r.diverged,
        "accuracy": curve + [0.0] * (CURVE + 1 - len(curve)),
        "reached": {} if r.diverged else first,
        "drift": drift,
        "usual": usual,
        "spread": float(np.median(seen[:, 3] - seen[:, 1])),
        "typical": seen[:: POINTS // CURVE, ::2, typical],  # of one unit, of which half the others drift less
        "weight": float((weights(network)[2].detach().cpu().numpy() ** 2).sum(1).mean()),
    }


def drifts(percentiles: np.ndarray, usual: bool = False) -> np.ndarray:
    """For each unit, how far its median travelled, in interquartile ranges. From (time, (15, 25, 50, 75, 85), unit).

    The ranges are those of each time, or the unit's usual one, the median over time.
    """
    moved = np.abs(np.diff(percentiles[:, 2], axis=0))
    spread = percentiles[:, 3] - percentiles[:, 1]
    return (moved / np.maximum(np.median(spread, 0) if usual else spread[:-1], 1e-7)).sum(0)


def pair(done: Results, rate: str, arm: str = "plain") -> list[tuple[Any, Any]]:
    """For each seed, the records of an arm and of BatchNorm, at the same learning rate or each at its best one."""
    lr = (LR, LR) if rate == "same" else (best(done, arm), best(done, "batchnorm"))
    runs = [done.of(kind="run", arm=a, lr=lr) for a, lr in zip((arm, "batchnorm"), lr, strict=True)]
    return list(zip(*runs, strict=True))


def reached(record: Any, goal: int = GOALS[1]) -> int | None:
    """The steps to this accuracy, or None."""
    return record.result["reached"].get(str(goal))


def steps_to(record: Any, goal: int = GOALS[1]) -> int:
    """Those to the goal; of a run that does not get there, all of its steps."""
    return reached(record, goal) or record.trial["steps"]


def speeds(done: Results, rate: str, arm: str = "plain", goal: int = GOALS[1]) -> list[float]:
    return [steps_to(a, goal) / steps_to(b, goal) for a, b in pair(done, rate, arm)]


def unit_ratios(done: Results, rate: str, name: str = "drift") -> list[np.ndarray]:
    """For each seed, each unit's drift without BatchNorm, divided by that with: the same unit has the same initial weights."""
    return [np.array(a.result[name]) / np.maximum(b.result[name], 1e-6) for a, b in pair(done, rate)]


def bootstrap(ratios: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the median over units, by a thousand resamples of them."""
    draws = np.random.default_rng(0).choice(ratios, (1000, len(ratios)))
    low, high = np.percentile(np.median(draws, 1), (2.5, 97.5))
    return float(low), float(high)


def cut_short(done: Results, rate: str, goal: int = GOALS[1]) -> bool:
    """Whether a run without BatchNorm ended before the goal, and all with it got there: then ratios are bounds from below."""
    runs = pair(done, rate)
    return any(reached(a, goal) is None for a, _ in runs) and all(reached(b, goal) is not None for _, b in runs)


def findings(done: Results) -> dict[str, Finding]:
    rates = {"speed": ("same", GOALS[1]), "speed_90": ("same", GOALS[0]), "speed_best": ("best", GOALS[1])}
    return {
        **{
            name: judge(CRITERIA[name], speeds(done, rate, goal=goal), at_least=cut_short(done, rate, goal))
            for name, (rate, goal) in rates.items()
        },
        "drift": judge(CRITERIA["drift"], [float(np.median(r)) for r in unit_ratios(done, "same")]),
        "drift_best": judge(CRITERIA["drift_best"], [float(np.median(r)) for r in unit_ratios(done, "best")]),
        "usual_best": judge(CRITERIA["usual_best"], [float(np.median(r)) for r in unit_ratios(done, "best", "usual")]),
    }


def headline(done: Results) -> str:
    if any(reached(b) is None for rate in ("same", "best") for _, b in pair(done, rate)):
        return "With BatchNorm too, some of the runs do not reach 97 %"
    f = findings(done)
    same, tuned = ("at least " * f[name].at_least + number(f[name].mean) for name in ("speed", "speed_best"))
    return f"To 97 %, a network without BatchNorm takes {same} times the steps (best rates: {tuned})"


def remarks(done: Results) -> list[str]:
    final = {arm: f"{np.mean([r['accuracy'][-1] for r in at_best(done, arm)]):.1f} %" for arm in ARMS}
    rates = {arm: number(best(done, arm)) for arm in ARMS}
    glorot = number(float(np.exp(np.mean(np.log(speeds(done, "best", "glorot"))))))
    weight = np.mean([r.result["weight"] for _, r in pair(done, "same")])
    intervals = {rate: np.array([bootstrap(r) for r in unit_ratios(done, rate)]) for rate in ("same", "best")}
    low_high = {rate: f"{number(i.min())} to {number(i.max())}" for rate, i in intervals.items()}
    spread = number(float(np.mean([a.result["spread"] for a, _ in pair(done, "same")])))
    return [
        f"The paper gives neither its learning rate nor the deviation of its initial weights; at {LR} the network "
        f"without BatchNorm ends at {np.mean([a.result['accuracy'][-1] for a, _ in pair(done, 'same')]):.1f} %, and a run that "
        "does not arrive gives a ratio of steps that is too small: by such a ratio a claim may hold, but not fail.",
        f"Best against best (rates {rates['plain']} without, {rates['batchnorm']} with), the final accuracies are "
        f"{final['plain']} and {final['batchnorm']}; with Glorot's initial weights a network without BatchNorm ends at "
        f"{final['glorot']} (rate {rates['glorot']}), and takes {glorot} times BatchNorm's steps to 97 %.",
        "Without BatchNorm the inputs of a sigmoid hardly differ between images at first, which makes any move large in "
        f"the first two drifts (at {LR} their interquartile range is {spread}); the bootstrap intervals of these over units, "
        f"widest over seeds, are {low_high['same']} at {LR} and {low_high['best']} at the best rates.",
        "The rate is not the same for both arms: before BatchNorm what counts is learning rate / |w|^2, in the last hidden "
        f"layer {number(LR / (100 * SD**2))} at first and {number(float(LR / weight))} at the end.",
    ]


def at_best(done: Results, arm: str) -> list[dict[str, Any]]:
    return [r.result for r in done.of(kind="run", arm=arm, lr=best(done, arm))]


LOOKS = {
    "batchnorm": ("with BatchNorm", style.BATCHNORM, style.SOLID, "o"),
    "plain": ("without", style.PLAIN, style.DASHED, "o open"),
    "glorot": ("without, Glorot", style.PLAIN, style.DOTTED, "s open"),
}


def draw(done: Results, canvas: style.Canvas) -> None:
    titles = [
        f"Accuracy, learning rate {LR}",
        "Accuracy, best rates, above 90 %",
        "A typical input, without (best)",
        "A typical input, with (best)",
    ]
    panels = canvas.panels([*titles, f"Drift, learning rate {LR}", "Drift, best rates"])
    canvas.key(*LOOKS.values())
    times = np.linspace(0, done.of(kind="run")[0].trial["steps"] / 1000, CURVE + 1)
    for axes, lr in zip(panels[:2], ({"plain": LR, "batchnorm": LR}, {arm: best(done, arm) for arm in ARMS}), strict=True):
        for arm, rate in lr.items():
            _, colour, line, _ = LOOKS[arm]
            style.curve(axes, times, done.values("accuracy", kind="run", arm=arm, lr=rate), colour, line)
        style.threshold(axes, GOALS[1], "97 %" * (axes is panels[1]), at=0.1)
        axes.set_ylabel("test accuracy, %")
    panels[0].set_ylim(0, 100)
    panels[1].set_ylim(90, 98.5)  # its beginning is left out
    inputs = [np.array(at_best(done, arm)[0]["typical"]) for arm in ("plain", "batchnorm")]
    low, high = min(i.min() for i in inputs), max(i.max() for i in inputs)
    for axes, arm, values in zip(panels[2:4], ("plain", "batchnorm"), inputs, strict=True):
        _, colour, line, _ = LOOKS[arm]
        axes.fill_between(times, values[:, 0], values[:, 2], color=colour, alpha=0.18, linewidth=0)
        axes.plot(times, values[:, 1], color=colour, linestyle=line)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        axes.set_ylabel("input of a sigmoid\n(15, 50, 85 %)")
    for axes in panels[:4]:
        axes.set_xlabel("steps, thousands")
    for axes, rate in zip(panels[4:], ("same", "best"), strict=True):
        for k, arm in enumerate(("plain", "batchnorm")):
            _, colour, line, _ = LOOKS[arm]
            sorted_drifts = [np.sort(records[k].result["drift"]) for records in pair(done, rate)]
            style.curve(axes, np.arange(1, len(sorted_drifts[0]) + 1), sorted_drifts, colour, line)
        axes.set_yscale("log")
        style.look.plain_ticks(axes.yaxis, [10**e for e in range(6)])
        axes.set_xlabel("units, by their drift")
        axes.set_ylabel("drift, interquartile ranges")
