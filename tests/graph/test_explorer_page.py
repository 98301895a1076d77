"""The explorer in a real browser: its numbers are Python's, its self-test finds what is wrong, and everybody can use it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import browser
import numpy as np
import pytest
from cases import CASES

import tinygrad_bn as tg
from tinygrad_bn import core, graph, nn, ops
from tinygrad_bn.__main__ import main
from tinygrad_bn.graph import explorer, page
from tinygrad_bn.graph.expand import expand
from tinygrad_bn.graph.formulas import FORMULAS, FUNCTIONS
from tinygrad_bn.tensor import Tensor

HOSTILE = "</script><img src=x onerror=alert(1)>"

LOOKING = (Path(__file__).parent / "explorer_looking.js").read_text(encoding="utf-8")
NOT_SAID = re.compile(r"\b(NaN|undefined|null|\[object)\b")


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as b:
        yield b


@pytest.fixture(scope="module")
def tape():
    return explorer.example()


@pytest.fixture(scope="module")
def path(tape, tmp_path_factory):
    return graph.explore(tape, tmp_path_factory.mktemp("explorer") / "step.html")


@contextlib.contextmanager
def opened(chromium, path, width=1280, scheme="light", fragment="", **options):
    """The page, once its self-test has ended; it must have said nothing by the end."""
    with browser.opened(chromium, path, width, scheme, fragment, **options) as (shown, said):
        outcome(shown)
        shown.evaluate(LOOKING)
        yield shown
        assert said == []


def outcome(shown):
    shown.wait_for_function("() => document.getElementById('badge').dataset.state !== 'waiting'", timeout=20_000)
    return shown.locator("#badge").get_attribute("data-state"), shown.locator("#badge summary").inner_text()


def step(tape, op):
    return next(s for s in tape.steps if s.op == op)


def go(shown, key):
    shown.evaluate("key => Explorer.show(key)", key)


# ----- the self-test


def contributions(tape):
    tapes = [tape, *(expand(tape, s).tape for s in tape.steps if s.op == "batch_norm")]
    return sum(len(v.contributions) for t in tapes for s in t.steps for v in s.visits)


def test_the_self_test_is_green_and_counts_every_contribution(tape, path, chromium):
    with opened(chromium, path) as shown:
        assert outcome(shown) == ("pass", f"✓ {contributions(tape)} recomputed, all equal")
        shown.locator("#badge summary").click()
        told = shown.locator("#badge > div").inner_text()
        assert f"{contributions(tape)} equal" in told and "only summarised" in told  # which says from what size on


def every_operation():
    """One tape with the first case of each operation, and what the second derivatives of some add to them."""
    with graph.record() as tape:
        for case in {(c.op, len(c.make())): c for c in reversed(CASES)}.values():
            leaves = [Tensor(x).requires_grad_() for x in case.make(5)]
            outs = case.f(*leaves, *case.constants)
            outs = [o for o in (outs if isinstance(outs, (list, tuple)) else [outs]) if o.requires_grad]
            rng = np.random.default_rng(5)
            seeds = [Tensor(rng.standard_normal(o.shape)).requires_grad_() for o in outs]
            if outs:
                first = tg.grad(outs, leaves, seeds, create_graph=True, allow_unused=True)
                again = [g for g in first if g is not None and g.requires_grad]
                if again and sum(g.size for g in again) < 200:
                    directions = [rng.standard_normal(g.shape) for g in again]
                    tg.grad(again, leaves + seeds, directions, create_graph=True, allow_unused=True)
    return tape


def test_every_operation_is_recomputed_by_its_formula(chromium, tmp_path, monkeypatch):
    """The JavaScript engine has every function of every formula, and they are equal to the engine's rules."""
    monkeypatch.setattr(explorer, "ROOM", 20e6)  # all arrays in full
    recorded = every_operation()
    with opened(chromium, graph.explore(recorded, tmp_path / "all.html")) as shown:
        state, text = outcome(shown)
        details = shown.locator("#badge > div").text_content()
        assert state == "pass", details
        assert "summarised," not in details and "without a formula" not in details
        values = set(shown.evaluate("Looking.operations('value', 'equal')"))
        assert set(FORMULAS) - values == {"to_device"}, "which does nothing where there is one device"
        rules = set(shown.evaluate("Looking.operations('contribution', 'equal')"))
        assert {op for op, f in FORMULAS.items() if f.gradients} - rules == {"to_device", "max_pool2d_gather"}


