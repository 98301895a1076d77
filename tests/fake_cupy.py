"""A strict stand-in for CuPy 14, backed by NumPy, for testing device code on a machine without a GPU.

Put it in place with ``monkeypatch.setitem(sys.modules, "cupy", fake_cupy)``, or with ``as_modules()`` where submodules
are imported too.  It does what CuPy does where NumPy is more generous: host and device arrays do not mix, reductions
give 0-d arrays, every copy to the host is counted, ufunc results are C-contiguous, out-of-range index arrays wrap, the
winner of a duplicate index is arbitrary, and what CuPy lacks is absent.  What it says about CuPy was read in the
sources of 14.2.0; ``test_fake_cupy_contract.py`` states it as tests that run on a real GPU too.

Stricter than CuPy on purpose: a NumPy array is refused by all but ``asarray``, ``array``, ``asnumpy`` and index keys
(CuPy's ``sum(numpy_array)`` quietly runs on the host; its ``isclose`` and ``einsum`` upload), ``empty`` is filled with
NaN or a huge number, a ``broadcast_to`` view cannot be written.  Kernels: RawModule alone, see fake_kernels.py.  Not modelled:
DLPack, ``__cuda_array_interface__``, several devices, asynchronous execution.

Counters, all at module level (see ``count_syncs``): ``syncs`` are copies to the host that wait, ``uploads`` explicit
copies to the device, ``implicit_uploads`` those hidden in index keys and assigned values, ``device_syncs`` calls of
``synchronize``.  A 0-d value is a kernel argument, not an upload.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from fake_kernels import RawModule as RawModule

__version__ = "14.2.0"
syncs = uploads = implicit_uploads = device_syncs = 0
_watchers: list[Counts] = []


class Counts:
    """What happened inside ``with count_syncs() as counts``; ``sites`` says where each event came from."""

    def __init__(self) -> None:
        self.syncs = self.uploads = self.implicit_uploads = self.device_syncs = 0
        self.sites: list[str] = []

    def __repr__(self) -> str:
        return f"Counts({vars(self)})"


def _count(counter: str, what: str) -> None:
    globals()[counter] += 1
    frame = sys._getframe(1) if _watchers else None
    while frame and frame.f_back and frame.f_code.co_filename in (__file__, "<fake_cupy>"):
        frame = frame.f_back
    for watcher in _watchers:
        setattr(watcher, counter, getattr(watcher, counter) + 1)
        watcher.sites.append(f"{counter}: {what} at {frame.f_code.co_filename}:{frame.f_lineno}")


def sync_count() -> int:
    return syncs


@contextlib.contextmanager
def count_syncs() -> Iterator[Counts]:
    counts = Counts()
    _watchers.append(counts)
    try:
        yield counts
    finally:
        _watchers.remove(counts)


# -------------------------------------------------------------------------------------------- wrapping and unwrapping

_PY_SCALARS = frozenset((bool, int, float, complex))
_quiet = functools.partial(np.errstate, all="ignore")  # a kernel never warns of overflow or division by zero


def _new(a: np.ndarray, base: ndarray | None = None) -> ndarray:
    x = object.__new__(ndarray)
    x._a, x._base = a, base
    return x


def _view(a: np.ndarray, source: ndarray) -> ndarray:
    """A view of ``source``; if NumPy had to copy instead, an array of its own."""
    if a.size and not np.may_share_memory(a, source._a):
        return _fresh(a)
    return _new(a, source if source._base is None else source._base)


def _fresh(r: Any) -> Any:
    if type(r) is list or isinstance(r, tuple):
        return tuple(_fresh(i) for i in r)
    return _new(np.array(r, order="C", copy=None))


def _operand(x: Any) -> Any:
    """What a CuPy kernel takes: device arrays, and scalars of exactly these types."""
    if type(x) is ndarray:
        return x._a
    if type(x) in _PY_SCALARS or isinstance(x, np.generic):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def _array(x: Any, what: str = "Unsupported type {}") -> np.ndarray:
    if type(x) is not ndarray:
        raise TypeError(what.format(type(x)))
    return x._a


def _raw(x: Any) -> Any:
    """Unwrap an argument that may also be a shape, an axis, a dtype, or a sequence of arrays."""
    if type(x) in (tuple, list):
        return type(x)(_raw(i) for i in x)
    return _operand(x) if isinstance(x, (ndarray, np.ndarray)) else x


def _host(obj: Any, dtype=None, order: str | None = "K", ndmin: int = 0) -> tuple[np.ndarray, bool]:
    """What ``cupy.array(obj)`` holds, and whether that was copied from the host."""

    def on_device(o: Any) -> bool:
        return False not in [on_device(i) for i in o] if type(o) in (tuple, list) and o else type(o) is ndarray

    upload = not on_device(obj)
    if order in (None, "K", "A"):
        order = "F" if isinstance(obj, np.ndarray) and obj.flags.fnc else "C"
    a = np.array(obj if upload else _raw(obj), dtype=dtype, order=order, ndmin=ndmin)
    if a.dtype.char not in "?bBhHiIlLqQefdFD":
        raise ValueError(f"Unsupported dtype {a.dtype}")
    return a, upload and a.ndim > 0


# ----------------------------------------------------------------------------------------------------------- indexing


def _key(a: np.ndarray, key: Any) -> tuple[tuple, bool, bool]:
    """An index for NumPy that does what CuPy does with ``key``; whether it has index arrays; whether it has masks."""
    items = list(key) if isinstance(key, tuple) else [key]
    used, advanced, masked = 0, False, False
    for i, s in enumerate(items):
        if s is None or s is Ellipsis:
            continue
        used += 1
        if isinstance(s, slice) or (np.isscalar(s) and not isinstance(s, (bool, np.bool_))):
            continue
        if type(s) is ndarray:
            s = s._a
        else:
            s, upload = _host(s, np.int32 if isinstance(s, (list, tuple)) and np.size(s) == 0 else None)
            if upload:
                _count("implicit_uploads", "index key")
        if s.dtype.kind not in "biu":
            raise IndexError(f"arrays used as indices must be of integer or boolean type. (actual: {s.dtype.type})")
        if s.dtype.kind == "b":
            masked, used = True, used + s.ndim - 1
        items[i], advanced = s, True
    axis = 0
    for i, s in enumerate(items):
        if s is Ellipsis:
            axis += a.ndim - used
        elif isinstance(s, np.ndarray) and s.dtype.kind == "b":
            axis += s.ndim
        elif s is not None:
            if isinstance(s, np.ndarray) and axis < a.ndim and a.shape[axis]:
                items[i] = s % a.shape[axis]  # out of range wraps, and nobody is told
            axis += 1
    if not advanced and not [s for s in items if s is Ellipsis]:
        items.append(Ellipsis)  # so that x[0] of a vector is a 0-d view, not a scalar
    return tuple(items), advanced, masked


_ATOMICS = {  # what `ufunc.at` takes with index arrays
    "add": "int32 int64 uint32 uint64 float16 float32 float64", "subtract": "int32 uint32",
    **dict.fromkeys(("maximum", "minimum"), "int32 int64 uint32 uint64 float32 float64"),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor"), "int32 int64 uint32 uint64"),
}  # fmt: skip


def _scatter(x: ndarray, key: Any, value: Any, op: str = "update") -> None:
    a = _array(x)
    if not a.flags.writeable:
        raise ValueError("fake_cupy: writing through a broadcast view, which on a GPU is a data race")
    key, advanced, masked = _key(a, key)
    if not advanced:
        part = _view(a[key], x)
        if op != "update":
            _API[op](part, value, part)
        elif type(value) is not ndarray:
            part.fill(value)
        else:
            with _quiet():
                part._a[...] = value._a
        return
    if masked:
        _count("syncs", "assignment through a boolean mask")
    if op != "update" and not masked and a.dtype.name not in _ATOMICS[op].split():
        raise TypeError(f"cupy.{op}.at only supports {', '.join(_ATOMICS[op].split())} as data type")
    if type(value) is ndarray:
        v = value.astype(a.dtype, copy=False)._a
        if op == "update":  # leading axes of length 1 do not count
            v = v.reshape(v.shape[next((i for i, n in enumerate(v.shape) if n != 1), v.ndim) :])
    else:
        v, upload = _host(value, a.dtype)
        if upload:
            _count("implicit_uploads", "assigned value")
    places = np.arange(a.size).reshape(a.shape)[key]
    v = np.broadcast_to(v, places.shape).ravel()
    order = np.random.default_rng(0xC0FFEE).permutation(places.size)  # threads come in any order
    places, v = places.ravel()[order], v[order]
    flat = a.reshape(-1)  # a view if it can be one
    with _quiet():
        if op == "update":
            flat[places] = v
        else:
            getattr(np, op).at(flat, places, v)
    if not np.may_share_memory(flat, a):
        a[...] = flat.reshape(a.shape)


# ------------------------------------------------------------------------------------------------------------- ufuncs


class ufunc:
    """CuPy's ufunc: no ``where``, ``order``, ``subok``; device arrays and scalars only; C-contiguous results."""

    __slots__ = ("__name__", "_f", "name", "nargs", "nin", "nout")

    def __init__(self, name: str) -> None:
        self._f = f = getattr(np, name)
        self.__name__ = self.name = f"cupy_{f.__name__}"
        self.nin, self.nout, self.nargs = f.nin, f.nout, f.nargs

    def __repr__(self) -> str:
        return f"<ufunc {self.name!r}>"

    def __call__(self, *args, out=None, dtype=None, casting="same_kind", **kwargs):
        if kwargs:
            raise TypeError(f"Wrong arguments {kwargs}")
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(f"Wrong number of arguments for {self.name!r}: {len(args)}")
        ins, outs = [_operand(x) for x in args[: self.nin]], args[self.nin :]
        if out is not None:
            if outs:
                raise ValueError("Cannot specify 'out' as both a positional and keyword argument")
            outs = out if isinstance(out, tuple) else (out,)
        if not outs:
            with _quiet():
                r = self._f(*ins, dtype=dtype, casting=casting, order="C")
            return _new(np.asarray(r)) if self.nout == 1 else tuple(_new(np.asarray(i)) for i in r)
        if len(outs) != self.nout:
            raise ValueError("The 'out' tuple must have exactly one entry per ufunc output")
        raw = tuple(o if o is None else _array(o, "Output arguments type must be cupy.ndarray") for o in outs)
        with _quiet():
            r = self._f(*ins, out=raw, dtype=dtype, casting=casting, order="C")
        made = r if self.nout > 1 else (r,)
        r = tuple(_new(np.asarray(i)) if o is None else o for i, o in zip(made, outs, strict=True))
        return r if self.nout > 1 else r[0]

    def _only(self, method: str, *names: str) -> None:
        if self._f.__name__ not in names:
            raise NotImplementedError(f"`{self.name}.{method}` is not supported yet")

    def outer(self, a, b, **kwargs):
        a, b = array(a), array(b)
        return self(a.reshape(a.shape + (1,) * b.ndim), b, **kwargs)

    def at(self, a, indices, b=None) -> None:
        self._only("at", *_ATOMICS)
        _scatter(a, indices, b, self._f.__name__)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        self._only("reduce", "add", "multiply")
        return _API["sum" if self._f is np.add else "prod"](array, axis, dtype, out, keepdims)

    def accumulate(self, array, axis=0, dtype=None, out=None):
        self._only("accumulate", "add", "multiply")
        return _API["cumsum" if self._f is np.add else "cumprod"](array, axis, dtype, out)

    def reduceat(self, array, indices, axis=0, dtype=None, out=None):
        self._only("reduceat", "add")
        return _fresh(np.add.reduceat(_array(array), _array(indices), axis, dtype, _raw(out)))


