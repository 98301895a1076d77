"""What examples/mnist.py found: as a table, as a sentence, as JSON and as a picture. Nothing here trains anything.

``results`` is the dict that results.json holds. A diverged run has no accuracy; it ranks below every other, and is never left
out.
"""

from __future__ import annotations

import json
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

NAMES = {"plain": "without BatchNorm", "batchnorm": "with BatchNorm"}
NETWORKS = {
    "cnn": "two convolutions and two linear layers, ReLU",
    "mlp": "linear layers 784-100-100-100-10, sigmoids",
}
Results = dict[str, Any]


# ----- the finding


def summarise(settings: dict[str, Any], runs: list[dict[str, Any]], seconds: float) -> Results:
    """The results of an experiment whose ``runs`` are finished (all of them, unless it was interrupted)."""
    arms, lrs, seeds = list(NAMES), settings["lrs"], settings["seeds"]
    runs = sorted(runs, key=lambda run: (arms.index(run["arm"]), run["lr"], run["seed"]))
    results: Results = {
        "experiment": "MNIST with and without BatchNorm over a grid of learning rates",
        "complete": len(runs) == settings["runs"],
        "smoke_test": settings["quick"],
        "max_lr": dict.fromkeys(arms),
        "ratio": None,
        "per_seed": [{"seed": seed, **dict.fromkeys(arms), "ratio": None} for seed in seeds],
        "gaps": {arm: [] for arm in arms},
        "grid_factor": max((b / a for a, b in zip(lrs, lrs[1:], strict=False)), default=None),
        "seconds": round(seconds, 2),
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("tinygrad_bn", "numpy", "matplotlib")},
        },
        "machine": {"cores": os.cpu_count(), "system": platform.platform(terse=True), "processor": platform.machine()},
        "runs": runs,
    }
    if settings["quick"]:
        return results  # too little of everything: no finding
    for arm in arms:
        trained = [lr for lr in lrs if len(_of(results, arm, lr)) == len(seeds) and _trains(results, _of(results, arm, lr))]
        results["max_lr"][arm] = max(trained, default=None)
        results["gaps"][arm] = [lr for lr in lrs if trained and min(trained) < lr < max(trained) and lr not in trained]
        for seed, row in zip(seeds, results["per_seed"], strict=True):
            own = [run for run in runs if (run["arm"], run["seed"]) == (arm, seed)]
            row[arm] = max((run["lr"] for run in own if _trains(results, [run])), default=None)
    results["ratio"] = _ratio(results["max_lr"])
    for row in results["per_seed"]:
        row["ratio"] = _ratio(row)
    return results


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # the checkout is on the path, and not installed
        return None


def _of(results: Results, arm: str, lr: float) -> list[dict[str, Any]]:
    return [run for run in results["runs"] if (run["arm"], run["lr"]) == (arm, lr)]


def _trains(results: Results, runs: list[dict[str, Any]]) -> bool:
    return all(run["test_accuracy"] is not None and run["test_accuracy"] >= results["settings"]["trains"] for run in runs)


def _ratio(max_lr: dict[str, Any]) -> float | None:
    plain, batchnorm = max_lr["plain"], max_lr["batchnorm"]
    return None if plain is None or batchnorm is None else batchnorm / plain


# ----- words


def number(x: float) -> str:
    """Three digits and no exponent: 0.0316, 31.6, 1000."""
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def introduction(settings: dict[str, Any]) -> str:
    """What is about to run, and the criterion, before anything ran."""
    lrs, seeds, workers = settings["lrs"], settings["seeds"], settings["workers"]
    where = f"{_count(range(workers), 'rank')} together" if settings["distributed"] else f"{workers} worker processes"
    return (
        f"MNIST ({settings['data']}), {settings['model']} with and without BatchNorm: {_count(lrs, 'learning rate')}, "
        f"{_count(seeds, 'seed')}, {settings['runs']} runs\non {where} ({settings['device']}). "
        f"A learning rate trains if test accuracy is at least {_percent(settings['trains'])} in every seed."
    )


