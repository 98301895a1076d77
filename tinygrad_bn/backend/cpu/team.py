"""A compiled kernel on several threads.

The work is cut into items by the shapes alone, each item's result is a function of the item alone, and what they sum is merged
in their order: so the bits are the same for any number of threads. Threads take the next item from a shared counter, so that
one that wakes up late, or shares its core with a stranger, takes fewer.

They work together without Python's lock, which would cost more than many a kernel takes.

A team is an array of int64: cells that the threads write to each other, and the kernel's address and arguments. The kernel
itself begins with ``join(team)``. The first to come there is the caller from Python: it writes down its own address and
arguments, and opens the team. Helpers, which wait in ``serve``, then call the same function with the same arguments, in which
``join`` only tells them their number. From there on all take items of work from the one counter, until there are none.

A helper is inside from when it has counted itself so, and then still found the team open, until it counts itself out. Whoever
closed the team, and then sees nobody inside, can be sure that nobody uses the arguments any more. All cells are read and
written in one order that all threads agree on (sequential consistency).
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import compiled, inlined
from .threads import threads_for

# Cells, in lines of the cache of their own where several threads write to them. Items are counted for two passes.
TAKEN, FIRST, LAST, SECOND_PASS = 0, 1, 2, 8
ROUND, INSIDE, ENTERED, SLOTS, DONE, GO_ON, WANTED, ROLE, FUNCTION = 16, 24, 32, 40, 48, 56, 64, 65, 66
_ARGUMENTS, _CELLS = 72, 512
ALONE, CALLS, CALLED = 0, 1, 2  # what ROLE says

_i64 = ir.IntType(64)


def new() -> np.ndarray:
    """Nobody in it, and closed."""
    return np.zeros(_CELLS, np.int64)


def _cell(builder: Any, data: Any, cell: int) -> Any:
    return builder.gep(data, [ir.Constant(_i64, cell)])


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


@intrinsic
def peek(typingctx: Any, team: Any, cell: Any) -> Any:
    """``peek(team, cell)``: what any thread last wrote there."""

    def codegen(context, builder, signature, args):
        at = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.load_atomic(at, "seq_cst", 8)

    return types.int64(team, types.int64), codegen


@intrinsic
def count(typingctx: Any, team: Any, cell: Any, more: Any) -> Any:
    """``count(team, cell, more)``: the old value of the cell, to which ``more`` is added."""

    def codegen(context, builder, signature, args):
        at = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.atomic_rmw("add", at, args[2], "seq_cst")

    return types.int64(team, types.int64, types.int64), codegen


@inlined
def take(team, slot, items, cells=0):
    """The number of the next item of work; ``items`` if there is none. In the second pass, ``cells`` are SECOND_PASS.

    Odd threads begin at the end: so a core finds in its cache what it left there in the pass, or the kernel, before.
    """
    if count(team, cells + TAKEN, 1) >= items:
        return items
    return items - 1 - count(team, cells + LAST, 1) if slot % 2 else count(team, cells + FIRST, 1)


@intrinsic
def join(typingctx: Any, team: Any) -> Any:
    """``join(team)``: the number of this thread, 0 for the caller, who calls the others if help is wanted.

    It stands in the kernel itself, not in a function that the kernel calls: "the kernel" is whatever function it stands in.
    """

    def codegen(context, builder, signature, args):
        data = _data(context, builder, signature.args[0], args[0])
        kernel = builder.function
        kernel.attributes.add("noinline")
        passed = ir.LiteralStructType([a.type for a in kernel.args[2:]])  # behind where to put the result, and an error
        if context.get_abi_sizeof(passed) > 8 * (_CELLS - _ARGUMENTS):
            raise TypeError(f"{kernel.name} has more arguments than a team can pass on")
        again = _caller_of(builder.module, kernel, passed)
        role = builder.load(_cell(builder, data, ROLE))
        with builder.if_then(builder.icmp_signed("==", role, ir.Constant(_i64, CALLS)), likely=False):
            place = builder.bitcast(_cell(builder, data, _ARGUMENTS), passed.as_pointer())
            for i, a in enumerate(kernel.args[2:]):
                builder.store(a, builder.gep(place, [ir.Constant(ir.IntType(32), n) for n in (0, i)], inbounds=True))
            builder.store(builder.ptrtoint(again, _i64), _cell(builder, data, FUNCTION))
            builder.store(ir.Constant(_i64, CALLED), _cell(builder, data, ROLE))
            builder.atomic_rmw("add", _cell(builder, data, ROUND), ir.Constant(_i64, 1), "seq_cst")
        called = builder.icmp_signed("==", role, ir.Constant(_i64, CALLED))
        step = builder.zext(called, _i64)
        before = builder.atomic_rmw("add", _cell(builder, data, SLOTS), step, "seq_cst")
        return builder.select(called, builder.add(before, step), ir.Constant(_i64, 0))

    return types.int64(team), codegen


def _caller_of(module: Any, kernel: Any, passed: Any) -> Any:
    """A function of the team's data that calls the kernel with the arguments that lie there."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_i64.as_pointer()]), f"{kernel.name}.again")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    place = builder.bitcast(_cell(builder, function.args[0], _ARGUMENTS), passed.as_pointer())
    arguments = [builder.load(builder.gep(place, [ir.Constant(ir.IntType(32), n) for n in (0, i)])) for i in range(len(passed))]
    outputs = [builder.alloca(a.type.pointee) for a in kernel.args[:2]]
    builder.call(kernel, [*outputs, *arguments])
    builder.ret_void()
    return function


