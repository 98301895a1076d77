"""Operations on shapes, options and indices that Hypothesis draws. The numbers come from a drawn seed."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinygrad_bn as tg
from tinygrad_bn import ops
from tinygrad_bn.backend import portable
from tinygrad_bn.tensor import Tensor

seeds = st.integers(0, 2**32 - 1)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


def numbers(seed, *wanted):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) for s in wanted]


def close(a, b, rtol=1e-10, atol=1e-11):
    a = a.data if isinstance(a, Tensor) else a
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol, atol)


def pull(f, arrays, seed):
    """The result and the gradients of a random weighting of it."""
    leaves = [Tensor(x).requires_grad_() for x in arrays]
    y = f(*leaves)
    w = np.random.default_rng(seed).standard_normal(y.shape)
    return y.data, w, [g.data for g in tg.grad(y, leaves, Tensor(w))]


def directional(f, arrays, w, gradients, seed):
    """The gradients, along a random direction, against a central difference of a NumPy function."""
    rng = np.random.default_rng(seed)
    ds = [rng.standard_normal(x.shape) for x in arrays]
    h = 1e-5
    ahead, behind = (np.sum(w * f(*[x + s * h * d for x, d in zip(arrays, ds, strict=True)])) for s in (1, -1))
    found = sum(np.sum(g * d) for g, d in zip(gradients, ds, strict=True))
    assert abs(found - (ahead - behind) / (2 * h)) < 1e-6 * (1 + abs(found))


# ----- broadcasting

BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power,
    "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), seeds)
def test_binary_operations_broadcast(name, drawn, seed):
    x, y = numbers(seed, *drawn.input_shapes)
    if name == "pow":
        x = np.abs(x) + 0.3
    elif name == "div":
        y = np.where(y < 0, y - 0.5, y + 0.5)
    elif name in ("maximum", "minimum"):
        assume(np.min(np.abs(x - y)) > 1e-3)
    f, reference = getattr(ops, name), BINARY[name]
    value, w, gradients = pull(f, (x, y), seed)
    assert value.shape == drawn.result_shape
    np.testing.assert_array_equal(value, reference(x, y))
    assert [g.shape for g in gradients] == [x.shape, y.shape]
    directional(reference, (x, y), w, gradients, seed)


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), seeds)
def test_where_broadcasts(drawn, seed):
    c, x, y = numbers(seed, *drawn.input_shapes)
    value, w, gradients = pull(lambda x, y: ops.where(c > 0, x, y), (x, y), seed)
    np.testing.assert_array_equal(value, np.where(c > 0, x, y))
    assert [g.shape for g in gradients] == [x.shape, y.shape]
    directional(lambda x, y: np.where(c > 0, x, y), (x, y), w, gradients, seed)


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), seeds, st.integers(0, 2))
def test_a_broadcast_product_of_three_to_second_order(drawn, seed, which):
    arrays = numbers(seed, *drawn.input_shapes)
    tg.check_grads(lambda x, y, z: x * y / (z * z + 1.0) - (x, y, z)[which], arrays, order=2, seed=seed)


# ----- reductions and shapes


@st.composite
def shapes_and_axes(draw, min_dims=0):
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=4, min_side=1, max_side=4))
    one = st.integers(-len(shape), len(shape) - 1) if shape else st.nothing()
    axes = st.none() | one | hnp.valid_tuple_axes(len(shape))
    return shape, draw(axes)


REDUCTIONS = {
    "sum": np.sum, "mean": np.mean, "var": np.var, "max": np.max, "min": np.min,
    "logsumexp": lambda x, axis, keepdims: np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims)),
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
@given(shapes_and_axes(), st.booleans(), seeds)
def test_reductions(name, drawn, keepdims, seed):
    shape, axis = drawn
    (x,) = numbers(seed, shape)
    value, w, (g,) = pull(lambda x: getattr(ops, name)(x, axis, keepdims=keepdims), (x,), seed)
    reference = REDUCTIONS[name]
    close(value, np.asarray(reference(x, axis=axis, keepdims=keepdims)))
    directional(lambda x: reference(x, axis=axis, keepdims=keepdims), (x,), w, (g,), seed)


@given(shapes_and_axes(min_dims=1), seeds)
def test_cumsum_flip_softmax(drawn, seed):
    shape, axis = drawn
    (x,) = numbers(seed, shape)
    value, w, (g,) = pull(lambda x: ops.flip(x, axis), (x,), seed)
    np.testing.assert_array_equal(value, np.flip(x, axis))
    np.testing.assert_array_equal(g, np.flip(w, axis))
    one = axis if isinstance(axis, int) else -1
    value, w, (g,) = pull(lambda x: ops.cumsum(x, one), (x,), seed)
    close(value, np.cumsum(x, one))
    close(g, np.flip(np.cumsum(np.flip(w, one), one), one))
    value, w, (g,) = pull(lambda x: ops.softmax(x, one), (x,), seed)
    close(value.sum(one), np.ones(value.sum(one).shape))
    close(g, value * (w - (w * value).sum(one, keepdims=True)))
    close(ops.log_softmax(x, one), np.log(value))


@given(shapes, seeds, st.data())
def test_moving_axes_and_back(shape, seed, data):
    (x,) = numbers(seed, shape)
    order = data.draw(st.permutations(range(len(shape))))
    value, w, (g,) = pull(lambda x: ops.transpose(x, tuple(order)), (x,), seed)
    np.testing.assert_array_equal(value, x.transpose(order))
    np.testing.assert_array_equal(g, w.transpose(np.argsort(order).astype(int)))
    if shape:
        a, b = (data.draw(st.integers(-len(shape), len(shape) - 1)) for _ in "ab")
        for mine, theirs in ((ops.swapaxes, np.swapaxes), (ops.moveaxis, np.moveaxis)):
            value, w, (g,) = pull(lambda x, f=mine: f(x, a, b), (x,), seed)
            np.testing.assert_array_equal(value, theirs(x, a, b))
            np.testing.assert_array_equal(g, theirs(w, b, a))


@given(shapes, seeds, st.data())
def test_reshaping_and_back(shape, seed, data):
    (x,) = numbers(seed, shape)
    target = list(data.draw(st.permutations(shape)))
    if target and data.draw(st.booleans()):
        target[data.draw(st.integers(0, len(target) - 1))] = -1
    value, w, (g,) = pull(lambda x: ops.reshape(x, tuple(target)), (x,), seed)
    np.testing.assert_array_equal(value, x.reshape(target))
    np.testing.assert_array_equal(g, w.reshape(shape))
    at = data.draw(st.integers(-len(shape) - 1, len(shape)))
    np.testing.assert_array_equal(ops.unsqueeze(x, at), np.expand_dims(x, at))
    np.testing.assert_array_equal(ops.squeeze(ops.unsqueeze(x, at), at), x)
    np.testing.assert_array_equal(ops.squeeze(x), np.squeeze(x))


@given(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=(2, 3, 1, 2), max_dims=5, max_side=3), seeds)
def test_expand_and_sum_to(drawn, seed):
    shape = drawn.result_shape
    (x,) = numbers(seed, drawn.input_shapes[0])
    if math.prod(shape) > 500:
        return
    value, w, (g,) = pull(lambda x: ops.expand(x, shape), (x,), seed)
    np.testing.assert_array_equal(value, np.broadcast_to(x, shape))
    close(g, ops.sum_to(w, shape=x.shape))
    assert abs(np.sum(value * w) - np.sum(x * g)) < 1e-9


@given(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6), seeds, st.data())
def test_split_and_concatenate_undo_each_other(shape, seed, data):
    (x,) = numbers(seed, shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[axis]
    places = st.lists(st.integers(1, n - 1), unique=True).map(sorted) if n > 1 else st.just([])
    cut = data.draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0]) | places)
    parts = ops.split(x, cut, axis)
    for a, b in zip(parts, np.split(x, cut, axis), strict=True):
        np.testing.assert_array_equal(a, b)
    value, w, (g,) = pull(lambda x: ops.concatenate(ops.split(x, cut, axis), axis), (x,), seed)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(g, w)


@given(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), seeds, st.data())
def test_pad(shape, seed, data):
    (x,) = numbers(seed, shape)
    width = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=len(shape), max_size=len(shape)))
    value, w, (g,) = pull(lambda x: ops.pad(x, width, value=2.0), (x,), seed)
    np.testing.assert_array_equal(value, np.pad(x, width, constant_values=2.0))
    np.testing.assert_array_equal(g, w[tuple(slice(a, a + n) for (a, _), n in zip(width, shape, strict=True))])


# ----- indexing


def reads_and_scatters(x, index, seed):
    value, w, (g,) = pull(lambda x: x[index], (x,), seed)
    expected = x[index]
    np.testing.assert_array_equal(value, expected)
    zeros = np.zeros_like(x)
    np.add.at(zeros, index, w)
    close(g, zeros, 1e-12, 1e-13)


@given(hnp.array_shapes(max_dims=4, max_side=4), seeds, st.data())
def test_basic_indices(shape, seed, data):
    (x,) = numbers(seed, shape)
    reads_and_scatters(x, data.draw(hnp.basic_indices(shape, allow_newaxis=True)), seed)


@given(hnp.array_shapes(max_dims=4, max_side=4), seeds, st.data())
def test_integer_array_indices(shape, seed, data):
    (x,) = numbers(seed, shape)
    result_shape = hnp.array_shapes(max_dims=2, max_side=3)
    reads_and_scatters(x, data.draw(hnp.integer_array_indices(shape, result_shape=result_shape)), seed)


@given(hnp.array_shapes(max_dims=3, max_side=4), seeds, st.data())
def test_boolean_masks(shape, seed, data):
    (x,) = numbers(seed, shape)
    axes = data.draw(st.integers(1, len(shape)))
    mask = data.draw(hnp.arrays(bool, shape[:axes]))
    reads_and_scatters(x, mask, seed)
    if axes < len(shape):
        reads_and_scatters(x, (mask, slice(None, None, -1)), seed)


@given(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), seeds, st.data())
def test_mixed_indices(shape, seed, data):
    """An array for some axes, an int or a slice for the others, as NumPy orders the result."""
    (x,) = numbers(seed, shape)
    count = data.draw(st.integers(1, 3))
    index = []
    for n in shape:
        one = st.integers(-n, n - 1)
        index.append(data.draw(one | st.slices(n) | st.lists(one, min_size=count, max_size=count).map(np.array)))
    reads_and_scatters(x, tuple(index), seed)


# ----- linear algebra


@given(hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=3), seeds)
def test_matmul(drawn, seed):
    x, y = numbers(seed, *drawn.input_shapes)
    value, w, gradients = pull(ops.matmul, (x, y), seed)
    close(value, np.asarray(np.matmul(x, y)))
    assert [g.shape for g in gradients] == [x.shape, y.shape]
    directional(np.matmul, (x, y), w, gradients, seed)


@st.composite
def equations(draw):
    """Subscripts of one to three operands, with letters repeated within and between them, and their shapes."""
    size = dict(zip("ijkl", draw(st.tuples(*[st.integers(1, 3)] * 4)), strict=True))
    terms = draw(st.lists(st.text("ijkl", max_size=3), min_size=1, max_size=3))
    used = sorted(set("".join(terms)))
    out = draw(st.permutations(used)) if used else []
    out = "".join(out[: draw(st.integers(0, len(out)))])
    return f"{','.join(terms)}->{out}" if draw(st.booleans()) else ",".join(terms), [tuple(size[c] for c in t) for t in terms]


@given(equations(), seeds)
def test_einsum(drawn, seed):
    subscripts, wanted = drawn
    arrays = numbers(seed, *wanted)
    value, w, gradients = pull(lambda *xs: ops.einsum(subscripts, *xs), arrays, seed)
    close(value, np.asarray(np.einsum(subscripts, *arrays)))
    directional(lambda *xs: np.einsum(subscripts, *xs), arrays, w, gradients, seed)


# ----- convolution and pooling


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    per, out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, stride, dilation = ((draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(3))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [n + draw(st.integers(0, 4)) for n in least]
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (draw(st.integers(1, 2)), per * groups, *size), (out * groups, per, *kernel), how


@given(convolutions(), seeds)
def test_conv2d_equals_pytorch(torch, drawn, seed):
    shape_x, shape_w, how = drawn
    x, w, b = numbers(seed, shape_x, shape_w, shape_w[:1])
    value, weight, gradients = pull(lambda x, w, b: ops.conv2d(x, w, b, **how), (x, w, b), seed)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    y = torch.nn.functional.conv2d(*theirs, **how)
    close(value, y.detach().numpy())
    for g, e in zip(gradients, torch.autograd.grad(y, theirs, torch.tensor(weight)), strict=True):
        close(g, e.numpy())


@given(convolutions(), seeds)
def test_conv2d_equals_its_definition(drawn, seed):
    shape_x, shape_w, how = drawn
    x, w = numbers(seed, shape_x, shape_w)
    value, weight, gradients = pull(lambda x, w: ops.conv2d(x, w, **how), (x, w), seed)
    close(value, cases.conv2d(x, w, **how))
    for a, g in zip((x, w), gradients, strict=True):  # bilinear: <A x, y> = <x, A' y>
        assert abs(np.sum(value * weight) - np.sum(a * g)) < 1e-9 * (1 + np.abs(a * g).sum())


@given(convolutions(), st.integers(0, 2), seeds)
def test_conv_transpose2d_equals_pytorch(torch, drawn, extra, seed):
    (n, c, h, w), (o, per, kh, kw), how = drawn
    how = {**how, "output_padding": tuple(min(extra, s - 1) for s in how["stride"])}
    span = [
        (size - 1) * s - 2 * p + d * (k - 1) + e + 1
        for size, s, p, d, k, e in zip(
            (h, w), how["stride"], how["padding"], how["dilation"], (kh, kw), how["output_padding"], strict=True
        )
    ]
    assume(min(span) > 0)
    arrays = numbers(seed, (n, o, h, w), (o, per, kh, kw), (per * how["groups"],))
    value, weight, gradients = pull(lambda x, w, b: ops.conv_transpose2d(x, w, b, **how), arrays, seed)
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = torch.nn.functional.conv_transpose2d(*theirs, **how)
    close(value, y.detach().numpy())
    for g, e in zip(gradients, torch.autograd.grad(y, theirs, torch.tensor(weight)), strict=True):
        close(g, e.numpy())


@given(st.integers(1, 9), st.integers(1, 3), seeds)
def test_conv2d_of_many_samples_is_done_in_parts(n, parts, seed):
    """The kernels cut the batch so that patches stay in the cache: the cut shows nowhere."""
    x, w = numbers(seed, (n, 2, 5, 5), (3, 2, 3, 3))
    whole = pull(lambda x, w: ops.conv2d(x, w, None, 1, 1), (x, w), seed)
    before = portable._PATCH_ELEMENTS
    portable._PATCH_ELEMENTS = parts * 2 * 9 * 25
    try:
        cut = pull(lambda x, w: ops.conv2d(x, w, None, 1, 1), (x, w), seed)
    finally:
        portable._PATCH_ELEMENTS = before
    close(cut[0], whole[0])
    for a, b in zip(cut[2], whole[2], strict=True):
        close(a, b)


@st.composite
def pools(draw):
    kernel, stride = ((draw(st.integers(1, 4)), draw(st.integers(1, 4))) for _ in range(2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [max(1, k - 2 * p) + draw(st.integers(0, 5)) for k, p in zip(kernel, padding, strict=True)]
    return (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *size), kernel, draw(st.sampled_from([None, stride])), padding


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@given(pools(), seeds)
def test_pooling(name, drawn, seed):
    shape, kernel, stride, padding = drawn
    x = np.random.default_rng(seed).permutation(math.prod(shape)).reshape(shape) * 0.1
    value, w, (g,) = pull(lambda x: getattr(ops, name)(x, kernel, stride, padding), (x,), seed)
    reduce, fill = (np.max, -np.inf) if name == "max_pool2d" else (np.mean, 0.0)
    close(value, cases.pool2d(x, kernel, stride, padding, reduce, fill))
    directional(lambda x: cases.pool2d(x, kernel, stride, padding, reduce, fill), (x,), w, (g,), seed)


@given(pools(), seeds)
def test_max_pooling_of_ties_equals_pytorch(torch, drawn, seed):
    shape, kernel, stride, padding = drawn
    x = np.random.default_rng(seed).integers(0, 3, shape).astype(float)
    value, w, (g,) = pull(lambda x: ops.max_pool2d(x, kernel, stride, padding), (x,), seed)
    t = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(t, kernel, stride, padding)
    close(value, y.detach().numpy())
    close(g, torch.autograd.grad(y, t, torch.tensor(w))[0].numpy())


@given(st.tuples(*[st.integers(1, 9)] * 4), seeds)
def test_adaptive_pooling(drawn, seed):
    h, w, oh, ow = drawn
    (x,) = numbers(seed, (2, 2, h, w))
    value, weight, (g,) = pull(lambda x: ops.adaptive_avg_pool2d(x, (oh, ow)), (x,), seed)
    close(value, cases.adaptive_avg_pool2d(x, (oh, ow)))
    assert abs(np.sum(value * weight) - np.sum(x * g)) < 1e-10


# ----- numbers: erf, Philox, statistics


@given(st.lists(st.floats(-8, 8) | st.floats(-1e-3, 1e-3) | st.floats(allow_nan=False), min_size=1, max_size=20))
def test_erf_equals_the_standard_library(values):
    np.testing.assert_allclose(ops.erf(np.array(values)), [math.erf(v) for v in values], 4e-16, 5e-324)


def test_erf_everywhere():
    borders = np.array([0.84375, 1.25, 2.857, 6.0])
    x = np.concatenate([np.linspace(-7, 7, 20001), borders, np.nextafter(borders, 0), [np.inf, 0.0]])
    np.testing.assert_allclose(ops.erf(x), [math.erf(v) for v in x], 4e-16)
    assert np.isnan(ops.erf(np.array(np.nan)))
    close(ops.erf(x.astype("float32")), np.array([math.erf(v) for v in x.astype("float32")], "float32"), 2e-7)


@given(st.integers(0, 2**64 - 1), st.integers(0, 40))
def test_random_bits_are_numpys_philox(key, n):
    np.testing.assert_array_equal(portable.random_bits(np, n, key), np.random.Philox(key=key).random_raw(n))


@given(st.integers(0, 2**64 - 1), st.integers(0, 30))
def test_random_bits_on_the_device(device, key, n):
    with device.no_syncs():
        bits = portable.random_bits(device.xp, n, key)
    np.testing.assert_array_equal(device.numpy(bits), np.random.Philox(key=key).random_raw(n))


@given(seeds, st.floats(0, 1), hnp.array_shapes(max_dims=3, max_side=9))
def test_dropout_is_zero_or_scaled_up(seed, p, shape):
    x = np.ones(shape)
    tg.manual_seed(seed)
    y = ops.dropout(x, p)
    if p < 1:
        np.testing.assert_allclose(y, np.where(cases.kept(shape, p, seed), 1 / (1 - p), 0.0), 1e-15)
    else:
        assert not y.any()


def exact_batch_norm(x, gamma, beta, g, eps):
    """y, mean, variance, dx, dgamma, dbeta by Ioffe & Szegedy's formulas, each sum by math.fsum: no order of adding matters."""
    y, dx = np.zeros_like(x), np.zeros_like(x)
    means, variances, dgammas, dbetas = [], [], [], []
    for c in range(x.shape[1]):
        xs, gs = x[:, c].ravel().tolist(), g[:, c].ravel().tolist()
        m = len(xs)
        mean = math.fsum(xs) / m
        var = math.fsum((v - mean) ** 2 for v in xs) / m
        std = math.sqrt(var + eps)
        hats = [(v - mean) / std for v in xs]
        dbeta, dgamma = math.fsum(gs), math.fsum(a * b for a, b in zip(gs, hats, strict=True))
        y[:, c] = np.reshape([gamma[c] * v + beta[c] for v in hats], y[:, c].shape)
        dx[:, c] = np.reshape(
            [gamma[c] / std * (a - dbeta / m - v * dgamma / m) for a, v in zip(gs, hats, strict=True)], y[:, c].shape
        )
        for values, v in zip((means, variances, dgammas, dbetas), (mean, var, dgamma, dbeta), strict=True):
            values.append(v)
    return y, means, variances, dx, dgammas, dbetas


