"""The shell of the pages: what goes in comes out as text, only its own script runs, and the browser agrees."""

from __future__ import annotations

import json

import browser
import pytest

from tinygrad_bn.graph import page

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"><!--<script>"


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as b:
        yield b


def shown(tmp_path, **given):
    parts = {"title": "A page", "body": "<main><p>text</p></main>", "css": "", "script": "", "data": {}, **given}
    path = tmp_path / "page.html"
    path.write_text(page.html(parts.pop("title"), parts.pop("body"), **parts), encoding="utf-8", newline="\n")
    return path


def test_data_comes_out_as_it_went_in_whatever_it_holds(chromium, tmp_path):
    data = {"names": [HOSTILE, "naïve \u2028 \x00 \ud800"], "numbers": {"x": [1.5, -0.0, 1e-300]}}
    path = shown(tmp_path, data=data, title=HOSTILE)
    with browser.opened(chromium, path, 1280) as (opened, said):
        assert opened.evaluate("() => Page.data('names')") == data["names"]
        assert opened.evaluate("() => Page.data('numbers')") == data["numbers"]
        assert opened.locator("h1").text_content() == HOSTILE == opened.title()
        assert opened.locator("img").count() == 0 and said == []


def test_only_the_pages_own_script_runs(chromium, tmp_path):
    body = """<main><img src="data:," onerror="document.title='hacked'"><script>document.title = 'hacked'</script></main>"""
    with browser.opened(chromium, shown(tmp_path, body=body, script="Page.say('ran')"), 1280) as (opened, said):
        opened.wait_for_timeout(300)  # what is said is said after a pause; and the policy forbids to wait for an expression
        assert opened.locator("#live").text_content() == "ran" and opened.title() == "A page"
        assert any(line.startswith("policy: ") for line in said)


def test_no_request_leaves_it(chromium, tmp_path):
    with browser.opened(chromium, shown(tmp_path), 1280) as (opened, said):
        opened.evaluate("() => fetch('https://example.org/').catch(() => 0)")
        assert any("Content Security Policy" in line or line.startswith("policy: ") for line in said)


@pytest.mark.parametrize("ends", ["</script>", "</SCRIPT ", "<!--", "<script"])
def test_a_script_that_would_end_its_element_is_refused(ends):
    with pytest.raises(ValueError, match="page.html expected a script without '"):
        page.html("A page", "", css="", script=f"// {ends}", data={})


def test_a_style_that_would_end_its_element_is_refused():
    with pytest.raises(ValueError, match="page.html expected a css without '</style'"):
        page.html("A page", "", css="</style>", script="", data={})


def test_data_that_json_does_not_know_is_refused_by_name():
    for value in (float("nan"), [float("inf")], {"x": -float("inf")}):
        with pytest.raises(ValueError, match="page.html expected data that JSON can hold for 'tape'"):
            page.html("A page", "", css="", script="", data={"tape": value})
    with pytest.raises(TypeError, match="page.html expected data that JSON can hold for 'tape': .*object"):
        page.html("A page", "", css="", script="", data={"tape": object()})
    for name in ("", 'x" onload="', "1st", "a b"):
        with pytest.raises(ValueError, match="page.html expected names of data to be letters"):
            page.html("A page", "", css="", script="", data={name: 1})


def test_windows_line_ends_do_not_change_what_is_hashed(chromium, tmp_path):
    with browser.opened(chromium, shown(tmp_path, script="// one\r\nPage.badge('pass', 'ran');\r\n"), 1280) as (opened, said):
        assert opened.locator("#badge summary").text_content() == "✓ ran" and said == []


def test_the_theme_follows_the_system_and_the_button(chromium, tmp_path):
    background = "() => getComputedStyle(document.body).backgroundColor"
    path = shown(tmp_path)
    seen = {}
    for scheme, other in (("light", "Dark"), ("dark", "Light")):
        with browser.opened(chromium, path, 390, scheme) as (opened, _):
            seen[scheme] = opened.evaluate(background)
            opened.get_by_role("button", name=f"{other} colours").click()
            seen[scheme, "switched"] = opened.evaluate(background)
    assert seen["light"] != seen["dark"]
    assert seen["light", "switched"] == seen["dark"] and seen["dark", "switched"] == seen["light"]


def test_the_keys_are_listed(chromium, tmp_path):
    path = shown(tmp_path, script="Page.keys([['n', 'the next one'], ['<b>', 'text']]);")
    with browser.opened(chromium, path, 390) as (opened, _):
        opened.keyboard.press("?")
        assert opened.locator("#keys").is_visible()
        assert [cell.text_content() for cell in opened.locator("#keys dl > *").all()] == ["n", "the next one", "<b>", "text"]
        opened.keyboard.press("Escape")
        assert not opened.locator("#keys").is_visible()
        opened.get_by_role("button", name="List the keys").click()
        assert opened.locator("#keys").is_visible()


def test_numbers_as_text(chromium, tmp_path):
    numbers = {
        "0": "0", "1.23456": "1.235", "-2": "−2",
        "12345.6": "12,350", "1e-5": "10⁻⁵", "-1e-5": "−10⁻⁵", "2.5e-7": "2.5·10⁻⁷", "1e16": "10¹⁶",
        "1/0": "∞", "-1/0": "−∞", "0/0": "not a number", "'x'": "–",
    }  # fmt: skip
    with browser.opened(chromium, shown(tmp_path), 390) as (opened, _):
        assert {code: opened.evaluate(f"() => Page.number({code})") for code in numbers} == numbers
        assert opened.evaluate("() => [1.005, -0.001, -3, 1/0].map(x => Page.fixed(x))") == ["1.00", "0.00", "−3.00", "∞"]


def test_badge_and_state_in_the_address(chromium, tmp_path):
    with browser.opened(chromium, shown(tmp_path), 1280, fragment="a=1&b=%3C2%3E") as (opened, said):
        assert opened.evaluate("() => Page.hash.read()") == {"a": "1", "b": "<2>"}
        opened.evaluate("() => Page.hash.write({b: '<3>', c: null, d: 4})")
        assert opened.evaluate("() => Page.hash.read()") == {"b": "<3>", "d": "4"}
        opened.evaluate("hostile => Page.badge('fail', 'two failed', ['dx', hostile])", HOSTILE)
        assert opened.locator("#badge").get_attribute("data-state") == "fail"
        assert opened.locator("#badge summary").text_content() == "✗ two failed"
        opened.locator("#badge summary").click()
        assert [p.text_content() for p in opened.locator("#badge p").all()] == ["dx", HOSTILE]
        assert opened.locator("img").count() == 0 and said == []


def test_data_is_written_compactly():
    assert '<script type="application/json" id="d">{"a":[1,2]}</script>' in page.html(
        "", "", css="", script="", data={"d": {"a": [1, 2]}}
    )
    assert json.loads(json.dumps(HOSTILE).replace("<", "\\u003c")) == HOSTILE
