"""The identities of batch normalisation, numbered as in the notes they were derived in, each with what breaks it.

Notation per channel of m values: mu, v the biased variance, s = sqrt(v + eps), xh = (x - mu) / s, y = gamma xh + beta,
g = dL/dy, P(u) = u - mean(u) - xh mean(u xh), S = sum(g xh). Everything is float64 unless a test says otherwise.

"Broken by" names mutations of the package that were tried, each of which turns the test red.
"""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import nn, ops

EPS = 1e-3  # large enough that terms with eps in them are seen
SHAPES = [(7, 3), (4, 3, 5), (3, 3, 2, 4), (2, 3, 2, 3, 2)]
LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
fused_and_composed = pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])


# ----- the formulas in plain NumPy, independent of the package


def axes_of(x):
    return (0, *range(2, x.ndim))


def column(v, x):
    return np.reshape(v, (1, -1) + (1,) * (x.ndim - 2))


def mean(u):
    return u.mean(axes_of(u), keepdims=True)


def total(u):
    return u.sum(axes_of(u))


class Terms:
    """mu, v, s, xh, m and the projection P of an input."""

    def __init__(self, x, eps=EPS):
        self.m = x.size // x.shape[1]
        self.mu, self.v = mean(x), x.var(axes_of(x), keepdims=True)
        self.s = np.sqrt(self.v + eps)
        self.xh = (x - self.mu) / self.s

    def project(self, u):
        return u - mean(u) - self.xh * mean(u * self.xh)


# ----- the package


def normalise(x, gamma=None, beta=None, eps=EPS, fused=True):
    """Batch normalisation of Tensors, by the kernel or by primitive operations."""
    return (ops.batch_norm if fused else ops.batch_norm_composed)(x, gamma, beta, eps=eps)[0]


def leaves(*arrays):
    return [tg.tensor(a, requires_grad=True) for a in arrays]


def gradients(x, gamma, beta, g, eps=EPS, fused=True):
    """y, dx, dgamma, dbeta."""
    inputs = leaves(x, gamma, beta)
    y = normalise(*inputs, eps, fused)
    return [t.data for t in (y, *tg.grad(y, inputs, tg.tensor(g)))]


@pytest.fixture(autouse=True)
def seed():
    """For the layers' own initial weights."""
    tg.manual_seed(0)


@pytest.fixture
def draw(rng):
    def draw(shape, n=2.0, scale=1.5):
        """x, gamma, beta, g."""
        return rng.normal(n, scale, shape), rng.normal(size=shape[1]), rng.normal(size=shape[1]), rng.normal(size=shape)

    return draw


# ----- 1 to 4: values, and the gradient's two sums


@every_shape
@fused_and_composed
def test_law_1_xh_has_mean_0_and_mean_square_v_over_v_plus_eps(draw, shape, fused):
    """Not 1. Broken by: eps outside the sqrt; the variance divided by m - 1."""
    x, *_ = draw(shape)
    xh = normalise(tg.tensor(x), eps=EPS, fused=fused).data
    t = Terms(x)
    assert_allclose(mean(xh), np.zeros_like(t.v), atol=1e-12)
    assert_allclose(mean(xh * xh), t.v / (t.v + EPS), rtol=1e-12)


@every_shape
@fused_and_composed
def test_law_2_the_three_gradients(draw, shape, fused):
    """dx = gamma/s P(g), dgamma = S, dbeta = sum(g). Broken by: dropping the mean term, dropping the xh term."""
    x, gamma, beta, g = draw(shape)
    y, dx, dgamma, dbeta = gradients(x, gamma, beta, g, fused=fused)
    t = Terms(x)
    assert_allclose(y, column(gamma, x) * t.xh + column(beta, x), atol=1e-13)
    assert_allclose(dx, column(gamma, x) / t.s * t.project(g), atol=1e-12)
    assert_allclose(dgamma, total(g * t.xh), atol=1e-12)
    assert_allclose(dbeta, total(g), atol=1e-12)


@every_shape
@fused_and_composed
def test_law_3_dx_sums_to_0(draw, shape, fused):
    """A shift of the channel changes nothing. Broken by: dropping the mean term."""
    _, dx, _, _ = gradients(*draw(shape), fused=fused)
    assert_allclose(total(dx), 0, atol=1e-14 * dx.size)


@every_shape
@fused_and_composed
def test_law_4_dx_times_xh_sums_to_a_multiple_of_eps(draw, shape, fused):
    """sum(dx xh) = gamma/s S eps/(v + eps), not 0. Broken by: dropping the xh term, eps outside the sqrt."""
    x, gamma, beta, g = draw(shape)
    _, dx, _, _ = gradients(x, gamma, beta, g, fused=fused)
    t = Terms(x)
    expected = (column(gamma, x) / t.s * column(total(g * t.xh), x) * EPS / (t.v + EPS)).reshape(-1)
    assert_allclose(total(dx * t.xh), expected, atol=1e-14 * dx.size)
    assert np.abs(expected).min() > 1e-7, "a formula that says 0 would pass"


# ----- 5 to 7: what stands before BatchNorm


