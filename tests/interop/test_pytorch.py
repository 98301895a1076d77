"""State dicts to PyTorch and from it as they are, and from_torch: the same model of our layers."""

import copy
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import interop, nn
from tinygrad_bn.interop.torch_models import _LAYERS, _ONLY
from tinygrad_bn.nn.state_array import StateArray

# ----- state dicts


def layers(of):
    return of.Sequential(
        of.Conv2d(1, 4, 3), of.BatchNorm2d(4), of.ReLU(), of.Flatten(), of.Linear(64, 5), of.BatchNorm1d(5, affine=False)
    )


def test_pytorch_takes_our_state_dict_as_it_is(torch, rng):
    ours, theirs = layers(nn), layers(torch.nn)
    ours(tg.tensor(rng.standard_normal((8, 1, 6, 6)).astype("f")))
    state = ours.state_dict()
    assert str(theirs.load_state_dict(state)) == "<All keys matched successfully>"
    assert list(state) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert_array_equal(value.numpy(), state[key], strict=True)
    assert theirs[1].num_batches_tracked.dtype == torch.int64 and theirs[1].num_batches_tracked == 1
    theirs[1].num_batches_tracked += 6
    with torch.no_grad():
        theirs[0].weight += 1
    assert not np.shares_memory(theirs[0].weight.detach().numpy(), state["0.weight"])
    ours.load_state_dict(theirs.state_dict())
    assert ours[1].num_batches_tracked == 7
    assert_array_equal(ours[0].weight.data, theirs[0].weight.detach().numpy())


def test_pytorch_checks_our_state_dict_as_its_own(torch):
    with pytest.raises(RuntimeError, match=r"(?s)size mismatch for weight.*\(3, 4\).*\[3, 5\]"):
        torch.nn.Linear(5, 3).load_state_dict(nn.Linear(4, 3).state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        torch.nn.Linear(4, 3).load_state_dict(nn.Linear(4, 3, bias=False).state_dict())


def test_pytorch_casts_and_keeps_layouts(torch, rng):
    """Transposed and sliced parameters, and another dtype there."""
    ours, theirs = nn.Linear(3, 4), torch.nn.Linear(3, 4).double()
    w = rng.standard_normal((6, 8)).astype("f")
    ours.weight.data = w[::2, ::2].T
    theirs.load_state_dict(ours.state_dict())
    assert_array_equal(theirs.weight.detach().numpy(), w[::2, ::2].T.astype("f8"))


def test_bfloat16_arrives_as_the_same_numbers(torch):
    theirs = torch.nn.Linear(5, 4).bfloat16()
    ours = nn.Linear(5, 4)
    ours.load_state_dict(theirs.state_dict())
    assert_array_equal(ours.weight.data, theirs.weight.detach().float().numpy(), strict=True)


def test_a_state_dicts_arrays_are_arrays():
    """What a state dict holds does what arrays do; what is computed from it, and what takes it, has ordinary ones."""
    layer = nn.Linear(2, 3).double()
    w = layer.state_dict()["weight"]
    assert isinstance(w, StateArray) and type(w + 1) is type(np.add(w, w)) is type(w.sum(0)) is np.ndarray
    assert type(w.sum()) is np.float64
    assert tg.tensor(w).dtype == np.float64 and type(tg.tensor(w).data) is type(tg.Tensor(w).data) is np.ndarray
    layer.weight.data = w
    assert type(layer.weight.data) is type(nn.Parameter(w).data) is type(nn.Buffer(w).data) is np.ndarray
    assert type(tg.relu(w)) is np.ndarray


def test_optimizers_state_goes_by_to_torch(torch, rng):
    ours, theirs = nn.Linear(3, 2), torch.nn.Linear(3, 2)
    sgd = tg.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    ours(tg.tensor(rng.standard_normal((4, 3)).astype("f"))).sum().backward()
    sgd.step()
    there = torch.optim.SGD(theirs.parameters(), lr=1.0)
    state = interop.to_torch(sgd.state_dict())
    assert type(state["param_groups"]) is list and state["param_groups"][0]["lr"] == 0.1
    there.load_state_dict(state)
    buffer = there.state[theirs.weight]["momentum_buffer"]
    assert_array_equal(buffer.numpy(), sgd.state_dict()["state"][0]["momentum_buffer"])
    buffer += 1  # a copy
    assert not np.array_equal(buffer.numpy(), sgd.state_dict()["state"][0]["momentum_buffer"])
    sgd.load_state_dict(there.state_dict())
    assert_array_equal(buffer.numpy(), sgd.state_dict()["state"][0]["momentum_buffer"])


def test_to_torch_goes_through_dicts_lists_and_tuples(torch, device):
    a = tg.tensor([1.0, 2.0], device=device.name)
    got = interop.to_torch({"a": [a, (a.data, 3)], "b": "text", "c": None, "d": np.int64(4)})
    assert torch.equal(got["a"][0], torch.tensor([1.0, 2.0])) and torch.equal(got["a"][1][0], got["a"][0])
    assert got["a"][1][1] == 3 and got["b"] == "text" and got["c"] is None and got["d"] == 4
    assert not np.shares_memory(got["a"][0].numpy(), device.numpy(a))


def test_to_torch_makes_tuples_of_named_ones(torch):
    from collections import namedtuple

    got = interop.to_torch(namedtuple("Pair", "a b")(np.ones(2), 3))
    assert type(got) is tuple and torch.equal(got[0], torch.ones(2, dtype=torch.float64)) and got[1] == 3


def test_to_torch_needs_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeError, match="interop.to_torch needs PyTorch: pip install torch"):
        interop.to_torch({})


