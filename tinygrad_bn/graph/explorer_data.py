"""What the explorer's page is given of a tape: entries, arrays, the drawing, and what changed; all of it plain JSON."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .expand import COMPOSITIONS, Expansion, expand
from .layout import Layout, layered
from .tape import Leaf, Step, Tape

ROOM = 1_450_000  # bytes of the page


@dataclass(frozen=True)
class Level:
    """How much of an array goes into the page."""

    whole: int  # elements, up to which it is there in full
    first: int  # of a larger one, so many values
    bins: int


LEVELS = Level(256, 16, 16), Level(64, 16, 16), Level(16, 16, 16), Level(8, 4, 8), Level(1, 0, 0)
MOST_EXPANSIONS = 24


def second_runs(tape: Tape) -> dict[int, Expansion]:
    """The fused steps opened into their parts, by their ids."""
    fused = [s for s in tape.steps if s.op in COMPOSITIONS and _complete(tape, s)]
    return {step.id: expand(tape, step) for step in fused[:MOST_EXPANSIONS]}


def described(tape: Tape, level: Level, expansions: dict[int, Expansion] | None = None, drawn: Any = None) -> dict[str, Any]:
    """Everything that the page knows of a tape. ``expansions`` and ``drawn``: as made before, if they were."""
    arrays = _Arrays(level)
    expansions = second_runs(tape) if expansions is None else expansions
    tapes = [tape, *(e.tape for e in expansions.values())]
    return {
        "version": 1,
        "whole": level.whole,
        "loss": tape.loss,
        "delivers": sorted({walk for leaf in tape.leaves for walk in leaf.delivered}),
        "tapes": [{"entries": [_entry(t, i, arrays) for i in range(t.next_id)]} for t in tapes],
        "expansions": {
            str(key): {
                "tape": number,
                "output": e.output,
                "inputs": {str(i): leaf for i, leaf in e.inputs.items()},
                "differences": {name: encoded(value) for name, value in e.differences.items()},
            }
            for number, (key, e) in enumerate(expansions.items(), 1)
        },
        "calls": [{"path": c.path, "kind": c.kind, "parent": c.parent} for c in tape.calls],
        "changes": _changes(tape, arrays),
        "graph": drawn or drawing(tape, expansions),
        "arrays": arrays.stored,
    }


def _complete(tape: Tape, step: Step) -> bool:
    values = [step.value, *(tape[ref].value for ref in step.inputs if type(ref) is int)]
    return all(v is not None for v in values)


def _changes(tape: Tape, arrays: _Arrays) -> list[dict[str, Any]]:
    """Every buffer that moved and, if a parameter did, every parameter that was used, before and after."""
    moved = [n for n in tape.before if n in tape.after and not np.array_equal(tape.before[n], tape.after[n], equal_nan=True)]
    used = {leaf.name: leaf for leaf in tape.leaves if leaf.kind == "parameter"}
    buffers = {leaf.name for leaf in tape.leaves if leaf.kind == "buffer"}
    return [
        {
            "name": name,
            "kind": "buffer" if name in buffers or name.rpartition(".")[2].startswith("running_") else "parameter",
            "leaf": used[name].id if name in used else None,
            "before": arrays.put(tape.before[name]),
            "after": arrays.put(tape.after[name]),
        }
        for name in tape.before
        if name in moved or (name in used and any(n in used for n in moved))
    ]


def _entry(tape: Tape, key: int, arrays: _Arrays) -> dict[str, Any]:
    entry = tape[key]
    shared = {
        "value": arrays.put(entry.value),
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "tracked": entry.requires_grad,
    }
    if isinstance(entry, Leaf):
        grads = {str(walk): arrays.put(g) for walk, g in entry.grads.items()}
        return {"name": entry.name, "kind": entry.kind, "grads": grads, "hooked": entry.hooked, **shared}
    return {
        "op": entry.op,
        "arguments": entry.arguments,
        "inputs": [ref if type(ref) is int or ref is None else {"number": encoded(ref)} for ref in entry.inputs],
        "options": {name: _option(tape, entry, name, value, arrays) for name, value in entry.options.items()},
        "order": entry.order,
        "phase": entry.phase,
        "module": entry.module,
        "source": entry.source,
        "saved": entry.saved,
        "view": entry.view,
        "ruleOf": entry.rule_of,
        "visits": [
            {
                "walk": v.walk,
                "order": v.order,
                "grad": arrays.put(v.grad),
                "hooked": v.hooked,
                "contributions": {str(i): arrays.put(c) for i, c in v.contributions.items()},
            }
            for v in entry.visits
        ],
        **shared,
    }


def _option(tape: Tape, step: Step, name: str, value: Any, arrays: _Arrays) -> Any:
    if name != "index":
        return encoded(value)
    first = step.inputs[0]
    shape = step.options.get("shape") or (tape[first].shape if type(first) is int else ())
    at = np.arange(math.prod(shape)).reshape(shape)[value]  # which elements NumPy selects
    return {"index": _index_text(value), "at": arrays.put(np.asarray(at))}


def _index_text(index: Any) -> str:
    if isinstance(index, tuple):
        return ", ".join(map(_index_text, index)) or "()"
    if isinstance(index, slice):
        start, stop, step = ("" if part is None else str(part) for part in (index.start, index.stop, index.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")
    if index is Ellipsis:
        return "..."
    return np.array2string(index, threshold=16) if isinstance(index, np.ndarray) else repr(index)


def encoded(value: Any) -> Any:
    """An option or a number as JSON: what JSON has no word for becomes an object of one entry, or text."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value) if abs(int(value)) < 2**53 else {"int": str(int(value))}
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, (tuple, list)):
        return [encoded(v) for v in value]
    return {"text": str(value)}


