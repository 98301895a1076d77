"""``python -m tinygrad_bn doctor``: exit codes, and what it writes; and examples/doctor.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinygrad_bn.__main__ import main

ROOT = Path(__file__).parents[2]
PROGRAM = """
import numpy as np
import tinygrad_bn as tg

rng = np.random.default_rng(0)
x, y = rng.normal(size=(128, 6)).astype(np.float32), rng.integers(0, 3, 128)

def fresh():
    tg.manual_seed(0)
    return tg.models.mlp((6, 12, 3))

def good():
    return tg.batchnorm.recalibrate(fresh(), batches())

def batches():
    return tg.datasets.batches(x, y, 32)

def both():
    return batches(), [(x, y)]

def lost():
    return [(x * np.nan, y)]

def boom():
    return {}["boom"]

def leaves():
    raise SystemExit(0)

number = 3
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def test_exit_code_one_when_something_is_wrong_and_none_else(program, capsys):
    assert main(["doctor", f"{program}:fresh", f"{program}:batches"]) == 1
    said = capsys.readouterr()
    assert "ERROR never_updated" in said.out and not said.err
    assert main(["doctor", f"{program}:good", f"{program}:both"]) == 0
    assert "evaluation data" in capsys.readouterr().out


def test_page_and_json(program, tmp_path, capsys):
    html, found = tmp_path / "d.html", tmp_path / "d.json"
    main(["doctor", f"{program}:fresh", f"{program}:batches", "--html", str(html), "--json", str(found)])
    assert "never_updated" in html.read_text()
    assert json.loads(found.read_text())["findings"][0]["code"] == "never_updated"


@pytest.mark.parametrize(
    "model, text",
    [
        ("{}", "expected FILE.py:function"),
        ("{}:nothing", "has no function 'nothing'"),
        ("{}:number", "has no function 'number'"),
        ("missing.py:f", "missing.py is not a file"),
        ("{}:batches", "expected a Module, got Batches"),
    ],
)
def test_exit_code_two_with_a_sentence_when_it_could_not_look(program, model, text, capsys):
    assert main(["doctor", model.format(program), f"{program}:batches"]) == 2
    said = capsys.readouterr()
    assert text in said.err and "Traceback" not in said.err and not said.out


@pytest.mark.parametrize("model, text", [("boom", "KeyError: 'boom'"), ("leaves", "ended itself with exit code 0")])
def test_what_goes_wrong_in_the_program_is_no_verdict_on_the_model(program, model, text, capsys):
    assert main(["doctor", f"{program}:{model}", f"{program}:batches"]) == 2
    assert text in capsys.readouterr().err


def test_a_file_that_is_no_python_is_no_verdict_either(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def f(:")
    assert main(["doctor", f"{tmp_path}/broken.py:f", f"{tmp_path}/broken.py:f"]) == 2
    assert "SyntaxError" in capsys.readouterr().err


def test_data_that_is_not_finite_is_not_a_clean_bill(program, capsys):
    assert main(["doctor", f"{program}:good", f"{program}:lost"]) == 2
    assert "nothing found, but not all was examined, in Sequential" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_the_report_is_printed_even_if_it_cannot_be_written(program, option, capsys):
    assert main(["doctor", f"{program}:fresh", f"{program}:batches", option, "/missing/d"]) == 2
    said = capsys.readouterr()
    assert "ERROR never_updated" in said.out and "FileNotFoundError" in said.err


def test_the_command_line_itself(program):
    command = [sys.executable, "-m", "tinygrad_bn", "doctor", f"{program}:fresh", f"{program}:batches"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "mend: tg.batchnorm.recalibrate(model, train_batches)" in done.stdout


def test_the_example_catches_the_bug_of_a_model_from_pytorch_and_mends_it(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert len((ROOT / "examples/doctor.py").read_text().splitlines()) <= 40
    command = [sys.executable, str(ROOT / "examples/doctor.py"), str(tmp_path / "d.html")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=environment)
    before, after = done.stdout.split("now the mend:")
    assert "1. ERROR never_updated" in before and "nothing found" in after
    running = [float(line.split()[-1]) for line in done.stdout.splitlines() if "by the running statistics" in line]
    precise = [float(line.split()[-1]) for line in done.stdout.splitlines() if "by precise statistics" in line]
    assert running[1] - running[0] >= 0.8 * (precise[0] - running[0]) > 2
