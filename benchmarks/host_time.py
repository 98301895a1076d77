"""How long the host takes for a training step on CUDA: what is left of it if the GPU took no time at all.

    python benchmarks/host_time.py [--beside FOLDER] [--rounds N] [--patches]

It needs no GPU, but CuPy and g++: the step runs on the emulated GPU of tests/emulated_gpu, which is told to compute nothing,
beside a cuDNN that does nothing either (or by patches and cuBLAS, with --patches). What a real driver takes for each launch is
missing. A network whose kernels are short cannot be faster than this. ``--beside`` takes turns with another checkout, in fresh
processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from pathlib import Path
from statistics import median
from typing import Any

import common

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = "mlp-bn 60", "cnn-bn 64", "resnet20-bn 64"
STEPS = 150


class _Silent:
    """A graph of cuDNN's frontend, a tensor in it, and whatever else: every method is there and does nothing."""

    def __init__(self, **_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: _Silent()

    def get_workspace_size(self) -> int:
        return 1

    def execute(self, *_: Any, **__: Any) -> None:
        pass


def _silent_cudnn() -> types.ModuleType:
    module: Any = types.ModuleType("cudnn")
    module.__version__, module.pygraph, module.create_handle = "1.26.0", _Silent, lambda: 1
    module.set_stream = lambda **_: None
    module.data_type = module.heur_mode = module.numerical_note = _Silent()
    return module


def measure(tree: Path, patches: bool) -> dict[str, dict[str, float]]:
    """In this process: the shortest and the median step of each network, and what it asks of the GPU."""
    sys.path[:0] = [str(tree), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    import emulated_gpu

    cupy = emulated_gpu.install()
    if not patches:
        sys.modules["cudnn"] = _silent_cudnn()
    import workloads

    import tinygrad_bn as tg

    assert Path(tg.__file__).is_relative_to(tree), f"{tg.__file__} is not in {tree}"
    found = {}
    for name in NETWORKS:
        workload = workloads.WORKLOADS[f"cuda {name}"]
        model = workloads.ours_model(workload.model).to("cuda")
        optimizer = tg.optim.SGD(model.parameters(), lr=workloads.LR, momentum=workloads.MOMENTUM)
        x, labels = cupy.zeros(workload.input, "float32"), cupy.zeros(workload.input[0], "int64")
        times, before = [], emulated_gpu.counts()
        for i in range(STEPS + 5):
            if i == 5:  # what is made at first is made
                before = emulated_gpu.counts()
            start = time.perf_counter()
            optimizer.zero_grad()
            tg.cross_entropy(model(tg.Tensor(x)), tg.Tensor(labels)).backward()
            optimizer.step()
            times.append(1e6 * (time.perf_counter() - start))
        asked = {k: (a - b) / STEPS for k, a, b in zip(before._fields, emulated_gpu.counts(), before, strict=True)}
        found[name] = {"shortest": min(times[5:]), "median": median(times[5:]), **asked}
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, to take turns with")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each (default: 3)")
    parser.add_argument("--patches", action="store_true", help="convolve by patches and cuBLAS, as without cuDNN")
    parser.add_argument("--turn", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error(f"--rounds expected at least 1, got {asked.rounds}")
    if asked.beside is not None and not (asked.beside / "tinygrad_bn" / "__init__.py").exists():
        parser.error(f"--beside expected a checkout of this project, got {asked.beside}")
    if not common.installed("cupy"):
        parser.error("CuPy is not installed: pip install cupy-cuda12x")
    if asked.turn:
        print(json.dumps(measure(asked.turn, asked.patches)))
        return
    trees = [ROOT] if asked.beside is None else [ROOT, asked.beside.resolve()]
    how = ["--patches"] if asked.patches else []
    environment = {"EMULATED_GPU": "1", "EMULATED_GPU_SKIP": "1"}
    turns: list[list[dict]] = [[] for _ in trees]
    for _ in range(asked.rounds):
        for tree, found in zip(trees, turns, strict=True):
            found.append(json.loads(common.fresh_process([__file__, "--turn", str(tree), *how], environment)))
    columns = "us a step", "shortest", "launches", "waits"
    print(f"{'':18}" + "".join(f"{c:>12}" for c in columns) + (f"{'ratio':>12}" if asked.beside else ""))
    for name in NETWORKS:
        rows = [[turn[name] for turn in found] for found in turns]
        ratio = median(a["median"] / b["median"] for a, b in zip(rows[0], rows[-1], strict=True))
        for tree, row in zip(("", "  beside"), rows, strict=False):
            numbers = [median(r["median"] for r in row), min(r["shortest"] for r in row), row[0]["launches"], row[0]["waits"]]
            text = "".join(f"{n:12.0f}" for n in numbers)
            print(f"{name if not tree else tree:18}{text}" + (f"{ratio:12.2f}" if asked.beside and not tree else ""))


if __name__ == "__main__":
    main()
