"""How ranks end: all together, whatever ends one of them.

MPI lets a rank wait for ever for one that is gone. So a rank that is ended by an error says so, and ends all (``MPI_Abort``).
Errors are seen by ``sys.excepthook`` and ``threading.excepthook``. What nobody sees from Python is the code with which a
``raise SystemExit(code)`` will end the process: Python takes it off the exception after its last hook. Only C's exit handlers
get it, and there the rest is done: MPI is finalized after code 0, and with another code the process ends without that, which
``mpiexec`` takes for a crash, and ends the others. A rank killed by a signal is noticed by ``mpiexec`` in the same way.
"""

from __future__ import annotations

import atexit
import ctypes
import dis
import os
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any, NoReturn


def start_mpi() -> Any:
    """mpi4py's MPI, whose end is ours to see to, unless somebody imported it before."""
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI


def install(MPI: Any) -> None:
    """From now on end all ranks when this one is ended by an error, or by a SystemExit with a code other than 0 or None."""

    def end_all(code: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.5)  # mpiexec passes on what was said, unless the end comes first
        MPI.COMM_WORLD.Abort(code)
        os._exit(code)  # MPICH's Abort may return before mpiexec ends this process

    say = f"\nrank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size} ended by"
    hook, thread_hook = sys.excepthook, threading.excepthook

    def on_error(kind: Any, error: Any, trace: Any) -> None:
        print(f"{say} an error, and all ranks with it:", file=sys.stderr)
        hook(kind, error, trace)
        end_all(1)

    def on_thread_error(args: Any) -> None:
        if args.exc_type is SystemExit:
            return  # which ends the thread, in Python
        print(f"{say} an error in a thread, and all ranks with it:", file=sys.stderr)
        thread_hook(args)
        end_all(1)

    note_exits()
    main = _outermost_frame()

    def at_exit() -> None:
        code, called = _exits[0] if _exits and not _returned(main) else (0, "")
        if code not in (0, None):
            print(f"{say} sys.exit({code!r}), and all ranks with it:\n{called}", end="", file=sys.stderr)
            end_all(code if isinstance(code, int) else 1)
        if not MPI.Is_finalized() and not _finalize_after_code_0(MPI):
            MPI.Finalize()

    sys.excepthook, threading.excepthook = on_error, on_thread_error
    if sys.modules["mpi4py"].rc.finalize is False:
        atexit.register(at_exit)


_exits: list[tuple[Any, str]] = []  # the last call of sys.exit: its code, and from where


def note_exits() -> None:
    """From now on ``sys.exit`` notes its code. (``sys.exit(main())`` looks the function up before it calls main.)"""
    leave = sys.exit
    if leave.__name__ == "noted_exit":
        return

    def noted_exit(status: Any = None, /) -> NoReturn:
        _exits[:] = [(status, "".join(traceback.format_stack(sys._getframe(1))))]
        leave(status)

    sys.exit = noted_exit


def _outermost_frame() -> FrameType:
    """The frame of the main program."""
    frame: FrameType = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _returned(frame: FrameType) -> bool:
    """Whether a frame that has ended came to its end, and was not left by an exception."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN")


def _finalize_after_code_0(MPI: Any) -> bool:
    """Let C's ``exit`` finalize MPI if the code is 0, and end the process before that if it is not. Whether the C library can.

    ``on_exit`` (glibc) calls its functions with the code, the last one first: ``ualarm(code)`` ends the process after so many
    microseconds by SIGALRM, unless they are 0; then comes ``MPI_Finalize``, which waits for the other ranks.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "on_exit") or not hasattr(libc, "ualarm"):
        return False
    libc.on_exit(ctypes.CDLL(MPI.__file__).MPI_Finalize, None)
    libc.on_exit(libc.ualarm, None)
    return True
