"""The exchange of gradients: in flat buckets that travel while backward goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_device, to_numpy, xp_of
from ..core import Box, Listener, Node
from ..nn import Buffer, Module
from ..tensor import Tensor
from .communicators import Array, Communicator, Request

_LEAST_BYTES, _BUCKETS = 1 << 18, 8  # of a bucket (below that, latency is most of what one costs); how many there may be


class _Bucket:
    """Parameters whose gradients travel together, as one flat array; behind them, for each, on how many ranks it had one."""

    def __init__(self, params: list[Tensor]):
        self.params = params
        self.ends = np.cumsum([p.size for p in params]).tolist()
        self.missing = dict.fromkeys(range(len(params)))  # positions of those that are not here yet in this walk, in order
        self.flat: Array | None = None
        self.request: Request | None = None

    def put(self, position: int, share: float) -> None:
        """Write ``share`` of the gradient that a parameter has, or of zero."""
        p = self.params[position]
        if self.flat is None:
            wire = "float32" if p.dtype == "float16" else p.dtype
            self.flat = xp_of(p._data).empty(self.ends[-1] + len(self.params), wire)
        part = self._part(self.flat, position)
        self.flat[self.ends[-1] + position] = 0.0 if p._grad is None else 1.0
        if p._grad is None:
            part[...] = 0.0
        else:
            if p._grad.node is not None:
                raise ValueError("DataParallel cannot exchange gradients that were recorded with create_graph=True")
            xp_of(p._data).multiply(p._grad._data, share, out=part)
        del self.missing[position]

    def take(self) -> None:
        """Give each parameter its gradient, if any rank had one, and be ready for the next walk."""
        flat, self.flat, self.request, self.missing = self.flat, None, None, dict.fromkeys(range(len(self.params)))
        assert flat is not None
        for i, (p, had) in enumerate(zip(self.params, to_numpy(flat[self.ends[-1] :]), strict=True)):
            if had > 0:
                p._grad = Tensor(self._part(flat, i).astype(p.dtype, copy=False))

    def _part(self, flat: Array, position: int) -> Array:
        p = self.params[position]
        return flat[self.ends[position] - p.size : self.ends[position]].reshape(p.shape)


class GradientExchange(Listener):
    """Hears of each gradient as it is complete, and exchanges them between ``ranks``.

    Buckets start in one order on all ranks, for that is how exchanges find each other; one whose turn has not come waits. MPI
    lets them go on only when asked, so each rule of backward, and each operation of forward, asks once.
    """

    keeps_arrays = False

    def __init__(self, ranks: Communicator, module: Module, bucket_bytes: int | None):
        self.ranks, self.enabled = ranks, True
        self._parameters = list(module.parameters())
        self._bucket_bytes = bucket_bytes
        self._form: list = []
        self._buckets: list[_Bucket] = []
        self._places: dict[int, tuple[_Bucket, int]] = {}
        self._started = 0  # buckets, in this walk
        self._heard = False  # of a gradient, in this walk
        self._counts = np.zeros(1)
        self._waiting: Request | None = None  # what to ask to go on
        self._unshared = [(m, name) for _, m, name, _ in module._named(Buffer) if not getattr(m, "same_on_all_ranks", False)]
        self._buffers: tuple[Request, np.ndarray] | None = None

    # ----- forward

    def begin(self, n: float) -> None:
        """A forward pass begins, with n examples here."""
        if self._heard:
            raise RuntimeError("DataParallel: the last backward() was left by an error while gradients were exchanged")
        self._form_buckets()
        self._counts = np.array([n])
        self._waiting = self._request = self.ranks.start_all_reduce(self._counts)

    def total(self) -> float:
        """The number of examples on all ranks."""
        self._request.wait()
        self._waiting = None
        return float(self._counts[0])

    def _form_buckets(self) -> None:
        """Put the parameters that want gradients into buckets, the last first, unless all are as they were."""
        form = [(p._requires_grad, p.dtype, p.shape, type(p._data)) for p in self._parameters]
        if form == self._form:
            return
        params = [p for p in reversed(self._parameters) if p._requires_grad]
        least = self._bucket_bytes or max(_LEAST_BYTES, -(-sum(p._data.nbytes for p in params) // _BUCKETS))
        groups: list[list[Tensor]] = []
        for p in params:
            same = groups and groups[-1][0].dtype == p.dtype and type(groups[-1][0]._data) is type(p._data)
            if same and sum(q._data.nbytes for q in groups[-1]) < least:
                groups[-1].append(p)
            else:
                groups.append([p])
        self._buckets = [_Bucket(group) for group in groups]
        self._places = {id(p): (bucket, i) for bucket in self._buckets for i, p in enumerate(bucket.params)}
        self._form = form

    # ----- what the engine tells

    def apply(self, name: str, inputs: tuple, options: dict, out: Any, aux: Any, node: Any) -> None:  # noqa: ARG002
        if self._waiting is not None:
            self._waiting.test()

    def before_rule(self, node: Node, g: Any) -> None:  # noqa: ARG002
        if self._waiting is not None:
            self._waiting.test()

    def leaf_ready(self, leaf: Box, g: Any) -> None:  # noqa: ARG002
        place = self._places.get(id(leaf)) if self.enabled else None
        if place is None:
            return
        if not self._heard:
            self._heard = True
            self._start_buffers()
        bucket, position = place
        bucket.put(position, 1.0 / self.ranks.size)
        self._start_full()

    def backward_end(self) -> None:
        if not self._heard:
            return
        for bucket in self._buckets:
            for position in list(bucket.missing):  # what this walk did not reach
                bucket.put(position, 1.0 / self.ranks.size)
        self._start_full()
        for bucket in self._buckets:
            assert bucket.request is not None
            bucket.request.wait()
            bucket.take()
        self._started, self._heard, self._waiting = 0, False, None
        self._take_buffers()

    def _start_full(self) -> None:
        while self._started < len(self._buckets) and not self._buckets[self._started].missing:
            bucket = self._buckets[self._started]
            bucket.request = self._waiting = self.ranks.start_all_reduce(bucket.flat)
            self._started += 1

    # ----- buffers

    def _start_buffers(self) -> None:
        """Begin to send rank 0's buffers to all, as bytes, so that dtypes may differ."""
        if self._unshared:
            values = [np.ascontiguousarray(to_numpy(getattr(m, name)._data)) for m, name in self._unshared]
            flat = np.concatenate([v.reshape(-1).view(np.uint8) for v in values])
            self._buffers = self.ranks.start_broadcast(flat), flat

    def _take_buffers(self) -> None:
        if self._buffers is None:
            return
        (request, flat), self._buffers = self._buffers, None
        request.wait()
        start = 0
        if self.ranks.rank == 0:
            return
        for m, name in self._unshared:
            old = getattr(m, name)._data
            part = flat[start : start + old.nbytes].view(old.dtype).reshape(old.shape)
            start += old.nbytes
            setattr(m, name, Buffer(part.copy() if isinstance(old, np.ndarray) else to_device(part, "cuda")))
