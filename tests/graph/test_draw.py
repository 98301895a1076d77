"""Pictures of tapes: SVG, DOT and Mermaid."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from browser import OVERLAPS, chromium, opened
from test_layout import overlap, within

import tinygrad_bn as tg
from tinygrad_bn import graph, nn, ops
from tinygrad_bn.graph.draw import picture
from tinygrad_bn.tensor import Tensor

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img onerror=alert(1)>\"'&\\\n\x07]]>\ud800"


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()


@pytest.fixture
def step(rng):
    """A training step's tape."""
    model, x = network(), tg.tensor(rng.normal(size=(4, 2)))
    with graph.record(model) as tape:
        tg.cross_entropy(model(x), np.array([0, 1, 1, 0])).backward()
    return tape


@pytest.fixture
def second_order(rng):
    model, x = network(), tg.tensor(rng.normal(size=(4, 2)))
    with graph.record(model) as tape:
        (g,) = tg.grad(tg.cross_entropy(model(x), np.array([0, 1, 1, 0])), model[0].weight, create_graph=True)
        (g * g).sum().backward()
    return tape


def hostile():
    model = nn.Module()
    setattr(model, HOSTILE, nn.Linear(2, 2))
    setattr(getattr(model, HOSTILE), "x" * 300, nn.Parameter(np.ones(2, "float32")))
    with graph.record(model) as tape:
        layer = getattr(model, HOSTILE)
        (layer(tg.tensor(np.ones((1, 2), "float32"))) * getattr(layer, "x" * 300)).sum().backward()
    return tape


def parsed(tape):
    return ElementTree.fromstring(tape.to_svg().encode())


def texts(svg):
    return [e.text for e in svg.iter("{http://www.w3.org/2000/svg}text")]


def classes(svg):
    return [c for e in svg.iter() for c in e.get("class", "").split()]


# ----- SVG


def test_the_picture_has_every_operation_leaf_module_and_shape(step):
    svg = parsed(step)
    shown = texts(svg)
    for name in ("linear", "batch_norm", "relu", "cross_entropy", "mean", "0.weight", "input 1", "1 BatchNorm1d", "Sequential"):
        assert name in shown, name
    assert shown.count("linear") == 2 and shown.count("(4, 3)") == 3 and "eps = 1e-05" in shown
    found = classes(svg)
    assert found.count("tip") == sum(type(ref) is int for s in step.steps for ref in s.inputs)
    assert found.count("module") == 5
    assert found.count("grad") == 1 + len(step.steps) + 6  # in the legend, at the operations, at the parameters
    loss = step.steps[-1].value.item()
    assert f"6 operations, 6 gradient rules, loss {loss:.4g}" == shown[0]


def test_parameters_stand_with_what_uses_them_and_inputs_outside(step):
    shown = picture(step).sketch
    groups = {node.title: shown.groups[node.group].label if node.group is not None else None for node in shown.nodes}
    assert groups["0.weight"] == "0 Linear" and groups["1.bias"] == "1 BatchNorm1d" and groups["input 1"] is None


def test_what_is_kept_until_backward_is_marked(step):
    kept = sum(len(set(s.saved) & set(s.arguments)) + ("out" in s.saved) for s in step.steps)
    assert classes(parsed(step)).count("kept") == 1 + kept  # and in the legend


def test_tooltips_have_formula_line_and_numbers(step):
    about = [e.text for e in parsed(step).iter("{http://www.w3.org/2000/svg}title")]
    norm = next(text for text in about if "batch_norm" in text)
    for said in (step.steps[1].formula, "(4, 3) float64", "ran in 1", "called at test_draw.py:", "x, gamma, aux", "gradient"):
        assert said in norm, said


def test_a_gradient_that_is_recorded_is_drawn_in_groups_of_its_own(second_order):
    svg = parsed(second_order)
    shown = texts(svg)
    assert "gradient of batch_norm #6" in shown and "gradient of linear #3" in shown and "part of a gradient" in shown
    assert "gradient of relu #7" not in shown  # of one operation
    assert classes(svg).count("rule") == 4


@pytest.mark.parametrize("which", ["step", "second_order", "hostile", "numbers"])
def test_nodes_lie_in_their_groups_and_on_nothing_else(which, request, rng):
    if which == "numbers":
        x = Tensor(rng.normal(size=(2, 2))).requires_grad_()
        with graph.record() as tape:
            ops.where(x > 0, x**2.0, 1.0 - x).sum().backward()
    else:
        tape = hostile() if which == "hostile" else request.getfixturevalue(which)
    shown = picture(tape)
    boxes = shown.layout.boxes
    for node in shown.sketch.nodes:
        assert within(shown.body(node), boxes[node.id])
        if node.group is not None:
            assert within(boxes[node.id], boxes["group", node.group])
    nodes = [boxes[n.id] for n in shown.sketch.nodes]
    assert not any(overlap(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :])


