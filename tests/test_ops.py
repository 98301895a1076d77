"""What holds for every operation, driven by the table in ``cases.py``; and the identities that tie some of them together."""

from __future__ import annotations

import types

import cases
import numpy as np
import pytest
from cases import CASES

import tinygrad_bn as tg
from tinygrad_bn import backend, core, ops
from tinygrad_bn.backend import cpu, cuda, libraries, portable
from tinygrad_bn.ops import conv, norm, pool, shape
from tinygrad_bn.tensor import Tensor

SMOOTH = [c for c in CASES if c.order]


def every(table):
    return pytest.mark.parametrize("case", table, ids=str)


def as_list(y):
    return list(y) if isinstance(y, (list, tuple)) else [y]


def weights_for(shapes, dtype="float64"):
    rng = np.random.default_rng(1)
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def close(a, b, rtol=1e-10, atol=1e-11):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol, atol)


def values_and_gradients(case, arrays, constants, weights=None, create_graph=False):
    """Results and first-order gradients (zeros where there is none), as raw arrays where the inputs are."""
    leaves = [Tensor(x).requires_grad_() for x in arrays]
    outs = as_list(case.f(*leaves, *constants))
    if weights is None:
        weights = weights_for([o.shape for o in outs], outs[0].dtype)
    tracked = [(o, Tensor(backend.to_device(w, o.device))) for o, w in zip(outs, weights, strict=True) if o.requires_grad]
    found = tg.grad([o for o, _ in tracked], leaves, [w for _, w in tracked], create_graph=create_graph, allow_unused=True)
    return [o.data for o in outs], [
        backend.zeros(x.shape, x.dtype, like=x) if g is None else g.data for g, x in zip(found, arrays, strict=True)
    ]


# ----- the table itself


def test_every_operation_has_a_case():
    assert set(ops.__all__) == {c.op for c in CASES}
    assert len({str(c) for c in CASES}) == len(CASES)


def test_the_package_and_the_tensor_offer_the_operations():
    for name in ops.__all__:
        assert getattr(tg, name) is getattr(ops, name)
    for name in set(ops.__all__) & set(dir(Tensor)):
        assert getattr(Tensor, name) is getattr(ops, name), name


# ----- values


@every(CASES)
def test_value(case):
    arrays = case.make()
    raw = as_list(case.f(*arrays, *case.constants))
    expected = case.reference(*arrays, *case.constants)
    expected = list(expected) if isinstance(expected, (list, tuple)) else [expected]
    assert len(raw) == len(expected)
    boxed = as_list(case.f(*[Tensor(x) for x in arrays], *case.constants))
    for r, b, e in zip(raw, boxed, expected, strict=True):
        assert type(r) is np.ndarray  # raw arrays in, raw array out, also 0-d
        assert type(b) is Tensor and not b.requires_grad
        close(r, np.asarray(e), 1e-12, 1e-13)
        np.testing.assert_array_equal(r, b.data)
        assert r.dtype == b.dtype == (np.int64 if case.op == "argmax" else np.float64)


@every([c for c in CASES if c.torch])
def test_value_and_gradient_equal_pytorch(case, torch):
    arrays = case.make(1)
    theirs = [torch.tensor(x, requires_grad=case.order > 0) for x in arrays]
    constants = [torch.tensor(c.astype("int64") if c.dtype.kind == "u" else c) for c in case.constants]
    expected = as_list(case.torch(torch, *theirs, *constants))
    if not case.order:
        close(case.f(*arrays, *case.constants), expected[0].numpy())
        return
    values, gradients = values_and_gradients(case, arrays, case.constants)
    for v, e in zip(values, expected, strict=True):
        close(v, e.detach().numpy())
    weights = [torch.tensor(w) for w in weights_for([v.shape for v in values])]
    for g, e in zip(gradients, torch.autograd.grad(expected, theirs, weights), strict=True):
        close(g, e.numpy())
    single = as_list(case.f(*[x.astype("float32") for x in arrays], *case.constants))
    for v, e in zip(single, as_list(case.torch(torch, *[x.detach().float() for x in theirs], *constants)), strict=True):
        close(v, e.numpy(), 1e-4, 1e-5)


