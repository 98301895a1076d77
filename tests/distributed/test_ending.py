"""How ranks end: whatever ends one of them ends all within seconds, and says why; a normal end waits for the others."""

from __future__ import annotations

import time

import mpiexec
import pytest

pytestmark = pytest.mark.skipif(mpiexec.MISSING is not None, reason=str(mpiexec.MISSING))

SCRIPT = """
import os, sys, threading, time
from tinygrad_bn import distributed

def fails():
    raise ZeroDivisionError("one failed")

def in_a_thread(f):
    thread = threading.Thread(target=f)
    thread.start()
    thread.join()

def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))

def main():
    distributed.init()
    rank = distributed.rank()
{body}

if __name__ == "__main__":
    sys.exit(main())
"""
HANG = "    if rank != 1: distributed.barrier(); work(60)\n"  # what the others do: wait for rank 1, which will not come
LATE = "    if rank != 1: work(60)\n"  # they compute


def run(tmp_path, body, ranks=2):
    """The exit code, what was said, and the seconds."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{body}", body))
    start = time.monotonic()
    process = mpiexec.start(ranks, script)
    ended = mpiexec.finish(process, 50)
    return ended.returncode, ended.stdout, ended.stderr, time.monotonic() - start


@pytest.mark.parametrize("others", [HANG, LATE], ids=["which wait", "which compute"])
@pytest.mark.parametrize(
    "ends, code, says",
    [
        ("fails()", 1, ["rank 1 of 2 ended by an error", "in fails", "ZeroDivisionError: one failed"]),
        ("in_a_thread(fails); work(60)", 1, ["ended by an error in a thread", "in fails", "ZeroDivisionError: one failed"]),
        ("sys.exit(3)", 3, ["rank 1 of 2 ended by sys.exit(3)", "sys.exit(3)", "in main"]),
        ("return 4", 4, ["rank 1 of 2 ended by sys.exit(4)", "sys.exit(main())"]),
        ("sys.exit('no data')", 1, ["no data", "rank 1 of 2 ended by sys.exit('no data')"]),
        ("raise SystemExit(3)", None, []),
        ("os.kill(os.getpid(), 9)", None, []),
    ],
)
def test_what_ends_one_rank_ends_all(tmp_path, others, ends, code, says):
    """With its traceback, where there can be one; and with its code, if Python told of it."""
    got, _, err, seconds = run(tmp_path, others + f"    {ends}")
    assert seconds < 20
    assert got == code if code else got != 0
    for words in says:
        assert words in err
    assert err.count("ended by") == bool(says) and "Exception ignored" not in err, err  # and the others did not fail


@pytest.mark.parametrize("ends", ["return", "sys.exit()", "sys.exit(0)", "raise SystemExit(0)", "raise SystemExit"])
def test_a_normal_end_waits_for_the_others(tmp_path, ends):
    code, out, err, _ = run(tmp_path, f"    if rank == 1: {ends}\n    work(1.5)\n    print('done', rank)")
    assert (code, out, err) == (0, "done 0\n", "")


def test_what_does_not_end_the_program_ends_nobody(tmp_path):
    body = """
    try:
        sys.exit(3)
    except SystemExit:
        pass
    try:
        fails()
    except ZeroDivisionError:
        pass
    in_a_thread(lambda: sys.exit(3))
    distributed.barrier()
    print("done", flush=True)"""
    assert run(tmp_path, body, ranks=3)[:3] == (0, "done\n" * 3, "")