# ----- from_torch

LAYERS = {
    "AdaptiveAvgPool2d": (lambda t: t.AdaptiveAvgPool2d((2, 3)), (2, 3, 7, 8)),
    "AvgPool2d": (lambda t: t.AvgPool2d((3, 2), 2, 1), (2, 3, 7, 8)),
    "BatchNorm1d": (lambda t: t.BatchNorm1d(3, eps=1e-3, momentum=None), (4, 3)),
    "BatchNorm2d": (lambda t: t.BatchNorm2d(3, momentum=0.3, affine=False), (4, 3, 2, 2)),
    "BatchNorm3d": (lambda t: t.BatchNorm3d(3, track_running_stats=False), (4, 3, 2, 2, 2)),
    "Conv1d": (lambda t: t.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9)),
    "Conv2d": (
        lambda t: t.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2, bias=False),
        (2, 4, 9, 9),
    ),
    "ConvTranspose2d": (lambda t: t.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), (2, 4, 5, 5)),
    "Dropout": (lambda t: t.Dropout(0.3, inplace=True), (2, 5)),
    "ELU": (lambda t: t.ELU(0.7), (2, 5)),
    "Embedding": (lambda t: t.Embedding(7, 3), None),
    "Flatten": (lambda t: t.Flatten(2), (2, 3, 4, 5)),
    "GELU": (lambda t: t.GELU(), (2, 5)),
    "GroupNorm": (lambda t: t.GroupNorm(2, 4, eps=1e-3), (2, 4, 3)),
    "Identity": (lambda t: t.Identity(1, x=2), (2, 5)),
    "LayerNorm": (lambda t: t.LayerNorm((3, 4), eps=1e-3), (2, 3, 4)),
    "LeakyReLU": (lambda t: t.LeakyReLU(0.2, inplace=True), (2, 5)),
    "Linear": (lambda t: t.Linear(5, 2, bias=False), (3, 5)),
    "LogSoftmax": (lambda t: t.LogSoftmax(1), (2, 5)),
    "MaxPool2d": (lambda t: t.MaxPool2d(3, (2, 1), 1), (2, 3, 7, 8)),
    "ReLU": (lambda t: t.ReLU(inplace=True), (2, 5)),
    "SiLU": (lambda t: t.SiLU(), (2, 5)),
    "Sigmoid": (lambda t: t.Sigmoid(), (2, 5)),
    "Softmax": (lambda t: t.Softmax(0), (2, 5)),
    "Softplus": (lambda t: t.Softplus(), (2, 5)),
    "Tanh": (lambda t: t.Tanh(), (2, 5)),
}