@given(hnp.array_shapes(min_dims=2, max_dims=5, min_side=1, max_side=5), seeds, st.floats(-3, 3), st.floats(-8, 4))
def test_batch_norm_equals_exact_sums(shape, seed, log_scale, log_offset):
    """For 2-D to 5-D inputs, of any scale and away from 0: the kernels, and the rule that is recorded."""
    assume(shape[0] * math.prod(shape[2:]) >= 2)
    c = shape[1]
    x, g, gamma, beta = numbers(seed, shape, shape, (c,), (c,))
    x = x * 10**log_scale + 10**log_offset
    y, mean, var, dx, dgamma, dbeta = exact_batch_norm(x, gamma, beta, g, 1e-5)
    for create_graph in (False, True):
        leaves = [Tensor(a).requires_grad_() for a in (x, gamma, beta)]
        out, aux = ops.batch_norm(*leaves)
        found = tg.grad(out, leaves, Tensor(g), create_graph=create_graph)
        # x - mean loses the digits that offset and spread do not share, in the exact formula too
        lost = 1e-15 * (1 + 10**log_offset / np.sqrt(np.min(var) + 1e-5)) * 100
        for a, e in zip((out, *aux), (y, mean, var), strict=True):
            np.testing.assert_allclose(a.data if isinstance(a, Tensor) else a, e, 1e-10 + lost, 1e-12 + lost)
        scale = np.abs(gamma).max() / np.sqrt(np.min(var) + 1e-5) * (1 + np.abs(g).max()) + 1e-9
        np.testing.assert_allclose(found[0].data / scale, dx / scale, 1e-8 + lost, 1e-10 + lost)
        np.testing.assert_allclose(found[1].data, dgamma, 1e-9 + lost, 1e-10 + lost * math.prod(shape))
        np.testing.assert_allclose(found[2].data, dbeta, 1e-11, 1e-12)


