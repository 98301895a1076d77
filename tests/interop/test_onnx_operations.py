"""Each operation as an ONNX file: valid, and the same numbers by every runtime and by the import, for other batch sizes too."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_runtimes import IN_GROUPS, RUNTIMES, Function, assert_agrees, check, onnx

import tinygrad_bn as tg
from tinygrad_bn import interop, nn, ops
from tinygrad_bn.core import Primitive
from tinygrad_bn.interop.onnx_semantics import MEANINGS
from tinygrad_bn.interop.onnx_table import TABLE

A = np.linspace(-2.0, 2.0, 12, dtype=np.float32).reshape(3, 4)
LARGE = np.linspace(0.5, 2.0, 100, dtype=np.float32)
EYE = np.eye(4, dtype=np.float32)


def positive(f):
    return lambda x: f(ops.abs(x) + 0.5)


# name: (function of x, shape of x without the batch)
CASES = {
    "add": (lambda x: x + A[0], (4,)),
    "add a number": (lambda x: 2.5 + x, (4,)),
    "sub": (lambda x: 1.0 - x, (4,)),
    "mul": (lambda x: x * A[1], (4,)),
    "div": (lambda x: x / A[1], (4,)),
    "neg": (ops.neg, (4,)),
    "pow": (positive(lambda x: x**2.5), (4,)),
    "pow of a number": (lambda x: 2.0**x, (4,)),
    "pow to an int": (lambda x: x**3, (4,)),
    "exp": (ops.exp, (4,)),
    "log": (positive(ops.log), (4,)),
    "log1p": (positive(ops.log1p), (4,)),
    "expm1": (ops.expm1, (4,)),
    "sqrt": (positive(ops.sqrt), (4,)),
    "rsqrt": (positive(ops.rsqrt), (4,)),
    "square": (ops.square, (4,)),
    "tanh": (ops.tanh, (4,)),
    "sigmoid": (ops.sigmoid, (4,)),
    "softplus": (ops.softplus, (4,)),
    "softplus of large numbers": (lambda x: ops.softplus(200.0 * x), (4,)),
    "erf": (ops.erf, (4,)),
    "silu": (ops.silu, (4,)),
    "gelu": (ops.gelu, (4,)),
    "abs": (ops.abs, (4,)),
    "sign": (ops.sign, (4,)),
    "relu": (ops.relu, (4,)),
    "leaky_relu": (lambda x: ops.leaky_relu(x, negative_slope=0.2), (4,)),
    "elu": (lambda x: ops.elu(x, alpha=0.7), (4,)),
    "maximum": (lambda x: ops.maximum(x, A[1]), (4,)),
    "maximum with a number": (lambda x: ops.maximum(x, 0.25), (4,)),
    "minimum": (lambda x: ops.minimum(A[1], x), (4,)),
    "where": (lambda x: ops.where(A[1] > 0, x, -1.5), (4,)),
    "clip": (lambda x: ops.clip(x, lo=-0.5, hi=0.75), (4,)),
    "clip below": (lambda x: ops.clip(x, lo=-0.5), (4,)),
    "clip above": (lambda x: ops.clip(x, hi=0.5), (4,)),
    "float32 and float64": (lambda x: x * np.float64(1.5) + np.arange(4.0), (4,)),
    "cast": (lambda x: x.double() * 0.1, (4,)),
    # reductions
    "sum": (lambda x: x.sum(axis=1), (4,)),
    "sum of all": (lambda x: x.sum(), (4,)),
    "sum over the batch": (lambda x: x.sum(axis=0, keepdims=True), (4,)),
    "sum over no axes": (lambda x: x.sum(axis=()), (4,)),
    "mean": (lambda x: x.mean(axis=(1, 2), keepdims=True), (2, 3)),
    "mean of all": (lambda x: x.mean(), (2, 3)),
    "var": (lambda x: x.var(axis=-1), (4,)),
    "var over no axes": (lambda x: x.var(axis=()), (4,)),
    "unbiased var over the batch": (lambda x: x.var(axis=0, ddof=1), (4,)),
    "max": (lambda x: x.max(axis=1), (4,)),
    "min": (lambda x: x.min(axis=(1, 2)), (2, 3)),
    "logsumexp": (lambda x: x.logsumexp(axis=1, keepdims=True), (4,)),
    "cumsum": (lambda x: x.cumsum(axis=-1), (4,)),
    "argmax": (lambda x: x.argmax(axis=1), (4,)),
    "argmax of all": (lambda x: x.argmax(), (4,)),
    # shapes
    "reshape": (lambda x: x.reshape(-1, 2, 6), (3, 4)),
    "reshape, the batch times 3": (lambda x: x.reshape(-1, 4), (3, 4)),
    "reshape by the length": (lambda x: x.reshape(len(x), 12), (3, 4)),
    "reshape to two lengths that follow the batch": (lambda x: ops.expand(x.mean(axis=0, keepdims=True), len(x), 4) * x, (4,)),
    "flatten": (lambda x: x.flatten(1), (3, 2, 2)),
    "flatten all": (lambda x: x.flatten(), (3, 2)),
    "squeeze": (lambda x: x.squeeze(1), (1, 4)),
    "unsqueeze": (lambda x: x.unsqueeze(1) * x.unsqueeze(2), (4,)),
    "transpose": (lambda x: x.transpose(0, 2, 1), (3, 4)),
    "transpose the batch": (lambda x: x.T, (4,)),
    "moveaxis": (lambda x: ops.moveaxis(x, 1, -1), (3, 4)),
    "flip": (lambda x: ops.flip(x, (1, 2)), (3, 4)),
    "expand": (lambda x: ops.expand(x.unsqueeze(1), -1, 3, -1), (4,)),
    "expand some of the batch": (lambda x: ops.expand(x[::2].unsqueeze(1), -1, 3, -1), (4,)),
    "large constants": (lambda x: x * LARGE + LARGE[::-1], (100,)),
    "a constant with NaN": (lambda x: x + np.array([0.0, np.nan, -np.inf, np.inf], np.float32), (4,)),
    "broadcast_to the batch": (lambda x: ops.broadcast_to(tg.tensor(A[0]), shape=x.shape) * x, (4,)),
    "broadcast_to twice the batch": (lambda x: ops.broadcast_to(tg.tensor(A[0]), shape=(2 * len(x), 4)), (4,)),
    "sum_to": (lambda x: ops.sum_to(x, shape=(1, 4)), (3, 4)),
    "concatenate": (lambda x: ops.concatenate([x, 2.0 * x, x], axis=1), (4,)),
    "concatenate along the batch": (lambda x: ops.concatenate([x, A], axis=0), (4,)),
    "stack": (lambda x: ops.stack([x, -x], axis=1), (4,)),
    "split": (lambda x: tuple(ops.split(x, 2, axis=1)), (4,)),
    "pad": (lambda x: ops.pad(x, pad_width=((0, 0), (1, 2)), value=-1.0), (4,)),
    "getitem, an int": (lambda x: x[:, 1], (3, 4)),
    "getitem, ints from the end": (lambda x: x[:, -1, -2], (3, 4)),
    "getitem, one of the batch": (lambda x: x[0], (4,)),
    "getitem, slices": (lambda x: x[:, 1:-1, ::2], (4, 5)),
    "getitem, backwards": (lambda x: x[:, ::-2, 3:0:-1], (4, 5)),
    "getitem, to the very front": (lambda x: x[..., 2::-1], (4, 5)),
    "getitem, beyond the end": (lambda x: x[:, -9:9], (4,)),
    "getitem, the ellipsis": (lambda x: x[..., 0], (3, 4)),
    "getitem, new axes": (lambda x: x[:, None, 1, :, None], (3, 4)),
    "getitem, every second of the batch": (lambda x: x[::2], (4,)),
    "getitem, an array": (lambda x: x[:, np.array([2, 0, -1])], (3, 4)),
    "getitem, a matrix of indices": (lambda x: x[:, np.array([[2, 0], [1, 1]])], (3, 4)),
    "getitem, an array and a slice": (lambda x: x[:, np.array([2, 0]), 1:3], (3, 4)),
    "embedding of what argmax found": (lambda x: ops.embedding(x.argmax(axis=1), tg.tensor(A.T)), (4,)),
    # products
    "matmul": (lambda x: x @ EYE[:, :2], (4,)),
    "matmul of batches": (lambda x: x @ x.swapaxes(1, 2), (3, 4)),
    "matmul with a vector": (lambda x: x @ A[0], (4,)),
    "linear": (lambda x: ops.linear(x, A[:, :4], A[0, :3]), (4,)),
    "linear without a bias": (lambda x: ops.linear(x, A), (4,)),
    "linear of more dimensions": (lambda x: ops.linear(x, A, A[0, :3]), (2, 4)),
    "einsum": (lambda x: ops.einsum("bij,bkj->bik", x, x), (3, 4)),
    "einsum with dots": (lambda x: ops.einsum("...j,kj->...k", x, A), (3, 4)),
    "einsum of a diagonal": (lambda x: ops.einsum("bii->bi", x), (3, 3)),
    "einsum that repeats": (lambda x: ops.einsum("bi,ci->bi", x, A[:1, :1]), (4,)),
    # normalisation and softmax
    "softmax": (ops.softmax, (4,)),
    "softmax over two axes": (lambda x: ops.softmax(x, axis=(1, 2)), (3, 4)),
    "log_softmax": (lambda x: ops.log_softmax(x, axis=1), (3, 4)),
    "log_softmax over two axes": (lambda x: ops.log_softmax(x, axis=(1, 2)), (3, 4)),
    "batch_norm of the batch": (lambda x: ops.batch_norm(x, A[0, :3], A[1, :3])[0], (3, 2)),
    "batch_norm composed": (lambda x: ops.batch_norm_composed(x, A[0, :3], A[1, :3])[0], (3, 2)),
    "batch_norm_inference without gamma": (lambda x: ops.batch_norm_inference(x, None, None, A[0], A[0] ** 2), (4,)),
    "batch_norm_inference without gamma, wide": (lambda x: ops.batch_norm_inference(x, None, None, LARGE, LARGE**2), (100,)),
    "layer_norm": (lambda x: ops.layer_norm(x, A[0], A[1]), (4,)),
    "layer_norm without gamma": (lambda x: ops.layer_norm(x, axes=(1, 2)), (3, 4)),
    "layer_norm over an axis that is not the last": (lambda x: ops.layer_norm(x, A[:, 0], A[:, 1], axes=1), (3, 4)),
    "group_norm": (lambda x: ops.group_norm(x, A[0], A[1], 2), (4, 3, 2)),
    "group_norm without gamma": (lambda x: ops.group_norm(x, num_groups=2), (4, 3)),
    # convolution and pooling
    "conv1d": (lambda x: ops.conv1d(x, A.reshape(2, 2, 3), A[0, :2], 2, 1, 2), (2, 9)),
    "conv2d that is reshaped as conv1d would": (
        lambda x: ops.conv2d(x.reshape(-1, 2, 3, 4), tg.tensor(A[:2]).reshape(1, 2, 2, 2)).reshape(-1, 1, 6), (2, 12)),
    "conv2d": (lambda x: ops.conv2d(x, A.reshape(2, 1, 2, 3), A[0, :2], (2, 1), (0, 2), (1, 2), 2), (2, 5, 6)),
    "conv_transpose2d": (
        lambda x: ops.conv_transpose2d(x, A.reshape(1, 2, 2, 3), tg.tensor(A[0, :2]), (2, 3), 1, (1, 0)), (1, 4, 3)),
    "conv_transpose2d, an array as its bias": (
        lambda x: ops.conv_transpose2d(x, A.reshape(1, 2, 2, 3), A[0, :2], (2, 3), 1, (1, 0)), (1, 4, 3)),
    "conv_transpose2d in groups": (
        lambda x: ops.conv_transpose2d(x, A.reshape(2, 1, 2, 3), tg.tensor(A[0, :2]), 2, 1, 0, 2), (2, 4, 3)),
    "conv_transpose2d, spread": (lambda x: ops.conv_transpose2d(x, A.reshape(2, 1, 2, 3), dilation=(2, 1)), (2, 4, 3)),
    "max_pool2d": (lambda x: ops.max_pool2d(x, 3, 2, 1), (2, 7, 6)),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, (2, 3), (1, 2), (0, 1)), (2, 7, 6)),
    "avg_pool2d of all": (lambda x: ops.avg_pool2d(x, (7, 6)), (2, 7, 6)),
    "adaptive_avg_pool2d": (lambda x: ops.adaptive_avg_pool2d(x, (3, 4)), (2, 7, 6)),
    # losses
    "cross_entropy of the likeliest": (lambda x: ops.cross_entropy(x, x.argmax(axis=1)), (4,)),
    "cross_entropy, smoothed": (lambda x: ops.cross_entropy(x, x.argmax(axis=1), "none", 0.2), (4,)),
    "mse_loss": (lambda x: ops.mse_loss(x, ops.flip(x, 1)), (4,)),
    "bce_with_logits": (lambda x: ops.bce_with_logits(x, ops.sigmoid(2.0 * x), "sum"), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_runtime_agrees(name, rng, tmp_path):
    f, shape = CASES[name]
    model = Function(f)
    interop.export_onnx(model, rng.standard_normal((3, *shape), dtype=np.float32), tmp_path / "model.onnx")
    check(tmp_path / "model.onnx")
    for n in (1, 3, 5):
        if n == 1 and "unbiased" in name:
            continue  # no variance of one value
        x = rng.standard_normal((n, *shape), dtype=np.float32)
        assert_agrees(model, tmp_path / "model.onnx", x, runtimes=IN_GROUPS if "in groups" in name else RUNTIMES)


def test_with_a_fixed_batch_it_is_the_same(rng, tmp_path):
    for f, shape in CASES.values():
        x = rng.standard_normal((3, *shape), dtype=np.float32)
        interop.export_onnx(Function(f), x, tmp_path / "model.onnx", dynamic_batch=False)
        assert_agrees(Function(f), tmp_path / "model.onnx", x, runtimes=IN_GROUPS)
        declared = check(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_value for d in declared] == list(x.shape)


# What has no counterpart: random numbers, and what only gradients consist of.
WITHOUT = {"avg_pool2d_spread", "conv2d_weight", "dropout", "max_pool2d_gather", "max_pool2d_scatter", "put"}


def test_every_operation_has_an_entry_or_a_reason():
    primitives = {
        f.primitive.name
        for module in (ops.elementwise, ops.reduce, ops.shape, ops.linalg, ops.conv, ops.pool, ops.norm, ops.loss, tg.core)
        for f in vars(module).values()
        if isinstance(getattr(f, "primitive", None), Primitive)
    }
    merged = {"conv1d", "conv_transpose2d"}  # made of several by the export
    assert len(primitives) > 60 and primitives - WITHOUT == set(TABLE) - merged


def test_every_case_of_the_table_is_written_by_a_case_here(tmp_path, monkeypatch):
    seen = set()
    for op, entry in list(TABLE.items()):
        monkeypatch.setitem(TABLE, op, lambda e, step, op=op, entry=entry: (seen.add(op), entry(e, step))[1])
    for f, shape in CASES.values():
        interop.export_onnx(Function(f), np.ones((2, *shape), np.float32), tmp_path / "model.onnx")
    assert set(TABLE) - seen == {"sum_pixels", "to_device"}  # a bias's gradient; and nothing leaves the CPU here


def test_to_device_is_nothing_in_a_file(cuda_stand_in, tmp_path):
    model = Function(lambda x: ops.relu(x.to("cuda")) * 2.0)
    interop.export_onnx(model, np.ones((2, 3), np.float32), tmp_path / "model.onnx")
    assert [n.op_type for n in check(tmp_path / "model.onnx").graph.node] == ["Identity", "Relu", "Constant", "Mul"]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions(dtype, rng, tmp_path):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 5), nn.LayerNorm(5),
        nn.GELU(),
    )  # fmt: skip
    model.to(dtype=dtype)
    x = rng.standard_normal((3, 2, 6, 6)).astype(dtype)
    interop.export_onnx(model, x, tmp_path / "model.onnx")
    check(tmp_path / "model.onnx")
    runtimes = {k: v for k, v in RUNTIMES.items() if k != "onnxruntime"}  # which has no such convolution on the CPU
    assert_agrees(model, tmp_path / "model.onnx", x, runtimes=runtimes, atol=5e-3 if dtype == "float16" else 1e-6)


def test_integer_inputs(rng, tmp_path):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    for dtype in (np.int32, np.int64, np.uint8):
        indices = rng.integers(0, 9, (3, 3)).astype(dtype)
        interop.export_onnx(model, indices, tmp_path / "model.onnx")
        check(tmp_path / "model.onnx")
        assert_agrees(model, tmp_path / "model.onnx", rng.integers(0, 9, (5, 3)).astype(dtype))


def test_integers_are_promoted_as_numpy_does(tmp_path):
    model = Function(lambda i: (i / 2, i * 1.5, i.sum(axis=1), i.mean(axis=1), ops.exp(i), i + 1, ops.maximum(i, 2)))
    interop.export_onnx(model, np.arange(6).reshape(2, 3), tmp_path / "model.onnx")
    assert_agrees(model, tmp_path / "model.onnx", np.arange(9).reshape(3, 3))


def test_several_inputs_and_outputs(rng, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, a, b):
            y = self.left(a) + self.right(b)
            return y, a, y, ops.relu(y)

    model = Two()
    inputs = [rng.standard_normal((2, n), dtype=np.float32) for n in (3, 5)]
    interop.export_onnx(model, tuple(inputs), tmp_path / "model.onnx")
    graph = check(tmp_path / "model.onnx").graph
    assert [i.name for i in graph.input] == ["input_1", "input_2"]
    assert [o.name for o in graph.output] == ["output_1", "output_2", "output_3", "output_4"]
    assert_agrees(model, tmp_path / "model.onnx", *(rng.standard_normal((4, n), dtype=np.float32) for n in (3, 5)))


def test_layers_of_every_kind(rng, tmp_path):
    image = (2, 8, 8)
    layers = {
        nn.AdaptiveAvgPool2d(3): image, nn.AvgPool2d(2): image, nn.BatchNorm1d(4): (4,), nn.BatchNorm2d(2): image,
        nn.BatchNorm3d(2): (2, 3, 3, 3), nn.BatchNorm2d(2, affine=False): image, nn.BatchNorm2d(2, momentum=None): image,
        nn.BatchNorm2d(2, track_running_stats=False): image, nn.Conv1d(2, 3, 3): (2, 8), nn.Conv2d(2, 3, 3): image,
        nn.ConvTranspose2d(2, 3, 3): image, nn.Dropout(): (4,), nn.ELU(): (4,), nn.Flatten(2): image, nn.GELU(): (4,),
        nn.GroupNorm(1, 2): image, nn.Identity(): (4,), nn.LayerNorm((8, 8)): image, nn.LeakyReLU(): (4,),
        nn.Linear(4, 3): (4,), nn.LogSoftmax(): (4,), nn.MaxPool2d(2): image, nn.ReLU(): (4,), nn.SiLU(): (4,),
        nn.Sigmoid(): (4,), nn.Softmax(): (4,), nn.Softplus(): (4,), nn.Tanh(): (4,),
        nn.BatchRenorm1d(4): (4,), nn.BatchRenorm2d(2): image, nn.BatchRenorm3d(2): (2, 3, 3, 3),
        nn.GhostBatchNorm1d(4, 3): (4,), nn.GhostBatchNorm2d(2, 3): image, nn.GhostBatchNorm3d(2, 3): (2, 3, 3, 3),
    }  # fmt: skip
    assert {type(layer).__name__ for layer in layers} | {
        "BCEWithLogitsLoss", "Buffer", "CrossEntropyLoss", "Embedding", "MSELoss", "Module", "ModuleList", "Parameter",
        "Sequential", "init",
    } == set(nn.__all__)  # fmt: skip
    for layer, shape in layers.items():
        x = rng.standard_normal((3, *shape), dtype=np.float32)
        layer.train()(tg.tensor(x))  # so that running statistics are not 0 and 1
        interop.export_onnx(layer, x, tmp_path / "model.onnx")
        check(tmp_path / "model.onnx")
        assert_agrees(layer, tmp_path / "model.onnx", rng.standard_normal((2, *shape), dtype=np.float32))


def test_what_is_written_is_known_to_the_import(tmp_path):
    written = set()
    for f, shape in CASES.values():
        interop.export_onnx(Function(f), np.ones((2, *shape), np.float32), tmp_path / "model.onnx")
        written |= {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert written - {"Constant"} <= set(MEANINGS)
    # What the import knows beyond that: other ways to write the same.
    assert set(MEANINGS) - written == {"Softplus"}
