"""A tape as an SVG document: what ran from top to bottom, in the boxes of the modules, in torchviz's colours, with a legend."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from .layout import Layout, Point, Rect, layered
from .sketch import Node, Sketch, sketch
from .tape import Tape

NODE_HEIGHT, DETAIL_HEIGHT, STUB = 30.0, 14.0, 17.0
MARGIN = 20.0
LEGEND_WIDTH = 700.0  # at least, so that it need not be a column
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
# torchviz's colours: parameters light blue, operations light grey, results green, what is kept for backward orange. Lines are
# blue for values and vermillion for what belongs to a gradient, as in all our pictures. Each kind also has a shape of its own.
_STYLE = f"""
.tgbn{{font-family:{_FONT};font-size:13px}}
.tgbn .paper{{fill:#fff}} .tgbn text{{fill:#1c1c1c}} .tgbn .quiet{{fill:#595959;font-size:11px}}
.tgbn .title{{font-size:15px;font-weight:600}} .tgbn .op{{font-weight:600}}
.tgbn .operation{{fill:#e6e6e6;stroke:#8a8a8a}} .tgbn .parameter{{fill:#add8e6;stroke:#2f7f9e}}
.tgbn .buffer{{fill:#ecd3ec;stroke:#aa4499}} .tgbn .input{{fill:#fff;stroke:#0072b2}}
.tgbn .constant{{fill:#fff;stroke:#8a8a8a;stroke-dasharray:3 2}} .tgbn .output{{fill:#caff70;stroke:#5d8a00;stroke-width:2.4}}
.tgbn .module{{fill:#0072b2;fill-opacity:.05;stroke:#0072b2;stroke-opacity:.35}}
.tgbn .rule{{fill:#d55e00;fill-opacity:.05;stroke:#d55e00;stroke-opacity:.45}}
.tgbn .edge{{fill:none;stroke:#0072b2;stroke-width:1.4}} .tgbn .tip{{fill:#0072b2}}
.tgbn .backward .edge,.tgbn .edge.backward{{stroke:#d55e00}} .tgbn .tip.backward{{fill:#d55e00}}
.tgbn .operation.backward{{stroke:#d55e00}} .tgbn .kept{{fill:#ffa500;stroke:#8a5a00}}
.tgbn .grad{{fill:#fff;stroke:#d55e00;stroke-width:1.8}}
@media (prefers-color-scheme:dark){{
.tgbn .paper{{fill:#16181c}} .tgbn text{{fill:#eaeaea}} .tgbn .quiet{{fill:#a9adb3}}
.tgbn .operation{{fill:#3a3d42;stroke:#8d9198}} .tgbn .parameter{{fill:#1f4a5a;stroke:#7cc4dd}}
.tgbn .buffer{{fill:#4a2b4a;stroke:#cc79a7}} .tgbn .input{{fill:#16181c;stroke:#56b4e9}}
.tgbn .constant{{fill:#16181c;stroke:#8d9198}} .tgbn .output{{fill:#42580f;stroke:#a8d84a}}
.tgbn .module{{fill:#56b4e9;fill-opacity:.07;stroke:#56b4e9}} .tgbn .rule{{fill:#e69f00;fill-opacity:.06;stroke:#e69f00}}
.tgbn .edge{{stroke:#56b4e9}} .tgbn .tip{{fill:#56b4e9}} .tgbn .edge.backward{{stroke:#e69f00}}
.tgbn .tip.backward{{fill:#e69f00}} .tgbn .operation.backward{{stroke:#e69f00}} .tgbn .kept{{fill:#ffa500;stroke:#ffd080}}
.tgbn .grad{{fill:#16181c;stroke:#e69f00}}
}}
""".strip()


@dataclass(eq=False)
class Picture:
    """A sketch with its places: ``layout.boxes`` by node id and by ("group", id); ``layout.paths`` in the order of the lines.

    A node's box has under it a strip of ``STUB`` pixels, for the shape that stands beside its outgoing line; the node itself is
    ``body(node)``.
    """

    sketch: Sketch
    layout: Layout

    def body(self, node: Node) -> Rect:
        box = self.layout.boxes[node.id]
        width = text_width(node.title, True) + 24, text_width(node.detail, False, 11.0) + 16
        own = max(56.0, *width)
        return Rect(box.x + (box.width - own) / 2, box.y, own, box.height - STUB)


def picture(tape: Tape) -> Picture:
    """What ``to_svg`` draws, as data."""
    drawing = sketch(tape)
    sizes: dict = {}
    inside: dict = {}
    for node in drawing.nodes:
        wide = max(text_width(node.title, True) + 24, text_width(node.detail, False, 11.0) + 16, 56.0)
        label = 2 * (text_width(node.shape, False, 11.0) + 8)  # it stands to the right of the line from the middle
        sizes[node.id] = (max(wide, label), NODE_HEIGHT + DETAIL_HEIGHT * bool(node.detail) + STUB)
        if node.group is not None:
            inside[node.id] = ("group", node.group)
    labels: dict = {}
    for group in drawing.groups.values():
        labels["group", group.id] = (text_width(group.label, False, 11.0) + 12, 18.0)
        if group.parent is not None:
            inside["group", group.id] = ("group", group.parent)
    lines = [(line.source, line.target) for line in drawing.lines]
    return Picture(drawing, layered(sizes, lines, inside, labels))


def to_svg(tape: Tape) -> str:
    """An SVG document of the tape. It has light and dark colours, by the reader's preference, and a tooltip on each node.

    Boxes are operations (round) and leaves (square); a line is labelled with the shape of its array. An orange square marks an
    array that a gradient rule keeps until backward, at the input that keeps it, or under an operation that keeps its output. An
    open circle marks what a gradient has reached. Names are escaped, so a picture can be put into a page.
    """
    shown = picture(tape)
    drawing, layout = shown.sketch, shown.layout
    entries = _legend(drawing)
    width = max(layout.width, min(LEGEND_WIDTH, _row_width(entries)), text_width(_title(tape), True, 15.0))
    legend, top = _legend_rows(entries, width)
    dx, dy = MARGIN + (width - layout.width) / 2, MARGIN + top
    full = width + 2 * MARGIN, layout.height + dy + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tgbn" role="img" aria-label={quoteattr(_title(tape))} '
        f'style="max-width:100%;height:auto" width="{full[0]:.0f}" height="{full[1]:.0f}" '
        f'viewBox="0 0 {full[0]:.0f} {full[1]:.0f}">',
        f"<style>{escape(_STYLE)}</style>",
        f'<rect class="paper" width="{full[0]:.0f}" height="{full[1]:.0f}"/>',
        f'<text class="title" x="{MARGIN:g}" y="{MARGIN + 14:g}">{escape(_title(tape))}</text>',
        *legend,
        f'<g transform="translate({dx:.2f} {dy:.2f})">',
    ]
    for group in drawing.groups.values():
        box, label = layout.boxes["group", group.id], layout.labels["group", group.id]
        text = f'<text class="quiet" x="{label.x + 8:.2f}" y="{label.y + 14:.2f}">{escape(group.label)}</text>'
        parts.append(_rectangle(group.kind, box, 6) + text)
    nodes = {node.id: node for node in drawing.nodes}
    for line, points in zip(drawing.lines, layout.paths, strict=True):
        source = nodes[line.source]
        start = shown.body(source)
        back = " backward" if nodes[line.target].phase == "backward" else ""
        parts.append(f'<path class="edge{back}" d="{path([(points[0][0], start.y + start.height), *points])}"/>')
        x, y = points[-1]
        parts.append(f'<path class="tip{back}" d="M{x - 4:.2f} {y - 7:.2f}L{x + 4:.2f} {y - 7:.2f}L{x:.2f} {y:.2f}Z"/>')
        if line.kept:
            parts.append(f'<rect class="kept" x="{x - 3.5:.2f}" y="{y - 17:.2f}" width="7" height="7"/>')
    parts += [_node(shown, node) for node in drawing.nodes]
    return "\n".join([*parts, "</g>", "</svg>", ""])


def path(points: list[Point]) -> str:
    """The d attribute of a path: straight down where x stays, else a curve that is upright at both ends."""
    (x, y), *others = points
    told = [f"M{x:.2f} {y:.2f}"]
    for nx, ny in others:
        if nx == x:
            told.append(f"V{ny:.2f}")
        else:
            middle = (y + ny) / 2
            told.append(f"C{x:.2f} {middle:.2f} {nx:.2f} {middle:.2f} {nx:.2f} {ny:.2f}")
        x, y = nx, ny
    return "".join(told)


def text_width(text: str, bold: bool, size: float = 13.0) -> float:
    """About how wide a text will be, rather too much than too little: the reader's font is not known here."""
    total = 0.0
    for c in text:
        if c in " .,:;'|!()[]ijlI":
            total += 0.36
        elif c in "mwMW@%#":
            total += 0.92
        elif c.isupper() or c in "=+<>~":
            total += 0.7
        else:
            total += 0.6 if ord(c) < 0x2E80 else 1.05
    return total * size * (1.08 if bold else 1.0)


def _rectangle(kind: str, box: Rect, radius: float) -> str:
    x, y, width, height = (f"{v:.2f}" for v in box)
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>'


def _node(shown: Picture, node: Node) -> str:
    box = shown.body(node)
    middle = box.x + box.width / 2
    kind = "output" if node.output else node.kind
    back = " backward" if node.phase == "backward" else ""
    radius = 8 if node.kind == "operation" else 0
    lines = [
        f"<g><title>{escape(node.about)}</title>{_rectangle(kind + back, box, radius)}",
    ]
    bold = ' class="op"' if node.kind == "operation" else ""
    lines.append(f'<text{bold} x="{middle:.2f}" y="{box.y + 19.5:.2f}" text-anchor="middle">{escape(node.title)}</text>')
    if node.detail:
        detail = escape(node.detail)
        lines.append(f'<text class="quiet" x="{middle:.2f}" y="{box.y + 34.5:.2f}" text-anchor="middle">{detail}</text>')
    bottom = box.y + box.height
    lines.append(f'<text class="quiet" x="{middle + 6:.2f}" y="{bottom + 12.5:.2f}">{escape(node.shape)}</text>')
    if node.keeps_out:
        lines.append(f'<rect class="kept" x="{middle - 3.5:.2f}" y="{bottom + 3:.2f}" width="7" height="7"/>')
    if node.reached:
        lines.append(f'<circle class="grad" cx="{box.x + box.width - 1.5:.2f}" cy="{box.y + 1.5:.2f}" r="3.4"/>')
    return "".join([*lines, "</g>"])


# ----- title and legend


def _title(tape: Tape) -> str:
    """What the picture shows, in numbers."""
    if not tape.steps:
        return "no operation"
    size: dict[str, int] = {}
    for step in tape.steps:
        size[step.phase] = size.get(step.phase, 0) + 1
    several = len(size) > 1
    told = ", ".join(f"{n} operation{'s' * (n > 1)}{f' {phase}' if several else ''}" for phase, n in size.items())
    rules = sum(len(step.visits) for step in tape.steps)
    loss = tape[tape.loss].value if tape.loss is not None else None
    told += f", {rules} gradient rule{'s' * (rules > 1)}" if rules else ""
    return told + (f", loss {loss.item():.4g}" if loss is not None and loss.size == 1 else "")


def _legend(drawing: Sketch) -> list[tuple[str, str]]:
    """What occurs in the drawing: its class, and what it means."""
    kinds = {node.kind for node in drawing.nodes}
    entries: list[tuple[str, str]] = [(k, k) for k in ("input", "parameter", "buffer", "constant", "operation") if k in kinds]
    if any(n.output for n in drawing.nodes):
        entries.append(("output", "result"))
    if any(n.phase == "backward" for n in drawing.nodes):
        entries.append(("operation backward", "part of a gradient"))
    if any(line.kept for line in drawing.lines) or any(n.keeps_out for n in drawing.nodes):
        entries.append(("kept", "kept until backward"))
    if any(n.reached for n in drawing.nodes):
        entries.append(("grad", "a gradient came here"))
    return entries


def _row_width(entries: list[tuple[str, str]]) -> float:
    return sum(text_width(text, False, 11.0) + 40 for _, text in entries)


def _legend_rows(entries: list[tuple[str, str]], width: float) -> tuple[list[str], float]:
    """The legend's elements, and how high title and legend are."""
    parts = []
    x, y = 0.0, 34.0
    for kind, text in entries:
        needs = text_width(text, False, 11.0) + 40
        if x and x + needs > width:
            x, y = 0.0, y + 22.0
        left, top = MARGIN + x, MARGIN + y
        if kind == "grad":
            parts.append(f'<circle class="grad" cx="{left + 10:.2f}" cy="{top - 4:.2f}" r="3.4"/>')
        elif kind == "kept":
            parts.append(f'<rect class="kept" x="{left + 6:.2f}" y="{top - 8:.2f}" width="7" height="7"/>')
        else:
            radius = 4 if kind.startswith(("operation", "output")) else 0
            parts.append(f'<rect class="{kind}" x="{left:.2f}" y="{top - 10:.2f}" width="20" height="12" rx="{radius}"/>')
        parts.append(f'<text class="quiet" x="{left + 26:.2f}" y="{top:.2f}">{escape(text)}</text>')
        x += needs
    return parts, y + 22.0
