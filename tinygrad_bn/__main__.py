"""``python -m tinygrad_bn COMMAND``: what the package does from the command line."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import get_num_threads
from .backend.report import report


def info(_: argparse.Namespace) -> int:
    """Versions, devices, and which library serves each kernel."""
    version = importlib.metadata.version("tinygrad_bn") if _installed("tinygrad_bn") else "(not installed)"
    print(f"tinygrad_bn {version}, Python {platform.python_version()}, NumPy {np.__version__}, {platform.platform()}")
    for name in ("numba", "scipy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-frontend"):
        if _installed(name):
            print(f"{name} {importlib.metadata.version(name)}")
    kernels, reasons = report()
    print(f"cpu: {get_num_threads()} threads")
    rows = [("kernel", "cpu", "cuda"), *((name, cpu, cuda or "-") for name, (cpu, cuda) in kernels.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    print()
    for name, cpu, cuda in rows:
        print(f"{name:{widths[0]}}  {cpu:{widths[1]}}  {cuda}")
    if reasons:
        print("", *reasons, sep="\n")
    return 0


def playground(arguments: argparse.Namespace) -> int:
    """Write the BatchNorm playground: one HTML file, to be opened in a browser."""
    from .graph.playground import playground as write

    return _written(write, arguments.out)


def explore(arguments: argparse.Namespace) -> int:
    """Write the explorer of one recorded training step: one HTML file, to be opened in a browser."""
    from .graph import explorer

    return _written(lambda out: explorer.explore(explorer.example(), out), arguments.out)


def doctor(arguments: argparse.Namespace) -> int:
    """Find what BatchNorm does wrong in a model: exit code 1 if something is, 2 if it could not be examined."""
    from .batchnorm import command

    return command.doctor(arguments)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FILE.py:make_model", help="a function that returns the model, trained")
    parser.add_argument(
        "batches", metavar="FILE.py:make_batches", help="one that returns batches (x, y), or a pair (training, evaluation)"
    )
    parser.add_argument("--html", metavar="FILE", help="also write the report as a page")
    parser.add_argument("--json", metavar="FILE", help="also write it as JSON")


def _written(write: Callable[[str], Path], out: str) -> int:
    """Let ``write`` make the page ``out``, and say where it is or why it is not."""
    try:
        path = write(out)
    except OSError as error:
        print(f"{out} could not be written: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")
    return 0


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tinygrad_bn", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pages: dict[Callable[[argparse.Namespace], int], str] = {playground: "batchnorm.html", explore: "step.html"}
    for command in (info, *pages, doctor):
        its = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        its.set_defaults(run=command)
        if command in pages:
            its.add_argument("--out", metavar="FILE", default=pages[command], help="where the page goes (%(default)s)")
        if command is doctor:
            _doctor_arguments(its)
    chosen = parser.parse_args(arguments)
    return chosen.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
