"""Count, mean and variance of values that come in parts, by channel. Chan, Golub & LeVeque 1979."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_numpy


class Moments:
    """Count, mean and sum of squared deviations of each channel, in float64, merged part by part.

    From counts n and k, means mu and nu, and centred sums of squares M and S of two parts follow those of their union::

        mean = mu + (nu - mu) k / (n + k)        M + S + (nu - mu)^2 n k / (n + k)

    The result does not depend on how the values were split, but for rounding.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Any = 0.0
        self.centred: Any = 0.0

    def add(self, x: Any) -> None:
        """The values of x, (N, C, *S)."""
        x = np.moveaxis(to_numpy(x), 1, -1).reshape(-1, x.shape[1]).astype(np.float64)
        if len(x):
            mean = x.mean(0)
            rest = x - mean
            self.merge(len(x), mean, (rest * rest).sum(0))

    def merge(self, k: int, mean: np.ndarray, centred: np.ndarray) -> None:
        """Another part: its count, means and centred sums of squares."""
        total = self.n + k
        step = mean - self.mean
        self.mean = self.mean + step * (k / total)
        self.centred = self.centred + centred + step * step * (self.n * k / total)
        self.n = total

    @property
    def var(self) -> np.ndarray:
        """The population variance: of all values, divided by their number."""
        return self.centred / self.n
