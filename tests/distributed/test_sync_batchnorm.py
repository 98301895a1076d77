"""SyncBatchNorm on parts is BatchNorm on the joined batch. What runs on several ranks does so in one start of mpiexec."""

from __future__ import annotations

import copy
import sys
import warnings
from contextlib import contextmanager

import mpiexec
import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import distributed, interop, nn, optim
from tinygrad_bn.backend import cpu, portable
from tinygrad_bn.distributed import sync_batchnorm
from tinygrad_bn.distributed.communicators import Communicator, current
from tinygrad_bn.distributed.sync_batchnorm import sync_batch_norm, sync_batch_norm_composed

N, C = 11, 3
SHAPES = {(N, C): nn.BatchNorm1d, (N, C, 5): nn.BatchNorm1d, (N, C, 4, 4): nn.BatchNorm2d, (N, C, 2, 3, 2): nn.BatchNorm3d}
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 1e-2}


def divisions(n: int = N) -> list[list[int]]:
    """Where the parts of n examples begin, and the last one ends: equal ones, one of one, empty ones, all in one."""
    ranks = distributed.size()
    equal = [n * r // ranks for r in range(ranks + 1)]
    few = [min(r, n) for r in range(ranks)] + [n]  # one each, but the last
    return [equal, few, [0] * ranks + [n], [0] + [n] * ranks]


def layer_and_one(kind, dtype: str, **options):
    """A layer for parts, and BatchNorm for all."""
    one = kind(C, **options).to(dtype="float32" if dtype == "float16" else dtype)
    rng = np.random.default_rng(7)
    for p in one.parameters():
        p.data = rng.normal(1.0, 0.5, C).astype(p.dtype)
    return distributed.convert_sync_batchnorm(copy.deepcopy(one)), one


def differences(shape, cut, dtype="float64", large=0.0, steps=2, layer=None, **options) -> dict[str, float]:
    """By how much a part's results differ from BatchNorm's on the joined batch: output, gradients, running statistics."""
    ours, one = layer_and_one(SHAPES[shape], dtype, **options)
    ours = layer or ours
    rng = np.random.default_rng(distributed.size())
    here = slice(*cut[distributed.rank() : distributed.rank() + 2])
    worst: dict[str, float] = {}
    for _ in range(steps):
        x, g = (rng.normal(large, 2.0, shape).astype(dtype), rng.normal(size=shape).astype(dtype))
        results = []
        for model, rows in ((ours, here), (one, slice(None))):
            for p in model.parameters():
                p.grad = None
            t = tg.tensor(x[rows], requires_grad=True)
            y = model(t)
            assert y.dtype == dtype and y.shape == x[rows].shape
            y.backward(tg.tensor(g[rows]))
            grads = [p.grad.data for p in model.parameters()]
            if model is ours:
                grads = [distributed.all_reduce(grad) for grad in grads]
            found = {"y": y.data, "dx": t.grad.data, **dict(zip(("dgamma", "dbeta"), grads, strict=False))}
            if model is one:
                found["y"], found["dx"] = found["y"][here], found["dx"][here]
            if model.running_mean is not None:
                found |= {"running_mean": model.running_mean.data, "running_var": model.running_var.data}
                assert model.num_batches_tracked == one.num_batches_tracked or model is ours
            results.append(found)
        for name, a in results[0].items():
            assert a.dtype == results[1][name].dtype
            b = results[1][name].astype(float)
            gap = np.abs(a.astype(float) - b).max(initial=0.0) / max(1.0, np.abs(b).max(initial=0.0))
            worst[name] = max(worst.get(name, 0.0), float(gap))
    return worst


def everywhere(number: float) -> float:
    """The largest of all ranks' numbers."""
    return float(current().all_gather(np.array(number)).max())


@contextmanager
def replaced(owner, name, value):
    """The attribute is another one, on all ranks, while the block runs."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)


# ----- on several ranks


def check_parts_equal_the_joined_batch():
    for shape in SHAPES:
        for cut in divisions():
            for dtype, tolerance in TOLERANCE.items():
                for options in ({}, {"affine": False, "momentum": None}, {"variance": "biased", "fused": False}):
                    found = differences(shape, cut, dtype, **options)
                    assert max(found.values()) < tolerance, (shape, cut, dtype, options, found)


def check_one_class_takes_every_number_of_positions():
    for shape in SHAPES:
        layer = distributed.SyncBatchNorm(C).double()
        for p, q in zip(layer.parameters(), layer_and_one(nn.BatchNorm1d, "float64")[1].parameters(), strict=True):
            p.data = q.data.copy()
        assert max(differences(shape, divisions()[0], layer=layer, steps=1).values()) < 1e-12


def check_large_means_and_constants():
    for fused in (True, False):
        assert max(differences((N, C, 5), divisions()[1], large=1e6, fused=fused).values()) < 1e-8
        assert max(differences((N, C, 5), divisions()[1], "float32", large=1e3, fused=fused).values()) < 1e-3
    for cut in divisions():
        rows = cut[distributed.rank() + 1] - cut[distributed.rank()]
        x = np.full((rows, C, 2), 0.1, np.float32)
        y, (mean, var, count) = sync_batch_norm(x)
        assert not y.any() and not var.any() and (mean == float(np.float32(0.1))).all() and count == 2 * N


def check_channels_last_and_large_inputs():
    """Compiled kernels of several items, in each layout."""
    r = distributed.rank()
    rng = np.random.default_rng(3)
    for shape in ((33, 24, 14, 14), (2000, 70), (6, 2, 90, 91)):
        x, g = (rng.normal(3, 1, shape).astype("float32") for _ in "xg")
        rows = slice(*np.linspace(0, shape[0], distributed.size() + 1).astype(int)[r : r + 2])
        y, (mean, var) = portable.batch_norm(x, None, None, 1e-5)
        dx = portable.batch_norm_backward(g, x, None, mean, var, 1e-5)[0]
        for last in (False, True):
            a, b = (np.moveaxis(np.ascontiguousarray(np.moveaxis(v[rows], 1, -1)), -1, 1) if last else v[rows] for v in (x, g))
            t = tg.tensor(a, requires_grad=True)
            out, found = sync_batch_norm(t)
            out.backward(tg.tensor(b))
            assert np.abs(found[0] - mean).max() < 1e-7 and np.abs(found[1] - var).max() < 1e-6
            assert np.abs(out.data - y[rows]).max() < 1e-5 and np.abs(t.grad.data - dx[rows]).max() < 1e-5


def check_gradients_of_every_order():
    """Of the sum over ranks, as a function of all ranks' x, gamma and beta, which all differ."""
    rng = np.random.default_rng(distributed.rank())
    for cut in divisions(6)[:3]:
        rows = cut[distributed.rank() + 1] - cut[distributed.rank()]
        x, gamma, beta = rng.normal(size=(rows, 2, 2)), rng.normal(size=2), rng.normal(size=2)
        weight = rng.normal(size=x.shape)
        for operation in (sync_batch_norm, sync_batch_norm_composed):
            distributed.check_grads(lambda x, g, b, f=operation, w=weight: f(x, g, b)[0].tanh() * w, [x, gamma, beta], order=3)
            distributed.check_grads(lambda x, f=operation, w=weight: f(x)[0].tanh() * w, x, order=2)


def check_the_same_bits_on_every_rank():
    layer = distributed.SyncBatchNorm(C)
    layer(tg.tensor(np.random.default_rng(distributed.rank()).normal(size=(5 + distributed.rank(), C)).astype("float32")))
    assert len(set(current().gather_text(str([b.data.tobytes() for b in layer.buffers()])))) == 1


def check_each_law_is_needed():
    """What goes wrong without one term, so that the checks above would see it."""
    few = divisions()[1]  # parts of unequal length
    shape = (N, C, 5)

    def worst(**options):
        return {name: everywhere(gap) for name, gap in differences(shape, few, **options).items()}

    exact = 1e-12
    assert max(worst().values()) < exact
    with replaced(cpu, "join_moments", lambda n, mean, m2: portable.join_moments(np.ones_like(n), mean, m2)):
        assert worst()["running_mean"] > 1e-3  # a mean of means
    with replaced(cpu, "join_moments", lambda n, mean, m2: ((n * mean).sum(0) / n.sum(0), m2.sum(0))):
        found = worst()  # without the squares of the gaps between means
        assert found["running_mean"] < exact and found["running_var"] > 1e-4 and found["y"] > 1e-3
    own = sync_batchnorm.SyncBatchNorm._track
    with replaced(
        sync_batchnorm.SyncBatchNorm, "_track", lambda self, x, mean, var, _: own(self, x, mean, var, max(2, x.size // C))
    ):
        found = worst()  # Bessel's factor of this rank's count
        assert found["running_var"] > 1e-3 and found["y"] < exact
    with replaced(current(), "all_reduce", lambda x: x.copy()):
        found = worst()  # no exchange backward (of which the gradients of gamma and beta here are a victim too)
        assert found["dx"] > 1e-3 and found["y"] < exact
    reduce = current().all_reduce
    with replaced(current(), "all_reduce", lambda x: reduce(x) * (1.3 if x.shape == (2, C) else 1.0)):
        found = worst()  # divided by another count
        assert found["dx"] > 1e-3 and found["dgamma"] < exact
    correct = cpu.batch_norm_input
    for k in (6, 7):  # without the part of the gradient along one, or along x_hat
        with replaced(cpu, "batch_norm_input", lambda *a, k=k: correct(*a[:k], np.zeros(C), *a[k + 1 :])):
            assert worst()["dx"] > 1e-3


def check_batchnorm_itself_differs():
    """Plain BatchNorm on parts is another function."""
    _, plain = layer_and_one(nn.BatchNorm2d, "float64")
    found = differences((N, C, 4, 4), divisions()[0], layer=plain)
    assert everywhere(found["y"]) > 1e-2 and everywhere(found["dx"]) > 1e-2 and everywhere(found["running_var"]) > 1e-3


def check_training_equals_one_process():
    """With DataParallel: parameters and losses, for parts of unequal length, also empty ones."""
    rng = np.random.default_rng(5)
    tg.manual_seed(3)
    one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5))
    one = one.double()
    part = distributed.DataParallel(distributed.convert_sync_batchnorm(copy.deepcopy(one)))
    optimizers = [optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (part, one)]
    for cut in divisions() * 2:
        x, labels = rng.normal(size=(N, 1, 6, 6)), rng.integers(0, 5, N)
        here = slice(*cut[distributed.rank() : distributed.rank() + 2])
        losses = []
        for model, optimizer, rows in zip((part, one), optimizers, (here, slice(None)), strict=True):
            optimizer.zero_grad()
            out = model(tg.tensor(x[rows]))
            loss = tg.cross_entropy(out, tg.tensor(labels[rows])) if len(out) else out.sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(out) / N)
        assert abs(float(distributed.all_reduce(np.array(losses[0]))) - losses[1]) < 1e-12
    for (name, a), b in zip(one.state_dict().items(), part.state_dict().values(), strict=True):
        assert np.abs(a - b).max() < 1e-10, name


