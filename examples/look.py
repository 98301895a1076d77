"""The look of the examples' pictures: one palette, one style, and the few helpers that every picture needs.

Colours are Okabe and Ito's, told apart by colour-blind readers; each also has a mark of its own, so that a picture survives
printing in grey. Figures are made without pyplot: no window, no global state, nothing to close.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

BATCHNORM = "#0072B2"  # the arm with BatchNorm: solid, filled circle
PLAIN = "#555555"  # the arm without: dashed, open circle
WRONG = "#B00020"  # a diverged run: a cross, and the word
TEXT, FAINT = "#222222", "#DDDDDD"

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.labelsize": 9,
    "axes.edgecolor": "#777777",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
}


def style() -> AbstractContextManager:
    """Draw inside ``with style():``, saving included."""
    return matplotlib.rc_context(_STYLE)


def new_figure(finding: str, conditions: str, size: tuple[float, float] = (7, 4)) -> Figure:
    """A figure whose title states the finding in words; under it, small, what it was found on."""
    figure = Figure(size)
    put_title(figure, finding, conditions)
    return figure


def put_title(figure: Figure, finding: str, conditions: str) -> None:
    """The finding in words at the figure's upper edge; under it, small, what it was found on."""
    inch = 1 / figure.get_size_inches()[1]
    title = figure.text(0.012, 1 - 0.13 * inch, finding, size=13, weight="bold", va="top")
    wide = title.get_window_extent().width / (0.96 * figure.bbox.width)
    title.set_size(13 / max(wide, 1))
    figure.text(0.012, 1 - 0.40 * inch, conditions, size=9, color="#555555", va="top", linespacing=1.35)


def plain_ticks(axis: Axis, ticks: Sequence[float], named: Sequence[float] | None = None) -> None:
    """Tick labels as one writes them, 0.01 and not 10^-2; ``named`` are the ticks that get a label, by default all."""
    named = ticks if named is None else named
    axis.set_major_locator(FixedLocator(named))
    axis.set_major_formatter(lambda value, _position: f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}")
    axis.set_minor_locator(FixedLocator([t for t in ticks if t not in named]) if len(named) < len(ticks) else NullLocator())
    axis.set_minor_formatter(lambda _value, _position: "")


def name_curves(axes: Axes, names: Sequence[tuple[float, float, str, str]], gap: float = 11.5) -> None:
    """Write (x, y, name, colour) to the right of each point; overlapping names move apart. Call it once limits are set."""
    to_points = 72 / axes.figure.dpi
    ends = [axes.transData.transform((x, y))[1] * to_points for x, y, _, _ in names]
    heights = [gap * (1 + text.count("\n")) for _, _, text, _ in names]
    places = list(ends)
    order = sorted(range(len(names)), key=ends.__getitem__)
    for _ in range(100):  # neighbours push each other away until nobody overlaps
        for low, high in zip(order, order[1:], strict=False):
            lack = (heights[low] + heights[high]) / 2 - (places[high] - places[low])
            if lack > 0.01:
                places[low] -= lack / 2
                places[high] += lack / 2
    for (x, y, text, colour), end, place in zip(names, ends, places, strict=True):
        note(axes, text, (x, y), (5, place - end), color=colour)


def note(axes: Axes, text: str, point: tuple[float, float], aside: tuple[float, float], **how: Any) -> None:
    """Text beside a point of the plot; ``aside`` in typographic points."""
    how = {"va": "center", "linespacing": 1.1, "annotation_clip": False, **how}
    axes.annotate(text, point, aside, textcoords="offset points", **how)


def cross(axes: Axes, x: float, y: float) -> None:
    """The mark of what went wrong."""
    (mark,) = axes.plot([x], [y], "x", color=WRONG, markersize=7, markeredgewidth=1.6, clip_on=False, zorder=5)
    mark.set_in_layout(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name and then rename it: nobody ever finds half a picture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", pil_kwargs={"optimize": True})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
