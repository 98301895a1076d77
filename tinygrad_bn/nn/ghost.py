"""Ghost batch normalisation: the statistics of small parts of a large batch."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..tensor import Tensor
from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from .common import need_positive


class _GhostBatchNorm(_BatchNorm):
    """Normalise each ghost batch, ``ghost_size`` examples one after another, by its own statistics. Hoffer et al. 2017, Alg. 1.

    In training a batch of N examples is cut, in order, into ghost batches of ``ghost_size`` (the last may be smaller); each
    gives the output, and the gradient, that BatchNorm gives it alone. The running statistics follow each ghost batch in turn,
    as if they had come one after another, so ``num_batches_tracked`` counts ghost batches; they average means and variances as
    BatchNorm's do (the paper averages sigma itself). In evaluation it is BatchNorm, and so it is in training for a batch of at
    most ``ghost_size`` examples. The other arguments, and the state, are BatchNorm's.

    Raises ValueError in training if a ghost batch has fewer than two values per channel; then nothing has changed.
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        **options: Any,
    ):
        need_positive(type(self).__name__, ghost_size=ghost_size)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        self.ghost_size = ghost_size

    def _normalise(self, x: Tensor) -> Tensor:
        n, size = x.shape[0], self.ghost_size
        if n <= size:
            return super()._normalise(x)
        ghosts = [x[i : i + size] for i in range(0, n, size)]
        found = [self._operation(ghost, self.weight, self.bias, eps=self.eps) for ghost in ghosts]
        if self.tracks:
            for ghost, (_, statistics) in zip(ghosts, found, strict=True):
                self._track(ghost, *statistics)
        return ops.concatenate([y for y, _ in found])

    def extra_repr(self) -> str:
        return super().extra_repr().replace(", eps=", f", ghost_size={self.ghost_size}, eps=", 1)


class GhostBatchNorm1d(_GhostBatchNorm):
    _shapes = BatchNorm1d._shapes


class GhostBatchNorm2d(_GhostBatchNorm):
    _shapes = BatchNorm2d._shapes


class GhostBatchNorm3d(_GhostBatchNorm):
    _shapes = BatchNorm3d._shapes


for _layer in (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d):
    _layer.__doc__ = _GhostBatchNorm.__doc__
