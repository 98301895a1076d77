"""What all compiled kernels share: the compiler's options, and small functions that Numba does not have.

Kernels are plain Python loops, compiled on first use by Numba and cached beside this file (or in the user's cache directory,
where that cannot be written). They hold no lock of the interpreter while they run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# a * b + c may be rounded once, not twice; nothing else is left to the compiler. Division by zero gives inf or NaN.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
# No function for C is made of any, and none for Python of mere parts: that saves much of the time to compile.
_WHOLE: dict[str, Any] = {**_OPTIONS, "no_cfunc_wrapper": True}
_PART: dict[str, Any] = {**_WHOLE, "no_cpython_wrapper": True}
_can_cache = True


def compiled(function: Callable) -> Any:
    """Compile on first use, without the interpreter's lock, and cache the machine code where that can be written."""
    global _can_cache
    if _can_cache:
        try:
            return _renewed_with_any_file(numba.njit(cache=True, **_WHOLE)(function))
        except RuntimeError as error:  # "no locator available"
            _can_cache = False
            warnings.warn(
                f"compiled kernels cannot be cached, so each process compiles them again ({error}); set NUMBA_CACHE_DIR to a "
                "directory that can be written",
                RuntimeWarning,
                stacklevel=2,
            )
    return numba.njit(**_WHOLE)(function)


# A kernel contains parts of other files, but Numba looks only at the kernel's own to see whether what it cached is still good.
_STAMP = tuple((path.name, path.stat().st_mtime, path.stat().st_size) for path in sorted(Path(__file__).parent.glob("*.py")))


try:
    from numba.core.caching import IndexDataCacheFile
except ImportError:  # Numba may keep it elsewhere one day: then its own serves
    IndexDataCacheFile = object  # type: ignore[assignment, misc]


class _CacheFile(IndexDataCacheFile):
    """Numba's, but what it finds says what it is.

    Numba's index names files by number. Where processes compile at once, one may point at what another has written under the
    same number for other types, or at what is left of older source until it is overwritten: such code would get arrays that it
    was not made for.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        match super().load(key):
            case (stamp, found, data) if stamp == self._source_stamp and found == key:
                return data
        return None


def _renewed_with_any_file(kernel: Any) -> Any:
    """Compile it again, not only when its own file has changed."""
    with suppress(AttributeError):  # (as above)
        file = kernel._cache._cache_file
        file._source_stamp = _STAMP
        if type(file) is IndexDataCacheFile:
            file.__class__ = _CacheFile
    return kernel


def inlined(function: Callable) -> Any:
    """A part of a kernel in a function of its own: compiled into whoever calls it, and of no use to Python."""
    return numba.njit(**_PART)(function)


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """``address(array)``: where its first element lies, for BLAS."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, cgutils.voidptr_t)

    return types.voidptr(array), codegen


@intrinsic
def place(typingctx: Any, array: Any) -> Any:
    """``place(array)``: where its first element lies, as a number."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


@intrinsic
def elements_at(typingctx: Any, place: Any, like: Any) -> Any:
    """``elements_at(place, like)``: a pointer, for ``numba.carray``, to elements of the dtype of the array ``like``."""
    kind = types.CPointer(like.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, like), codegen


@intrinsic
def high_half(typingctx: Any, a: Any, b: Any) -> Any:
    """``high_half(a, b)``: the upper 64 bits of the product of two uint64."""

    def codegen(_context, builder, _signature, args):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(a, wide) for a in args))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def bits(typingctx: Any, x: Any) -> Any:
    """``bits(x)``: those of a float32 as an int32, of a float64 as an int64."""
    whole = types.int32 if x == types.float32 else types.int64

    def codegen(context, builder, _signature, args):
        return builder.bitcast(args[0], context.get_value_type(whole))

    return whole(x), codegen


@intrinsic
def from_bits(typingctx: Any, n: Any) -> Any:
    """``from_bits(n)``: the float32 that has the bits of an int32, or the float64 of an int64."""
    real = types.float32 if n == types.int32 else types.float64

    def codegen(context, builder, _signature, args):
        return builder.bitcast(args[0], context.get_value_type(real))

    return real(n), codegen
