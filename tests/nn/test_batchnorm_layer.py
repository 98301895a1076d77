"""Every sentence of the BatchNorm layers' docstring, and the conventions that they share with PyTorch."""

import copy
import re
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import nn

LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SHAPES = [(6, 3), (4, 3, 5), (3, 3, 2, 4), (2, 3, 2, 3, 2)]
fused_and_composed = pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d")


def layer_for(shape, **options):
    """The BatchNorm layer for an input of this shape, in float64."""
    return LAYERS[len(shape)](shape[1], **options).double()


def axes_of(shape):
    return (0, *range(2, len(shape)))


def column(v, shape):
    return np.reshape(v, (1, -1) + (1,) * (len(shape) - 2))


def buffers(layer):
    return (layer.running_mean, layer.running_var, layer.num_batches_tracked)


def values(layer):
    return (layer.running_mean.data.copy(), layer.running_var.data.copy(), layer.num_batches_tracked)


def assert_same_state(layer, before):
    """The very same buffers: not replaced, and not changed either."""
    same, (mean, var, count) = before
    assert layer.running_mean is same[0] and layer.running_var is same[1]
    assert_array_equal(layer.running_mean.data, mean)
    assert_array_equal(layer.running_var.data, var)
    assert layer.num_batches_tracked == count


def snapshot(layer):
    return buffers(layer), values(layer)


@pytest.fixture(autouse=True)
def seed():
    """For the initial weights of other layers beside BatchNorm."""
    tg.manual_seed(0)


# ----- the formulas


@every_shape
@fused_and_composed
def test_training_uses_the_batch_mean_and_its_biased_variance(device, rng, shape, fused):
    x, gamma, beta = rng.normal(2.0, 3.0, shape), rng.normal(size=3), rng.normal(size=3)
    layer = layer_for(shape, eps=0.1, fused=fused).to(device.name)
    layer.weight.data, layer.bias.data = device.array(gamma), device.array(beta)
    y = layer(tg.tensor(device.array(x)))
    mean, var = x.mean(axes_of(shape), keepdims=True), x.var(axes_of(shape), keepdims=True)
    expected = (x - mean) / np.sqrt(var + 0.1) * column(gamma, shape) + column(beta, shape)
    assert_allclose(device.numpy(y), expected, rtol=0, atol=1e-13)


@every_shape
@fused_and_composed
def test_running_statistics_follow_with_the_unbiased_variance(device, rng, shape, fused):
    """The Bessel factor counts N * prod(S), not N; the mean has none."""
    layer = layer_for(shape, momentum=0.3, fused=fused).to(device.name)
    mean, var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = rng.normal(2.0, 3.0, shape)
        layer(tg.tensor(device.array(x)))
        mean = 0.7 * mean + 0.3 * x.mean(axes_of(shape))
        var = 0.7 * var + 0.3 * x.var(axes_of(shape), ddof=1)
        assert_allclose(device.numpy(layer.running_mean), mean, rtol=1e-13)
        assert_allclose(device.numpy(layer.running_var), var, rtol=1e-13)
        assert layer.num_batches_tracked == step + 1


@fused_and_composed
def test_one_two_three_four(fused):
    """The test vector that tells the conventions apart: 1.0666667 unbiased, 1.025 biased, mean 0.25 in both."""
    x = tg.tensor([[1.0], [2.0], [3.0], [4.0]])
    unbiased, biased = nn.BatchNorm1d(1, fused=fused), nn.BatchNorm1d(1, variance="biased", fused=fused)
    assert_array_equal(unbiased(x).data, biased(x).data)
    assert_allclose(unbiased.running_var.data, [1.0666667], rtol=1e-7)
    assert_allclose(biased.running_var.data, [1.025], rtol=1e-7)
    assert_allclose([unbiased.running_mean.data, biased.running_mean.data], 0.25, rtol=1e-7)


def test_running_statistics_begin_as_0_and_1():
    layer = nn.BatchNorm2d(3)
    assert_array_equal(layer.running_mean.data, np.zeros(3, np.float32), strict=True)
    assert_array_equal(layer.running_var.data, np.ones(3, np.float32), strict=True)
    assert type(layer.num_batches_tracked) is int and layer.num_batches_tracked == 0
    assert_array_equal(layer.weight.data, np.ones(3, np.float32), strict=True)
    assert_array_equal(layer.bias.data, np.zeros(3, np.float32), strict=True)


