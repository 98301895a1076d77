"""Module: the tree of parameters and buffers, modes, conversions, state dicts, summary, repr, and who listens."""

import copy
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tinygrad_bn as tg
from tinygrad_bn import core, nn


class Block(nn.Module):
    """A module as users write them: without super().__init__()."""

    def __init__(self, width=3):
        self.scale = nn.Parameter(np.ones(width, np.float32))
        self.first = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.tail = nn.Sequential(nn.ReLU(), nn.Linear(width, 2, bias=False))
        self.note = "not a tensor"

    def forward(self, x):
        return self.tail(self.norm(self.first(x)) * self.scale)


class Tied(nn.Module):
    def __init__(self):
        self.a = nn.Linear(2, 2)
        self.b = self.a
        self.c = nn.Linear(2, 2)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.fixture(autouse=True)
def seed():
    """For the initial weights."""
    tg.manual_seed(0)


def everything(model):
    """All arrays of a model, the objects themselves."""
    return [t.data for t in (*model.parameters(), *model.buffers())]


def input_for(n=4, width=3):
    return tg.tensor(np.random.default_rng(n).normal(size=(n, width)).astype(np.float32))


# ----- the tree


def test_names_come_in_the_order_of_the_attributes():
    model = Block()
    assert [name for name, _ in model.named_parameters()] == [
        "scale", "first.weight", "first.bias", "norm.weight", "norm.bias", "tail.1.weight",
    ]  # fmt: skip
    assert [name for name, _ in model.named_buffers()] == ["norm.running_mean", "norm.running_var"]
    assert [name for name, _ in model.named_children()] == ["first", "norm", "tail"]
    assert [name for name, _ in model.named_modules()] == ["", "first", "norm", "tail", "tail.0", "tail.1"]
    assert list(model.children()) == [model.first, model.norm, model.tail]
    assert next(iter(model.modules())) is model
    assert [p is q for p, (_, q) in zip(model.parameters(), model.named_parameters(), strict=True)] == [True] * 6
    assert list(model.buffers()) == [model.norm.running_mean, model.norm.running_var]


def test_names_are_pytorchs(torch):
    theirs = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)), torch.nn.Linear(2, 2))
    ours = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Linear(2, 2))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_named_modules_takes_a_prefix():
    assert [name for name, _ in nn.Sequential(nn.ReLU()).named_modules("net")] == ["net", "net.0"]


def test_shared_parameters_and_modules_come_once():
    model = Tied()
    assert [n for n, _ in model.named_parameters()] == ["a.weight", "a.bias", "c.bias"]
    assert [n for n, _ in model.named_modules()] == ["", "a", "c"]
    assert [n for n, _ in model.named_children()] == ["a", "c"]


def test_a_shared_parameter_gets_the_sum_of_its_gradients():
    w = nn.Parameter(np.array([[2.0]]))
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    first.weight = second.weight = w
    nn.Sequential(first, second)(tg.tensor(np.array([[3.0]]))).sum().backward()
    assert w.grad.item() == 2 * 2 * 3  # d(w^2 x)/dw


def test_attributes_may_come_go_and_change():
    model = nn.Module()
    model.w = nn.Parameter(np.ones(1))
    model.inner = nn.ReLU()
    assert [n for n, _ in model.named_parameters()] == ["w"]
    model.w = None
    model.inner = nn.Linear(1, 1)
    assert [n for n, _ in model.named_parameters()] == ["inner.weight", "inner.bias"]
    del model.inner
    assert not list(model.parameters())


