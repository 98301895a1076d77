"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import kernels_of
from .optimizer import Array, Optimizer, number


class Adam(Optimizer):
    """Steps scaled by running moments of the gradient. With gradient g, weights w, moments m and v, step t is::

        g = g + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g ** 2
        w = w - lr * (m / (1 - beta1 ** t)) / (sqrt(v / (1 - beta2 ** t)) + eps)

    m and v start at zero. ``lr`` is in units of weight, about the length of an early step; ``eps`` is in units of gradient;
    ``betas`` are fractions below 1. t counts the steps of each parameter, so one without a gradient stands still in time too.
    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1. Errors: see ``Optimizer``.
    """

    state_names = ("exp_avg", "exp_avg_sq")
    torch_only = {"maximize": False, "amsgrad": False, "decoupled_weight_decay": False}
    decoupled = False  # whether weight decay stays out of the gradient

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check_options(self, *, lr: Any, betas: Any, eps: Any, weight_decay: Any) -> dict[str, Any]:  # type: ignore[override]
        name = self._name
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{name}: betas expected two numbers, got {betas!r}")
        return {
            "lr": number(f"{name}: lr", lr),
            "betas": (number(f"{name}: betas[0]", betas[0], below=1.0), number(f"{name}: betas[1]", betas[1], below=1.0)),
            "eps": number(f"{name}: eps", eps),
            "weight_decay": number(f"{name}: weight_decay", weight_decay),
        }

    def _update(  # type: ignore[override]
        self,
        weights: Array,
        grads: list[Array],
        grad: Array,
        spare: Array,
        step: int,
        exp_avg: Array,
        exp_avg_sq: Array,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        kernels_of(weights).adam(
            weights, grads, grad, spare, exp_avg, exp_avg_sq, step, lr, betas, eps, weight_decay, self.decoupled
        )


class AdamW(Adam):
    """Adam whose weight decay stays out of the moments: first w = w - lr * weight_decay * w, then Adam's step without decay.

    ``weight_decay`` is per unit of lr. Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2,
    except that the whole lr scales the decay, as in PyTorch, not only the schedule's factor. Errors: see ``Optimizer``.
    """

    torch_only = {**Adam.torch_only, "decoupled_weight_decay": True}
    decoupled = True

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
