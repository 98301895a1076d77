"""Findings by running a model: what the running statistics are, against what its batches say that they should be."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log, sqrt
from typing import Any

import numpy as np

from .. import nn
from ..backend import to_numpy
from .layers import in_code, layers
from .measures import Harm, Met, Pairs, slope
from .reading import RECALIBRATE, dropped
from .report import Finding
from .trace import Trace

# Chosen on the models of benchmarks/doctor_models.py with seeds from 1,000 on; docs/batchnorm.md has the figures for seeds
# from 0 on.
FAR = 0.25  # standard deviations, or in the logarithm of the variance: what the median channel's statistics may be off
AGREES = 0.02  # so close to precise statistics that it does not matter how they came about
START = 0.01  # the share of the initial statistics that may be left
SWAPPED = 0.5  # a momentum from here on is one of the other convention
NOISE = 0.10, 0.04  # the noise of a batch's statistics that is worth a warning, or a note
SHIFT = 0.1  # in the logarithm of the variance: what Dropout may change at the input of a BatchNorm

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


def rows_of(met: list[Met], precise: Statistics | None) -> list[dict[str, Any]]:
    """A row of numbers for each layer, in order of calls: running statistics beside those of the population of batches."""
    return [_row(m, precise) for m in met]


def _row(m: Met, precise: Statistics | None) -> dict[str, Any]:
    layer = m.layer
    size = float(np.median(m.m))
    row: dict[str, Any] = {
        "layer": m.path,
        "type": type(layer).__name__,
        "channels": layer.num_features,
        "batches": len(m.m),
        "m": size,
        "momentum": layer.momentum,
        "eps": layer.eps,
        "num_batches_tracked": layer.num_batches_tracked,
        "frozen": layer.frozen,
        "tracks": layer.running_mean is not None,
        "slope": m.slope,
        "noise": 1 - m.slope**2,
        "slope_by_law": slope(size),
        "noise_by_law": 1 - slope(size) ** 2,
        "population_mean": m.whole.mean,
        "population_var": m.whole.var,
        "gamma": None if layer.weight is None else to_numpy(layer.weight._data).astype(float),
        "beta": None if layer.bias is None else to_numpy(layer.bias._data).astype(float),
    }
    if layer.running_mean is None or layer.running_var is None:
        return row
    with np.errstate(all="ignore"):
        mean, var = (to_numpy(b._data).astype(float) for b in (layer.running_mean, layer.running_var))
        bessel = size / (size - 1) if layer.variance == "unbiased" else 1.0
        sigma = np.sqrt(m.whole.var + layer.eps)
        shift = (mean - m.whole.mean) / sigma
        ratio = np.log((var + layer.eps) / (m.whole.var * bessel + layer.eps))
        k = len(m.m)
        spread = np.std(np.array(m.means), axis=0, ddof=1) / sigma if k > 1 else np.full(layer.num_features, np.nan)
        row |= {
            "running_mean": mean,
            "running_var": var,
            "shift": float(np.median(np.abs(shift))),
            "ratio": float(np.exp(np.median(np.abs(ratio)))),
            "log_ratio": float(np.median(np.abs(ratio))),
            # The population's mean is known to within two standard errors; a running mean varies with its last batches.
            "shift_interval": float(2 * np.median(spread) / sqrt(k)),
            "shift_expected": float(np.median(spread) * sqrt((layer.momentum or 0.0) / (2 - (layer.momentum or 0.0)))),
        }
        row["off"] = max(row["shift"], row["log_ratio"])
        if precise is not None and m.path in precise:
            p_mean, p_var = precise[m.path]
            by_mean = np.abs(mean - p_mean) / np.sqrt(p_var + layer.eps)
            by_var = np.abs(np.log((var + layer.eps) / (p_var + layer.eps)))
            row["off_precise"] = float(max(by_mean.max(), by_var.max()))
            row["off_precise_median"] = float(max(np.median(by_mean), np.median(by_var)))
    return row


def _agrees(row: dict[str, Any]) -> bool:
    return row.get("off_precise", np.inf) < AGREES


def statistics(rows: list[dict[str, Any]], harm: Harm) -> Iterator[Finding]:
    """Whether the running statistics are those of the data, and if not, why."""
    rows = [r for r in rows if r["tracks"] and not (np.isnan(r["running_mean"]).any() or np.isnan(r["running_var"]).any())]
    rows = [r for r in rows if np.isfinite(r["off"])]
    at_start = [r for r in rows if not r["running_mean"].any() and (r["running_var"] == 1).all() and not _agrees(r)]
    explained: list[dict[str, Any]] = list(at_start)
    if at_start:
        still = [r for r in at_start if r["momentum"] == 0]
        why = (
            "Its running statistics are still the initial ones, mean 0 and variance 1: evaluation does not normalise at all. "
            + (
                "Its momentum is 0, so no batch moves them. "
                if still
                else "Its training saw them in no batch, or they were not saved with the weights, or not loaded. "
            )
        )
        mend = RECALIBRATE
        if still:
            mend = f"for _, layer in tg.batchnorm.layers({RECALIBRATE}): layer.momentum = 0.1"
        worst = max(at_start, key=lambda r: r["off"])
        yield Finding(
            "never_updated",
            "error",
            worst["layer"],
            why.strip(),
            mend,
            {"num_batches_tracked": worst["num_batches_tracked"], **_off(worst), "layers": [r["layer"] for r in at_start]},
        )
    rest = [r for r in rows if r not in at_start and not r["frozen"]]
    swapped = [r for r in rest if r["momentum"] is not None and r["momentum"] >= SWAPPED and not _agrees(r)]
    if swapped:
        explained += swapped
        worst = max(swapped, key=lambda r: r["off"])
        a = worst["momentum"]
        yield Finding(
            "momentum_swapped",
            _severity(harm),
            worst["layer"],
            f"momentum weighs the new batch here, as in PyTorch: {a:g} makes the running statistics an average of the last "
            f"{(2 - a) / a:.2g} batches, as noisy as those. In Keras and ONNX momentum weighs the old value: their {a:g} is "
            f"{1 - a:.2g} here.",
            f"for _, layer in tg.batchnorm.layers({RECALIBRATE}): layer.momentum = {_other(a)}",
            {"momentum": a, "batches_averaged": (2 - a) / a, **_off(worst), "layers": [r["layer"] for r in swapped]},
        )
    started = []
    for r in rest:
        a, n = r["momentum"], r["num_batches_tracked"]
        if a and n and r not in swapped and (1 - a) ** n > START and not _agrees(r) and _from_start(r, (1 - a) ** n):
            started.append({**r, "left": (1 - a) ** n})
    if started:
        explained += [r for r in rest if any(r["layer"] == s["layer"] for s in started)]
        worst = max(started, key=lambda r: r["left"])
        a, n = worst["momentum"], worst["num_batches_tracked"]
        more = ceil(log(START) / log(1 - a)) - n
        yield Finding(
            "start_value_weighs",
            _severity(harm),
            worst["layer"],
            f"After {n} batches at momentum {a:g}, (1 - momentum)^{n} = {worst['left']:.1%} of the running statistics is "
            f"still the initial mean 0 and variance 1. It takes {more} more batches to bring that below 1 %, or "
            "momentum=None, the average of all batches.",
            RECALIBRATE,
            {
                "share_of_start": worst["left"],
                "batches": n,
                "momentum": a,
                "batches_missing": more,
                **_off(worst),
                "layers": [r["layer"] for r in started],
            },
        )
    far = [r for r in rows if r["off"] > FAR and r["off"] > 3 * r["shift_interval"] and not any(r is e for e in explained)]
    far = [r for r in far if not _agrees(r) and r.get("off_precise_median", np.inf) > FAR]
    if not far and harm.grave and not explained and rows:
        far = [max(rows, key=lambda r: r["off"])]
    if far:
        worst = max(far, key=lambda r: r["off"])
        severity = "error" if harm.serious else "warning" if harm.points is None or worst["off"] > 3 * FAR else "note"
        yield Finding(
            "statistics_far",
            severity,
            worst["layer"],
            "The running statistics are not those of the data that comes now. The data changed (another scale, another "
            "domain), or the weights did since they were taken: statistics that stood still, or lag behind a high learning "
            "rate.",
            RECALIBRATE,
            {**_off(worst), "layers": {r["layer"]: {"off": r["off"]} for r in far}},
        )


def _from_start(row: dict[str, Any], left: float) -> bool:
    """Whether a share ``left`` of the start explains the statistics, to a standard deviation; taken otherwise, it need not."""
    sigma = np.sqrt(row["population_var"] + row["eps"])
    shift = (row["running_mean"] - (1 - left) * row["population_mean"]) / sigma
    ratio = np.log((row["running_var"] + row["eps"]) / ((1 - left) * row["population_var"] + left + row["eps"]))
    return max(float(np.median(np.abs(shift))), float(np.median(np.abs(ratio)))) < 1


def _off(row: dict[str, Any]) -> dict[str, Any]:
    """How far the median channel's running statistics are from the population's, with the interval of the latter."""
    return {
        "mean_off_by": row["shift"],
        "interval": row["shift_interval"],
        "expected_of_the_average": row["shift_expected"],
        "variance_off_by_a_factor": row["ratio"],
    }


def _other(momentum: float) -> float:
    return round(1 - momentum, 6) if momentum < 1 else 0.1


def _severity(harm: Harm) -> str:
    return "error" if harm.serious else "warning"


def small_batches(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Statistics of few values, by the Gamma law, beside what was measured."""
    noisy = [r for r in rows if not r["frozen"] and r["noise_by_law"] > NOISE[1]]
    if noisy:
        worst = max(noisy, key=lambda r: r["noise_by_law"])
        m = int(worst["m"])
        severity = "error" if m <= 2 else "warning" if worst["noise_by_law"] > NOISE[0] else "note"
        dead = " With two values it is +1 and -1 whatever they are, and no gradient passes." if m <= 2 else ""
        yield Finding(
            "small_statistics_batch",
            severity,
            worst["layer"],
            f"In training each channel is normalised by {m} values. For independent Gaussian ones a normalised value then "
            f"follows the true one with slope {worst['slope_by_law']:.3f}, and {worst['noise_by_law']:.1%} of its variance "
            f"is noise from its batchmates; in evaluation the slope is 1 and there is no noise.{dead} Take larger batches, "
            "or a normalisation without batch statistics, and train again.",
            'tg.batchnorm.convert(model, to="group")  # then train again',
            {
                "values_per_channel": m,
                "slope_by_law": worst["slope_by_law"],
                "slope_measured": worst["slope"],
                "noise_by_law": worst["noise_by_law"],
                "noise_measured": worst["noise"],
                "layers": [r["layer"] for r in noisy],
            },
        )


