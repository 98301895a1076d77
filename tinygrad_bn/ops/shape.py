"""Reshaping, joining, cutting, and indexing. Each rule undoes the move."""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import prod

from ..backend import ARRAY_TYPES, device_of, xp_of, zeros
from ..backend import to_device as move_array
from ..core import AddAt, Box, broadcast_to, primitive
from .checks import axes_of, ints_of, is_int, need_one_device, one_axis, shape_of

# ----- reshape


@primitive
def _reshape(x, *, shape):
    return x.reshape(shape)


_reshape.defvjp(lambda g, _out, _x, *, shape: _reshape(g, shape=_x.shape))


def reshape(x, *shape):
    """x with another shape of as many elements: a tuple or separate ints, one of which may be -1."""
    target = ints_of("reshape", "the new shape", shape)
    size, known = prod(shape_of("reshape", x)), prod(n for n in target if n != -1)
    fits = size == known if -1 not in target else known != 0 and size % known == 0 and target.count(-1) == 1
    if not fits or any(n < -1 for n in target):
        raise ValueError(f"reshape cannot bring shape {x.shape} ({size} elements) to {target}")
    return _reshape(x, shape=target)


def flatten(x, start_axis=0):
    """x with all axes from ``start_axis`` on made one; x itself if that is one already."""
    start = one_axis("flatten", start_axis, len(x.shape)) if shape_of("flatten", x) else 0
    if start == len(x.shape) - 1:
        return x
    return _reshape(x, shape=(*x.shape[:start], prod(x.shape[start:])))


def squeeze(x, axis=None):
    """x without its axes of length 1, or without those named, which must have that length."""
    ndim = len(shape_of("squeeze", x))
    axes = axis if isinstance(axis, tuple) else (axis,)
    drop = [i for i, n in enumerate(x.shape) if n == 1] if axis is None else [one_axis("squeeze", a, ndim) for a in axes]
    for a in drop:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze expected axis {a} to have length 1, got {x.shape[a]} (shape {x.shape})")
    return _reshape(x, shape=tuple(n for i, n in enumerate(x.shape) if i not in drop))


def unsqueeze(x, axis):
    """x with a new axis of length 1 at ``axis``."""
    at = one_axis("unsqueeze", axis, len(shape_of("unsqueeze", x)) + 1)
    return _reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))


# ----- the order of axes


@primitive
def _transpose(x, *, axes):
    return x.transpose(axes)


_transpose.defvjp(lambda g, _out, _x, *, axes: _transpose(g, axes=tuple(sorted(range(len(axes)), key=axes.__getitem__))))


def transpose(x, *axes):
    """x with its axes in another order: a tuple or separate ints; without any, reversed."""
    ndim = len(shape_of("transpose", x))
    if not axes or axes == (None,):
        return _transpose(x, axes=tuple(reversed(range(ndim))))
    order = ints_of("transpose", "the axes", axes)
    if sorted(a % ndim if -ndim <= a < ndim else -1 for a in order) != list(range(ndim)):
        raise ValueError(f"transpose expected each of the {ndim} axes once, got {order}")
    return _transpose(x, axes=tuple(a % ndim for a in order))


def swapaxes(x, axis1, axis2):
    """x with two axes exchanged."""
    ndim = len(shape_of("swapaxes", x))
    a, b = one_axis("swapaxes", axis1, ndim), one_axis("swapaxes", axis2, ndim)
    order = list(range(ndim))
    order[a], order[b] = b, a
    return _transpose(x, axes=tuple(order))


def moveaxis(x, source, destination):
    """x with one axis moved to another place, the others in their order."""
    ndim = len(shape_of("moveaxis", x))
    a, b = one_axis("moveaxis", source, ndim), one_axis("moveaxis", destination, ndim)
    order = [i for i in range(ndim) if i != a]
    order.insert(b, a)
    return _transpose(x, axes=tuple(order))


@primitive
def _flip(x, *, axes):
    return xp_of(x).flip(x, axes)


_flip.defvjp(lambda g, _out, _x, *, axes: _flip(g, axes=axes))


def flip(x, axis=None):
    """x with the order of elements reversed along ``axis`` (an int, a tuple, or None for all)."""
    return _flip(x, axes=axes_of("flip", len(shape_of("flip", x)), axis))


