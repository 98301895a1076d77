"""BatchNorm folded into the affine layer before it, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from .. import nn
from ..backend import xp_of
from ..core import Box
from ..nn.layers import _Conv
from ..tensor import Tensor
from .layers import BatchNorm, need_model, replace
from .trace import Trace, trace


class Folded(list):
    """What ``fold`` did: one line a layer, in order. ``kept`` are the paths that stayed, each with its reason."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def __str__(self) -> str:
        return "\n".join(self) or "no BatchNorm"


def fold(model: nn.Module, example: Any = None) -> Folded:
    """Fold each BatchNorm into the Linear, Conv or ConvTranspose before it, in place; equal in evaluation mode.

    With a = gamma / sqrt(running_var + eps), output channel c of the layer before becomes::

        W'[c] = a[c] W[c]        b'[c] = a[c] (b[c] - running_mean[c]) + beta[c]

    and Identity stands where the BatchNorm was. The channel is axis 0 of Linear's and Conv's weight, and of ConvTranspose's
    axis 1 within each group of axis 0. "Before" is next before in a Sequential (a Linear there is taken to map (N, C)); with an
    ``example`` input, on which the model runs once, it is whatever layer's output the BatchNorm gets, in any module.

    A BatchNorm without such a layer before it, but with a Linear or Conv behind it, is folded into that one, whose input it
    scales. Where that Conv pads with zeros this is not exact at the border (the zeros would have to be shifted too): it stays,
    and so does one in training mode, without running statistics, whose neighbour's output or weight is used elsewhere too
    (a returned output is), or if either has a forward of its own.

    Returns the list of what was done, which says so of what stayed. Raises ValueError for a model in training mode.
    """
    if need_model("fold", model).training:
        raise ValueError("fold expected a model in evaluation mode, got one in training mode; call model.eval() first")
    paths = {id(m): path for path, m in model.named_modules()}
    neighbours = _in_chains(model) if example is None else _in_run(model, example)
    done, uses = Folded(), _uses(model)
    for path, layer in [(path, m) for path, m in model.named_modules() if isinstance(m, BatchNorm)]:
        if id(layer) in neighbours:
            _fold_one(model, done, path, layer, *neighbours[id(layer)], uses, paths)
        elif example is None:
            _keep(done, path, "it stands in no Sequential; fold(model, example) finds out what comes before it")
        else:
            _keep(done, path, "it is not called exactly once")
    return done


def _in_chains(model: nn.Module) -> dict[int, tuple[Any, Any]]:
    """The modules before and behind each BatchNorm in a Sequential."""
    found: dict[int, tuple[Any, Any]] = {}
    for chain in [m for m in model.modules() if _is_chain(m)]:
        members = [None, *_flat(chain), None]
        for before, layer, behind in zip(members, members[1:], members[2:], strict=False):
            if isinstance(layer, BatchNorm):
                found.setdefault(id(layer), (before, behind))
    return found


def _in_run(model: nn.Module, example: Any) -> dict[int, tuple[Any, Any]]:
    """The layers whose outputs the BatchNorms got in a run, and those that got theirs, where nobody else did."""
    seen = trace(model, example if isinstance(example, Box) else Tensor(example))
    affine, returned = (nn.Linear, _Conv), list(_arrays(seen.visits[-1].out))
    found: dict[int, tuple[Any, Any]] = {}
    for layer in [m for m in model.modules() if isinstance(m, BatchNorm)]:
        visits = seen.calls(layer)
        if len(visits) == 1:
            x, out = visits[0].x, visits[0].out
            before = seen.made_by(x, affine) if len(seen.consumers(x)) == 1 and not any(a is x for a in returned) else None
            if isinstance(before, nn.Linear) and x.ndim != 2:
                before = None  # its channels are the last axis, BatchNorm's the second
            takers = seen.consumers(out)
            behind = takers[0].module if len(takers) == 1 and isinstance(takers[0].module, affine) else None
            if any(a is out for a in returned) or (isinstance(behind, nn.Linear) and out.ndim != 2):
                behind = None
            found[id(layer)] = (before if _once(seen, before) else None, behind if _once(seen, behind) else None)
    return found


