"""Findings by reading a model's parameters, buffers, optimizer, and the graph of one run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import nn
from ..backend import to_numpy
from ..nn.layers import _Conv
from ..optim.optimizer import Optimizer
from .layers import BatchNorm, in_code, layers
from .measures import Met
from .report import Finding
from .trace import Trace

RECALIBRATE = "tg.batchnorm.recalibrate(model, train_batches)"
MANY = 0.25  # the share of a layer's channels from which a finding about channels is a warning
SMALL_GAMMA = 1e-3
NEAR_EPS = 10.0  # times eps


def nonfinite(model: nn.Module, order: list[str]) -> Iterator[Finding]:
    """NaN, infinity or a negative variance in what BatchNorm keeps, with the first layer that has it, in order of calls."""
    found: dict[str, dict[str, list[int]]] = {}
    for path, layer in layers(model):
        for name, t in (("running_mean", layer.running_mean), ("running_var", layer.running_var)):
            if t is not None:
                v = to_numpy(t._data)
                bad = np.flatnonzero(~np.isfinite(v) | (v < 0 if name == "running_var" else False))
                if len(bad):
                    found.setdefault(path, {})[name] = bad.tolist()
    if found:
        first = min(found, key=lambda p: order.index(p) if p in order else len(order))
        parameters = [n for n, p in model.named_parameters() if not np.isfinite(to_numpy(p._data)).all()]
        evidence: dict[str, Any] = {"channels": found[first], "layers": list(found)}
        if parameters:
            evidence["parameters_too"] = parameters
        yield Finding(
            "nonfinite_statistics",
            "error",
            first,
            "Its running statistics hold NaN, infinity or a negative variance, so every output in evaluation is lost from "
            "this layer on. Training mode does not use them, and hides it. They came with a state dict or by assignment: "
            "BatchNorm's own updates leave out what is not finite. This layer is the first with them."
            + (" Parameters are not finite either: load those of an earlier checkpoint first." if parameters else ""),
            RECALIBRATE,
            evidence,
        )


def half_precision(model: nn.Module) -> Iterator[Finding]:
    found = {
        path: [n for n in ("running_mean", "running_var") if getattr(layer, n).dtype == "float16"]
        for path, layer in layers(model)
        if layer.running_mean is not None and layer.running_var is not None
    }
    found = {path: names for path, names in found.items() if names}
    if found:
        path = next(iter(found))
        dtype = next((p.dtype for p in model.parameters() if p.dtype != "float16"), np.dtype("float32"))
        yield Finding(
            "half_precision_statistics",
            "error",
            path,
            "float16 has 11 bits and ends at 65,504: an average that moves by a tenth of a small difference stands still, "
            "and a variance above the end is infinite. Running statistics belong in float32, also beside float16 "
            "activations; with float32 ones the layer does not even run.",
            f'model.to(dtype="{dtype}")',
            {"buffers": found[path], "layers": list(found)},
        )


def weight_decay(model: nn.Module, optimizer: Optimizer | None) -> Iterator[Finding]:
    if optimizer is None:
        return
    names = {
        id(p): f"{path}.{n}" if path else n
        for path, m in layers(model)
        for n, p in vars(m).items()
        if isinstance(p, nn.Parameter)
    }
    decayed = [
        (names[id(p)], g) for g in optimizer.param_groups if g.get("weight_decay") for p in g["params"] if id(p) in names
    ]
    if decayed:
        group = decayed[0][1]
        taken = inspect.signature(type(optimizer).__init__).parameters
        options = {k: v for k, v in group.items() if k != "params" and k in taken}
        written = ", ".join(f"{k}={v!r}" for k, v in options.items())
        yield Finding(
            "weight_decay_on_gamma_beta",
            "warning",
            decayed[0][0].rpartition(".")[0],
            "Weight decay pulls gamma and beta to 0, and there is no reason to: the weights before a BatchNorm have no "
            "scale of their own, gamma and beta are its scale. What decay does to weights before a BatchNorm is raise their "
            "effective learning rate; on gamma it shrinks the layer's output.",
            f"optimizer = tg.optim.{type(optimizer).__name__}(tg.batchnorm.no_weight_decay(model), {written})",
            {"weight_decay": float(group["weight_decay"]), "parameters": [n for n, _ in decayed]},
        )


def small_gamma(model: nn.Module) -> Iterator[Finding]:
    rows: list[dict[str, Any]] = []
    for path, layer in layers(model):
        if layer.weight is not None:
            gamma = np.abs(to_numpy(layer.weight._data))
            small = np.flatnonzero(gamma < SMALL_GAMMA)
            if len(small):
                rows.append({"layer": path, "share": len(small) / len(gamma), "channels": small.tolist()})
    if rows:
        worst = max(rows, key=lambda r: r["share"])
        target = in_code(worst["layer"])
        yield Finding(
            "gamma_near_zero",
            "warning" if worst["share"] >= MANY else "note",
            worst["layer"],
            f"These channels are multiplied by a gamma below {SMALL_GAMMA:g}: whatever comes in, what goes out is beta, and "
            "hardly a gradient reaches the weights below. Weight decay on gamma does this, or an initial value of zero that "
            "never grew.",
            f"{target}.weight.data[{worst['channels']}] = 1.0; {RECALIBRATE}  # then train on",
            {"share_of_channels": worst["share"], "channels": worst["channels"], "layers": [r["layer"] for r in rows]},
        )


def dead_channels(model: nn.Module, met: list[Met], trace: Trace) -> Iterator[Finding]:
    """Channels whose input does not vary, or whose output a ReLU sets to zero for every example."""
    rows: list[dict[str, Any]] = []
    for m in met:
        var = m.whole.var
        dead = var <= 1e-12 * np.maximum(1e-12, m.whole.mean**2)
        visits = trace.calls(m.layer)
        takers = trace.consumers(visits[0].out) if visits else []
        if m.top is not None and takers and all(op.name == "relu" for op in takers):
            dead |= m.top <= 0
        if m.layer.weight is not None:  # that is another finding
            dead &= np.abs(to_numpy(m.layer.weight._data)) >= SMALL_GAMMA
        if dead.any():
            channels = np.flatnonzero(dead).tolist()
            rows.append({"layer": m.path, "share": float(dead.mean()), "channels": channels})
    if rows:
        worst = max(rows, key=lambda r: r["share"])
        target, c = in_code(worst["layer"]), worst["channels"]
        mend = f"{target}.weight.data[{c}] = 1.0; {target}.bias.data[{c}] = 0.0; {RECALIBRATE}  # then train on"
        layer = next(m.layer for m in met if m.path == worst["layer"])
        if layer.weight is None:
            maker = trace.made_by(trace.calls(layer)[0].x, (nn.Linear, _Conv))
            before = in_code(next((path for path, m in model.named_modules() if m is maker), worst["layer"]))
            mend = f"tg.nn.init.kaiming_normal_({before}.weight); {RECALIBRATE}  # then train on"
        yield Finding(
            "dead_channel",
            "warning" if worst["share"] >= MANY else "note",
            worst["layer"],
            "These channels say nothing: their input does not vary, or beta is so far below zero that the ReLU behind them "
            "is zero for every example, and so is their gradient.",
            mend,
            {"share_of_channels": worst["share"], "channels": c, "layers": {r["layer"]: len(r["channels"]) for r in rows}},
        )


def variance_near_eps(met: list[Met]) -> Iterator[Finding]:
    rows: list[dict[str, Any]] = []
    for m in met:
        var = m.whole.var
        live = var > 1e-12 * np.maximum(1e-12, m.whole.mean**2)
        small = live & (var < NEAR_EPS * m.layer.eps)
        if small.any():
            factor = float(np.sqrt(np.median(var[small] / (var[small] + m.layer.eps))))
            row = {"layer": m.path, "share": float(small.mean()), "channels": np.flatnonzero(small).tolist()}
            rows.append({**row, "variance": float(np.median(var[small])), "eps": m.layer.eps, "factor": factor})
    if rows:
        worst = max(rows, key=lambda r: (r["share"], -r["variance"]))
        mends = [f"{in_code(r['layer'])}.eps = {max(r['variance'] * 1e-3, 1e-30):.0e}" for r in rows]
        yield Finding(
            "variance_near_eps",
            "warning" if worst["share"] >= MANY else "note",
            worst["layer"],
            "The variance of its input is no larger than a few eps, which is added to it: the output is not normalised to "
            f"variance 1, but smaller by the factor {worst['factor']:.2g}, and invariance to the scale of the input is lost. "
            "Scale the data, or take a smaller eps.",
            "; ".join(mends) + "  # or scale the inputs; then train on",
            {
                "variance": worst["variance"],
                "eps": worst["eps"],
                "share_of_channels": worst["share"],
                "output_smaller_by": worst["factor"],
                "layers": [r["layer"] for r in rows],
            },
        )


def bias_before(model: nn.Module, trace: Trace) -> Iterator[Finding]:
    paths = {id(m): path for path, m in model.named_modules()}
    pairs: list[tuple[str, str, BatchNorm, Any]] = []
    for path, layer in layers(model):
        visits = trace.calls(layer)
        before: Any = trace.made_by(visits[0].x, (nn.Linear, _Conv)) if len(visits) == 1 else None
        if before is not None and before.bias is not None and len(trace.calls(before)) == 1:
            if len(trace.consumers(visits[0].x)) == 1 and not (isinstance(before, nn.Linear) and visits[0].x.ndim > 2):
                pairs.append((paths[id(before)], path, layer, before))
    if pairs:
        size = sum(before.bias.size for *_, before in pairs)
        yield Finding(
            "bias_before_batchnorm",
            "note",
            pairs[0][0],
            f"BatchNorm subtracts the mean, and the bias of the layer before with it: {size:,} parameters that have no "
            "effect in training, and a gradient of exactly zero. Harmless; beta does their work.",
            "; ".join(_without_bias(in_code(linear), in_code(norm), layer) for linear, norm, layer, _ in pairs),
            {"parameters": size, "layers": [linear for linear, *_ in pairs]},
        )


def _without_bias(linear: str, norm: str, layer: BatchNorm) -> str:
    if layer.running_mean is None:
        return f"{linear}.bias = None"
    return f"{linear}.bias, {norm}.running_mean = None, tg.nn.Buffer({norm}.running_mean.data - {linear}.bias.data)"


def dropped(trace: Trace) -> dict[int, str]:
    """The BatchNorms whose input a Dropout reaches without another BatchNorm in between, by id: the operation's module."""
    tainted: dict[int, Any] = {}
    found: dict[int, Any] = {}
    for op in trace.ops:
        source = next((tainted[id(a)] for a in op.inputs if id(a) in tainted), None)
        if isinstance(op.module, BatchNorm):
            if source is not None:
                found.setdefault(id(op.module), source)
        elif op.name == "dropout":
            tainted[id(op.out)] = op.module
        elif source is not None:
            tainted[id(op.out)] = source
    return found
