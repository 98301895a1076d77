"""A tape in the languages of other drawing programs: Graphviz's DOT, and Mermaid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .sketch import Group, Line, Node, Sketch, sketch
from .tape import Tape

_FILL = {"operation": "lightgrey", "parameter": "lightblue", "buffer": "plum", "input": "white", "constant": "white"}
_RESULT = "darkolivegreen1"


def to_dot(tape: Tape) -> str:
    """The graph for Graphviz: modules are clusters, lines carry shapes, colours are torchviz's, with a legend.

    A line into an operation whose rule keeps that input until backward is orange, and so is the border of an operation whose
    rule keeps its output.
    """
    drawing = sketch(tape)
    lines = [
        "digraph {",
        '  graph [rankdir=TB, fontname="sans-serif", fontsize=11];',
        '  node [style="filled,rounded", shape=box, fontname="sans-serif", fontsize=12];',
        '  edge [fontname="sans-serif", fontsize=10, color="#0072B2"];',
        *_grouped(drawing, _dot_node, _dot_open, "  }"),
    ]
    shapes = {node.id: node.shape for node in drawing.nodes}
    for line in drawing.lines:
        kept = ', color="orange", penwidth=2' if line.kept else ""
        lines.append(f'  n{line.source} -> n{line.target} [label="{_dot(shapes[line.source])}"{kept}];')
    return "\n".join([*lines, *_dot_legend(drawing), "}", ""])


def _dot_node(node: Node) -> str:
    label = "\\n".join(_dot(text) for text in (node.title, node.detail) if text)
    fill = _RESULT if node.output else _FILL[node.kind]
    look = "" if node.kind == "operation" else ', style="filled"' if node.kind != "constant" else ', style="filled,dashed"'
    edge = ', color="orange", penwidth=2' if node.keeps_out else ', color="#D55E00"' if node.phase == "backward" else ""
    return f'n{node.id} [label="{label}", fillcolor="{fill}"{look}{edge}, tooltip="{_dot(node.about)}"];'


def _dot_open(group: Group) -> str:
    colour = "#D55E00" if group.kind == "rule" else "#0072B2"
    return f'  subgraph cluster_{group.id} {{ label="{_dot(group.label)}"; style=rounded; color="{colour}";'


def _dot_legend(drawing: Sketch) -> Iterator[str]:
    yield '  subgraph cluster_legend { label="legend"; style=rounded; color=grey;'
    for kind in ("input", "parameter", "buffer", "constant", "operation"):
        if any(node.kind == kind for node in drawing.nodes):
            yield f'    legend_{kind} [label="{kind}", fillcolor="{_FILL[kind]}"];'
    if any(node.output for node in drawing.nodes):
        yield f'    legend_result [label="result", fillcolor="{_RESULT}"];'
    if any(line.kept for line in drawing.lines) or any(node.keeps_out for node in drawing.nodes):
        yield '    legend_kept [label="orange: kept until backward", fillcolor="white", color="orange", penwidth=2];'
    yield "  }"


def _dot(text: str) -> str:
    """Inside a DOT string."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def to_mermaid(tape: Tape) -> str:
    """The graph as a Mermaid flowchart: modules are subgraphs, lines carry shapes, thick ones are kept until backward."""
    drawing = sketch(tape)
    shapes = {node.id: node.shape for node in drawing.nodes}
    lines = ["flowchart TB", *_grouped(drawing, _mermaid_node, _mermaid_open, "  end")]
    for line in drawing.lines:
        lines.append(f'  n{line.source} {_arrow(line)}|"{_mermaid(shapes[line.source])}"| n{line.target}')
    kinds = sorted({"result" if node.output else node.kind for node in drawing.nodes})
    colours = {
        "operation": "fill:#e6e6e6,stroke:#8a8a8a,color:#1c1c1c",
        "parameter": "fill:#add8e6,stroke:#2f7f9e,color:#1c1c1c",
        "buffer": "fill:#ecd3ec,stroke:#aa4499,color:#1c1c1c",
        "input": "fill:#ffffff,stroke:#0072b2,color:#1c1c1c",
        "constant": "fill:#ffffff,stroke:#8a8a8a,color:#1c1c1c,stroke-dasharray:3 2",
        "result": "fill:#caff70,stroke:#5d8a00,color:#1c1c1c",
    }
    lines += [f"  classDef {kind} {colours[kind]}" for kind in kinds]
    return "\n".join([*lines, ""])


def _arrow(line: Line) -> str:
    return "==>" if line.kept else "-->"


def _mermaid_node(node: Node) -> str:
    label = "<br/>".join(_mermaid(text) for text in (node.title, node.detail) if text)
    left, right = ("(", ")") if node.kind == "operation" else ("[", "]")
    return f'n{node.id}{left}"{label}"{right}:::{"result" if node.output else node.kind}'


def _mermaid_open(group: Group) -> str:
    return f'  subgraph g{group.id} ["{_mermaid(group.label)}"]'


def _mermaid(text: str) -> str:
    """Inside a Mermaid string: whatever is no letter, digit or plain sign as an entity."""
    return "".join(c if c.isalnum() or c in " .,_-=()+*/:" else f"#{ord(c)};" for c in text)


def _grouped(drawing: Sketch, write: Callable[[Node], str], begin: Callable[[Group], str], end: str) -> Iterator[str]:
    """The nodes, those of a group between its begin and its end, without recursion."""
    members: dict[int | None, list[Node]] = {}
    for node in drawing.nodes:
        members.setdefault(node.group, []).append(node)
    parts: dict[int | None, list[Group]] = {}
    for group in drawing.groups.values():
        parts.setdefault(group.parent, []).append(group)
    stack: list[Group | None] = [*reversed(parts.get(None, []))]
    yield from (f"  {write(node)}" for node in members.get(None, []))
    while stack:
        at = stack.pop()
        if at is None:
            yield end
            continue
        yield begin(at)
        yield from (f"    {write(node)}" for node in members.get(at.id, []))
        stack += [None, *reversed(parts.get(at.id, []))]
