"""examples/mnist.py --checkpoint DIR --resume, as a user runs it: a killed experiment ends with the numbers of another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
for _library in ("matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(_library)
WHAT = ["--quick", "--model", "mlp", "--lrs", "0.1", "1e6", "--epochs", "8", "--workers", "2"]


def start(*arguments):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(EXAMPLES / "mnist.py"), *WHAT, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"},
    )  # fmt: skip


def finish(*arguments):
    process = start(*arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def runs(out):
    return [{**run, "seconds": 0} for run in json.loads((out / "results.json").read_text())["runs"]]


def test_a_killed_experiment_goes_on_where_it_was(tmp_path):
    """Each of the four runs has 256 steps, of which every 50th is saved; SIGKILL comes as soon as one is saved."""
    finish("--out", tmp_path / "stayed")
    saved = tmp_path / "saved"
    process = start("--out", tmp_path / "killed", "--checkpoint", saved)
    deadline = time.monotonic() + 60
    while not list(saved.glob("*/step-*.safetensors")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(saved.glob("*/step-*.safetensors")) and not (tmp_path / "killed" / "results.json").exists()
    finish("--out", tmp_path / "killed", "--checkpoint", saved, "--resume")
    assert runs(tmp_path / "killed") == runs(tmp_path / "stayed")
    before = {path: path.stat().st_mtime_ns for path in saved.glob("*/*")}
    finish("--out", tmp_path / "again", "--checkpoint", saved, "--resume")  # all are finished
    assert runs(tmp_path / "again") == runs(tmp_path / "stayed")
    assert before == {path: path.stat().st_mtime_ns for path in saved.glob("*/*")}


@pytest.fixture
def mnist(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import mnist

    return mnist


class Stopped(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("arm", ["plain", "batchnorm"])
def test_a_run_goes_on_from_its_own_checkpoint_and_from_no_others(mnist, tmp_path, monkeypatch, arm):
    how = [*WHAT, "--out", str(tmp_path / "out")]
    settings, _ = mnist.parse(how)
    data, task = mnist.load(settings), mnist.Task(arm, 0.1, 0)
    stayed = mnist.train(task, settings, data)
    settings, _ = mnist.parse([*how, "--checkpoint", str(tmp_path / "saved")])
    save = mnist.Saved.save

    def save_and_stop(self, losses, *rest):
        save(self, losses, *rest)
        if len(losses) == 150:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(mnist.Saved, "save", save_and_stop)
        with pytest.raises(Stopped):
            mnist.train(task, settings, data)
    folder = tmp_path / "saved" / f"{arm}-0.1-0"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000100.safetensors", "step-00000150.safetensors"]
    settings = settings._replace(resume=True)
    with pytest.raises(ValueError, match="belongs to another experiment"):
        mnist.train(task, settings._replace(epochs=3), data)
    assert {**mnist.train(task, settings, data), "seconds": 0} == {**stayed, "seconds": 0}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--resume"], "argument --resume: expected --checkpoint DIR"),
        (["--checkpoint", "{full}"], "full is not empty; --resume goes on with the runs there"),
        (["--checkpoint", "/dev/null/saved"], "argument --checkpoint: cannot write into /dev/null/saved: Not a directory"),
    ],
)
def test_bad_flags_are_refused_before_any_work(mnist, capsys, tmp_path, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit):
        mnist.parse(["--out", str(tmp_path / "out"), *(a.format(full=tmp_path / "full") for a in arguments)])
    assert message in capsys.readouterr().err


def test_without_safetensors_the_extra_is_named(mnist, capsys, monkeypatch):
    monkeypatch.setattr(mnist, "find_spec", lambda name: None if name == "safetensors" else object())
    with pytest.raises(SystemExit):
        mnist.parse(["--checkpoint", "saved"])
    assert "safetensors is not installed: pip install 'tinygrad_bn[interop]'" in capsys.readouterr().err
