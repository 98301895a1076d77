"""DataParallel: every rank has the model and a part of each batch, and all get the gradient of the whole batch."""

from __future__ import annotations

import math
import numbers
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count as count_up
from itertools import zip_longest
from typing import Any

import numpy as np

from ..backend import ARRAY_TYPES, type_name
from ..core import Box, is_grad_enabled, modes, primitive
from ..nn import Buffer, Module
from ..ops.checks import need_int, need_number
from .communicators import Communicator, current
from .gradients import GradientExchange, describe
from .start import need_init


class DataParallel(Module):
    """A model of which every rank has a copy, trained on parts of one batch::

        distributed.init()
        model = distributed.DataParallel(tg.models.cnn(norm="batch"))
        optimizer = tg.optim.SGD(model.parameters(), lr=0.1)
        for images, labels in distributed.shard(batches):
            loss = tg.cross_entropy(model(tg.tensor(images)), tg.tensor(labels))  # the mean over this rank's examples
            optimizer.zero_grad()
            loss.backward()  # .grad is now that of the mean over all ranks' examples, the same bits on every rank
            optimizer.step()

    At first, rank 0's parameters and buffers become those of all. ``forward`` is the model's. A rank with n of the batch's N
    examples weighs n / N, so parts may be unequal, or empty: the output's gradient is multiplied by size * n / N, and the
    gradients of all ranks are averaged. So what else is in the loss, such as a penalty, is averaged too. ``count``, a function
    of forward's arguments, gives n; by default it is the length of the first. n is exchanged while forward runs.

    Gradients travel in flat buckets of at least ``bucket_bytes``, those of the last layers first, each as soon as all its
    gradients are there and while backward goes on; by default there are about eight, of at least 256 KiB. (Between the
    cores of one machine they travel at the end: there that is faster.) ``.grad`` is whole when ``backward()`` returns; a
    ``register_post_accumulate_grad_hook`` sees this rank's share. A parameter without a gradient on some rank counts as
    zero there, and keeps none if no rank has one. Buffers that each rank makes of its own examples, such as BatchNorm's
    running statistics, become rank 0's at the end of each such ``backward()``; those of SyncBatchNorm are the same
    everywhere. ``state_dict()`` is the model's, without a prefix.

    Every rank must run forward and backward equally often; under ``no_grad()`` nothing is exchanged. The parameters are those
    that the model has when it is wrapped, once: another DataParallel of the model takes the place of the first. The model
    returns a Tensor, or a tuple, list or dict of them. In a single process forward is the model's alone.

    Raises ValueError, on every rank, if the models of two ranks differ, with the name of the first parameter, buffer or module
    that does, if no rank has an example, or where one rank runs forward and another backward; TypeError for another output, or
    where forward's first argument has no length and there is no ``count``; RuntimeError before ``init()`` where the process is
    one of several, for a model that has got other parameters, and after an error that left an exchange.
    """

    def __init__(self, module: Module, *, bucket_bytes: int | None = None, count: Callable[..., float] | None = None):
        need_init("DataParallel")
        if not isinstance(module, Module):
            raise TypeError(f"DataParallel expected a Module, got {type_name(module)}")
        if any(isinstance(m, DataParallel) for m in module.modules()):
            raise TypeError("DataParallel expected a model without a DataParallel in it; wrap its .module")
        if bucket_bytes is not None:
            bucket_bytes = need_int("DataParallel", "bucket_bytes", bucket_bytes, 1)
        if count is not None and not callable(count):
            raise TypeError(f"DataParallel expected count to be a function of forward's arguments, got {type_name(count)}")
        self.module = module
        self._count = count
        self._exchange: GradientExchange | None = None
        if current().size > 1:
            current().agree("DataParallel")
            _need_same_models(current(), module)
            _take_from_rank_0(current(), module)
            for listener in modes.listeners():
                if isinstance(listener, GradientExchange) and listener.shares(module):
                    listener.stop()  # on all ranks alike: a wrapper may live on, on one of them, in a traceback
            number, ranks, notices = _communicators()
            self._exchange = GradientExchange(ranks, notices, module, bucket_bytes)
            modes.listen(self._exchange)
            weakref.finalize(self, _retire, self._exchange, number)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._exchange is None or not is_grad_enabled():
            return self.module(*args, **kwargs)
        n = self._number(args, kwargs)
        self._exchange.begin(n)
        out = self.module(*args, **kwargs)
        _need_outputs(out)
        total = self._exchange.total()
        if not total > 0:
            raise ValueError(f"DataParallel expected examples on some rank, got {total:g} on all {self._exchange.ranks.size}")
        weight = self._exchange.ranks.size * n / total
        return out if weight == 1.0 else _weighed(out, weight)

    def _number(self, args: tuple, kwargs: dict) -> float:
        if self._count is not None:
            n = need_number("DataParallel", "what count returns", self._count(*args, **kwargs), 0)
            if math.isfinite(n):
                return float(n)
            raise ValueError(f"DataParallel expected what count returns to be finite, got {n}")
        shape = getattr(args[0], "shape", None) if args else None
        if not shape:
            got = type_name(args[0]) if args else "no positional argument"
            raise TypeError(f"DataParallel expected a first argument of shape (N, ...), or count=..., got {got}")
        return float(shape[0])

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """A block in whose ``backward()`` calls gradients add up on each rank, and are not exchanged.

        The next ``backward()`` outside exchanges their sum, as it would have been exchanged step by step. Until then ``.grad``
        is of this rank alone.
        """
        if self._exchange is None:
            yield
            return
        before, self._exchange.enabled = self._exchange.enabled, False
        try:
            yield
        finally:
            self._exchange.enabled = before

    def __deepcopy__(self, memo: dict) -> Any:
        raise TypeError("a DataParallel is not copied, for its exchange would be; copy its .module")

    def state_dict(self) -> dict[str, Any]:
        """The model's."""
        return self.module.state_dict()

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
        """The model's; every rank must load the same."""
        return self.module.load_state_dict(state_dict, strict)