def expand(x, *shape):
    """x repeated along its axes of length 1, and along new ones in front, to ``shape``; -1 keeps a length."""
    target = ints_of("expand", "the new shape", shape)
    lead = len(target) - len(shape_of("expand", x))
    full = tuple(x.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(target))
    if lead < 0 or any(n != m and n != 1 for n, m in zip(x.shape, full[lead:], strict=True)) or min(full, default=0) < 0:
        raise ValueError(f"expand cannot bring shape {x.shape} to {target}: only axes of length 1 and new ones in front repeat")
    return broadcast_to(x, shape=full)


# ----- joining and cutting


@primitive
def _concatenate(*arrays, axis):
    return xp_of(arrays[0]).concatenate(arrays, axis=axis)


@_concatenate.vjp
def _(g, _out, *_xs, axis):
    ends = list(accumulate(x.shape[axis] for x in _xs))
    lead = (slice(None),) * axis
    return [getitem(g, (*lead, slice(end - x.shape[axis], end))) for x, end in zip(_xs, ends, strict=True)]


def _arrays(name, arrays, axis):
    if isinstance(axis, Box):
        raise TypeError(f"{name} expected axis to be an int, got a Tensor; pass the arrays as one sequence")
    if not hasattr(arrays, "__iter__"):
        raise TypeError(f"{name} expected a sequence of Tensors or arrays, got {type(arrays).__name__}")
    arrays = list(arrays) if not hasattr(arrays, "shape") else [arrays[i] for i in range(arrays.shape[0])]
    if not arrays:
        raise ValueError(f"{name} expected at least one array, got none")
    for i, a in enumerate(arrays):
        if not hasattr(a, "shape"):
            raise TypeError(f"{name} expected Tensors or arrays, got {type(a).__name__} at position {i}")
    return arrays


def concatenate(arrays, axis=0):
    """Arrays joined along an axis that they have; the other axes must agree."""
    arrays = _arrays("concatenate", arrays, axis)
    at = one_axis("concatenate", axis, len(arrays[0].shape))
    rest = {(*a.shape[:at], *a.shape[at + 1 :]) if len(a.shape) > at else None for a in arrays}
    if len(rest) > 1 or len({len(a.shape) for a in arrays}) > 1:
        raise ValueError(
            f"concatenate expected shapes that agree but along axis {at}, got {', '.join(str(a.shape) for a in arrays)}"
        )
    return _concatenate(*arrays, axis=at)


def stack(arrays, axis=0):
    """Arrays of one shape, joined along a new axis."""
    arrays = _arrays("stack", arrays, axis)
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"stack expected arrays of one shape, got {', '.join(str(a.shape) for a in arrays)}")
    at = one_axis("stack", axis, len(arrays[0].shape) + 1)
    return _concatenate(*[unsqueeze(a, at) for a in arrays], axis=at)


