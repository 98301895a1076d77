"""One training run, for a single process and for ranks: test_equals_one_process.py compares what they print.

mpiexec -n 3 python tests/distributed/same_training.py   # on rank 0, as JSON: what each way of training came to
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import distributed
from tinygrad_bn.backend import to_numpy

STEPS = 50
WAYS = {  # how batches are cut, and whether BatchNorm knows of the other ranks
    "equal parts": ("equal", True),
    "unequal parts": ("unequal", True),
    "no SyncBatchNorm": ("equal", False),
}


def parts(cut: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This rank's part of each of STEPS batches, which are the same for every number of ranks."""
    drawn = np.random.default_rng(20)
    x, y = drawn.standard_normal((60, 1, 12, 12)), drawn.integers(0, 10, 60)
    batches = tg.datasets.batches(x, y, 24, shuffle=True, seed=4)  # of 24, 24 and 12
    rank, size = distributed.rank(), distributed.size()
    step = 0
    while True:
        for images, labels in distributed.shard(batches) if cut == "equal" else batches:
            if cut == "unequal":  # in turn 1, 3, 9 and the rest; and every other time none, 1, 3 and the rest
                place = (rank + step) % size
                shift = step // size % 2
                start, stop = ((3 ** max(0, place + end - shift) - 1) // 2 for end in (0, 1))
                mine = slice(start, stop if place < size - 1 else None)
                images, labels = images[mine], labels[mine]
            yield images, labels
            step += 1
            if step == STEPS:
                return


def train(cut: str, synchronised: bool) -> dict[str, Any]:
    """The losses of the whole batches, and a checksum of this rank's weights and statistics."""
    tg.manual_seed(7 + distributed.rank())  # DataParallel begins with rank 0's
    network = tg.models.cnn(channels=(3, 4), hidden=8, image_size=12).double()
    if synchronised:
        network = distributed.convert_sync_batchnorm(network)
    model = distributed.DataParallel(network)
    optimizer = tg.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for images, labels in parts(cut):
        logits = model(tg.tensor(images))
        loss = tg.cross_entropy(logits, labels) if len(labels) else logits.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = distributed.all_reduce(np.array([loss.item() * len(labels), len(labels)]))
        losses.append(float(total / count))
    state = {name: to_numpy(value) for name, value in model.state_dict().items()}
    checksum = hashlib.sha256(b"".join(value.tobytes() for value in state.values())).hexdigest()
    norms = {name: value.tolist() for name, value in state.items() if "running" in name}
    return {"losses": losses, "checksum": checksum, "statistics": norms}


def main() -> None:
    distributed.init()
    ranks = distributed.communicators.current()
    found = {name: train(*way) for name, way in WAYS.items()}
    everywhere = [json.loads(text) for text in ranks.gather_text(json.dumps(found))]
    if ranks.rank == 0:
        print(json.dumps(everywhere))


if __name__ == "__main__":
    main()
