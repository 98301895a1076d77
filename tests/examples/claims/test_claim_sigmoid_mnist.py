"""examples/claims/sigmoid_mnist.py on made-up runs whose answer is known."""

import claim
import numpy as np
import pytest
import sigmoid_mnist as sm


def made_up(results, steps, drift, usual=None, seeds=3):
    """Runs with the given steps to 90 and 97 %, and drift of all units; best rate 1 without BatchNorm, 0.3 with."""
    pairs = []
    best = {"plain": 1.0, "batchnorm": 0.3, "glorot": 0.1}
    for arm in sm.ARMS:
        for lr in sm.GRID:
            pairs.append(({"kind": "pick", "arm": arm, "lr": lr, "seed": 0, "steps": 5}, {"loss": abs(lr - best[arm])}))
        for lr in (sm.LR, best[arm]):
            for seed in range(seeds):
                known = drift[arm] * np.linspace(1, 2, 100)
                result = {
                    "diverged": False,
                    "accuracy": np.linspace(10, 98, sm.CURVE + 1).tolist(),
                    "reached": dict(zip(("90", "97"), steps[arm] if lr == sm.LR else (10, 20), strict=True)),
                    "drift": known.tolist(),
                    "usual": (known * (usual or {}).get(arm, 1)).tolist(),
                    "spread": 0.5,
                    "typical": [[-1.0, 0.0, 1.0]] * (sm.CURVE + 1),
                    "weight": 2.0,
                }
                pairs.append(({"kind": "run", "arm": arm, "lr": lr, "seed": seed, "steps": 50_000}, result))
    return results(*pairs)


STEPS = {"plain": (8000, 20_000), "batchnorm": (1000, 5000), "glorot": (1000, 5000)}
DRIFT = {"plain": 6.0, "batchnorm": 2.0, "glorot": 1.0}


def test_speed_drift_and_the_best_rates(results, draws):
    done = made_up(results, STEPS, DRIFT)
    found = sm.findings(done)
    assert found["speed"].values == pytest.approx([4] * 3) and found["speed"].verdict == claim.HOLDS
    assert found["speed_90"].values == pytest.approx([8] * 3)
    assert found["speed_best"].values == pytest.approx([1] * 3) and found["speed_best"].verdict == claim.FAILS
    assert found["drift"].values == pytest.approx([3] * 3) and found["drift"].verdict == claim.HOLDS
    draws(sm, done)


def test_more_drift_with_batchnorm_fails(results, draws):
    done = made_up(results, STEPS, {**DRIFT, "plain": 1.0}, usual={"plain": 8})
    found = sm.findings(done)
    assert found["drift_best"].values == pytest.approx([0.5] * 3) and found["drift_best"].verdict == claim.FAILS
    assert found["usual_best"].values == pytest.approx([4] * 3) and found["usual_best"].verdict == claim.HOLDS
    draws(sm, done)


def test_a_run_that_does_not_arrive_counts_with_all_its_steps(results, draws):
    done = made_up(results, {**STEPS, "plain": (None, None)}, DRIFT)
    assert sm.findings(done)["speed"].values == pytest.approx([10] * 3)
    assert "at least 10" in sm.headline(done)
    draws(sm, done)
    draws(sm, made_up(results, {**STEPS, "batchnorm": (9, None)}, DRIFT, seeds=1))


def test_drift_in_ranges_of_the_time_or_usual_ones():
    percentiles = np.zeros((4, 5, 2))
    percentiles[:, 2, 0] = [0, 1, 3, 3]  # medians
    percentiles[:, 3, 0] = [2, 4, 1, 9]  # the upper quartile; the lower one is 0
    percentiles[:, 2, 1], percentiles[:, 1, 1], percentiles[:, 3, 1] = [5, 4, 5, 4], -1, 1
    assert sm.drifts(percentiles) == pytest.approx([1 / 2 + 2 / 4, 3 / 2])
    assert sm.drifts(percentiles, usual=True) == pytest.approx([3 / 3, 3 / 2])


def test_the_bootstrap_interval_holds_the_median():
    low, high = sm.bootstrap(np.linspace(1, 3, 101))
    assert 1.5 < low < 2 < high < 2.5
    assert sm.bootstrap(np.full(100, 4.0)) == (4, 4)


def test_rates_are_chosen_before_the_runs_are_asked_for(results):
    setup = claim.Setup("embedded", "cpu", [0, 1, 2, 3, 4], False)
    assert {t["kind"] for t in sm.trials(setup, results())} == {"pick"}
    done = made_up(results, STEPS, DRIFT)
    short = claim.Results(r._replace(trial={**r.trial, "steps": 5000}) if r.trial["kind"] == "pick" else r for r in done)
    asked = sm.trials(setup, short)
    assert not list(short.missing(asked)) and len(asked) == len(done) - 3  # nobody asks for Glorot's weights at 0.01
