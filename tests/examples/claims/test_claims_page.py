"""The page of verdicts: what it shows is what results.json holds, and a browser shows it well."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import browser
import claim
import page
import publish
import pytest
import run
import test_claim_learning_rates

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def made_up(results):
    """What results.json would hold of one claim with made-up runs."""
    done = test_claim_learning_rates.made_up(results, {"plain": 0.1, "batchnorm": 10}, seeds=3)
    setup = claim.Setup("full", "cpu", [0, 1, 2], False)
    entry = {**run.described("learning_rates", setup, done, True), "complete": True}
    module = run.module_of("learning_rates")
    findings = {name: finding.as_json() for name, finding in module.findings(done).items()}
    entry.update(findings=run.rounded(findings), headline=module.headline(done), remarks=module.remarks(done))
    return {
        "data": {"images": 60000, "test_images": 10000, "sha256": "abc" * 20, "quick": False},
        "verdicts": True, "complete": True, "device": "cpu", "workers": 2, "versions": {"numpy": "2"},
        "claims": [entry],
    }  # fmt: skip


class Words(HTMLParser):
    """The text of a page, without pictures, style and script; and its ids."""

    def __init__(self, text):
        super().__init__()
        self.words, self.hidden, self.ids = [], 0, []
        self.feed(text)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.hidden += tag in ("svg", "style", "script")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("svg", "style", "script")

    def handle_data(self, data):
        if not self.hidden and data.strip():
            self.words.append(data.strip())


def test_it_shows_what_the_json_holds(made_up):
    text = Words(page.page(made_up)).text
    finding = made_up["claims"][0]["findings"]["ratio"]
    for part in (
        "Of 3 claims", "3 hold here, 0 do not, and 0 cannot be told", "60,000 images", claim.HOLDS,
        finding["criterion"]["claim"], finding["criterion"]["statistic"], "every seed at least 5", "100, 100, 100",
        made_up["claims"][0]["headline"], *made_up["claims"][0]["remarks"], "0, 1, 2", "a commit",
        "python examples/claims/run.py --data full --only learning_rates", "abcabc",
    ):  # fmt: skip
        assert part in text, part


def test_another_figure_in_the_json_is_another_figure_on_the_page(made_up):
    other = copy.deepcopy(made_up)
    other["claims"][0]["findings"]["ratio"].update(mean=123.0, values=[121.0, 125.0, 123.0], verdict=claim.FAILS)
    before, after = (Words(page.page(results)).text for results in (made_up, other))
    assert "123" not in before and "123 (geometric mean)" in after and "121, 125, 123" in after
    assert "2 hold here, 1 do not" in after


def test_what_is_not_finished_or_too_small_says_so(made_up):
    made_up["complete"] = made_up["claims"][0]["complete"] = False
    for key in ("findings", "headline", "remarks"):
        del made_up["claims"][0][key]
    assert "It is not finished" in Words(page.page(made_up)).text
    made_up["verdicts"] = False
    assert "too small for verdicts" in Words(page.page(made_up)).text


def test_ids_are_unique_and_names_are_text(made_up):
    made_up["claims"][0]["question"] = "</script><img src=x onerror=alert(1)>?"
    text = page.page(made_up)
    ids = Words(text).ids
    assert len(ids) == len(set(ids)) and "<img" not in text


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as b:
        yield b


def shown(chromium, path):
    for width in browser.WIDTHS:
        for scheme in ("light", "dark"):
            with browser.opened(chromium, path, width, scheme) as (opened, said):
                what = opened.evaluate(browser.OVERLAPS)
                assert said == [], f"{width} {scheme}"
                assert what == {"found": [], "outside": [], "scrolls": False}, f"{width} {scheme}"
                visible = [w for w in ("wide", "narrow") if opened.locator(f"svg.{w}").first.is_visible()]
                assert visible == ["narrow" if width == 390 else "wide"]
                smallest = opened.evaluate(
                    "() => Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.checkVisibility())"
                    ".map(e => Math.min(e.getBoundingClientRect().height, e.getBoundingClientRect().width)))"
                )
                assert smallest > 5, "letters nobody can read"


def published():
    return json.loads((DOCS / "claims.json").read_text(encoding="utf-8"))


def test_the_published_page_and_readme_show_what_the_published_json_holds():
    results, html = published(), (DOCS / "claims.html").read_text(encoding="utf-8")
    assert Words(html).text == Words(page.page(results)).text
    assert publish.table(results) in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for name in publish.PICTURES:
        assert (DOCS / f"claims_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_each_published_verdict_can_be_traced():
    results = published()
    assert results["complete"] and results["verdicts"] and results["data"]["images"] == run.FULL
    assert [entry["name"] for entry in results["claims"]] == run.CLAIMS
    for entry in results["claims"]:
        module, done = run.module_of(entry["name"]), page.trials_of(entry)
        assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in entry["commits"]), entry["name"]
        assert entry["seeds"] == [0, 1, 2, 3, 4][: 3 if entry["name"] == "sigmoid_mnist" else 5]
        assert not list(done.missing(module.trials(claim.Setup("", "cpu", [0, 1, 2, 3, 4], False), done)))
        again = {name: finding.as_json() for name, finding in module.findings(done).items()}
        assert json.loads(json.dumps(run.rounded(again))) == entry["findings"], entry["name"]
        assert all(finding["criterion"] == asdict(module.CRITERIA[name]) for name, finding in entry["findings"].items())
        assert (entry["headline"], entry["remarks"]) == (module.headline(done), module.remarks(done))


def test_a_browser_shows_the_published_page(chromium):
    shown(chromium, DOCS / "claims.html")


def test_only_a_complete_run_with_verdicts_is_published(made_up, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up))  # of one claim
    with pytest.raises(SystemExit, match="expected a complete run of all claims with verdicts, got"):
        publish.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="python examples/claims/publish.py results/claims"):
        publish.main([])


def test_a_browser_shows_it_at_three_widths_in_both_schemes(made_up, chromium, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.page(made_up), encoding="utf-8")
    shown(chromium, path)
    with browser.opened(chromium, path, 390) as (opened, _):
        colours = (
            "() => getComputedStyle(document.body).backgroundColor + getComputedStyle(document.querySelector('svg text')).fill"
        )
        light = opened.evaluate(colours)
        opened.get_by_role("button", name="Dark colours").click()
        assert opened.evaluate(colours) != light
        opened.get_by_role("button", name="Light colours").click()
        assert opened.evaluate(colours) == light