def test_the_page_has_the_functions_that_python_has(path, chromium):
    with opened(chromium, path) as shown:
        assert set(shown.evaluate("Object.keys(Formula.FUNCTIONS)")) == set(FUNCTIONS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_precisions_are_held_to_their_own_rounding(dtype, chromium, tmp_path):
    rng = np.random.default_rng(0)
    x, w = (Tensor(rng.standard_normal(s).astype(dtype)).requires_grad_() for s in ((16, 8), (8, 8)))
    with graph.record() as tape:
        h = ops.linear(x + 100.0, w)  # an offset that costs digits
        y, _ = ops.batch_norm(
            h, *(Tensor(np.ones(8, "float32" if dtype == "float16" else dtype)).requires_grad_() for _ in range(2))
        )
        (ops.softmax(y) * ops.tanh(y)).sum().backward()
    with opened(chromium, graph.explore(tape, tmp_path / "p.html")) as shown:
        assert outcome(shown)[0] == "pass", shown.locator("#badge > div").text_content()
        assert shown.evaluate("Looking.worst()") > 1e-12, "they do differ by rounding"


def test_what_is_too_large_is_said_to_be_summarised(chromium, tmp_path):
    x = Tensor(np.random.default_rng(0).standard_normal((40, 40))).requires_grad_()
    with graph.record() as tape:
        (x.tanh().sum() + x[0].sum()).backward()
    with opened(chromium, graph.explore(tape, tmp_path / "large.html")) as shown:
        state, text = outcome(shown)
        assert state == "pass" and re.fullmatch(r"✓ \d+ recomputed, all equal, \d+ only summarised", text)
        go(shown, f"f{step(tape, 'tanh').id}")
        said = shown.locator("#explain").inner_text()
        assert "only summarised: too large to list" in said and "first:" in said
        assert shown.locator("#explain .summary-of svg rect").count() >= 16


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_what_rounding_leaves_of_zero_is_no_error(dtype, chromium, tmp_path):
    """A sum over normalised numbers, the gradient of one, and that of two examples: all of it is cancelled but the rounding."""
    rng = np.random.default_rng(0)
    with graph.record() as tape:
        for n in (2, 3, 8):
            for layer in (nn.BatchNorm1d(4), nn.LayerNorm(4)):
                x = Tensor((rng.normal(size=(n, 4)) + 100.0).astype(dtype)).requires_grad_()
                layer = layer.to(dtype=dtype)
                layer(x).sum().backward()
                (layer(x) ** 2.0).sum().backward()
    with opened(chromium, graph.explore(tape, tmp_path / "zero.html")) as shown:
        assert outcome(shown)[0] == "pass", shown.locator("#badge > div").text_content()


def test_a_gradient_that_a_hook_changed_is_said_to_be(chromium, tmp_path):
    x = Tensor(np.array([1.0, 2.0])).requires_grad_()
    with graph.record() as tape:
        h = x * 2.0
        h.register_hook(lambda g: 3.0 * g)
        x.register_hook(lambda g: 5.0 * g)
        (h * h).sum().backward()
    with opened(chromium, graph.explore(tape, tmp_path / "hook.html")) as shown:
        assert outcome(shown) == ("pass", "✓ 4 recomputed, all equal")
        assert "2 changed by a hook" in shown.locator("#badge > div").text_content()
        go(shown, f"b{tape.steps[0].id}")
        assert "changed by a hook" in shown.locator("#explain").inner_text()


def test_without_a_backward_pass_the_badge_counts_values(chromium, tmp_path):
    with graph.record() as tape, tg.no_grad():
        ops.exp(Tensor(np.ones(2)))
    with opened(chromium, graph.explore(tape, tmp_path / "forward.html")) as shown:
        assert outcome(shown) == ("pass", "✓ 1 value recomputed, all equal")


def test_where_all_is_large_the_badge_says_that_nothing_was_recomputed(chromium, tmp_path):
    with graph.record() as tape:
        ops.exp(Tensor(np.ones((20, 20))).requires_grad_()).backward(np.ones((20, 20)))
    with opened(chromium, graph.explore(tape, tmp_path / "large.html")) as shown:
        assert outcome(shown) == ("open", "? nothing recomputed, 1 only summarised")


def test_an_operation_without_a_formula_is_counted_apart(chromium, tmp_path):
    @core.primitive
    def mine(x):
        return x * 3.0

    mine.defvjp(lambda g, _out, _x: g * 3.0)
    with graph.record() as tape:
        mine(Tensor(np.ones(2)).requires_grad_()).sum().backward()
    with opened(chromium, graph.explore(tape, tmp_path / "mine.html")) as shown:
        assert outcome(shown) == ("pass", "✓ 1 recomputed, all equal, 1 without a formula")
        go(shown, f"f{step(tape, 'mine').id}")
        assert "mine is not one of this package’s operations" in shown.locator("#explain").inner_text()


# ----- mutations: what is wrong must not be green


def changed_data(path, tmp_path, change):
    """The page with its data changed; the policy's hash is of the script alone."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'(<script type="application/json" id="run">)(.*?)(</script>)', text, re.DOTALL)
    data = json.loads(found[2])
    change(data)
    new = tmp_path / "changed.html"
    new.write_text(text[: found.start(2)] + json.dumps(data).replace("<", "\\u003c") + text[found.end(2) :], encoding="utf-8")
    return new


def other(data, i):
    """A copy of an array with its last number changed in the tenth digit."""
    told = dict(data["arrays"][i])
    x = np.frombuffer(base64.b64decode(told["bytes"]), "<f8").copy()
    x[-1] += 1e-10 * np.abs(x).max()
    told["bytes"] = base64.b64encode(x.tobytes()).decode()
    data["arrays"].append(told)
    return len(data["arrays"]) - 1


def bad_gradient(data):
    visit = next(e for e in data["tapes"][0]["entries"] if e.get("op") == "tanh")["visits"][0]
    visit["grad"] = other(data, visit["grad"])


def bad_contribution(data):
    visit = next(e for e in data["tapes"][0]["entries"] if e.get("op") == "batch_norm")["visits"][0]
    visit["contributions"]["0"] = other(data, visit["contributions"]["0"])


def bad_value(data):
    entry = next(e for e in data["tapes"][0]["entries"] if e.get("op") == "linear")
    entry["value"] = other(data, entry["value"])


def bad_parameter_gradient(data):
    entry = next(e for e in data["tapes"][0]["entries"] if e.get("name") == "3.weight")
    entry["grads"]["0"] = other(data, entry["grads"]["0"])


def bad_loss_gradient(data):
    visit = data["tapes"][0]["entries"][data["loss"]]["visits"][0]
    visit["grad"] = other(data, visit["grad"])


def bad_second_run(data):
    entry = next(e for e in data["tapes"][1]["entries"] if e.get("op") == "div")
    entry["visits"][0]["contributions"]["0"] = other(data, entry["visits"][0]["contributions"]["0"])


def bad_option(data):
    next(e for e in data["tapes"][0]["entries"] if e.get("op") == "batch_norm")["options"]["eps"] = 1e-3


@pytest.mark.parametrize(
    "change",
    [bad_gradient, bad_contribution, bad_value, bad_parameter_gradient, bad_loss_gradient, bad_second_run, bad_option],
    ids=lambda f: f.__name__,
)
def test_one_wrong_number_turns_the_badge_red(change, path, chromium, tmp_path):
    with opened(chromium, changed_data(path, tmp_path, change)) as shown:
        state, text = outcome(shown)
        assert state == "fail" and re.fullmatch(r"✗ \d+ of \d+ numbers differ", text)
        shown.locator("#badge summary").click()
        assert "differs by" in shown.locator("#badge > div").inner_text()
        assert shown.locator("#drawing .failed").count() >= 1
        assert shown.locator("#drawing .failed .cross").first.is_visible() or change is bad_second_run


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("tanh: one(Math.tanh)", "tanh: one(Math.sin)"),
        ("total += a.data[", "total -= a.data["),
        ("sqrt: one(Math.sqrt)", "sqrt: one(v => v)"),
        ("divide(sum(x, axis, keepdims), count(full(x), axis))", "sum(x, axis, keepdims)"),
    ],
)
def test_one_wrong_function_turns_the_badge_red(right, wrong, tape, chromium, tmp_path, monkeypatch):
    original = page.text

    files = [f"{name}.js" for name in explorer.SCRIPTS if right in original(f"{name}.js")]
    assert len(files) == 1 and original(files[0]).count(right) == 1

    def text(name):
        return original(name).replace(right, wrong) if name in files else original(name)

    monkeypatch.setattr(page, "text", text)
    with opened(chromium, graph.explore(tape, tmp_path / "wrong.html")) as shown:
        assert outcome(shown)[0] == "fail"


def test_one_wrong_formula_turns_the_badge_red(tape, chromium, tmp_path, monkeypatch):
    right = FORMULAS["batch_norm"]
    wrong = {**right.gradients, "x": "gamma / std * (g - mean(g, axes, True))"}
    monkeypatch.setitem(FORMULAS, "batch_norm", replace(right, gradients=wrong))
    with opened(chromium, graph.explore(tape, tmp_path / "wrong.html")) as shown:
        assert outcome(shown)[0] == "fail"
        shown.locator("#badge summary").click()
        assert "the contribution of batch_norm to x differs by" in shown.locator("#badge > div").inner_text()


# ----- walking through


def test_to_the_end_by_keys_every_parameter_has_pythons_gradient(tape, path, chromium):
    names = {leaf.name: leaf for leaf in tape.leaves if leaf.kind == "parameter"}
    with opened(chromium, path) as shown:
        seen = {}
        count = shown.evaluate("Explorer.frames().length")
        for _ in range(count - 1):
            shown.keyboard.press("ArrowRight")
            title = shown.locator("#step-title").inner_text()
            if shown.locator(".phase.update").count():
                seen[title] = shown.evaluate("Looking.cards()")
        assert shown.locator("#next").is_disabled() and shown.evaluate("Explorer.at()") == count - 1
        assert names.keys() <= seen.keys()
        for name, leaf in names.items():
            np.testing.assert_array_equal(seen[name]["gradient"], leaf.grad.ravel())
            np.testing.assert_array_equal(seen[name]["before"], leaf.value.ravel())
            np.testing.assert_array_equal(seen[name]["after"], leaf.after.ravel())
        shown.keyboard.press("Home")
        assert shown.evaluate("Explorer.at()") == 0


def test_each_step_shows_its_own_numbers(tape, path, chromium):
    with opened(chromium, path) as shown:
        for s in tape.steps:
            go(shown, f"f{s.id}")
            assert shown.locator("#step-title").inner_text() == s.op
            cards = shown.evaluate("Looking.cards()")
            np.testing.assert_array_equal(cards["out"], s.value.ravel())
            for name, ref in zip(s.arguments, s.inputs, strict=True):
                if type(ref) is int:
                    np.testing.assert_array_equal(cards[name], tape[ref].value.ravel())
            go(shown, f"b{s.id}")
            cards = shown.evaluate("Looking.cards()")
            np.testing.assert_array_equal(cards["g"], s.grad.ravel())
            for i, c in s.contributions.items():
                np.testing.assert_array_equal(cards[f"d{s.arguments[i]}"], c.ravel())


def test_the_walk_is_the_runs_own_order(tape, path, chromium):
    with opened(chromium, path) as shown:
        keys = shown.evaluate("Explorer.frames().map(f => f.key)")
    forward = [f"f{s.id}" for s in tape.steps]
    backward = [f"b{s.id}" for s in sorted(tape.steps, key=lambda s: s.backward)]
    assert keys[: 1 + len(forward) + len(backward)] == ["start", *forward, *backward]
    assert all(k.startswith("u") for k in keys[1 + len(forward) + len(backward) :])


def test_two_steps_of_training_are_walked_through_in_turn(chromium, tmp_path):
    tg.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 1)).double(), Tensor(np.ones((3, 2)))
    optimizer = tg.optim.SGD(model.parameters(), 0.1)
    with graph.record(model) as tape:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    with opened(chromium, graph.explore(tape, tmp_path / "two.html")) as shown:
        kinds = "".join(shown.evaluate("Explorer.frames().map(f => f.kind[0])"))
    assert re.fullmatch(r"s(f{3}b{3}){2}u+", kinds)


def test_a_recorded_gradient_is_walked_through_too(chromium, tmp_path):
    x = Tensor(np.array([0.3, -0.5])).requires_grad_()
    with graph.record() as tape:
        (g,) = tg.grad(x.tanh().sum(), x, create_graph=True)
        g.square().sum().backward()
    with opened(chromium, graph.explore(tape, tmp_path / "second.html")) as shown:
        keys = shown.evaluate("Explorer.frames().map(f => f.key)")
        assert len([k for k in keys if k.startswith("f")]) == len(tape.steps)
        assert len([k for k in keys if k.startswith("b")]) == sum(v.order is not None for s in tape.steps for v in s.visits)
        assert outcome(shown)[0] == "pass"


def test_a_gradient_adds_up(tape, path, chromium):
    w = next(leaf for leaf in tape.leaves if leaf.name == "3.weight")
    users = sorted((s for s, _ in tape.consumers(w.id)), key=lambda s: s.backward)
    with opened(chromium, path) as shown:
        go(shown, f"b{users[0].id}")
        assert "1 of 2 contributions to 3.weight: it waits for the others." in shown.locator("#explain").inner_text()
        go(shown, f"b{users[1].id}")
        said = shown.locator("#explain").inner_text()
        assert "The last of 2 contributions to 3.weight: its gradient is complete." in said and "used 2 times" in said
        total = shown.evaluate("name => Looking.table(name)", f"g:0:{w.id}:0")
        np.testing.assert_array_equal(total, w.grad.ravel())


def test_the_formula_with_these_numbers_ends_in_the_recorded_number(tape, path, chromium):
    """For every step and every cell of its output and of its contributions."""
    ask = "asked => Looking.results(asked)"
    with opened(chromium, path) as shown:
        for s in tape.steps:
            for flat in range(0, s.value.size, 5):
                (said,) = shown.evaluate(ask, [f"f{s.id}", f"v:0:{s.id}", flat])
                assert said == "= " + shown.evaluate("x => Page.number(x, 6)", float(s.value.ravel()[flat]))
            for place, (i, c) in enumerate(s.contributions.items()):
                flat = c.size - 1
                said = shown.evaluate(ask, [f"b{s.id}", f"c:0:{s.id}:0:{i}", flat])[place]
                expected = float(c.ravel()[flat])
                if abs(expected) > 1e-15:  # the bias before the BatchNorm: rounding is not the same twice
                    assert said == "= " + shown.evaluate("x => Page.number(x, 6)", expected), (s.op, i)


# ----- a cell


def test_a_chosen_cell_shows_what_it_depends_on_and_what_the_loss_makes_of_it(tape, path, chromium):
    h = step(tape, "tanh")
    with opened(chromium, path) as shown:
        go(shown, f"f{h.id}")
        shown.locator(f'table[data-name="v:0:{h.id}"] td[data-flat="4"]').click()
        said = shown.locator("#cell").inner_text()
        assert "tanh[1, 1]" in said
        assert shown.evaluate("Looking.facts()") == [h.value[1, 1], h.grad[1, 1]]
        marked = set(shown.evaluate("Looking.marked()"))
        assert {"parameter 0.weight, 3×2", "parameter 1.weight, 3", "linear, 4×3"} <= marked
        assert not any("3.weight" in m or "cross_entropy" in m or "0.bias" in m for m in marked if m), "0.bias moves nothing"
        shown.evaluate("id => { location.hash += `&open=${id}`; }", step(tape, "batch_norm").id)
        shown.wait_for_function("() => document.querySelectorAll('#drawing .in-cone[data-key^=\"1:\"]').length > 0")
        assert shown.locator('#drawing .node[data-key^="1:"]:not(.in-cone)').count() == 0, "with all that it opens into"
        shown.keyboard.press("Escape")
        assert shown.locator("#drawing .in-cone").count() == 0


def test_the_derivatives_of_the_loss_are_the_gradients(tape, path, chromium):
    with opened(chromium, path) as shown:
        found = dict(shown.evaluate("id => [...Run.derivatives(0, id, 0)].map(([k, d]) => [k, [...d.data]])", tape.loss))
    for leaf in tape.leaves:
        if leaf.grad is not None:
            np.testing.assert_allclose(found[leaf.id], leaf.grad.ravel(), 1e-9, 1e-15)
    for s in tape.steps:
        if s.id != tape.loss:
            np.testing.assert_allclose(found[s.id], s.grad.ravel(), 1e-9, 1e-15)


# ----- opening and folding


def test_the_fused_node_opens_into_a_real_second_run_and_closes_again(tape, path, chromium):
    fused = step(tape, "batch_norm")
    second = expand(tape, fused)
    with opened(chromium, path) as shown:
        before = shown.evaluate("Looking.boxes()")
        into = "id => Graph.edges.filter(e => e.visible && e.ends[1] === Graph.fused.get(id)).length"
        assert shown.evaluate(into, fused.id) == 3, "closed, one line for each input"
        go(shown, f"b{fused.id}")
        shown.locator("#expand").click()
        assert shown.locator("#expand").get_attribute("aria-pressed") == "true"
        inside = {k for k in shown.evaluate("Looking.boxes()") if k.startswith("1:")}
        assert inside == {f"1:{s.id}" for s in second.tape.steps if s.phase == "forward"}
        assert f"0:{fused.id}" not in shown.evaluate("Looking.boxes()")
        told = shown.locator(".differences").inner_text()
        for name, value in second.differences.items():
            assert f"{'output' if name == 'out' else 'd/d' + name} " + shown.evaluate("x => Page.number(x, 2)", value) in told
        keys = shown.evaluate("Explorer.frames().map(f => f.key)")
        assert keys.index(f"f{fused.id}") + 1 == keys.index(next(k for k in keys if k.startswith(f"f{fused.id}~")))
        outside = {k for k in before if k != f"0:{fused.id}"}
        assert outside <= shown.evaluate("Looking.boxes()").keys()
        open_edges = shown.evaluate("Looking.intoParts()")
        assert set(open_edges) == {ref for ref in fused.inputs if type(ref) is int}
        shown.keyboard.press("e")
        assert shown.evaluate("Looking.boxes()") == before


def test_modules_fold_and_unfold(path, chromium):
    with opened(chromium, path) as shown:
        before = shown.evaluate("Looking.boxes()")
        shown.locator("#drawing .label").nth(0).click()
        folded = shown.evaluate("Looking.boxes()")
        assert any(k.startswith("m") for k in folded) and len(folded) < len(before)
        shown.locator("#drawing .module-box:not(.away)").click()
        assert shown.evaluate("Looking.boxes()") == before
        shown.locator("#fold-all").click()
        assert sum(k.startswith("m") for k in shown.evaluate("Looking.boxes()")) == 4
        shown.keyboard.press("f")
        assert shown.evaluate("Looking.boxes()") == before


@pytest.mark.parametrize("state", ["", "open", "fold", "open and fold"])
def test_no_node_lies_over_another_and_no_edge_crosses_one(state, tape, chromium, tmp_path):
    tg.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3), nn.BatchNorm1d(3))

        def forward(self, x):
            return ops.relu(self.body(x) + x)

    model = nn.Sequential(Block(), Block(), nn.Linear(3, 2)).double()
    with graph.record(model) as recorded:
        (model(Tensor(np.random.default_rng(1).standard_normal((5, 3)))) ** 2).sum().backward()
    fused = [s.id for s in recorded.steps if s.op == "batch_norm"]
    fragment = "&".join(
        ["open=" + ",".join(map(str, fused[:2])) if "open" in state else "", "fold=1,4" if "fold" in state else ""]
    )
    with opened(chromium, graph.explore(recorded, tmp_path / "blocks.html"), fragment=fragment) as shown:
        assert shown.evaluate("Looking.collisions()") == []


# ----- the address


def test_the_address_keeps_the_state(tape, path, chromium):
    fused = step(tape, "batch_norm")
    with opened(chromium, path) as shown:
        go(shown, f"b{fused.id}")
        shown.keyboard.press("e")
        shown.locator("#drawing .group:not(.away) .label").first.click()
        shown.locator(f'table[data-name="g:0:{fused.id}:0"] td[data-flat="4"]').click()
        fragment = shown.evaluate("location.hash").removeprefix("#")
        expected = (
            shown.locator("#explain").inner_text(),
            shown.evaluate("Looking.boxes()"),
            shown.locator("#where").inner_text(),
        )
    assert all(part in fragment for part in ("at=", "open=", "fold=", "cell="))
    with opened(chromium, path, fragment=fragment) as shown:
        assert (
            shown.locator("#explain").inner_text(),
            shown.evaluate("Looking.boxes()"),
            shown.locator("#where").inner_text(),
        ) == expected
        assert shown.evaluate("location.hash").removeprefix("#") == fragment
        shown.evaluate("location.hash = ''")
        shown.wait_for_function("() => Explorer.at() === 0")


@pytest.mark.parametrize(
    "fragment",
    [
        "at=nowhere",
        "open=999,x&fold=-1,77&at=f1",
        "cell=v:0:99@3",
        "cell=v:9:9@0",
        "cell=c:0:0:0:0@1",
        "cell=v:0:3@9999",
        "%%%",
        "cell=" + HOSTILE,
    ],
)
def test_an_address_that_makes_no_sense_is_no_harm(fragment, path, chromium):
    with opened(chromium, path, fragment=fragment) as shown:
        shown.keyboard.press("ArrowRight")
        assert not NOT_SAID.search(shown.locator("body").inner_text())


# ----- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", browser.WIDTHS)
def test_nothing_overlaps_and_axe_finds_nothing(width, scheme, tape, path, chromium):
    fused, last, linear = step(tape, "batch_norm").id, step(tape, "add").id, step(tape, "linear").id
    opened_up = f"at=b{fused}&open={fused}&cell=v:0:{fused}@4"
    with opened(chromium, path, width, scheme, reduced_motion="reduce") as shown:
        for fragment in ("", opened_up, f"at=f{linear}&fold=1", "at=u3", f"at=b{last}"):
            shown.evaluate("hash => { location.hash = hash; }", fragment)
            shown.wait_for_function(
                "at => Explorer.frames()[Explorer.at()].key === at", arg=fragment[3:].split("&")[0] or "start"
            )
            for top in (0, 400):  # and what lies further down
                shown.evaluate("top => { document.getElementById('explain').scrollTop = top; scrollTo(0, top); }", top)
                assert shown.evaluate("Looking.overlaps()") == {"found": [], "outside": [], "scrolls": False}, fragment
            if fragment in ("", opened_up):
                assert browser.violations(shown) == [], fragment


def test_everything_by_keyboard(tape, path, chromium):
    with opened(chromium, path) as shown:
        shown.keyboard.press("/")
        assert shown.evaluate("document.activeElement.id") == "search"
        shown.keyboard.type("batch")
        assert shown.locator("#results button").count() >= 1
        shown.keyboard.press("Enter")
        assert shown.locator("#step-title").inner_text() == "batch_norm"
        shown.keyboard.press("?")
        assert shown.locator("#keys").is_visible() and "search" in shown.locator("#keys").inner_text()
        shown.keyboard.press("Escape")
        shown.locator("#explain").focus()
        for _ in range(40):  # Tab reaches a table
            shown.keyboard.press("Tab")
            if shown.evaluate("document.activeElement.matches('td[data-flat]')"):
                break
        at = shown.evaluate("Explorer.at()")
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("ArrowDown")
        assert shown.evaluate("document.activeElement.dataset.flat") == "4", "the arrows move in the table now"
        shown.keyboard.press("Enter")
        assert "[1, 1]" in shown.locator("#cell h3").inner_text()
        assert shown.evaluate("document.activeElement.dataset.flat") == "4", "the focus stays"
        assert shown.evaluate("Explorer.at()") == at
        shown.wait_for_function("() => document.getElementById('live').textContent.length > 0")
        shown.locator("#drawing [tabindex='0']").focus()
        shown.keyboard.press("Enter")
        shown.locator("#scrub").focus()
        shown.keyboard.press("ArrowRight")
        assert shown.evaluate("Explorer.at()") == at + 1


def test_search_finds_parameters_modules_and_lines_and_says_when_nothing(path, chromium):
    with opened(chromium, path) as shown:
        for words, least in (("0.weight", 1), ("parameter", 6), ("explorer.py", 8), ("linear 4×2", 1)):
            shown.locator("#search").fill(words)
            assert shown.locator("#results button").count() >= least, words
        shown.locator("#search").fill("no such thing")
        assert shown.locator("#results").inner_text() == "nothing found"
        shown.locator("#search").fill("")
        assert not shown.locator("#results").is_visible()


def test_nothing_flies_under_reduced_motion(path, chromium):
    with opened(chromium, path, reduced_motion="reduce") as shown:
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("ArrowRight")
        assert shown.locator("#drawing .dot").count() == 0
    with opened(chromium, path) as shown:
        flying = "() => { Explorer.move(2); Explorer.move(3); return document.querySelectorAll('#drawing .dot').length; }"
        assert shown.evaluate(flying) >= 1
        shown.wait_for_function("() => document.querySelectorAll('#drawing .dot').length === 0")


def test_the_theme_switch(path, chromium):
    with opened(chromium, path, scheme="dark") as shown:
        colour = "getComputedStyle(document.body).backgroundColor"
        before = shown.evaluate(colour)
        shown.locator("#theme").click()
        assert shown.evaluate(colour) == "rgb(255, 255, 255)" != before


def test_a_fingers_targets(path, chromium):
    with opened(chromium, path, 390) as shown:
        shown.keyboard.press("ArrowRight")
        assert shown.evaluate("Looking.small()") == []


# ----- notes


def test_why_is_this_zero(tape, path, chromium, tmp_path):
    with opened(chromium, path) as shown:
        assert "Why is the gradient of the bias zero?" in shown.locator("#explain").inner_text(), (
            "the overview tells it before any click"
        )
        first = next(s for s in tape.steps if s.op == "linear")
        go(shown, f"b{first.id}")
        assert "A layer before a BatchNorm needs no bias." in shown.locator(".note").inner_text()
        go(shown, f"b{[s for s in tape.steps if s.op == 'linear'][1].id}")
        assert shown.locator(".note").count() == 0
    with graph.record() as two:
        y, _ = ops.batch_norm(Tensor(np.array([[0.3, 1.0], [2.0, -1.0]])).requires_grad_())
        (y * np.array([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    with opened(chromium, graph.explore(two, tmp_path / "two.html")) as shown:
        go(shown, f"b{step(two, 'batch_norm').id}")
        assert "Each channel has two values." in shown.locator(".note").inner_text()


# ----- as Python


def test_a_node_copied_as_python_computes_what_was_recorded(tape, path, chromium):
    with opened(chromium, path) as shown:
        for s in tape.steps:
            go(shown, f"b{s.id}")
            shown.locator("#python").click()
            text = shown.locator("#code-text").input_value()
            shown.keyboard.press("Escape")
            printed, names = io.StringIO(), {}
            with contextlib.redirect_stdout(printed):
                exec(text, names)
            np.testing.assert_allclose(names["out"], s.value, 1e-12, 1e-15)
            np.testing.assert_array_equal(names["g"], s.grad)
            assert printed.getvalue() and len(text.split("formula_numpy.gradient")) == 1 + len(s.contributions)


def test_every_operation_can_be_copied_as_python(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "ROOM", 20e6)
    recorded = every_operation()
    with opened(chromium, graph.explore(recorded, tmp_path / "all.html")) as shown:
        texts = shown.evaluate("Run.run.tapes[0].entries.flatMap((e, id) => e.op ? [[id, AsPython.of(0, id)]] : [])")
    one_of_each = {recorded[id].op: (id, text) for id, text in texts}
    for id, text in one_of_each.values():
        names = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(text, names)
        np.testing.assert_allclose(names["out"], recorded[id].value, 1e-9, 1e-12, err_msg=text[:300])


# ----- hostile names, and anything at all


def test_hostile_names_are_text(chromium, tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            setattr(self, HOSTILE, nn.Parameter(np.ones(2)))

        def forward(self, x):
            return x * getattr(self, HOSTILE)

    class Outer(nn.Module):
        def __init__(self):
            setattr(self, HOSTILE, Odd())

        def forward(self, x):
            return getattr(self, HOSTILE)(x)

    model = Outer()
    with graph.record(model) as tape:
        model(Tensor(np.array([1.0, 2.0]))).sum().backward()
    with opened(chromium, graph.explore(tape, tmp_path / "odd.html", title=HOSTILE)) as shown:
        assert shown.locator("img").count() == 0
        assert HOSTILE in shown.locator("h1").inner_text()
        go(shown, f"f{step(tape, 'mul').id}")
        assert HOSTILE in shown.locator("#explain").inner_text()
        shown.locator("#search").fill("onerror")
        assert shown.locator("#results button").count() >= 1
        shown.locator("#results button").first.click()
        go(shown, f"b{step(tape, 'mul').id}")
        shown.locator("#python").click()
        assert shown.locator("img").count() == 0 and shown.evaluate("Looking.overlaps()")["outside"] == []


def test_odd_arrays_and_numbers(chromium, tmp_path):
    """0-d, empty, infinite and NaN, booleans and integers, no gradient at all, no model."""
    with graph.record() as tape, np.errstate(all="ignore"):
        x = Tensor(np.array([0.0, -1.0, np.inf, np.nan])).requires_grad_()
        ops.log(x).sum().backward()
        ops.sum(Tensor(np.zeros((0, 3))), 0)
        ops.where(np.array([True, False]), Tensor(np.ones(2)), 0.0)
        ops.argmax(Tensor(np.arange(3.0)))
        ops.getitem(Tensor(np.arange(6.0).reshape(2, 3)), (slice(None), None, np.array([[0, 1]])))
        ops.exp(Tensor(np.array(2.0)))
        ops.concatenate([Tensor(np.ones(1)), Tensor(np.zeros(0))])
    with opened(chromium, graph.explore(tape, tmp_path / "odd.html")) as shown:
        assert outcome(shown)[0] == "pass", shown.locator("#badge > div").text_content()
        for _ in range(shown.evaluate("Explorer.frames().length")):
            assert not NOT_SAID.search(shown.locator("body").inner_text())
            shown.keyboard.press("ArrowRight")


CLICKS = (
    "#explain td[data-flat]", "#explain button", ".tools button, #theme, .scrubber button", "#drawing .node:not(.away)",
    "#drawing .group:not(.away) .label", "#explain summary",
)  # fmt: skip


def test_200_random_actions(path, chromium):
    seed = 20150211
    draw = random.Random(seed)
    with opened(chromium, path, reduced_motion="reduce") as shown:
        for number in range(200):
            action = draw.randrange(9)
            if action < 3:
                shown.keyboard.press(
                    draw.choice(["ArrowRight", "ArrowLeft", "Home", "End", "e", "f", "z", "Escape", "/", "Enter", "Tab", " "])
                )
            elif action == 3:
                shown.evaluate("n => Explorer.move(n)", draw.randrange(-2, 60))
            elif action < 7:
                shown.evaluate("([selector, r]) => Looking.pick(selector, r)", [draw.choice(CLICKS), draw.random()])
            elif action == 7:
                shown.locator("#search").fill(draw.choice(["", "w", "linear", "zzz", "(", "0."]))
            else:
                shown.evaluate("document.querySelectorAll('dialog[open]').forEach(d => d.close())")
                shown.evaluate("h => { location.hash = h; }", draw.choice(["", "at=f7", "at=b10&open=6", "fold=0,1&at=b3"]))
            said = NOT_SAID.search(shown.locator("body").inner_text())
            assert not said, f"action {number} of seed {seed}: {said}"
        assert outcome(shown)[0] == "pass"


# ----- the published page


def test_the_published_page_is_of_this_code(tape):
    """But for the last digits of its numbers, which are the machine's: python -m tinygrad_bn explore --out docs/step.html"""
    docs = Path(__file__).resolve().parents[2] / "docs"
    run = re.compile(r'<script type="application/json" id="run">(.*?)</script>', re.DOTALL)
    published, made = (docs / "step.html").read_text(encoding="utf-8"), explorer.document(tape)
    assert run.sub("", published) == run.sub("", made)
    old, new = (json.loads(run.search(text)[1]) for text in (published, made))
    assert old["graph"] == new["graph"] and old["calls"] == new["calls"]
    for a, b in zip(old["tapes"][0]["entries"], new["tapes"][0]["entries"], strict=True):
        assert [a.get(k) for k in ("op", "name", "shape", "dtype", "source")] == [
            b.get(k) for k in ("op", "name", "shape", "dtype", "source")
        ]
    (loss,) = (
        np.frombuffer(base64.b64decode(d["arrays"][d["tapes"][0]["entries"][d["loss"]]["value"]]["bytes"]), "<f8")
        for d in (old,)
    )
    np.testing.assert_allclose(loss[0], tape[tape.loss].value, 1e-12)
    assert (docs / "step.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_it(tmp_path, capsys):
    assert main(["explore", "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").stat().st_size < 1.5e6 and "x.html" in capsys.readouterr().out
    assert main(["explore", "--out", str(tmp_path / "none" / "x.html")]) == 1
    assert "could not be written" in capsys.readouterr().err