def _once(seen: Trace, module: Any) -> bool:
    """Whether the run called it once, and used its weight nowhere else."""
    if module is None or len(seen.calls(module)) != 1:
        return False
    return all(op.module is module for op in seen.consumers(module.weight._data))


def _arrays(out: Any) -> Iterator[Any]:
    """The arrays in what a model returned."""
    if isinstance(out, (tuple, list, dict)):
        for part in out.values() if isinstance(out, dict) else out:
            yield from _arrays(part)
    else:
        yield out._data if isinstance(out, Box) else out


def fold_pair(layer: Any, batchnorm: BatchNorm) -> None:
    """Fold a BatchNorm into the Linear, Conv or ConvTranspose whose output it gets, in place; put nn.Identity in its place.

    Raises TypeError or ValueError for another layer, other numbers of channels, or no running statistics, and changes nothing.
    """
    if (reason := _unfit(layer, batchnorm)) is not None:
        raise ValueError(f"fold_pair expected a BatchNorm that can be folded, but {reason}")
    bias = None if layer.bias is None else layer.bias._data
    groups = layer.groups if isinstance(layer, nn.ConvTranspose2d) else None
    layer.weight.data, shift = fold_arrays(layer.weight._data, bias, *_affine(batchnorm), groups)
    if layer.bias is None:
        layer.bias = nn.Parameter(shift)
    else:
        layer.bias.data = shift


def fold_arrays(w: Any, b: Any, a: Any, c: Any, groups: int | None = None) -> tuple[Any, Any]:
    """The weight and the bias, in w's dtype, that make a z + c of a layer's output z; b may be None.

    ``groups`` is for a transposed convolution, whose weight is (in, out / groups, kh, kw): a group's inputs make that group's
    outputs.
    """
    if groups is None:
        new = w * a.reshape(-1, *(1,) * (w.ndim - 1))
    else:
        new = (w.reshape(groups, -1, *w.shape[1:]) * a.reshape(groups, 1, -1, 1, 1)).reshape(w.shape)
    shift = c if b is None else a * b + c
    return xp_of(w).ascontiguousarray(new.astype(w.dtype)), shift.astype(w.dtype)


