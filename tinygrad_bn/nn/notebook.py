"""How a module looks in a notebook: a table of its layers. Everything that a user may have named is escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from ..core import Box

_CELL = ' style="text-align:left"'
_NUMBER = ' style="text-align:right"'


def table(module: Any) -> str:
    """A row for each module below this one: its path, what it is, the shapes of its own parameters and their count."""
    rows = ["".join(f"<th{style}>{head}</th>" for head, style in _HEADS)]
    counted: set[int] = set()
    for path, m in module.named_modules():
        own = {name: t for name, t in vars(m).items() if isinstance(t, Box) and id(t) not in counted}
        counted.update(map(id, own.values()))
        trained = {name: p for name, p in own.items() if p._requires_grad}
        shapes = ", ".join(f"{name} {t._data.shape}" for name, t in own.items())
        cells = (path or "(model)", f"{type(m).__name__}({m.extra_repr()})", shapes, _count(trained))
        rows.append("".join(f"<td{style}>{escape(cell)}</td>" for cell, (_, style) in zip(cells, _HEADS, strict=True)))
    total = sum(p.size for p in module.parameters())
    mode = "training" if module.training else "evaluation"
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    title = f"<b>{escape(type(module).__name__)}</b>: {total:,} parameters, in {mode} mode"
    return f"<div>{title}\n<table>\n{body}\n</table></div>"


_HEADS = (("layer", _CELL), ("type", _CELL), ("tensors", _CELL), ("trained", _NUMBER))


def _count(trained: dict[str, Any]) -> str:
    return f"{sum(p._data.size for p in trained.values()):,}"