@every([c for c in SMOOTH if c.torch])
def test_second_derivative_equals_pytorch(case, torch):
    """Of sum(w f(x)) twice, once along a random direction: PyTorch's own batch_norm is still right at this order."""
    arrays = case.make(2)
    rng = np.random.default_rng(2)
    directions = [rng.standard_normal(x.shape) for x in arrays]

    def twice(leaves, outs, grad, tensor):
        weights = [tensor(w) for w in weights_for([tuple(o.shape) for o in outs])]
        first = grad(outs, leaves, weights, create_graph=True, allow_unused=True)
        pairs = [(g, tensor(d)) for g, d in zip(first, directions, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return [None] * len(leaves)
        return grad([g for g, _ in pairs], leaves, [d for _, d in pairs], allow_unused=True)

    mine = [Tensor(x).requires_grad_() for x in arrays]
    found = twice(mine, as_list(case.f(*mine, *case.constants)), tg.grad, Tensor)
    theirs = [torch.tensor(x, requires_grad=True) for x in arrays]
    constants = [torch.tensor(c.astype("int64") if c.dtype.kind == "u" else c) for c in case.constants]
    expected = twice(theirs, as_list(case.torch(torch, *theirs, *constants)), torch.autograd.grad, torch.tensor)
    for g, e, x in zip(found, expected, arrays, strict=True):  # no gradient, and one of zeros, are the same
        close(np.zeros_like(x) if g is None else g.data, np.zeros_like(x) if e is None else e.numpy(force=True), 1e-9, 1e-10)


# ----- gradients


@every(SMOOTH)
def test_derivatives_of_every_order_by_finite_differences(case):
    tg.check_grads(lambda *xs: as_list(case.f(*xs, *case.constants)), case.make(3), order=case.order)


def test_most_operations_are_checked_to_third_order():
    assert all(c.order == 3 for c in SMOOTH)


@every(SMOOTH)
def test_the_gradient_that_is_recorded_is_the_one_that_is_not(case):
    """Fused rules, rules that get raw arrays, and in-place accumulation give what the recorded walk gives."""
    arrays = case.make(4)
    _, plain = values_and_gradients(case, arrays, case.constants)
    _, recorded = values_and_gradients(case, arrays, case.constants, create_graph=True)
    for a, b in zip(plain, recorded, strict=True):
        close(a, b, 1e-11, 1e-12)


@every(SMOOTH)
def test_float32_stays_float32(case):
    if case.op == "cast":
        pytest.skip("cast changes the dtype: that is what it is for")
    arrays = [x.astype("float32") for x in case.make(5)]
    for create_graph in (False, True):
        values, gradients = values_and_gradients(case, arrays, case.constants, create_graph=create_graph)
        assert {v.dtype for v in values} == {g.dtype for g in gradients} == {np.dtype("float32")}
    exact, exact_gradients = values_and_gradients(case, [x.astype("float64") for x in arrays], case.constants)
    for a, b in zip(values + gradients, exact + exact_gradients, strict=True):
        close(a, b, 2e-4, 2e-4)


@every(cases.of("batch_norm", "batch_norm_composed", "layer_norm", "group_norm", "batch_norm_inference"))
def test_normalisation_in_half_precision(case):
    """float16 inputs, with float32 parameters: the result and the gradient of x in float16, of parameters in float32."""
    if "made of gamma" in str(case):
        pytest.skip("its input is made of a parameter")
    arrays = [x.astype("float32" if i else "float16") for i, x in enumerate(case.make(6))]
    for create_graph in (False, True):
        values, gradients = values_and_gradients(case, arrays, case.constants, create_graph=create_graph)
        assert [v.dtype for v in values] == ["float16"] and [g.dtype for g in gradients] == [x.dtype for x in arrays]
    weights = [w.astype("float16").astype("float64") for w in weights_for([v.shape for v in values])]
    exact, exact_gradients = values_and_gradients(case, [x.astype("float64") for x in arrays], case.constants, weights)
    for a, b in zip(values + gradients, exact + exact_gradients, strict=True):
        scale = max(1.0, float(np.abs(b).max(initial=0.0)))
        np.testing.assert_allclose(a / scale, b / scale, 4e-3, 4e-3)


# ----- memory: layouts, and who may write where


def _transposed(xp, x):
    return xp.ascontiguousarray(x.T).T


def _sliced(xp, x):
    big = xp.zeros(tuple(2 * n for n in x.shape), x.dtype)
    at = (slice(None, None, 2),) * x.ndim
    big[at] = x
    return big[at]


def _reversed(xp, x):
    at = (slice(None, None, -1),) * x.ndim
    return xp.ascontiguousarray(x[at])[at]


def _broadcast(xp, x):
    """A read-only view that repeats one number: what the rule of a sum gives."""
    return xp.broadcast_to(xp.asarray(np.asarray(0.7, x.dtype)), x.shape)


@every(SMOOTH)
def test_noncontiguous_inputs_and_gradients(case, device):
    arrays = [device.array(x) for x in case.make(7)]
    constants = [device.array(c) for c in case.constants]
    expected = values_and_gradients(case, arrays, constants)
    weights = [device.array(w) for w in weights_for([v.shape for v in expected[0]])]
    for layout in (_transposed, _sliced, _reversed):
        inputs, seeds = ([layout(device.xp, x) if x.ndim else x for x in xs] for xs in (arrays, weights))
        moved = values_and_gradients(case, inputs, constants, seeds)
        for a, b in zip(sum(moved, []), sum(expected, []), strict=True):
            close(device.numpy(a), device.numpy(b), 1e-12, 1e-13)
    even = [_broadcast(device.xp, w) for w in weights]
    expected = values_and_gradients(case, arrays, constants, [w.copy() for w in even])
    for a, b in zip(values_and_gradients(case, arrays, constants, even)[1], expected[1], strict=True):
        close(device.numpy(a), device.numpy(b), 1e-12, 1e-13)


@every(SMOOTH)
@pytest.mark.parametrize("create_graph", [False, True])
def test_nothing_that_the_user_holds_is_written_into(case, create_graph):
    arrays = case.make(8)
    copies = [x.copy() for x in arrays]
    shapes = [o.shape for o in as_list(case.f(*arrays, *case.constants))]
    weights = weights_for(shapes)
    for a in (*arrays, *weights, *case.constants):
        a.flags.writeable = False  # whoever writes into it raises
    try:
        leaves = [Tensor(x).requires_grad_() for x in arrays]
        outs = as_list(case.f(*leaves, *case.constants))
        before = [o.data.copy() for o in outs]
        gradients = tg.grad(outs, leaves, weights, create_graph=create_graph, allow_unused=True)
    finally:
        for c in case.constants:
            c.flags.writeable = True
    for a, b in zip([*arrays, *[o.data for o in outs]], [*copies, *before], strict=True):
        np.testing.assert_array_equal(a, b)
    for g in gradients if not create_graph else ():  # what the user gets is the user's
        for a in (*arrays, *weights, *[o.data for o in outs]):
            assert g is None or not np.shares_memory(g.data, a)


# ----- devices and kernels


@every(CASES)
def test_same_on_every_device(case, device):
    """Value and gradient as on the CPU. A whole pass waits for the device nowhere, but where the case says that it must."""
    arrays = case.make(9)
    if not case.order:
        with device.no_syncs():
            found = case.f(*[device.array(x) for x in arrays], *[device.array(c) for c in case.constants])
        np.testing.assert_array_equal(device.numpy(found), case.f(*arrays, *case.constants))
        return
    expected = values_and_gradients(case, arrays, case.constants)
    moved, constants = [device.array(x) for x in arrays], [device.array(c) for c in case.constants]
    weights = [device.array(w) for w in weights_for([v.shape for v in expected[0]])]

    def run():
        return values_and_gradients(case, moved, constants, None if case.syncs else weights)

    if case.syncs:
        found = run()
    else:
        with device.no_syncs():
            found = run()
    for a, b in zip(sum(found, []), sum(expected, []), strict=True):
        if case.op != "to_device":
            assert type(a) is device.xp.ndarray
        close(device.numpy(a), b, 1e-11, 1e-12)


@every([c for c in SMOOTH if not c.syncs])
def test_recording_the_gradient_waits_for_no_device(case, cuda_stand_in):
    arrays = [cuda_stand_in.array(x) for x in case.make(10)]
    constants = [cuda_stand_in.array(c) for c in case.constants]
    with cuda_stand_in.no_syncs():
        values_and_gradients(case, arrays, constants, create_graph=True)


def _kernels(module):
    return {
        name
        for name, f in vars(module).items()
        if isinstance(f, types.FunctionType) and not name.startswith("_") and f.__module__.startswith("tinygrad_bn.backend.")
        and f.__module__ != "tinygrad_bn.backend.libraries"
    }  # fmt: skip


def test_every_backend_has_the_same_kernels():
    assert _kernels(portable) <= _kernels(cpu)
    assert _kernels(portable) <= _kernels(cuda)
    assert len(_kernels(portable)) >= 20


@every(CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_cpu_kernels_equal_the_portable_ones(case, dtype, monkeypatch):
    arrays = [x.astype(dtype) for x in case.make(11)]
    if not case.order:
        pytest.skip("no kernel")
    fast = values_and_gradients(case, arrays, case.constants)
    monkeypatch.setitem(libraries._libraries, np.ndarray, backend.Library(np, portable, "cpu"))
    plain = values_and_gradients(case, arrays, case.constants)
    for a, b in zip(sum(fast, []), sum(plain, []), strict=True):
        assert a.dtype == b.dtype
        tolerance = {"float32": 1e-5, "float64": 1e-12}[str(a.dtype)]
        close(a, b, tolerance, tolerance)


# ----- pairs of linear operations: <A x, y> = <x, A' y>


def inner(a, b):
    return float(np.sum(np.asarray(a, "float64") * b))


@pytest.mark.parametrize("x, w, bias, how", cases.CONVOLUTIONS, ids=str)
def test_convolution_and_its_gradients_are_adjoint(x, w, bias, how, rng):
    shape_x, shape_w = x, w
    x, w = rng.standard_normal(x), rng.standard_normal(w)
    y = rng.standard_normal(ops.conv2d(x, w, **how).shape)
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    options.update({k: v if k == "groups" else cases.pair(v) for k, v in how.items()})
    forward = inner(conv._conv2d(x, w, **options), y)
    assert np.isclose(forward, inner(x, conv._conv2d_input(y, w, shape=shape_x, **options)), 1e-11)
    assert np.isclose(forward, inner(w, conv._conv2d_weight(y, x, shape=shape_w, **options)), 1e-11)
    for f, args in (
        (lambda y, w: conv._conv2d_input(y, w, shape=shape_x, **options), (y, w)),
        (lambda y, x: conv._conv2d_weight(y, x, shape=shape_w, **options), (y, x)),
    ):
        tg.check_grads(f, args, order=3)


@pytest.mark.parametrize("x, kernel, stride, padding", cases.POOLS, ids=str)
def test_pooling_and_its_gradients_are_adjoint(x, kernel, stride, padding, rng):
    x = rng.standard_normal(x)
    how = {
        "kernel": cases.pair(kernel),
        "stride": cases.pair(kernel if stride is None else stride),
        "padding": cases.pair(padding),
    }
    y, place = pool._max_pool2d(x, **how)
    z, other = rng.standard_normal(y.shape), rng.standard_normal(x.shape)
    np.testing.assert_array_equal(pool._max_pool2d_gather(x, place, **how), y)
    scattered = pool._max_pool2d_scatter(z, place, shape=x.shape, **how)
    assert np.isclose(inner(pool._max_pool2d_gather(other, place, **how), z), inner(other, scattered), 1e-11)
    spread = pool._avg_pool2d_spread(z, shape=x.shape, **how)
    assert np.isclose(inner(pool._avg_pool2d(x, **how), z), inner(x, spread), 1e-11)
    tg.check_grads(lambda z: pool._max_pool2d_scatter(z, place, shape=x.shape, **how), z, order=2)
    tg.check_grads(lambda x: pool._max_pool2d_gather(x, place, **how), x, order=2)
    tg.check_grads(lambda z: pool._avg_pool2d_spread(z, shape=x.shape, **how), z, order=2)


@every(cases.of("getitem"))
def test_reading_and_adding_at_an_index_are_adjoint(case, rng):
    (x,) = case.make()
    captured = []

    class Keep(core.Listener):
        def apply(self, name, inputs, options, out, aux, node):
            captured.append(options["index"])

    with core.listening(Keep()):
        y = case.f(Tensor(x), *case.constants).data
    (index,) = captured
    z = rng.standard_normal(y.shape)
    put = shape._put(z, index=index, shape=x.shape)
    assert np.isclose(inner(y, z), inner(x, put), 1e-12, 1e-12)
    tg.check_grads(lambda z: shape._put(z, index=index, shape=x.shape), z, order=2)


@pytest.mark.parametrize(
    "small, large", [((3, 1), (2, 3, 4)), ((), (2, 3)), ((1, 1), (4, 5)), ((2, 3), (2, 3)), ((0, 1), (0, 3))]
)
def test_summing_and_broadcasting_are_adjoint(small, large, rng):
    x, y = rng.standard_normal(small), rng.standard_normal(large)
    assert np.isclose(inner(ops.broadcast_to(x, shape=large), y), inner(x, ops.sum_to(y, shape=small)), 1e-12)


def test_dropout_is_its_own_adjoint(rng):
    x, y = rng.standard_normal((2, 40))
    assert np.isclose(inner(norm._dropout(x, p=0.3, key=7), y), inner(x, norm._dropout(y, p=0.3, key=7)), 1e-12)


def test_moving_and_its_inverse_are_adjoint(rng):
    x = rng.standard_normal((2, 3, 4))
    for f in (
        lambda v: ops.transpose(v, (1, 2, 0)),
        lambda v: ops.flip(v, (0, 2)),
        lambda v: ops.pad(v, ((1, 0), (0, 2), (0, 0))),
        lambda v: ops.cumsum(v, 1),
        lambda v: ops.moveaxis(v, 0, -1),
        lambda v: ops.reshape(v, 4, -1),
    ):
        leaf = Tensor(x).requires_grad_()
        out = f(leaf)
        z = rng.standard_normal(out.shape)
        (back,) = tg.grad(out, leaf, Tensor(z))
        assert np.isclose(inner(out.data, z), inner(x, back.data), 1e-12)


# ----- what the table does not say: edges, extreme values, statistics


def gradient(f, *arrays):
    leaves = [Tensor(np.asarray(x)).requires_grad_() for x in arrays]
    y = f(*leaves)
    found = tg.grad(y.sum() if y.size != 1 else y, leaves)
    return found[0].data if len(found) == 1 else tuple(g.data for g in found)


def test_derivatives_at_kinks():
    at = np.array([-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(gradient(ops.relu, at), [0, 0, 1])
    np.testing.assert_array_equal(gradient(ops.abs, at), [-1, 0, 1])
    np.testing.assert_array_equal(gradient(lambda x: ops.leaky_relu(x, 0.1), at), [0.1, 0.1, 1])
    np.testing.assert_array_equal(gradient(lambda x: ops.clip(x, -1.0, 1.0), at * 2), [0, 1, 0])
    np.testing.assert_array_equal(gradient(lambda x: ops.clip(x, -1.0, 1.0), at), [1, 1, 1])
    for f in (ops.maximum, ops.minimum):
        for g in gradient(f, at, at):
            np.testing.assert_array_equal(g, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(gradient(ops.max, [1.0, 3.0, 3.0, 3.0]), [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(gradient(lambda x: ops.min(x, 1), [[1.0, 1.0], [2.0, 3.0]]), [[0.5, 0.5], [1, 0]])


def test_max_pooling_gives_a_tie_to_the_first():
    x = np.zeros((1, 1, 2, 4))
    x[0, 0, :, 2:] = [[1, 5], [5, 5]]
    np.testing.assert_array_equal(gradient(lambda x: ops.max_pool2d(x, 2), x)[0, 0], [[1, 0, 0, 1], [0, 0, 0, 0]])
    flat = gradient(lambda x: ops.max_pool2d(x, 3, 1, 1), np.zeros((1, 1, 3, 3)))[0, 0]
    np.testing.assert_array_equal(flat, [[4, 2, 0], [2, 1, 0], [0, 0, 0]])  # each window's first element that is not padding


@pytest.mark.parametrize("base, exponent, expected", [
    (0.0, 2.0, (0.0, 0.0)), (0.0, 1.0, (1.0, 0.0)), (0.0, 0.0, (0.0, 0.0)), (2.0, 0.0, (0.0, np.log(2.0))),
    (-2.0, 2.0, (-4.0, np.nan)),
])  # fmt: skip
def test_powers_at_their_edges(base, exponent, expected):
    with np.errstate(invalid="ignore", divide="ignore"):
        found = gradient(ops.pow, [base], [exponent])
        np.testing.assert_allclose(np.concatenate(found), expected)
        np.testing.assert_allclose(gradient(lambda x: ops.pow(x, exponent), [base]), expected[:1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_values_overflow_nowhere(dtype):
    """warnings are errors: an overflow on the way would raise."""
    x = np.array([-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4], dtype)
    big = x.astype("float64")
    close(ops.sigmoid(x), np.array([0, 0, 1 / (1 + np.exp(30)), 0.5, 1, 1, 1]).astype(dtype), 1e-5, 1e-7)
    close(ops.softplus(x), np.maximum(big, 0).astype(dtype) + np.log1p(np.exp(-np.abs(big))).astype(dtype), 1e-5)
    for f in (
        ops.sigmoid, ops.softplus, ops.tanh, ops.silu, ops.gelu, ops.elu, ops.erf, ops.log_softmax, ops.softmax, ops.logsumexp
    ):  # fmt: skip
        assert np.isfinite(f(x)).all(), f.__name__
        with np.errstate(under="ignore"):
            assert np.isfinite(gradient(f, x)).all(), f.__name__
    target = (x > 0).astype(dtype)
    assert float(ops.bce_with_logits(x, target)) < 1e-6 + np.log(2) / 7
    assert np.isfinite(gradient(lambda t: ops.bce_with_logits(t, Tensor(target)), x)).all()
    logits = np.array([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]], dtype)
    np.testing.assert_allclose(ops.cross_entropy(logits, np.array([0, 2]), "none"), [0, 1e4])
    close(ops.log_softmax(logits).astype("float64"), np.array([[0, -1e4, -2e4], [-2e4, 0, -1e4]]))
    np.testing.assert_array_equal(ops.logsumexp(logits, 1), logits.max(1))


def test_infinities_in_logsumexp():
    with np.errstate(divide="ignore"):
        assert ops.logsumexp(np.array([-np.inf, -np.inf])) == -np.inf
    assert ops.logsumexp(np.array([-np.inf, 1.0])) == 1.0
    assert ops.logsumexp(np.array([np.inf, 1.0])) == np.inf


def test_nan_goes_through():
    x = np.array([[1.0, np.nan], [3.0, 4.0]])
    for f in (ops.relu, ops.max, ops.min, ops.abs, ops.sigmoid, lambda x: ops.clip(x, 0.0, 1.0), lambda x: ops.maximum(x, 0.0),
              lambda x: ops.minimum(0.0, x)):  # fmt: skip
        assert np.isnan(f(x)).any()
    assert np.isnan(ops.max_pool2d(x.reshape(1, 1, 2, 2), 2)).all()
    first = np.array([np.nan, 1.0, 2.0, 3.0]).reshape(1, 1, 2, 2)
    assert np.isnan(ops.max_pool2d(first, 2)).all()


def test_small_numbers_keep_their_digits():
    x = np.array([1e-12, -1e-12])
    np.testing.assert_allclose(ops.log1p(x), x, 1e-11)
    np.testing.assert_allclose(ops.expm1(x), x, 1e-11)
    np.testing.assert_allclose(ops.elu(x), x, 1e-11)


def test_flatten_of_what_is_flat_is_the_input(rng):
    x = Tensor(rng.standard_normal((2, 3)))
    assert ops.flatten(x, 1) is x and ops.flatten(x[0]).shape == (3,) and tg.nn.Flatten()(x) is x
    assert ops.flatten(x).shape == (6,) and ops.flatten(x[0, 0]).shape == (1,)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_labels_are_told_from_logits_that_make_the_loss_infinite(reduction):
    logits = np.array([[0.0, np.inf, 1.0], [np.nan, 0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(ops.cross_entropy(logits, np.array([0, 2]), reduction)).all()
        with pytest.raises(ValueError, match="labels from 0 to 2 for 3 classes, got values from -1 to 0"):
            ops.cross_entropy(logits, np.array([0, -1]), reduction)


@pytest.mark.parametrize("device_of_labels", ["cpu", "cuda"])
def test_labels_out_of_range(device_of_labels, cuda_stand_in):
    logits, labels = np.zeros((2, 3)), np.array([1, 3])
    if device_of_labels == "cpu":
        with pytest.raises(ValueError, match="labels from 0 to 2 for 3 classes, got values from 1 to 3"):
            ops.cross_entropy(logits, labels)
        return
    x = Tensor(cuda_stand_in.array(logits)).requires_grad_()
    with cuda_stand_in.no_syncs():
        losses = ops.cross_entropy(x, cuda_stand_in.array(labels), "none")
        losses.sum().backward()
    np.testing.assert_allclose(cuda_stand_in.numpy(losses), [np.log(3), np.nan])
    assert np.isnan(cuda_stand_in.numpy(x.grad)[1]).all() and np.isfinite(cuda_stand_in.numpy(x.grad)[0]).all()


def test_batch_statistics_are_given(rng):
    x = rng.standard_normal((5, 3, 4))
    y, (mean, var) = ops.batch_norm(x, np.ones(3), np.zeros(3))
    np.testing.assert_allclose(mean, x.mean((0, 2)), 1e-12)
    np.testing.assert_allclose(var, x.var((0, 2)), 1e-12)  # biased
    assert mean.shape == var.shape == (3,)
    np.testing.assert_allclose(y.mean((0, 2)), 0, atol=1e-14)
    y32, (mean32, _) = ops.batch_norm(Tensor(x.astype("float32")), None, None)
    assert y32.dtype == "float32" and mean32.dtype in ("float32", "float64")  # at least float32
    _, (mean16, var16) = ops.batch_norm(x.astype("float16"))
    assert mean16.dtype in ("float32", "float64")
    np.testing.assert_allclose(var16, x.var((0, 2)), 5e-3)


@every(cases.of("batch_norm"))
def test_the_fused_batch_norm_equals_the_composed_one_to_third_order(case):
    """Value, and the derivatives along one direction at each order: PyTorch's own batch_norm fails this at the third."""
    arrays = case.make(12)
    rng = np.random.default_rng(0)
    directions = [rng.standard_normal(x.shape) for x in arrays]
    found = []
    for which in ("batch_norm", "batch_norm_composed"):
        (chosen,) = (c for c in CASES if c.op == which and c.what == case.what)
        leaves = [Tensor(x).requires_grad_() for x in arrays]
        y = chosen.f(*leaves)
        (weights,) = weights_for([y.shape])
        total, levels = (y * weights).sum(), [y.data]
        for _ in range(3):
            gradients = tg.grad(total, leaves, create_graph=True, allow_unused=True)
            levels += [g.data for g in gradients if g is not None]
            total = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
        found.append(levels)
    for a, b in zip(*found, strict=True):
        scale = np.abs(b).max() + 1.0
        np.testing.assert_allclose(a / scale, b / scale, 1e-9, 1e-9)


def test_the_composed_batch_norm_gives_the_same_statistics(rng):
    x = rng.standard_normal((5, 3, 4))
    for a, b in zip(ops.batch_norm(x)[1], ops.batch_norm_composed(x)[1], strict=True):
        np.testing.assert_allclose(a, b, 1e-13)
    for a, b in zip(ops.batch_norm(Tensor(x))[1], ops.batch_norm_composed(Tensor(x).requires_grad_())[1], strict=True):
        assert type(b) is np.ndarray
        np.testing.assert_allclose(a, b, 1e-13)


@pytest.mark.parametrize("dtype, offset", [("float32", 1e4), ("float32", 1e6), ("float64", 1e12)])
def test_variance_of_large_numbers(dtype, offset, rng):
    """E[x^2] - E[x]^2 would have no digit left."""
    x = (offset + rng.standard_normal((64, 3, 5)).astype(dtype) * 4).astype(dtype)
    y, (mean, var) = ops.batch_norm(x)
    exact = x.astype("longdouble")
    spread = exact - exact.mean((0, 2), keepdims=True)
    np.testing.assert_allclose(mean, exact.mean((0, 2)), 1e-7 if dtype == "float32" else 1e-15)
    np.testing.assert_allclose(var, (spread * spread).mean((0, 2)).astype("float64"), 1e-5)
    np.testing.assert_allclose(y, (spread / np.sqrt((spread**2).mean((0, 2), keepdims=True) + 1e-5)).astype(dtype), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, 12345.678])
def test_a_constant_channel_becomes_zero(dtype, value):
    y, (_, var) = ops.batch_norm(np.full((7, 2, 3), value, dtype))
    assert not y.any() and not var.any()


def test_one_number_per_group_normalises_to_beta():
    x = Tensor(np.array([[3.0, 4.0]])).requires_grad_()
    y = ops.group_norm(x, np.ones(2), np.array([5.0, 6.0]), 2)
    np.testing.assert_array_equal(y.data, [[5, 6]])
    y.sum().backward()
    np.testing.assert_allclose(x.grad.data, 0, atol=1e-12)


def test_dropout_draws_anew_and_repeats_from_a_seed():
    x = np.ones((50, 40), "float32")
    tg.manual_seed(3)
    first, second = ops.dropout(x, 0.3), ops.dropout(x, 0.3)
    assert (first != second).any()
    tg.manual_seed(3)
    np.testing.assert_array_equal(ops.dropout(x, 0.3), first)
    assert set(np.unique(first)) == {np.float32(0), np.float32(1) * np.float32(1 / 0.7)}
    assert abs((first == 0).mean() - 0.3) < 0.05
    state = tg.get_rng_state()
    ops.dropout(x, 0.3, training=False)
    ops.dropout(x, 0.0)
    assert tg.get_rng_state() == state  # nothing is drawn where nothing is dropped


@pytest.mark.parametrize("f", [
    lambda x: ops.conv2d(x, np.ones((2, 3, 2, 2))), lambda x: ops.max_pool2d(x, 2), lambda x: ops.avg_pool2d(x, 2), ops.relu,
    lambda x: ops.sum(x, 0), lambda x: ops.layer_norm(x, axes=(1, 2, 3)), lambda x: ops.group_norm(x, num_groups=3),
    lambda x: ops.linear(ops.flatten(x, 1), np.ones((2, 48))), lambda x: ops.softmax(x), lambda x: ops.dropout(x, 0.5),
    lambda x: ops.batch_norm_inference(x, None, None, np.zeros(3), np.ones(3)), lambda x: ops.adaptive_avg_pool2d(x, 3),
    lambda x: ops.concatenate([x, x]), lambda x: x[:, 1],
])  # fmt: skip
def test_no_examples_at_all(f):
    """An empty batch gives an empty result and an empty gradient, wherever nothing is averaged over the batch."""
    x = Tensor(np.zeros((0, 3, 4, 4))).requires_grad_()
    y = f(x)
    y.backward(np.ones(y.shape))
    assert x.grad.shape == x.shape


def test_operators_and_methods():
    a, b = Tensor(np.array([1.0, 2.0])), np.array([3.0, 4.0])
    for mine, expected in (
        (a + b, [4, 6]), (b + a, [4, 6]), (a - b, [-2, -2]), (b - a, [2, 2]), (1 - a, [0, -1]), (a * b, [3, 8]),
        (b * a, [3, 8]), (a / b, [1 / 3, 0.5]), (b / a, [3, 2]), (2 / a, [2, 1]), (a**2, [1, 4]), (2**a, [2, 4]),
        (b**a, [3, 16]), (-a, [-1, -2]), (abs(-a), [1, 2]), (a @ b, 11), (b @ a, 11), (a.T, [1, 2]), (a[1], 2), (a.sum(), 3),
        (a.pow(2), [1, 4]), (a.reshape(2, 1), [[1], [2]]),
    ):  # fmt: skip
        assert type(mine) is Tensor
        np.testing.assert_allclose(mine.data, expected)


def test_labels_of_the_host_beside_logits_on_cuda_are_checked_and_copied(cuda_stand_in):
    x = np.random.default_rng(0).standard_normal((4, 3))
    labels = np.array([0, 2, 1, 1])
    logits = tg.tensor(cuda_stand_in.array(x), requires_grad=True)
    with cuda_stand_in.no_syncs():
        loss = ops.cross_entropy(logits, labels)
        loss.backward()
    assert loss.device == logits.grad.device == "cuda"
    np.testing.assert_allclose(cuda_stand_in.numpy(loss), ops.cross_entropy(x, labels))
    assert tg.tensor(labels).device == "cpu" and ops.cross_entropy(logits, tg.tensor(labels)).device == "cuda"
    for wrong in ([0, 3, 1, 1], [0, -1, 1, 1]):
        with pytest.raises(ValueError, match="cross_entropy expected labels from 0 to 2 for 3 classes, got values from"):
            ops.cross_entropy(logits, np.array(wrong))
