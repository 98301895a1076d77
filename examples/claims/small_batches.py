"""BatchNorm with statistics of few examples: the error, the noise and its law, and how far the weights below still move."""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge, number
from scipy.special import gammaln
from training import Data, accuracy, stream, train, weights

import tinygrad_bn as tg

QUESTION = "Does BatchNorm get worse when its statistics come from few examples?"
SOURCE = (
    "Wu & He 2018, table 2: from 32 to 2 images a batch, ResNet-50's error on ImageNet rises from 23.6 to 34.7 % with "
    "BatchNorm, and stays at 24.1 to 24.2 % with GroupNorm."
)
SETUP = (
    "784-128-128-128-10, ReLU; 3 epochs of 20,000 images in batches of 64 whatever the arm, SGD at 0.1, or at the best of "
    "0.03, 0.1, 0.3 and 1. BatchNorm takes its statistics of groups of 64 to 2 of the 64; GroupNorm has groups of 8 channels."
)
RISE = "test error with groups of 4 minus that with groups of 64, minus the same for LayerNorm (0: it has no groups)"
MOVED = "how far the hidden layers' weights move in training with groups of 2, divided by that with groups of 64"
GRADIENT = "median size of the gradient by an output of the first layer, at the start, with groups of 2 / of 64"
OFF = "largest deviation of the measured slope from sqrt(2/m) Γ(m/2) / Γ((m-1)/2), in proportion, over m from 2 to 64"
CRITERIA = {
    "error": Criterion("Small groups make BatchNorm worse than LayerNorm is made", f"{RISE}, at 0.1", low=0, unit="points"),
    "best": Criterion("They do so at the best learning rate of each", f"{RISE}, each at its best", low=0, unit="points"),
    "dead": Criterion("With groups of 2 the weights below a BatchNorm hardly move", MOVED, high=0.01, rule="every seed"),
    "gradient": Criterion("With groups of 2 hardly a gradient passes a BatchNorm", GRADIENT, high=0.01, rule="every seed"),
    "law": Criterion("Normalised values follow true ones by the law of Gaussian values", OFF, high=0.05, rule="every seed"),
}

BATCH = 64
GROUPS = (64, 32, 16, 8, 4, 2)
ARMS = [*(("batch", m) for m in GROUPS), ("group", BATCH), ("layer", BATCH)]
SAME, LRS = 0.1, (0.03, 0.1, 0.3, 1.0)


class GhostNorm(tg.nn.BatchNorm1d):
    """BatchNorm with the statistics of groups of m examples of a batch; the running averages are of the groups' average."""

    def __init__(self, channels: int, m: int):
        super().__init__(channels)
        self.m = m

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        if not self.training:
            return super().forward(x)
        x_hat, mean, var = in_groups(x, self.m, self.eps)
        new = {"running_mean": mean.mean(0), "running_var": var.mean(0) * (self.m / (self.m - 1))}
        for name, value in new.items():
            old = getattr(self, name).data
            setattr(self, name, tg.nn.Buffer((old + self.momentum * (value - old)).astype(old.dtype)))
        return x_hat * self.weight + self.bias


