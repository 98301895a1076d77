"""What all optimizers share: parameter groups, state, and parameters that live in one flat array per dtype and device.

A step then costs a few calls of a kernel, however many parameters there are: the update rule runs over long slices of flat
arrays. A subclass has a rule (``_update``), which sees nothing but such slices, and a check of its options.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from operator import is_
from typing import Any

import numpy as np

from ..backend import ARRAY_TYPES, device_of, to_device, type_name, xp_of
from ..core import Box, enable_grad
from ..core.graph import bump_versions
from ..tensor import Tensor

Array = Any  # numpy.ndarray or cupy.ndarray


def number(what: str, value: Any, low: float = 0.0, below: float = math.inf) -> float:
    """``value`` as a float; raises unless it is a finite number with low <= value < below."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} expected a number, got {type(value).__name__}")
    value = float(value)
    if not (low <= value < below and math.isfinite(value)):  # also catches NaN
        expected = "a finite number" if low == -math.inf else f"a finite number of at least {low:g}"
        raise ValueError(f"{what} expected {expected}{'' if below == math.inf else f' and below {below:g}'}, got {value}")
    return value


class _Block:
    """The parameters of one dtype and device, each behind the other, in flat arrays."""

    def __init__(self, members: list[tuple[int, Tensor]]):
        arrays = [p._data for _, p in members]
        ends = list(accumulate(a.size for a in arrays))
        self.device = device_of(arrays[0])
        xp = xp_of(arrays[0])
        self.weights = xp.concatenate([a.ravel() for a in arrays])  # always new memory
        self.grad = xp.empty_like(self.weights)  # memory for the rule, so that a step allocates nothing large
        self.spare = xp.empty_like(self.weights)
        self.state: dict[str, Array] = {}  # made when the rule first asks
        self.slots = [
            _Slot(self, group, p, end - a.size, end) for (group, p), a, end in zip(members, arrays, ends, strict=True)
        ]

    def state_of(self, name: str) -> Array:
        """The flat array of that name; zeros to begin with."""
        if name not in self.state:
            self.state[name] = xp_of(self.weights).zeros_like(self.weights)
        return self.state[name]


class _Slot:
    """The place of one parameter in its block: elements ``start`` to ``stop``, seen by the parameter through ``view``."""

    __slots__ = ("block", "group", "param", "start", "stop", "shape", "view", "steps")

    def __init__(self, block: _Block, group: int, param: Tensor, start: int, stop: int):
        self.block, self.group, self.param, self.start, self.stop = block, group, param, start, stop
        self.shape = param._data.shape
        self.view = block.weights[start:stop].reshape(self.shape)
        self.steps = 0  # how many have gone into this parameter's state (where that does not count: 1 if any); 0 is no state

    def state(self, name: str) -> Array:
        """This parameter's part of the flat state, in the parameter's shape."""
        return self.block.state_of(name)[self.start : self.stop].reshape(self.view.shape)


