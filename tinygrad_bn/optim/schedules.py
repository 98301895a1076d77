"""Learning rate schedules: functions of the epoch and the base learning rate alone, so easy to read, to plot and to resume."""

from __future__ import annotations

import math
import numbers
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .optimizer import Optimizer, number


class Schedule:
    """Base class of the schedules: sets ``lr`` of each group to ``lr_at(epoch, base_lr)``.

    The epoch is ``last_epoch``, 0 at first and one more with each ``step()``: call that once an epoch, or once a batch,
    whatever the schedule's numbers are meant in, after ``optimizer.step()``. The base learning rate of a group is the ``lr``
    it had when it got its first schedule (kept in the group as ``initial_lr``).

    A schedule sets lr, whatever it was before; PyTorch's multiply it from step to step. The values are the same, unless
    somebody else changes lr too: to follow one schedule by another use ``SequentialLR``.

    Raises TypeError for what is not an Optimizer or not a number, ValueError for a number out of range.
    """

    # What PyTorch keeps for itself; it has no meaning here.
    _indifferent = {"_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step", "verbose"}

    def __init__(self, optimizer: Optimizer, **options: Any):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{self._name} expected an Optimizer, got {type(optimizer).__name__}")
        checked = self._check_options(**options)
        self.optimizer = optimizer
        self._option_names = list(checked)
        vars(self).update(checked)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = 0
        self._apply()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_options(self, **options: Any) -> dict[str, Any]:
        """The schedule's own numbers; raises if one is out of range."""
        raise NotImplementedError

    def lr_at(self, epoch: int, base_lr: float) -> float:
        """The learning rate of a group in this epoch."""
        raise NotImplementedError

    def step(self) -> None:
        """Go on to the next epoch, and set the learning rates."""
        self._check_groups()
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group, as this schedule last set it."""
        return list(self._last_lr)

    def _check_groups(self) -> None:
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            raise ValueError(
                f"{self._name} was made for {len(self.base_lrs)} parameter groups, but the optimizer now has "
                f"{len(self.optimizer.param_groups)}; make the schedule after the last add_param_group"
            )

    def _apply(self) -> None:
        self._last_lr = [self.lr_at(self.last_epoch, base) for base in self.base_lrs]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is, in PyTorch's structure; numbers and lists only, so JSON can hold it."""
        options = {name: getattr(self, name) for name in self._option_names}
        return {**options, "base_lrs": list(self.base_lrs), **self._position()}

    def _position(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self.last_epoch + 1, "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict()`` of this class, or of PyTorch's of the same name, and set the learning rates.

        Raises ValueError or TypeError, before anything is changed, where names, the number of groups or values do not fit.
        """
        self._check_groups()
        for schedule, attributes in self._loaded(state_dict):
            vars(schedule).update(attributes)
        self._apply()

    def _loaded(self, state: Mapping[str, Any]) -> list[tuple[Schedule, dict[str, Any]]]:
        """For this schedule, and for its parts if it has any, the attributes that the state dict says."""
        self._check_keys(state, [*self._option_names, "base_lrs", "last_epoch"])
        options = self._check_options(**{name: state[name] for name in self._option_names})
        what = f"{self._name}: base_lrs"
        base_lrs = [number(what, lr) for lr in listed(what, "numbers", state["base_lrs"])]
        if len(base_lrs) != len(self.base_lrs):
            raise ValueError(f"{self._name}: base_lrs expected {len(self.base_lrs)} numbers, got {len(base_lrs)}")
        return [(self, {**options, "base_lrs": base_lrs, "last_epoch": self._loaded_epoch(state)})]

    def _loaded_epoch(self, state: Mapping[str, Any]) -> int:
        return max(0, whole(f"{self._name}: last_epoch", state["last_epoch"], -1))  # -1: PyTorch's part that has not begun

    def _check_keys(self, state: Mapping[str, Any], expected: list[str]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"{self._name}.load_state_dict() expected a dict, got {type(state).__name__}")
        got = state.keys() - self._indifferent
        if got != set(expected):
            raise ValueError(
                f"{self._name}.load_state_dict(): expected the keys {', '.join(expected)}, got {', '.join(sorted(got))}"
            )


def whole(what: str, value: Any, low: int = 1) -> int:
    """``value`` as an int; raises unless it is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{what} expected a whole number, got {value!r}")
    if value < low:
        raise ValueError(f"{what} expected a whole number of at least {low}, got {value}")
    return int(value)


def listed(what: str, kind: str, values: Any) -> list[Any]:
    """``values`` as a list; raises unless it is a sequence."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{what} expected a sequence of {kind}, got {type(values).__name__}")
    return list(values)


class StepLR(Schedule):
    """base_lr * gamma ** (epoch // step_size): lower by the factor ``gamma`` every ``step_size`` epochs."""

    step_size: int
    gamma: float

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1):
        super().__init__(optimizer, step_size=step_size, gamma=gamma)

    def _check_options(self, *, step_size: Any, gamma: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"step_size": whole("StepLR: step_size", step_size), "gamma": number("StepLR: gamma", gamma)}

    def lr_at(self, epoch: int, base_lr: float) -> float:
        return base_lr * self.gamma ** (epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """eta_min + (base_lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2: half a cosine down to ``eta_min`` in epoch ``T_max``.

    It rises again afterwards, as PyTorch's does. Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts"
    (2017), equation 5, without the restarts.
    """

    T_max: int
    eta_min: float

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0):
        super().__init__(optimizer, T_max=T_max, eta_min=eta_min)

    def _check_options(self, *, T_max: Any, eta_min: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"T_max": whole("CosineAnnealingLR: T_max", T_max), "eta_min": number("CosineAnnealingLR: eta_min", eta_min)}

    def lr_at(self, epoch: int, base_lr: float) -> float:
        return self.eta_min + (base_lr - self.eta_min) * (1 + math.cos(math.pi * epoch / self.T_max)) / 2


class LinearLR(Schedule):
    """base_lr times a factor that goes from ``start_factor`` to ``end_factor`` in ``total_iters`` epochs: a linear warm-up."""

    start_factor: float
    end_factor: float
    total_iters: int

    def __init__(self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5):
        super().__init__(optimizer, start_factor=start_factor, end_factor=end_factor, total_iters=total_iters)

    def _check_options(self, *, start_factor: Any, end_factor: Any, total_iters: Any) -> dict[str, Any]:  # type: ignore[override]
        checked = {
            "start_factor": number("LinearLR: start_factor", start_factor),
            "end_factor": number("LinearLR: end_factor", end_factor),
            "total_iters": whole("LinearLR: total_iters", total_iters),
        }
        for name in ("start_factor", "end_factor"):
            if checked[name] > 1 or (checked[name] == 0 and name == "start_factor"):
                low = "above 0" if name == "start_factor" else "from 0"
                raise ValueError(f"LinearLR: {name} expected a number {low} to 1, got {checked[name]}")
        return checked

    def lr_at(self, epoch: int, base_lr: float) -> float:
        done = min(epoch, self.total_iters) / self.total_iters
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * done)


