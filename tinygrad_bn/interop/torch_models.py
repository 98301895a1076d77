"""Models of PyTorch's layers as models of ours, and state dicts as PyTorch wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import nn
from ..backend import ARRAY_TYPES, to_numpy, type_name
from ..core import Box
from ..random import get_rng_state, set_rng_state


def from_torch(module: Any) -> nn.Module:
    """A PyTorch ``Sequential``, or one layer, as ours: the same keys, values, modes and frozen parameters. Values are copied.

    Sequentials may be nested; a layer, or a parameter, that is used twice is used twice here. float16, float32 and float64
    stay what they are (but BatchNorm, LayerNorm and GroupNorm hold at least float32), bfloat16 becomes float32. The result is
    where new layers are made: on the CPU, or TINYGRAD_BN_DEVICE. No random number is drawn.

    Raises TypeError for what is no PyTorch module, or has no layer of its kind here, ValueError for an option that has no
    counterpart; both name the first such layer by its path.
    """
    if not any(f"{kind.__module__}.{kind.__qualname__}" == "torch.nn.modules.module.Module" for kind in type(module).__mro__):
        raise TypeError(f"from_torch expected a PyTorch module, got {type_name(module)}")
    state = get_rng_state()
    try:
        return _Conversion().module("", module)
    finally:
        set_rng_state(state)


def to_torch(state: Any) -> Any:
    """A state dict with a PyTorch tensor on the CPU, a copy, for each array: for ``torch_optimizer.load_state_dict``.

    Dicts, lists and tuples (named ones become plain) are gone through; whatever else is in them stays as it is. (A model's
    state dict PyTorch takes as it is.) Raises RuntimeError if PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise RuntimeError("interop.to_torch needs PyTorch: pip install torch") from error

    def converted(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: converted(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return (list if isinstance(value, list) else tuple)(map(converted, value))
        raw = value._data if isinstance(value, Box) else value
        is_array = isinstance(raw, np.ndarray) or type(raw) in ARRAY_TYPES
        return torch.from_numpy(np.array(to_numpy(raw))) if is_array else value

    return converted(state)


# ----- each layer of PyTorch's, made again


def _padding(m: Any) -> tuple[int, ...]:
    if m.padding == "valid":
        return (0,) * len(m.kernel_size)
    if m.padding == "same":
        both = [d * (k - 1) for k, d in zip(m.kernel_size, m.dilation, strict=True)]
        if any(n % 2 for n in both):
            raise ValueError(f"padding='same' with kernel_size={m.kernel_size}; expected the same padding on both sides")
        return tuple(n // 2 for n in both)
    return m.padding


def _axis(m: Any) -> int:
    if m.dim is None:  # PyTorch then chooses by the number of the input's axes
        raise ValueError("dim=None; expected an axis")
    return m.dim


def _conv1d(m: Any) -> nn.Module:
    sizes = (m.kernel_size[0], m.stride[0], _padding(m)[0], m.dilation[0])
    return nn.Conv1d(m.in_channels, m.out_channels, *sizes, m.groups, m.bias is not None)


def _conv2d(m: Any) -> nn.Module:
    sizes = (m.kernel_size, m.stride, _padding(m), m.dilation)
    return nn.Conv2d(m.in_channels, m.out_channels, *sizes, m.groups, m.bias is not None)


def _conv_transpose2d(m: Any) -> nn.Module:
    sizes = (m.kernel_size, m.stride, m.padding, m.output_padding, m.groups)
    return nn.ConvTranspose2d(m.in_channels, m.out_channels, *sizes, m.bias is not None, m.dilation)


def _batch_norm(kind: type) -> Callable[[Any], nn.Module]:
    return lambda m: kind(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats)


_LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "AdaptiveAvgPool2d": lambda m: nn.AdaptiveAvgPool2d(m.output_size),
    "AvgPool2d": lambda m: nn.AvgPool2d(m.kernel_size, m.stride, m.padding),
    "BatchNorm1d": _batch_norm(nn.BatchNorm1d),
    "BatchNorm2d": _batch_norm(nn.BatchNorm2d),
    "BatchNorm3d": _batch_norm(nn.BatchNorm3d),
    "Conv1d": _conv1d,
    "Conv2d": _conv2d,
    "ConvTranspose2d": _conv_transpose2d,
    "Dropout": lambda m: nn.Dropout(m.p),
    "ELU": lambda m: nn.ELU(m.alpha),
    "Embedding": lambda m: nn.Embedding(m.num_embeddings, m.embedding_dim),
    "Flatten": lambda m: nn.Flatten(m.start_dim),
    "GELU": lambda _: nn.GELU(),
    "GroupNorm": lambda m: nn.GroupNorm(m.num_groups, m.num_channels, m.eps, m.affine),
    "Identity": lambda _: nn.Identity(),
    "LayerNorm": lambda m: nn.LayerNorm(m.normalized_shape, m.eps, m.elementwise_affine),
    "LeakyReLU": lambda m: nn.LeakyReLU(m.negative_slope),
    "Linear": lambda m: nn.Linear(m.in_features, m.out_features, m.bias is not None),
    "LogSoftmax": lambda m: nn.LogSoftmax(_axis(m)),
    "MaxPool2d": lambda m: nn.MaxPool2d(m.kernel_size, m.stride, m.padding),
    "ReLU": lambda _: nn.ReLU(),
    "SiLU": lambda _: nn.SiLU(),
    "Sigmoid": lambda _: nn.Sigmoid(),
    "Softmax": lambda m: nn.Softmax(_axis(m)),
    "Softplus": lambda _: nn.Softplus(),
    "Tanh": lambda _: nn.Tanh(),
}

# Options that have no counterpart here, and what they must be.
_ONLY: dict[str, dict[str, Any]] = {
    "AvgPool2d": {"ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    "Conv1d": {"padding_mode": "zeros"},
    "Conv2d": {"padding_mode": "zeros"},
    "ConvTranspose2d": {"padding_mode": "zeros"},
    "Embedding": {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False},
    "Flatten": {"end_dim": -1},
    "GELU": {"approximate": "none"},
    "MaxPool2d": {"dilation": 1, "ceil_mode": False, "return_indices": False},
    "Softplus": {"beta": 1, "threshold": 20},
}

_DTYPES = {"torch.float16": "float16", "torch.float32": "float32", "torch.float64": "float64", "torch.bfloat16": "float32"}


class _Conversion:
    """What one call has made so far, so that what is shared there is shared here."""

    def __init__(self) -> None:
        self.modules: dict[int, nn.Module] = {}
        self.parameters: dict[int, nn.Parameter] = {}

    def module(self, path: str, theirs: Any) -> nn.Module:
        if id(theirs) not in self.modules:
            self.modules[id(theirs)] = self._sequential(path, theirs) if _is_sequential(theirs) else self._layer(path, theirs)
            self.modules[id(theirs)].training = theirs.training
        return self.modules[id(theirs)]

    def _sequential(self, path: str, theirs: Any) -> nn.Module:
        _refuse_hooks(path, theirs)
        ours = nn.Sequential()
        for name, child in theirs._modules.items():  # (named_children leaves out the second use of a module)
            if hasattr(nn.Sequential, name):
                raise ValueError(f"from_torch: {_where(path, theirs)} has a layer named {name!r}, which is a method here")
            setattr(ours, name, self.module(f"{path}.{name}" if path else name, child))
        return ours

    def _layer(self, path: str, theirs: Any) -> nn.Module:
        kind, where = type(theirs).__name__, _where(path, theirs)
        if kind not in _LAYERS or not type(theirs).__module__.startswith("torch.nn.modules."):
            raise TypeError(
                f"from_torch expected a Sequential of layers that tinygrad_bn has, got {where}; it has {', '.join(_LAYERS)}"
            )
        _refuse_hooks(path, theirs)
        for option, only in _ONLY.get(kind, {}).items():
            if getattr(theirs, option) not in (only, (only, only)):
                raise ValueError(f"from_torch: {where} has {option}={getattr(theirs, option)!r}; expected {only!r}")
        try:
            ours = _LAYERS[kind](theirs)
        except (ValueError, TypeError) as error:
            raise ValueError(f"from_torch: {where}: {error}") from error
        if "Norm" in kind and theirs.weight is not None and theirs.bias is None:
            raise ValueError(f"from_torch: {where} has bias=False; expected True")
        self._copy_state(where, theirs, ours)
        return ours

    def _copy_state(self, where: str, theirs: Any, ours: nn.Module) -> None:
        if any(t.is_meta for t in (*theirs.parameters(), *theirs.buffers())):
            raise ValueError(f"from_torch: {where} is on the device meta, without values")
        dtypes = {str(p.dtype) for p in theirs.parameters()} | {str(b.dtype) for b in theirs.buffers() if b.is_floating_point()}
        if len(dtypes) > 1 or not dtypes <= _DTYPES.keys():
            raise ValueError(f"from_torch: {where} is of {' and '.join(sorted(dtypes))}; expected one of {', '.join(_DTYPES)}")
        if dtypes:
            ours.to(dtype=_DTYPES[dtypes.pop()])
        ours.load_state_dict(theirs.state_dict())
        for name, p in theirs.named_parameters(recurse=False):
            mine = self.parameters.setdefault(id(p), getattr(ours, name))
            mine.requires_grad = p.requires_grad
            setattr(ours, name, mine)


def _is_sequential(module: Any) -> bool:
    """Whether it is PyTorch's Sequential, or a subclass that runs as that does."""
    home = next((kind for kind in type(module).__mro__ if "forward" in vars(kind)), None)
    return home is not None and home.__module__ == "torch.nn.modules.container" and home.__name__ == "Sequential"


def _where(path: str, module: Any) -> str:
    return f"{type(module).__name__} at {path!r}" if path else f"the module itself ({type(module).__name__})"


def _refuse_hooks(path: str, module: Any) -> None:
    if any(getattr(module, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")):
        raise ValueError(f"from_torch: {_where(path, module)} has hooks, such as weight_norm's; expected none")
