"""``RawModule`` for the stand-in for CuPy: a launch is checked against the CUDA source, and done by the kernel's NumPy twin.

Stricter than CuPy on purpose: what CuPy would pass as it comes, and the kernel would then read wrongly, is refused here: a
Python float for a ``float``, an array of another dtype or with gaps, an argument too few.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import cuda_twins
import numpy as np

THREADS = 256
_MOST_BLOCKS = 2**31 - 1, 65535, 65535


class Parameter(NamedTuple):
    """A parameter of a kernel as its source has it: ``const Real*`` and ``x``."""

    kind: str
    name: str


def parameters(source: str, kernel: str) -> list[Parameter]:
    found = re.search(rf"^KERNEL {kernel}\((.*?)\) \{{", source, re.MULTILINE | re.DOTALL)
    if not found:
        raise LookupError(f"the source has no kernel {kernel!r}")
    pieces = (" ".join(p.split()) for p in found[1].split(","))
    return [Parameter(*p.rsplit(" ", 1)) for p in pieces]


def kernels(source: str) -> list[str]:
    """The names of all kernels of a source."""
    return re.findall(r"^KERNEL (\w+)\(", source, re.MULTILINE)


def defined(options: tuple[str, ...]) -> dict[str, str]:
    return dict(o[2:].split("=", 1) for o in options if o.startswith("-D"))


class Types:
    """What the names of types in a source mean, compiled with some options."""

    def __init__(self, options: tuple[str, ...]):
        names = defined(options)
        real = np.dtype(f"float{names['DTYPE']}")
        self.vectors = names.get("WIDTH") == "4"  # of values are read: an error unless memory begins at a multiple of 16 bytes
        self.of = {
            "Real": real,
            "Wide": np.dtype("float32") if real == "float16" else real,
            "double": np.dtype("float64"),
            "long long": np.dtype("int64"),
            "Place": np.dtype({"unsigned char": "uint8", "int": "int32"}[names.get("Place", "int")]),
        }

    def check(self, p: Parameter, argument: Any) -> None:
        """Raise unless a kernel would read the argument as it is meant."""
        what = f"{p.kind} {p.name}"
        if p.kind.endswith("*"):
            if argument is None:
                return
            wanted = self.of[p.kind.removeprefix("const ").removesuffix("*")]
            if not hasattr(argument, "_a"):
                raise TypeError(f"{what} got {type(argument).__name__}")
            if argument.dtype != wanted or not argument._a.flags.c_contiguous:
                raise TypeError(f"{what} got {argument.dtype}, contiguous: {argument._a.flags.c_contiguous}; expected {wanted}")
            if self.vectors and argument.ndim > 2 and argument._a.ctypes.data % 16:
                raise TypeError(f"{what} begins at {argument._a.ctypes.data:x}")
        elif p.kind in ("long long", "double", "Word"):
            wanted = {"long long": (int,), "double": (float,), "Word": (np.uint64,)}[p.kind]
            if type(argument) not in wanted:
                raise TypeError(f"{what} got {type(argument).__name__}")
        elif type(argument) is not np.ndarray or argument.size != 1:
            raise TypeError(f"{what} got {type(argument).__name__}, expected a NumPy array of one element")


class RawModule:
    """``cupy.RawModule``. ``run`` may be replaced, to run a kernel by other means: see emulated_gpu/sources.py."""

    def __init__(self, code: str, *, options: tuple[str, ...] = ()):
        self.code, self.options, self.types = code, options, Types(options)

    def get_function(self, name: str) -> Any:
        wanted = parameters(self.code, name)

        def launch(grid: tuple, block: tuple, args: tuple) -> None:
            if block != (THREADS,) or not all(
                type(g) is int and 1 <= g <= most for g, most in zip(grid, _MOST_BLOCKS, strict=False)
            ):
                raise ValueError(f"{name} was launched on grid {grid} with blocks {block}")
            if len(args) != len(wanted):
                raise TypeError(f"{name} takes {len(wanted)} arguments, got {len(args)}")
            for p, argument in zip(wanted, args, strict=True):
                self.types.check(p, argument)
            raw = [a._a if hasattr(a, "_a") else a for a in args]
            with np.errstate(all="ignore"):
                RawModule.run(self, name, grid, wanted, raw)

        return launch

    def by_twin(self, name: str, grid: tuple, _wanted: list[Parameter], args: list) -> None:
        getattr(cuda_twins, name)(cuda_twins.Launch(*grid, *(1,) * (2 - len(grid)), self.types.of), *args)

    run = by_twin
