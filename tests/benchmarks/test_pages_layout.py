"""The graphs that benchmarks/pages.py lays out are graphs, and its figures say what they are of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import pages  # noqa: E402 (benchmarks/ is no package)


@pytest.mark.parametrize("form", pages.FORMS, ids=lambda form: form.__name__)
def test_each_form_is_laid_out(form):
    sizes, edges, groups = form(200)
    assert len(sizes) == 200 and max(map(max, edges)) == 199
    assert len(pages.layered(sizes, edges, groups).paths) == len(edges)


def test_the_table_and_the_verdict(capsys, monkeypatch):
    monkeypatch.setattr(pages, "SIZES", (10, 20))
    found = pages.layouts(1)
    said = capsys.readouterr().out
    assert json.dumps(found) and set(found) == {form.__name__ for form in pages.FORMS} and set(found["star"]) == {"10", "20"}
    assert "10 nodes" in said and "within the goal of 5 s" in said and max(map(len, said.splitlines())) <= 100
