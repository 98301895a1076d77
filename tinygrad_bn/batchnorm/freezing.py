"""BatchNorm held still: running statistics that neither normalise by the batch nor follow it."""

from __future__ import annotations

from collections.abc import Iterable

from .. import nn
from .layers import need_model, tracking


def freeze(model: nn.Module, *, affine: bool = False) -> nn.Module:
    """Let every BatchNorm do in training what it does in evaluation: its running statistics normalise, and do not change.

    ``model.train()`` does not undo it; ``unfreeze`` does. gamma and beta go on being trained, unless ``affine`` is True: then
    they no longer require gradients (clear old ones with ``zero_grad``: an optimizer moves what has a gradient). Returns the
    model. Raises TypeError for no Module, ValueError for a model without running statistics.
    """
    for _, layer in tracking(need_model("freeze", model)):
        layer.frozen = True
        if affine:
            held = [name for name, p in layer.named_parameters() if p.requires_grad]
            layer.held = (*getattr(layer, "held", ()), *held)  # what unfreeze puts back, and no more
            _let_train(layer, held, False)
    return model


def unfreeze(model: nn.Module) -> nn.Module:
    """Undo ``freeze``: batch statistics in training again, and the gamma and beta that it held require gradients."""
    for _, layer in tracking(need_model("unfreeze", model)):
        if layer.frozen:
            layer.frozen = False
            _let_train(layer, getattr(layer, "held", ()), True)
            layer.held = ()
    return model


def _let_train(layer: nn.Module, names: Iterable[str], value: bool) -> None:
    for name, p in layer.named_parameters():
        if name in names:
            p.requires_grad = value