# ----- arrays


class _Arrays:
    """The arrays of the page, each content once, in full or in summary."""

    def __init__(self, level: Level):
        self.level = level
        self.stored: list[dict[str, Any]] = []
        self._known: dict[tuple, int] = {}

    def put(self, x: Any) -> int | None:
        if x is None:
            return None
        x = np.asarray(x)
        key = x.shape, str(x.dtype), x.tobytes()
        if key not in self._known:
            self._known[key] = len(self.stored)
            self.stored.append(self._whole(x) if x.size <= self.level.whole else self._summary(x))
        return self._known[key]

    def _whole(self, x: np.ndarray) -> dict[str, Any]:
        return {"shape": list(x.shape), "dtype": str(x.dtype), "bytes": _base64(x), "wide": _wide(x)}

    def _summary(self, x: np.ndarray) -> dict[str, Any]:
        numbers = x.astype("float64").ravel()
        finite = numbers[np.isfinite(numbers)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        told: dict[str, Any] = {"shape": list(x.shape), "dtype": str(x.dtype), "odd": int(numbers.size - finite.size)}
        if finite.size:
            with np.errstate(over="ignore"):
                told.update(min=low, mean=encoded(finite.mean()), max=high)
        if self.level.first:
            told["first"] = _base64(numbers[: self.level.first])
        if self.level.bins and finite.size and math.isfinite(high - low):
            told["histogram"] = _histogram(finite, low, high, self.level.bins)
        return told


def _histogram(x: np.ndarray, low: float, high: float, bins: int) -> list[int]:
    """How many are in each bin from low to high, also where these differ by a last bit; equal numbers are in the middle one."""
    share = (x - low) / (high - low) if high > low else np.full(x.shape, 0.5)
    return np.bincount(np.minimum((share * bins).astype("int64"), bins - 1), minlength=bins).tolist()


def _wide(x: np.ndarray) -> bool:
    """Whether the bytes are of float64 rather than float32."""
    return not (x.dtype.kind == "f" and x.dtype.itemsize <= 4) and x.dtype.kind != "b"


def _base64(x: np.ndarray) -> str:
    """Little-endian float64, or float32 where that holds every value."""
    return base64.b64encode(x.astype("<f8" if _wide(x) else "<f4").tobytes()).decode()


# ----- the drawing, with everything open: the page folds what is closed

_CHAR, _SMALL = 7.8, 6.6  # width of a letter, in pixels, in the node's two lines
LONGEST = 24  # letters of a name in the drawing


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _shape_text(shape: tuple[int, ...]) -> str:
    return "scalar" if not shape else "×".join(map(str, shape))


def _size(title: str, shape: tuple[int, ...]) -> tuple[float, float]:
    return max(64.0, _CHAR * len(title) + 20, _SMALL * len(_shape_text(shape)) + 20), 42.0


def drawing(tape: Tape, expansions: dict[int, Expansion]) -> dict[str, Any]:
    """Nodes, groups and edges with their places, with every group open; an expanded step is a group.

    Nodes are [tape, id]. Edges go from node to node, in the order in which their targets take them.
    """
    sizes: dict[Any, tuple[float, float]] = {}
    inside: dict[Any, Any] = {}
    labels: dict[Any, tuple[float, float]] = {}
    edges: list[tuple[Any, Any]] = []
    shown = [i for i, c in enumerate(tape.calls) if c.path]
    around = {i: _shown_call(tape, tape.calls[i].parent) for i in shown}
    for i in shown:
        call = tape.calls[i]
        labels["call", i] = (_SMALL * (len(shortened(call.path)) + len(call.kind) + 3) + 34, 24.0)
        if around[i] is not None:
            inside["call", i] = ("call", around[i])
    numbers = {key: number for number, key in enumerate(expansions, 1)}
    homes: dict[int, set[Any]] = {}
    for step in tape.steps:
        home = _shown_call(tape, step.call)
        for ref in step.inputs:
            if type(ref) is int:
                homes.setdefault(ref, set()).add(home)
        key: Any = ("fused", step.id) if step.id in expansions else (0, step.id)
        if home is not None:
            inside[key] = ("call", home)
        if step.id not in expansions:
            sizes[key] = _size(step.op, step.shape)
            continue
        width, height = _size(step.op, step.shape)
        labels[key] = (width + 60, height)
        e, number = expansions[step.id], numbers[step.id]
        outer = {leaf: i for i, leaf in e.inputs.items()}
        for part in e.tape.steps:
            if part.phase != "forward":
                continue
            sizes[number, part.id] = _size(part.op, part.shape)
            inside[number, part.id] = key
            for ref in part.inputs:
                if type(ref) is not int:
                    continue
                if ref in outer:
                    edges.append((_made_by(step.inputs[outer[ref]], expansions, numbers), (number, part.id)))
                    continue
                if isinstance(made := e.tape[ref], Leaf):
                    sizes[number, ref] = _size(shortened(made.name), made.shape)
                    inside[number, ref] = key
                edges.append(((number, ref), (number, part.id)))
    for leaf in tape.leaves:
        sizes[0, leaf.id] = _size(shortened(leaf.name), leaf.shape)
        users = homes.get(leaf.id, set())
        if leaf.kind != "input" and len(users) == 1 and (home := next(iter(users))) is not None:
            inside[0, leaf.id] = ("call", home)
    for step in tape.steps:
        if step.id not in expansions:
            for ref in step.inputs:
                if type(ref) is int:
                    edges.append((_made_by(ref, expansions, numbers), (0, step.id)))
    sizes = dict(sorted(sizes.items(), key=lambda item: _depth(item[0], inside)))  # groups before what is in them
    try:
        layout = layered(sizes, edges, inside, labels)
    except ValueError:  # groups that depend on each other both ways: without them, then
        inside = {key: group for key, group in inside.items() if group[0] == "fused"}
        labels = {key: size for key, size in labels.items() if key[0] == "fused"}
        layout = layered(sizes, edges, inside, labels)
    return _as_json(tape, layout, list(sizes), edges, inside)


def _depth(key: Any, inside: dict[Any, Any]) -> int:
    return 0 if key not in inside else 1 + _depth(inside[key], inside)


def _made_by(ref: Any, expansions: dict[int, Expansion], numbers: dict[int, int]) -> tuple[int, int]:
    return (numbers[ref], expansions[ref].output) if ref in expansions else (0, ref)


def _shown_call(tape: Tape, call: int | None) -> int | None:
    """The innermost call, from this one outwards, that is drawn: the model itself is not."""
    while call is not None and not tape.calls[call].path:
        call = tape.calls[call].parent
    return call


def _as_json(tape: Tape, layout: Layout, nodes: list[Any], edges: list[Any], inside: dict[Any, Any]) -> dict[str, Any]:
    groups = [key for key in layout.boxes if key not in set(nodes)]
    place = {key: i for i, key in enumerate(groups)}
    number = {key: i for i, key in enumerate(nodes)}

    def box(key: Any) -> list[float]:
        return [round(v, 1) for v in layout.boxes[key]]

    def group(key: Any) -> dict[str, Any]:
        kind, i = key
        told = {"box": box(key), "label": [round(v, 1) for v in layout.labels[key]], "in": place.get(inside.get(key))}
        if kind == "call":
            return {**told, "path": tape.calls[i].path, "kind": tape.calls[i].kind, "call": i}
        return {**told, "step": i}

    return {
        "size": [round(layout.width, 1), round(layout.height, 1)],
        "nodes": [{"of": list(key), "box": box(key), "in": place.get(inside.get(key))} for key in nodes],
        "groups": [group(key) for key in groups],
        "edges": [
            [number[a], number[b], [round(v, 1) for point in path for v in point]]
            for (a, b), path in zip(edges, layout.paths, strict=True)
        ],
    }
