"""What an operation of the engine costs on 8x8 arrays, in microseconds, beside raw NumPy and PyTorch.

    python benchmarks/overhead.py [--json FILE] [--rounds N]

A chain of 100 operations, half of them ``y * w`` and half ``y + b`` with w and b parameters, float32, on one thread: so small
that what is measured is the engine. "raw" is the same chain on NumPy arrays. Forward records the graph; backward walks it and
gives w and b their gradients, which is two NumPy operations for each of the chain. The libraries take turns, and the figures
are medians of the rounds' minima: ratios taken side by side are what can be compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable
from statistics import median

import numpy as np

import tinygrad_bn as tg

CHAIN = 100
REPEATS = 30


def chain(y, w, b):
    for _ in range(CHAIN // 2):
        y = y * w
        y = y + b
    return y


def best(prepare: Callable, run: Callable) -> float:
    """The shortest of some runs, in microseconds for each operation of the chain."""
    shortest = float("inf")
    for _ in range(REPEATS):
        argument = prepare()
        start = time.perf_counter()
        result = run(argument)
        shortest = min(shortest, time.perf_counter() - start)
        del result
    return shortest / CHAIN * 1e6


def contestants() -> dict[str, tuple[Callable, Callable]]:
    """For each name what to prepare, and what to time with it."""
    x, w, b = (np.full((8, 8), value, np.float32) for value in (0.5, 1.01, 0.01))
    tx, tw, tb = tg.tensor(x), tg.tensor(w, requires_grad=True), tg.tensor(b, requires_grad=True)
    seed = tg.tensor(np.ones((8, 8), np.float32))

    def nothing() -> None:
        return None

    def recorded() -> tg.Tensor:
        tw.grad = tb.grad = None
        return chain(tx, tw, tb)

    found = {
        "raw NumPy": (nothing, lambda _: chain(x, w, b)),
        "forward": (nothing, lambda _: chain(tx, tw, tb)),
        "backward": (recorded, lambda y: y.backward(seed)),
    }
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        px, pw, pb = (torch.from_numpy(a.copy()) for a in (x, w, b))
        pw.requires_grad_()
        pb.requires_grad_()
        pseed = torch.ones(8, 8)

        def recorded_by_torch():
            pw.grad = pb.grad = None
            return chain(px, pw, pb)

        found["PyTorch forward"] = nothing, lambda _: chain(px, pw, pb)
        found["PyTorch backward"] = recorded_by_torch, lambda y: y.backward(pseed)
    return found


def measure(rounds: int) -> dict[str, float]:
    """Microseconds an operation by name: the median over rounds in which all took turns."""
    found = contestants()
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, (prepare, run) in found.items():
            times[name].append(best(prepare, run))
    return {name: median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds expected at least 1, got {args.rounds}")
    figures = measure(args.rounds)
    raw = figures["raw NumPy"]
    print(f"one operation on 8x8 float32 arrays; Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{'':<18} {'us':>6} {'times raw NumPy':>17}")
    for name, value in figures.items():
        print(f"{name:<18} {value:>6.2f} {value / raw:>17.1f}")
    if "PyTorch forward" not in figures:
        print("PyTorch is not installed: not measured")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"microseconds": figures, "ratios": {name: value / raw for name, value in figures.items()}}, file, indent=1
            )


if __name__ == "__main__":
    main()
