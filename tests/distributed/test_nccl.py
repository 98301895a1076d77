"""The exchange over NCCL: its calls, on the stand-in for CuPy; one rank, on a GPU; more, on emulated GPUs only."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import types
from pathlib import Path

import mpiexec
import numpy as np
import pytest
import same_training

from tinygrad_bn import backend
from tinygrad_bn.distributed import start
from tinygrad_bn.distributed.communicators import Communicator
from tinygrad_bn.distributed.nccl import NCCLCommunicator, library

HERE = Path(__file__).parent
UNIQUE = bytes(range(100, 228))
BYTES = {"NCCL_CHAR": 1, "NCCL_FLOAT32": 4, "NCCL_FLOAT64": 8, "NCCL_INT32": 4, "NCCL_INT64": 8}


class OneRank:
    """A communicator of one rank with the methods, and the order of arguments, of ``cupy.cuda.nccl.NcclCommunicator``."""

    def __init__(self, ndev, commId, rank):  # noqa: N803
        assert (ndev, rank) == (1, 0) and isinstance(commId, bytes) and commId == UNIQUE
        self.streams: list[int] = []

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
        assert op == "NCCL_SUM" and datatype != "NCCL_CHAR"
        self._move(sendbuf, recvbuf, count, datatype, stream)

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):  # noqa: N802
        self._move(sendbuf, recvbuf, count, datatype, stream)

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        assert root == 0
        self._move(sendbuff, recvbuff, count, datatype, stream)

    def _move(self, source, target, count, datatype, stream):
        self.streams.append(stream)
        ctypes.memmove(target, source, count * BYTES[datatype])


@pytest.fixture
def nccl(cuda_stand_in, monkeypatch):
    xp = backend.load_cuda().xp
    names = {name: name for name in [*BYTES, "NCCL_SUM"]}
    fake = types.SimpleNamespace(**names, available=True, get_unique_id=lambda: UNIQUE, NcclCommunicator=OneRank)
    monkeypatch.setitem(sys.modules, f"{xp.__name__}.cuda.nccl", fake)
    return NCCLCommunicator(Communicator())


def _exchanges(nccl, xp):
    for dtype in ("float32", "float64", "int32", "int64"):
        x = xp.arange(6, dtype=dtype).reshape(2, 3)
        for y in (nccl.all_reduce(x), nccl.broadcast(x), nccl.all_gather(x)[0], nccl.all_reduce(x.T).T):
            assert type(y) is type(x) and y.dtype == dtype and np.array_equal(backend.to_numpy(y), np.arange(6).reshape(2, 3))
    half = nccl.all_reduce(xp.ones(3, "float16"))
    assert half.dtype == "float16" and backend.to_numpy(half).tolist() == [1.0] * 3
    flat = xp.arange(4, dtype="float32")
    request = nccl.start_all_reduce(flat)
    request.wait()
    assert request.test() is True and backend.to_numpy(flat).tolist() == [0, 1, 2, 3]


def test_what_nccl_is_asked(nccl):
    _exchanges(nccl, backend.load_cuda().xp)
    assert set(nccl._nccl.streams) == {nccl._stream.ptr} and nccl._stream.ptr != 0


def test_arrays_of_the_host_go_over_mpi(nccl):
    x = np.arange(3.0)
    assert all(type(y) is np.ndarray for y in (nccl.all_reduce(x), nccl.broadcast(x), nccl.all_gather(x)))
    assert nccl.gather_text("a") == ["a"] and nccl.start_all_reduce(x).test()


def test_too_few_gpus(nccl):
    host = Communicator()
    host.rank, host.local_rank = 3, 1
    message = "distributed: NCCL needs a GPU for each rank of a machine; rank 3 is its number 1, and there are 1"
    with pytest.raises(RuntimeError, match=message):
        NCCLCommunicator(host)


def test_without_nccl(nccl):
    assert start._a_gpu_each(Communicator())
    sys.modules[f"{backend.load_cuda().xp.__name__}.cuda.nccl"].available = False
    with pytest.raises(RuntimeError, match="distributed: NCCL is not installed: pip install nvidia-nccl-cu12"):
        NCCLCommunicator(Communicator())
    assert not start._a_gpu_each(Communicator())  # so that init() exchanges over the host


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_one_rank_on_a_gpu(device):
    if library() is None:
        pytest.skip("NCCL is not installed: pip install nvidia-nccl-cu12")
    _exchanges(NCCLCommunicator(Communicator()), device.xp)


@pytest.mark.gpu
@pytest.mark.skipif(not os.environ.get("EMULATED_GPU"), reason="asks for emulated GPUs: EMULATED_GPU=1")
@pytest.mark.parametrize("ranks", [3])
def test_ranks_with_an_emulated_gpu_each_equal_one_process(monkeypatch, ranks):
    """Parts of any size, empty ones too, over NCCL: the losses of one process on the CPU, and the same bits on every rank."""
    if mpiexec.MISSING:
        pytest.skip(mpiexec.MISSING)
    monkeypatch.setattr(same_training, "STEPS", 12)
    alone = same_training.train("equal", False)
    monkeypatch.setenv("EMULATED_GPU_COUNT", str(ranks))
    monkeypatch.setenv("TINYGRAD_BN_DEVICE", "cuda")
    process = mpiexec.run(ranks, HERE / "on_emulated_gpus.py", folders=(HERE.parent,))
    assert process.returncode == 0, process.stderr
    everywhere = json.loads(process.stdout)
    assert len(everywhere) == ranks
    for way in ("equal parts", "unequal parts"):
        for found in everywhere:
            np.testing.assert_allclose(found[way]["losses"], alone["losses"], rtol=0, atol=1e-10)
            assert found[way]["checksum"] == everywhere[0][way]["checksum"]
