"""examples/claims/noisy_batchnorm.py on made-up runs and on networks whose answer is known."""

import claim
import noisy_batchnorm as nb
import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import nn


def made_up(results, areas, drifts, cosines, seeds=3, diverged=()):
    pairs = []
    for net, (_, _, same) in nb.NETS.items():
        for arm in nb.TUNED:
            for lr in nb.GRID:
                trial = {"kind": "pick", "net": net, "arm": arm, "lr": lr, "seed": 0, "steps": 1}
                pairs.append((trial, {"loss": abs(np.log(lr / 1.0))}))
        arms = [(arm, same) for arm in nb.ARMS] + [(arm, 1.0) for arm in nb.TUNED]
        for seed in range(seeds):
            for arm, lr in arms:
                result = {
                    "diverged": arm in diverged,
                    "area": areas[arm] * (1 if lr == same else 2) + 0.01 * seed,
                    "curve": [1.0] * nb.POINTS,
                    "drift": None if arm in diverged else drifts[arm] * (1 + 0.01 * seed),
                    "cosines": cosines.get(arm),
                    "weight": 2.0,
                }
                pairs.append(({"kind": "run", "net": net, "arm": arm, "lr": lr, "seed": seed, "steps": 1500}, result))
    return results(*pairs)


def per_arm(plain, batchnorm, noise):
    return {"plain": plain, "plain_noise": 1.0, "batchnorm": batchnorm, "batchnorm_noise": noise, "batchnorm_elements": noise}


COSINES = {"plain": [0.9, 0.5, 0.7], "batchnorm": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize("noise, f, verdict", [(-0.9, 0.1, claim.HOLDS), (-0.2, 0.8, claim.FAILS)])
def test_the_share_of_the_gain_that_noise_costs(results, draws, noise, f, verdict):
    done = made_up(results, per_arm(0.0, -1.0, noise), per_arm(0.1, 0.01, 0.3), COSINES)
    for net in nb.NETS:
        finding = nb.findings(done)[f"kept_{net}"]
        assert finding.values == pytest.approx([f] * 3) and finding.verdict == verdict
        assert nb.kept(done, net, tuned=True) == pytest.approx([f] * 3)
    draws(nb, done)


def test_no_gain_of_batchnorm_counts_as_lost(results, draws):
    done = made_up(results, per_arm(-1.0, -0.5, -2.0), per_arm(0.1, 0.01, 0.3), COSINES)
    assert nb.findings(done)["kept_relu"].values == [1, 1, 1]
    draws(nb, done)


@pytest.mark.parametrize("noise, ratio, verdict", [(0.3, 3, claim.HOLDS), (0.05, 0.5, claim.FAILS)])
def test_drift_is_compared_with_no_batchnorm(results, noise, ratio, verdict):
    finding = nb.findings(made_up(results, per_arm(0.0, -1.0, -1.0), per_arm(0.1, 0.01, noise), COSINES))["drift_relu"]
    assert finding.values == pytest.approx([ratio] * 3) and finding.verdict == verdict


def test_a_diverged_run_speaks_against_the_claim(results, draws):
    done = made_up(results, per_arm(0.0, -1.0, 1.0), per_arm(0.1, 0.01, 1.0), COSINES, diverged=("batchnorm_noise",))
    assert nb.findings(done)["drift_relu"].verdict == claim.FAILS
    draws(nb, done)


@pytest.mark.parametrize("batchnorm, difference, verdict", [([0.2] * 3, -0.5, claim.HOLDS), ([0.9] * 3, 0.2, claim.FAILS)])
def test_covariate_shift_by_the_cosines_of_gradients(results, batchnorm, difference, verdict):
    cosines = {**COSINES, "batchnorm": batchnorm}
    finding = nb.findings(made_up(results, per_arm(0.0, -1.0, -1.0), per_arm(0.1, 0.01, 1.0), cosines))["shift_sigmoid"]
    assert finding.values == pytest.approx([difference] * 3) and finding.verdict == verdict


def test_drift_of_known_means_and_deviations():
    mean = np.array([[0.0, 0.0, 5.0], [1.0, 2.0, 5.0], [0.0, 6.0, 5.0]])
    deviation = np.array([[2.0, 1.0, 1.0], [0.5, 2.0, 1.0], [9.0, 9.0, 9.0]])  # the last is followed by no step
    assert nb.drift(np.stack([mean, deviation], 1)) == pytest.approx(np.median([(0.5 + 2) / 2, (2 + 2) / 2, 0]))


def test_noise_has_its_distribution_in_training_and_is_absent_in_evaluation():
    layer, x = nb.Noise(0, True, True), tg.tensor(np.array([[0.0] * 500, [1.0] * 500], np.float32))
    means, scales = [], []
    for _ in range(300):
        m, y = layer(x).numpy()
        means.append(m.mean())
        scales.append((y - m).mean())  # m is drawn for each element, but its mean is that of the layer
        assert m.min() >= means[-1] - 0.11 and m.max() <= means[-1] + 0.11
    assert min(means) >= -0.51 and max(means) <= 0.51 and np.std(means) == pytest.approx(1 / np.sqrt(12), rel=0.1)
    assert min(scales) >= 0.98 and max(scales) <= 1.27
    own = nb.Noise(0, False, True)(x).numpy()
    assert abs(own[0].mean()) < 0.01 and own[0].std() == pytest.approx(0.2 / np.sqrt(12), rel=0.1)
    assert nb.Noise(0, False, False)(x) is x and layer.eval()(x) is x


def test_shift_is_the_cosine_with_the_layers_below_updated_and_leaves_no_trace():
    tg.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    x, y = tg.randn(5, 4), tg.tensor(np.array([0, 1, 1, 0, 1]))
    before = network.state_dict()
    (cosine,) = nb.shift(network, x, y, 0.7)
    assert all((network.state_dict()[k] == v).all() for k, v in before.items())
    first, second = network.parameters()
    a, g = tg.grad(tg.cross_entropy(network(x), y), [first, second])
    first.data = first.data - 0.7 * a.data
    (later,) = tg.grad(tg.cross_entropy(network(x), y), [second])
    g, later = g.numpy().ravel(), later.numpy().ravel()
    assert cosine == pytest.approx(g @ later / np.linalg.norm(g) / np.linalg.norm(later), rel=1e-5) and cosine < 0.999
    assert nb.shift(network, x, y, 0.0)[0] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("arm", nb.ARMS)
def test_every_arm_begins_with_the_same_weights(arm):
    trial = {"net": "relu", "arm": arm, "seed": 3}
    weights = [p.detach().numpy() for p in nb.network_of(trial)[0].parameters() if p.ndim == 2]
    plain = [p.detach().numpy() for p in nb.network_of({**trial, "arm": "plain"})[0].parameters() if p.ndim == 2]
    assert all((a == b).all() for a, b in zip(weights, plain, strict=True))
