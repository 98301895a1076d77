"""DataParallel: the gradient of the whole batch, whatever parts of it the ranks have."""

from __future__ import annotations

import copy
import gc
import re
import sys
import weakref
from pathlib import Path

import mpiexec
import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import distributed, nn
from tinygrad_bn.core import modes
from tinygrad_bn.distributed import mpi
from tinygrad_bn.distributed.communicators import current
from tinygrad_bn.distributed.gradients import GradientExchange

SIZES = [5, 0, 2, 7]  # examples of each rank
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(14, 6)), RNG.normal(size=(14, 3))


def rows() -> slice:
    """This rank's."""
    ends = np.cumsum(SIZES[: distributed.size() - 1]).tolist() + [14]
    return slice([0, *ends][distributed.rank()], ends[distributed.rank()])


def net(seed: int = 0, norm: bool = False) -> nn.Sequential:
    tg.manual_seed(seed)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Linear(8, 3)).double()


def loss_of(y: tg.Tensor, target: np.ndarray) -> tg.Tensor:
    """The mean over examples; 0 of none."""
    return ((y - tg.tensor(target)) ** 2).sum() * (1.0 / max(len(target), 1))


def gradients(module: nn.Module) -> np.ndarray:
    return np.concatenate([p.grad.numpy().ravel() for p in module.parameters()])


def expected(penalty: float = 0.0) -> np.ndarray:
    """The gradient of the whole batch, in one process."""
    alone = net()
    (loss_of(alone(tg.tensor(X)), Y) + penalty * sum((p * p).sum() for p in alone.parameters())).backward()
    return gradients(alone)


def everywhere(x: np.ndarray) -> bool:
    """Whether all ranks have the same bits."""
    return len(set(current().gather_text(x.tobytes().hex()))) == 1


# ----- on several ranks


def check_gradients_of_unequal_parts():
    for bucket_bytes, mpi._POSTPONED_BYTES in ((None, 1 << 12), (1, 1 << 12), (300, 1 << 12), (None, 0), (300, 600)):
        module = net(seed=distributed.rank())  # which rank 0's replaces
        model = distributed.DataParallel(module, bucket_bytes=bucket_bytes)
        for _ in range(2):
            module.zero_grad()
            loss_of(model(tg.tensor(X[rows()])), Y[rows()]).backward()
            assert np.allclose(gradients(module), expected(), rtol=1e-13, atol=1e-15) and everywhere(gradients(module))


def check_large_sums_of_one_machine_wait():
    mpi._POSTPONED_BYTES = 1 << 12
    for size, kind in ((8, mpi.MPIRequest), (4096, mpi.PostponedSum)):
        flat = np.full(size, distributed.rank() + 1.0)
        request = current().start_all_reduce(flat)
        assert type(request) is kind
        while kind is mpi.MPIRequest and not request.test():
            pass
        request.wait()
        assert set(flat) == {distributed.size() * (distributed.size() + 1) / 2}


def check_a_penalty_counts_once():
    module = net()
    model = distributed.DataParallel(module)
    (loss_of(model(tg.tensor(X[rows()])), Y[rows()]) + 0.1 * sum((p * p).sum() for p in module.parameters())).backward()
    assert np.allclose(gradients(module), expected(0.1), rtol=1e-13, atol=1e-15)


def check_accumulation():
    module = net()
    model = distributed.DataParallel(module)
    halves = [slice(0, 9), slice(9, 14)]  # of the batch; each rank has a part of each, of its own size
    want = np.zeros_like(expected())
    for half in halves:
        alone = net()
        loss_of(alone(tg.tensor(X[half])), Y[half]).backward()
        want += gradients(alone)

    def backward(half: slice) -> None:
        ends = np.linspace(0, 1, distributed.size() + 1) ** 2 * (half.stop - half.start) + half.start
        mine = slice(int(ends[distributed.rank()]), int(ends[distributed.rank() + 1]))
        loss_of(model(tg.tensor(X[mine])), Y[mine]).backward()

    with model.no_sync():
        backward(halves[0])
    assert not everywhere(gradients(module))
    backward(halves[1])
    assert np.allclose(gradients(module), want, rtol=1e-13, atol=1e-15) and everywhere(gradients(module))
    module.zero_grad()
    for half in halves:
        backward(half)
    assert np.allclose(gradients(module), want, rtol=1e-13, atol=1e-15)


