"""The pictures of the claims: one palette, panels side by side or below each other, and SVG that follows a page's colours.

A claim draws into a canvas, wide or narrow, and never asks which. It asks for panels, in the order in which they are read.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import look  # noqa: E402

BATCHNORM, PLAIN, WRONG, TEXT, FAINT = look.BATCHNORM, look.PLAIN, look.WRONG, look.TEXT, look.FAINT
GRADIENT, PARAMETER, STATISTIC = "#D55E00", "#009E73", "#AA4499"
LAYERNORM, GROUPNORM = "#B8860B", "#117733"
EDGE = "#777777"
SOLID, DASHED, DOTTED, DASHDOT = "-", (0, (4, 1.6)), (0, (1, 1.4)), (0, (5, 1.4, 1, 1.4))

# The colours of a picture in a page that is dark.
DARK = {
    BATCHNORM: "#56B4E9", PLAIN: "#AAAAAA", WRONG: "#FF6B6B", TEXT: "#E8E8E8", FAINT: "#3A3F45", EDGE: "#8A8F95",
    GRADIENT: "#E69F00", PARAMETER: "#2BC79B", STATISTIC: "#CC79A7", LAYERNORM: "#E6C229", GROUPNORM: "#66CC77",
}  # fmt: skip
_NAMES = dict(
    zip(DARK, "batchnorm plain wrong text faint edge gradient parameter statistic layernorm groupnorm".split(), strict=True)
)

WIDE, NARROW = 7.0, 3.6  # inches
PANEL = 2.7  # inches: the height of a panel
_PER_ROW = {WIDE: 3, NARROW: 1}


def colours(dark: bool) -> list[tuple[str, str]]:
    """The name and the colour of each, as a page defines them."""
    return [(name, DARK[colour] if dark else colour) for colour, name in _NAMES.items()]


class Canvas:
    """A figure of one of two widths, as high as its panels need."""

    def __init__(self, width: float = WIDE):
        self.width = width
        self.figure = Figure((width, PANEL), layout="constrained")

    def panels(self, titles: Sequence[str], per_row: int = 2, height: float = PANEL, **subplots: Any) -> list[Axes]:
        """A panel for each title, ``per_row`` side by side where there is room, else below each other."""
        columns = min(per_row, len(titles), _PER_ROW[self.width])
        rows = -(-len(titles) // columns)
        self.figure.set_size_inches(self.width, height * rows)
        self.figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.05)  # type: ignore[union-attr]
        axes = self.figure.subplots(rows, columns, squeeze=False, **subplots).flatten().tolist()
        for spare in axes[len(titles) :]:
            spare.remove()
        for panel, title in zip(axes, titles, strict=False):
            panel.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
        return axes[: len(titles)]

    def key(self, *entries: tuple[str, str, Any, str]) -> None:
        """The names of the curves above all panels: (name, colour, line, mark); marks are "o", "o open", "s", "D", "x", ""."""
        handles = [
            Line2D([], [], color=colour, linestyle=line, marker=marker[:1], markersize=4.5, label=name,
                   markerfacecolor="none" if marker.endswith("open") else colour)
            for name, colour, line, marker in entries
        ]  # fmt: skip
        columns = min(len(entries), 4 if self.width == WIDE else 2)
        how = {"frameon": False, "handlelength": 2.6, "columnspacing": 1.6, "borderpad": 0, "borderaxespad": 0.3}
        self.figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=9, **how)
        self.figure.set_size_inches(self.width, self.figure.get_size_inches()[1] + 0.2 * -(-len(entries) // columns))


def curve(
    axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], colour: str, line: Any = SOLID, name: str = "", **how: Any
) -> None:
    """The median over seeds as a line, their range as a band. ``seeds``: for each seed, a value at each x."""
    values = np.array(seeds, float)
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, np.median(values, 0), color=colour, linestyle=line, label=name, **how)


def dots(axes: Axes, x: Any, y: Any, colour: str, marker: str = "o", filled: bool = True, **how: Any) -> None:
    """A dot for every seed."""
    face = colour if filled else "none"
    how = {"markersize": 3.8, "markeredgewidth": 0.9, "clip_on": False, "zorder": 3, **how}
    for line in axes.plot(x, y, marker, color=colour, markerfacecolor=face, **how):
        line.set_in_layout(False)  # on the edge of the panel it is half outside, and none at all would count as one at 0


def accuracies(axes: Axes, arms: Sequence[tuple[Sequence[Any], str, Any, str]], over: str) -> None:
    """Test accuracy of (records, colour, line, mark) over a value of their trials: medians, every seed, crosses if diverged."""
    least = min((r.result["accuracy"] for records, *_ in arms for r in records if not r.result["diverged"]), default=0)
    floor = max((least - 5) // 10 * 10, 0)  # the axis begins at a ten below what networks reach, unless they diverged
    for i, (records, colour, line, mark) in enumerate(arms):
        aside = 1.04 ** (i - (len(arms) - 1) / 2)  # so that they can be told apart
        places = sorted({r.trial[over] for r in records})
        middle = [np.median([r.result["accuracy"] for r in records if r.trial[over] == place]) for place in places]
        axes.plot([place * aside for place in places], np.maximum(middle, floor), color=colour, linestyle=line)
        for r in records:
            if r.result["diverged"]:
                look.cross(axes, r.trial[over] * aside, floor)
            else:
                dots(axes, r.trial[over] * aside, r.result["accuracy"], colour, mark[0], filled=not mark.endswith("open"))
    axes.set_xscale("log")
    look.plain_ticks(axes.xaxis, sorted({r.trial[over] for records, *_ in arms for r in records}))
    axes.set_ylim(floor, 100)
    axes.set_xlabel(over)
    axes.set_ylabel("test accuracy, %")


def threshold(axes: Axes, value: float, text: str, at: float = 0.9, below: bool = False) -> None:
    """A named horizontal line at a value that decides something; ``at`` is where its name stands on it, from 0 to 1."""
    axes.axhline(value, color=TEXT, linewidth=0.8, linestyle=":")
    place = (0, -3 if below else 3), ("axes fraction", "data"), "offset points"
    axes.annotate(text, (at, value), *place, ha="center", va="top" if below else "baseline")


def picture(draw: Any, width: float = WIDE) -> Canvas:
    """What ``draw(canvas)`` draws, finished, in the style of the pictures."""
    with look.style():
        canvas = Canvas(width)
        draw(canvas)
        canvas.figure.draw_without_rendering()
        return canvas


def save_png(draw: Any, finding: str, conditions: str, path: Path) -> Path:
    """The wide picture as a PNG, under the finding as its title."""
    with look.style():
        head = look.new_figure(finding, conditions, (WIDE, 0.66))
        parts = [_pixels(figure) for figure in (head, picture(draw).figure)]
        imsave(path, np.concatenate(parts), dpi=200, pil_kwargs={"optimize": True})
    return path


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def svg(draw: Any, width: float, prefix: str) -> str:
    """The picture as an SVG element whose colours are the page's; ``prefix`` makes its ids the only ones of their name."""
    with look.style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tinygrad_bn", "svg.id": None}):
        canvas = Canvas(width)
        draw(canvas)
        canvas.figure.set_facecolor("none")
        for axes in canvas.figure.axes:
            axes.set_facecolor("none")
        stream = io.StringIO()
        canvas.figure.savefig(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}, transparent=True
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for colour, name in _NAMES.items():
        text = re.sub(re.escape(colour), f"var(--{name})", text, flags=re.I)
    return text.replace("<svg ", f'<svg role="img" class="{"wide" if width == WIDE else "narrow"}" ', 1)
