"""examples/claims/resnet_without_batchnorm.py: made-up runs, the share of the branch here, and of broken BatchNorms."""

import claim
import numpy as np
import pytest
import resnet_without_batchnorm as resnets
import training

import tinygrad_bn as tg
from tinygrad_bn.backend import kernels_of

CPU = kernels_of(np.zeros(1))
CPU.why_not()  # loads the compiled kernels, which would otherwise take the place of the broken ones below

GOOD = {"batchnorm": 94.0, "layernorm": 93.0, "skipinit": 93.5, "scaled": 92.0, "fixup": 91.0, "nothing": 0.0}


def made_up(results, accuracy=GOOD, error=0.05, lr=0.1, seeds=2):
    """Arms reach accuracy[arm] at one learning rate, and 11 % at the others; seed 0 was run at all of them."""
    share = {arm: list(resnets.predicted()) for arm in resnets.SHARE_ARMS}
    share["batchnorm"][7] *= 1 + error
    return results(
        *(({"part": "share", "seed": seed}, share) for seed in range(seeds)),
        *(
            (
                {"part": "training", "arm": arm, "blocks": blocks, "lr": rate, "seed": seed, "steps": 300},
                {
                    "diverged": accuracy[arm] == 0,
                    "loss": 1.0,
                    "valid": 91.0 if rate == lr else 10.0,
                    "accuracy": accuracy[arm] if rate == lr else 11.0,
                },
            )
            for arm in resnets.ARMS
            for blocks in resnets.BLOCKS
            for seed in range(seeds)
            for rate in (resnets.LRS if seed == 0 else (lr,))
        ),
    )


@pytest.mark.parametrize(
    "accuracy, error, verdicts",
    [
        (GOOD, 0.05, (claim.HOLDS, claim.FAILS)),
        (GOOD, -0.15, (claim.FAILS, claim.FAILS)),
        ({**GOOD, **dict.fromkeys(resnets.FREE, 60.0)}, 0.15, (claim.FAILS, claim.HOLDS)),
        ({**GOOD, **dict.fromkeys(resnets.FREE, 0.0), "nothing": 92.0}, 0.0, (claim.HOLDS, claim.FAILS)),
    ],
)
def test_the_best_arm_without_normalisation_is_judged(results, accuracy, error, verdicts):
    found = resnets.findings(made_up(results, accuracy, error))
    assert tuple(finding.verdict for finding in found.values()) == verdicts
    assert found["share"].values == pytest.approx([abs(error)] * 2)
    assert found["needed"].values == [max(accuracy[arm] for arm in resnets.FREE)] * 2


def test_the_picture(results, draws):
    done = made_up(results)
    draws(resnets, done)
    assert "93.5 % without normalisation (SkipInit), 94.0 % with BatchNorm" in resnets.headline(done)


def test_other_seeds_run_at_the_learning_rate_that_is_best_for_the_first(results):
    setup = claim.Setup("embedded", "cpu", [0, 1], quick=False)
    first = resnets.trials(setup, results())
    assert {trial["seed"] for trial in first if trial["part"] == "training"} == {0}
    done = made_up(results, lr=1.0)
    wanted = resnets.trials(setup, claim.Results(done.of(seed=0)))
    others = [trial for trial in wanted if trial["seed"] == 1 and trial["part"] == "training"]
    assert len(others) == len(resnets.ARMS) * len(resnets.BLOCKS) and {trial["lr"] for trial in others} == {1.0}
    assert not list(done.missing(resnets.trials(setup, done)))


@pytest.fixture(scope="module")
def data():
    return training.load(claim.Setup("embedded", "cpu", [0], quick=False))


def share_here(results, data):
    found = resnets.shares(0, data)
    done = results(({"part": "share", "seed": 0}, found))
    return resnets.findings(claim.Results([*done, *made_up(results, seeds=1).of(part="training")]))["share"], found


def test_the_share_holds_of_this_batch_norm(results, data):
    finding, found = share_here(results, data)
    assert finding.verdict == claim.HOLDS
    assert np.all(np.abs(np.array(found["nothing"]) - 0.5) < 0.1)  # without normalisation every branch is as large as its skip


@pytest.mark.parametrize("dropped", ["division", "mean"])
def test_a_batch_norm_that_lacks_a_step_gives_other_shares(results, data, monkeypatch, dropped):
    """x_hat = (x - mean) / s, without the division or without the mean."""
    right = CPU.batch_norm

    def lacking(x, gamma, beta, eps):
        y, (mean, var) = right(x, gamma, beta, eps)
        s = np.sqrt(var + eps)
        return (y * s if dropped == "division" else y + gamma * mean / s).astype(y.dtype), (mean, var)

    monkeypatch.setattr(CPU, "batch_norm", lacking)
    monkeypatch.setattr(resnets, "NETWORKS", 2)
    monkeypatch.setattr(resnets, "SHARE_ARMS", ("batchnorm", "nothing"))
    assert share_here(results, data)[0].verdict == claim.FAILS


def test_the_arms_start_as_they_should():
    """The same weights in all arms; Fixup's are scaled by L^(-1/2), SkipInit's blocks are the identity at first."""
    x = tg.randn(16, 784)
    blocks, networks = 4, {}
    for arm in resnets.ARMS:
        tg.manual_seed(0)
        networks[arm] = resnets.Network(arm, 32, blocks)

    def weights(arm, block):
        branch = networks[arm].blocks[block].branch
        return [layer.weight.detach().numpy() for layer in branch if isinstance(layer, tg.nn.Linear)]

    for arm in resnets.ARMS:
        for block in range(blocks):
            (a, b), (c, d) = weights(arm, block), weights("nothing", block)
            assert np.allclose(a, c / 2 if arm == "fixup" else c)
            assert not b.any() if arm == "fixup" else np.array_equal(b, d)
    for arm in ("skipinit", "fixup"):
        first = networks[arm].first(x)
        assert np.array_equal(networks[arm].blocks(first).detach().numpy(), first.detach().numpy())
        assert networks[arm].blocks[0].scale.requires_grad
    assert not networks["fixup"](x).detach().numpy().any()
    h = networks["scaled"].first(x)
    block = networks["scaled"].blocks[0]
    assert np.allclose((block(h) - h).detach().numpy(), block.branch(h).detach().numpy() / 2, atol=1e-5)
