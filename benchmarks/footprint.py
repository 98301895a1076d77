"""What training costs beside time: memory, page faults, the import, the compiler, and whether the bits stay the same.

    python benchmarks/footprint.py [--measure NAME ...] [--rounds N] [--quick] [--markdown] [--json FILE]

Everything is measured in fresh processes, this project's and PyTorch's in turn; a figure is the median over the rounds, a ratio
the median of the ratios of turns of the same round. PyTorch keeps its default number of threads, and so does this project.

memory   MiB of resident memory: from after two steps of cnn-bn with batch 2, when everything is loaded, to the peak of 20 steps
         with batch 64: the growth, and the peak itself.
faults   minor page faults a step in steady state: over 20 steps, after 10.
import   ms that ``python -c "import X"`` takes, X this project and NumPy, less what a bare Python takes; 20 turns of each. And
         which of some large libraries were imported with it.
compile  seconds of the first training step and evaluation of the MNIST example's network, both arms, and of the first step of
         cnn-bn, with an empty cache; again in a second process; and how many functions Numba compiled there.
bits     whether five losses of cnn-bn, and all weights after them, have the same bits with one and two threads.
rows     ms of backward through a sum over 2,000 rows ``w[i]``, each multiplied with a vector, of a (2000, 1000) matrix.

How the peak is found: on Linux, /proc/self/clear_refs resets the kernel's own mark of the highest resident memory (VmHWM) after
the two steps, and /proc/self/status tells it at the end; nothing between is missed. Where that cannot be written, the mark of
the whole process serves (ru_maxrss), which is too high if importing took more than the steps. "how" in the JSON tells which.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import numpy as np
import workloads

OURS = "tinygrad_bn"
HEAVY = "numba", "scipy", "threadpoolctl", "cupy", "matplotlib", "tqdm"  # none of these is imported with the package


class Sizes(NamedTuple):
    """How large everything is; ``--quick`` takes the second set, which shows that it runs, and finds nothing."""

    batch: int = 64
    steps: int = 20
    warm_up: int = 10
    imports: int = 20
    rows: int = 2000
    columns: int = 1000
    networks: tuple[str, ...] = ("cnn-bn 64", "resnet20-bn 64", "mlp-bn 60", "mlp-bn 256")


QUICK = Sizes(batch=2, steps=2, warm_up=1, imports=1, rows=20, columns=10, networks=("mlp-bn 60",))


class Line(NamedTuple):
    """A row of the table: a figure of this project, what stands beside it, and what is asked of the ratio or of the figure."""

    figure: str
    ours: float | None
    other: float | None = None
    ratio: float | None = None
    ratio_at_most: float | None = None
    at_most: float | None = None
    note: str = ""

    def holds(self) -> bool | None:
        """Whether what is asked is so; None if nothing is asked, or the figure is missing."""
        if self.ratio_at_most is not None:
            return None if self.ratio is None else self.ratio <= self.ratio_at_most
        return None if self.at_most is None or self.ours is None else self.ours <= self.at_most

    def cells(self) -> list[str]:
        asked = f"ratio {self.ratio_at_most:g}" if self.ratio_at_most is not None else _text(self.at_most)
        holds = {True: "yes", False: "NO", None: "-"}[self.holds()]
        return [self.figure, _text(self.ours), _text(self.other), _text(self.ratio), asked, holds]


HEADER = ["figure", OURS, "beside it", "ratio", "at most", "holds"]


def _text(x: float | None) -> str:
    """Two decimals, fewer for large figures, more for small ones."""
    if x is None:
        return "-"
    x = x or 0.0  # not -0
    decimals = 0 if abs(x) >= 100 or x == int(x) else 1 if abs(x) >= 10 else 2 if abs(x) >= 0.1 else 4
    return f"{x:.{decimals}f}"


# ----- in the fresh process: each takes who is measured and the sizes, and returns what goes to the parent as JSON


def _network(library: str, name: str) -> Callable[[np.ndarray, np.ndarray], Callable[[], Any]]:
    return workloads.ours_network(name) if library == OURS else workloads.torchs_network(name, channels_last=False)


def _batch(name: str, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    workload = workloads.WORKLOADS[name]
    return workloads.batch(workload._replace(input=(batch or workload.input[0], *workload.input[1:])))


def _resident(mark: str) -> float:
    """MiB: VmRSS, the memory that is resident now, or VmHWM, the highest since the mark was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(mark)) / 1024


