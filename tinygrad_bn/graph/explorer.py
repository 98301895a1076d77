"""The explorer: one page on which a recorded run is walked through, node by node, and which checks every number it shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn, ops, optim, random
from ..backend import type_name
from ..tensor import Tensor
from . import formulas, page
from .explorer_data import LEVELS, ROOM, described, drawing, second_runs
from .record import record
from .tape import Tape

SCRIPTS = (  # each uses those before it
    "formula_arrays", "formula_products", "formula_engine", "explorer_check", "explorer_formula", "explorer_graph",
    "explorer_panel", "explorer_notes", "explorer_around", "explorer_steps", "explorer_selftest", "explorer_search",
    "explorer_python", "explorer",
)  # fmt: skip


def explore(tape: Tape, path: str | os.PathLike[str] = "step.html", title: str = "One training step, number by number") -> Path:
    """Write a recorded run to ``path`` as one HTML file that needs nothing else, and return the path.

    The page steps forward, backward and through the changes of the parameters; shows each operation's formula with its numbers,
    the gradient that came in and the contributions that went out; opens a fused BatchNorm into the primitive operations of a
    second, real run; and computes every value and every contribution again, by the formulas of ``formulas``, to say whether it
    is equal to what was recorded. Arrays of up to 256 elements are in the page in full; of a larger one the shape, minimum,
    mean, maximum, a histogram and the first 16 values are, and of a recording too large for that less (the page says where the
    limit is), so that the file stays under 1.5 MB for a few hundred steps.

    Raises TypeError for something that is no Tape, or a path or a title of another type, ValueError for a tape without a step,
    and OSError where the file cannot be written.
    """
    if not isinstance(tape, Tape):
        raise TypeError(f"graph.explore expected a Tape, as graph.record() gives, got {type_name(tape)}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"graph.explore expected a path, got {type(path).__name__}")
    if not isinstance(title, str):
        raise TypeError(f"graph.explore expected a str as title, got {type_name(title)}")
    text = document(tape, title)
    target = Path(path)
    target.write_text(text, encoding="utf-8", newline="\n")
    return target


def document(tape: Tape, title: str = "One training step, number by number") -> str:
    """The page's text, with as much of the arrays as there is room for."""
    if not tape.steps:
        raise ValueError(
            "graph.explore expected a tape with at least one step, got an empty one; did anything run in the block?"
        )
    text, expansions = "", second_runs(tape)
    drawn = drawing(tape, expansions)
    for level in LEVELS:
        data = described(tape, level, expansions, drawn)
        ops_used = {step["op"] for t in data["tapes"] for step in t["entries"] if "op" in step}
        text = page.html(
            title,
            page.text("explorer.html"),
            css=page.text("explorer.css"),
            script="\n".join(page.text(f"{name}.js") for name in SCRIPTS),
            data={"run": data, "formulas": _formulas(ops_used)},
        )
        if len(text.encode()) <= ROOM:
            break
    return text


def _formulas(used: set[str]) -> dict[str, Any]:
    """The formulas of these operations, as text and parsed, and what their functions mean."""
    found = {
        op: {
            "forward": _both(f.forward),
            "gradients": {name: _both(text) for name, text in f.gradients.items()},
            "where": [[name, tree, line] for (name, tree), line in zip(formulas.lines_of(f.where), f.where, strict=True)],
        }
        for op, f in formulas.FORMULAS.items()
        if op in used
    }
    return {"of": found, "functions": formulas.FUNCTIONS}


def _both(text: str) -> dict[str, Any]:
    return {"text": text, "tree": formulas.parse(text)}


def example() -> Tape:
    """One step of SGD on a 2-3-2 network with BatchNorm: four points of two classes, float64, small enough to read in full.

    The first layer has a bias, which the BatchNorm behind it takes away again: its gradient is zero, and the page says why. The
    last layer's weight is used twice, by the layer and by a penalty on its size: its gradient is a sum.
    """
    before = random.get_rng_state()
    try:
        random.manual_seed(3)
        last = nn.Linear(3, 2)
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), last).double()
    finally:
        random.set_rng_state(before)
    x = Tensor(np.array([[0.5, 1.0], [-1.0, 0.25], [1.5, -0.5], [-0.25, -1.5]]))
    labels = np.array([0, 1, 1, 0])
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    with record(model) as tape:
        loss = ops.cross_entropy(model(x), labels) + 0.01 * ops.square(last.weight).sum()
        loss.backward()
        optimizer.step()
    return tape
