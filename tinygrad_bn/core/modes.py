"""Whether operations are recorded, by thread; and who listens to what the engine does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ContextDecorator, contextmanager
from typing import Any

from .graph import Array, Box, Node


class _Mode(threading.local):
    enabled = True


mode = _Mode()


class set_grad_enabled(ContextDecorator):  # noqa: N801 (used like a function)
    """Record operations from now on (True) or not (False), in this thread; ``with`` ends it at the block's end.

    Also decorates a function, whose calls then run in that mode.
    """

    def __init__(self, enabled: bool):
        self._enabled, self._before = bool(enabled), mode.enabled
        mode.enabled = self._enabled

    def __enter__(self) -> None:
        mode.enabled = self._enabled

    def __exit__(self, *error: Any) -> None:
        mode.enabled = self._before

    def __call__(self, function: Any) -> Any:
        mode.enabled = self._before  # the function's calls are meant, not what follows its definition
        return super().__call__(function)

    def _recreate_cm(self) -> set_grad_enabled:
        return set_grad_enabled(self._enabled)


class recording(ContextDecorator):  # noqa: N801 (used like a function)
    """A block whose operations are recorded, or not, in this thread."""

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._before: list[bool] = []  # one for each block that is open: a block may stand in itself

    def __enter__(self) -> None:
        self._before.append(mode.enabled)
        mode.enabled = self._enabled

    def __exit__(self, *error: Any) -> None:
        mode.enabled = self._before.pop()

    def _recreate_cm(self) -> recording:
        return recording(self._enabled)


def no_grad(*arguments: Any):
    """A block (or, as ``@no_grad()``, a function) whose operations are not recorded, in this thread."""
    if arguments:
        raise TypeError("no_grad takes no arguments: write @no_grad() or `with no_grad():`")
    return recording(False)


def enable_grad():
    """A block (or function) whose operations are recorded, also inside ``no_grad``, in this thread."""
    return recording(True)


def is_grad_enabled() -> bool:
    """Whether operations of this thread are recorded."""
    return mode.enabled


class Listener:
    """Hears what the engine does. Subclass it, override what you need, and pass it to ``listening``."""

    keeps_arrays = True  # whether nodes recorded meanwhile keep all their arrays, or those alone that their rules need

    def apply(self, name: str, inputs: tuple, options: dict, out: Array, aux: Any, node: Node | None) -> None:
        """A primitive ran, also under ``no_grad``: its raw inputs, options, output, aux, and its node if recorded."""

    def before_rule(self, node: Node, g: Any) -> None:
        """The walk has reached ``node``, whose whole gradient is ``g``."""

    def contribution(self, node: Node, parent: Any, value: Any) -> None:
        """The rule of ``node`` made this gradient for ``parent`` (a Node or a leaf); it is not yet accumulated."""

    def leaf_ready(self, leaf: Box, g: Any) -> None:
        """All contributions to ``leaf`` of this walk have arrived, and are summed in ``g``."""

    def backward_end(self) -> None:
        """A walk has ended."""

    def enter_module(self, module: Any) -> None:
        """``nn.Module.__call__`` begins."""

    def exit_module(self, module: Any, out: Any) -> None:
        """``nn.Module.__call__`` ends with this output, or by an error and with None."""


class _Several(Listener):
    """Passes every event on to each of its listeners."""

    def __init__(self, listeners: list[Listener]):
        self.listeners = listeners
        self.keeps_arrays = any(listener.keeps_arrays for listener in listeners)


def _fan_out(event: str) -> Callable:
    def tell(self: _Several, *args: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*args)

    return tell


for _event in [name for name in vars(Listener) if not name.startswith("_")]:
    setattr(_Several, _event, _fan_out(_event))

hooks: Listener | None = None  # one object, or None: one test per operation when nobody listens
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener):
    """Let ``listener`` hear every operation and every walk in this block, of all threads."""
    listen(listener)
    try:
        yield listener
    finally:
        stop_listening(listener)


def listen(listener: Listener) -> None:
    """``listening`` without a block, until ``stop_listening``."""
    _listeners.append(listener)
    _tune()


def listeners() -> list[Listener]:
    """All who listen."""
    return list(_listeners)


def stop_listening(listener: Listener) -> None:
    _listeners.remove(listener)
    _tune()


def _tune() -> None:
    global hooks
    hooks = None if not _listeners else _listeners[0] if len(_listeners) == 1 else _Several(list(_listeners))
