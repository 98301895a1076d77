"""watch: what it hears of a program's own loops."""

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import diagnose, freeze, recalibrate, watch

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 6)).astype(np.float32), RNG.integers(0, 3, 64)


@pytest.fixture
def model():
    tg.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model, n=3, size=16):
    for i in range(n):
        tg.cross_entropy(model(tg.tensor(X[i * size : (i + 1) * size])), tg.tensor(Y[i * size : (i + 1) * size])).backward()


def evaluate(model, grad=False):
    with tg.enable_grad() if grad else tg.no_grad():
        return tg.cross_entropy(model(tg.tensor(X)), tg.tensor(Y))


def test_a_right_program_gives_no_finding(model):
    with watch(model) as seen:
        for _ in range(2):
            train(model.train())
            evaluate(model.eval())
    assert not seen.report().findings and len(seen.passes) == 8


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "recorded"])
def test_evaluated_in_training_mode(model, grad):
    with watch(model) as seen:
        train(model)
        loss = evaluate(model, grad)
    report = seen.report()
    assert report.codes == ["evaluated_in_training_mode"]
    evidence = report.findings[0].evidence
    assert (evidence["passes"], evidence["examples"], evidence["of_evaluation_passes"]) == (1, 64, 1)
    assert evidence["loss_seen"] == pytest.approx(loss.item(), rel=1e-6)
    assert report.findings[0].layer == "1" and report.findings[0].cost is None


def test_updated_by_evaluation_says_how_far(model):
    with watch(model) as seen:
        train(model)
        with tg.no_grad():
            model(tg.tensor(X + 3))
        evaluate(model.eval())
    found = seen.report()["updated_by_evaluation"]
    assert found.evidence["running_mean_moved_by"] > 0.05 and "accuracy_seen" in found.evidence["proper_evaluation"]
    assert "evaluated_in_training_mode" not in seen.report()


def test_trained_in_eval_mode_but_not_if_frozen_on_purpose(model):
    with watch(model) as seen:
        train(model, 1)
        evaluate(model.eval())
        train(model)
    found = seen.report()["trained_in_eval_mode"]
    assert found.severity == "error" and found.evidence["training_passes_in_evaluation_mode"] == 3
    freeze(model).train()
    with watch(model) as seen:
        train(model)
        evaluate(model)  # in training mode, where a frozen layer does the same
    assert not seen.report().findings and all(p.frozen and not p.by_batch for p in seen.passes)


def test_batch_of_one_that_raises_and_one_that_does_not(model):
    with watch(model) as seen, pytest.raises(ValueError, match="more than 1 value"):
        model(tg.tensor(X[:1]))
    assert seen.report()["batch_of_one"].evidence == {"passes": 1, "refused": 1}
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with watch(images) as seen:
        images(tg.tensor(RNG.normal(size=(1, 1, 6, 6)).astype(np.float32))).sum().backward()
    assert seen.report()["batch_of_one"].severity == "warning"


def test_an_error_of_another_kind_is_no_batch_of_one(model):
    with watch(model) as seen, pytest.raises(ValueError):
        model(tg.tensor(X[:, :3]))
    assert "batch_of_one" not in seen.report()
    wrong = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(7))
    with watch(wrong) as seen, pytest.raises(ValueError, match="input of shape"):
        wrong(tg.tensor(X))
    assert seen.passes[0].refused and "batch_of_one" not in seen.report()


@pytest.mark.parametrize("fused", [True, False])
def test_composed_layers_are_heard_too(fused):
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, fused=fused), nn.Linear(8, 3))
    with watch(model) as seen:
        train(model)
        evaluate(model)
    assert seen.report().codes == ["evaluated_in_training_mode"] and [p.learned for p in seen.passes] == [True] * 3 + [False]


def test_with_batches_the_cost_is_measured_too(model):
    pairs = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
    with watch(model) as seen:
        train(model)
        evaluate(model)
    report = seen.report(pairs)
    assert report.codes[0] == "evaluated_in_training_mode" and "start_value_weighs" in report
    assert report.findings[0].cost is report.cost is not None


def test_watching_changes_nothing_and_ends(model):
    def run(listen):
        tg.manual_seed(0)
        m = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        if listen:
            with watch(m):
                train(m)
        else:
            train(m)
        return m.state_dict(), [p.grad.numpy() for p in m.parameters()]

    (a, g), (b, h) = run(True), run(False)
    assert all((a[k] == b[k]).all() for k in a) and all((u == v).all() for u, v in zip(g, h, strict=True))
    assert tg.core.modes.hooks is None


def test_watch_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="watch expected a Module, got list"), watch([]):
        pass
    with pytest.raises(ValueError, match="without any"), watch(nn.Linear(2, 2)):
        pass


def test_two_passes_and_then_two_gradients_are_both_training(model):
    with watch(model) as seen:
        losses = [tg.cross_entropy(model(tg.tensor(X)), tg.tensor(Y)) for _ in range(2)]
        for loss in losses:
            loss.backward()
    assert [p.learned for p in seen.passes] == [True, True] and not seen.report().findings
    assert [p.examples for p in seen.passes] == [64, 64]


def test_parts_of_the_model_called_by_themselves_are_heard(model):
    body, head = model[:3], model[3]
    with watch(model) as seen:
        tg.cross_entropy(head(body(tg.tensor(X))), tg.tensor(Y)).backward()
        with tg.no_grad():
            head(body(tg.tensor(X)))
    assert [p.learned for p in seen.passes] == [True, False]
    assert seen.report().codes == ["evaluated_in_training_mode"]


def test_the_doctors_own_passes_are_not_the_programs(model):
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
    with watch(model) as seen:
        train(model.train())
        diagnose(model, batches)
        recalibrate(model, batches)
        with pytest.raises(ValueError, match="finite"):
            recalibrate(model, [X * np.nan])
        evaluate(model.eval())
    assert len(seen.passes) == 4 and not seen.report().findings
