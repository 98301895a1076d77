"""The models of the package as ONNX files: valid, the same outputs everywhere, with BatchNorm folded and not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_runtimes import RUNTIMES, answer, assert_agrees, check, onnx

import tinygrad_bn as tg
from tinygrad_bn import interop, models, nn, optim

SHAPE = (1, 28, 28)
MODELS = {"mlp": models.mlp, "cnn": models.cnn, "resnet20": models.resnet20}


def trained(make, rng, steps=3):
    """A model after a few steps: its running statistics, gammas and betas are no longer 0 and 1."""
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        x, labels = rng.standard_normal((16, *SHAPE), dtype=np.float32), rng.integers(0, 10, 16)
        loss = tg.cross_entropy(model(tg.tensor(x)), labels)
        model.zero_grad()
        loss.backward()
        optimizer.step()
    with tg.no_grad():  # until the running statistics have forgotten their start
        for _ in range(10 * steps):
            model(tg.tensor(rng.standard_normal((16, *SHAPE), dtype=np.float32)))
    return model


@pytest.mark.parametrize("folding", [False, True], ids=["as it is", "folded"])
@pytest.mark.parametrize("name", MODELS)
def test_every_runtime_agrees(name, folding, rng, tmp_path):
    model = trained(MODELS[name], rng)
    path = tmp_path / "model.onnx"
    interop.export_onnx(model, rng.standard_normal((2, *SHAPE), dtype=np.float32), path, fold_batchnorm=folding)
    operations = [node.op_type for node in check(path).graph.node]
    norms = sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules())
    assert norms > 2 and operations.count("BatchNormalization") == (0 if folding else norms)
    for n in (1, 7, 64):
        x = rng.standard_normal((n, *SHAPE), dtype=np.float32)
        (expected,) = answer(model, x)
        assert 0.1 < np.abs(expected).max() < 10  # 1e-5 means something
        for runtime, run in RUNTIMES.items():
            (got,) = run(path, x)
            worst = np.abs(got - expected).max()
            how = "folded" if folding else "as it is"
            print(f"{name}, {how}, batch {n}, {runtime}: off by {worst:.1e} of {np.abs(expected).max():.1f}")
            assert worst <= 1e-5, (runtime, n, worst)


@pytest.mark.parametrize("norm", ["layer", "group", None])
@pytest.mark.parametrize("name", MODELS)
def test_other_normalisations(name, norm, rng, tmp_path):
    model = trained(lambda: MODELS[name](norm=norm), rng, steps=1)
    interop.export_onnx(model, rng.standard_normal((1, *SHAPE), dtype=np.float32), tmp_path / "model.onnx")
    check(tmp_path / "model.onnx")
    assert_agrees(model, tmp_path / "model.onnx", rng.standard_normal((3, *SHAPE), dtype=np.float32))


def test_the_file_says_what_it_is(tmp_path):
    model = models.cnn()
    interop.export_onnx(model, np.zeros((1, *SHAPE), np.float32), tmp_path / "model.onnx")
    file = check(tmp_path / "model.onnx")
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 17)] and file.ir_version == 8
    assert file.producer_name == "tinygrad_bn" and file.graph.name == "Sequential"
    for value, name, rest in ((file.graph.input[0], "input", [1, 28, 28]), (file.graph.output[0], "output", [10])):
        batch, *lengths = value.type.tensor_type.shape.dim
        assert value.name == name and batch.dim_param == "batch" and [d.dim_value for d in lengths] == rest
    # Initializers are the parameters, and the statistics of BatchNorm, under their names; whole, and in order.
    state = model.state_dict()
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in file.graph.initializer}
    assert set(arrays) == {k for k in state if not k.endswith("num_batches_tracked")}
    assert all(np.array_equal(arrays[k], state[k]) for k in arrays)
    # Nodes are called after their modules, and Netron can show every shape.
    assert [node.name for node in file.graph.node][:3] == ["0/Conv", "1/BatchNormalization", "2/Relu"]
    assert len(file.graph.value_info) == len(file.graph.node) - 1
    (norm,) = [node for node in file.graph.node if node.name == "1/BatchNormalization"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in norm.attribute}
    assert attributes["training_mode"] == 0 and attributes["epsilon"] == np.float32(1e-5)
    assert attributes["momentum"] == np.float32(0.9)  # of the old value, where ours is 0.1, of the new one


def test_a_momentum_of_none_is_the_default_of_onnx(tmp_path):
    interop.export_onnx(nn.BatchNorm1d(3, momentum=None), np.zeros((2, 3), np.float32), tmp_path / "model.onnx")
    (node,) = check(tmp_path / "model.onnx").graph.node
    assert {a.name: a.f for a in node.attribute}["momentum"] == np.float32(0.9)


def test_the_model_stays_as_it_was(rng, tmp_path):
    class Drawing(nn.Module):
        def forward(self, x):
            tg.randn(3)
            return x

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2), Drawing())
    model(tg.tensor(rng.standard_normal((8, 4), dtype=np.float32))).sum().backward()
    model[2].eval()  # each module has a mode of its own
    before, grads = model.state_dict(), [p.grad.numpy().copy() for p in model.parameters()]
    numbers = tg.get_rng_state()
    interop.export_onnx(model, np.ones((2, 4), np.float32), tmp_path / "model.onnx")
    assert [m.training for m in model.modules()] == [True, True, True, False, True, True]
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())
    assert all(np.array_equal(g, p.grad.numpy()) for g, p in zip(grads, model.parameters(), strict=True))
    assert tg.get_rng_state() == numbers
    assert "Dropout" not in {node.op_type for node in check(tmp_path / "model.onnx").graph.node}


def test_the_same_file_each_time(tmp_path):
    model = models.mlp()
    for name in ("a", "b"):
        interop.export_onnx(model, np.zeros((1, 784), np.float32), str(tmp_path / name), fold_batchnorm=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_model_on_cuda(cuda_stand_in, rng, tmp_path):
    model = models.cnn().cuda()
    x = rng.standard_normal((2, *SHAPE), dtype=np.float32)
    interop.export_onnx(model, tg.tensor(x, device="cuda"), tmp_path / "model.onnx", fold_batchnorm=True)
    check(tmp_path / "model.onnx")
    model.cpu()
    assert_agrees(model, tmp_path / "model.onnx", x)


def test_a_shared_layer_is_one_initializer(rng, tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return tg.matmul(self.layer(self.layer(x)), self.layer.weight)

    interop.export_onnx(Shared(), np.zeros((2, 4), np.float32), tmp_path / "model.onnx")
    assert [t.name for t in check(tmp_path / "model.onnx").graph.initializer] == ["layer.weight"]
    model = Shared()
    interop.export_onnx(model, np.zeros((2, 4), np.float32), tmp_path / "model.onnx")
    assert_agrees(model, tmp_path / "model.onnx", rng.standard_normal((3, 4), dtype=np.float32))


def test_names_that_the_file_uses_itself(rng, tmp_path):
    class Named(nn.Module):
        def __init__(self):
            self.input, self.output = (nn.Parameter(rng.standard_normal(4).astype(np.float32)) for _ in range(2))
            self.constant = nn.Parameter(rng.standard_normal(4).astype(np.float32))

        def forward(self, x):
            return (x * self.input + self.output) * 0.5 * self.constant + np.ones(4, np.float32)

    model = Named()
    interop.export_onnx(model, np.zeros((2, 4), np.float32), tmp_path / "model.onnx")
    assert_agrees(model, tmp_path / "model.onnx", rng.standard_normal((3, 4), dtype=np.float32))
    graph = check(tmp_path / "model.onnx").graph
    names = [*(t.name for t in graph.initializer), graph.input[0].name, *(o for n in graph.node for o in n.output)]
    assert len(set(names)) == len(names) and names[-1] == "output"


def test_an_example_that_is_given_twice_is_two_inputs(rng, tmp_path):
    class Difference(nn.Module):
        def forward(self, a, b):
            return 2.0 * a - b

    x = np.ones((2, 3), np.float32)
    interop.export_onnx(Difference(), (x, x), tmp_path / "model.onnx")
    check(tmp_path / "model.onnx")
    assert_agrees(Difference(), tmp_path / "model.onnx", *rng.standard_normal((2, 4, 3)).astype(np.float32))


def test_a_buffer_that_is_no_statistic_is_a_constant(rng, tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            self.scale, self.weight = nn.Buffer(np.full(3, 2.0, np.float32)), nn.Parameter(np.ones(3, np.float32))

        def forward(self, x):
            return x * self.scale * self.weight

    interop.export_onnx(Scaled(), np.ones((2, 3), np.float32), tmp_path / "model.onnx")
    assert [t.name for t in check(tmp_path / "model.onnx").graph.initializer] == ["weight"]
    assert [name for name, _ in interop.import_onnx(tmp_path / "model.onnx").named_parameters()] == ["weight"]
    assert_agrees(Scaled(), tmp_path / "model.onnx", rng.standard_normal((4, 3), dtype=np.float32))
