"""SyncBatchNorm: BatchNorm by the statistics of the whole batch, of which every rank has a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import nn
from ..backend import kernels_of, to_numpy, xp_of
from ..batchnorm.layers import need_model, replace
from ..core import Box, primitive
from ..nn.batchnorm import _BatchNorm
from ..ops.norm import channel_axes, check_batch, composed, rule
from ..ops.reduce import sum as sum_
from .communicators import current
from .operations import all_reduce

# ----- the operation


@primitive(aux=True)
def sync_batch_norm(x, gamma=None, beta=None, *, eps=1e-5):
    """(N, C, *S), (C,), (C,) -> (N, C, *S): batch_norm of the batch of which x is this rank's part.

    N may differ between ranks, and be 0. aux: mean and biased variance (C,) of the whole batch in float64, the same bits on
    every rank, and how many values a channel has there. One exchange forward, and one backward. Each rank has its own gamma and
    beta, whose gradients are this rank's part. Raises ValueError, on every rank, for fewer than two values per channel in all.
    """
    eps = check_batch("sync_batch_norm", x, gamma, beta, eps)
    statistics = mean, var, _ = _statistics(x)
    return kernels_of(x).batch_norm_apply(x, gamma, beta, mean, var, eps), statistics


def _statistics(x: Any) -> tuple[Any, Any, int]:
    """Mean, biased variance and count of the whole batch: from the count, mean and centred sum of squares of each rank."""
    xp, c = xp_of(x), x.shape[1]
    mine = xp.concatenate([xp.full(1, float(_count(x))), kernels_of(x).batch_norm_moments(x).reshape(-1)])
    every = current().all_gather(mine)
    counts = to_numpy(every[:, 0]).astype(int)
    total = _total(counts)
    if not counts.all():  # what an empty part says of its mean is nothing
        every = every[xp.asarray(counts > 0)]
    with np.errstate(all="ignore"):
        mean, m2 = kernels_of(x).join_moments(every[:, :1], every[:, 1 : 1 + c], every[:, 1 + c :])
        # As batch_norm has it: NaN where x is not finite, infinite where squares are too large for x's dtype.
        largest = np.finfo("float64" if x.dtype == "float64" else "float32").max
        known = xp.isfinite(mean)
        var = xp.where(known, xp.where(m2 <= total * float(largest), m2 / total, np.inf), np.nan)
    return xp.where(known, mean, np.nan), var, total


def _count(x: Any) -> int:
    """The values of a channel in this rank's part."""
    return x.size // x.shape[1] if x.shape[1] else 0


def _total(counts: np.ndarray) -> int:
    total = int(counts.sum())
    if total < 2:
        raise ValueError(
            f"sync_batch_norm expected more than 1 value per channel in training, got {total} on {len(counts)} rank(s) "
            "together; is this a last, partial batch? Leave it out with drop_last=True"
        )
    return total


def _mean_over_ranks(total: int) -> Callable[..., Any]:
    """``ops.mean`` of the whole batch, of which a channel has ``total`` values."""

    def mean(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        return all_reduce(sum_(x, axes, keepdims=keepdims)) * (1.0 / total)

    return mean


@sync_batch_norm.vjp
def _(g, _y, x, gamma, _beta, *, aux, eps):
    axes = channel_axes(len(x.shape))
    return rule(g, x, gamma, axes, eps, (1, -1) + (1,) * (len(x.shape) - 2), axes, _mean_over_ranks(aux[2]))


@sync_batch_norm.fused_vjp
def _(g, _y, x, gamma, _beta, *, aux, eps):
    kernels, (mean, var, total) = kernels_of(x), aux
    sums = kernels.batch_norm_sums(g, x, mean)
    with np.errstate(all="ignore"):
        sums[1] *= 1.0 / xp_of(x).sqrt(var + eps)  # those of g and of g x_hat
        along = current().all_reduce(sums if gamma is None else sums * gamma) / total
    dx = kernels.batch_norm_input(g, x, gamma, mean, var, eps, *along)
    return (dx, None, None) if gamma is None else (dx, sums[1].astype(gamma.dtype), sums[0].astype(gamma.dtype))


def sync_batch_norm_composed(x: Any, gamma: Any = None, beta: Any = None, eps: float = 1e-5) -> Any:
    """What sync_batch_norm computes, as a graph of primitive operations, ``all_reduce`` among them."""
    eps = check_batch("sync_batch_norm", x, gamma, beta, eps)
    own = xp_of(x._data if isinstance(x, Box) else x).full(1, float(_count(x)))
    total = _total(to_numpy(current().all_gather(own)))
    y, statistics = composed(x, gamma, beta, eps, _mean_over_ranks(total))
    return y, (*statistics, total)


# ----- the layer


class SyncBatchNorm(_BatchNorm):
    """BatchNorm of (N, C) or (N, C, *S) by the statistics of all ranks' inputs: of the batch that they are parts of.

    In training mu_B and var_B, and so the output, the running statistics and the gradients, are those of BatchNorm on the
    joined batch, however it is divided: N may differ between ranks, and be 0, as long as all together have more than one value
    per channel. The unbiased variance is that of all. The ranks exchange 2 C + 1 numbers forward (count, mean, and the sum of
    squared differences from it, joined by the formula of Chan, Golub and LeVeque 1983), and 2 C backward, in float64. A rank's
    gradients of gamma and beta are what its own examples add to those of the sum of all ranks' losses; ``DataParallel`` makes
    those of the mean over the batch of them.

    All ranks must call it together, as often, and with the same number of channels; also backward. In evaluation, frozen, or in
    a single process it is BatchNorm, and exchanges nothing. The arguments and the state are BatchNorm's; the input may have 0
    to 3 axes of positions, or those of the layer from which ``convert_sync_batchnorm`` made this one.

    Raises ValueError, on every rank, in training for fewer than two values per channel on all ranks together; and for an input
    of another shape than said.
    """

    _shapes = (*nn.BatchNorm1d._shapes, *nn.BatchNorm2d._shapes, *nn.BatchNorm3d._shapes)
    same_on_all_ranks = True  # its buffers, as DataParallel asks

    @property
    def _operation(self) -> Callable[..., Any]:
        if current().size == 1 or not self.training:
            return super()._operation
        return sync_batch_norm if self.fused else sync_batch_norm_composed


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Put SyncBatchNorm in the place of every BatchNorm1d, BatchNorm2d and BatchNorm3d. Returns the model.

    The new layers have the old ones' Parameters, so that an optimizer goes on with them, running statistics, settings and mode,
    and take inputs of the same shapes; ``tinygrad_bn.batchnorm.convert(model, "batch")`` makes them BatchNorm again. A model
    that is itself a BatchNorm is replaced by what is returned. Everything else stays as it is: GhostBatchNorm and BatchRenorm,
    which take statistics of this rank's part, and layers derived from BatchNorm that have a ``forward`` of their own. Convert
    before ``DataParallel`` is given the model.

    Raises TypeError for no Module.
    """
    for old in list(need_model("convert_sync_batchnorm", model).modules()):
        if isinstance(old, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and type(old).forward is _BatchNorm.forward:
            new = SyncBatchNorm(old.num_features)
            vars(new).update(vars(old), _shapes=old._shapes)
            replace(model, old, new)
            model = new if old is model else model
    return model
