"""examples/claims/first_step.py: its statistics on a network of one layer, and its verdicts on made-up runs."""

import claim
import first_step
import numpy as np
import pytest
import training

import tinygrad_bn as tg

SETUP = claim.Setup("embedded", "cpu", [0, 1], False)
LAYERS = len(first_step.SIZES) - 2


def step(plain, batchnorm, growth=(100.0, 1.0), tails=(20.0, 4.0)):
    """A made-up step: where it diverges, and by what activations grow in it, without and with BatchNorm."""

    def arm(limit, growth, tails):
        flat = {"mean": [1.0] * LAYERS, "std": [1.0] * LAYERS}
        steep = {"mean": [1.0] * LAYERS, "std": np.linspace(1, growth, LAYERS).tolist()}
        ratios = [1.0 if a < limit else 1e4 for a in first_step.LENGTHS]
        return {"limit": limit, "ratios": ratios, "kurtosis": tails, "moments": [flat, flat, steep]}

    return {"plain": arm(plain, growth[0], tails[0]), "batchnorm": arm(batchnorm, growth[1], tails[1])}


def made_up(results, difference=(0.1, -0.1), **steps):
    """Both train from 0.01 on; with BatchNorm the test accuracy differs by this much for each seed."""
    small = [
        (
            {"part": "small", "arm": arm, "lr": lr, "seed": seed, "epochs": 20},
            {
                "valid": 50 + 45 * (lr >= 0.01) + (lr == 0.1),
                "test": 95 + (arm == "batchnorm") * difference[seed],
                "eta_eff": 0.1,
            },
        )
        for arm in first_step.ARMS
        for lr in first_step.LRS
        for seed in (0, 1)
    ]
    values = {"plain": 0.1, "batchnorm": 10, **steps}
    whens = [({"part": "step", "when": w, "seed": s}, step(**values)) for w in first_step.AFTER for s in (0, 1)]
    return results(*small, *whens)


def test_the_verdicts_follow_the_statistics(results, draws):
    done = made_up(results, (0.01, -0.01))
    found = first_step.findings(done)
    assert [f.verdict for f in found.values()] == [claim.HOLDS] * 5
    assert found["start"].values == pytest.approx([100, 100]) and found["growth"].values == pytest.approx([100, 100])
    assert found["tails"].values == pytest.approx([5, 5]) and found["small"].values == pytest.approx([0.01, -0.01])
    draws(first_step, done)
    done = made_up(results, (2.0, 2.01), plain=0.1, batchnorm=0.5, growth=(1.0, 1.0), tails=(4.0, 20.0))
    assert [f.verdict for f in first_step.findings(done).values()] == [claim.FAILS] * 5
    draws(first_step, done)


def test_the_small_learning_rate_is_the_smallest_that_trains_both(results):
    done = made_up(results)
    assert first_step.chosen(done, 0) == {"small": 0.01, "plain": 0.1, "batchnorm": 0.1}
    for record in done.of(part="small"):
        record.result["valid"] = 20.0 + (record.trial["lr"] == 0.03)
    assert first_step.chosen(done, 0)["small"] == 0.03


def test_other_seeds_run_only_the_chosen_rates(results):
    first = first_step.trials(SETUP, results())
    assert {t["seed"] for t in first if t["part"] == "small"} == {0}
    done = made_up(results)
    done = results(*((r.trial, r.result) for r in done if r.trial in first))
    rest = [t for t in first_step.trials(SETUP, done) if t not in first]
    assert {(t["lr"], t["seed"]) for t in rest} == {(0.01, 1), (0.1, 1)} and len(rest) == 4
    assert first_step.trials(SETUP, made_up(results)) == [*first, *rest]


def test_the_limit_is_the_first_length_that_diverges():
    n = len(first_step.LENGTHS)
    assert first_step.limit([1.0] * 5 + [1001.0] * (n - 5)) == first_step.LENGTHS[5]
    assert first_step.limit([1.0] * 5 + [float("nan")] * (n - 5)) == first_step.LENGTHS[5]
    assert first_step.limit([1000.0] * n) == pytest.approx(10**2.2)


def test_kurtosis():
    assert first_step.kurtosis(np.random.default_rng(0).normal(0, 2, 100_000)) == pytest.approx(3, rel=0.05)
    assert first_step.kurtosis(np.array([-3.0, 1, -3, 1])) == 1


def test_losses_and_moments_along_a_line():
    tg.manual_seed(0)
    network = tg.nn.Sequential(tg.nn.Linear(3, 4), tg.nn.Linear(4, 2)).double()
    x, y = tg.randn(6, 3).double(), tg.Tensor(np.array([0, 1, 0, 1, 0, 1]))
    before = [p.detach().numpy().copy() for p in network.parameters()]
    line = training.Line(network, x, y)
    gradients = tg.grad(tg.cross_entropy(network(x), y), list(network.parameters()))
    moved = [p - 0.5 * g.numpy() for p, g in zip(before, gradients, strict=True)]
    logits = (x.numpy() @ moved[0].T + moved[1]) @ moved[2].T + moved[3]
    loss = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(6), y.numpy()])
    assert line.loss(0.5) == pytest.approx(loss, rel=1e-6)
    moments = first_step.moments(line, 0)
    first = x.numpy() @ before[0].T + before[1]
    assert moments == {"mean": [pytest.approx(np.abs(first.mean(0)).mean())], "std": [pytest.approx(first.std(0).mean())]}
