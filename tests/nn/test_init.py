"""Initial weights: their distributions, gains and fans, errors, and that a seed fixes them."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.nn import init

BIG = (300, 400)
CONV = (60, 40, 3, 5)  # fan_in 600, fan_out 900


@pytest.fixture(autouse=True)
def seed():
    tg.manual_seed(11)


def drawn(function, shape, **options):
    return function(tg.zeros(shape), **options).data.astype(np.float64).ravel()


def assert_normal(values, mean, std):
    """The first four moments within five standard errors."""
    n = values.size
    z = (values - mean) / std
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)


def assert_uniform(values, low, high):
    n = values.size
    u = (values - low) / (high - low)
    tiny = 1e-6  # of rounding to float32
    assert u.min() >= -tiny and u.max() <= 1 + tiny
    assert u.min() < 20 / n and u.max() > 1 - 20 / n, "the bounds are reached, nearly"
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / n)
    assert abs((u**2).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


def test_normal():
    assert_normal(drawn(init.normal_, BIG), 0, 1)
    assert_normal(drawn(init.normal_, BIG, mean=3.0, std=0.2), 3, 0.2)


def test_uniform():
    assert_uniform(drawn(init.uniform_, BIG), 0, 1)
    assert_uniform(drawn(init.uniform_, BIG, low=-3.0, high=0.5), -3, 0.5)


@pytest.mark.parametrize("shape, fan_in, fan_out", [(BIG, 400, 300), (CONV, 600, 900), ((200, 100, 4), 400, 800)])
def test_kaiming_and_xavier(shape, fan_in, fan_out):
    for mode, fan in (("fan_in", fan_in), ("fan_out", fan_out)):
        assert_normal(drawn(init.kaiming_normal_, shape, mode=mode, nonlinearity="relu"), 0, math.sqrt(2 / fan))
        bound = math.sqrt(2) * math.sqrt(3 / fan)
        assert_uniform(drawn(init.kaiming_uniform_, shape, mode=mode, nonlinearity="relu"), -bound, bound)
    bound = math.sqrt(3 / fan_in) * math.sqrt(2 / (1 + 0.25))  # leaky_relu of slope 0.5
    assert_uniform(drawn(init.kaiming_uniform_, shape, a=0.5), -bound, bound)
    assert_normal(drawn(init.kaiming_normal_, shape, a=0.5), 0, bound / math.sqrt(3))
    assert_normal(drawn(init.xavier_normal_, shape, gain=2.0), 0, 2 * math.sqrt(2 / (fan_in + fan_out)))
    bound = 2 * math.sqrt(6 / (fan_in + fan_out))
    assert_uniform(drawn(init.xavier_uniform_, shape, gain=2.0), -bound, bound)


def test_kaiming_keeps_the_variance_through_a_deep_relu_net(rng):
    """Which is what it is for. He et al. 2015."""
    x = rng.normal(size=(256, 200))
    for _ in range(20):
        x = np.maximum(x @ init.kaiming_normal_(tg.zeros(200, 200), nonlinearity="relu").data.T, 0)
    assert 0.3 < (x**2).mean() < 3


def test_constants():
    t = tg.zeros(2, 3)
    assert init.constant_(t, 2.5) is t
    assert_array_equal(t.data, np.full((2, 3), 2.5, np.float32), strict=True)
    assert_array_equal(init.ones_(t).data, np.ones((2, 3), np.float32), strict=True)
    assert_array_equal(init.zeros_(t).data, np.zeros((2, 3), np.float32), strict=True)


def test_gains_are_pytorchs(torch):
    for name in ("linear", "sigmoid", "tanh", "relu", "leaky_relu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name), rel=1e-15)
    assert init.calculate_gain("conv") == torch.nn.init.calculate_gain("conv2d") == 1
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(torch.nn.init.calculate_gain("leaky_relu", 0.3), rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: init.calculate_gain("swish"),
            "calculate_gain expected one of linear, conv, sigmoid, tanh, relu, leaky_relu, got 'swish'",
        ),
        (
            lambda: init.kaiming_normal_(tg.zeros(3)),
            "kaiming_normal_ expected a weight of at least 2 dimensions (out, in, *kernel), got shape (3,)",
        ),
        (
            lambda: init.xavier_uniform_(tg.zeros(3)),
            "xavier_uniform_ expected a weight of at least 2 dimensions (out, in, *kernel), got shape (3,)",
        ),
        (
            lambda: init.kaiming_uniform_(tg.zeros(3, 3), mode="fan"),
            "kaiming_uniform_ expected mode to be 'fan_in' or 'fan_out', got 'fan'",
        ),
    ],
    ids=["gain", "kaiming 1-D", "xavier 1-D", "mode"],
)
def test_bad_arguments(call, message):
    state = tg.get_rng_state()
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
    assert tg.get_rng_state() == state, "nothing was drawn"


def test_they_fill_in_place_and_keep_dtype_and_device(device):
    for dtype in ("float32", "float64"):
        t = tg.zeros(4, 4, dtype=dtype, device=device.name, requires_grad=True)
        assert init.normal_(t) is t
        assert (t.dtype, t.device, t.requires_grad) == (dtype, device.name, True)
        assert t.data.flags.c_contiguous and (device.numpy(t) != 0).all()


def test_a_graph_from_before_refuses_to_go_backward():
    w = tg.ones(2, 2, requires_grad=True)
    y = (w * w).sum()
    init.normal_(w)
    with pytest.raises(RuntimeError, match="was changed in place"):
        y.backward()


# ----- what the layers begin with


@pytest.mark.parametrize(
    "make, fan_in",
    [
        (lambda: nn.Linear(400, 300), 400),
        (lambda: nn.Conv1d(40, 300, 5), 200),
        (lambda: nn.Conv2d(40, 120, (3, 5)), 600),
        (lambda: nn.Conv2d(40, 120, (3, 5), groups=4), 150),
        (lambda: nn.ConvTranspose2d(120, 40, (3, 5)), 600),
    ],
    ids=["Linear", "Conv1d", "Conv2d", "grouped", "ConvTranspose2d"],
)
def test_layers_begin_uniform_within_one_over_the_root_of_fan_in(make, fan_in):
    layer, bound = make(), 1 / math.sqrt(fan_in)
    assert_uniform(layer.weight.data.astype(float).ravel(), -bound, bound)
    bias = layer.bias.data
    assert np.abs(bias).max() <= bound and np.abs(bias).max() > 0.8 * bound


def test_layers_begin_with_pytorchs_distribution(torch):
    """The same bounds: the largest of many weights tells."""
    torch.manual_seed(0)
    for name, args in (
        ("Linear", (50, 600)),
        ("Conv2d", (20, 60, 5)),
        ("Conv1d", (40, 90, 5)),
        ("ConvTranspose2d", (60, 20, 5)),
    ):
        ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            largest = np.abs(q.detach().numpy()).max()
            assert_allclose(np.abs(p.data).max(), largest, rtol=1e-3 if p.ndim > 1 else 0.2)


def test_embeddings_begin_normal():
    assert_normal(nn.Embedding(*BIG).weight.data.astype(float).ravel(), 0, 1)


def test_the_same_seed_gives_the_same_weights():
    def weights(seed):
        tg.manual_seed(seed)
        return [p.data for p in nn.Sequential(nn.Linear(3, 4), nn.Conv2d(1, 2, 3), nn.Embedding(3, 2)).parameters()]

    for a, b, c in zip(weights(1), weights(1), weights(2), strict=True):
        assert_array_equal(a, b)
        assert (a != c).all()


def test_weights_are_drawn_on_the_host_whatever_the_device(cuda_stand_in):
    tg.manual_seed(4)
    a = init.kaiming_normal_(tg.zeros(3, 4))
    tg.manual_seed(4)
    b = init.kaiming_normal_(tg.zeros(3, 4, device="cuda"))
    assert b.device == "cuda"
    assert_array_equal(a.data, cuda_stand_in.numpy(b))
