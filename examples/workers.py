"""Work in several processes at once, which ends at once and leaves nobody behind when it is interrupted.

They are processes of this machine or, under ``mpiexec -n N python -m mpi4py.futures SCRIPT``, the ranks 1 to N - 1 on the
machines of a cluster. There the script itself runs on rank 0 alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from ranks import over_mpi
from threadpoolctl import threadpool_limits

import tinygrad_bn as tg

LIBRARIES = "OPENBLAS", "OMP", "MKL", "NUMBA"
ONE_THREAD = {"VECLIB_MAXIMUM_THREADS": "1", **{f"{name}_NUM_THREADS": "1" for name in LIBRARIES}}

_worker: dict[str, Any] = {}  # what a worker process keeps from task to task


class Workers:
    """Processes of one thread each, each of which first calls ``prepare(*arguments)``, and keeps what that returns.

    Leaving the block by an exception ends them in the midst of whatever they do: results are kept by the parent alone. Ranks
    can only end all together: a script that may run on them exits in a block of ``ends_all()``.
    """

    def __init__(self, count: int, prepare: Callable, *arguments: Any):
        os.environ.update(ONE_THREAD)  # for the workers: their NumPy is not yet imported
        context = multiprocessing.get_context("spawn")
        end, self._open = context.Pipe(duplex=False)  # closed by us, or by our own end
        here = count, context, _start, (end, prepare, arguments)
        self._pool = _ranks(prepare, arguments) if over_mpi() else ProcessPoolExecutor(*here)

    def submit(self, run: Callable, task: Any) -> Future:
        """The future of ``run(task, prepared)`` in one of them; tasks start in the order in which they were submitted."""
        with interrupts(signal.SIG_IGN):  # a worker born here is deaf to Ctrl-C, which a terminal sends to it too
            return self._pool.submit(_run, run, task)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:
            self._open.close()
        self._pool.shutdown(wait=kind is None or not over_mpi(), cancel_futures=True)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ----- in the workers


def _start(end: Any, prepare: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(end,), daemon=True).start()
    _prepare(prepare, arguments)


def _prepare(prepare: Callable, arguments: tuple) -> None:
    tg.set_num_threads(1)
    _worker.update(limits=threadpool_limits(1), prepared=prepare(*arguments))


def _end_with(end: Any) -> None:
    end.poll(None)  # until the other side is closed
    os._exit(1)


def _run(run: Callable, task: Any) -> Any:
    return run(task, _worker["prepared"])


# ----- ranks as workers


def available() -> int:
    """How many workers there should be: the other ranks, or as many as the usable cores."""
    if not over_mpi():
        return usable_cores()
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_size() - 1


def _ranks(prepare: Callable, arguments: tuple) -> Executor:
    from mpi4py.futures import MPIPoolExecutor

    return MPIPoolExecutor(initializer=_start_on_a_rank, initargs=(prepare, arguments), env=ONE_THREAD)


def _start_on_a_rank(prepare: Callable, arguments: tuple) -> None:
    ignore_interrupts()  # mpiexec sends them to every rank; the first one decides
    try:
        _prepare(prepare, arguments)
    except BaseException:
        traceback.print_exc()  # MPIPoolExecutor would only say that it failed
        raise


# ----- interrupts


@contextmanager
def interrupts(handler: Any):
    """SIGINT (Ctrl-C) and SIGTERM are handled so in this block."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore_interrupts() -> None:
    """For what takes a second and should not be torn."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def interrupt(_number: int, _frame: Any) -> None:
    """A handler that raises KeyboardInterrupt, once."""
    ignore_interrupts()
    raise KeyboardInterrupt
