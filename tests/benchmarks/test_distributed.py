"""The cost model is the formulas that it says it is, and the benchmark runs and writes down what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mpiexec
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import cost_model  # noqa: E402 (benchmarks/ is no package)
import distributed_report  # noqa: E402
from cost_model import Model, Network  # noqa: E402

NETWORK = Network(latency=1e-5, per_byte=1e-9)
SIZES = [8, 512, 1 << 18, 1 << 26]


@pytest.mark.parametrize(
    "exchange, ranks, rounds, bytes_sent",
    [
        (cost_model.recursive_doubling, 8, 3, 3000),
        (cost_model.recursive_doubling, 9, 4, 4000),
        (cost_model.halving_and_doubling, 8, 6, 1750),
        (cost_model.ring, 8, 14, 1750),
        (cost_model.all_gather, 8, 3, 7000),
    ],
)
def test_exchanges_are_rounds_and_bytes(exchange, ranks, rounds, bytes_sent):
    assert exchange(NETWORK, ranks, 1000) == pytest.approx(rounds * 1e-5 + bytes_sent * 1e-9)


def test_a_step_waits_for_what_backward_does_not_hide_and_for_sync_batch_norm():
    model = Model(compute=0.1, gradient_bytes=1e6, hideable=0.0004, channels=[4, 16])
    exchange, _ = cost_model.all_reduce(NETWORK, 8, 1e6)
    assert cost_model.step(model, NETWORK, 1, sync=True) == 0.1
    assert cost_model.step(model, NETWORK, 8, sync=False) == pytest.approx(0.1 + exchange - 0.0004)
    assert cost_model.step(model._replace(hideable=1.0), NETWORK, 8, sync=False) == 0.1
    layers = sum(
        cost_model.all_gather(NETWORK, 8, 8 * (2 * c + 1)) + cost_model.halving_and_doubling(NETWORK, 8, 16 * c)
        for c in (4, 16)
    )
    assert cost_model.step(model._replace(hideable=1.0), NETWORK, 8, sync=True) == pytest.approx(0.1 + layers)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_fit_finds_latency_and_bandwidth(ranks):
    network, error = cost_model.fit(SIZES, [cost_model.halving_and_doubling(NETWORK, ranks, n) for n in SIZES], ranks)
    np.testing.assert_allclose(network, NETWORK)
    assert error < 1e-9
    network, error = cost_model.fit(SIZES, [1e-5, 1e-5, 1e-5, 0.9e-5], ranks)  # as if more bytes took less time
    assert network.latency > 0 and network.per_byte == 0 and error > 0


def results():
    rows = {
        name: {"images_per_s": 1000.0 * r, "step_ms": 64.0, "ratio": r, "ratios": [r]}
        for name, r in (("1 rank", 1.0), ("2 ranks, BatchNorm", 1.9), ("2 ranks, SyncBatchNorm", 1.5))
    }
    part = {"gradient_bytes": 2e6, "exchange_s": 1e-3, "shown_s": 2e-4, "without_s": 0.06, "share": 0.8, "shares": [0.7, 0.9]}
    times = {
        "ranks": 2,
        "sizes": SIZES,
        "all_reduce_s": [1e-5 + n * 1e-9 for n in SIZES],
        "all_gather_s": [1e-5] * 3,
        "steps_s": {"batch": 0.07, "sync": 0.08},
    }
    return {
        "measured_on": {"date": "2026-11-28", "processor": "a processor", "cores": "2"}, "others_cores": [0.5],
        "throughput": {"workload": "cnn-bn 64", "at_least": 1.6, "rows": rows}, "hidden": {"batch": part, "sync": part},
        "exchanges": {"shared memory, 2 ranks": times},
        "models": {"cnn": {"step_s": 0.06, "hideable_s": 0.03, "gradient_bytes": 2e6, "channels": [32, 64]}},
    }  # fmt: skip


def test_the_report_says_what_does_not_hold_and_that_the_machine_was_not_quiet():
    text = distributed_report.text(results())
    lines = text.splitlines()
    assert "NOT QUIET" in lines[0]
    assert next(line for line in lines if line.startswith("2 ranks, BatchNorm")).endswith("yes")
    assert next(line for line in lines if line.startswith("2 ranks, SyncBatchNorm")).endswith("NO")
    assert "hides 80 % of the exchange (rounds: 70 to 90 %)" in text


def test_publishing_replaces_what_stands_between_the_marks_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "distributed.md"
    page.write_text(f"before\n{distributed_report.START}\nof old\n{distributed_report.END}\nafter\n")
    distributed_report.publish(results(), tmp_path)
    text = page.read_text()
    assert (
        text.startswith("before\n") and text.endswith("\nafter\n") and "of old" not in text and "| 2 ranks, BatchNorm" in text
    )
    assert (tmp_path / "distributed.png").read_bytes().startswith(b"\x89PNG")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected the line"):
        distributed_report.publish(results(), tmp_path)


@pytest.mark.skipif(mpiexec.MISSING is not None, reason=str(mpiexec.MISSING))
def test_it_measures(tmp_path):
    """Whether two ranks are fast enough on this machine is another question: status 1 says no."""
    script = ROOT / "benchmarks" / "distributed.py"
    arguments = ["--workload", "mlp-bn 60", "--rounds", "1", "--seconds", "0.1", "--json", str(tmp_path / "results.json")]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=mpiexec.environment())
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written["throughput"]["rows"]) == {"1 rank", "2 processes alone", "2 ranks, BatchNorm", "2 ranks, SyncBatchNorm"}
    assert all(row["images_per_s"] > 0 for row in written["throughput"]["rows"].values())