def in_groups(x: tg.Tensor, m: int, eps: float) -> tuple[tg.Tensor, Any, Any]:
    """(N, C), normalised in N / m groups, and their means and variances, (N / m, C); each group has channels of its own."""
    n, c = x.shape
    x_hat, (mean, var) = tg.batch_norm(x.reshape(m, n // m * c), eps=eps)
    return x_hat.reshape(n, c), mean.reshape(n // m, c), var.reshape(n // m, c)


def law(m: Any) -> Any:
    """E[s] / sigma for s, the standard deviation (biased) of m values of a Gaussian: the slope of the normalised values."""
    m = np.asarray(m, float)
    return np.sqrt(2 / m) * np.exp(gammaln(m / 2) - gammaln((m - 1) / 2))


def trials(setup: Setup, done: Results) -> list[Trial]:
    """The best learning rate of each arm is chosen on the first seed."""
    first, *others = setup.seeds
    train = {"part": "train", "images": 4000 if setup.quick else 60_000}  # in all epochs
    arms = [arm for arm in ARMS if not setup.quick or arm[1] in (64, 4, 2)]
    laws = [{"part": "law", "seed": seed} for seed in setup.seeds]
    lrs = LRS[:2] if setup.quick else LRS
    grid = [{**train, "arm": arm, "m": m, "lr": lr, "seed": first} for arm, m in arms for lr in lrs]
    if list(done.missing(grid)):
        return laws + grid
    rates = [(arm, m, lr) for (arm, m), best in chosen(done, first).items() for lr in sorted({SAME, best})]
    return laws + grid + [{**train, "arm": arm, "m": m, "lr": lr, "seed": seed} for seed in others for arm, m, lr in rates]


def chosen(done: Results, seed: int) -> dict[tuple[str, int], float]:
    """The best learning rate of each arm."""
    found = {(arm, m): done.of(part="train", arm=arm, m=m, seed=seed) for arm, m in ARMS}
    return {arm: min(runs, key=lambda r: r.result["valid"]).trial["lr"] for arm, runs in found.items() if runs}


def run(trial: Trial, data: Data) -> dict[str, Any]:
    if trial["part"] == "law":
        seed = trial["seed"]
        return {
            "slopes": [slope_and_noise(m, seed, data) for m in GROUPS],
            "gradients": [gradient_below(m, seed, data) for m in GROUPS],
        }
    network = network_of(trial["arm"], trial["m"], trial["seed"])
    below = weights(network)[:-1]
    start = [w.detach().numpy().copy() for w in below]
    part = data.train.first(20_000)
    r = train(network, part, trial["lr"], trial["images"] // BATCH, BATCH, trial["seed"], data.device)
    ends = [np.nan_to_num(w.detach().cpu().numpy()) for w in below]
    return {
        "valid": 100 - (0.0 if r.diverged else accuracy(network, data.valid, data.device)),
        "test": 100 - (0.0 if r.diverged else accuracy(network, data.test, data.device)),
        "moved": float(np.sqrt(sum(((end - w) ** 2).sum() for end, w in zip(ends, start, strict=True)))),
        "eta_eff": trial["lr"] / float(np.mean([(end**2).sum() for end in ends])),
    }


def network_of(arm: str, m: int, seed: int) -> tg.nn.Sequential:
    tg.manual_seed(seed)
    network = tg.models.mlp((784, 128, 128, 128, 10), norm=arm, activation="relu")
    for name, layer in list(network.named_children()):
        if isinstance(layer, tg.nn.BatchNorm1d):
            setattr(network, name, GhostNorm(layer.num_features, m))
    return network


def slope_and_noise(m: int, seed: int, data: Data) -> list[float]:
    """Of the first layer's outputs at the start, normalised in groups, on the same standardised over all images."""
    n = len(data.train.y[:10_000]) // BATCH * BATCH
    images = data.train.x[np.random.default_rng(seed).permutation(n)]
    z = images.astype(float) @ weights(network_of("batch", m, seed))[0].detach().numpy().T
    z = (z - z.mean(0)) / z.std(0)
    return regression(z, in_groups(tg.Tensor(z), m, 1e-12)[0].numpy())


def gradient_below(m: int, seed: int, data: Data) -> float:
    """The median |gradient| by the outputs of the first linear layer, at the start."""
    network = network_of("batch", m, seed).to(data.device)
    x, y = next(stream(data.train, 1, BATCH, seed, data.device))
    z = network[1](x).detach().requires_grad_()
    (g,) = tg.grad(tg.cross_entropy(network[2:](z), y), [z])
    return float(np.median(np.abs(g.cpu().numpy())))


def regression(z: np.ndarray, x_hat: np.ndarray) -> list[float]:
    """Slope of x_hat on z, of variance 1, and the variance of the rest; means over columns."""
    slope = (x_hat * z).mean(0)
    return [slope.mean(), ((x_hat - slope * z) ** 2).mean()]


def errors(done: Results, arm: str, m: int, lr: float) -> np.ndarray:
    return np.array(done.values("test", part="train", arm=arm, m=m, lr=lr))


def findings(done: Results) -> dict[str, Finding]:
    best = chosen(done, done.each("seed")[0])
    few, many = (np.array(done.values("moved", part="train", arm="batch", m=m, lr=SAME)) for m in (2, BATCH))
    slopes = np.array(done.values("slopes", part="law"))[:, :, 0]
    values = {
        "error": errors(done, "batch", 4, SAME) - errors(done, "batch", BATCH, SAME),
        "best": errors(done, "batch", 4, best["batch", 4]) - errors(done, "batch", BATCH, best["batch", BATCH]),
        "dead": few / many,
        "gradient": [g[-1] / g[0] for g in done.values("gradients", part="law")],
        "law": np.abs(slopes / law(GROUPS) - 1).max(1),
    }
    return {name: judge(CRITERIA[name], v) for name, v in values.items()}


def headline(done: Results) -> str:
    few, many = (np.mean(errors(done, "batch", m, SAME)) for m in (4, BATCH))
    return f"Test error with BatchNorm is {few:.2f} % with statistics of 4 examples, and {many:.2f} % with those of 64"


def remarks(done: Results) -> list[str]:
    best = chosen(done, done.each("seed")[0])
    ends = {arm: f"{errors(done, *arm, lr).mean():.2f} % (at {lr:g})" for arm, lr in best.items()}
    moved = findings(done)["dead"].mean
    return [
        "The batch of SGD is 64 in all runs, and only the statistics are of fewer examples; Wu & He changed both, in "
        "convolutions, where each pixel counts as an example and two images are far more than a group of two.",
        f"Each at its best learning rate, errors are {ends['batch', BATCH]} and {ends['batch', 4]} with BatchNorm in "
        f"groups of 64 and 4, {ends['layer', BATCH]} with LayerNorm, and {ends['group', BATCH]} with GroupNorm.",
        "Two values normalise to -1 and 1 and pass no gradient, but a large one where they differ by no more than the root of "
        f"eps: the weights below moved {number(moved)} times as far as with groups of 64, so the median gradient was added.",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    others = {"layer": ("LayerNorm", style.LAYERNORM, style.DOTTED), "group": ("GroupNorm", style.GROUPNORM, style.DASHDOT)}
    panels = canvas.panels(["Learning rate 0.1", "Best learning rate of each", "A normalised value", "Below a BatchNorm"])
    arms = ("BatchNorm", style.BATCHNORM, style.SOLID, "o"), *((*look, "") for look in others.values())
    canvas.key(*arms, ("law", style.TEXT, style.DASHED, ""))
    *both, slopes, below = panels
    best = chosen(done, done.each("seed")[0])
    groups = [m for m in GROUPS if ("batch", m) in best]
    for axes, rates in zip(both, (dict.fromkeys(best, SAME), best), strict=True):
        runs = np.array([errors(done, "batch", m, rates["batch", m]) for m in groups])
        style.curve(axes, groups, runs.T, style.BATCHNORM)
        style.dots(axes, groups, runs, style.BATCHNORM)
        for arm, look in others.items():
            style.curve(axes, groups, [[v] * len(groups) for v in errors(done, arm, BATCH, rates[arm, BATCH])], *look[1:])
        axes.set(yscale="log", ylabel="test error, %", ylim=(2, 100))
        style.look.plain_ticks(axes.yaxis, [2, 3, 5, 10, 20, 50, 100])
    m = np.geomspace(2, BATCH, 60)
    for index, (name, values) in enumerate((("slope", law(m)), ("noise: 1 - slope²", 1 - law(m) ** 2))):
        slopes.plot(m, values, color=style.TEXT, linestyle=style.DASHED, linewidth=1)
        measured = np.array(done.values("slopes", part="law"))[:, :, index]
        style.dots(slopes, GROUPS, measured.T, style.BATCHNORM, "o" if index == 0 else "D")
        style.look.note(slopes, name, (BATCH, values[-1]), (0, -10 if index == 0 else 22), ha="right")
    slopes.set(ylim=(0, 1), ylabel="slope, variance of the rest")
    moved = np.array([done.values("moved", part="train", arm="batch", m=m, lr=SAME) for m in groups])
    gradients = np.transpose(done.values("gradients", part="law"))
    style.curve(below, groups, (moved / moved[0]).T, style.PARAMETER, marker="s", markersize=4)
    style.curve(below, GROUPS, (gradients / gradients[0]).T, style.GRADIENT, style.DASHED, marker="o", markersize=4)
    style.look.note(below, "distance moved by the weights", (BATCH, 1), (0, 30), color=style.PARAMETER, ha="right")
    style.look.note(below, "median gradient", (BATCH, 1), (0, -14), color=style.GRADIENT, ha="right")
    below.set(yscale="log", ylabel="relative to groups of 64")
    below.set_yticks([0.001, 0.01, 0.1, 1, 10, 100], ["0.001", "0.01", "0.1", "1", "10", "100"])
    below.minorticks_off()
    for axes in panels:
        axes.set(xscale="log", xlabel="examples in a group")
        style.look.plain_ticks(axes.xaxis, sorted(GROUPS))
