"""examples/claims/only_gamma_beta.py on made-up runs whose answer is known, and what it freezes."""

import claim
import numpy as np
import only_gamma_beta as gb
import pytest

import tinygrad_bn as tg


def made_up(results, few, control, off=0.3, seeds=3):
    value = {"gamma_beta": few, "random": control, "all": 98.0}
    histogram = [0.0] * (len(gb.EDGES) - 2) + [1.0]
    pairs = []
    for arm in gb.ARMS:
        for lr in gb.GRID:
            pairs.append(({"kind": "pick", "arm": arm, "lr": lr, "seed": 0, "steps": 1}, {"accuracy": -abs(lr - 3)}))
        for lr in (gb.SAME, 3.0):
            for seed in range(seeds):
                result = {
                    "diverged": False,
                    "accuracy": value[arm] - (20 + seed) * (lr == gb.SAME),
                    "trained": 1536,
                    "off": off,
                    "histogram": histogram,
                    "weight": 2.0,
                }
                pairs.append(({"kind": "run", "arm": arm, "lr": lr, "seed": seed, "steps": 1}, result))
    return results(*pairs)


@pytest.mark.parametrize("few, control, verdict", [(90.0, 80.0, claim.HOLDS), (80.0, 90.0, claim.FAILS)])
def test_the_gain_is_paired_at_the_best_rates(results, draws, few, control, verdict):
    done = made_up(results, few, control)
    finding = gb.findings(done)["gain"]
    assert finding.values == pytest.approx([few - control] * 3) and finding.verdict == verdict
    draws(gb, done)


@pytest.mark.parametrize("off, verdict", [(0.3, claim.HOLDS), (0.01, claim.FAILS), (0.9, claim.FAILS)])
def test_the_share_of_units_switched_off(results, off, verdict):
    assert gb.findings(made_up(results, 90.0, 80.0, off))["off"].verdict == verdict


@pytest.mark.parametrize("arm", gb.ARMS)
def test_a_step_moves_as_many_numbers_as_said_and_no_other(arm):
    tg.manual_seed(0)
    network = tg.models.mlp((20, 6, 6, 4), "batch", "relu")
    trained = gb.freeze(network, arm, 0)
    before = {name: p.detach().numpy().copy() for name, p in network.named_parameters()}
    optimizer = tg.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        y = tg.tensor(np.arange(30) % 4)
        optimizer.zero_grad()
        tg.cross_entropy(network(tg.randn(30, 20)), y).backward()
        optimizer.step()
    moved = {name: (p.detach().numpy() != before[name]) for name, p in network.named_parameters()}
    count = sum(m.sum() for m in moved.values())
    assert count == trained == {"gamma_beta": 24, "random": 24, "all": 20 * 6 + 36 + 24 + 4 + 24}[arm]
    if arm == "gamma_beta":
        assert not any(m.any() for name, m in moved.items() if before[name].ndim == 2)
    if arm == "random":
        assert all((m.sum(1) == 2).all() for name, m in list(moved.items())[:-2] if before[name].ndim == 2)
        assert not list(moved.values())[-2].any()


def test_as_many_weights_as_gamma_and_beta():
    count = {}
    for arm in ("gamma_beta", "random"):
        tg.manual_seed(0)
        count[arm] = gb.freeze(tg.models.mlp(gb.SIZES, "batch", "relu"), arm, 0)
    assert count == {"gamma_beta": 1536, "random": 1536}