# Names that live here and not in globals(), so that this module keeps Python's own sum, max, abs, any, ...
_API: dict[str, Any] = {name: ufunc(name) for name in """abs absolute acos acosh add arccos arccosh arcsin arcsinh
arctan arctan2 arctanh asin asinh atan atan2 atanh bitwise_and bitwise_count bitwise_invert bitwise_left_shift
bitwise_not bitwise_or bitwise_right_shift bitwise_xor cbrt ceil conj conjugate copysign cos cosh deg2rad degrees divide
divmod equal exp exp2 expm1 fabs float_power floor floor_divide fmax fmin fmod frexp gcd greater greater_equal heaviside
hypot invert isfinite isinf isnan lcm ldexp left_shift less less_equal log log10 log1p log2 logaddexp logaddexp2
logical_and logical_not logical_or logical_xor maximum minimum mod modf multiply negative nextafter not_equal positive
pow power rad2deg radians reciprocal remainder right_shift rint sign signbit sin sinh sqrt square subtract tan tanh
true_divide trunc""".split()}  # fmt: skip
_API.update(
    (name, getattr(np, name))
    for name in """bool bool_ broadcast_shapes complex64 complex128 complexfloating
dtype e euler_gamma exceptions finfo float16 float32 float64 floating generic iinfo index_exp inexact inf int8 int16
int32 int64 int_ integer intp isdtype isscalar issubdtype nan ndindex newaxis number pi promote_types s_ signedinteger
uint8 uint16 uint32 uint64 unsignedinteger""".split()
)


