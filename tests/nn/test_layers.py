"""Every layer beside PyTorch's: values, gradients, state dicts and reprs; and what only ours does: the messages."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import nn


@pytest.fixture(autouse=True)
def seed():
    """For the layers' initial weights."""
    tg.manual_seed(0)


# ----- beside PyTorch: what to call ours with, PyTorch's the same way unless said, and input shapes


class Case:
    def __init__(self, name, *args, shapes, theirs=None, same_repr=True, **options):
        self.name, self.args, self.options, self.shapes, self.same_repr = name, args, options, shapes, same_repr
        self.theirs = theirs or options

    def __repr__(self):
        return f"{self.name}({', '.join([*map(str, self.args), *(f'{k}={v}' for k, v in self.options.items())])})"

    def both(self, torch):
        ours = getattr(nn, self.name)(*self.args, **self.options)
        theirs = getattr(torch.nn, self.name)(*self.args, **self.theirs)
        return ours, theirs


CASES = [
    Case("Linear", 5, 3, shapes=[(4, 5), (5,), (2, 3, 5), (0, 5)]),
    Case("Linear", 5, 3, bias=False, shapes=[(4, 5), (5,)]),
    Case("Conv1d", 4, 6, 3, shapes=[(2, 4, 7)]),
    Case("Conv1d", 4, 6, 2, stride=2, padding=1, dilation=3, groups=2, bias=False, shapes=[(2, 4, 9)]),
    Case("Conv2d", 4, 6, 3, shapes=[(2, 4, 6, 5)]),
    Case("Conv2d", 4, 6, (3, 2), stride=(1, 2), padding=(0, 1), shapes=[(2, 4, 6, 5)]),
    Case("Conv2d", 4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False, shapes=[(2, 4, 7, 8)]),
    Case("Conv2d", 4, 8, 3, padding=1, groups=4, shapes=[(2, 4, 5, 5)]),
    Case("ConvTranspose2d", 4, 6, 3, shapes=[(2, 4, 3, 4)]),
    Case("ConvTranspose2d", 4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False, shapes=[(2, 4, 3, 4)]),
    Case("ConvTranspose2d", 4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, shapes=[(2, 4, 3, 4)]),
    Case("ConvTranspose2d", 4, 6, 3, stride=1, dilation=2, output_padding=1, shapes=[(2, 4, 3, 4)]),
    Case("ConvTranspose2d", 4, 6, 3, dilation=(1, 2), output_padding=(0, 1), shapes=[(2, 4, 1, 1)]),
    Case("LayerNorm", 5, shapes=[(4, 5), (2, 3, 5), (5,)], same_repr=False),
    Case("LayerNorm", (3, 5), eps=0.1, shapes=[(2, 3, 5), (2, 4, 3, 5)], same_repr=False),
    Case("LayerNorm", (5,), elementwise_affine=False, shapes=[(4, 5)], same_repr=False),
    Case("GroupNorm", 1, 4, shapes=[(3, 4), (2, 4, 5)], same_repr=False),
    Case("GroupNorm", 2, 4, eps=0.1, shapes=[(3, 4), (2, 4, 3, 2), (2, 4, 2, 1, 3)], same_repr=False),
    Case("GroupNorm", 4, 4, affine=False, shapes=[(2, 4, 3, 2)], same_repr=False),
    Case("ReLU", shapes=[(3, 4), ()]),
    Case("LeakyReLU", 0.2, shapes=[(3, 4)]),
    Case("LeakyReLU", shapes=[(3, 4)]),
    Case("ELU", 1.5, shapes=[(3, 4)]),
    Case("ELU", shapes=[(3, 4)]),
    Case("GELU", shapes=[(3, 4)], same_repr=False),
    Case("SiLU", shapes=[(3, 4)]),
    Case("Tanh", shapes=[(3, 4)]),
    Case("Sigmoid", shapes=[(3, 4)]),
    Case("Softplus", shapes=[(3, 4)], same_repr=False),
    Case("Softmax", axis=1, theirs={"dim": 1}, shapes=[(3, 4), (2, 3, 2)], same_repr=False),
    Case("LogSoftmax", axis=0, theirs={"dim": 0}, shapes=[(3, 4)], same_repr=False),
    Case("MaxPool2d", 2, shapes=[(2, 3, 6, 5)], same_repr=False),
    Case("MaxPool2d", 3, 2, 1, shapes=[(2, 3, 6, 5)], same_repr=False),
    Case("MaxPool2d", (3, 2), (1, 2), (1, 0), shapes=[(2, 3, 6, 5)], same_repr=False),
    Case("AvgPool2d", 2, shapes=[(2, 3, 6, 5)]),
    Case("AvgPool2d", 3, 2, 1, shapes=[(2, 3, 6, 5)]),
    Case("AvgPool2d", (3, 2), (1, 2), (1, 0), shapes=[(2, 3, 6, 5)]),
    Case("AdaptiveAvgPool2d", 1, shapes=[(2, 3, 6, 5)]),
    Case("AdaptiveAvgPool2d", (3, 5), shapes=[(2, 3, 6, 5)]),
    Case("AdaptiveAvgPool2d", (4, 2), shapes=[(2, 3, 6, 5)]),
    Case("AdaptiveAvgPool2d", 7, shapes=[(2, 3, 6, 5)]),
    Case("Flatten", shapes=[(2, 3, 4), (2, 3), (0, 3, 4)], same_repr=False),
    Case("Flatten", 2, shapes=[(2, 3, 4, 2)], same_repr=False),
    Case("Identity", shapes=[(3, 4)]),
]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_equals_pytorch(torch, rng, case):
    """Output, the gradient of the input, and those of all parameters, in float64, from PyTorch's weights."""
    torch.manual_seed(0)
    ours, theirs = case.both(torch)
    ours.double().load_state_dict(theirs.double().state_dict())
    for shape in case.shapes:
        ours.zero_grad()
        theirs.zero_grad()
        x = rng.normal(size=shape)
        a, b = tg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        assert y.shape == tuple(z.shape)
        assert_allclose(y.data, z.detach().numpy(), atol=1e-12)
        g = rng.normal(size=y.shape)
        y.backward(g)
        z.backward(torch.tensor(g))
        assert_allclose(a.grad.data, b.grad.numpy(), atol=1e-12)
        for (name, p), (their_name, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert name == their_name
            assert_allclose(p.grad.data, q.grad.numpy(), atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", [c for c in CASES if c.same_repr], ids=repr)
def test_repr_is_pytorchs(torch, case):
    ours, theirs = case.both(torch)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("case", [c for c in CASES if not c.same_repr], ids=repr)
def test_repr_where_pytorch_has_more_options(case):
    """It names the layer, and the options it was made with."""
    text = repr(getattr(nn, case.name)(*case.args, **case.options))
    assert text.startswith(f"{case.name}(") and text.endswith(")")
    for value in (*case.args, *case.options.values()):
        assert str(value) in text


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_parameters_are_float32_and_dtypes_are_kept(case):
    layer = getattr(nn, case.name)(*case.args, **case.options)
    for p in layer.parameters():
        assert p.dtype == "float32" and p.requires_grad and p.is_leaf
    for dtype in ("float32", "float64"):
        assert layer.to(dtype=dtype)(tg.tensor(np.ones(case.shapes[0], dtype))).dtype == dtype


@pytest.mark.parametrize("name, args, shape", [
    ("Conv1d", (4, 6, 3), (0, 4, 6)), ("Conv2d", (4, 6, 3), (0, 4, 6, 5)), ("ConvTranspose2d", (4, 6, 3), (0, 4, 6, 5)),
    ("LayerNorm", (5,), (0, 5)), ("GroupNorm", (2, 4), (0, 4, 3)), ("MaxPool2d", (2,), (0, 3, 4, 4)),
    ("AvgPool2d", (2,), (0, 3, 4, 4)), ("AdaptiveAvgPool2d", (3,), (0, 3, 4, 4)), ("Dropout", (0.5,), (0, 3)),
])  # fmt: skip
def test_an_empty_batch_gives_an_empty_output(torch, name, args, shape):
    """And gradients of zero."""
    ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)
    x = tg.tensor(np.zeros(shape, np.float32), requires_grad=True)
    y = ours(x)
    assert y.shape == tuple(theirs(torch.zeros(shape)).shape)
    y.sum().backward()
    assert x.grad.shape == shape
    assert all(not p.grad.data.any() for p in ours.parameters())


# ----- shapes and options that do not fit


WRONG_INPUTS = [
    (lambda: nn.Linear(5, 3), (4, 4), "Linear expected an input of shape (..., 5), got (4, 4)"),
    (lambda: nn.Linear(5, 3), (), "Linear expected an input of shape (..., 5), got ()"),
    (lambda: nn.Conv1d(4, 6, 3), (2, 3, 7), "Conv1d expected an input of shape (N, 4, L), got (2, 3, 7)"),
    (lambda: nn.Conv1d(4, 6, 3), (4, 7), "Conv1d expected an input of shape (N, 4, L), got (4, 7)"),
    (lambda: nn.Conv2d(3, 6, 3), (8, 1, 28, 28), "Conv2d expected an input of shape (N, 3, H, W), got (8, 1, 28, 28)"),
    (lambda: nn.Conv2d(3, 6, 3), (3, 28, 28), "Conv2d expected an input of shape (N, 3, H, W), got (3, 28, 28)"),
    (
        lambda: nn.ConvTranspose2d(3, 6, 3),
        (8, 1, 5, 5),
        "ConvTranspose2d expected an input of shape (N, 3, H, W), got (8, 1, 5, 5)",
    ),
    (lambda: nn.LayerNorm((3, 5)), (2, 3, 4), "LayerNorm expected an input of shape (..., 3, 5), got (2, 3, 4)"),
    (lambda: nn.LayerNorm(5), (), "LayerNorm expected an input of shape (..., 5), got ()"),
    (lambda: nn.GroupNorm(2, 4), (2, 3, 4), "GroupNorm expected an input of shape (N, 4, ...), got (2, 3, 4)"),
    (lambda: nn.GroupNorm(2, 4), (4,), "GroupNorm expected an input of shape (N, 4, ...), got (4,)"),
    (lambda: nn.MaxPool2d(2), (3, 4, 4), "max_pool2d expected an input of shape (N, C, H, W), got (3, 4, 4)"),
    (lambda: nn.AvgPool2d(2), (3, 4, 4), "avg_pool2d expected an input of shape (N, C, H, W), got (3, 4, 4)"),
    (
        lambda: nn.MaxPool2d(5),
        (1, 1, 4, 4),
        "max_pool2d expected an input at least as large as its kernel (5, 5), got (4, 4) with padding (0, 0)",
    ),
    (
        lambda: nn.Conv2d(1, 1, 5),
        (1, 1, 4, 4),
        "conv2d expected an input at least as large as its kernel, got (4, 4) with padding (0, 0) for a kernel of (5, 5) with "
        "dilation (1, 1)",
    ),
    (
        lambda: nn.AdaptiveAvgPool2d(2),
        (3, 4, 4),
        "adaptive_avg_pool2d expected an input of shape (N, C, H, W), got (3, 4, 4)",
    ),
]


@pytest.mark.parametrize("make, shape, message", WRONG_INPUTS, ids=[m.split(" ")[0] + str(s) for _, s, m in WRONG_INPUTS])
def test_the_wrong_shape_raises(make, shape, message):
    with pytest.raises(ValueError) as error:
        make()(tg.tensor(np.ones(shape, np.float32)))
    assert str(error.value) == message


@pytest.mark.parametrize(
    "layer, shape",
    [(nn.Linear(4, 3), (2, 4)), (nn.Conv2d(4, 3, 1), (2, 4, 3, 3)), (nn.LayerNorm(4), (2, 4)), (nn.GroupNorm(2, 4), (2, 4))],
    ids=lambda v: type(v).__name__,
)
def test_the_wrong_dtype_raises_and_names_both(layer, shape):
    with pytest.raises(TypeError, match="float64.*float32"):
        layer(tg.tensor(np.ones(shape)))


@pytest.mark.parametrize("name, args", [("Linear", (2, 3)), ("Conv2d", (2, 1, 1)), ("BatchNorm1d", (2,)), ("LayerNorm", (2,))])
def test_an_input_that_is_no_tensor_raises(name, args):
    """With the names of the layer and of what came; not AttributeError from its inside."""
    layer = getattr(nn, name)(*args)
    for bad in ([[1.0, 2.0]], None):
        with pytest.raises((TypeError, ValueError), match=f"{name} expected .*{type(bad).__name__}"):
            layer(bad)


WRONG_OPTIONS = [
    (lambda: nn.Linear(0, 3), "Linear expected in_features to be an int of at least 1, got 0"),
    (lambda: nn.Linear(3, 2.5), "Linear expected out_features to be an int of at least 1, got 2.5"),
    (lambda: nn.Linear(True, 3), "Linear expected in_features to be an int of at least 1, got True"),
    (lambda: nn.Conv1d(1, 1, 0), "Conv1d expected kernel_size to be an int of at least 1, got 0"),
    (lambda: nn.Conv1d(1, 1, 3, padding=-1), "Conv1d expected padding to be an int of at least 0, got -1"),
    (lambda: nn.Conv2d(0, 1, 3), "Conv2d expected in_channels to be an int of at least 1, got 0"),
    (lambda: nn.Conv2d(1, 1, 0), "Conv2d expected kernel_size to be an int, or a pair of ints, of at least 1, got 0"),
    (
        lambda: nn.Conv2d(1, 1, (3, 3, 3)),
        "Conv2d expected kernel_size to be an int, or a pair of ints, of at least 1, got (3, 3, 3)",
    ),
    (lambda: nn.Conv2d(1, 1, 3, stride=0), "Conv2d expected stride to be an int, or a pair of ints, of at least 1, got 0"),
    (lambda: nn.Conv2d(1, 1, 3, padding=-1), "Conv2d expected padding to be an int, or a pair of ints, of at least 0, got -1"),
    (lambda: nn.Conv2d(4, 6, 3, groups=4), "Conv2d expected groups=4 to divide in_channels=4 and out_channels=6"),
    (lambda: nn.Conv1d(4, 6, 3, groups=3), "Conv1d expected groups=3 to divide in_channels=4 and out_channels=6"),
    (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=3),
        "ConvTranspose2d expected groups=3 to divide in_channels=4 and out_channels=6",
    ),
    (lambda: nn.Embedding(0, 3), "Embedding expected num_embeddings to be an int of at least 1, got 0"),
    (lambda: nn.LayerNorm(()), "LayerNorm expected normalized_shape to be an int or a tuple of at least one, got ()"),
    (lambda: nn.LayerNorm((3, 0)), "LayerNorm expected normalized_shape to be an int of at least 1, got 0"),
    (lambda: nn.GroupNorm(3, 4), "GroupNorm expected num_groups=3 to divide num_channels=4"),
    (lambda: nn.GroupNorm(0, 4), "GroupNorm expected num_groups to be an int of at least 1, got 0"),
    (lambda: nn.Dropout(1.5), "Dropout expected a probability p from 0 to 1, got 1.5"),
    (lambda: nn.Dropout(True), "Dropout expected a probability p from 0 to 1, got True"),
    (lambda: nn.Dropout(float("nan")), "Dropout expected a probability p from 0 to 1, got nan"),
    (lambda: nn.MaxPool2d(0), "MaxPool2d expected kernel_size to be an int, or a pair of ints, of at least 1, got 0"),
    (lambda: nn.MaxPool2d(2, 0), "MaxPool2d expected stride to be an int, or a pair of ints, of at least 1, got 0"),
    (lambda: nn.AvgPool2d(2, 2, -1), "AvgPool2d expected padding to be an int, or a pair of ints, of at least 0, got -1"),
    (
        lambda: nn.AdaptiveAvgPool2d(0),
        "AdaptiveAvgPool2d expected output_size to be an int, or a pair of ints, of at least 1, got 0",
    ),
]