@given(hnp.array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=4), seeds)
def test_laws_of_batch_norm(shape, seed):
    """The result forgets shift and scale of each channel; its gradient sums to 0, and is at right angles to the result."""
    assume(shape[0] * math.prod(shape[2:]) >= 3)
    x, w = numbers(seed, shape, shape)
    axes = (0, *range(2, len(shape)))
    a, b = np.exp(numbers(seed + 1, shape[1:2])[0]), numbers(seed + 2, shape[1:2])[0]
    view = (1, -1) + (1,) * (len(shape) - 2)
    tiny = {"eps": 1e-300}
    close(ops.batch_norm(x * a.reshape(view) + b.reshape(view), **tiny)[0], ops.batch_norm(x, **tiny)[0], 1e-8, 1e-8)
    t = Tensor(x).requires_grad_()
    y, _ = ops.batch_norm(t, **tiny)
    (g,) = tg.grad(y, t, Tensor(w))
    scale = np.abs(g.data).max() + 1.0
    np.testing.assert_allclose(g.data.sum(axes) / scale, 0, atol=1e-12)
    np.testing.assert_allclose((g.data * y.data).sum(axes) / scale, 0, atol=1e-11)


@given(hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4), seeds, st.data())
def test_layer_and_group_norm_are_batch_norms_of_other_views(shape, seed, data):
    (x,) = numbers(seed, shape)
    groups = data.draw(st.sampled_from([k for k in range(1, shape[1] + 1) if shape[1] % k == 0]))
    m = math.prod(shape[1:]) // groups
    assume(m >= 2)
    by_batch = ops.batch_norm(np.ascontiguousarray(x.reshape(shape[0] * groups, m).T))[0].T.reshape(shape)
    close(ops.group_norm(x, num_groups=groups), by_batch, 1e-9, 1e-10)
    if groups == 1:
        close(ops.layer_norm(x, axes=tuple(range(1, len(shape)))), by_batch, 1e-9, 1e-10)


@given(st.integers(1, 6), st.integers(1, 5), seeds, st.floats(0, 1), st.floats(-3, 3))
def test_cross_entropy_is_log_softmax_at_the_label(n, c, seed, smoothing, log_scale):
    rng = np.random.default_rng(seed)
    x, labels = rng.standard_normal((n, c)) * 10**log_scale, rng.integers(0, c, n)
    target = (1 - smoothing) * np.eye(c)[labels] + smoothing / c
    value, w, (g,) = pull(lambda x: ops.cross_entropy(x, labels, "none", smoothing), (x,), seed)
    logs = ops.log_softmax(x)
    scale = 1 + np.abs(logs).max()
    close(value / scale, -(target * logs).sum(1) / scale, 1e-9, 1e-12)
    close(g, w[:, None] * (np.exp(logs) - target), 1e-9, 1e-12)
