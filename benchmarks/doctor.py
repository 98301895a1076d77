"""How well diagnose() and watch() find planted bugs: precision and recall by code, on random models."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from doctor_models import BUGS, Case, build, codes

from tinygrad_bn.batchnorm import Report, diagnose

BY_NATURE_A_NOTE = {"bias_before_batchnorm"}  # a fact about the model that harms nobody: counted when it is reported at all


def reports(case: Case) -> list[Report]:
    """What the doctor says: by watching if the bug is one of the program around the model, else by running; healthy: both."""
    found = [] if case.seen is None else [case.seen.report()]
    if case.code is None or case.seen is None:
        found.append(diagnose(case.model, case.train_batches, case.eval_batches, optimizer=case.optimizer))
    return found


def told(found: list[Report]) -> list[str]:
    """The codes of what is wrong, worst first."""
    return [f.code for r in found for f in r.findings if f.severity != "note" or f.code in BY_NATURE_A_NOTE]


def measure(count: int, first_seed: int, verbose: bool = False) -> dict:
    planted, hit, first, extra, wrong = Counter(), Counter(), Counter(), Counter(), []
    healthy_clean = 0
    start = time.perf_counter()
    for i, code in enumerate(codes(count)):
        case = build(first_seed + i, code)
        found = told(reports(case))
        planted[code or "healthy"] += 1
        healthy_clean += code is None and not found
        hit[code] += code in found
        first[code] += bool(found) and found[0] == code
        extra.update(set(found) - {code})
        if (found[:1] or [None])[0] != code or len(found) > 1:
            wrong.append({"case": str(case), "found": found})
            if verbose:
                print(case, "->", found, flush=True)
    rows = {}
    for code in BUGS:
        reported = hit[code] + extra[code]
        rows[code] = {
            "planted": planted[code], "found": hit[code], "first": first[code], "elsewhere": extra[code],
            "recall": hit[code] / planted[code] if planted[code] else None,
            "precision": hit[code] / reported if reported else None,
        }  # fmt: skip
    seconds = time.perf_counter() - start
    return {"models": count, "first_seed": first_seed, "healthy": planted["healthy"], "healthy_clean": healthy_clean,
            "seconds": round(seconds), "codes": rows, "not_as_planted": wrong}  # fmt: skip


def table(result: dict) -> str:
    lines = ["| code | planted | found | first | told elsewhere | precision | recall |", "| --- |" + " ---: |" * 6]
    for code, r in result["codes"].items():
        share = ["-" if r[k] is None else f"{r[k]:.2f}" for k in ("precision", "recall")]
        lines.append(
            f"| `{code}` | {r['planted']} | {r['found']} | {r['first']} | {r['elsewhere']} | {share[0]} | {share[1]} |"
        )
    buggy, found, first = (sum(r[k] for r in result["codes"].values()) for k in ("planted", "found", "first"))
    said = (
        f"{result['healthy_clean']} of {result['healthy']} healthy models have nothing above a note; of {buggy} planted bugs "
    )
    lines += ["", f"{said}{found} are found, {first} as the first finding."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200, help="how many models (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write everything, with each model that was not told as planted")
    parser.add_argument("--verbose", action="store_true", help="say at once what was not told as planted")
    given = parser.parse_args()
    result = measure(given.models, given.seed, given.verbose)
    print(table(result))
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
