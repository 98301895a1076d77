"""The exchange of gradients: in flat buckets that travel while backward goes on."""

from __future__ import annotations

import zlib
from itertools import zip_longest
from operator import is_
from typing import Any

import numpy as np

from ..backend import to_device, to_numpy, xp_of
from ..core import Box, Listener, Node, modes
from ..nn import Buffer, Module
from ..tensor import Tensor
from .communicators import Array, Communicator, Request

_LEAST_BYTES, _BUCKETS = 1 << 18, 8  # of a bucket (below that, latency is most of what one costs); how many there may be


def describe(kind: str, name: str, t: Tensor) -> str:
    """A parameter or a buffer, as ranks compare them."""
    return f"{kind} {name!r}: {t.dtype} of shape {t.shape}{'' if t.requires_grad or kind == 'buffer' else ', frozen'}"


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


class _Notice:
    """What this rank is about to do, sent to all with a number that is summed: so all learn whether they do the same.

    ``doing``: a word, and in further lines what must be the same on all ranks.
    """

    def __init__(self, ranks: Communicator, doing: str, number: float = 0.0):
        self._ranks, self._doing = ranks, doing
        code = zlib.crc32(doing.encode()) >> 12  # of 20 bits: sums of their squares are exact
        self._sums = np.array([number, code, code * code], np.float64)
        self.request = ranks.start_all_reduce(self._sums)

    def total(self) -> float:
        """The sum of the numbers. Raises ValueError, on every rank, if not all do the same."""
        self.request.wait()
        number, codes, squares = self._sums.tolist()
        if int(codes) ** 2 != self._ranks.size * int(squares):  # by Cauchy and Schwarz equal only where all codes are
            said = [text.split("\n") for text in self._ranks.gather_text(self._doing)]
            other = next(rank for rank, lines in enumerate(said) if lines != said[0])
            pairs = zip_longest(said[0], said[other], fillvalue="no further one")
            here, there = next((a, b) for a, b in pairs if a != b)
            raise ValueError(
                f"DataParallel expected the same of every rank, got {here} on rank 0, and {there} on rank {other}; to go on, "
                "wrap the model anew on all ranks"
            )
        return number


class GradientExchange(Listener):
    """Hears of each gradient as it is complete, and exchanges them between ``ranks``; ``notices`` are those of the host.

    Buckets start in one order on all ranks, for that is how exchanges find each other; one whose turn has not come waits. MPI
    lets them go on only when asked, so each rule of backward, and each operation of forward, asks once.
    """

    keeps_arrays = False

    def __init__(self, ranks: Communicator, notices: Communicator, module: Module, bucket_bytes: int | None):
        self.ranks, self.notices, self.enabled = ranks, notices, True
        self._module, self._parameters = module, list(module.parameters())
        self._bucket_bytes = bucket_bytes
        self._form: list = []
        self._described = ""
        self._buckets: list[_Bucket] = []
        self._places: dict[int, tuple[_Bucket, int]] = {}
        self._started = 0  # buckets, in this walk
        self._heard = False  # of a gradient, in this walk
        self._notice: _Notice | None = None
        self._waiting: Request | None = None  # what to ask to go on
        self._unshared: list[tuple[Module, str]] = []
        self._buffers: tuple[Request, np.ndarray] | None = None
        self._stopped = False
        self._parted = False  # whether the ranks did not do the same

    def shares(self, module: Module) -> bool:
        """Whether it exchanges gradients of parameters of that module."""
        return not {id(p) for p in self._parameters}.isdisjoint(id(p) for p in module.parameters())

    def stop(self) -> None:
        """Hear no more."""
        if not self._stopped:
            self._stopped = True
            modes.stop_listening(self)

    @property
    def idle(self) -> bool:
        """Whether nothing of it is under way, so that others may use its communicators."""
        return self._notice is None and not self._heard and not self._parted

    # ----- forward

    def begin(self, n: float) -> None:
        """A forward pass begins, with n examples here."""
        if self._stopped:
            raise RuntimeError("DataParallel: another DataParallel was made of this model since; use that one")
        if self._heard or self._parted:
            raise RuntimeError("DataParallel: an error left an exchange with other ranks; wrap the model anew on all of them")
        params = list(self._module.parameters())
        if len(params) != len(self._parameters) or not all(map(is_, params, self._parameters)):
            raise RuntimeError(
                "DataParallel: the model has other parameters than when it was wrapped; wrap it anew on all ranks"
            )
        if self._notice is not None:  # an error left the forward pass before, which all ranks have begun
            self._heed()
        self._form_buckets()
        self._give_notice(f"forward\n{self._described}", n)

    def total(self) -> float:
        """The number of examples on all ranks."""
        number = self._heed()
        self._waiting = None
        return number

    def _give_notice(self, doing: str, number: float = 0.0) -> None:
        self._notice = _Notice(self.notices, doing, number)
        self._waiting = self._notice.request

    def _heed(self) -> float:
        """Wait for the others' notices. Raises ValueError, on every rank, if not all do the same."""
        assert self._notice is not None
        notice, self._notice, self._parted = self._notice, None, True
        number = notice.total()
        self._parted = False
        return number

    def _form_buckets(self) -> None:
        """Put the parameters that want gradients into buckets, the last first, unless all are as they were."""
        buffers = [(m, n, b) for _, m, n, b in self._module._named(Buffer) if not getattr(m, "same_on_all_ranks", False)]
        self._unshared = [(m, name) for m, name, _ in buffers]
        form: list = [(p._requires_grad, p.dtype, p.shape, type(p._data)) for p in self._parameters]
        form += [(b.dtype, b.shape) for _, _, b in buffers]
        if form == self._form:
            return
        self._described = "\n".join(
            [describe("parameter", name, p) for name, p in self._module.named_parameters()]
            + [describe("buffer", name, b) for _, name, b in buffers]
        )
        params = [p for p in reversed(self._parameters) if p._requires_grad]
        least = self._bucket_bytes or max(_LEAST_BYTES, -(-sum(p._data.nbytes for p in params) // _BUCKETS))
        groups: list[list[Tensor]] = []
        filling: dict[Any, list[Tensor]] = {}  # by dtype and device
        for p in params:
            kind = p.dtype, type(p._data)
            group = filling.get(kind)
            if group is None or sum(q._data.nbytes for q in group) >= least:
                group = filling[kind] = []
                groups.append(group)
            group.append(p)
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
            self._give_notice("backward")
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
        self._heed()  # before anything is waited for that another rank may not have begun
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