def test_momentum_weighs_the_new_value():
    layer = nn.BatchNorm1d(1, momentum=0.1)
    layer(tg.tensor([[9.0], [11.0]]))
    assert_allclose(layer.running_mean.data, [1.0], rtol=1e-6)  # Keras' sense would give 9


def test_momentum_none_averages_all_batches():
    layer = nn.BatchNorm1d(1, momentum=None)
    variances = []
    for mean, spread in ((2.0, 1.0), (4.0, 2.0), (9.0, 0.5)):
        layer(tg.tensor([[mean - spread], [mean + spread]]))
        variances.append(2 * spread**2)
    assert layer.running_mean.data == 5.0 and layer.num_batches_tracked == 3
    assert_allclose(layer.running_var.data, [np.mean(variances)], rtol=1e-6)


def test_momentum_zero_freezes_and_one_keeps_the_last_batch(rng):
    frozen, last = nn.BatchNorm1d(2, momentum=0).double(), nn.BatchNorm1d(2, momentum=1).double()
    for _ in range(3):
        x = rng.normal(3.0, 2.0, (5, 2))
        frozen(tg.tensor(x))
        last(tg.tensor(x))
    assert_array_equal(frozen.running_mean.data, [0, 0])
    assert_array_equal(frozen.running_var.data, [1, 1])
    assert frozen.num_batches_tracked == last.num_batches_tracked == 3
    assert_allclose(last.running_mean.data, x.mean(0), rtol=1e-14)
    assert_allclose(last.running_var.data, x.var(0, ddof=1), rtol=1e-14)


@every_shape
def test_evaluation_is_an_affine_map_of_the_running_statistics(device, rng, shape):
    x, g = rng.normal(size=shape), rng.normal(size=shape)
    gamma, beta, mean, var = rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(0.5, 2.0, 3)
    layer = layer_for(shape, eps=0.1).to(device.name).eval()
    layer.weight.data, layer.bias.data = device.array(gamma), device.array(beta)
    layer.running_mean, layer.running_var = nn.Buffer(device.array(mean)), nn.Buffer(device.array(var))
    before = buffers(layer)
    leaf = tg.tensor(device.array(x), requires_grad=True)
    y = layer(leaf)
    y.backward(tg.tensor(device.array(g)))
    scale = column(gamma / np.sqrt(var + 0.1), shape)
    x_hat = (x - column(mean, shape)) / np.sqrt(column(var, shape) + 0.1)
    assert_allclose(device.numpy(y), (x - column(mean, shape)) * scale + column(beta, shape), atol=1e-13)
    assert_allclose(device.numpy(leaf.grad), g * scale, atol=1e-13)
    assert_allclose(device.numpy(layer.weight.grad), (g * x_hat).sum(axes_of(shape)), atol=1e-13)
    assert_allclose(device.numpy(layer.bias.grad), g.sum(axes_of(shape)), atol=1e-13)
    assert buffers(layer) == before


@fused_and_composed
def test_without_running_statistics_the_batch_serves_in_evaluation(rng, fused):
    x = tg.tensor(rng.normal(2.0, 3.0, (6, 3)))
    layer = layer_for((6, 3), track_running_stats=False, fused=fused)
    in_training = layer(x)
    assert_array_equal(layer.eval()(x).data, in_training.data)
    assert layer.running_mean is None and layer.running_var is None and layer.num_batches_tracked == 0
    assert list(layer.state_dict()) == ["weight", "bias"] and not list(layer.buffers())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(tg.tensor(rng.normal(size=(1, 3))))