class Branches(nn.Module):
    """Uses one layer on each rank, and one on none."""

    def __init__(self):
        self.layers = [nn.Linear(6, 3).double() for _ in range(distributed.size() + 1)]
        for i, layer in enumerate(self.layers):
            setattr(self, f"layer{i}", layer)

    def forward(self, x):
        return self.layers[distributed.rank()](x)


def check_parameters_without_a_gradient():
    tg.manual_seed(0)
    module = Branches()
    model = distributed.DataParallel(module)
    module.layer0.bias.requires_grad = False
    x, y = tg.tensor(X[:3]), Y[:3]
    loss_of(model(x), y).backward()
    for i in range(distributed.size()):
        loss = loss_of(module.layers[i](x), y)
        (want,) = tg.grad(loss, [module.layers[i].weight])
        assert np.allclose(module.layers[i].weight.grad.numpy(), want.numpy() / distributed.size(), rtol=1e-13)
    assert module.layers[-1].weight.grad is None and module.layer0.bias.grad is None
    module.zero_grad()
    module.layer0.bias.requires_grad = True  # thawed: it is exchanged from now on
    loss_of(model(x), y).backward()
    assert module.layer0.bias.grad is not None and everywhere(module.layer0.bias.grad.numpy())


def parted(rank_0: str, rank_1: str):
    """Every rank is told the first difference between them, and that this wrapper is of no use any more."""
    return pytest.raises(
        ValueError, match=f"the same of every rank, got {rank_0} on rank 0, and {rank_1} on rank [1-9]; to go on"
    )


def check_ranks_that_freeze_different_parameters():
    module = net()
    model = distributed.DataParallel(module)
    if distributed.rank():
        module[0].weight.requires_grad = False
    frozen = r"parameter '0.weight': float64 of shape \(8, 6\)"
    with parted(frozen, f"{frozen}, frozen"):
        model(tg.tensor(X[:2]))
    with pytest.raises(RuntimeError, match="an error left an exchange with other ranks; wrap the model anew on all of them"):
        model(tg.tensor(X[:2]))
    module[0].weight.requires_grad = True
    again = distributed.DataParallel(module)
    again(tg.tensor(X[rows()])).sum().backward()
    assert everywhere(gradients(module))


def check_a_rank_that_skips_backward():
    """By itself, or because it alone is under no_sync(). Nothing is exchanged with what was never meant."""
    first = distributed.rank() == 0
    for skip in ("backward", "no_sync"):
        for bucket_bytes in (1, None):
            module = net()
            model = distributed.DataParallel(module, bucket_bytes=bucket_bytes)
            loss = model(tg.tensor(X[:3])).sum()
            with parted("backward", "forward"):
                if first:
                    loss.backward()
                elif skip == "no_sync":
                    with model.no_sync():
                        loss.backward()
                model(tg.tensor(X[:3]))
    distributed.barrier()


def check_errors_that_are_caught():
    """MPI goes on with what an error left behind: it must not write into memory that is somebody else's by then."""
    module = net()
    model = distributed.DataParallel(module)
    zeros = []
    for _ in range(500):
        with pytest.raises(ValueError, match="Linear expected"):
            model(tg.tensor(np.ones((2 + distributed.rank(), 5))))
        zeros.append(np.zeros(3))
    for _ in range(20):
        broken = distributed.DataParallel(net(), bucket_bytes=1)

        def fails(g):
            raise KeyError

        broken.module[0].bias.register_hook(fails)
        with pytest.raises(KeyError):
            broken(tg.tensor(X[:2])).sum().backward()
        del broken
        zeros += [np.zeros(n) for n in (3, 8, 24, 48)]
    distributed.barrier()
    loss_of(model(tg.tensor(X[rows()])), Y[rows()]).backward()
    assert np.allclose(gradients(module), expected(), rtol=1e-13, atol=1e-15)
    assert not any(z.any() for z in zeros)


def check_each_operation_of_forward_lets_the_notice_go_on():
    """MPI sends nothing unless it is asked to."""
    asked = []

    class Watched(nn.Linear):
        def forward(self, x):
            request = exchange._notice.request
            monitored, request.test = request.test, lambda: asked.append(monitored())
            return super().forward(x)

    model = distributed.DataParallel(Watched(6, 3).double())
    exchange = model._exchange
    model(tg.tensor(X[:3]))
    assert asked
    assert exchange._waiting is None


