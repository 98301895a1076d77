"""examples/claims/batchmates.py, with its real criteria, and on a BatchNorm whose gradient forgets the other examples."""

import batchmates
import claim
import numpy as np
import pytest
import training

import tinygrad_bn as tg
from tinygrad_bn.ops import batch_norm

SETUP = claim.Setup("embedded", "cpu", [0, 1], True)


@pytest.fixture(scope="module")
def data():
    return training.load(SETUP)


def ran(results, data):
    return results(*((trial, batchmates.run(trial, data)) for trial in batchmates.trials(SETUP, [])))


def test_the_real_criteria_hold(results, draws, data):
    done = ran(results, data)
    assert [finding.verdict for finding in batchmates.findings(done).values()] == [claim.HOLDS] * 3
    for arm in ("eval", "layer"):
        for blocks in done.values("blocks", arm=arm):
            assert np.array_equal(blocks, np.diag(np.diag(blocks))) and np.diag(blocks).all()
    draws(batchmates, done)


def test_a_gradient_without_the_mean_terms_turns_the_verdict(results, data, monkeypatch):
    def forgetful(g, _y, x, gamma, _beta, *, aux, eps):  # noqa: ARG001
        return g * gamma / np.sqrt(aux[1] + eps), g.sum(0), g.sum(0)

    monkeypatch.setattr(batch_norm.primitive, "fused", forgetful)
    assert batchmates.findings(ran(results, data))["train"].verdict == claim.FAILS


def test_a_batchnorm_that_uses_its_batch_in_eval_mode_turns_the_verdict(results, data, monkeypatch):
    monkeypatch.setattr(
        "tinygrad_bn.ops.batch_norm_inference", lambda x, gamma, beta, mean, var, eps: batch_norm(x, gamma, beta, eps=eps)[0]
    )
    assert batchmates.findings(ran(results, data))["eval"].verdict == claim.FAILS


def test_blocks_are_the_derivatives_of_one_batchnorm():
    x = np.random.default_rng(0).normal(size=(5, 3))
    d = x - x.mean(0)
    x_hat = d / np.sqrt((d * d).mean(0) + 1e-5)
    by_hand = (np.eye(5)[:, :, None] - 1 / 5 - x_hat[:, None] * x_hat / 5) / np.sqrt((d * d).mean(0) + 1e-5)
    blocks = batchmates.coupling(tg.nn.BatchNorm1d(3).double(), x, "cpu")
    np.testing.assert_allclose(blocks, np.sqrt((by_hand**2).sum(2)), rtol=1e-10)
    assert batchmates.share(np.diag([1.0, 2.0])) == 0 and batchmates.share(np.ones((2, 2))) == pytest.approx(0.5**0.5)


def test_the_batch_has_one_image_of_each_digit(data):
    images = batchmates.one_of_each(data.valid, np.random.default_rng(1))
    places = [np.flatnonzero((data.valid.x == image).all(1))[0] for image in images]
    assert data.valid.y[places].tolist() == list(range(10))
