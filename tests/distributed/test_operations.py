"""Exchanges and their gradients: each check runs on all ranks, in one start of mpiexec for all checks."""

from __future__ import annotations

import sys

import mpiexec
import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import distributed
from tinygrad_bn.distributed.communicators import Communicator, current

# ----- on several ranks


def check_sums_and_means():
    r, n = distributed.rank(), distributed.size()
    x = np.arange(6.0).reshape(2, 3) + r
    total = distributed.all_reduce(x)
    assert np.array_equal(total, np.arange(6.0).reshape(2, 3) * n + n * (n - 1) / 2) and np.array_equal(x[0], [r, r + 1, r + 2])
    assert np.allclose(distributed.all_reduce(tg.tensor(x), "mean").numpy(), total / n, rtol=1e-15)
    assert distributed.all_reduce(np.array(r)).tolist() == n * (n - 1) // 2 and distributed.all_reduce(np.array(r)).shape == ()
    assert np.array_equal(distributed.all_reduce(x.T[::2]), total.T[::2])  # whatever lies where
    half = distributed.all_reduce(np.array([1.0 if r else 2048.0], np.float16))  # 2048 + 1 is 2048 in float16
    assert half.dtype == "float16" and half.tolist() == [np.float16(2047.0 + n)]
    assert distributed.all_reduce(np.zeros((0, 3))).shape == (0, 3)


def check_same_bits_on_every_rank():
    x = np.random.default_rng(distributed.rank()).normal(size=10_001).astype(np.float32)
    total = distributed.all_reduce(x)
    assert len(set(current().gather_text(str(total.tobytes())))) == 1
    assert np.array_equal(total, distributed.all_reduce(x))


def check_broadcast():
    r, n = distributed.rank(), distributed.size()
    for root in range(n):
        assert distributed.broadcast(np.array([r, 7]), root).tolist() == [root, 7]
    x = tg.tensor(np.array([1.0 + r]), requires_grad=True)
    (distributed.broadcast(x, 1) * (r + 1.0)).backward()
    assert x.grad.numpy().tolist() == ([n * (n + 1) / 2] if r == 1 else [0.0])


def check_gradients():
    r = distributed.rank()
    rng = np.random.default_rng(r)
    few, many = rng.normal(size=4), rng.normal(size=(r + 2, 4))
    distributed.check_grads(lambda a, b: (distributed.all_reduce(a * a) * b).tanh(), [few, many], order=3)
    distributed.check_grads(lambda a: distributed.broadcast(a.exp(), 1) * (r + 1.0) * a, few, order=3)
    distributed.check_grads(lambda a: distributed.all_reduce(a**3, "mean"), few, order=2)
    for wrong in (lambda a: distributed.all_reduce(a.detach()) * a, lambda a: a * a if r == 0 else a * a + a.detach()):
        with pytest.raises(AssertionError, match="derivative of order 1"):  # on all ranks, also those that are right
            distributed.check_grads(wrong, few, order=1)


def check_differences_are_told_everywhere():
    r = distributed.rank()
    with pytest.raises(ValueError, match=r"all_reduce of float64 \(1,\) on rank 0, and all_reduce of float64 \(2,\) on rank 1"):
        distributed.all_reduce(np.ones(r + 1))
    with pytest.raises(ValueError, match=r"got all_reduce of float32 \(2,\) on rank 0, and barrier on rank 1"):
        distributed.barrier() if r else distributed.all_reduce(np.ones(2, np.float32))
    with pytest.raises(
        ValueError, match=r"broadcast from 0 of int64 \(\) on rank 0, and broadcast from 1 of int64 \(\) on rank 1"
    ):
        distributed.broadcast(np.array(3), min(r, 1))
    with (
        tg.set_grad_enabled(r == 0),
        pytest.raises(ValueError, match=r"of float64 \(1,\) on rank 0, and .*, under no_grad\(\)"),
    ):
        distributed.all_reduce(np.ones(1))
    distributed.barrier()


def check_a_gradient_that_only_rank_0_wants():
    """All take part in it: a rank that did not would let the others wait for ever."""
    first = distributed.rank() == 0
    for exchange, times in ((distributed.broadcast, distributed.size()), (distributed.all_reduce, distributed.size())):
        x, w = tg.tensor(np.ones(3), requires_grad=first), tg.tensor(np.ones(3), requires_grad=True)
        y = exchange(x if first else np.zeros(3))
        (y * w).sum().backward()
        assert w.grad.numpy().tolist() == [1.0] * 3
        assert (x.grad.numpy().tolist() == [times] * 3) if first else x.grad is None


def check_means():
    n = distributed.size()
    half = distributed.all_reduce(np.full(2, 60000, np.float16), "mean")  # whose sum is more than float16 has
    assert half.dtype == "float16" and half.tolist() == [60000] * 2
    whole = distributed.all_reduce(np.arange(3), "mean")
    assert whole.dtype == "float64" and whole.tolist() == [0, 1, 2]
    assert distributed.all_reduce(np.ones(3).sum()) == 3 * n and distributed.all_reduce(np.float32(2), "mean") == 2


