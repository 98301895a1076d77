"""How long it takes to lay out a graph of 5,000 nodes, and how quick the explorer's page is with one of 500.

    python benchmarks/pages.py [--json FILE] [--rounds N] [--only layout|explorer]

Goal: 5,000 nodes in under 5 seconds, in time near linear in nodes and edges, whatever the graph's form. Each form is laid out
with 1,250, 2,500 and 5,000 nodes; the figures are minima of the rounds, in seconds.

The explorer: goals are a first contentful paint in under 300 ms and a step, with the layout of the page that follows, in
under 50 ms. A network of 70 blocks of Linear, BatchNorm1d and Tanh, float32, forward and backward, in Chromium with no screen;
medians over the rounds, and over all of the run's steps. Skipped where Playwright or Chromium is missing.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import measured_on, need_package

need_package()
import tinygrad_bn as tg  # noqa: E402
from tinygrad_bn import graph  # noqa: E402
from tinygrad_bn.graph.layout import layered  # noqa: E402

SIZES = 1250, 2500, 5000
Graph = tuple[dict, list, dict]


# ----- layouts: nodes' sizes, edges, and the group of each node


def chain(n: int) -> Graph:
    """A deep network in groups of ten, each node with a parameter of its own."""
    steps = range(0, n, 2)
    edges = [(i - 2, i) for i in steps if i] + [(i + 1, i) for i in steps if i + 1 < n]
    return _sizes(n), edges, {i: ("group", i // 20) for i in range(n)}


def residual(n: int) -> Graph:
    """A chain with a shortcut around every four nodes, and an edge from the first to every hundredth."""
    edges = [(i - 1, i) for i in range(1, n)] + [(i - 4, i) for i in range(4, n, 4)] + [(0, i) for i in range(100, n, 100)]
    return _sizes(n), edges, {}


def near(n: int) -> Graph:
    """Each node uses two of the forty before it."""
    draw = random.Random(0)
    return _sizes(n), [(draw.randrange(max(0, i - 40), i), i) for i in range(1, n) for _ in range(2)], {}


def anywhere(n: int) -> Graph:
    """Each node uses two of all before it."""
    draw = random.Random(0)
    return _sizes(n), [(draw.randrange(0, i), i) for i in range(1, n) for _ in range(2)], {}


def star(n: int) -> Graph:
    """One node uses all others."""
    return _sizes(n), [(i, n - 1) for i in range(n - 1)], {}


FORMS: tuple[Callable[[int], Graph], ...] = (chain, residual, near, anywhere, star)


def _sizes(n: int) -> dict:
    return {i: (60.0 + 10 * (i % 5), 47.0) for i in range(n)}


def layouts(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds by form and number of nodes; printed as they come."""
    print(f"layout, s   {'  '.join(f'{n:>6,} nodes' for n in SIZES)}")
    found: dict[str, dict[str, float]] = {}
    for form in FORMS:
        found[form.__name__] = {str(n): _shortest(form(n), rounds) for n in SIZES}
        print(f"{form.__name__:<10}  {'  '.join(f'{s:>12.2f}' for s in found[form.__name__].values())}", flush=True)
    worst = max(times[str(SIZES[-1])] for times in found.values())
    print(f"slowest with {SIZES[-1]:,} nodes: {worst:.2f} s, {'within' if worst < 5 else 'OVER'} the goal of 5 s")
    return found


def _shortest(graph: Graph, rounds: int) -> float:
    shortest = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        layered(*graph)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


# ----- the explorer's page

BLOCKS, WIDTH, BATCH = 70, 16, 16
STEPS = """async () => {
  const times = [];
  for (let i = 1; i < Explorer.frames().length; i++) {
    const start = performance.now();
    Explorer.move(i);
    document.body.getBoundingClientRect();
    times.push(performance.now() - start);
    await new Promise(requestAnimationFrame);
  }
  return times.sort((a, b) => a - b);
}"""
PAINT = """() => new Promise(done => new PerformanceObserver(list => {
  const found = list.getEntries().find(e => e.name === "first-contentful-paint");
  if (found) done(found.startTime);
}).observe({type: "paint", buffered: true}))"""


def recorded() -> Any:
    """A tape of about 500 steps and leaves."""
    tg.manual_seed(0)
    layers = [m for _ in range(BLOCKS) for m in (tg.nn.Linear(WIDTH, WIDTH), tg.nn.BatchNorm1d(WIDTH), tg.nn.Tanh())]
    model = tg.nn.Sequential(*layers)
    with graph.record(model) as tape:
        model(tg.randn(BATCH, WIDTH)).square().mean().backward()
    return tape


def explorer(rounds: int) -> dict[str, float] | None:
    """Milliseconds to the first paint and of a step, in a real browser; None, and a word, where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("explorer: skipped, Playwright is not installed")
        return None
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("explorer: skipped, no Chromium on this machine")
        return None
    tape = recorded()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        start = time.perf_counter()
        path = graph.explore(tape, Path(folder) / "step.html")
        made = time.perf_counter() - start
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        paints, tested, steps, slow = [], [], [], []
        for _ in range(rounds):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(path.as_uri())
            paints.append(page.evaluate(PAINT))
            page.wait_for_function("() => document.getElementById('badge').dataset.state !== 'waiting'", timeout=120_000)
            assert page.evaluate("document.getElementById('badge').dataset.state") == "pass"
            tested.append(page.evaluate("performance.now()"))
            times = page.evaluate(STEPS)
            steps.append(statistics.median(times))
            slow.append(times[int(0.95 * len(times))])
            page.close()
        browser.close()
        size = path.stat().st_size
    figures = {
        "nodes": float(len(tape.steps) + len(tape.leaves)), "page_kB": size / 1000, "made_s": made,
        "first_paint_ms": statistics.median(paints), "self_test_ms": statistics.median(tested),
        "step_ms": statistics.median(steps), "step_p95_ms": statistics.median(slow),
    }  # fmt: skip
    print(f"explorer    {figures['nodes']:.0f} nodes, page of {figures['page_kB']:.0f} kB made in {made:.2f} s")
    for name, goal in (("first_paint_ms", 300), ("step_ms", 50), ("step_p95_ms", 50)):
        print(f"{name:<14}  {figures[name]:>8.1f}, {'within' if figures[name] < goal else 'OVER'} the goal of {goal} ms")
    print(f"self_test_ms    {figures['self_test_ms']:>8.1f} after the start, in slices between which the page answers")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (%(default)s)")
    parser.add_argument("--only", choices=("layout", "explorer"), help="measure only this")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"measured": measured_on()}
    if arguments.only != "explorer":
        figures["layout_s"] = layouts(arguments.rounds)
    if arguments.only != "layout":
        figures["explorer"] = explorer(arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