def check_a_model_that_changed():
    module = net(norm=True)
    model = distributed.DataParallel(module)
    added = nn.Linear(3, 3).double()
    setattr(module, "9", added)
    with pytest.raises(RuntimeError, match="other parameters than when it was wrapped; wrap it anew on all ranks"):
        model(tg.tensor(X[:3]))
    distributed.DataParallel(module)(tg.tensor(X[:3])).sum().backward()
    assert everywhere(added.weight.grad.numpy())


def check_buffers_of_a_layer_that_came_later():
    """SyncBatchNorm made BatchNorm again, after the model was wrapped: rank 0's statistics become those of all."""
    module = distributed.convert_sync_batchnorm(net(norm=True))
    model = distributed.DataParallel(module)
    tg.batchnorm.convert(module, "batch")
    model(tg.tensor(np.random.default_rng(distributed.rank()).normal(size=(4, 6)))).sum().backward()
    assert everywhere(module[1].running_mean.numpy()) and everywhere(module[1].running_var.numpy())


def check_wrapping_again():
    module = net()
    old = distributed.DataParallel(module)
    old(tg.tensor(X[rows()])).sum().backward()
    kept = old if distributed.rank() == 0 else None  # as by a traceback
    del old
    gc.collect()
    model = distributed.DataParallel(module)
    module.zero_grad()
    loss_of(model(tg.tensor(X[rows()])), Y[rows()]).backward()
    assert np.allclose(gradients(module), expected(), rtol=1e-13, atol=1e-15)
    if kept is not None:
        with pytest.raises(RuntimeError, match="another DataParallel was made of this model since; use that one"):
            kept(tg.tensor(X[:2]))
    with pytest.raises(TypeError, match="expected a model without a DataParallel in it; wrap its .module"):
        distributed.DataParallel(nn.Sequential(model))
    with pytest.raises(TypeError, match="a DataParallel is not copied, for its exchange would be; copy its .module"):
        copy.deepcopy(model)
    for _ in range(3000):  # MPI has 2,048 communicators
        distributed.DataParallel(module)


