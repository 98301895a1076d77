"""Training on two ranks beside one, what the exchange between them costs, and what that says of more ranks.

    python benchmarks/distributed.py [--workload NAME] [--rounds N] [--seconds S] [--fit] [--json FILE]
    python benchmarks/distributed.py --from FILE [--publish]     # the tables again; and docs/distributed.md with its picture

Throughput: the CNN of compare.py, batch 64 on each rank, one thread a rank, in turns A B C D A B C D, each in fresh processes.
A ratio is to the turn of one rank in the same round. "2 processes alone" have nothing to do with each other: that is what the
machine can reach. Then, in one run, steps without an exchange of gradients, with it, and with the same bytes sent after
backward: what the second saves on the third is the share that backward hides.

--fit also measures all-reduces and all-gathers by size: over shared memory, between two hosts (network namespaces, a veth pair,
TCP), and with 20 ms between them each way; the last two as root on Linux. It fits latency and bandwidth to each, and puts them
into the cost model of cost_model.py. It needs mpiexec and mpi4py: extra ``mpi``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import common
import distributed_report

HERE = Path(__file__).parent
RANKS = str(HERE / "ranks.py")
WORKLOADS = ["cnn-bn 64", "resnet20-bn 64", "mlp-bn 256", "mlp-bn 60"]
CONTESTANTS = {  # name: ranks, kind
    "1 rank": (1, "alone"),
    "2 processes alone": (2, "alone"),
    "2 ranks, BatchNorm": (2, "batch"),
    "2 ranks, SyncBatchNorm": (2, "sync"),
}
AT_LEAST = 1.6
SIZES = [8, 64, 512, 4096, 32768, 1 << 18, 1 << 21, 1 << 24, 1 << 26]
MODELS = {"cnn": "cnn-bn 64", "resnet20": "resnet20-bn 64"}


def mpiexec(ranks: int, *arguments: str) -> Any:
    """What ``ranks.py`` prints, as that many ranks on this machine."""
    command = [shutil.which("mpiexec") or "mpiexec", "-n", str(ranks), sys.executable, RANKS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=common.imports_as_here())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


# ----- throughput, and what backward hides


def throughput(workload: str, rounds: int, seconds: float, bar: Any) -> dict[str, Any]:
    turns: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, (ranks, kind) in CONTESTANTS.items():
            bar.set_description(name)
            turns[name].append(mpiexec(ranks, "steps", kind, workload, str(seconds)))
            bar.update()
    one = [turn["images_per_s"] for turn in turns["1 rank"]]
    rows = {}
    for name, taken in turns.items():
        ratios = [turn["images_per_s"] / base for turn, base in zip(taken, one, strict=True)]
        rows[name] = {
            "images_per_s": median(t["images_per_s"] for t in taken), "step_ms": 1e3 * median(t["step_s"] for t in taken),
            "ratio": median(ratios), "ratios": ratios,
        }  # fmt: skip
    return {"workload": workload, "at_least": AT_LEAST, "rows": rows, "turns": turns}


def hidden(workload: str, rounds: int, seconds: float, bar: Any) -> dict[str, Any]:
    """What the exchange of gradients adds to a step if it comes after backward and if it does not; by kind."""
    found = {}
    for kind in ("batch", "sync"):
        taken = []
        for _ in range(rounds):
            bar.set_description(f"what backward hides, {kind}")
            taken.append(mpiexec(2, "parts", kind, workload, str(seconds)))
            bar.update()
        middle = {name: median(t[name] for t in taken) for name in taken[0]}
        shares = [1 - t["shown_s"] / t["exchange_s"] for t in taken]
        found[kind] = {**middle, "share": 1 - middle["shown_s"] / middle["exchange_s"], "shares": shares}
    return found


# ----- exchanges by size, and models on one rank


def exchanges(seconds: float, bar: Any) -> dict[str, Any]:
    """Seconds of all-reduces and all-gathers by what joins the ranks; with two of them, also of the CNN's steps."""

    def measure(ranks: int, run: Callable[..., Any]) -> dict[str, Any]:
        figures = {"ranks": ranks, "sizes": SIZES, **run("reduce", *map(str, SIZES))}
        if ranks == 2:
            steps = {kind: run("steps", kind, MODELS["cnn"], str(seconds))["step_s"] for kind in ("batch", "sync")}
            figures["steps_s"] = steps
        bar.update()
        return figures

    found: dict[str, Any] = {}
    for ranks in (2, 3, 4):
        bar.set_description(f"exchanges, {ranks} ranks")
        found[f"shared memory, {ranks} ranks"] = measure(ranks, partial(mpiexec, ranks))
    hosts = _hosts()
    reason = hosts.why_not(0.02)
    if reason:
        common.say(f"no exchanges between two hosts: {reason}", bar)
        return found
    for delay, ranks in ((0.0, 2), (0.0, 3), (0.0, 4), (0.02, 2)):
        with hosts.two_hosts(delay) as two:
            trip = median(two.ping(20))
            name = f"{'20 ms, TCP' if delay else 'TCP'}, {ranks} ranks"
            bar.set_description(f"exchanges, {name}")
            before = two.carried()
            measured = measure(ranks, partial(_on_hosts, two, ranks))
            found[name] = {"link": two.link, "round_trip_s": trip, "carried_bytes": two.carried() - before, **measured}
    return found


