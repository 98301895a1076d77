"""What the explorer's page is given: every number of the tape, in JSON that holds it all, and a drawing without overlaps."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import graph, nn, ops
from tinygrad_bn.graph import explorer, explorer_data, formulas
from tinygrad_bn.graph.explorer_data import LEVELS, ROOM, described, encoded
from tinygrad_bn.tensor import Tensor


@pytest.fixture(scope="module")
def tape():
    return explorer.example()


def array_of(data, i):
    told = data["arrays"][i]
    raw = base64.b64decode(told["bytes"])
    return np.frombuffer(raw, "<f8" if told["wide"] else "<f4").astype(told["dtype"]).reshape(told["shape"])


def data_of(text, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)[1])


def test_explore_writes_the_page_and_returns_its_path(tape, tmp_path):
    path = graph.explore(tape, tmp_path / "step.html")
    assert path == tmp_path / "step.html" and path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert graph.explore(tape, str(tmp_path / "b.html"), title="<b> & more") == tmp_path / "b.html"
    assert "<title>&lt;b&gt; &amp; more</title>" in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_explore_says_what_is_wrong(tape, tmp_path):
    with pytest.raises(TypeError, match=r"graph.explore expected a Tape, as graph.record\(\) gives, got Tensor"):
        graph.explore(Tensor(np.ones(2)), tmp_path / "x.html")
    with pytest.raises(TypeError, match="graph.explore expected a path, got int"):
        graph.explore(tape, 3)
    with pytest.raises(TypeError, match="graph.explore expected a str as title, got NoneType"):
        graph.explore(tape, "step.html", None)
    with graph.record() as empty:
        pass
    with pytest.raises(ValueError, match="expected a tape with at least one step, got an empty one"):
        graph.explore(empty, tmp_path / "x.html")
    with pytest.raises(OSError):
        graph.explore(tape, tmp_path / "no folder" / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_the_page_holds_every_number_of_the_tape(tape):
    data = described(tape, LEVELS[0])
    for id in range(tape.next_id):
        entry, told = tape[id], data["tapes"][0]["entries"][id]
        np.testing.assert_array_equal(array_of(data, told["value"]), entry.value)
        if isinstance(entry, graph.Leaf):
            assert (told["name"], told["kind"]) == (entry.name, entry.kind)
            for walk, g in entry.grads.items():
                np.testing.assert_array_equal(array_of(data, told["grads"][str(walk)]), g)
            continue
        assert (told["op"], told["module"], told["saved"]) == (entry.op, entry.module, entry.saved)
        for visit, v in zip(entry.visits, told["visits"], strict=True):
            np.testing.assert_array_equal(array_of(data, v["grad"]), visit.grad)
            assert set(v["contributions"]) == set(map(str, visit.contributions))
            for i, c in visit.contributions.items():
                np.testing.assert_array_equal(array_of(data, v["contributions"][str(i)]), c)
    json.dumps(data, allow_nan=False)


def test_the_parameters_before_and_after(tape):
    data = described(tape, LEVELS[0])
    changes = {c["name"]: c for c in data["changes"]}
    parameters = {leaf.name for leaf in tape.leaves if leaf.kind == "parameter"}
    assert {n for n, c in changes.items() if c["kind"] == "parameter"} == parameters
    assert {n for n, c in changes.items() if c["kind"] == "buffer"} == {"1.running_mean", "1.running_var"}
    for name, change in changes.items():
        np.testing.assert_array_equal(array_of(data, change["before"]), tape.before[name])
        np.testing.assert_array_equal(array_of(data, change["after"]), tape.after[name])


def test_without_an_optimizer_there_is_no_before_and_after():
    model = nn.Linear(2, 1)
    with graph.record(model) as tape:
        model(Tensor(np.ones((1, 2), "float32"))).sum().backward()
    assert described(tape, LEVELS[0])["changes"] == []


def test_a_fused_step_comes_with_its_second_run(tape):
    data = described(tape, LEVELS[0])
    ((key, told),) = data["expansions"].items()
    assert tape[int(key)].op == "batch_norm"
    ops_inside = [e["op"] for e in data["tapes"][told["tape"]]["entries"] if "op" in e]
    assert {"mean", "sub", "mul", "sqrt", "div"} <= set(ops_inside) and "batch_norm" not in ops_inside
    assert set(told["differences"]) == {"out", "x", "gamma", "beta"} and all(d < 1e-14 for d in told["differences"].values())


def test_the_example_is_the_same_every_time_and_leaves_the_generator_alone():
    tg.manual_seed(11)
    before = tg.get_rng_state()
    a, b = explorer.example(), explorer.example()
    assert tg.get_rng_state() == before
    np.testing.assert_array_equal(a[a.loss].value, b[b.loss].value)
    assert [leaf.value.dtype for leaf in a.leaves if leaf.kind == "parameter"] == ["float64"] * 6
    w = next(leaf for leaf in a.leaves if leaf.name == "3.weight")
    assert len(a.consumers(w.id)) == 2, "one tensor of the example has several consumers"
    assert explorer.document(a) == explorer.document(b)


# ----- arrays and numbers


def test_what_json_has_no_word_for():
    assert encoded((1, None, True, "a", 0.5)) == [1, None, True, "a", 0.5]
    assert encoded(2**63 + 1) == {"int": str(2**63 + 1)} and encoded(np.int64(3)) == 3
    assert [encoded(x) for x in (np.nan, np.inf, -np.inf)] == [{"float": t} for t in ("nan", "inf", "-inf")]
    assert encoded(np.dtype("float32")) == {"text": "float32"}


def test_infinities_and_nan_are_in_the_page():
    with graph.record() as tape, np.errstate(all="ignore"):
        ops.log(Tensor(np.array([0.0, -1.0, 1.0])).requires_grad_()).sum().backward()
    data = described(tape, LEVELS[0])
    np.testing.assert_array_equal(array_of(data, data["tapes"][0]["entries"][1]["value"]), tape.steps[0].value)
    assert "NaN" not in json.dumps(data["arrays"])
    assert explorer.document(tape)


@pytest.mark.parametrize("shape", [(256,), (257,)])
def test_an_array_above_256_elements_is_summarised(shape):
    x = np.arange(float(shape[0]))
    with graph.record() as tape:
        ops.square(Tensor(x))
    told = described(tape, LEVELS[0])["arrays"][0]
    assert ("bytes" in told) == (shape == (256,))
    if shape == (257,):
        assert (told["min"], told["max"], told["mean"], told["shape"], told["odd"]) == (0.0, 256.0, 128.0, [257], 0)
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(told["first"]), "<f8"), x[:16])
        assert sum(told["histogram"]) == 257 and len(told["histogram"]) == 16


@pytest.mark.parametrize(
    "x",
    [np.full(300, np.nan), np.full(300, 2.0), np.r_[np.inf, np.zeros(300)], np.full(300, 1.7e308) * np.r_[-1, np.ones(299)]],
)
def test_a_summary_of_odd_numbers_is_json(x):
    with graph.record() as tape, np.errstate(all="ignore"):
        ops.neg(Tensor(x))
    data = described(tape, LEVELS[0])
    json.dumps(data, allow_nan=False)
    assert data["arrays"][0]["odd"] == np.count_nonzero(~np.isfinite(x))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.r_[np.ones(200), np.full(100, 1 + 2**-52)], [200, *[0] * 14, 100]),  # a range of one last bit
        (np.full(300, 1e17), [*[0] * 8, 300, *[0] * 7]),
        (np.arange(320.0), [20] * 16),
    ],
)
def test_a_histogram_counts_in_any_range(x, expected):
    with graph.record() as tape:
        ops.neg(Tensor(-x))
    data = described(tape, LEVELS[0])
    assert data["arrays"][data["tapes"][0]["entries"][1]["value"]]["histogram"] == expected


def test_an_array_that_is_equal_to_another_is_there_once():
    x = Tensor(np.ones((3, 3))).requires_grad_()
    with graph.record() as tape:
        (x + x + x).sum().backward()
    kinds = {json.dumps(a) for a in described(tape, LEVELS[0])["arrays"]}
    assert len(kinds) == len(described(tape, LEVELS[0])["arrays"])


def test_indices_are_resolved_by_numpy():
    x = Tensor(np.arange(12.0).reshape(3, 4)).requires_grad_()
    with graph.record() as tape:
        ops.getitem(x, (np.array([2, 0]), slice(None, None, 2))).sum().backward()
    data = described(tape, LEVELS[0])
    option = data["tapes"][0]["entries"][1]["options"]["index"]
    assert option["index"] == "[2 0], ::2"
    np.testing.assert_array_equal(array_of(data, option["at"]), [[8, 10], [0, 2]])


# ----- size


def deep(blocks, width, batch=16):
    tg.manual_seed(0)
    layers = [layer for _ in range(blocks) for layer in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh())]
    model = nn.Sequential(*layers)
    x = Tensor(np.random.default_rng(0).standard_normal((batch, width)).astype("float32"))
    with graph.record(model) as tape:
        model(x).square().mean().backward()
    return tape


def test_a_large_recording_stays_within_the_room():
    tape = deep(60, 16)
    assert len(tape.steps) + len(tape.leaves) > 400
    text = explorer.document(tape)
    assert len(text.encode()) < ROOM < 1.5e6
    assert 1 <= data_of(text, "run")["whole"] < 256


# ----- the drawing


def boxes_apart(boxes):
    for i, (x, y, w, h) in enumerate(boxes):
        for u, v, p, q in boxes[:i]:
            assert not (x < u + p - 0.2 and u < x + w - 0.2 and y < v + q - 0.2 and v < y + h - 0.2)


def test_every_step_and_leaf_is_drawn_once_and_nothing_overlaps(tape):
    drawn = described(tape, LEVELS[0])["graph"]
    here = [tuple(n["of"]) for n in drawn["nodes"]]
    assert len(here) == len(set(here))
    fused = {g["step"] for g in drawn["groups"] if "step" in g}
    assert {id for t, id in here if t == 0} | fused == set(range(tape.next_id)) and len(fused) == 1
    boxes_apart([n["box"] for n in drawn["nodes"]])
    for node in drawn["nodes"]:  # inside its group
        if node["in"] is not None:
            (x, y, w, h), (u, v, p, q) = node["box"], drawn["groups"][node["in"]]["box"]
            assert u <= x and x + w <= u + p and v <= y and y + h <= v + q


def test_edges_lead_from_what_is_used_to_what_uses_it(tape):
    drawn = described(tape, LEVELS[0])["graph"]
    of = [tuple(n["of"]) for n in drawn["nodes"]]
    inner = {(0, s.id): (0, ref) for s in tape.steps if s.op != "batch_norm" for ref in s.inputs if type(ref) is int}
    edges = {(of[a], of[b]) for a, b, _ in drawn["edges"]}
    for user, used in inner.items():
        assert (used, user) in edges or used[1] == next(s.id for s in tape.steps if s.op == "batch_norm")
    for a, b, points in drawn["edges"]:
        (x, y, w, h), (u, v, p, _) = drawn["nodes"][a]["box"], drawn["nodes"][b]["box"]
        assert x <= points[0] <= x + w and abs(points[1] - y - h) < 0.2
        assert u <= points[-2] <= u + p and abs(points[-1] - v) < 0.2
        assert points[1::2] == sorted(points[1::2])


def test_modules_in_modules_are_groups_in_groups():
    tg.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Tanh())), nn.Linear(2, 1))
    with graph.record(model) as tape:
        model(Tensor(np.ones((1, 2), "float32"))).sum().backward()
    groups = described(tape, LEVELS[0])["graph"]["groups"]
    paths = {g["path"]: (None if g["in"] is None else groups[g["in"]]["path"]) for g in groups}
    assert paths == {"0": None, "0.0": "0", "0.1": "0", "0.1.0": "0.1", "1": None}


def test_a_fused_step_that_lets_go_of_its_values_is_a_plain_node():
    x = Tensor(np.random.default_rng(0).standard_normal((4, 3))).requires_grad_()
    y, _ = ops.batch_norm(x)
    traced = graph.trace(y.sum())
    assert described(traced, LEVELS[0])["expansions"].keys() <= {str(s.id) for s in traced.steps}
    assert explorer.document(traced)


def test_names_are_data_not_markup():
    class Odd(nn.Module):
        def forward(self, x):
            return x * 2.0

    model = nn.Sequential(nn.Linear(1, 1))
    setattr(model, "</script><img src=x onerror=alert(1)>", Odd())
    with graph.record(model) as tape:
        getattr(model, "</script><img src=x onerror=alert(1)>")(Tensor(np.ones(1, "float32")).requires_grad_()).backward()
    text = explorer.document(tape)
    assert "<img" not in text and text.count("</script>") == 3


def test_only_the_formulas_of_the_operations_that_ran_are_in_the_page(tape):
    told = data_of(explorer.document(tape), "formulas")
    used = {s.op for s in tape.steps} | {
        e["op"] for t in described(tape, LEVELS[0])["tapes"] for e in t["entries"] if "op" in e
    }
    assert set(told["of"]) == used
    assert told["of"]["batch_norm"]["forward"]["text"] == formulas.FORMULAS["batch_norm"].forward
    assert explorer_data.MOST_EXPANSIONS >= 1
