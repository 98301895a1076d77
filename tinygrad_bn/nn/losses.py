"""The losses as modules; see the operations."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..ops.loss import check_reduction, check_smoothing
from ..tensor import Tensor
from .module import Module


class CrossEntropyLoss(Module):
    """(N, C) logits, (N,) integer labels -> a number; see ``ops.cross_entropy``."""

    def __init__(self, reduction: str = "mean", label_smoothing: float = 0.0):
        check_reduction("cross_entropy", reduction)
        self.reduction, self.label_smoothing = reduction, check_smoothing(label_smoothing)

    def forward(self, x: Tensor, labels: Any) -> Tensor:
        return ops.cross_entropy(x, labels, self.reduction, self.label_smoothing)


class MSELoss(Module):
    """The mean of squared differences; see ``ops.mse_loss``."""

    def __init__(self, reduction: str = "mean"):
        check_reduction("mse_loss", reduction)
        self.reduction = reduction

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(x, target, self.reduction)


class BCEWithLogitsLoss(Module):
    """Binary cross-entropy of logits; see ``ops.bce_with_logits``."""

    def __init__(self, reduction: str = "mean"):
        check_reduction("bce_with_logits", reduction)
        self.reduction = reduction

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return ops.bce_with_logits(x, target, self.reduction)