def test_every_layer_of_ours_is_in_the_table():
    assert set(LAYERS) == set(_LAYERS) and set(_ONLY) <= set(_LAYERS)
    containers_and_losses = {"Sequential", "ModuleList", "Module", "MSELoss", "CrossEntropyLoss", "BCEWithLogitsLoss"}
    ours = {name for name in nn.__all__ if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Module)}
    not_pytorchs = {f"{kind}{n}d" for kind in ("BatchRenorm", "GhostBatchNorm") for n in (1, 2, 3)}
    assert ours - containers_and_losses - not_pytorchs == set(_LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_computes_the_same(torch, rng, name):
    make, shape = LAYERS[name]
    theirs = make(torch.nn).double()
    for p in theirs.parameters():
        torch.nn.init.normal_(p)
    if "BatchNorm" in name and theirs.track_running_stats:
        theirs.running_mean += 0.5
        theirs.running_var *= 2
        theirs.num_batches_tracked += 3
    ours = interop.from_torch(theirs)
    assert type(ours).__name__ == name
    x = rng.integers(0, 7, (2, 5)) if shape is None else rng.standard_normal(shape)
    for mode in (True, False) if name != "Dropout" else (False,):
        theirs.train(mode), ours.train(mode)
        y, y_there = ours(tg.tensor(x)), theirs(torch.tensor(x))
        assert_allclose(y.detach().numpy(), y_there.detach().numpy(), rtol=1e-7 if name == "Softplus" else 1e-10, atol=1e-12)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert_allclose(ours.state_dict()[key], value.numpy(), rtol=1e-12)
    if name == "Dropout":
        assert ours.p == 0.3


def test_a_nested_model_keeps_names_modes_dtypes_and_what_is_frozen(torch, rng):
    from collections import OrderedDict

    t = torch.nn
    block = t.Sequential(OrderedDict(conv=t.Conv2d(1, 3, 3, padding="same"), bn=t.BatchNorm2d(3), act=t.ReLU()))
    theirs = t.Sequential(OrderedDict(features=block, flat=t.Flatten(), head=t.Linear(48, 2)))
    theirs.double()
    theirs.head.requires_grad_(False)
    theirs.features.bn.eval()
    ours = interop.from_torch(theirs)
    assert type(ours) is nn.Sequential and list(ours.state_dict()) == list(theirs.state_dict())
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    assert [m.training for m in ours.modules()] == [m.training for m in theirs.modules()]
    x = rng.standard_normal((2, 1, 4, 4))
    assert_allclose(ours(tg.tensor(x)).detach().numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-12)
    with torch.no_grad():
        theirs.head.weight += 1
    assert not np.array_equal(ours.head.weight.data, theirs.head.weight.numpy()), "the values are copies"
    assert len(interop.from_torch(t.Sequential())) == 0


def test_what_is_shared_there_is_shared_here(torch, rng):
    t = torch.nn
    twice, tied = t.Linear(3, 3), t.Linear(3, 3)
    tied.weight = twice.weight
    theirs = t.Sequential(twice, t.Tanh(), twice, tied)
    ours = interop.from_torch(theirs)
    assert ours[0] is ours[2] and ours[3].weight is ours[0].weight and ours[3].bias is not ours[0].bias
    assert len(list(ours.parameters())) == len(list(theirs.parameters())) == 3
    x = rng.standard_normal((2, 3)).astype("f")
    assert_allclose(ours(tg.tensor(x)).detach().numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_dtypes(torch):
    t = torch.nn
    for there, here in [("float16", "float16"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]:
        ours = interop.from_torch(t.Sequential(t.Linear(2, 3), t.BatchNorm1d(3)).to(getattr(torch, there)))
        assert ours[0].weight.dtype == here
        assert ours[1].weight.dtype == ours[1].running_mean.dtype == ("float32" if here == "float16" else here)
    with pytest.raises(ValueError, match="Linear at '0' is of torch.complex64; expected one of torch.float16"):
        interop.from_torch(t.Sequential(t.Linear(2, 3, dtype=torch.complex64)))


def test_no_random_number_is_drawn(torch):
    before = tg.get_rng_state()
    interop.from_torch(torch.nn.Linear(50, 50))
    assert tg.get_rng_state() == before
    with pytest.raises(TypeError):
        interop.from_torch(torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.LSTM(5, 5)))
    assert tg.get_rng_state() == before


REFUSED = {
    "another layer": (
        lambda t: t.Sequential(t.Linear(2, 2), t.Sequential(t.ReLU(), t.LSTM(2, 2), t.GRU(2, 2))), TypeError,
        r"expected a Sequential of layers that tinygrad_bn has, got LSTM at '1.1'; it has AdaptiveAvgPool2d, .*Linear",
    ),
    "another layer alone": (lambda t: t.Bilinear(2, 2, 2), TypeError, r"got the module itself \(Bilinear\)"),
    "a container without forward": (lambda t: t.ModuleList([t.ReLU()]), TypeError, r"got the module itself \(ModuleList\)"),
    "reflecting padding": (
        lambda t: t.Sequential(t.Conv2d(1, 1, 3, padding_mode="reflect")), ValueError,
        "Conv2d at '0' has padding_mode='reflect'; expected 'zeros'",
    ),
    "padding of one side": (
        lambda t: t.Conv2d(1, 1, 2, padding="same"), ValueError, r": padding='same' with kernel_size=\(2, 2\); expected the"
    ),
    "ceil_mode": (lambda t: t.MaxPool2d(2, ceil_mode=True), ValueError, "has ceil_mode=True; expected False"),
    "dilated pooling": (lambda t: t.MaxPool2d(2, dilation=2), ValueError, "has dilation=2; expected 1"),
    "padding that does not count": (lambda t: t.AvgPool2d(2, count_include_pad=False), ValueError, "count_include_pad=False"),
    "GELU by tanh": (lambda t: t.GELU("tanh"), ValueError, "approximate='tanh'; expected 'none'"),
    "Softplus of another beta": (lambda t: t.Softplus(2), ValueError, "has beta=2.*; expected 1"),
    "flattening the middle": (lambda t: t.Flatten(1, 2), ValueError, "has end_dim=2; expected -1"),
    "a padding index": (lambda t: t.Embedding(3, 2, padding_idx=0), ValueError, "has padding_idx=0; expected None"),
    "LayerNorm without bias": (lambda t: t.LayerNorm(3, bias=False), ValueError, "has bias=False; expected True"),
    "BatchNorm without bias": (
        lambda t: without_bias(t.BatchNorm2d(3)), ValueError, r"itself \(BatchNorm2d\) has bias=False; expected True"
    ),
    "GroupNorm without bias": (lambda t: without_bias(t.GroupNorm(1, 3)), ValueError, "has bias=False; expected True"),
    "Softmax along an axis that the input decides": (
        lambda t: t.Sequential(t.Softmax()), ValueError, "Softmax at '0': dim=None; expected an axis"
    ),
    "LogSoftmax along such an axis": (lambda t: t.LogSoftmax(), ValueError, ": dim=None; expected an axis"),
    "weights without values": (
        lambda t: t.Sequential(t.Linear(2, 2, device="meta")), ValueError, "Linear at '0' is on the device meta, without values"
    ),
    "a free size": (lambda t: t.AdaptiveAvgPool2d((None, 2)), ValueError, "AdaptiveAvgPool2d expected output_size"),
    "hooks": (lambda t: hooked(t.Linear(2, 2)), ValueError, "has hooks, such as weight_norm's; expected none"),
    "a name that is a method": (lambda t: named(t, "summary"), ValueError, "has a layer named 'summary', which is a method"),
}  # fmt: skip


def without_bias(module):
    module.bias = None  # (bias=False, where PyTorch has that option)
    return module


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


def named(t, name):
    model = t.Sequential()
    model.add_module(name, t.ReLU())
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_counterpart_is_named(torch, what):
    make, kind, message = REFUSED[what]
    with pytest.raises(kind, match=message):
        interop.from_torch(make(torch.nn))


def test_subclasses_are_refused_unless_they_run_as_sequential_does(torch):
    class Stem(torch.nn.Sequential):
        def __init__(self):
            super().__init__(torch.nn.Linear(2, 3), torch.nn.ReLU())

    class Skip(torch.nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert len(interop.from_torch(Stem())) == 2
    for module in (Skip(torch.nn.ReLU()), Scaled(2, 2)):
        with pytest.raises(TypeError, match=rf"got the module itself \({type(module).__name__}\)"):
            interop.from_torch(module)
    parametrized = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match="ParametrizedLinear"):
        interop.from_torch(copy.deepcopy(parametrized))


@pytest.mark.parametrize("what", [None, 3, "model", nn.Linear(2, 2)], ids=lambda x: type(x).__name__)
def test_what_is_no_pytorch_module_is_refused(what):
    with pytest.raises(TypeError, match=f"from_torch expected a PyTorch module, got {type(what).__name__}"):
        interop.from_torch(what)
