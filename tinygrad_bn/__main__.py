"""``python -m tinygrad_bn COMMAND``: what the package does from the command line."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .backend import machine
from .backend.report import report


def info(_: argparse.Namespace) -> int:
    """Versions, devices, optional libraries, and which library serves each kernel."""
    version = machine.version_of("tinygrad_bn") or "(not installed)"
    print(f"tinygrad_bn {version}, Python {platform.python_version()}, NumPy {np.__version__}, {platform.platform()}")
    kernels, reasons = report()  # (it loads Numba and SciPy, and so their BLAS)
    print(*machine.devices(), *machine.blas(), sep="\n")
    libraries = [(name, lib.version(), lib) for name, lib in machine.OPTIONAL.items()]
    _table(
        ("library", "version", "for"),
        *((name, v or "missing", lib.purpose + ("" if v else f": {lib.install}")) for name, v, lib in libraries),
    )
    _table(("kernel", "cpu", "cuda"), *((name, cpu, cuda or "-") for name, (cpu, cuda) in kernels.items()))
    if reasons:
        print("", *reasons, sep="\n")
    return 0


def _table(*rows: tuple[str, str, str]) -> None:
    """Print rows in columns, after an empty line."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    print()
    for a, b, c in rows:
        print(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}")


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
    try:
        code = chosen.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough, as in `... info | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own last flush is quiet
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
