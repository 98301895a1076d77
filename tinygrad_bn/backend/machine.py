"""What this machine and this installation have: devices, BLAS, and the optional libraries with what installs them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any, NamedTuple

from .cpu.threads import get_num_threads
from .libraries import load_cuda


class Extra(NamedTuple):
    """A library that the package can do without. ``packages``: its names on PyPI, of which one is enough."""

    packages: tuple[str, ...]
    purpose: str
    install: str

    def version(self) -> str | None:
        """The installed version, with the package's name where there are several; None if it is missing."""
        for name in self.packages:
            found = version_of(name)
            if found is not None:
                return found if len(self.packages) == 1 else f"{found} ({name})"
        return None


def _extra(name: str) -> str:
    return f"pip install 'tinygrad_bn[{name}]'"


OPTIONAL = {
    "numba": Extra(("numba",), "compiled kernels on the CPU", _extra("fast")),
    "scipy": Extra(("scipy",), "BLAS within the compiled kernels", _extra("fast")),
    "cupy": Extra(
        ("cupy-cuda12x", "cupy-cuda13x", "cupy"), "arrays on CUDA", f"{_extra('cuda12')} (or cuda13, as your driver has it)"
    ),
    "cudnn": Extra(("nvidia-cudnn-frontend",), "convolutions on CUDA by cuDNN", f"{_extra('cudnn12')} (or cudnn13)"),
    "safetensors": Extra(("safetensors",), "weights and checkpoints in files", _extra("interop")),
    "onnx": Extra(("onnx",), "export to ONNX, and import", _extra("interop")),
    "matplotlib": Extra(("matplotlib",), "the pictures of the examples", _extra("examples")),
    "pooch": Extra(("pooch",), "downloads of whole data sets", _extra("examples")),
    "tqdm": Extra(("tqdm",), "progress bars in the examples", _extra("examples")),
}


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[str]:
    """A line for the CPU, and one for each GPU that CuPy finds."""
    cores = os.cpu_count() or 1
    lines = [f"cpu: {_processor()}, {cores} core{'s' * (cores > 1)}, {get_num_threads()} threads"]
    try:
        runtime = load_cuda().xp.cuda.runtime
    except RuntimeError:
        return lines  # the report of the kernels says why
    for i in range(runtime.getDeviceCount()):
        lines.append(_gpu(runtime, i))
    return lines


def _processor() -> str:
    """The CPU's name, where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu(runtime: Any, i: int) -> str:
    about = runtime.getDeviceProperties(i)
    used = "" if i == runtime.getDevice() else ", not used"  # the package uses the current one
    cuda, driver = (f"{v // 1000}.{v % 1000 // 10}" for v in (runtime.runtimeGetVersion(), runtime.driverGetVersion()))
    memory = about["totalGlobalMem"] / 2**30
    return f"cuda:{i}: {about['name'].decode()}, {memory:.1f} GiB, CUDA {cuda}, driver for CUDA {driver}{used}"


def blas() -> list[str]:
    """A line for each BLAS that is loaded, which threadpoolctl tells."""
    from threadpoolctl import threadpool_info

    found = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    lines = [
        f"BLAS: {lib['internal_api']} {lib['version'] or ''} {lib.get('architecture') or ''}".rstrip()
        + f", {lib['num_threads']} threads, {os.path.basename(lib['filepath'])}"
        for lib in found
    ]
    return lines or ["BLAS: none that threadpoolctl knows"]