@pytest.mark.parametrize("make, message", WRONG_OPTIONS, ids=[m for _, m in WRONG_OPTIONS])
def test_bad_options_raise(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_output_padding_must_be_less_than_the_stride():
    layer = nn.ConvTranspose2d(1, 1, 3, stride=2, output_padding=2)
    with pytest.raises(ValueError, match=r"output_padding less than stride \(2, 2\) or dilation \(1, 1\), got \(2, 2\)"):
        layer(tg.ones(1, 1, 3, 3))


def test_conv_transpose2d_undoes_the_shape_of_conv2d():
    for n, k, s, p in ((7, 3, 2, 1), (8, 3, 2, 1), (9, 4, 3, 0), (6, 1, 1, 0)):
        down = nn.Conv2d(1, 2, k, s, p)(tg.ones(1, 1, n, n))
        extra = (n + 2 * p - k) % s
        assert nn.ConvTranspose2d(2, 1, k, s, p, extra)(down).shape == (1, 1, n, n)


# ----- Dropout


def test_dropout_keeps_the_mean_and_zeroes_a_share_p(device):
    tg.manual_seed(1)
    n = 40_000
    for p in (0.1, 0.5, 0.9):
        y = device.numpy(nn.Dropout(p)(tg.tensor(device.array(np.ones((n // 100, 100), np.float32)))))
        zeros = (y == 0).mean()
        assert abs(zeros - p) < 5 * np.sqrt(p * (1 - p) / n)
        assert_allclose(y[y != 0], 1 / (1 - p), rtol=1e-6)


def test_dropout_masks_are_independent_of_each_other():
    """Of each other's call, and along the array."""
    tg.manual_seed(2)
    layer, n = nn.Dropout(0.5), 40_000
    a, b = (layer(tg.ones(n)).data > 0 for _ in "ab")
    for u, v in ((a, b), (a[1:], a[:-1]), (a[4:], a[:-4])):
        agreement = (u == v).mean()
        assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(len(u))


def test_dropout_backward_has_the_mask_of_forward(rng):
    x, g = tg.tensor(rng.normal(size=(50, 40)), requires_grad=True), rng.normal(size=(50, 40))
    y = nn.Dropout(0.3)(x)
    nn.Dropout(0.3)(x)  # another call between draws another mask, and changes nothing
    y.backward(g)
    mask = y.data != 0
    assert_allclose(x.grad.data, np.where(mask, g / 0.7, 0), rtol=1e-12)
    assert 0 < mask.sum() < mask.size


def test_dropout_is_reproducible(cuda_stand_in, rng):
    """The same seed, the same mask: on each device, and in each dtype."""
    x = rng.normal(size=(30, 7)) + 10
    masks = []
    for make in (
        lambda: tg.tensor(x),
        lambda: tg.tensor(x),
        lambda: tg.tensor(x.astype(np.float32)),
        lambda: tg.tensor(cuda_stand_in.array(x)),
    ):
        tg.manual_seed(5)
        masks.append(cuda_stand_in.numpy(nn.Dropout(0.5)(make())) != 0)
    for mask in masks[1:]:
        assert_array_equal(mask, masks[0])


def test_dropout_does_nothing_in_evaluation_and_draws_nothing(rng):
    layer = nn.Dropout(0.5).eval()
    x = tg.tensor(rng.normal(size=(3, 4)))
    state = tg.get_rng_state()
    assert layer(x) is x
    assert nn.Dropout(0.0)(x) is x
    assert tg.get_rng_state() == state


def test_dropout_of_everything(rng):
    x = tg.tensor(rng.normal(size=(3, 4)), requires_grad=True)
    y = nn.Dropout(1.0)(x)
    y.backward(np.ones((3, 4)))
    assert_array_equal(y.data, np.zeros((3, 4)))
    assert_array_equal(x.grad.data, np.zeros((3, 4)))


def test_dropout_refuses_integers():
    with pytest.raises(TypeError, match="dropout expected a floating input, got int64"):
        nn.Dropout()(tg.tensor([1, 2, 3]))


# ----- Embedding


def test_embedding_equals_pytorch(torch, rng):
    """Repeated rows add up in the gradient."""
    torch.manual_seed(0)
    ours, theirs = nn.Embedding(7, 3).double(), torch.nn.Embedding(7, 3).double()
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    for shape in ((5,), (2, 4), ()):
        indices = rng.integers(0, 7, shape)
        g = rng.normal(size=(*shape, 3))
        ours.zero_grad()
        theirs.zero_grad()
        y, z = ours(indices), theirs(torch.tensor(indices))
        assert_array_equal(y.data, z.detach().numpy())
        y.backward(g)
        z.backward(torch.tensor(g))
        assert_allclose(ours.weight.grad.data, theirs.weight.grad.numpy(), atol=1e-14)


def test_embedding_of_a_tensor_of_indices():
    layer = nn.Embedding(4, 2)
    assert_array_equal(layer(tg.tensor([[0, 3], [3, 1]])).data, layer.weight.data[[[0, 3], [3, 1]]])


@pytest.mark.parametrize(
    "indices, error, message",
    [
        (np.array([0, 4]), ValueError, "embedding expected indices from 0 to 3, got values from 0 to 4"),
        (np.array([-1, 2]), ValueError, "embedding expected indices from 0 to 3, got values from -1 to 2"),
        (np.array([0.0, 1.0]), TypeError, "embedding expected an integer array of indices, got float64"),
        (np.array([True]), TypeError, "embedding expected an integer array of indices, got bool"),
        ([0, 1], TypeError, "embedding expected an integer array of indices, got list"),
    ],
    ids=["too large", "negative", "floats", "booleans", "a list"],
)
def test_embedding_refuses(indices, error, message):
    with pytest.raises(error) as raised:
        nn.Embedding(4, 2)(indices)
    assert str(raised.value) == message


# ----- losses


def compare_loss(torch, ours, theirs, x, target):
    a, b = tg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a, tg.tensor(target)), theirs(b, torch.tensor(target))
    assert y.shape == tuple(z.shape)
    assert_allclose(y.data, z.detach().numpy(), rtol=1e-12, atol=1e-12)
    y.sum().backward()
    z.sum().backward()
    assert_allclose(a.grad.data, b.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_pytorch(torch, rng, reduction, smoothing):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    x, labels = rng.normal(size=(6, 4)) * 5, rng.integers(0, 4, 6)
    compare_loss(torch, nn.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options), x, labels)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse_and_bce_equal_pytorch(torch, rng, reduction):
    x, target = rng.normal(size=(6, 4)) * 5, rng.uniform(size=(6, 4))
    compare_loss(torch, nn.MSELoss(reduction), torch.nn.MSELoss(reduction=reduction), x, target)
    theirs = torch.nn.BCEWithLogitsLoss(reduction=reduction)
    compare_loss(torch, nn.BCEWithLogitsLoss(reduction), theirs, x, target)
    compare_loss(torch, nn.BCEWithLogitsLoss(reduction), theirs, x * 200, np.round(target))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bce_of_a_confident_right_answer_keeps_its_digits(dtype):
    """-log s(x) = log1p(e^-x) is tiny, but not 0: softplus(x) - x would cancel."""
    x = np.array([10.0, 15.0, 30.0, -10.0, -15.0, -30.0], dtype)
    loss = nn.BCEWithLogitsLoss("none")(tg.tensor(x), tg.tensor((x > 0).astype(dtype)))
    assert_allclose(loss.data, np.log1p(np.exp(-np.abs(x).astype(float))), rtol=1e-6)


def test_losses_of_extreme_logits_are_finite():
    x = tg.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = nn.CrossEntropyLoss("sum")(x, np.array([0, 0]))
    loss.backward()
    assert loss.item() == 2e4
    assert_array_equal(x.grad.data, [[0, 0], [-1, 1]])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: nn.CrossEntropyLoss()(tg.ones(2, 3, 4), np.zeros(2, int)),
            ValueError,
            "cross_entropy expected logits of shape (N, C), got (2, 3, 4)",
        ),
        (
            lambda: nn.CrossEntropyLoss()(tg.ones(2, 3), [0, 1]),
            TypeError,
            "cross_entropy expected labels as a Tensor or an array, got list",
        ),
        (
            lambda: nn.CrossEntropyLoss()(tg.ones(2, 3), np.zeros(2)),
            TypeError,
            "cross_entropy expected integer labels (class numbers), got float64",
        ),
        (
            lambda: nn.CrossEntropyLoss()(tg.ones(2, 3), np.zeros(3, int)),
            ValueError,
            "cross_entropy expected labels of shape (2,) for logits of shape (2, 3), got (3,)",
        ),
        (
            lambda: nn.CrossEntropyLoss()(tg.ones(2, 3), np.array([0, 3])),
            ValueError,
            "cross_entropy expected labels from 0 to 2 for 3 classes, got values from 0 to 3",
        ),
        (
            lambda: nn.CrossEntropyLoss("average")(tg.ones(2, 3), np.zeros(2, int)),
            ValueError,
            "cross_entropy expected reduction to be 'mean', 'sum' or 'none', got 'average'",
        ),
        (
            lambda: nn.CrossEntropyLoss(label_smoothing=1.5)(tg.ones(2, 3), np.zeros(2, int)),
            ValueError,
            "cross_entropy expected label_smoothing from 0 to 1, got 1.5",
        ),
        (
            lambda: nn.MSELoss()(tg.ones(2, 3), tg.ones(3)),
            ValueError,
            "mse_loss expected an input and a target of one shape, got (2, 3) and (3,)",
        ),
        (
            lambda: nn.BCEWithLogitsLoss()(tg.ones(2, 1), tg.ones(2)),
            ValueError,
            "bce_with_logits expected an input and a target of one shape, got (2, 1) and (2,)",
        ),
    ],
    ids=["3-D", "list", "floats", "length", "range", "reduction", "smoothing", "mse", "bce"],
)
def test_losses_refuse(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


# ----- what the layers are for


def test_layer_and_group_norm_couple_no_examples(rng):
    """Unlike BatchNorm: an example's output does not depend on its batch, nor on the mode."""
    x = rng.normal(size=(5, 4, 3))
    for layer in (nn.GroupNorm(2, 4).double(), nn.LayerNorm((4, 3)).double()):
        whole = layer(tg.tensor(x)).data
        assert_allclose(layer.eval()(tg.tensor(x[2:3])).data, whole[2:3], atol=1e-14)


def test_a_float16_norm_keeps_float32_parameters(rng):
    x = tg.tensor(rng.normal(size=(3, 4)).astype(np.float16))
    for layer in (nn.GroupNorm(2, 4), nn.LayerNorm(4)):
        layer.to(dtype="float16")
        assert {p.dtype for p in layer.parameters()} == {np.dtype("float32")}
        assert layer(x).dtype == "float16"
    assert nn.Linear(4, 2).to(dtype="float16")(x).dtype == "float16"


def test_max_pool_gives_ties_to_the_first(torch):
    x = np.ones((1, 1, 4, 4))
    a, b = tg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    nn.MaxPool2d(3, 1)(a).sum().backward()
    torch.nn.MaxPool2d(3, 1)(b).sum().backward()
    assert_array_equal(a.grad.data, b.grad.numpy())
