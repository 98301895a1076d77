"""Three toy models, each with and without BatchNorm: two spirals, noisy moons, and a curve to fit.

    python examples/toys.py            # under a minute; draws results/toys.png

Both arms have the same layers, learning rate, initial weights and batches, and five seeds each. On problems this small
BatchNorm may help, do nothing, or hurt: the table says which, and speaks of a difference only where no pair of seeds
contradicts it. It is a comparison at one learning rate, 0.03. In our trial runs at 0.1 the plain network learned the spirals
too, and diverged on the curve: part of what BatchNorm does here is to make the choice less delicate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

import tinygrad_bn as tg

ARMS = {"without BatchNorm": None, "with BatchNorm": "batch"}
SEEDS, STEPS, BATCH, LR = 5, 1000, 50, 0.03
HIDDEN = (32, 32, 32)


# ----- the problems: x (N, features) float32, and labels int64 or values (N, 1) float32


def spirals(rng: np.random.Generator, n: int):
    """Two arms of a spiral, one and a half turns each."""
    label = np.arange(n) % 2
    turn = np.sqrt(rng.uniform(0.02, 1, n)) * 3 * np.pi
    angle = turn + np.pi * label
    x = np.stack([turn * np.cos(angle), turn * np.sin(angle)], 1) / (3 * np.pi) * 2 + rng.normal(0, 0.05, (n, 2))
    return x.astype(np.float32), label.astype(np.int64)


def moons(rng: np.random.Generator, n: int):
    """Two half circles that reach into each other, with so much noise that they overlap."""
    label = np.arange(n) % 2
    angle = rng.uniform(0, np.pi, n)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(label, -1, 1)[:, None]
    x += (
        np.where(label, 0.5, -0.5)[:, None] * [1, 0]
        + np.where(label, 0.25, -0.25)[:, None] * [0, 1]
        + rng.normal(0, 0.25, (n, 2))
    )
    return x.astype(np.float32), label.astype(np.int64)


def truth(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * x) + 0.4 * np.sin(7 * x)


def curve(rng: np.random.Generator, n: int):
    """A wave on a wave, measured with an error of 0.1."""
    x = rng.uniform(-2, 2, (n, 1))
    return x.astype(np.float32), (truth(x) + rng.normal(0, 0.1, (n, 1))).astype(np.float32)


class Toy(NamedTuple):
    """A problem, and what is measured on 2,000 examples that were not trained on."""

    name: str
    short: str
    make: Callable
    sizes: tuple[int, ...]
    loss: Callable
    measure: str
    higher_is_better: bool


TOYS = [
    Toy("two spirals", "spirals", spirals, (2, *HIDDEN, 2), tg.cross_entropy, "accuracy, %", True),
    Toy("noisy moons", "moons", moons, (2, *HIDDEN, 2), tg.cross_entropy, "accuracy, %", True),
    Toy("a curve to fit", "curve", curve, (1, *HIDDEN, 1), tg.mse_loss, "RMS error", False),
]


# ----- training


def train(toy: Toy, norm: str | None, seed: int, steps: int, advance: Callable[[], Any]) -> tuple[tg.nn.Module, float]:
    """A trained network and its measure."""
    x, y = toy.make(np.random.default_rng([seed, 0]), 1000)
    x_test, y_test = toy.make(np.random.default_rng([seed, 1]), 2000)
    tg.manual_seed(seed)
    network = tg.models.mlp(toy.sizes, norm, activation="relu")
    optimizer = tg.optim.SGD(network.parameters(), lr=LR)
    batches = tg.datasets.batches(x, y, BATCH, shuffle=True, seed=seed)
    for _, (inputs, targets) in zip(range(steps), chain.from_iterable(repeat(batches)), strict=False):
        optimizer.zero_grad()
        toy.loss(network(tg.tensor(inputs)), tg.tensor(targets)).backward()
        optimizer.step()
        advance()
    out = predict(network, x_test)
    if toy.higher_is_better:
        return network, float(100 * np.mean(out.argmax(1) == y_test))
    error = float(np.sqrt(np.mean((out - truth(x_test)) ** 2)))
    return network, error if np.isfinite(error) else np.inf  # it diverged


def predict(network: tg.nn.Module, x: np.ndarray) -> np.ndarray:
    network.eval()
    with tg.no_grad():
        return network(tg.tensor(x.astype(np.float32))).cpu().numpy()


# ----- words and picture

Found = list[tuple[Toy, dict[str, list[float]]]]  # the measures of each arm, seed by seed


def verdict(toy: Toy, plain: list[float], batchnorm: list[float]) -> str:
    """What BatchNorm did."""
    if max(plain) < min(batchnorm) or max(batchnorm) < min(plain):
        return "BatchNorm helped" if (median(batchnorm) > median(plain)) == toy.higher_is_better else "BatchNorm hurt"
    return "no difference"


def table(found: Found) -> str:
    """The measures of all toys, median and range over the seeds."""
    row = "{:<16}{:<13}{:>24}{:>24}   {}"
    lines = [row.format("problem", "test measure", *ARMS, "verdict"), ""]
    for toy, measures in found:
        digits = 1 if toy.higher_is_better else 3
        cells = [f"{median(m):.{digits}f} ({min(m):.{digits}f} to {max(m):.{digits}f})" for m in measures.values()]
        lines.append(row.format(toy.name, toy.measure, *cells, verdict(toy, *measures.values())))
    lines[1] = "-" * max(map(len, lines))
    return "\n".join(lines)


def draw(
    found: Found, networks: dict[tuple[str, str], tg.nn.Module], seed: int, conditions: str, quick: bool, path: Path
) -> None:
    """Decision boundaries and the fit: a column a problem, a row an arm."""
    import look
    from matplotlib.colors import LinearSegmentedColormap

    signed = LinearSegmentedColormap.from_list("signed", ["#0072B2", "#FFFFFF", "#D55E00"])
    verdicts: dict[str, list[str]] = {}
    for toy, measures in found:
        verdicts.setdefault(verdict(toy, *measures.values()), []).append(f"the {toy.short}")
    finding = "; ".join(f"{what} on {' and '.join(names)}" for what, names in verdicts.items())
    finding = "Smoke test: no finding" if quick else finding
    with look.style():
        figure = look.new_figure(finding, conditions, (7, 5.2))
        grid = {"left": 0.1, "right": 0.985, "bottom": 0.06, "top": 0.8, "wspace": 0.22, "hspace": 0.28}
        panels = figure.subplots(2, 3, gridspec_kw=grid)
        for column, (toy, measures) in enumerate(found):
            x, y = toy.make(np.random.default_rng([seed, 0]), 1000)
            for axes, arm in zip(panels[:, column], ARMS, strict=True):
                number = measures[arm][0]
                axes.set_title(
                    f"{toy.name}: " + (f"{number:.1f} %" if toy.higher_is_better else f"error {number:.3f}"), size=9.5
                )
                if toy.higher_is_better:
                    draw_boundary(axes, networks[toy.name, arm], x, y, signed)
                else:
                    draw_fit(axes, networks[toy.name, arm], x, y, look.BATCHNORM if ARMS[arm] else look.PLAIN)
        for axes, arm, colour in zip(panels[:, 0], ARMS, (look.PLAIN, look.BATCHNORM), strict=True):
            axes.set_ylabel(arm, color=colour, weight="bold", size=10, labelpad=8)
        look.save(figure, path)


def draw_boundary(axes: Any, network: tg.nn.Module, x: np.ndarray, y: np.ndarray, signed: Any) -> None:
    reach = 1.08 * float(np.abs(x).max())
    side = np.linspace(-reach, reach, 200)
    logits = predict(network, np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)).astype(np.float64)
    likely = 1 / (1 + np.exp(np.clip(logits[:, 0] - logits[:, 1], -50, 50))).reshape(200, 200)
    axes.imshow(likely, cmap=signed, vmin=0, vmax=1, origin="lower", extent=(-reach, reach) * 2, alpha=0.55, aspect="equal")
    axes.contour(side, side, likely, levels=[0.5], colors="#222222", linewidths=1.2)
    for label, mark, colour in ((0, "o", "#004E7C"), (1, "^", "#8F3F00")):
        points = x[y == label][:250]
        axes.plot(points[:, 0], points[:, 1], mark, color=colour, markersize=1.9, markeredgewidth=0)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_fit(axes: Any, network: tg.nn.Module, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    line = np.linspace(-2, 2, 400)[:, None]
    axes.plot(x[::2], y[::2], ".", color="#BBBBBB", markersize=2.5, markeredgewidth=0)
    axes.plot(line, truth(line), color="#222222", linewidth=0.9, linestyle=(0, (2, 2)))
    axes.plot(line, predict(network, line), color=colour, linewidth=1.8)
    axes.text(1.95, -1.8, "dashed: the truth", ha="right")
    axes.set_xlim(-2, 2)
    axes.set_ylim(-1.9, 1.9)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="Train three toy models with and without BatchNorm, and draw what they learned.")
    p.add_argument("--out", type=Path, default=Path("results/toys.png"), help="the picture (default: results/toys.png)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="the first of five seeds, and the one drawn (default: 0)")
    p.add_argument("--quick", action="store_true", help="a smoke test: one seed and 50 steps; no finding")
    a = p.parse_args(argv)
    for library in ("matplotlib", "tqdm"):
        if find_spec(library) is None:
            p.error(f"{library} is not installed: pip install 'tinygrad_bn[examples]'")
    if a.seed < 0:
        p.error(f"argument --seed: expected a number of at least 0, got {a.seed}")
    try:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=a.out.parent).close()
    except OSError as error:
        p.error(f"argument --out: cannot write into {a.out.parent}: {error.strerror}")
    if a.out.is_dir():
        p.error(f"argument --out: expected a file for the picture, got the folder {a.out}")
    from tqdm import tqdm

    seeds, steps = range(a.seed, a.seed + (1 if a.quick else SEEDS)), 50 if a.quick else STEPS
    networks: dict[tuple[str, str], tg.nn.Module] = {}
    found: Found = []
    with threadpool_limits(1), np.errstate(over="ignore", invalid="ignore"):  # small arrays; a diverging network overflows
        for toy in TOYS:
            measures: dict[str, list[float]] = {arm: [] for arm in ARMS}
            with tqdm(total=len(seeds) * len(ARMS) * steps, desc=f"{toy.name:<14}", unit="step") as bar:
                for arm, norm in ARMS.items():
                    for seed in seeds:
                        network, measure = train(toy, norm, seed, steps, bar.update)
                        networks.setdefault((toy.name, arm), network)  # the first seed's is drawn
                        measures[arm].append(measure)
            found.append((toy, measures))
    conditions = (
        f"Three hidden layers of {HIDDEN[0]} units, ReLU; {steps:,} steps of {BATCH} (of 1,000), SGD, learning rate {LR}.\n"
        f"Measured on 2,000 others. Drawn: seed {a.seed}. A verdict counts if no seed of {len(seeds)} contradicts it."
    )
    draw(found, networks, a.seed, conditions, a.quick, a.out)
    print(f"\n{table(found)}\n")
    if a.quick:
        print("This was a smoke test (one seed, few steps): it shows that the example runs, and is no finding.")
    else:
        print(f"Median (range) of seeds {seeds[0]} to {seeds[-1]}; a difference is one that no pair of seeds contradicts.")
    print(f"Written: {a.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
