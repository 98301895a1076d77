"""examples/mnist.py and examples/first_steps.py, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinygrad_bn as tg

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PNG = b"\x89PNG\r\n\x1a\n"
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}


def run(*arguments, script="mnist.py", timeout=120):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())


def strict_json(path: Path):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def mnist(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import mnist

    return mnist


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import mnist_report

    return mnist_report


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A smoke test with one learning rate that is sure to diverge."""
    out = tmp_path_factory.mktemp("quick")
    return run("--quick", "--lrs", 0.1, 1e6, "--workers", 2, "--out", out), out


def test_quick_writes_results_and_a_picture(quick):
    process, out = quick
    assert process.returncode == 0, process.stderr
    assert (out / "mnist_batchnorm.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in out.iterdir()) == ["mnist_batchnorm.png", "results.json"]  # no temporary file is left
    results = strict_json(out / "results.json")
    assert set(results) == {
        "experiment", "complete", "smoke_test", "max_lr", "ratio", "per_seed", "gaps", "grid_factor", "seconds", "settings",
        "versions", "machine", "runs",
    }  # fmt: skip
    assert results["complete"] and results["smoke_test"]
    assert results["max_lr"] == {"plain": None, "batchnorm": None} and results["ratio"] is None  # a smoke test finds nothing
    assert [(r["arm"], r["lr"], r["seed"]) for r in results["runs"]] == [
        ("plain", 0.1, 0), ("plain", 1e6, 0), ("batchnorm", 0.1, 0), ("batchnorm", 1e6, 0)
    ]  # fmt: skip
    for r in results["runs"]:
        assert set(r) == {"arm", "lr", "seed", "test_accuracy", "diverged", "steps", "seconds", "losses"}
        assert len(r["losses"]) == r["steps"]


def test_quick_says_that_it_is_a_smoke_test_in_text_without_escape_codes(quick):
    text = quick[0].stdout
    assert "smoke test" in text and "no finding" in text and "at least 90 % in every seed" in text
    assert "without BatchNorm: test accuracy, %" in text
    assert "\x1b" not in text + quick[0].stderr and max(map(len, text.splitlines()[:-1])) <= 100
    assert re.search(r"4/4", quick[0].stderr), "a progress bar"


def test_a_diverging_run_stops_early_and_counts_as_failed(quick):
    process, out = quick
    wild = strict_json(out / "results.json")["runs"][1]
    assert wild["diverged"] and wild["test_accuracy"] is None
    assert wild["steps"] < 32 and wild["losses"][-1] is None
    row = next(line for line in process.stdout.splitlines() if line.strip().startswith("1000000"))
    assert row.split()[1:5] == ["-", "-", "-", "diverged"]


def test_one_worker_and_two_give_the_same_numbers(quick, tmp_path):
    process = run("--quick", "--lrs", 0.1, 1e6, "--workers", 1, "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    one, two = (strict_json(out / "results.json")["runs"] for out in (tmp_path, quick[1]))
    assert [{**r, "seconds": 0} for r in one] == [{**r, "seconds": 0} for r in two]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_what_is_finished(tmp_path, number):
    command = [sys.executable, str(EXAMPLES / "mnist.py"), "--model", "mlp", "--epochs", "2", "--seeds", "20", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    seen = ""
    while not re.search(r" [1-9]\d*/320 ", seen):
        letter = process.stderr.read(1)
        assert letter, seen
        seen += letter
    os.killpg(process.pid, number)  # a terminal sends Ctrl-C to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    results = strict_json(tmp_path / "results.json")
    assert not results["complete"] and 1 <= len(results["runs"]) < 320
    assert f"Interrupted after {len(results['runs'])} of 320 runs" in out.replace("\n", " ")
    assert (tmp_path / "mnist_batchnorm.png").read_bytes().startswith(PNG)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # the workers have ended
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a worker outlived the example")


def test_an_error_in_a_run_surfaces(tmp_path):
    program = (
        "import sys, mnist\n"
        "class Broken:\n"
        "    def __init__(self, *a, **k): raise ZeroDivisionError('a bug in a run')\n"
        "if __name__ != '__main__': mnist.tg.optim.SGD = Broken\n"
        "if __name__ == '__main__': sys.exit(mnist.main(['--quick', '--workers', '2', '--out', sys.argv[1]]))\n"
    )
    script = tmp_path / "broken.py"
    script.write_text(program)
    env = environment()
    env["PYTHONPATH"] += os.pathsep + str(EXAMPLES)
    process = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=60, env=env)
    assert process.returncode == 1
    assert "ZeroDivisionError: a bug in a run" in process.stderr and not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "transformer"], "invalid choice: 'transformer'"),
        (["--lrs"], "expected at least one argument"),
        (["--lrs", "0.1", "-1"], "expected a positive number, got '-1'"),
        (["--lrs", "nan"], "expected a positive number, got 'nan'"),
        (["--seeds", "0"], "expected a positive integer, got '0'"),
        (["--epochs", "1.5"], "expected a positive integer, got '1.5'"),
        (["--workers", "-2"], "expected a positive integer, got '-2'"),
        (["--batch-size", "1"], "expected 2 (BatchNorm needs two) to 10000"),
        (["--batch-size", "20000"], "to 10000 (the images), got 20000"),
        (["--device", "tpu"], "device expected 'cpu' or 'cuda', got 'tpu'"),
        (["--data", "/no/such/folder"], "expected a directory /no/such/folder"),
        (["--out", "/dev/null/results"], "cannot write into /dev/null/results: Not a directory"),
    ],
)
def test_bad_flags_are_refused_before_any_work(mnist, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        mnist.parse(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("library", ["matplotlib", "tqdm"])
def test_a_missing_library_is_named_with_what_to_install(mnist, capsys, monkeypatch, library):
    monkeypatch.setattr(mnist, "find_spec", lambda name: None if name == library else object())
    with pytest.raises(SystemExit):
        mnist.parse([])
    assert f"{library} is not installed: pip install 'tinygrad_bn[examples]'" in capsys.readouterr().err


def test_the_default_is_the_experiment_of_the_readme(mnist, tmp_path, monkeypatch):
    monkeypatch.delenv("TINYGRAD_BN_DEVICE", raising=False)
    settings, out = mnist.parse(["--out", str(tmp_path)])
    assert np.allclose(settings.lrs, [0.01, 0.0316228, 0.1, 0.316228, 1, 3.16228, 10, 31.6228], rtol=1e-5)
    assert (settings.model, settings.data, settings.device) == ("cnn", "embedded", "cpu")
    assert (settings.seeds, settings.epochs, settings.batch_size) == ([0, 1, 2], 1, 64)
    assert mnist.TRAINS == 0.90 and out == tmp_path


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_both_arms_start_from_the_same_weights(mnist, model):
    def weights(norm):
        tg.manual_seed(3)
        network = mnist.MODELS[model](norm=norm)
        return [p.data for p in network.parameters() if p.ndim > 1]

    for plain, batchnorm in zip(weights(None), weights("batch"), strict=True):
        np.testing.assert_array_equal(plain, batchnorm)


# ----- the report, on made-up runs


def made_up(mnist, report, accuracies, complete=True):
    """Results from {arm: {lr: [accuracy or None, by seed]}}."""
    lrs = sorted(accuracies["plain"])
    seeds = list(range(max(len(a) for by_lr in accuracies.values() for a in by_lr.values())))
    settings = mnist.Settings("cnn", "embedded", "cpu", lrs, seeds, 1, 64, 2, False)._asdict()
    settings.update(trains=0.90, runs=2 * len(lrs) * len(seeds), optimizer="SGD")
    runs = [
        {"arm": arm, "lr": lr, "seed": seed, "test_accuracy": a, "diverged": a is None, "steps": 3, "seconds": 1.0,
         "losses": [2.3, 1.0, None if a is None else 0.5]}
        for arm, by_lr in accuracies.items() for lr, given in by_lr.items() for seed, a in enumerate(given)
    ]  # fmt: skip
    return report.summarise(settings, runs, 1.0)


def test_the_highest_learning_rate_counts_every_seed_and_every_divergence(mnist, report):
    results = made_up(mnist, report, {
        "plain": {0.1: [0.95, 0.92], 1: [0.96, 0.8999], 10: [0.1, None]},
        "batchnorm": {0.1: [0.95, 0.95], 1: [0.95, None], 10: [0.9, 0.97]},
    })  # fmt: skip
    assert results["max_lr"] == {"plain": 0.1, "batchnorm": 10} and results["ratio"] == 100
    assert results["per_seed"] == [
        {"seed": 0, "plain": 1, "batchnorm": 10, "ratio": 10},
        {"seed": 1, "plain": 0.1, "batchnorm": 10, "ratio": 100},
    ]
    assert results["gaps"] == {"plain": [], "batchnorm": [1]}
    text = report.sentence(results).replace("\n", " ")
    assert "up to a learning rate of 10, without it up to 0.1: a factor of 100" in text
    assert "seed by seed 10 against 1 (10 times), 10 against 0.1 (100 times)" in text
    assert "resolution is a factor of 10" in text
    assert "In between, with BatchNorm, it did not train at 1." in text
    assert "The limit with BatchNorm may lie higher: 10 is the end of the grid." in text
    rows = report.table(results).splitlines()
    assert "1 of 2 diverged" in rows[-2] and "trains, highest" in rows[-2] and "trains, highest" in rows[-4]
    assert all(len(row) <= 100 for row in rows)


@pytest.mark.parametrize(
    "plain, batchnorm, words",
    [
        ([0.5], [0.95], "It trains up to 1 with BatchNorm, without at none of these learning rates"),
        ([0.95], [None], "It trains up to 1 without BatchNorm, with it at none of these learning rates"),
        ([None], [0.2], "With or without BatchNorm, it trains at none of these learning rates"),
        ([0.95], [0.95], "BatchNorm does not raise the highest learning rate that trains: 1, without it 1"),
    ],
)
def test_the_title_is_true_whatever_was_found(mnist, report, tmp_path, plain, batchnorm, words):
    results = made_up(mnist, report, {"plain": {1: plain}, "batchnorm": {1: batchnorm}})
    assert report.title(results) == words
    assert "None" not in report.sentence(results) + report.table(results)
    report.write(results, tmp_path)
    assert strict_json(tmp_path / "results.json") == results
    assert report.draw(results, tmp_path).read_bytes().startswith(PNG)


def test_an_unfinished_seed_is_not_a_trained_one(mnist, report):
    results = made_up(mnist, report, {"plain": {0.1: [0.95, 0.95], 1: [0.95]}, "batchnorm": {0.1: [0.95, 0.95], 1: []}})
    assert not results["complete"] and results["max_lr"] == {"plain": 0.1, "batchnorm": 0.1}
    assert "1 of 2 runs" in report.table(results)
    assert report.sentence(results).startswith("Interrupted after 5 of 8 runs; so far: ")


# ----- first_steps.py


def test_first_steps_show_a_tensor_a_graph_and_a_gradient():
    process = run(script="first_steps.py")
    assert process.returncode == 0, process.stderr
    assert "made by sum from mul" in process.stdout and "dloss/dw" in process.stdout
    assert len((EXAMPLES / "first_steps.py").read_text().splitlines()) <= 32
    gradient, measured = re.search(r"dloss/dw = tensor\(\[(\S+),.*w\[0\]: (\S+)", process.stdout).groups()
    assert float(gradient) == pytest.approx(float(measured), rel=1e-2)
