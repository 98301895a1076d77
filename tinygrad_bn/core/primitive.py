"""``@primitive`` makes an operation of a function of arrays: it runs it, and records a node when a gradient may be wanted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from ..backend import ARRAY_TYPES, as_array, explain
from . import graph, modes
from .graph import Box, Node, absent, stand_in
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
        self.mask = 0  # bit i: argument i has a rule
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

    def set_rules(self, rules: tuple[Callable | None, ...]) -> None:
        if len(rules) != len(self.arrays):
            raise TypeError(f"{self.name} takes {len(self.arrays)} arrays, but {len(rules)} rules were given")
        if self.variadic:
            raise TypeError(f"{self.name} takes any number of arrays: give it one rule for all, with @{self.name}.vjp")
        self.rules = rules
        self.mask = sum(1 << i for i, rule in enumerate(rules) if rule is not None)
        self.plans.clear()

    def set_joint(self, rule: Callable, fused: bool) -> None:
        if fused:
            self.fused = rule
        else:
            self.joint = rule
            self.mask = -1 if self.variadic else (1 << len(self.arrays)) - 1
        self.plans.clear()

    def plan(self, needs: int, count: int) -> tuple[bool, tuple[int, ...]]:
        """Whether a rule that will run wants the output, and which inputs none wants, if those of ``needs`` want gradients."""
        rules = [r for r in (self.joint, self.fused) if r is not None]
        if self.joint is None:
            rules += [r for i, r in enumerate(self.rules) if r is not None and needs >> i & 1]
        wanted = [_wants(rule, count) for rule in rules]
        keep = [any(w[i] for w in wanted) for i in range(1 + count)]
        found = keep[0], tuple(i for i in range(count) if not keep[1 + i])
        if not self.variadic:
            self.plans[needs] = found
        return found


def _wants(rule: Callable, count: int) -> list[bool]:
    """For ``out`` and each input, whether the rule names it without a leading underscore."""
    names: list[str] = []
    for p in list(inspect.signature(rule).parameters.values())[1:]:
        if p.kind is p.VAR_POSITIONAL:
            names += [p.name] * (1 + count - len(names))
        elif p.kind is not p.KEYWORD_ONLY and p.kind is not p.VAR_KEYWORD:
            names.append(p.name)
    if len(names) != 1 + count:
        raise TypeError(f"a rule takes (g, out, and {count} inputs), but {rule} takes {1 + len(names)} arguments")
    return [not name.startswith("_") for name in names]


def primitive(function: Callable | None = None, *, aux: bool = False) -> Any:
    """Make an operation of a function of arrays: raw arrays in, raw array out; a Tensor among them, a Tensor out.

    The function's positional arguments are its arrays (those with a default may be left out), the keyword-only ones its
    options. With ``aux=True`` it returns ``(y, aux)``, where aux is a constant for the graph. Gradient rules are attached with
    ``op.defvjp(rule, ...)`` (one per array argument, or None), or ``@op.vjp`` (one rule that returns a gradient for each);
    ``@op.fused_vjp`` adds one that is used when ``g`` is a raw array.
    """
    if function is None:
        return lambda f: primitive(f, aux=aux)
    me = Primitive(function, aux)
    name, arity, defaults, has_aux = me.name, len(me.arrays), me.defaults, aux
    # Without a complete set of defaults, or with a variable number of arrays, every call goes through bind().
    if me.variadic or len(defaults) != len(me.option_names):
        arity = -1
    bind, plan, plans = me.bind, me.plan, me.plans

    @wraps(function)
    def apply(*args, **options):
        if options or len(args) != arity:
            args, options = bind(args, options)
        else:
            options = defaults
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
            bit += bit
        try:
            out = function(*raw, **options) if options else function(*raw)
        except (TypeError, ValueError) as error:
            better = explain(error, name, me.argument_names(len(raw)), raw)
            if better is None:
                raise
            raise better from error
        extra = None
        if has_aux:
            out, extra = out
        if type(out) not in ARRAY_TYPES:
            out = as_array(out)
        node = None
        needs &= me.mask
        if needs and mode.enabled:
            inputs = raw
            keep_out = True
            if modes.hooks is None:
                keep_out, drop = plans.get(needs) or plan(needs, len(raw))
                for i in drop:
                    shape = getattr(raw[i], "shape", ())
                    inputs[i] = absent.get(shape) or stand_in(shape)
            cells = None
            if constant:
                cells = [(i, a.version_cell()) for i, a in enumerate(args) if isinstance(a, Box) and not a._requires_grad]
            node = Node(me, parents, inputs, options, out if keep_out else None, extra, out.dtype, cells)
        if modes.hooks is not None:
            modes.hooks.apply(name, tuple(raw), options, out, extra, node)
        if boxed:
            out = graph.box_type(out, node, node is not None)
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