def check_values_that_are_not_finite():
    r, shape = distributed.rank(), (4, C, 5)
    rng = np.random.default_rng(1)
    all_x = rng.normal(size=(4 * distributed.size(), *shape[1:])).astype("float32")
    for bad in (np.nan, np.inf):
        x = all_x.copy()
        x[2, 1, 3] = bad  # on rank 0
        for fused in (True, False):
            ours, one = layer_and_one(nn.BatchNorm1d, "float32", fused=fused)
            with pytest.warns(
                RuntimeWarning, match=r"SyncBatchNorm: the batch statistics of channel\(s\) \[1\] are not finite"
            ):
                with np.errstate(all="ignore"):
                    y = ours(tg.tensor(x[4 * r : 4 * r + 4])).data
            with pytest.warns(RuntimeWarning, match="BatchNorm1d"), np.errstate(all="ignore"):
                wanted = one(tg.tensor(x)).data[4 * r : 4 * r + 4]
            np.testing.assert_allclose(y, wanted, atol=1e-5)
            assert np.isnan(y[:, 1]).all() and ours.running_mean.data[1] == 0 and ours.running_var.data[1] == 1
            np.testing.assert_allclose(ours.running_var.data, one.running_var.data, rtol=1e-5)
    # Each rank's variance is 0, the squares of the gap are too large for float32, but not for float64.
    x = np.full((2, C), -1e30 if r else 1e30, np.float32)
    ours, _ = layer_and_one(nn.BatchNorm1d, "float32")
    with pytest.warns(RuntimeWarning, match="not finite"):
        y = ours(tg.tensor(x)).data
    assert np.array_equal(y, np.broadcast_to(ours.bias.data, y.shape)) and (ours.running_var.data == 1).all()


