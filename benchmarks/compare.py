"""Milliseconds a training step, on this project and on others, side by side.

    python benchmarks/compare.py [--device cpu|cuda] [--workload NAME ...] [--rounds N] [--seconds S] [--markdown] [--json FILE]
                                 [--peers torch,torch-channels-last,jax,mygrad,numpy-only] [--tf32]

For each workload all contestants take turns, A B A B, each turn in a fresh process with all cores: some steps to warm up, then
steps for about a second. A figure is the median over the turns of each turn's median; a ratio is the median of the ratios of
turns of the same round, so that a machine that changes its pace between rounds does not spoil it. "at most" is what the ratio
before it is meant to be. "limit" is what the machine could do at best: the matrix products of the step at the rate of a large
one, its memory at the rate of a large copy.

A single layer gets its arrays in the memory layout in which it gets them inside a network of that contestant: NHWC on JAX,
channels_last on torch-channels-last and on this project, whose convolutions leave such arrays behind; (N, C, H, W) on the
others. Workloads "(NCHW input)" give this project contiguous (N, C, H, W) as well, beside PyTorch in its default layout.
"numpy-only" is this project without Numba: all kernels are those of tinygrad_bn/backend/portable.py.

With --device cuda the workloads are those of a GPU, beside PyTorch on the same one: both with (N, C, H, W) in memory, and
without TensorFloat-32 unless --tf32 allows it to both. Steps are timed some at a time, between two waits for the GPU.
"limit / ours" is the share of the GPU's rate that is reached; for BatchNorm, the share of the rate of a large copy.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import common
import numpy as np
from peers import with_jax, with_mygrad
from workloads import WORKLOADS, Workload, ours, torchs, waits

OURS = "tinygrad_bn"


class Contestant(NamedTuple):
    """``needs``: the library that must be installed; ``step``: makes the step of a workload; ``environment``: of its turns;
    ``lacks``: models that it has no implementation of; ``nchw``: it takes part where the input is said to be NCHW."""

    needs: str
    step: Callable[[Workload], Callable[[], Any]]
    environment: dict[str, str] = {}
    lacks: tuple[str, ...] = ()
    nchw: bool = False


CONTESTANTS = {
    OURS: Contestant("tinygrad_bn", ours, nchw=True),
    "torch": Contestant("torch", lambda w: torchs(w, channels_last=False), nchw=True),
    "torch-channels-last": Contestant("torch", lambda w: torchs(w, channels_last=True)),
    "jax": Contestant("jax", with_jax.step, {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}),
    "mygrad": Contestant("mygrad", with_mygrad.step, lacks=("resnet20",)),
    # Numba's own switch: the package then takes the portable kernels, as it does where Numba is not installed.
    "numpy-only": Contestant("numba", lambda w: ours(w, channels_last=False), {"NUMBA_DISABLE_JIT": "1"}),
}
PEERS = [name for name in CONTESTANTS if name != OURS]
DEFAULT_PEERS = ["torch", "torch-channels-last", "numpy-only"]

# What the ratio of two contestants is meant to be at most.
AT_MOST = {
    (OURS, "torch"): {
        "mlp-bn 60": 0.65,
        "mlp-bn 256": 0.80,
        "cnn-bn 64": 0.75,
        "resnet20-bn 64": 0.80,
        "BatchNorm2d f+b": 0.45,
        "conv 32@28 f+b": 0.70,
        "conv 64@14 f+b": 0.60,
        "max_pool2d f+b": 0.15,
    },
    (OURS, "torch-channels-last"): {
        "cnn-bn 64": 1.0,
        "resnet20-bn 64": 1.0,
        "BatchNorm2d f+b": 1.0,
        "max_pool2d f+b": 1.0,
    },
    ("numpy-only", "torch"): {"cnn-bn 64": 4.0},
}
AT_MOST[OURS, "torch"] |= {f"cuda {name}": 1.0 for name in ("mlp-bn 60", "mlp-bn 256")}
AT_MOST[OURS, "torch"] |= {
    f"cuda {name} {batch}": r for name in ("cnn-bn", "resnet20-bn") for batch, r in ((64, 1.2), (1024, 1.1))
}
# Where the input is (N, C, H, W) no more is allowed than where it lies better.
AT_MOST[OURS, "torch"] |= {f"{name} (NCHW input)": r for name, r in AT_MOST[OURS, "torch"].items() if name.endswith("f+b")}


# ----- who takes part, and which ratios are shown


def why_absent(peer: str) -> str | None:
    """Why a contestant cannot take part at all, or None."""
    needs = CONTESTANTS[peer].needs
    if common.installed(needs):
        return None
    return f"{needs} is not installed" + (f", so {OURS} is that already" if peer == "numpy-only" else "")


def why_not(peer: str, workload: Workload) -> str | None:
    """Why a contestant that is installed does not take part in a workload, or None."""
    if workload.device == "cuda" and peer not in (OURS, "torch"):
        return f"{peer} has no turn on CUDA"
    if workload.model in CONTESTANTS[peer].lacks:
        return f"{peer} has no implementation of {workload.model}"
    if workload.nchw and not CONTESTANTS[peer].nchw:
        return f"{peer} has no turn with NCHW input"
    return None


def pairs(peers: list[str]) -> list[tuple[str, str]]:
    """For each peer the two contestants of its ratio: this project to the peer, but numpy-only to PyTorch."""
    return [(p, "torch") if p == "numpy-only" and "torch" in peers else (OURS, p) for p in peers]


# ----- one turn


def take_turn(peer: str, workload: str, seconds: float) -> float:
    """The median time of a step, in milliseconds, in this process."""
    step = CONTESTANTS[peer].step(WORKLOADS[workload])
    if WORKLOADS[workload].device == "cuda":
        return take_turn_on_cuda(step, waits(peer), seconds)
    for _ in range(3):
        step()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    if peer == "numpy-only" and "numba" in sys.modules:
        raise RuntimeError("numpy-only has loaded Numba, so it did not measure the portable kernels")
    return median(times) * 1e3


def take_turn_on_cuda(step: Callable[[], Any], wait: Callable[[], None], seconds: float) -> float:
    """The same where steps only begin when they are called: some at a time, for about 20 ms, between two waits."""
    for _ in range(10):
        step()
    wait()
    many, times = 1, []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        for _ in range(many):
            step()
        wait()
        passed = time.perf_counter() - start
        if passed < 0.01:
            many, times = 2 * many, []
        else:
            times.append(passed / many)
    return median(times) * 1e3


def rates_of_the_gpu() -> tuple[float, float]:
    """``machine_rates`` of the GPU, as CuPy does them."""
    import cupy

    import tinygrad_bn as tg

    if os.environ.get("COMPARE_TF32") == "1":  # the limit of what is compared
        tg.cuda.allow_tf32 = True
        tg.zeros(1, device="cuda")
    a = cupy.ones((8192, 8192), "float32")
    source, target = cupy.ones(1 << 28, "float32"), cupy.empty(1 << 28, "float32")

    def shortest(run) -> float:
        times = []
        for _ in range(5):
            cupy.cuda.Device().synchronize()
            start = time.perf_counter()
            run()
            cupy.cuda.Device().synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * 8192**3 / shortest(lambda: a @ a), 2 * source.nbytes / shortest(lambda: cupy.copyto(target, source))


def turn_in_a_fresh_process(peer: str, workload: str, seconds: float) -> float:
    arguments = [__file__, "--turn", peer, workload, str(seconds)]
    try:
        return float(common.fresh_process(arguments, CONTESTANTS[peer].environment))
    except RuntimeError as error:
        raise RuntimeError(f"{peer} failed on {workload}: {error}") from None


def machine_rates() -> tuple[float, float]:
    """FLOP/s of a large product in float32, and bytes/s of a large copy, both as NumPy does them."""
    a = np.ones((2048, 2048), np.float32)
    source, target = np.ones(1 << 24, np.float32), np.empty(1 << 24, np.float32)

    def shortest(run) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * 2048**3 / shortest(lambda: a @ a), 2 * source.nbytes / shortest(lambda: np.copyto(target, source))


# ----- all turns


def summary(name: str, turns: dict[str, list[float]], peers: list[str], rates: tuple[float, float]) -> dict[str, Any]:
    """The turns of a workload (ms, in the order taken) with their medians, the ratios, and the limit."""
    ratios, allowed = {}, {}
    for a, b in pairs(peers):
        if a in turns and b in turns:
            ratios[f"{a} / {b}"] = median(x / y for x, y in zip(turns[a], turns[b], strict=True))
            if name in AT_MOST.get((a, b), {}):
                allowed[f"{a} / {b}"] = AT_MOST[a, b][name]
    flops, rate = rates
    return {
        "turns_ms": turns,
        "median_ms": {contestant: median(times) for contestant, times in turns.items()},
        "ratio": ratios,
        "at_most": allowed,
        "limit_ms": (WORKLOADS[name].flops() / flops + WORKLOADS[name].bytes() / rate) * 1e3,
    }


def header(peers: list[str], device: str = "cpu") -> list[str]:
    """The titles of the columns: for each peer its time, the ratio, and if one is asked for, its limit."""
    titles = ["ms a step", OURS]
    for peer, (a, b) in zip(peers, pairs(peers), strict=True):
        titles += [peer, "ratio" if a == OURS else f"{a} / {b}"]
        titles += ["at most"] if (a, b) in AT_MOST else []
    return [*titles, "limit", *(["limit / ours"] if device == "cuda" else [])]


def cells(name: str, result: dict[str, Any], peers: list[str]) -> list[str]:
    """The row of a workload, under ``header``; "-" where a contestant did not take part or nothing is asked."""

    def text(figures: dict[str, float], key: str) -> str:
        return f"{figures[key]:.2f}" if key in figures else "-"

    row = [name, text(result["median_ms"], OURS)]
    for peer, (a, b) in zip(peers, pairs(peers), strict=True):
        row += [text(result["median_ms"], peer), text(result["ratio"], f"{a} / {b}")]
        row += [text(result["at_most"], f"{a} / {b}")] if (a, b) in AT_MOST else []
    row.append(text(result, "limit_ms"))
    if WORKLOADS[name].device == "cuda":
        ours = result["median_ms"].get(OURS)
        row.append(f"{result['limit_ms'] / ours:.2f}" if ours else "-")
    return row


def compare(
    names: list[str],
    peers: list[str],
    rounds: int,
    seconds: float,
    markdown: bool = False,
    finished: Callable[[dict[str, dict]], None] = lambda _: None,
) -> dict[str, dict]:
    """For each workload what ``summary`` says; a line of the table for each when done, and a call of ``finished``.

    A contestant that fails takes no part in this workload any more; why is printed, and stands under "failed".
    """
    device = WORKLOADS[names[0]].device
    if device == "cuda":
        rates = tuple(map(float, common.fresh_process([__file__, "--rates"]).split()))
    else:
        rates = machine_rates()
    print(f"a large product runs at {rates[0] / 1e9:.0f} GFLOP/s, a large copy moves {rates[1] / 1e9:.0f} GB/s")
    takes_part = {name: [c for c in (OURS, *peers) if why_not(c, WORKLOADS[name]) is None] for name in names}
    for reason in dict.fromkeys(why_not(peer, WORKLOADS[name]) for name in names for peer in peers):
        if reason:
            print(f"- means: {reason}")
    table = common.Table(header(peers, device), names, markdown)
    print(f"\n{table.head()}", flush=True)
    results = {}
    with common.progress(rounds * sum(map(len, takes_part.values()))) as bar:
        for name in names:
            turns: dict[str, list[float]] = {contestant: [] for contestant in takes_part[name]}
            failed: dict[str, str] = {}
            for _ in range(rounds):
                for contestant in list(turns):
                    bar.set_description(f"{contestant}, {name}")
                    try:
                        turns[contestant].append(turn_in_a_fresh_process(contestant, name, seconds))
                    except RuntimeError as error:
                        failed[contestant] = str(error)
                        del turns[contestant]
                    bar.update()
            results[name] = {**summary(name, turns, peers, rates), "failed": failed}
            common.say(table.line(cells(name, results[name], peers)), bar)
            for error in failed.values():
                common.say(error, bar)
            finished(results)
    return results


# ----- the command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(WORKLOADS)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--tf32", action="store_true", help="allow TensorFloat-32 to both on CUDA")
    p.add_argument("--workload", nargs="+", metavar="NAME", help=f"of {', '.join(names)} (default: all of the device)")
    default = ",".join(DEFAULT_PEERS)
    p.add_argument("--peers", default=default, metavar="P,P", help=f"of {', '.join(PEERS)} (default: {default})")
    p.add_argument("--rounds", type=common.positive(int), default=3, metavar="N", help="turns of each (default: 3)")
    p.add_argument("--seconds", type=common.positive(float), default=1.0, metavar="S", help="of a turn (default: 1)")
    p.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    p.add_argument("--json", type=common.new_file, metavar="FILE", help="also write everything there")
    args = p.parse_args(argv)
    of_device = [name for name in names if WORKLOADS[name].device == args.device]
    args.workload = args.workload or of_device
    for name in args.workload:
        if name not in of_device:
            p.error(f"argument --workload: expected some of {', '.join(of_device)}, got {name!r}")
    args.peers = list(dict.fromkeys(peer for peer in args.peers.split(",") if peer))
    for peer in args.peers:
        if peer not in PEERS:
            p.error(f"argument --peers: expected some of {', '.join(PEERS)}, got {peer!r}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    common.need_package()
    if args.device == "cuda":
        import tinygrad_bn as tg

        try:
            tg.zeros(1, device="cuda")
        except RuntimeError as error:
            sys.exit(str(error))
        os.environ["COMPARE_TF32"] = str(int(args.tf32))
    print(", ".join(f"{k} {v}" for k, v in common.measured_on().items()))
    reasons = {peer: why_absent(peer) for peer in args.peers}
    for peer, reason in reasons.items():
        if reason:
            print(f"{peer} is left out: {reason}")
    peers = [peer for peer, reason in reasons.items() if reason is None]
    results = compare(args.workload, peers, args.rounds, args.seconds, args.markdown)
    common.write_json(args.json, workloads=results)
    return int(any(result["failed"] for result in results.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rates"]:
        print(*rates_of_the_gpu())
    elif sys.argv[1:2] == ["--turn"]:
        print(take_turn(sys.argv[2], sys.argv[3], float(sys.argv[4])))
    else:
        sys.exit(main())
