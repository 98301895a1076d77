"""The layout of drawings: nothing overlaps, no edge crosses a node, and it takes time near linear in the graph."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_bn.graph import layout, level
from tinygrad_bn.graph.layout import layered


def curve(points, pieces=12):
    """Points along a path: straight where x stays, else the cubic that the drawings use."""
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        middle = (y0 + y1) / 2
        for k in range(pieces + 1):
            t = k / pieces
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            yield (a + b) * x0 + (c + d) * x1, a * y0 + (b + c) * middle + d * y1


def overlap(a, b, slack=1e-6):
    return (
        a.x + a.width > b.x + slack
        and b.x + b.width > a.x + slack
        and a.y + a.height > b.y + slack
        and b.y + b.height > a.y + slack
    )


def within(inner, outer, slack=1e-6):
    return (
        inner.x >= outer.x - slack
        and inner.y >= outer.y - slack
        and inner.x + inner.width <= outer.x + outer.width + slack
        and inner.y + inner.height <= outer.y + outer.height + slack
    )


def around(key, inside):
    while key in inside:
        key = inside[key]
        yield key


def check(sizes, edges, inside=None, labels=None):
    """Everything that a drawing must hold."""
    inside, labels = inside or {}, labels or {}
    found = layered(sizes, edges, inside, labels)
    groups = {g for key in sizes for g in around(key, inside)}
    assert found.boxes.keys() == {*sizes, *groups} and found.labels.keys() == groups and len(found.paths) == len(edges)
    sheet = layout.Rect(0, 0, found.width, found.height)
    for key, (width, height) in sizes.items():
        assert found.boxes[key][2:] == (width, height)
    keys = list(found.boxes)
    for i, a in enumerate(keys):
        assert within(found.boxes[a], sheet)
        if a in inside:
            assert within(found.boxes[a], found.boxes[inside[a]])
        for b in keys[i + 1 :]:
            if a not in around(b, inside) and b not in around(a, inside):
                assert not overlap(found.boxes[a], found.boxes[b]), (a, b)
    for g in groups:
        for b in sizes:
            assert not overlap(found.labels[g], found.boxes[b]), (g, b)
        if g in labels:
            assert found.labels[g][2:] == labels[g]
    for (u, v), path in zip(edges, found.paths, strict=True):
        start, end = found.boxes[u], found.boxes[v]
        assert path[0] == pytest.approx((start.x + start.width / 2, start.y + start.height), abs=0.02)
        assert start.y < path[-1][1] == pytest.approx(end.y, abs=0.02) and end.x <= path[-1][0] <= end.x + end.width
        assert all(p[1] <= q[1] for p, q in zip(path, path[1:], strict=False))  # always downwards
        homes = {u, v, *around(u, inside), *around(v, inside)}
        others = [b for key, b in found.boxes.items() if key not in homes]
        for x, y in curve(path):
            assert -0.02 <= x <= found.width + 0.02 and -0.02 <= y <= found.height + 0.02
            for b in [*others, found.boxes[u], found.boxes[v]]:
                assert not (b.x + 0.05 < x < b.x + b.width - 0.05 and b.y + 0.05 < y < b.y + b.height - 0.05), (u, v)
    return found


@st.composite
def graphs(draw):
    """Nodes in an order; each uses some before it; each step of the order may open or close groups."""
    n = draw(st.integers(0, 24))
    sizes = {i: (draw(st.integers(10, 160)), draw(st.integers(10, 60))) for i in range(n)}
    edges, inside, labels, stack, count = [], {}, {}, [], 0
    for i in range(n):
        for _ in range(draw(st.integers(0, 2))):
            if stack and draw(st.booleans()):
                stack.pop()
        while len(stack) < 4 and draw(st.integers(0, 3)) == 0:
            group = ("group", count)
            count += 1
            labels[group] = (draw(st.integers(0, 90)), 18)
            if stack:
                inside[group] = stack[-1]
            stack.append(group)
        if stack:
            inside[i] = stack[-1]
        edges += [(draw(st.integers(0, i - 1)), i) for _ in range(draw(st.integers(0, 3))) if i]
    used = {g for i in range(n) for g in around(i, inside)}
    return sizes, edges, {k: g for k, g in inside.items() if g in used}, {g: s for g, s in labels.items() if g in used}


@pytest.mark.parametrize("long", [level.LONG, 1])  # with 1, whatever leaps over two ranks runs beside everything
@given(graph=graphs())
def test_nothing_overlaps_and_no_edge_crosses_a_node(long, graph):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level, "LONG", long)
        check(*graph)


def test_edges_over_many_ranks_run_beside_everything():
    n = 3 * level.LONG
    edges = [(i - 1, i) for i in range(1, n)] + [(0, n - 1), (0, n - 2), (3, n - 1), (n // 2, n - 1)]
    found = check({i: (60, 30) for i in range(n)}, edges)
    right = max(b.x + b.width for b in found.boxes.values())
    assert max(x for x, _ in found.paths[-4]) > right
    lanes = [max(x for x, _ in path) for path in found.paths[-4:]]
    assert lanes[0] == lanes[1] != lanes[2]  # one for each source


def test_tracks_are_used_again_and_never_by_two_at_once():
    n = 2 * level.LONG + 12
    first, second = [(0, level.LONG + 2), (1, level.LONG + 3)], [(level.LONG + 4, n - 2), (level.LONG + 5, n - 1)]
    found = check({i: (60, 30) for i in range(n)}, [(i - 1, i) for i in range(1, n)] + first + second)
    lanes = [max(x for x, _ in path) for path in found.paths[-4:]]
    assert lanes[0] != lanes[1] and lanes[2] != lanes[3] and len(set(lanes)) == 2


def test_edges_into_a_node_arrive_in_the_order_of_its_inputs():
    found = check({i: (60, 30) for i in range(4)}, [(2, 3), (0, 3), (1, 3), (0, 3)])
    ends = [path[-1][0] for path in found.paths]
    assert ends == sorted(ends) and len(set(ends)) == 4


def test_the_order_of_ranks_follows_the_edges():
    n = 8
    sizes = {i: (60, 30) for i in range(3 * n)}
    edges = [(i, 2 * n - 1 - i) for i in range(n)] + [(n + i, 2 * n + (i + 3) % n) for i in range(n)]
    found = check(sizes, edges)
    for rank in (0, n):
        ends = sorted((p[0][0], p[-1][0]) for p, (u, _) in zip(found.paths, edges, strict=True) if rank <= u < rank + n)
        assert [end for _, end in ends] == sorted(end for _, end in ends)  # no two cross


def test_what_nothing_leads_to_stands_right_above_what_uses_it():
    found = layered({i: (60, 30) for i in range(6)}, [(0, 1), (1, 2), (2, 3), (3, 4), (5, 4)])
    assert found.boxes[5].y == found.boxes[3].y


def test_a_chain_is_straight_and_without_crossings():
    sizes = {i: (60, 30) for i in range(9)}
    found = check(sizes, [(0, 2), (1, 2), (2, 5), (3, 5), (4, 5), (5, 8), (6, 8), (7, 8)])
    for i in (0, 2, 5):
        following = {0: 2, 2: 5, 5: 8}[i]
        assert found.boxes[i].x < min(found.boxes[k].x for k in range(i + 1, following)) if following - i > 1 else True
    assert found.width < 6 * 60


def test_no_nodes_and_one_node():
    assert layered({}, []) == layout.Layout(0.0, 0.0)
    assert layered({"a": (50, 20)}, []).boxes == {"a": (0, 0, 50, 20)}


def test_the_same_graph_is_laid_out_the_same():
    draw = random.Random(5)
    sizes = {i: (draw.randrange(20, 99), 30) for i in range(60)}
    edges = [(draw.randrange(i), i) for i in range(1, 60) for _ in range(2)]
    assert layered(sizes, edges) == layered(sizes, edges)


@pytest.mark.parametrize(
    "edges, inside", [([(0, 1), (1, 2), (2, 0)], {}), ([(0, 0)], {}), ([(0, 1), (1, 2)], {0: "g", 2: "g"})]
)
def test_a_cycle_is_refused(edges, inside):
    with pytest.raises(ValueError, match="layered expected a graph without cycles, got one through"):
        layered({i: (10, 10) for i in range(3)}, edges, inside)


def test_an_edge_to_what_has_no_size_is_refused():
    with pytest.raises(ValueError, match=r"between nodes that have a size, got \(0, 'nowhere'\)"):
        layered({0: (10, 10)}, [(0, "nowhere")])


def test_a_group_inside_itself_is_refused():
    with pytest.raises(ValueError, match="groups inside each other without a cycle, got .* inside itself"):
        layered({0: (10, 10)}, [], {0: "a", "a": "b", "b": "a"})


@pytest.mark.parametrize("form", ["chain", "anywhere", "star"])
def test_thousands_of_nodes(form):
    draw = random.Random(0)
    n = 3000
    edges = {
        "chain": [(i - 1, i) for i in range(1, n)],
        "anywhere": [(draw.randrange(i), i) for i in range(1, n) for _ in range(2)],
        "star": [(i, n - 1) for i in range(n - 1)],
    }[form]
    began = time.process_time()
    found = layered({i: (60, 30) for i in range(n)}, edges)
    took = time.process_time() - began
    assert len(found.boxes) == n and took < 30  # far from what a quadratic one would take; how fast is the benchmark's business


def test_groups_nested_deeply():
    depth = 400
    inside = {"node": 0, **{i: i + 1 for i in range(depth)}}
    found = layered({"node": (10, 10), "other": (10, 10)}, [("node", "other")], inside)
    assert len(found.boxes) == depth + 3
