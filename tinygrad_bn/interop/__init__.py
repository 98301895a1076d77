"""Living with the neighbours: PyTorch's models and weights, safetensors files, ONNX, and checkpoints."""

from .checkpoint import Checkpoint
from .onnx_export import export_onnx
from .onnx_import import import_onnx
from .torch_models import from_torch, to_torch
from .weights import load_weights, save_weights

__all__ = ["Checkpoint", "export_onnx", "from_torch", "import_onnx", "load_weights", "save_weights", "to_torch"]