class Optimizer:
    """Base class of the optimizers. ``params`` is an iterable of Tensors, or of dicts ``{"params": [...], "lr": ...}``.

    The parameters move into one flat array per dtype and device: ``p.data`` becomes a view of it, with the same values. Arrays
    fetched from ``p.data`` before are no longer the parameter's memory. Whatever replaces ``p.data`` later (assignment,
    ``.to()``, another optimizer) is noticed before the next step, and packed again together with its state.

    A step changes exactly the parameters whose ``.grad`` is not None, as in PyTorch. Others keep their value, their state and
    their count of steps: no weight decay, no momentum. So a frozen parameter stands still as soon as ``zero_grad`` has
    forgotten its last gradient. Options may be changed between steps: ``optimizer.param_groups[0]["lr"] = 0.1``.

    Raises ValueError for no parameters, a parameter given twice, the result of an operation, or an option out of range;
    TypeError for what is not a floating Tensor, or for an option that is not a number.
    """

    state_names: tuple[str, ...] = ()  # what the rule remembers of each parameter
    counts_steps = True  # whether the rule needs the number of steps, or only to know the first
    torch_only: dict[str, bool] = {"maximize": False}  # PyTorch's options that change the numbers, and what they are here

    def __init__(self, params: Iterable, defaults: dict[str, Any]):
        if isinstance(params, Box):
            raise TypeError(f"{self._name} expected an iterable of Tensors, got one Tensor; pass [tensor]")
        if isinstance(params, (Mapping, set, str)) or not isinstance(params, Iterable):
            raise TypeError(f"{self._name} expected an ordered iterable of Tensors or of dicts, got {type(params).__name__}")
        self.defaults = self._check_options(**defaults)
        self.param_groups: list[dict[str, Any]] = []
        self._passed: dict[int, tuple[list, dict[str, Any]]] = {}  # by group: options that passed, and what they became
        self._slots: list[_Slot] = []  # in the order of the groups
        self._blocks: list[_Block] = []
        given = list(params)
        for group in given if given and isinstance(given[0], Mapping) else [{"params": given}]:
            self._append_group(group)
        if not any(group["params"] for group in self.param_groups):
            raise ValueError(f"{self._name} expected parameters, got none")
        self._pack()

    @property
    def _name(self) -> str:
        return type(self).__name__

    # ----- what a subclass has

    def _check_options(self, **options: Any) -> dict[str, Any]:
        """The options of a group as the rule takes them; raises if one is out of range."""
        raise NotImplementedError

    def _remembers(self, options: dict[str, Any]) -> bool:  # noqa: ARG002
        """Whether the rule with these options needs its state."""
        return True

    def _update(
        self, weights: Array, grads: list[Array], grad: Array, spare: Array, step: int, **state_and_options: Any
    ) -> None:
        """Change ``weights`` and the state in place. ``step`` counts from 1.

        ``grads`` are the parameters' gradients, which one behind the other would lie as the weights do; they stay as they are.
        ``grad`` and ``spare`` are memory for as many elements, with nothing in it.
        """
        raise NotImplementedError

    # ----- groups

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a dict with ``params`` (a Tensor or an iterable) and options, which are the optimizer's where it does not say."""
        self._append_group(param_group)
        self._pack()

    def _append_group(self, group: Any) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(
                f"{self._name} expected each parameter group to be a dict with 'params', got "
                f"{f'the keys {list(group)}' if isinstance(group, Mapping) else type(group).__name__}"
            )
        params = group["params"]
        if isinstance(params, (Mapping, set, str)) or not isinstance(params, Iterable):
            raise TypeError(f"{self._name} expected 'params' to be an ordered iterable, got {type(params).__name__}")
        params = [params] if isinstance(params, Box) else list(params)
        options = {name: value for name, value in group.items() if name != "params"}
        unknown = options.keys() - self.defaults.keys() - {"initial_lr"}
        if unknown:
            raise ValueError(f"{self._name} has no option {', '.join(sorted(unknown))}; it has {', '.join(self.defaults)}")
        checked = self._check_group(self._name, {**self.defaults, **options})
        self._check_params([g["params"] for g in self.param_groups] + [params])
        self.param_groups.append({"params": params, **checked})

    def _check_group(self, where: str, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = self._check_options(**{name: options[name] for name in self.defaults})
        if "initial_lr" in options:  # a schedule put it there
            checked["initial_lr"] = number(f"{where}: initial_lr", options["initial_lr"])
        return checked

    def _check_params(self, groups: list[list]) -> None:
        seen: set[Any] = set()
        for i, params in enumerate(groups):
            for position, p in enumerate(params):
                which = f"parameter {position} of group {i}"
                if not isinstance(p, Tensor):
                    raise TypeError(f"{self._name} expected Tensors, got {type_name(p)} as {which}")
                if p.node is not None:
                    raise ValueError(f"{self._name} expected leaves, got a result of {p.node.name} as {which}")
                if p.dtype.kind != "f":
                    raise TypeError(f"{self._name} expected floating Tensors, got {p.dtype} as {which}")
                if p in seen:
                    raise ValueError(f"{self._name} expected each parameter once, got {which}, of shape {p.shape}, again")
                seen.add(p)

    # ----- the flat arrays

    def _pack(self) -> None:
        """Move the parameters and their state into new flat arrays, unless all are still where the last call put them."""
        params = [p for group in self.param_groups for p in group["params"]]
        if len(params) == len(self._slots) and all(map(is_, [p._data for p in params], [s.view for s in self._slots])):
            return
        self._check_params([group["params"] for group in self.param_groups])  # somebody may have changed the lists
        old = {slot.param: slot for slot in self._slots if slot.steps}
        places: dict[tuple, list[tuple[int, Tensor]]] = {}
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                before = old.get(p)
                if before is not None and before.view.shape != p.shape:
                    raise ValueError(
                        f"{self._name}: a parameter of group {i} had shape {before.view.shape}, now {p.shape}, but its "
                        "state belongs to the old shape; expected the same shape, or a new optimizer"
                    )
                places.setdefault((p.dtype, p.device), []).append((i, p))
        blocks = [_Block(members) for members in places.values()]
        for slot in [slot for block in blocks for slot in block.slots]:
            before = old.get(slot.param)
            if before is not None:
                slot.steps = before.steps
                for name in before.block.state:
                    slot.state(name)[...] = to_device(before.state(name), slot.block.device)
        self._blocks = blocks
        of = {slot.param: slot for block in blocks for slot in block.slots}
        self._slots = [of[p] for p in params]
        for slot in self._slots:
            slot.param._data = slot.view  # the same values, so no graph needs to hear of it

    # ----- steps

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with ``set_to_none=False`` make them zero, so that the next step does not skip them."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p._grad = None
                elif p.grad is not None:
                    p.grad = Tensor(xp_of(p.grad._data).zeros_like(p.grad._data))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change each parameter that has a gradient.

        ``closure``, if given, is called first, to compute loss and gradients; step returns what it returns. Never waits for
        the device. A graph that kept a changed parameter refuses to go backward from now on. Raises, before anything is
        changed, ValueError or TypeError for an option out of range, or a gradient unlike its parameter, as it is when the
        parameter was moved or assigned after backward.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        options = [self._current_options(i, group) for i, group in enumerate(self.param_groups)]
        self._pack()
        runs = [(block, run) for block in self._blocks for run in self._runs(block)]
        for block, run in runs:
            self._step_slice(block, run, options[run[0].group])
        return loss

    def _current_options(self, i: int, group: dict[str, Any]) -> dict[str, Any]:
        """The options of group i, checked again unless they are the very objects that passed before."""
        values = [group.get(name) for name in self.defaults]
        before, checked = self._passed.get(i, ((), {}))
        if before and all(map(is_, values, before)):
            return checked
        missing = [name for name in self.defaults if name not in group]
        if missing:
            raise ValueError(f"{self._name}: group {i} misses the option {missing[0]}")
        checked = self._check_options(**dict(zip(self.defaults, values, strict=True)))
        if all(type(value) in (bool, int, float, tuple) for value in values):  # a list could change
            self._passed[i] = values, checked
        return checked

    def _runs(self, block: _Block) -> list[list[_Slot]]:
        """The parameters that have a gradient: neighbours that share options and a count of steps, which are one long slice.

        Usually that is all of them.
        """
        runs: list[list[_Slot]] = []
        last = None
        dtype, kind = block.weights.dtype, type(block.weights)
        for slot in block.slots:
            g = slot.param._grad
            if g is None:
                last = None
                continue
            data = g._data
            if data.shape != slot.shape or data.dtype is not dtype or type(data) is not kind:
                self._check_gradient(slot, data)
            if last is not None and last.steps == slot.steps and last.group == slot.group:
                runs[-1].append(slot)
            else:
                runs.append([slot])
            last = slot
        return runs

    def _step_slice(self, block: _Block, slots: list[_Slot], options: dict[str, Any]) -> None:
        step = slots[0].steps + 1
        names = self.state_names if self._remembers(options) else ()
        flat = [block.weights, block.grad, block.spare, *[block.state_of(name) for name in names]]
        if len(slots) < len(block.slots):
            part = slice(slots[0].start, slots[-1].stop)
            flat = [a[part] for a in flat]
        weights, grad, spare, *state = flat
        grads = [slot.param._grad._data for slot in slots]  # type: ignore[union-attr]
        self._update(weights, grads, grad, spare, step, **dict(zip(names, state, strict=True)), **options)
        after = (step if self.counts_steps else 1) if names else None
        if after is not None:
            for slot in slots:
                slot.steps = after
        bump_versions([slot.param for slot in slots])

    def _check_gradient(self, slot: _Slot, data: Array) -> None:
        view = slot.view
        if data.shape != view.shape or data.dtype != view.dtype or device_of(data) != slot.block.device:
            raise ValueError(
                f"{self._name}.step() expected the gradient of parameter {self._slots.index(slot)} to be {view.dtype} of shape "
                f"{view.shape} on {slot.block.device}, got {data.dtype} of shape {data.shape} on {device_of(data)}; was it "
                "computed before the parameter was changed or moved? Call zero_grad() first"
            )

    # ----- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """Options and state in PyTorch's structure, with copies of the arrays, which PyTorch takes as tensors.

        ``{"state": {index: {name: array}}, "param_groups": [{option: value, "params": [index, ...]}]}``, where index counts
        the parameters through all groups. A parameter that has no state yet has no entry.
        """
        self._pack()
        state = {}
        for i, slot in enumerate(self._slots):
            if slot.steps:
                count = {"step": slot.steps} if self.counts_steps else {}
                state[i] = {**count, **{name: slot.state(name).copy() for name in self.state_names}}
        groups = []
        first = 0
        for group in self.param_groups:
            options = {name: value for name, value in group.items() if name != "params"}
            groups.append({**options, **self.torch_only, "params": list(range(first, first + len(group["params"])))})
            first += len(group["params"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict()`` of this class, or of PyTorch's optimizer of the same name.

        Parameters are matched by their order; arrays are copied, and brought to the device and dtype of the parameter. The
        options become those of the state dict. Raises ValueError or TypeError, before anything is changed, where groups,
        parameters, shapes, names or values do not fit.
        """
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(f"{self._name}.load_state_dict() expected a dict with 'state' and 'param_groups'")
        saved = state_dict["param_groups"]
        if not all(isinstance(group, Mapping) and "params" in group for group in saved):
            raise ValueError(f"{self._name}.load_state_dict() expected each of 'param_groups' to be a dict with 'params'")
        ours = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in saved]
        if ours != theirs:
            raise ValueError(
                f"{self._name}.load_state_dict() expected {len(ours)} groups, of {ours} parameters, "
                f"got {len(theirs)}, of {theirs}"
            )
        options = [self._loaded_options(i, group) for i, group in enumerate(saved)]
        self._pack()
        slots = dict(zip((key for group in saved for key in group["params"]), self._slots, strict=True))
        unknown = state_dict["state"].keys() - slots.keys()
        if unknown or len(slots) != len(self._slots):
            raise ValueError(
                f"{self._name}.load_state_dict() expected one key for each of {len(self._slots)} parameters, got "
                f"{len(slots)}, and state of the unknown keys {sorted(map(str, unknown))}"
            )
        states = {slots[key]: self._loaded_state(key, slots[key], state) for key, state in state_dict["state"].items()}

        for group, changed in zip(self.param_groups, options, strict=True):
            group.update(changed)
        for block in self._blocks:
            block.state = {}
        for slot in self._slots:
            slot.steps, arrays = states.get(slot, (0, {}))
            for name, array in arrays.items():
                slot.state(name)[...] = array

    def _loaded_options(self, i: int, group: Mapping[str, Any]) -> dict[str, Any]:
        where = f"{self._name}.load_state_dict(): group {i}"
        for name, here in self.torch_only.items():
            if group.get(name, here) != here:
                raise ValueError(f"{where} expected {name}={here}, got {name}={group[name]}")
        missing = self.defaults.keys() - group.keys()
        # How PyTorch computes, and names of parameters, make no difference here.
        indifferent = {"params", "param_names", "foreach", "fused", "capturable", "differentiable", *self.torch_only}
        unknown = group.keys() - self.defaults.keys() - indifferent - {"initial_lr"}
        if missing or unknown:
            raise ValueError(
                f"{where} expected the options {', '.join(self.defaults)}; missing: {', '.join(sorted(missing)) or 'none'}, "
                f"unknown: {', '.join(sorted(unknown)) or 'none'}"
            )
        return self._check_group(where, group)

    def _loaded_state(self, key: Any, slot: _Slot, state: Mapping[str, Any]) -> tuple[int, dict[str, Array]]:
        where = f"{self._name}.load_state_dict(): state of parameter {key}"
        if not isinstance(state, Mapping):
            raise TypeError(f"{where} expected a dict, got {type(state).__name__}")
        state = {name: value for name, value in state.items() if value is not None}
        if not state:
            return 0, {}
        expected = {*self.state_names, *(["step"] if self.counts_steps else [])}
        if state.keys() != expected:
            raise ValueError(f"{where} expected {', '.join(sorted(expected))}, got {', '.join(sorted(state))}")
        steps = 1
        if self.counts_steps:
            given = _array(f"{where}: step", state["step"])
            if given.size != 1 or not (given.item() >= 0 and given.item() % 1 == 0):
                raise ValueError(f"{where}: step expected one whole number, got {state['step']}")
            steps = int(given.item())
        arrays = {}
        for name in self.state_names:
            array = _array(f"{where}: {name}", state[name])
            if array.shape != slot.view.shape:
                raise ValueError(f"{where}: {name} expected shape {slot.view.shape}, got {array.shape}")
            arrays[name] = to_device(array, slot.block.device)
        return steps, arrays


def _array(what: str, value: Any) -> Array:
    """An array, a Tensor, or anything that NumPy reads (PyTorch's tensors among them), as an array of numbers."""
    if isinstance(value, Box):
        return value._data
    if type(value) in ARRAY_TYPES:
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} expected an array of numbers, got {type(value).__name__}: {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{what} expected an array of numbers, got {type(value).__name__}")
    return array