def test_parameters_and_buffers():
    p, b = nn.Parameter(np.ones(2)), nn.Buffer(np.ones(2))
    assert p.requires_grad and p.is_leaf and isinstance(p, tg.Tensor) and not b.requires_grad
    assert not nn.Parameter(np.ones(2), requires_grad=False).requires_grad
    t = tg.tensor([1.0, 2.0])
    assert_array_equal(nn.Parameter(t).data, t.data)
    with pytest.raises(TypeError, match="only floating tensors can require grad, got int64"):
        nn.Parameter(np.arange(3))
    for kind in (nn.Parameter, nn.Buffer):
        with pytest.raises(TypeError, match=f"^{kind.__name__} expected a Tensor or an array, got list$"):
            kind([1.0, 2.0])


def test_no_forward():
    with pytest.raises(TypeError, match="^Thing has no forward method$"):
        type("Thing", (nn.Module,), {})()(1)


# ----- Sequential and ModuleList


def test_sequential_is_a_sequence():
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers)
    assert len(model) == 3 and list(model) == layers
    assert model[0] is layers[0] and model[-1] is layers[2]
    part = model[:2]
    assert type(part) is nn.Sequential and list(part) == layers[:2]
    assert [n for n, _ in model[1:].named_parameters()] == ["1.weight", "1.bias"]  # numbered anew
    with pytest.raises(IndexError):
        model[3]
    x = input_for()
    assert_array_equal(model(x).data, layers[2](layers[1](layers[0](x))).data)
    assert model.append(nn.Tanh()) is model
    assert [n for n, _ in model.named_modules()] == ["", "0", "1", "2", "3"] and isinstance(model[3], nn.Tanh)
    assert nn.Sequential()(x) is x


def test_sequential_may_hold_one_module_twice():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
    assert len(model) == 4 and len(list(model.modules())) == 4
    assert repr(model).count("ReLU()") == 2
    assert (model(input_for()).data >= 0).all()


def test_module_list_is_a_list_whose_parameters_are_found():
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    model.layers.append(nn.Linear(2, 1))
    assert len(model.layers) == 3 and model.layers[-1].out_features == 1
    assert [m.out_features for m in model.layers] == [2, 2, 1]
    assert [n for n, _ in model.named_parameters()][-2:] == ["layers.2.weight", "layers.2.bias"]
    with pytest.raises(TypeError, match="^ModuleList has no forward method$"):
        model.layers(input_for())


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: nn.Sequential([nn.ReLU()]),
            "Sequential expected Modules, got list at position 0; pass modules one by one, not in a list",
        ),
        (lambda: nn.Sequential(nn.ReLU(), tg.relu), "Sequential expected Modules, got function at position 1"),
        (lambda: nn.Sequential(nn.ReLU), "Sequential expected Modules, got the class ReLU at position 0; make one: ReLU()"),
        (lambda: nn.Sequential(nn.ReLU()).append(3), "Sequential expected Modules, got int at position 1"),
        (lambda: nn.ModuleList([nn.ReLU(), None]), "ModuleList expected Modules, got NoneType at position 1"),
        (lambda: nn.ModuleList([nn.ReLU()]).append("x"), "ModuleList expected Modules, got str at position 1"),
    ],
)
def test_containers_refuse_what_is_no_module(make, message):
    with pytest.raises(TypeError) as error:
        make()
    assert str(error.value) == message


# ----- modes, gradients


def test_train_and_eval_reach_all_modules():
    model = Block()
    assert all(m.training for m in model.modules())
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    model.tail.train()
    assert [n for n, m in model.named_modules() if m.training] == ["tail", "tail.0", "tail.1"]
    assert model.train() is model
    assert all(m.training for m in model.modules())
    assert not Block().eval().norm.training and nn.Module.training, "the mode is the instance's"
    with pytest.raises(TypeError, match=r"^train\(\) expected True or False, got 1$"):
        model.train(1)


def test_requires_grad_freezes_and_thaws():
    model = Block()
    assert model.requires_grad_(False) is model
    assert not any(p.requires_grad for p in model.parameters())
    assert not model(input_for()).requires_grad
    model.tail.requires_grad_()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["tail.1.weight"]
    model(input_for()).sum().backward()
    assert model.tail[1].weight.grad is not None and model.scale.grad is None


