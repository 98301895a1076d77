"""examples/claims/depth.py: what it says of made-up runs, and its law of this BatchNorm and of broken ones."""

import claim
import depth
import numpy as np
import pytest

from tinygrad_bn.backend import kernels_of

CPU = kernels_of(np.zeros(1))
CPU.why_not()  # loads the compiled kernels, which would otherwise take the place of the broken ones below


def made_up(results, limits, error=0.01, lr=0.01, seeds=2, diverged=False):
    """Networks of an arm train at one learning rate up to limits[arm] layers; seed 0 was run at all of them."""
    laws = [
        (
            {"part": "law", "seed": seed},
            {str(batch): depth.predicted(batch) * (1 - error * (batch == 16)) for batch in depth.BATCHES},
        )
        for seed in range(seeds)
    ]
    return results(
        *laws,
        *(
            (
                {"part": "training", "arm": arm, "depth": layers, "lr": rate, "seed": seed, "steps": 300},
                {
                    "diverged": diverged,
                    "loss": 1.0,
                    "valid": 91.0 if rate == lr else 10.0,
                    "accuracy": 95.0 if layers <= limits[arm] and rate == lr else 11.0,
                },
            )
            for arm in depth.ARMS
            for layers in depth.DEPTHS
            for seed in range(seeds)
            for rate in (depth.LRS if seed == 0 else (lr,))
        ),
    )


GOOD = {"plain": 20, "batchnorm": 40, "skips": 80, "beta": 80}


@pytest.mark.parametrize(
    "change, error, verdicts",
    [
        ({}, 0.01, (claim.HOLDS, claim.HOLDS, claim.HOLDS)),
        ({"batchnorm": 80}, -0.02, (claim.HOLDS, claim.FAILS, claim.HOLDS)),
        ({"skips": 40}, 0.04, (claim.FAILS, claim.HOLDS, claim.FAILS)),
        ({"skips": 0, "batchnorm": 0}, -0.04, (claim.FAILS, claim.HOLDS, claim.FAILS)),
    ],
)
def test_the_deepest_network_that_trains(results, change, error, verdicts):
    limits = {**GOOD, **change}
    found = depth.findings(made_up(results, limits, error))
    assert tuple(finding.verdict for finding in found.values()) == verdicts
    assert found["law"].values == pytest.approx([abs(error)] * 2)
    assert found["batchnorm"].values == [limits["batchnorm"]] * 2 and found["skips"].values == [limits["skips"]] * 2


def test_the_picture(results, draws):
    draws(depth, made_up(results, GOOD))
    assert "80" in depth.headline(made_up(results, GOOD)) and "BatchNorm trains 40" in depth.headline(made_up(results, GOOD))
    assert "plain network trains 0" in depth.headline(made_up(results, {**GOOD, "plain": 0}, seeds=1, diverged=True))


def test_other_seeds_run_at_the_learning_rate_that_is_best_for_the_first(results):
    setup = claim.Setup("embedded", "cpu", [0, 1], quick=False)
    first = depth.trials(setup, results())
    assert {trial["seed"] for trial in first if trial["part"] == "training"} == {0}
    done = made_up(results, GOOD, lr=0.1)
    wanted = depth.trials(setup, claim.Results(done.of(seed=0)))
    others = [trial for trial in wanted if trial["seed"] == 1 and trial["part"] == "training"]
    assert len(others) == len(depth.ARMS) * len(depth.DEPTHS) and {trial["lr"] for trial in others} == {0.1}
    assert not list(done.missing(depth.trials(setup, done)))


def test_the_law_as_published():
    assert depth.predicted(1e9) == pytest.approx(np.pi / (np.pi - 1))
    for batch, growth in {4: 3.084, 8: 1.788, 16: 1.590, 32: 1.522, 64: 1.493, 128: 1.480, 256: 1.473}.items():
        assert depth.predicted(batch) == pytest.approx(growth, abs=6e-4)


def law_here(results):
    made = made_up(results, GOOD, seeds=1)
    law = results(({"part": "law", "seed": 0}, depth.law(0, "cpu")))
    return depth.findings(claim.Results([*law, *made.of(part="training")]))["law"]


def test_the_law_holds_of_this_batch_norm(results):
    assert law_here(results).verdict == claim.HOLDS


@pytest.mark.parametrize(
    "dropped", ["projection", "both"]
)  # the mean alone moves the growth by 1 %: test_claim_scale_invariance
def test_a_batch_norm_whose_gradient_lacks_a_term_breaks_the_law(results, monkeypatch, dropped):
    """dx = gamma / s (g - mean(g) - x_hat mean(g x_hat)), with statistics that are partly or wholly taken as constants."""
    right = CPU.batch_norm_backward

    def lacking(g, x, gamma, mean, var, eps):
        dx, *rest = right(g, x, gamma, mean, var, eps)
        s = np.sqrt(var + eps)
        x_hat = (x - mean) / s
        term = x_hat * (g * x_hat).mean(0) + (g.mean(0) if dropped == "both" else 0)
        return (dx + gamma / s * term).astype(dx.dtype), *rest

    monkeypatch.setattr(CPU, "batch_norm_backward", lacking)
    monkeypatch.setattr(depth, "BATCHES", (16,))
    assert law_here(results).verdict == claim.FAILS


@pytest.mark.parametrize("arm", depth.ARMS)
def test_every_arm_starts_from_the_same_weights_and_has_as_many_layers(arm):
    depth.tg.manual_seed(0)
    network = depth.Network(arm, 5)
    weights = [m.weight.detach().numpy() for m in network.modules() if isinstance(m, depth.tg.nn.Linear)]
    depth.tg.manual_seed(0)
    others = [m.weight.detach().numpy() for m in depth.Network("plain", 5).modules() if isinstance(m, depth.tg.nn.Linear)]
    assert len(weights) == 6 and all(np.array_equal(a, b) for a, b in zip(weights, others, strict=True))
    norms = [m for m in network.modules() if isinstance(m, depth.tg.nn.BatchNorm1d)]
    assert len(norms) == (0 if arm == "plain" else 5)
    assert {float(b) for m in norms for b in m.bias.detach().numpy()} <= {2.0 if arm == "beta" else 0.0}
    x = depth.tg.randn(8, 784)
    assert network(x).shape == (8, 10)


def test_only_skips_lead_around_a_layer():
    x = depth.tg.randn(8, 784)
    for arm in depth.ARMS:
        network = depth.Network(arm, 3)
        for block in network.blocks:
            depth.tg.nn.init.zeros_(block[-1].weight)
        outputs = network(x).detach().numpy()
        assert np.ptp(outputs, axis=0).max() > 0.1 if arm == "skips" else np.ptp(outputs, axis=0).max() < 1e-3
