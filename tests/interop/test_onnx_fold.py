"""Folding BatchNorm into the layer before it: exact where it is done, and not done where it would be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_runtimes import IN_GROUPS, RUNTIMES, Function, assert_agrees, check, onnx

import tinygrad_bn as tg
from tinygrad_bn import interop, nn


def lived(model, rng, shape):
    """The model with statistics and affine parameters that are not 0 and 1."""
    for m in model.modules():
        for name in ("running_mean", "running_var", "weight", "bias"):
            t = getattr(m, name, None)
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and t is not None:
                drawn = rng.uniform(0.5, 2.0, t.shape).astype(np.float32)
                if isinstance(t, nn.Parameter):
                    t.data = drawn
                else:
                    setattr(m, name, nn.Buffer(drawn))
    return model.eval(), rng.standard_normal((3, *shape), dtype=np.float32)


FOLDS = {
    "Linear": ([nn.Linear(5, 4), nn.BatchNorm1d(4)], (5,)),
    "Linear without a bias": ([nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)], (5,)),
    "BatchNorm of a large eps": ([nn.Linear(5, 4), nn.BatchNorm1d(4, eps=0.5)], (5,)),
    "BatchNorm without gamma": ([nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False)], (5,)),
    "Conv1d": ([nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)], (3, 8)),
    "Conv2d": ([nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)], (3, 6, 6)),
    "Conv2d in groups": ([nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], (4, 6, 6)),
    "ConvTranspose2d": ([nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), nn.BatchNorm2d(4)], (3, 5, 4)),
    "ConvTranspose2d in groups": ([nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)], (4, 5, 4)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_a_batchnorm_after_a_layer_is_taken_in(name, rng, tmp_path):
    layers, shape = FOLDS[name]
    model, x = lived(nn.Sequential(*layers), rng, shape)
    interop.export_onnx(model, x, tmp_path / "model.onnx", fold_batchnorm=True)
    (node,) = check(tmp_path / "model.onnx").graph.node
    assert node.op_type == {"Linear": "Gemm"}.get(type(layers[0]).__name__, type(layers[0]).__name__.rstrip("12d"))
    assert [n.rpartition(".")[2] for n in node.input[1:]] == ["folded", "folded"]  # a weight and a bias of new values
    runtimes = IN_GROUPS if name == "ConvTranspose2d in groups" else RUNTIMES
    assert_agrees(model, tmp_path / "model.onnx", x, runtimes=runtimes)
    # The plain file has one node more, and the same numbers.
    interop.export_onnx(model, x, tmp_path / "plain.onnx")
    operations = [n.op_type for n in check(tmp_path / "plain.onnx").graph.node if n.op_type != "Constant"]
    assert operations == [node.op_type, "BatchNormalization"]
    assert_agrees(model, tmp_path / "plain.onnx", x, runtimes=runtimes)


def kept(model, x, path):
    """How many BatchNorms a folded file still has; its outputs are right."""
    interop.export_onnx(model, x, path, fold_batchnorm=True)
    assert_agrees(model, path, x)
    return [n.op_type for n in check(path).graph.node].count("BatchNormalization")


def test_a_batchnorm_before_a_layer_stays(rng, tmp_path):
    # By the same algebra it could go into the weights; but the zeros of the padding would then be normalised too.
    model, x = lived(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), rng, (3, 5, 5))
    assert kept(model, x, tmp_path / "model.onnx") == 1


def test_what_is_read_elsewhere_too_stays(rng, tmp_path):
    class Branch(nn.Module):
        def __init__(self):
            self.layer, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

        def forward(self, x):
            y = self.layer(x)
            return self.norm(y) + y

    class Both(Branch):
        def forward(self, x):
            y = self.layer(x)
            return self.norm(y), y

    for make in (Branch, Both):
        model, x = lived(make(), rng, (5,))
        assert kept(model, x, tmp_path / "model.onnx") == 1


def test_a_layer_used_twice_keeps_its_weights(rng, tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            self.layer, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

        def forward(self, x):
            return self.norm(self.layer(x)) + self.layer(2.0 * x)

    model, x = lived(Twice(), rng, (5,))
    assert kept(model, x, tmp_path / "model.onnx") == 0
    names = [t.name for t in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert names == ["layer.weight.folded", "layer.bias.folded", "layer.weight", "layer.bias"]


def test_channels_that_are_not_the_layers_outputs_stay(rng, tmp_path):
    # (N, L, in) -> (N, L, out): here BatchNorm's channels are the L positions.
    model, x = lived(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(3)), rng, (3, 5))
    assert kept(model, x, tmp_path / "model.onnx") == 1


def test_something_between_them_stays(rng, tmp_path):
    model, x = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), rng, (3, 5, 5))
    assert kept(model, x, tmp_path / "model.onnx") == 1


def test_weights_that_depend_on_the_input_stay(rng, tmp_path):
    norm = nn.BatchNorm1d(4)

    class Hyper(nn.Module):
        def __init__(self):
            self.norm = norm

        def forward(self, x):
            return self.norm(tg.linear(x, x.sum() * tg.ones(4, 5)))

    model, x = lived(Hyper(), rng, (5,))
    assert kept(model, x, tmp_path / "model.onnx") == 1


def test_the_scale_is_computed_in_float64(tmp_path):
    # 3e38 / sqrt(1e-30) overflows in float32 long before the product with a tiny weight is taken.
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    model[0].weight.data = np.full((1, 1), 1e-30, np.float32)
    model[0].bias.data = np.zeros(1, np.float32)
    model[1].weight.data = np.full(1, 3e38, np.float32)
    model[1].running_var = nn.Buffer(np.full(1, 1e-30, np.float32))
    interop.export_onnx(model, np.ones((2, 1), np.float32), tmp_path / "model.onnx", fold_batchnorm=True)
    weight = onnx.numpy_helper.to_array(onnx.load(tmp_path / "model.onnx").graph.initializer[0])
    assert weight[0, 0] == pytest.approx(3e23, rel=1e-5)


def test_batch_statistics_are_not_folded(rng, tmp_path):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    x = rng.standard_normal((6, 5), dtype=np.float32)
    interop.export_onnx(model, x, tmp_path / "model.onnx", fold_batchnorm=True)
    assert_agrees(model, tmp_path / "model.onnx", x)


def test_a_function_of_its_own(rng, tmp_path):
    """Folding reads the operations, not the layers: what a function calls is folded as well."""
    w, statistics = rng.standard_normal((4, 5), dtype=np.float32), np.arange(1.0, 5.0, dtype=np.float32)
    model = Function(lambda x: tg.batch_norm_inference(tg.linear(x, w), None, None, statistics, statistics))
    assert kept(model, rng.standard_normal((3, 5), dtype=np.float32), tmp_path / "model.onnx") == 0