def affine(gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> tuple[Any, Any]:
    """a and c of BatchNorm's y = a x + c, in float64; gamma and beta may be None."""
    mean, var = mean.astype("float64"), var.astype("float64")
    a = 1.0 / xp_of(var).sqrt(var + eps)
    if gamma is None or beta is None:
        return a, -a * mean
    a = a * gamma
    return a, beta - a * mean


def _affine(batchnorm: BatchNorm) -> tuple[Any, Any]:
    of = (batchnorm.weight, batchnorm.bias, batchnorm.running_mean, batchnorm.running_var)
    gamma, beta, mean, var = (None if t is None else t._data for t in of)
    return affine(gamma, beta, mean, var, batchnorm.eps)


def _fold_one(
    model: nn.Module, done: Folded, path: str, layer: BatchNorm, before: Any, behind: Any, uses: dict, paths: dict
) -> None:
    reason = _unfit(before, layer) if before is not None else "no Linear, Conv or ConvTranspose comes just before it"
    if reason is None and (_shared(before, uses) or uses[id(layer)] > 1):
        reason = f"{paths[id(before)]} or it is used in more than one place"
    if reason is None:
        fold_pair(before, layer)
        done.append(f"{path}: folded into {paths[id(before)]}, before it")
    elif _scales(behind, layer) and not _shared(behind, uses) and uses[id(layer)] == 1:
        if any(getattr(behind, "padding", (0,))):
            _keep(done, path, f"{reason}, and {paths[id(behind)]} behind it pads with zeros: not exact at the border")
            return
        _fold_forward(layer, behind)
        done.append(f"{path}: folded into {paths[id(behind)]}, behind it")
    else:
        _keep(done, path, reason)
        return
    replace(model, layer, nn.Identity())


def _scales(behind: Any, layer: BatchNorm) -> bool:
    """Whether a BatchNorm could be folded into the layer behind it, but for padding."""
    if layer.training or layer.running_mean is None or _overrides(behind) or _overrides(layer):
        return False
    if isinstance(behind, nn.Linear):  # its last axis must be the channels: with (N, C, L) in between it is not
        return layer._shapes == nn.BatchNorm1d._shapes and behind.in_features == layer.num_features
    return isinstance(behind, (nn.Conv1d, nn.Conv2d)) and behind.in_channels == layer.num_features


def _fold_forward(layer: BatchNorm, behind: Any) -> None:
    """W (a x + c) + b = (W a) x + (W c + b)."""
    a, c = _affine(layer)
    w = behind.weight._data
    inner = w.shape[1]
    groups = getattr(behind, "groups", 1)
    column = (groups, 1, inner, *(1,) * (w.ndim - 2))
    by_group = w.reshape(groups, -1, *w.shape[1:]).astype("float64")
    shift = (by_group * c.reshape(column)).reshape(w.shape[0], -1).sum(1)
    new = (by_group * a.reshape(column)).reshape(w.shape).astype(w.dtype)
    bias = shift if behind.bias is None else shift + behind.bias._data
    behind.weight.data = new
    if behind.bias is None:
        behind.bias = nn.Parameter(bias.astype(w.dtype))
    else:
        behind.bias.data = bias.astype(w.dtype)


def _unfit(layer: Any, batchnorm: Any) -> str | None:
    """Why this BatchNorm cannot be folded into this layer before it, or None."""
    if not isinstance(batchnorm, BatchNorm):
        return f"got {type(batchnorm).__name__}, no BatchNorm"
    if batchnorm.training and not batchnorm.frozen:
        return "it is in training mode"
    if batchnorm.running_mean is None:
        return "it has no running statistics"
    if not isinstance(layer, (nn.Linear, _Conv)):
        return f"{type(layer).__name__} before it is no Linear, Conv or ConvTranspose"
    for m in (layer, batchnorm):
        if _overrides(m):
            return f"{type(m).__name__} has a forward of its own"
    out = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if out != batchnorm.num_features:
        return f"the layer before it has {out} channels, and it has {batchnorm.num_features}"
    return None


def _flat(chain: nn.Sequential) -> list[nn.Module]:
    """The modules that run one after another, Sequentials inside opened and Identities left out."""
    found: list[nn.Module] = []
    for m in chain:
        found += _flat(m) if _is_chain(m) else [] if isinstance(m, nn.Identity) else [m]
    return found


def _is_chain(module: Any) -> TypeGuard[nn.Sequential]:
    """A Sequential that runs as one: a subclass with another forward, such as a residual block, does not."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _overrides(module: Any) -> bool:
    """Whether a subclass of these layers computes something else."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, BatchNorm)
    return isinstance(module, kinds) and all(type(module).forward is not kind.forward for kind in kinds)


def _uses(model: nn.Module) -> dict[int, int]:
    """In how many places of the tree each module and each parameter stands."""
    counts: dict[int, int] = {}

    def visit(part: Any) -> None:  # what stands in a shared module stands wherever that does
        counts[id(part)] = counts.get(id(part), 0) + 1
        for child in vars(part).values() if isinstance(part, nn.Module) else ():
            if isinstance(child, (nn.Module, nn.Parameter)):
                visit(child)

    visit(model)
    return counts


def _shared(layer: nn.Module, uses: dict[int, int]) -> bool:
    return any(uses.get(id(part), 1) > 1 for part in (layer, *layer.parameters()))  # (fold itself may have made a bias)


def _keep(done: Folded, path: str, reason: str) -> None:
    done.kept[path] = reason
    done.append(f"{path}: stays, since {reason}")
