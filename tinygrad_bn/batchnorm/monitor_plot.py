"""The picture of a Monitor: Ioffe and Szegedy's figure 1b for every BatchNorm, and what goes with it. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FORWARD, BACKWARD, PARAMETER, STATISTIC = "#0072B2", "#D55E00", "#009E73", "#AA4499"


def draw(monitor: Any, path: Path, chosen: list[str]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heads = [
        "inputs of the activation\n15th, 50th, 85th percentile",
        "norm of the gradient\nof the weight before it",
        "running variance\nmedian of the channels",
        "effective learning rate\nlr / |w|²",
    ]
    with_lr = any(np.isfinite(monitor.records[p]["effective_lr"]).any() for p in chosen)
    wide = 4 if with_lr else 3
    figure = Figure(figsize=(3.3 * wide, 1.2 + 1.7 * len(chosen)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(chosen), wide, squeeze=False, sharex=True)
    spread = [p[2] - p[0] for layer in chosen for p in monitor.records[layer]["percentiles"] if np.isfinite(p).all()]
    said = f"lie {min(spread):.2g} to {max(spread):.2g}" if spread else "lies nothing"  # layers that were never called
    figure.suptitle(
        f"Between the 15th and 85th percentile {said} over {monitor.steps[-1]:,} steps",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    for axes, layer in zip(grid, chosen, strict=True):
        rows = monitor.records[layer]
        low, middle, high = np.array(rows["percentiles"]).T
        axes[0].fill_between(monitor.steps, low, high, color=FORWARD, alpha=0.2, linewidth=0)
        axes[0].plot(monitor.steps, middle, color=FORWARD)
        axes[0].axhline(0, color="#80868d", linewidth=0.6)
        axes[0].set_ylabel(layer or "(model)", fontsize=9)
        lines = [("gradient_norm", BACKWARD, "-"), ("running_var", STATISTIC, "-."), ("effective_lr", PARAMETER, "--")]
        for ax, (name, colour, style) in zip(axes[1:], lines, strict=False):
            values = np.array(rows[name])
            ax.plot(monitor.steps, values, color=colour, linestyle=style)
            known = values[np.isfinite(values) & (values > 0)]
            if len(known) and known.max() > 10 * known.min():
                ax.set_yscale("log")
            elif len(known):
                ax.set_ylim(0, 1.2 * known.max())
            ax.yaxis.set_major_formatter("{x:g}")
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", alpha=0.3)
            ax.tick_params(labelsize=9)
    for ax, head in zip(grid[0], heads, strict=False):
        ax.set_title(head, fontsize=9, loc="left")
    for ax in grid[-1]:
        ax.set_xlabel("steps", fontsize=9)
    figure.savefig(path)
    return path