# -------------------------------------------------------------------------------------------------------- the ndarray


class Flags:
    def __init__(self, x: ndarray) -> None:
        self.c_contiguous, self.f_contiguous = x._a.flags.c_contiguous, x._a.flags.f_contiguous
        self.fnc, self.forc, self.owndata = x._a.flags.fnc, x._a.flags.forc, x._base is None

    def __getitem__(self, name: str) -> bool:
        if name not in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            raise KeyError(f"{name} is not defined for cupy.ndarray.flags")
        return getattr(self, name.lower())


class ndarray:
    """A device array.  The NumPy array behind it is ``_a``: for tests only.  More is added by the loops below."""

    __slots__ = ("__weakref__", "_a", "_base")
    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C") -> None:
        if memptr is not None or strides is not None:
            raise NotImplementedError("fake_cupy: ndarray from a pointer")
        self._a, self._base = _API["empty"](shape, dtype, order)._a, None

    base = property(operator.attrgetter("_base"))
    flags = property(Flags)
    _c_contiguous = property(lambda self: self._a.flags.c_contiguous)  # CuPy's own name, which saves the flags
    device = property(lambda self: Device(0))
    data = property(lambda self: types.SimpleNamespace(ptr=self._a.ctypes.data, device=Device(0), device_id=0))
    T = property(lambda self: self if self.ndim < 2 else _view(self._a.T, self))
    mT = property(lambda self: _view(self._a.mT, self))
    real = property(lambda self: _view(self._a.real, self) if self.dtype.kind == "c" else self)
    imag = property(lambda self: _view(self._a.imag, self) if self.dtype.kind == "c" else _new(self._a.imag.copy()))
    shape = property(lambda self: self._a.shape)

    @shape.setter
    def shape(self, shape) -> None:
        self._a = self._a.reshape(shape, copy=False)

    # -- to the host and back
    def get(self, stream=None, order="C", out=None, blocking=True) -> np.ndarray:
        if blocking and self.size:
            _count("syncs", "copy to the host")
        if out is None:
            return np.array(self._a, order=order)
        if not isinstance(out, np.ndarray) or out.dtype != self.dtype:
            raise TypeError(f"{self.dtype} array cannot be obtained as {getattr(out, 'dtype', type(out))}")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        out[...] = self._a
        return out

    def set(self, arr, stream=None) -> None:
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype:
            raise TypeError(f"{getattr(arr, 'dtype', type(arr))} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        _count("uploads", "set")
        self._a[...] = arr

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        if self.size == 0:
            warnings.warn("The truth value of an empty array is ambiguous", DeprecationWarning, stacklevel=2)
            return False
        if self.size > 1:
            raise ValueError("The truth value of an array with more than one element is ambiguous")
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __reduce__(self) -> tuple:
        return array, (self.get(order="A"),)

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
        )

    # -- copies and views
    def astype(self, dtype, order="K", casting=None, subok=None, copy=True) -> ndarray:
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        with _quiet():
            a = self._a.astype(dtype, order=order or "K", copy=copy)
        return self if a is self._a else _new(a)

    def copy(self, order="C") -> ndarray:
        return _new(self._a.copy(order))

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def flatten(self, order="C") -> ndarray:
        return _new(self._a.flatten(order))

    def conj(self) -> ndarray:
        return _API["conjugate"](self) if self.dtype.kind == "c" else self

    def view(self, dtype=None, type=None) -> ndarray:  # noqa: A002
        return _view(self._a.view() if dtype is None else self._a.view(dtype), self)

    def reshape(self, *shape, order="C", copy=None) -> ndarray:
        return _view(self._a.reshape(_raw(shape[0] if len(shape) == 1 else shape), order=order, copy=copy), self)

    def transpose(self, *axes) -> ndarray:
        return _view(self._a.transpose(*axes), self)

    def fill(self, value) -> None:
        v = value._a if type(value) is ndarray else np.asarray(value, dtype=self.dtype)
        if v.shape != ():
            raise ValueError(f"non-scalar {type(value)} cannot be used for fill")
        with _quiet():
            self._a[...] = v

    def take(self, indices, axis=None, out=None) -> ndarray:
        if type(indices) is not ndarray and not np.isscalar(indices):
            indices, upload = _host(indices, int)
            if upload:
                _count("implicit_uploads", "indices of take")
        else:
            indices = _raw(indices)
        r = np.array(_array(self).take(indices, axis, mode="wrap"), copy=None, order="C")
        if out is None:
            return _new(r)
        if out.dtype != r.dtype or out.shape != r.shape:
            raise (TypeError if out.dtype != r.dtype else ValueError)("Output dtype or shape mismatch")
        out._a[...] = r
        return out

    def repeat(self, repeats, axis=None) -> ndarray:
        if isinstance(repeats, np.ndarray):
            raise TypeError("'repeats' does not accept numpy.ndarray; convert with cupy.array() first")
        if not isinstance(repeats, (int, np.integer)):
            _count("syncs", "repeat with an array of counts")
        return _fresh(_array(self).repeat(_raw(repeats), axis))

    def nonzero(self) -> tuple[ndarray, ...]:
        if _array(self).ndim == 0:
            raise ValueError("Calling nonzero on 0d arrays is not allowed.")
        _count("syncs", "nonzero")
        return _fresh(self._a.nonzero())

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False) -> ndarray:
        return _API["argmax"](self, axis, dtype, out, keepdims)

    def argmin(self, axis=None, out=None, dtype=None, keepdims=False) -> ndarray:
        return _API["argmin"](self, axis, dtype, out, keepdims)

    def clip(self, min=None, max=None, out=None) -> ndarray:  # noqa: A002
        return _API["clip"](self, min, max, out)

    def sort(self, axis=-1, kind=None) -> None:
        self._a.sort(axis=axis)

    # -- containers
    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key) -> ndarray:
        key, advanced, masked = _key(self._a, key)
        if not advanced:
            return _view(self._a[key], self)
        if masked:
            _count("syncs", "boolean-mask indexing")
        r = self._a[key]
        return _new(np.array(r, order="C", copy=True if np.may_share_memory(r, self._a) else None))

    def __setitem__(self, key, value) -> None:
        _scatter(self, key, value)

    # -- NumPy's protocols
    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        inout = inputs
        if "out" in kwargs:
            if len(kwargs["out"]) != 1:
                raise ValueError("The 'out' parameter must have exactly one array value")
            inout += kwargs["out"]
            kwargs["out"] = kwargs["out"][0]
        func = _API.get(ufunc.__name__)
        func = func if method == "__call__" else getattr(func, method, None)
        known = [type(x) in _PY_SCALARS or isinstance(x, (ndarray, np.ndarray, np.generic)) for x in inout]
        return NotImplemented if func is None or False in known else func(*inputs, **kwargs)

    def __array_function__(self, func, types, args, kwargs):
        try:
            module = functools.reduce(getattr, func.__module__.split(".")[1:], _MODULE)
            ours = getattr(module, func.__name__)
        except AttributeError:
            return NotImplemented
        if ours is func or [t for t in types if not issubclass(t, (ndarray, np.ndarray))]:
            return NotImplemented
        return ours(*args, **kwargs)


