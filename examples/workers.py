"""Work in several processes at once, which ends at once and leaves nobody behind when it is interrupted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")

_worker: dict[str, Any] = {}  # what a worker process keeps from task to task


class Workers:
    """Processes of one thread each, each of which first calls ``prepare(*arguments)``, and keeps what that returns.

    Leaving the block by an exception ends them in the midst of whatever they do: results are kept by the parent alone.
    """

    def __init__(self, count: int, prepare: Callable, *arguments: Any):
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # for the workers: their NumPy is not yet imported
        context = multiprocessing.get_context("spawn")
        end, self._open = context.Pipe(duplex=False)  # closed by us, or by our own end
        self._pool = ProcessPoolExecutor(count, context, _start, (end, prepare, arguments))

    def submit(self, run: Callable, task: Any) -> Future:
        """The future of ``run(task, prepared)`` in one of them; tasks start in the order in which they were submitted."""
        with interrupts(signal.SIG_IGN):  # a worker born here is deaf to Ctrl-C, which a terminal sends to it too
            return self._pool.submit(_run, run, task)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:
            self._open.close()
        self._pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(end: Any, prepare: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(end,), daemon=True).start()
    _worker.update(limits=threadpool_limits(1), prepared=prepare(*arguments))


def _end_with(end: Any) -> None:
    end.poll(None)  # until the other side is closed
    os._exit(1)


def _run(run: Callable, task: Any) -> Any:
    return run(task, _worker["prepared"])


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
