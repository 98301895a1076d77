"""``@primitive`` makes an operation of a function of arrays: it runs it, and records a node when a gradient may be wanted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from ..backend import ARRAY_TYPES, as_array, explain, unfit
from . import modes
from .graph import Box, Node, absent, stand_in
from .graph import boxed as make_box
from .modes import mode


class Primitive:
    """What ``@primitive`` knows about its function: argument names, options, gradient rules, and what those keep."""

    def __init__(self, function: Callable, has_aux: bool):
        self.name = function.__name__.lstrip("_")
        self.function = function
        self.has_aux = has_aux
        self.arrays: list[str] = []  # names of the array arguments
        self.required = 0  # how many of them have no default
        self.variadic = False  # *arrays: any number of them
        self.defaults: dict[str, Any] = {}  # options with a default
        self.option_names: list[str] = []
        for p in inspect.signature(function).parameters.values():
            if p.kind is p.KEYWORD_ONLY:
                self.option_names.append(p.name)
                if p.default is not p.empty:
                    self.defaults[p.name] = p.default
            else:
                self.arrays.append(p.name)
                self.variadic |= p.kind is p.VAR_POSITIONAL
                self.required += p.default is p.empty
        self.rules: tuple[Callable | None, ...] = ()  # one per array argument
        self.joint: Callable | None = None  # one for all of them
        self.fused: Callable | None = None  # the same numbers for a raw g
        self.fused_asks = False  # whether it asks which inputs want a gradient
        self.mask = 0  # bit i: argument i has a rule
        self.has_rules = False  # whether anybody said so, be it with None
        self.plans: dict[int, tuple[bool, tuple[int, ...]]] = {}  # by the bits of the inputs that want a gradient: see plan()

    def argument_names(self, count: int) -> list[str]:
        return [f"{self.arrays[0]}[{i}]" for i in range(count)] if self.variadic else self.arrays

    def bind(self, args: tuple, options: dict) -> tuple[tuple, dict]:
        """Arrays and options as the function and the rules want them, from whatever way the caller chose to pass them."""
        given = dict(options)
        if not self.variadic:
            n = len(self.arrays)
            extra = args[n:]
            if len(extra) > len(self.option_names):
                raise TypeError(
                    f"{self.name} takes at most {n + len(self.option_names)} arguments "
                    f"({', '.join(self.arrays + self.option_names)}), got {len(args)}"
                )
            for name, value in zip(self.option_names, extra, strict=False):
                if name in given:
                    raise TypeError(f"{self.name} got two values for {name!r}")
                given[name] = value
            arrays = list(args[:n])
            for i, name in enumerate(self.arrays):
                if name in given:
                    if i < len(arrays):
                        raise TypeError(f"{self.name} got two values for {name!r}")
                    arrays.append(given.pop(name))
                elif i >= len(arrays):
                    if i < self.required:
                        raise TypeError(f"{self.name} misses its argument {name!r}")
                    arrays.append(None)
            args = tuple(arrays)
        complete = {}
        for name in self.option_names:
            if name in given:
                complete[name] = given.pop(name)
            elif name in self.defaults:
                complete[name] = self.defaults[name]
            else:
                raise TypeError(f"{self.name} misses its argument {name!r}")
        if given:
            raise TypeError(f"{self.name} has no option {next(iter(given))!r}; it has {', '.join(self.option_names) or 'none'}")
        return args, complete

    def result(self, out: Any) -> Any:
        """What the function returned, as an array."""
        try:
            return as_array(out)
        except TypeError:
            raise TypeError(f"{self.name} expected to return an array, got {type(out).__name__}") from None

    def _check_rule(self, rule: Any, argument: str | None) -> None:
        """Raise unless a rule takes ``(g, out, *inputs)`` and the options."""
        which = f"the rule of {self.name}{'' if argument is None else f' for {argument!r}'}"
        if not callable(rule):
            named = "" if argument is None else f" for {argument!r}"
            raise TypeError(f"{self.name} expected rules that are functions or None, got {type(rule).__name__}{named}")
        parameters = inspect.signature(rule).parameters.values()
        kinds = {p.kind for p in parameters}
        takes = sum(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters)
        fits = takes == 3 if self.variadic else takes == 2 + len(self.arrays)
        if not fits and inspect.Parameter.VAR_POSITIONAL not in kinds:
            raise TypeError(f"{which} takes {takes} arguments, expected (g, out, {', '.join(self.arrays)})")
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            missing = [o for o in [*self.option_names, *["aux"] * self.has_aux] if o not in {p.name for p in parameters}]
            if missing:
                raise TypeError(f"{which} misses the option {missing[0]}")

    def set_rules(self, rules: tuple[Callable | None, ...]) -> None:
        if len(rules) != len(self.arrays):
            raise TypeError(f"{self.name} takes {len(self.arrays)} arrays, but {len(rules)} rules were given")
        for argument, rule in zip(self.arrays, rules, strict=True):
            if rule is not None:
                self._check_rule(rule, argument)
        if self.variadic:
            raise TypeError(f"{self.name} takes any number of arrays: give it one rule for all, with @{self.name}.vjp")
        self.rules, self.has_rules = rules, True
        self.mask = sum(1 << i for i, rule in enumerate(rules) if rule is not None)
        self.plans.clear()

    def set_joint(self, rule: Callable, fused: bool) -> None:
        self._check_rule(rule, None)
        if fused:
            self.fused, self.fused_asks = rule, "wanted" in inspect.signature(rule).parameters
        else:
            self.joint, self.has_rules = rule, True
            self.mask = -1 if self.variadic else (1 << len(self.arrays)) - 1
        self.plans.clear()

    def plan(self, needs: int, count: int) -> tuple[bool, tuple[int, ...]]:
        """Whether a rule that will run wants the output, and which inputs none wants, if those of ``needs`` want gradients."""
        rules = [r for r in (self.joint, None if self.fused_asks else self.fused) if r is not None]
        if self.joint is None:
            rules += [r for i, r in enumerate(self.rules) if r is not None and needs >> i & 1]
        wanted = [_wants(rule, count) for rule in rules]
        keep = [any(w[i] for w in wanted) for i in range(1 + count)]
        found = keep[0], tuple(i for i in range(count) if not keep[1 + i])
        self.plans[count if self.variadic else needs] = found  # a variadic one has one rule for all
        return found


def _wants(rule: Callable, count: int) -> list[bool]:
    """For ``out`` and each input, whether the rule names it without a leading underscore."""
    names: list[str] = []
    for p in list(inspect.signature(rule).parameters.values())[1:]:
        if p.kind is p.VAR_POSITIONAL:
            names += [p.name] * (1 + count - len(names))
        elif p.kind is not p.KEYWORD_ONLY and p.kind is not p.VAR_KEYWORD:
            names.append(p.name)
    return [not name.startswith("_") for name in names]


def _share_version(args: tuple, view: Box) -> None:
    """Let a view share the version of the tensor whose memory it shows."""
    owner = view._data.base
    for a in args:
        if isinstance(a, Box) and (a._data is owner or a._data.base is owner):
            a.share_version(view)


def primitive(function: Callable | None = None, *, aux: bool = False) -> Any:
    """Make an operation of a function of arrays: raw arrays in, raw array out; a Tensor among them, a Tensor out.

    The function's positional arguments are its arrays (those with a default may be left out), the keyword-only ones its
    options. With ``aux=True`` it returns ``(y, aux)``, where aux is a constant for the graph. Gradient rules are attached with
    ``op.defvjp(rule, ...)`` (one per array argument, or None), or ``@op.vjp`` (one rule that returns a gradient for each);
    ``@op.fused_vjp`` adds one that is used when ``g`` is a raw array; if that has an option ``wanted``, it is told for which
    inputs a gradient is wanted, and finds no more kept than the other rules need for those.
    """
    if function is None:
        return lambda f: primitive(f, aux=aux)
    if not callable(function):
        raise TypeError(f"primitive expected a function, got {type(function).__name__}")
    me = Primitive(function, aux)
    name, arity, defaults, has_aux = me.name, -1 if me.variadic else len(me.arrays), me.defaults, aux
    option_names = frozenset(me.option_names)
    usual = arity if len(defaults) == len(option_names) else -1  # so many arguments need nothing else
    bind, plan, plans, variadic = me.bind, me.plan, me.plans, me.variadic

    @wraps(function)
    def apply(*args, **options):
        if not options and len(args) == usual:
            options = defaults
        else:
            full = {**defaults, **options}
            if len(args) == arity and full.keys() == option_names:
                options = full
            else:
                args, options = bind(args, options)
        raw = []
        parents = []
        needs = 0
        bit = 1
        boxed = constant = False
        for a in args:
            if isinstance(a, Box):
                raw.append(a._data)
                if a._requires_grad:
                    needs |= bit
                    parents.append(a.node or a)
                else:
                    parents.append(None)
                    constant = True
                boxed = True
            else:
                raw.append(a)
                parents.append(None)
                if type(a) is list or type(a) is tuple:  # NumPy would take it, CuPy not
                    raise unfit(name, me.argument_names(len(args))[len(raw) - 1], a, len(args) > 1)
            bit += bit
        try:
            out = function(*raw, **options) if options else function(*raw)
        except (TypeError, ValueError, AttributeError) as error:
            better = explain(error, name, me.argument_names(len(raw)), raw, me.required)
            if better is None:
                raise
            raise better from error
        extra = None
        if has_aux:
            if type(out) is not tuple or len(out) != 2:
                raise TypeError(f"{name} was made with aux=True, and expected to return (y, aux), got {type(out).__name__}")
            out, extra = out
        if type(out) not in ARRAY_TYPES:
            out = me.result(out)
        node = None
        hooks = modes.hooks
        if needs and mode.enabled:
            needs &= me.mask
            if needs:
                inputs = raw
                keep_out = True
                if hooks is None or not hooks.keeps_arrays:
                    keep_out, drop = plans.get(len(raw) if variadic else needs) or plan(needs, len(raw))
                    for i in drop:
                        try:
                            shape = raw[i].shape
                        except AttributeError:  # a number
                            shape = ()
                        inputs[i] = absent.get(shape) or stand_in(shape)
                cells = None
                if constant:
                    cells = [(i, a.version_cell()) for i, a in enumerate(args) if isinstance(a, Box) and not a._requires_grad]
                node = Node(me, parents, inputs, options, out if keep_out else None, extra, out.dtype, cells)
            elif not me.has_rules:
                raise TypeError(f"{name} has no gradient rule: give it one, or defvjp(None, ...) if it has no gradient")
        if hooks is not None:
            hooks.apply(name, tuple(raw), options, out, extra, node)
        if boxed:
            boxed_out = make_box(out, node, node is not None)
            if out.base is not None:
                _share_version(args, boxed_out)
            out = boxed_out
        return (out, extra) if has_aux else out

    def defvjp(*rules: Callable | None) -> Callable:
        me.set_rules(rules)
        return apply

    def vjp(rule: Callable) -> Callable:
        me.set_joint(rule, fused=False)
        return rule

    def fused_vjp(rule: Callable) -> Callable:
        me.set_joint(rule, fused=True)
        return rule

    public: Any = apply
    public.defvjp, public.vjp, public.fused_vjp, public.primitive = defvjp, vjp, fused_vjp, me
    return public
