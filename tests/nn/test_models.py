"""The networks of the examples: shapes, sizes, initial weights, and ResNet-20 beside a twin in PyTorch."""

import numpy as np
import pytest
import torch_twins
from numpy.testing import assert_allclose, assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import models, nn

NORMS = ["batch", "layer", "group", None]
MAKERS = {"mlp": models.mlp, "cnn": models.cnn, "resnet20": models.resnet20}


@pytest.fixture(autouse=True)
def seed():
    tg.manual_seed(0)


def size(model):
    return sum(p.size for p in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MAKERS)
def test_every_model_takes_mnist_and_trains(rng, name, norm):
    """One step: the output's shape, a gradient for every parameter, and a smaller loss on the same batch."""
    model = MAKERS[name](norm=norm)
    n = 4 if name == "resnet20" else 16
    side = 12 if name == "resnet20" else 28
    x, labels = tg.tensor(rng.normal(size=(n, 1, side, side)).astype(np.float32)), rng.integers(0, 10, n)
    y = model(x)
    assert y.shape == (n, 10) and y.dtype == "float32"
    loss = tg.cross_entropy(y, labels)
    loss.backward()
    norm2 = sum(float((p.grad.data**2).sum()) for p in model.parameters())
    assert all(np.any(p.grad.data) for p in model.parameters())
    for p in model.parameters():
        p.data = p.data - (0.01 / norm2) * p.grad.data  # a decrease of 0.01, if the loss were linear
    with tg.no_grad():
        decrease = loss.item() - tg.cross_entropy(model(x), labels).item()
    assert 0.005 < decrease < 0.015
    assert model.eval()(x).shape == (n, 10)


def test_sizes():
    linear = 784 * 100 + 2 * 100 * 100 + 100 * 10 + 10
    assert size(models.mlp()) == linear + 3 * 200
    assert size(models.mlp(norm=None)) == linear + 300
    plain = 8 * 9 + 16 * 8 * 9 + 784 * 64 + 64 * 10 + 10
    assert size(models.cnn()) == plain + 2 * (8 + 16 + 64)
    assert size(models.cnn(norm=None)) == plain + 8 + 16 + 64
    assert size(models.cnn(norm="group")) == size(models.cnn(norm="layer")) == size(models.cnn())


def test_resnet20_for_cifar_has_the_papers_size():
    """0.27 million in the paper; 269,722 for 3 channels in and shortcuts of option A, which have no weights."""
    assert size(models.resnet20(in_channels=3)) == 269_722
    assert size(models.resnet20()) == 269_722 - 2 * 16 * 9
    convs = [m for m in models.resnet20().modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) + 1 == 20, "twenty layers with weights"
    assert models.resnet20(in_channels=3, classes=7)(tg.zeros(2, 3, 8, 8)).shape == (2, 7)


def test_resnet20_halves_the_image_twice():
    text = models.resnet20(in_channels=3).summary((1, 3, 32, 32))
    for row in ("conv  ", "blocks.2  ", "blocks.3  ", "blocks.6  ", "pool  "):
        assert row in text
    shapes = {line.split("  ")[0]: line[line.find("(1,") : line.find(")") + 1] for line in text.splitlines() if "(1," in line}
    assert shapes["blocks.2"] == "(1, 16, 32, 32)"
    assert shapes["blocks.3"] == "(1, 32, 16, 16)"
    assert shapes["blocks.6"] == "(1, 64, 8, 8)"
    assert shapes["pool"] == "(1, 64, 1, 1)"


@pytest.mark.parametrize("name", MAKERS)
def test_the_norm_does_not_change_the_initial_weights(name):
    """So that arms with and without it can be compared from the same start."""

    def weights(norm):
        tg.manual_seed(3)
        model = MAKERS[name](norm=norm)
        return [m.weight.data for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))], tg.get_rng_state()

    plain, state = weights(None)
    for norm in ("batch", "layer", "group"):
        normed, other = weights(norm)
        for a, b in zip(plain, normed, strict=True):
            assert_array_equal(a, b)
        assert other == state


@pytest.mark.parametrize("name", MAKERS)
def test_biases_only_where_no_norm_would_subtract_them(name):
    for norm in NORMS:
        model = MAKERS[name](norm=norm)
        layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        assert [m.bias is not None for m in layers] == [norm is None] * (len(layers) - 1) + [True]
        for m in layers:
            assert m.bias is None or not m.bias.data.any()