@fused_and_composed
def test_affine_false_leaves_gamma_and_beta_out(rng, fused):
    x = rng.normal(2.0, 3.0, (6, 3))
    layer = layer_for((6, 3), affine=False, fused=fused)
    assert layer.weight is None and layer.bias is None and not list(layer.parameters())
    assert list(layer.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    leaf = tg.tensor(x, requires_grad=True)
    y = layer(leaf)
    assert_allclose(y.data, expected, atol=1e-13)
    y.backward(rng.normal(size=x.shape))
    assert_allclose(leaf.grad.data.sum(0), 0, atol=1e-13)
    layer.eval()
    assert_allclose(
        layer(tg.tensor(x)).data, (x - layer.running_mean.data) / np.sqrt(layer.running_var.data + 1e-5), atol=1e-13
    )


def test_variance_biased_takes_the_biased_one(rng):
    x = rng.normal(2.0, 3.0, (6, 3))
    layer = layer_for((6, 3), variance="biased", momentum=1)
    layer(tg.tensor(x))
    assert_allclose(layer.running_var.data, x.var(0), rtol=1e-14)


# ----- the buffers: when they change, and how


@fused_and_composed
def test_buffers_are_replaced_not_changed(device, rng, fused):
    layer = nn.BatchNorm1d(3, fused=fused).to(device.name)
    (mean, var, _), before = buffers(layer), values(layer)
    with device.no_syncs():
        layer(tg.tensor(device.array(rng.normal(size=(6, 3)).astype(np.float32))))
    assert layer.running_mean is not mean and layer.running_var is not var
    assert isinstance(layer.running_mean, nn.Buffer) and isinstance(layer.running_var, nn.Buffer)
    assert_array_equal(device.numpy(mean), device.numpy(before[0]))
    assert_array_equal(device.numpy(var), device.numpy(before[1]))


def test_buffers_are_not_part_of_the_graph(rng):
    """Else each step would hold on to the one before."""
    layer = nn.BatchNorm1d(3)
    layer(tg.tensor(rng.normal(size=(6, 3)).astype(np.float32), requires_grad=True))
    for buffer in layer.buffers():
        assert buffer.node is None and not buffer.requires_grad


def test_an_old_evaluation_graph_stays_right_when_training_goes_on(rng):
    """Its backward uses the statistics of its own forward, not those that came later."""
    layer = layer_for((6, 3))
    layer(tg.tensor(rng.normal(size=(6, 3))))
    layer.eval()
    x = tg.tensor(rng.normal(size=(6, 3)), requires_grad=True)
    y = layer(x)
    scale = 1 / np.sqrt(layer.running_var.data + layer.eps)
    layer.train()
    layer(tg.tensor(rng.normal(9.0, 5.0, (6, 3))))
    y.backward(np.ones((6, 3)))
    assert_allclose(x.grad.data, np.broadcast_to(scale, (6, 3)), rtol=1e-14)


@fused_and_composed
def test_forward_twice_then_backward_of_the_first(rng, fused):
    first, second, g = rng.normal(size=(6, 3)), rng.normal(5.0, 4.0, (6, 3)), rng.normal(size=(6, 3))

    def gradient(again):
        layer = layer_for((6, 3), fused=fused)
        x = tg.tensor(first, requires_grad=True)
        y = layer(x)
        if again:
            layer(tg.tensor(second))
        y.backward(g)
        return x.grad.data, layer.weight.grad.data, layer.bias.grad.data

    for a, b in zip(gradient(True), gradient(False), strict=True):
        assert_array_equal(a, b)


@fused_and_composed
def test_buffers_follow_in_training_also_under_no_grad(rng, fused):
    """Recomputing the statistics of a trained model relies on it."""
    x = tg.tensor(rng.normal(2.0, 3.0, (6, 3)))
    recorded, unrecorded = layer_for((6, 3), fused=fused), layer_for((6, 3), fused=fused)
    y = recorded(x)
    with tg.no_grad():
        silent = unrecorded(x)
    assert y.requires_grad and not silent.requires_grad
    assert_array_equal(y.data, silent.data)
    for a, b in zip(values(recorded), values(unrecorded), strict=True):
        assert_array_equal(a, b)


def test_buffers_stay_in_evaluation(rng):
    layer = layer_for((6, 3))
    layer(tg.tensor(rng.normal(size=(6, 3))))
    layer.eval()
    before = snapshot(layer)
    for _ in range(3):
        layer(tg.tensor(rng.normal(7.0, 3.0, (6, 3))))
    with tg.no_grad():
        layer(tg.tensor(rng.normal(7.0, 3.0, (6, 3))))
    assert_same_state(layer, before)


@fused_and_composed
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (np.ones((1, 3), np.float32), ValueError, "more than 1 value per channel"),
        (np.ones((0, 3), np.float32), ValueError, "more than 1 value per channel"),
        (np.ones((4, 2), np.float32), ValueError, "BatchNorm1d expected an input of shape"),
        (np.ones(3, np.float32), ValueError, "BatchNorm1d expected an input of shape"),
        (np.ones((4, 3), np.float64), TypeError, "one dtype"),
        (np.ones((4, 3), np.int64), TypeError, "floating input"),
    ],
    ids=["one value", "no value", "channels", "dimensions", "dtype", "integers"],
)
def test_a_failing_forward_changes_nothing(fused, bad, error, message):
    layer = nn.BatchNorm1d(3, fused=fused)
    before = snapshot(layer)
    with pytest.raises(error, match=message):
        layer(tg.tensor(bad))
    assert_same_state(layer, before)


