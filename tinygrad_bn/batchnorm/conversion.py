"""Other normalisations in BatchNorm's place, and gamma and beta kept out of weight decay."""

from __future__ import annotations

from math import gcd
from typing import Any

from .. import nn
from ..nn.norms import AffineNorm
from .layers import BatchNorm, layers, need_model, replace

_SUFFIX = {nn.BatchNorm1d._shapes: "1d", nn.BatchNorm2d._shapes: "2d", nn.BatchNorm3d._shapes: "3d"}
_KINDS = ("group", "layer", "ghost", "renorm", "batch")


def convert(model: nn.Module, to: str, *, groups: int | None = None, ghost_size: int = 32, **options: Any) -> nn.Module:
    """Put another normalisation in the place of every BatchNorm, with its gamma, beta and eps. Returns the model.

    ``to`` is "group" (GroupNorm of ``groups`` groups; by default groups of 8 channels, or of as many as divide them), "layer"
    (GroupNorm with one group: over all of an example's channels and positions), "ghost" (GhostBatchNorm of ``ghost_size``
    examples), "renorm" (BatchRenorm; ``options`` such as r_max) or "batch" (back from the last two, or from
    ``distributed.convert_sync_batchnorm``). The latter three keep the
    running statistics, momentum and mode too, and in evaluation the function stays the same; the first two compute another
    function: train again. A model that is itself a BatchNorm is replaced by what is returned. Other layers stay as they
    are. An optimizer goes on with the same gamma and beta, which stay the same Parameters.

    Raises ValueError for another ``to``, groups that do not divide the channels, options that the new layer does not have, and
    a ``SyncBatchNorm`` for inputs of several shapes, of which "ghost", "renorm" and "batch" take one; then nothing has changed.
    """
    need_model("convert", model)
    if to not in _KINDS:
        raise ValueError(f"convert expected to to be one of {', '.join(map(repr, _KINDS))}, got {to!r}")
    try:
        pairs = [(layer, _made(layer, to, groups, ghost_size, options)) for _, layer in layers(model)]
    except TypeError as error:
        raise ValueError(f"convert to {to!r} expected options of that layer, got {', '.join(options)}: {error}") from None
    for old, new in pairs:
        new.training = old.training
        replace(model, old, new)
        if old is model:
            model = new
    return model


def _made(old: BatchNorm, to: str, groups: int | None, ghost_size: int, options: dict[str, Any]) -> AffineNorm:
    new: AffineNorm
    if to in ("group", "layer"):
        c = old.num_features
        count = 1 if to == "layer" else c // gcd(c, 8) if groups is None else groups
        new = nn.GroupNorm(count, c, old.eps, affine=old.weight is not None, **options)
    else:
        kind = {"ghost": "GhostBatchNorm", "renorm": "BatchRenorm", "batch": "BatchNorm"}[to] + _suffix(old)
        size = (ghost_size,) if to == "ghost" else ()
        usual = {"eps": old.eps, "momentum": old.momentum, "affine": old.affine, "variance": old.variance, "fused": old.fused}
        made: BatchNorm = getattr(nn, kind)(
            old.num_features, *size, track_running_stats=old.track_running_stats, **{**usual, **options}
        )
        made.running_mean, made.running_var = old.running_mean, old.running_var
        made.num_batches_tracked, made.frozen = old.num_batches_tracked, old.frozen
        new = made
    new.weight, new.bias = old.weight, old.bias
    return new


def _suffix(layer: BatchNorm) -> str:
    if layer._shapes not in _SUFFIX:
        raise ValueError(
            f"convert expected layers that say what inputs they take, got {type(layer).__name__}, which takes several: put "
            "nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d in its place yourself"
        )
    return _SUFFIX[layer._shapes]


def no_weight_decay(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Two optimizer groups: the weights, and with ``weight_decay=0`` the gammas and betas of all normalisations and all biases.

    ``optim.SGD(no_weight_decay(model), lr=0.1, weight_decay=1e-4)``: the first group decays as the optimizer says, or by
    ``weight_decay`` if that is given here. Each parameter that requires a gradient is in one group, once; a group that would be
    empty is left out. After He et al. 2019, "Bag of tricks", section 3.1.
    """
    need_model("no_weight_decay", model)
    spared = {
        id(p)
        for m in model.modules()
        for name, p in vars(m).items()
        if isinstance(p, nn.Parameter) and (isinstance(m, AffineNorm) or name == "bias")
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed: dict[str, Any] = {"params": [p for p in trained if id(p) not in spared]}
    if weight_decay is not None:
        decayed["weight_decay"] = weight_decay
    groups = [decayed, {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
