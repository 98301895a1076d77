"""Matrix products inside compiled kernels, by the BLAS that SciPy ships, on one thread each.

One thread, since OpenBLAS gives other bits with two; the kernels divide the work themselves, by shape alone. SciPy's BLAS is
another library than NumPy's: the user's NumPy is not touched, and SciPy's own number of threads is put back after each use.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import address, compiled, inlined
from .team import count, wait


def _import_cython_blas() -> None:
    """Import ``scipy.linalg.cython_blas``, in which Numba finds the BLAS, without the rest of ``scipy.linalg``.

    That is 150 modules, 14 MiB and a third of a second. A later ``import scipy.linalg`` is as ever.
    """
    name = "scipy.linalg.cython_blas"
    if "scipy.linalg" not in sys.modules:
        spec = PathFinder.find_spec(name, [f"{path}/linalg" for path in scipy.__path__])
        if spec is not None and spec.loader is not None:
            sys.modules[name] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
    importlib.import_module(name)


_import_cython_blas()

# What Numba's own numpy.dot calls, by columns: kind, transposed a, b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc
_char, _size, _pointer = types.int8, types.intp, types.voidptr
_scalars, _matrix = (_char, _char, _char, _size, _size, _size, _pointer), (_pointer, _size)
_xxgemm = types.ExternalFunction("numba_xxgemm", types.intc(*_scalars, *_matrix, *_matrix, _pointer, *_matrix))

ZERO_ONE = {dtype: np.array([0.0, 1.0], dtype) for dtype in "fd"}  # by the character of the dtype


@inlined
def gemm(a, b, c, transpose_a, transpose_b, add, zero_one):
    """c = a @ b, or c += a @ b, for matrices whose rows are contiguous; a and b may be transposed first.

    ``zero_one``: [0, 1] in their dtype, for BLAS wants the factors by address.
    """
    m, n = c.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    size = a.itemsize
    kind = 115 if size == 4 else 100  # "s", "d"
    beta = zero_one[1:] if add else zero_one
    # BLAS counts by columns: it sees the transposes, and c.T = b.T @ a.T. (NumPy gives a single row any stride.)
    lda, ldb, ldc = max(a.strides[0] // size, a.shape[1]), max(b.strides[0] // size, b.shape[1]), max(c.strides[0] // size, n)
    _xxgemm(
        kind, 116 if transpose_b else 110, 116 if transpose_a else 110, n, m, k, address(zero_one[1:]),
        address(b), ldb, address(a), lda, address(beta), address(c), ldc,
    )  # fmt: skip


# ----- one thread

# What all share who use SciPy's OpenBLAS: tickets drawn, and whose turn it is to read or change the rest; how many are inside,
# and the library's threads before they came; where its functions lie that get and set these, 0 if it has none.
DRAWN, TURN, INSIDE, BEFORE, GET, SET = 0, 8, 16, 17, 18, 19
limit = np.zeros(24, np.int64)


@intrinsic
def _get(typingctx: Any, function: Any) -> Any:
    """``_get(function)``: what C's function at that address returns."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(args[0], kind), []), ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic
def _set(typingctx: Any, function: Any, number: Any) -> Any:
    """``_set(function, number)``: tell C's function at that address the number."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [builder.trunc(args[1], ir.IntType(32))])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@inlined
def begin(limit):
    """SciPy's OpenBLAS uses one thread from now on."""
    ticket = count(limit, DRAWN, 1)
    if wait(limit, TURN, ticket, ticket) >= 0 and limit[INSIDE] == 0 and limit[SET] != 0:
        limit[BEFORE] = _get(limit[GET])
        _set(limit[SET], 1)
    limit[INSIDE] += 1
    count(limit, TURN, 1)


@inlined
def end(limit):
    """The last to end puts back what it was before the first began."""
    ticket = count(limit, DRAWN, 1)
    if wait(limit, TURN, ticket, ticket) >= 0 and limit[INSIDE] == 1 and limit[SET] != 0:
        _set(limit[SET], limit[BEFORE])
    limit[INSIDE] -= 1
    count(limit, TURN, 1)


@compiled
def _begin(limit):
    begin(limit)


@compiled
def _end(limit):
    end(limit)


def _own_functions(controller: Any) -> tuple[Callable, Callable]:
    """A library's own functions for its number of threads.

    Those of threadpoolctl cost more, and do nothing in a thread of Python other than the first that called them. (PyDLL, since
    to let go of Python's lock and to take it again costs more than the call.)
    """
    library = ctypes.PyDLL(controller.filepath)
    for prefix in ("scipy_", ""):
        for suffix in ("", "64_"):
            names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
            if all(hasattr(library, name) for name in names):
                return getattr(library, names[0]), getattr(library, names[1])
    return controller.get_num_threads, controller.set_num_threads


class _OneThread:
    """``with one_thread:`` the BLAS of that package uses one thread; the last to leave puts back what it was."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._lock = threading.Lock()
        self._inside = 0
        self._libraries: list[tuple[Callable, Callable]] = []  # how to get, and to set, the number of threads
        self._before: list[tuple[Callable, int]] = []

    def _find(self) -> list[tuple[Callable, Callable]]:
        import threadpoolctl

        found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        own = [c for c in found if any(part.partition(".")[0] == self._package for part in Path(c.filepath).parts)]
        self._libraries = [_own_functions(c) for c in own or found]  # (a distribution may have one for all)
        return self._libraries

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                for get, set_number in self._libraries or self._find():
                    number = get()
                    if number != 1:
                        self._before.append((set_number, number))
                        set_number(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()

    def _restore(self) -> None:
        while self._before:
            set_number, number = self._before.pop()
            set_number(number)

    def after_fork(self) -> None:
        """In the child only the thread that forked is left, and it was in no kernel."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            self._restore()


class _SciPysOneThread(_OneThread):
    """The same for SciPy's BLAS. If that is OpenBLAS, kernels can do it themselves: this costs more than a small product."""

    def __init__(self) -> None:
        super().__init__("scipy")
        self.by_kernels = False  # whether ``begin`` and ``end`` do it; not known before the first use
        self._known = False

    def _look(self) -> None:
        with self._lock:  # all of it, before another thread asks how it is done
            if self._known:
                return
            found = self._find()
            if len(found) == 1 and all(hasattr(function, "argtypes") for function in found[0]):  # functions of C
                for cell, function in zip((GET, SET), found[0], strict=True):
                    limit[cell] = ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
                self.by_kernels = True
            self._known = True

    def __enter__(self) -> None:
        if not self._known:
            self._look()
        _begin(limit) if self.by_kernels else super().__enter__()

    def __exit__(self, *error: object) -> None:
        _end(limit) if self.by_kernels else super().__exit__(*error)

    def after_fork(self) -> None:
        super().after_fork()
        if limit[INSIDE] and self.by_kernels:
            self._libraries[0][1](int(limit[BEFORE]))
        limit[:GET] = 0


one_thread, numpy_one_thread = _SciPysOneThread(), _OneThread("numpy")
if hasattr(os, "register_at_fork"):
    for _library in (one_thread, numpy_one_thread):
        os.register_at_fork(after_in_child=_library.after_fork)
