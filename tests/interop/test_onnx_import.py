"""ONNX files as models: each operation as ONNX means it, weights that train, and errors that name what is not known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_runtimes import assert_agrees, by_onnxruntime, by_reference, onnx

import tinygrad_bn as tg
from tinygrad_bn import interop, models, nn, optim
from tinygrad_bn.interop.onnx_semantics import MEANINGS

helper = onnx.helper


def file_of(path, nodes, inputs, outputs=1, initializers=None, opset=17):
    """A file of these nodes; "x0" ... are its inputs, "y0" ... its outputs, without declared shapes but the inputs'."""
    dtypes = onnx.helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info(f"x{i}", dtypes(x.dtype), x.shape) for i, x in enumerate(inputs)],
        [helper.make_value_info(f"y{i}", onnx.TypeProto()) for i in range(outputs)],
        [onnx.numpy_helper.from_array(a, n) for n, a in (initializers or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in model.graph.output:  # the checker wants a dtype and a shape
        value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
        value.type.tensor_type.shape.SetInParent()
    path.write_bytes(model.SerializeToString())
    return path


def one(path, op, inputs, attributes=None, constants=(), outputs=1, opset=17):
    """A file of one node; ``constants`` are further inputs, initializers."""
    names = [f"x{i}" for i in range(len(inputs))] + [None if c is None else f"c{i}" for i, c in enumerate(constants)]
    node = helper.make_node(op, ["" if n is None else n for n in names], [f"y{i}" for i in range(outputs)], **attributes or {})
    arrays = {f"c{i}": c for i, c in enumerate(constants) if c is not None}
    return file_of(path, [node], inputs, outputs, arrays, opset)


def f(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


IMAGE, KERNEL = f(2, 3, 7, 8), f(4, 3, 3, 2, seed=1)
# name: (operation, inputs, attributes, constants)
CASES = {
    "Conv with more padding after": ("Conv", [IMAGE], {"pads": [0, 1, 2, 0], "strides": [2, 1]}, [KERNEL, f(4)]),
    "Conv, SAME_UPPER": ("Conv", [IMAGE], {"auto_pad": "SAME_UPPER", "strides": [2, 3]}, [KERNEL]),
    "Conv, SAME_LOWER": ("Conv", [IMAGE], {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, [KERNEL]),
    "Conv, VALID": ("Conv", [IMAGE], {"auto_pad": "VALID", "dilations": [2, 1]}, [KERNEL]),
    "Conv of one axis": ("Conv", [f(2, 3, 9)], {"pads": [2, 1]}, [f(4, 3, 3), f(4)]),
    "ConvTranspose with more padding after": (
        "ConvTranspose", [IMAGE], {"pads": [0, 1, 1, 0], "strides": [2, 2]}, [f(3, 2, 3, 3), f(2)]),
    "ConvTranspose with output padding": (
        "ConvTranspose", [IMAGE], {"pads": [1, 1, 1, 1], "strides": [2, 3], "output_padding": [1, 2]}, [f(3, 2, 3, 3)]),
    "MaxPool with more padding after": ("MaxPool", [IMAGE], {"kernel_shape": [2, 3], "pads": [0, 1, 1, 2]}, []),
    "MaxPool, SAME_UPPER": ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, []),
    "AveragePool that leaves padding out": ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, []),
    "AveragePool, more padding after": ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]}, []),
    "AveragePool that counts padding": (
        "AveragePool", [IMAGE], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1, "strides": [2, 1]}, []),
    "GlobalAveragePool": ("GlobalAveragePool", [IMAGE], {}, []),
    "Gemm": ("Gemm", [f(5, 3)], {"alpha": 0.5, "beta": 2.0, "transA": 1}, [f(5, 4), f(4)]),
    "Gemm with a column": ("Gemm", [f(3, 5)], {"transB": 1}, [f(4, 5), f(3, 1)]),
    "Gemm without C": ("Gemm", [f(3, 5)], {}, [f(5, 4)]),
    "Softmax along an axis": ("Softmax", [f(2, 3, 4)], {"axis": 1}, []),
    "Softmax by default": ("Softmax", [f(2, 3, 4)], {}, []),
    "ReduceSum of all": ("ReduceSum", [f(2, 3, 4)], {"keepdims": 0}, []),
    "ReduceSum of nothing": ("ReduceSum", [f(2, 3, 4)], {"noop_with_empty_axes": 1}, [i()]),
    "ReduceSum from the end": ("ReduceSum", [f(2, 3, 4)], {}, [i(-1, 0)]),
    "ReduceMean by default": ("ReduceMean", [f(2, 3, 4)], {}, []),
    "ReduceMax from the end": ("ReduceMax", [f(2, 3, 4)], {"axes": [-2], "keepdims": 0}, []),
    "CumSum, reversed": ("CumSum", [f(2, 5)], {"reverse": 1}, [np.array(1)]),
    "CumSum, exclusive": ("CumSum", [f(2, 5)], {"exclusive": 1}, [np.array(-1)]),
    "CumSum, both": ("CumSum", [f(2, 5)], {"exclusive": 1, "reverse": 1}, [np.array(1)]),
    "ArgMax by default": ("ArgMax", [np.round(f(4, 5))], {}, []),
    "ArgMax, the last of equals": ("ArgMax", [np.round(f(4, 9))], {"axis": -1, "keepdims": 0, "select_last_index": 1}, []),
    "Reshape that copies a length": ("Reshape", [f(2, 3, 4)], {}, [i(0, -1)]),
    "Reshape to nothing": ("Reshape", [f(0, 3)], {"allowzero": 1}, [i(3, 0)]),
    "Flatten in the middle": ("Flatten", [f(2, 3, 4)], {"axis": 2}, []),
    "Flatten at the front": ("Flatten", [f(2, 3, 4)], {"axis": 0}, []),
    "Flatten from the end": ("Flatten", [f(2, 3, 4)], {"axis": -1}, []),
    "Transpose by default": ("Transpose", [f(2, 3, 4)], {}, []),
    "Squeeze by default": ("Squeeze", [f(1, 3, 1)], {}, []),
    "Squeeze from the end": ("Squeeze", [f(1, 3, 1)], {}, [i(-1)]),
    "Unsqueeze, from the end": ("Unsqueeze", [f(3, 4)], {}, [i(-1, 0)]),
    "Expand both ways": ("Expand", [f(3, 1)], {}, [i(2, 1, 4)]),
    "Concat from the end": ("Concat", [f(2, 3), f(2, 1)], {"axis": -1}, []),
    "Slice, backwards": ("Slice", [f(4, 5)], {}, [i(-1, 9), i(-9, 1), i(0, 1), i(-1, -2)]),
    "Slice of the first axes": ("Slice", [f(4, 5)], {}, [i(1), i(3)]),
    "Gather from the end": ("Gather", [f(3, 4)], {"axis": -1}, [np.array([[0, -1], [2, 2]])]),
    "Gather one": ("Gather", [f(3, 4)], {}, [np.array(-1)]),
    "Pad": ("Pad", [f(2, 3)], {}, [i(0, 1, 2, 0), np.float32(1.5)]),
    "Pad with zeros": ("Pad", [f(2, 3)], {}, [i(0, 1, 2, 0)]),
    "Clip below": ("Clip", [f(4, 5)], {}, [np.float32(0.25)]),
    "Clip above": ("Clip", [f(4, 5)], {}, [None, np.float32(0.25)]),
    "Max of three": ("Max", [f(2, 3), f(3, seed=1), f(2, 1, seed=2)], {}, []),
    "Min of one": ("Min", [f(2, 3)], {}, []),
    "Pow by integers": ("Pow", [f(2, 3)], {}, [i(2)]),
    "Pow of integers": ("Pow", [np.array([2, 3])], {}, [np.float32(2.5)]),
    "Div of integers": ("Div", [np.array([7, -7, 7, -7])], {}, [i(2, 2, -2, -2)]),
    "LeakyRelu by default": ("LeakyRelu", [f(2, 3)], {}, []),
    "Elu by default": ("Elu", [f(2, 3)], {}, []),
    "Softplus": ("Softplus", [f(2, 3)], {}, []),
    "Cast to ints": ("Cast", [3.0 * f(2, 3)], {"to": onnx.TensorProto.INT32}, []),
    "Cast to booleans": ("Cast", [np.round(f(2, 3))], {"to": onnx.TensorProto.BOOL}, []),
    "Shape of the last axes": ("Shape", [f(2, 3, 4)], {"start": -2}, []),
    "Shape of the first": ("Shape", [f(2, 3, 4)], {"start": 0, "end": 1}, []),
    "Where": ("Where", [np.array([True, False, True]), f(2, 3), f(3)], {}, []),
    "Einsum": ("Einsum", [f(2, 3), f(3, 4)], {"equation": "ij, jk"}, []),
    "InstanceNormalization": ("InstanceNormalization", [IMAGE], {}, [f(3), f(3, seed=1)]),
    "LayerNormalization by default": ("LayerNormalization", [f(2, 3, 4)], {}, [f(4), f(4, seed=1)]),
    "LayerNormalization over two axes": ("LayerNormalization", [f(2, 3, 4)], {"axis": 1, "epsilon": 0.1}, [f(3, 4)]),
    "LayerNormalization with broadcasting": ("LayerNormalization", [f(2, 3, 4)], {"axis": 1}, [f(4), f(3, 1)]),
    "BatchNormalization": ("BatchNormalization", [IMAGE], {"epsilon": 0.01}, [f(3), f(3), f(3), f(3) ** 2]),
    "NegativeLogLikelihoodLoss": ("NegativeLogLikelihoodLoss", [f(3, 4), np.array([3, 0, 1])], {}, []),
    "NegativeLogLikelihoodLoss, summed": (
        "NegativeLogLikelihoodLoss", [f(3, 4), np.array([3, 0, 1])], {"reduction": "sum"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operation_means_what_onnx_says(name, tmp_path):
    op, inputs, attributes, constants = CASES[name]
    path = one(tmp_path / "model.onnx", op, inputs, attributes, constants)
    model = interop.import_onnx(path)
    # onnx 1.17's reference evaluator does not know auto_pad.
    (expected,) = (by_onnxruntime if "auto_pad" in attributes else by_reference)(path, *inputs)
    for given_ in (inputs, [tg.tensor(x) for x in inputs]):
        out = model(*given_)
        assert isinstance(out, tg.Tensor) and out.shape == expected.shape and out.dtype == expected.dtype
        np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"])
def test_reductions_of_later_opsets(op, tmp_path):
    """From opset 18 on the axes are an input of every reduction."""
    x = f(2, 3, 4)

    def imported(attributes, constants):
        return interop.import_onnx(one(tmp_path / "model.onnx", op, [x], attributes, constants, opset=18))(x).detach().numpy()

    for attributes, constants in (({}, [i(-1, 0)]), ({"keepdims": 0}, [i(1)]), ({}, [])):
        got = imported(attributes, constants)
        np.testing.assert_allclose(got, by_reference(tmp_path / "model.onnx", x)[0], rtol=1e-5, atol=1e-6)
    assert np.array_equal(imported({}, [i()]), imported({}, [i(0, 1, 2)]))  # no axes are all of them
    assert np.array_equal(imported({"noop_with_empty_axes": 1}, [i()]), x)  # or none


def test_padding_of_some_axes(tmp_path):
    path = one(tmp_path / "model.onnx", "Pad", [f(2, 3, 4)], {}, [i(1, 0, 0, 2), np.float32(1.5), i(-1, 0)], opset=18)
    np.testing.assert_array_equal(interop.import_onnx(path)(f(2, 3, 4)).numpy(), by_reference(path, f(2, 3, 4))[0])


@pytest.mark.parametrize("opset", [13, 14, 16, 18, 20, 22])
def test_what_the_operations_are_has_not_changed_between_the_opsets(opset):
    """Each name that is known here has the same inputs and attributes in the opsets that are read, but for those handled."""
    for op, meaning in MEANINGS.items():
        if op == "LayerNormalization" and opset < 17:
            continue  # it came then
        schema = onnx.defs.get_schema(op, opset)
        refused = {
            "AveragePool": {"dilations"}, "ConvTranspose": {"output_shape"}, "NegativeLogLikelihoodLoss": {"ignore_index"},
        }.get(op, set())  # fmt: skip
        assert set(schema.attributes) - refused <= set(meaning.defaults), op
        names = [p.name for p in onnx.defs.get_schema(op, 17).inputs]
        later = {
            "Pad": ["axes"],
            **dict.fromkeys([o for o in MEANINGS if o.startswith("Reduce") and o != "ReduceSum"], ["axes"]),
        }
        assert [p.name for p in schema.inputs] in (names, names + later.get(op, [])) or opset < 15, op


def test_the_trained_statistics_follow_as_onnx_says(tmp_path):
    """A node in training mode: momentum weighs the old value, and the variance is the population's."""
    arrays = [f(3, seed=s) for s in (1, 2, 3)] + [f(3, seed=4) ** 2]
    path = one(tmp_path / "model.onnx", "BatchNormalization", [IMAGE], {"momentum": 0.7, "training_mode": 1}, arrays, outputs=3)
    expected = by_reference(path, IMAGE)
    model = interop.import_onnx(path)
    for got, e in zip(model(IMAGE), expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), e, rtol=1e-4, atol=1e-5)
    # The sense of momentum, in numbers: 0.7 of the old mean, and 0.3 of the batch's; variance over n, not n - 1.
    np.testing.assert_allclose(expected[1], 0.7 * arrays[2] + 0.3 * IMAGE.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(expected[2], 0.7 * arrays[3] + 0.3 * IMAGE.var((0, 2, 3)), rtol=1e-4)
    assert np.array_equal(model.c2.numpy(), arrays[2])  # in evaluation mode nothing is kept


def test_training_goes_on_as_the_original_would(rng, tmp_path):
    """After train() the import learns what the original learns, with BatchNorm's statistics as ONNX takes them."""
    original = models.cnn()
    for module in original.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.variance = "biased"  # the population's, as in ONNX
    x, labels = rng.standard_normal((16, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 16)
    original(tg.tensor(x))
    interop.export_onnx(original, x, tmp_path / "model.onnx")
    imported = interop.import_onnx(tmp_path / "model.onnx")
    assert not imported.training
    losses: list[list[float]] = []
    for model in (original.train(), imported.train()):
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for _ in range(5):
            loss = tg.cross_entropy(model(tg.tensor(x)), labels)
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][-1] < 0.7 * losses[0][0]
    theirs = imported.state_dict()
    for name, value in original.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(theirs[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    # So its weights go back into the original by their names.
    keys = original.load_state_dict(theirs, strict=False)
    assert not keys.unexpected and all(k.endswith("num_batches_tracked") for k in keys.missing)
    original.eval(), imported.eval()
    np.testing.assert_allclose(original(tg.tensor(x)).detach().numpy(), imported(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_in_evaluation_mode_statistics_stand_and_gradients_flow(rng, tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    interop.export_onnx(model, np.ones((2, 4), np.float32), tmp_path / "model.onnx")
    imported = interop.import_onnx(tmp_path / "model.onnx")
    before = {k: v.copy() for k, v in imported.state_dict().items()}
    imported(rng.standard_normal((5, 4), dtype=np.float32)).sum().backward()
    assert all(np.array_equal(before[k], v) for k, v in imported.state_dict().items())
    assert {k: p.grad is not None for k, p in imported.named_parameters()} == dict.fromkeys(
        ["0.weight", "0.bias", "1.weight", "1.bias"], True
    )
    assert [k for k, _ in imported.named_buffers()] == ["1.running_mean", "1.running_var"]


def test_it_is_a_module(rng, tmp_path):
    model = models.mlp((6, 5, 2))
    interop.export_onnx(model, np.ones((1, 6), np.float32), tmp_path / "model.onnx")
    imported = interop.import_onnx(str(tmp_path / "model.onnx"))
    assert repr(imported) == "OnnxModel(Sequential: 5 operations on input (batch, 6))".replace("5", str(len(imported._nodes)))
    x = rng.standard_normal((3, 6), dtype=np.float32)
    again = copy.deepcopy(imported)
    again.double()
    assert again(x.astype(np.float64)).dtype == np.float64
    np.testing.assert_allclose(again(x.astype(np.float64)).detach().numpy(), imported(x).detach().numpy(), atol=1e-6)
    # And what was imported can be exported again.
    interop.export_onnx(imported, x, tmp_path / "again.onnx", fold_batchnorm=True)
    assert_agrees(model, tmp_path / "again.onnx", x)


def test_on_cuda(cuda_stand_in, rng, tmp_path):
    model = nn.Sequential(nn.Embedding(5, 4), nn.GELU(), nn.Flatten(), nn.Linear(8, 3))
    indices = rng.integers(0, 5, (6, 2))
    interop.export_onnx(model, indices, tmp_path / "model.onnx")
    imported = interop.import_onnx(tmp_path / "model.onnx").cuda()
    out = imported(tg.tensor(indices, device="cuda"))
    assert out.device == "cuda"
    expected = model(tg.tensor(indices)).detach().numpy()
    np.testing.assert_allclose(cuda_stand_in.numpy(out.detach()), expected, rtol=1e-5, atol=1e-6)


def test_names_that_a_module_has_already(tmp_path):
    nodes = [
        helper.make_node("Add", ["x0", "training"], ["a"]), helper.make_node("Mul", ["a", "forward"], ["b"]),
        helper.make_node("Sub", ["b", "_nodes"], ["c"]), helper.make_node("Add", ["c", "_on"], ["y0"]),
    ]  # fmt: skip
    arrays = {name: f(3, seed=i) for i, name in enumerate(["training", "forward", "_nodes", "_on"])}
    path = file_of(tmp_path / "model.onnx", nodes, [f(2, 3)], initializers=arrays)
    model = interop.import_onnx(path)
    np.testing.assert_allclose(model(f(2, 3)).detach().numpy(), by_reference(path, f(2, 3))[0], rtol=1e-6)
    assert len(list(model.parameters())) == 4 and model.eval().training is False


def test_constants_do_not_train(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["v"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["axes"], value_ints=[1]), helper.make_node("Constant", [], ["two"], value_int=2),
        helper.make_node("Mul", ["x0", "half"], ["a"]), helper.make_node("Add", ["a", "v"], ["b"]),
        helper.make_node("Pow", ["b", "two"], ["c"]), helper.make_node("Mul", ["c", "scale"], ["d"]),
        helper.make_node("ReduceSum", ["d", "axes"], ["y0"]),
    ]  # fmt: skip
    path = file_of(tmp_path / "model.onnx", nodes, [f(3, 2)], initializers={"scale": np.float32(3.0)})
    model = interop.import_onnx(path)
    assert not list(model.parameters())
    np.testing.assert_allclose(model(f(3, 2)).numpy(), by_reference(path, f(3, 2))[0], rtol=1e-6)


def test_values_are_freed_once_nobody_needs_them(tmp_path):
    import weakref

    seen = []
    path = file_of(tmp_path / "m.onnx", [helper.make_node("Relu", [f"{'x' if k == 0 else 'v'}{k}"], [f"v{k + 1}"])
                                         for k in range(4)] + [helper.make_node("Neg", ["v4"], ["y0"])], [f(2, 3)])  # fmt: skip
    model = interop.import_onnx(path)
    for node in model._nodes:
        call = node.call

        def watched(*inputs, call=call):
            alive = sum(r() is not None for r in seen)
            assert alive <= 2  # its input, and what the loop before still names
            out = call(*inputs)
            seen.append(weakref.ref(out))
            return out

        node.call = watched
    with tg.no_grad():
        model(f(2, 3))
    assert len(seen) == 5


# ----- errors


REFUSED = {
    "an operation": (("Selu", [f(2)]), "the operation 'Selu' is not supported; known are Abs, Add, "),
    "an attribute": (("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "storage_order": 0}), None),
    "two outputs": (("MaxPool", [IMAGE], {"kernel_shape": [2, 2]}, (), 2), "'MaxPool' has 2 outputs, expected 1 at most"),
    "an old opset": (("Relu", [f(2)], {}, (), 1, 12), "expected opset 13 to 22, got 12; onnx.version_converter translates"),
    "a new opset": (("Relu", [f(2)], {}, (), 1, 23), "expected opset 13 to 22, got 23"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_when_read(name, tmp_path):
    case, sentence = REFUSED[name]
    path = one(tmp_path / "model.onnx", *case)
    if sentence is None:
        interop.import_onnx(path)
        return
    with pytest.raises(ValueError) as caught:
        interop.import_onnx(path)
    assert sentence in str(caught.value) and str(caught.value).startswith("interop.import_onnx")


AT_RUN = {
    "ceil_mode": ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "ceil_mode": 1}, [], "MaxPool expected ceil_mode 0"),
    "dilations": ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 1]}, [], "MaxPool expected .* no dilations"),
    "three axes": ("Conv", [f(1, 2, 3, 3, 3)], {}, [f(2, 2, 1, 1, 1)], "Conv expected an input of 1 or 2 axes after batch"),
    "reflection": ("Pad", [f(2, 3)], {"mode": "reflect"}, [i(0, 1, 0, 1)], "Pad expected mode 'constant', got 'reflect'"),
    "an unknown auto_pad": ("Conv", [IMAGE], {"auto_pad": "SAME"}, [KERNEL], "expected auto_pad NOTSET, VALID, SAME_UPPER or"),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_RUN)
def test_what_is_refused_when_run(name, tmp_path):
    op, inputs, attributes, constants, sentence = AT_RUN[name]
    with pytest.raises(ValueError, match=sentence):
        interop.import_onnx(one(tmp_path / "model.onnx", op, inputs, attributes, constants))(*inputs)


def test_a_node_of_another_domain_is_named(tmp_path):
    path = file_of(tmp_path / "model.onnx", [helper.make_node("Relu", ["x0"], ["y0"], name="first")], [f(2)])
    model = onnx.load(path)
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"operation 'Relu' \(node 'first'\) of the domain 'com.example' is not supported"):
        interop.import_onnx(path)


def test_an_attribute_that_is_not_known_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(MEANINGS["Gemm"].defaults, "alpha")
    with pytest.raises(ValueError, match="'Gemm' has the attribute alpha, which is not supported"):
        interop.import_onnx(one(tmp_path / "model.onnx", "Gemm", [f(2, 3)], {"alpha": 2.0}, [f(3, 4)]))


def test_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError):
        interop.import_onnx(tmp_path / "nothing.onnx")
    for content in (b"", b"\x00\x01 not a model", b'{"json": 1}'):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="expected a valid ONNX model, got .*model.onnx"):
            interop.import_onnx(tmp_path / "model.onnx")


def test_inputs_are_checked_when_it_is_called(tmp_path):
    interop.export_onnx(nn.Linear(4, 2), np.ones((3, 4), np.float32), tmp_path / "model.onnx")
    model = interop.import_onnx(tmp_path / "model.onnx")
    with pytest.raises(TypeError, match=r"OnnxModel expected 1 inputs \(input\), got 2"):
        model(f(1, 4), f(1, 4))
    with pytest.raises(TypeError, match="OnnxModel expected a Tensor or an array as 'input', got list"):
        model([1.0])
    with pytest.raises(TypeError, match="OnnxModel expected 'input' of floating numbers, got int64"):
        model(np.ones((2, 4), np.int64))
    for shape in ((2, 5), (4,), (2, 2, 4)):
        with pytest.raises(ValueError, match=r"OnnxModel expected 'input' of shape \(batch, 4\), got "):
            model(f(*shape))


@given(st.integers(1, 3), st.integers(4, 9), st.integers(1, 3), st.integers(1, 3), st.sampled_from("NLU"), st.data())
def test_convolution_for_any_padding(n, size, kernel, stride, rule, data):
    """Drawn sizes, strides and paddings: import, reference evaluator and onnxruntime agree."""
    import pathlib
    import tempfile

    attributes = {"strides": [stride, 1]}
    if rule == "N":
        attributes["pads"] = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    else:
        attributes["auto_pad"] = {"L": "SAME_LOWER", "U": "SAME_UPPER"}[rule]
    x, w = f(n, 2, size, size + 1), f(3, 2, kernel, 2, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        path = one(pathlib.Path(folder) / "model.onnx", "Conv", [x], attributes, [w])
        got = interop.import_onnx(path)(x).detach().numpy()
        (expected,) = by_onnxruntime(path, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
