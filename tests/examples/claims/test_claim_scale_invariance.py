"""examples/claims/scale_invariance.py: what it says of made-up results, of this BatchNorm, and of broken ones."""

import claim
import numpy as np
import pytest
import scale_invariance
import training

from tinygrad_bn.backend import kernels_of

CPU = kernels_of(np.zeros(1))
CPU.why_not()  # loads the compiled kernels, which would otherwise take the place of the broken ones below


def made_up(results, cosine=1e-16, gap=1e-12, angle=0.14, length=5):
    curve = [0.1] * length
    result = {
        "cosine": cosine,
        "gap": gap,
        "angular_step": angle,
        "losses": [curve, curve],
        "gaps": curve,
        "angles": curve,
        "norms": [curve, curve],
    }
    drifted = {**result, "gap": 0.3, "cosine": 1e-5}
    return results(
        *(
            ({"variant": variant, "seed": seed}, result if variant == "exact" else drifted)
            for variant in scale_invariance.VARIANTS
            for seed in range(2)
        )
    )


@pytest.mark.parametrize(
    "what, verdicts",
    [
        ({}, (claim.HOLDS, claim.HOLDS, claim.HOLDS)),
        ({"cosine": 1e-11}, (claim.FAILS, claim.HOLDS, claim.HOLDS)),
        ({"gap": 1e-8}, (claim.HOLDS, claim.FAILS, claim.HOLDS)),
        ({"angle": 0.11}, (claim.HOLDS, claim.HOLDS, claim.FAILS)),
        ({"angle": 0.17}, (claim.HOLDS, claim.HOLDS, claim.FAILS)),
    ],
)
def test_only_the_runs_with_eps_0_in_float64_are_judged(results, what, verdicts):
    found = scale_invariance.findings(made_up(results, **what))
    assert tuple(finding.verdict for finding in found.values()) == verdicts


def test_the_picture(results, draws):
    done = made_up(results)
    draws(scale_invariance, done)
    assert " is a growing" in scale_invariance.headline(done) and "3e-1" not in scale_invariance.headline(done)
    assert " is not a growing" in scale_invariance.headline(made_up(results, gap=1e-3))
    assert scale_invariance.same_length([[], [1.0]]).shape == (2, 1)  # of runs that diverged at once


@pytest.fixture(scope="module")
def data():
    return training.load(claim.Setup("embedded", "cpu", [0], quick=False))


def measured(data, results):
    trial = {"variant": "exact", "seed": 0}
    return scale_invariance.findings(results((trial, scale_invariance.run(trial, data))))


def test_the_criteria_hold_of_this_batch_norm(data, results):
    found = measured(data, results)
    assert [finding.verdict for finding in found.values()] == [claim.HOLDS] * 3


@pytest.mark.parametrize(
    "dropped, orthogonal, equivalent",
    [
        ("nothing", claim.HOLDS, claim.HOLDS),
        ("mean", claim.FAILS, claim.HOLDS),  # the equivalence needs no more of a gradient than that it goes with 1 / ||w||
        ("projection", claim.FAILS, claim.HOLDS),
        ("1 / s", claim.HOLDS, claim.FAILS),
    ],
)
def test_a_batch_norm_whose_gradient_lacks_a_term_is_found_out(data, results, monkeypatch, dropped, orthogonal, equivalent):
    """dx = gamma / s (g - mean(g) - x_hat mean(g x_hat)), without one of the two means or the division by s."""
    right = CPU.batch_norm_backward

    def lacking(g, x, gamma, mean, var, eps):
        dx, *rest = right(g, x, gamma, mean, var, eps)
        s = np.sqrt(var + eps)
        x_hat = (x - mean) / s
        if dropped == "1 / s":
            return dx * s, *rest
        term = {"mean": g.mean(0), "projection": x_hat * (g * x_hat).mean(0), "nothing": 0}[dropped]
        return dx + gamma / s * term, *rest

    monkeypatch.setattr(CPU, "batch_norm_backward", lacking)
    monkeypatch.setattr(scale_invariance, "STEPS", 40)
    found = measured(data, results)
    assert (found["orthogonal"].verdict, found["equivalent"].verdict) == (orthogonal, equivalent)


def test_a_wrong_learning_rate_is_found_out(data, results, monkeypatch):
    monkeypatch.setattr(scale_invariance, "STEPS", 40)
    monkeypatch.setattr(scale_invariance, "SHRINK", 1 - 1.01 * scale_invariance.LR * scale_invariance.DECAY)
    assert measured(data, results)["equivalent"].verdict == claim.FAILS