def check_texts_and_rows():
    r, n = distributed.rank(), distributed.size()
    assert current().gather_text("é" * r) == ["é" * k for k in range(n)]
    rows = current().all_gather(np.array([[r, 1]], ">i4"))
    assert rows.dtype == ">i4" and rows.tolist() == [[[k, 1]] for k in range(n)]
    assert (current().name, current().local_size, current().local_rank) == ("mpi", n, r)


def check_the_start():
    distributed.init()
    distributed.init("mpi")
    with pytest.raises(ValueError, match="expected 'mpi', which init\\(\\) has chosen before, got 'single'"):
        distributed.init("single")
    assert tg.get_num_threads() == max(1, CORES // distributed.size())
    keys = current().gather_text(str(_key()))
    assert len(set(keys)) == distributed.size()  # each rank drops other elements,
    assert len(set(current().gather_text(str(tg.get_rng_state())))) == 1  # and goes on alike


def _key() -> int:
    tg.manual_seed(5)
    return tg.random.draw_key()


CHECKS = [name for name in dir() if name.startswith("check_")]
CORES = tg.get_num_threads()


@pytest.mark.skipif(mpiexec.MISSING is not None, reason=str(mpiexec.MISSING))
@pytest.mark.parametrize("ranks", [2, 3])
def test_exchanges_on_several_ranks(ranks):
    done = mpiexec.run(ranks, __file__, *CHECKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS


# ----- in a single process


def test_every_exchange_of_one_process_is_the_identity():
    x = tg.tensor(np.arange(3.0), requires_grad=True)
    assert distributed.all_reduce(np.arange(3), "mean").dtype == "float64"
    assert distributed.all_reduce(x) is x and distributed.all_reduce(x, "mean") is x and distributed.broadcast(x) is x
    assert (distributed.rank(), distributed.size()) == (0, 1) and distributed.barrier() is None
    alone = Communicator()
    for y in (alone.all_reduce(x.data), alone.broadcast(x.data), alone.all_gather(x.data)[0]):
        assert np.array_equal(y, x.data) and y is not x.data and not np.shares_memory(y, x.data)
    assert alone.gather_text("a") == ["a"] and alone.duplicate() is alone and alone.start_all_reduce(x.data).test()
    distributed.check_grads(lambda a: distributed.all_reduce(a) ** 2, x, order=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distributed.all_reduce(3.0), "all_reduce expected a Tensor or an array as 'x', got float"),
        (lambda: distributed.all_reduce(np.array([True])), "all_reduce expected floats or integers, got bool"),
        (lambda: distributed.all_reduce(np.ones(2, ">f8")), "all_reduce expected this machine's byte order, got >f8"),
        (lambda: distributed.all_reduce(np.ones(2), "max"), "all_reduce expected op to be 'sum' or 'mean', got 'max'"),
        (lambda: distributed.broadcast(np.ones(2), 1), "broadcast expected root to be a rank from 0 to 0, got 1"),
        (lambda: distributed.broadcast(np.ones(2), True), "broadcast expected root to be a rank from 0 to 0, got True"),
        (lambda: distributed.broadcast([1.0]), "broadcast expected a Tensor or an array as 'x', got list"),
        (lambda: distributed.init("gloo"), "distributed.init expected backend to be 'mpi', 'nccl' or 'single', got 'gloo'"),
    ],
    ids=["number", "bool", "other-order", "max", "no-such-root", "bool-root", "list", "backend"],
)
def test_what_is_refused(call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, True),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "3"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, False),
        ({"PMIX_RANK": "3"}, True),
        ({"SLURM_NTASKS": "8"}, False),
    ],
    ids=["alone", "mpich", "mpich-one", "open-mpi", "open-mpi-one", "srun-pmix", "in-an-allocation"],
)
def test_how_a_launcher_is_told(environment, found):
    from tinygrad_bn.distributed.start import started_by_launcher

    assert started_by_launcher(environment) is found


def test_one_of_several_processes_must_call_init_first(monkeypatch, tmp_path):
    """It would take itself for the only one, and so would every other."""
    from tinygrad_bn.distributed import start

    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(start, "_chosen", [])
    model, x = tg.nn.Linear(2, 1), np.ones((4, 2), "f4")
    for call in (
        lambda: distributed.all_reduce(x),
        lambda: distributed.broadcast(x),
        distributed.barrier,
        lambda: distributed.DataParallel(model),
        lambda: distributed.shard(tg.datasets.batches(x, np.arange(4), 2)),
        lambda: distributed.Checkpoint(tmp_path).save(1, model),
        lambda: distributed.Checkpoint(tmp_path).load_latest(model),
    ):
        with pytest.raises(RuntimeError, match=r"this process is one of several; call distributed.init\(\) first"):
            call()
    assert len(distributed.shard(tg.datasets.batches(x, np.arange(4), 2), 0, 2)) == 2  # of whom it is told
    assert not list(tmp_path.iterdir())


if __name__ == "__main__":
    distributed.init()
    for name in sys.argv[1:]:
        globals()[name]()
        distributed.barrier()
        if distributed.rank() == 0:
            print(name, flush=True)
