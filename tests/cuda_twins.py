"""What each CUDA kernel does, in NumPy, block for block: the same parts, the same chunks, the same order of sums.

A twin takes what its kernel takes, NumPy arrays for the pointers, and writes where it writes. Rounding may differ in the last
bit where a GPU multiplies and adds in one go.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

THREADS, WARPS, CHUNK = 256, 8, 16


class Launch(NamedTuple):
    """The grid, and what the names of types mean."""

    x: int
    y: int
    types: dict[str, np.dtype]

    def wide(self, a: Any) -> np.ndarray:
        return np.asarray(a).astype(self.types["Wide"])

    def number(self, a: float) -> Any:
        return self.types["Wide"].type(a)

    def covers(self, n: int) -> None:
        """That there is a thread for each of n elements, and no block too many."""
        assert (self.x - 1) * THREADS < n <= self.x * THREADS, f"a grid of {self.x} blocks for {n} elements"


def over_block(values: tuple[np.ndarray, ...], join) -> tuple[np.ndarray, ...]:
    """The values of all threads (the last axis), joined two and two in warps, and then the warps': over_block of common.cuh."""
    values = tuple(v.reshape(*v.shape[:-1], WARPS, THREADS // WARPS) for v in values)
    for _ in range(2):
        half = values[0].shape[-1] // 2
        while half:
            values = join(tuple(v[..., :half] for v in values), tuple(v[..., half : 2 * half] for v in values))
            half //= 2
        values = tuple(v[..., 0] for v in values)
    return values


# ----- norm.cu


def joined(a, b):
    """Chan's formula for (count, mean, m2)."""
    count = a[0] + b[0]
    safe = np.where(count == 0, 1, count)
    share, delta = b[0] / safe, b[1] - a[1]
    both = count, a[1] + delta * share, a[2] + b[2] + delta * delta * (a[0] * share)
    return tuple(np.where(b[0] == 0, u, np.where(a[0] == 0, v, w)) for u, v, w in zip(a, b, both, strict=True))


def added(a, b):
    return tuple(u + v for u, v in zip(a, b, strict=True))


def over_moments(mine, near):
    """All threads' (count, mean, m2) in plain sums: over_block of norm.cu. ``near`` (C, parts or 1)."""
    count, mean, m2 = mine
    count, along = over_block((count + 0 * mean, count * (mean - near[..., None])), added)
    mean = near + along / count
    gap = mine[1] - mean[..., None]
    return count, mean, over_block((m2 + mine[0] * gap * gap,), added)[0]


class Channels:
    """The values of x (N, C, S) as threads take them: (C, parts, chunks, CHUNK, THREADS); and back.

    A thread takes ``width`` neighbours at a time.
    """

    def __init__(self, launch: Launch, n, channels, size, span):
        assert launch.x == channels and (launch.y - 1) * span < n * size <= launch.y * span
        assert span % (CHUNK * THREADS) == 0 and launch.y <= THREADS
        self.sizes = n, channels, size
        self.padded = launch.y * span
        self.parts = launch.y
        self.width = 4 if size % 4 == 0 else 1
        self.inside = self._by_threads(np.arange(self.padded)[None] < n * size)[0]
        self.counts = self.inside.sum(axis=2)  # of each chunk of each thread

    def _by_threads(self, flat):
        turns = flat.reshape(len(flat), self.parts, -1, CHUNK // self.width, THREADS, self.width)
        return turns.swapaxes(-1, -2).reshape(len(flat), self.parts, -1, CHUNK, THREADS)

    def take(self, x):
        n, c, size = self.sizes
        flat = x.reshape(n, c, size).transpose(1, 0, 2).reshape(c, n * size)
        return self._by_threads(np.pad(flat, ((0, 0), (0, self.padded - n * size))))

    def put(self, values, out):
        n, c, size = self.sizes
        turns = values.reshape(c, -1, CHUNK // self.width, self.width, THREADS).swapaxes(-1, -2)
        flat = turns.reshape(c, self.padded)[:, : n * size]
        out.reshape(n, c, size)[...] = flat.reshape(c, n, size).transpose(1, 0, 2)


def _measure(launch, x, ch):
    values = launch.wide(ch.take(x))
    mine = tuple(np.zeros((*values.shape[:2], THREADS)) for _ in range(3))
    for chunk in range(values.shape[2]):
        inside, count = ch.inside[:, chunk], ch.counts[:, chunk]
        first = values[:, :, chunk, 0]
        d = np.where(inside, values[:, :, chunk] - first[:, :, None], launch.number(0))
        total, square = launch.wide(np.zeros_like(first)), launch.wide(np.zeros_like(first))
        for k in range(CHUNK):
            total = total + d[:, :, k]
        mean = total / launch.wide(np.maximum(count, 1))
        for k in range(CHUNK):
            square = square + np.where(inside[:, k], (d[:, :, k] - mean) ** 2, launch.number(0))
        some = np.broadcast_to(count, first.shape).astype(float), first.astype(float) + mean, square.astype(float)
        mine = joined(mine, some)
    return over_moments(mine, launch.wide(x.reshape(*ch.sizes)[0, :, :1]).astype(float))  # each (C, parts)


def _centred(launch, values, mean):
    near = launch.wide(mean)
    return values - near - launch.wide(mean - near)


def _correlate(launch, g, x, mean, ch):
    a, b = launch.wide(ch.take(g)), launch.wide(ch.take(x))
    mean = mean[:, None, None, None, None]
    d = np.where(ch.inside, _centred(launch, b, mean), launch.number(0))
    mine = tuple(np.zeros((*a.shape[:2], THREADS)) for _ in range(2))
    for chunk in range(a.shape[2]):
        one = x_ = launch.wide(np.zeros(a.shape[:2] + (THREADS,)))
        for k in range(CHUNK):
            one = one + a[:, :, chunk, k]
            x_ = x_ + a[:, :, chunk, k] * d[:, :, chunk, k]
        mine = added(mine, (one.astype(float), x_.astype(float)))
    return over_block(mine, added)


def _column(a):
    return a[:, None, None, None, None]


def _normalise(launch, x, gamma, beta, mean, var, eps, y, ch):
    values = launch.wide(ch.take(x))
    inv_std = launch.wide(1 / np.sqrt(var + eps))
    scale = launch.wide(np.ones_like(mean)) if gamma is None else gamma
    shift = launch.wide(np.zeros_like(mean)) if beta is None else beta
    d = _centred(launch, values, _column(mean))
    ch.put(d * _column(inv_std) * _column(scale) + _column(shift), y)


def _differentiate(launch, g, x, gamma, mean, var, eps, sums, count, dx, ch):
    inv_std = 1 / np.sqrt(var + eps)
    along_one, along_x_hat = launch.wide(sums[0] / count), launch.wide(sums[1] * inv_std / count)
    scale = launch.wide(inv_std * (1 if gamma is None else gamma.astype(float)))
    x_hat = _centred(launch, launch.wide(ch.take(x)), _column(mean)) * _column(launch.wide(inv_std))
    a = launch.wide(ch.take(g))
    ch.put((a - (x_hat * _column(along_x_hat) + _column(along_one))) * _column(scale), dx)


def _write_statistics(moments, mean, var):
    mean[...] = moments[1]
    var[...] = moments[2] / moments[0]


def _write_affine(launch, sums, var, eps, dgamma, dbeta):
    if dgamma is not None:
        dgamma[...] = launch.wide(sums[1] / np.sqrt(var + eps))
        dbeta[...] = launch.wide(sums[0])


def _by_parts(parts):
    """(fields, C, parts), one part to a thread."""
    return np.pad(parts, ((0, 0), (0, 0), (0, THREADS - parts.shape[2])))


def batch_norm(launch, x, n, channels, size, span, gamma, beta, eps, y, mean, var):
    assert launch.y == 1
    ch = Channels(launch, n, channels, size, span)
    _write_statistics([v[:, 0] for v in _measure(launch, x, ch)], mean, var)
    _normalise(launch, x, gamma, beta, mean, var, eps, y, ch)


def batch_norm_parts(launch, x, n, channels, size, span, parts):
    parts[...] = _measure(launch, x, Channels(launch, n, channels, size, span))


def batch_norm_joined(launch, x, n, channels, size, span, parts, gamma, beta, eps, y, mean, var):
    _write_statistics(over_moments(_by_parts(parts), parts[1, :, 0]), mean, var)
    _normalise(launch, x, gamma, beta, mean, var, eps, y, Channels(launch, n, channels, size, span))


def batch_norm_inference(launch, x, n, channels, size, span, gamma, beta, mean, var, eps, y):
    statistics = mean.astype(float), var.astype(float)
    _normalise(launch, x, gamma, beta, *statistics, eps, y, Channels(launch, n, channels, size, span))


def batch_norm_backward(launch, g, x, n, channels, size, span, gamma, mean, var, eps, dx, dgamma, dbeta):
    assert launch.y == 1
    ch = Channels(launch, n, channels, size, span)
    sums = [v[:, 0] for v in _correlate(launch, g, x, mean, ch)]
    _write_affine(launch, sums, var, eps, dgamma, dbeta)
    _differentiate(launch, g, x, gamma, mean, var, eps, sums, float(n * size), dx, ch)


def batch_norm_backward_parts(launch, g, x, n, channels, size, span, mean, parts):
    parts[...] = _correlate(launch, g, x, mean, Channels(launch, n, channels, size, span))


def batch_norm_backward_joined(launch, g, x, n, channels, size, span, parts, gamma, mean, var, eps, dx, dgamma, dbeta):
    sums = over_block(_by_parts(parts), added)
    _write_affine(launch, sums, var, eps, dgamma, dbeta)
    ch = Channels(launch, n, channels, size, span)
    _differentiate(launch, g, x, gamma, mean, var, eps, sums, float(n * size), dx, ch)


def follow(launch, running_mean, running_var, mean, var, channels, weight, correction, new_mean, new_var):
    launch.covers(channels)
    finite = np.isfinite(mean) & np.isfinite(var)
    for old, new, batch in ((running_mean, new_mean, mean), (running_var, new_var, var * correction)):
        new[...] = np.where(finite, (1 - weight) * old.astype(float) + weight * batch, old)


# ----- elementwise.cu


def relu(launch, x, n, y):
    launch.covers(-(-n // 4))  # EACH
    y[...] = np.where(x < 0, x.dtype.type(0), x)


def relu_backward(launch, g, y, n, dx):
    launch.covers(-(-n // 4))  # EACH
    dx[...] = g * (y > 0)


def add_bias(launch, b, n, channels, size, y):
    launch.covers(-(-n // 4))  # EACH
    y[...] = (launch.wide(y).reshape(-1, channels, size) + launch.wide(b)[:, None]).reshape(y.shape)


def sigmoid(launch, x, n, y):
    launch.covers(-(-n // 4))  # EACH
    half = launch.number(0.5)
    y[...] = half * np.tanh(half * launch.wide(x)) + half


def sigmoid_backward(launch, g, y, n, dx):
    launch.covers(-(-n // 4))  # EACH
    dx[...] = launch.wide(g) * launch.wide(y) * (1 - launch.wide(y))


# ----- pool.cu


class Windows(NamedTuple):
    planes: int
    h: int
    w: int
    oh: int
    ow: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int


def _windows(struct):
    return Windows(*struct.view(np.int32).tolist())


def _spots(launch, planes, rows, columns):
    """Plane, row and column of each thread's element."""
    launch.covers(planes * rows * columns)
    return tuple(spot.reshape(-1) for spot in np.mgrid[:planes, :rows, :columns])


def _reach(x, plane, row, column, otherwise):
    """x (planes, h, w) there, or ``otherwise`` outside; and whether it is inside."""
    _, h, w = x.shape
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    return np.where(inside, x[plane, np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)], x.dtype.type(otherwise)), inside


def max_pool2d(launch, x, windows, y, place):
    of = _windows(windows)
    plane, row, column = _spots(launch, of.planes, of.oh, of.ow)
    x = launch.wide(x).reshape(of.planes, of.h, of.w)
    best, number = np.full(plane.shape, -np.inf, x.dtype), np.zeros(plane.shape, int)
    nan = np.zeros(plane.shape, bool)
    for k in range(of.kh * of.kw):
        v, inside = _reach(x, plane, row * of.sh - of.ph + k // of.kw, column * of.sw - of.pw + k % of.kw, -np.inf)
        nan |= inside & np.isnan(v)
        better = inside & (v > best)
        best, number = np.where(better, v, best), np.where(better, k, number)
    y.reshape(-1)[...] = np.where(nan, np.nan, best)
    place.reshape(-1)[...] = np.where(nan, 0, number)


def _covering(of, row, column):
    """The windows over each element in the kernel's order: its offset in the window, the window, and whether there is one."""
    for down in reversed(range(of.kh)):
        for right in reversed(range(of.kw)):
            a, b = (row - down) // of.sh, (column - right) // of.sw
            inside = (a * of.sh == row - down) & (b * of.sw == column - right) & (a >= 0) & (a < of.oh) & (b >= 0) & (b < of.ow)
            yield down * of.kw + right, np.clip(a, 0, of.oh - 1), np.clip(b, 0, of.ow - 1), inside


def max_pool2d_scatter(launch, g, place, windows, dx):
    of = _windows(windows)
    plane, row, column = _spots(launch, of.planes, of.h, of.w)
    g, place = (a.reshape(of.planes, of.oh, of.ow) for a in (launch.wide(g), place))
    total = np.zeros(plane.shape, g.dtype)
    for k, a, b, inside in _covering(of, row + of.ph, column + of.pw):
        total = np.where(inside & (place[plane, a, b] == k), total + g[plane, a, b], total)
    dx.reshape(-1)[...] = total


def max_pool2d_gather(launch, x, place, windows, y):
    of = _windows(windows)
    plane, row, column = _spots(launch, of.planes, of.oh, of.ow)
    at = place.reshape(-1).astype(int)
    x = x.reshape(of.planes, of.h, of.w)
    row, column = row * of.sh - of.ph + at // of.kw, column * of.sw - of.pw + at % of.kw
    y.reshape(-1)[...] = _reach(x, plane, row, column, 0)[0]


def avg_pool2d(launch, x, windows, y):
    of = _windows(windows)
    plane, row, column = _spots(launch, of.planes, of.oh, of.ow)
    x = launch.wide(x).reshape(of.planes, of.h, of.w)
    total = np.zeros(plane.shape, x.dtype)
    for k in range(of.kh * of.kw):
        v, inside = _reach(x, plane, row * of.sh - of.ph + k // of.kw, column * of.sw - of.pw + k % of.kw, 0)
        total = np.where(inside, total + v, total)
    y.reshape(-1)[...] = total / launch.number(of.kh * of.kw)


def avg_pool2d_spread(launch, g, windows, dx):
    of = _windows(windows)
    plane, row, column = _spots(launch, of.planes, of.h, of.w)
    g = launch.wide(g).reshape(of.planes, of.oh, of.ow)
    total = np.zeros(plane.shape, g.dtype)
    for _, a, b, inside in _covering(of, row + of.ph, column + of.pw):
        total = np.where(inside, total + g[plane, a, b], total)
    dx.reshape(-1)[...] = total / launch.number(of.kh * of.kw)


# ----- loss.cu


def _by_threads(a, otherwise):
    """(N, C) as the threads of a block take it: (N, turns, THREADS)."""
    n, c = a.shape
    return np.pad(a, ((0, 0), (0, -c % THREADS)), constant_values=otherwise).reshape(n, -1, THREADS)


def _sum(values):
    """(N, turns, THREADS): each thread's in turn, then over the block."""
    mine = np.zeros(values.shape[::2], values.dtype)
    for turn in range(values.shape[1]):
        mine = mine + values[:, turn]
    return over_block((mine,), added)[0]


def _softmax(launch, x):
    x = launch.wide(x)
    largest = over_block((_by_threads(x, -np.inf).max(axis=1),), lambda a, b: (np.maximum(a[0], b[0]),))[0]
    d = x - largest[:, None]
    return d, _sum(_by_threads(np.exp(d), 0))


def _inside(launch, labels, classes):
    assert launch.x == len(labels)
    return (labels >= 0) & (labels < classes)


def cross_entropy(launch, x, labels, classes, smoothing, losses):
    inside = _inside(launch, labels, classes)
    d, total = _softmax(launch, x)
    chosen = np.where(inside, d[np.arange(len(d)), np.where(inside, labels, 0)], launch.number(np.nan))
    if smoothing != 0:
        mean = _sum(_by_threads(d, 0)) / launch.number(classes)
        chosen = chosen * launch.number(1 - smoothing) + mean * launch.number(smoothing)
    losses[...] = np.log(total) - chosen


def cross_entropy_backward(launch, g, x, labels, classes, smoothing, dx):
    inside = _inside(launch, labels, classes)
    d, total = _softmax(launch, x)
    hot = labels[:, None] == np.arange(classes)
    everywhere = np.where(inside, launch.number(smoothing / classes), launch.number(np.nan))[:, None]
    target = everywhere + np.where(hot, launch.number(1 - smoothing), launch.number(0))
    dx[...] = (np.exp(d) / total[:, None] - target) * launch.wide(g)[:, None]


# ----- philox.cu

_LOW = 2**64 - 1


def _high(a, b):
    return np.array([int(v) * b >> 64 for v in a], np.uint64)


def dropout(launch, x, n, scale, threshold, key, y):
    blocks = -(-n // 4)
    launch.covers(blocks)
    zero = np.zeros(blocks, np.uint64)
    c, k0, k1 = [np.arange(1, blocks + 1, dtype=np.uint64), zero, zero, zero], int(key), 0
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93, 0xCA5A826395121157
        high0, low0, high1, low1 = _high(c[0], a), c[0] * np.uint64(a), _high(c[2], b), c[2] * np.uint64(b)
        c = [high1 ^ c[1] ^ np.uint64(k0), low1, high0 ^ c[3] ^ np.uint64(k1), low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _LOW, (k1 + 0xBB67AE8584CAA73B) & _LOW
    keep = (np.stack(c, axis=1).reshape(-1)[:n] >> np.uint64(11) >= threshold).reshape(x.shape)
    y[...] = np.where(keep, launch.wide(x) * launch.number(scale), launch.number(0))


# ----- optim.cu


def _gradient(launch, table):
    """The gradient, read where the table says that its pieces lie; and where it belongs among the weights."""
    (count, stop), starts, addresses = np.split(table.view(np.int64), [2, 2 + 128])
    starts, real = starts[:count].tolist(), launch.types["Real"]
    ends = [*starts[1:], int(stop)]
    pieces = []
    for start, end, address in zip(starts, ends, addresses[:count].tolist(), strict=True):
        memory = (ctypes.c_char * ((end - start) * real.itemsize)).from_address(address)
        pieces.append(np.frombuffer(memory, real))
    at = slice(starts[0], int(stop))
    launch.covers(at.stop - at.start)
    return launch.wide(np.concatenate(pieces)), at


def sgd(launch, weights, grads, buffer, first_step, lr, momentum, dampening, weight_decay, nesterov):
    g, at = _gradient(launch, grads)
    w = launch.wide(weights[at])
    if weight_decay != 0:
        g = g + launch.number(weight_decay) * w
    if momentum != 0:
        b = g if first_step else launch.number(momentum) * launch.wide(buffer[at]) + launch.number(1 - dampening) * g
        buffer[at] = b
        g = g + launch.number(momentum) * b if nesterov else b
    weights[at] = w - launch.number(lr) * g


def adam(launch, weights, grads, mean, square, beta1, beta2, scale, root, eps, decay, keep):
    g, at = _gradient(launch, grads)
    w, number = launch.wide(weights[at]), launch.number
    if decay != 0:
        g = g + number(decay) * w
    m = number(beta1) * launch.wide(mean[at]) + number(1 - beta1) * g
    v = number(beta2) * launch.wide(square[at]) + number(1 - beta2) * (g * g)
    mean[at], square[at] = m, v
    weights[at] = number(keep) * w - number(scale) * (m / (np.sqrt(v) * number(root) + number(eps)))


# ----- conv.cu


def _grid(struct):
    return struct.view(np.int32).tolist()


def im2col(launch, x, grid, patches):
    n, c, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw = _grid(grid)
    launch.covers(n * c * oh * ow)
    c_, a, b, n_, i, j = np.ogrid[:c, :kh, :kw, :n, :oh, :ow]
    x = x.reshape(n * c, h, w)
    patches.reshape(-1)[...] = _reach(x, n_ * c + c_, i * sh - ph + a * dh, j * sw - pw + b * dw, 0)[0].reshape(-1)


def col2im(launch, patches, grid, x):
    n, c, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw = _grid(grid)
    plane, y, z = _spots(launch, n * c, h, w)
    patches = launch.wide(patches).reshape(c, kh, kw, n, oh, ow)
    total = np.zeros(plane.shape, patches.dtype)
    for i in range(oh):
        for j in range(ow):
            down, right = y + ph - i * sh, z + pw - j * sw
            a, b = down // dh, right // dw
            inside = (down >= 0) & (down % dh == 0) & (a < kh) & (right >= 0) & (right % dw == 0) & (b < kw)
            v = patches[plane % c, np.clip(a, 0, kh - 1), np.clip(b, 0, kw - 1), plane // c, i, j]
            total = np.where(inside, total + v, total)
    x.reshape(-1)[...] = total


# ----- reduce.cu


def mean_all(launch, x, n, y):
    assert (launch.x, launch.y) == (1, 1)
    padded = np.zeros(-(-n // THREADS) * THREADS)
    padded[:n] = launch.wide(x).ravel()
    threads = padded.reshape(-1, THREADS)
    mine = np.zeros(THREADS)
    for row in threads:
        mine = mine + row
    y[...] = over_block((mine,), added)[0] / n


def spread(launch, g, n, count, out):
    launch.covers(n)
    out[...] = launch.wide(g) / launch.number(count)


# ----- sums.cu


def sum_parts(launch, x, values, channels, size, span, width, parts, y):
    lanes = THREADS // width
    assert (width == 1) == (size > 1 or channels == 1)  # neighbours read neighbours
    assert (launch.x - 1) * width < channels <= launch.x * width and (launch.y - 1) * span < values <= launch.y * span
    assert span % (lanes * CHUNK) == 0 and (launch.y == 1) == (parts is None)
    flat = launch.wide(x).reshape(-1, channels, size).transpose(1, 0, 2).reshape(channels, values)
    taken = np.pad(flat, ((0, 0), (0, launch.y * span - values))).reshape(channels, launch.y, -1, CHUNK, lanes)
    mine = np.zeros((channels, launch.y, lanes))
    for chunk in range(taken.shape[2]):
        total = np.zeros(mine.shape, taken.dtype)
        for k in range(CHUNK):
            total = total + taken[:, :, chunk, k]
        mine = mine + total
    while mine.shape[2] > 1:
        half = mine.shape[2] // 2
        mine = mine[..., :half] + mine[..., half:]
    if parts is None:
        y[...] = launch.wide(mine[:, 0, 0])
    else:
        parts[...] = mine[..., 0].T


def join_parts(launch, parts, count, channels, y):
    launch.covers(channels)
    total = np.zeros(channels)
    for p in range(count):
        total = total + parts[p]
    y[...] = launch.wide(total)
