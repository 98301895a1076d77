"""examples/claims/learning_rates.py on made-up runs whose answer is known."""

import claim
import learning_rates
import pytest


def made_up(results, limits, sigmoid=(11.0, 95.0), seeds=2):
    """Runs that train up to limits[arm], and diverge above."""
    return results(
        *(
            (
                {"activation": activation, "arm": arm, "lr": lr, "seed": seed, "steps": 1},
                {
                    "diverged": lr > limits[arm],
                    "loss": 0.1,
                    "trains": lr <= limits[arm],
                    "accuracy": sigmoid[arm == "batchnorm"] - 90 * (lr != 0.1) if activation == "sigmoid" else 95.0,
                },
            )
            for activation in ("relu", "sigmoid")
            for arm in learning_rates.ARMS
            for lr in (0.01, 0.1, 1.0, 10.0)
            for seed in range(seeds)
        )
    )


@pytest.mark.parametrize(
    "limits, ratio, verdict",
    [
        ({"plain": 0.1, "batchnorm": 10}, 100, claim.HOLDS),
        ({"plain": 1, "batchnorm": 1}, 1, claim.FAILS),
    ],
)
def test_the_ratio_of_the_highest_rates_that_train(results, draws, limits, ratio, verdict):
    done = made_up(results, limits)
    finding = learning_rates.findings(done)["ratio"]
    assert finding.values == pytest.approx([ratio, ratio]) and finding.verdict == verdict
    draws(learning_rates, done)


def test_an_arm_that_trains_nowhere_counts_as_one_step_below_the_grid(results):
    done = made_up(results, {"plain": 0.0, "batchnorm": 0.01})
    assert learning_rates.findings(done)["ratio"].values[0] == pytest.approx(0.01 / 10**-3.5)


def test_sigmoids_are_judged_at_the_best_rate(results):
    found = learning_rates.findings(made_up(results, {"plain": 1, "batchnorm": 1}))
    assert found["sigmoid_plain"].values == [11, 11] and found["sigmoid_plain"].verdict == claim.HOLDS
    assert found["sigmoid_batchnorm"].values == [95, 95] and found["sigmoid_batchnorm"].verdict == claim.HOLDS
    found = learning_rates.findings(made_up(results, {"plain": 1, "batchnorm": 1}, (80.0, 30.0)))
    assert found["sigmoid_plain"].verdict == found["sigmoid_batchnorm"].verdict == claim.FAILS