@fused_and_composed
@pytest.mark.parametrize("eps", [0.0, EPS])
def test_law_5_weights_are_orthogonal_to_their_gradient_but_for_eps(draw, rng, fused, eps):
    """z = X W -> BN: the column sums of W * dL/dW are gamma S eps/(v + eps). Broken by: dropping the xh term."""
    x, gamma, beta, g = draw((9, 4))
    w, gamma, beta, g = leaves(rng.normal(size=(4, 3)))[0], gamma[:3], beta[:3], g[:, :3]
    z = tg.tensor(x) @ w
    normalise(z, *map(tg.tensor, (gamma, beta)), eps, fused).backward(g)
    t = Terms(z.data, eps)
    expected = gamma * total(g * t.xh) * (eps / (t.v + eps))[0]
    assert_allclose((w.data * w.grad.data).sum(0), expected, atol=1e-12)


@every_shape
@fused_and_composed
def test_law_6_a_bias_before_it_does_nothing(draw, rng, shape, fused):
    """Its gradient is 0, and y, dx are those of x without it. Broken by: dropping the mean term."""
    x, gamma, beta, g = draw(shape, n=0.0)
    shift = rng.normal(size=shape[1])
    bias = tg.tensor(shift, requires_grad=True)
    y = normalise(tg.tensor(x) + bias.reshape(column(shift, x).shape), *map(tg.tensor, (gamma, beta)), fused=fused)
    y.backward(g)
    assert_allclose(bias.grad.data, 0, atol=1e-12)
    for a, b in zip(
        gradients(x, gamma, beta, g, fused=fused), gradients(x + column(shift, x), gamma, beta, g, fused=fused), strict=True
    ):
        assert_allclose(a, b, atol=1e-12)


@every_shape
@fused_and_composed
@pytest.mark.parametrize("a", [3.7, 0.2, -1.9])
def test_law_7_scaling_the_input(draw, shape, fused, a):
    """BN(a x; eps) = sign(a) BN(x; eps / a^2): a negative a flips. The gradient at a x is |a| times smaller than that at x.

    Broken by: eps outside the sqrt.
    """
    x, _, _, g = draw(shape)
    ones, zeros = np.ones(shape[1]), np.zeros(shape[1])
    for eps in (0.0, EPS):
        y, dx, _, _ = gradients(a * x, ones, zeros, g, eps, fused)
        plain, dplain, _, _ = gradients(x, ones, zeros, g, eps / a**2, fused)
        assert_allclose(y, np.sign(a) * plain, atol=1e-12)
        assert_allclose(dx, dplain / abs(a), atol=1e-12)


@fused_and_composed
def test_law_7_the_gradient_of_scaled_weights(draw, rng, fused):
    """grad(a W) = grad(W) / a at eps = 0, for a > 0. Broken by: an x_hat without inv_std in the gradient."""
    x, gamma, beta, g = draw((9, 4))
    w = rng.normal(size=(4, 4))

    def gradient(w):
        (leaf,) = leaves(w)
        normalise(tg.tensor(x) @ leaf, *map(tg.tensor, (gamma, beta)), 0.0, fused).backward(g)
        return leaf.grad.data

    assert_allclose(gradient(5.0 * w), gradient(w) / 5.0, atol=1e-12)


# ----- 8 to 11: the Jacobian, bounds, two values, symmetries


@fused_and_composed
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_law_8_the_jacobian(rng, fused, eps):
    """J = (I - 11'/m - xh xh'/m) / s: symmetric, eigenvalues 0, eps / (s (v + eps)), and 1/s m - 2 times; rank m - 2 at eps 0.

    Broken by: dropping the mean term (rank), dropping the xh term (rank).
    """
    m = 8
    x = rng.normal(1.0, 2.0, (m, 1))
    j = tg.jacobian(lambda x: normalise(x, eps=eps, fused=fused), tg.tensor(x)).data.reshape(m, m)
    t = Terms(x, eps)
    s, v = t.s.item(), t.v.item()
    assert_allclose(j, j.T, atol=1e-14)
    assert_allclose(j, (np.eye(m) - 1 / m - t.xh @ t.xh.T / m) / s, atol=1e-13)
    expected = np.sort([0.0, eps / (s * (v + eps)), *[1 / s] * (m - 2)])
    assert_allclose(np.linalg.eigvalsh(j), expected, atol=1e-13)
    assert np.linalg.matrix_rank(j, tol=1e-10) == (m - 2 if eps == 0 else m - 1)


@fused_and_composed
def test_law_8_channels_do_not_mix(rng, fused):
    x = rng.normal(size=(3, 2, 2))
    j = tg.jacobian(lambda x: normalise(x, fused=fused), tg.tensor(x)).data
    assert_array_equal(j[:, 0, :, :, 1, :], 0)
    assert_array_equal(j[:, 1, :, :, 0, :], 0)


@fused_and_composed
def test_law_9_no_xh_exceeds_the_root_of_m_minus_1(rng, fused):
    """With equality for a single outlier: 3.87298 for m = 16. Broken by: the variance divided by m - 1."""
    outlier = np.zeros((16, 1))
    outlier[5] = 123.0
    xh = normalise(tg.tensor(outlier), eps=0.0, fused=fused).data
    assert_allclose(np.abs(xh).max(), np.sqrt(15), rtol=1e-12)
    heavy = rng.standard_cauchy((16, 200))
    assert np.abs(normalise(tg.tensor(heavy), eps=0.0, fused=fused).data).max() <= np.sqrt(15) * (1 + 1e-12)


