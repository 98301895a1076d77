"""Which library serves each kernel on this machine, and why a faster one does not."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from . import cpu, portable
from .libraries import load_cuda

# Not kernels, but parts of some.
_HELPERS = {"random_bits", "smooth_labels", "thin_out", "window_counts"}
_PRODUCTS = {"einsum", "linear", "linear_backward", "matmul"}


class Report(NamedTuple):
    """For each kernel what serves it on the CPU and on CUDA (empty where there is none); and the reasons."""

    kernels: dict[str, tuple[str, str]]
    reasons: list[str]


def report() -> Report:
    """What serves each kernel. Loads Numba, SciPy and CuPy where they are installed."""
    on_cpu, why_cpu = _on_cpu()
    on_cuda, why_cuda = _on_cuda()
    names = sorted(name for name, f in vars(portable).items() if getattr(f, "__module__", "") == portable.__name__)
    names = [name for name in names if not name.startswith("_") and name not in _HELPERS]
    return Report({name: (on_cpu.get(name, "NumPy"), on_cuda.get(name, "")) for name in names}, [*why_cpu, *why_cuda])


def _on_cpu() -> tuple[dict[str, str], list[str]]:
    why = cpu.why_not()
    if why:
        return {}, [f"cpu: NumPy alone serves, since {why}"]
    compiled = [name for names in cpu.COMPILED.values() for name in names]
    return {name: "Numba" + (", NumPy where small" if name in cpu.SMALL else "") for name in compiled}, []


def _on_cuda() -> tuple[dict[str, str], list[str]]:
    try:
        library = load_cuda()
    except RuntimeError as error:
        return {}, [f"cuda: {error}"]
    cuda = importlib.import_module(".cuda", __package__)
    why = cuda.cudnn.why_not(library.xp)
    names = {name: "CuPy" for name in vars(portable)}
    names |= dict.fromkeys(_PRODUCTS, "cuBLAS") | dict.fromkeys(cuda.FUSED, "CUDA kernel")
    names |= dict.fromkeys(cuda.CONVOLUTIONS, "patches, cuBLAS" if why else "cuDNN, float64 by cuBLAS")
    return names, [f"cuda: convolutions are by cuBLAS, since {why}"] if why else []
