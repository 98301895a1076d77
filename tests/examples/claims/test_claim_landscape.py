"""examples/claims/landscape.py: its measures on softmax regression, where they are known, and its verdicts on made-up runs."""

import claim
import landscape
import numpy as np
import pytest
import training

import tinygrad_bn as tg

PROBES = ("variation", "change", "beta", "variation_scaled", "angle", "beta_scaled", "sharpness", "sharpness_scaled")


@pytest.fixture
def regression():
    """A linear network of 3 inputs and 4 classes, a batch, and its loss and gradient by the weights, in NumPy."""
    tg.manual_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.integers(0, 4, 20)
    network = tg.nn.Sequential(tg.nn.Linear(3, 4, bias=False)).double()

    def at(w):
        z = x @ w.T
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return -np.log(p[np.arange(20), y]).mean(), (p - np.eye(4)[y]).T @ x / 20, p

    return network, x, y, at


def test_the_probes_of_softmax_regression(regression):
    network, x, y, at = regression
    w = network[0].weight.data.copy()
    loss, g, _ = at(w)
    losses, there = zip(*(at(w - a * g)[:2] for a in map(np.float32, landscape.STEPS)), strict=True)
    changes = [np.linalg.norm(t - g) for t in there]
    beta = max(c / (a * np.linalg.norm(g)) for c, a in zip(changes, landscape.STEPS, strict=True))
    line = training.Line(network, tg.Tensor(x), tg.Tensor(y))
    assert landscape.probe(line, [0]) == pytest.approx(
        {
            "variation": max(losses) - min(losses),
            "change": max(changes),
            "beta": beta,
            "variation_scaled": (max(losses) - min(losses)) / loss,
            "angle": max(1 - (t * g).sum() / np.linalg.norm(t) / np.linalg.norm(g) for t in there),
            "beta_scaled": beta * (w**2).sum(),
        },
        rel=1e-6,
    )
    assert np.array_equal(network[0].weight.data, w)


def test_the_sharpness_of_softmax_regression(regression):
    network, x, y, at = regression
    p = at(network[0].weight.data)[2]
    hessian = sum(np.kron(np.diag(q) - np.outer(q, q), np.outer(v, v)) for q, v in zip(p, x, strict=True)) / len(x)
    found = landscape.sharpness(network, tg.Tensor(x), tg.Tensor(y), [network[0].weight])
    assert found == pytest.approx(np.linalg.eigvalsh(hessian).max(), rel=0.01)


def test_sharpness_times_the_squared_norm_does_not_depend_on_the_scale_below_batchnorm():
    data = training.load(claim.Setup("embedded", "cpu", [0], True)).train.first(64)
    found = []
    for scale in (1 / 3, 1):
        network = landscape.network_of("batchnorm", scale, 0).double()
        for module in network.modules():
            if isinstance(module, tg.nn.BatchNorm1d):
                module.eps = 0.0
        below = training.weights(network)[:-1]
        sharp = landscape.sharpness(network, tg.Tensor(data.x.astype(float)), tg.Tensor(data.y), below)
        found.append((sharp, sharp * landscape.squared(below)))
    assert found[0][0] == pytest.approx(9 * found[1][0], rel=1e-5) and found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_a_run_of_one_step():
    data = training.load(claim.Setup("embedded", "cpu", [0], True))
    medians = landscape.run({"arm": "batchnorm", "scale": "one", "seed": 3, "steps": 1}, data)["medians"]
    network = landscape.network_of("batchnorm", 1.0, 3)
    x, y = next(training.stream(data.train, 1, landscape.BATCH, 3))
    below = training.weights(network)[:-1]
    assert tuple(medians) == PROBES
    expected = landscape.sharpness(network, x, y, below) * sum(float((w**2).sum()) for w in below)
    assert medians["sharpness_scaled"] == pytest.approx(expected, rel=1e-4)
    expected = landscape.sharpness(network, x, y, list(network.parameters()))
    assert medians["sharpness"] == pytest.approx(expected, rel=1e-4)


def made_up(results, ratio, third):
    """Every measure is this many times as large without BatchNorm; with BatchNorm's weights at a third, so many times."""

    def result(arm, scale, seed):
        third_of = {"plain": 1000.0, "batchnorm": ratio / third}
        value = (third_of if scale == "third" else {"plain": ratio, "batchnorm": 1.0})[arm] * (1 + 0.01 * seed)
        curves = {name: [value, value / 2] for name in ("variation", "change", "beta")}
        medians = dict.fromkeys(PROBES, value)
        return {"medians": medians, "curves": curves, "loss": 0.1, "diverged": False, "eta_eff": 0.1}

    return results(
        *(
            ({"arm": arm, "scale": scale, "seed": seed, "steps": 600}, result(arm, scale, seed))
            for arm in landscape.ARMS
            for scale in landscape.SCALES
            for seed in (0, 1)
        )
    )


@pytest.mark.parametrize("ratio, third, verdicts", [(10, 0.5, (claim.HOLDS, claim.FAILS)), (2, 4, (claim.FAILS, claim.HOLDS))])
def test_the_verdicts_follow_the_ratios(results, draws, ratio, third, verdicts):
    done = made_up(results, ratio, third)
    found = landscape.findings(done)
    assert list(found) == list(landscape.CRITERIA) == list(landscape.NAMES)
    assert {f.verdict for name, f in found.items() if name != "beta_third"} == {verdicts[0]}
    assert found["beta"].values == pytest.approx([ratio, ratio])
    assert found["beta_third"].verdict == verdicts[1] and found["beta_third"].values == pytest.approx([third, third])
    draws(landscape, done)