def test_the_norm_is_the_one_asked_for():
    def kinds(norm):
        return {type(m).__name__ for m in models.cnn(norm=norm).modules()} & {"BatchNorm1d", "BatchNorm2d", "GroupNorm"}

    assert kinds("batch") == {"BatchNorm1d", "BatchNorm2d"}
    assert kinds("layer") == kinds("group") == {"GroupNorm"}
    assert kinds(None) == set()
    groups = [m.num_groups for m in models.cnn(channels=(8, 12), hidden=64, norm="group").modules() if hasattr(m, "num_groups")]
    assert groups == [1, 3, 8]  # groups of 8 channels, or of gcd(channels, 8)
    assert {m.num_groups for m in models.cnn(norm="layer").modules() if hasattr(m, "num_groups")} == {1}


def test_the_layers_are_in_the_order_that_the_docstrings_say():
    assert [type(m).__name__ for m in models.cnn()] == [
        "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d",
        "Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear",
    ]  # fmt: skip
    assert [type(m).__name__ for m in models.mlp()] == ["Flatten", *["Linear", "BatchNorm1d", "Sigmoid"] * 3, "Linear"]
    assert [type(m).__name__ for m in models.mlp((4, 3, 2), None, "tanh")] == ["Flatten", "Linear", "Tanh", "Linear"]


def test_options():
    model = models.cnn(channels=(4, 6, 8), hidden=5, in_channels=3, image_size=16, classes=7)
    assert model(tg.zeros(2, 3, 16, 16)).shape == (2, 7)
    for activation in ("relu", "sigmoid", "tanh", "gelu", "silu"):
        assert models.mlp((6, 5, 4), "layer", activation)(tg.zeros(2, 3, 2)).shape == (2, 4)


def test_weights_are_hes_and_glorots():
    w = models.mlp()[1].weight.data
    assert_allclose(w.std(), np.sqrt(2 / 884), rtol=0.02)
    w = models.mlp(activation="relu")[1].weight.data
    assert_allclose(w.std(), np.sqrt(2 / 784), rtol=0.02)
    w = models.cnn()[9].weight.data
    assert_allclose(w.std(), np.sqrt(2 / 784), rtol=0.02)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: models.mlp(norm="instance"), "norm expected one of 'batch', 'layer', 'group', None, got 'instance'"),
        (lambda: models.cnn(norm="Batch"), "norm expected one of 'batch', 'layer', 'group', None, got 'Batch'"),
        (lambda: models.resnet20(norm=True), "norm expected one of 'batch', 'layer', 'group', None, got True"),
        (lambda: models.mlp(activation="swish"), "activation expected one of relu, sigmoid, tanh, gelu, silu, got 'swish'"),
        (lambda: models.mlp((784,)), "mlp expected at least two sizes, got (784,)"),
        (lambda: models.mlp((784, 0, 10)), "Linear expected out_features to be an int of at least 1, got 0"),
        (lambda: models.cnn(image_size=3), "Linear expected in_features to be an int of at least 1, got 0"),
    ],
    ids=["mlp norm", "cnn norm", "resnet20 norm", "activation", "one size", "no width", "image too small"],
)  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


# ----- ResNet-20 in PyTorch


def test_resnet20_equals_a_twin_in_pytorch(torch, rng):
    """Outputs, all gradients and all running statistics in float64, in training and then in evaluation."""
    tg.manual_seed(1)
    ours = models.resnet20(in_channels=3).double()
    theirs = torch_twins.resnet20(torch, 3).double()
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    for training in (True, False):
        ours.train(training).zero_grad()
        theirs.train(training).zero_grad()
        x, g = rng.normal(size=(3, 3, 12, 12)), rng.normal(size=(3, 10))
        a, b = tg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        assert_allclose(y.data, z.detach().numpy(), rtol=1e-9, atol=1e-10)
        y.backward(g)
        z.backward(torch.tensor(g))
        assert_allclose(a.grad.data, b.grad.numpy(), rtol=1e-8, atol=1e-10)
        for (name, p), (their_name, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert name == their_name
            assert_allclose(p.grad.data, q.grad.numpy(), rtol=1e-8, atol=1e-10, err_msg=name)
    end = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert_allclose(value, end[key].numpy(), rtol=1e-11, atol=1e-12, err_msg=key)