@intrinsic
def _call(typingctx: Any, team: Any) -> Any:
    """Call the kernel that the caller wrote down."""

    def codegen(context, builder, signature, args):
        data = _data(context, builder, signature.args[0], args[0])
        kind = ir.FunctionType(ir.VoidType(), [_i64.as_pointer()]).as_pointer()
        builder.call(builder.inttoptr(builder.load(_cell(builder, data, FUNCTION)), kind), [data])
        return context.get_dummy_value()

    return types.void(team), codegen


@inlined
def is_helper(team):
    """Before ``join``: whether this thread is a helper, whom the caller has called."""
    return team[ROLE] == CALLED


_PATIENCE = 1 << 14  # pauses, 0.6 ms, that a thread waits awake for the next kernel: to wake it takes 50 us
_give_way = types.ExternalFunction("SwitchToThread" if os.name == "nt" else "sched_yield", types.intc())


@inlined
def _pause(x):
    """Let some 40 ns pass, by divisions in a chain; they hardly disturb a neighbour on the same core."""
    for _ in range(8):
        x = 1.0 / (1.0 + x)
    return x


@inlined
def wait(team, cell, least, most):
    """Wait until the cell has a value from ``least`` to ``most``. Returns a number of at least 0, which must be looked at."""
    x, waited = 0.0, 0
    while not least <= peek(team, cell) <= most:
        x = _pause(x)
        waited += 1
        if waited > _PATIENCE:  # somebody else has their core
            _give_way()
    return x  # (to be used, so that the pauses are not left out)


@inlined
def leave(team, slot):
    """The caller lets nobody in any more, and waits for those inside: they use its arguments."""
    if slot == 0 and team[ROLE] == CALLED:
        count(team, ROUND, 1)
        x = wait(team, INSIDE, 0, 0)
        for cell in (TAKEN, FIRST, LAST, ENTERED, SLOTS, DONE, GO_ON):
            team[cell] = 0
        for cell in (TAKEN, FIRST, LAST):
            team[SECOND_PASS + cell] = 0
        team[ROLE] = ALONE if x >= 0 else CALLS


@inlined
def meet(team, slot, done, items):
    """After a first pass, in which this thread did so many items: True for the caller, once all are done.

    It then does what has to be done once, and says ``go_on``; the others wait for that.
    """
    count(team, DONE, done)
    if slot:
        return wait(team, GO_ON, 1, 1) < 0
    return wait(team, DONE, items, items) >= 0


@inlined
def go_on(team):
    count(team, GO_ON, 1)


@compiled
def _abandon(team):
    """What a kernel that raised did not come to."""
    leave(team, 0)


@compiled
def serve(team, seen, patience):
    """Help in each round after ``seen``, until so many pauses have passed without one. Returns the last round seen."""
    x, waited = 0.0, 0
    while waited < patience:
        now = peek(team, ROUND)
        if now == seen:
            x = _pause(x)
            waited += 1
            continue
        seen = now
        if now & 1:
            count(team, INSIDE, 1)
            if peek(team, ROUND) == now and count(team, ENTERED, 1) < peek(team, WANTED):
                _call(team)
            count(team, INSIDE, -1)
            waited = 0
    return seen if x >= 0 else 0  # (x is used, so that the pauses are not left out)


class _Workers:
    """Threads that help with kernels. They do so without Python's lock, and sleep when there was nothing to do for a while."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # whoever holds it may call them
        self.team = new()
        self.asleep: deque[threading.Lock] = deque()  # what wakes them: releasing it
        self.threads: list[threading.Thread] = []
        self.stopped = False

    def call(self, count: int) -> None:
        """See that so many are there, and awake."""
        while len(self.threads) < count:
            thread = threading.Thread(target=self._work, daemon=True, name="tinygrad_bn kernel")
            self.threads.append(thread)
            thread.start()
        for _ in range(min(count, len(self.asleep))):
            self._wake()

    def _wake(self) -> None:
        with suppress(IndexError):  # nobody is asleep
            self.asleep.pop().release()

    def _work(self) -> None:
        bed = threading.Lock()
        bed.acquire()
        seen = 0
        while not self.stopped:
            seen = serve(self.team, seen, _PATIENCE)
            self.asleep.append(bed)
            if self.stopped:
                return
            bed.acquire()

    def stop(self) -> None:
        """End the threads: before the interpreter, and with it the memory of the kernels, is gone."""
        self.stopped = True
        for thread in self.threads:
            while thread.is_alive():
                self._wake()
                thread.join(0.001)


_workers = _Workers()


def run(kernel: Callable, items: int, *args: Any, threads: int | None = None) -> None:
    """``kernel(team, items, *args)`` on as many threads as there are, at most one for each item.

    The kernel begins with ``join(team)``, and takes items from the team until it gets one that is not below ``items``. Where
    another Python thread has the workers, this one does all by itself.
    """
    if threads is None and items > 1:
        threads = threads_for(items)
    workers = _workers
    if items <= 1 or threads == 1 or not workers.lock.acquire(False):
        kernel(np.zeros(FUNCTION, np.int64), items, *args)
        return
    try:
        helpers = threads - 1  # type: ignore[operator]
        if workers.asleep or len(workers.threads) < helpers:
            workers.call(helpers)
        team = workers.team
        team[WANTED], team[ROLE] = helpers, CALLS
        try:
            kernel(team, items, *args)
        except BaseException:
            _abandon(team)
            raise
    finally:
        workers.lock.release()


def _after_fork() -> None:
    """The child has none of its parent's threads: it starts its own when it first needs them."""
    global _workers
    _workers = _Workers()


atexit.register(lambda: _workers.stop())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
