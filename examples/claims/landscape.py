"""Does BatchNorm smooth the loss? Probes along the gradient, as they are and without the weights' scale, and true sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from training import Data, Line, quietly, train, weights

import tinygrad_bn as tg

QUESTION = "Is the loss smoother with BatchNorm?"
SOURCE = (
    "Santurkar et al. 2018, figure 4: along the gradient, the loss and its gradient change less with BatchNorm (VGG on "
    "CIFAR-10, steps of half to four times the learning rate, 0.1)."
)
SETUP = (
    "784-128x6-10, ReLU, Glorot's initial weights, and these times 1/3 and 3; 600 steps of SGD at 0.1 in batches of 128. Every "
    "10th step, eight steps of half to four times the learning rate are tried on its batch; every 100th, the Hessian by 20 "
    "steps of the power method."
)


def _ratio(claim: str, what: str) -> Criterion:
    return Criterion(claim, f"{what}; median over the run, without / with BatchNorm", low=3, ratio=True)


BETA = "largest change of the gradient divided by the length of the step (effective beta-smoothness)"
CRITERIA = {
    "variation": _ratio("The loss varies less along the gradient", "largest minus smallest loss on the line"),
    "change": _ratio("The gradient changes less along itself", "largest change of the gradient on the line"),
    "beta": _ratio("The gradient is effectively smoother", BETA),
    "variation_scaled": _ratio("The loss varies less for its size", "largest minus smallest loss, divided by the loss"),
    "angle": _ratio("The gradient turns less", "largest 1 - cosine of the gradients at the start and on the line"),
    "beta_scaled": _ratio(
        "It is effectively smoother if the scale of the weights is divided out",
        "effective beta-smoothness along the weights below a BatchNorm, times their squared norm",
    ),
    "beta_third": _ratio("It is effectively smoother if the weights below BatchNorm start at a third", BETA),
    "sharpness": _ratio("The loss is less sharp", "largest eigenvalue of the Hessian, in magnitude"),
    "sharpness_scaled": _ratio(
        "The loss is less sharp if the scale of the weights is divided out",
        "largest eigenvalue, in magnitude, of the Hessian by the weights below a BatchNorm, times their squared norm",
    ),
}
NAMES = {
    "variation": "loss variation", "change": "gradient change", "beta": "beta-smoothness",
    "variation_scaled": "variation / loss", "angle": "1 - cosine", "beta_scaled": "beta |w|²",
    "beta_third": "beta, weights x1/3", "sharpness": "sharpness", "sharpness_scaled": "sharpness |w|²",
}  # fmt: skip

ARMS = {"plain": None, "batchnorm": "batch"}
SCALES = {"third": 1 / 3, "one": 1.0, "triple": 3.0}
LR, BATCH, EVERY = 0.1, 128, 10
STEPS = [LR * c for c in np.geomspace(0.5, 4, 8)]
ITERATIONS = 20  # of the power method
LARGEST = 1e12  # stands for whatever is not finite


def trials(setup: Setup, done: Results) -> list[Trial]:
    steps = 60 if setup.quick else 600
    return [{"arm": a, "scale": scale, "seed": s, "steps": steps} for s in setup.seeds for a in ARMS for scale in SCALES]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    network = network_of(trial["arm"], SCALES[trial["scale"]], trial["seed"])
    below = weights(network)[:-1]
    seen: dict[str, list[float]] = {}

    def look(step: int, x: tg.Tensor, y: tg.Tensor) -> None:
        if step % EVERY == 0:
            line = Line(network, x, y)
            measured = probe(line, line.places(below))
            if step % 100 == 0 and trial["scale"] == "one":
                measured |= {"sharpness": sharpness(network, x, y, line.parameters)}
                measured |= {"sharpness_scaled": sharpness(network, x, y, below) * squared(below)}
            for name, value in measured.items():
                seen.setdefault(name, []).append(value if value < LARGEST else LARGEST)

    r = train(network, data.train, LR, trial["steps"], BATCH, trial["seed"], data.device, before_step=look)
    curves = ("variation", "change", "beta") if trial["scale"] == "one" else ("beta",)
    return {
        "medians": {name: np.median(values) for name, values in seen.items()},
        "curves": {name: seen[name][::2] for name in curves},
        "loss": r.loss(),
        "diverged": r.diverged,
        "eta_eff": 0.0 if r.diverged else LR * len(below) / squared(below),
    }


def network_of(arm: str, scale: float, seed: int) -> tg.nn.Sequential:
    """The scale is of the weights below a BatchNorm, or where one would be; with BatchNorm it changes nothing but them."""
    tg.manual_seed(seed)
    network = tg.models.mlp((784, *[128] * 6, 10), norm=ARMS[arm], activation="relu")
    *below, last = weights(network)
    for weight in (*below, last):
        tg.nn.init.xavier_normal_(weight)
        weight.data = weight.data * np.float32(1 if weight is last else scale)
    return network


def squared(arrays: list[Any]) -> float:
    """The squared norm of all of them together, parameters or arrays."""
    raw = [a.data if isinstance(a, tg.Tensor) else a for a in arrays]
    return float(sum(float((a * a).sum()) for a in raw))


def probe(line: Line, below: list[int]) -> dict[str, float]:
    """Santurkar et al.'s three measures, and three without a scale; ``below`` are the places of weights below a BatchNorm."""
    g, losses, found = line.slope, [], []
    with quietly():
        for a in STEPS:
            loss, there = line.gradient(a)
            change = [u - v for u, v in zip(there, g, strict=True)]
            size, size_there = squared(g) ** 0.5, squared(there) ** 0.5
            turned = [u / size_there - v / size for u, v in zip(there, g, strict=True)]
            ratio = squared([change[i] for i in below]) / squared([g[i] for i in below])
            losses.append(loss)
            found.append((squared(change) ** 0.5, squared(change) ** 0.5 / (a * size), squared(turned) / 2, ratio**0.5 / a))
    line.move(0)
    change, beta, angle, beta_below = np.max(found, 0).tolist()
    variation = max(losses) - min(losses)
    return {
        "variation": variation,
        "change": change,
        "beta": beta,
        "variation_scaled": variation / line.height,
        "angle": angle,
        "beta_scaled": beta_below * squared([line.parameters[i] for i in below]),
    }


