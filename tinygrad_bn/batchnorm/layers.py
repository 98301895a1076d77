"""Which layers of a model are BatchNorm, how it is said in code, and a model that is put back as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from keyword import iskeyword
from typing import Any

from .. import nn, random
from ..core import Box
from ..nn.batchnorm import _BatchNorm as BatchNorm
from ..tensor import Tensor


def layers(model: nn.Module) -> list[tuple[str, BatchNorm]]:
    """(path, layer) of every BatchNorm in the model, BatchNorm's variants included, in the order of its attributes.

    Raises TypeError for what is no Module, and ValueError for a model without BatchNorm.
    """
    found = [(path, m) for path, m in need_model("layers", model).named_modules() if isinstance(m, BatchNorm)]
    if not found:
        raise ValueError(f"expected a model with BatchNorm layers, got {type(model).__name__} without any")
    return found


def need_model(name: str, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} expected a Module, got {type(model).__name__}")
    return model


def tracking(model: nn.Module) -> list[tuple[str, BatchNorm]]:
    """Those of ``layers`` that have running statistics; raises ValueError if there is none."""
    found = [(path, layer) for path, layer in layers(model) if layer.running_mean is not None]
    if not found:
        raise ValueError("expected BatchNorm layers with running statistics, got only ones with track_running_stats=False")
    return found


def in_code(path: str) -> str:
    """The path of a module as Python writes it: "blocks.0.norm1" is model.blocks[0].norm1; getattr where no dot will do."""
    code = "model"
    for part in path.split(".") if path else ():
        if part.isascii() and part.isdigit():
            code += f"[{part}]"
        else:
            code = f"{code}.{part}" if part.isidentifier() and not iskeyword(part) else f"getattr({code}, {part!r})"
    return code


examining: ContextVar[bool] = ContextVar("examining", default=False)  # in a block of ``unchanged``


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """A block after which, also after an error, the model's buffers, counts, modes and the random state are as before.

    Parameters and gradients are not restored: the block must not touch them. ``watch`` does not hear its passes: they are not
    the program's.
    """
    modules = list(model.modules())
    before = [(m, {k: v for k, v in vars(m).items() if isinstance(v, nn.Buffer)}, vars(m).get("training")) for m in modules]
    counts = [(m, m.num_batches_tracked) for m in modules if isinstance(m, BatchNorm)]
    state = random.get_rng_state()
    token = examining.set(True)
    try:
        yield
    finally:
        examining.reset(token)
        for module, buffers, mode in before:
            for name, buffer in buffers.items():
                setattr(module, name, buffer)  # the buffer itself: they are replaced, never changed
            if mode is None:
                vars(module).pop("training", None)
            else:
                module.training = mode
        for layer, count in counts:
            layer.num_batches_tracked = count
        random.set_rng_state(state)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is an attribute of a module below ``model``."""
    for module in list(model.modules()):
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)


def as_pairs(name: str, batches: Any) -> list[tuple[Any, Any]]:
    """Batches as a list of (x, y), y None where there are only inputs; a batch is a pair, or x alone.

    The place in an epoch of ``datasets.batches`` stays what it was.
    """
    if isinstance(batches, (str, bytes)) or isinstance(batches, Box) or not isinstance(batches, Iterable):
        raise TypeError(f"{name} expected an iterable of batches (x, y) or x, got {type(batches).__name__}")
    resumable: Any = batches if hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict") else None
    place = None if resumable is None else resumable.state_dict()
    pairs: list[tuple[Any, Any]] = []
    for i, batch in enumerate(batches):
        x, y = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        if not hasattr(x, "shape") or len(x.shape) < 2:
            raise TypeError(
                f"{name} expected each batch to be (x, y) or x, of shape (N, ...), got {type(batch).__name__} at {i}"
            )
        pairs.append((x if isinstance(x, Box) else Tensor(x), y))
    if place is not None:
        resumable.load_state_dict(place)
    if not pairs:
        raise ValueError(f"{name} expected at least one batch, got none")
    return pairs