class SequentialLR(Schedule):
    """One schedule after another: the first until epoch ``milestones[0]``, then the second, which counts from there, and so on.

    Warm-up, then a cosine: ``SequentialLR(opt, [LinearLR(opt, 0.1, total_iters=5), CosineAnnealingLR(opt, 95)], [5])``. Step
    this schedule only. Raises ValueError unless there is one milestone less than schedules, in rising order.
    """

    milestones: list[int]

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]):
        schedulers = listed("SequentialLR", "schedules", schedulers)
        for position, schedule in enumerate(schedulers):
            if not isinstance(schedule, Schedule):
                raise TypeError(f"SequentialLR expected schedules, got {type(schedule).__name__} at position {position}")
            if schedule.optimizer is not optimizer:
                raise ValueError(
                    f"SequentialLR expected schedules of its own optimizer; that at position {position} has another"
                )
        self.schedulers: list[Schedule] = schedulers
        super().__init__(optimizer, milestones=milestones)

    def _check_options(self, *, milestones: Any) -> dict[str, Any]:  # type: ignore[override]
        what = "SequentialLR: milestones"
        checked = [whole(what, m) for m in listed(what, "whole numbers", milestones)]
        if len(checked) != len(self.schedulers) - 1 or checked != sorted(set(checked)):
            raise ValueError(
                f"SequentialLR expected {len(self.schedulers) - 1} rising milestones for {len(self.schedulers)} schedules, "
                f"got {checked}"
            )
        return {"milestones": checked}

    def _current(self, epoch: int) -> tuple[Schedule, int]:
        """The schedule of this epoch, and the epoch as that one counts."""
        i = bisect_right(self.milestones, epoch)
        return self.schedulers[i], epoch - ([0] + self.milestones)[i]

    def lr_at(self, epoch: int, base_lr: float) -> float:
        schedule, its_epoch = self._current(epoch)
        return schedule.lr_at(its_epoch, base_lr)

    def _apply(self) -> None:
        schedule, its_epoch = self._current(self.last_epoch)
        schedule.last_epoch = its_epoch
        schedule._apply()
        self._last_lr = schedule.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """As of any schedule; ``_schedulers`` holds those of its parts."""
        parts = [schedule.state_dict() for schedule in self.schedulers]
        return {"_milestones": list(self.milestones), **self._position(), "_schedulers": parts}

    def _loaded(self, state: Mapping[str, Any]) -> list[tuple[Schedule, dict[str, Any]]]:
        self._check_keys(state, ["_milestones", "last_epoch", "_schedulers"])
        parts = state["_schedulers"]
        if len(parts) != len(self.schedulers):
            raise ValueError(f"SequentialLR expected the state of {len(self.schedulers)} schedules, got {len(parts)}")
        own = {**self._check_options(milestones=state["_milestones"]), "last_epoch": self._loaded_epoch(state)}
        loaded = [pair for schedule, part in zip(self.schedulers, parts, strict=True) for pair in schedule._loaded(part)]
        return [(self, own), *loaded]