def check_too_few_values():
    """Every rank raises, nothing has changed, and the ranks can go on."""
    for rows in (1 if distributed.rank() == 1 else 0, 0):
        for fused in (True, False):
            layer = distributed.SyncBatchNorm(C, fused=fused)
            total = int(distributed.all_reduce(np.array(rows)))
            with pytest.raises(ValueError, match=rf"more than 1 value per channel in training, got {total} on \d rank"):
                layer(tg.tensor(np.ones((rows, C), np.float32)))
            assert layer.num_batches_tracked == 0 and not layer.running_mean.data.any()
    layer(tg.tensor(np.ones((int(distributed.rank() < 2), C), np.float32)))  # two values are enough
    assert layer.num_batches_tracked == 1


def check_evaluation_and_frozen_layers_exchange_nothing():
    """One rank alone does what would else wait for the others; the results are BatchNorm's, bit by bit."""
    ours, one = layer_and_one(nn.BatchNorm1d, "float32")
    untracked = [m.eval() for m in layer_and_one(nn.BatchNorm1d, "float32", track_running_stats=False)]
    if distributed.rank() == 0:
        x = np.random.default_rng(0).normal(size=(4, C)).astype("float32")
        for a, b in (
            (ours.eval(), one.eval()),
            (tg.batchnorm.freeze(ours.train()), tg.batchnorm.freeze(one.train())),
            untracked,
        ):
            grads = []
            for m in (a, b):
                t = tg.tensor(x, requires_grad=True)
                y = m(t)
                (y * y).sum().backward()
                grads.append((y.data, t.grad.data, m.weight.grad.data))
                m.zero_grad()
            for u, v in zip(*grads, strict=True):
                assert np.array_equal(u, v)
    distributed.barrier()


