"""Precise statistics: running means and variances made those of a whole data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import nn
from ..backend import device_of, to_device
from ..core import Listener, listening, no_grad
from .layers import BatchNorm, as_pairs, need_model, tracking, unchanged
from .measures import on_device
from .moments import Moments


def recalibrate(model: nn.Module, batches: Any) -> nn.Module:
    """Set the running statistics of every BatchNorm to the mean and the variance that its input has over all of ``batches``.

    ``batches`` is an iterable of (x, y) or x, on any device; labels are not used. The model runs in evaluation mode without
    recording, and layer by layer: a layer's statistics are taken when those of the layers before it are final. So they are
    what the layer will meet in evaluation, they do not depend on the split into batches or on their order, and Dropout
    upstream does not widen them. The variance is the population's (divided by n), from counts, means and centred sums merged
    in float64, not the mean of the batches' variances. After Wu & Johnson 2021, section 3, "PreciseBN"; there all layers are
    measured in one pass in training mode. Each of L layers costs a pass up to that layer. Returns the model, in the mode that
    it was in; ``num_batches_tracked`` becomes the number of batches.

    Raises TypeError or ValueError for no batches, no running statistics, or statistics that are not finite; then, as after any
    error, the model is as it was.
    """
    need_model("recalibrate", model)
    pairs, found = on_device(model, as_pairs("recalibrate", batches)), dict(tracking(model))
    with unchanged(model):
        statistics = measure(model, [x for x, _ in pairs])
    for path, layer in found.items():
        if path in statistics:
            put(layer, *statistics[path])
            layer.num_batches_tracked = len(pairs)
    return model


def measure(model: nn.Module, xs: list[Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(mean, population variance) of each BatchNorm's input by path, in order of calls; leaves the buffers changed.

    Layers that the model never calls are left out. Raises ValueError where statistics are not finite.
    """
    layers = tracking(model)
    paths = {id(layer): path for path, layer in layers}
    by_path = {path: layer for path, layer in layers}
    for _, layer in layers:
        layer.reset_running_stats()  # NaN in what was there would spread
    model.eval()
    order = _Calls(paths)
    with no_grad(), listening(order):
        model(xs[0])
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for path, times in order.calls.items():
        found[path] = moments = _one(model, by_path[path], xs, times)
        if not all(np.isfinite(v).all() for v in moments):
            raise ValueError(
                f"expected inputs with finite statistics, got NaN or infinity at the input of {path or 'the model'}"
            )
        put(by_path[path], *moments)
    return found


def put(layer: BatchNorm, mean: np.ndarray, var: np.ndarray) -> None:
    """Make these the running statistics, in the dtype and on the device of those that are there."""
    assert layer.running_mean is not None
    dtype, device = layer.running_mean.dtype, device_of(layer.running_mean._data)
    for name, value in (("running_mean", mean), ("running_var", var)):
        setattr(layer, name, nn.Buffer(to_device(value.astype(dtype), device)))


def _one(model: nn.Module, layer: BatchNorm, xs: list[Any], times: int) -> tuple[np.ndarray, np.ndarray]:
    moments = Moments()
    for x in xs:
        ear = _Input(layer, moments, times)
        try:
            with no_grad(), listening(ear):
                model(x)
        except _Enough:
            pass
    if not moments.n:
        raise ValueError("expected batches with examples, got only empty ones")
    return moments.mean, moments.var


class _Enough(BaseException):
    """What ends a forward pass after the layer of interest. No Exception, so that no model takes it for an error."""


class _Calls(Listener):
    """How often each layer is called in a pass, by path, in the order of first calls."""

    def __init__(self, paths: dict[int, str]):
        self.paths = paths
        self.calls: dict[str, int] = {}

    def enter_module(self, module: Any) -> None:
        if (path := self.paths.get(id(module))) is not None:
            self.calls[path] = self.calls.get(path, 0) + 1


class _Input(Listener):
    """Takes the moments of a layer's inputs: what the first operation inside it is given. Ends the pass at the last call."""

    def __init__(self, layer: BatchNorm, moments: Moments, times: int):
        self.layer, self.moments, self.left, self.inside = layer, moments, times, False

    def enter_module(self, module: Any) -> None:
        self.inside |= module is self.layer

    def apply(self, _name: str, inputs: tuple, *_rest: Any) -> None:
        if self.inside:
            self.inside = False
            self.moments.add(inputs[0])
            self.left -= 1
            if self.left == 0:
                raise _Enough