@fused_and_composed
def test_law_10_two_values_per_channel(rng, fused):
    """xh = +-d / sqrt(d^2 + 4 eps), dx = +-gamma/2 eps/s^3 (g1 - g2). Broken by: eps outside the sqrt."""
    x, gamma, beta, g = rng.normal(size=(2, 5)), rng.normal(size=5), np.zeros(5), rng.normal(size=(2, 5))
    y, dx, _, _ = gradients(x, gamma, beta, g, fused=fused)
    d = x[0] - x[1]
    assert_allclose(y[0], gamma * d / np.sqrt(d * d + 4 * EPS), atol=1e-12)
    assert_allclose(y[1], -y[0], atol=1e-12)
    s = np.sqrt(d * d / 4 + EPS)
    assert_allclose(dx[0], gamma / 2 * EPS / s**3 * (g[0] - g[1]), atol=1e-12)
    assert_allclose(dx[1], -dx[0], atol=1e-12)


@every_shape
@fused_and_composed
def test_law_11_permuting_and_doubling_the_batch(draw, rng, shape, fused):
    """The statistics are a set's; only the unbiased running variance knows m. Broken by: a biased running variance."""
    x, gamma, beta, g = draw(shape)
    order = rng.permutation(shape[0])
    y, dx, dgamma, dbeta = gradients(x, gamma, beta, g, fused=fused)
    y2, dx2, dgamma2, dbeta2 = gradients(x[order], gamma, beta, g[order], fused=fused)
    for a, b in ((y[order], y2), (dx[order], dx2), (dgamma, dgamma2), (dbeta, dbeta2)):
        assert_allclose(a, b, atol=1e-12)

    once, twice = (LAYERS[len(shape)](3, momentum=1, fused=fused).double() for _ in "ab")
    ya, yb = once(tg.tensor(x)).data, twice(tg.tensor(np.concatenate([x, x]))).data
    assert_allclose(np.concatenate([ya, ya]), yb, atol=1e-12)
    assert_allclose(once.running_mean.data, twice.running_mean.data, atol=1e-12)
    m = x.size // shape[1]
    factor = (2 * m / (2 * m - 1)) / (m / (m - 1))
    assert_allclose(twice.running_var.data, once.running_var.data * factor, rtol=1e-12)


# ----- 12, 13: training with it


def _net_before_batchnorm(w, x, labels, readout, eps, fused):
    """A loss whose dependence on w goes through BatchNorm."""
    h = normalise(x @ w, eps=eps, fused=fused).tanh()
    return ops.cross_entropy(h @ readout, labels)


@fused_and_composed
def test_law_12_one_sgd_step_obeys_pythagoras(rng, fused):
    """|w'|^2 = |w|^2 + eta^2 |g|^2 at eps = 0. Broken by: dropping the xh term."""
    x, labels = tg.tensor(rng.normal(size=(12, 5))), rng.integers(0, 3, 12)
    (w,) = leaves(rng.normal(size=(5, 4)))
    (g,) = tg.grad(_net_before_batchnorm(w, x, labels, tg.tensor(rng.normal(size=(4, 3))), 0.0, fused), w)
    eta = 0.7
    after = w.data - eta * g.data
    squares = (w.data**2).sum(), eta**2 * (g.data**2).sum()
    assert_allclose((after**2).sum(), sum(squares), rtol=3e-14)
    assert squares[1] > 1e-8 * squares[0], "the step is long enough to be seen"


def test_law_13_weight_decay_is_an_exponential_learning_rate(rng):
    """SGD with weight decay lambda on weights before BatchNorm = none, with the rate eta (1 - eta lambda)^(-2t - 1).

    Li & Arora 2020. 400 steps at eps = 0: the rate grows 8e4-fold, and the losses stay together. The readout gets the plain
    rate in both arms. (On one fixed batch both would come to the edge of stability, where rounding errors grow to 0.1; fresh
    batches with noisy targets keep the weights away from it.) Broken by: dropping the xh term: the gradient is then not
    orthogonal to the weights.
    """
    eta, decay, steps = 0.1, 0.14, 400
    teacher, xs = rng.normal(size=(6, 3)), rng.normal(size=(steps, 16, 6))
    targets = xs @ teacher + rng.normal(size=(steps, 16, 3))
    starts = rng.normal(size=(6, 5)) / 2, rng.normal(size=(5, 5)) / 2, rng.normal(size=(5, 3)) / 2

    def train(with_decay):
        w1, w2, readout = leaves(*starts)
        losses = []
        for t, (x, target) in enumerate(zip(xs, targets, strict=True)):
            h = normalise(tg.tensor(x) @ w1, eps=0.0).tanh()
            loss = ops.mse_loss(normalise(h @ w2, eps=0.0).tanh() @ readout, tg.tensor(target))
            losses.append(loss.item())
            g1, g2, g3 = tg.grad(loss, [w1, w2, readout])
            for w, g in ((w1, g1), (w2, g2)):
                if with_decay:
                    w.data = w.data - eta * (g.data + decay * w.data)
                else:
                    w.data = w.data - eta * (1 - eta * decay) ** (-2 * t - 1) * g.data
            readout.data = readout.data - eta * g3.data
        return np.array(losses), np.sqrt((w1.data**2).sum())

    decayed, short = train(True)
    exponential, long = train(False)
    assert_allclose(exponential, decayed, rtol=0, atol=1e-9)
    assert decayed[-50:].mean() < 0.7 * decayed[:10].mean() and long > 100 * short, "nothing was learnt, or nothing was tested"


