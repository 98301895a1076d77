"""What a drawing of a tape shows, before it is known where: nodes, lines and groups. All drawings are made from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .summary import shortened
from .tape import Leaf, Step, Tape


@dataclass(eq=False)
class Node:
    """A step or a leaf. ``kind`` is "operation", "parameter", "buffer", "input" or "constant"."""

    id: int
    kind: str
    title: str  # the operation, or the leaf's name
    detail: str  # numbers among the inputs, and the options
    shape: str  # of its array
    group: int | None
    output: bool = False  # nothing here uses it
    keeps_out: bool = False  # its rule keeps the output until backward
    reached: bool = False  # a gradient came here
    phase: str = "forward"
    about: str = ""  # all there is to say, in several lines


@dataclass(eq=False)
class Line:
    """An array that goes from a step or leaf into a step."""

    source: int
    target: int
    position: int  # among the target's inputs
    kept: bool  # the target's rule keeps it until backward
    contribution: bool  # the target's rule gave a gradient for it


@dataclass(eq=False)
class Group:
    """What ran in one call of a module, or in one run of a gradient rule."""

    id: int
    label: str
    parent: int | None
    kind: str  # "module" or "rule"


@dataclass(eq=False)
class Sketch:
    nodes: list[Node] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    groups: dict[int, Group] = field(default_factory=dict)


def sketch(tape: Tape) -> Sketch:
    """Nodes in the order of ids, lines in the order of their targets' inputs, and the groups that have nodes."""
    drawing = Sketch()
    groups = {
        call.id: Group(call.id, shortened(f"{call.path} {call.kind}".strip(), 48), call.parent, "module") for call in tape.calls
    }
    home: dict[int, int | None] = {step.id: step.call for step in tape.steps}
    _group_rules(tape, groups, home)
    uses: dict[int, list[int]] = {}
    for step in tape.steps:
        for position, ref in enumerate(step.inputs):
            if type(ref) is int:
                uses.setdefault(ref, []).append(step.id)
                kept = step.arguments[position] in step.saved
                drawing.lines.append(Line(ref, step.id, position, kept, position in step.contributions))
    for leaf in tape.leaves:
        home[leaf.id] = None if leaf.kind == "input" else _common([home[i] for i in uses.get(leaf.id, [])], groups)
    entries: list[Step | Leaf] = [*tape.steps, *tape.leaves]
    for entry in sorted(entries, key=lambda e: e.id):
        node = _leaf_node(entry) if isinstance(entry, Leaf) else _step_node(entry)
        node.group = home[entry.id]
        node.output = isinstance(entry, Step) and entry.id not in uses
        drawing.nodes.append(node)
    for node in drawing.nodes:
        group = node.group
        while group is not None and group not in drawing.groups:
            drawing.groups[group] = groups[group]
            group = groups[group].parent
    return drawing


def _group_rules(tape: Tape, groups: dict[int, Group], home: dict[int, int | None]) -> None:
    """Put what one run of a rule did, if it is more than one operation, into a group of its own."""
    runs: list[list[Step]] = []
    for step in tape.steps:
        if step.rule_of is None:
            continue
        if runs and runs[-1][-1].rule_of == step.rule_of and runs[-1][-1].order == step.order - 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    for run in runs:
        if len(run) > 1:
            of = tape[run[0].rule_of]  # type: ignore[index]
            name = of.op if isinstance(of, Step) else of.name
            group = Group(len(groups), f"gradient of {shortened(name)} #{of.id}", home[run[0].id], "rule")
            groups[group.id] = group
            home.update({step.id: group.id for step in run})


def _common(homes: list[int | None], groups: dict[int, Group]) -> int | None:
    """The innermost group around all of these."""
    chains = []
    for group in homes:
        chain = []
        while group is not None:
            chain.append(group)
            group = groups[group].parent
        chains.append(chain)
    if not chains:
        return None
    shared = set(chains[0]).intersection(*chains[1:])
    return next((g for g in chains[0] if g in shared), None)


def _leaf_node(leaf: Leaf) -> Node:
    about = [f"{leaf.kind} {leaf.name}", f"{leaf.shape} {leaf.dtype}", *_range("value", leaf.value)]
    if leaf.grad is not None:
        about += _range("gradient", leaf.grad)
    return Node(
        leaf.id, leaf.kind, shortened(leaf.name, 30), "", str(leaf.shape), None, reached=leaf.grad is not None,
        about=_plain(about),
    )  # fmt: skip


def _step_node(step: Step) -> Node:
    about = [f"#{step.id} {step.op}", *([step.formula] if step.formula else []), f"{step.shape} {step.dtype}"]
    about += _range("value", step.value)
    about += [f"ran in {step.module}"] * bool(step.module) + [f"called at {step.source}"] * bool(step.source)
    about += [f"kept until backward: {', '.join(step.saved)}"] * bool(step.saved)
    if step.forward_s is not None:
        about.append(f"forward {1e6 * step.forward_s:.1f} us")
    if step.backward is not None:
        about.append(f"rule {step.backward} of the backward run, {1e6 * (step.backward_s or 0.0):.1f} us")
    about += ["the graph behind it was freed"] * step.freed + _range("gradient", step.grad)
    return Node(
        step.id, "operation", shortened(step.op, 30), _fitting(list(_details(step)), 30), str(step.shape), None,
        keeps_out="out" in step.saved, reached=step.grad is not None, phase=step.phase, about=_plain(about),
    )  # fmt: skip


def _plain(lines: list[str]) -> str:
    """Lines without control characters, and none endless."""
    return "\n".join(shortened(line, 200) for line in lines)


def _fitting(parts: list[str], width: int) -> str:
    """As many parts, separated by commas, as there is room for."""
    whole = ", ".join(parts)
    while len(parts) > 1 and len(whole) > width:
        parts = parts[:-1]
        whole = ", ".join([*parts, "..."])
    return shortened(whole, width)


def _details(step: Step) -> Iterator[str]:
    """Numbers among the inputs, and what options were chosen."""
    for name, ref in zip(step.arguments, step.inputs, strict=True):
        if type(ref) is float:
            yield f"{name} = {ref:g}"
    for name, value in step.options.items():
        if value is None or value is False or name == "key" or (name in _PLAIN and value in _PLAIN[name]):
            continue
        text = f"{value:g}" if isinstance(value, float) else f"{value.shape}" if isinstance(value, np.ndarray) else str(value)
        yield f"{name} = {text}"


_PLAIN: dict[str, tuple] = {  # options that say nothing
    "stride": (1, (1, 1)), "dilation": (1, (1, 1)), "padding": (0, (0, 0)), "groups": (1,), "label_smoothing": (0,),
}  # fmt: skip


def _range(what: str, value: Any) -> list[str]:
    """The number itself, or where the numbers lie and what is wrong with them."""
    if value is None or value.dtype.kind not in "fiub":
        return []
    if value.size == 1:
        return [f"{what} {value.item():.6g}"]
    good = value[np.isfinite(value)].astype("float64")
    wrong = value.size - good.size
    if not good.size:
        return [f"{what}: {'none that is finite' if wrong else 'empty'}"]
    line = f"{what} {good.min():.4g} to {good.max():.4g}, mean {good.mean():.4g}"
    return [line + (f"; {wrong} not finite" if wrong else "")]
