"""Batches of two arrays: in an order that a seed fixes, resumable in the middle of an epoch."""

import operator
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..backend import library_for
from ..backend.upload import Uploader


class Array(Protocol):
    """What batches() needs: a NumPy array, a CuPy array, or the like."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: Any, /) -> Any: ...


X = TypeVar("X", bound=Array)
Y = TypeVar("Y", bound=Array)


def batches(
    x: X,
    y: Y,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> "Batches[X, Y]":
    """Batches `(x[rows], y[rows])` of two arrays of shapes (N, ...) with one N: iterate over it once for each epoch.

    The rows come in order, and the batches are then views of `x` and `y`; with `shuffle`, in an order that depends on
    `seed`, the epoch and N alone: not on the batch size, on any global state, or on NumPy's version. The last batch
    is the smaller one if `batch_size` does not divide N; `drop_last` leaves that one out. With `device="cuda"` the arrays are
    the host's, and each batch is copied to the GPU while the step before it runs.

    Raises TypeError or ValueError for arrays of different lengths, empty arrays, a batch size below 1 or, with
    `drop_last`, above N, a negative seed, and arrays other than NumPy's where a device is named; RuntimeError for a device
    that is not there.
    """
    return Batches(x, y, batch_size, shuffle, drop_last, seed, device)


class Batches(Generic[X, Y]):
    """What `batches` returns. It keeps one position: the epoch and the batch that come next.

    - Each batch handed out moves the position on; the last one of an epoch moves it to the start of the next epoch.
    - `iter()` starts at the position's epoch, from its first batch. So a loop left early is, when started again, the
      same epoch from the beginning.
    - After `load_state_dict`, the next `iter()` goes on at the loaded batch, and the ones after it as always.
    """

    def __init__(
        self, x: X, y: Y, batch_size: int, shuffle: bool, drop_last: bool, seed: int, device: str | None = None
    ) -> None:
        length = _length("x", x)
        if _length("y", y) != length:
            raise ValueError(f"batches expected x and y of equal length, got {length} and {y.shape[0]}")
        if length == 0:
            raise ValueError("batches expected x and y to hold at least one example, got none")
        batch_size = _integer("batches", "batch_size", batch_size, 1)
        seed = _integer("batches", "seed", seed, 0)
        for name, flag in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(flag, bool | np.bool_):
                raise TypeError(f"batches expected {name} to be True or False, got {flag!r}")
        if drop_last and batch_size > length:
            raise ValueError(
                f"batches expected batch_size <= {length}, the number of examples, with drop_last=True, "
                f"got {batch_size}: no batch would be left"
            )
        if device is not None:
            device = library_for(device).device
            for name, array in (("x", x), ("y", y)):
                if not isinstance(array, np.ndarray):
                    kind = f"{type(array).__module__}.{type(array).__qualname__}"
                    raise TypeError(f"batches expected {name} as a NumPy array with device={device!r}, got a {kind}")
                if device == "cuda" and not (array.dtype.kind in "fiub" and array.dtype.isnative):
                    raise TypeError(
                        f"batches expected {name} of floats, integers or booleans in the machine's byte order with "
                        f"device='cuda', got dtype {array.dtype.str}"
                    )
        self._x, self._y = x, y
        self._uploader = Uploader() if device == "cuda" else None
        self._settings = {
            "examples": length,
            "batch_size": batch_size,
            "shuffle": bool(shuffle),
            "drop_last": bool(drop_last),
            "seed": seed,
        }
        self._count = length // batch_size if drop_last else -(-length // batch_size)
        self._epoch, self._batch, self._resuming = 0, 0, False

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self._count

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0: the number of epochs handed out in full, unless it was set."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; call it between loops. Nothing changes if the position is in that epoch.

        So a resumed run may call it before every loop without losing its place.
        """
        epoch = _integer("set_epoch", "epoch", epoch, 0)
        if epoch != self._epoch:
            self._epoch, self._batch, self._resuming = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """The position, and the settings it holds for, as ints and bools: it can be written as JSON."""
        return {"epoch": self._epoch, "batch": self._batch, **self._settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a `state_dict()`: the next loop goes on after the last batch handed out there.

        Raises ValueError, and changes nothing, if keys are missing or unknown, the position does not exist, or the
        settings differ from these: the position would mean other examples.
        """
        expected = self.state_dict()
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict expected a mapping, got {type(state).__name__}")
        if state.keys() != expected.keys():
            raise ValueError(f"load_state_dict expected the keys {sorted(expected)}, got {sorted(map(str, state))}")
        for name, value in self._settings.items():
            if state[name] != value:
                raise ValueError(f"load_state_dict expected {name} to be {value!r} as in batches(), got {state[name]!r}")
        epoch = _integer("load_state_dict", "epoch", state["epoch"], 0)
        batch = _integer("load_state_dict", "batch", state["batch"], 0)
        if batch >= len(self):
            raise ValueError(f"load_state_dict expected batch to be less than {len(self)}, got {batch}")
        self._epoch, self._batch, self._resuming = epoch, batch, True

    def __iter__(self) -> Iterator[tuple[X, Y]]:
        return self.part(0, 1)

    def part(self, number: int, of: int) -> Iterator[tuple[X, Y]]:
        """``iter()``, but of each batch only part ``number`` of ``of``: parts that differ by one row at most, in order."""
        if not self._resuming:
            self._batch = 0
        self._resuming = False
        return self._walk(self._epoch, self._batch, number, of)

    def _walk(self, epoch: int, first: int, number: int, of: int) -> Iterator[tuple[X, Y]]:
        pairs = self._pairs(epoch, first, number, of)
        if self._uploader is not None:
            pairs = _sent_ahead(self._uploader, pairs)
        for batch, pair in enumerate(pairs, first):
            last = batch + 1 == len(self)
            self._epoch, self._batch = (epoch + 1, 0) if last else (epoch, batch + 1)
            yield pair

    def _pairs(self, epoch: int, first: int, number: int, of: int) -> Iterator[tuple[X, Y]]:
        length, size = self._settings["examples"], self._settings["batch_size"]
        order = _order(length, self._settings["seed"], epoch) if self._settings["shuffle"] else None
        for batch in range(first, len(self)):
            start, here = batch * size, min(size, length - batch * size)
            rows = slice(start + here * number // of, start + here * (number + 1) // of)
            index = rows if order is None else order[rows]
            yield self._x[index], self._y[index]


def _sent_ahead(uploader: Uploader, pairs: Iterator[Any]) -> Iterator[Any]:
    """The pairs on the GPU, each sent when the one before it is handed out, and so while what uses that one runs."""
    waiting: list[Any] = []
    try:
        for pair in pairs:
            waiting.append(uploader.send(*pair))
            if len(waiting) > 1:
                yield uploader.receive(waiting.pop(0))
        while waiting:
            yield uploader.receive(waiting.pop(0))
    finally:  # a loop may be left early
        for sent in waiting:
            uploader.receive(sent)


def _order(length: int, seed: int, epoch: int) -> npt.NDArray[np.intp]:
    """A permutation of the rows. It sorts raw bits: NumPy keeps these from version to version, unlike `permutation`."""
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(length), kind="stable")


def _length(name: str, array: Array) -> int:
    shape = getattr(array, "shape", None)
    if not shape:
        came = type(array).__name__ if shape is None else "one of shape ()"
        raise TypeError(f"batches expected {name} to be an array of shape (N, ...), got {came}")
    return int(shape[0])


def _integer(caller: str, name: str, value: int, least: int) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{caller} expected {name} to be an integer, got {value!r}")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{caller} expected {name} to be an integer, got {value!r}") from None
    if value < least:
        raise ValueError(f"{caller} expected {name} to be at least {least}, got {value}")
    return value
