"""Modules made of modules: one after another, or in a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .module import Module


class Sequential(Module):
    """Modules one after another; each gets the output of the one before."""

    def __init__(self, *modules: Module):
        for i, module in enumerate(modules):
            _must_be_module("Sequential", module, i)
            setattr(self, str(i), module)

    def forward(self, x: Any) -> Any:
        for module in _listed(self):
            x = module(x)
        return x

    def __len__(self) -> int:
        return len(_listed(self))

    def __iter__(self) -> Iterator[Module]:
        return iter(_listed(self))

    def __getitem__(self, index: int | slice) -> Module:
        found = _pick(self, index)
        return Sequential(*found) if isinstance(found, list) else found

    def append(self, module: Module) -> Sequential:
        _must_be_module("Sequential", module, len(self))
        setattr(self, str(len(self)), module)
        return self


class ModuleList(Module):
    """A list of modules whose parameters are found; it has no forward."""

    def __init__(self, modules: Any = ()):
        if isinstance(modules, Module) or not hasattr(modules, "__iter__"):
            raise TypeError(f"ModuleList expected a sequence of Modules, got {type(modules).__name__}")
        for i, module in enumerate(modules):
            _must_be_module("ModuleList", module, i)
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return len(_listed(self))

    def __iter__(self) -> Iterator[Module]:
        return iter(_listed(self))

    def __getitem__(self, index: int) -> Module:
        return _pick(self, index)

    def append(self, module: Module) -> ModuleList:
        _must_be_module("ModuleList", module, len(self))
        setattr(self, str(len(self)), module)
        return self


def _listed(module: Module) -> list[Module]:
    return [m for m in vars(module).values() if isinstance(m, Module)]


def _pick(module: Module, index: Any) -> Any:
    try:
        return _listed(module)[index]
    except IndexError:
        raise IndexError(f"{type(module).__name__} has {len(_listed(module))} modules, got index {index}") from None


def _must_be_module(name: str, module: Any, position: int) -> None:
    if isinstance(module, Module):
        return
    if isinstance(module, type) and issubclass(module, Module):
        what = module.__name__
        raise TypeError(f"{name} expected Modules, got the class {what} at position {position}; make one: {what}()")
    hint = "; pass modules one by one" if isinstance(module, (list, tuple, dict)) else ""
    hint += ", not in a list" if isinstance(module, (list, tuple)) else ""
    raise TypeError(f"{name} expected Modules, got {type(module).__name__} at position {position}{hint}")
