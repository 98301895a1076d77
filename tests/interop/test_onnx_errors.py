"""What cannot be exported is refused in words, before anything is written."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from onnx_runtimes import Function

import tinygrad_bn as tg
from tinygrad_bn import interop, nn, ops

X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4)


@tg.primitive
def cube(x):
    return x * x * x


cube.defvjp(lambda g, _out, x: 3.0 * g * x * x)


class Cubes(nn.Module):
    def forward(self, x):
        return cube(x)


class Counting(nn.Module):
    def __init__(self):
        self.count = nn.Buffer(np.zeros(1, np.float32))

    def forward(self, x):
        self.count.data = self.count.data + 1
        return x * 2.0


class Branching(nn.Module):
    def forward(self, x):
        return x.relu() if x.data[0, 0] == X[0, 0] else x.exp()


def only_three(x):
    assert len(x) == 3
    return x * 2.0


REFUSED = {
    "another's operation": (nn.Sequential(nn.ReLU(), Cubes()), "'cube' in '1' (Cubes) has no ONNX counterpart at opset 17"),
    "dropout that goes on": (Function(lambda x: ops.dropout(x)), "'dropout' in 'the model' (Function) has no ONNX counterpart"),
    "a comparison": (
        Function(lambda x: ops.where(x > 0, x, 0.0)), "in 'the model' (Function) gets an array of shape (3, 4), and (13, 4)"),
    "a comparison without the batch": (
        Function(lambda x: x.sum(axis=0) * (x.sum(axis=0) > 0)), "'mul' in 'the model' (Function) gets an array of shape (4,)"),
    "NumPy": (Function(lambda x: x.sum(axis=0) + np.tanh(x.numpy().sum(axis=0))), "changes from run to run, but no operation"),
    "random numbers": (Function(lambda x: x + tg.randn(4)), "changes from run to run, but no operation made it"),
    "a shape with the batch": (Function(lambda x: x + tg.zeros(len(x), 4)), "of shape (3, 4), and (13, 4) for another batch"),
    "a number with the batch": (Function(lambda x: x / len(x)), "'div' in 'the model' (Function) gets the number 3, and 13"),
    "an option with the batch": (
        Function(lambda x: x[: len(x) - 1]), "the option index of 'getitem' in 'the model' (Function) changes"),
    "two other lengths": (
        Function(lambda x: ops.broadcast_to(x[:1], shape=(len(x) + 1, 4))), "makes a shape that is no multiple of the batch"),
    "another tensor": (Function(lambda x: (x, x + 1.0)[len(x) > 5] * 2.0), "gets another tensor for other values or another"),
    "a branch": (Branching(), "runs other operations for other values or another batch size"),
    "another rank": (Function(lambda x: x.reshape((1,) * (len(x) < 5) + x.shape)), "gives 3 dimensions, and 2 for another"),
    "a batch of one size": (nn.Sequential(nn.Flatten(0), nn.Linear(12, 2)), "ran on the example, but not on a batch of 13;"),
    "a batch of one size, by an assert": (
        Function(only_three), "ran on the example, but not on a batch of 13; pass dynamic_batch=False if it"),
    "a change in place": (Counting(), "changes a tensor in place while it runs"),
    "a constant output": (Function(lambda x: tg.ones(2)), "no operation made the model's output of shape (2,)"),
    "a mask": (Function(lambda x: x[:, np.array([True, False, True, False])]), "is indexed by a mask: the shape of its"),
    "two arrays as an index": (Function(lambda x: x[np.array([0, 1]), np.array([2, 3])]), "is indexed by an array beside"),
    "an array beside an int": (Function(lambda x: x.reshape(-1, 2, 2)[0, :, np.array([1])]), "is indexed by an array beside"),
    "a convolution's weight gradient": (
        Function(lambda x: ops.conv._conv2d_weight(
            x.reshape(3, 1, 2, 2), X[:, :1].reshape(3, 1, 1, 1) + np.zeros((3, 1, 2, 2), np.float32),
            shape=(1, 1, 1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)),
        "'conv2d_weight' in 'the model' (Function) has no ONNX counterpart"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    model, sentence = REFUSED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was here before")
    fixed = name == "a convolution's weight gradient"
    with pytest.raises(ValueError) as caught:
        interop.export_onnx(model, X, path, dynamic_batch=not fixed)
    assert sentence in str(caught.value) and str(caught.value).startswith("interop.export_onnx: ")
    assert path.read_bytes() == b"what was here before" and len(list(tmp_path.iterdir())) == 1
    assert model.training  # and the model is as it was


def test_a_fixed_batch_permits_what_depends_on_it(tmp_path):
    for name in ("a shape with the batch", "a number with the batch", "an option with the batch", "a batch of one size"):
        model, _ = REFUSED[name]
        interop.export_onnx(model, X, tmp_path / "model.onnx", dynamic_batch=False)
        from onnx_runtimes import assert_agrees

        assert_agrees(model, tmp_path / "model.onnx", X + 0.5)


def test_a_fixed_batch_still_refuses_a_mask(tmp_path):
    with pytest.raises(ValueError, match="that changes from run to run, but no operation made it"):
        interop.export_onnx(Function(lambda x: ops.where(x > 0, x, 0.0)), X, tmp_path / "model.onnx", dynamic_batch=False)
    zeros = np.zeros((3, 4), np.float32)  # also where the example has nothing to compare
    with pytest.raises(ValueError, match="that changes from run to run, but no operation made it"):
        interop.export_onnx(Function(lambda x: ops.where(x > 0, x, 0.0)), zeros, tmp_path / "model.onnx", dynamic_batch=False)


BAD = {
    "a function": ((np.tanh, X), TypeError, "expected a Module, got ufunc"),
    "a list of numbers": ((nn.ReLU(), [1.0, 2.0]), TypeError, "expected an example as a Tensor or an array, or a"),
    "no example": ((nn.ReLU(), ()), ValueError, "expected at least one example input, got none"),
    "an empty batch": ((nn.ReLU(), X[:0]), ValueError, r"one batch size of at least 1 along axis 0, got shapes \(0, 4\)"),
    "a scalar": ((nn.ReLU(), np.float32(1)), ValueError, r"got shapes \(\); pass dynamic_batch=False if axis 0 is not"),
    "two batch sizes": ((nn.ReLU(), (X, X[:2])), ValueError, r"got shapes \(3, 4\) and \(2, 4\)"),
    "an int for a bool": ((nn.ReLU(), X, None, 1), TypeError, "expected dynamic_batch to be True or False, got 1"),
    "a string for a bool": ((nn.ReLU(), X, None, True, "yes"), TypeError, "expected fold_batchnorm to be True or False"),
    "a dict as output": ((Function(lambda x: {"y": x}), X), TypeError, "expected the model to return Tensors, got dict"),
    "a shape that does not fit": ((nn.Linear(5, 2), X), ValueError, r"Linear expected an input of shape \(..., 5\), got "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, tmp_path):
    (model, example, *rest), kind, sentence = BAD[name]
    with pytest.raises(kind, match=sentence):
        interop.export_onnx(model, example, tmp_path / "model.onnx", *rest[1:])
    assert not list(tmp_path.iterdir())


def test_a_scalar_may_be_an_input_of_fixed_size(tmp_path):
    interop.export_onnx(nn.ReLU(), np.float32(1), tmp_path / "model.onnx", dynamic_batch=False)


def test_a_tensor_of_pytorch_is_not_an_example(torch, tmp_path):
    with pytest.raises(TypeError, match="expected an example as a Tensor or an array, or a tuple of them, got torch.Tensor"):
        interop.export_onnx(nn.ReLU(), torch.ones(2, 2), tmp_path / "model.onnx")


def test_bad_paths(tmp_path):
    with pytest.raises(TypeError, match="interop.export_onnx expected a path, got float"):
        interop.export_onnx(nn.ReLU(), X, 3.5)
    with pytest.raises(FileNotFoundError):
        interop.export_onnx(nn.ReLU(), X, tmp_path / "nowhere" / "model.onnx")


def test_without_onnx_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnx.checker", None)
    for name, call in (
        ("export_onnx", lambda: interop.export_onnx(nn.ReLU(), X, tmp_path / "model.onnx")),
        ("import_onnx", lambda: interop.import_onnx(tmp_path / "model.onnx")),
    ):
        with pytest.raises(RuntimeError, match=rf"interop\.{name} needs onnx: pip install 'tinygrad_bn\[interop\]'"):
            call()


def test_an_operation_that_nobody_reads_may_have_no_counterpart(tmp_path):
    def f(x):
        cube(x)
        return x.relu()

    interop.export_onnx(Function(f), X, tmp_path / "model.onnx")


def test_what_another_thread_computes_is_not_in_the_file(tmp_path):
    import threading

    import onnx

    runs = []

    def f(x):
        runs.append(x)
        if len(runs) == 1:  # so that the two runs would differ
            other = threading.Thread(target=lambda: nn.Sequential(nn.Tanh())(tg.tensor(X)).exp())
            other.start()
            other.join()
        return x.relu()

    interop.export_onnx(Function(f), X, tmp_path / "model.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node] == ["Relu"]


def test_nothing_is_imported_before_it_is_needed():
    import subprocess

    code = (
        "import sys, tinygrad_bn; early = 'tinygrad_bn.interop' in sys.modules; tinygrad_bn.interop.export_onnx; "
        "print(early, [m for m in ('onnx', 'onnxruntime', 'safetensors', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"
