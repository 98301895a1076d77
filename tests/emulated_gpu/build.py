"""g++: the parts of the emulated GPU, and CUDA sources, as libraries for the CPU that are made once and kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = Path(tempfile.gettempdir()) / f"emulated_gpu_{getattr(os, 'getuid', int)()}"
COMPILER = shutil.which("g++")
_KERNEL = re.compile(
    r'^[ \t]*(?:KERNEL|extern\s+"C"\s+__global__\s+void(?:\s+__launch_bounds__\s*\([^)]*\))?)\s+(\w+)\s*\(', re.MULTILINE
)
# A product and a sum are rounded each for itself, as NumPy does it. (A name that several libraries share is each one's own.)
_FLAGS = "-std=c++17 -O1 -mf16c -ffp-contract=off -fno-gnu-unique -fPIC -w -D__CUDACC_VER_MAJOR__=12".split()
_HALVES = {  # a half and a float, for which CUDA's sources speak to the machine
    'asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));': "y = __half2float(x);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));': "y = __float2half_rn(x);",
}


def _made(text: str, options: list[str], ending: str) -> Path:
    """What g++ makes of a source, in a file that is named after both."""
    stamp = hashlib.sha256("\0".join([text, (HERE / "device.h").read_text(), *options]).encode()).hexdigest()[:20]
    target = FOLDER / stamp / f"made{ending}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            source, made = Path(folder) / "source.cpp", Path(folder) / target.name
            source.write_text(text)
            done = subprocess.run([COMPILER or "g++", *options, source, "-o", made], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"g++ does not compile\n{text}\n\n{done.stderr[:4000]}")
            made.replace(target)  # (another process may have been faster)
    return target


def library(name: str | None, soname: str, others: str = "") -> ctypes.CDLL:
    """Load a part of the emulated GPU under the name of a library: who wants that one finds this."""
    source = (HERE / name).read_text() if name else ""
    versions = FOLDER / f"{soname}.map"
    if not versions.exists():
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            (Path(folder) / versions.name).write_text(f"{soname} {{ global: *; }};\n")
            (Path(folder) / versions.name).replace(versions)
    options = "-std=c++17 -O3 -mavx2 -mf16c -fPIC -shared -ldl".split()
    names = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={versions}"]
    return ctypes.CDLL(str(_made(source + others, options + names, ".so")), ctypes.RTLD_GLOBAL)


@lru_cache(None)
def _prelude(includes: tuple[str, ...]) -> Path:
    """What all kernels begin with, compiled beforehand; with CuPy's headers where they are at hand."""
    headers = ["complex", "carray", "atomics"] if len(includes) > 1 else []
    text = "".join([f'#include "{HERE / "device.h"}"\n', *(f"#include <cupy/{h}.cuh>\n" for h in headers)])
    made = _made(text, [*_FLAGS, *includes, "-x", "c++-header"], ".h.gch")
    header = made.with_suffix("")
    if not header.exists():
        header.write_text(text)
    return header


@lru_cache(None)
def kernels(source: str, options: tuple[str, ...]) -> Path:
    """A CUDA source as a library, with ``run_NAME`` for each kernel."""
    for asm, plain in _HALVES.items():
        source = source.replace(asm, plain)
    source = re.sub(r"extern\s+__shared__\s+(\w+)\s+(\w+)\[\];", r"\1* \2 = (\1*)dynamic_shared;", source)
    ours = "over_block(" in source
    waits = source.count("over_block(") > 1 if ours else bool(re.search("__sync|__shfl", source))
    entries = "".join(
        f"ENTRY({name}, {str(waits).lower()}, {str(ours).lower()})\n" for name in dict.fromkeys(_KERNEL.findall(source))
    )
    defines = "".join(f"#define {o[2:].replace('=', ' ', 1)}\n" for o in options if o.startswith("-D"))
    includes = (f"-I{HERE / 'include'}", *(o for o in options if o.startswith("-I")))
    flags = [*_FLAGS, *includes, "-include", str(_prelude(includes)), "-shared"]
    return _made(f"{defines}{source}\n{entries}", flags, ".so")
