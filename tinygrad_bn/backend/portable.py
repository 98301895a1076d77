"""Every kernel in plain array code that runs on NumPy and CuPy alike: short, obvious, and the oracle of the fast ones.

Arguments have been checked by the operations that call them. Shapes are (N, C, H, W); ``x`` is never changed.
"""

from __future__ import annotations

from math import prod

from .libraries import xp_of as _xp

# ----- elementwise, and products


def add(x, y):
    """x + y, broadcast."""
    return x + y


def relu(x):
    """max(x, 0). NaN stays NaN."""
    return _xp(x).maximum(x, 0.0)


def relu_backward(g, y):
    """g where y > 0, else 0 (or NaN, of an infinite g)."""
    return g * (y > 0)


def sigmoid(x):
    """1 / (1 + e ** -x), computed as (1 + tanh(x / 2)) / 2, which never overflows."""
    y = _xp(x).tanh(0.5 * x)
    y *= 0.5
    y += 0.5
    return y


def sigmoid_backward(g, y):
    """g y (1 - y)."""
    return g * y * (1.0 - y)


def matmul(x, y):
    """x @ y as in NumPy."""
    return _xp(x).matmul(x, y)


def linear(x, w, b):
    """(..., in), (out, in), (out,) or None -> (..., out): x @ w.T + b."""
    y = _xp(x).matmul(rows_of(x), w.T)
    if b is not None:
        y += b
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], w.shape[0])


def linear_backward(g, x, w, want_x, want_w):
    """(..., out), (..., in), (out, in) -> dx = g @ w, dw = g.T @ x over all rows; None for what is not wanted."""
    xp = _xp(g)
    rows = rows_of(g)
    dx = xp.matmul(rows, w) if want_x else None
    dw = xp.matmul(rows.T, rows_of(x)) if want_w else None
    return (dx if dx is None or g.ndim == 2 else dx.reshape(x.shape)), dw


def rows_of(x):
    """(..., n) -> (rows, n): one product serves for all, however many axes."""
    return x if x.ndim == 2 else x.reshape(prod(x.shape[:-1]), x.shape[-1])


def einsum(subscripts, operands):
    """NumPy's einsum, by products of matrices where it can be."""
    return _xp(operands[0]).einsum(subscripts, *operands, optimize=len(operands) > 1)


def mean_all(x):
    """The mean of all elements, of a floating array that has some."""
    return x.sum(axis=tuple(range(x.ndim))) / x.size


def spread(g, shape, count):
    """An array of that shape, full of g / count, for a g of shape ()."""
    out = _xp(g).empty(shape, g.dtype)
    out[...] = g / count
    return out


def sum_pixels(x):
    """(N, C, H, W) -> (C,): the sum over samples and pixels."""
    return x.sum(axis=(0, 2, 3))


def sum_rows(x):
    """(..., n) -> (n,): the sum over all rows."""
    return x.sum(axis=tuple(range(x.ndim - 1)))


# ----- convolution: patches and one matrix product, a few samples at a time so that the patches stay in the cache

_PATCH_ELEMENTS = 1 << 18