def test_zero_grad_forgets():
    model = Block()
    model(input_for()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


# ----- dtypes and devices


def test_conversion_is_in_place_and_takes_gradients_along():
    model = Block()
    model(input_for()).square().sum().backward()
    parameters, grads = list(model.parameters()), [p.grad.data for p in model.parameters()]
    assert model.double() is model
    assert [p is q for p, q in zip(model.parameters(), parameters, strict=True)] == [True] * 6
    for p, g in zip(model.parameters(), grads, strict=True):
        assert p.dtype == p.grad.dtype == "float64"
        assert_array_equal(p.grad.data, g)
    assert {b.dtype for b in model.buffers()} == {np.dtype("float64")}
    assert model(tg.tensor(np.ones((4, 3)))).dtype == "float64"
    assert model.float().scale.dtype == "float32"
    assert model.to(dtype="float16").first.weight.dtype == "float16"
    assert model.norm.weight.dtype == model.norm.running_mean.dtype == "float32", "norms stay at float32"


def test_conversion_to_what_it_is_already_copies_nothing():
    model = Block()
    before = everything(model)
    model.to("cpu").to(dtype="float32").cpu().float()
    assert all(a is b for a, b in zip(everything(model), before, strict=True))


def test_a_buffer_that_two_modules_share_is_converted_in_both():
    model = nn.Module()
    model.a, model.b = nn.Module(), nn.Module()
    model.a.table = model.b.table = nn.Buffer(np.ones(2, np.float32))
    model.double()
    assert model.a.table.dtype == model.b.table.dtype == "float64"
    assert model.a.table is model.b.table


def test_integer_buffers_keep_their_dtype():
    model = nn.Module()
    model.places = nn.Buffer(np.arange(3))
    assert model.double().places.dtype == "int64"


def test_to_another_device_and_back(cuda_stand_in):
    model = Block()
    model(input_for()).square().sum().backward()
    before = {k: v.copy() for k, v in model.state_dict().items()}
    assert model.cuda() is model
    tensors = (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()))
    assert {t.device for t in tensors} == {"cuda"}
    y = model(input_for().to("cuda"))
    assert y.device == "cuda"
    assert all(not isinstance(v, np.ndarray) for k, v in model.state_dict().items() if "num_batches" not in k)
    model.to("cpu", "float64")
    assert {(t.device, str(t.dtype)) for t in (*model.parameters(), *model.buffers())} == {("cpu", "float64")}
    assert_array_equal(model.first.weight.data, before["first.weight"])


def test_cuda_where_there_is_none_says_so_and_changes_nothing():
    if tg.cuda.is_available():
        pytest.skip("this machine has CUDA")
    model = Block()
    before = everything(model)
    for move in (model.cuda, lambda: model.to("cuda"), lambda: model.to("cuda", "float64")):
        with pytest.raises(RuntimeError, match=r"^device 'cuda' needs [^\n]+$"):
            move()
    assert all(a is b for a, b in zip(everything(model), before, strict=True))


def test_to_refuses_other_dtypes_and_devices():
    model = Block()
    before = everything(model)
    for dtype in ("int64", bool, np.complex64):
        with pytest.raises(TypeError, match="^Module.to expected a floating dtype, got (int64|bool|complex64)$"):
            model.to(dtype=dtype)
    with pytest.raises(ValueError, match="^device expected 'cpu' or 'cuda', got 'tpu'$"):
        model.to("tpu")
    assert all(a is b for a, b in zip(everything(model), before, strict=True))


# ----- state dicts


def test_state_dict_is_a_snapshot():
    model = Block()
    state = model.state_dict()
    before = {k: v.copy() for k, v in state.items()}
    assert all(isinstance(v, np.ndarray) for v in state.values())
    model(input_for())
    for p in model.parameters():
        p.data[:] = 9
    for key, value in state.items():
        assert_array_equal(value, before[key])