def test_the_same_tape_gives_the_same_picture(step):
    assert step.to_svg() == step.to_svg() == step._repr_svg_()


def test_values_that_are_not_finite_or_not_there_are_said_in_words():
    x, e = Tensor(np.array([np.nan, 1.0])).requires_grad_(), Tensor(np.ones((0, 2))).requires_grad_()
    with graph.record() as tape:
        x * 2.0
        e * 2.0
        x / np.full(2, np.nan)
    about = [el.text for el in parsed(tape).iter("{http://www.w3.org/2000/svg}title")]
    assert any("value 2 to 2, mean 2; 1 not finite" in text for text in about)
    assert any("value: empty" in text for text in about) and any("value: none that is finite" in text for text in about)


def test_an_empty_tape():
    with graph.record() as tape:
        pass
    assert texts(parsed(tape))[0] == "no operation"
    assert tape.to_dot().startswith("digraph {") and tape.to_mermaid().startswith("flowchart TB")


def test_a_hostile_name_is_text_in_every_language():
    tape = hostile()
    svg = tape.to_svg()
    assert "<img" not in svg and "<img" not in tape.to_mermaid()
    parsed(tape)
    assert "\x07" not in svg and "\x07" not in tape.to_dot()
    for line in tape.to_dot().splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0, line
    for line in tape.to_mermaid().splitlines():
        assert line.count('"') in (0, 2, 4), line
    tape.to_dot().encode() and tape.to_mermaid().encode()


# ----- the other languages


def test_dot_has_clusters_shapes_colours_and_a_legend(step):
    dot = step.to_dot()
    assert dot.count("{") == dot.count("}") and dot.count("subgraph cluster_") == 6
    assert dot.count(" -> ") == sum(type(ref) is int for s in step.steps for ref in s.inputs)
    first = step.steps[0]
    assert f'n{first.inputs[0]} -> n{first.id} [label="(4, 2)", color="orange", penwidth=2];' in dot
    assert f'n{step.steps[2].id} [label="relu", fillcolor="lightgrey", color="orange", penwidth=2' in dot
    for colour in ("lightgrey", "lightblue", "darkolivegreen1"):
        assert f'fillcolor="{colour}"' in dot
    assert 'label="legend"' in dot and 'legend_parameter [label="parameter", fillcolor="lightblue"]' in dot


def test_mermaid_has_subgraphs_and_shapes(step):
    lines = step.to_mermaid().splitlines()
    assert sum(line.strip().startswith("subgraph") for line in lines) == sum(line.strip() == "end" for line in lines) == 5
    first = step.steps[0]
    assert f'  n{first.inputs[0]} ==>|"(4, 2)"| n{first.id}' in lines
    assert f'  n{first.inputs[1]} -->|"(3, 2)"| n{first.id}' in lines


def test_modules_nested_deeply_are_no_trouble():
    class Deep(nn.Module):
        def __init__(self, depth):
            self.inner = Deep(depth - 1) if depth else nn.ReLU()

        def forward(self, x):
            return self.inner(x)

    model = Deep(100)
    with graph.record(model) as tape:
        model(Tensor(np.ones(2)).requires_grad_())
    assert tape.to_svg().count('class="module"') == 102 and tape.to_mermaid().count("subgraph") == 102


# ----- to look at


@pytest.mark.parametrize("which", ["step", "second_order", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_texts_fit_into_their_boxes_and_lie_apart(which, scheme, request, tmp_path):
    tape = hostile() if which == "hostile" else request.getfixturevalue(which)
    page_file = tmp_path / "graph.html"
    page_file.write_text(f"<!doctype html><title>graph</title><body>{tape.to_svg()}", encoding="utf-8")
    with chromium() as browser, opened(browser, page_file, 1280, scheme) as (page, said):
        assert page.evaluate(OVERLAPS)["found"] == []
        out = page.evaluate("""() => [...document.querySelectorAll('svg g g')].flatMap(g => {
            const box = g.querySelector('rect').getBBox();
            return [...g.querySelectorAll('text[text-anchor=middle]')].map(t => [t.textContent, t.getBBox()])
                .filter(([_, t]) => t.x < box.x || t.x + t.width > box.x + box.width)
                .map(([text]) => text)})""")
        assert out == [] and said == []
        paper = page.evaluate("() => getComputedStyle(document.querySelector('.paper')).fill")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 28)")


def test_the_example_draws_three_pictures(tmp_path):
    script = ROOT / "examples" / "look_at_the_graph.py"
    assert len(script.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    for name, operations in (("forward", 6), ("backward", 41), ("second_order", 100)):
        svg = ElementTree.parse(tmp_path / "out" / f"{name}.svg")
        assert sum("op" in e.get("class", "").split() for e in svg.iter()) >= operations
    assert "batch_norm" in done.stdout and "\x1b" not in done.stdout