def _highest() -> float:
    """MiB: the highest resident memory of the whole process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def child_memory(library: str, sizes: Sizes) -> dict[str, Any]:
    on = _network(library, "cnn")
    step = on(*_batch("cnn-bn 64", 2))
    for _ in range(2):
        step()
    del step
    gc.collect()
    step = on(*_batch("cnn-bn 64", sizes.batch))
    try:
        Path("/proc/self/clear_refs").write_text("5")
        how, before = "VmHWM", _resident("VmRSS")
    except OSError:
        how, before = "ru_maxrss", _highest()
    for _ in range(sizes.steps):
        step()
    peak = _resident("VmHWM") if how == "VmHWM" else _highest()
    return {"growth": peak - before, "peak": peak, "how": how}


def child_faults(library: str, sizes: Sizes, name: str) -> float:
    import resource

    step = _network(library, workloads.WORKLOADS[name].model)(*_batch(name))
    for _ in range(sizes.warm_up):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(sizes.steps):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / sizes.steps


def child_bits(_library: str, sizes: Sizes, threads: int) -> dict[str, Any]:
    """The bits of the losses, and a digest of the weights after them."""
    import tinygrad_bn as tg

    tg.set_num_threads(threads)
    tg.manual_seed(0)
    weights: list[Any] = []
    sgd = tg.optim.SGD

    def remember(parameters: Any, **options: Any) -> Any:
        weights.extend(parameters)
        return sgd(weights, **options)

    tg.optim.SGD = remember
    step = workloads.ours_network("cnn")(*_batch("cnn-bn 64", sizes.batch))
    losses = [float(step().item()).hex() for _ in range(5)]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(w.data).tobytes() for w in weights)).hexdigest()
    return {"losses": losses, "weights": digest}


def child_rows(library: str, sizes: Sizes) -> float:
    """ms of one backward; a first loop, over a tenth of the rows, has warmed up."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((sizes.rows, sizes.columns)).astype(np.float32)
    vector = rng.standard_normal(sizes.columns).astype(np.float32)
    if library == OURS:
        import tinygrad_bn as tg

        w, v = tg.tensor(matrix, requires_grad=True), tg.tensor(vector)
    else:
        import torch

        w, v = torch.from_numpy(matrix).requires_grad_(), torch.from_numpy(vector)

    def backward(rows: int) -> float:
        w.grad = None
        total = (w[0] * v).sum()
        for i in range(1, rows):
            total = total + (w[i] * v).sum()
        start = time.perf_counter()
        total.backward()
        return (time.perf_counter() - start) * 1e3

    backward(max(1, sizes.rows // 10))
    return backward(sizes.rows)


def child_compile(_library: str, sizes: Sizes, what: str) -> dict[str, float]:
    """Seconds of the first run and of the one after it, and how many functions Numba compiled meanwhile."""
    run = _mnist_example(sizes) if what == "mnist" else workloads.ours_network("cnn")(*_batch("cnn-bn 64", sizes.batch))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "next": seconds[1], "compiled": _compiled()}


def _mnist_example(sizes: Sizes) -> Callable[[], None]:
    """What examples/mnist.py computes with its default network: in both arms a training step, and an evaluation."""
    import tinygrad_bn as tg

    x, labels = _batch("cnn-bn 64", sizes.batch)
    arms = []
    for norm in (None, "batch"):
        network = tg.models.cnn(norm=norm)
        arms.append((network, tg.optim.SGD(network.parameters(), lr=0.01)))

    def run() -> None:
        for network, optimizer in arms:
            network.train()
            loss = tg.cross_entropy(network(tg.tensor(x)), tg.tensor(labels))
            loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            network.eval()
            with tg.no_grad():
                network(tg.tensor(x)).numpy()

    return run


def _compiled() -> int:
    """How many functions (a signature each) Numba has compiled in this process, not taken from its cache."""
    if "numba" not in sys.modules:
        return 0
    from numba.core.dispatcher import Dispatcher

    dispatchers = [o for o in gc.get_objects() if issubclass(type(o), Dispatcher)]
    return sum(sum(d.stats.cache_misses.values()) for d in dispatchers)


CHILDREN = {
    "memory": child_memory,
    "faults": child_faults,
    "bits": child_bits,
    "rows": child_rows,
    "compile": child_compile,
}


def child(name: str, library: str, sizes: Sizes, *more: Any, environment: dict[str, str] | None = None) -> Any:
    """What ``child_<name>`` returns in a fresh process."""
    arguments = [__file__, "--child", name, library, json.dumps([sizes._asdict(), *more])]
    return json.loads(common.fresh_process(arguments, environment))


def _run_child(name: str, library: str, arguments: str) -> str:
    sizes, *more = json.loads(arguments)
    return json.dumps(CHILDREN[name](library, Sizes(**sizes), *more))


# ----- the measurements: each yields a line when it is done


class Run(NamedTuple):
    sizes: Sizes
    rounds: int
    libraries: list[str]  # this project, and PyTorch if it is installed
    bar: Any
    raw: dict[str, Any]  # all turns, for the JSON

    def turns(self, key: str, name: str, *more: Any) -> dict[str, list]:
        """A turn of each library in each round."""
        found: dict[str, list] = {library: [] for library in self.libraries}
        for _ in range(self.rounds):
            for library, values in found.items():
                self.bar.set_description(f"{key}, {library}")
                values.append(child(name, library, self.sizes, *more))
                self.bar.update()
        self.raw[key] = found
        return found


def _beside(figure: str, turns: dict[str, list], **asked: Any) -> Line:
    """This project's median, PyTorch's, and the median of the ratios."""
    mine, theirs = turns[OURS], turns.get("torch")
    if theirs is None:
        return Line(figure, median(mine), **asked)
    ratios = [a / b for a, b in zip(mine, theirs, strict=True) if b]
    return Line(figure, median(mine), median(theirs), median(ratios) if ratios else None, **asked)


def measure_memory(run: Run):
    turns = run.turns("memory", "memory")
    for what, most in (("growth", 0.9), ("peak", 0.55)):
        figures = {library: [turn[what] for turn in some] for library, some in turns.items()}
        yield _beside(f"cnn-bn memory, {what}, MiB", figures, ratio_at_most=most)


def measure_faults(run: Run):
    for name in run.sizes.networks:
        line = _beside(f"page faults a step, {name}", run.turns(f"faults {name}", "faults", name), at_most=100)
        yield line._replace(ratio=None)  # of figures near zero it says nothing


def measure_import(run: Run):
    programs = {"python": "pass", "numpy": "import numpy", OURS: f"import {OURS}"}
    times: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as bytecode:
        # Bytecode is kept, wherever the packages lie and whatever the user's settings are: for all of them, or for none.
        environment = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
        for turn in range(run.sizes.imports + 1):
            for name, program in programs.items():
                run.bar.set_description(f"import, {name}")
                start = time.perf_counter()
                common.fresh_process(["-c", program], environment)
                if turn:  # the first writes the bytecode
                    times[name].append((time.perf_counter() - start) * 1e3)
                run.bar.update()
    run.raw["import"] = times
    net = {n: [a - b for a, b in zip(times[n], times["python"], strict=True)] for n in (OURS, "numpy")}
    for figure, some in (("import, ms (beside NumPy)", net), ("import with Python's start, ms (beside NumPy)", times)):
        ratio = median(a / b for a, b in zip(some[OURS], some["numpy"], strict=True))
        yield Line(figure, median(some[OURS]), median(some["numpy"]), ratio, ratio_at_most=1.3)
    found = imported_with_it()
    run.raw["imported"] = found
    note = f"imported with {OURS}: {', '.join(found)}" if found else ""
    yield Line("large libraries imported", len(found), at_most=0, note=note)


def imported_with_it() -> list[str]:
    """Which of HEAVY a process has loaded that imports this project only."""
    loaded = common.fresh_process(["-c", f"import sys, {OURS}; print(*sys.modules)"]).split()
    return [library for library in HEAVY if library in loaded]


def measure_compile(run: Run):
    if not common.installed("numba"):
        yield Line("compile", None, note="compile is left out: numba is not installed")
        return
    for what, name in (("mnist", "MNIST example"), ("cnn-bn", "cnn-bn")):
        with tempfile.TemporaryDirectory() as cache:
            processes = []
            for _ in range(2):
                run.bar.set_description(f"compile, {name}")
                processes.append(child("compile", OURS, run.sizes, what, environment={"NUMBA_CACHE_DIR": cache}))
                run.bar.update()
        run.raw[f"compile {what}"] = processes
        first, second = processes
        yield Line(f"{name}: first process, first step, s", first["first"], at_most=20)
        yield Line(f"{name}: second process, first step, s", second["first"])
        yield Line(f"{name}: second process, next step, s", second["next"])
        yield Line(f"{name}: compiled in the first process", first["compiled"])
        yield Line(f"{name}: compiled in the second process", second["compiled"], at_most=0)


def measure_bits(run: Run):
    found = []
    for threads in (1, 2):
        run.bar.set_description(f"bits, threads: {threads}")
        found.append(child("bits", OURS, run.sizes, threads))
        run.bar.update()
    run.raw["bits"] = found
    one, two = found
    differ = sum(a != b for a, b in zip(one["losses"], two["losses"], strict=True))
    yield Line("losses that differ, 1 and 2 threads", differ, at_most=0)
    yield Line("weights that differ after them", int(one["weights"] != two["weights"]), at_most=0)


def measure_rows(run: Run):
    turns = run.turns("rows", "rows")
    yield _beside(f"backward over {run.sizes.rows} rows, ms", turns, ratio_at_most=0.1)


MEASUREMENTS = {
    "memory": measure_memory,
    "faults": measure_faults,
    "import": measure_import,
    "compile": measure_compile,
    "bits": measure_bits,
    "rows": measure_rows,
}


def turns_of(names: list[str], sizes: Sizes, rounds: int, libraries: int) -> int:
    """How many turns all these take, for the progress bar."""
    each = rounds * libraries
    counts = {"memory": each, "faults": each * len(sizes.networks), "import": 3 * (sizes.imports + 1)}
    counts |= {"compile": 4 if common.installed("numba") else 0, "bits": 2, "rows": each}
    return sum(counts[name] for name in names)


def measure(names: list[str], sizes: Sizes, rounds: int, markdown: bool = False) -> dict[str, Any]:
    """All lines, printed when they are there, and all turns behind them."""
    libraries = [OURS, *(["torch"] if common.installed("torch") else [])]
    if "torch" not in libraries and {"memory", "faults", "rows"} & set(names):
        print("torch is left out: torch is not installed")
    lines: list[Line] = []
    raw: dict[str, Any] = {}
    table = common.Table(HEADER, ["import with Python's start, ms (beside NumPy)"], markdown)
    print(f"\n{table.head()}", flush=True)
    with common.progress(turns_of(names, sizes, rounds, len(libraries))) as bar:
        run = Run(sizes, rounds, libraries, bar, raw)
        for name in names:
            for line in MEASUREMENTS[name](run):
                lines.append(line)
                common.say(table.line(line.cells()), bar)
    notes = [line.note for line in lines if line.note]
    print(*([""] + notes if notes else []), sep="\n", end="\n" if notes else "")
    return {"lines": [line._asdict() | {"holds": line.holds()} for line in lines], "turns": raw}


# ----- the command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--measure", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    p.add_argument("--rounds", type=common.positive(int), default=3, metavar="N", help="turns of each (default: 3)")
    p.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all? The figures mean nothing")
    p.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    p.add_argument("--json", type=common.new_file, metavar="FILE", help="also write everything there")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    common.need_package()
    print(", ".join(f"{k} {v}" for k, v in common.measured_on().items()))
    sizes = QUICK if args.quick else Sizes()
    found = measure(args.measure, sizes, args.rounds, args.markdown)
    common.write_json(args.json, sizes=sizes._asdict(), **found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(_run_child(*sys.argv[2:]))
    else:
        main()
