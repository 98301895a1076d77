"""What the literature says of BatchNorm, measured again: every claim with its criterion, its figures and a verdict.

    python examples/claims/run.py --quick                 # do they run at all? no verdicts; under five minutes on two cores
    python examples/claims/run.py --data full             # all 60,000 images (a download), verdicts; about an hour
    python examples/claims/run.py --data DIR --only depth # one claim, on the original files of MNIST in a folder

Writes DIR/report.html, a page to read, and DIR/results.json, from which every number on it comes. A finished trial is kept: an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import claim  # noqa: E402
import training  # noqa: E402
from ranks import ends_all  # noqa: E402
from workers import Workers, available, ignore_interrupts, interrupt, interrupts  # noqa: E402

import tinygrad_bn as tg  # noqa: E402

CLAIMS = [  # in the order of the page
    "sigmoid_mnist",
    "learning_rates",
    "scale_invariance",
    "depth",
    "resnet_without_batchnorm",
    "batchmates",
    "first_step",
    "noisy_batchnorm",
    "train_vs_eval",
    "batch_renorm",
    "only_gamma_beta",
    "landscape",
    "small_batches",
]
FULL = 60_000  # images


def module_of(name: str) -> Any:
    return importlib.import_module(name)


# ----- trials, kept in one file a claim


def kept(path: Path) -> claim.Results:
    """The trials finished so far; a line torn by a crash is left out."""
    found = claim.Results()
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(claim.Record(**json.loads(line)))
            except (json.JSONDecodeError, TypeError):
                continue
    return found


def keep(path: Path, record: claim.Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(record._asdict(), allow_nan=False))  # first: what a crash tore stays a line of its own


def rounded(value: Any) -> Any:
    """What JSON can hold, with six digits of each number."""
    if isinstance(value, dict):
        return {str(name): rounded(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if hasattr(value, "tolist"):
        return rounded(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_trial(task: tuple[str, claim.Trial], data: training.Data) -> tuple[dict[str, Any], float]:
    name, trial = task
    start = time.perf_counter()
    result = module_of(name).run(trial, data)
    return rounded(result), round(time.perf_counter() - start, 2)


def run_all(names: list[str], setup: claim.Setup, workers: int, folder: Path) -> tuple[dict[str, claim.Results], bool]:
    """The results of each claim, and whether somebody interrupted. An error in a trial ends all, and is raised here."""
    from tqdm import tqdm

    done = {name: kept(folder / f"{name}.jsonl") for name in names}
    commit = commit_here()
    waiting: dict[Future, tuple[str, claim.Trial]] = {}
    try:
        with Workers(workers, training.load, setup) as pool, tqdm(unit="trial", dynamic_ncols=True) as bar:

            def submit(name: str) -> None:
                for trial in done[name].missing(module_of(name).trials(setup, done[name])):
                    waiting[pool.submit(run_trial, (name, trial))] = name, trial
                bar.total = bar.n + len(waiting)

            for name in names:
                submit(name)
            while waiting:
                bar.set_description(next(iter(waiting.values()))[0])
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    name, trial = waiting.pop(future)
                    try:
                        result, seconds = future.result()
                    except Exception as error:
                        error.add_note(f"in {name}, trial {trial}")
                        raise
                    record = claim.Record(trial, result, seconds, commit)
                    keep(folder / f"{name}.jsonl", record)
                    done[name].append(record)
                    bar.update()
                    if all(other != name for other, _ in waiting.values()):
                        submit(name)  # what it asks for next, knowing these
        return done, False
    except KeyboardInterrupt:
        return done, True


def commit_here() -> str:
    """The commit of this folder, marked if what runs differs from it; without git, the version."""
    try:
        git = ["git", "-C", str(HERE)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = [*git, "status", "--porcelain", "--", str(HERE), str(HERE.parent.parent / "tinygrad_bn")]
        return commit + " with changes" * bool(
            subprocess.run(changed, capture_output=True, text=True, check=True).stdout.strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return f"version {version('tinygrad_bn')}"


# ----- what came of it


def described(name: str, setup: claim.Setup, done: claim.Results, verdicts: bool) -> dict[str, Any]:
    """A claim as it stands in results.json."""
    module = module_of(name)
    entry = {
        "name": name,
        **{field: getattr(module, field.upper()) for field in ("question", "source", "setup")},
        "seconds": round(sum(r.seconds for r in done), 1),
        "seeds": sorted({r.trial["seed"] for r in done if "seed" in r.trial}),
        "commits": sorted({r.commit for r in done}),
        "complete": bool(done) and not list(done.missing(module.trials(setup, done))),
        "records": [{"trial": r.trial, "result": r.result, "seconds": r.seconds, "commit": r.commit} for r in done],
    }
    if entry["complete"]:
        findings = {key: finding.as_json() for key, finding in module.findings(done).items()}
        if not verdicts:
            findings = {key: {**finding, "verdict": claim.SMOKE} for key, finding in findings.items()}
        entry.update(findings=rounded(findings), headline=module.headline(done), remarks=module.remarks(done))
    return entry


def in_words(entry: dict[str, Any]) -> str:
    """A claim for the terminal."""
    lines = [f"\n{entry['name']}: {entry['question']}", f"  SOURCE     {entry['source']}", f"  SETUP      {entry['setup']}"]
    if not entry["complete"]:
        return "\n".join([*lines, "  not finished"])
    for finding in entry["findings"].values():
        lines += [
            f"  CLAIM      {finding['criterion']['claim']}",
            f"  MEASURED   {finding['criterion']['statistic']}: {claim.measured(finding)}",
            f"  CRITERION  {finding['criterion_in_words']}",
            f"  VERDICT    {finding['verdict']}",
        ]
    return "\n".join([*lines, f"  TIME       {entry['seconds']:.0f} s of one core"])


def version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return of(package)
    except PackageNotFoundError:
        return "not installed"


def as_json(results: dict[str, Any]) -> str:
    """Strict JSON, one trial a line."""
    text = json.dumps(
        {**results, "claims": [{**entry, "records": []} for entry in results["claims"]]}, indent=1, allow_nan=False
    )
    for entry in results["claims"]:
        records = ",\n".join("    " + json.dumps(record, allow_nan=False) for record in entry["records"])
        text = text.replace('"records": []', f'"records": [\n{records}\n   ]', 1)
    return text + "\n"


def write(text: str, path: Path) -> Path:
    """Under a temporary name first: nobody ever finds half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


