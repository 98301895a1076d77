"""CuPy as it is installed, on a GPU that is not there: ``EMULATED_GPU=1 pytest -m gpu``.

CuPy's own code runs, and the sources of its kernels and of this project's do, compiled by g++ for the CPU. Only what lies
below is replaced: the driver and the CUDA runtime (``driver.cpp``), cuBLAS (``cublas.cpp``) and NCCL (``nccl.cpp``). So what
CuPy refuses is refused here too; what waits for the GPU is counted; work is done in any order that its streams and events
allow; memory that nobody has written to is NaN; and with EMULATED_GPU_GUARD=1 an element outside of an array ends the process.

It says nothing of a GPU's speed, and nothing that passes here has run on a GPU. There is no Thrust (sort, argsort, unique),
no cuRAND, and no product of integers. It wants Linux on x86-64, g++, and ``cupy-cuda12x`` or ``cupy-cuda13x``.

| variable | does |
| --- | --- |
| EMULATED_GPU_SEED | draws another order of what may happen in any order |
| EMULATED_GPU_GUARD=1 | each array has memory of its own, that ends where memory ends |
| EMULATED_GPU_SKIP=1 | nothing is computed: what remains is the time that a program takes on the host |
| EMULATED_GPU_TRACE=1 | prints each launch |
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from .build import FOLDER, HERE, kernels, library
from .hook import redirect, symbols


class Counts(NamedTuple):
    """What the GPU was asked so far: to launch kernels and products, to copy, to let the host wait, to find memory."""

    launches: int
    copies: int
    waits: int
    allocations: int


def counts() -> Counts:
    """What it was asked since the process began."""
    numbers = (ctypes.c_ulonglong * len(Counts._fields))()
    ctypes.CDLL(None).emulator_counts(numbers)
    return Counts(*numbers)


def reseed(seed: int) -> None:
    """From now on, another order of what may happen in any order."""
    ctypes.CDLL(None).emulator_seed(seed)


def installed() -> bool:
    """Whether CuPy's GPU is this one."""
    return bool(os.environ.get("EMULATED_GPU")) and "cupy" in sys.modules


def install() -> Any:
    """CuPy, on the emulated GPU. It must come before anything else imports CuPy."""
    if "cupy" in sys.modules:
        raise RuntimeError("the emulated GPU comes before CuPy")
    FOLDER.mkdir(exist_ok=True)
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB comes compiled for GPUs
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # what is compiled here is kept elsewhere
    driver = library("driver.cpp", "libcuda.so.1")
    cublas = _library_of("cublas")
    _library_of("nccl")
    library(None, cublas.replace("cublas", "cublasLt"))  # CuPy wants to know that it is there
    from cupy_backends.cuda.api import driver as api
    from cupy_backends.cuda.api import runtime

    redirect(Path(runtime.__file__), driver)
    driver.emulator_version(api.get_build_version())
    import cuda.pathfinder
    import cupy
    from cupy.cuda import compiler

    cuda.pathfinder.find_nvidia_header_directory = lambda _name: str(HERE / "include")  # CUDA's own headers are not needed
    compiler._compile_using_nvrtc_no_warning = _compile
    compiler._preprocess = lambda *_: "an emulated GPU"
    compiler._get_nvrtc_version = lambda: (12, 9)
    if os.environ.get("EMULATED_GPU_GUARD") == "1":
        cupy.cuda.set_allocator(None)
    return cupy


def _library_of(name: str) -> str:
    """Load what CuPy's module ``name`` is linked with; functions that are not in our source say so when called."""
    spec = importlib.util.find_spec("cupy_backends.cuda.libs")
    assert spec is not None and spec.origin is not None
    (module,) = Path(spec.origin).parent.glob(f"{name}.*.so")
    wanted = sorted(function for function, place in symbols(module).items() if function.startswith(name) and not place)
    source = (HERE / f"{name}.cpp").read_text()
    others = (f"API int {function}() {{ return UNSUPPORTED; }}\n" for function in wanted if f" {function}(" not in source)
    soname = re.search(rf"lib{name}\.so\.\d+".encode(), module.read_bytes())
    assert soname is not None
    library(f"{name}.cpp", soname[0].decode(), "".join(others))
    return soname[0].decode()


def _compile(source: str, options: tuple[str, ...] = (), *_: Any, **__: Any) -> tuple[bytes, None]:
    """In place of NVRTC. What CuPy hands to the driver as a kernel's machine code is the path of a library."""
    return str(kernels(source, options)).encode() + b"\0", None