def _count(things: list, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def verdict(results: Results, arm: str, lr: float) -> str:
    """One learning rate of one arm, in words."""
    runs, seeds = _of(results, arm, lr), len(results["settings"]["seeds"])
    diverged = sum(run["diverged"] for run in runs)
    if len(runs) < seeds:
        return f"{len(runs)} of {seeds} runs"
    if diverged:
        return "diverged" if diverged == seeds else f"{diverged} of {seeds} diverged"
    if not _trains(results, runs):
        return f"below {_percent(results['settings']['trains'])}"
    return "trains, highest" if lr == results["max_lr"][arm] else "trains"


def ranked(runs: list[dict[str, Any]]) -> list[float | None]:
    """The accuracies of the runs in per cent, rising; the diverged ones, as None, come first."""
    accuracies = [None if run["test_accuracy"] is None else 100 * run["test_accuracy"] for run in runs]
    return sorted(accuracies, key=lambda a: -1.0 if a is None else a)


def best(results: Results, arm: str) -> tuple[float, float]:
    """The highest median accuracy of an arm, in per cent (-1: all diverged), and its learning rate."""
    medians = []
    for lr in results["settings"]["lrs"]:
        if accuracies := ranked(_of(results, arm, lr)):
            middle = accuracies[(len(accuracies) - 1) // 2]
            medians.append((-1.0 if middle is None else middle, lr))
    return max(medians, default=(-1.0, results["settings"]["lrs"][0]))


def table(results: Results) -> str:
    """Test accuracy by learning rate and arm."""
    lrs = results["settings"]["lrs"]
    column = "{:>7} {:>7} {:>7}  {:<15}"
    head = column.format("median", "lowest", "highest", "result")
    rows = [
        f"{'':13}" + "".join(f"   {NAMES[arm] + ': test accuracy, %':<40}" for arm in NAMES),
        "learning rate" + f"   {head}" * 2,
    ]
    rows.append("-" * max(len(row.rstrip()) for row in rows))
    for lr, aligned in zip(lrs, _at_the_point([number(lr) for lr in lrs]), strict=True):
        cells = []
        for arm in NAMES:
            accuracies = ranked(_of(results, arm, lr))
            ends = (accuracies[(len(accuracies) - 1) // 2], accuracies[0], accuracies[-1]) if accuracies else (None,) * 3
            cells.append(column.format(*("-" if a is None else f"{a:.1f}" for a in ends), verdict(results, arm, lr)))
        rows.append(f"{aligned:>13}   " + "   ".join(cells))
    if any(run["diverged"] for run in results["runs"]):
        rows.append("A diverged run (loss or test output no longer finite) has no accuracy (-) and ranks lowest.")
    return "\n".join(row.rstrip() for row in rows)


def _at_the_point(numbers: list[str]) -> list[str]:
    """Numbers padded on the right so that, set flush right, they stand point under point."""
    after = [len(n.partition(".")[2]) + ("." in n) for n in numbers]
    return [n + " " * (max(after) - a) for n, a in zip(numbers, after, strict=True)]


def sentence(results: Results) -> str:
    """The finding, with its numbers and their resolution."""
    settings, max_lr = results["settings"], results["max_lr"]
    if results["smoke_test"]:
        return "This was a smoke test (few learning rates, few images): the example runs. It is no finding."
    unfinished = f"Interrupted after {len(results['runs'])} of {settings['runs']} runs; so far: " * (not results["complete"])
    if results["ratio"] is None:
        nowhere = "at none of these learning rates (best median: {:.1f} % at {:.3g})"
        reach = "; ".join(
            f"{NAMES[arm]} the network trains " + (f"up to {number(lr)}" if lr else nowhere.format(*best(results, arm)))
            for arm, lr in max_lr.items()
        )
    else:
        reach = (
            f"with BatchNorm the network trains up to a learning rate of {number(max_lr['batchnorm'])}, without it up to "
            f"{number(max_lr['plain'])}: a factor of {number(results['ratio'])}"
        )
    each = ", ".join(
        " against ".join("none" if row[arm] is None else number(row[arm]) for arm in ("batchnorm", "plain"))
        + (f" ({number(row['ratio'])} times)" if row["ratio"] else "")
        for row in results["per_seed"]
    )
    text = unfinished + reach + f"; seed by seed {each}"
    if results["grid_factor"]:
        text += f"; the grid's resolution is a factor of {number(results['grid_factor'])}"
    text = text[0].upper() + text[1:] + "."
    for arm, gaps in results["gaps"].items():
        if gaps:
            text += f" In between, {NAMES[arm]}, it did not train at {', '.join(map(number, gaps))}."
    for arm, lr in max_lr.items():
        if lr == settings["lrs"][-1]:
            text += f" The limit {NAMES[arm]} may lie higher: {number(lr)} is the end of the grid."
    return _wrapped(text)


def _wrapped(text: str, width: int = 100) -> str:
    lines = [""]
    for word in text.split():
        lines += [word] if len(lines[-1]) + len(word) >= width else [f"{lines.pop()} {word}".strip()]
    return "\n".join(lines)


# ----- files


def write(results: Results, out: Path) -> Path:
    """results.json: strict JSON, one run a line, written under a temporary name and then renamed."""
    head = json.dumps({k: v for k, v in results.items() if k != "runs"}, indent=2, allow_nan=False)
    runs = ",\n".join("    " + json.dumps(run, allow_nan=False) for run in results["runs"])
    path, temporary = out / "results.json", out / f".results.json.{os.getpid()}"
    temporary.write_text(f'{head[:-2]},\n  "runs": [\n{runs}\n  ]\n}}\n', encoding="utf-8")
    os.replace(temporary, path)
    return path


# ----- the picture

SMOOTH = 10  # steps that one point of a loss curve is the median of
HIGHEST_LOSS = 8.0  # the upper edge; guessing costs 2.3


def draw(results: Results, out: Path) -> Path:
    """mnist_batchnorm.png: accuracy against learning rate, and loss curves at the two learning rates that tell most."""
    import look  # here, since matplotlib is slow to import

    path = out / "mnist_batchnorm.png"
    with look.style():
        figure = look.new_figure(title(results), conditions(results))
        edges = {"left": 0.083, "right": 0.862, "bottom": 0.115, "top": 0.79, "wspace": 0.3}
        left, right = figure.subplots(1, 2, width_ratios=(1.22, 1), gridspec_kw=edges)
        _draw_accuracies(left, results)
        _draw_losses(right, results)
        look.save(figure, path)
    return path


def title(results: Results) -> str:
    """The finding in one line."""
    if results["smoke_test"]:
        return "Smoke test: no finding"
    plain, batchnorm = results["max_lr"].values()
    if not results["complete"]:
        return f"Interrupted after {len(results['runs'])} of {results['settings']['runs']} runs"
    if plain is None and batchnorm is None:
        return "With or without BatchNorm, it trains at none of these learning rates"
    if plain is None:
        return f"It trains up to {number(batchnorm)} with BatchNorm, without at none of these learning rates"
    if batchnorm is None:
        return f"It trains up to {number(plain)} without BatchNorm, with it at none of these learning rates"
    if results["ratio"] > 1:
        return f"BatchNorm trains at {results['ratio']:.2g} times the learning rate"
    return f"BatchNorm does not raise the highest learning rate that trains: {number(batchnorm)}, without it {number(plain)}"


def conditions(results: Results) -> str:
    """What the finding was found on."""
    s = results["settings"]
    steps = max(run["steps"] for run in results["runs"])
    data = "10,000 images of MNIST" if s["data"] == "embedded" else f"MNIST ({s['data']})"
    return (
        f"{data}, {steps} steps of {s['batch_size']} ({_count(range(s['epochs']), 'epoch')}) of SGD; {NETWORKS[s['model']]}.\n"
        f"{_count(s['seeds'], 'seed')}: each a dot, median a line, range a band. Trains: {_percent(s['trains'])} in every seed"
        + (f"; the grid steps by {number(results['grid_factor'])}." if results["grid_factor"] else ".")
    )


def _arm_styles():
    import look

    return {
        "plain": {"color": look.PLAIN, "linestyle": (0, (4, 1.6)), "marker": "o", "markerfacecolor": "white"},
        "batchnorm": {"color": look.BATCHNORM, "linestyle": "-", "marker": "o"},
    }


def _draw_accuracies(axes: Any, results: Results) -> None:
    """Diverged runs are crosses on the lower edge: here, up is good."""
    import look

    lrs, trains = results["settings"]["lrs"], 100 * results["settings"]["trains"]
    axes.set_xscale("log")
    axes.set_xlim(lrs[0] / 1.35, lrs[-1] * 1.9)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    look.plain_ticks(axes.xaxis, lrs, _apart(lrs))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("test accuracy, %")
    axes.axhline(trains, color="#333333", linewidth=0.8, linestyle=":")
    look.note(axes, f"trains: {trains:g} %", (lrs[-1] * 1.9, trains), (0, 6), ha="right")
    for arm, arm_style in _arm_styles().items():
        aside = 1.05 if arm == "batchnorm" else 1 / 1.05  # so that dots of both arms can be told apart
        cells = [(lr, ranked(_of(results, arm, lr))) for lr in lrs]
        cells = [(lr, accuracies) for lr, accuracies in cells if accuracies]
        if not cells:
            continue  # interrupted before any run of this arm
        x = [lr for lr, _ in cells]
        middle = _line_and_band(axes, x, [[a or 0.0 for a in accuracies] for _, accuracies in cells], arm_style)
        for lr, accuracies in cells:
            dots = [a for a in accuracies if a is not None]
            as_dots = {**arm_style, "linestyle": "", "markersize": 3.8, "markeredgewidth": 0.9, "clip_on": False}
            axes.plot([lr * aside] * len(dots), dots, **as_dots)
            if len(dots) < len(accuracies):
                look.cross(axes, lr * aside, 0)
        _name_arm(axes, arm, x, middle, arm_style["color"])
    low, high = results["max_lr"]["plain"], results["max_lr"]["batchnorm"]
    if results["ratio"] is not None and results["ratio"] > 1:
        axes.annotate(
            "", (high, 104), (low, 104), arrowprops={"arrowstyle": "->", "color": look.TEXT, "shrinkA": 0, "shrinkB": 0}
        )
        look.note(axes, f"{results['ratio']:.2g} times", ((low * high) ** 0.5, 104), (0, 6), ha="center")
    diverged = [run["lr"] for run in results["runs"] if run["diverged"]]
    if diverged:
        look.note(axes, "diverged", (min(diverged), 0), (-7, 8), ha="right", color=look.WRONG)


def _line_and_band(axes: Any, x: Any, seeds: list[list[float]], arm_style: dict[str, Any], **line: Any) -> list[float]:
    """Draw the median and the range of what the seeds gave at each x (rising); returns the medians."""
    middle = [values[(len(values) - 1) // 2] for values in seeds]
    low, high = ([values[i] for values in seeds] for i in (0, -1))
    axes.fill_between(x, low, high, color=arm_style["color"], alpha=0.15, linewidth=0)
    axes.plot(x, middle, **{**arm_style, "marker": "", **line})
    return middle


def _apart(lrs: list[float]) -> list[float]:
    """As many of the learning rates as have room for their label, from the left."""
    inches = 2.7 / max(math.log10(lrs[-1] / lrs[0]), 0.1)  # a decade of the axis
    named = lrs[:1]
    for lr in lrs[1:]:
        letters = (len(number(named[-1])) + len(number(lr))) / 2
        if math.log10(lr / named[-1]) * inches > 0.078 * letters + 0.04:
            named.append(lr)
    return named


def _name_arm(axes: Any, arm: str, x: list[float], y: list[float], colour: str) -> None:
    """Write the arm's name beside its curve's fall, which is where the arm ends; without a fall, under its last point."""
    import look

    falls = [a - b for a, b in zip(y, y[1:], strict=False)]
    at = max(range(len(falls)), key=falls.__getitem__, default=-1)
    name = NAMES[arm].replace(" ", "\n")
    if at < 0 or falls[at] < 20:
        look.note(axes, name, (x[-1], y[-1]), (5, -20), ha="right", color=colour)
        return
    place = x[at] ** 0.6 * x[at + 1] ** 0.4, 0.6 * y[at] + 0.4 * y[at + 1]
    left = arm == "plain" or axes.transLimits.transform((math.log10(place[0]), 0))[0] > 0.8
    look.note(axes, name, place, (-8 if left else 6, 0), ha="right" if left else "left", color=colour)


def _draw_losses(axes: Any, results: Results) -> None:
    """Both arms at the highest learning rate of either; of an arm that trains nowhere, at its best one."""
    import look

    telling = sorted({lr or best(results, arm)[1] for arm, lr in results["max_lr"].items()})
    axes.set_yscale("log")
    names, lowest = [], 1.0
    for lr in telling:
        for arm, arm_style in _arm_styles().items():
            curves = [_smooth(run["losses"]) for run in _of(results, arm, lr)]
            steps = max(map(len, curves), default=0)
            if not steps:
                continue
            there = [sorted(curve[i] for curve in curves if i < len(curve)) for i in range(steps)]
            width = 1.9 if lr == telling[-1] else 1.1
            middle = _line_and_band(axes, range(1, steps + 1), there, arm_style, linewidth=width)
            lowest = min(lowest, *(values[0] for values in there))
            names.append((steps, min(middle[-1], HIGHEST_LOSS), f"{NAMES[arm].split()[0]}, {number(lr)}", arm_style["color"]))
            for run in _of(results, arm, lr):
                if run["diverged"]:
                    look.cross(axes, run["steps"], HIGHEST_LOSS)
                    look.note(axes, "diverged", (run["steps"], HIGHEST_LOSS), (6, -6), color=look.WRONG)
    axes.set_ylim(lowest * 0.85, HIGHEST_LOSS)
    look.plain_ticks(axes.yaxis, [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if t >= lowest * 0.85])
    axes.set_xlim(1, max((steps for steps, *_ in names), default=1))
    axes.set_xlabel("steps")
    axes.set_ylabel(f"training loss, median of {SMOOTH} steps")
    look.name_curves(axes, names)


def _smooth(losses: list[float | None]) -> list[float]:
    """At each step the median of the last SMOOTH losses, up to a step that diverged."""
    finite = [loss for loss in losses if loss is not None]
    return [median(finite[max(0, i + 1 - SMOOTH) : i + 1]) for i in range(len(finite))]
