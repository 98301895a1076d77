"""Runs the CUDA sources themselves on the CPU: compiled by g++ with cuda_on_cpu.h, in float32 and float64."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from fake_kernels import THREADS, RawModule, kernels, parameters

COMPILER = shutil.which("g++")
_HEADER = Path(__file__).with_name("cuda_on_cpu.h")
_FOLDER = Path(tempfile.gettempdir()) / f"cuda_on_cpu_{hashlib.sha256(str(Path.home()).encode()).hexdigest()[:8]}"


def _entry(source: str, kernel: str) -> str:
    arguments = ", ".join(f"*({p.kind}*)arguments[{i}]" for i, p in enumerate(parameters(source, kernel)))
    return (
        f'extern "C" int run_{kernel}(int x, int y, void** arguments) '
        f"{{ return run_kernel(x, y, {THREADS}, [=] {{ {kernel}({arguments}); }}); }}"
    )


@lru_cache(None)
def library(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The source as a library, with ``run_NAME`` for each kernel."""
    text = "\n".join([f'#include "{_HEADER}"', code, *(_entry(code, k) for k in kernels(code))])
    stamp = hashlib.sha256((text + _HEADER.read_text() + str(options)).encode()).hexdigest()[:16]
    _FOLDER.mkdir(exist_ok=True)
    made = _FOLDER / f"{stamp}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
            source = Path(folder) / "kernel.cpp"
            source.write_text(text)
            command = [
                COMPILER,
                "-O1",
                "-ffp-contract=off",
                "-fPIC",
                "-shared",
                "-w",
                *options,
                source,
                "-o",
                source.with_suffix(".so"),
            ]
            subprocess.run(command, check=True, capture_output=True, text=True)
            source.with_suffix(".so").replace(made)
    return ctypes.CDLL(str(made))


def run(module: RawModule, name: str, grid: tuple, wanted: list, args: list) -> None:
    """In place of ``RawModule.by_twin``."""
    kept, pointers = [], []
    for p, a in zip(wanted, args, strict=True):
        if a is None or isinstance(a, np.ndarray) and p.kind.endswith("*"):
            value = ctypes.c_void_p(None if a is None else a.ctypes.data)
        elif isinstance(a, np.ndarray):
            value = (ctypes.c_char * a.nbytes).from_buffer_copy(a.tobytes())
        else:
            value = (ctypes.c_double if type(a) is float else ctypes.c_ulonglong if p.kind == "Word" else ctypes.c_longlong)(a)
        kept.append(value)
        pointers.append(ctypes.addressof(value))
    entry = library(module.code, module.options)[f"run_{name}"]
    wrong = entry(*grid, *(1,) * (2 - len(grid)), (ctypes.c_void_p * len(pointers))(*pointers))
    assert not wrong, f"some threads of {name} waited for others that had ended"
