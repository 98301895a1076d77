"""What a script does with the other processes that ``mpiexec`` started: there are two ways.

``mpiexec -n N python SCRIPT`` runs the script N times, and with ``tinygrad_bn.distributed.init()`` the ranks train one network
together. ``mpiexec -n N python -m mpi4py.futures SCRIPT`` runs it on rank 0 alone; the others wait for work (``workers.py``).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinygrad_bn import distributed


def launched() -> tuple[int, int]:
    """The number of this process, and how many of them ``mpiexec`` or ``srun`` started; (0, 1) without such a launcher."""
    for names in (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMIX_RANK", "SLURM_NTASKS")):
        if all(name in os.environ for name in names):
            number, count = (int(os.environ[name]) for name in names)
            return number, count
    return 0, 1


def over_mpi() -> bool:
    """Whether ranks wait for work: this was started by ``mpiexec -n N python -m mpi4py.futures SCRIPT``."""
    return "mpi4py.futures" in sys.orig_argv


class Parser(argparse.ArgumentParser):
    """What all ranks refuse alike, before they have found each other, the first one says for all."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if launched()[0] == 0 or distributed.size() > 1:
            super()._print_message(message, file)


@contextmanager
def rank_0_first() -> Iterator[None]:
    """In this block: if it fails there, the others do not begin, and what it downloads they find."""
    if distributed.rank() > 0:
        distributed.barrier()
    yield
    if distributed.rank() == 0:
        distributed.barrier()


@contextmanager
def ends_all() -> Iterator[None]:
    """Leaving this block by an error, or by an exit with a code, ends all ranks, in the midst of whatever they do."""
    try:
        yield
    except BaseException as why:
        code = why.code if isinstance(why, SystemExit) else 1
        if over_mpi() and code:  # without this, mpi4py.futures would wait for the runs that have begun
            from mpi4py import MPI

            if not isinstance(why, SystemExit):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(0.5)  # mpiexec passes on what was said, unless the end comes first
            code = code if isinstance(code, int) else 1
            MPI.COMM_WORLD.Abort(code)
            os._exit(code)  # Abort may return before mpiexec ends this process
        raise


noted: list[int] = []  # the signals that came


def note(number: int, _frame: Any) -> None:
    """A handler that only notes it in ``noted``, for ranks, which can only stop at the same step."""
    noted.append(number)