def sharpness(network: tg.nn.Module, x: tg.Tensor, y: tg.Tensor, parameters: list[tg.nn.Parameter]) -> float:
    """The Hessian's largest eigenvalue in magnitude, by the power method from the gradient on."""

    def loss(*_: tg.Tensor) -> tg.Tensor:
        return tg.cross_entropy(network(x), y)

    size = 1.0
    with quietly():
        v = tg.grad(loss(), parameters)
        for _ in range(ITERATIONS):
            size = squared(v) ** 0.5
            v = tg.hvp(loss, parameters, [u / size for u in v])
        return squared(v) ** 0.5


def values(done: Results, name: str, arm: str) -> list[float]:
    """For each seed. At a third, the network without BatchNorm stays as it is: there the scale would change its function."""
    third = name == "beta_third"
    medians = done.values("medians", arm=arm, scale="third" if third and arm == "batchnorm" else "one")
    return [m["beta" if third else name] for m in medians]


def findings(done: Results) -> dict[str, Finding]:
    pairs = {name: zip(values(done, name, "plain"), values(done, name, "batchnorm"), strict=True) for name in CRITERIA}
    return {name: judge(CRITERIA[name], [p / b for p, b in pair]) for name, pair in pairs.items()}


def headline(done: Results) -> str:
    variation, beta, sharp = (number(findings(done)[name].mean) for name in ("variation", "beta", "sharpness"))
    return (
        f"BatchNorm divides loss variation along the gradient by {variation}, beta-smoothness by {beta}, sharpness by {sharp}"
    )


def remarks(done: Results) -> list[str]:
    loss = {arm: number(np.median(done.values("loss", arm=arm, scale="one"))) for arm in ARMS}
    eta = [number(np.median(done.values("eta_eff", arm="batchnorm", scale=scale))) for scale in SCALES]
    failed = [f"{r.trial['arm']} {SCALES[r.trial['scale']]:.2g}" for r in done if r.result["diverged"]]
    return [
        "Weights below a BatchNorm times c leave the network's function as it is, but divide its gradient by c and its "
        "curvature by c squared: sharpness times |w|² does not depend on that scale.",
        "Relative variation, cosine and beta-smoothness times |w|² have no units, but are measured at steps of a fixed length, "
        "which counts for more where weights are small.",
        f"At the end the training loss was {loss['plain']} without and {loss['batchnorm']} with BatchNorm, and there the "
        f"learning rate over the squared norm of a layer's weights was {', '.join(eta)} from a third, one and three times the "
        "weights.",
        f"{len(failed)} of {len(done)} runs diverged (arm and scale of weights: {', '.join(sorted(set(failed))) or 'none'}).",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    looks = {"plain": (style.PLAIN, style.DASHED), "batchnorm": (style.BATCHNORM, style.SOLID)}
    variation, change, beta, ratios = canvas.panels(
        ["Loss variation", "Gradient change", "Effective beta-smoothness", "Without / with BatchNorm"]
    )
    canvas.key(("without BatchNorm", style.PLAIN, style.DASHED, ""), ("with BatchNorm", style.BATCHNORM, style.SOLID, ""))
    for arm, (colour, dashes) in looks.items():
        for axes, name in ((variation, "variation"), (change, "change"), (beta, "beta")):
            runs = [c[name] for c in done.values("curves", arm=arm, scale="one")]
            n = min(map(len, runs))
            style.curve(axes, range(0, 2 * EVERY * n, 2 * EVERY), [c[:n] for c in runs], colour, dashes)
            axes.set(yscale="log", xlabel="step")
            style.look.plain_ticks(axes.yaxis, [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100])
    variation.set_ylabel("largest - smallest loss")
    change.set_ylabel("largest |change of the gradient|")
    beta.set_ylabel("|change of the gradient| / |step|")
    names = []
    for scale, name in (("third", "x1/3"), ("one", "x1"), ("triple", "x3")):
        runs = [c["beta"] for c in done.values("curves", arm="batchnorm", scale=scale)]
        n = min(map(len, runs))
        style.curve(beta, range(0, 2 * EVERY * n, 2 * EVERY), [r[:n] for r in runs], style.BATCHNORM, linewidth=0.8)
        names.append((2 * EVERY * (n - 1), float(np.median([r[n - 1] for r in runs])), name, style.BATCHNORM))
    style.look.name_curves(beta, names)
    for row, finding in enumerate(findings(done).values()):
        style.dots(ratios, finding.values, [row] * len(finding.values), style.TEXT, "o", markersize=3)
    ratios.axvline(3, color=style.TEXT, linewidth=0.8, linestyle=":")
    ratios.set(xscale="log", xlabel="ratio (criterion: at least 3)", ylim=(len(NAMES) - 0.5, -0.5))
    ratios.set_yticks(range(len(NAMES)), list(NAMES.values()))
    style.look.plain_ticks(ratios.xaxis, [0.1, 1, 3, 10, 100])