# ----- 14 to 16: the second and the third order


@every_shape
@fused_and_composed
def test_law_14_double_backward_in_closed_form(draw, rng, shape, fused):
    """Phi = sum(v dx) + sum(p dgamma) + sum(q dbeta), and its derivatives by g, gamma and x.

    Broken by: an inv_std saved as an array in the rule that is recorded.
    """
    x, gamma, beta, g = draw(shape)
    v, p, q = rng.normal(size=shape), rng.normal(size=shape[1]), rng.normal(size=shape[1])
    xs, gs = leaves(x, gamma, beta), tg.tensor(g, requires_grad=True)
    firsts = tg.grad(normalise(*xs, fused=fused), xs, gs, create_graph=True)
    phi = sum((d * w).sum() for d, w in zip(firsts, (v, p, q), strict=True))
    dg, dgamma, dx = (t.data for t in tg.grad(phi, [gs, xs[1], xs[0]]))
    t = Terms(x)
    c = column(gamma, x)
    k, s_ = column(total(v * t.project(g)), x), column(total(g * t.xh), x)
    assert_allclose(dg, c / t.s * t.project(v) + column(p, x) * t.xh + column(q, x), atol=1e-8)
    assert_allclose(dgamma, (k / t.s).reshape(-1), atol=1e-8)
    bracket = t.xh * k + s_ * t.project(v) + column(total(v * t.xh), x) * t.project(g)
    assert_allclose(dx, -c / (t.m * t.s**2) * bracket + column(p, x) / t.s * t.project(g), atol=1e-8)


