"""One group of a layered drawing: ranks, slots for long edges, the order in each rank, and x. ``layout`` joins the groups."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Key = Hashable
Point = tuple[float, float]

LONG = 12  # ranks
NODE_GAP, SLOT_GAP = 18.0, 9.0  # beside a node, beside a slot, in pixels
RANK_GAP = 22.0
PAD = 12.0  # inside a group's box
TRACK = 9.0  # from one track to the next
SWEEPS = 6


@dataclass(eq=False)
class Item:
    """Anything that has a column in a rank: a node, a group's box, a port in a group's edge, a slot of an edge, a label."""

    width: float
    height: float
    key: Key = None
    kind: str = "node"  # or "group", "in", "out", "slot", "label"
    rank: int = 0
    place: int = 0  # in the rank's order
    x: float = 0.0  # of the middle
    above: list[Link] = field(default_factory=list)
    below: list[Link] = field(default_factory=list)
    ports: dict[tuple[str, Key], float] | None = None  # of a group's box: by side and source, the distance from its middle


@dataclass(eq=False)
class Link:
    """A line between items of neighbouring ranks, with the distances of its ends from the items' middles."""

    tail: Item
    head: Item
    leave: float
    arrive: float
    weight: float


@dataclass(eq=False)
class Edge:
    """What is to be routed in one level, of the source ``source``."""

    tail: Item
    head: Item
    source: Key
    arrive: float
    leave: float = 0.0
    slots: list[Item] = field(default_factory=list)
    track: float | None = None


class Level:
    """One group's inside."""

    def __init__(self, group: Key):
        self.group = group
        self.items: dict[Any, Item] = {}
        self.edges: dict[Any, Edge] = {}
        self.ranks: list[list[Item]] = []
        self.tops: list[float] = []
        self.bottoms: list[float] = []
        self.width = self.height = 0.0
        self.origin: Point = (0.0, 0.0)


def arrange(level: Level) -> None:
    items = list(level.items.values())
    edges = list(level.edges.values())
    for edge in edges:  # the ports of inner groups have their places by now
        for side, item in (("leave", edge.tail), ("arrive", edge.head)):
            if item.ports is not None:
                setattr(edge, side, item.ports["out" if side == "leave" else "in", edge.source])
    _rank(level, items, edges)
    tracks = _cut(level, edges)
    _order(level)
    _place(level)
    _stack(level, tracks)


def _rank(level: Level, items: list[Item], edges: list[Edge]) -> None:
    below: dict[int, list[Item]] = {id(i): [] for i in items}
    waiting = dict.fromkeys(below, 0)
    for edge in edges:
        below[id(edge.tail)].append(edge.head)
        waiting[id(edge.head)] += 1
    sources = {id(i) for i in items if not waiting[id(i)]}
    first = 1 if level.group is not None else 0  # after the row of the label and of the ports
    ready = deque(i for i in items if not waiting[id(i)])
    for item in items:
        item.rank = 0 if item.kind in ("in", "label") else first
    done = []
    while ready:
        item = ready.popleft()
        done.append(item)
        for head in below[id(item)]:
            head.rank = max(head.rank, item.rank + 1)
            waiting[id(head)] -= 1
            if not waiting[id(head)]:
                ready.append(head)
    if len(done) < len(items):
        stuck = next(i.key for i in items if waiting[id(i)])
        raise ValueError(f"layered expected a graph without cycles, got one through {stuck!r}")
    for item in done:
        consumers = [h.rank for h in below[id(item)] if h.kind != "out"]
        if id(item) in sources and item.kind not in ("in", "label") and consumers:
            item.rank = min(consumers) - 1
    last = 1 + max((i.rank for i in items if i.kind != "out"), default=0)
    for item in items:
        if item.kind == "out":
            item.rank = last
    count = 1 + max((i.rank for i in items), default=-1)
    level.ranks = [[] for _ in range(count)]
    for item in items:
        level.ranks[item.rank].append(item)


def _cut(level: Level, edges: list[Edge]) -> int:
    """Give the edges over several ranks their slots, or a track; say how many tracks there are."""
    slots: dict[tuple[int, Key], list[Item]] = {}
    long: dict[tuple[int, Key], list[Edge]] = {}
    for edge in sorted(edges, key=lambda e: e.head.rank - e.tail.rank):
        between = edge.head.rank - edge.tail.rank - 1
        bundle = (id(edge.tail), edge.source)
        if between > LONG:
            long.setdefault(bundle, []).append(edge)
            continue
        chain = slots.setdefault(bundle, [])
        while len(chain) < between:
            slot = Item(2.0, 0.0, None, "slot", edge.tail.rank + 1 + len(chain))
            level.ranks[slot.rank].append(slot)
            _link(chain[-1] if chain else edge.tail, slot, 0.0 if chain else edge.leave, 0.0, 6.0 if chain else 2.0)
            chain.append(slot)
        edge.slots = chain[:between]
        weight = 0.5 if edge.tail.kind == "node" and not edge.tail.above else 2.0
        if edge.slots:
            _link(edge.slots[-1], edge.head, 0.0, edge.arrive, weight)
        else:
            _link(edge.tail, edge.head, edge.leave, edge.arrive, weight)
    spans = sorted(((b[0].tail.rank, max(e.head.rank for e in b), b) for b in long.values()), key=lambda s: (s[0], s[1]))
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # the rank until which a track is taken, the track
    count = 0
    for start, end, bundle_edges in spans:
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, count)
            count += 1
        track = heapq.heappop(free)
        heapq.heappush(busy, (end, track))
        for edge in bundle_edges:
            edge.track = float(track)
    return count


