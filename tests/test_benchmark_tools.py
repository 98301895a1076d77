"""The benchmark scripts work: at tiny sizes, with wrong arguments, and where a peer is missing. How fast is no test's business.

That both sides of a comparison do the same is tested in benchmarks/test_benchmarks.py.
"""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import tinygrad_bn as tg

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import common  # noqa: E402 (benchmarks/ is no package)
import compare  # noqa: E402
import footprint
import gpu_report  # noqa: E402
import workloads  # noqa: E402
from peers import with_jax, with_mygrad  # noqa: E402

WORKLOADS = workloads.WORKLOADS


def small(name):
    """The workload with a batch of 4, to be quick."""
    w = WORKLOADS[name]
    return w._replace(input=(4, *w.input[1:]))


@pytest.fixture
def cheap(monkeypatch):
    """Processes that a test starts compile nothing, which would take seconds where the cache is empty, and have one thread."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def hide(monkeypatch):
    """A function after which these libraries are not installed, so far as the benchmarks can see."""

    def hide(*libraries):
        found = common.installed
        monkeypatch.setattr(common, "installed", lambda name: name not in libraries and found(name))

    return hide


@pytest.fixture
def rates(monkeypatch):
    """A machine of known rates, which need not be measured: 1 GFLOP/s, 1 GB/s."""
    monkeypatch.setattr(compare, "machine_rates", lambda: (1e9, 1e9))


# ----- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "torch,chainer"], "expected some of torch, torch-channels-last, jax, mygrad, numpy-only, got 'chainer'"),
        (["--peers", "tinygrad_bn"], "got 'tinygrad_bn'"),
        (["--workload", "vgg"], "argument --workload: expected some of mlp-bn 60, "),
        (["--rounds", "0"], "expected a positive integer, got '0'"),
        (["--rounds", "2.5"], "expected a positive integer, got '2.5'"),
        (["--seconds", "-1"], "expected a positive number, got '-1'"),
        (["--seconds", "nan"], "expected a positive number, got 'nan'"),
        (["--json", "/no/such/folder/x.json"], "expected a file in a folder that exists"),
        (["--json", "/"], "expected a file in a folder that exists"),
    ],
)
def test_compare_refuses_before_it_measures(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        compare.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure", "speed"], "invalid choice: 'speed'"),
        (["--rounds", "many"], "expected a positive integer, got 'many'"),
        (["--json", "/no/such/folder/x.json"], "expected a file in a folder that exists"),
    ],
)
def test_footprint_refuses_before_it_measures(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        footprint.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("script", [compare, footprint])
def test_the_package_must_be_there(script, hide):
    hide("tinygrad_bn")
    with pytest.raises(SystemExit, match="tinygrad_bn cannot be imported: pip install"):
        script.main([])


def test_peers_are_taken_once_in_the_order_given():
    assert compare.parse(["--peers", "mygrad,torch,,mygrad"]).peers == ["mygrad", "torch"]
    assert compare.parse(["--peers", ""]).peers == []
    assert compare.parse([]).peers == compare.DEFAULT_PEERS
    assert all(name.startswith("cuda ") for name in compare.parse(["--device", "cuda"]).workload)
    assert not any(name.startswith("cuda ") for name in compare.parse([]).workload)
    with pytest.raises(SystemExit):
        compare.parse(["--device", "cuda", "--workload", "mlp-bn 60"])


# ----- who takes part


def test_peers_that_are_not_installed_are_left_out_with_the_reason(hide, cheap, rates, capsys, tmp_path):
    hide("torch", "jax", "mygrad", "numba")
    file = tmp_path / "figures.json"
    peers = "torch,torch-channels-last,jax,mygrad,numpy-only"
    short = ["--rounds", "1", "--seconds", "0.01", "--workload", "mlp-bn 60"]
    compare.main([*short, "--peers", peers, "--markdown", "--json", str(file)])
    out = capsys.readouterr().out
    assert "\ntorch is left out: torch is not installed\n" in out
    assert "\ntorch-channels-last is left out: torch is not installed\n" in out
    assert "\njax is left out: jax is not installed\n" in out
    assert "\nmygrad is left out: mygrad is not installed\n" in out
    assert "\nnumpy-only is left out: numba is not installed, so tinygrad_bn is that already\n" in out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == ["ms a step", "tinygrad_bn", "limit"]
    written = json.loads(file.read_text())
    assert written["measured_on"]["numpy"] == np.__version__
    assert list(written["workloads"]) == ["mlp-bn 60"]
    assert [len(t) for t in written["workloads"]["mlp-bn 60"]["turns_ms"].values()] == [1]


def test_numpy_only_runs_without_numba(cheap):
    if compare.why_absent("numpy-only"):
        pytest.skip("Numba is not installed")
    assert compare.turn_in_a_fresh_process("numpy-only", "mlp-bn 60", 0.01) > 0  # it raises if Numba was loaded


def test_a_peer_that_lacks_a_model_says_so(monkeypatch, rates, capsys):
    monkeypatch.setattr(compare, "turn_in_a_fresh_process", lambda *_: 2.0)
    result = compare.compare(["resnet20-bn 64", "max_pool2d f+b (NCHW input)"], ["torch", "mygrad"], 1, 1.0)
    out = capsys.readouterr().out
    assert "- means: mygrad has no implementation of resnet20" in out
    assert "- means: mygrad has no turn with NCHW input" in out
    assert "mygrad" not in result["resnet20-bn 64"]["turns_ms"]
    row = next(line for line in out.splitlines() if line.startswith("resnet20-bn 64"))
    assert row.split()[2:] == ["2.00", "2.00", "1.00", "0.80", "-", "-", f"{WORKLOADS['resnet20-bn 64'].flops() / 1e6:.2f}"]


def test_contestants_take_turns(monkeypatch, rates):
    order = []
    monkeypatch.setattr(compare, "turn_in_a_fresh_process", lambda peer, *_: order.append(peer) or 1.0)
    compare.compare(["mlp-bn 60"], ["torch", "jax"], 3, 1.0)
    assert order == ["tinygrad_bn", "torch", "jax"] * 3


def test_a_turn_that_fails_tells_who_and_why(monkeypatch, cheap):
    monkeypatch.setitem(compare.CONTESTANTS, "broken", compare.CONTESTANTS["tinygrad_bn"])  # the new process does not know it
    with pytest.raises(RuntimeError, match=r"(?s)broken failed on mlp-bn 60: .*KeyError: 'broken'"):
        compare.turn_in_a_fresh_process("broken", "mlp-bn 60", 0.01)


# ----- figures


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    turns = {"tinygrad_bn": [1.0, 30.0, 2.0], "torch": [2.0, 20.0, 8.0], "numpy-only": [4.0, 60.0, 24.0]}
    result = compare.summary("cnn-bn 64", turns, ["torch", "numpy-only"], (7.15e9, 1.0))
    assert result["median_ms"] == {"tinygrad_bn": 2.0, "torch": 8.0, "numpy-only": 24.0}
    assert result["ratio"] == {"tinygrad_bn / torch": 0.5, "numpy-only / torch": 3.0}  # of 0.5, 1.5, 0.25; of 2, 3, 3
    assert result["at_most"] == {"tinygrad_bn / torch": 0.75, "numpy-only / torch": 4.0}
    assert result["limit_ms"] == pytest.approx(1000, rel=0.01)
    titles = compare.header(["torch", "numpy-only"])
    assert titles[2:] == ["torch", "ratio", "at most", "numpy-only", "numpy-only / torch", "at most", "limit"]
    row = compare.cells("cnn-bn 64", result, ["torch", "numpy-only"])
    assert row[:-1] == ["cnn-bn 64", "2.00", "8.00", "0.50", "0.75", "24.00", "3.00", "4.00"]


def test_without_pytorch_numpy_only_is_compared_to_this_project():
    assert compare.pairs(["jax", "numpy-only"]) == [("tinygrad_bn", "jax"), ("tinygrad_bn", "numpy-only")]


def test_limits_are_of_what_there_is():
    for (a, b), limits in compare.AT_MOST.items():
        assert {a, b} <= set(compare.CONTESTANTS)
        assert set(limits) <= set(WORKLOADS)


def test_tables():
    plain = common.Table(["name", "a", "a long title"], ["x", "a longer name"], markdown=False)
    assert plain.head() == "name                    a  a long title"
    assert plain.line(["x", "1.00", "-"]) == "x                    1.00             -"
    marked = common.Table(["name", "a"], ["x"], markdown=True)
    assert marked.head() == "| name |          a |\n| :--- | ---------: |"
    assert marked.line(["x", "1.00"]) == "| x    |       1.00 |"


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        (footprint.Line("f", 45.0, 90.0, 0.5, ratio_at_most=0.9), ["45", "90", "0.50", "ratio 0.9", "yes"]),
        (footprint.Line("f", 95.5, 90.0, 1.0611, ratio_at_most=0.9), ["95.5", "90", "1.06", "ratio 0.9", "NO"]),
        (footprint.Line("f", 45.0, ratio_at_most=0.9), ["45", "-", "-", "ratio 0.9", "-"]),
        (footprint.Line("f", 12345.6, at_most=100), ["12346", "-", "-", "100", "NO"]),
        (footprint.Line("f", 0.0123, at_most=100), ["0.0123", "-", "-", "100", "yes"]),
        (footprint.Line("f", -0.0), ["0", "-", "-", "-", "-"]),
        (footprint.Line("f", None, at_most=20), ["-", "-", "-", "20", "-"]),
    ],
)
def test_lines_of_footprint(line, cells):
    assert line.cells() == ["f", *cells]


# ----- measurements


@pytest.mark.parametrize("name", footprint.MEASUREMENTS)
def test_a_measurement_runs_without_pytorch(name, hide, cheap, capsys):
    hide("torch")
    found = footprint.measure([name], footprint.QUICK, rounds=1)
    out = capsys.readouterr().out
    assert found["lines"]
    assert found["turns"] or (name == "compile" and not common.installed("numba"))
    for line in found["lines"]:
        assert line["ours"] is None or math.isfinite(line["ours"])
        assert line["figure"] in out
    assert ("torch is left out: torch is not installed" in out) == (name in ("memory", "faults", "rows"))


def test_compiling_is_left_out_without_numba(hide, capsys):
    hide("numba")
    (line,) = footprint.measure(["compile"], footprint.QUICK, rounds=1)["lines"]
    assert line["ours"] is None and line["holds"] is None
    assert "compile is left out: numba is not installed" in capsys.readouterr().out


def test_measurements_of_pytorch_run(torch):
    memory = footprint.child_memory("torch", footprint.QUICK)
    assert memory["peak"] > memory["growth"]
    assert footprint.child_rows("torch", footprint.QUICK) > 0
    assert footprint.child_faults("torch", footprint.QUICK, "mlp-bn 60") >= 0


def test_large_libraries_are_not_imported_with_the_package():
    assert footprint.imported_with_it() == []


def test_the_progress_bar_counts_every_turn(monkeypatch, hide):
    hide("torch")
    monkeypatch.setattr(common, "fresh_process", lambda *_: "{}")
    monkeypatch.setattr(
        footprint, "child", lambda name, *_, **__: {"compile": {"first": 1, "next": 1, "compiled": 0}}.get(name, 1)
    )
    turns = []
    bar = type("Bar", (common._NoBar,), {"update": lambda _: turns.append(1)})()
    sizes = footprint.QUICK
    names = ["faults", "import", "compile", "rows"]
    run = footprint.Run(sizes, 2, ["tinygrad_bn"], bar, {})
    monkeypatch.setattr(footprint, "median", lambda _: 1.0)
    for name in names:
        list(footprint.MEASUREMENTS[name](run))
    assert len(turns) == footprint.turns_of(names, sizes, 2, 1)


# ----- workloads


@pytest.mark.parametrize(("name", "channels_last"), [("max_pool2d f+b", True), ("max_pool2d f+b (NCHW input)", False)])
def test_a_layer_gets_the_layout_that_is_said(name, channels_last, monkeypatch):
    made = []
    monkeypatch.setattr(tg, "Tensor", lambda array, original=tg.Tensor: made.append(array) or original(array))
    workloads.ours(small(name))
    assert len(made) == 2  # the input, and the gradient of the output
    for array in made:
        assert array.ndim == 4
        assert array.transpose(0, 2, 3, 1).flags.c_contiguous == channels_last
        assert array.flags.c_contiguous != channels_last


def count(parameters) -> int:
    """How many numbers there are in nested lists and dicts of arrays."""
    if isinstance(parameters, dict):
        parameters = list(parameters.values())
    return sum(map(count, parameters)) if isinstance(parameters, list) else parameters.size


@pytest.mark.parametrize("model", workloads.WHOLE)
def test_jax_trains_as_many_parameters(model):
    """Building them needs no JAX."""
    build = {"mlp": with_jax._mlp, "cnn": with_jax._cnn, "resnet20": with_jax._resnet20}[model]
    params, running, _ = build(np.random.default_rng(0))
    ours = {"mlp": tg.models.mlp, "cnn": lambda: workloads._cnn(tg.nn), "resnet20": tg.models.resnet20}[model]()
    assert count(params) == sum(p.size for p in ours.parameters())
    statistics = [b for name, b in ours.state_dict().items() if "running" in name]
    assert count(running) == sum(b.size for b in statistics)


@pytest.mark.parametrize(
    "name", [n for n, w in WORKLOADS.items() if not w.nchw and w.device == "cpu" and w.model != "resnet20"]
)
@pytest.mark.parametrize("peer", ["jax", "mygrad"])
def test_a_peers_step_runs(peer, name):
    pytest.importorskip(peer, reason=f"{peer} is not installed")
    step = {"jax": with_jax, "mygrad": with_mygrad}[peer].step(small(name))
    results = [step() for _ in range(3)]
    if WORKLOADS[name].model in workloads.WHOLE:
        losses = [float(r) for r in results]
        assert losses[0] == pytest.approx(math.log(10), abs=0.5)  # of ten classes, and small weights
        assert np.isfinite(losses).all() and len(set(losses)) == 3  # it trains, if not well on four random images
    else:
        assert results == [None] * 3


# ----- on a GPU


def test_a_step_on_cuda_is_timed_between_waits(monkeypatch):
    calls, now = [], [0.0]

    def wait():
        now[0] += 0.002 * calls[::-1].index("wait") if "wait" in calls else 0  # 2 ms for each step since the last
        calls.append("wait")

    monkeypatch.setattr(compare, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    ms = compare.take_turn_on_cuda(lambda: calls.append("step"), wait, 0.1)
    assert ms == pytest.approx(2.0)
    text = "".join(call[0] for call in calls)
    assert text.startswith("s" * 10 + "w" + "sw" + "ssw" + "ssssw" + "ssssssssw" * 2)  # doubled until they take 10 ms


def test_without_a_gpu_nothing_is_measured(capsys, tmp_path, monkeypatch):
    def none(*_, **__):
        raise RuntimeError("device 'cuda' needs CuPy")

    monkeypatch.setattr(tg, "zeros", none)
    with pytest.raises(SystemExit, match="needs CuPy"):
        compare.main(["--device", "cuda"])
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == 1
    assert "needs CuPy" in capsys.readouterr().err and not (tmp_path / "report").exists()


def test_other_peers_have_no_turn_on_cuda():
    for name in compare.CONTESTANTS:
        reason = compare.why_not(name, WORKLOADS["cuda cnn-bn 64"])
        assert (reason is None) == (name in ("tinygrad_bn", "torch"))


def test_the_share_of_the_gpus_rate_is_shown():
    name = "cuda BatchNorm2d 512@14 f+b"
    result = compare.summary(name, {"tinygrad_bn": [2.0], "torch": [4.0]}, ["torch"], (1.0, WORKLOADS[name].bytes() * 1e3))
    assert compare.header(["torch"], "cuda")[-2:] == ["limit", "limit / ours"]
    assert compare.cells(name, result, ["torch"])[-2:] == ["1.00", "0.50"]


def test_a_contestant_that_fails_takes_no_part_and_nothing_else_is_lost(monkeypatch, capsys):
    def turn(peer, workload, seconds):
        if peer == "torch" and workload == "mlp-bn 60":
            raise RuntimeError("torch failed on mlp-bn 60: no memory")
        return 2.0

    monkeypatch.setattr(compare, "turn_in_a_fresh_process", turn)
    monkeypatch.setattr(compare, "machine_rates", lambda: (1e12, 1e12))
    seen = []
    results = compare.compare(["mlp-bn 60", "mlp-bn 256"], ["torch"], 2, 0.1, finished=lambda r: seen.append(len(r)))
    assert seen == [1, 2] and results["mlp-bn 60"]["failed"] == {"torch": "torch failed on mlp-bn 60: no memory"}
    assert results["mlp-bn 60"]["turns_ms"] == {"tinygrad_bn": [2.0, 2.0]} and results["mlp-bn 256"]["failed"] == {}
    assert "no memory" in capsys.readouterr().out
    nothing = {**compare.summary("cuda mlp-bn 60", {}, ["torch"], (1e12, 1e12))}
    assert compare.cells("cuda mlp-bn 60", nothing, ["torch"])[-1] == "-"


def test_the_report_is_written_as_it_grows(tmp_path, monkeypatch):
    from tinygrad_bn.backend import report as what_serves

    monkeypatch.setattr(tg, "zeros", lambda *a, **k: None)
    monkeypatch.setattr(gpu_report, "gpu", lambda: {"gpu": "none"})
    monkeypatch.setattr(gpu_report, "peers", list)
    monkeypatch.setattr(what_serves, "report", lambda: ({}, []))

    def cut_short(names, peers, rounds, seconds, markdown, finished):
        print("| a line |")
        finished({names[0]: {"failed": {}}})
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compare", cut_short)
    with pytest.raises(KeyboardInterrupt):
        gpu_report.main(["--out", str(tmp_path), "--skip-suite"])
    assert "| a line |" in (tmp_path / "gpu_report.md").read_text()
    assert list(json.loads((tmp_path / "gpu_report.json").read_text())["workloads"]) == ["cuda mlp-bn 60"]


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="good"/>
<testcase classname="tests.test_a" name="bad"><failure message="boom&#10;more">trace</failure></testcase>
<testcase classname="tests.test_a" name="left out"><skipped message="no torch"/></testcase>
</testsuite></testsuites>"""


def test_the_report_says_what_ran_and_how():
    suite = gpu_report.outcome(JUNIT)
    assert suite["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    report = {
        "commit": "abc", "gpu": {"gpu": "H100"}, "measured_on": {"date": "today"}, "reasons": ["cuda: no cuDNN"],
        "kernels": {"relu": ("Numba", "CUDA kernel"), "matmul": ("Numba", "cuBLAS")}, "suite": suite, "table": "| a | b |\n",
    }  # fmt: skip
    text = gpu_report.markdown(report)
    for part in (
        "| commit | abc |", "| gpu | H100 |", "* cuda: no cuDNN", "* CUDA kernel: relu", "1 passed, 1 failed, 1 skipped",
        "* failed: tests.test_a::bad: ['boom']", "* 1 skipped: no torch", "| a | b |",
    ):  # fmt: skip
        assert part in text, part
    assert "Not run." in gpu_report.markdown({**report, "suite": None})
    assert len(gpu_report.commit().split()[0]) in (40, 7)
