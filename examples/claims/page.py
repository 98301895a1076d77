"""The page of verdicts: one file that needs nothing else, made from results.json alone."""

from __future__ import annotations

import base64
import hashlib
import importlib
import math
from html import escape
from pathlib import Path
from typing import Any

import claim
import style
from claim import number

MARK = {claim.HOLDS: "holds", claim.FAILS: "fails", claim.OPEN: "open", claim.SMOKE: "open"}
TITLE = "What the literature says of BatchNorm, measured again"
ROOM = 18  # per cent of a number line that a number takes, on a phone
SCRIPT = """
const root = document.documentElement, button = document.querySelector("button");
const dark = matchMedia("(prefers-color-scheme: dark)");
const show = theme => {
  root.dataset.theme = theme;
  button.title = button.ariaLabel = theme === "dark" ? "Light colours" : "Dark colours";
};
show(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => show(dark.matches ? "dark" : "light"));
button.addEventListener("click", () => show(root.dataset.theme === "dark" ? "light" : "dark"));
"""


def page(results: dict[str, Any]) -> str:
    """The whole page, from what results.json holds."""
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; img-src data:"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{TITLE}</title>\n<style>\n{_css()}</style>\n</head>\n<body>",
            _header(results),
            "<main>",
            _summary(results),
            *(_section(entry, results) for entry in results["claims"]),
            "</main>",
            _footer(results),
            f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _css() -> str:
    text = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = (" ".join(f"--{name}: {colour};" for name, colour in style.colours(d)) for d in (False, True))
    return text.replace("LIGHT", light).replace("DARK", dark)


def _header(results: dict[str, Any]) -> str:
    findings = [f for entry in results["claims"] for f in entry.get("findings", {}).values()]
    counts = {v: sum(f["verdict"] == v for f in findings) for v in MARK}
    if results["verdicts"]:
        says = (
            f"Of {len(findings)} claims, each with a criterion that was fixed before the first run (or says that it was not), "
            f"{counts[claim.HOLDS]} hold here, {counts[claim.FAILS]} do not, and {counts[claim.OPEN]} cannot be told."
        )
    else:
        says = "This was a run too small for verdicts: it shows that the experiments run, and finds nothing."
    if not results["complete"]:
        says += " It is not finished: what is missing says so."
    return (
        f'<header><div class="top"><h1>{TITLE}</h1><button type="button" aria-label="Dark colours">◐</button></div>\n'
        f"<p>{says} “Here” is MNIST, {results['data']['images']:,} images, and networks small enough to train in seconds: "
        "a claim that does not hold here may hold elsewhere.</p></header>"
    )


def _verdict(verdict: str) -> str:
    return f'<span class="verdict {MARK[verdict]}">{verdict}</span>'


def _summary(results: dict[str, Any]) -> str:
    rows = []
    for entry in results["claims"]:
        found = "".join(
            f"<li><span>{escape(f['criterion']['claim'])}</span>{_verdict(f['verdict'])}</li>"
            for f in entry.get("findings", {}).values()
        )
        rows.append(
            f'<li><a href="#{entry["name"]}">{escape(entry["question"])}</a><ul>{found or "<li>not finished</li>"}</ul></li>'
        )
    return f'<ul class="summary">{"".join(rows)}</ul>'


def _section(entry: dict[str, Any], results: dict[str, Any]) -> str:
    parts = [
        f'<section id="{entry["name"]}">\n<h2>{escape(entry["question"])}</h2>',
        f'<p class="muted">{escape(entry["source"])}</p>',
    ]
    if entry["complete"]:
        parts += [_figure(entry), *map(_finding, entry["findings"].values())]
        parts += ["<h3>To judge it</h3><ul>", *(f"<li>{escape(remark)}</li>" for remark in entry["remarks"]), "</ul>"]
    else:
        parts += ["<p>Not finished.</p>"]
    command = f"python examples/claims/run.py --data full --only {entry['name']}"
    facts = {
        "Set-up": escape(entry["setup"]),
        "Seeds": ", ".join(map(str, entry["seeds"])) or "none: it is exact",
        "Time": f"{_minutes(entry['seconds'])} of one core, {len(entry['records'])} trials",
        "Commit": ", ".join(f"<code>{escape(commit)}</code>" for commit in entry["commits"]),
        "Repeat it": f"<code>{command}</code>",
    }
    parts.append(
        '<dl class="facts small">' + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in facts.items()) + "</dl></section>"
    )
    return "\n".join(parts)


