"""A fused operation opened into its parts: the composition, run on what the fused one was recorded with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import core, ops
from ..backend import type_name
from ..tensor import Tensor
from .record import Recorder, recording
from .tape import Step, Tape

COMPOSITIONS: dict[str, Callable] = {"batch_norm": ops.batch_norm_composed}


@dataclass(eq=False)
class Expansion:
    """A second run of one step, as a graph of primitive operations."""

    tape: Tape  # of the second run, forward and backward
    output: int  # the id there of the step that makes the result
    inputs: dict[int, int]  # by position among the fused step's inputs: the id of the leaf there
    differences: dict[str, float]  # "out", and each input that got a contribution: the largest |fused - composed|

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        return f"<Expansion into {len(self.tape)} steps; largest differences: {told}>"


def expand(tape: Tape, step: Step | int) -> Expansion:
    """Run a fused step of ``tape`` again as a composition of primitive operations, on the inputs that it was recorded with.

    If a walk reached the step, the second run goes backward from the recorded gradient, for the inputs that got a contribution.
    Raises ValueError for a step of another tape, for an operation that has no composition here (``COMPOSITIONS`` has them), and
    for one whose values a traced graph had let go of; TypeError for what is no Tape.
    """
    if not isinstance(tape, Tape):
        raise TypeError(f"expand expected a Tape, as graph.record() gives, got {type_name(tape)}")
    chosen = step if isinstance(step, Step) else tape[step]
    if not (chosen.id < tape.next_id and tape[chosen.id] is chosen):
        raise ValueError(f"expand expected a step of this tape, got {chosen!r} of another")
    if not isinstance(chosen, Step) or (chosen.op not in COMPOSITIONS):
        what = chosen.op if isinstance(chosen, Step) else f"the leaf {chosen.name}"
        raise ValueError(f"expand expected a step of {', '.join(COMPOSITIONS)}, got {what}")
    values = [tape[ref].value if type(ref) is int else ref for ref in chosen.inputs]
    if any(v is None and type(ref) is int for v, ref in zip(values, chosen.inputs, strict=True)) or chosen.value is None:
        raise ValueError(f"expand expected a step with all of its values, got {chosen.op} of a graph that kept only some")
    tensors = [
        Tensor(v.copy()).requires_grad_(i in chosen.contributions) if isinstance(v, np.ndarray) else v
        for i, v in enumerate(values)
    ]
    kinds = ["input", "parameter", "parameter"]
    named = [(t, n, k) for t, n, k in zip(tensors, chosen.arguments, kinds, strict=True) if isinstance(t, Tensor)]
    compose = COMPOSITIONS[chosen.op]
    with recording(Recorder(studied=compose.__code__.co_filename, named=named)) as parts, core.enable_grad():
        y = compose(*tensors, **chosen.options)[0]
        output = parts.steps[-1].id
        if chosen.grad is not None and y.requires_grad:
            y.backward(Tensor(chosen.grad.copy()))
    differences = {"out": largest_difference(chosen.value, y.data)}
    for i, c in chosen.contributions.items():
        again = tensors[i]
        assert isinstance(again, Tensor) and again.grad is not None
        differences[chosen.arguments[i]] = largest_difference(c, again.grad.data)
    leaves = {leaf.name: leaf.id for leaf in parts.leaves}
    inputs = {i: leaves[n] for i, n in enumerate(chosen.arguments) if n in leaves}
    return Expansion(parts, output, inputs, differences)


def largest_difference(a: Any, b: Any) -> float:
    """max |a - b|, equal values (infinities too) and NaN beside NaN counting as 0; NaN beside a number is infinite."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    alike = (a == b) | ((a != a) & (b != b))
    gaps = np.abs(np.where(alike, 0.0, a) - np.where(alike, 0.0, b))
    return float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0))
