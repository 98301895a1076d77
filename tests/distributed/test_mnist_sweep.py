"""examples/mnist.py spread over ranks: mpiexec -n N python -m mpi4py.futures examples/mnist.py."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import mpiexec
import pytest
from mpiexec import EXAMPLES, MISSING

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
MNIST = EXAMPLES / "mnist.py"
POOL = "-m", "mpi4py.futures"


def runs(out):
    return [{**run, "seconds": 0} for run in json.loads((out / "results.json").read_text())["runs"]]


def test_the_ranks_find_what_one_process_finds(tmp_path):
    what = ["--quick", "--lrs", 0.1, 1e6]
    pool = mpiexec.run(3, *POOL, MNIST, *what, "--out", tmp_path / "ranks")
    assert pool.returncode == 0, pool.stderr
    assert "4 runs\non 2 worker processes" in pool.stdout and "4/4" in pool.stderr
    command = [sys.executable, MNIST, *what, "--workers", 1, "--out", tmp_path / "here"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=mpiexec.environment())
    assert runs(tmp_path / "ranks") == runs(tmp_path / "here")


EACH = """
import json, os, sys, threadpoolctl, ranks, workers

def prepare(what):
    import tinygrad_bn as tg
    print("prepared", os.getpid(), file=sys.stderr)
    return os.getpid(), tg.get_num_threads(), [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

def run(task, prepared):
    return task, *prepared

if __name__ == "__main__":
    with ranks.ends_all(), workers.Workers(2, prepare, "what") as pool:
        print(json.dumps([future.result() for future in [pool.submit(run, task) for task in range(20)]]))
"""


@pytest.mark.parametrize("launch", [POOL, None], ids=["ranks", "processes"])
def test_each_worker_prepares_once_and_has_one_thread(tmp_path, launch):
    script = tmp_path / "script.py"
    script.write_text(EACH)
    if launch:
        process = mpiexec.run(3, *launch, script, folders=(EXAMPLES,))
    else:
        command = [sys.executable, str(script)]
        process = subprocess.run(command, capture_output=True, text=True, env=mpiexec.environment(EXAMPLES), timeout=60)
    assert process.returncode == 0, process.stderr
    done = json.loads(process.stdout)
    assert [task for task, *_ in done] == list(range(20))
    prepared = [int(pid) for pid in re.findall(r"prepared (\d+)", process.stderr)]
    assert len(prepared) == len(set(prepared)) <= 2 and {pid for _, pid, *_ in done} <= set(prepared)
    for _, _, ours, pools in done:
        assert ours == 1 and set(pools) <= {1}


PATCHED = """
import sys, time, mnist, ranks
{patch}
if __name__ == "__main__":
    with ranks.ends_all():
        sys.exit(mnist.main(["--quick", "--out", sys.argv[1]]))
"""
ERRORS = {  # of the runs, half fail, and half would take half a minute
    "in a run": """
train = mnist.train
def one_fails(task, *rest):
    if task.arm == "plain":
        time.sleep(30)
    raise ZeroDivisionError("a bug in a run")
mnist.train = one_fails
""",
    "in the start of a worker": """
def fails(settings):
    raise ZeroDivisionError("a bug in the start")
if __name__ != "__main__":
    mnist.load = fails
""",
}


@pytest.mark.parametrize("where", ERRORS)
def test_an_error_ends_all_ranks_in_the_midst_of_what_they_do(tmp_path, where):
    script = tmp_path / "script.py"
    script.write_text(PATCHED.format(patch=ERRORS[where]))
    start = time.monotonic()
    process = mpiexec.run(3, *POOL, script, tmp_path, folders=(EXAMPLES,))
    assert process.returncode == 1 and time.monotonic() - start < 20
    assert "ZeroDivisionError: a bug in" in process.stderr and not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_what_is_finished_and_ends_all_ranks(tmp_path, number):
    what = ["--model", "mlp", "--epochs", 2, "--seeds", 20, "--out", tmp_path]
    process = mpiexec.start(3, *POOL, MNIST, *what)
    seen = ""
    while not re.search(r" [1-9]\d*/320 ", seen):
        letter = process.stderr.read(1)
        assert letter, seen
        seen += letter
    everybody = mpiexec.children(process.pid)
    process.send_signal(number)
    ended = mpiexec.finish(process)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr, ended.stderr
    assert len(everybody) >= 4
    mpiexec.seconds_until_gone(everybody, 10)
    assert 1 <= len(runs(tmp_path)) < 320 and f"Interrupted after {len(runs(tmp_path))} of 320 runs" in ended.stdout


@pytest.mark.parametrize(
    "ranks, arguments, message",
    [
        (2, [MNIST, "--quick"], "mpiexec started 2 processes: expected --distributed"),
        (2, [*POOL, MNIST, "--quick", "--workers", 2], "argument --workers: mpiexec -n says how many"),
        (2, [*POOL, MNIST, "--quick", "--distributed"], "argument --distributed: not with -m mpi4py.futures"),
        (1, [*POOL, MNIST, "--quick"], "mpiexec -n 1 leaves no rank to work"),
    ],
)
def test_what_cannot_be_is_refused_once(tmp_path, ranks, arguments, message):
    process = mpiexec.run(ranks, *arguments, "--out", tmp_path / "out")
    assert process.returncode == 2 and process.stderr.count(message) == 1, process.stderr
    if "started" in message:
        assert "mpi4py.futures examples/mnist.py" in process.stderr.replace("\n", " ")  # both ways
    assert not (tmp_path / "out").exists() and not process.stdout  # nobody began