@fused_and_composed
def test_law_15_hessian_vector_product_through_a_whole_net(rng, fused):
    """By differentiating twice = by a finite difference of gradients. Broken by: a saved inv_std."""
    x, labels = tg.tensor(rng.normal(size=(5, 2, 5, 5))), rng.integers(0, 3, 5)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, fused=fused), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4),
        nn.BatchNorm1d(4, fused=fused), nn.Tanh(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    parameters = list(model.parameters())
    vectors = [rng.normal(size=p.shape) for p in parameters]
    starts = [p.data for p in parameters]

    def gradient(step):
        for p, start, v in zip(parameters, starts, vectors, strict=True):
            p.data = start + step * v
        return [g.data for g in tg.grad(ops.cross_entropy(model(x), labels), parameters)]

    def loss(*_):
        return ops.cross_entropy(model(x), labels)

    found = tg.hvp(loss, parameters, vectors)
    h = 1e-4  # a central difference with Richardson's extrapolation
    for a, *ends in zip(found, *(gradient(step) for step in (h, -h, h / 2, -h / 2)), strict=True):
        coarse, fine = (ends[0] - ends[1]) / (2 * h), (ends[2] - ends[3]) / h
        assert_allclose(a.data, (4 * fine - coarse) / 3, rtol=1e-5, atol=1e-5)


def _contractions(x, gamma, beta, weights, eps, fused):
    """y; its gradient, unrecorded (by the kernel, if fused) and recorded; the gradient of a contraction of that; and so on."""
    inputs = leaves(x, gamma, beta)
    y = normalise(*inputs, eps, fused)
    s = (y * weights[0]).sum()
    orders = [[y.data], [d.data for d in tg.grad(s, inputs, retain_graph=True)]]
    for order in (1, 2, 3):
        found = tg.grad(s, inputs, create_graph=order < 3, allow_unused=True)
        orders.append([np.zeros_like(i.data) if d is None else d.data for d, i in zip(found, inputs, strict=True)])
        if order < 3:
            s = sum((d * w).sum() for d, w in zip(found, weights[order], strict=True) if d is not None)
    return orders


@every_shape
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_law_16_fused_is_composed_to_the_third_order(draw, rng, shape, eps):
    """Value, gradients, and random contractions of the second and third derivative.

    Broken by: a saved inv_std (from the second order on); either term of dx dropped, from the recordable rule or the kernel.
    """
    x, gamma, beta, _ = draw(shape)
    weights = [rng.normal(size=shape)]
    weights += [[rng.normal(size=a.shape) for a in (x, gamma, beta)] for _ in (2, 3)]
    fused = _contractions(x, gamma, beta, weights, eps, True)
    composed = _contractions(x, gamma, beta, weights, eps, False)
    orders = "value", "gradient", "recorded gradient", "second derivative", "third derivative"
    for order, a, b in zip(orders, fused, composed, strict=True):
        for name, p, q in zip(("y",) if order == "value" else ("x", "gamma", "beta"), a, b, strict=True):
            tolerance = (1e-10 if order == "third derivative" else 1e-12) * max(1.0, np.abs(q).max())
            assert_allclose(p, q, rtol=0, atol=tolerance, err_msg=f"{order} by {name}")
    assert np.abs(fused[4][0]).max() > 1e-3, "the third derivative is not 0"


@pytest.mark.parametrize("asked", [a for a in itertools.product([True, False], repeat=3) if any(a)])
@pytest.mark.parametrize("shape", [(5, 2), (2, 2, 2, 2)], ids=["2d", "4d"])
@fused_and_composed
def test_derivatives_to_the_third_order(draw, shape, asked, fused):
    """Every choice of which of x, gamma and beta want a gradient.

    Broken by: dropping either term of dx from the kernel; a saved inv_std. (A term dropped from the recordable rule alone is
    seen by laws 14 to 16: check_grads finds right derivatives of a wrong gradient.)
    """
    x, gamma, beta, _ = draw(shape)
    given = [x, gamma, beta]

    def f(*wanted):
        wanted = iter(wanted)
        return normalise(*(next(wanted) if a else tg.tensor(v) for a, v in zip(asked, given, strict=True)), fused=fused)

    tg.check_grads(f, [v for a, v in zip(asked, given, strict=True) if a], order=3, rtol=1e-6, atol=1e-7)


@every_shape
@fused_and_composed
def test_derivatives_without_affine(draw, shape, fused):
    x, *_ = draw(shape)
    tg.check_grads(lambda x: normalise(x, fused=fused), x, order=3, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("affine", [True, False])
@fused_and_composed
def test_derivatives_of_the_layer_in_both_modes(draw, affine, fused):
    """Broken by: the batch's formula in the gradient of evaluation."""
    x, *_ = draw((3, 2, 2, 2))
    layer = nn.BatchNorm2d(2, affine=affine, fused=fused).double()
    layer(tg.tensor(x * 2 + 1))
    for mode in (True, False):
        layer.train(mode)
        tg.check_grads(layer, x, order=3, rtol=1e-6, atol=1e-7)


def test_derivatives_of_inference_by_all_its_arguments(draw, rng):
    """The statistics too: whoever learns them may."""
    x, gamma, beta, _ = draw((3, 2, 2))
    given = [x, gamma, beta, rng.normal(size=2), rng.uniform(0.5, 2.0, 2)]
    tg.check_grads(lambda *a: ops.batch_norm_inference(*a, eps=EPS), given, order=3, rtol=1e-6, atol=1e-7)


def _slope(f, x, direction, h=1e-4):
    """The derivative of f along a direction: a central difference with Richardson's extrapolation."""

    def central(h):
        return (f(x + h * direction) - f(x - h * direction)) / (2 * h)

    return (4 * central(h / 2) - central(h)) / 3


def test_the_third_derivative_is_right_where_pytorchs_is_not(torch, rng):
    """PyTorch 2.13 keeps mean and inv_std as constants in its double backward, so its third derivative misses terms."""
    shape = (3, 2, 2, 2)
    x, gamma, beta = rng.normal(size=shape), rng.normal(size=2), rng.normal(size=2)
    w, *vs = (rng.normal(size=shape) for _ in range(4))

    def ours(x, order):
        leaf, *affine = leaves(x, gamma, beta)
        s = (normalise(leaf, *affine, 1e-5) * w).sum()
        for v in vs[:order]:
            s = (tg.grad(s, leaf, create_graph=True)[0] * v).sum()
        return s.item()

    def theirs(x, order):
        leaf, *affine = (torch.tensor(a, requires_grad=True) for a in (x, gamma, beta))
        s = (torch.nn.functional.batch_norm(leaf, None, None, *affine, True, 0.1, 1e-5) * torch.tensor(w)).sum()
        for v in vs[:order]:
            s = (torch.autograd.grad(s, leaf, create_graph=True)[0] * torch.tensor(v)).sum()
        return s.item()

    for order in (1, 2):
        slope = _slope(lambda x, o=order: theirs(x, o - 1), x, vs[order - 1])
        assert_allclose([ours(x, order), theirs(x, order)], slope, rtol=1e-6, atol=1e-7)
    ours_numeric = _slope(lambda x: ours(x, 2), x, vs[2])
    theirs_numeric = _slope(lambda x: theirs(x, 2), x, vs[2])
    assert_allclose(ours_numeric, theirs_numeric, rtol=1e-6)  # both second derivatives are right, so these agree
    assert_allclose(ours(x, 3), ours_numeric, rtol=1e-6, atol=1e-7)
    assert abs(theirs(x, 3) - theirs_numeric) > 1e-2 * abs(theirs_numeric)


@every_shape
def test_second_order_equals_pytorch(torch, draw, rng, shape):
    """PyTorch's batchnorm_double_backward: gradients of a contraction of dx, dgamma and dbeta by g, x and gamma."""
    x, gamma, beta, g = draw(shape)
    v = [rng.normal(size=a.shape) for a in (x, gamma, beta)]
    xs, gs = leaves(x, gamma, beta), tg.tensor(g, requires_grad=True)
    firsts = tg.grad(normalise(*xs), xs, gs, create_graph=True)
    ours = tg.grad(sum((d * w).sum() for d, w in zip(firsts, v, strict=True)), [gs, xs[0], xs[1]])
    ts, gt = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)], torch.tensor(g, requires_grad=True)
    y = torch.nn.functional.batch_norm(ts[0], None, None, ts[1], ts[2], True, 0.1, EPS)
    firsts = torch.autograd.grad(y, ts, gt, create_graph=True)
    theirs = torch.autograd.grad(sum((d * torch.tensor(w)).sum() for d, w in zip(firsts, v, strict=True)), [gt, ts[0], ts[1]])
    for a, b in zip(ours, theirs, strict=True):
        assert_allclose(a.data, b.numpy(), atol=1e-11)


# ----- 17: a negative test