def _defer(x: ndarray, y: Any) -> bool:
    """Whether ``x + y`` is left to ``y.__radd__``; otherwise NumPy's ufunc is asked, as CuPy does."""
    if hasattr(y, "__array_ufunc__"):
        return y.__array_ufunc__ is None
    return getattr(y, "__array_priority__", 0) > x.__array_priority__


def _binary(name: str, dunder: str) -> None:
    never = {"eq": False, "ne": True}.get(dunder)

    def forward(self, other):
        if type(other) is ndarray or type(other) in _PY_SCALARS:
            return _API[name](self, other)
        if _defer(self, other):
            return NotImplemented
        if never is not None and (other is None or type(other).__eq__ is object.__eq__):
            return _API["full"](self.shape, never, bool)
        return getattr(np, name)(self, other)

    setattr(ndarray, f"__{dunder}__", forward)
    if dunder not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__r{dunder}__", lambda self, other: _API[name](other, self))
        if dunder not in ("matmul", "divmod"):  # CuPy has no __imatmul__; in-place operators never defer
            setattr(ndarray, f"__i{dunder}__", lambda self, other: _API[name](self, other, self))


for _pair in """add:add subtract:sub multiply:mul true_divide:truediv floor_divide:floordiv remainder:mod power:pow
divmod:divmod matmul:matmul left_shift:lshift right_shift:rshift bitwise_and:and bitwise_or:or bitwise_xor:xor
equal:eq not_equal:ne less:lt less_equal:le greater:gt greater_equal:ge""".split():
    _binary(*_pair.split(":"))
for _f, _name in dict(negative="neg", positive="pos", absolute="abs", invert="invert").items():
    setattr(ndarray, f"__{_name}__", lambda self, f=_API[_f]: f(self))