def test_state_dict_round_trip():
    model, other = Block(), Block()
    model(input_for())
    keys = other.load_state_dict(model.state_dict())
    assert keys.missing == [] and keys.unexpected == []
    for key, value in other.state_dict().items():
        assert_array_equal(value, model.state_dict()[key], strict=True)
    x = input_for(5)
    assert_array_equal(model.eval()(x).data, other.eval()(x).data)


def test_loading_copies():
    model, state = Block(), Block().state_dict()
    model.load_state_dict(state)
    state["scale"][:] = 5
    state["norm.running_mean"][:] = 5
    assert_array_equal(model.scale.data, np.ones(3))
    assert_array_equal(model.norm.running_mean.data, np.zeros(3))


def test_loading_casts_to_the_dtype_that_is_here():
    model = Block().double()
    model.load_state_dict(Block().state_dict())
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {np.dtype("float64")}


def test_loading_keeps_the_parameters_and_replaces_the_buffers():
    """An optimizer that holds the parameters goes on; a graph that kept a buffer stays right."""
    model = Block()
    parameters, buffer = list(model.parameters()), model.norm.running_mean
    model.load_state_dict(Block().state_dict())
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert model.norm.running_mean is not buffer


def test_a_graph_from_before_loading_refuses_to_go_backward():
    layer = nn.Linear(3, 2)
    loss = layer(input_for().detach().requires_grad_()).sum()
    layer.load_state_dict(nn.Linear(3, 2).state_dict())
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
        loss.backward()


def test_strict_loading_lists_everything_that_does_not_fit_and_changes_nothing():
    model = Block()
    state = Block().state_dict()
    del state["first.bias"], state["norm.running_var"]
    state["extra"] = state["tail.9.weight"] = np.ones(1)
    state["scale"], state["norm.num_batches_tracked"] = np.ones(4), np.ones(1, np.int64)
    before = everything(model)
    with pytest.raises(ValueError) as error:
        model.load_state_dict(state)
    assert str(error.value) == (
        "load_state_dict of Block: missing first.bias, norm.running_var; unexpected extra, tail.9.weight; "
        "misshapen scale: expected (3,), got (4,), norm.num_batches_tracked: expected (), got (1,)"
    )
    assert all(a is b for a, b in zip(everything(model), before, strict=True))
    with pytest.raises(ValueError, match="^load_state_dict of Block: misshapen scale: expected"):
        model.load_state_dict(state, strict=False)
    assert all(a is b for a, b in zip(everything(model), before, strict=True))


def test_loading_with_strict_false_returns_the_rest():
    model, source = Block(), Block()
    state = source.state_dict()
    del state["first.bias"]
    state["extra"] = np.ones(1)
    bias = model.first.bias.data
    keys = model.load_state_dict(state, strict=False)
    assert keys == (["first.bias"], ["extra"]) and keys.missing == ["first.bias"] and keys.unexpected == ["extra"]
    assert model.first.bias.data is bias
    assert_array_equal(model.first.weight.data, source.first.weight.data)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"scale": "text"},
            TypeError,
            "load_state_dict expected numbers for scale, got str of dtype <U4",
        ),
        (
            {"scale": np.array([1j, 1, 1])},
            TypeError,
            "load_state_dict expected numbers for scale, got ndarray of dtype complex128",
        ),
        (
            {"scale": None},
            TypeError,
            "load_state_dict expected numbers for scale, got NoneType of dtype object",
        ),
    ],
    ids=["text", "complex", "None"],
)
def test_loading_refuses_what_is_no_number_and_changes_nothing(change, error, message):
    model = Block()
    before = everything(model)
    with pytest.raises(error) as raised:
        model.load_state_dict({**Block().state_dict(), **change})
    assert str(raised.value) == message
    assert all(a is b for a, b in zip(everything(model), before, strict=True))
    with pytest.raises(TypeError, match="^load_state_dict expected a dict from names to arrays, got list$"):
        model.load_state_dict([1, 2])


