"""``python -m tinygrad_bn info``."""

from __future__ import annotations

import subprocess
import sys

import fake_cudnn
import pytest

from tinygrad_bn.__main__ import main
from tinygrad_bn.backend import cpu, cuda, portable
from tinygrad_bn.backend import report as module
from tinygrad_bn.backend.cuda import cudnn
from tinygrad_bn.backend.report import report


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


def test_from_the_command_line():
    done = subprocess.run([sys.executable, "-m", "tinygrad_bn", "info"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tinygrad_bn ") and "conv2d" in done.stdout and not done.stderr
    wrong = subprocess.run([sys.executable, "-m", "tinygrad_bn", "inform"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "invalid choice: 'inform'" in wrong.stderr
