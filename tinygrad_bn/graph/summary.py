"""Tables of a tape as plain text of at most 100 columns: time, memory, floating-point operations, formulas."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .flops import backward_flops, forward_flops
from .formulas import FORMULAS
from .tape import Leaf, Step, Tape

WIDTH = 100
NAME_WIDTH = 34
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_FLOPS = ((1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP"))


@dataclass
class _Row:
    """Sums over some of a tape's steps."""

    name: str
    calls: int = 0
    forward: float = 0.0  # seconds
    backward: float = 0.0
    made: float = 0.0  # bytes of outputs that are not views
    kept: float = 0.0  # bytes that rules keep until backward
    flops: float = 0.0
    back_flops: float = 0.0


def _rows(tape: Tape, name_of: Callable[[Step], str]) -> list[_Row]:
    rows: dict[str, _Row] = {}
    counted: set[int] = set()
    for step in tape.steps:
        name = name_of(step)
        row = rows.setdefault(name, _Row(name))
        row.calls += 1
        row.forward += step.forward_s or 0.0
        row.backward += sum(v.seconds or 0.0 for v in step.visits)
        row.made += 0 if step.view else step.nbytes
        row.kept += kept_bytes(tape, step, counted)
        row.flops += forward_flops(tape, step) or 0
        row.back_flops += backward_flops(tape, step) or 0
    return list(rows.values())


def kept_bytes(tape: Tape, step: Step, counted: set[int]) -> int:
    """Bytes that the step's rules keep until backward, and nobody else's do: what is in ``counted`` already counts nothing.

    Parameters and buffers live anyway, and count nothing; a view counts as what it shows.
    """
    total = sum(a.nbytes for a in (step.aux if isinstance(step.aux, tuple) else (step.aux,)) if hasattr(a, "nbytes"))
    refs = dict(zip(step.arguments, step.inputs, strict=True))
    for name in step.saved:
        ref = step.id if name == "out" else refs.get(name)
        if type(ref) is not int:
            continue
        entry = tape[ref]
        while isinstance(entry, Step) and entry.view and type(entry.inputs[0]) is int:
            entry = tape[entry.inputs[0]]
        if entry.id not in counted and not (isinstance(entry, Leaf) and entry.kind in ("parameter", "buffer")):
            counted.add(entry.id)
            total += entry.nbytes
    return total


# ----- the tables


def profile(tape: Tape) -> str:
    """Time and memory by operation, the one that took most time first.

    Columns: forward and backward time, their share of all time, bytes of the outputs (a view has none), and bytes that the
    gradient rules keep until backward, each array once. Times are those of ``record()``.
    """
    rows = sorted(_rows(tape, lambda s: s.op), key=lambda r: -(r.forward + r.backward))
    return _table("operation", rows, share=True)


def summary(tape: Tape) -> str:
    """What ran, by operation and by module: time, memory and floating-point operations, forward and backward.

    A module's row has the operations of its own, not those of the modules in it. ``flops`` says how is counted. The last table
    states the formula of each operation.
    """
    parameters = sum(_size(leaf) for leaf in tape.leaves if leaf.kind == "parameter" and ", version " not in leaf.name)
    loss = tape[tape.loss].value if tape.loss is not None else None
    head = f"{len(tape.steps)} operations, {len(tape.leaves)} leaves, {parameters:,} parameters"
    if loss is not None and loss.size == 1:
        head += f", loss {loss.item():.6g}"
    by_op = _table("operation", _rows(tape, lambda s: s.op))
    tables = [head, by_op]
    if tape.calls:
        kinds = {call.path: call.kind for call in tape.calls}
        model = {"": f"(model) {kinds['']}"} if "" in kinds else {}

        def module_of(step: Step) -> str:
            if step.call is None:
                return "(outside)" if step.phase == "forward" else f"({step.phase})"
            return model.get(step.module, f"{step.module} {kinds.get(step.module, '')}")

        tables.append(_table("module", _rows(tape, module_of)))
    ops = list(dict.fromkeys(s.op for s in tape.steps))
    formulas = [(op, FORMULAS[op]) for op in ops if op in FORMULAS]
    if formulas:
        width = max(len(op) for op, _ in formulas)
        lines = ["formulas"]
        for op, formula in formulas:
            text = formula.forward + "".join(f"; {line}" for line in formula.where)
            lines += textwrap.wrap(f"{op:{width}}  {text}", WIDTH, subsequent_indent=" " * (width + 2))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _size(leaf: Leaf) -> int:
    size = 1
    for n in leaf.shape:
        size *= n
    return size


def _table(what: str, rows: Sequence[_Row], share: bool = False) -> str:
    total = _Row("total")
    for row in rows:
        for field in ("calls", "forward", "backward", "made", "kept", "flops", "back_flops"):
            setattr(total, field, getattr(total, field) + getattr(row, field))
    every = [*rows, total]
    times, sizes = _unit((total.forward, total.backward), _TIMES), _unit((total.made, total.kept), _BYTES)
    columns = [
        ("calls", "", [f"{r.calls}" for r in every]),
        ("forward", times[1], _numbers([r.forward for r in every], times)),
        ("backward", times[1], _numbers([r.backward for r in every], times)),
    ]
    if share:
        whole = total.forward + total.backward or 1.0
        columns.append(("share", "%", [f"{100 * (r.forward + r.backward) / whole:.1f}" for r in every]))
    columns += [
        ("output", sizes[1], _numbers([r.made for r in every], sizes)),
        ("kept", sizes[1], _numbers([r.kept for r in every], sizes)),
    ]
    if not share:
        work = _unit((total.flops, total.back_flops), _FLOPS)
        columns.append(("forward", work[1], _numbers([r.flops for r in every], work)))
        columns.append(("backward", work[1], _numbers([r.back_flops for r in every], work)))
    return aligned(what, [r.name for r in every], columns)


def aligned(what: str, names: Sequence[str], columns: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """A table: the names to the left, then columns of a head, a unit and cells, to the right; the last row is a total."""
    cells = [[head, unit, *values] for head, unit, values in columns]
    widths = [max(map(len, column)) for column in cells]
    room = WIDTH - sum(widths) - 2 * len(widths)
    first = [what, "", *(shortened(name, min(room, NAME_WIDTH)) for name in names)]
    width = max(map(len, first))
    lines = [
        "  ".join([f"{name:<{width}}", *(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))])
        for name, *row in zip(first, *cells, strict=True)
    ]
    rule = "-" * len(lines[0])
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1]])


def _unit(values: Iterable[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit of which there are at least ten, or the smallest."""
    top = max(values)
    return next((u for u in units if top >= 10 * u[0]), units[-1])


def _numbers(values: Sequence[float], unit: tuple[float, str]) -> list[str]:
    """In the unit, all with as many decimals, so that the points stand below each other."""
    decimals = 0 if unit[0] == 1.0 and unit[1] in ("B", "FLOP") else 3 if max(values) / unit[0] < 100 else 1
    return [f"{value / unit[0]:,.{decimals}f}" for value in values]


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    """A name on one line without control characters, its middle left out where it is too long."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    if len(plain) <= width:
        return plain
    left = (width - 3) // 2
    return f"{plain[:left]}...{plain[len(plain) - (width - 3 - left) :]}"
