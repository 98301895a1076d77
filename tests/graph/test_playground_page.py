"""The BatchNorm playground in a real browser: its engine is the Python engine's, and the page does what it says."""

from __future__ import annotations

import importlib
import json
import math
import re

import browser
import numpy as np
import pytest

from tinygrad_bn import graph, ops
from tinygrad_bn.core import grad
from tinygrad_bn.graph import page
from tinygrad_bn.tensor import Tensor

playground = importlib.import_module("tinygrad_bn.graph.playground")  # the package's attribute of that name is the function

STATES = 1000
# As JSON, which is faster than Playwright's own way of handing over numbers.
EVALUATE = """cases => JSON.stringify(JSON.parse(cases).map(c => ({
  forward: BatchNorm.forward(c.x, c), backward: BatchNorm.backward(c.g, c.x, c), jacobian: BatchNorm.jacobian(c.x, c),
  shifted: BatchNorm.forward(c.x.map(v => v + c.c), c).y,
  scaled: BatchNorm.forward(c.x.map(v => c.a * v), {...c, eps: c.a * c.a * c.eps}).xHat,
})))"""


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as b:
        yield b


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return graph.playground(tmp_path_factory.mktemp("playground") / "batchnorm.html")


@pytest.fixture
def opened(chromium, path):
    with browser.opened(chromium, path, 1280) as (opened, said):
        yield opened
        assert said == [], "no error, no request, no violation of the policy"


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def column(opened, table: str, i: int) -> list[str]:
    return opened.locator(f"#{table}-table tr > :nth-child({i})").all_text_contents()


def drag(opened, key: str, dx: float = 0, dy: float = 0):
    handle = opened.locator(f'[data-key="{key}"] .mark')
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.mouse.move(x, y)
    opened.mouse.down()
    opened.mouse.move(x + dx / 2, y + dy / 2)
    opened.mouse.move(x + dx, y + dy)
    opened.mouse.up()


def badge(opened) -> str:
    return opened.locator("#badge").get_attribute("data-state")


# ----- the engine


@pytest.fixture(scope="module")
def random_states():
    rng = np.random.default_rng(15)
    states = []
    for _ in range(STATES):
        m = 2 + int(31 * rng.uniform() ** 3)
        x, g = rng.normal(rng.normal(), 2.0, m), rng.normal(size=m)
        gamma, beta, c = rng.normal(size=3).tolist()
        a = float(rng.choice([-1, 1]) * rng.uniform(0.1, 5))
        states.append(
            {
                "x": x.tolist(),
                "g": g.tolist(),
                "gamma": gamma,
                "beta": beta,
                "eps": float(10 ** rng.uniform(-6, 1)),
                "a": a,
                "c": c,
            }
        )
    return states


@pytest.fixture(scope="module")
def by_the_page(chromium, path, random_states):
    with browser.opened(chromium, path, 1280) as (opened, _):
        return json.loads(opened.evaluate(EVALUATE, json.dumps(random_states)))


