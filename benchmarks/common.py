"""What the benchmarks share: fresh processes, what a run was measured on, tables as they grow, a progress bar, arguments."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def fresh_process(arguments: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """What this Python prints when it starts with these arguments, in this environment with changes, and imports as here."""
    changed = {**imports_as_here(), **(environment or {})}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=changed)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr}")
    return done.stdout


def imports_as_here() -> dict[str, str]:
    """An environment in which a fresh process imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def installed(library: str) -> bool:
    return find_spec(library) is not None


def need_package() -> None:
    """End with a word of help where this project cannot be imported."""
    if not installed("tinygrad_bn"):
        sys.exit("tinygrad_bn cannot be imported: pip install -e . in the project's folder, or set PYTHONPATH to it")


def measured_on() -> dict[str, str]:
    """The day, the machine, and the version of each library that is installed."""
    found = {"date": datetime.date.today().isoformat(), "processor": _processor(), "cores": str(_cores())}
    found["python"] = platform.python_version()
    for library in ("numpy", "numba", "scipy", "torch", "jax", "mygrad", "cupy", "mpi4py"):
        if installed(library):
            found[library] = _version(library)
    return found


@contextmanager
def others() -> Iterator[list[float]]:
    """How many cores other processes keep busy during the block: one figure in the list, at its end.

    What this process does counts as its own, and so does what its children do that end in the block. No figure without /proc.
    """

    def busy() -> float:
        user, nice, system, _idle, _waiting, interrupts, soft, *_ = map(float, stat.read_text().split()[1:11])
        return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")

    def own() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    stat, found = Path("/proc/stat"), list[float]()
    if not stat.exists():
        yield found
        return
    start, before = time.perf_counter(), busy() - own()
    yield found
    found.append(max(0.0, (busy() - own() - before) / (time.perf_counter() - start)))


def _version(library: str) -> str:
    """CuPy's distribution is named after its CUDA."""
    names = importlib.metadata.packages_distributions().get(library, [library])
    return importlib.metadata.version(names[0])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Table:
    """Rows of text in columns, printed one by one; ``names`` are all that the first column will hold."""

    def __init__(self, header: Sequence[str], names: Iterable[str], markdown: bool):
        self.header, self.markdown = list(header), markdown
        first = max(len(name) for name in (header[0], *names))
        self.widths = [first, *(max(len(title), 10) for title in header[1:])]

    def line(self, cells: Sequence[str]) -> str:
        """The first cell to the left, the others to the right."""
        name, *figures = (f"{c:{'>' if i else '<'}{w}}" for i, (c, w) in enumerate(zip(cells, self.widths, strict=True)))
        return f"| {' | '.join([name, *figures])} |" if self.markdown else "  ".join([name, *figures])

    def head(self) -> str:
        if not self.markdown:
            return self.line(self.header)
        rule = [":" + "-" * (w - 1) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(self.widths)]
        return f"{self.line(self.header)}\n| {' | '.join(rule)} |"


class _NoBar:
    """Where tqdm is not installed."""

    def set_description(self, text: str) -> None: ...
    def update(self) -> None: ...
    def clear(self) -> None: ...


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A progress bar of so many turns on stderr, if that is a terminal and tqdm is installed (extra ``examples``)."""
    if not installed("tqdm"):
        yield _NoBar()
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="turn", dynamic_ncols=True, leave=False, disable=None) as bar:
        yield bar


def say(line: str, bar: Any) -> None:
    """Print a line above the progress bar."""
    bar.clear()
    print(line, flush=True)


def positive(kind: type) -> Any:
    """For argparse: an int or float above zero."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not (value > 0 and math.isfinite(value)):
            what = "a positive number" if kind is float else "a positive integer"
            raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
        return value

    return parse


def new_file(text: str) -> Path:
    """For argparse: where a file can be written. Checked before a run of minutes, not after."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text!r}")
    return path


def write_json(path: Path | None, **content: Any) -> None:
    if path:
        path.write_text(json.dumps({"measured_on": measured_on(), **content}, indent=1) + "\n")
