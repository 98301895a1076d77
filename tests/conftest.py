"""Fixtures that all tests share: devices, random numbers, PyTorch as an oracle, and a watch over global state."""

from __future__ import annotations

import contextlib
import os
import zlib

import emulated_gpu
import fake_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tinygrad_bn import backend, core, random
from tinygrad_bn.backend import cuda, libraries

if os.environ.get("EMULATED_GPU"):
    emulated_gpu.install()

# A test that takes `device` beside drawn arguments may use it again and again: it holds no state between examples.
_tolerant = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **_tolerant)
settings.register_profile("ci", max_examples=60, derandomize=False, print_blob=True, **_tolerant)
settings.register_profile("emulated", max_examples=10, **_tolerant)
settings.load_profile("emulated" if os.environ.get("EMULATED_GPU") else "ci" if os.environ.get("CI") else "dev")


def pytest_report_header() -> str | None:
    return "an emulated GPU: nothing of this runs on a real one" if emulated_gpu.installed() else None


class Device:
    """Where a test runs: ``name`` is what the package calls it, ``xp`` its array library."""

    def __init__(self, label: str, xp):
        self.label = label  # "cpu", "stand-in" or "cuda"
        self.name = "cpu" if label == "cpu" else "cuda"
        self.xp = xp

    def __repr__(self) -> str:
        return self.label

    def array(self, x):
        """A NumPy array (or what becomes one), copied to this device."""
        x = np.asarray(x)
        return x.copy() if self.name == "cpu" else self.xp.asarray(x)

    def numpy(self, x) -> np.ndarray:
        """A Tensor or an array of any device as a NumPy array."""
        return backend.to_numpy(x.data if isinstance(x, core.Box) else x)

    @contextlib.contextmanager
    def no_syncs(self):
        """Fails if the host waits for the device in the block. Only the stand-in and the emulated GPU can tell."""
        if emulated_gpu.installed():
            before = emulated_gpu.counts().waits
            yield
            assert emulated_gpu.counts().waits == before, "the host waited for the GPU"
            return
        if self.label != "stand-in":
            yield
            return
        with fake_cupy.count_syncs() as counts:
            yield
        assert counts.syncs == 0, f"{counts.syncs} host syncs: {counts.sites}"


@contextlib.contextmanager
def stand_in():
    """The strict stand-in for CuPy, serving ``device="cuda"``."""
    libraries_before, types_before = dict(libraries._libraries), set(libraries.ARRAY_TYPES)
    for kind, library in libraries_before.items():
        if library.device == "cuda":  # a real one, on a machine that has it
            del libraries._libraries[kind]
    backend.register(fake_cupy.ndarray, backend.Library(fake_cupy, cuda, "cuda"))
    try:
        yield Device("stand-in", fake_cupy)
    finally:
        libraries._libraries.clear()
        libraries._libraries.update(libraries_before)
        libraries.ARRAY_TYPES.clear()
        libraries.ARRAY_TYPES.update(types_before)


@pytest.fixture(params=["cpu", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device in turn: the CPU, the stand-in for CuPy, and a real GPU where there is one."""
    if request.param == "cpu":
        yield Device("cpu", np)
    elif request.param == "stand-in":
        with stand_in() as d:
            yield d
    else:
        try:
            library = backend.load_cuda()
        except RuntimeError as why:
            pytest.skip(str(why))
        yield Device("cuda", library.xp)


@pytest.fixture
def cuda_stand_in():
    """For tests that need two devices at once: "cpu", and a "cuda" that every machine has."""
    with stand_in() as d:
        yield d


def _seed(request) -> int:
    return zlib.crc32(request.node.nodeid.encode()) + int(os.environ.get("TEST_SEED", "0"))


@pytest.fixture(autouse=True)
def seeded_package(request):
    """Initial weights and dropout too are the same in every run."""
    random.manual_seed(_seed(request))


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers that differ from test to test, and are the same in every run. TEST_SEED draws others."""
    seed = _seed(request)
    print(f"rng: numpy.random.default_rng({seed})")  # pytest shows it when the test fails
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def torch():
    """PyTorch, or a skip."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(autouse=True)
def no_leaks():
    """Fails a test that leaves global state other than it found it."""

    def state():
        return {
            "grad mode": core.is_grad_enabled(),
            "listeners": (core.modes.hooks, list(core.modes._listeners)),
            "NumPy's error state": np.geterr(),
            "array libraries": {kind for kind in libraries._libraries if not kind.__module__.startswith("cupy")},
        }

    before = state()
    yield
    after = state()
    core.modes.mode.enabled, core.modes.hooks = True, None  # so that the next test does not suffer
    core.modes._listeners.clear()
    np.seterr(**before["NumPy's error state"])
    assert after == before, "this test changed global state"