# ----- communicators

_made = count_up()
_idle: dict[int, tuple[Communicator, Communicator]] = {}  # of a DataParallel that is gone, by number


def _communicators() -> tuple[int, Communicator, Communicator]:
    """Two that nobody else uses, for gradients and for notices: so what backward sends meets nothing that the model exchanges.

    Those of one that is gone serve again, once it is gone on all ranks: MPI has some two thousand of them.
    """
    offered = [set(map(int, text.split())) for text in current().gather_text(" ".join(map(str, _idle)))]
    everywhere = set.intersection(*offered)
    if everywhere:
        number = min(everywhere)
        return number, *_idle.pop(number)
    return next(_made), current().duplicate(), current().duplicate_for_host()


def _retire(exchange: GradientExchange, number: int) -> None:
    exchange.stop()
    if exchange.idle:
        _idle[number] = exchange.ranks, exchange.notices


# ----- the output's gradient


@primitive
def _weigh(x, *, weight):  # noqa: ARG001
    """x itself; its gradient is multiplied by ``weight``."""
    return x.view()


_weigh.defvjp(lambda g, _out, _x, *, weight: g * weight)


def _weighed(out: Any, weight: float) -> Any:
    """All Tensors of an output, weighed."""
    if isinstance(out, Box):
        return _weigh(out, weight=weight) if out._data.dtype.kind == "f" else out
    if isinstance(out, (tuple, list)):
        parts = [_weighed(o, weight) for o in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)
    if type(out) is dict:
        return {name: _weighed(o, weight) for name, o in out.items()}
    return out


def _need_outputs(out: Any) -> None:
    """Raise TypeError for an output in which there may be Tensors that ``_weighed`` does not find."""
    if isinstance(out, (tuple, list, dict)) and (type(out) in (tuple, list, dict) or hasattr(out, "_fields")):
        for o in out.values() if isinstance(out, dict) else out:
            _need_outputs(o)
    elif not (out is None or isinstance(out, (Box, numbers.Number)) or type(out) in ARRAY_TYPES):
        raise TypeError(
            f"DataParallel expected the model to return a Tensor, or a tuple, list or dict of them, got {type_name(out)}"
        )


# ----- one model on all ranks


def _need_same_models(ranks: Communicator, module: Module) -> None:
    described = (
        [describe("parameter", name, p) for name, p in module.named_parameters()],
        [describe("buffer", name, b) for name, b in module.named_buffers()],
        [f"module {name!r}: {type(m).__name__}" for name, m in module.named_modules()],
    )
    models = [text.split("\f") for text in ranks.gather_text("\f".join("\n".join(lines) for lines in described))]
    for number, model in enumerate(models):
        for first, other in zip(models[0], model, strict=True):
            for here, there in zip_longest(first.split("\n"), other.split("\n"), fillvalue=""):
                if here != there:
                    here, there = here or "no further one", there or "no further one"
                    raise ValueError(
                        f"DataParallel expected the same model on every rank; the first difference is {here} on rank 0, "
                        f"{there} on rank {number}"
                    )


def _take_from_rank_0(ranks: Communicator, module: Module) -> None:
    for p in module.parameters():
        p.data = ranks.broadcast(p.data)
    for _, owner, name, buffer in list(module._named(Buffer)):
        setattr(owner, name, Buffer(ranks.broadcast(buffer.data)))
    numbers = np.array([_tracked(m) for m in module.modules()], np.int64)
    for m, number in zip(module.modules(), ranks.broadcast(numbers).tolist(), strict=True):
        if number >= 0:
            m.num_batches_tracked = number


def _tracked(module: Module) -> int:
    number = getattr(module, "num_batches_tracked", None)
    return number if isinstance(number, int) else -1
