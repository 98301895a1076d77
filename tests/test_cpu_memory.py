"""The pool of memory blocks: used again, never twice at once, given back on request."""

from __future__ import annotations

import gc
import os
import resource
import threading

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn.backend.cpu import memory

LARGE = (256, 1024)  # 1 MiB of float32


@pytest.fixture(autouse=True)
def empty_pool():
    gc.collect()
    tg.empty_cache()
    yield
    gc.collect()
    tg.empty_cache()


def _address(x):
    return x.__array_interface__["data"][0]


def test_a_block_is_used_again_when_its_array_is_gone():
    x = memory.empty(LARGE, "float32")
    where = _address(x)
    y = memory.empty(LARGE, "float32")
    assert _address(y) != where and not np.shares_memory(x, y)
    del x
    z = memory.empty((1024, 256), "float32")
    assert _address(z) == where


@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x[3:4],
        lambda x: x.T,
        lambda x: x.reshape(-1)[::7],
        lambda x: x.view("uint8"),
        lambda x: memoryview(x),
        lambda x: np.frombuffer(x, "float32"),
        lambda x: np.asarray(x)[None],
        lambda x: tg.tensor(x)[5],
        lambda x: iter(x),
    ],
    ids=["slice", "transpose", "strided", "dtype", "memoryview", "frombuffer", "newaxis", "tensor", "iterator"],
)
def test_whatever_looks_into_a_block_keeps_it(keep):
    x = memory.empty(LARGE, "float32")
    x[...] = 7.0
    kept = keep(x)
    del x
    others = [memory.empty(LARGE, "float32") for _ in range(3)]
    for other in others:
        other[...] = 0.0
        assert not np.shares_memory(other, np.asarray(kept)) if not hasattr(kept, "__next__") else True
    seen = next(kept) if hasattr(kept, "__next__") else kept
    raw = seen.data if isinstance(seen, tg.Tensor) else np.asarray(seen)
    if raw.dtype == np.float32:
        assert (raw == 7.0).all()


def test_pytorch_keeps_a_block_that_it_shares(torch):
    x = memory.empty(LARGE, "float32")
    x[...] = 7.0
    t = torch.from_numpy(x)
    del x
    memory.empty(LARGE, "float32")[...] = 0.0
    assert bool((t == 7.0).all())


def test_no_two_arrays_that_live_share_memory(rng):
    alive = []
    for _ in range(400):
        if alive and rng.random() < 0.5:
            alive.pop(int(rng.integers(len(alive))))
        shape = (int(rng.integers(1, 4)), 1 << 15)
        x = memory.empty(shape, "float32")
        spans = [(_address(a), _address(a) + a.nbytes) for a in alive]
        assert all(_address(x) >= end or _address(x) + x.nbytes <= start for start, end in spans)
        alive.append(x)


def test_threads_do_not_get_the_same_block():
    clashes = []

    def work(number):
        for _ in range(200):
            x = memory.empty(LARGE, "float32")
            x[0, :8] = number
            x[-1, -8:] = number
            if not ((x[0, :8] == number).all() and (x[-1, -8:] == number).all()):
                clashes.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not clashes


def test_empty_cache_gives_back_what_nobody_uses():
    x, y = memory.empty(LARGE, "float32"), memory.empty(LARGE, "float32")
    x[...] = 1.0
    del y
    assert tg.empty_cache() == 1 << 20
    assert tg.empty_cache() == 0
    assert (x == 1.0).all()
    del x
    assert tg.empty_cache() == 1 << 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads, in Python 3.12
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where another test imported it
def test_a_forked_child_writes_into_memory_of_its_own():
    x = memory.empty(LARGE, "float32")
    x[...] = 7.0
    pid = os.fork()
    if pid == 0:
        x[...] = 0.0
        os._exit(0)
    os.waitpid(pid, 0)
    assert (x == 7.0).all()


def test_small_arrays_do_not_come_from_blocks():
    x = memory.empty((8, 8), "float32")
    assert x.base is None and not memory.leased(x)
    assert memory.leased(memory.empty(LARGE, "float32")) and not memory.leased(memory.empty(LARGE, "float32")[1:])


def test_neighbours_that_are_free_make_room_for_a_larger_array():
    x, y, z = (memory.empty(LARGE, "float32") for _ in range(3))
    where = _address(x)
    z[...] = 3.0
    del x, y
    double = memory.empty((512, 1024), "float32")
    assert _address(double) == where and (z == 3.0).all()
    del double
    x, y = memory.empty(LARGE, "float32"), memory.empty(LARGE, "float32")  # and are cut again
    assert _address(x) == where and _address(y) == where + x.nbytes and (z == 3.0).all()


def test_reference_counts_are_understood():
    assert memory._pooling


def test_strides_are_kept():
    x = memory.empty((4, 8, 100, 100), "float32", (320_000, 4, 3_200, 32))
    assert x.strides == (320_000, 4, 3_200, 32) and x.transpose(0, 2, 3, 1).flags.c_contiguous


def test_an_array_larger_than_a_slab():
    x = memory.empty((memory._SLAB + 1,), "uint8")
    x[-1] = 1
    assert memory.leased(x)
    del x
    assert tg.empty_cache() >= memory._SLAB


def test_a_training_step_causes_no_page_faults():
    pytest.importorskip("numba", reason="the kernels that use the pool need Numba: pip install 'tinygrad_bn[fast]'")
    model = tg.nn.Sequential(
        *(tg.nn.Conv2d(1, 16, 3, padding=1), tg.nn.BatchNorm2d(16), tg.nn.ReLU(), tg.nn.MaxPool2d(2)),
        *(tg.nn.Conv2d(16, 32, 3, padding=1), tg.nn.BatchNorm2d(32), tg.nn.ReLU(), tg.nn.Flatten(), tg.nn.Linear(6272, 10)),
    )
    optimizer = tg.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, labels = tg.randn(32, 1, 28, 28), np.arange(32) % 10

    def step():
        optimizer.zero_grad()
        tg.cross_entropy(model(x), labels).backward()
        optimizer.step()

    for _ in range(5):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10
    assert faults < 100, f"{faults} page faults a step"