def conv2d(x, w, b, stride, padding, dilation, groups):
    """(N, C, H, W), (O, C/G, kh, kw), (O,) or None -> (N, O, H', W')."""
    xp = _xp(x)
    n, o = x.shape[0], w.shape[0]
    kernel, (oh, ow) = w.shape[2:], window_counts(x.shape, w.shape[2:], stride, padding, dilation)
    rows = w.reshape(groups, o // groups, -1)  # gok
    y = xp.empty((n, groups, o // groups, oh * ow), x.dtype)
    for part in _parts(n, w.shape[1] * groups * prod(kernel) * oh * ow):
        xp.matmul(rows, _patches(x[part], kernel, (oh, ow), stride, padding, dilation, groups), out=y[part])  # gok,ngkl->ngol
    y = y.reshape(n, o, oh, ow)
    if b is not None:
        y += b.reshape(1, -1, 1, 1)
    return y


def conv2d_input(g, w, shape, stride, padding, dilation, groups):
    """The gradient of conv2d for its input: (N, O, H', W'), (O, C/G, kh, kw) -> ``shape`` (N, C, H, W)."""
    xp = _xp(g)
    n, o, oh, ow = g.shape
    kernel = w.shape[2:]
    columns = w.reshape(groups, o // groups, -1).transpose(0, 2, 1)  # gko
    g = g.reshape(n, groups, o // groups, oh * ow)
    x = xp.zeros(shape, g.dtype)
    for part in _parts(n, shape[1] * prod(kernel) * oh * ow):
        patches = xp.matmul(columns, g[part])  # gko,ngol->ngkl
        _add_patches(x[part], patches.reshape(len(patches), shape[1], *kernel, oh, ow), stride, padding, dilation)
    return x


def conv2d_weight(g, x, shape, stride, padding, dilation, groups):
    """The gradient of conv2d for its weight: (N, O, H', W'), (N, C, H, W) -> ``shape`` (O, C/G, kh, kw)."""
    xp = _xp(x)
    n, o, oh, ow = g.shape
    kernel = shape[2:]
    g = g.reshape(n, groups, o // groups, oh * ow)
    w = xp.zeros((groups, o // groups, prod(shape[1:])), g.dtype)
    for part in _parts(n, shape[1] * groups * prod(kernel) * oh * ow):
        patches = _patches(x[part], kernel, (oh, ow), stride, padding, dilation, groups)
        w += xp.matmul(g[part], patches.transpose(0, 1, 3, 2)).sum(axis=0)  # ngol,nglk->ngok
    return w.reshape(shape)


def window_counts(shape, kernel, stride, padding, dilation=(1, 1)):
    """How many windows fit along each axis of an image: (H', W')."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    )


def _parts(n, elements):
    """Slices of a few samples each, with about ``_PATCH_ELEMENTS`` together."""
    step = max(1, _PATCH_ELEMENTS // max(1, elements))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _offsets(kernel, counts, stride, dilation=(1, 1)):
    """For each offset (i, j) in the window: i, j, and the index of the elements of all windows at that offset."""
    (kh, kw), (oh, ow), (sh, sw), (dh, dw) = kernel, counts, stride, dilation
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
            yield i, j, (..., rows, columns)


def _padded(x, padding, value=0.0):
    (ph, pw), (n, c, h, w) = padding, x.shape
    if not ph and not pw:
        return x
    out = _xp(x).full((n, c, h + 2 * ph, w + 2 * pw), value, dtype=x.dtype)
    out[:, :, ph : ph + h, pw : pw + w] = x
    return out


def _patches(x, kernel, counts, stride, padding, dilation, groups):
    """(n, C, H, W) -> (n, G, C/G * kh * kw, H' * W'): the input under each of ``counts`` windows, by kh * kw strided copies."""
    n, c = x.shape[:2]
    out = _xp(x).empty((n, c, *kernel, *counts), x.dtype)
    x = _padded(x, padding)
    for i, j, at in _offsets(kernel, counts, stride, dilation):
        out[:, :, i, j] = x[at]
    return out.reshape(n, groups, -1, prod(counts))


def _add_patches(x, patches, stride, padding, dilation):
    """The adjoint of ``_patches``: add (n, C, kh, kw, H', W') into x."""
    (ph, pw), (n, c, h, w) = padding, x.shape
    out = _xp(x).zeros((n, c, h + 2 * ph, w + 2 * pw), x.dtype) if ph or pw else x
    for i, j, at in _offsets(patches.shape[2:4], patches.shape[4:], stride, dilation):
        out[at] += patches[:, :, i, j]
    if out is not x:
        x += out[:, :, ph : ph + h, pw : pw + w]


# ----- pooling


def max_pool2d(x, kernel, stride, padding):
    """(N, C, H, W) -> the maximum of each window, and its place in it (row-major, the first of equals). NaN wins."""
    xp = _xp(x)
    counts = window_counts(x.shape, kernel, stride, padding)
    x = _padded(x, padding, -float("inf"))
    windows = [x[at] for _, _, at in _offsets(kernel, counts, stride)]
    y = windows[0].copy()
    for w in windows[1:]:
        xp.maximum(y, w, out=y)
    place = xp.zeros(y.shape, "uint8" if len(windows) <= 256 else "int32")
    for number in reversed(range(1, len(windows))):
        xp.copyto(place, number, where=windows[number] == y)
    xp.copyto(place, 0, where=windows[0] == y)  # the first of equals is written last
    return y, place


def max_pool2d_scatter(g, place, shape, kernel, stride, padding):
    """(N, C, H', W') -> ``shape``: each element added where its window's maximum was."""
    xp = _xp(g)
    (ph, pw), (n, c, h, w) = padding, shape
    x = xp.zeros((n, c, h + 2 * ph, w + 2 * pw), g.dtype)
    for number, (_, _, at) in enumerate(_offsets(kernel, g.shape[2:], stride)):
        x[at] += xp.where(place == number, g, 0.0)
    return x[:, :, ph : ph + h, pw : pw + w]


def max_pool2d_gather(x, place, kernel, stride, padding):
    """(N, C, H, W) -> (N, C, H', W'): of each window the element at its place."""
    xp = _xp(x)
    x = _padded(x, padding)
    y = xp.zeros(place.shape, x.dtype)
    for number, (_, _, at) in enumerate(_offsets(kernel, place.shape[2:], stride)):
        xp.copyto(y, x[at], where=place == number)
    return y


def avg_pool2d(x, kernel, stride, padding):
    """(N, C, H, W) -> the mean of each window, padding counted as zeros."""
    counts = window_counts(x.shape, kernel, stride, padding)
    x = _padded(x, padding)
    y = _xp(x).zeros((*x.shape[:2], *counts), x.dtype)
    for _, _, at in _offsets(kernel, counts, stride):
        y += x[at]
    y *= 1.0 / prod(kernel)
    return y


def avg_pool2d_spread(g, shape, kernel, stride, padding):
    """The adjoint of avg_pool2d: each element of g, divided over its window."""
    (ph, pw), (n, c, h, w) = padding, shape
    x = _xp(g).zeros((n, c, h + 2 * ph, w + 2 * pw), g.dtype)
    share = g * (1.0 / prod(kernel))
    for _, _, at in _offsets(kernel, g.shape[2:], stride):
        x[at] += share
    return x[:, :, ph : ph + h, pw : pw + w]


# ----- normalisation: statistics in at least float32, their sums over rows in float64


def _wide(x):
    return x.astype("float32") if x.dtype == "float16" else x


def _total(x, axes):
    """The sum, with kept axes, in float64: the last axes in x's own dtype (pairwise there), the sums of these in float64."""
    tail = []
    for a in range(x.ndim - 1, -1, -1):
        if a not in axes:
            break
        tail.append(a)
    if tail:
        x = x.sum(axis=tuple(tail), keepdims=True)
    return x.sum(axis=tuple(a for a in axes if a not in tail), keepdims=True, dtype="float64")


def _mean(x, axes):
    """The mean, with kept axes, in float64."""
    return _total(x, axes) / float(prod(x.shape[a] for a in axes))


def _centred(x, mean):
    """x - mean for a float64 mean, in the dtype of x, without rounding the mean to it."""
    near = mean.astype(x.dtype)
    d = x - near
    if x.dtype != "float64":
        d -= (mean - near).astype(x.dtype)
    return d


def _deviations(x, axes):
    """x - mean, mean, and biased variance over ``axes`` (kept): two passes, with the mean corrected by a second look.

    The correction makes a constant input exactly zero where the rounded mean of large numbers is off. Chan, Golub and
    LeVeque 1983.
    """
    mean = _mean(x, axes)
    d = _centred(x, mean)
    rest = _mean(d, axes)
    d -= rest.astype(x.dtype)
    return d, mean + rest, _mean(d * d, axes)


def _normalize(x, axes, eps):
    """x_hat, mean and biased variance over ``axes`` (kept)."""
    x = _wide(x)
    d, mean, var = _deviations(x, axes)
    d *= (1.0 / _xp(x).sqrt(var + eps)).astype(x.dtype)
    return d, mean, var


def _affine(x_hat, gamma, beta, view, dtype):
    if gamma is not None:
        x_hat *= gamma.reshape(view).astype(x_hat.dtype)
        x_hat += beta.reshape(view).astype(x_hat.dtype)
    return x_hat.astype(dtype, copy=False)


def _normalize_backward(g, x, gamma, mean, var, axes, eps, view, affine_axes):
    """dx = (h - mean(h) - x_hat mean(h x_hat)) / sqrt(var + eps) with h = gamma g; dgamma = sum(g x_hat); dbeta = sum(g)."""
    dtype = x.dtype
    g, x = _wide(g), _wide(x)
    inv_std = (1.0 / _xp(x).sqrt(var + eps)).astype(x.dtype)
    x_hat = _centred(x, mean)
    x_hat *= inv_std
    gx = g * x_hat
    dgamma = dbeta = None
    h, hx = g, gx
    if gamma is not None:
        dgamma = gx.sum(axis=affine_axes).reshape(gamma.shape).astype(gamma.dtype)
        dbeta = g.sum(axis=affine_axes).reshape(gamma.shape).astype(gamma.dtype)
        scale = gamma.reshape(view).astype(x.dtype)
        h, hx = g * scale, gx * scale
    x_hat *= _mean(hx, axes).astype(x.dtype)
    dx = h - x_hat
    dx -= _mean(h, axes).astype(x.dtype)
    dx *= inv_std
    return dx.astype(dtype, copy=False), dgamma, dbeta


def _channels(x):
    """The axes of BatchNorm's statistics, and the shape that a (C,) array takes beside x."""
    return (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)


def batch_norm(x, gamma, beta, eps):
    """y, and the batch's mean and biased variance (C,) in float64."""
    axes, view = _channels(x)
    x_hat, mean, var = _normalize(x, axes, eps)
    return _affine(x_hat, gamma, beta, view, x.dtype), (mean.reshape(-1), var.reshape(-1))


def batch_norm_backward(g, x, gamma, mean, var, eps):
    """dx = gamma (g - mean(g) - x_hat mean(g x_hat)) / sqrt(var + eps); dgamma = sum(g x_hat); dbeta = sum(g)."""
    axes, view = _channels(x)
    dtype, g, x = x.dtype, _wide(g), _wide(x)
    inv_std = 1.0 / _xp(x).sqrt(var.reshape(view) + eps)
    x_hat = _centred(x, mean.reshape(view))
    x_hat *= inv_std.astype(x.dtype)
    along_x_hat, along_one = _mean(g * x_hat, axes), _mean(g, axes)
    dx = x_hat
    dx *= along_x_hat.astype(x.dtype)
    dx += along_one.astype(x.dtype)
    dx = _xp(x).subtract(g, dx, out=dx)
    dx *= (inv_std if gamma is None else inv_std * gamma.reshape(view)).astype(x.dtype)
    dx = dx.astype(dtype, copy=False)
    if gamma is None:
        return dx, None, None
    m = float(x.size // gamma.size)
    return dx, *((m * v).reshape(-1).astype(gamma.dtype) for v in (along_x_hat, along_one))


def batch_norm_inference(x, gamma, beta, mean, var, eps):
    """gamma (x - mean) / sqrt(var + eps) + beta, as one affine map."""
    _, view = _channels(x)
    dtype, x = x.dtype, _wide(x)
    y = x - mean.reshape(view).astype(x.dtype)
    y *= (1.0 / _xp(x).sqrt(var.astype("float64") + eps)).reshape(view).astype(x.dtype)
    return _affine(y, gamma, beta, view, dtype)


# Batch normalisation in parts, each of which sees its own examples: moments, which are joined; then the map. And so backward.


def batch_norm_moments(x):
    """(N, C, *S) -> (2, C) in float64: the mean, and the sum of squared differences from it; zeros of an empty x."""
    axes, _ = _channels(x)
    if not x.size:
        return _xp(x).zeros((2, x.shape[1]))
    _, mean, var = _deviations(_wide(x), axes)
    return _xp(x).stack([mean.reshape(-1), var.reshape(-1) * float(x.size // x.shape[1])])


def join_moments(count, mean, m2):
    """Mean and sum of squares (C,) of all values, from those of parts (P, C) of ``count`` (P, 1) or (P, C) values, none empty.

    Chan, Golub and LeVeque 1983. Where all means are equal, theirs is exactly that. In float64.
    """
    gap = mean - mean[0]
    rest = (gap * (count / count.sum(axis=0))).sum(axis=0)
    gap -= rest
    return mean[0] + rest, m2.sum(axis=0) + (gap * gap * count).sum(axis=0)


def batch_norm_apply(x, gamma, beta, mean, var, eps):
    """gamma (x - mean) / sqrt(var + eps) + beta, for statistics (C,) in float64 that may be of more than x."""
    _, view = _channels(x)
    dtype, x = x.dtype, _wide(x)
    x_hat = _centred(x, mean.reshape(view))
    x_hat *= (1.0 / _xp(x).sqrt(var.reshape(view) + eps)).astype(x.dtype)
    return _affine(x_hat, gamma, beta, view, dtype)


def batch_norm_sums(g, x, mean):
    """(N, C, *S) twice, (C,) -> (2, C) in float64: the sums of g, and of g (x - mean)."""
    axes, view = _channels(x)
    g, x = _wide(g), _wide(x)
    sums = _total(g, axes), _total(g * _centred(x, mean.reshape(view)), axes)
    return _xp(x).stack([v.reshape(-1) for v in sums])


def batch_norm_input(g, x, gamma, mean, var, eps, along_one, along_x_hat):
    """dx = (gamma g - along_one - x_hat along_x_hat) / sqrt(var + eps). All but g and x are (C,), in float64 but for gamma.

    With the means of gamma g and of gamma g x_hat over all values, that is the gradient of batch_norm.
    """
    _, view = _channels(x)
    dtype, g, x = x.dtype, _wide(g), _wide(x)
    inv_std = (1.0 / _xp(x).sqrt(var + eps)).reshape(view).astype(x.dtype)
    x_hat = _centred(x, mean.reshape(view))
    x_hat *= inv_std
    x_hat *= along_x_hat.reshape(view).astype(x.dtype)
    x_hat += along_one.reshape(view).astype(x.dtype)
    dx = _xp(x).subtract(g if gamma is None else g * gamma.reshape(view), x_hat, out=x_hat)
    dx *= inv_std
    return dx.astype(dtype, copy=False)


def follow(running_mean, running_var, mean, var, weight, correction):
    """The running statistics (C,) after one more batch: (1 - weight) old + weight batch's, whose var is times ``correction``.

    A channel whose batch statistics are not finite keeps the old ones. Also returns where they are finite.
    """
    xp = _xp(mean)
    finite = xp.isfinite(mean) & xp.isfinite(var)
    pairs = (running_mean, mean), (running_var, var * correction)
    new = [xp.where(finite, (1.0 - weight) * old + weight * batch, old).astype(old.dtype, copy=False) for old, batch in pairs]
    return *new, finite


def layer_norm(x, gamma, beta, axes, eps):
    """y, and mean and variance of each example (kept axes)."""
    x_hat, mean, var = _normalize(x, axes, eps)
    return _affine(x_hat, gamma, beta, _layer_view(x, axes), x.dtype), (mean, var)


def layer_norm_backward(g, x, gamma, mean, var, axes, eps):
    """dx, dgamma, dbeta."""
    others = tuple(i for i in range(x.ndim) if i not in axes)
    return _normalize_backward(g, x, gamma, mean, var, axes, eps, _layer_view(x, axes), others)


def _layer_view(x, axes):
    return tuple(n if i in axes else 1 for i, n in enumerate(x.shape))


def group_norm(x, gamma, beta, num_groups, eps):
    """y, and mean and variance of each group of each example (kept axes of the grouped shape)."""
    grouped, axes, view = _groups(x, num_groups)
    x_hat, mean, var = _normalize(x.reshape(grouped), axes, eps)
    return _affine(x_hat, gamma, beta, view, x.dtype).reshape(x.shape), (mean, var)


def group_norm_backward(g, x, gamma, mean, var, num_groups, eps):
    """dx, dgamma, dbeta."""
    grouped, axes, view = _groups(x, num_groups)
    dx, dgamma, dbeta = _normalize_backward(
        g.reshape(grouped), x.reshape(grouped), gamma, mean, var, axes, eps, view, (0, *axes[1:])
    )
    return dx.reshape(x.shape), dgamma, dbeta


def _groups(x, num_groups):
    n, c, *rest = x.shape
    grouped = (n, num_groups, c // num_groups, *rest)
    return grouped, tuple(range(2, len(grouped))), (1, num_groups, c // num_groups, *(1,) * len(rest))


# ----- softmax cross-entropy


def cross_entropy(x, labels, label_smoothing):
    """(N, C), (N,) -> (N,): log(sum(e ** x)) minus the target's mean logit. NaN where a label is outside 0..C-1."""
    xp = _xp(x)
    d = x - x.max(axis=1, keepdims=True)
    total = xp.log(xp.exp(d).sum(axis=1))
    inside = (labels >= 0) & (labels < x.shape[1])
    chosen = xp.take_along_axis(d, xp.where(inside, labels, 0)[:, None], axis=1)[:, 0]
    if label_smoothing:
        chosen = chosen * (1.0 - label_smoothing) + d.mean(axis=1) * label_smoothing
    return xp.where(inside, total - chosen, float("nan"))


def cross_entropy_backward(g, x, labels, label_smoothing):
    """g (softmax(x) - target)."""
    xp = _xp(x)
    d = xp.exp(x - x.max(axis=1, keepdims=True))
    d /= d.sum(axis=1, keepdims=True)
    d -= smooth_labels(labels, x.shape[1], label_smoothing, x.dtype)
    d *= g[:, None]
    return d


def smooth_labels(labels, classes, label_smoothing, dtype):
    """(N,) -> (N, C): 1 - s on the label plus s / C everywhere; NaN where a label is outside 0..C-1."""
    xp = _xp(labels)
    hot = (labels[:, None] == xp.arange(classes)).astype(dtype)
    inside = ((labels >= 0) & (labels < classes))[:, None]
    return xp.where(inside, hot * (1.0 - label_smoothing) + label_smoothing / classes, float("nan")).astype(dtype)


# ----- dropout: a counter-based generator, so that the mask is a function of key and position


def dropout(x, p, key):
    """x / (1 - p) where the element's 53-bit number is at least p, else 0."""
    return thin_out(x, p, random_bits(_xp(x), x.size, key))


def thin_out(x, p, numbers):
    """dropout, from one 64-bit number for each element."""
    xp = _xp(x)
    if p >= 1.0:
        return xp.zeros(x.shape, x.dtype)
    keep = numbers.reshape(x.shape) >> xp.uint64(11) >= xp.uint64(int(p * 2**53))
    return xp.where(keep, x * (1.0 / (1.0 - p)), 0.0).astype(x.dtype)


_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_MASK = 2**64 - 1


def random_bits(xp, n, key):
    """n 64-bit numbers of Philox4x64-10 for a 64-bit key: block b is the counter b + 1, as in NumPy. Salmon et al. 2011."""
    blocks = -(-n // 4)
    c = [xp.arange(1, blocks + 1, dtype="uint64"), *(xp.zeros(blocks, "uint64") for _ in range(3))]
    k0, k1 = key, 0
    for _ in range(10):
        high0, low0 = _multiply(xp, c[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(xp, c[2], _MULTIPLIERS[1])
        c = [high1 ^ c[1] ^ xp.uint64(k0), low1, high0 ^ c[3] ^ xp.uint64(k1), low0]
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return xp.stack(c, axis=1).reshape(-1)[:n]


def _multiply(xp, a, m):
    """The high and low 64 bits of a * m, by products of 32-bit halves."""
    half, low_bits = xp.uint64(32), xp.uint64(2**32 - 1)
    m0, m1 = xp.uint64(m & (2**32 - 1)), xp.uint64(m >> 32)
    a0, a1 = a & low_bits, a >> half
    middle = a1 * m0 + ((a0 * m0) >> half)
    middle2 = a0 * m1 + (middle & low_bits)
    return a1 * m1 + (middle >> half) + (middle2 >> half), a * xp.uint64(m)


# ----- the error function: rational approximations of W. J. Cody's kind, with the coefficients of Sun's fdlibm (s_erf.c)

_NEAR = (
    [1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02, -5.77027029648944159157e-03,
     -2.37630166566501626084e-05],
    [1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03, 1.32494738004321644526e-04,
     -3.96022827877536812320e-06],
)  # fmt: skip
_MIDDLE = (
    [-2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01, 3.18346619901161753674e-01,
     -1.10894694282396677476e-01, 3.54783043256182359371e-02, -2.16637559486879084300e-03],
    [1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02, 1.26171219808761642112e-01,
     1.36370839120290507362e-02, 1.19844998467991074170e-02],
)  # fmt: skip
_FAR = (
    [-9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e01, -6.23753324503260060396e01,
     -1.62396669462573470355e02, -1.84605092906711035994e02, -8.12874355063065934246e01, -9.81432934416914548592e00],
    [1.0, 1.96512716674392571292e01, 1.37657754143519042600e02, 4.34565877475229228821e02, 6.45387271733267880336e02,
     4.29008140027567833386e02, 1.08635005541779435134e02, 6.57024977031928170135e00, -6.04244152148580987438e-02],
)  # fmt: skip


def erf(x):
    """The error function, to the last few bits of float64."""
    xp = _xp(x)
    dtype = x.dtype if x.dtype.kind == "f" else "float64"
    x = x.astype("float64")
    a = xp.minimum(xp.abs(x), 6.0)  # 1 - erf(6) is below the last bit
    z = xp.minimum(a, 0.84375)
    near = z + z * _ratio(z * z, _NEAR)
    middle = 8.45062911510467529297e-01 + _ratio(xp.clip(a, 0.84375, 1.25) - 1.0, _MIDDLE)
    b = xp.clip(a, 1.25, 6.0)
    far = 1.0 - xp.exp(-b * b - 0.5625 + _ratio(1.0 / (b * b), _FAR)) / b
    y = xp.where(a < 0.84375, near, xp.where(a < 1.25, middle, far))
    return (xp.sign(x) * y).astype(dtype)


def _ratio(z, coefficients):
    p, q = (_polynomial(z, c) for c in coefficients)
    return p / q


def _polynomial(z, coefficients):
    y = z * 0.0
    for c in reversed(coefficients):
        y = y * z + c
    return y


# ----- optimizers: a step of flat weights and state, in place


def _gathered(grads, out):
    """The gradients of neighbours, each of its own shape, one behind the other in ``out``."""
    return _xp(out).concatenate([g.ravel() for g in grads], out=out)


def sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    """A step of ``optim.SGD``. ``grads``: in pieces that add up to weights; ``grad`` and ``spare``: memory, overwritten.

    ``buffer`` is None without momentum; ``first``: whether nothing is in it yet.
    """
    multiply = _xp(weights).multiply
    _gathered(grads, grad)
    if weight_decay:
        grad += multiply(weights, weight_decay, out=spare)
    if momentum:
        if first:
            buffer[...] = grad
        else:
            buffer *= momentum
            buffer += multiply(grad, 1 - dampening, out=spare) if dampening else grad
        if nesterov:
            grad += multiply(buffer, momentum, out=spare)
        else:
            grad = buffer
    weights -= multiply(grad, lr, out=spare)


def adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled):
    """A step of ``optim.Adam``, or with ``decoupled`` of ``optim.AdamW``. ``step`` counts from 1; else as for sgd."""
    xp = _xp(weights)
    beta1, beta2 = betas
    _gathered(grads, grad)
    if decoupled:
        weights *= 1 - lr * weight_decay
    elif weight_decay:
        grad += xp.multiply(weights, weight_decay, out=spare)
    mean *= beta1
    mean += xp.multiply(grad, 1 - beta1, out=spare)
    square *= beta2
    grad *= grad
    square += xp.multiply(grad, 1 - beta2, out=spare)
    denominator = xp.sqrt(square, out=spare)
    denominator /= (1 - beta2**step) ** 0.5
    denominator += eps
    change = xp.divide(mean, denominator, out=grad)
    change *= lr / (1 - beta1**step)
    weights -= change
