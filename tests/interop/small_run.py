"""A small training run with everything that a checkpoint saves: for the tests of checkpoints."""

import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import nn, optim
from tinygrad_bn.datasets import batches

STEPS = 23  # batches of 5 in 42 examples: the third epoch is left in the middle

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: optim.Adam(p, lr=0.01, betas=(0.8, 0.99)),
    "AdamW with groups": lambda p: optim.AdamW([{"params": p[:2], "lr": 0.02}, {"params": p[2:]}], lr=0.01),
}
SCHEDULES = {
    "cosine": lambda o: optim.CosineAnnealingLR(o, 30),
    "warm-up": lambda o: optim.SequentialLR(o, [optim.LinearLR(o, 0.1, total_iters=4), optim.StepLR(o, 5)], [6]),
    "none": lambda _: None,
}


def make(optimizer="Adam", schedule="cosine", dtype="float32", device="cpu"):
    tg.manual_seed(3)
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm1d(8, momentum=None)
    model = nn.Sequential(*layers, nn.Linear(8, 3)).to(device, dtype)
    drawn = np.random.default_rng(3)
    x, y = drawn.standard_normal((42, 6)).astype(dtype), drawn.integers(0, 3, 42)
    chosen = OPTIMIZERS[optimizer](list(model.parameters()))
    return model, chosen, SCHEDULES[schedule](chosen), batches(x, y, 5, shuffle=True, seed=3)


def train(parts, step, until, checkpoint=None, every=1):
    model, optimizer, schedule, data = parts
    losses = []
    while step < until:
        for x, y in data:
            optimizer.zero_grad()
            loss = tg.cross_entropy(model(tg.tensor(x, device=next(model.parameters()).device)), y)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            step += 1
            losses.append(loss.item())
            if checkpoint is not None and step % every == 0:
                checkpoint.save(step, *parts, extra={"losses": losses})
            if step == until:
                break
    return losses


def bits(parts):
    model, optimizer, schedule, data = parts
    arrays = [tg.backend.to_numpy(v).tobytes() for v in model.state_dict().values()]
    for state in optimizer.state_dict()["state"].values():
        arrays += [np.asarray(tg.backend.to_numpy(v) if hasattr(v, "shape") else v).tobytes() for v in state.values()]
    position = schedule and (schedule.last_epoch, schedule.get_last_lr())
    options = optimizer.state_dict()["param_groups"], position, data.state_dict(), tg.get_rng_state()
    return arrays, repr(options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())
