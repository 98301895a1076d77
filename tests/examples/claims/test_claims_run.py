"""examples/claims/run.py: the verdicts, the trials that it keeps, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import claim
import pytest
import run

ROOT = Path(__file__).resolve().parents[3]
TOY = '''
"""A claim that takes no time, in two stages."""
import os, time
import style
from claim import Criterion, judge

QUESTION, SOURCE, SETUP = "Is it <two>?", "nobody 2000", "a toy"
CRITERIA = {"two": Criterion("It is & remains two", "the number", low=1.5, high=2.5, unit="%")}

def trials(setup, done):
    first = [{"stage": 1, "seed": seed} for seed in setup.seeds]
    return first + [{"stage": 2, "seed": seed} for seed in setup.seeds] * (len(done.of(stage=1)) == len(first))

def run(trial, data):
    if os.environ.get("TOY") == "slow" and trial["stage"] == 2:
        time.sleep(60)
    if os.environ.get("TOY") == "broken" and trial["stage"] == 2:
        raise ZeroDivisionError("a bug in a trial")
    return {"value": 2 + 0.1 * trial["seed"], "images": len(data.train.x)}

def findings(done):
    return {"two": judge(CRITERIA["two"], done.values("value", stage=2))}

def headline(done):
    return f"It is {done.values('value', stage=2)[0]:g}"

def remarks(done):
    return ["Two is <b>two</b>."]

def draw(done, canvas):
    (axes,) = canvas.panels(["Two"])
    style.dots(axes, [0], [2], style.BATCHNORM)
    axes.set_xlabel("seed")
    axes.set_ylabel("the number, %")
'''
PROGRAM = "import sys; sys.path[:0] = [{claims!r}, {here!r}]; import run; run.CLAIMS[:] = ['toy']; sys.exit(run.main({args!r}))"


def toy(tmp_path, *args, **environment):
    """The driver, as a program of its own, on a claim of its own."""
    (tmp_path / "toy.py").write_text(TOY)
    main = tmp_path / "main.py"
    program = PROGRAM.format(claims=str(ROOT / "examples" / "claims"), here=str(tmp_path), args=[str(a) for a in args])
    main.write_text(f"if __name__ == '__main__':\n    {program}\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path), str(ROOT / "examples" / "claims")])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **environment}
    return subprocess.Popen([sys.executable, str(main)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finished(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def strict_json(path):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# ----- verdicts


@pytest.mark.parametrize(
    "criterion, values, verdict",
    [
        ({"low": 5}, [6, 6.1, 6.2], claim.HOLDS),
        ({"low": 5}, [4, 4.1, 4.2], claim.FAILS),
        ({"low": 5}, [4, 5, 6.2], claim.OPEN),
        ({"low": 5}, [6], claim.OPEN),  # one seed has no interval
        ({"high": 5}, [4, 4.1, 4.2], claim.HOLDS),
        ({"low": -0.5, "high": 0.5}, [0.1, 0.0, -0.1], claim.HOLDS),
        ({"low": -0.5, "high": 0.5}, [0.6, 0.7, 0.65], claim.FAILS),
        ({"low": -0.5, "high": 0.5}, [-9, 9, 0], claim.OPEN),
        ({"low": 5, "rule": "every seed"}, [6, 600], claim.HOLDS),
        ({"low": 5, "rule": "every seed"}, [4, 6], claim.OPEN),
        ({"low": 5, "rule": "every seed"}, [4, 1], claim.FAILS),
        ({"low": 5, "ratio": True}, [8, 10, 12.5], claim.HOLDS),
    ],
)
def test_the_verdict_follows_from_the_criterion(criterion, values, verdict):
    assert claim.judge(claim.Criterion("c", "s", **criterion), values).verdict == verdict


@pytest.mark.parametrize("values, verdict", [([6, 6], claim.HOLDS), ([4, 4], claim.OPEN), ([4, 6], claim.OPEN)])
def test_by_bounds_from_below_a_claim_may_hold_but_not_fail(values, verdict):
    finding = claim.judge(claim.Criterion("c", "s", low=5, rule="every seed"), values, at_least=True)
    assert finding.verdict == verdict and claim.measured(finding.as_json()).startswith("at least ")
    between = claim.judge(claim.Criterion("c", "s", low=5, high=9, rule="every seed"), values, at_least=True)
    assert between.verdict == claim.OPEN


def test_the_interval_is_students():
    finding = claim.judge(claim.Criterion("c", "s", low=0), [1.0, 2.0, 3.0])
    assert finding.mean == 2 and finding.sd == 1
    assert finding.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    ratio = claim.judge(claim.Criterion("c", "s", low=0, ratio=True), [math.e, math.e**2, math.e**3])
    assert ratio.mean == pytest.approx(math.e**2) and ratio.sd == pytest.approx(math.e)
    assert [math.log(v) for v in ratio.interval] == pytest.approx(finding.interval)


@pytest.mark.parametrize("values", [[], [math.nan], [1, math.inf]])
def test_a_statistic_is_finite(values):
    with pytest.raises(ValueError, match="expected finite values, one a seed, got"):
        claim.judge(claim.Criterion("c", "s", low=0), values)


def test_a_ratio_is_above_0():
    with pytest.raises(ValueError, match=r"expected finite values above 0, one a seed, got \[0.0\]"):
        claim.judge(claim.Criterion("c", "s", low=0, ratio=True), [0])


@pytest.mark.parametrize("wrong", [{}, {"low": 1, "rule": "most seeds"}])
def test_a_criterion_has_a_bound_and_a_rule(wrong):
    with pytest.raises(ValueError, match="a criterion expects a bound, and the rule"):
        claim.Criterion("c", "s", **wrong)


def test_numbers_as_one_writes_them():
    numbers = {
        0.01234: "0.0123",
        12.34: "12.3",
        999.9: "1000",
        1234.5: "1234",
        1.23e-9: "1.2e-9",
        5.0: "5",
        0: "0",
        2e6: "2.0e6",
    }
    assert {x: claim.number(x) for x in numbers} == numbers and claim.number(-0.25) == "-0.25" and claim.number(None) == "none"


def test_every_claim_says_all_that_a_page_wants():
    for name in run.CLAIMS:
        module = run.module_of(name)
        for field in ("QUESTION", "SOURCE", "SETUP"):
            assert isinstance(getattr(module, field), str), (name, field)
        assert module.QUESTION.endswith("?") and module.__doc__
        assert all(isinstance(c, claim.Criterion) for c in module.CRITERIA.values())
        for quick in (False, True):
            trials = module.trials(claim.Setup("embedded", "cpu", [0, 1], quick), claim.Results())
            assert trials and all(json.loads(json.dumps(trial)) == trial for trial in trials), name


# ----- the driver


def test_two_stages_a_report_and_a_second_run_that_finds_all_done(tmp_path):
    code, out, err = finished(toy(tmp_path, "--seeds", 3, "--workers", 2, "--out", tmp_path / "out"))
    assert code == 0, err
    for part in ("CLAIM      It is & remains two", "CRITERION  the whole interval at least 1.5 and at most 2.5 %"):
        assert part in out
    assert "VERDICT    smoke only" in out  # on the embedded images
    results = strict_json(tmp_path / "out" / "results.json")
    (entry,) = results["claims"]
    assert results["complete"] and not results["verdicts"] and entry["seeds"] == [0, 1, 2]
    assert entry["findings"]["two"]["values"] == [2, 2.1, 2.2] and len(entry["records"]) == 6
    assert all(record["commit"] for record in entry["records"]) and "6/6" in err
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Is it &lt;two&gt;?" in text and "It is &amp; remains two" in text and "Two is &lt;b&gt;two&lt;/b&gt;." in text
    code, _, err = finished(toy(tmp_path, "--seeds", 3, "--workers", 2, "--out", tmp_path / "out", TOY="broken"))
    assert code == 0, err  # nothing was run again
    assert strict_json(tmp_path / "out" / "results.json")["claims"] == results["claims"]


def test_interrupted_it_keeps_what_is_finished_and_goes_on_there(tmp_path):
    out = tmp_path / "out"
    process = toy(tmp_path, "--quick", "--seeds", 2, "--workers", 2, "--out", out, TOY="slow")
    seen = ""
    while "2/4" not in seen:
        letter = process.stderr.read(1)
        assert letter, seen
        seen += letter
    process.send_signal(signal.SIGINT)
    code, text, err = finished(process, 20)
    assert code == 130 and "not finished" in text and "Traceback" not in err
    results = strict_json(out / "results.json")
    assert not results["complete"] and len(results["claims"][0]["records"]) == 2
    assert "It is not finished" in (out / "report.html").read_text()
    with (out / "trials" / "toy.jsonl").open("a") as file:
        file.write('\n{"trial": {"stage": 2, "see')  # as a crash would leave it
    code, _, err = finished(toy(tmp_path, "--quick", "--seeds", 2, "--workers", 2, "--out", out))
    assert code == 0, err
    after = strict_json(out / "results.json")["claims"][0]["records"]
    assert after[:2] == results["claims"][0]["records"] and len(after) == 4
    assert len(run.kept(out / "trials" / "toy.jsonl")) == 4


def test_an_error_in_a_trial_is_named_and_ends_all(tmp_path):
    code, _, err = finished(toy(tmp_path, "--quick", "--workers", 1, "--out", tmp_path / "out", TOY="broken"))
    assert code == 1 and "ZeroDivisionError: a bug in a trial" in err
    assert "in toy, trial {'stage': 2, 'seed': 0}" in err
    assert len((tmp_path / "out" / "trials" / "toy.jsonl").read_text().splitlines()) == 2  # a blank one


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "everything"], "invalid choice: 'everything'"),
        (["--seeds", "0"], "argument --seeds: expected a positive integer, got 0"),
        (["--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
        (["--workers", "-1"], "argument --workers: expected a positive integer, got -1"),
        (["--device", "tpu"], "device expected 'cpu' or 'cuda', got 'tpu'"),
        (["--data", "/no/such/folder"], "expected a directory /no/such/folder"),
        (["--out", "/dev/null/results"], "argument --out: cannot use /dev/null/results"),
    ],
)
def test_bad_flags_are_refused_before_any_work(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        run.parse(arguments)
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_results_of_two_set_ups_do_not_mix(capsys, tmp_path):
    run.parse(["--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        run.parse(["--out", str(tmp_path)])
    assert "holds trials of another set-up" in capsys.readouterr().err


def test_verdicts_want_all_images(tmp_path):
    assert not run.parse(["--out", str(tmp_path)]).verdicts


@pytest.mark.parametrize("library", ["matplotlib", "tqdm", "scipy"])
def test_a_missing_library_is_named_with_what_to_install(capsys, monkeypatch, library):
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == library else object())
    with pytest.raises(SystemExit):
        run.parse([])
    assert f"{library} is not installed: pip install 'tinygrad_bn[examples]'" in capsys.readouterr().err


def test_the_commit_is_named():
    assert re.match(r"[0-9a-f]{40}|version ", run.commit_here())
