"""What the doctor says: findings, each with its numbers, what it costs and a line of code that mends it."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SEVERITIES = ("error", "warning", "note")
# Of findings that are equally severe, one that names a cause comes before one that names an effect.
CODES = (
    "half_precision_statistics", "nonfinite_statistics", "evaluated_in_training_mode", "updated_by_evaluation",
    "trained_in_eval_mode", "batch_of_one", "never_updated", "momentum_swapped", "start_value_weighs", "dependent_batches",
    "small_statistics_batch", "dropout_before_batchnorm", "variance_near_eps", "gamma_near_zero", "dead_channel",
    "statistics_far", "weight_decay_on_gamma_beta", "bias_before_batchnorm",
)  # fmt: skip
WIDTH = 100


@dataclass
class Score:
    """Mean loss, and accuracy in per cent (None for labels that are no classes)."""

    loss: float | None
    accuracy: float | None


@dataclass
class Cost:
    """The same data in three ways: normalised by each batch's statistics, by the running ones, and by precise ones.

    ``training`` is what BatchNorm does in training mode, Dropout being off; ``precise`` is evaluation with the statistics that
    ``recalibrate`` would set, None if they cannot be taken. ``on`` says which batches it was, ``examples`` how many.
    """

    training: Score
    evaluation: Score
    precise: Score | None
    on: str
    examples: int


@dataclass
class Finding:
    """One thing that is wrong, or worth a look.

    ``layer`` is the path of the layer concerned, the worst if there are several (all are in ``evidence["layers"]``), "" for the
    model as a whole. ``mend`` is a line of code, for a program that has ``tg``, ``model``, ``train_batches`` and ``optimizer``.
    """

    code: str
    severity: str
    layer: str
    why: str
    mend: str
    evidence: dict[str, Any] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass
class Report:
    """Findings, worst first; the cost of the statistics as they are; and a row of numbers for each layer.

    ``trouble`` says why parts of the examination could not be done, if so. A report is true if something is wrong: an error or
    a warning.
    """

    model: str
    findings: list[Finding]
    cost: Cost | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""
    by: str = "diagnose"

    def __post_init__(self) -> None:
        self.findings.sort(key=lambda f: (SEVERITIES.index(f.severity), CODES.index(f.code)))

    def __bool__(self) -> bool:
        return any(f.severity != "note" for f in self.findings)

    def __getitem__(self, code: str) -> Finding:
        """The finding of this code; KeyError if there is none."""
        for finding in self.findings:
            if finding.code == code:
                return finding
        raise KeyError(code)

    def __contains__(self, code: str) -> bool:
        return any(f.code == code for f in self.findings)

    @property
    def codes(self) -> list[str]:
        return [f.code for f in self.findings]

    def headline(self) -> str:
        """One sentence: how many findings of each kind, or that there are none, as far as that could be examined."""
        counts = [(s, sum(f.severity == s for f in self.findings)) for s in SEVERITIES]
        said = [f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts if n]
        nothing = "nothing found, but not all was examined," if self.trouble else "nothing found"
        return f"{', '.join(said) if said else nothing} in {self.model}"

    def __str__(self) -> str:
        lines = [self.headline()]
        if self.cost is not None:
            lines += ["", *_cost_lines(self.cost)]
        if self.trouble:
            lines += ["", *_wrapped(f"Not examined: {self.trouble}", "")]
        for i, f in enumerate(self.findings, 1):
            where = f" at {f.layer}" if f.layer else ""
            lines += ["", *_wrapped(f"{i}. {f.severity.upper()} {f.code}{where}", "")]
            lines += _wrapped(f.why, "   ")
            lines += _wrapped("; ".join(evidence_text(f.evidence)), "   evidence: ") if f.evidence else []
            lines += [f"   mend: {f.mend}"]  # as it is run, whatever its length
        return "\n".join(lines)

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON (NaN and infinities as text), also written to ``path`` if one is given."""
        text = json.dumps(plain(asdict(self)), indent=2, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one HTML file that needs nothing else, with a picture for each layer. Returns its path."""
        from .page import page  # it needs the pages' shell, which is slow to import

        target = Path(path)
        target.write_text(page(self), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        from .page import fragment

        return fragment(self)


def _cost_lines(cost: Cost) -> list[str]:
    """A table: one row a mode."""
    rows = [
        ("by each batch's statistics", cost.training),
        ("by the running statistics", cost.evaluation),
        ("by precise statistics", cost.precise),
    ]
    lines = [f"{f'normalised, on {cost.examples:,} examples of {cost.on}':<58} {'loss':>10} {'accuracy, %':>12}"]
    for name, score in rows:
        loss = "-" if score is None or score.loss is None else number(score.loss)
        accuracy = "-" if score is None or score.accuracy is None else f"{score.accuracy:.1f}"
        lines.append(f"  {name:<56} {loss:>10} {accuracy:>12}")
    return lines


def _wrapped(text: str, lead: str) -> list[str]:
    rest = " " * (len(lead) if not lead.strip() else 5)
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def evidence_text(evidence: dict[str, Any]) -> list[str]:
    """name = value, one for each; of long lists the beginning."""
    return [f"{name.replace('_', ' ')} {_short(value)}" for name, value in evidence.items()]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_short(v)}" for k, v in value.items()) + ")"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(_short, value[:5]))
        return shown if len(value) <= 5 else f"{shown}, ... ({len(value)} in all)"
    return number(float(value)) if isinstance(value, (float, np.floating)) else str(value)


def number(x: float) -> str:
    """Three significant digits."""
    return f"{x:.3g}" if math.isfinite(x) else {math.inf: "infinity", -math.inf: "-infinity"}.get(x, "NaN")


def plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, numbers that are not finite as text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return number(value)
    return value
