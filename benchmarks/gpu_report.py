"""The tests and the timings that need a GPU, in one report.

    python benchmarks/gpu_report.py --out DIR [--rounds N] [--seconds S] [--skip-suite]

Runs ``pytest -m gpu`` and ``compare.py --device cuda`` (PyTorch must be installed with CUDA for the ratios), and writes
DIR/gpu_report.md and DIR/gpu_report.json: what ran on which GPU, with which versions, at which commit, and how it went. Without
a GPU it says so, writes nothing, and ends with status 1; a test that fails is in the report, and the status is 1 too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import common
import compare

ROOT = Path(__file__).resolve().parent.parent


class _Tee(io.StringIO):
    """Keeps what is printed, and lets it be seen."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)
        return super().write(text)


def commit() -> str:
    """The commit that the files are of, and whether they were changed since."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def gpu() -> dict[str, str]:
    """The GPU, and the versions of what drives it."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)

    def version(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}"

    return {
        "gpu": properties["name"].decode(),
        "memory": f"{properties['totalGlobalMem'] / 2**30:.0f} GiB",
        "compute capability": f"{properties['major']}.{properties['minor']}",
        "CUDA of the driver": version(cupy.cuda.runtime.driverGetVersion()),
        "CUDA runtime": version(cupy.cuda.runtime.runtimeGetVersion()),
    }


def run_suite() -> dict[str, Any]:
    """How the tests went that need a GPU: how many of each outcome, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "suite.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=--strict-markers", f"--junitxml={file}"]
        subprocess.run(command, cwd=ROOT, check=False)
        return outcome(file.read_text()) if file.exists() else {"failed": ["pytest itself"], "counts": {}}


def outcome(junit: str) -> dict[str, Any]:
    """What pytest wrote of a run, in short."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed = []
    reasons: dict[str, int] = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        broken = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if broken:
            counts["failed"] += 1
            failed.append(f"{case.get('classname')}::{case.get('name')}: {(broken[0].get('message') or '').splitlines()[:1]}")
        elif skipped is not None:
            counts["skipped"] += 1
            reason = skipped.get("message") or ""
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            counts["passed"] += 1
    return {"counts": counts, "failed": failed, "skipped because": reasons}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["# On a GPU", ""]
    facts = {"commit": report["commit"], **report["gpu"], **report["measured_on"]}
    lines += ["| what | is |", "| :-- | :-- |", *(f"| {what} | {value} |" for what, value in facts.items()), ""]
    lines += ["## What serves each kernel", "", *(f"* {reason}" for reason in report["reasons"])]
    served: dict[str, list[str]] = {}
    for name, (_, library) in report["kernels"].items():
        served.setdefault(library, []).append(name)
    lines += [*(f"* {library}: {', '.join(names)}" for library, names in served.items()), "", "## Tests", ""]
    suite = report["suite"]
    if suite is None:
        lines.append("Not run.")
    else:
        lines.append(", ".join(f"{count} {what}" for what, count in suite["counts"].items()) + ", of `pytest -m gpu`.")
        lines += ["", *(f"* failed: {name}" for name in suite["failed"])]
        lines += [f"* {count} skipped: {reason}" for reason, count in suite.get("skipped because", {}).items()]
    return "\n".join([*lines, "", "## Timings", "", report["table"].strip(), ""])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the report is written")
    p.add_argument("--rounds", type=common.positive(int), default=3, metavar="N", help="turns of each (default: 3)")
    p.add_argument("--seconds", type=common.positive(float), default=1.0, metavar="S", help="of a turn (default: 1)")
    p.add_argument("--skip-suite", action="store_true", help="only the timings")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    common.need_package()
    import tinygrad_bn as tg
    from tinygrad_bn.backend.report import report as what_serves

    try:
        tg.zeros(1, device="cuda")
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    kernels, reasons = what_serves()
    report: dict[str, Any] = {"commit": commit(), "gpu": gpu(), "measured_on": common.measured_on()}
    report |= {"kernels": kernels, "reasons": reasons, "suite": None if args.skip_suite else run_suite()}
    names = [name for name, workload in compare.WORKLOADS.items() if workload.device == "cuda"]
    report |= {"workloads": {}, "table": "Not finished."}
    write(report, args.out)
    with contextlib.redirect_stdout(_Tee()) as said:

        def finished(workloads: dict[str, dict]) -> None:
            report.update(workloads=workloads, table=said.getvalue())
            write(report, args.out)

        compare.compare(names, peers(), args.rounds, args.seconds, markdown=True, finished=finished)
    failed = [name for name, workload in report["workloads"].items() if workload["failed"]]
    return int(bool(failed or (report["suite"] and report["suite"]["failed"])))


def write(report: dict[str, Any], folder: Path) -> None:
    """What is known so far: a run that is cut short leaves what it had found."""
    (folder / "gpu_report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "gpu_report.md").write_text(markdown(report))


def peers() -> list[str]:
    """PyTorch, if it is installed with CUDA."""
    if compare.why_absent("torch") is None:
        try:
            if common.fresh_process(["-c", "import torch; print(torch.cuda.is_available())"]).strip() == "True":
                return ["torch"]
        except RuntimeError as error:
            print(error, file=sys.stderr)
    return []


if __name__ == "__main__":
    sys.exit(main())
