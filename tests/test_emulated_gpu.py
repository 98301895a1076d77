"""The emulated GPU can fail: what a GPU would not do as it was meant shows here. (``EMULATED_GPU=1 pytest -m gpu``)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated_gpu
import numpy as np
import pytest

from tinygrad_bn.backend import upload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not os.environ.get("EMULATED_GPU"), reason="asks for the emulated GPU: EMULATED_GPU=1"),
]
HERE = Path(__file__).parent


@pytest.fixture
def cupy():
    import cupy

    return cupy


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own, where the GPU may end it."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport emulated_gpu\ncupy = emulated_gpu.install()\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})


def test_work_is_not_done_when_it_is_asked_for(cupy):
    """Without a wait a kernel on another stream reads what is not there yet, at least in one of many orders."""

    def seen(wait: bool) -> set[float]:
        side = cupy.cuda.Stream(non_blocking=True)
        x = cupy.zeros(4)
        cupy.cuda.Device().synchronize()
        x += 1
        written = cupy.cuda.get_current_stream().record()
        with side:
            if wait:
                side.wait_event(written)
            y = x * 1
        side.synchronize()
        return {float(y[0])}

    orders = range(60)
    for seed in orders:
        emulated_gpu.reseed(seed)
        assert seen(wait=True) == {1.0}
    assert set.union(*(emulated_gpu.reseed(seed) or seen(wait=False) for seed in orders)) == {0.0, 1.0}


def test_the_default_stream_takes_turns_with_others(cupy):
    for seed in range(60):
        emulated_gpu.reseed(seed)
        side, x = cupy.cuda.Stream(), cupy.zeros(4)
        x += 1
        with side:
            x *= 3
        x -= 1
        assert float(x[0]) == 2


def test_waits_are_counted(cupy):
    x = cupy.ones(3)
    before = emulated_gpu.counts()
    y = x + x
    after = emulated_gpu.counts()
    assert (after.launches, after.copies, after.waits) == (before.launches + 1, before.copies, before.waits)
    float(y[0])
    assert emulated_gpu.counts().waits > before.waits


def test_memory_that_nobody_has_written_to(cupy):
    with cupy.cuda.using_allocator(None):
        assert np.isnan(cupy.empty(1000).get()).all()


def test_an_element_outside_of_an_array_ends_the_process():
    code = (
        "k = cupy.RawKernel('extern \"C\" __global__ void k(float* x, int i) { x[i] = 1; }', 'k')\n"
        "x = cupy.zeros(1000, 'float32')\nk((1,), (1,), (x, cupy.int32(LAST)))\nprint(float(x.sum()))"
    )
    inside, outside = (run(code.replace("LAST", str(i)), EMULATED_GPU_GUARD="1") for i in (999, 1000))
    assert (inside.returncode, inside.stdout.strip()) == (0, "1.0"), inside.stderr
    assert outside.returncode < 0 and not outside.stdout


def test_threads_that_do_not_come():
    code = """
from tinygrad_bn.backend.cuda import launch
source = launch.source("loss") + '''
KERNEL early(Real* x) {
    if (threadIdx.x == 7) return;
    x[0] = over_block(x[0], [](Real a, Real b) { return a + b; });
}
'''
kernel = cupy.RawModule(code=source, options=launch.options("float32")).get_function("early")
kernel((1,), (256,), (cupy.ones(1, "float32"),))
cupy.cuda.Device().synchronize()
"""
    done = run(code)
    assert done.returncode < 0 and "some threads of early waited for others that had ended" in done.stderr


def test_a_launch_that_no_gpu_takes(cupy):
    kernel = cupy.RawKernel('extern "C" __global__ void k() {}', "k")
    for grid, block in (((1, 65536), (1,)), ((1,), (1025,))):
        with pytest.raises(cupy.cuda.driver.CUDADriverError, match="CUDA_ERROR_INVALID_VALUE"):
            kernel(grid, block, ())


def _any_pinned_memory(uploader, nbytes):
    if upload._pinned:
        return upload._pinned.pop()[1]
    return np.frombuffer(uploader._xp.cuda.alloc_pinned_memory(4096), np.uint8, 4096)


BREAKS = {
    "as it is": {},
    "nobody waits for the copy": {"receive": lambda self, sent: sent.arrays},
    "pinned memory is taken again at once": {"_memory": _any_pinned_memory},
}


@pytest.mark.parametrize("how", BREAKS)
def test_batches_that_are_sent_ahead(cupy, monkeypatch, how):
    """In every order they arrive as they are; and an uploader that forgets something is found out."""
    import tinygrad_bn as tg

    for name, method in BREAKS[how].items():
        monkeypatch.setattr(upload.Uploader, name, method)
    monkeypatch.setattr(upload, "_pinned", [])
    x, y = np.arange(64 * 5.0).reshape(64, 5), np.arange(64)
    wrong = 0
    for seed in range(60):
        emulated_gpu.reseed(seed)
        sums = [(a.sum(), b * 2) for a, b in tg.datasets.batches(x, y, 8, device="cuda")]
        got = [(float(a), b.get().tolist()) for a, b in sums]
        wrong += got != [(x[i : i + 8].sum(), (2 * y[i : i + 8]).tolist()) for i in range(0, 64, 8)]
    assert (wrong == 0) == (how == "as it is"), f"{wrong} of 60 orders"
