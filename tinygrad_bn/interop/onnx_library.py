"""The package ``onnx``, when it is first needed."""

from __future__ import annotations

import importlib
from typing import Any


def load(caller: str) -> Any:
    """The package, or an error that says how to get it."""
    try:
        for part in ("checker", "helper", "numpy_helper", "shape_inference"):
            importlib.import_module(f"onnx.{part}")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise RuntimeError(f"{caller} needs onnx: pip install 'tinygrad_bn[interop]'") from error
