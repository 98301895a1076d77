"""The playground's file and command, the runs that it shows, and the page that is published."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrad_bn import datasets, graph
from tinygrad_bn.__main__ import main
from tinygrad_bn.graph import make_runs, page

playground = importlib.import_module("tinygrad_bn.graph.playground")
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def recorded():
    return json.loads(page.text(make_runs.RUNS))


def test_every_run_of_the_grid_is_there_once_also_the_diverged_ones(recorded):
    assert recorded["learning_rates"] == make_runs.LEARNING_RATES and recorded["arms"] == list(make_runs.ARMS)
    expected = {(arm, lr, seed) for arm in make_runs.ARMS for lr in make_runs.LEARNING_RATES for seed in range(make_runs.SEEDS)}
    assert sorted((r["arm"], r["lr"], r["seed"]) for r in recorded["runs"]) == sorted(expected)
    assert recorded["setup"] == make_runs.SETUP and recorded["seeds"] == make_runs.SEEDS
    for run in recorded["runs"]:
        *losses, last = run["losses"]
        assert all(loss > 0 for loss in losses)
        assert (last is None) == (run["accuracy"] is None) and (last is None or len(run["losses"]) == 156)
    assert any(run["losses"][-1] is None for run in recorded["runs"]), "a sweep to such rates has runs that diverge"


def test_they_are_small_enough_to_ship():
    path = Path(page.__file__).with_name(make_runs.RUNS)
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("arm", make_runs.ARMS)
def test_a_recorded_run_is_what_the_script_makes(arm, recorded):
    """To the digits that another machine's order of summation leaves."""
    (x, y), (x_test, y_test) = datasets.mnist()
    standardised = (x - x.mean()) / x.std(), (x_test[:100] - x.mean()) / x.std()
    lr, seed = 0.0316, 1
    losses, _ = make_runs._run(arm, lr, seed, (standardised[0], y), (standardised[1], y_test[:100]))
    (kept,) = (r["losses"] for r in recorded["runs"] if (r["arm"], r["lr"], r["seed"]) == (arm, lr, seed))
    np.testing.assert_allclose(losses[:20], kept[:20], rtol=0.02)
    assert np.mean(losses[-50:]) == pytest.approx(np.mean(kept[-50:]), rel=0.1)


def test_the_script_keeps_a_run_that_diverges(capsys):
    made = make_runs.make_runs([1e4], 1, images=640)
    assert [r["arm"] for r in made["runs"]] == list(make_runs.ARMS)
    lost = made["runs"][0]
    assert lost["accuracy"] is None and lost["losses"][-1] is None and all(v is not None for v in lost["losses"][:-1])
    assert "none   learning rate 10000   seed 0  accuracy None" in capsys.readouterr().out


def test_it_writes_one_file_that_needs_nothing_else(tmp_path):
    path = graph.playground(tmp_path / "y.html")
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "y.html" and path.stat().st_size < 1_500_000
    assert re.findall(r'(?:src|href)="(?!#)', text) == [] and "url(" not in text and "@import" not in text
    assert len(re.findall(r"<script>", text)) == 1


@pytest.mark.parametrize("bad", [None, 1, b"y.html", []])
def test_a_path_of_another_type_is_refused(bad):
    with pytest.raises(TypeError, match="graph.playground expected a path, got"):
        graph.playground(bad)


def test_from_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tinygrad_bn", "playground", "--out", "y.html"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(DOCS.parent)},
    )  # fmt: skip
    assert done.returncode == 0 and re.fullmatch(r"wrote y\.html \(\d+ kB\)\n", done.stdout) and not done.stderr
    assert (tmp_path / "y.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_where_it_cannot_be_written_the_command_says_so(tmp_path, capsys):
    missing = str(tmp_path / "nowhere" / "y.html")
    assert main(["playground", "--out", missing]) == 1
    assert capsys.readouterr().err == f"{missing} could not be written: No such file or directory\n"


def test_what_the_pages_engine_is_held_to_is_the_same_every_time():
    assert json.dumps(playground.golden()) == json.dumps(playground.golden())


def test_the_published_page_is_the_one_that_is_made():
    """Golden numbers but for their last digits, which depend on the library that computed them; all else to the letter."""

    def parts(text):
        pattern = r'(?s)(<script type="application/json" id="golden">)(.*?)(</script>)'
        return re.sub(pattern, r"\1\3", text), json.loads(re.search(pattern, text)[2])

    def flat(value):
        if isinstance(value, dict):
            return [v for key in sorted(value) for v in flat(value[key])]
        return [v for item in value for v in flat(item)] if isinstance(value, list) else [value]

    published, made = parts((DOCS / "batchnorm.html").read_text(encoding="utf-8")), parts(playground.document())
    assert published[0] == made[0], "python -m tinygrad_bn playground --out docs/batchnorm.html"
    for a, b in zip(flat(published[1]), flat(made[1]), strict=True):
        assert a == b or a == pytest.approx(b, rel=1e-8, abs=1e-12)
    assert (DOCS / "batchnorm.png").read_bytes().startswith(b"\x89PNG")