def test_forward_and_backward_are_those_of_the_python_engine(random_states, by_the_page):
    for state, got in zip(random_states, by_the_page, strict=True):
        x, gamma, beta = (
            Tensor(np.reshape(np.asarray(v, np.float64), s), requires_grad=True)
            for v, s in ((state["x"], (-1, 1)), (state["gamma"], (1,)), (state["beta"], (1,)))
        )
        y, (mean, variance) = ops.batch_norm(x, gamma, beta, eps=state["eps"])
        dx, dgamma, dbeta = grad(y, [x, gamma, beta], grad_outputs=Tensor(np.reshape(state["g"], (-1, 1))))
        forward, backward = got["forward"], got["backward"]
        np.testing.assert_allclose(
            [forward["mean"], forward["variance"]], [mean.item(), variance.item()], rtol=1e-11, atol=1e-13
        )
        np.testing.assert_allclose(forward["y"], y.detach().numpy()[:, 0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(backward["dx"], dx.numpy()[:, 0], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(
            [backward["dgamma"], backward["dbeta"]], [dgamma.item(), dbeta.item()], rtol=1e-10, atol=1e-11
        )


def test_the_identities_of_batch_normalisation_hold_on_random_states(random_states, by_the_page):
    for state, got in zip(random_states, by_the_page, strict=True):
        forward, backward, m = got["forward"], got["backward"], len(state["x"])
        x_hat, dx, g, j = (np.array(v) for v in (forward["xHat"], backward["dx"], state["g"], got["jacobian"]))
        v, s, gamma, eps = forward["variance"], forward["std"], state["gamma"], state["eps"]
        close = {"rtol": 1e-9, "atol": 1e-10}
        assert abs(x_hat.mean()) < 1e-10
        np.testing.assert_allclose((x_hat**2).mean(), v / (v + eps), **close)
        assert abs(dx.sum()) < 1e-9 * max(1, np.abs(dx).sum())
        along = gamma / s * (g @ x_hat) * eps / (v + eps)
        np.testing.assert_allclose([dx @ x_hat, backward["along"]], along, **close)
        np.testing.assert_allclose(got["shifted"], forward["y"], rtol=0, atol=1e-8)
        np.testing.assert_allclose(got["scaled"], np.sign(state["a"]) * x_hat, rtol=0, atol=1e-8)
        np.testing.assert_allclose(j, j.T, **close)
        np.testing.assert_allclose(j.T @ g, dx, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(j @ x_hat, gamma / s * eps / (v + eps) * x_hat, rtol=1e-8, atol=1e-9)
        assert np.abs(x_hat).max() <= math.sqrt(m - 1) + 1e-12
        if m == 2:
            d = state["x"][0] - state["x"][1]
            np.testing.assert_allclose(x_hat[0], d / math.sqrt(d * d + 4 * eps), **close)
            np.testing.assert_allclose(dx[0], gamma / 2 * eps / s**3 * (g[0] - g[1]), **close)


def test_running_statistics_and_rounded_variances_are_python_s(opened):
    """Both conventions, three momenta, three dtypes, four algorithms: the golden numbers, by the page's own comparison."""
    golden = playground.golden()
    compared = opened.evaluate(
        "golden => [...Check.withPython(golden)].map(c => [c[0], [c[1]].flat(), [c[2]].flat(), c[3]])", golden
    )
    names = {name for name, *_ in compared}
    for convention in ("unbiased", "biased"):
        assert {f"the running mean ({convention})", f"the running variance ({convention})"} <= names
    for algorithm in ("one-pass", "two-pass", "welford", "package"):
        assert (
            f"the variance in float16 at 300 by {algorithm}" in names
            and f"the variance in float32 at 4096 by {algorithm}" in names
        )
    assert opened.evaluate("golden => Check.count(Check.withPython(golden))", golden)["failed"] == []


def test_the_table_of_the_literature(opened):
    """Offsets at which E[x^2] - E[x]^2 is known to fail, and how."""
    known = {
        ("float32", 1000): 1, ("float32", 4096): 0, ("float32", 1e5): 1024, ("float32", 1e6): -65536, ("float64", 1e8): 0,
        ("float16", 100): math.inf, ("float16", 300): math.nan, ("float16", 4096): math.nan,
    }  # fmt: skip
    code = "([d, c]) => BatchNorm.variance(Array.from({length: 64}, (_, i) => c + (i % 2 ? 1 : -1)), d, 'one-pass')"
    np.testing.assert_equal([opened.evaluate(code, list(case)) for case in known], list(known.values()))


def test_half_precision_is_numpy_s(opened, rng):
    values = np.concatenate(
        [
            rng.normal(size=300) * 10.0 ** rng.integers(-9, 6, 300),
            [0, 65504, 65519.9, 65520, 2048.5, 2049, 2051, 6e-8, 3e-8, 2.98e-8],
        ]
    )
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float64)
    got = opened.evaluate("values => values.map(BatchNorm.toHalf)", values.tolist())
    np.testing.assert_array_equal(got, expected)


def test_the_slope_of_normalised_values_is_what_sampling_gives(opened, rng):
    for m in (2, 3, 8):
        x = rng.normal(size=(200_000, m))
        x_hat = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        law = opened.evaluate("m => BatchNorm.trainingSlope(m)", m)
        assert (x_hat[:, 0] * x[:, 0]).mean() == pytest.approx(law["slope"], abs=0.01)
        assert law["noise"] == pytest.approx(1 - law["slope"] ** 2)


# ----- the self-test


def test_the_badge_is_green(opened):
    assert badge(opened) == "pass"
    summary = opened.locator("#badge summary").text_content()
    assert int(re.search(r"([\d,]+) numbers equal", summary)[1].replace(",", "")) > 500


MUTANTS = {
    "no mean term": ("gi - level - slope * xHat[i]", "gi - slope * xHat[i]"),
    "no term along x_hat": ("gi - level - slope * xHat[i]", "gi - level"),
    "eps outside the root": ("const std = Math.sqrt(variance + eps)", "const std = Math.sqrt(variance) + eps"),
    "the unbiased variance normalises": ("dot(centred, centred) / x.length", "dot(centred, centred) / (x.length - 1)"),
    "dgamma of y": ("const dgamma = dot(g, xHat);", "const dgamma = dot(g, x);"),
    "gamma missing in dx": ("(gamma / std) * k", "(1 / std) * k"),
    "the conventions swapped": ('variance === "unbiased" ?', 'variance === "biased" ?'),
    "momentum the wrong way round": ("(1 - weight) * running.mean + weight", "weight * running.mean + (1 - weight)"),
    "the cumulative average": ("1 / (running.tracked + 1)", "1 / (running.tracked + 2)"),
    "beta missing in evaluation": ("beta - scale * running.mean", "-scale * running.mean"),
    "a Jacobian without its last term": ("- 1 / m - (a * b) / m", "- 1 / m"),
    "float16 with one bit more": ("-14) - 10)", "-14) - 11)"),
    "halves rounded up": ("over === 0.5 && below % 2 === 1", "over === 0.5"),
    "Welford's mean too late": ("round(squares + round(before * round(v - mu)))", "round(squares + round(before * before))"),
    "sums in another order": ("part[i % 8] = round(part[i % 8]", "part[0] = round(part[0]"),
    "the law of other m": ("Math.sqrt(2 / m) * ratio", "Math.sqrt(2 / (m + 1)) * ratio"),
}  # fmt: skip


@pytest.fixture(scope="module")
def blank(chromium):
    """A page with nothing on it, and what the self-test stands on as one script: the engine comes first."""
    opened = chromium.new_context().new_page()
    rest = "\n".join(page.text(f"playground_{name}.js") for name in ("state", "check"))
    golden = json.dumps(playground.golden())
    yield lambda engine: opened.evaluate(f"(() => {{ {engine}\n{rest}\nreturn Check.run({golden}); }})()")
    opened.context.close()


def test_the_self_test_passes(blank):
    assert blank(page.text("playground_engine.js"))["state"] == "pass"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_self_test_fails_when_a_formula_is_wrong(mutant, blank):
    before, after = MUTANTS[mutant]
    engine = page.text("playground_engine.js")
    assert engine.count(before) == 1, "the mutant changes one place"
    got = blank(engine.replace(before, after))
    assert got["state"] == "fail" and re.fullmatch(r"self-test: \d+ failed", got["text"])
    assert all(", expected " in line for line in got["details"])


@pytest.mark.parametrize("mutant", ["no mean term", "the conventions swapped"])
def test_the_badge_is_red_when_a_formula_is_wrong(mutant, chromium, tmp_path, monkeypatch):
    mutated = page.text("playground_engine.js").replace(*MUTANTS[mutant])
    read = page.text
    monkeypatch.setattr(page, "text", lambda name: mutated if name == "playground_engine.js" else read(name))
    with browser.opened(chromium, graph.playground(tmp_path / "mutant.html"), 1280) as (opened, said):
        assert badge(opened) == "fail" and said == []
        assert re.fullmatch(r"✗ self-test: \d+ failed", opened.locator("#badge summary").text_content())
        opened.locator("#badge summary").click()
        assert ", expected " in opened.locator("#badge p").first.text_content()


@pytest.mark.parametrize(
    ("group", "field"), [("batches", "dx"), ("running", "variance"), ("jacobians", "rows"), ("precision", "value")]
)
def test_the_badge_is_red_when_one_number_is_wrong(group, field, chromium, tmp_path, monkeypatch):
    golden = playground.golden()
    case = golden[group][-1 if group != "precision" else 0]
    values = np.asarray(case[field], np.float64)
    values.flat[-1] *= 1 + 1e-6
    case[field] = values.tolist()
    monkeypatch.setattr(playground, "golden", lambda: golden)
    with browser.opened(chromium, graph.playground(tmp_path / "corrupt.html"), 1280) as (opened, _):
        assert badge(opened) == "fail"


# ----- what the page does


def test_it_says_something_before_the_first_click(opened):
    for panel in ("batch", "backward", "batchmates", "evaluation", "precision", "runs"):
        assert re.search(r"\d", opened.locator(f"#{panel}-finding").text_content()), panel
    assert opened.evaluate("location.hash") == ""


def test_a_dragged_point_shows_the_engines_numbers(opened):
    before = column(opened, "batch", 3)
    drag(opened, "x2", dx=75)
    x = [number(t) for t in column(opened, "batch", 2)]
    assert x[2] > opened.evaluate("State.drawn(State.DEFAULT.seed).x[2]") + 0.5
    y, _ = ops.batch_norm(Tensor(np.array(x)[:, None]), eps=1e-5)
    after = column(opened, "batch", 3)
    assert after == [f"{v:.3f}".replace("-", "−") for v in y.numpy()[:, 0]] and all(
        a != b for a, b in zip(before, after, strict=True)
    )
    assert opened.locator("#batch-formula").text_content().count(after[2].lstrip("−")) == 3
    assert opened.locator("#batch-table tr.marked th").text_content() == "C"
    assert opened.locator('[data-key="x2"]').get_attribute("aria-valuenow") == f"{x[2]:g}"


def test_the_same_drag_in_panel_3(opened):
    drag(opened, "moved", dx=-60)
    assert "A moved by −" in opened.locator("#batchmates-finding").text_content()
    assert "the outputs of all 7 others moved" in opened.locator("#batchmates-finding").text_content()
    opened.get_by_label("evaluation", exact=True).check()
    assert "The others stayed where they were" in opened.locator("#batchmates-finding").text_content()
    assert opened.evaluate("Store.now.jacobian.every((row, i) => row.every((v, j) => (v === 0) === (i !== j)))")


def test_shift_and_scale_leave_y_where_it_is_and_negation_turns_it(opened):
    y, x = column(opened, "batch", 4), column(opened, "batch", 2)
    for button in ("Shift all by ½", "by −½", "Scale all by 2", "by ½"):
        opened.get_by_role("button", name=button, exact=True).click()
        assert column(opened, "batch", 4) == y
        assert "y did not move" in opened.locator("#batch-said").text_content()
    drag(opened, "mean", dx=80)
    assert column(opened, "batch", 4) == y and column(opened, "batch", 2) != x
    opened.get_by_role("button", name="Negate all").click()
    assert [number(t) for t in column(opened, "batch", 4)] == [-number(t) for t in y]


def test_a_large_eps_makes_the_scale_matter_and_the_page_says_so(opened):
    opened.locator("#eps").fill("0")
    opened.get_by_role("button", name="by ½", exact=True).click()
    assert "y moved" in opened.locator("#batch-said").text_content()
    assert "the scale matters" in opened.locator("#batch-said").text_content()


def test_an_outlier_stays_within_its_bound(opened):
    opened.get_by_role("button", name="Outlier").click()
    assert "√7 = 2.65" in opened.locator("#batch-said").text_content()
    assert 2 < number(column(opened, "batch", 3)[0]) < 2.65


def test_a_dragged_gradient_changes_what_goes_on(opened):
    before = column(opened, "backward", 6)
    drag(opened, "g4", dy=-60)
    rows = [column(opened, "backward", i) for i in range(2, 7)]
    x = np.array([number(t) for t in column(opened, "batch", 2)])[:, None]
    g = np.array([number(t) for t in rows[0]])
    assert g[4] > opened.evaluate("State.drawn(State.DEFAULT.seed).g[4]") + 0.5
    leaf = Tensor(x, requires_grad=True)
    (dx,) = grad(ops.batch_norm(leaf, eps=1e-5)[0], [leaf], grad_outputs=Tensor(g[:, None]))
    assert rows[4] == [f"{v:.3f}".replace("-", "−") for v in dx.numpy()[:, 0]] and rows[4] != before


def test_with_two_examples_nothing_comes_back(opened):
    opened.locator("#m").fill("2")
    assert set(column(opened, "backward", 6)) <= {"0.000", "−0.000"}
    assert "dx is 0 up to ε" in opened.locator("#backward-finding").text_content()
    heights = opened.evaluate("[...document.querySelectorAll('#parts-stage .down rect')].map(r => r.getBBox().height)")
    assert len(heights) == 2


def test_running_statistics_are_those_of_the_layer(opened):
    from tinygrad_bn import nn

    opened.get_by_role("button", name="Feed ten").click()
    opened.get_by_label("biased", exact=True).check()
    opened.locator("#momentum").fill("0.3")
    batches = opened.evaluate("""Array.from({length: Store.state.fed}, (_, i) =>
        State.normals(Store.state.seed, 1000 + i, 32).slice(0, Store.state.m).map(v => 3 + 1.5 * v))""")
    layer = nn.BatchNorm1d(1, momentum=0.3, variance="biased").double()
    for batch in batches:
        layer(Tensor(np.array(batch)[:, None]))
    last = opened.evaluate("Store.now.history.last")
    assert len(batches) == 30
    np.testing.assert_allclose(
        [last["mean"], last["variance"]], [layer.running_mean.item(), layer.running_var.item()], rtol=1e-12
    )
    assert "momentum 0.7" in opened.locator("#momentum-note").text_content()
    shown = opened.locator("#evaluation-formula").text_content()
    y = layer.eval()(Tensor(np.array([[5.0]]))).item()
    assert shown.endswith(f"= {y:.3f}")


@pytest.mark.parametrize(
    ("bug", "says"),
    [
        ("eval", "Forgot eval()"),
        ("swapped", "90 % of the running statistics"),
        ("unsaved", "mean 0 and variance 1 after loading"),
    ],
)
def test_each_classic_bug_says_what_it_does(bug, says, opened):
    opened.locator("#bug").select_option(bug)
    assert says in opened.locator("#evaluation-finding").text_content()
    if bug == "unsaved":
        assert opened.evaluate("Store.now.evaluation.shift") == 0


def test_precision_by_drag_key_and_row(opened):
    finding = opened.locator("#precision-finding")
    assert "makes the variance 1024 instead of 1" in finding.text_content()
    opened.locator('[data-key="offset"]').focus()
    opened.keyboard.press("ArrowRight")
    assert "−65,536" in finding.text_content()
    opened.locator("#precision-table tr").nth(6).click()
    assert "At an offset of 4096" in finding.text_content()
    opened.get_by_label("float16").check()
    assert "no number" in opened.locator("#precision-table tr.marked").text_content()
    assert "the ± 1 is lost in the values" in finding.text_content()
    opened.locator("#precision-table tr").nth(11).click()
    assert "become infinite" in finding.text_content()
    drag(opened, "offset", dx=-600)
    assert "gets the variance right" in finding.text_content()


def test_what_the_two_good_algorithms_lose_was_lost_before(opened):
    """The page says that they give 1 wherever the values themselves still hold the variance."""
    rows = opened.evaluate(
        "State.CHOICES.dtype.flatMap(d => State.derive({...Store.state, dtype: d}).precision.map(r => r.results))"
    )
    assert len(rows) == 36
    assert all(abs(two - 1) < 0.01 and abs(welford - 1) < 0.01 for _, two, welford, ours in rows if abs(ours - 1) < 0.01)


def test_recorded_runs_show_what_was_recorded(opened):
    recorded = json.loads(page.text("playground_runs.json"))
    for rate in (0, 8, 14):
        opened.locator("#rate").fill(str(rate))
        lr = recorded["learning_rates"][rate]
        shown = opened.locator("#runs-finding").text_content()
        with_it = [100 * r["accuracy"] for r in recorded["runs"] if r["arm"] == "batch" and r["lr"] == lr]
        said = re.search(r"([\d.]+) to ([\d.]+) %", shown.partition("without")[0])
        np.testing.assert_allclose([float(said[1]), float(said[2])], [min(with_it), max(with_it)], atol=0.051)
        assert opened.locator("#curves-stage path.run").count() == 2 * recorded["seeds"]
    opened.get_by_label("InstanceNorm").check()
    assert "was not recorded" in opened.locator("#runs-finding").text_content()


def test_the_address_keeps_the_state(opened, chromium, path):
    opened.locator("#m").fill("5")
    drag(opened, "x1", dx=-90)
    drag(opened, "g2", dy=30)
    opened.locator("#gamma").fill("-1.5")
    opened.locator("#bug").select_option("swapped")
    opened.get_by_label("float64").check()
    opened.get_by_label("GroupNorm").check()
    opened.wait_for_timeout(400)
    fragment = opened.evaluate("location.hash.slice(1)")
    words = opened.locator("main").text_content()
    with browser.opened(chromium, path, 1280, fragment=fragment) as (again, said):
        assert again.evaluate("Store.state") == opened.evaluate("Store.state") and said == []
        assert re.sub(r"All .*|Drag a point.*", "", again.locator("main").text_content()) == re.sub(
            r"All .*|Drag a point.*", "", words
        )
    opened.get_by_role("button", name="Start again").click()
    opened.wait_for_timeout(400)
    assert opened.evaluate("location.hash") in ("", "#")


@pytest.mark.parametrize(
    "fragment",
    [
        "m=1e9&x=1_2&eps=NaN&seed=-3",
        "m=2&x=NaN_Infinity&g=1e99_0&norm=__proto__&dtype=constructor",
        "%3Cimg%20src=x%20onerror=alert(1)%3E",
        "x=&g=&m=&bug=%00&rate=1.5",
        "m=3&x=1_1_1&eps=-8",
    ],
)
def test_an_address_with_anything_in_it_is_read_as_far_as_it_makes_sense(fragment, chromium, path):
    with browser.opened(chromium, path, 1280, fragment=fragment) as (opened, said):
        assert said == [] and badge(opened) == "pass" and not nonsense(opened)


def test_the_keyboard_reaches_everything(opened):
    opened.keyboard.press("n")
    assert opened.locator("#batch-table tr.marked th").text_content() == "B"
    opened.locator('[data-key="x1"]').focus()
    x = number(column(opened, "batch", 2)[1])
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("Shift+ArrowLeft")
    assert number(column(opened, "batch", 2)[1]) == pytest.approx(x + 0.1 - 1)
    assert "B moved by −0.90" in opened.locator("#batchmates-finding").text_content()  # one movement, as a drag is
    opened.wait_for_timeout(300)
    assert re.fullmatch(r"x of example B: .*, x̂ .*, y .*", opened.locator("#live").text_content())
    opened.keyboard.press("n")
    assert opened.evaluate("document.activeElement.dataset.key") == "x2"
    opened.keyboard.press("End")
    assert column(opened, "batch", 2)[2] == "6.00"
    opened.keyboard.press("4")
    assert opened.evaluate("document.activeElement.id") == "evaluation-title"
    opened.keyboard.press("r")
    assert opened.evaluate("JSON.stringify(State.written(Store.state))") == "{}"
    stops = set()
    for _ in range(60):
        opened.keyboard.press("Tab")
        stops.add(opened.evaluate("document.activeElement.dataset.key ?? document.activeElement.id"))
    assert {"x0", "mean", "sigma", "g0", "moved", "probe", "slope", "offset", "rate", "m", "gamma", "bug", "theme"} <= stops


def nonsense(opened) -> list[str]:
    """Texts and attributes that no reader should see."""
    return opened.evaluate("""() => {
      const words = document.body.innerText.match(/\\b(NaN|undefined|Infinity|null|\\[object \\w+\\])/g) ?? [];
      const finite = ["batch", "backward", "batchmates", "evaluation"];  // elsewhere it may be what a dtype makes of a value
      const lost = finite.filter(id => /not a number/.test(document.getElementById(id).textContent));
      const odd = e => [...e.attributes].some(a => /NaN|undefined|Infinity/.test(a.value));
      const marks = [...document.querySelectorAll("main svg *")].filter(odd);
      return [...words, ...lost, ...marks.map(e => e.outerHTML.slice(0, 100))];
    }""")


def test_two_hundred_random_actions(opened, rng):
    """Drags, keys, sliders, buttons, choices, in any order: no exception (the fixture looks), nothing that is not a number."""
    ranges = opened.locator("input[type=range]")
    radios, selects, buttons = opened.locator("input[type=radio]"), opened.locator("main select"), opened.locator("main button")
    for action in range(200):
        kind = rng.integers(6)
        if kind == 0:
            keys = opened.evaluate("[...document.querySelectorAll('.handle')].map(h => h.dataset.key)")
            drag(opened, str(rng.choice(keys)), *rng.normal(0, 80, 2).tolist())
        elif kind == 1:
            some = ranges.nth(int(rng.integers(ranges.count())))
            low, high = (float(some.get_attribute(name)) for name in ("min", "max"))
            some.evaluate(
                "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(rng.uniform(low, high))
            )
        elif kind == 2:
            radios.nth(int(rng.integers(radios.count()))).check()
        elif kind == 3:
            some = selects.nth(int(rng.integers(selects.count())))
            some.select_option(index=int(rng.integers(some.locator("option").count())))
        elif kind == 4:
            some = buttons.nth(int(rng.integers(buttons.count())))
            if some.is_enabled():
                some.click()
        else:
            opened.locator(".handle").nth(int(rng.integers(4))).focus()
            opened.keyboard.press(str(rng.choice(["ArrowLeft", "ArrowRight", "Home", "End", "PageUp", "n", "p"])))
        found = nonsense(opened) if action % 4 == 3 else []
        assert found == [], f"after {action + 1} actions: {opened.evaluate('JSON.stringify(Store.state)')}"
    for panel, tables in (("batch", 3), ("backward", 6)):
        assert all(math.isfinite(number(t)) for t in column(opened, panel, tables))


# ----- how it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", browser.WIDTHS)
def test_nothing_overlaps_and_axe_finds_nothing(width, scheme, chromium, path):
    states = [
        "",
        "m=32&gamma=-2&eps=1&fed=60&norm=layer&rate=14&dtype=float16&offset=11",
        "m=2&mode=eval&fed=0&bug=unsaved&offset=0&norm=instance&rate=0",
    ]
    for fragment in states:
        with browser.opened(chromium, path, width, scheme, fragment) as (opened, said):
            assert opened.evaluate(browser.OVERLAPS) == {"found": [], "outside": [], "scrolls": False}, fragment
            assert said == []
            if fragment == "":
                opened.locator("#badge summary").click()
                assert browser.violations(opened) == []


def test_axe_finds_nothing_in_other_states(chromium, path):
    with browser.opened(chromium, path, 1280, "dark", "m=12&mode=eval&bug=eval&dtype=float16&norm=group&rate=14&gamma=-1") as (
        opened,
        _,
    ):
        assert browser.violations(opened) == []
        opened.keyboard.press("?")
        assert browser.violations(opened) == []


def test_targets_are_large_enough_for_fingers(chromium, path):
    with browser.opened(chromium, path, 390, has_touch=True) as (opened, _):
        small = opened.evaluate("""() => {
            const targets = "button, select, input[type=range], summary, .choice label, .contents a, .hit";
            const least = e => Math.min(e.getBoundingClientRect().height, e.getBoundingClientRect().width);
            return [...document.querySelectorAll(targets)].filter(e => e.checkVisibility() && least(e) < 39.5)
                .map(e => e.outerHTML.slice(0, 80));
        }""")
        assert small == []
        handle = opened.locator('[data-key="x0"] .mark')
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2 + 8, box["y"] + box["height"] / 2 + 8  # a finger is not exact
        touch = opened.context.new_cdp_session(opened)
        before = column(opened, "batch", 2)[0]
        for kind, by in (("touchStart", 0), ("touchMove", -20), ("touchMove", -40), ("touchEnd", None)):
            points = [] if by is None else [{"x": x + by, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert number(column(opened, "batch", 2)[0]) < number(before) - 0.5


def test_without_motion_nothing_moves_by_itself(chromium, path):
    with browser.opened(chromium, path, 1280, reduced_motion="reduce") as (opened, _):
        opened.keyboard.press("6")
        top = opened.evaluate("document.getElementById('runs').getBoundingClientRect().top")
        opened.wait_for_timeout(200)
        assert opened.evaluate("document.getElementById('runs').getBoundingClientRect().top") == top
        assert opened.evaluate("document.getAnimations().length") == 0


def test_a_change_of_width_redraws(opened):
    wide = opened.locator("#batch-stage").bounding_box()["width"]
    for width in (700, 1280):
        opened.set_viewport_size({"width": width, "height": 900})
        opened.wait_for_timeout(100)
        assert opened.evaluate(browser.OVERLAPS) == {"found": [], "outside": [], "scrolls": False}
    assert opened.locator("#batch-stage").bounding_box()["width"] == wide