@fused_and_composed
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_channel_that_is_not_finite_keeps_its_running_values(rng, fused, poison):
    layer = nn.BatchNorm1d(3, fused=fused)
    x = rng.normal(2.0, 3.0, (6, 3)).astype(np.float32)
    healthy = nn.BatchNorm1d(3, fused=fused)
    healthy(tg.tensor(x))
    x[2, 1] = poison
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning) as caught:
        layer(tg.tensor(x))
    (warning,) = caught
    assert str(warning.message) == (
        "BatchNorm1d: the batch statistics of channel(s) [1] are not finite; their running statistics stay as they were"
    )
    assert warning.filename == __file__, "the warning names the line that called the layer"
    assert layer.running_mean.data[1] == 0 and layer.running_var.data[1] == 1
    for got, expected in zip(values(layer)[:2], values(healthy)[:2], strict=True):
        assert_array_equal(got[[0, 2]], expected[[0, 2]])
    assert layer.num_batches_tracked == 1


def test_on_cuda_a_bad_channel_is_skipped_without_waiting(cuda_stand_in, rng):
    device = cuda_stand_in
    layer = nn.BatchNorm1d(3).to("cuda")
    x = rng.normal(2.0, 3.0, (6, 3)).astype(np.float32)
    x[2, 1] = np.nan
    x = tg.tensor(device.array(x))
    with device.no_syncs(), warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    mean, var, _ = (device.numpy(v) if hasattr(v, "shape") else v for v in buffers(layer))
    assert mean[1] == 0 and var[1] == 1 and np.all(mean[[0, 2]] != 0)


def test_a_training_step_on_cuda_waits_for_nothing(cuda_stand_in, rng):
    device = cuda_stand_in
    layer = nn.BatchNorm2d(3).to("cuda")
    x = tg.tensor(device.array(rng.normal(size=(2, 3, 4, 4)).astype(np.float32)), requires_grad=True)
    with device.no_syncs():
        for mode in (True, False):
            layer.train(mode)
            (layer(x) * x).sum().backward()


def test_when_the_warning_is_an_error_nothing_changes():
    layer = nn.BatchNorm1d(1)
    before = snapshot(layer)
    with warnings.catch_warnings(), pytest.raises(RuntimeWarning, match="not finite"):
        warnings.simplefilter("error")
        layer(tg.tensor([[1.0], [float("nan")]]))
    assert_same_state(layer, before)


def test_an_error_after_the_layer_leaves_its_statistics_updated_once(rng):
    """The layer's own forward succeeded, so its statistics follow; PyTorch does the same."""
    layer = layer_for((6, 3))
    with pytest.raises(ValueError, match="Linear expected"):
        nn.Sequential(layer, nn.Linear(4, 2))(tg.tensor(rng.normal(size=(6, 3))))
    assert layer.num_batches_tracked == 1


def test_a_frozen_layer_is_left_alone_by_a_training_step(rng):
    """eval() fixes the statistics, requires_grad_(False) gamma and beta; the gradient of the input goes through both."""
    frozen = layer_for((6, 3))
    frozen(tg.tensor(rng.normal(size=(6, 3))))
    model = nn.Sequential(nn.Linear(3, 3).double(), frozen)
    model.train()
    frozen.eval()
    before = snapshot(frozen)
    model(tg.tensor(rng.normal(size=(6, 3)))).square().sum().backward()
    assert frozen.weight.grad is not None and frozen.bias.grad is not None, "eval() alone does not freeze gamma and beta"
    frozen.requires_grad_(False).zero_grad()
    model.zero_grad()
    model(tg.tensor(rng.normal(size=(6, 3)))).square().sum().backward()
    assert frozen.weight.grad is None and frozen.bias.grad is None
    assert model[0].weight.grad is not None
    assert_same_state(frozen, before)


