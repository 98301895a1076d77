"""Models with one planted bug, and healthy ones: random width, depth, seed, batch size and data. What doctor.py is measured on.

Written before the thresholds of ``tinygrad_bn.batchnorm.diagnose`` were chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import layers, no_weight_decay, watch


@dataclass
class Case:
    """A model as a user would bring it: trained, with batches of training and evaluation data, and perhaps a bug."""

    seed: int
    code: str | None  # of the planted bug; None is healthy
    kind: str  # "mlp", "cnn" or, for the bug bench, "resnet"
    batch: int
    model: Any = None
    data: Any = None  # (x, y, x_eval, y_eval)
    train_batches: Any = None
    eval_batches: Any = None
    optimizer: Any = None
    seen: Any = None  # what watch() saw
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code or 'healthy'}: seed {self.seed}, {self.kind}, batches of {self.batch}, {self.options}"

    def accuracy(self, training: bool = False) -> float:
        """On the evaluation data, in per cent; the model is put into that mode."""
        self.model.train(training)
        with tg.no_grad():
            right = [(self.model(tg.tensor(x)).argmax(1).data == y).sum() for x, y in self.eval_batches]
        return 100 * float(sum(right)) / sum(len(y) for _, y in self.eval_batches)


def blobs(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Classes of two Gaussian clusters each, features of random scale and offset."""
    d, classes, n = int(rng.integers(8, 48)), int(rng.integers(3, 9)), 1536
    centres = rng.normal(size=(2 * classes, d)) * rng.uniform(0.6, 1.2)
    which = rng.integers(0, 2 * classes, n)
    x = (centres[which] + rng.normal(size=(n, d))) * rng.uniform(0.3, 3, d) + rng.normal(size=d)
    y = (which % classes).astype(np.int64)
    x = x.astype(np.float32)
    return x[:1024], y[:1024], x[1024:], y[1024:]


def digits(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """MNIST at half its resolution, standardised."""
    (x, y), (x_eval, y_eval) = tg.datasets.mnist()
    rows, rows_eval = rng.choice(len(x), 1024, replace=False), rng.choice(len(x_eval), 512, replace=False)
    small = [v.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)) for v in (x[rows], x_eval[rows_eval])]
    mean, std = small[0].mean(), small[0].std()
    return (small[0] - mean) / std, y[rows], (small[1] - mean) / std, y_eval[rows_eval]


class Block(nn.Module):
    """Two convolutions with BatchNorm beside an identity. He et al. 2016."""

    def __init__(self, width: int, momentum: float, bias: bool):
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(width, momentum=momentum)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(width, momentum=momentum)

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())) + x).relu()


def network(rng: np.random.Generator, kind: str, data: Any, **how: Any) -> nn.Sequential:
    """MLP or CNN of random width and depth, or a small ResNet. ``how``: momentum, bias, dropout."""
    momentum, bias, dropout = how.get("momentum", 0.1), how.get("bias", False), how.get("dropout", 0.0)
    classes, depth = int(data[1].max()) + 1, int(rng.integers(1, 4))
    members: list[nn.Module] = []
    if kind == "resnet":
        width = int(rng.integers(6, 13))
        members += [nn.Conv2d(1, width, 3, padding=1, bias=bias), nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()]
        members += [
            nn.MaxPool2d(2),
            *(Block(width, momentum, bias) for _ in range(2)),
            nn.AvgPool2d(2, padding=1),
            nn.Flatten(),
        ]
        return nn.Sequential(*members, nn.Linear(width * 16, classes))
    if kind == "cnn":
        before, size = 1, 14
        for _ in range(min(depth, 2)):
            width = int(rng.integers(4, 13))
            members += [nn.Conv2d(before, width, 3, padding=1, bias=bias), nn.BatchNorm2d(width, momentum=momentum)]
            members += [nn.ReLU(), nn.MaxPool2d(2)]
            before, size = width, size // 2
        members += [nn.Flatten()]
        before *= size * size
    else:
        before = data[0].shape[1]
    for _ in range(1 if kind == "cnn" else depth):
        width = int(rng.integers(16, 65))
        members += [nn.Dropout(dropout)] if dropout else []
        members += [nn.Linear(before, width, bias=bias), nn.BatchNorm1d(width, momentum=momentum), nn.ReLU()]
        before = width
    return nn.Sequential(*members, nn.Linear(before, classes))


