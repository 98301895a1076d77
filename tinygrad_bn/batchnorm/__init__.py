"""Tools for models with BatchNorm: find what went wrong between training and evaluation, and mend it."""

from .conversion import convert, no_weight_decay
from .diagnosis import diagnose
from .folding import Folded, fold, fold_pair
from .freezing import freeze, unfreeze
from .layers import layers
from .monitor import Monitor
from .recalibration import recalibrate
from .report import Cost, Finding, Report, Score
from .watching import Watch, watch

__all__ = [
    "Cost", "Finding", "Folded", "Monitor", "Report", "Score", "Watch", "convert", "diagnose", "fold", "fold_pair", "freeze",
    "layers", "no_weight_decay", "recalibrate", "unfreeze", "watch",
]  # fmt: skip
