"""Where the boxes of a drawing stand: a layered layout with groups, in time near linear in nodes and edges.

Edges run from top to bottom. Each group is laid out by itself, the innermost first, and is then one box in the group around it
(Sugiyama, Tagawa & Toda 1981, with the compound boxes of Sander 1996 in their simplest form). In a group:

1. ranks by the longest path; what nothing leads to stands right above what it leads to;
2. an edge over several ranks gets a slot of its own in each rank between, shared by all edges from its source; one over more
   than ``LONG`` ranks runs through a track beside everything instead, so that the slots stay linear in the edges;
3. order within ranks by barycentres, the best of a few sweeps;
4. x by least squares towards the neighbours' x, under the condition that nothing overlaps: isotonic regression of each rank.

Nodes of a rank have disjoint columns, and an edge leaves its column only in the gap between two ranks, where no node is: no two
nodes overlap, and no edge crosses a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from .level import Edge, Item, Key, Level, Point, arrange, top_of


class Rect(NamedTuple):
    """A box by its upper left corner."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Layout:
    """``boxes``: nodes and groups by key; ``labels``: where a group's label stands; ``paths``: each edge's points, downwards.

    Between two points of a path with the same x is a straight line, else a curve that is upright at both ends.
    """

    width: float
    height: float
    boxes: dict[Key, Rect] = field(default_factory=dict)
    labels: dict[Key, Rect] = field(default_factory=dict)
    paths: list[list[Point]] = field(default_factory=list)


def layered(
    sizes: Mapping[Key, tuple[float, float]],
    edges: Sequence[tuple[Key, Key]],
    inside: Mapping[Key, Key] | None = None,
    labels: Mapping[Key, tuple[float, float]] | None = None,
) -> Layout:
    """Place nodes of these sizes (width, height), connected by ``edges`` (from, to), from top to bottom.

    ``inside`` says of a node, or of a group, in which group it is (leave out what is in none); ``labels`` how much room each
    group's label takes, in its upper left corner. The edges into a node arrive side by side in their order. Raises ValueError
    for a cycle, also one that only the groups make.
    """
    inside = inside or {}
    labels = labels or {}
    chains = {key: _chain(key, inside) for key in sizes}
    levels: dict[Key, Level] = {None: Level(None)}
    for key, (width, height) in sizes.items():
        around = [*chains[key], None]
        for group, outer in reversed(list(pairwise(around))):
            if group not in levels:
                levels[group] = level = Level(group)
                level.items["label"] = Item(*labels.get(group, (0.0, 0.0)), group, "label")
                levels[outer].items["box", group] = Item(0.0, 0.0, group, "group")
        levels[around[0]].items["box", key] = Item(width, height, key)
    routes = [_route(levels, chains, u, v, i) for i, (u, v) in enumerate(edges)]
    _spread_arrivals(routes)
    for group in sorted(levels, key=lambda g: -len(_chain(g, inside)) - (g is not None)):
        arrange(levels[group])
        if group is not None:
            _close(levels[group], levels[inside.get(group)])
    return _collect(levels, inside, routes)


def _chain(key: Key, inside: Mapping[Key, Key]) -> list[Key]:
    """The groups around a node or group, the innermost first."""
    chain: list[Key] = []
    while (key := inside.get(key)) is not None:
        chain.append(key)
        if len(chain) > len(inside):
            raise ValueError(f"layered expected groups inside each other without a cycle, got {key!r} inside itself")
    return chain


# ----- edges, cut at the groups' borders