def test_law_17_normalising_by_the_unbiased_variance_has_another_gradient(draw):
    """There dx = gamma/s (g - mean(g) - xh S/(m - 1)); ours is not that. Broken by: ddof=1 in the normalisation."""
    x, gamma, beta, g = draw((7, 3))

    def wrong(x, gamma, beta):
        return (x - x.mean(0)) / (x.var(0, ddof=1) + EPS).sqrt() * gamma + beta

    inputs = leaves(x, gamma, beta)
    (dx, _, _) = tg.grad(wrong(*inputs), inputs, tg.tensor(g))
    s = np.sqrt(x.var(0, ddof=1) + EPS)
    xh = (x - x.mean(0)) / s
    assert_allclose(dx.data, gamma / s * (g - g.mean(0) - xh * (g * xh).sum(0) / 6), atol=1e-8)
    for fused in (True, False):
        y, ours, _, _ = gradients(x, gamma, beta, g, fused=fused)
        assert np.abs(ours - dx.data).max() > 1e-3
        assert np.abs(y - wrong(*map(tg.tensor, (x, gamma, beta))).data).max() > 1e-3


# ----- 18, 19: evaluation


def evaluated(layer, shape, rng):
    """The layer in evaluation, with statistics and parameters that are not the initial ones."""
    layer.double()
    for _ in range(3):
        layer(tg.tensor(rng.normal(1.0, 2.0, shape)))
    layer.weight.data, layer.bias.data = rng.normal(size=shape[1]), rng.normal(size=shape[1])
    layer.eval()
    a = layer.weight.data / np.sqrt(layer.running_var.data + layer.eps)
    return layer, a, layer.bias.data - a * layer.running_mean.data


@every_shape
def test_law_18_evaluation_couples_no_examples(rng, shape):
    """y = a x + c, dx = a g, and dy_i/dx_j = 0 for i != j. Broken by: the batch's formula in evaluation's backward."""
    layer, a, c = evaluated(LAYERS[len(shape)](3), shape, rng)
    x, g = rng.normal(size=shape), rng.normal(size=shape)
    leaf = tg.tensor(x, requires_grad=True)
    y = layer(leaf)
    y.backward(g)
    assert_allclose(y.data, column(a, x) * x + column(c, x), atol=1e-12)
    assert_allclose(leaf.grad.data, column(a, x) * g, atol=1e-13)
    x[0] += rng.normal(size=shape[1:])
    g[0] = 0
    assert_array_equal(layer(tg.tensor(x)).data[1:], y.data[1:])
    leaf = tg.tensor(x, requires_grad=True)
    layer(leaf).backward(g)
    assert_array_equal(leaf.grad.data[0], 0)


def test_law_18_training_does_couple_them(draw):
    """The counterpart, so that the test above tests something."""
    x, gamma, beta, g = draw((7, 3))
    g[0] = 0
    _, dx, _, _ = gradients(x, gamma, beta, g)
    assert np.abs(dx[0]).min() > 1e-6


FOLDS = {
    "linear": (lambda: nn.Linear(4, 6), (5, 4), 0),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (5, 4, 8), 0),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 7, 6), 0),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 5, 5), 0),
    "conv2d no bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (3, 4, 5, 5), 0),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (3, 4, 5, 5), 1),
    "transposed grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (3, 4, 5, 5), 1),
}


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", FOLDS)
def test_law_19_folding_it_into_the_layer_before(rng, name, dtype, tolerance):
    """W' = W a along the output channels, b' = (b - mean) a + beta. Broken by: eps outside the sqrt."""
    make, shape, axis = FOLDS[name]
    before = make().double()
    x = rng.normal(size=shape)
    out = before(tg.tensor(x))
    after, a, _ = evaluated(LAYERS[out.ndim](6), out.shape, rng)
    expected = after.to(dtype=dtype)(before.to(dtype=dtype)(tg.tensor(x.astype(dtype)))).data
    w = before.weight.data
    b = 0.0 if before.bias is None else before.bias.data
    folded = make() if before.bias is not None else nn.Conv2d(4, 6, 3)
    folded.to(dtype=dtype)
    if axis == 0:
        w = w * a.reshape((-1,) + (1,) * (w.ndim - 1))
    else:  # (in, out / groups, kh, kw): each group has its own output channels
        groups = before.groups
        w = (w.reshape(groups, -1, *w.shape[1:]) * a.reshape(groups, 1, -1, 1, 1)).reshape(w.shape)
    folded.weight.data = w.astype(dtype)
    folded.bias.data = ((b - after.running_mean.data) * a + after.bias.data).astype(dtype)
    got = folded(tg.tensor(x.astype(dtype))).data
    assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_law_19_folding_it_into_the_layer_after_fails_under_padding(rng):
    """BN -> conv: exact inside, wrong at the border, where the convolution pads with 0 and not with -c/a."""
    before, a, c = evaluated(nn.BatchNorm2d(3), (2, 3, 6, 6), rng)
    conv = nn.Conv2d(3, 2, 3, padding=1).double()
    x = tg.tensor(rng.normal(size=(2, 3, 6, 6)))
    expected = conv(before(x)).data
    folded = nn.Conv2d(3, 2, 3, padding=1).double()
    folded.weight.data = conv.weight.data * a.reshape(1, -1, 1, 1)
    folded.bias.data = conv.bias.data + (conv.weight.data * c.reshape(1, -1, 1, 1)).sum((1, 2, 3))
    error = np.abs(folded(x).data - expected)
    assert error[:, :, 1:-1, 1:-1].max() < 1e-12
    assert error[:, :, 0].max() > 1e-3


