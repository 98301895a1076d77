"""The weights before a BatchNorm have no scale: their gradient is orthogonal to them, and weight decay is a learning rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import GUESSING, Data, Part, Run, train

import tinygrad_bn as tg

QUESTION = "Is weight decay before BatchNorm nothing but a learning rate that grows?"
SOURCE = (
    "Li & Arora 2020: with BatchNorm, weight decay is equivalent to a learning rate that grows exponentially. Arora, Li & Lyu "
    "2019 and van Laarhoven 2017: the gradient is orthogonal to the weights, and weight decay sets the effective rate."
)
SETUP = (
    "784-100x3-10, ReLU, BatchNorm; 500 steps of SGD on batches of 50 MNIST images in float64, with eps = 0. Either the "
    "weights before a BatchNorm decay (learning rate 0.1, weight decay 0.1), or they do not, and their learning rate at "
    "step t is 0.1 / 0.99^(2t + 1). Everything else is the same."
)
CRITERIA = {
    "orthogonal": Criterion(
        "The gradient of weights before BatchNorm is orthogonal to them",
        "largest |cosine| of a layer's weights and their gradient, over layers and steps",
        high=1e-12,
        rule="every seed",
    ),
    "equivalent": Criterion(
        "Weight decay is an exponential learning rate: the losses are the same",
        "largest difference between the two training losses, over 500 steps",
        high=1e-9,
        rule="every seed",
    ),
    "angular_step": Criterion(
        "Weights under weight decay turn by sqrt(2 x learning rate x weight decay) a step",
        "angle of a layer's weights before and after a step (root mean square over layers and the last 200 steps), divided by "
        "sqrt(2 x learning rate x weight decay)",
        low=0.85,
        high=1.15,
        rule="every seed",
    ),
}

LR, DECAY = 0.1, 0.1
SHRINK = 1 - LR * DECAY  # what a step of weight decay multiplies the weights by
STEPS, SETTLED = 500, round(3 / (LR * DECAY))  # steps; those after which the weights' norm has settled
BATCH, IMAGES, THIN = 50, 8_000, 10
SIZES = (784, 100, 100, 100, 10)
VARIANTS = {"exact": ("float64", 0.0), "eps": ("float64", 1e-5), "float32": ("float32", 0.0)}  # dtype and eps


def trials(setup: Setup, done: Results) -> list[Trial]:
    return [{"variant": variant, "seed": seed} for seed in setup.seeds for variant in VARIANTS]


class Watch:
    """Looks at the weights before BatchNorm: at every gradient, through a hook, and at every step."""

    def __init__(self, weights: list[tg.nn.Parameter]):
        self.weights, self.cosine = weights, 0.0
        self.norms: list[list[float]] = []  # by step and layer
        self.angles: list[list[float]] = []
        self.before: list[np.ndarray] = []
        for weight in weights:
            weight.register_post_accumulate_grad_hook(self.see_gradient)

    def see_gradient(self, weight: tg.Tensor) -> None:
        self.cosine = max(self.cosine, abs(cosine(raw(weight), raw(weight.grad))))

    def see_step(self) -> None:
        now = [raw(weight).copy() for weight in self.weights]
        self.norms.append([float(np.linalg.norm(w)) for w in now])
        if self.before:
            cosines = [cosine(a, b) for a, b in zip(self.before, now, strict=True)]
            self.angles.append([math.acos(min(max(c, -1.0), 1.0)) for c in cosines])
        self.before = now


def raw(tensor: tg.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, float).ravel(), np.asarray(b, float).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1))


def train_arm(decay: bool, trial: Trial, data: Data) -> tuple[Run, Watch]:
    dtype, eps = VARIANTS[trial["variant"]]
    tg.manual_seed(trial["seed"])
    network = tg.models.mlp(SIZES, "batch", "relu").to(data.device, dtype)
    for layer in network:
        if isinstance(layer, tg.nn.BatchNorm1d):
            layer.eps = eps
    *scaleless, _last = [layer for layer in network if isinstance(layer, tg.nn.Linear)]
    watch = Watch([layer.weight for layer in scaleless])
    others = [p for p in network.parameters() if all(p is not w for w in watch.weights)]
    optimizer = tg.optim.SGD([{"params": watch.weights, "weight_decay": DECAY if decay else 0.0}, {"params": others}], lr=LR)

    def before_step(step: int, *_: Any) -> None:
        watch.see_step()
        if not decay:
            optimizer.param_groups[0]["lr"] = LR * SHRINK ** (-2 * step - 1)

    images = data.train.first(IMAGES)
    part = Part(images.x.astype(dtype), images.y)
    run = train(network, part, LR, STEPS, BATCH, trial["seed"], data.device, optimizer, before_step)
    return run, watch


def run(trial: Trial, data: Data) -> dict[str, Any]:
    (decayed, watch), (grown, watch_grown) = (train_arm(decay, trial, data) for decay in (True, False))
    gaps = np.abs([a - b for a, b in zip(decayed.losses, grown.losses, strict=False)] or [GUESSING])
    diverged = decayed.diverged or grown.diverged
    angles = np.sqrt(np.mean(np.square(watch.angles or [[0.0]]), axis=1))  # over layers
    settled = angles[SETTLED:]
    fine = len(settled) and np.isfinite(settled).all()
    return {
        "cosine": watch.cosine,
        "gap": max(gaps.max(), GUESSING) if diverged else gaps.max(),
        "angular_step": float(np.sqrt(np.mean(settled**2))) if fine else 0.0,
        "losses": [blocks(r.losses, np.mean) for r in (decayed, grown)],
        "gaps": blocks(gaps, np.max),
        "angles": blocks(angles, np.mean) if fine else [],
        "norms": [[float(row[0]) for row in w.norms[::THIN]] for w in (watch, watch_grown)],  # of the first layer
    }


def blocks(values: Any, summary: Any) -> list[float]:
    """One value for each ten steps."""
    return [float(summary(values[i : i + THIN])) for i in range(0, len(values), THIN)]


def findings(done: Results) -> dict[str, Finding]:
    exact = done.of(variant="exact")
    turned = [angle / turn() for angle in exact.values("angular_step")]
    return {
        "orthogonal": judge(CRITERIA["orthogonal"], exact.values("cosine")),
        "equivalent": judge(CRITERIA["equivalent"], exact.values("gap")),
        "angular_step": judge(CRITERIA["angular_step"], turned),
    }


def turn() -> float:
    """The angle of a step, in radians, once weight decay and gradients balance."""
    return math.sqrt(2 * LR * DECAY)


def headline(done: Results) -> str:
    gap = max(done.values("gap", variant="exact"))
    same = "is" if gap <= CRITERIA["equivalent"].high else "is not"
    return f"Weight decay before BatchNorm {same} a growing learning rate: the losses differ by {number(gap)} at most"


def remarks(done: Results) -> list[str]:
    gap = {variant: max(done.values("gap", variant=variant)) for variant in VARIANTS}
    cosine = max(done.values("cosine", variant="eps"))
    ends = [np.mean([x for r in done.values("losses", variant="eps") for x in r[arm][-20:]]) for arm in (0, 1)]
    effective = [LR / np.mean([r[0][i] for r in done.values("norms", variant="exact")]) ** 2 for i in (0, -1)]
    return [
        f"The identity needs eps = 0: with the usual eps = 1e-5 the cosine is up to {number(cosine)}, and the losses come to "
        f"differ by up to {number(gap['eps'])}; in float32 with eps = 0, by up to {number(gap['float32'])}.",
        "Training amplifies every difference, even one of rounding, so the two runs part; with eps = 1e-5 their mean losses "
        f"over the last 200 steps are {number(ends[0])} with weight decay and {number(ends[1])} with the growing rate.",
        f"The learning rate of the run without weight decay grows {number(SHRINK ** (-2 * STEPS))} times, yet the effective "
        f"one, learning rate / ||w||^2 of the first layer, goes from {number(effective[0])} to {number(effective[1])} in both.",
        "The angle of a step follows from the balance alone, for any loss; it is an average, for a small product of learning "
        "rate and weight decay, and single steps differ.",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    exact = done.of(variant="exact")
    panels = canvas.panels(["Weights of the first layer", "Training loss", "Difference of the losses", "Turn in a step"])
    canvas.key(("weight decay", style.BATCHNORM, style.SOLID, ""), ("growing learning rate", style.TEXT, style.DOTTED, ""))
    arms = (style.BATCHNORM, style.SOLID, 3.0), (style.TEXT, style.DOTTED, 1.4)
    for axes, name, middle in ((panels[0], "norms", 0), (panels[1], "losses", THIN / 2)):
        for arm, (colour, line, width) in enumerate(arms):
            curves = same_length([r[arm] for r in exact.values(name)])
            style.curve(axes, np.arange(len(curves[0])) * THIN + middle, curves, colour, line, linewidth=width)
    panels[0].set(yscale="log", ylabel="norm")
    style.look.plain_ticks(panels[0].yaxis, [1, 3, 10, 30, 100, 300, 1000])
    panels[1].set(ylabel="loss", ylim=(0, None))
    names = []
    for variant, colour, line, name in (
        ("exact", style.BATCHNORM, style.SOLID, "float64"),
        ("eps", style.STATISTIC, style.DASHED, "eps = 1e-5"),
        ("float32", style.PLAIN, style.DASHDOT, "float32"),
    ):
        curves = np.maximum(same_length(done.values("gaps", variant=variant)), 1e-17)
        style.curve(panels[2], np.arange(len(curves[0])) * THIN + THIN / 2, curves, colour, line)
        names.append((len(curves[0]) * THIN, float(np.median(curves[:, -1])), name, colour))
    panels[2].set(yscale="log", ylabel="difference", ylim=(1e-17, 10), xlim=(0, STEPS * 1.36), xticks=range(0, STEPS + 1, 100))
    style.threshold(panels[2], CRITERIA["equivalent"].high, "the same below", at=0.2)
    angles = same_length(exact.values("angles"))
    style.curve(panels[3], np.arange(len(angles[0])) * THIN + THIN / 2, angles, style.BATCHNORM)
    style.threshold(panels[3], turn(), "predicted", at=0.2)
    panels[3].axvline(SETTLED, color=style.TEXT, linewidth=0.8, linestyle=":")
    panels[3].annotate("judged from here", (SETTLED, 0.01), (4, 0), textcoords="offset points")
    panels[3].set(ylabel="angle, radians", ylim=(0, 1.6 * turn()))
    for axes in panels:
        axes.set_xlabel("step")
    canvas.figure.draw_without_rendering()
    style.look.name_curves(panels[2], names)


def same_length(curves: list[list[float]]) -> np.ndarray:
    """Cut to the shortest: a run that diverged is shorter. At least one value, so that it can be drawn."""
    n = min(map(len, curves))
    return np.array([curve[:n] for curve in curves]) if n else np.full((len(curves), 1), np.nan)
