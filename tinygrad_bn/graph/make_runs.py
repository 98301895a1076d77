"""Make the recorded runs that the playground shows: python -m tinygrad_bn.graph.make_runs

The CNN of ``examples/mnist.py`` on the embedded subset of MNIST, one epoch of SGD at each learning rate of a grid, without a
normalisation and with three: the same initial weights and the same batches for a seed. Every loss is kept, also of the runs
that diverged. It takes some minutes; the file comes out the same but for the last digits, which the machine decides.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .. import datasets, models, optim
from ..core import no_grad
from ..ops import cross_entropy
from ..random import manual_seed
from ..tensor import Tensor

RUNS = "playground_runs.json"
ARMS = {"none": None, "batch": "batch", "layer": "layer", "group": "group"}  # and what each passes to the model as ``norm``
LEARNING_RATES = [float(f"{10 ** (-2 + k / 4):.3g}") for k in range(15)]  # quarter decades, 0.01 to 31.6
SEEDS = 3
BATCH = 64
SETUP = (
    "MNIST, 10,000 training and 2,000 test images, standardised; a CNN of two convolutions (8 and 16 channels) and two linear "
    "layers, every layer but the last normalised; SGD, batches of 64, one epoch of 156 steps"
)


def make_runs(learning_rates: list[float], seeds: int, images: int | None = None) -> dict[str, Any]:
    """All runs, as they stand in the file. ``images``: only the first few, for a try."""
    (x, y), (x_test, y_test) = datasets.mnist()
    mean, std = x.mean(), x.std()
    train, test = ((x - mean) / std, y), ((x_test - mean) / std, y_test)
    if images is not None:
        train, test = (train[0][:images], train[1][:images]), (test[0][:images], test[1][:images])
    runs = []
    for arm in ARMS:
        for lr in learning_rates:
            for seed in range(seeds):
                losses, accuracy = _run(arm, lr, seed, train, test)
                runs.append({"arm": arm, "lr": lr, "seed": seed, "accuracy": accuracy, "losses": losses})
                print(f"{arm:5}  learning rate {lr:<7g} seed {seed}  accuracy {accuracy}", flush=True)
    return {"setup": SETUP, "learning_rates": learning_rates, "arms": list(ARMS), "seeds": seeds, "runs": runs}


def _run(arm: str, lr: float, seed: int, train: tuple, test: tuple) -> tuple[list[float | None], float | None]:
    """The loss of each step, up to one that is not finite (None), and the test accuracy (None if there is none)."""
    manual_seed(seed)
    network = models.cnn(norm=ARMS[arm])
    optimizer = optim.SGD(network.parameters(), lr=lr)
    losses: list[float | None] = []
    x, y = train
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a network that diverges overflows; its loss tells
        for images, labels in datasets.batches(x, y, BATCH, shuffle=True, drop_last=True, seed=seed):
            loss = cross_entropy(network(Tensor(images)), Tensor(labels))
            if not math.isfinite(loss.item()):
                return [*losses, None], None
            losses.append(float(f"{loss.item():.3g}"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with no_grad():
            logits = network.eval()(Tensor(test[0])).numpy()
    return losses, float(f"{(logits.argmax(1) == test[1]).mean():.4g}") if np.isfinite(logits).all() else None


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit("usage: python -m tinygrad_bn.graph.make_runs")
    made = json.dumps(make_runs(LEARNING_RATES, SEEDS), separators=(",", ":"))
    Path(__file__).with_name(RUNS).write_text(made.replace('{"arm"', '\n{"arm"') + "\n", encoding="utf-8")
