"""What a claim is: a criterion fixed beforehand, values for each seed, and the verdict that follows from the two.

A file of this folder that examines a claim has:

    QUESTION    the claim as a question, in plain words
    SOURCE      the paper, and its figure or section
    SETUP       our version of the experiment
    CRITERIA    name -> Criterion; constants, written before the first run
    trials(setup, done)         the trials still to run, given the results so far; none when it is finished
    run(trial, data)            one trial: a dict that JSON can hold
    findings(done)              name -> what was measured, judged by the criterion of this name
    headline(done)              the finding of the picture in one sentence, with its number
    remarks(done)               what a reader should know to judge it: sentences
    draw(done, canvas)          the picture

A trial is a dict of plain values (arm, learning rate, seed ...): all that it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "inconclusive here"
SMOKE = "smoke only"  # the verdict of a run that is too small for one
CONFIDENCE = 0.95

Trial = dict[str, Any]


class Setup(NamedTuple):
    """What the experiments run on."""

    data: str
    device: str
    seeds: list[int]
    quick: bool


class Record(NamedTuple):
    """A finished trial."""

    trial: Trial
    result: dict[str, Any]
    seconds: float
    commit: str


class Results(list[Record]):
    """The finished trials of a claim."""

    def of(self, **where: Any) -> Results:
        """Those whose trial has these values, by seed."""
        found = (r for r in self if all(name in r.trial and r.trial[name] == value for name, value in where.items()))
        return Results(sorted(found, key=lambda r: r.trial.get("seed", 0)))

    def one(self, **where: Any) -> dict[str, Any]:
        """The result of the only trial that has these values."""
        (record,) = self.of(**where)
        return record.result

    def values(self, name: str, **where: Any) -> list[Any]:
        """One value of each result that ``of`` gives."""
        return [r.result[name] for r in self.of(**where)]

    def each(self, name: str) -> list[Any]:
        """The values that the trials have for this name, in the order of their first appearance."""
        return list(dict.fromkeys(r.trial[name] for r in self if name in r.trial))

    def missing(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Those of the trials that are not finished."""
        finished = [r.trial for r in self]
        return (trial for trial in trials if trial not in finished)


@dataclass(frozen=True)
class Criterion:
    """The claim holds if the statistic lies from ``low`` to ``high``.

    By rule "interval" it holds if the whole 95 % t-interval over seeds does, and does not hold if the whole interval lies
    outside on one side; by rule "every seed", if it does for every seed, or for none. Otherwise it is open. ``ratio``: means
    and intervals are taken of logarithms.
    """

    claim: str
    statistic: str
    low: float | None = None
    high: float | None = None
    rule: str = "interval"
    ratio: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        if self.rule not in ("interval", "every seed") or (self.low is None and self.high is None):
            raise ValueError(f"a criterion expects a bound, and the rule 'interval' or 'every seed', got {self}")

    def in_words(self) -> str:
        bounds = [f"at least {number(self.low)}"] * (self.low is not None)
        bounds += [f"at most {number(self.high)}"] * (self.high is not None)
        how = "the whole interval" if self.rule == "interval" else "every seed"
        return f"{how} {' and '.join(bounds)}{self.unit and ' ' + self.unit}"

    def inside(self, low: float, high: float) -> bool | None:
        """True if all from low to high is inside the bounds, False if all is outside on one side, else None."""
        least, most = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        if least <= low and high <= most:
            return True
        return False if high < least or low > most else None


@dataclass(frozen=True)
class Finding:
    """What was measured for one criterion."""

    criterion: Criterion
    values: list[float]  # one a seed
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    verdict: str
    at_least: bool  # the values are bounds from below

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "criterion_in_words": self.criterion.in_words()}


def judge(criterion: Criterion, values: Sequence[float], at_least: bool = False) -> Finding:
    """The verdict on values of the statistic, one a seed. They are finite: a failed run enters as the worst it can be.

    ``at_least``: the true values may be larger, since something was cut short. By such values a claim may hold, if it has no
    upper bound, but it cannot fail.
    """
    values = [float(v) for v in values]
    if not values or not all(math.isfinite(v) and (v > 0 or not criterion.ratio) for v in values):
        raise ValueError(f"expected finite values{' above 0' if criterion.ratio else ''}, one a seed, got {values}")
    scaled = np.log(values) if criterion.ratio else np.array(values)
    back = math.exp if criterion.ratio else float
    mean, n = scaled.mean(), len(values)
    sd = scaled.std(ddof=1) if n > 1 else None
    interval = None if sd is None else t_interval(mean, sd, n)
    if interval is not None:
        interval = back(interval[0]), back(interval[1])
    if criterion.rule == "every seed":
        each = {criterion.inside(v, v) for v in values}
        inside = each.pop() if len(each) == 1 else None
    else:
        inside = None if interval is None else criterion.inside(*interval)
    if at_least and (inside is False or criterion.high is not None):
        inside = None
    verdict = {True: HOLDS, False: FAILS, None: OPEN}[inside]
    spread = None if sd is None else back(sd)
    return Finding(criterion, values, back(mean), spread, interval, verdict, at_least)


def t_interval(mean: float, sd: float, n: int) -> tuple[float, float]:
    """Student's 95 % interval of the mean of n values."""
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return mean - half, mean + half


def number(x: float | None) -> str:
    """Three digits, as one writes them: 0.0123, 12.3, 1230, 1.2e-9."""
    if x is None:
        return "none"
    if x == 0 or 1e-4 <= abs(x) < 1e6:
        return np.format_float_positional(x, 3, unique=False, fractional=False, trim="-") if abs(x) < 1000 else f"{x:.0f}"
    digits, exponent = f"{x:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def measured(finding: dict[str, Any]) -> str:
    """The figures of a finding, as JSON holds it: mean, standard deviation, interval, seeds."""
    criterion, unit = finding["criterion"], finding["criterion"]["unit"] and " " + finding["criterion"]["unit"]
    n = len(finding["values"])
    text = "at least " * finding["at_least"] + number(finding["mean"]) + unit
    if finding["sd"] is not None:
        text += f" ({'times or divided by' if criterion['ratio'] else '±'} {number(finding['sd'])}"
        text += f"; 95 % interval {number(finding['interval'][0])} to {number(finding['interval'][1])}{unit})"
    return f"{text}, {n} seed{'s' * (n > 1)}: {', '.join(map(number, finding['values']))}"