def _minutes(seconds: float) -> str:
    return f"{number(seconds)} s" if seconds < 60 else f"{number(seconds / 60)} minutes"


def _figure(entry: dict[str, Any]) -> str:
    module, done = importlib.import_module(entry["name"]), trials_of(entry)
    pictures = [
        style.svg(lambda canvas: module.draw(done, canvas), w, f"{entry['name']}-{w:g}") for w in (style.WIDE, style.NARROW)
    ]
    return f"<figure><figcaption>{escape(entry['headline'])}</figcaption>{''.join(pictures)}</figure>"


def trials_of(entry: dict[str, Any]) -> claim.Results:
    return claim.Results(claim.Record(**record) for record in entry["records"])


def _finding(finding: dict[str, Any]) -> str:
    criterion, unit = finding["criterion"], finding["criterion"]["unit"] and " " + finding["criterion"]["unit"]
    facts = {
        "Statistic": escape(criterion["statistic"]),
        "Measured": escape(
            f"{'at least ' * finding['at_least']}{number(finding['mean'])}{unit}{' (geometric mean)' * criterion['ratio']}"
        ),
        "95 % interval": "none"
        if finding["interval"] is None
        else escape(" to ".join(map(number, finding["interval"])) + unit),
        "Each seed": escape(", ".join(map(number, finding["values"]))),
        "Criterion": escape(finding["criterion_in_words"]),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return (
        f'<div class="finding"><h3>{escape(criterion["claim"])}{_verdict(finding["verdict"])}</h3>{_line(finding)}'
        f'<dl class="facts small">{listed}</dl></div>'
    )


def _line(finding: dict[str, Any]) -> str:
    """A number line: where the claim holds as a band, the interval as a bar, each seed as a dot."""
    criterion, values = finding["criterion"], finding["values"]
    by_interval = finding["interval"] is not None and criterion["rule"] == "interval"
    bounds = [b for b in (criterion["low"], criterion["high"]) if b is not None]
    shown = [*values, *bounds, *(finding["interval"] if by_interval else [])]
    scale = math.log10 if criterion["ratio"] and min(shown) > 0 else float
    low, high = min(map(scale, shown)), max(map(scale, shown))
    margin = 0.1 * (high - low) or 0.5

    def at(value: float) -> float:  # per cent of the line
        return 100 * (scale(value) - low + margin) / (high - low + 2 * margin)

    left = 0 if criterion["low"] is None else at(criterion["low"])
    right = 100 if criterion["high"] is None else at(criterion["high"])
    drawn = [f'<i class="band" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>']
    if by_interval:
        a, b = map(at, finding["interval"])
        drawn.append(f'<i class="bar" style="left:{a:.2f}%;width:{b - a:.2f}%"></i>')
    drawn += [f'<i class="seed" style="left:{at(v):.2f}%"></i>' for v in values]
    named: list[float] = []
    for value in [*bounds, min(values), max(values)]:  # what decides first; then what there is room for
        if all(abs(at(value) - at(other)) > ROOM for other in named):
            named.append(value)
            drawn.append(f'<b style="left:{min(max(at(value), 9), 91):.2f}%">{number(value)}</b>')
    label = f"{claim.measured(finding)}; criterion: {finding['criterion_in_words']}"
    return f'<div class="line" role="img" aria-label="{escape(label)}">{"".join(drawn)}</div>'


def _footer(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    seconds = sum(entry["seconds"] for entry in results["claims"])
    return (
        '<footer class="small muted"><h3>How to read a verdict</h3>'
        "<p>Each criterion was written before the first run, unless it says otherwise. Arms are paired: the same seed gives "
        "the same initial weights and the same batches. A claim “holds here” if the whole 95 % interval over seeds (or every "
        "seed, where the criterion says so) is where the criterion says, “does not hold here” if all of it is elsewhere, and "
        "is “inconclusive here” otherwise. Learning rates were chosen on images held out for that. Runs that diverged count as "
        "failures. In the lines above, the green band is where the claim holds, the bar the interval, each dot a seed.</p>"
        f"<p>{_minutes(seconds)} of one core in all, on {results['workers']} processes, {escape(results['device'])}. "
        f"{escape(versions)}. Training images: SHA-256 <code>{results['data']['sha256'][:16]}</code>.</p></footer>"
    )