def check_tools_on_all_ranks():
    """The doctor runs in training mode: every rank calls it, with the same batches; and recalibrate needs nobody."""
    rng = np.random.default_rng(2)
    batches = [(tg.tensor(rng.normal(size=(16, 4)).astype("float32")), tg.tensor(rng.integers(0, 2, 16))) for _ in range(3)]
    one = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    ours = distributed.convert_sync_batchnorm(copy.deepcopy(one))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reports = [tg.batchnorm.diagnose(m, batches, batches) for m in (ours, one)]
    assert [f.code for f in reports[0].findings] == [f.code for f in reports[1].findings]
    if distributed.rank() == 0:
        for m in (ours, one):
            tg.batchnorm.recalibrate(m, batches)
        for a, b in zip(ours.state_dict().values(), one.state_dict().values(), strict=True):
            assert np.array_equal(a, b)
    distributed.barrier()


CHECKS = [name for name in dir() if name.startswith("check_")]


@pytest.mark.skipif(mpiexec.MISSING is not None, reason=str(mpiexec.MISSING))
@pytest.mark.parametrize("ranks", [2, 3])
def test_on_several_ranks(ranks):
    done = mpiexec.run(ranks, __file__, *CHECKS)
    assert done.returncode == 0, done.stderr
    assert {name: done.stdout.count(name) for name in CHECKS} == dict.fromkeys(CHECKS, ranks)


# ----- in a single process


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("fused", [True, False])
def test_alone_it_is_batchnorm_bit_by_bit(shape, dtype, fused):
    assert set(differences(shape, [0, N], dtype, fused=fused).values()) == {0.0}
    layer, _ = layer_and_one(SHAPES[shape], dtype)
    assert layer(tg.tensor(np.ones(shape, dtype), requires_grad=True)).node.name == "batch_norm"
    with pytest.raises(ValueError, match="batch_norm expected more than 1 value per channel in training, got 1"):
        distributed.SyncBatchNorm(C)(tg.tensor(np.ones((1, C), np.float32)))


class Rehearsed(Communicator):
    """Several ranks in one process, one after another: what each said is kept, and what the others would say is known."""

    def __init__(self, said):
        self.said = said

    def all_gather(self, x):
        return np.stack([*self.said, x]) if x.size == len(self.said[0]) else x[None].copy()


def test_row_20_counts_means_and_squares(monkeypatch):
    """mean = sum n_k mu_k / n, M2 = sum M2_k + sum n_k (mu_k - mu)^2, for parts of 3, 0, 1 and 5 values."""
    rng = np.random.default_rng(20)
    x = rng.normal(4.0, 1.0, (9, 2))
    parts = np.split(x, [3, 3, 4])
    counts = np.array([len(p) for p in parts])
    said = [np.concatenate([[len(p)], portable.batch_norm_moments(p).reshape(-1)]) for p in parts]
    monkeypatch.setattr("tinygrad_bn.distributed.communicators.active", [Rehearsed(said[:-1])])
    y, (mean, var, count) = sync_batch_norm(parts[-1])
    means = np.array([p.mean(0) if len(p) else (0, 0) for p in parts])
    mu = (counts[:, None] * means).sum(0) / 9
    m2 = sum(((p - p.mean(0)) ** 2).sum(0) for p in parts if len(p)) + (counts[:, None] * (means - mu) ** 2).sum(0)
    assert count == 9
    np.testing.assert_allclose(mean, mu, rtol=1e-14)
    np.testing.assert_allclose(var, m2 / 9, rtol=1e-13)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(var, x.var(0), rtol=1e-13)
    np.testing.assert_allclose(y, ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5))[4:], rtol=1e-12)