def dependent(met: list[Met], pairs: Pairs, harm: Harm) -> Iterator[Finding]:
    """Whether batches are random draws: the variance between their means against its expectation, by channel.

    For independent examples mean squares between and within batches agree: their ratio F is 1 give or take sqrt(2 / (k - 1)).
    Taken at the first BatchNorm, which no other one has centred.
    """
    if not met or len(met[0].examples) < 4:
        return
    parts = [e for e in met[0].examples if len(e) > 1]
    k, n = len(parts), sum(map(len, parts))
    if k < 4:
        return
    whole = np.concatenate(parts).mean(0)
    between = sum(len(p) * (p.mean(0) - whole) ** 2 for p in parts) / (k - 1)
    within = sum(((p - p.mean(0)) ** 2).sum(0) for p in parts) / (n - k)
    live = within > 0
    if not live.any():
        return
    f = float(np.median(between[live] / within[live]))  # type: ignore[index]
    classes = _classes(pairs)
    limit = 2 + 4 * sqrt(2 / (k - 1))
    if f > limit or (classes is not None and classes > 2 + 4 * sqrt(2 / (k - 1)) and f > 1 + 2 * sqrt(2 / (k - 1))):
        evidence: dict[str, Any] = {"variance_between_batches_over_expected": f, "limit": limit, "batches": k}
        if classes is not None:
            evidence["same_for_the_classes"] = classes
        yield Finding(
            "dependent_batches",
            _severity(harm),
            met[0].path,
            f"The means of batches differ {f:.3g} times as much as those of random batches would: examples that belong "
            "together come together, as when data is sorted by class. Then a batch's statistics tell which batch it is, the "
            "network learns to use that, and the running statistics are those of the last batches. Shuffle: "
            "tg.datasets.batches(x, y, n, shuffle=True).",
            f"{RECALIBRATE}  # then train on with shuffle=True",
            evidence,
        )