# ----- numbers that a careless variance gets wrong


OFFSETS = [
    ("float32", 1e3), ("float32", 4096.0), ("float32", 1e5), ("float32", 1e6), ("float64", 1e8), ("float64", 1e12),
    ("float16", 100.0), ("float16", 300.0), ("float16", 1000.0),
]  # fmt: skip


@pytest.mark.parametrize("dtype, offset", OFFSETS)
def test_an_offset_does_not_cancel_the_variance(device, dtype, offset):
    """c -+ 1, 64 times: the variance is 1. Broken by: E[x^2] - E[x]^2, which gives 0, 1024, -65536, inf or NaN here."""
    x = (offset + np.tile([-1.0, 1.0], 32)).astype(dtype).reshape(64, 1)
    assert x[0] != x[1], "the input itself has lost the difference"
    y, (mu, var) = ops.batch_norm(tg.tensor(device.array(x)))
    assert_allclose(device.numpy(mu), [offset], rtol=1e-15)
    assert_allclose(device.numpy(var), [1.0], rtol=1e-12)
    assert y.dtype == dtype
    expected = np.tile([-1.0, 1.0], 32) / np.sqrt(1 + 1e-5)
    assert_allclose(device.numpy(y)[:, 0], expected, rtol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("dtype, offset", [v for v in OFFSETS if v[0] != "float16" and v[1] < 1e12])
def test_an_offset_does_not_cancel_the_composed_variance(dtype, offset):
    x = (offset + np.tile([-1.0, 1.0], 32)).astype(dtype).reshape(64, 1)
    layer = nn.BatchNorm1d(1, fused=False, momentum=1, variance="biased").to(dtype=dtype)
    assert_allclose(layer(tg.tensor(x)).data[:, 0], np.tile([-1.0, 1.0], 32), rtol=1e-4)
    assert_allclose(layer.running_var.data, [1.0], rtol=1e-5)


def test_an_offset_that_swallows_the_difference_gives_beta():
    """float32 at 1e8 has steps of 8: the inputs are all equal, and no algorithm can help."""
    x = (1e8 + np.tile([-1.0, 1.0], 32)).astype(np.float32).reshape(64, 1)
    y, (_, var) = ops.batch_norm(tg.tensor(x), tg.tensor([3.0]), tg.tensor([0.25]))
    assert var == 0 and np.all(y.data == 0.25)


CONSTANTS = {
    "1000 times 0.1": np.full((1000, 1), 0.1, np.float32),
    "4096 times 1.2345678e10": np.full((4096, 1), 1.2345678e10, np.float32),
    "3x3 of 100": np.full((1, 1, 3, 3), 100.0, np.float32),
    "float16 300": np.full((77, 1), 300.1, np.float16),
    "float64 pi": np.full((5, 1, 7, 11), np.pi * 1e9),
    "zeros": np.zeros((6, 1), np.float32),
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_a_constant_channel_gives_exactly_beta(device, rng, name, eps):
    """And a finite gradient. Broken by: summing the rows in float32."""
    x = CONSTANTS[name]
    if x.dtype == "float16":
        eps = 1e-5  # the gradient of the other is about 1e6, which float16 does not have
    dtype = "float64" if x.dtype == "float64" else "float32"
    g = rng.normal(size=x.shape).astype(x.dtype)
    inputs = [tg.tensor(device.array(a), requires_grad=True) for a in (x, np.array([1.5], dtype), np.array([-0.75], dtype))]
    y = normalise(*inputs, eps)
    assert_array_equal(device.numpy(y), np.full_like(x, -0.75))
    y.backward(tg.tensor(device.array(g)))
    dx = device.numpy(inputs[0].grad).astype(np.float64)
    assert np.abs(dx).max() <= 2 * 1.5 * np.abs(g).max() / np.sqrt(eps)
    assert device.numpy(inputs[1].grad) == 0


def test_eps_is_inside_the_root():
    """x = -+1e-4, eps = 1e-5: 0.0316 inside, 0.909 for sigma + eps, 0.9 for no eps. Broken by: eps outside the sqrt."""
    x = tg.tensor(np.array([[-1e-4], [1e-4]]))
    for fused in (True, False):
        assert_allclose(normalise(x, eps=1e-5, fused=fused).data[1], 1e-4 / np.sqrt(1e-8 + 1e-5), rtol=1e-12)
    still = ops.batch_norm_inference(x, None, None, np.zeros(1), np.full(1, 1e-8), eps=1e-5)
    assert_allclose(still.data[1], 0.031606977, rtol=1e-7)


def test_statistics_of_float16_are_taken_in_float32(device, rng):
    """A sum of 4096 ones stalls at 2048 in float16, and 300^2 overflows."""
    x = rng.normal(250.0, 60.0, (4096, 2)).astype(np.float16)
    inputs = [tg.tensor(device.array(a)) for a in (x, np.ones(2, np.float32), np.zeros(2, np.float32))]
    y, (mu, var) = ops.batch_norm(*inputs)
    wide = x.astype(np.float64)
    assert y.dtype == "float16" and mu.dtype in ("float32", "float64")
    assert_allclose(device.numpy(mu), wide.mean(0), rtol=1e-6)
    assert_allclose(device.numpy(var), wide.var(0), rtol=1e-5)
    assert_allclose(device.numpy(y), (wide - wide.mean(0)) / wide.std(0), atol=4e-3)


def test_gradients_of_float16_come_from_float32(rng):
    x, g = rng.normal(3.0, 2.0, (512, 2)).astype(np.float16), rng.normal(size=(512, 2)).astype(np.float16)
    inputs = leaves(x, np.full(2, 1.5, np.float32), np.zeros(2, np.float32))
    dx, dgamma, dbeta = tg.grad(normalise(*inputs), inputs, tg.tensor(g))
    assert dx.dtype == "float16" and dgamma.dtype == dbeta.dtype == "float32"
    _, ex, eg, eb = gradients(x.astype(float), np.full(2, 1.5), np.zeros(2), g.astype(float))
    assert_allclose(dx.data, ex, atol=2e-3)
    assert_allclose(dgamma.data, eg, rtol=1e-4)
    assert_allclose(dbeta.data, eb, rtol=1e-4)


# ----- memory layout


@pytest.mark.parametrize(
    "dtype, fused, tolerance",
    [("float64", True, 1e-13), ("float64", False, 1e-11), ("float32", True, 2e-6)],
    ids=["float64 fused", "float64 composed", "float32 fused"],
)
def test_memory_layout_does_not_matter(rng, dtype, fused, tolerance):
    """The right numbers in channels-last, reversed, strided and Fortran memory: values and gradients.

    NumPy sums pairwise along contiguous memory only: at mean 50 a float32 mean of channels-last memory is off by 2e-4.
    """
    shape = (8, 5, 14, 14)
    x, g = rng.normal(50.0, 1.0, shape).astype(dtype), rng.normal(size=shape).astype(dtype)

    def layouts(a):
        wide = np.zeros((16, 5, 14, 28), dtype)
        wide[::2, :, :, ::2] = a
        yield np.ascontiguousarray(a)
        yield np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        yield np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1]
        yield wide[::2, :, :, ::2]
        yield np.asfortranarray(a)

    exact = gradients(x.astype(float), np.full(5, 1.5), np.ones(5), g.astype(float), 1e-5, fused)
    for a, b in zip(layouts(x), layouts(g), strict=True):
        inputs = [tg.Tensor(a, None, True), *leaves(np.full(5, 1.5, dtype), np.ones(5, dtype))]
        y = normalise(*inputs, 1e-5, fused)
        for value, expected in zip((y, *tg.grad(y, inputs, tg.Tensor(b))), exact, strict=True):
            assert_allclose(value.data, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        assert_array_equal(a, x)  # the input is as it was


def test_repeated_memory(rng):
    """An input that is a broadcast view: one row in memory for all examples."""
    row = rng.normal(size=(1, 3, 4))
    x = np.broadcast_to(row, (5, 3, 4))
    y = normalise(tg.Tensor(x))
    assert_allclose(y.data, normalise(tg.tensor(x.copy())).data, atol=1e-14)


def test_integers_raise():
    for dtype in ("int64", "uint8", "bool"):
        with pytest.raises(TypeError) as error:
            ops.batch_norm(tg.tensor(np.ones((4, 2), dtype)))
        assert str(error.value) == f"batch_norm expected a floating input, got {dtype}"


# ----- values that are not finite


@every_shape
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_bad_value_poisons_its_channel_for_every_example_in_training(draw, shape, poison):
    x, gamma, beta, g = draw(shape)
    healthy = gradients(x, gamma, beta, g)
    x[(1, 1) + (0,) * (len(shape) - 2)] = poison
    with np.errstate(invalid="ignore"):
        y, dx, dgamma, dbeta = gradients(x, gamma, beta, g)
    assert np.isnan(y[:, 1]).all() and np.isnan(dx[:, 1]).all() and np.isnan(dgamma[1])
    for got, expected in zip((y, dx), healthy[:2], strict=True):
        assert_array_equal(got[:, [0, 2]], expected[:, [0, 2]])
    assert_array_equal(dgamma[[0, 2]], healthy[2][[0, 2]])
    assert_array_equal(dbeta, healthy[3])


@every_shape
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_one_bad_value_poisons_only_itself_in_evaluation(rng, shape, poison):
    layer, _, _ = evaluated(LAYERS[len(shape)](3), shape, rng)
    x = rng.normal(size=shape)
    healthy = layer(tg.tensor(x)).data
    at = (1, 1) + (0,) * (len(shape) - 2)
    x[at] = poison
    y = layer(tg.tensor(x)).data
    assert not np.isfinite(y[at])
    y[at] = healthy[at]
    assert_array_equal(y, healthy)


@fused_and_composed
def test_squares_that_overflow_keep_the_running_statistics(rng, fused):
    """-+1e30 in float32: the variance is inf, y is beta, and the channel's running values stay."""
    x = rng.normal(size=(6, 3)).astype(np.float32)
    x[:, 1] = np.tile([-1e30, 1e30], 3)
    layer = nn.BatchNorm1d(3, fused=fused)
    with np.errstate(over="ignore"), pytest.warns(RuntimeWarning, match=r"channel\(s\) \[1\] are not finite"):
        y = layer(tg.tensor(x))
    assert_array_equal(y.data[:, 1], 0)
    assert layer.running_mean.data[1] == 0 and layer.running_var.data[1] == 1
    assert np.isfinite(y.data).all() and np.isfinite(layer.running_var.data).all()
    assert layer.running_var.data[0] != 1
