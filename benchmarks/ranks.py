"""What one rank of distributed.py does; ``mpiexec -n N python benchmarks/ranks.py`` ... prints figures in JSON on rank 0.

steps KIND WORKLOAD SECONDS     seconds of a training step; KIND: alone (the ranks have nothing to do with each other),
                                batch (DataParallel, each rank with its own BatchNorm) or sync (with SyncBatchNorm)
parts KIND WORKLOAD SECONDS     seconds of a step without the exchange of gradients, with it, and with it after backward
anatomy WORKLOAD SECONDS        of a step on one rank: seconds, bytes of its gradients, seconds of backward in which they
                                can travel, channels of its BatchNorms
reduce SIZE ...                 seconds of an all-reduce of so many bytes, and of an all-gather from each rank
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from workloads import LR, MOMENTUM, WORKLOADS, batch, ours_model

import tinygrad_bn as tg
from tinygrad_bn import distributed


class Training:
    """One rank's model, batch and optimizer."""

    def __init__(self, kind: str, workload: str):
        tg.set_num_threads(1)  # also where two "hosts" are one machine
        distributed.init()
        x, labels = batch(WORKLOADS[workload])
        self.x, self.labels = tg.tensor(x), tg.tensor(labels)
        self.model = ours_model(WORKLOADS[workload].model)
        if kind == "sync":
            self.model = distributed.convert_sync_batchnorm(self.model)
        if kind != "alone":
            self.model = distributed.DataParallel(self.model)
        self.parameters = list(self.model.parameters())
        self.optimizer = tg.optim.SGD(self.parameters, lr=LR, momentum=MOMENTUM)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        tg.cross_entropy(self.model(self.x), self.labels).backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()

    def step_without_exchange(self) -> None:
        with self.model.no_sync():
            self.backward()
        self.optimizer.step()

    def step_with_exchange_last(self, flat: np.ndarray) -> None:
        """The same bytes, in one blocking all-reduce after backward."""
        from mpi4py import MPI

        with self.model.no_sync():
            self.backward()
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, flat)
        self.optimizer.step()


def timed(do: Callable[[], Any]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def steps(kind: str, workload: str, seconds: float) -> dict[str, float]:
    """The median step of each rank; the slowest rank's counts for the time, and all ranks' for the throughput."""
    training = Training(kind, workload)
    for _ in range(5):
        training.step()
    distributed.barrier()
    first = timed(training.step)
    count = max(5, int(every(seconds / first).max()))  # the same on every rank
    middle = median(timed(training.step) for _ in range(count))
    medians = every(middle)
    images = len(training.labels.data)
    return {"step_s": float(medians.max()), "images_per_s": float((images / medians).sum()), "steps": count}


def parts(kind: str, workload: str, seconds: float) -> dict[str, float]:
    """What the exchange of gradients adds to a step, after backward or during it, in steps that all ranks begin together.

    Medians of differences in one turn, for the exchange is short beside a step, and the machine's pace changes.
    """
    training = Training(kind, workload)
    flat = np.zeros(sum(p.data.size for p in training.parameters), np.float32)
    sorts = {
        "without_s": training.step_without_exchange,
        "with_s": training.step,
        "after_s": lambda: training.step_with_exchange_last(flat),
    }
    for do in sorts.values():
        do()
        do()
    distributed.barrier()
    count = max(5, int(every(seconds / 3 / timed(training.step)).max()))
    times: dict[str, list[float]] = {name: [] for name in sorts}
    for _ in range(count):
        for name, do in sorts.items():
            distributed.barrier()
            times[name].append(float(every(timed(do)).max()))
    without, shown, after = (np.array(times[name]) for name in sorts)
    return {
        "without_s": float(np.median(without)), "exchange_s": float(np.median(after - without)),
        "shown_s": float(np.median(shown - without)), "gradient_bytes": float(flat.nbytes), "steps": count,
    }  # fmt: skip


def anatomy(workload: str, seconds: float) -> dict[str, Any]:
    """``hideable_s``: from the first gradient of a parameter that is complete to the end of backward."""
    training = Training("alone", workload)
    ready: list[float] = []
    for parameter in training.parameters:
        parameter.register_post_accumulate_grad_hook(lambda _: ready.append(time.perf_counter()))
    hideable, whole = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(whole) < 8:
        ready.clear()
        start = time.perf_counter()
        training.backward()
        hideable.append(time.perf_counter() - ready[0])
        training.optimizer.step()
        whole.append(time.perf_counter() - start)
    return {
        "step_s": median(whole[3:]), "hideable_s": median(hideable[3:]),
        "gradient_bytes": sum(p.data.nbytes for p in training.parameters),
        "channels": [m.num_features for m in training.model.modules() if hasattr(m, "running_mean")],
    }  # fmt: skip


def every(x: float) -> np.ndarray:
    """What all ranks say."""
    ones = np.zeros(distributed.size())
    ones[distributed.rank()] = x
    return distributed.all_reduce(ones)


def reduce(*sizes: int) -> dict[str, list[float]]:
    """Median seconds over some series of exchanges one after the other, by size; the slowest rank's."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def seconds(exchange: Callable[[], Any]) -> float:
        exchange()
        world.Barrier()
        once = world.allreduce(timed(exchange), MPI.MAX)
        many = min(200, max(1, int(0.1 / once)))
        series = []
        for _ in range(5):
            world.Barrier()
            series.append(world.allreduce(timed(lambda: [exchange() for _ in range(many)]) / many, MPI.MAX))
        return median(series)

    found: dict[str, list[float]] = {"all_reduce_s": [], "all_gather_s": []}
    for size in sizes:
        flat = np.zeros(size // 4, np.float32)
        found["all_reduce_s"].append(seconds(lambda: world.Allreduce(MPI.IN_PLACE, flat)))  # noqa: B023
        if size <= 1 << 20:
            gathered = np.empty((world.size, size // 4), np.float32)
            found["all_gather_s"].append(seconds(lambda: world.Allgather(flat, gathered)))  # noqa: B023
    return found


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "reduce":
        from mpi4py import MPI

        result: Any = reduce(*map(int, given))
        rank = MPI.COMM_WORLD.rank
    elif what == "anatomy":
        result, rank = anatomy(given[0], float(given[1])), 0
    else:
        result = {"steps": steps, "parts": parts}[what](given[0], given[1], float(given[2]))
        rank = distributed.rank()
    if rank == 0:
        print(json.dumps(result))