def test_requires_grad_false_alone_does_not_freeze_the_statistics(torch, rng):
    """As in PyTorch: whoever wants them frozen says eval()."""
    x = rng.normal(2.0, 3.0, (6, 3))
    ours, theirs = layer_for((6, 3)), torch.nn.BatchNorm1d(3).double()
    ours.requires_grad_(False)
    theirs.requires_grad_(False)
    ours(tg.tensor(x))
    theirs(torch.tensor(x))
    assert_allclose(ours.running_mean.data, theirs.running_mean.numpy(), rtol=1e-13)
    assert np.all(ours.running_mean.data != 0)


def test_reset(rng):
    layer = layer_for((6, 3))
    layer(tg.tensor(rng.normal(2.0, 3.0, (6, 3))))
    layer.weight.data, layer.bias.data = rng.normal(size=3), rng.normal(size=3)
    gamma = layer.weight.data
    layer.reset_running_stats()
    assert_array_equal(layer.running_mean.data, np.zeros(3), strict=True)  # in the dtype it had
    assert_array_equal(layer.running_var.data, np.ones(3), strict=True)
    assert layer.num_batches_tracked == 0
    assert_array_equal(layer.weight.data, gamma)
    layer(tg.tensor(rng.normal(2.0, 3.0, (6, 3))))
    layer.reset_parameters()
    assert_array_equal(layer.weight.data, np.ones(3), strict=True)
    assert_array_equal(layer.bias.data, np.zeros(3), strict=True)
    assert layer.num_batches_tracked == 0


# ----- what raises, and what is legal


@every_shape
@fused_and_composed
def test_one_value_per_channel_raises_in_training(shape, fused):
    shape = (1, 3) + (1,) * (len(shape) - 2)
    layer = LAYERS[len(shape)](3, fused=fused)
    before = snapshot(layer)
    with pytest.raises(ValueError) as error:
        layer(tg.tensor(np.ones(shape, np.float32)))
    assert str(error.value) == (
        f"batch_norm expected more than 1 value per channel in training, got 1 (input of shape {shape}); is this a last, "
        "partial batch? Leave it out with drop_last=True"
    )
    assert_same_state(layer, before)
    assert layer.eval()(tg.tensor(np.ones(shape, np.float32))).shape == shape


@fused_and_composed
def test_one_example_with_several_positions_is_legal(rng, fused):
    for shape in ((1, 3, 2), (1, 3, 1, 2), (1, 3, 2, 2, 1)):
        x = rng.normal(size=shape)
        layer = layer_for(shape, momentum=1, fused=fused)
        layer(tg.tensor(x))
        assert_allclose(layer.running_var.data, x.var(axes_of(shape), ddof=1), rtol=1e-13)


@every_shape
@fused_and_composed
def test_an_empty_batch_raises_in_training_and_is_empty_in_evaluation(device, shape, fused):
    empty = (0, *shape[1:])
    layer = LAYERS[len(shape)](3, fused=fused).to(device.name)
    before = buffers(layer)
    x = tg.tensor(device.array(np.empty(empty, np.float32)), requires_grad=True)
    with pytest.raises(ValueError, match=r"more than 1 value per channel in training, got 0 \(input of shape \(0, 3"):
        layer(x)
    layer.eval()
    y = layer(x)
    assert y.shape == empty and y.dtype == "float32"
    y.sum().backward()
    assert x.grad.shape == empty
    assert_array_equal(device.numpy(layer.weight.grad), np.zeros(3))
    assert buffers(layer) == before