def test_loading_takes_lists_and_tensors():
    model = Block()
    model.load_state_dict({"scale": [1, 2, 3], "first.bias": tg.tensor([4.0, 5.0, 6.0])}, strict=False)
    assert_array_equal(model.scale.data, np.array([1, 2, 3], np.float32), strict=True)
    assert_array_equal(model.first.bias.data, np.array([4, 5, 6], np.float32), strict=True)


def test_loading_takes_pytorchs_state_dict_as_it_is(torch):
    def make(lib):
        return lib.Sequential(lib.Conv2d(1, 2, 3), lib.BatchNorm2d(2), lib.ReLU(), lib.Flatten(), lib.Linear(8, 3))

    ours, theirs = make(nn), make(torch.nn)
    x = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float32)
    theirs(torch.tensor(x))
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        np.testing.assert_allclose(ours.eval()(tg.tensor(x)).data, theirs.eval()(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)
    assert ours[1].num_batches_tracked == 1
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})


def test_state_dict_of_shared_tensors_lists_each_name(torch):
    model = Tied()
    names = ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"]
    assert sorted(model.state_dict()) == sorted(names)

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(2, 2)
            self.b = self.a
            self.c = torch.nn.Linear(2, 2)
            self.c.weight = self.a.weight

    theirs = Theirs()
    model.load_state_dict(theirs.state_dict())
    assert model.c.weight is model.a.weight
    assert_array_equal(model.a.weight.data, theirs.a.weight.detach().numpy())


def test_loading_across_devices(cuda_stand_in):
    on_cuda, on_cpu = Block().cuda(), Block()
    on_cpu.load_state_dict(on_cuda.state_dict())
    assert on_cpu.scale.device == "cpu"
    on_cuda.load_state_dict(on_cpu.state_dict())
    assert on_cuda.first.weight.device == on_cuda.norm.running_mean.device == "cuda"
    assert_array_equal(cuda_stand_in.numpy(on_cuda.first.weight), on_cpu.first.weight.data)


# ----- copies


def test_deepcopy_is_independent_and_keeps_sharing():
    model = Tied()
    model(tg.ones(1, 2)).sum().backward()
    twin = copy.deepcopy(model)
    assert twin.b is twin.a and twin.c.weight is twin.a.weight and twin.a is not model.a
    assert type(twin.a.weight) is nn.Parameter and twin.a.weight.requires_grad
    assert_array_equal(twin.a.weight.grad.data, model.a.weight.grad.data)
    model.a.weight.data[:] = 7
    model.a.weight.grad.data[:] = 7
    assert not (twin.a.weight.data == 7).any() and not (twin.a.weight.grad.data == 7).any()
    twin.eval()
    assert model.a.training


# ----- to read


def test_repr_is_nested():
    assert repr(Block()) == (
        "Block(\n"
        "  (first): Linear(in_features=3, out_features=3, bias=True)\n"
        "  (norm): BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "  (tail): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Linear(in_features=3, out_features=2, bias=False)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Sequential()) == "Sequential()"


def test_repr_of_nested_containers_is_pytorchs(torch):
    def make(lib):
        inner = lib.Sequential(lib.Conv2d(1, 2, 3, padding=1), lib.ReLU())
        return lib.Sequential(inner, lib.Sequential(lib.Sequential(lib.Linear(2, 2)), lib.Tanh()), lib.Identity())

    assert repr(make(nn)) == repr(make(torch.nn))


