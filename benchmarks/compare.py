"""Milliseconds a training step, on this project and on others, side by side.

    python benchmarks/compare.py [--workload NAME ...] [--peers torch,torch-channels-last] [--rounds N] [--json FILE]

For each workload all contestants take turns, A B A B, each turn in a fresh process with both cores: some steps to warm up,
then steps for about a second. A figure is the median over the turns of each turn's median; a ratio is the median of the ratios
of neighbouring turns, so that a machine that changes its pace between turns does not spoil it. "limit" is what the machine
could do at best: the matrix products of the step at the rate of a large one, its memory at the rate of a large copy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from workloads import WORKLOADS, ours, torchs

OURS = "tinygrad_bn"
PEERS = {  # what each needs, and its step
    OURS: ("tinygrad_bn", ours),
    "torch": ("torch", lambda w: torchs(w, channels_last=False)),
    "torch-channels-last": ("torch", lambda w: torchs(w, channels_last=True)),
}


def take_turn(peer: str, workload: str, seconds: float) -> float:
    """The median time of a step, in milliseconds, in this process."""
    step = PEERS[peer][1](WORKLOADS[workload])
    for _ in range(3):
        step()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return median(times) * 1e3


def turn_in_a_fresh_process(peer: str, workload: str, seconds: float) -> float:
    command = [sys.executable, __file__, "--turn", peer, workload, str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{peer} failed on {workload}:\n{done.stderr}")
    return float(done.stdout)


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


def compare(names: list[str], peers: list[str], rounds: int, seconds: float) -> dict[str, dict]:
    """For each workload the turns of each contestant, their medians and ratios, and the limit; a line for each when done."""
    flops, rate = machine_rates()
    print(f"a large product runs at {flops / 1e9:.0f} GFLOP/s, a large copy moves {rate / 1e9:.0f} GB/s\n")
    columns = "".join(f"{peer:>22}{'ratio':>7}" for peer in peers)
    print(f"{'ms a step':<16}{OURS:>13}{columns}{'limit':>8}")
    results = {}
    for name in names:
        turns: dict[str, list[float]] = {peer: [] for peer in [OURS, *peers]}
        for _ in range(rounds):
            for peer, times in turns.items():
                times.append(turn_in_a_fresh_process(peer, name, seconds))
        medians = {peer: median(times) for peer, times in turns.items()}
        ratios = {p: median(a / b for a, b in zip(turns[OURS], turns[p], strict=True)) for p in peers}
        limit = (WORKLOADS[name].flops() / flops + WORKLOADS[name].bytes() / rate) * 1e3
        results[name] = {"turns": turns, "median_ms": medians, "ratio": ratios, "limit_ms": limit}
        columns = "".join(f"{medians[p]:>22.2f}{ratios[p]:>7.2f}" for p in peers)
        print(f"{name:<16}{medians[OURS]:>13.2f}{columns}{limit:>8.2f}", flush=True)
    return results


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "numpy": np.__version__, "cores": str(os.cpu_count())}
    if importlib.util.find_spec("torch"):
        import torch

        found["torch"] = torch.__version__
    return found


def main() -> None:
    if sys.argv[1:2] == ["--turn"]:
        print(take_turn(sys.argv[2], sys.argv[3], float(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--peers", default="torch,torch-channels-last", help="of " + ", ".join(p for p in PEERS if p != OURS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    args = parser.parse_args()
    peers = [p for p in args.peers.split(",") if p]
    for peer in peers:
        if peer not in PEERS or peer == OURS:
            parser.error(f"--peers expected some of {', '.join(p for p in PEERS if p != OURS)}, got {peer!r}")
        if importlib.util.find_spec(PEERS[peer][0]) is None:
            print(f"{peer} is left out: {PEERS[peer][0]} is not installed")
    peers = [p for p in peers if importlib.util.find_spec(PEERS[p][0]) is not None]
    if args.rounds < 1:
        parser.error(f"--rounds expected at least 1, got {args.rounds}")
    print(", ".join(f"{k} {v}" for k, v in versions().items()))
    results = compare(args.workload, peers, args.rounds, args.seconds)
    if args.json:
        args.json.write_text(json.dumps({"versions": versions(), "workloads": results}, indent=1))


if __name__ == "__main__":
    main()