def _link(tail: Item, head: Item, leave: float, arrive: float, weight: float) -> None:
    link = Link(tail, head, leave, arrive, weight)
    tail.below.append(link)
    head.above.append(link)


def _order(level: Level) -> None:
    """Sort each rank by the mean place of its neighbours, down and up, and keep the order with the fewest crossings."""
    ranks = level.ranks
    _number(ranks)
    best, fewest = [list(r) for r in ranks], _crossings(ranks)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        for rank in ranks if down else reversed(ranks):
            keys: dict[int, float] = {}
            for item in rank:
                links = item.above if down else item.below
                if item.kind == "label":
                    keys[id(item)] = -1.0
                elif links:
                    ends = [_at(k.tail, k.leave) if down else _at(k.head, k.arrive) for k in links]
                    keys[id(item)] = sum(ends) / len(ends)
                else:
                    keys[id(item)] = float(item.place)
            rank.sort(key=lambda i: keys[id(i)])
            for place, item in enumerate(rank):
                item.place = place
        now = _crossings(ranks)
        if now < fewest:
            best, fewest = [list(r) for r in ranks], now
    level.ranks = best
    _number(best)


def _at(item: Item, offset: float) -> float:
    """The place in its rank, finer by where on the item an edge ends."""
    return item.place + (0.9 * offset / item.width if item.width else 0.0)


def _number(ranks: list[list[Item]]) -> None:
    for rank in ranks:
        for place, item in enumerate(rank):
            item.place = place


def _crossings(ranks: list[list[Item]]) -> int:
    """How many pairs of lines cross, counted by inversions in a Fenwick tree. Barth, Juenger & Mutzel 2002."""
    total = 0
    for upper in ranks[:-1]:
        lines = [(_at(k.tail, k.leave), _at(k.head, k.arrive)) for item in upper for k in item.below]
        order = {end: i + 1 for i, end in enumerate(sorted({end for _, end in lines}))}
        tree = [0] * (len(order) + 1)
        for seen, (_, end) in enumerate(sorted(lines)):
            i, before = order[end], 0
            while i:
                before += tree[i]
                i &= i - 1
            total += seen - before
            i = order[end]
            while i <= len(order):
                tree[i] += 1
                i += i & -i
    return total


def _place(level: Level) -> None:
    """Bring each item as near to above or below its neighbours as its rank's order and the widths allow."""
    for rank in level.ranks:
        x = 0.0
        for before, item in zip([None, *rank], rank, strict=False):
            x += _apart(before, item) if before is not None else 0.0
            item.x = x
        for item in rank:
            item.x -= x / 2
    for sweep in range(SWEEPS + 2):
        down, both = sweep % 2 == 0, sweep >= SWEEPS
        for rank in level.ranks if down else reversed(level.ranks):
            wanted, weights = [], []
            for item in rank:
                total = mass = 0.0
                if down or both:
                    for k in item.above:
                        total += k.weight * (k.tail.x + k.leave - k.arrive)
                        mass += k.weight
                if not down or both:
                    for k in item.below:
                        total += k.weight * (k.head.x + k.arrive - k.leave)
                        mass += k.weight
                wanted.append(total / mass if mass else item.x)
                weights.append(mass or 1e-3)
            _settle(rank, wanted, weights)


def _apart(a: Item, b: Item) -> float:
    """The least distance of two neighbours' middles."""
    slim = a.kind in ("slot", "in", "out") and b.kind in ("slot", "in", "out")
    return (a.width + b.width) / 2 + (SLOT_GAP if slim else NODE_GAP)


def _settle(rank: list[Item], wanted: list[float], weights: list[float]) -> None:
    """Least squares towards the wanted places, in order and without overlap: isotonic regression by pooling neighbours."""
    offsets = [0.0]
    for a, b in pairwise(rank):
        offsets.append(offsets[-1] + _apart(a, b))
    blocks: list[list[float]] = []  # mean, weight, count
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, mass, count = want - offset, weight, 1.0
        while blocks and blocks[-1][0] > mean:
            m, w, n = blocks.pop()
            mean, mass, count = (mean * mass + m * w) / (mass + w), mass + w, count + n
        blocks.append([mean, mass, count])
    i = 0
    for mean, _, count in blocks:
        for _ in range(int(count)):
            rank[i].x = mean + offsets[i]
            i += 1


def _stack(level: Level, tracks: int) -> None:
    """Set the ranks below each other, and find the level's size."""
    pad = PAD if level.group is not None else 0.0
    real = [i for rank in level.ranks for i in rank]
    left = min((i.x - i.width / 2 for i in real), default=0.0)
    right = max((i.x + i.width / 2 for i in real), default=0.0)
    for item in real:
        item.x += pad - left
    right += pad - left
    for edge in level.edges.values():
        if edge.track is not None:
            edge.track = right + TRACK * (edge.track + 1)
    level.width = right + tracks * TRACK + (TRACK if tracks else 0.0) + pad
    y = 0.0
    for number, rank in enumerate(level.ranks):
        level.tops.append(y)
        y += max((i.height for i in rank), default=0.0)
        level.bottoms.append(y)
        if number < len(level.ranks) - 1:
            far = max((abs(k.tail.x + k.leave - k.head.x - k.arrive) for i in rank for k in i.below), default=0.0)
            y += RANK_GAP + min(30.0, 0.07 * far)
    ends_in_ports = bool(level.ranks) and any(i.kind == "out" for i in level.ranks[-1])
    level.height = y + (0.0 if ends_in_ports else pad)


def top_of(level: Level, item: Item) -> float:
    """What something leads to hangs from its rank's top; what only leads on stands on its bottom."""
    hangs = item.above or item.kind in ("in", "label", "out")
    return level.tops[item.rank] if hangs else level.bottoms[item.rank] - item.height