def test_accumulation_over_parts_of_a_batch_is_not_the_batch():
    """For BatchNorm; for LayerNorm it is."""
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    for norm, equal in ((nn.BatchNorm1d(3), False), (nn.LayerNorm(3), True)):
        model = nn.Sequential(nn.Linear(3, 3), norm).double()
        grads = []
        for parts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
            model.zero_grad()
            for rows in parts:
                ((model(tg.tensor(x[rows])) - target[rows]) ** 2).sum().backward()
            grads.append(model[0].weight.grad.data)
        gap = np.abs(grads[0] - grads[1]).max()
        assert gap < 1e-13 if equal else gap > 1e-2


def trained(model, x):
    """The model after a training step, with its mode and statistics."""
    (model(x) ** 2).mean().backward()
    return model


@pytest.fixture
def pair():
    """A CNN after a step of training, and the same one converted."""
    one = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 6), nn.BatchNorm1d(6, eps=1e-3, variance="biased"), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip
    trained(one, tg.randn(8, 1, 6, 6))
    return one, distributed.convert_sync_batchnorm(copy.deepcopy(one))


def kinds(model):
    return [type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__]


def test_conversion_keeps_everything(pair):
    one, _ = pair
    tg.batchnorm.freeze(one[1], affine=True)
    one[5].eval()
    optimizer = optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
    before = {name: id(p) for name, p in one.named_parameters()}
    state, settings = one.state_dict(), [{k: v for k, v in vars(one[i]).items() if k != "_shapes"} for i in (1, 5)]
    assert distributed.convert_sync_batchnorm(one) is one and kinds(one) == ["SyncBatchNorm"] * 2
    assert {name: id(p) for name, p in one.named_parameters()} == before
    for i, wanted in zip((1, 5), settings, strict=True):
        found = {k: v for k, v in vars(one[i]).items() if k != "_shapes"}
        assert found.keys() == wanted.keys() and all(found[k] is wanted[k] for k in wanted)
    for name, value in one.state_dict().items():
        assert np.array_equal(value, state[name])
    with pytest.raises(ValueError, match=r"SyncBatchNorm expected an input of shape \(N, 4, H, W\)"):
        one[1](tg.ones(2, 4))
    assert repr(one[5]).startswith("SyncBatchNorm(6, eps=0.001")
    assert not one[1].weight.requires_grad and tg.batchnorm.unfreeze(one)[1].weight.requires_grad
    weight = one[4].weight.data.copy()
    trained(one.train(), tg.randn(8, 1, 6, 6))
    optimizer.step()
    assert not np.array_equal(one[4].weight.data, weight)
    same = one[1]
    assert distributed.convert_sync_batchnorm(one)[1] is same  # again: nothing to do


def test_conversion_and_back(pair):
    one, ours = pair
    back = tg.batchnorm.convert(ours, "batch")
    assert kinds(back) == kinds(one) == ["BatchNorm2d", "BatchNorm1d"]
    for a, b in zip(one.state_dict().values(), back.state_dict().values(), strict=True):
        assert np.array_equal(a, b)
    assert [m.momentum for m in (back[1], back[5])] == [None, 0.1] and (back[5].variance, back[5].eps) == ("biased", 1e-3)
    alone = distributed.convert_sync_batchnorm(nn.BatchNorm3d(2))
    assert type(alone) is distributed.SyncBatchNorm and type(tg.batchnorm.convert(alone, "ghost")) is nn.GhostBatchNorm3d
    shared = nn.BatchNorm1d(2)
    twice = distributed.convert_sync_batchnorm(nn.Sequential(shared, nn.ReLU(), shared))
    assert twice[0] is twice[2] and type(twice[0]) is distributed.SyncBatchNorm
    several = nn.Sequential(distributed.SyncBatchNorm(8))
    with pytest.raises(ValueError, match="convert expected layers that say what inputs they take, got SyncBatchNorm"):
        tg.batchnorm.convert(several, "batch")
    assert kinds(several) == ["SyncBatchNorm"] and kinds(tg.batchnorm.convert(several, "group")) == ["GroupNorm"]


