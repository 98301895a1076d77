"""Chromium for tests of pages: a real one, driven by Playwright, or a skip with the reason."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

WIDTHS = {1280: 900, 768: 1024, 390: 844}

# Pairs of texts that lie over each other by more than two pixels each way, and what sticks out of the page at its sides.
OVERLAPS = """() => {
  const texts = "svg text, .line b, .verdict, dt, dd, h1, h2, h3, figcaption, p, li > span, button";
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


@contextmanager
def opened(browser, path, width, scheme="light"):
    """The page at a file, and the list of all that it said to the console and asked the network for."""
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
    page.add_init_script("addEventListener('securitypolicyviolation', e => console.error('policy: ' + e.blockedURI))")
    try:
        page.goto(path.as_uri())
        yield page, said
    finally:
        context.close()