def train(case: Case, steps: int, shuffle: bool = True, lr: float | None = None) -> None:
    """Steps of SGD with momentum in the mode that the model is in."""
    x, y = case.data[:2]
    if not shuffle:
        order = np.argsort(y, kind="stable")
        x, y = x[order], y[order]
    loader = tg.datasets.batches(x, y, case.batch, shuffle=shuffle, drop_last=True, seed=case.seed)
    for group in case.optimizer.param_groups if lr is not None else ():
        group["lr"] = lr
    done = 0
    while done < steps:
        for images, labels in islice(loader, steps - done):
            loss = tg.cross_entropy(case.model(tg.tensor(images)), tg.tensor(labels))
            case.optimizer.zero_grad()
            loss.backward()
            case.optimizer.step()
            done += 1


BUGS: dict[str, Callable[[Case, np.random.Generator], None]] = {}


def bug(function: Callable[[Case, np.random.Generator], None]) -> Callable[[Case, np.random.Generator], None]:
    BUGS[function.__name__] = function
    return function


def build(seed: int, code: str | None, kind: str | None = None, batch: int | None = None) -> Case:
    """The case of this seed, with this bug."""
    rng = np.random.default_rng([seed, 9])
    tg.manual_seed(seed)
    kind = kind or str(rng.choice(["mlp", "mlp", "cnn"]))
    case = Case(seed, code, kind, batch or int(rng.choice([16, 32, 64, 128])))
    case.data = blobs(rng) if kind == "mlp" else digits(rng)
    if code is None:
        healthy(case, rng)
    else:
        BUGS[code](case, rng)
    return case


