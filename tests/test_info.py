"""``python -m tinygrad_bn info``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import fake_cudnn
import pytest
from threadpoolctl import threadpool_info

from tinygrad_bn.__main__ import main
from tinygrad_bn.backend import cpu, cuda, get_num_threads, machine, portable
from tinygrad_bn.backend import report as module
from tinygrad_bn.backend.cuda import cudnn
from tinygrad_bn.backend.report import report

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def anew():
    cudnn._load.cache_clear()
    yield
    cudnn._load.cache_clear()


def test_each_kernel_has_a_library(cuda_stand_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", None)
    kernels, reasons = report()
    assert set(kernels) <= set(vars(portable)) and {*cuda.FUSED, *cuda.CONVOLUTIONS} <= set(kernels)
    assert all(on_cuda for _, on_cuda in kernels.values())
    assert (
        kernels["batch_norm"][1] == "CUDA kernel" and kernels["matmul"][1] == "cuBLAS" and kernels["erf"] == ("NumPy", "CuPy")
    )
    assert kernels["conv2d"][1] == "patches, cuBLAS"
    assert any("convolutions are by cuBLAS, since nvidia-cudnn-frontend is not installed" in r for r in reasons)
    cudnn._load.cache_clear()
    monkeypatch.setitem(sys.modules, "cudnn", fake_cudnn)
    kernels, reasons = report()
    assert kernels["conv2d"][1] == "cuDNN, float64 by cuBLAS" and not any("cuDNN" in r for r in reasons)


def test_what_is_fused_is_not_the_portable_kernel():
    for name in (*cuda.FUSED, *cuda.CONVOLUTIONS):
        assert getattr(cuda, name) is not getattr(portable, name)
    same = {n for n in vars(portable) if getattr(cuda, n, None) is getattr(portable, n) and callable(getattr(portable, n))}
    assert not same & {*cuda.FUSED, *cuda.CONVOLUTIONS}


def test_without_numba_it_says_so(monkeypatch):
    monkeypatch.setattr(cpu, "why_not", lambda: "Numba is missing")
    kernels, reasons = report()
    assert kernels["batch_norm"][0] == "NumPy" and reasons[0] == "cpu: NumPy alone serves, since Numba is missing"


def test_without_cuda_it_says_what_to_install(monkeypatch, capsys):
    def fails():
        raise RuntimeError("device 'cuda' needs CuPy: pip install 'tinygrad_bn[cuda12]'")

    monkeypatch.setattr(module, "load_cuda", fails)
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert "cuda: device 'cuda' needs CuPy: pip install 'tinygrad_bn[cuda12]'" in said
    assert "batch_norm" in said and "cpu: " in said


def test_devices_and_libraries_are_listed(cuda_stand_in, capsys, monkeypatch):
    monkeypatch.setattr(machine, "version_of", lambda name: {"numba": "0.1.2", "cupy-cuda13x": "14.0"}.get(name))
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tinygrad_bn (not installed), Python ")
    cpu, *_ = [line for line in said.splitlines() if line.startswith("cpu: ")]
    assert f"{os.cpu_count()} core" in cpu and cpu.endswith(f"{get_num_threads()} threads")
    assert "cuda:0: fake_cupy, 0.0 GiB, CUDA 12.9, driver for CUDA 12.9\n" in said
    columns = [line.split(maxsplit=2) for line in said.splitlines()]
    assert ["numba", "0.1.2", "compiled kernels on the CPU"] in columns
    assert ["cupy", "14.0", "(cupy-cuda13x)  arrays on CUDA"] in columns
    for library, extra in (("scipy", "fast"), ("onnx", "interop"), ("safetensors", "interop"), ("matplotlib", "examples")):
        (line,) = [c for c in columns if c and c[0] == library]
        assert line[1] == "missing" and line[2].endswith(f": pip install 'tinygrad_bn[{extra}]'")


def test_what_installs_a_library_is_an_extra_that_has_it():
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for library in machine.OPTIONAL.values():
        extra = re.search(r"tinygrad_bn\[(\w+)\]", library.install).group(1)
        names = {re.split(r"[\[><=]", line)[0] for line in extras[extra]}
        assert names & set(library.packages), (extra, library.packages)
    known = {name for library in machine.OPTIONAL.values() for name in library.packages}
    users = ("fast", "examples", "interop")
    assert {re.split(r"[\[><=]", line)[0] for extra in users for line in extras[extra]} - {"tinygrad_bn"} <= known


def test_blas_is_named():
    lines = machine.blas()
    assert lines and all(line.startswith("BLAS: ") for line in lines)
    assert any(f"{lib['num_threads']} threads" in line for lib in threadpool_info() for line in lines)


def test_without_a_known_blas_it_says_so(monkeypatch):
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [])
    assert machine.blas() == ["BLAS: none that threadpoolctl knows"]


def test_an_unused_gpu_is_marked(cuda_stand_in, monkeypatch):
    monkeypatch.setattr(cuda_stand_in.xp.cuda.runtime, "getDeviceCount", lambda: 2)
    assert [line.endswith("not used") for line in machine.devices()[1:]] == [False, True]


def test_from_the_command_line():
    done = subprocess.run([sys.executable, "-m", "tinygrad_bn", "info"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tinygrad_bn ") and "conv2d" in done.stdout and not done.stderr
    wrong = subprocess.run([sys.executable, "-m", "tinygrad_bn", "inform"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "invalid choice: 'inform'" in wrong.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise on Windows")
def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.Popen(
        [sys.executable, "-u", "-m", "tinygrad_bn", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    done.stdout.close()
    assert done.stderr.read() == b"" and done.wait() == 1
    done.stderr.close()
