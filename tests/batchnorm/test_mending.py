"""recalibrate, freeze, convert and no_weight_decay: every sentence of their docstrings."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from random_nets import randomised

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import convert, freeze, layers, no_weight_decay, recalibrate, unfreeze
from tinygrad_bn.batchnorm.moments import Moments


def output(model, x):
    with tg.no_grad():
        return model(tg.tensor(x)).numpy()


def mlp(*widths, seed=0):
    tg.manual_seed(seed)
    return tg.models.mlp(widths, activation="relu").double()


def state_of(model):
    return model.state_dict(), [m.training for m in model.modules()], tg.get_rng_state()


def assert_same(a, b):
    assert a[1:] == b[1:]
    for key, value in a[0].items():
        assert_array_equal(value, b[0][key], err_msg=key)


# ----- recalibrate


def splits(n):
    rng = np.random.default_rng(3)
    yield [np.arange(n)]
    yield np.split(np.arange(n), [1, 2, 7])  # batches of one among them
    yield [np.array([i]) for i in range(n)]
    yield np.array_split(rng.permutation(n), 5)


@pytest.mark.parametrize("split", range(4))
def test_recalibrate_equals_statistics_of_the_whole_data_set_for_any_split(split):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)) * 3 + 100
    model = mlp(6, 8, 7, 5, 3)
    rows = list(splits(60))[split]
    recalibrate(model, [(x[r], None) for r in rows])
    for (path, layer), (_, whole) in zip(layers(model), layers(by_hand(x)), strict=True):
        assert_allclose(layer.running_mean.numpy(), whole.running_mean.numpy(), rtol=0, atol=1e-10, err_msg=path)
        assert_allclose(layer.running_var.numpy(), whole.running_var.numpy(), rtol=1e-10, atol=1e-10, err_msg=path)
        assert layer.num_batches_tracked == len(rows)


def by_hand(x):
    """The same network, its statistics taken layer by layer with NumPy alone."""
    model, h = mlp(6, 8, 7, 5, 3), x
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean, layer.running_var = nn.Buffer(h.mean(0)), nn.Buffer(h.var(0))
        h = output(layer.eval(), h)
    return model


@pytest.mark.parametrize("make", [lambda: tg.models.cnn((3, 4), 6), tg.models.resnet20], ids=["cnn", "resnet"])
def test_recalibrate_does_not_depend_on_the_split_in_networks_of_convolutions(make):
    tg.manual_seed(1)
    model = make().double()
    x = np.random.default_rng(1).normal(size=(6, 1, 28, 28))
    whole = recalibrate(copy.deepcopy(model), [x]).state_dict()
    parts = recalibrate(model, [x[:1], x[1:2], x[2:]]).state_dict()
    for key in whole:
        if "running" in key:
            assert_allclose(parts[key], whole[key], rtol=1e-10, atol=1e-10, err_msg=key)


def test_recalibrate_takes_the_population_variance_not_the_mean_of_variances():
    x = np.array([[0.0], [1.0], [10.0], [11.0]])
    layer = nn.BatchNorm1d(1).double()
    recalibrate(layer, [x[:2], x[2:]])
    assert layer.running_var.numpy()[0] == pytest.approx(x.var(), rel=1e-14)
    assert x.var() > 10 * np.mean([x[:2].var(), x[2:].var()])


def test_recalibrate_ignores_dropout_and_modes_and_keeps_them():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).double()
    x = np.random.default_rng(0).normal(size=(50, 3))
    model.train()
    model[0].training = False
    before = tg.get_rng_state()
    recalibrate(model, [x])
    assert [m.training for m in model.modules()] == [True, False, True] and tg.get_rng_state() == before
    assert_allclose(model[1].running_var.numpy(), x.var(0), rtol=1e-12)


def test_recalibrate_heals_what_is_not_finite():
    model = mlp(6, 8, 3)
    model[2].running_mean = nn.Buffer(np.full(8, np.nan))
    recalibrate(model, [np.random.default_rng(0).normal(size=(20, 6))])
    assert all(np.isfinite(v).all() for v in model.state_dict().values())


def test_recalibrate_leaves_the_model_as_it_was_after_an_error():
    class Fails(nn.Module):
        def __init__(self):
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            y = self.norm(x)
            if x.shape[0] == 2:
                raise RuntimeError("no")
            return y

    model = nn.Sequential(nn.BatchNorm1d(3), Fails())
    before = state_of(model)
    data = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    two = nn.Sequential(nn.BatchNorm1d(3), Fails(), nn.BatchNorm1d(3))
    with pytest.raises(RuntimeError, match="no"):
        recalibrate(two, [data, data[:2]])
    with pytest.raises(ValueError, match="finite statistics, got NaN or infinity at the input of 0"):
        recalibrate(model, [data * np.nan])
    assert_same(state_of(model), before)


def test_recalibrate_refuses_what_it_cannot_use():
    model = mlp(6, 8, 3)
    for bad, error, text in (
        ([], ValueError, "at least one batch, got none"),
        (7, TypeError, "iterable of batches"),
        ([(1, 2)], TypeError, "each batch to be"),
        ([np.ones((0, 6))], ValueError, "batches with examples, got only empty ones"),
    ):
        with pytest.raises(error, match=text):
            recalibrate(model, bad)
    with pytest.raises(TypeError, match="expected a Module, got str"):
        recalibrate("model", [])
    with pytest.raises(ValueError, match="without any"):
        recalibrate(nn.Linear(2, 2), [np.ones((2, 2))])
    with pytest.raises(ValueError, match="track_running_stats=False"):
        recalibrate(nn.BatchNorm1d(2, track_running_stats=False), [np.ones((2, 2))])


def test_recalibrate_keeps_the_place_of_batches_in_their_epoch():
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    loader = tg.datasets.batches(x, np.arange(32), 8, shuffle=True)
    before = loader.state_dict()
    recalibrate(mlp(6, 8, 3).float(), loader)
    assert loader.state_dict() == before


def test_a_layer_called_twice_gets_the_statistics_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            self.norm = nn.BatchNorm1d(1).double()

        def forward(self, x):
            return self.norm(x) + self.norm(x * 3.0)

    model = Twice()
    x = np.random.default_rng(0).normal(size=(20, 1))
    recalibrate(model, [x[:5], x[5:]])
    assert model.norm.running_var.numpy()[0] == pytest.approx(np.concatenate([x, 3 * x]).var(), rel=1e-12)


def test_moments_merge_as_if_the_values_had_come_at_once():
    x = np.random.default_rng(0).normal(size=(50, 3, 2)) + 1e6
    m = Moments()
    for part in (x[:1], x[1:1], x[1:20], x[20:]):
        m.add(part)
    assert m.n == 100
    assert_allclose(m.var, x.var((0, 2)), rtol=1e-9)


# ----- freeze


def test_freeze_holds_in_training_and_gamma_goes_on():
    model = mlp(6, 8, 3)
    x = tg.tensor(np.random.default_rng(0).normal(size=(9, 6)))
    model(x)
    freeze(model).train()
    before = model[2].running_mean.numpy().copy()
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1)
    expected = output(model.eval(), x.data)
    y = model.train()(x)
    assert_array_equal(y.detach().numpy(), expected)
    tg.cross_entropy(y, tg.tensor(np.zeros(9, np.int64))).backward()
    gamma = model[2].weight.detach().numpy().copy()
    optimizer.step()
    assert_array_equal(model[2].running_mean.numpy(), before)
    assert model[2].num_batches_tracked == 1 and (model[2].weight.detach().numpy() != gamma).any()
    unfreeze(model)
    model(x)
    assert model[2].num_batches_tracked == 2


def test_freeze_with_affine_takes_gamma_and_beta_out_of_training_and_unfreeze_puts_them_back():
    model = freeze(mlp(6, 8, 3), affine=True)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"2.weight", "2.bias"}
    assert all(p.requires_grad for p in unfreeze(freeze(model, affine=True)).parameters())


@pytest.mark.parametrize("affine", [False, True])
def test_unfreeze_leaves_what_the_user_had_switched_off(affine):
    model = mlp(6, 8, 3)
    model[2].weight.requires_grad = False
    unfreeze(freeze(model, affine=affine))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"2.weight"}


# ----- convert and weight decay


@pytest.mark.parametrize("to", ["ghost", "renorm"])
@pytest.mark.parametrize("make", [lambda: tg.models.cnn((3, 4), 6), lambda: tg.models.resnet20()], ids=["cnn", "resnet"])
def test_convert_to_a_variant_keeps_the_function_in_evaluation_and_the_state(to, make):
    model = randomised(make(), np.random.default_rng(0)).eval()
    x = np.random.default_rng(1).normal(size=(2, 1, 28, 28)).astype(np.float32)
    before, state, parameters = output(model, x), model.state_dict(), list(model.parameters())
    assert convert(model, to) is model
    assert_array_equal(output(model, x), before)
    assert {type(layer).__name__[:5] for _, layer in layers(model)} == {"Ghost" if to == "ghost" else "Batch"}
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    convert(model, "batch")
    assert {type(layer) for _, layer in layers(model)} == {nn.BatchNorm1d, nn.BatchNorm2d} & {
        type(layer) for _, layer in layers(model)
    }
    for key, value in model.state_dict().items():
        assert_array_equal(value, state[key])


def test_convert_to_group_and_layer_and_of_a_bare_layer():
    model = tg.models.cnn((4, 12), 6)
    convert(model, "group")
    assert [(m.num_groups, m.num_channels) for m in model.modules() if isinstance(m, nn.GroupNorm)] == [(1, 4), (3, 12), (3, 6)]
    assert [m.num_groups for m in convert(tg.models.mlp(), "layer").modules() if isinstance(m, nn.GroupNorm)] == [1, 1, 1]
    bare = convert(nn.BatchNorm1d(4, eps=1e-3), "group", groups=2)
    assert isinstance(bare, nn.GroupNorm) and (bare.num_groups, bare.eps) == (2, 1e-3)
    renorm = convert(nn.BatchNorm2d(4, momentum=0.3), "renorm", r_max=2)
    assert isinstance(renorm, nn.BatchRenorm2d) and (renorm.r_max, renorm.momentum) == (2, 0.3)


def test_convert_refuses_and_changes_nothing():
    model = tg.models.mlp((4, 6, 9, 3))
    kinds = [type(m) for m in model.modules()]
    for to, options, text in (
        ("instance", {}, "expected to to be one of"),
        ("group", {"groups": 2}, "num_groups=2 to divide num_channels=9"),
        ("group", {"r_max": 2}, "options of that layer, got r_max"),
        ("ghost", {"ghost_size": 0}, "ghost_size to be an int of at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            convert(model, to, **options)
    assert [type(m) for m in model.modules()] == kinds


def test_no_weight_decay_spares_gamma_beta_and_biases():
    model = tg.models.cnn((3,), 5)
    decayed, spared = no_weight_decay(model)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {n for n, p in model.named_parameters() if p.ndim > 1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters())) and spared["weight_decay"] == 0
    optimizer = tg.optim.SGD(no_weight_decay(model), lr=0.1, weight_decay=0.5)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]
    assert no_weight_decay(model, 0.3)[0]["weight_decay"] == 0.3
    for p in model.parameters():
        p.grad = tg.zeros(*p.shape)
    gamma, weight = model[1].weight.detach().numpy().copy(), model[0].weight.detach().numpy().copy()
    optimizer.step()
    assert_array_equal(model[1].weight.detach().numpy(), gamma)
    assert_allclose(model[0].weight.detach().numpy(), 0.95 * weight, rtol=1e-6)