def test_what_conversion_leaves():
    class Mine(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) * 2.0

    class Renamed(nn.BatchNorm1d):
        """BatchNorm by another name."""

    model = nn.Sequential(
        nn.GhostBatchNorm1d(4, 2), nn.BatchRenorm1d(4), nn.LayerNorm(4), Mine(4), Renamed(4), nn.GroupNorm(2, 4)
    )
    distributed.convert_sync_batchnorm(model)
    assert [type(m).__name__ for m in model] == [
        "GhostBatchNorm1d",
        "BatchRenorm1d",
        "LayerNorm",
        "Mine",
        "SyncBatchNorm",
        "GroupNorm",
    ]
    plain = nn.Sequential(nn.Linear(2, 2))
    assert distributed.convert_sync_batchnorm(plain) is plain
    with pytest.raises(TypeError, match="convert_sync_batchnorm expected a Module, got int"):
        distributed.convert_sync_batchnorm(3)


def test_tools_take_it_for_batchnorm(pair, tmp_path):
    one, ours = (m.eval() for m in pair)
    x = tg.randn(5, 1, 6, 6)
    wanted = one(x).data
    assert np.array_equal(ours(x).data, wanted)
    assert ours.summary((5, 1, 6, 6)).count("SyncBatchNorm") == 2
    interop.save_weights(ours, tmp_path / "w.safetensors")
    fresh = nn.Sequential(*(copy.deepcopy(m) for m in one))
    interop.load_weights(fresh, tmp_path / "w.safetensors")
    assert np.array_equal(fresh(x).data, wanted)
    batches = [(x, tg.tensor(np.zeros(5, int)))]
    reports = [tg.batchnorm.diagnose(m, batches, batches) for m in (one, ours)]
    assert [f.code for f in reports[0].findings] == [f.code for f in reports[1].findings]
    for m in (one, ours):
        tg.batchnorm.recalibrate(m, batches)
        m.double()
    wide = tg.tensor(x.data.astype(float))
    exact = one(wide).data
    for m in (one, ours):
        tg.batchnorm.fold(m)
        assert kinds(m) == [] and np.abs(m(wide).data - exact).max() < 1e-12
    behind = distributed.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval())
    tg.batchnorm.fold(behind)
    assert kinds(behind) == []


def test_onnx_has_batchnorm(pair, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra interop")
    x = tg.randn(5, 1, 6, 6)
    texts = []
    for name, model in zip(("one", "ours"), pair, strict=True):
        interop.export_onnx(model.eval(), x, tmp_path / name)
        texts.append([node.op_type for node in onnx.load(tmp_path / name).graph.node])
    assert texts[0] == texts[1] and texts[0].count("BatchNormalization") == 2


def test_pytorch_takes_its_state(pair, torch):
    _, ours = pair
    theirs = torch.nn.SyncBatchNorm(4)
    theirs.load_state_dict(ours[1].state_dict())
    theirs.load_state_dict(interop.to_torch(ours[1].state_dict()))
    assert np.array_equal(theirs.running_var.numpy(), ours[1].running_var.data) and int(theirs.num_batches_tracked) == 1
    ours[1].load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
def test_an_empty_part_goes_through_models_and_back(model, monkeypatch):
    """Beside a part that is not empty."""
    net = distributed.convert_sync_batchnorm(getattr(tg.models, model)())
    shape = (784,) if model == "mlp" else (1, 28, 28)
    monkeypatch.setattr("tinygrad_bn.distributed.communicators.active", [Beside()])
    out = net(tg.tensor(np.zeros((0, *shape), np.float32)))
    assert out.shape == (0, 10)
    out.sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape and not p.grad.data.any(), name


class Beside(Communicator):
    """A rank beside another one, which has four values of mean 1 and variance 1 in each channel."""

    size = 2

    def all_gather(self, x):
        c = (x.size - 1) // 2
        return np.stack([x, np.concatenate([[4.0], np.ones(c), np.full(c, 4.0)])])


if __name__ == "__main__":
    distributed.init()
    for name in sys.argv[1:]:
        globals()[name]()
        print(name, flush=True)