def split(x, sections_or_indices, axis=0):
    """A list of parts of x along ``axis``: so many equal ones, or cut before each of the rising indices."""
    at = one_axis("split", axis, len(shape_of("split", x)))
    n = x.shape[at]
    if is_int(sections_or_indices):
        sections = int(sections_or_indices)
        if sections < 1 or n % sections:
            raise ValueError(f"split expected a number of sections that divides axis {at} of length {n}, got {sections}")
        cuts = [n // sections * i for i in range(1, sections)]
    else:
        if not hasattr(sections_or_indices, "__iter__"):
            raise TypeError(f"split expected a number of sections or the indices to cut at, got {sections_or_indices!r}")
        cuts = list(ints_of("split", "the indices", tuple(sections_or_indices)))
        if any(not a < b for a, b in pairwise([0, *cuts, n])):
            raise ValueError(
                f"split expected rising indices between 0 and {n} where axis {at} of length {n} is cut (not the sizes of the "
                f"parts), got {cuts}"
            )
    lead = (slice(None),) * at
    return [getitem(x, (*lead, slice(a, b))) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


@primitive
def pad(x, *, pad_width, value=0.0):
    """x with ``value`` around it. ``pad_width``: an int, (before, after), or one such pair for each axis."""
    out = xp_of(x).full([n + a + b for n, (a, b) in zip(x.shape, _pairs(x, pad_width), strict=True)], value, dtype=x.dtype)
    out[_inner(x, pad_width)] = x
    return out


pad.defvjp(lambda g, _out, _x, *, pad_width, value: getitem(g, _inner(_x, pad_width)))


def _pairs(x, pad_width):
    ndim = len(x.shape)
    given = tuple(pad_width) if hasattr(pad_width, "__iter__") else (pad_width, pad_width)
    if len(given) == 2 and all(is_int(w) for w in given):
        pairs = (given,) * ndim
    else:
        pairs = tuple(tuple(w) if hasattr(w, "__iter__") else () for w in given)
    if len(pairs) != ndim or any(len(w) != 2 or not all(is_int(n) and n >= 0 for n in w) for w in pairs):
        raise ValueError(
            f"pad expected an int, (before, after), or {ndim} such pairs, none negative, for an input of shape {x.shape}; "
            f"got {pad_width!r}"
        )
    return pairs


def _inner(x, pad_width):
    return tuple(slice(a, a + n) for n, (a, _b) in zip(x.shape, _pairs(x, pad_width), strict=True))


# ----- indexing: reading at an index and adding at it are each other's rule


@primitive
def _getitem(x, *, index):
    return x[index]


@primitive
def _put(x, *, index, shape):
    """Zeros of ``shape`` with x added at ``index``."""
    out = zeros(shape, x.dtype, like=x)
    xp_of(x).add.at(out, index, x)
    return out


_getitem.defvjp(lambda g, _out, _x, *, index: _put(g, index=index, shape=_x.shape))
_getitem.fused_vjp(lambda g, _out, _x, *, index: (AddAt(index, g),))
_put.defvjp(lambda g, _out, _x, *, index, shape: _getitem(g, index=index))


def getitem(x, index):
    """x[index], with ints, slices, None, Ellipsis, integer arrays and boolean masks, as in NumPy.

    Raises IndexError where NumPy does. An index array must not change before backward. (A boolean mask makes CUDA wait for
    its count of elements.)
    """
    items = index if isinstance(index, tuple) else (index,)
    raw = x._data if isinstance(x, Box) else x
    clean = tuple(_index_item(i, raw) for i in items)
    return _getitem(x, index=clean if isinstance(index, tuple) else clean[0])


def _index_item(item, x):
    if isinstance(item, Box):
        item = item._data
    if isinstance(item, list):
        item = xp_of(x).asarray(item)
    if hasattr(item, "dtype") and item.dtype.kind not in "iub":
        raise IndexError(f"an index expected integers or booleans, got an array of {item.dtype}")
    if type(item) in ARRAY_TYPES and device_of(item) != device_of(x):
        raise ValueError(
            f"an index on {device_of(item)} cannot be used on a tensor on {device_of(x)}; move it with .to(device)"
        )
    if isinstance(item, float):
        raise IndexError(f"an index expected ints, slices, None, Ellipsis or arrays, got the float {item!r}")
    return item


def embedding(indices, weight):
    """Rows of a table: (...) integers, (num_embeddings, dim) -> (..., dim). Indices on the host are range-checked."""
    raw = indices._data if isinstance(indices, Box) else indices
    if not hasattr(raw, "dtype") or raw.dtype.kind not in "iu":
        raise TypeError(f"embedding expected an integer array of indices, got {getattr(raw, 'dtype', type(raw).__name__)}")
    shape = shape_of("embedding", weight, "weight")
    if not shape or not shape[0]:
        raise ValueError(f"embedding expected a weight (num_embeddings, dim) of at least one row, got shape {shape}")
    need_one_device("embedding", indices=raw, weight=weight)
    rows = shape[0]
    if device_of(raw) == "cpu" and raw.size and not (0 <= int(raw.min()) and int(raw.max()) < rows):
        raise ValueError(f"embedding expected indices from 0 to {rows - 1}, got values from {raw.min()} to {raw.max()}")
    return _getitem(weight, index=raw)


# ----- devices


@primitive
def _to_device(x, *, device, source):
    return move_array(x, device)


_to_device.defvjp(lambda g, _out, _x, *, device, source: _to_device(g, device=source, source=device))


def to_device(x, device):
    """x copied to ``"cpu"`` or ``"cuda"``; x itself if it is there already. The gradient goes back the same way."""
    here = device_of(x._data if isinstance(x, Box) else x)
    there = "cuda" if device == "cuda:0" else device
    return x if here == there else _to_device(x, device=there, source=here)
