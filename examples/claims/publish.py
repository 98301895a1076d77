"""Put the results of a full run where readers find them: docs/, and the table of verdicts in the README.

python examples/claims/publish.py results/claims
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import claim
import page
import run
import style

ROOT = Path(__file__).resolve().parents[2]
PICTURES = "learning_rates", "sigmoid_mnist", "batchmates"
START, END = "<!-- verdicts: written by examples/claims/publish.py -->", "<!-- end of the verdicts -->"


def table(results: dict[str, Any]) -> str:
    """The verdicts in Markdown, in the order of the page."""
    rows = ["| claim | measured | verdict |", "| --- | --- | --- |"]
    for entry in results["claims"]:
        rows.append(f"| *{entry['question']}* | | |")
        for finding in entry["findings"].values():
            criterion = finding["criterion"]
            measured = (
                "at least " * finding["at_least"]
                + claim.number(finding["mean"])
                + (criterion["unit"] and " " + criterion["unit"])
            )
            rows.append(f"| {criterion['claim']} | {measured}, criterion {bounds(criterion)} | {finding['verdict']} |")
    return "\n".join(rows)


def bounds(criterion: dict[str, Any]) -> str:
    low, high = criterion["low"], criterion["high"]
    parts = [f"≥ {claim.number(low)}"] * (low is not None) + [f"≤ {claim.number(high)}"] * (high is not None)
    return " and ".join(parts)


def conditions(entry: dict[str, Any], results: dict[str, Any]) -> str:
    """What stands under the title of a picture."""
    words = entry["setup"].split(";")[0].split(". ")[0]
    return f"{words}; MNIST, {results['data']['images']:,} images, {len(entry['seeds'])} seeds."


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        sys.exit(str(__doc__))
    results = json.loads((Path(arguments[0]) / "results.json").read_text(encoding="utf-8"))
    if not (results["complete"] and results["verdicts"] and [entry["name"] for entry in results["claims"]] == run.CLAIMS):
        sys.exit(f"expected a complete run of all claims with verdicts, got {arguments[0]}")
    docs = ROOT / "docs"
    run.write(run.as_json(results), docs / "claims.json")
    run.write(page.page(results), docs / "claims.html")
    for entry in results["claims"]:
        if entry["name"] in PICTURES:
            module, done = run.module_of(entry["name"]), page.trials_of(entry)
            path = docs / f"claims_{entry['name']}.png"
            style.save_png(lambda c, m=module, d=done: m.draw(d, c), entry["headline"], conditions(entry, results), path)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    between = f"{START}\n\n{table(results)}\n\n{END}"
    run.write(re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: between, text, flags=re.S), readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
