"""Kill one rank of a training run at random moments, again and again, and see that all end and that nothing is lost.

    nice python tests/distributed/kills.py --kills 20 --ranks 2    # the suite does so a few times
    nice python tests/distributed/kills.py --kills 20 --ranks 1 2 3    # each time on another number of ranks
    nice python tests/distributed/kills.py --kills 20 --hosts 20       # on two hosts, 20 ms apart (as root)

Ranks train a network with SyncBatchNorm, with a checkpoint of each step. SIGKILL ends one of them in the midst of a step. All
others, and mpiexec, must be gone within 10 seconds; the newest checkpoint must load, without a warning, and be no older than
the last one seen; and another start goes on. When the run has come to its end, its losses, weights, statistics and momenta must
be those, bit for bit, of a run that nobody killed; then another run begins.

With several numbers of ranks the run goes on with another one after each kill. Each batch must then hold the same examples, and
losses and weights be within 1e-10 of those of a single process (and there is no dropout, whose masks differ from rank to rank).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import mpiexec
import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import distributed

STEPS = 60
KEEP = 2
LIMIT = 10.0  # seconds


# ----- what the ranks run


def make(dropout: float) -> tuple[Any, ...]:
    """A model, its optimizer, schedule and batches, from one seed."""
    tg.manual_seed(5)
    network = distributed.convert_sync_batchnorm(tg.models.cnn(channels=(4, 8), hidden=16, image_size=14))
    model = tg.nn.Sequential(network, tg.nn.Dropout(dropout), tg.nn.Linear(10, 10)).double()
    optimizer = tg.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = tg.optim.CosineAnnealingLR(optimizer, STEPS)
    x, rows = np.random.default_rng(5).standard_normal((122, 1, 14, 14)), np.arange(122)
    return model, optimizer, schedule, tg.datasets.batches(x, rows, 17, shuffle=True, seed=5)


def train(folder: Path, dropout: float) -> dict[str, Any]:
    """All steps that are still to do, with a checkpoint of each; what the whole run came to."""
    parts = model, optimizer, schedule, batches = make(dropout)
    checkpoint = distributed.Checkpoint(folder, keep=KEEP)
    loaded = checkpoint.load_latest(*parts)
    step, history = (loaded.step, loaded.extra) if loaded else (0, {"losses": [], "batches": []})
    parallel = distributed.DataParallel(model)
    first_step = step + 1  # which also loads the kernels
    while step < STEPS:
        for x, rows in distributed.shard(batches):
            optimizer.zero_grad()
            logits = parallel(tg.tensor(x))
            loss = tg.cross_entropy(logits, rows % 10) if len(rows) else logits.sum()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            loss = distributed.all_reduce(np.array(loss.item() * len(rows))) / distributed.all_reduce(np.array(len(rows)))
            there = distributed.all_reduce(np.bincount(rows, minlength=122))
            history["losses"].append(float(loss))
            history["batches"].append(np.flatnonzero(there == 1).tolist())
            checkpoint.save(step, *parts, history)
            if step == first_step and distributed.rank() == 0:
                print("trains", flush=True)
            if step == STEPS:
                break
    return {**history, "state": state(parts)}


def state(parts: tuple[Any, ...]) -> dict[str, list[float]]:
    """Weights, running statistics and momenta, in float64, which JSON keeps to the bit."""
    model, optimizer, *_ = parts
    found = {name: value.ravel().tolist() for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        found |= {f"{index}.{name}": np.asarray(value).ravel().tolist() for name, value in moments.items()}
    return found


def as_a_rank(root: Path, name: str, dropout: float) -> int:
    distributed.init()
    start = time.perf_counter()
    found = train(root / name, dropout)
    if distributed.rank() == 0:
        (root / f"{name}.json").write_text(json.dumps({**found, "seconds": time.perf_counter() - start}))
    return 0


# ----- the one that kills them


class Run:
    """A run with its checkpoints in ``root/name``, which may need several starts to come to its end."""

    def __init__(self, root: Path, name: str, dropout: float, launch: Callable[..., subprocess.Popen]):
        self.root, self.name, self.dropout, self.launch = root, name, dropout, launch

    def start(self, ranks: int) -> subprocess.Popen:
        return self.launch(ranks, __file__, "--rank-of", self.root, self.name, "--dropout", self.dropout)

    def result(self, ended: subprocess.CompletedProcess) -> dict[str, Any]:
        """What it came to, after a start that nobody killed."""
        if ended.returncode:
            raise AssertionError(f"a run failed with code {ended.returncode}:\n{ended.stderr}")
        return json.loads((self.root / f"{self.name}.json").read_text())

    def newest(self) -> int:
        """The step of the newest checkpoint, which loads into fresh objects."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a damaged one is skipped with a warning
            return tg.interop.Checkpoint(self.root / self.name).load_latest(*make(self.dropout)).step


