"""examples/claims/train_vs_eval.py on made-up runs whose answer is known, and its parts on small data."""

import claim
import numpy as np
import pytest
import train_vs_eval as te
from training import Data, Part

import tinygrad_bn as tg


def made_up(results, cost=None, deviation=(4 / 3) ** 0.5, left=20.0, share=1.0, seeds=3):
    cost = {**dict.fromkeys(te.BUGS, 5.0), "eval": 95.0 - left, **(cost or {})}
    pairs = []
    for seed in range(seeds):
        shares = {name: [share * (1 - m) ** k for k in te.STEPS] for name, m in te.TRACKERS.items() if m}
        start = {
            "accuracy": {name: [50.0] * len(te.STEPS) for name in te.HOW},
            "share": {**shares, "cumulative": [0.0] * len(te.STEPS)},
        }
        bugs = {
            "accuracy": {bug: [95.0, 95.0 - c] for bug, c in cost.items()},
            "in_training": [90.0] * len(te.SIZES),
            "deviation": deviation,
        }
        pairs += [({"kind": "start", "seed": seed, "steps": 9}, start), ({"kind": "bugs", "seed": seed, "steps": 9}, bugs)]
    return results(*pairs)


def test_all_claims_hold_where_theory_and_costs_say_so(results, draws):
    done = made_up(results)
    found = te.findings(done)
    assert {f.verdict for f in found.values()} == {claim.HOLDS}
    assert found["biased"].values == pytest.approx([1] * 3) and found["every"].values == pytest.approx([5] * 3)
    assert te.headline(done).startswith("8 of eight") and "eval() forgotten" in te.headline(done)
    draws(te, done)


@pytest.mark.parametrize(
    "name, how",
    [
        ("start", {"share": 1.02}),
        ("biased", {"deviation": 1.0}),
        ("sorted", {"left": 90.0}),
        ("every", {"cost": {"tail": -1.0}}),
    ],
)
def test_each_fails_alone(results, draws, name, how):
    done = made_up(results, **how)
    assert {n for n, f in te.findings(done).items() if f.verdict == claim.FAILS} == {name}
    draws(te, done)


def test_the_largest_error_of_a_share_counts_and_tiny_shares_do_not():
    share = {"0.1": [0.9**k for k in te.STEPS], "0.01": [0.99**k for k in te.STEPS]}
    assert te.share_error(share) == pytest.approx(0)
    share["0.1"][-1] *= 5  # 0.9 ** 200
    assert te.share_error(share) == pytest.approx(0)
    share["0.01"][2] *= 0.9
    assert te.share_error(share) == pytest.approx(0.1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 10
    x = (rng.standard_normal((600, 784)) + 0.3 * (np.arange(784) % 10 == y[:, None])).astype(np.float32)
    part = Part(x, y)
    return Data(part, part.first(200), part.first(300), 0.0, 1.0, "cpu")


def test_precise_statistics_leave_no_trace(data):
    network = te.network_of(0, 0.01)
    before = network.state_dict()
    te.precise(network, data)
    after = network.state_dict()
    assert all((before[k] == after[k]).all() for k in before)
    assert [layer.momentum for layer in te.norms(network)] == [0.01] * 3


def test_the_start_is_measured_as_the_formula_says(data, monkeypatch):
    monkeypatch.setattr(te, "STEPS", [1, 5])
    found = te.start(0, 5, data)
    assert te.share_error(found["share"]) < 1e-4
    assert found["share"]["0.1"] == pytest.approx([0.9, 0.9**5], rel=1e-4) and found["share"]["cumulative"] == [0, 0]
    assert set(found["accuracy"]) == set(te.HOW)


def test_every_bug_is_measured(data, monkeypatch):
    monkeypatch.setattr(te, "SIZES", [2, 60])
    found = te.bugs(0, 120, data)
    assert set(found["accuracy"]) == set(te.BUGS) and len(found["in_training"]) == 2
    right, wrong = found["accuracy"]["eval"]
    assert wrong < right and found["in_training"][0] < found["in_training"][1]
    assert found["accuracy"]["buffers"][0] == right


def test_images_sorted_by_class_keep_their_labels(data):
    part = te.sorted_by_class(data.test)
    assert (np.diff(part.y) >= 0).all() and part.x[-1, 9] == data.test.x[data.test.y == 9][-1, 9]


def test_a_batch_of_one_image_is_refused(data):
    with pytest.raises(ValueError):
        te.pass_over(te.network_of(0), data.test.x[:1], 1)
    assert tg.is_grad_enabled()
