"""Batch renormalisation: in training, too, the output that the running statistics would give."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..backend import xp_of
from ..ops.checks import need_number
from ..ops.norm import check_parameters
from ..tensor import Tensor
from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm


class _BatchRenorm(_BatchNorm):
    """BatchNorm whose normalised values are moved towards those of the running statistics. Ioffe 2017, Algorithm 1.

    In training, with the batch's mu_B and sigma_B = sqrt(var_B + eps), and the running mu and sigma = sqrt(var + eps) from
    before this batch::

        r = clip(sigma_B / sigma, 1 / r_max, r_max)      d = clip((mu_B - mu) / sigma, -d_max, d_max)
        x_hat = (x - mu_B) / sigma_B * r + d              y = gamma * x_hat + beta

    r and d are constants to the gradient. Where neither is clipped, y is what evaluation gives: (x - mu) / sigma. r_max = 1
    and d_max = 0 are BatchNorm: the paper begins so, and relaxes to r_max = 3 and d_max = 5, the defaults here; both
    are attributes that may change between steps. The running statistics follow as BatchNorm's do, as a mean and a variance
    (the paper averages sigma itself), so that the state is BatchNorm's; evaluation is BatchNorm's too.

    Raises ValueError for r_max below 1, d_max below 0, or ``track_running_stats=False``: it needs the running statistics.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        **options: Any,
    ):
        name = type(self).__name__
        if track_running_stats is False:
            raise ValueError(f"{name} expected track_running_stats=True, got False: it renormalises by the running statistics")
        self.r_max, self.d_max = need_number(name, "r_max", r_max, 1), need_number(name, "d_max", d_max, 0)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)

    def _normalise(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        # Checked first, since they are used after the running statistics have followed.
        check_parameters(type(self).__name__, x, {"gamma": self.weight, "beta": self.bias}, (self.num_features,))
        x_hat, (mean, var) = self._operation(x, None, None, eps=self.eps)
        xp, before = xp_of(mean), (self.running_mean._data, self.running_var._data)
        self._track(x, mean, var)
        sigma = xp.sqrt(before[1] + self.eps)
        r = xp.clip(xp.sqrt(var + self.eps) / sigma, 1 / self.r_max, self.r_max).astype(before[0].dtype)
        d = xp.clip((mean - before[0]) / sigma, -self.d_max, self.d_max).astype(before[0].dtype)
        if self.weight is not None and self.bias is not None:
            r, d = self.weight * r, self.weight * d + self.bias
        column = (1, -1) + (1,) * (len(x.shape) - 2)
        y = x_hat * r.reshape(column) + d.reshape(column)
        return y if y.dtype == x.dtype else ops.cast(y, dtype=x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


class BatchRenorm1d(_BatchRenorm):
    _shapes = BatchNorm1d._shapes


class BatchRenorm2d(_BatchRenorm):
    _shapes = BatchNorm2d._shapes


class BatchRenorm3d(_BatchRenorm):
    _shapes = BatchNorm3d._shapes


for _layer in (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d):
    _layer.__doc__ = _BatchRenorm.__doc__