def check_models_that_differ():
    r = distributed.rank()
    width = 8 if r == 0 else 9
    wide = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, width), nn.Linear(width, 3))
    message = (
        "DataParallel expected the same model on every rank; the first difference is parameter '1.weight': float32 of shape "
        "(8, 8) on rank 0, parameter '1.weight': float32 of shape (9, 8) on rank 1"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        distributed.DataParallel(wide)
    with pytest.raises(ValueError, match="parameter '0.bias': float32 of shape \\(2,\\) on rank 0, no further one on rank 1"):
        distributed.DataParallel(nn.Sequential(nn.Linear(2, 2, bias=r == 0)))
    with pytest.raises(ValueError, match="buffer 'running_mean'.* on rank 0, no further one on rank 1"):
        distributed.DataParallel(nn.BatchNorm1d(2, track_running_stats=r == 0))
    with pytest.raises(ValueError, match="float64 of shape \\(2, 2\\) on rank 0, parameter 'weight': float32"):
        distributed.DataParallel(nn.Linear(2, 2).to(dtype="float32" if r else "float64"))


def check_weights_and_buffers_of_rank_0():
    r = distributed.rank()
    module = net(seed=r, norm=True)
    module(tg.tensor(X[: 4 + r]))
    for _ in range(r):
        module(tg.tensor(X))
    distributed.DataParallel(module)
    state = module.state_dict()
    assert all(everywhere(np.asarray(value)) for value in state.values())
    assert module[1].num_batches_tracked == 1 and everywhere(np.array(module[1].num_batches_tracked))


def check_buffers_become_rank_0s():
    r = distributed.rank()
    module = net(norm=True)
    model = distributed.DataParallel(module)
    mine = slice(4 * r, 4 * r + 4)
    loss = loss_of(model(tg.tensor(X[mine])), Y[mine])
    local = module[1].running_mean.numpy().copy()
    assert not everywhere(local)
    held = module[1].running_mean
    with model.no_sync():
        loss_of(model(tg.tensor(X[mine])), Y[mine]).backward()
    assert not everywhere(module[1].running_mean.numpy())
    loss.backward()
    assert everywhere(module[1].running_mean.numpy()) and everywhere(module[1].running_var.numpy())
    assert np.array_equal(held.numpy(), local)  # replaced, never changed
    if r == 0:
        alone = net(norm=True)
        for _ in range(2):
            alone(tg.tensor(X[mine]))
        assert np.array_equal(module[1].running_mean.numpy(), alone[1].running_mean.numpy())


def check_dtypes_and_outputs():
    r = distributed.rank()
    half = nn.Linear(6, 3).to(dtype="float16")
    model = distributed.DataParallel(half)
    (model(tg.tensor(np.full((2, 6), r + 1.0, np.float16))).sum() * (1 / 2)).backward()
    assert half.weight.grad.dtype == "float16" and np.allclose(
        half.weight.grad.numpy(), np.mean(np.arange(distributed.size()) + 1)
    )

    class Several(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(6, 3).double()

        def forward(self, x, kind):
            y = self.layer(x)
            return {"dict": {"y": y, "n": tg.tensor([1])}, "list": [y], "tuple": (y,), "string": "y"}[kind]

    n, several = 5 if r else 1, Several()  # on no rank the mean of all
    sizes = [1] + [5] * (distributed.size() - 1)
    model = distributed.DataParallel(several)
    for kind, key in (("dict", "y"), ("list", 0), ("tuple", 0)):
        several.zero_grad()
        (model(tg.tensor(X[:n]), kind)[key].sum() * (1.0 / n)).backward()
        assert np.allclose(several.layer.bias.grad.numpy(), 1.0, rtol=1e-14)
        assert np.allclose(
            several.layer.weight.grad.numpy()[0],
            sum(X[:k].sum(0) for k in sizes) / sum(sizes),
            rtol=1e-13,
        )
    with pytest.raises(TypeError, match="expected the model to return a Tensor, or a tuple, list or dict of them, got str"):
        model(tg.tensor(X[:n]), "string")
    weighed = distributed.DataParallel(several, count=lambda x, kind: 3.0 if r == 0 else 0.0)
    several.zero_grad()
    (weighed(tg.tensor(X[r : r + 1]), "tuple")[0].sum()).backward()
    assert np.allclose(several.layer.weight.grad.numpy(), X[0], rtol=1e-14)
    nobody = distributed.DataParallel(several, count=lambda *_: 0)
    with pytest.raises(ValueError, match=f"expected examples on some rank, got 0 on all {distributed.size()}"):
        nobody(tg.tensor(X), "tuple")


def check_what_is_refused():
    model = distributed.DataParallel(net())
    for bad, got in (((), "no positional argument"), ((3.0,), "float"), ((np.array(1.0),), "ndarray")):
        with pytest.raises(TypeError, match=f"expected a first argument of shape \\(N, ...\\), or count=..., got {got}"):
            model(*bad)
    with pytest.raises(ValueError, match="what count returns to be finite, got inf"):
        distributed.DataParallel(net(), count=lambda *_: float("inf"))(tg.tensor(X))
    with pytest.raises(ValueError, match="what count returns to be a number of at least 0, got -1"):
        distributed.DataParallel(net(), count=lambda *_: -1)(tg.tensor(X))
    loss = loss_of(model(tg.tensor(X)), Y)
    with pytest.raises(ValueError, match="cannot exchange gradients that were recorded"):
        loss.backward(create_graph=True)
    with pytest.raises(RuntimeError, match="an error left an exchange with other ranks; wrap the model anew on all of them"):
        model(tg.tensor(X))


def check_nothing_is_exchanged_without_gradients():
    model = distributed.DataParallel(net())
    if distributed.rank() == 0:  # alone: it waits for nobody
        with tg.no_grad():
            model(tg.tensor(X))
        assert len(model.module(tg.tensor(X))) == 14
    weights, x = list(model.module.parameters()), tg.tensor(X[rows()])
    tg.grad(loss_of(model(x), Y[rows()]), weights)  # grad() delivers to no leaf
    assert all(p.grad is None for p in weights)
    other = net(1)
    loss_of(other(x), Y[rows()]).backward()  # somebody else's backward
    assert all(p.grad is None for p in weights)


def check_nodes_keep_what_they_kept():
    alone, model = net(), distributed.DataParallel(net())
    kept, kept_here = (
        [[type(a).__name__ for a in node.inputs] for node in _nodes(m(tg.tensor(X)).node)] for m in (alone, model)
    )
    assert kept_here[-len(kept) :] == kept or kept_here == kept


def _nodes(node):
    found = [node]
    for n in found:
        found += [p for p in n.parents if isinstance(p, type(node)) and p not in found]
    return sorted(found, key=lambda n: n.number)


def check_nobody_listens_after_the_end():
    model = distributed.DataParallel(net())
    before = modes._listeners.copy()
    mine = before[-1]
    assert isinstance(mine, GradientExchange)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and modes._listeners == before[:-1]


def check_checkpoints():
    folder = sys.argv[1]
    r = distributed.rank()
    data = tg.datasets.batches(X, Y, 4, shuffle=True, seed=3)

    def parts(seed):
        module = net(seed, norm=True)
        return module, tg.optim.SGD(module.parameters(), lr=0.01, momentum=0.9), data

    module, optimizer, _ = parts(0)
    checkpoint = distributed.Checkpoint(folder, keep=2)
    assert checkpoint.load_latest(module, optimizer, None, data) is None
    steps = iter(distributed.shard(data))
    for step in (1, 2, 3):
        x, y = next(steps)
        optimizer.zero_grad()
        loss_of(module.eval()(tg.tensor(x)), y).backward()
        optimizer.step()
        path = checkpoint.save(step, module, optimizer, None, data, extra={"rank": r})
    distributed.barrier()
    other, its_optimizer, _ = parts(1)
    data.set_epoch(5)
    # what only rank 0 can see
    loaded = distributed.Checkpoint(folder if r == 0 else f"{folder}-is-elsewhere").load_latest(
        other, its_optimizer, None, data
    )
    assert loaded.step == 3 and loaded.extra == {"rank": 0} and path.name == "step-00000003.safetensors"
    assert all(everywhere(np.asarray(v)) for v in other.state_dict().values())
    assert everywhere(its_optimizer.state_dict()["state"][0]["momentum_buffer"])
    assert data.state_dict()["batch"] == 3 and data.epoch == 0
    with pytest.raises(ValueError, match="does not fit"):
        distributed.Checkpoint(folder).load_latest(nn.Linear(2, 2), its_optimizer, None, data)
    if r == 0:
        reads, Path.read_bytes = Path.read_bytes, unreadable
    with pytest.raises(OSError, match="rank 0 could not read a checkpoint: .* on fire"):
        distributed.Checkpoint(folder).load_latest(other)
    if r == 0:
        Path.read_bytes = reads


def unreadable(path):
    raise OSError(f"{path} is on fire")


CHECKS = [name for name in dir() if name.startswith("check_")]


@pytest.mark.skipif(mpiexec.MISSING is not None, reason=str(mpiexec.MISSING))
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_on_several_ranks(ranks, tmp_path):
    done = mpiexec.run(ranks, __file__, tmp_path / "run", *CHECKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["step-00000002.safetensors", "step-00000003.safetensors"]


# ----- in a single process


def test_one_process_has_the_model_alone():
    module = net()
    listening = modes._listeners.copy()
    model = distributed.DataParallel(module)
    assert modes._listeners == listening
    x = tg.tensor(X)
    assert np.array_equal(model(x).detach().numpy(), module(x).detach().numpy())
    with model.no_sync():
        loss_of(model(x), Y).backward()
    assert np.array_equal(gradients(module), expected())
    assert model.state_dict().keys() == module.state_dict().keys()
    model.load_state_dict(net(1).state_dict())
    assert np.array_equal(module[0].weight.data, net(1)[0].weight.data)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3,), {}, "DataParallel expected a Module, got int"),
        ((nn.ReLU(),), {"bucket_bytes": 0}, "DataParallel expected bucket_bytes to be an int of at least 1, got 0"),
        ((nn.ReLU(),), {"count": 3}, "DataParallel expected count to be a function of forward's arguments, got int"),
    ],
    ids=["no-module", "no-bytes", "no-function"],
)
def test_what_is_refused(arguments, options, message):
    with pytest.raises((TypeError, ValueError)) as error:
        distributed.DataParallel(*arguments, **options)
    assert str(error.value) == message


if __name__ == "__main__":
    distributed.init()
    for name in sys.argv[2:]:
        globals()[name]()
        distributed.barrier()
        if distributed.rank() == 0:
            print(name, flush=True)
