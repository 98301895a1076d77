"""A compiled kernel on several threads.

The work is cut into items by the shapes alone, each item's result is a function of the item alone, and what they sum is merged
in their order: so the bits are the same for any number of threads. Threads take the next item from a shared counter, so that
one that wakes up late, or shares its core with a stranger, takes fewer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from queue import SimpleQueue


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_PATIENCE = 1 << 10  # rounds of waiting awake, some 200 us: to wake a thread takes 50, which counts in 200 kernels a step


class _Workers:
    """Threads that wait for work; whoever holds ``lock`` may give them some, and then counts ``given`` up."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.given = np.zeros(1, np.int64)
        self.queues: list[SimpleQueue] = []
        self.done: SimpleQueue

    def start(self, count: int) -> None:
        from queue import SimpleQueue

        if not self.queues:
            self.done = SimpleQueue()
        while len(self.queues) < count:
            queue: SimpleQueue = SimpleQueue()
            threading.Thread(target=_work, args=(queue, self.done, self.given), daemon=True, name="tinygrad_bn kernel").start()
            self.queues.append(queue)


def _work(queue: SimpleQueue, done: SimpleQueue, given: np.ndarray) -> None:
    from .jit import wait_for_change

    while True:
        seen = given[0]
        if queue.empty():  # stay awake, since the next kernel is often near; without Python's lock
            wait_for_change(given, seen, _PATIENCE)
        try:
            kernel, counter, slot, args = queue.get().pop()
        except IndexError:  # the caller was done before this thread was awake, and has taken it back
            continue
        error = None
        try:
            kernel(counter, slot, *args)
        except BaseException as e:  # the caller raises it
            error = e
        del kernel, counter, args  # an array is free when nobody refers to it: not a waiting worker either
        done.put(error)


_workers = _Workers()
_number = 0  # of threads; 0: as many as cores


def get_num_threads() -> int:
    """How many threads a kernel uses at most."""
    return _number or _cores()


def set_num_threads(n: int) -> None:
    """Let kernels on the CPU use at most n threads. The results are the same bits for any n.

    Raises TypeError for what is no whole number, ValueError for less than one.
    """
    global _number
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"set_num_threads expected a whole number, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"set_num_threads expected at least 1, got {n}")
    _number = int(n)


def threads_for(items: int) -> int:
    """How many threads ``run`` would use: for who needs scratch memory for each, and passes the number on."""
    return min(get_num_threads(), items)


def run(kernel: Callable, items: int, *args: Any, threads: int | None = None) -> None:
    """``kernel(counter, slot, *args)`` on as many threads as there are, at most one for each item.

    The kernel takes items from the counter until it gets one that is not below ``items`` (which it is told in its own
    arguments); ``slot`` is the number of its thread, for scratch memory. Where another Python thread has the workers, this
    one does all by itself.
    """
    counter = np.zeros(1, np.int64)
    helpers = (threads_for(items) if threads is None else threads) - 1
    workers = _workers
    if helpers < 1 or not workers.lock.acquire(blocking=False):
        kernel(counter, 0, *args)
        return
    try:
        workers.start(helpers)
        tickets = [[(kernel, counter, slot + 1, args)] for slot in range(helpers)]
        for queue, ticket in zip(workers.queues, tickets, strict=False):
            queue.put(ticket)
        workers.given[0] += 1
        try:
            kernel(counter, 0, *args)
        finally:
            error = _wait(workers.done, helpers - sum(map(_taken_back, tickets)))
        if error is not None:
            raise error
    finally:
        workers.lock.release()


def _taken_back(ticket: list) -> bool:
    """Whether no worker has it yet; then none will. (A list's pop is atomic.)"""
    try:
        ticket.pop()
    except IndexError:
        return False
    return True


def _wait(done: SimpleQueue, count: int) -> BaseException | None:
    """Wait for so many threads, come what may: they write into arrays that are free afterwards. Their last error."""
    error = None
    while count:
        try:
            error = done.get() or error
            count -= 1
        except KeyboardInterrupt as e:
            error = e
    return error


def _after_fork() -> None:
    """The child has none of its parent's threads: it starts its own when it first needs them."""
    global _workers
    _workers = _Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