# ----- the command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Whatever can be refused is refused here, before any work."""
    p = argparse.ArgumentParser(
        description="Measure the literature's claims about BatchNorm again, and write a page of verdicts."
    )
    p.add_argument("--only", nargs="+", choices=CLAIMS, metavar="CLAIM", help=f"some of: {', '.join(CLAIMS)}")
    p.add_argument("--quick", action="store_true", help="a smoke test without verdicts: few images, few steps, one seed")
    p.add_argument("--data", default="embedded", help="embedded (10,000 images; no verdicts), full (60,000), or a folder")
    p.add_argument("--seeds", type=int, metavar="N", help="how many seeds: 0 to N - 1 (default: 5)")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: the usable cores)")
    device = os.environ.get("TINYGRAD_BN_DEVICE", "cpu")
    p.add_argument("--device", default=device, help="cpu or cuda (default: $TINYGRAD_BN_DEVICE, or cpu)")
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: results/claims, or results/claims_quick)"
    )
    a = p.parse_args(argv)
    for library in ("matplotlib", "tqdm", "scipy"):
        if find_spec(library) is None:
            p.error(f"{library} is not installed: pip install 'tinygrad_bn[examples]'")
    for name, value in (("--seeds", a.seeds), ("--workers", a.workers)):
        if value is not None and value < 1:
            p.error(f"argument {name}: expected a positive integer, got {value}")
    a.only = a.only or CLAIMS
    a.seeds = list(range(a.seeds or (1 if a.quick else 5)))
    a.workers = a.workers or available()
    try:
        tg.zeros(1, device=a.device)
    except (RuntimeError, ValueError) as error:
        p.error(f"argument --device: {error}")
    try:
        (x, _), (x_test, _) = tg.datasets.mnist(a.data)
    except (ValueError, OSError, ImportError) as error:
        p.error(f"argument --data: {error}")
    if x.shape[1:] != (1, 28, 28):
        p.error(f"argument --data: expected images of 28 x 28, got {x.shape[2]} x {x.shape[3]}")
    a.described = {
        "images": len(x),
        "test_images": len(x_test),
        "sha256": hashlib.sha256(x.tobytes()).hexdigest(),
        "quick": a.quick,
    }
    a.verdicts = len(x) >= FULL and not a.quick
    a.out = a.out or Path("results", "claims_quick" if a.quick else "claims")
    before = a.out / "trials" / "setup.json"
    try:
        before.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=before.parent).close()
        other = json.loads(before.read_text()) if before.exists() else a.described
    except (OSError, json.JSONDecodeError) as error:
        p.error(f"argument --out: cannot use {a.out}: {error}")
    if other != a.described:
        p.error(f"argument --out: {a.out} holds trials of another set-up: {other}; name another folder")
    write(json.dumps(a.described), before)
    return a


def main(argv: list[str] | None = None) -> int:
    a = parse(argv)
    setup = claim.Setup(a.data, a.device, a.seeds, a.quick)
    with interrupts(interrupt):
        start = time.perf_counter()
        done, interrupted = run_all(a.only, setup, a.workers, a.out / "trials")
        ignore_interrupts()
        entries = [described(name, setup, done[name], a.verdicts) for name in a.only]
        results = {
            "data": a.described,
            "verdicts": a.verdicts,
            "complete": all(entry["complete"] for entry in entries),
            "device": a.device,
            "workers": a.workers,
            "versions": {p: version(p) for p in ("tinygrad_bn", "numpy", "numba", "scipy")},
            "claims": entries,
        }
        print("\n".join(map(in_words, entries)))
        from page import page  # not at the top: the workers import this file, and draw nothing

        written = [write(as_json(results), a.out / "results.json"), write(page(results), a.out / "report.html")]
        print(f"\nWritten in {time.perf_counter() - start:.0f} s: {', '.join(map(str, written))}")
    return 130 if interrupted else 0


if __name__ == "__main__":
    with ends_all():
        sys.exit(main())
