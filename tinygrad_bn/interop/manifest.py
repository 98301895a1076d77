"""What a checkpoint holds, as the content of a safetensors file and back: tensors, and a manifest with the SHA-256 of each.

All that is no tensor stands in the manifest, a JSON text in the file's metadata, beside that text's own SHA-256. So whatever a
broken disk changes is noticed. (Somebody who wants to can make a file that passes: it is no signature.)
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, NamedTuple

import numpy as np

from . import files

_FORMAT = "tinygrad_bn checkpoint, version 1"


class Contents(NamedTuple):
    """The state dicts of a run's parts, None for a part that it does not have."""

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any] | None
    schedule: dict[str, Any] | None
    batches: dict[str, Any] | None
    random: dict[str, Any]
    extra: Any


def pack(contents: Contents) -> bytes:
    """The content of the file. Raises TypeError for ``extra`` that JSON cannot hold."""
    arrays = {f"model.{name}": array for name, array in contents.model.items()}
    optimizer = None
    if contents.optimizer is not None:
        state: dict[str, Any] = {}
        for index, of_one in contents.optimizer["state"].items():
            state[str(index)] = {name: value for name, value in of_one.items() if not hasattr(value, "shape")}
            arrays |= {f"optimizer.{index}.{name}": value for name, value in of_one.items() if hasattr(value, "shape")}
        optimizer = {"state": state, "param_groups": contents.optimizer["param_groups"]}
    plain = files.plain(arrays)
    manifest = contents._replace(optimizer=optimizer)._asdict()
    manifest["model"] = {name: _description(array) for name, array in plain.items()}  # and the optimizer's
    try:
        text = json.dumps(manifest, default=_number)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"Checkpoint.save expected extra to be what JSON can hold, got {error}") from error
    return files.packed(
        "interop.Checkpoint", plain, {"format": _FORMAT, "manifest": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    )


def unpack(path: str | os.PathLike[str], content: bytes) -> Contents:
    """What a checkpoint's file, of this path and content, holds. Raises ValueError that says what is wrong with it."""
    arrays, metadata = files.parsed("interop.Checkpoint", path, content)
    try:
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')!r}")
        text = metadata.get("manifest", "")
        if hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() != metadata.get("sha256"):
            raise ValueError("a manifest with another SHA-256 than its own")
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or manifest.keys() != set(Contents._fields):
            raise ValueError("a manifest with other entries")
        tensors = _typed(manifest, "model", dict)
        if tensors.keys() != arrays.keys():
            raise ValueError(f"other tensors than the manifest says: {', '.join(sorted(tensors.keys() ^ arrays.keys()))}")
        for name, array in arrays.items():
            found = _description(array)
            if found != tensors[name]:
                raise ValueError(f"{name} as {found}, where the manifest says {tensors[name]}")
        step = _typed(manifest, "step", int)
        for part in ("schedule", "batches"):
            _typed(manifest, part, dict, type(None))
        _typed(manifest, "random", dict)
        model = {name.removeprefix("model."): a for name, a in arrays.items() if name.startswith("model.")}
        optimizer = _optimizer(_typed(manifest, "optimizer", dict, type(None)), arrays)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"interop.Checkpoint expected an intact checkpoint {os.fspath(path)}, got: {error}") from error
    return Contents(**{**manifest, "step": step, "model": model, "optimizer": optimizer})


def _optimizer(saved: dict | None, arrays: dict[str, np.ndarray]) -> dict[str, Any] | None:
    if saved is None:
        return None
    groups, state = _typed(saved, "param_groups", list), _typed(saved, "state", dict)
    found: dict[int, dict[str, Any]] = {int(index): dict(_typed(state, index, dict)) for index in state}
    for name, array in arrays.items():
        if name.startswith("optimizer."):
            index, _, which = name.removeprefix("optimizer.").partition(".")
            if index not in state:
                raise ValueError(f"{name}, which belongs to no parameter")
            found[int(index)][which] = array
    return {"state": found, "param_groups": groups}


def _typed(entries: dict, name: str, *kinds: type) -> Any:
    value = entries.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} as {type(value).__name__} in the manifest")
    return value


def _description(array: np.ndarray) -> dict[str, Any]:
    content = array.reshape(-1).view(np.uint8)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": hashlib.sha256(content.data).hexdigest()}


def _number(value: Any) -> Any:
    """NumPy's numbers as Python's: somebody may have set a learning rate to one."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__}")
