"""mpiexec -n N python examples/mnist.py --distributed: every run of the sweep on all ranks together."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import mpiexec
import numpy as np
import pytest
from mpiexec import EXAMPLES, MISSING

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
for _library in ("matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(_library)
TOGETHER = EXAMPLES / "mnist.py", "--distributed"
WHAT = "--quick", "--model", "mlp", "--lrs", 0.01, 0.1


def runs(out):
    return json.loads((out / "results.json").read_text())["runs"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    command = [sys.executable, EXAMPLES / "mnist.py", *WHAT, "--epochs", 4, "--workers", 1, "--out", out]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=mpiexec.environment())
    return runs(out)


def need_equal(found, expected):
    """The same runs as far as float32 goes: sums over parts of a batch are rounded differently."""
    for one, other in zip(found, expected, strict=True):
        assert [one[what] for what in ("arm", "lr", "seed", "steps")] == [
            other[what] for what in ("arm", "lr", "seed", "steps")
        ]
        np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-3)
        assert abs(one["test_accuracy"] - other["test_accuracy"]) <= 0.01


def test_the_ranks_find_together_what_one_process_finds(tmp_path, alone):
    process = mpiexec.run(2, *TOGETHER, *WHAT, "--epochs", 4, "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("on 2 ranks together (cpu)") == 1 and process.stdout.count("Written in") == 1  # rank 0 alone
    assert len(re.findall(r"\b4/4\b", process.stderr)) >= 1 and "Traceback" not in process.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mnist_batchnorm.png", "results.json"]
    need_equal(runs(tmp_path), alone)


def test_killed_on_two_ranks_it_goes_on_with_three(tmp_path, alone):
    saved = tmp_path / "saved"
    how = *TOGETHER, *WHAT, "--epochs", 4, "--checkpoint", saved, "--out", tmp_path / "out"
    process = mpiexec.start(2, *how)
    deadline = time.monotonic() + 60
    while not list(saved.glob("batchnorm*/step-*.safetensors")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    mpiexec.kill(process)
    mpiexec.finish(process)
    assert list(saved.glob("batchnorm*/*")) and not (tmp_path / "out" / "results.json").exists()
    process = mpiexec.run(3, *how, "--resume")
    assert process.returncode == 0, process.stderr
    need_equal(runs(tmp_path / "out"), alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_what_is_finished_and_ends_all_ranks(tmp_path, number):
    process = mpiexec.start(2, *TOGETHER, "--model", "mlp", "--epochs", 2, "--seeds", 20, "--out", tmp_path)
    seen = ""
    while not re.search(r" [1-9]\d*/320 ", seen):
        letter = process.stderr.read(1)
        assert letter, seen
        seen += letter
    everybody = [process.pid, *mpiexec.children(process.pid)]
    process.send_signal(number)
    ended = mpiexec.finish(process)
    assert ended.returncode == 130, ended.stderr
    assert len(everybody) >= 4
    mpiexec.seconds_until_gone(everybody, 10)
    assert 1 <= len(runs(tmp_path)) < 320 and f"Interrupted after {len(runs(tmp_path))} of 320 runs" in ended.stdout


@pytest.mark.parametrize(
    "ranks, arguments, message",
    [
        (2, ["--workers", 2], "argument --workers: mpiexec -n says how many"),
        (3, ["--batch-size", 2], "argument --batch-size: expected 3 (one for each rank) to 10000 (the images), got 2"),
    ],
)
def test_what_cannot_be_is_refused_once(tmp_path, ranks, arguments, message):
    process = mpiexec.run(ranks, *TOGETHER, *arguments, "--out", tmp_path / "out")
    assert process.returncode == 2 and process.stderr.count(message) == 1, process.stderr
    assert not (tmp_path / "out").exists() and not process.stdout


def test_help_is_said_once():
    process = mpiexec.run(2, *TOGETHER, "--help")
    assert process.returncode == 0 and process.stdout.count("usage: ") == 1 and not process.stderr
