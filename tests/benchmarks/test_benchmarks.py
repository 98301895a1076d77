"""The benchmarks run, and both sides of a comparison train the same network. How fast is no test's business."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinygrad_bn as tg

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import workloads  # noqa: E402 (benchmarks/ is no package)

NAMES = [name for name, w in workloads.WORKLOADS.items() if w.device == "cpu"]
ON_CUDA = [name for name, w in workloads.WORKLOADS.items() if w.device == "cuda"]


def small(name):
    """The workload with a batch of 4, to be quick."""
    w = workloads.WORKLOADS[name]
    return w._replace(input=(4, *w.input[1:]))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_runs(name):
    result = workloads.ours(small(name))()
    assert result is None or np.isfinite(float(result.detach()))


@pytest.mark.parametrize("name", ["cuda mlp-bn 60", "cuda BatchNorm2d 512@14 f+b"])
def test_a_step_runs_on_cuda(cuda_stand_in, name):
    result = workloads.ours(small(name)._replace(input=(4, 784) if "mlp" in name else (2, 8, 14, 14)))()
    assert result is None or result.device == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_CUDA)
def test_a_step_runs_on_a_gpu(device, name):
    if device.label != "cuda":
        pytest.skip("on a GPU alone")
    workloads.ours(small(name))()
    workloads.waits("tinygrad_bn")()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_step_runs(torch, name, channels_last):
    result = workloads.torchs(small(name), channels_last)()
    assert result is None or np.isfinite(float(result.detach()))


@pytest.mark.parametrize("name", [n for n in NAMES if workloads.WORKLOADS[n].model in workloads.WHOLE])
def test_both_sides_train_as_many_parameters(torch, monkeypatch, name):
    counts = []

    def count(original):
        def make(parameters, **options):
            parameters = list(parameters)
            counts.append(sum(int(np.prod(tuple(p.shape))) for p in parameters))
            return original(parameters, **options)

        return make

    monkeypatch.setattr(tg.optim, "SGD", count(tg.optim.SGD))
    monkeypatch.setattr(torch.optim, "SGD", count(torch.optim.SGD))
    workloads.ours(small(name))
    workloads.torchs(small(name), channels_last=False)
    assert counts[0] == counts[1]


def test_the_limit_counts_the_products():
    """cnn-bn: 7.15 GFLOP a step, of which a forward convolution of 32 channels at 28x28 is 0.92."""
    assert workloads.WORKLOADS["cnn-bn 64"].flops() == pytest.approx(7.15e9, rel=0.01)
    assert workloads.WORKLOADS["conv 32@28 f+b"].flops() == 3 * 2 * 64 * 28 * 28 * 9 * 32 * 32


@pytest.mark.parametrize(
    "command",
    [
        ["overhead.py", "--rounds", "1"],
        ["compare.py", "--rounds", "1", "--seconds", "0.01", "--workload", "mlp-bn 60", "--peers", ""],
    ],
    ids=["overhead", "compare"],
)
def test_the_command_runs(command, tmp_path):
    json = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:], "--json", str(json)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert json.stat().st_size > 50


@pytest.mark.gpu
@pytest.mark.skipif(not os.environ.get("EMULATED_GPU"), reason="asks for the emulated GPU: EMULATED_GPU=1")
@pytest.mark.parametrize("how", [[], ["--patches"], ["--beside", str(ROOT)]])
def test_the_time_of_the_host(how):
    """Each network is in the table, and no step lets the host wait."""
    command = [sys.executable, str(ROOT / "benchmarks" / "host_time.py"), "--rounds", "1", *how]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:4] == ["us", "a", "step", "shortest"] and ("ratio" in head) == ("--beside" in how)
    networks = [row for row in rows if "beside" not in row]
    assert [row.split()[0] for row in networks] == ["mlp-bn", "cnn-bn", "resnet20-bn"]
    for row in networks:
        *_, launches, waits = row.split()[:6]
        assert int(launches) > 20 and int(waits) == 0


def test_an_unknown_peer_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--peers", "numpy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 2 and "got 'numpy'" in done.stderr
