"""A report as HTML: one self-contained page, and a fragment for notebooks."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..graph import page as shell
from .pictures import columns, cost_picture, layer_picture
from .report import Finding, Report, evidence_text, plain

_SAYS = {"error": "✕ error", "warning": "△ warning", "note": "○ note"}


def page(report: Report) -> str:
    """The whole document."""
    title = f"BatchNorm doctor: {report.headline()}"
    return shell.html(title, f"<main>{_body(report)}</main>", css=text("report.css"), script=text("report.js"), data={
        "rows": plain(report.layers), "found": [f.code for f in report.findings]})  # fmt: skip


def fragment(report: Report) -> str:
    """The same without script, for a notebook's cell."""
    return f'<style>{text("report.css")}</style><div class="doctor"><h2>{escape(report.headline())}</h2>{_body(report)}</div>'


def text(name: str) -> str:
    """The text of a file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _body(report: Report) -> str:
    parts = ['<section class="doctor" aria-labelledby="found"><h2 id="found">What was found, worst first</h2>']
    if report.cost is not None:
        of = f"{report.cost.examples:,} examples of {report.cost.on}"
        worst = "longest" if report.cost.evaluation.accuracy is None else "shortest"  # the bars are losses, or accuracies
        parts.append(f"<figure>{cost_picture(report.cost)}<figcaption>The same {of}, normalised in three ways. If the second "
                     f"bar is the {worst}, the running statistics are to blame.</figcaption></figure>")  # fmt: skip
    if report.trouble:
        parts.append(f'<p class="trouble"><strong>Not examined:</strong> {escape(report.trouble)}</p>')
    if not report.findings:
        parts.append("<p>Nothing was found. Below are the numbers by which that was judged.</p>")
    parts += [f'<ol class="findings">{"".join(map(_finding, report.findings))}</ol>' if report.findings else "", "</section>"]
    if report.layers:
        parts.append('<section class="doctor" aria-labelledby="layers"><h2 id="layers">Layer by layer</h2>'
                     "<p>Each diamond is a channel. On the dashed line the running statistic is that of the training "
                     "batches; a cross marks a channel more than a quarter of a standard deviation (or of the logarithm of "
                     "the variance) off.</p>"
                     '<div class="layers">')  # fmt: skip
        for i, row in enumerate(report.layers):
            kind = escape(f"{row['type']}({row['channels']})") + (", frozen" if row["frozen"] else "")
            named = columns([row])
            numbers = "".join(f"<div><dt>{name}</dt><dd>{cells[0]}</dd></div>" for name, cells in named if cells[0] != "–")
            parts.append(f'<figure id="layer-{i}"><figcaption><b>{escape(row["layer"] or "(model)")}</b> {kind}</figcaption>'
                         f"{layer_picture(row)}<dl>{numbers}</dl></figure>")  # fmt: skip
        parts.append("</div></section>")
    return "".join(parts)


def _finding(f: Finding) -> str:
    where = f" at <b>{escape(f.layer)}</b>" if f.layer else ""
    evidence = "".join(f"<li>{escape(line)}</li>" for line in evidence_text(f.evidence))
    return (
        f'<li class="finding {f.severity}" tabindex="-1"><h3><span class="severity">{_SAYS[f.severity]}</span> '
        f"<code>{f.code}</code>{where}</h3><p>{escape(f.why)}</p><details><summary>Evidence</summary><ul>{evidence}</ul></details>"
        f'<p class="mend">Mend:</p><pre><code>{escape(f.mend)}</code></pre></li>'
    )
