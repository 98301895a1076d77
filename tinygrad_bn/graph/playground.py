"""The BatchNorm playground: six linked panels on one page, whose own engine is held to this package's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn, ops
from ..core import grad, no_grad
from ..tensor import Tensor
from . import page

TITLE = "BatchNorm you can hold"
SCRIPTS = (  # playground_*.js; each uses those before it
    "engine", "state", "check", "draw", "batch", "backward", "batchmates", "evaluation", "precision", "runs", "wiring",
)  # fmt: skip
SEED = 20150211  # the day of Ioffe & Szegedy's paper
OFFSETS = 0, 1, 10, 100, 300, 1000, 4096, 1e4, 1e5, 1e6, 1e7, 1e8
VALUES = 64  # offset - 1, offset + 1, offset - 1 ...


def playground(path: str | os.PathLike[str] = "batchnorm.html") -> Path:
    """Write the playground to ``path`` as one HTML file that needs nothing else, and return the path.

    It has six panels with one state: a batch whose points can be dragged, the backward pass, batchmates, training against
    evaluation, precision, and recorded training runs. The page's engine, in JavaScript, tests itself against numbers that
    this package computes while the page is made, and shows what came of it.

    Raises TypeError for a path of another type, and OSError where the file cannot be written.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"graph.playground expected a path, got {type(path).__name__}")
    target = Path(path)
    target.write_text(document(), encoding="utf-8", newline="\n")
    return target


def document() -> str:
    """The page's text."""
    return page.html(
        TITLE,
        page.text("playground.html"),
        css=page.text("playground.css"),
        script="\n".join(page.text(f"playground_{name}.js") for name in SCRIPTS),
        data={"golden": golden(), "recorded": json.loads(page.text("playground_runs.json"))},
    )


# ----- what the page's engine must reproduce


def golden() -> dict[str, list[dict[str, Any]]]:
    """Inputs and this package's outputs for each function of the page's engine; the same inputs every time."""
    rng = np.random.default_rng(SEED)
    return {
        "batches": [_batch(rng, m) for m in (2, 3, 4, 8, 17, 32)],
        "jacobians": [_jacobian(rng, m) for m in (2, 5, 8)],
        "running": [_running(rng, m, c, p) for m in (2, 4, 9) for c in ("unbiased", "biased") for p in (0.1, 0.9, None)],
        "precision": list(_precision()),
        "law": [{"m": m, "slope": math.sqrt(2 / m) * math.gamma(m / 2) / math.gamma((m - 1) / 2)} for m in range(2, 65)],
    }


def _batch(rng: np.random.Generator, m: int) -> dict[str, Any]:
    x, g = rng.normal(1.0, 2.0, (m, 1)), rng.normal(size=(m, 1))
    gamma, beta, eps = rng.normal(size=(1,)), rng.normal(size=(1,)), 10.0 ** rng.integers(-8, 0)
    leaves = [Tensor(v, requires_grad=True) for v in (x, gamma, beta)]
    y, (mean, variance) = ops.batch_norm(*leaves, eps=eps)
    dx, dgamma, dbeta = grad(y, leaves, grad_outputs=Tensor(g))
    results = {"mean": mean, "variance": variance, "dgamma": dgamma.numpy(), "dbeta": dbeta.numpy()}
    lists = {"x": x, "g": g, "y": y.detach().numpy(), "dx": dx.numpy()}
    given = {"gamma": gamma.item(), "beta": beta.item(), "eps": eps}
    return {**given, **{k: v.item() for k, v in results.items()}, **{k: v.reshape(-1).tolist() for k, v in lists.items()}}


def _jacobian(rng: np.random.Generator, m: int) -> dict[str, Any]:
    x, gamma, eps = Tensor(rng.normal(size=(m, 1)), requires_grad=True), rng.normal(), 1e-3
    y, _ = ops.batch_norm(x, Tensor(np.array([gamma])), Tensor(np.zeros(1)), eps=eps)
    rows = [grad(y, [x], grad_outputs=Tensor(row[:, None]), retain_graph=True)[0].numpy() for row in np.eye(m)]
    return {"x": x.detach().numpy().reshape(-1).tolist(), "gamma": gamma, "eps": eps, "rows": [r[:, 0].tolist() for r in rows]}


def _running(rng: np.random.Generator, m: int, convention: str, momentum: float | None) -> dict[str, Any]:
    layer = nn.BatchNorm1d(1, momentum=momentum, variance=convention)
    layer.double()
    batches = [rng.normal(2.0, 1.5, m) for _ in range(5)]
    with no_grad():
        for batch in batches:
            layer(Tensor(batch[:, None]))
        y = layer.eval()(Tensor(batches[0][:, None])).numpy()
    assert layer.running_mean is not None and layer.running_var is not None
    return {
        "batches": [batch.tolist() for batch in batches], "momentum": momentum, "convention": convention, "eps": layer.eps,
        "mean": layer.running_mean.item(), "variance": layer.running_var.item(), "y": y.reshape(-1).tolist(),
    }  # fmt: skip


def _precision() -> Iterator[dict[str, Any]]:
    """The variance of ``VALUES`` numbers, offset -+ 1, by each algorithm, every operation rounded to the dtype by NumPy."""
    for dtype in (np.float64, np.float32, np.float16):
        for offset in OFFSETS:
            with np.errstate(all="ignore"):
                x = (offset + np.resize([-1.0, 1.0], VALUES)).astype(dtype)
                results = {"one-pass": _one_pass(x), "two-pass": _two_pass(x), "welford": _welford(x)}
                if np.isfinite(x).all():
                    results["package"] = ops.batch_norm(x[:, None])[1][1].item()
            for algorithm, value in results.items():
                written = value if math.isfinite(value) else str(value)
                yield {"dtype": np.dtype(dtype).name, "offset": offset, "algorithm": algorithm, "n": VALUES, "value": written}


def _average(values: np.ndarray) -> Any:
    """The mean in the array's dtype: eight running sums and a tree, as NumPy adds up to 128 float32 or float64."""
    part = values[:8]
    for i in range(8, len(values), 8):
        part = part + values[i : i + 8]
    while len(part) > 1:
        part = part[0::2] + part[1::2]
    return part[0] / values.dtype.type(len(values))


def _one_pass(x: np.ndarray) -> float:
    mu = _average(x)
    return float(_average(x * x) - mu * mu)


def _two_pass(x: np.ndarray) -> float:
    d = x - _average(x)
    return float(_average(d * d))


def _welford(x: np.ndarray) -> float:
    kind = x.dtype.type
    mu = squares = kind(0)
    for i, value in enumerate(x):
        before = value - mu
        mu = mu + before / kind(i + 1)
        squares = squares + before * (value - mu)
    return float(squares / kind(len(x)))
