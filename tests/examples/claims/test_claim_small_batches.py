"""examples/claims/small_batches.py: its statistics groups against BatchNorm itself, the law, and verdicts on made-up runs."""

import claim
import numpy as np
import pytest
import small_batches
import training

import tinygrad_bn as tg

SETUP = claim.Setup("embedded", "cpu", [0, 1], False)


def test_one_group_is_batchnorm():
    x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
    ghost, batchnorm = small_batches.GhostNorm(5, 8), tg.nn.BatchNorm1d(5)
    for norm in (ghost, batchnorm):
        norm.weight.data, norm.bias.data = np.arange(1, 6, dtype=np.float32), np.full(5, 0.5, np.float32)
    for _ in range(2):
        np.testing.assert_allclose(ghost(tg.Tensor(x)).data, batchnorm(tg.Tensor(x)).data, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ghost.running_mean.data, batchnorm.running_mean.data, rtol=1e-6)
        np.testing.assert_allclose(ghost.running_var.data, batchnorm.running_var.data, rtol=1e-6)
    ghost.eval(), batchnorm.eval()
    assert np.array_equal(ghost(tg.Tensor(x)).data, batchnorm(tg.Tensor(x)).data)


def test_each_group_is_normalised_by_itself_and_the_buffers_follow_the_average():
    x = np.random.default_rng(1).normal(3, 2, (8, 5)).astype(np.float32)
    ghost, groups = small_batches.GhostNorm(5, 4), [x[::2], x[1::2]]
    y = ghost(tg.Tensor(x)).data
    for i, group in enumerate(groups):
        np.testing.assert_allclose(y[i::2], tg.nn.BatchNorm1d(5)(tg.Tensor(group)).data, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ghost.running_mean.data, 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ghost.running_var.data, 0.9 + 0.1 * np.mean([g.var(0, ddof=1) for g in groups], 0), rtol=1e-5)


def test_the_law():
    known = {2: 0.564, 4: 0.798, 8: 0.903, 16: 0.952, 32: 0.976, 64: 0.988}  # BATCHNORM.md, and 1 / sqrt(pi) for two
    assert small_batches.law(list(known)) == pytest.approx(list(known.values()), abs=5e-4)
    assert small_batches.law(2) == pytest.approx(np.pi**-0.5)


@pytest.mark.parametrize("m", [2, 4, 64])
def test_gaussian_values_follow_it(m):
    z = np.random.default_rng(2).normal(size=(64 * 80, 20))
    slope, noise = small_batches.regression(z, small_batches.in_groups(tg.Tensor(z), m, 0.0)[0].numpy())
    assert slope == pytest.approx(small_batches.law(m), rel=0.02) and noise == pytest.approx(1 - slope**2, abs=0.02)


def test_regression():
    z = np.array([[1.0], [1], [-1], [-1]])
    rest = np.array([[1.0], [-1], [1], [-1]])
    assert small_batches.regression(z, 0.5 * z + 0.1 * rest) == pytest.approx([0.5, 0.01])


def test_two_values_pass_hardly_a_gradient():
    data = training.load(claim.Setup("embedded", "cpu", [0], True))
    two, all_of_them = (small_batches.gradient_below(m, 0, data) for m in (2, 64))
    assert 0 < two < 1e-3 * all_of_them


def made_up(results, errors, moved, gradient, slope_off):
    """Test errors by the size of groups; how far weights moved and the gradient with groups of 2, relative to 64."""

    def train(arm, m, lr, seed):
        error = errors.get(m, 3.0) if arm == "batch" else 3.0
        return {
            "valid": error + (lr != 0.3) + 0.1 * seed,
            "test": error + (lr != 0.3) + 0.1 * seed,
            "moved": moved if m == 2 else 1.0,
            "eta_eff": 0.1,
        }

    law = {
        "slopes": [[small_batches.law(m) * (1 + slope_off * (m == 4)), 0.1] for m in small_batches.GROUPS],
        "gradients": [gradient if m == 2 else 1.0 for m in small_batches.GROUPS],
    }
    runs = [
        ({"part": "train", "arm": arm, "m": m, "lr": lr, "seed": seed, "images": 60_000}, train(arm, m, lr, seed))
        for arm, m in small_batches.ARMS
        for lr in small_batches.LRS
        for seed in (0, 1)
    ]
    return results(*(({"part": "law", "seed": seed}, law) for seed in (0, 1)), *runs)


def test_the_verdicts_follow_the_statistics(results, draws):
    done = made_up(results, {4: 5.0, 64: 2.0}, 0.001, 1e-4, 0.04)
    found = small_batches.findings(done)
    assert [f.verdict for f in found.values()] == [claim.HOLDS] * 5 and list(found) == list(small_batches.CRITERIA)
    assert found["error"].values == pytest.approx([3, 3]) and found["best"].values == pytest.approx([3, 3])
    assert found["law"].values == pytest.approx([0.04, 0.04])
    draws(small_batches, done)
    done = made_up(results, {4: 2.0, 64: 3.0}, 2.0, 0.5, -0.06)
    assert [f.verdict for f in small_batches.findings(done).values()] == [claim.FAILS] * 5


def test_other_seeds_run_at_the_same_and_the_best_rate(results):
    done = made_up(results, {}, 1.0, 1.0, 0.0)
    first = small_batches.trials(SETUP, results())
    assert {t["seed"] for t in first if t["part"] == "train"} == {0} and len(first) == 2 + 4 * 8
    half = results(*((r.trial, r.result) for r in done if r.trial in first))
    rest = [t for t in small_batches.trials(SETUP, half) if t not in first]
    assert {(t["lr"], t["seed"]) for t in rest} == {(0.1, 1), (0.3, 1)} and len(rest) == 2 * 8
    assert small_batches.trials(SETUP, done) == [*first, *rest]