for _f in (int, float, complex, str, repr, bytes):
    setattr(ndarray, f"__{_f.__name__}__", lambda self, f=_f: f(self.get()))
for _name in "ndim dtype size itemsize nbytes strides".split():
    setattr(ndarray, _name, property(operator.attrgetter(f"_a.{_name}")))
ndarray.__hash__ = None
ndarray.conjugate = ndarray.conj


# ----------------------------------------------------------------------------------------- functions made from tables
# One row: the names, then the parameters as CuPy spells them.  The kind says what becomes of the first argument (an
# array unless the kind says otherwise) and of the result.  A None is left out of the call to NumPy, mostly.

_TABLES = {
    "fresh": """
sum prod nansum nanprod mean nanmean : a, axis=None, dtype=None, out=None, keepdims=False
var std nanvar nanstd : a, axis=None, dtype=None, out=None, ddof=0, keepdims=False
max min amax amin ptp nanmax nanmin all any : a, axis=None, out=None, keepdims=False
argmax argmin : a, axis=None, dtype=None, out=None, keepdims=False
cumsum cumprod : a, axis=None, dtype=None, out=None
count_nonzero : a, axis=None
clip : a, a_min, a_max, out=None
round around : a, decimals=0, out=None
sort argsort : a, axis=-1, kind=None
searchsorted : a, v, side='left', sorter=None
nan_to_num : x, copy=True, nan=0.0, posinf=None, neginf=None
isclose : a, b, rtol=1e-05, atol=1e-08, equal_nan=False
pad : array, pad_width, mode='constant', **kwargs
roll : a, shift, axis=None
tile : A, reps
diff : a, n=1, axis=-1, prepend=None, append=None
tril triu : m, k=0
trace : a, offset=0, axis1=0, axis2=1, dtype=None, out=None
outer dot : a, b, out=None
inner vdot kron : a, b
tensordot : a, b, axes=2""",
    "view": """
reshape : a, newshape, order='C', *, copy=None
ravel : a, order='C'
transpose permute_dims : a, axes=None
matrix_transpose : x, /
swapaxes : a, axis1, axis2
moveaxis : a, source, destination
rollaxis : a, axis, start=0
expand_dims : a, axis
squeeze : a, axis=None
broadcast_to : array, shape
flip : a, axis=None
split array_split : ary, indices_or_sections, axis=0""",
    "as it is": """
empty_like : prototype, dtype=None, order='K', subok=None, shape=None
zeros_like ones_like : a, dtype=None, order='K', subok=None, shape=None
full_like : a, fill_value, dtype=None, order='K', subok=None, shape=None
copy : a, order='K'""",
    "sync": """
argwhere flatnonzero : a
bincount : x, weights=None, minlength=None
unique : ar, return_index=False, return_inverse=False, return_counts=False, axis=None, *, equal_nan=True""",
    "plain": """
iscomplexobj isrealobj : x
size : a, axis=None
may_share_memory shares_memory : a, b, max_work=None""",
    "join": """
concatenate stack : tup, axis=0, out=None, *, dtype=None, casting='same_kind'
hstack vstack : tup, *, dtype=None, casting='same_kind'""",
    "create": """
empty zeros ones : shape, dtype=float, order='C'
full : shape, fill_value, dtype=None, order='C'
arange : start, stop=None, step=1, dtype=None
eye : N, M=None, k=0, dtype=float, order='C'
identity : n, dtype=float
linspace : start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0""",
}
_LINALG = """
norm : x, ord=None, axis=None, keepdims=False
inv cholesky det slogdet : a
eigh eigvalsh : a, UPLO='L'
solve : a, b
svd : a, full_matrices=True, compute_uv=True
qr : a, mode='reduced'"""
_METHODS = "sum prod mean var std max min ptp all any cumsum cumprod round argsort trace dot ravel swapaxes squeeze"
_OPERANDS = frozenset(("b", "v", "a_min", "a_max", "weights", "prepend", "append"))


def _make(kind: str, name: str, params: str, np_module: Any = np) -> Callable:
    f = getattr(np_module, name)

    def run(first: Any, **kwargs: Any) -> Any:
        if kind == "create":
            first = first if isinstance(first, (int, float, np.number)) else tuple(_raw(i) for i in first)
        elif kind == "join":
            first = [_array(x, "Only cupy arrays can be concatenated") for x in first]
        else:
            _array(first)
        out = kwargs.get("out")
        if out is not None:
            _array(out, "Output arguments type must be cupy.ndarray")
        if kind == "sync":
            _count("syncs", name)
        kw = {
            k: _operand(v) if k in _OPERANDS and v is not None else _raw(v)
            for k, v in kwargs.items()
            if v is not None or k in ("axis", "a_min", "a_max")
        }
        if name == "reshape":
            kw["shape"] = kw.pop("newshape")
        elif name == "arange" and "stop" not in kw:
            first, kw["stop"] = 0, first
        dtype = kw.pop("dtype", None) if name in ("argmax", "argmin") else None
        with _quiet():
            r = f(first._a if type(first) is ndarray else first, *([kw.pop("b")] if "b" in kw else []), **kw)
        if kind == "plain":
            return r
        if kind == "view":
            return [_view(i, first) for i in r] if isinstance(r, (list, tuple)) else _view(r, first)
        if name.startswith("empty"):  # reading uninitialised memory shall show
            r[...] = np.nan if r.dtype.kind in "fc" else True if r.dtype.kind == "b" else np.iinfo(r.dtype).max // 3
        if out is not None:
            return out
        if name == "linspace" and kwargs["retstep"]:
            return _new(r[0]), r[1]
        r = _new(r) if kind in ("create", "as it is") else _fresh(r)
        return r if dtype is None else r.astype(dtype, copy=False)

    names = [p.strip().partition("=")[0] for p in params.split(",") if p.strip() not in ("*", "/")]
    call = ", ".join([names[0]] + [n if n == "**kwargs" else f"{n}={n}" for n in names[1:]])
    made = eval(compile(f"lambda {params}: run({call})", "<fake_cupy>", "eval"), {"run": run})
    made.__name__ = made.__qualname__ = name
    return made


