"""The report as a page, looked at in a real browser, and as a fragment for notebooks."""

import re

import numpy as np
import pytest
from browser import OVERLAPS, WIDTHS, chromium, opened, violations

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import diagnose, layers, recalibrate, watch

RNG = np.random.default_rng(0)
HOSTILE = "</script><img src=x onerror=alert(1)>"


def batches():
    x, y = RNG.normal(size=(128, 6)).astype(np.float32), RNG.integers(0, 3, 128)
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, 128, 16)]


def report(hostile=False):
    tg.manual_seed(0)
    model = recalibrate(tg.models.mlp((6, 12, 7, 3), activation="relu"), batches())
    first, second = (layer for _, layer in layers(model))
    first.reset_running_stats()
    bad = second.running_var.numpy().copy()
    bad[0] = np.nan
    second.running_var = nn.Buffer(bad)
    if hostile:
        setattr(model, HOSTILE, model[0])
        outer = nn.Module()
        setattr(outer, HOSTILE, model)
        outer.forward = model.forward
        model = outer
    return diagnose(model, batches())


@pytest.fixture(scope="module")
def browser():
    with chromium() as b:
        yield b


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    return report().to_html(tmp_path_factory.mktemp("page") / "doctor.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
def test_nothing_overlaps_scrolls_or_complains(browser, page_file, width, scheme):
    with opened(browser, page_file, width, scheme) as (page, said):
        assert page.evaluate(OVERLAPS) == {"found": [], "outside": [], "scrolls": False}
        assert not violations(page)
        assert page.locator("#badge").get_attribute("data-state") == "pass"
        assert said == []


def test_a_picture_for_each_layer_with_a_mark_for_each_channel(browser, page_file):
    with opened(browser, page_file, 1280) as (page, _):
        assert page.locator(".layers figure").count() == 2
        for i, channels in enumerate((12, 7)):
            assert page.locator(f"#layer-{i} svg").count() == 2
            lost = 1 if i == 1 else 0  # a variance of NaN has no place, and the picture says so
            assert page.locator(f"#layer-{i} .near, #layer-{i} .far").count() == 2 * channels - lost
        assert "1 not drawn" in page.locator("#layer-1").inner_text()
        assert page.locator("#layer-0 .far").count() > 0


def test_keys_step_through_the_findings(browser, page_file):
    with opened(browser, page_file, 1280) as (page, _):
        focused = "document.activeElement.querySelector('code')?.textContent"
        page.keyboard.press("n")
        assert page.evaluate(focused) == "nonfinite_statistics"
        page.keyboard.press("n")
        assert page.evaluate(focused) == "never_updated"
        page.keyboard.press("p")
        assert page.evaluate(focused) == "nonfinite_statistics"


def test_a_wrong_number_in_the_page_turns_its_badge(browser, page_file, tmp_path):
    text = page_file.read_text()
    wrong = re.sub(r'("shift":)(\d)', r"\g<1>9\2", text, count=1)
    assert wrong != text
    target = tmp_path / "wrong.html"
    target.write_text(wrong)
    with opened(browser, target, 1280) as (page, _):
        assert page.locator("#badge").get_attribute("data-state") == "fail"


def test_hostile_names_stay_text(browser, tmp_path):
    target = report(hostile=True).to_html(tmp_path / "hostile.html")
    with opened(browser, target, 390) as (page, said):
        assert page.locator("img").count() == 0 and said == []
        assert HOSTILE in page.locator(".findings").inner_text()


def test_the_fragment_of_a_notebook_has_no_script_and_the_same_findings():
    made = report()
    html = made._repr_html_()
    assert "<script" not in html and all(f"<code>{c}</code>" in html for c in made.codes)


def test_a_report_of_watching_is_a_page_too(tmp_path):
    model = tg.models.mlp((6, 12, 3))
    with watch(model) as seen, tg.no_grad():
        model(tg.tensor(batches()[0][0]))
    text = seen.report().to_html(tmp_path / "w.html").read_text()
    assert "evaluated_in_training_mode" in text


def test_a_hostile_name_of_a_class_is_text_in_the_page_and_in_the_notebook(tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    found = diagnose(nn.Sequential(nn.Linear(6, 4), type(hostile, (nn.BatchNorm1d,), {})(4)), batches())
    text = found.to_html(tmp_path / "d.html").read_text(encoding="utf-8")
    assert f"{hostile}(4)" not in text + found._repr_html_() and "&lt;img src=x onerror=alert(1)&gt;(4)" in text


def test_the_caption_says_which_bar_is_the_worst():
    assert "bar is the shortest, the running" in report()._repr_html_()  # accuracies
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    losses = diagnose(model, [(x, x[:, :4]) for x, _ in batches()], loss=lambda out, y: ((out - y) ** 2).mean())
    assert losses.cost.evaluation.accuracy is None and "bar is the longest, the running" in losses._repr_html_()
