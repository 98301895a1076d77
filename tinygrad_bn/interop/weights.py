"""A model's weights in a safetensors file, which PyTorch and others read as well, and theirs here."""

from __future__ import annotations

import os
from typing import Any

from ..backend import type_name
from ..nn import Module
from ..nn.module import Keys
from . import files


def save_weights(model: Module, path: str | os.PathLike[str]) -> None:
    """Write the state dict of a model to a safetensors file: parameters and buffers under PyTorch's keys, in their dtypes.

    ``safetensors.torch.load_file`` reads it. A file of that name is replaced once the new one is on the disk; an OSError, such
    as from a full disk, leaves it as it was. Raises RuntimeError if safetensors is not installed.
    """
    _check("save_weights", model, path)
    content = files.packed("interop.save_weights", model.state_dict(), {"format": "pt"})  # a name that other readers ask for
    files.write_whole(os.fspath(path), content)


def load_weights(model: Module, path: str | os.PathLike[str], strict: bool = True) -> Keys:
    """Load a safetensors file, of ``save_weights`` or of PyTorch's side, into a model: as ``load_state_dict`` does.

    Values are cast to the dtype, and copied to the device, that the model has. Names of one tensor of which
    ``safetensors.torch.save_model`` wrote only the first are known. Raises ValueError, before anything is changed, for a file
    that is damaged or does not fit the model; OSError if it cannot be read; RuntimeError if safetensors is not installed.
    """
    _check("load_weights", model, path)
    arrays, metadata = files.read("interop.load_weights", path)
    tied = {k: arrays[first] for k, first in metadata.items() if k not in arrays and first in arrays}
    if tied:
        ours = model.state_dict()
        arrays |= {k: array for k, array in tied.items() if k in ours}
    return model.load_state_dict(arrays, strict)


def _check(caller: str, model: Any, path: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"interop.{caller} expected a Module, got {type_name(model)}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"interop.{caller} expected a path, got {type_name(path)}")
