"""Kill a training run at random moments, again and again, and see that nothing is lost. The suite does so a few times.

    nice python tests/interop/kills.py --kills 200

A child process trains a network with BatchNorm and dropout by Adam, with a schedule and shuffled batches, and saves a
checkpoint at every step. SIGKILL ends it at a random moment, and another child goes on. After every kill the newest checkpoint
must load, without a warning, and be no older than the last one seen. When a run has come to its end, its weights, statistics
and moments must be those, bit for bit, of a run without checkpoints and kills; then another run begins.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # a process that forks should have one thread

import numpy as np  # noqa: E402

import tinygrad_bn as tg  # noqa: E402

STEPS = 50
KEEP = 2


def make() -> tuple[Any, ...]:
    """A model, its optimizer, schedule and batches, from one seed."""
    tg.manual_seed(5)
    nn = tg.nn
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(4 * 7 * 7, 32, bias=False), nn.BatchNorm1d(32, momentum=None), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = tg.optim.Adam(model.parameters(), lr=0.01)
    schedule = tg.optim.CosineAnnealingLR(optimizer, STEPS)
    drawn = np.random.default_rng(5)
    x, y = drawn.standard_normal((120, 1, 14, 14), dtype=np.float32), drawn.integers(0, 10, 120)
    return model, optimizer, schedule, tg.datasets.batches(x, y, 16, shuffle=True, seed=5)


def train(parts: tuple[Any, ...], folder: Path | None) -> None:
    """All steps that are still to do, with a checkpoint of each."""
    model, optimizer, schedule, batches = parts
    step = 0
    if folder is not None:
        checkpoint = tg.interop.Checkpoint(folder, keep=KEEP)
        loaded = checkpoint.load_latest(*parts)
        step = loaded.step if loaded else 0
    while step < STEPS:
        for x, y in batches:
            optimizer.zero_grad()
            tg.cross_entropy(model(tg.tensor(x)), y).backward()
            optimizer.step()
            schedule.step()
            step += 1
            if folder is not None:
                checkpoint.save(step, *parts)
            if step == STEPS:
                break


def bits(parts: tuple[Any, ...]) -> dict[str, bytes]:
    """Weights, running statistics and the optimizer's moments."""
    model, optimizer, *_ = parts
    found = {name: value.tobytes() for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        found |= {f"{index}.{name}": np.asarray(value).tobytes() for name, value in state.items()}
    return found


def child(folder: Path) -> int:
    """Train in another process; its number."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            train(make(), folder)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return number


def newest(folder: Path) -> tuple[int, tuple[Any, ...]]:
    """The step of the newest checkpoint (0 if there is none), and what it loads into fresh objects."""
    parts = make()
    loaded = tg.interop.Checkpoint(folder).load_latest(*parts)
    steps = [int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors")]
    if (loaded.step if loaded else 0) != max(steps, default=0):
        raise AssertionError(f"loaded {loaded}, but there are {sorted(steps)}")
    return (loaded.step if loaded else 0), parts


def run(kills: int, seed: int, root: Path) -> dict[str, int]:
    """Kill so often. Raises AssertionError if anything was lost."""
    drawn = random.Random(seed)
    parts = make()
    train(parts, None)
    expected = bits(parts)
    start = time.perf_counter()
    train(make(), root / "timed")
    a_step = (time.perf_counter() - start) / STEPS
    counts = {"kills": 0, "while a checkpoint was being written": 0, "before the first checkpoint": 0, "runs that ended": 0}
    while counts["kills"] < kills:
        folder = root / f"run{counts['runs that ended']}"
        seen = 0
        while True:
            number = child(folder)
            if counts["kills"] < kills:  # from before its first step to some steps on
                time.sleep(drawn.uniform(0, 12 * a_step))
                os.kill(number, signal.SIGKILL)
            status = os.waitpid(number, 0)[1]
            if os.WIFEXITED(status):  # it was faster
                if os.WEXITSTATUS(status):
                    raise AssertionError(f"a run that went on from step {seen} failed")
                break
            counts["kills"] += 1
            counts["while a checkpoint was being written"] += any(folder.glob(".*.being-written"))
            step, _ = newest(folder)
            counts["before the first checkpoint"] += step == 0
            if step < seen:
                raise AssertionError(
                    f"after kill {counts['kills']} the newest checkpoint is of step {step}; before it was {seen}"
                )
            seen = step
        step, parts = newest(folder)
        if step != STEPS or bits(parts) != expected:
            raise AssertionError(f"run {counts['runs that ended']} ended at step {step} with other bits")
        counts["runs that ended"] += 1
        shutil.rmtree(folder)
    return counts


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=200)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    warnings.simplefilter("error")
    tg.set_num_threads(1)
    print(f"seed {a.seed}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        for what, count in run(a.kills, a.seed, Path(root)).items():
            print(f"{count:6} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