def test_summary():
    text = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * 49, 10).requires_grad_(False),
    ).summary((2, 1, 14, 14))  # fmt: skip
    assert text == (
        "layer    type         output shape    parameters\n"
        "------------------------------------------------\n"
        "(model)  Sequential   (2, 10)                  0\n"
        "0        Conv2d       (2, 8, 14, 14)          72\n"
        "1        BatchNorm2d  (2, 8, 14, 14)          16\n"
        "2        ReLU         (2, 8, 14, 14)           0\n"
        "3        MaxPool2d    (2, 8, 7, 7)             0\n"
        "4        Flatten      (2, 392)                 0\n"
        "5        Linear       (2, 10)              3,930\n"
        "------------------------------------------------\n"
        "4,018 parameters, 88 of them trained"
    )


def test_summary_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model(input_for()).sum().backward()
    model[1].eval()
    before, modes = everything(model), [m.training for m in model.modules()]
    grads, count, rng = [p.grad for p in model.parameters()], model[1].num_batches_tracked, tg.get_rng_state()
    values, grad_values = [a.copy() for a in before], [g.data.copy() for g in grads]
    model.summary((1, 3))  # one example: in training BatchNorm would refuse it
    model.summary(input_for())
    assert all(a is b for a, b in zip(everything(model), before, strict=True))
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    for a, b in zip((*before, *(g.data for g in grads)), (*values, *grad_values), strict=True):
        assert_array_equal(a, b)
    assert [m.training for m in model.modules()] == modes
    assert model[1].num_batches_tracked == count and tg.get_rng_state() == rng
    assert core.is_grad_enabled() and core.modes.hooks is None


def test_summary_of_an_input_that_fails_leaves_the_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    with pytest.raises(ValueError, match="Linear expected an input of shape"):
        model.summary((2, 5))
    assert all(m.training for m in model.modules()) and core.modes.hooks is None


def test_summary_takes_the_models_dtype_and_device(cuda_stand_in):
    assert "2 parameters" in nn.Linear(1, 1).double().summary((4, 1))
    assert "2 parameters" in nn.Linear(1, 1).cuda().summary((4, 1))
    assert "0 parameters, 0 of them trained" in nn.ReLU().summary((4, 1))


def test_summary_counts_shared_parameters_once_and_marks_unused_modules():
    model = Tied()
    model.unused = nn.ReLU()
    text = model.summary((1, 2))
    assert text.endswith("8 parameters, 8 of them trained")  # a.weight 4, a.bias 2, c.bias 2
    assert re.search(r"^c +Linear +\(1, 2\) +2$", text, re.M)
    assert re.search(r"^unused +ReLU +- +0$", text, re.M)


# ----- who listens


class Events(core.Listener):
    def __init__(self):
        self.heard = []

    def enter_module(self, module):
        self.heard.append(("enter", type(module).__name__))

    def exit_module(self, module, out):
        self.heard.append(("exit", type(module).__name__, getattr(out, "shape", None)))

    def apply(self, name, inputs, options, out, aux, node):
        self.heard.append(name)


def test_a_listener_hears_modules_begin_and_end():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with core.listening(Events()) as events:
        model(input_for())
    assert events.heard == [
        ("enter", "Sequential"),
        ("enter", "Linear"), "linear", ("exit", "Linear", (4, 2)),
        ("enter", "ReLU"), "relu", ("exit", "ReLU", (4, 2)),
        ("exit", "Sequential", (4, 2)),
    ]  # fmt: skip


def test_a_listener_hears_the_end_of_a_module_that_failed():
    model = nn.Sequential(nn.Linear(3, 2))
    with core.listening(Events()) as events, pytest.raises(ValueError, match="Linear expected"):
        model(input_for(4, 5))
    assert events.heard == [
        ("enter", "Sequential"), ("enter", "Linear"), ("exit", "Linear", None), ("exit", "Sequential", None),
    ]  # fmt: skip


def test_forward_passes_arguments_on():
    class Two(nn.Module):
        def forward(self, x, *, times=1):
            return x * times, times

    y, times = Two()(tg.ones(2), times=3)
    with core.listening(Events()):
        z, _ = Two()(tg.ones(2), times=3)
    assert times == 3
    assert_array_equal(y.data, z.data)
