"""examples/claims/batch_renorm.py on made-up runs whose answer is known, and its layer against the formula."""

import batch_renorm as br
import claim
import numpy as np
import pytest
from training import Part

import tinygrad_bn as tg


def made_up(results, shuffled, batchnorm, renorm, seeds=3):
    value = {"shuffled": shuffled, "batchnorm": batchnorm, "renorm": renorm, "layernorm": 70.0}
    pairs = []
    for arm in br.ARMS:
        for lr in br.GRID:
            pairs.append(({"kind": "pick", "arm": arm, "lr": lr, "seed": 0, "steps": 1}, {"accuracy": -abs(lr - 0.3)}))
        for lr in (br.SAME, 0.3):
            for seed in range(seeds):
                result = {"diverged": False, "accuracy": value[arm] - 10 * (lr == br.SAME), "weight": 1.0}
                pairs.append(({"kind": "run", "arm": arm, "lr": lr, "seed": seed, "steps": 1}, result))
    return results(*pairs)


@pytest.mark.parametrize(
    "accuracies, share, verdict",
    [((95, 55, 85), 0.75, claim.HOLDS), ((95, 55, 59), 0.1, claim.FAILS), ((95, 94.5, 95), 0, claim.FAILS)],
)
def test_the_share_made_good(results, draws, accuracies, share, verdict):
    done = made_up(results, *accuracies)
    finding = br.findings(done)["recovered"]
    assert finding.values == pytest.approx([share] * 3) and finding.verdict == verdict
    draws(br, done)


def test_the_layer_is_batch_norm_while_it_warms_up_and_its_formula_afterwards():
    rng = np.random.default_rng(0)
    x = tg.tensor(rng.standard_normal((8, 3)).astype(np.float32) * [1, 100, 1] + [0, 0, 50], "float32")
    layer, plain = br.BatchRenorm(3), tg.nn.BatchNorm1d(3)
    layer.warm_up = 1
    for module in (layer, plain):
        module.weight.data, module.bias.data = np.float32([2, 3, 4]), np.float32([0, 1, 2])
    np.testing.assert_array_equal(layer(x).detach().numpy(), plain(x).detach().numpy())
    layer.running_var = tg.nn.Buffer(np.float32([1, 100, 1]))
    mean, sd = layer.running_mean.numpy(), np.sqrt(layer.running_var.numpy() + layer.eps)
    got = layer(x).detach().numpy()
    a = x.numpy()
    batch_sd = np.sqrt(a.var(0) + layer.eps)
    r, d = np.clip(batch_sd / sd, 1 / 3, 3), np.clip((a.mean(0) - mean) / sd, -5, 5)
    np.testing.assert_allclose(got, [2, 3, 4] * ((a - a.mean(0)) / batch_sd * r + d) + [0, 1, 2], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got[:, 0], 2 * (a[:, 0] - mean[0]) / sd[0], rtol=1e-3, atol=1e-4)  # unclipped: as in evaluation
    assert r[1] == 3 and 1 / 3 < r[0] < 3
    layer.running_mean = tg.nn.Buffer(np.float32([9, 9, 9]))
    assert abs(layer(x).detach().numpy()[:, 0].mean() + 2 * 5) < 1e-3  # d is -9 / sd, and -5 at least


def test_r_and_d_are_constants_for_the_gradient():
    rng = np.random.default_rng(0)
    x = tg.tensor(rng.standard_normal((6, 1)).astype(np.float32), requires_grad=True)
    weights = tg.tensor(rng.standard_normal((6, 1)).astype(np.float32))
    layer, plain = br.BatchRenorm(1), tg.nn.BatchNorm1d(1)
    layer.num_batches_tracked = 1
    (got,) = tg.grad((layer(x) * weights).sum(), [x])
    (of_plain,) = tg.grad((plain(x) * weights).sum(), [x])
    r = np.sqrt(x.detach().numpy().var() + 1e-5) / np.sqrt(1 + 1e-5)  # the running variance was 1
    np.testing.assert_allclose(got.numpy(), of_plain.numpy() * r, rtol=1e-4)


def test_batches_hold_two_classes():
    y = np.arange(200) % 10
    part = br.paired_classes(Part(y[:, None].astype(np.float32), y), 5, 0)
    for batch in part.y.reshape(5, br.BATCH):
        assert sorted(np.unique(batch, return_counts=True)[1]) == [16, 16]
    assert (part.x[:, 0] == part.y).all()
