"""fold: BatchNorm in the layers beside it, equal in evaluation; and what stays, since there it would not be."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from random_nets import Residual, random_net, randomised

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import fold, fold_pair


def output(model, x):
    with tg.no_grad():
        return model(tg.tensor(x)).numpy()


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_fold_equals_evaluation_on_200_random_nets(dtype, tolerance):
    worst, folded, kept = 0.0, 0, 0
    for seed in range(200):
        model, x = random_net(seed)
        model, x = model.to(dtype=dtype), x.astype(dtype)
        before = output(model, x)
        done = fold(model, x if seed % 2 or seed % 4 == 3 else None)
        gap = abs(output(model, x) - before).max() / max(1.0, abs(before).max())
        worst = max(worst, gap)
        assert gap < tolerance, (seed, gap, str(done))
        kept += len(done.kept)
        folded += len(done) - len(done.kept)
        left = {path for path, m in model.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
        assert left == set(done.kept), seed
    print(f"{dtype}: largest difference {worst:.2g}, {folded} folded, {kept} kept")
    assert folded > 300 and kept > 30


def test_fold_of_the_packages_own_networks_leaves_no_batchnorm():
    x = np.random.default_rng(0).normal(size=(3, 1, 28, 28))
    for make in (tg.models.mlp, tg.models.cnn, tg.models.resnet20):
        tg.manual_seed(0)
        model = randomised(make().double(), np.random.default_rng(0)).eval()
        given = x.reshape(3, -1) if make is tg.models.mlp else x
        before = output(model, given)
        assert not fold(model, given).kept
        assert_allclose(output(model, given), before, rtol=1e-10, atol=1e-12 * abs(before).max())


def test_before_a_convolution_that_pads_it_stays_and_says_so():
    rng = np.random.default_rng(0)
    model = randomised(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)).double(), rng).eval()
    done = fold(model)
    assert isinstance(model[0], nn.BatchNorm2d) and "pads with zeros: not exact at the border" in str(done)
    x = rng.normal(size=(1, 2, 6, 6))
    right = output(model, x)
    from tinygrad_bn.batchnorm import folding

    folding._fold_forward(model[0], model[1])  # what it would have computed
    wrong = output(model[1], x)
    assert_allclose(wrong[:, :, 1:-1, 1:-1], right[:, :, 1:-1, 1:-1], atol=1e-12)
    assert abs(wrong - right)[:, :, 0].max() > 0.1


def test_fold_without_an_example_says_what_it_needs():
    model = randomised(Residual(np.random.default_rng(0)), np.random.default_rng(0)).eval()
    assert set(fold(model).kept) == {"norm1", "norm2", "norm3"}
    assert "fold(model, example) finds out" in fold(model).kept["norm1"]


def test_a_layer_used_twice_is_not_folded():
    shared = nn.Linear(3, 3)
    model = randomised(nn.Sequential(shared, nn.BatchNorm1d(3), nn.ReLU(), shared), np.random.default_rng(0)).eval()
    assert "more than one place" in fold(model).kept["1"]

    class Peeks(nn.Module):
        def __init__(self):
            self.fc, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            h = self.fc(x)
            return self.norm(h) + h

    peeks = randomised(Peeks(), np.random.default_rng(0)).eval()
    assert set(fold(peeks, np.ones((2, 3), np.float32)).kept) == {"norm"}


def test_linear_on_more_axes_is_not_folded_by_an_example():
    model = randomised(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), np.random.default_rng(0)).eval()
    assert fold(model, np.ones((2, 4, 4), np.float32)).kept.keys() == {"1"}  # channels are axis 1, not the Linear's


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x.relu()).relu()


class Branch(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Returns(nn.Module):
    """Gives out what fold would change: the output of the layer before, or of the BatchNorm itself."""

    def __init__(self, behind, kind):
        self.fc, self.norm, self.behind, self.kind = nn.Linear(3, 3), nn.BatchNorm1d(3), behind, kind

    def forward(self, x):
        first, second = (self.norm, self.fc) if self.behind else (self.fc, self.norm)
        h = first(x.relu())
        return self.kind((second(h), h)) if self.kind is not dict else {"y": second(h), "h": h}


class Weighs(nn.Module):
    def __init__(self):
        self.fc, self.norm = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.fc(x)) @ self.fc.weight


def tied(name):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3))
    setattr(model[3], name, getattr(model[0], name))
    return model


def twice_with_norm():
    shared = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    return nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared)


def twice_with_linear():
    shared = nn.Sequential(nn.ReLU(), nn.Linear(3, 3))
    return nn.Sequential(shared, nn.BatchNorm1d(3), shared, nn.BatchNorm1d(3))


@pytest.mark.parametrize("with_example", [False, True], ids=["by chain", "by example"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Own(3, 3), nn.BatchNorm1d(3)),
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3), Own(3, 3)),
        lambda: nn.Sequential(nn.Linear(3, 3), Branch(nn.BatchNorm1d(3), nn.ReLU())),
        lambda: tied("weight"),
        lambda: tied("bias"),
        twice_with_norm,
        twice_with_linear,
        Weighs,
        *(lambda b=b, k=k: Returns(b, k) for b in (False, True) for k in (tuple, list, dict)),
    ],
    ids=[
        "own forward before", "own forward behind", "a branch", "tied weight", "tied bias", "norm in a shared chain",
        "linear in a shared chain", "weight used twice", *(f"returns {a}, {b}" for a in ("before", "norm") for b in "tld"),
    ],
)  # fmt: skip
def test_fold_leaves_what_it_would_change_elsewhere(make, with_example):
    rng = np.random.default_rng(0)
    model, x = randomised(make().double(), rng).eval(), rng.normal(size=(5, 3))

    def outputs():
        with tg.no_grad():
            out = model(tg.tensor(x))
        parts = out.values() if isinstance(out, dict) else out if isinstance(out, tuple | list) else [out]
        return [p.numpy() for p in parts]

    before = outputs()
    done = fold(model, x if with_example else None)
    assert done.kept
    for a, b in zip(outputs(), before, strict=True):
        assert_allclose(a, b, atol=1e-12)


def test_linear_behind_on_more_axes_gets_nothing_by_an_example():
    model = randomised(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 4)), np.random.default_rng(0)).eval()
    assert fold(model, np.ones((2, 4, 4), np.float32)).kept.keys() == {"1"}  # channels are axis 1, not the Linear's


def test_fold_needs_evaluation_mode_and_fold_pair_a_fitting_pair():
    with pytest.raises(ValueError, match="call model.eval"):
        fold(tg.models.mlp((6, 8, 3)))
    for layer, norm, text in (
        (nn.Linear(2, 3), nn.BatchNorm1d(4).eval(), "has 3 channels, and it has 4"),
        (nn.ReLU(), nn.BatchNorm1d(4).eval(), "ReLU before it"),
        (nn.Linear(2, 3), nn.BatchNorm1d(3), "training mode"),
        (nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False).eval(), "no running statistics"),
        (nn.Linear(2, 3), nn.ReLU(), "no BatchNorm"),
        (Own(2, 3), nn.BatchNorm1d(3).eval(), "Own has a forward of its own"),
    ):
        with pytest.raises(ValueError, match=text):
            fold_pair(layer, norm)