def _table(kind: str, text: str, np_module: Any = np) -> dict[str, Callable]:
    rows = [line.partition(" : ") for line in text.strip().splitlines()]
    return {name: _make(kind, name, params, np_module) for names, _, params in rows for name in names.split()}


for _kind, _text in _TABLES.items():
    _API.update(_table(_kind, _text))
for _name in _METHODS.split():
    setattr(ndarray, _name, _API[_name])
_API.update(take=ndarray.take, repeat=ndarray.repeat, nonzero=ndarray.nonzero)


# --------------------------------------------------------------------------------- functions with a mind of their own


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False) -> ndarray:
    if subok:
        raise NotImplementedError
    if type(obj) is ndarray:
        a = np.array(obj._a, dtype=dtype, copy=copy, order=order or "K", ndmin=ndmin)
        return obj if a is obj._a else _view(a, obj) if np.may_share_memory(a, obj._a) else _new(a)
    a, upload = _host(obj, dtype, order, ndmin)
    if upload:
        _count("uploads", "array")
    if blocking:
        _count("syncs", "blocking upload")
    return _new(a)


class _Functions:
    def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
        return array(a, dtype, copy, order, blocking=blocking)

    asanyarray = asarray

    def ascontiguousarray(a, dtype=None):
        r = np.ascontiguousarray(_array(a), dtype)
        return a if r is a._a else _view(r, a)

    def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
        if type(a) is ndarray:
            return a.get(stream=stream, order=order, out=out, blocking=blocking)
        if out is None:
            return np.asarray(a, order=order)
        out[...] = np.asarray(a)
        return out

    def copyto(dst, src, casting="same_kind", where=None):
        if isinstance(src, np.ndarray) and src.size != 1:
            raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
        src = src.reshape(())[()] if isinstance(src, np.ndarray) else _operand(src)
        with _quiet():
            np.copyto(_array(dst), src, casting, True if where is None else _array(where))

    def broadcast_arrays(*args):
        shape = np.broadcast_shapes(*(x.shape for x in args))
        return tuple(_API["broadcast_to"](x, shape) for x in args)

    def where(condition, x=None, y=None):
        if (x is None) != (y is None):
            raise ValueError("Must provide both 'x' and 'y' or neither.")
        if x is None:
            return condition.nonzero()
        return _fresh(np.where(_operand(condition.astype(bool, copy=False)), _operand(x), _operand(y)))

    def take_along_axis(a, indices, axis):
        a, axis = (a.ravel(), 0) if axis is None else (a, axis)
        return a[_along(a, indices, axis)]

    def put_along_axis(arr, indices, values, axis):
        arr[_along(arr, indices, axis)] = values

    def matmul(a, b, out=None, *, dtype=None, casting="same_kind"):
        out = out[0] if isinstance(out, tuple) else out
        raw = None if out is None else _array(out, "`out` must be a tuple or `cupy.ndarray`")
        with _quiet():
            r = np.matmul(_array(a), _array(b), out=raw, dtype=dtype, casting=casting, order="C")
        return _fresh(r) if out is None else out

    def einsum(*operands, **kwargs):
        dtype, optimize = kwargs.pop("dtype", None), kwargs.pop("optimize", False)
        if kwargs:
            raise TypeError(f"Did not understand the following kwargs: {list(kwargs)}")
        arrays = [x for x in operands if type(x) is ndarray]
        with _quiet():
            r = np.asarray(np.einsum(*(_raw(x) for x in operands), dtype=dtype, optimize=optimize))
        return _view(r, arrays[0]) if len(arrays) == 1 else _new(r)  # like CuPy's, it may come out transposed

    def allclose(a, b, rtol=1e-5, atol=1e-8, equal_nan=False):
        return _API["isclose"](a, b, rtol, atol, equal_nan).all()  # a 0-d array: no sync until bool()

    def array_equal(a1, a2, equal_nan=False):
        if equal_nan and a1.shape == a2.shape:
            _count("syncs", "array_equal(equal_nan=True)")
        return _new(np.asarray(np.array_equal(_array(a1), _array(a2), equal_nan)))

    def result_type(*arrays_and_dtypes):
        return np.result_type(*(x.dtype if type(x) is ndarray else x for x in arrays_and_dtypes))

    def can_cast(from_, to, casting="safe"):
        return np.can_cast(from_.dtype if type(from_) is ndarray else from_, to, casting)

    def astype(x, dtype, /, *, copy=True):
        return x.astype(dtype, copy=copy)

    def ndim(a):
        return a.ndim if hasattr(a, "ndim") else np.ndim(a)

    def shape(a):
        return a.shape if type(a) is ndarray else np.shape(a)

    def get_array_module(*args):
        return _MODULE if ndarray in [type(a) for a in args] else np

    def is_available():
        return True

    def get_default_memory_pool():
        return _POOL

    get_default_pinned_memory_pool = get_default_memory_pool

    # of the submodules
    def as_strided(x, shape=None, strides=None):
        # made from the bare pointer: its base is None, though the memory is shared
        return _new(np.lib.stride_tricks.as_strided(_array(x), shape, strides))

    def sliding_window_view(x, window_shape, axis=None, *, subok=False, writeable=False):
        if writeable:
            raise NotImplementedError("Writeable views are not supported.")
        windows = tuple(window_shape) if np.iterable(window_shape) else (window_shape,)
        _count("implicit_uploads", "window shape of sliding_window_view")
        for _ in windows:  # `for dim in cupy.array(window_shape): if dim < 0`
            _count("syncs", "sliding_window_view reads its window shape back from the device")
        r = np.lib.stride_tricks.sliding_window_view(_array(x), windows, axis)
        return _Functions.as_strided(x, r.shape, r.strides)


