"""Stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..backend import kernels_of
from .optimizer import Array, Optimizer, number


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted. With gradient g, weights w and buffer b, one step is::

        g = g + weight_decay * w
        b = g at the first step, momentum * b + (1 - dampening) * g at later ones
        w = w - lr * (b, or g + momentum * b with nesterov, or g without momentum)

    ``lr`` is in units of weight per gradient; ``momentum`` and ``dampening`` are fractions; ``weight_decay`` adds the gradient
    of weight_decay / 2 * sum(w ** 2). Momentum and Nesterov's variant as in Sutskever, Martens, Dahl and Hinton, "On the
    importance of initialization and momentum in deep learning" (2013), but with lr outside of the buffer, as in PyTorch: a
    change of lr acts on the whole step at once. ``nesterov`` expects momentum > 0 and dampening = 0. Errors: see ``Optimizer``.
    """

    state_names = ("momentum_buffer",)
    counts_steps = False

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, options)

    def _check_options(self, *, lr: Any, momentum: Any, dampening: Any, weight_decay: Any, nesterov: Any) -> dict[str, Any]:  # type: ignore[override]
        if not isinstance(nesterov, bool):
            raise TypeError(f"SGD: nesterov expected True or False, got {nesterov!r}")
        checked = {
            "lr": number("SGD: lr", lr),
            "momentum": number("SGD: momentum", momentum),
            "dampening": number("SGD: dampening", dampening, low=-math.inf),
            "weight_decay": number("SGD: weight_decay", weight_decay),
            "nesterov": nesterov,
        }
        if nesterov and not (momentum > 0 and dampening == 0):
            raise ValueError(f"SGD with nesterov expected momentum > 0 and dampening = 0, got {momentum} and {dampening}")
        return checked

    def _remembers(self, options: dict[str, Any]) -> bool:
        return options["momentum"] != 0

    def _update(  # type: ignore[override]
        self,
        weights: Array,
        grads: list[Array],
        grad: Array,
        spare: Array,
        step: int,
        momentum_buffer: Array = None,
        *,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        kernels_of(weights).sgd(
            weights, grads, grad, spare, momentum_buffer, step == 1, lr, momentum, dampening, weight_decay, nesterov
        )
