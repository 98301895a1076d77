"""Every sentence of the docstrings of GhostBatchNorm and BatchRenorm, and the formulas of their papers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import nn

SHAPES = [(12, 3), (6, 3, 5), (6, 3, 2, 4), (6, 3, 2, 3, 2)]
GHOST = {2: nn.GhostBatchNorm1d, 3: nn.GhostBatchNorm1d, 4: nn.GhostBatchNorm2d, 5: nn.GhostBatchNorm3d}
RENORM = {2: nn.BatchRenorm1d, 3: nn.BatchRenorm1d, 4: nn.BatchRenorm2d, 5: nn.BatchRenorm3d}
PLAIN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")
fused_and_composed = pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])


def with_parameters(layer, seed=0):
    rng = np.random.default_rng(seed)
    layer.double()
    layer.weight.data, layer.bias.data = rng.uniform(0.5, 2, 3), rng.normal(size=3)
    layer.running_mean, layer.running_var = nn.Buffer(rng.normal(size=3)), nn.Buffer(rng.uniform(0.5, 2, 3))
    return layer


def drawn(shape, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * 2 + 1, rng.normal(size=shape)


def run(layer, x, g):
    x = tg.tensor(x, requires_grad=True)
    y = layer(x)
    y.backward(g)
    return y.detach().numpy(), x.grad.detach().numpy(), layer.weight.grad.detach().numpy(), layer.bias.grad.detach().numpy()


def column(v, shape):
    return np.reshape(v, (1, -1) + (1,) * (len(shape) - 2))


# ----- ghost batches


@every_shape
@fused_and_composed
def test_each_ghost_batch_is_normalised_as_batchnorm_would_alone(shape, fused):
    x, g = drawn(shape)
    size = shape[0] // 3
    ghost, plain = (with_parameters(kind[len(shape)](3, *more, fused=fused)) for kind, more in ((GHOST, [size]), (PLAIN, [])))
    y, dx, dgamma, dbeta = run(ghost, x, g)
    parts = [run(plain, x[i : i + size], g[i : i + size]) for i in range(0, len(x), size)]
    assert_allclose(y, np.concatenate([p[0] for p in parts]), atol=1e-12)
    assert_allclose(dx, np.concatenate([p[1] for p in parts]), atol=1e-12)
    assert_allclose(dgamma, parts[-1][2], atol=1e-12)  # .grad has the sum
    assert_allclose(dbeta, parts[-1][3], atol=1e-12)
    assert ghost.num_batches_tracked == plain.num_batches_tracked == 3
    assert_array_equal(ghost.running_mean.detach().numpy(), plain.running_mean.detach().numpy())
    assert_array_equal(ghost.running_var.detach().numpy(), plain.running_var.detach().numpy())


def test_running_statistics_follow_the_papers_algorithm_1():
    """mu_run = (1 - eta)^k mu_run + sum_i (1 - eta)^(k-i) eta mu_i over the k ghost batches, the last weighing most.

    The paper has sigma in mu's place; here the unbiased variance follows, as BatchNorm's does.
    """
    layer = with_parameters(nn.GhostBatchNorm1d(3, 4, momentum=0.25))
    before, var_before = layer.running_mean.detach().numpy().copy(), layer.running_var.detach().numpy().copy()
    x, _ = drawn((12, 3))
    layer(tg.tensor(x))
    variances = x.reshape(3, 4, 3).var(1, ddof=1)
    expected = 0.75**3 * var_before + sum(0.75 ** (2 - i) * 0.25 * variances[i] for i in range(3))
    assert_allclose(layer.running_var.detach().numpy(), expected, rtol=1e-12)
    means = x.reshape(3, 4, 3).mean(1)
    expected = 0.75**3 * before + sum(0.75 ** (2 - i) * 0.25 * means[i] for i in range(3))
    assert_allclose(layer.running_mean.detach().numpy(), expected, rtol=1e-12)


def test_the_last_ghost_batch_may_be_smaller_and_a_batch_of_one_ghost_is_batchnorm():
    x, g = drawn((10, 3))
    ghost, plain = with_parameters(nn.GhostBatchNorm1d(3, 4)), with_parameters(nn.BatchNorm1d(3))
    y = ghost(tg.tensor(x)).detach().numpy()
    assert_allclose(y[8:], plain(tg.tensor(x[8:])).detach().numpy(), atol=1e-12)
    whole = with_parameters(nn.GhostBatchNorm1d(3, 10))
    plain = with_parameters(nn.BatchNorm1d(3))
    for a, b in zip(run(whole, x, g), run(plain, x, g), strict=True):
        assert_array_equal(a, b)


def test_evaluation_and_state_are_batchnorms():
    x, _ = drawn((12, 3))
    plain = with_parameters(nn.BatchNorm1d(3)).eval()
    for other in (nn.GhostBatchNorm1d(3, 4), nn.BatchRenorm1d(3)):
        other.double().load_state_dict(plain.state_dict())
        assert_array_equal(other.eval()(tg.tensor(x)).detach().numpy(), plain(tg.tensor(x)).detach().numpy())


def test_a_ghost_batch_of_one_raises_and_changes_nothing():
    layer = nn.GhostBatchNorm1d(3, 4)
    before = layer.state_dict()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(tg.tensor(drawn((9, 3))[0].astype(np.float32)))
    for name, value in layer.state_dict().items():
        assert_array_equal(value, before[name])


def test_ghost_size_is_checked_and_shown():
    with pytest.raises(ValueError, match="GhostBatchNorm2d expected ghost_size to be an int of at least 1, got 0"):
        nn.GhostBatchNorm2d(3, 0)
    assert "ghost_size=4" in repr(nn.GhostBatchNorm1d(3, 4))
    with pytest.raises(ValueError, match=r"GhostBatchNorm1d expected an input of shape \(N, 3\) or \(N, 3, L\)"):
        nn.GhostBatchNorm1d(3, 2)(tg.randn(4, 5))


# ----- renormalisation


@every_shape
@fused_and_composed
def test_unclipped_training_gives_what_evaluation_gives(shape, fused):
    x, _ = drawn(shape)
    layer = with_parameters(RENORM[len(shape)](3, r_max=1e9, d_max=1e9, fused=fused))
    expected = layer.eval()(tg.tensor(x)).detach().numpy()
    assert_allclose(layer.train()(tg.tensor(x)).detach().numpy(), expected, atol=1e-10)


@every_shape
def test_r_of_one_and_d_of_zero_is_batchnorm(shape):
    x, g = drawn(shape)
    renorm, plain = with_parameters(RENORM[len(shape)](3, r_max=1, d_max=0)), with_parameters(PLAIN[len(shape)](3))
    for a, b in zip(run(renorm, x, g), run(plain, x, g), strict=True):
        assert_allclose(a, b, atol=1e-12)
    assert_allclose(renorm.running_var.detach().numpy(), plain.running_var.detach().numpy(), rtol=1e-14)


@every_shape
def test_output_and_gradient_are_the_papers(shape):
    """Section 3 of Ioffe 2017, written out; some channels clipped, some not."""
    x, g = drawn(shape)
    layer = with_parameters(RENORM[len(shape)](3, r_max=1.5, d_max=0.4))
    var = layer.running_var.detach().numpy().copy()
    var[:2] = 100.0, 0.01  # so that r is clipped from below, and from above
    layer.running_var = nn.Buffer(var)
    axes, c, eps = (0, *range(2, x.ndim)), lambda v: column(v, shape), layer.eps
    mu, sigma = x.mean(axes), np.sqrt(x.var(axes) + eps)
    run_mu, run_sigma = layer.running_mean.detach().numpy(), np.sqrt(layer.running_var.detach().numpy() + eps)
    r, d = np.clip(sigma / run_sigma, 1 / 1.5, 1.5), np.clip((mu - run_mu) / run_sigma, -0.4, 0.4)
    assert r[0] == 1 / 1.5 and r[1] == 1.5 and (d != (mu - run_mu) / run_sigma).any()
    x_hat = (x - c(mu)) / c(sigma) * c(r) + c(d)
    gamma, beta, m = layer.weight.detach().numpy(), layer.bias.detach().numpy(), x.size // 3
    dx_hat = g * c(gamma)
    dsigma = (dx_hat * (x - c(mu)) * c(-r / sigma**2)).sum(axes)
    dmu = (dx_hat * c(-r / sigma)).sum(axes)
    dx = dx_hat * c(r / sigma) + c(dsigma) * (x - c(mu)) / (m * c(sigma)) + c(dmu) / m
    y, got_dx, dgamma, dbeta = run(layer, x, g)
    assert_allclose(y, x_hat * c(gamma) + c(beta), atol=1e-12)
    assert_allclose(got_dx, dx, atol=1e-12)
    assert_allclose(dgamma, (g * x_hat).sum(axes), atol=1e-10)
    assert_allclose(dbeta, g.sum(axes), atol=1e-12)
    assert_allclose(layer.running_mean.detach().numpy(), 0.9 * run_mu + 0.1 * mu, rtol=1e-12)


def test_limits_may_change_between_steps():
    x, _ = drawn((12, 3))
    layer = with_parameters(nn.BatchRenorm1d(3, momentum=0.0, r_max=1, d_max=0))
    first = layer(tg.tensor(x)).detach().numpy()
    layer.r_max, layer.d_max = 100.0, 100.0
    assert_allclose(layer(tg.tensor(x)).detach().numpy(), layer.eval()(tg.tensor(x)).detach().numpy(), atol=1e-12)
    assert abs(first - layer(tg.tensor(x)).detach().numpy()).max() > 0.1


@pytest.mark.parametrize("make", [lambda: nn.GhostBatchNorm1d(3, 4), lambda: nn.BatchRenorm1d(3)], ids=["ghost", "renorm"])
def test_float16_goes_with_parameters_of_float32(make):
    layer = make().to(dtype="float16")
    y = layer(tg.tensor(drawn((12, 3))[0].astype(np.float16)))
    assert y.dtype == np.float16 and layer.running_var.dtype == np.float32


def test_a_failing_pass_of_renorm_changes_nothing():
    layer = nn.BatchRenorm1d(3)
    layer.weight.data = np.ones(4, np.float32)
    before = layer.running_mean
    with pytest.raises(ValueError, match="gamma of shape"):
        layer(tg.randn(6, 3))
    assert layer.running_mean is before and layer.num_batches_tracked == 0


def test_renorm_refuses_what_it_cannot_do():
    for options, text in (
        ({"r_max": 0.5}, "r_max to be a number of at least 1"),
        ({"d_max": -1}, "d_max to be a number of at least 0"),
        ({"track_running_stats": False}, "track_running_stats=True, got False"),
    ):
        with pytest.raises(ValueError, match=f"BatchRenorm1d expected {text}"):
            nn.BatchRenorm1d(3, **options)
    assert "r_max=3.0, d_max=5.0" in repr(nn.BatchRenorm1d(3))


@pytest.mark.parametrize("make", [lambda: nn.GhostBatchNorm2d(3, 2), lambda: nn.BatchRenorm2d(3)], ids=["ghost", "renorm"])
def test_every_device_gives_the_same(device, make):
    x, g = (v.astype(np.float32) for v in drawn((6, 3, 2, 4)))
    here, there = make(), make().to(device.name)
    for layer, raw in ((here, np.asarray), (there, device.array)):
        t = tg.Tensor(raw(x), requires_grad=True)
        layer(t).backward(raw(g))
        layer.seen = [device.numpy(t.grad), device.numpy(layer.weight.grad), device.numpy(layer.running_var)]
    for a, b in zip(here.seen, there.seen, strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-5)
