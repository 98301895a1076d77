"""BatchNorm couples the examples of a batch: the derivative of every example's output by every other example's input."""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from claim import Criterion, Finding, Results, Setup, Trial, judge
from training import Data, Part, train

import tinygrad_bn as tg

QUESTION = "Does an example's output depend on the other examples of its batch?"
SOURCE = (
    "Ioffe & Szegedy 2015, section 3: in training the output for an example depends on the others of its mini-batch; at "
    "inference it does not, and with LayerNorm (Ba et al. 2016) never."
)
SETUP = (
    "784-64-64-10, ReLU, trained for 100 steps; then a batch of ten images, one of each digit, and all the derivatives of its "
    "logits by its pixels, by one backward walk for each logit."
)
SHARE = "share of the Jacobian's Frobenius norm that lies in the blocks of output i and input j, where i and j differ"
CRITERIA = {
    "train": Criterion("In training, BatchNorm couples the examples of a batch", SHARE, low=0.1, rule="every seed"),
    "eval": Criterion("In eval mode it does not couple them", SHARE, high=0, rule="every seed"),
    "layer": Criterion("LayerNorm does not couple them in training", SHARE, high=0, rule="every seed"),
}

ARMS = {"train": "batch", "eval": "batch", "layer": "layer"}
MATES = 40  # sets of batchmates that one image is put among


def trials(setup: Setup, done: Results) -> list[Trial]:
    steps = 30 if setup.quick else 100
    return [{"arm": arm, "seed": seed, "steps": steps} for seed in setup.seeds for arm in ARMS]


def run(trial: Trial, data: Data) -> dict[str, Any]:
    tg.manual_seed(trial["seed"])
    network = tg.models.mlp((784, 64, 64, 10), norm=ARMS[trial["arm"]], activation="relu")
    train(network, data.train, 0.1, trial["steps"], 100, trial["seed"], data.device)
    network.train(trial["arm"] != "eval")
    rng = np.random.default_rng(trial["seed"])
    blocks = coupling(network, one_of_each(data.valid, rng), data.device)
    return {
        "blocks": blocks,
        "share": share(blocks),
        "probabilities": [probability(network, images, data.device) for images in company(data.valid, rng)],
    }


def one_of_each(part: Part, rng: np.random.Generator) -> np.ndarray:
    """A random image of each digit, from 0 to 9."""
    return part.x[[rng.choice(np.flatnonzero(part.y == digit)) for digit in range(10)]]


def coupling(network: tg.nn.Module, images: np.ndarray, device: str) -> np.ndarray:
    """(N, N): the norm of the derivatives of all of example i's outputs by all of example j's inputs."""
    jacobian = tg.jacobian(network, tg.tensor(images, device=device))  # (N, outputs, N, pixels)
    return np.sqrt((jacobian.cpu().numpy().astype(float) ** 2).sum((1, 3)))


def share(blocks: np.ndarray) -> float:
    apart = ~np.eye(len(blocks), dtype=bool)
    return float(np.linalg.norm(blocks[apart]) / np.linalg.norm(blocks))


def company(part: Part, rng: np.random.Generator) -> list[np.ndarray]:
    """The first image of a 3, each time among nine others."""
    three = np.flatnonzero(part.y == 3)[0]
    return [part.x[[three, *rng.choice(len(part.y), 9, replace=False)]] for _ in range(MATES)]


def probability(network: tg.nn.Module, images: np.ndarray, device: str) -> float:
    """What the network gives to the first image for being a 3, in per cent."""
    with tg.no_grad():
        return 100 * float(tg.softmax(network(tg.tensor(images, device=device)))[0, 3])


def findings(done: Results) -> dict[str, Finding]:
    return {arm: judge(CRITERIA[arm], done.values("share", arm=arm)) for arm in ARMS}


def headline(done: Results) -> str:
    train, *others = (finding.mean for finding in findings(done).values())
    rest = "nothing" if max(others) == 0 else f"{100 * others[0]:.2g} % and {100 * others[1]:.2g} %"
    return f"{100 * train:.0f} % of the Jacobian is between examples with BatchNorm in training; in eval, or LayerNorm: {rest}"


def remarks(done: Results) -> list[str]:
    spread = {arm: max(np.ptp(p) for p in done.values("probabilities", arm=arm)) for arm in ARMS}
    return [
        "The zeros are exact: no operation of the network in eval mode, or with LayerNorm, has an edge between two examples.",
        f"The probability that one image is a 3 varied by up to {spread['train']:.1f} points with its batchmates in training, "
        f"by {spread['eval']:.3f} in eval mode, and by {spread['layer']:.3f} with LayerNorm (largest of the seeds).",
        "The share is of a batch of ten, and changes with it; in the picture the area of a square is the norm of a block.",
    ]


def draw(done: Results, canvas: style.Canvas) -> None:
    looks = {
        "train": ("BatchNorm, training", style.BATCHNORM, "o"),
        "eval": ("BatchNorm, eval", style.BATCHNORM, "s"),
        "layer": ("LayerNorm, training", style.LAYERNORM, "D"),
    }
    *panels, last = canvas.panels([*(title for title, _, _ in looks.values()), "One image, 40 batches"])
    seed = min(done.each("seed"))
    for axes, (arm, (_, colour, _)) in zip(panels, looks.items(), strict=True):
        blocks = np.array(done.one(arm=arm, seed=seed)["blocks"])
        i, j = np.nonzero(blocks)
        axes.scatter(j, i, 130 * blocks[i, j] / blocks.max(), colour, marker="s", linewidths=0)
        axes.set(xlim=(-0.6, 9.6), ylim=(9.6, -0.6), aspect="equal", xlabel="input: the image of ...")
        axes.set_ylabel("output for the image of ...")
        axes.set_xticks(range(10))
        axes.set_yticks(range(10))
        axes.grid(visible=False)
    for place, (arm, (_, colour, mark)) in enumerate(looks.items()):
        values = done.one(arm=arm, seed=seed)["probabilities"]
        aside = np.linspace(-0.25, 0.25, len(values))
        style.dots(last, place + aside, values, colour, mark, filled=arm == "train", markersize=2.8)
    last.set_xticks(range(3), ["BatchNorm,\ntraining", "BatchNorm,\neval", "LayerNorm"])
    last.set_xlim(-0.5, 2.5)
    last.set_ylabel("probability of its digit, %")