def _along(a: ndarray, indices: ndarray, axis: int) -> tuple:
    if _array(indices).dtype.kind not in "iu":
        raise IndexError("`indices` must be an integer array")
    if a.ndim != indices.ndim:
        raise ValueError("`indices` and `a` must have the same number of dimensions")
    key = [_new(np.arange(n).reshape((-1,) + (1,) * (a.ndim - i - 1))) for i, n in enumerate(a.shape)]
    key[axis] = indices
    return tuple(key)


_API.update((name, f) for name, f in vars(_Functions).items() if not name.startswith("__"))
_API["array"] = array
_strided = {name: _API.pop(name) for name in ("as_strided", "sliding_window_view")}


# --------------------------------------------------------------------------------------------------------- submodules


class CUDARuntimeError(RuntimeError):
    pass


class Device:
    """``cupy.cuda.Device``: there is one, number 0."""

    def __init__(self, device: Any = None) -> None:
        self.id, self.compute_capability = 0 if device is None else int(device), "90"

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> None:
        if self.id != 0:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __enter__(self) -> Device:
        self.use()
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def synchronize(self) -> None:
        _count("device_syncs", "synchronize")


class Stream:
    """``cupy.cuda.Stream`` (and, without ``use``, what an ``Event`` needs)."""

    done = True

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority=None) -> None:
        self.ptr = 0 if null else id(self)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def use(self) -> Stream:
        return self

    def record(self, event: Any = None) -> Any:
        return event or Stream()

    def wait_event(self, event: Any) -> None:
        pass

    synchronize = Device.synchronize


class Event(Stream):
    """``cupy.cuda.Event``. ``done`` may be set, to play a GPU that is behind."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        super().__init__()

    def record(self, stream: Any = None) -> None:
        pass


_STORED = {0: np.float32, 1: np.float64, 2: np.float16}
_COMPUTED = {68: np.float32, 70: np.float64, 77: np.float32}  # CUBLAS_COMPUTE_32F, _64F, and _32F_FAST_TF32


def _matrices(pointer: int, kind: int, lead: int, step: int, count: int, rows: int, columns: int, by_rows: int) -> np.ndarray:
    """(count, rows, columns) in memory, where the columns of each, or else its rows, lie one after another."""
    dtype, (length, lines) = np.dtype(_STORED[kind]), (columns, rows) if by_rows else (rows, columns)
    if lead < max(1, length):
        raise ValueError(f"CUBLAS_STATUS_INVALID_VALUE: lines of {length} that are {lead} apart")
    size = (count - 1) * step + (lines - 1) * lead + length
    flat = np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(pointer), dtype)
    strides = [dtype.itemsize * s for s in (step, lead if by_rows else 1, 1 if by_rows else lead)]
    return np.lib.stride_tricks.as_strided(flat, (count, rows, columns), strides)


def _tf32(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) & 0xFFFFE000).view(np.float32)


def gemmStridedBatchedEx(  # noqa: N802 (its name there)
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC,
    batchCount, computeType, algo,
):  # fmt: skip
    """``cupy.cuda.cublas.gemmStridedBatchedEx``, of matrices by columns. Nothing may be empty; no result may meet another."""
    if not all(type(v) is int for v in locals().values()) or not {transa, transb} <= {0, 1}:
        raise TypeError(f"{locals()}")
    if max(m, n, k, lda, ldb, ldc, batchCount) >= 1 << 31:
        raise OverflowError("value too large to convert to int")
    wide = _COMPUTED[computeType]
    kinds = Atype, Btype, Ctype
    allowed = {68: [(0, 0, 0), (2, 2, 2), (2, 2, 0)], 77: [(0, 0, 0)], 70: [(1, 1, 1)]}[computeType]
    if kinds not in allowed or min(m, n, k, batchCount) < 1 or batchCount > 65535 or (handle, algo) != (1, -1):
        raise ValueError(f"CUBLAS_STATUS_NOT_SUPPORTED: {locals()}")
    if batchCount > 1 and not (strideC >= n * ldc or m <= strideC and batchCount * strideC <= ldc):
        raise ValueError("fake_cupy: results in one place, which on a GPU is a data race")
    a, b = (
        np.ascontiguousarray(_matrices(*where, batchCount, *shape, by_rows), wide)
        for where, shape, by_rows in (((A, Atype, lda, strideA), (m, k), transa), ((B, Btype, ldb, strideB), (k, n), transb))
    )
    if computeType == 77:
        a, b = _tf32(a), _tf32(b)
    alpha, beta = (wide(np.ctypeslib.as_ctypes_type(wide).from_address(p).value) for p in (alpha, beta))
    c = _matrices(C, Ctype, ldc, strideC, batchCount, m, n, 0)
    with _quiet():
        c[...] = alpha * (a @ b) + (beta * c.astype(wide) if beta else 0)  # (what is times 0 is not read)


def gemmEx(  # noqa: N802
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, computeType, algo
):
    """``cupy.cuda.cublas.gemmEx``: one product."""
    gemmStridedBatchedEx(
        handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, computeType, algo
    )


class Generator:
    """``cupy.random.Generator``: few distributions, and for the same seed other numbers than NumPy's."""

    def __init__(self, bit_generator: Any) -> None:
        self._rng = np.random.default_rng(bit_generator.seed)

    def uniform(self, low=0.0, high=1.0, size=None, dtype=np.float64) -> ndarray:
        return _fresh(self._rng.uniform(low, high, size)).astype(dtype, copy=False)