def _route(levels: dict, chains: dict, u: Key, v: Key, number: int) -> list[tuple[Level, Edge]]:
    """The edges of single levels that lead from u to v: out of its groups, across, and into those of v."""
    if u not in chains or v not in chains:
        raise ValueError(f"layered expected edges between nodes that have a size, got ({u!r}, {v!r})")
    up, down = list(chains[u]), list(chains[v])
    while up and down and up[-1] == down[-1]:
        up.pop()
        down.pop()
    shared = len(chains[u]) - len(up)
    at = chains[u][-shared] if shared else None
    route: list[tuple[Level, Edge]] = []
    here: Key = u
    for group in up:
        level = levels[group]
        level.items.setdefault(("out", u), Item(4.0, 0.0, u, "out"))
        route.append((level, _connect(level, ("box", here), ("out", u), u)))
        here = group
    there = [v, *down]
    head = ("box", there[-1])
    route.append((levels[at], _connect(levels[at], ("box", here), head, u, number if there[-1] == v else None)))
    for i in range(len(down) - 1, -1, -1):
        level = levels[down[i]]
        level.items.setdefault(("in", u), Item(4.0, 0.0, u, "in"))
        route.append((level, _connect(level, ("in", u), ("box", there[i]), u, number if i == 0 else None)))
    return route


def _connect(level: Level, tail: Any, head: Any, source: Key, number: int | None = None) -> Edge:
    """The level's edge; all of one source into one group or port are one, those into a node are one each."""
    name = (tail, head, source, number)
    if name not in level.edges:
        level.edges[name] = Edge(level.items[tail], level.items[head], source, 0.0)
    return level.edges[name]


def _spread_arrivals(routes: list) -> None:
    """Let the edges into a node arrive side by side."""
    into: dict[int, list[Edge]] = {}
    for route in routes:
        edge = route[-1][1]
        into.setdefault(id(edge.head), []).append(edge)
    for edges in into.values():
        width = edges[0].head.width
        step = min(22.0, width / (len(edges) + 1))
        for i, edge in enumerate(edges):
            edge.arrive = (i - (len(edges) - 1) / 2) * step


def _close(level: Level, outer: Level) -> None:
    """Make the box in the level around as large as this level came out, with its ports where they are."""
    box = outer.items["box", level.group]
    box.width, box.height = level.width, level.height
    box.ports = {(i.kind, i.key): i.x - level.width / 2 for i in level.items.values() if i.kind in ("in", "out")}


# ----- everything, on one sheet


def _collect(levels: dict[Key, Level], inside: Mapping[Key, Key], routes: list) -> Layout:
    root = levels[None]
    layout = Layout(root.width, root.height)
    for group in sorted(levels, key=lambda g: len(_chain(g, inside)) + (g is not None)):
        level = levels[group]
        if group is not None:
            level.origin = layout.boxes[group][:2]
        ox, oy = level.origin
        for item in level.items.values():
            rect = Rect(ox + item.x - item.width / 2, oy + top_of(level, item), item.width, item.height)
            if item.kind in ("node", "group"):
                layout.boxes[item.key] = rect
            elif item.kind == "label":
                layout.labels[item.key] = rect._replace(x=ox)  # nothing stands left of it
    for route in routes:
        points: list[Point] = []
        for level, edge in route:
            ox, oy = level.origin
            for x, y in _points(level, edge):
                point = (round(ox + x, 2), round(oy + y, 2))
                if len(points) > 1 and points[-1][0] == points[-2][0] == point[0]:
                    points[-1] = point  # straight on
                elif not points or points[-1] != point:
                    points.append(point)
        layout.paths.append(points)
    return layout


def _points(level: Level, edge: Edge) -> list[Point]:
    tail, head = edge.tail, edge.head
    x, end = tail.x + edge.leave, head.x + edge.arrive
    points = [(x, top_of(level, tail) + tail.height), (x, level.bottoms[tail.rank])]
    for slot in edge.slots:
        points += [(slot.x, level.tops[slot.rank]), (slot.x, level.bottoms[slot.rank])]
    if edge.track is not None:
        points += [(edge.track, level.tops[tail.rank + 1]), (edge.track, level.bottoms[head.rank - 1])]
    return [*points, (end, level.tops[head.rank]), (end, top_of(level, head))]
