"""Optimizers, learning rate schedules and gradient clipping, with PyTorch's names and PyTorch's numbers."""

from .adam import Adam, AdamW
from .clip import clip_grad_norm_
from .optimizer import Optimizer
from .schedules import CosineAnnealingLR, LinearLR, Schedule, SequentialLR, StepLR
from .sgd import SGD

__all__ = [
    "SGD", "Adam", "AdamW", "CosineAnnealingLR", "LinearLR", "Optimizer", "Schedule", "SequentialLR", "StepLR",
    "clip_grad_norm_",
]  # fmt: skip
