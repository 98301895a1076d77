"""BatchNorm lets the learning rate rise: MNIST, the same network with and without BatchNorm, over a grid of learning rates.

    python examples/mnist.py                 # under two minutes on two cores
    python examples/mnist.py --model mlp     # the sigmoid network of Ioffe & Szegedy 2015
    python examples/mnist.py --quick         # does it run at all? about ten seconds
    python examples/mnist.py --checkpoint DIR --resume   # goes on where a run that was killed had got to

    mpiexec -n 8 python -m mpi4py.futures examples/mnist.py   # the runs spread over a cluster: 7 workers
    mpiexec -n 2 python examples/mnist.py --distributed       # every run on all ranks together, with SyncBatchNorm

Both arms start from the same weights and see the same batches, seed for seed. A learning rate counts as one that trains if
every seed reaches TRAINS; a run that diverges counts as failed. Table, sentence and picture come from mnist_report.py.

How much BatchNorm gains depends on what the classifier stands on. In the network here every layer but the last is normalised,
also the 64 features under the classifier. Where the classifier stands on wide features that no BatchNorm normalised (in a trial
with PyTorch: conv-pool-conv-pool-Linear(784-10)) the same experiment gives a factor of only about 3: the classifier then sets
the limit, in both arms.

It depends also on the pixels. They are standardised here, as usual: mean 0 and variance 1 over the training images. The network
with BatchNorm hardly cares, since its first BatchNorm undoes any scale. The plain one does: on pixels as they come, from 0 to 1
and a tenth as large in mean square, it trains up to 0.316 instead of 0.1, and the gain is a factor of 3 to 10.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
import warnings
from concurrent.futures import as_completed
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ranks import Parser, ends_all, launched, note, noted, over_mpi, rank_0_first
from workers import Workers, available, ignore_interrupts, interrupt, interrupts

import tinygrad_bn as tg
from tinygrad_bn import distributed

TRAINS = 0.90  # a network that trains has at least this test accuracy, in every seed; fixed before any run
GRID = [10 ** (-2 + k / 2) for k in range(8)]  # half decades, 0.01 to 31.6
ARMS = {"plain": None, "batchnorm": "batch"}  # the arms, and what each passes as ``norm``
MODELS = {"cnn": tg.models.cnn, "mlp": tg.models.mlp}
READ_EVERY = 10  # steps
TEST_BATCH = 200
SAVE_EVERY = 50  # steps


class Settings(NamedTuple):
    """What defines the experiment, and where it runs."""

    model: str
    data: str
    device: str
    lrs: list[float]
    seeds: list[int]
    epochs: int
    batch_size: int
    workers: int  # or ranks
    quick: bool
    checkpoint: str | None = None  # a folder
    resume: bool = False
    distributed: bool = False  # whether all ranks train each network together


class Task(NamedTuple):
    """One network to train."""

    arm: str
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, learning rate {self.lr:.3g}, seed {self.seed}"


# ----- one run


Data = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def load(settings: Settings) -> Data:
    """(images, labels) to train on, and to test on; for a smoke test, the first few. Pixels are standardised."""
    (x, y), (x_test, y_test) = tg.datasets.mnist(settings.data)
    if settings.quick:
        x, y, x_test, y_test = x[:2048], y[:2048], x_test[:500], y_test[:500]
    mean, std = x.mean(), x.std()
    return ((x - mean) / std, y), ((x_test - mean) / std, y_test)


def train(task: Task, settings: Settings, data: Data) -> dict[str, Any]:
    """Train one network and test it: the run as it stands in results.json.

    If several ranks do so together, each takes a part of every batch; in a single process ``distributed`` changes nothing.
    """
    (x, y), test = data
    start = time.perf_counter()
    tg.manual_seed(task.seed)  # the same seed: the same initial weights in both arms ...
    how = {"shuffle": True, "drop_last": True, "seed": task.seed, "device": settings.device}
    batches = tg.datasets.batches(x, y, settings.batch_size, **how)  # ... and batches
    network = distributed.convert_sync_batchnorm(MODELS[settings.model](norm=ARMS[task.arm])).to(settings.device)
    parallel = distributed.DataParallel(network)
    optimizer = tg.optim.SGD(network.parameters(), lr=task.lr)
    losses: list[float] = []
    unread: list[tg.Tensor] = []  # on a GPU, to read each loss at once would keep it waiting
    saved = Saved(task, settings)
    finished = saved.go_on(losses, network, optimizer, None, batches)
    if finished is not None:
        return finished
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a network that diverges overflows; its loss tells
        for images, labels in chain.from_iterable(repeat(distributed.shard(batches), settings.epochs - batches.epoch)):
            loss = tg.cross_entropy(parallel(tg.Tensor(images)), tg.Tensor(labels))
            unread.append(loss.detach() * (len(labels) / settings.batch_size))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if len(unread) == READ_EVERY and not read(unread, losses):
                break
            if saved.checkpoint and not unread and len(losses) % SAVE_EVERY == 0:
                saved.save(losses, None, network, optimizer, None, batches)
        if unread:
            read(unread, losses)
        accuracy = evaluate(network, *test, settings.device) if math.isfinite(losses[-1]) else None
    result = {
        **task._asdict(),
        "test_accuracy": accuracy,
        "diverged": accuracy is None,
        "steps": len(losses),
        "seconds": round(time.perf_counter() - start, 3),
        "losses": [float(f"{loss:.6g}") if math.isfinite(loss) else None for loss in losses],
    }
    saved.save(losses, result, network, optimizer, None, batches)
    return result


class Saved:
    """The checkpoints of one run, with its losses and, once it is finished, its result; none if nobody asked for them."""

    def __init__(self, task: Task, settings: Settings):
        folder = Path(settings.checkpoint or "", f"{task.arm}-{task.lr:.6g}-{task.seed}")
        self.checkpoint = distributed.Checkpoint(folder, keep=2) if settings.checkpoint else None
        self.resume = settings.resume
        self.what = [*task, *experiment(settings)]  # what the checkpoints belong to

    def go_on(self, losses: list[float], *parts: Any) -> dict[str, Any] | None:
        """Put everything where the newest checkpoint has it. Returns the result, if the run is finished."""
        loaded = self.checkpoint.load_latest(*parts) if self.checkpoint and self.resume else None
        if loaded is None:
            return None
        if loaded.extra["what"] != self.what:
            raise ValueError(f"{loaded.path} belongs to another experiment: {loaded.extra['what']}, not {self.what}")
        losses += loaded.extra["losses"]
        return loaded.extra["result"]

    def save(self, losses: list[float], result: dict[str, Any] | None, *parts: Any) -> None:
        if self.checkpoint:
            self.checkpoint.save(len(losses), *parts, extra={"what": self.what, "losses": losses, "result": result})


def experiment(settings: Settings) -> list[Any]:
    """Those of the settings that a single run depends on."""
    return [settings.model, settings.data, settings.epochs, settings.batch_size, settings.quick]


def read(unread: list[tg.Tensor], losses: list[float]) -> bool:
    """Move the losses to the list of those that were read, up to one that is not finite, and say whether all are.

    Each rank has its share of each loss. Here they also agree whether somebody interrupted one of them.
    """
    *sums, interrupted = distributed.all_reduce(np.array([*(share.item() for share in unread), len(noted)]))
    unread.clear()
    if interrupted:
        raise KeyboardInterrupt
    for loss in sums:
        losses.append(float(loss))
        if not math.isfinite(loss):
            return False
    return True


def evaluate(network: tg.nn.Module, x: np.ndarray, y: np.ndarray, device: str) -> float | None:
    """The share of images whose largest logit is their label; None if a logit is not finite."""
    network.eval()
    counts = np.zeros(2)  # of right answers, and of batches with logits that are not finite
    with tg.no_grad():
        for images, labels in distributed.shard(tg.datasets.batches(x, y, TEST_BATCH)):
            logits = network(tg.tensor(images, device=device)).cpu().numpy()
            counts += (logits.argmax(1) == labels).sum(), not np.isfinite(logits).all()
    right, wild = distributed.all_reduce(counts)
    return None if wild else float(right) / len(y)


# ----- all runs


def run_in_worker(task: Task, prepared: tuple[Settings, Data]) -> dict[str, Any]:
    return train(task, *prepared)


def prepare(settings: Settings) -> tuple[Settings, Data]:
    return settings, load(settings)


def run_all(tasks: list[Task], settings: Settings) -> tuple[list[dict[str, Any]], bool]:
    """The finished runs, and whether somebody interrupted. An error in a run ends all runs and is raised here."""
    from tqdm import tqdm

    finished: list[dict[str, Any]] = []
    try:
        if settings.distributed:
            data = load(settings)
            with tqdm(tasks, unit="run", dynamic_ncols=True, disable=distributed.rank() > 0) as bar:
                for task in bar:
                    bar.set_description(str(task))
                    finished.append(train(task, settings, data))
            return finished, False
        with (
            Workers(settings.workers, prepare, settings) as workers,
            tqdm(total=len(tasks), unit="run", dynamic_ncols=True) as bar,
        ):
            waiting = {workers.submit(run_in_worker, task): task for task in tasks}
            bar.set_description(str(tasks[0]))
            for future in as_completed(list(waiting)):
                finished.append(future.result())
                del waiting[future]
                if waiting:
                    bar.set_description(str(next(iter(waiting.values()))), refresh=False)  # tasks start in this order
                bar.update()
        return finished, False
    except KeyboardInterrupt:
        return finished, True


# ----- the command


def parse(argv: list[str] | None = None) -> tuple[Settings, Path]:
    """The settings and the folder for the results. Whatever can be refused is refused here, before any work."""
    p = Parser(
        description="Train MNIST with and without BatchNorm over a grid of learning rates, and show how far each arm goes."
    )
    p.add_argument("--model", choices=MODELS, default="cnn", help="cnn (default), or mlp: 784-100-100-100-10 with sigmoids")
    p.add_argument(
        "--data", default="embedded", help="embedded (10,000 images, default), full (60,000; a download), or a folder"
    )
    device = os.environ.get("TINYGRAD_BN_DEVICE", "cpu")
    p.add_argument("--device", default=device, help="cpu or cuda (default: $TINYGRAD_BN_DEVICE, or cpu)")
    p.add_argument("--lrs", nargs="+", type=_positive(float), metavar="LR", help="learning rates (default: 0.01 to 31.6)")
    p.add_argument("--seeds", type=_positive(int), metavar="N", help="how many seeds: 0 to N - 1 (default: 3)")
    p.add_argument("--epochs", type=_positive(int), default=1, metavar="N", help="passes over the data (default: 1)")
    p.add_argument("--batch-size", type=_positive(int), default=64, metavar="N", help="images a step (default: 64)")
    p.add_argument(
        "--workers", type=_positive(int), metavar="N", help="processes (default: the usable cores; on a GPU at most 4)"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: results/mnist)")
    p.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help=f"save each run here, every {SAVE_EVERY} steps and when finished"
    )
    p.add_argument("--resume", action="store_true", help="go on with the runs in the folder of --checkpoint")
    p.add_argument("--distributed", action="store_true", help="under mpiexec: train each network on all ranks together")
    p.add_argument("--quick", action="store_true", help="a smoke test, no finding: 3 learning rates, 1 seed, 2,048 images")
    a = p.parse_args(argv)
    for library in ("matplotlib", "tqdm"):
        if find_spec(library) is None:
            p.error(f"{library} is not installed: pip install 'tinygrad_bn[examples]'")
    if a.checkpoint and find_spec("safetensors") is None:
        p.error("argument --checkpoint: safetensors is not installed: pip install 'tinygrad_bn[interop]'")
    if a.resume and not a.checkpoint:
        p.error("argument --resume: expected --checkpoint DIR, the folder of the runs to go on with")
    if over_mpi() and a.distributed:
        p.error("argument --distributed: not with -m mpi4py.futures, which gives each rank runs of its own")
    if over_mpi() and not available():
        p.error("mpiexec -n 1 leaves no rank to work: every rank but the first is a worker; expected -n 2 or more")
    if (over_mpi() or a.distributed) and a.workers:
        p.error("argument --workers: mpiexec -n says how many")
    if launched()[1] > 1 and not over_mpi() and not a.distributed:
        p.error(
            f"mpiexec started {launched()[1]} processes: expected --distributed, which trains each network on all of them "
            "together, or mpiexec -n N python -m mpi4py.futures examples/mnist.py, which spreads the runs over them"
        )
    if a.distributed:
        try:
            distributed.init()
        except RuntimeError as error:
            p.error(f"argument --distributed: {error}")
    lrs = sorted(set(a.lrs or (GRID[2::2] if a.quick else GRID)))
    seeds = list(range(a.seeds or (1 if a.quick else 3)))
    cores = min(available(), 4) if a.device.startswith("cuda") else available()  # each holds a part of its memory
    workers = distributed.size() if a.distributed else min(a.workers or cores, len(ARMS) * len(lrs) * len(seeds))
    settings = Settings(a.model, a.data, a.device, lrs, seeds, a.epochs, a.batch_size, workers, a.quick)
    settings = settings._replace(checkpoint=a.checkpoint and str(a.checkpoint), resume=a.resume, distributed=a.distributed)
    out = a.out or Path("results", "mnist_quick" if a.quick else "mnist")  # a smoke test must not replace a finding
    with rank_0_first():
        look_around(p, settings, out)
    return settings, out


def look_around(p: argparse.ArgumentParser, settings: Settings, out: Path) -> None:
    """Refuse what this machine does not have."""
    try:
        tg.zeros(1, device=settings.device)
    except (RuntimeError, ValueError) as error:
        p.error(f"argument --device: {error}")
    try:
        (x, _), _ = load(settings)  # here first: "full" downloads once, not once a worker
    except (ValueError, OSError, ImportError) as error:
        p.error(f"argument --data: {error}")
    if x.shape[1:] != (1, 28, 28):
        p.error(f"argument --data: expected images of 28 x 28, got {x.shape[2]} x {x.shape[3]}")
    least = max(2, distributed.size())
    if not least <= settings.batch_size <= len(x):
        why = "BatchNorm needs two" if least == 2 else "one for each rank"
        p.error(f"argument --batch-size: expected {least} ({why}) to {len(x)} (the images), got {settings.batch_size}")
    if distributed.rank() > 0:
        return  # which writes nothing
    saved = settings.checkpoint and Path(settings.checkpoint)
    if saved and not settings.resume and saved.is_dir() and any(saved.iterdir()):
        p.error(f"argument --checkpoint: {saved} is not empty; --resume goes on with the runs there")
    for name, folder in (("out", out), ("checkpoint", saved)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            p.error(f"argument --{name}: cannot write into {folder}: {error.strerror}")


def _positive(kind: type):
    def positive(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not (value > 0 and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"expected a positive {'number' if kind is float else 'integer'}, got {text!r}")
        return value

    return positive


def main(argv: list[str] | None = None) -> int:
    import mnist_report as report  # not at the top: the workers import this file, and write no report

    settings, out = parse(argv)
    # Seed by seed, so that an interrupted experiment has covered the grid.
    tasks = [Task(arm, lr, seed) for seed in settings.seeds for lr in settings.lrs for arm in ARMS]
    defining = {name: value for name, value in settings._asdict().items() if name not in ("checkpoint", "resume")}
    described = {**defining, "optimizer": "SGD without momentum", "trains": TRAINS, "runs": len(tasks)}
    first = distributed.rank() == 0
    if first:
        print(report.introduction(described), flush=True)
    with interrupts(note if settings.distributed else interrupt):
        start = time.perf_counter()
        runs, interrupted = run_all(tasks, settings)
        ignore_interrupts()
        if not first:
            return 0
        if runs:
            results = report.summarise(described, runs, time.perf_counter() - start)
            written = report.write(results, out), report.draw(results, out)
            print(f"\n{report.table(results)}\n\n{report.sentence(results)}\n")
            print(f"Written in {results['seconds']:.0f} s: {', '.join(map(str, written))}")
        else:
            print("Interrupted before the first run was finished: nothing is saved.")
    return 130 if interrupted else 0


if __name__ == "__main__":
    with ends_all():
        sys.exit(main())