def prepared(case: Case, rng: np.random.Generator, steps: int | None = None, decay: float = 0.0, **how: Any) -> None:
    """A network, trained for a while at a moderate learning rate that falls at the end, and its batches."""
    case.model = network(rng, case.kind, case.data, **how)
    groups = case.model.parameters() if decay else no_weight_decay(case.model)
    case.optimizer = tg.optim.SGD(groups, lr=float(rng.choice([0.02, 0.05, 0.1])), momentum=0.9, weight_decay=decay or 1e-4)
    case.options.update(how)
    steps = int(rng.integers(100, 201)) if steps is None else steps
    case.options["steps"] = steps
    train(case, steps * 3 // 4)
    train(case, steps - steps * 3 // 4, lr=0.005)
    batches_of(case)


def batches_of(case: Case, shuffle: bool = True, drop_last: bool = True) -> None:
    x, y, x_eval, y_eval = case.data
    if not shuffle:
        order = np.argsort(y, kind="stable")
        x, y = x[order], y[order]
    case.train_batches = list(tg.datasets.batches(x, y, case.batch, shuffle=shuffle, drop_last=drop_last, seed=case.seed))
    case.eval_batches = list(tg.datasets.batches(x_eval, y_eval, 128))


def evaluate(case: Case) -> None:
    with tg.no_grad():
        for x, y in case.eval_batches:
            tg.cross_entropy(case.model(tg.tensor(x)), tg.tensor(y))


def healthy(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    with watch(case.model) as case.seen:
        case.model.train()
        train(case, 8)
        case.model.eval()
        evaluate(case)


# ----- the bugs, by the code of the finding that they should give


@bug
def never_updated(case: Case, rng: np.random.Generator) -> None:
    if rng.integers(2):
        prepared(case, rng, momentum=0.0)
    else:  # the buffers were not saved
        prepared(case, rng)
        for _, layer in layers(case.model):
            layer.reset_running_stats()


@bug
def start_value_weighs(case: Case, rng: np.random.Generator) -> None:
    if rng.integers(2):
        prepared(case, rng, momentum=0.01)
    else:
        prepared(case, rng, steps=int(rng.integers(12, 36)))


@bug
def momentum_swapped(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng, momentum=float(rng.choice([0.9, 0.99])))


@bug
def statistics_far(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    if rng.integers(2):  # the data is now scaled in another way than when the statistics were taken
        scale, shift = rng.choice([0.25, 3.0]), rng.normal()
        case.data = tuple(v if v.ndim == 1 else (v * scale + shift).astype(np.float32) for v in case.data)
        batches_of(case)
    else:  # trained on, with statistics that stand still
        for _, layer in layers(case.model):
            layer.momentum = 0.0
        train(case, 200, lr=0.1)
        for _, layer in layers(case.model):
            layer.momentum = 0.1


@bug
def small_statistics_batch(case: Case, rng: np.random.Generator) -> None:
    case.batch = int(rng.choice([2, 3, 4]))
    case.kind, case.data = "mlp", blobs(rng)
    prepared(case, rng, steps=600)


@bug
def dependent_batches(case: Case, rng: np.random.Generator) -> None:
    case.batch = min(case.batch, 64)
    prepared(case, rng)
    train(case, 1024 // case.batch, shuffle=False, lr=0.005)
    batches_of(case, shuffle=False)


@bug
def batch_of_one(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    x, y = case.data[0], case.data[1]
    keep = len(x) // case.batch * case.batch - case.batch + 1
    case.data = (x[:keep], y[:keep], *case.data[2:])
    batches_of(case, drop_last=False)


@bug
def dead_channel(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    layer = some_layer(case, rng)
    beta = layer.bias.detach().numpy().copy()
    beta[some_channels(layer, rng)] = -50.0
    layer.bias.data = beta


@bug
def gamma_near_zero(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    layer = some_layer(case, rng)
    gamma = layer.weight.detach().numpy().copy()
    gamma[some_channels(layer, rng)] *= 1e-6
    layer.weight.data = gamma


@bug
def bias_before_batchnorm(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng, bias=True)


@bug
def dropout_before_batchnorm(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng, dropout=float(rng.choice([0.3, 0.5, 0.7])))


@bug
def weight_decay_on_gamma_beta(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng, decay=float(rng.choice([1e-4, 1e-3, 1e-2])))


@bug
def variance_near_eps(case: Case, rng: np.random.Generator) -> None:
    scale = float(rng.choice([1e-3, 3e-4]))
    case.data = tuple(v if v.ndim == 1 else (v * np.float32(scale)) for v in case.data)
    prepared(case, rng)


@bug
def nonfinite_statistics(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    layer = some_layer(case, rng)
    name = str(rng.choice(["running_mean", "running_var"]))
    value = getattr(layer, name).numpy().copy()
    value[some_channels(layer, rng)] = rng.choice([np.nan, np.inf])
    setattr(layer, name, nn.Buffer(value))


@bug
def half_precision_statistics(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    for _, layer in layers(case.model):
        layer.running_mean = nn.Buffer(layer.running_mean.numpy().astype(np.float16))
        layer.running_var = nn.Buffer(layer.running_var.numpy().astype(np.float16))


@bug
def evaluated_in_training_mode(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    with watch(case.model) as case.seen:
        case.model.train()
        train(case, 8)
        evaluate(case)  # eval() was forgotten


@bug
def trained_in_eval_mode(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    with watch(case.model) as case.seen:
        case.model.train()
        train(case, 4)
        case.model.eval()
        evaluate(case)
        train(case, 40, lr=0.02)  # train() was forgotten
        evaluate(case)


@bug
def updated_by_evaluation(case: Case, rng: np.random.Generator) -> None:
    prepared(case, rng)
    x, y = case.data[2:]
    order = np.argsort(y, kind="stable")
    with watch(case.model) as case.seen:
        case.model.train()
        train(case, 4)
        with tg.no_grad():  # the validation loss, before eval()
            for images, labels in tg.datasets.batches(x[order], y[order], 64):
                tg.cross_entropy(case.model(tg.tensor(images)), tg.tensor(labels))
        case.model.eval()
        evaluate(case)


def some_layer(case: Case, rng: np.random.Generator) -> Any:
    found = layers(case.model)
    return found[int(rng.integers(len(found)))][1]


def some_channels(layer: Any, rng: np.random.Generator) -> np.ndarray:
    c = layer.num_features
    return rng.choice(c, max(1, int(np.ceil(c * rng.uniform(0.4, 0.8)))), replace=False)


def codes(count: int = 200) -> list[str | None]:
    """What each case has: 38 % healthy, the rest of each bug in turn."""
    bugs = list(BUGS)
    return [None if i % 8 in (0, 3, 6) else bugs[i * 5 // 8 % len(bugs)] for i in range(count)]