def _on_hosts(two: Any, ranks: int, *arguments: str) -> Any:
    done = two.run(ranks, RANKS, *arguments, timeout=600)
    if done.returncode:
        raise RuntimeError(f"ranks on two hosts ended with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def _hosts() -> Any:
    sys.path.append(str(HERE.parent / "tests" / "distributed"))
    import hosts

    return hosts


def models(seconds: float, bar: Any) -> dict[str, Any]:
    """What the cost model needs to know of each network."""
    found = {}
    for name, workload in MODELS.items():
        bar.set_description(f"{name} on one rank")
        found[name] = mpiexec(1, "anatomy", workload, str(seconds))
        bar.update()
    return found


# ----- the command


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workload", choices=WORKLOADS, default=WORKLOADS[0], help="(default: %(default)s)")
    p.add_argument("--rounds", type=common.positive(int), default=5, metavar="N", help="turns of each (default: %(default)s)")
    p.add_argument("--seconds", type=common.positive(float), default=3.0, metavar="S", help="of a turn (default: %(default)s)")
    p.add_argument("--fit", action="store_true", help="also exchanges by size, and what they predict")
    p.add_argument("--json", type=common.new_file, metavar="FILE", help="also write everything there")
    p.add_argument("--from", type=Path, dest="source", metavar="FILE", help="measure nothing: take what --json wrote")
    p.add_argument("--publish", action="store_true", help="put tables and picture into docs/; with --fit or --from")
    args = p.parse_args()
    if args.publish and not (args.fit or args.source):
        p.error("--publish expected --fit or --from FILE beside it")
    if args.source:
        results = json.loads(args.source.read_text())
    else:
        results = measure(args)
    print(distributed_report.text(results))
    if args.publish:
        distributed_report.publish(results, HERE.parent / "docs")
    ratios = [row["ratio"] for name, row in results["throughput"]["rows"].items() if name.startswith("2 ranks")]
    return int(min(ratios) < AT_LEAST)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    common.need_package()
    for need, is_there in (("mpiexec", shutil.which("mpiexec")), ("mpi4py", common.installed("mpi4py"))):
        if not is_there:
            sys.exit(f"{need} is missing: pip install 'tinygrad_bn[mpi]'")
    results: dict[str, Any] = {"measured_on": {**common.measured_on(), **distributed_report.mpi_version()}}
    turns = args.rounds * (len(CONTESTANTS) + 2) + (7 + len(MODELS) if args.fit else 0)
    with common.progress(turns) as bar:
        with common.others() as busy:
            results["throughput"] = throughput(args.workload, args.rounds, args.seconds, bar)
            results["hidden"] = hidden(args.workload, args.rounds, 4 * args.seconds, bar)
        results["others_cores"] = busy
        if args.fit:
            results["exchanges"] = exchanges(args.seconds, bar)
            results["models"] = models(args.seconds, bar)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    sys.exit(main())
