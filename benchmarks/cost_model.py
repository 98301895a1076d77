"""What a data-parallel step costs: latency, bandwidth and compute. Seconds and bytes throughout; R is the number of ranks.

A message of n bytes takes ``latency + n * per_byte``. An all-reduce of n bytes takes, the ranks' links being independent
(Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in MPICH"):

    recursive doubling    ceil(log2 R) (latency + n per_byte)
    halving and doubling  2 ceil(log2 R) latency + 2 (R - 1) / R n per_byte
    ring                  2 (R - 1) latency      + 2 (R - 1) / R n per_byte

and an all-gather of n bytes from each rank ``ceil(log2 R) latency + (R - 1) n per_byte``. A step of SyncBatchNorm in
data-parallel training is

    compute + max(0, all-reduce of the gradients - what backward can hide) + the sum over SyncBatchNorm layers of
    (all-gather of counts, means and centred sums in forward, all-reduce of two sums in backward)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2
from typing import NamedTuple

import numpy as np


class Network(NamedTuple):
    """What joins the ranks: seconds that a message takes, however short, and seconds for each byte of it."""

    latency: float
    per_byte: float


class Model(NamedTuple):
    """A network trained on a batch for each rank: seconds of a step on one rank, bytes of its gradients, seconds of backward
    in which they can travel, and the channels of each BatchNorm."""

    compute: float
    gradient_bytes: float
    hideable: float
    channels: Sequence[int]


def recursive_doubling(network: Network, ranks: int, size: float) -> float:
    return ceil(log2(ranks)) * (network.latency + size * network.per_byte)


def halving_and_doubling(network: Network, ranks: int, size: float) -> float:
    return 2 * ceil(log2(ranks)) * network.latency + 2 * (ranks - 1) / ranks * size * network.per_byte


def ring(network: Network, ranks: int, size: float) -> float:
    return 2 * (ranks - 1) * network.latency + 2 * (ranks - 1) / ranks * size * network.per_byte


ALL_REDUCES = {"recursive doubling": recursive_doubling, "halving and doubling": halving_and_doubling, "ring": ring}


def all_reduce(network: Network, ranks: int, size: float) -> tuple[float, str]:
    """Seconds, and the name, of the fastest of the three."""
    return min((cost(network, ranks, size), name) for name, cost in ALL_REDUCES.items())


def all_gather(network: Network, ranks: int, size: float) -> float:
    """``size``: bytes from each rank."""
    return ceil(log2(ranks)) * network.latency + (ranks - 1) * size * network.per_byte


def sync_batch_norm(network: Network, ranks: int, channels: Sequence[int]) -> float:
    """Seconds a step that the SyncBatchNorm layers wait: nothing else can be computed meanwhile.

    MPICH takes halving and doubling even for so few bytes, unless it is told otherwise.
    """
    forward = sum(all_gather(network, ranks, 8 * (1 + 2 * c)) for c in channels)
    return forward + sum(halving_and_doubling(network, ranks, 8 * 2 * c) for c in channels)


def step(model: Model, network: Network, ranks: int, sync: bool) -> float:
    """Seconds a step of data-parallel training, on a batch for each rank; with SyncBatchNorm or without."""
    if ranks == 1:
        return model.compute
    left = max(0.0, all_reduce(network, ranks, model.gradient_bytes)[0] - model.hideable)
    return model.compute + left + (sync_batch_norm(network, ranks, model.channels) if sync else 0.0)


def fit(sizes: Sequence[int], seconds: Sequence[float], ranks: int) -> tuple[Network, float]:
    """The network behind all-reduces of these sizes, by halving and doubling; and the largest error, as a share of the time.

    Least squares of the relative errors, so that 64 bytes count as much as 64 MB; neither figure below zero.
    """
    t = np.asarray(seconds, float)
    ways = [halving_and_doubling(Network(1.0, 0.0), ranks, 0.0), halving_and_doubling(Network(0.0, 1.0), ranks, 1.0)]
    rows = np.stack([ways[0] / t, ways[1] * np.asarray(sizes, float) / t], axis=1)
    best = np.linalg.lstsq(rows, np.ones_like(t), rcond=None)[0]
    if best.min() < 0:  # then the better of the two on an axis
        alone = [np.eye(2)[i] * rows[:, i].sum() / (rows[:, i] ** 2).sum() for i in range(2)]
        best = min(alone, key=lambda x: float(((rows @ x - 1) ** 2).sum()))
    return Network(float(best[0]), float(best[1])), float(np.abs(rows @ best - 1).max())