def _classes(pairs: Pairs) -> float | None:
    """The variance of the classes' counts in the batches over that of random batches; None without classes."""
    labels = [to_numpy(getattr(y, "_data", y)) for _, y in pairs if y is not None and len(getattr(y, "shape", ())) == 1]
    if len(labels) < 4 or any(v.dtype.kind not in "iu" for v in labels):
        return None
    every, size = np.unique(np.concatenate(labels)), np.array([len(v) for v in labels])[:, None]
    counts = np.array([[(v == c).sum() for c in every] for v in labels])
    p = counts.sum(0) / size.sum()
    if len(every) < 2:
        return None
    return float(((counts - size * p) ** 2 / (size * p * (1 - p))).mean())


def dropout(
    model: nn.Module, trace: Trace, met: list[Met], known: list[dict[str, Any]], precise: Statistics | None, harm: Harm
) -> Iterator[Finding]:
    """Dropout widens what a BatchNorm behind it meets in training, and not in evaluation. Li et al. 2019."""
    sources = dropped(trace)
    rows: list[dict[str, Any]] = []
    paths = {id(m): path for path, m in model.named_modules()}
    for m in met:
        if id(m.layer) in sources:
            ratio = 1.0
            if precise is not None and m.path in precise:
                with np.errstate(all="ignore"):
                    ratio = float(np.nanmedian((m.whole.var + m.layer.eps) / (precise[m.path][1] + m.layer.eps)))
            measured = next(r for r in known if r["layer"] == m.path)
            rows.append({"layer": m.path, "ratio": ratio, "dropout": sources[id(m.layer)], "mended": _agrees(measured)})
    if rows:
        worst = max(rows, key=lambda r: abs(log(r["ratio"])))
        source = worst["dropout"]
        serious = abs(log(worst["ratio"])) > SHIFT and not all(r["mended"] for r in rows)
        yield Finding(
            "dropout_before_batchnorm",
            "error" if harm.serious and serious else "warning" if serious else "note",
            worst["layer"],
            f"Dropout multiplies the variance of what this BatchNorm meets in training by {worst['ratio']:.2f}, and its "
            "running variance learns that; in evaluation nothing is dropped, and the layer normalises by a variance that is "
            "not there. Put Dropout behind the last BatchNorm, or take the statistics in evaluation mode, as recalibrate "
            "does.",
            RECALIBRATE,
            {
                "variance_in_training_over_evaluation": worst["ratio"],
                "dropout": in_code(paths.get(id(source), "")) if source is not None else "ops.dropout",
                "p": getattr(source, "p", None),
                "layers": [r["layer"] for r in rows],
            },
        )


def batch_of_one(refused: list[int], count: int, where: str) -> Iterator[Finding]:
    if refused:
        yield Finding(
            "batch_of_one",
            "error",
            where,
            f"{len(refused)} of {count} batches of training data give a channel a single value: it has no variance, and "
            "training mode raises. As a rule it is the last, partial batch: leave it out with drop_last=True.",
            "train_batches = [batch for batch in train_batches if len(batch[0]) > 1]",
            {"batches": len(refused), "sizes": refused, "of": count},
        )


def unmet(model: nn.Module, met: list[Met]) -> list[str]:
    """BatchNorms that the model never called."""
    called = {m.path for m in met}
    return [path for path, _ in layers(model) if path not in called]
