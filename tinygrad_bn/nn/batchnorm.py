"""Batch normalisation as layers: statistics of the batch in training, running averages of them in evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..backend import device_of, kernels_of, xp_of
from ..ops.checks import need_bool, need_number, need_one_device, need_one_of
from ..ops.norm import check_parameters
from ..tensor import Tensor
from . import init
from .common import expect, fresh, need_positive, shape_or_none
from .module import Buffer
from .norms import AffineNorm


class _BatchNorm(AffineNorm):
    """Normalise each channel of (N, C, *S) over the batch and all positions. Ioffe & Szegedy 2015.

    In training, with mu_B and the biased variance var_B of the m = N * prod(S) values of the channel::

        x_hat = (x - mu_B) / sqrt(var_B + eps)         y = gamma * x_hat + beta

    and the buffers follow: ``running_mean = (1 - momentum) * running_mean + momentum * mu_B``, and likewise ``running_var``
    with the unbiased variance, var_B * m / (m - 1), as in the paper's Algorithm 2 (``variance="biased"`` takes var_B itself,
    as Flax does). ``momentum`` weighs the new value, as in PyTorch (Keras' 0.99 is 0.01 here); None takes the average of all
    batches so far, 1 / num_batches_tracked. They start as 0 and 1. Statistics are taken in at least float32, by two passes.

    In evaluation ``y = gamma * (x - running_mean) / sqrt(running_var + eps) + beta``: an affine map for each channel, with its
    own gradient. With ``track_running_stats=False`` the batch's statistics serve there too. A ``frozen`` layer
    (``tinygrad_bn.batchnorm.freeze``) does in training what it does in evaluation.

    The buffers are replaced, never changed in place, and only after a successful forward pass, also under ``no_grad``. A
    channel whose batch statistics are not finite keeps its running values, and on the CPU a RuntimeWarning says so. gamma is
    ``weight`` (ones), beta ``bias`` (zeros); ``affine=False`` leaves both out. ``fused=False`` computes the same by primitive
    operations, for whoever wants to see them in the graph.

    Raises ValueError in training for fewer than two values per channel, and for an input of another shape than said.
    """

    _shapes: tuple[tuple[int, str], ...]
    running_mean: Buffer | None
    running_var: Buffer | None
    frozen = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        variance: str = "unbiased",
        fused: bool = True,
    ):
        name = type(self).__name__
        need_positive(name, num_features=num_features)
        eps = need_number(name, "eps", eps, 0)
        if momentum is not None:
            momentum = need_number(name, "momentum", momentum, 0, 1, ", or None for the average of all batches")
        need_one_of(name, "variance", variance, "unbiased", "biased")
        need_bool(name, "track_running_stats", track_running_stats)
        need_bool(name, "fused", fused)
        self.num_features, self.eps, self.momentum = num_features, float(eps), momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.variance, self.fused = variance, fused
        self._setup((num_features,), affine)
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Put the running statistics back to mean 0, variance 1, and no batches."""
        like = getattr(self, "running_mean", None)
        like = fresh(self.num_features) if like is None else like
        xp, dtype = xp_of(like._data), like.dtype
        self.running_mean = Buffer(xp.zeros(self.num_features, dtype)) if self.track_running_stats else None
        self.running_var = Buffer(xp.ones(self.num_features, dtype)) if self.track_running_stats else None
        self.num_batches_tracked = 0

    def reset_parameters(self) -> None:
        """Put gamma back to 1, beta to 0, and the running statistics to their start."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = shape_or_none(x)
        for ndim, _ in self._shapes:
            if len(shape) == ndim and shape[1] == self.num_features:
                break
        else:
            known = " or ".join(s.replace("C", str(self.num_features)) for _, s in self._shapes)
            expect(type(self).__name__, x, False, known)
        if self.running_mean is not None and self.running_var is not None and (self.frozen or not self.training):
            return ops.batch_norm_inference(x, self.weight, self.bias, self.running_mean, self.running_var, eps=self.eps)
        return self._normalise(x)

    @property
    def tracks(self) -> bool:
        """Whether running statistics follow the batch that comes now."""
        return self.training and self.running_mean is not None and not self.frozen

    def _normalise(self, x: Tensor) -> Tensor:
        """By the statistics of x itself, which the running ones then follow in training."""
        y, statistics = self._operation(x, self.weight, self.bias, eps=self.eps)
        if self.tracks:  # (only now, so that nothing follows a batch that raised)
            self._track(x, *statistics)
        return y

    @property
    def _operation(self) -> Callable[..., Any]:
        """What normalises by the batch: it returns y, and the statistics that ``_track`` takes."""
        return ops.batch_norm if self.fused else ops.batch_norm_composed

    def _track(self, x: Tensor, mean: Any, var: Any, count: int | None = None) -> None:
        """Let the running statistics follow those of ``count`` values per channel, by default of all that x has.

        Everything is made before anything is replaced.
        """
        assert self.running_mean is not None and self.running_var is not None
        name = type(self).__name__
        old_mean, old_var = self.running_mean._data, self.running_var._data
        if old_mean.dtype != x.dtype or old_mean.shape != mean.shape:
            check_parameters(name, x, {"running_mean": self.running_mean}, (self.num_features,))
        if type(mean) is not type(old_mean):
            need_one_device(name, x=x, running_mean=self.running_mean)
        m = x.size // self.num_features if count is None else count
        weight = 1.0 / (self.num_batches_tracked + 1) if self.momentum is None else float(self.momentum)
        correction = m / (m - 1) if self.variance == "unbiased" else 1.0
        new_mean, new_var, finite = kernels_of(mean).follow(old_mean, old_var, mean, var, weight, correction)
        if finite is not None and device_of(mean) == "cpu" and not finite.all():
            bad = np.flatnonzero(~finite)
            warnings.warn(
                f"{name}: the batch statistics of channel(s) {bad.tolist()} are not finite; "
                "their running statistics stay as they were",
                RuntimeWarning,
                stacklevel=5,
            )
        vars(self).update(  # (without the check that a buffer becomes a buffer)
            running_mean=Buffer.of(new_mean),
            running_var=Buffer.of(new_var),
            num_batches_tracked=self.num_batches_tracked + 1,
        )

    def _extra_state(self) -> dict[str, Any]:
        return {"num_batches_tracked": np.array(self.num_batches_tracked, np.int64)} if self.track_running_stats else {}

    def _extra_value(self, name: str, value: np.ndarray) -> int:  # noqa: ARG002
        number = value.item()
        if not number >= 0 or number != int(number):
            raise ValueError(f"expected a whole number of at least 0, got {number}")
        return int(number)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
            f"{'' if self.variance == 'unbiased' else ', variance=biased'}{'' if self.fused else ', fused=False'}"
        )


class BatchNorm1d(_BatchNorm):
    _shapes = ((2, "(N, C)"), (3, "(N, C, L)"))


class BatchNorm2d(_BatchNorm):
    _shapes = ((4, "(N, C, H, W)"),)


class BatchNorm3d(_BatchNorm):
    _shapes = ((5, "(N, C, D, H, W)"),)


for _layer in (BatchNorm1d, BatchNorm2d, BatchNorm3d):
    _layer.__doc__ = f"Batch normalisation of {' or '.join(s for _, s in _layer._shapes)}.\n\n" + (_BatchNorm.__doc__ or "")
