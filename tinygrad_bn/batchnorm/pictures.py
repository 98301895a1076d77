"""The pictures of a report, as SVG: running statistics against the population's, by layer, and what the modes score."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from .report import Cost, number

SIDE, LEFT, TOP, BOTTOM = 208, 58, 26, 40  # of a square plot, and the space around it, in pixels
FAR = 0.25  # as in running.py: beyond this a channel is marked


def layer_picture(row: dict[str, Any]) -> str:
    """Two plots of a layer's channels: its running means against the population's, and its running variances likewise."""
    if row.get("running_mean") is None:
        return ""
    sigma = np.sqrt(np.asarray(row["population_var"], float) + row["eps"])
    mean, var = np.asarray(row["running_mean"], float), np.asarray(row["running_var"], float)
    p_mean, p_var = np.asarray(row["population_mean"], float), np.asarray(row["population_var"], float)
    with np.errstate(all="ignore"):
        off_mean = ~(np.abs(mean - p_mean) / sigma <= FAR)
        off_var = ~(np.abs(np.log((var + row["eps"]) / (p_var + row["eps"]))) <= FAR)
    said = f"{row['layer'] or 'the layer'}: of {len(mean)} channels, {{}} running {{}} far from those of the data"
    return (
        f'<div class="pair">{_plot(_scatter(p_mean, mean, off_mean, "mean", False), said.format(off_mean.sum(), "means are"))}'
        f"{_plot(_scatter(p_var, var, off_var, 'variance', True), said.format(off_var.sum(), 'variances are'))}</div>"
    )


def _plot(inside: str, label: str) -> str:
    size = f"0 0 {SIDE + LEFT + 16} {TOP + SIDE + BOTTOM}"
    return f'<svg class="plot" viewBox="{size}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def _scatter(x: np.ndarray, y: np.ndarray, far: np.ndarray, name: str, log: bool) -> str:
    ok = np.isfinite(x) & np.isfinite(y) & ((x > 0) & (y > 0) if log else True)
    scale = np.log10 if log else np.asarray
    a, b = (np.asarray(scale(v[ok]), float) for v in (x, y))
    both = np.concatenate([a, b, [0.0] if not log else []]) if ok.any() else np.array([-1.0, 1.0])
    low, high = float(both.min()), float(both.max())
    pad = max(0.08 * (high - low), 0.05)
    low, high = low - pad, high + pad
    place = lambda v: (v - low) / (high - low) * SIDE  # noqa: E731
    right, base = LEFT + SIDE, TOP + SIDE
    parts = [f'<text class="name" x="{LEFT}" y="14">running {name} of each channel</text>']
    ticks = _ticks(low, high, log)
    # Names of ticks must not touch: at the bottom there is room for a few.
    for i, (at, said) in enumerate(ticks):
        p = place(at)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{base - p:.1f}" y2="{base - p:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{base - p + 4:.1f}" text-anchor="end">{said}</text>')
        if len(ticks) <= 4 or i % 2 == 0:
            parts.append(f'<text class="tick" x="{LEFT + p:.1f}" y="{base + 16}" text-anchor="middle">{said}</text>')
    parts.append(f'<line class="equal" x1="{LEFT}" y1="{base}" x2="{right}" y2="{TOP}"/>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
    for u, v, wrong in zip(a, b, far[ok], strict=True):
        h, w = LEFT + place(u), base - place(v)
        if wrong:
            parts.append(f'<path class="far" d="M{h - 4:.1f} {w - 4:.1f}l8 8m0 -8l-8 8"/>')
        else:
            parts.append(f'<path class="near" d="M{h:.1f} {w - 4:.1f}l4 4l-4 4l-4 -4z"/>')
    lost = len(x) - int(ok.sum())
    said = f"population {name}" + (f"; {lost} not drawn" if lost else "")
    parts.append(f'<text class="name" x="{LEFT + SIDE / 2}" y="{base + 34}" text-anchor="middle">{said}</text>')
    return "".join(parts)


def _ticks(low: float, high: float, log: bool) -> list[tuple[float, str]]:
    """Three to six round numbers inside, with what is written at them."""
    if log and high - low > 2:
        step = max(1, round((high - low) / 4))
        return [(float(k), f"{10.0**k:g}") for k in range(int(np.ceil(low)), int(np.floor(high)) + 1, step)]
    span = high - low
    step = 10 ** np.floor(np.log10(span / 3))
    step = next(step * f for f in (1, 2, 5, 10) if span / (step * f) <= 5)
    if log:  # round values where they stand
        marks = [v * 10.0**k for k in range(int(np.floor(low)) - 1, int(np.ceil(high)) + 1) for v in (1, 2, 5)]
        inside = [(float(np.log10(v)), f"{v:g}") for v in marks if low <= np.log10(v) <= high]
        return inside or [((low + high) / 2, f"{10 ** ((low + high) / 2):.2g}")]
    first = np.ceil(low / step)
    return [(float(i * step), f"{i * step:.6g}".replace("-", "−")) for i in np.arange(first, np.floor(high / step) + 1)]


def cost_picture(cost: Cost) -> str:
    """A bar for each way to normalise: accuracy, or the loss where there are no classes."""
    rows = [
        ("each batch's statistics", cost.training),
        ("running statistics", cost.evaluation),
        ("precise statistics", cost.precise),
    ]
    by_accuracy = cost.evaluation.accuracy is not None
    values = [None if s is None else s.accuracy if by_accuracy else s.loss for _, s in rows]
    known = [v for v in values if v is not None and np.isfinite(v)]
    if not known:
        return ""
    top = 100.0 if by_accuracy else max(known) * 1.05 or 1.0
    what = "accuracy, %" if by_accuracy else "mean loss"
    left, wide, parts = 144, 180, []
    for i, ((name, _), value) in enumerate(zip(rows, values, strict=True)):
        y = 30 + 34 * i
        drawn = value is not None and np.isfinite(value)
        length = wide * min(1.0, max(0.0, value / top)) if drawn else 0.0  # type: ignore[operator]
        said = "-" if value is None else f"{value:.1f}" if by_accuracy else number(value)
        parts.append(f'<text class="name" x="{left - 8}" y="{y + 16}" text-anchor="end">{name}</text>')
        parts.append(f'<rect class="room" x="{left}" y="{y}" width="{wide}" height="22"/>')
        parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{length:.1f}" height="22"/>')
        parts.append(f'<text class="value" x="{left + wide + 8}" y="{y + 16}">{said}</text>')
    label = f"{what}: " + ", ".join(f"{n} {'-' if v is None else number(v)}" for (n, _), v in zip(rows, values, strict=True))
    return (
        f'<svg class="plot bars" viewBox="0 0 {left + wide + 52} 136" role="img" aria-label="{escape(label)}">'
        f'<text class="name" x="{left}" y="18">{what}, normalised by</text>{"".join(parts)}</svg>'
    )


def columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """What the numbers under the pictures are: a heading, and a text for each row."""
    names = {
        "m": "values per channel", "momentum": "momentum", "num_batches_tracked": "batches tracked",
        "shift": "running mean off by, sd", "shift_expected": "expected of an average, sd", "ratio": "variance off by a factor",
        "slope": "slope measured", "slope_by_law": "slope by the Gamma law",
    }  # fmt: skip
    return [(said, [_cell(row.get(key)) for row in rows]) for key, said in names.items()]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    whole = np.isfinite(value) and value == int(value)
    return f"{value:,.0f}" if whole else number(float(value))