for _name in """beta binomial chisquare dirichlet exponential f gamma geometric hypergeometric integers logseries
poisson power random standard_exponential standard_gamma standard_normal""".split():
    setattr(Generator, _name, lambda self, *a, _n=_name, **k: _fresh(getattr(self._rng, _n)(*a, **k)))


class XORWOW:
    def __init__(self, seed: Any = None, *, size: int = -1) -> None:
        self.seed = None if seed is None else [0xC0DA, *np.atleast_1d(seed).tolist()]


def _legacy(name: str) -> Callable:
    def draw(*args, dtype=None, **kwargs):
        r = _fresh(getattr(_STATE, name)(*args, **kwargs))
        return r if dtype is None else r.astype(dtype, copy=False)

    return draw


def _submodule(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(f"{__name__}.{name}")
    vars(module).update(members)
    return module


def _default_rng(seed=None) -> Generator:
    return seed if isinstance(seed, Generator) else Generator(seed if isinstance(seed, XORWOW) else XORWOW(seed))


_MODULE, _STATE = sys.modules[__name__], np.random.RandomState(0xC0DA)
_POOL = types.SimpleNamespace(
    **dict.fromkeys(("used_bytes", "total_bytes", "free_bytes", "n_free_blocks", "get_limit"), lambda: 0),
    **dict.fromkeys(("free_all_blocks", "set_limit"), lambda *args, **kwargs: None),
)
Stream.null = Stream(null=True)
runtime = _submodule(
    "cuda.runtime", CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: 1, getDevice=lambda: 0, is_hip=False,
    setDevice=lambda device: Device(device).use(), deviceSynchronize=Device().synchronize,
    driverGetVersion=lambda: 12090, runtimeGetVersion=lambda: 12090,
    CUDA_R_32F=0, CUDA_R_64F=1, CUDA_R_16F=2,
    getDeviceProperties=lambda device: {"name": b"fake_cupy", "totalGlobalMem": 0, "multiProcessorCount": 1},
)  # fmt: skip
cublas = _submodule(
    "cuda.cublas", gemmEx=gemmEx, gemmStridedBatchedEx=gemmStridedBatchedEx,
    CUBLAS_COMPUTE_32F=68, CUBLAS_COMPUTE_32F_FAST_TF32=77,
    CUBLAS_COMPUTE_64F=70, CUBLAS_GEMM_DEFAULT=-1, CUBLAS_OP_N=0, CUBLAS_OP_T=1,
)  # fmt: skip
cuda = _submodule(
    "cuda", Device=Device, Event=Event, Stream=Stream, runtime=runtime, alloc_pinned_memory=bytearray, cublas=cublas,
    get_cublas_handle=lambda: 1,
    is_available=_API["is_available"], get_device_id=lambda: 0, get_current_stream=lambda device_id=-1: Stream.null,
    get_elapsed_time=lambda start_event, end_event: 0.0,
)  # fmt: skip
random = _submodule(
    "random", Generator=Generator, XORWOW=XORWOW, BitGenerator=XORWOW, default_rng=_default_rng, seed=_STATE.seed,
    **{n: _legacy(n) for n in "rand randn random uniform normal standard_normal randint permutation".split()},
)  # fmt: skip
linalg = _submodule("linalg", matmul=_API["matmul"], **_table("fresh", _LINALG, np.linalg))
_compute_types: dict[str, str] = {}
_core = _submodule(
    "_core",
    _routines_linalg=_submodule(
        "_core._routines_linalg", COMPUTE_TYPE_DEFAULT="default", COMPUTE_TYPE_TF32="tf32",
        set_compute_type=_compute_types.__setitem__,
    ),
)  # fmt: skip
lib = _submodule("lib", stride_tricks=_submodule("lib.stride_tricks", **_strided))

_LACKING = frozenset(
    """block bmat einsum_path errstate frompyfunc geomspace getbufsize geterr geterrcall
histogram_bin_edges insert longdouble ma matrix matvec memmap nanpercentile nanquantile ndenumerate nditer nested_iters
object_ recarray setbufsize seterr seterrcall spacing str_ test typecodes unstack vecdot vecmat void""".split()
)


def __getattr__(name: str) -> Any:
    if name in _API:
        return _API[name]
    why = "CuPy 14.2 lacks it" if name in _LACKING else "fake_cupy does not wrap it (CuPy may have it: see its tables)"
    raise AttributeError(f"module 'cupy' has no attribute {name!r}: {why}", name=name, obj=_MODULE)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})


def as_modules() -> dict[str, types.ModuleType]:
    """For ``unittest.mock.patch.dict(sys.modules, fake_cupy.as_modules())``: covers ``import cupy.cuda`` too."""
    subs = {"cuda": cuda, "cuda.runtime": runtime, "random": random, "linalg": linalg, "lib": lib}
    return {"cupy": _MODULE, "cupy.lib.stride_tricks": lib.stride_tricks, **{f"cupy.{k}": m for k, m in subs.items()}}