def ranks_of(process: subprocess.Popen) -> list[int]:
    """The numbers of the processes that train."""
    found = []
    for number in mpiexec.children(process.pid):
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        if words[0] == sys.executable.encode() and b"--rank-of" in words:
            found.append(number)
    return found


def compare(found: dict[str, Any], expected: dict[str, Any], exact: bool) -> None:
    """Raises AssertionError unless they are equal, to the bit or within 1e-10."""
    if found["batches"] != expected["batches"] or len(found["losses"]) != STEPS:
        raise AssertionError("other examples than those of the run that was not killed")
    apart = np.abs(np.subtract(found["losses"], expected["losses"])).max()
    for name, values in expected["state"].items():
        apart = max(apart, np.abs(np.subtract(found["state"][name], values)).max())
    if apart > (0 if exact else 1e-10):
        raise AssertionError(f"losses, weights or momenta differ by {apart} from those of the run that was not killed")


def run(
    kills: int, seed: int, ranks: list[int], root: Path, launch: Callable[..., subprocess.Popen] = mpiexec.start
) -> dict[str, float]:
    """Kill so often. Raises AssertionError if somebody stayed or something was lost."""
    drawn = random.Random(seed)
    exact = len(ranks) == 1
    dropout = 0.2 if exact else 0.0
    whole = Run(root, "whole", dropout, launch)
    expected = whole.result(mpiexec.finish(whole.start(ranks[0] if exact else 1)))
    a_step = expected["seconds"] / STEPS
    counts = {"kills": 0, "while a checkpoint was being written": 0, "runs that ended": 0}
    slowest = 0.0
    while counts["kills"] < kills:
        killed = Run(root, f"killed{counts['runs that ended']}", dropout, launch)
        folder = root / killed.name
        seen = 0
        while True:
            process = killed.start(drawn.choice(ranks))
            trains = process.stdout.readline() == "trains\n"
            everybody = [process.pid, *mpiexec.children(process.pid)]
            victims = ranks_of(process) if trains and counts["kills"] < kills else []
            if victims:
                time.sleep(drawn.uniform(0, 12 * a_step))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(drawn.choice(victims), signal.SIGKILL)
                slowest = max(slowest, mpiexec.seconds_until_gone(everybody, LIMIT))
            ended = mpiexec.finish(process)
            if ended.returncode == 0 or not victims:  # it was faster, or was let go on
                compare(killed.result(ended), expected, exact)
                break
            counts["kills"] += 1
            counts["while a checkpoint was being written"] += any(folder.glob(".*.being-written"))
            step = killed.newest()
            if step <= seen:
                raise AssertionError(f"the newest checkpoint is of step {step}; at the kill before it was {seen}")
            seen = step
        counts["runs that ended"] += 1
        shutil.rmtree(folder)
    return {**counts, "seconds until all were gone, at most": slowest}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--ranks", type=int, nargs="+", default=[2])
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--hosts", type=float, metavar="MS", help="on two hosts, so many milliseconds apart")
    p.add_argument("--rank-of", nargs=2, help=argparse.SUPPRESS)
    p.add_argument("--dropout", type=float, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.rank_of is not None:
        return as_a_rank(Path(a.rank_of[0]), a.rank_of[1], a.dropout)
    if mpiexec.MISSING:
        p.error(mpiexec.MISSING)
    print(f"seed {a.seed}", flush=True)
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        launch = mpiexec.start if a.hosts is None else stack.enter_context(hosts.two_hosts(a.hosts / 1e3)).start
        for what, count in run(a.kills, a.seed, a.ranks, Path(root), launch).items():
            print(f"{count:6.3g} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
