"""What the tests of ONNX share: who runs a file, and how an exported model is held against the original."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import tinygrad_bn as tg

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tinygrad_bn[interop]'")
reference = pytest.importorskip("onnx.reference", reason="onnx is not installed: pip install 'tinygrad_bn[interop]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'tinygrad_bn[test]'")


class Function(tg.nn.Module):
    """A function of tensors as a model."""

    def __init__(self, f):
        self.f = f

    def forward(self, *inputs):
        return self.f(*inputs)


def answer(model, *inputs):
    """What the model itself says in evaluation mode, as a list of arrays."""
    with tg.no_grad():
        out = model.eval()(*map(tg.tensor, inputs))
    return [t.numpy() for t in (out if isinstance(out, (tuple, list)) else [out])]


def by_reference(path, *inputs):
    """ONNX's reference evaluator, which is NumPy."""
    session = reference.ReferenceEvaluator(str(path))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return session.run(None, dict(zip(session.input_names, inputs, strict=True)))


def by_onnxruntime(path, *inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))


def by_import(path, *inputs):
    with tg.no_grad():
        out = tg.interop.import_onnx(path)(*inputs)
    return [t.numpy() for t in (out if isinstance(out, tuple) else [out])]


RUNTIMES = {"the reference evaluator": by_reference, "onnxruntime": by_onnxruntime, "import_onnx": by_import}
# The reference evaluator of onnx 1.23 is wrong for ConvTranspose in groups (https://github.com/onnx/onnx/pull/8446).
IN_GROUPS = {name: run for name, run in RUNTIMES.items() if run is not by_reference}


def check(path):
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(str(path))


def assert_agrees(model, path, *inputs, runtimes=RUNTIMES, atol=1e-5):
    """Every runtime gives what the model gives: to 1e-5, or to 1e-5 of what is larger than 1."""
    expected = answer(model, *inputs)
    for name, run in runtimes.items():
        got = run(path, *inputs)
        assert len(got) == len(expected)
        for g, e in zip(got, expected, strict=True):
            assert g.shape == e.shape and g.dtype == e.dtype, (name, g.shape, e.shape, g.dtype, e.dtype)
            np.testing.assert_allclose(g, e, rtol=1e-5, atol=atol, err_msg=name)
