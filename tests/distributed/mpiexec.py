"""``mpiexec -n N python SCRIPT`` as a test starts it: with a limit of time, after which nobody is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
WITH_INTERPRETER = Path(sys.executable).parent / "mpiexec"  # where the package mpich puts it
MPIEXEC = str(WITH_INTERPRETER) if WITH_INTERPRETER.exists() else shutil.which("mpiexec")
MISSING = None if MPIEXEC and find_spec("mpi4py") else "mpi4py or mpiexec is not installed: pip install 'tinygrad_bn[mpi]'"


def environment(*folders: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH")]))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # it cuts lines in two
    return {**inherited, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}


def start(ranks: int, *command: Any, folders: tuple[Path, ...] = (), **how: Any) -> subprocess.Popen:
    """``python COMMAND`` on so many ranks."""
    assert MPIEXEC is not None
    return subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(*folders), start_new_session=True, **how,
    )  # fmt: skip


def finish(process: subprocess.Popen, timeout: float = 120) -> subprocess.CompletedProcess:
    """Wait for its end; if it does not come, kill all ranks and raise TimeoutExpired with what they said."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        print(*process.communicate(), sep="\n")
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(ranks: int, *command: Any, timeout: float = 120, folders: tuple[Path, ...] = (), **how: Any):
    return finish(start(ranks, *command, folders=folders, **how), timeout)


def children(number: int) -> list[int]:
    """The processes that a process started, and those that they did. (Each rank of mpiexec has a session of its own.)"""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents.setdefault(int((folder / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(folder.name))
    found = [number]
    for each in found:
        found += parents.get(each, [])
    return found[1:]


def alive(number: int) -> bool:
    """Whether a process still runs; one that has ended and waits for its parent to look does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(process: subprocess.Popen) -> None:
    for number in [*children(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def seconds_until_gone(numbers: list[int], limit: float) -> float:
    """How long it took until none of them was alive. Raises AssertionError after the limit, and kills them."""
    start = time.monotonic()
    while left := [number for number in numbers if alive(number)]:
        if time.monotonic() - start > limit:
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            raise AssertionError(f"{len(left)} of {len(numbers)} processes are alive after {limit} s")
        time.sleep(0.01)
    return time.monotonic() - start
