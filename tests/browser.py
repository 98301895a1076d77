"""Chromium for tests of pages: a real one, driven by Playwright, or a skip with the reason."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

WIDTHS = {1280: 900, 768: 1024, 390: 844}

# Pairs of texts that lie over each other by more than two pixels each way, and what sticks out of the page at its sides.
OVERLAPS = """() => {
  const texts = "svg text, .line b, .verdict, dt, dd, h1, h2, h3, figcaption, p, li > span, button, label, legend, summary, "
    + "output, select";
  const short = e => e.textContent.trim().slice(0, 40);
  const seen = [...document.querySelectorAll(texts)]
    .filter(e => e.checkVisibility())
    .map(e => [e, e.getBoundingClientRect()])
    .filter(([e, r]) => r.width && r.height);
  const found = [];
  seen.forEach(([a, r], i) => seen.slice(i + 1).forEach(([b, s]) => {
    if (a.contains(b) || b.contains(a)) return;
    const across = Math.min(r.right, s.right) - Math.max(r.left, s.left);
    const down = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
    if (across > 2 && down > 2) found.push(`${short(a)} | ${short(b)}`);
  }));
  const outside = seen.filter(([e, r]) => r.left < -1 || r.right > innerWidth + 1).map(([e]) => short(e));
  return {found, outside, scrolls: document.documentElement.scrollWidth > innerWidth};
}"""


@contextmanager
def chromium():
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def violations(page):
    """What axe-core finds wrong with the page for people who cannot see it, or not well: a list of rule and element."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install axe-playwright-python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)  # the page's policy forbids another script tag
    found = page.evaluate("() => axe.run()")["violations"]
    return [f"{rule['id']}: {node['html'][:120]} ({node['failureSummary']})" for rule in found for node in rule["nodes"]]


@contextmanager
def opened(browser, path, width, scheme="light", fragment="", **options):
    """The page at a file, and the list of all that it said to the console and asked the network for.

    ``fragment``: what stands behind the # of the address; ``options``: of the browser's context, such as reduced_motion.
    """
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme, **options)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.partition("#")[0] != path.as_uri() else None)
    page.add_init_script("addEventListener('securitypolicyviolation', e => console.error('policy: ' + e.blockedURI))")
    try:
        page.goto(path.as_uri() + (f"#{fragment}" if fragment else ""))
        yield page, said
    finally:
        context.close()