@pytest.mark.parametrize(
    "layer, expected",
    [
        (nn.BatchNorm1d(3), "(N, 3) or (N, 3, L)"),
        (nn.BatchNorm2d(3), "(N, 3, H, W)"),
        (nn.BatchNorm3d(3), "(N, 3, D, H, W)"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_wrong_shape_raises_in_both_modes(layer, expected):
    for mode in (True, False):
        layer.train(mode)
        for shape in [(), (3,), (2, 4), (2, 2, 3), (2, 2, 3, 3), (2, 2, 3, 3, 3), (1,) * 6]:
            with pytest.raises(ValueError) as error:
                layer(tg.tensor(np.ones(shape, np.float32)))
            assert str(error.value) == f"{type(layer).__name__} expected an input of shape {expected}, got {shape}"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_features": 0}, "BatchNorm2d expected num_features to be an int of at least 1, got 0"),
        ({"num_features": 2.0}, "BatchNorm2d expected num_features to be an int of at least 1, got 2.0"),
        ({"num_features": True}, "BatchNorm2d expected num_features to be an int of at least 1, got True"),
        ({"eps": -1e-5}, "BatchNorm2d expected eps to be a number of at least 0, got -1e-05"),
        ({"eps": float("nan")}, "BatchNorm2d expected eps to be a number of at least 0, got nan"),
        ({"eps": "small"}, "BatchNorm2d expected eps to be a number of at least 0, got 'small'"),
        ({"momentum": 1.1}, "BatchNorm2d expected momentum from 0 to 1, or None for the average of all batches, got 1.1"),
        ({"momentum": "0.1"}, "BatchNorm2d expected momentum from 0 to 1, or None for the average of all batches, got '0.1'"),
        ({"variance": "sample"}, "BatchNorm2d expected variance to be 'unbiased' or 'biased', got 'sample'"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError) as error:
        nn.BatchNorm2d(**{"num_features": 3, **options})
    assert str(error.value) == message


def test_an_input_on_another_device_raises(cuda_stand_in):
    layer = nn.BatchNorm1d(3)
    before = snapshot(layer)
    for mode in (True, False):
        layer.train(mode)
        with pytest.raises(ValueError, match="expected its arrays on one device, got 'x' on cuda and 'gamma' on cpu"):
            layer(tg.tensor(cuda_stand_in.array(np.ones((4, 3), np.float32))))
    assert_same_state(layer, before)


@fused_and_composed
def test_a_plain_array_is_as_good_as_a_tensor(rng, fused):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    layer, other = nn.BatchNorm1d(3, fused=fused), nn.BatchNorm1d(3, fused=fused)
    assert_array_equal(layer(x).data, other(tg.tensor(x)).data)
    assert_array_equal(layer.running_var.data, other.running_var.data)


# ----- dtypes


@fused_and_composed
def test_float16_input_goes_with_float32_parameters(rng, fused):
    x = rng.normal(2.0, 3.0, (64, 3)).astype(np.float16)
    layer = nn.BatchNorm1d(3, momentum=1, fused=fused).to(dtype="float16")
    assert {t.dtype for t in (*layer.parameters(), *layer.buffers())} == {np.dtype("float32")}
    leaf = tg.tensor(x, requires_grad=True)
    y = layer(leaf)
    assert y.dtype == "float16"
    assert_allclose(layer.running_mean.data, x.astype(np.float64).mean(0), rtol=1e-6)
    assert_allclose(layer.running_var.data, x.astype(np.float64).var(0, ddof=1), rtol=1e-6)
    y.sum().backward()
    assert leaf.grad.dtype == "float16" and layer.weight.grad.dtype == "float32"
    assert layer.eval()(leaf).dtype == "float16"


def test_conversion_moves_parameters_buffers_and_gradients(rng):
    layer = nn.BatchNorm1d(3)
    layer(tg.tensor(rng.normal(2.0, 3.0, (6, 3)).astype(np.float32))).sum().backward()
    before = layer.state_dict()
    layer.double()
    tensors = (*layer.parameters(), *layer.buffers(), layer.weight.grad, layer.bias.grad)
    assert {t.dtype for t in tensors} == {np.dtype("float64")}
    assert layer(tg.tensor(rng.normal(size=(6, 3)))).dtype == "float64"
    assert layer.running_mean.dtype == "float64" and layer.num_batches_tracked == 2
    layer.float()
    assert {t.dtype for t in (*layer.parameters(), *layer.buffers())} == {np.dtype("float32")}
    assert_array_equal(layer.weight.data, before["weight"])


def test_running_statistics_keep_their_dtype(device, rng):
    for dtype in ("float32", "float64"):
        layer = nn.BatchNorm1d(3).to(device.name, dtype)
        y = layer(tg.tensor(device.array(rng.normal(size=(6, 3)).astype(dtype))))
        assert y.dtype == layer.running_mean.dtype == layer.running_var.dtype == dtype


# ----- copies and state dicts


def test_deepcopy_is_independent(rng):
    layer = layer_for((6, 3))
    layer(tg.tensor(rng.normal(2.0, 3.0, (6, 3))))
    twin = copy.deepcopy(layer)
    for a, b in zip(values(layer), values(twin), strict=True):
        assert_array_equal(a, b)
    before = snapshot(twin)
    layer(tg.tensor(rng.normal(2.0, 3.0, (6, 3))))
    layer.weight.data[:] = 5
    assert_same_state(twin, before)
    assert_array_equal(twin.weight.data, np.ones(3))


def test_state_dict_has_pytorchs_keys_and_an_int64_count(torch, rng):
    layer, theirs = nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    layer(tg.tensor(rng.normal(size=(6, 3)).astype(np.float32)))
    state = layer.state_dict()
    assert list(state) == list(theirs.state_dict())
    count = state["num_batches_tracked"]
    assert isinstance(count, np.ndarray) and count.dtype == np.int64 and count.shape == () and count == 1


def test_state_dict_is_a_snapshot(rng):
    layer = layer_for((6, 3))
    state = layer.state_dict()
    layer(tg.tensor(rng.normal(2.0, 3.0, (6, 3))))
    layer.weight.data[:] = 7
    assert_array_equal(state["running_mean"], np.zeros(3))
    assert_array_equal(state["weight"], np.ones(3))
    assert state["num_batches_tracked"] == 0


def test_state_dict_round_trip(rng):
    layer, other = layer_for((6, 3), momentum=None), layer_for((6, 3), momentum=None)
    for _ in range(3):
        layer(tg.tensor(rng.normal(2.0, 3.0, (6, 3))))
    layer.weight.data = rng.normal(size=3)
    other.load_state_dict(layer.state_dict())
    x = tg.tensor(rng.normal(size=(6, 3)))
    assert_array_equal(layer(x).data, other(x).data)  # momentum=None goes on from the count
    for a, b in zip(values(layer), values(other), strict=True):
        assert_array_equal(a, b)
    assert type(other.num_batches_tracked) is int


def test_state_dicts_go_to_pytorch_and_back(torch, rng):
    x = rng.normal(2.0, 3.0, (6, 3)).astype(np.float32)
    theirs = torch.nn.BatchNorm1d(3)
    theirs(torch.tensor(x))
    ours = nn.BatchNorm1d(3)
    ours.load_state_dict(theirs.state_dict())
    assert_array_equal(ours.running_var.data, theirs.running_var.numpy())
    assert type(ours.num_batches_tracked) is int and ours.num_batches_tracked == 1
    ours(tg.tensor(x))
    fresh = torch.nn.BatchNorm1d(3)
    fresh.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    assert fresh.num_batches_tracked.item() == 2
    assert_array_equal(fresh.running_var.numpy(), ours.running_var.data)


def test_repr_is_pytorchs(torch):
    """But for ``bias=``, an option that PyTorch 2.13 has beside ``affine``."""
    for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
        for options in ({}, {"eps": 0.001, "momentum": None}, {"affine": False, "track_running_stats": False}):
            theirs = re.sub(", bias=(True|False)", "", repr(getattr(torch.nn, name)(4, **options)))
            assert repr(getattr(nn, name)(4, **options)) == theirs


# ----- PyTorch, step by step


@every_shape
@fused_and_composed
@pytest.mark.parametrize("momentum", [0.1, None, 0.7])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}], ids=["plain", "no affine", "no tracking"]
)
def test_equals_pytorch_over_several_steps(torch, rng, shape, fused, momentum, options):
    """Outputs, gradients, buffers and the count, in training, then in evaluation, then in training again."""
    ours = layer_for(shape, momentum=momentum, eps=1e-3, fused=fused, **options)
    theirs = getattr(torch.nn, type(ours).__name__)(3, momentum=momentum, eps=1e-3, **options).double()
    if ours.affine:
        gamma, beta = rng.normal(size=3), rng.normal(size=3)
        ours.weight.data, ours.bias.data = gamma, beta
        theirs.load_state_dict({"weight": torch.tensor(gamma), "bias": torch.tensor(beta)}, strict=False)
    for training in (True, True, False, True, False):
        x, g = rng.normal(3.0, 2.0, shape), rng.normal(size=shape)
        a, b = tg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        ours.train(training).zero_grad()
        theirs.train(training).zero_grad()
        y, z = ours(a), theirs(b)
        y.backward(g)
        z.backward(torch.tensor(g))
        assert_allclose(y.data, z.detach().numpy(), atol=1e-12)
        assert_allclose(a.grad.data, b.grad.numpy(), atol=1e-12)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_allclose(p.grad.data, q.grad.numpy(), atol=1e-12)
        expected = {k: v.numpy() for k, v in theirs.state_dict().items()}
        assert list(ours.state_dict()) == list(expected)
        for key, value in ours.state_dict().items():
            assert_allclose(value, expected[key], atol=1e-12)
