"""Monitor: what it records is what is there, and its picture."""

import io

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import Monitor

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 6)).astype(np.float32), RNG.integers(0, 3, 32)


def trained(steps, every, stream=False, **how):
    tg.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = tg.optim.SGD(model.parameters(), lr=0.3)
    seen = []
    with Monitor(model, every, optimizer=optimizer, stream=stream, **how) as monitor:
        for _ in range(steps):
            loss = tg.cross_entropy(model(tg.tensor(X)), tg.tensor(Y))
            optimizer.zero_grad()
            loss.backward()
            w = model[1].weight
            var, weight = model[2].running_var.numpy().copy(), w.detach().numpy().copy()
            seen.append((loss.item(), np.linalg.norm(w.grad.numpy()), var, weight))
            optimizer.step()
    return model, monitor, seen


def test_every_so_many_steps_what_was_there():
    model, monitor, seen = trained(10, 3)
    assert monitor.steps == [3, 6, 9] and list(monitor.records) == ["0", "2"]
    for i, step in enumerate(monitor.steps):
        loss, norm, var, weight = seen[step - 1]
        row = {name: values[i] for name, values in monitor.records["2"].items()}
        assert monitor.losses[i] == pytest.approx(loss, rel=1e-6)
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-6)
        assert row["running_var"] == pytest.approx(np.median(var), rel=1e-6)
        assert row["effective_lr"] == pytest.approx(0.3 / (weight.astype(float) ** 2).sum(), rel=1e-6)
    assert tg.core.modes.hooks is None


def test_percentiles_are_of_gamma_x_hat_plus_beta():
    model, monitor, _ = trained(1, 1)
    x = X - X.mean(0)
    y = x / np.sqrt(x.var(0) + 1e-5)
    assert_allclose(monitor.records["0"]["percentiles"][0], np.percentile(y, (15, 50, 85)), atol=1e-5)
    assert_allclose(monitor.records["0"]["unit"][0], np.percentile(y[:, 0], (15, 50, 85)), atol=1e-5)
    assert monitor.records["0"]["gradient_norm"][0] > 0  # no layer before it: of its gamma


def test_evaluation_in_between_is_not_recorded_and_changes_nothing():
    plain, watched = trained(4, 100)[0], trained(4, 2)[0]
    assert all((a == b).all() for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True))


def test_the_progress_line():
    stream = io.StringIO()
    trained(4, 2, stream)
    lines = stream.getvalue().split("\r")
    assert lines[1].startswith("step 2  loss ") and "steps/s" in lines[2] and lines[2].endswith("\n")


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    _, monitor, _ = trained(12, 2)
    assert monitor.plot(tmp_path / "m.png").stat().st_size > 10_000
    assert monitor.plot(tmp_path / "one.svg", only=["2"]).read_text().startswith("<?xml")


def test_monitor_refuses_what_it_cannot_do(tmp_path):
    model = tg.models.mlp((6, 8, 3))
    for args, options, error, text in (
        ((3,), {}, TypeError, "expected a Module, got int"),
        ((model, 0), {}, ValueError, "every to be an int of at least 1, got 0"),
        ((model, True), {}, ValueError, "got True"),
        ((model,), {"optimizer": 1}, TypeError, "optimizer to be an Optimizer, got int"),
        ((nn.Linear(2, 2),), {}, ValueError, "without any"),
    ):
        with pytest.raises(error, match=text):
            Monitor(*args, **options)
    with pytest.raises(ValueError, match="recorded steps, got none"):
        Monitor(model, stream=False).plot(tmp_path / "m.png")
    with pytest.raises(ValueError, match="paths of BatchNorm layers"):
        trained(2, 1)[1].plot(tmp_path / "m.png", only=["7"])


def test_a_layer_that_is_never_called_is_drawn_empty(tmp_path):
    class Spare(nn.Module):
        def __init__(self):
            self.norm, self.spare = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(x)

    model = Spare()
    with Monitor(model, 1, stream=False) as monitor:
        model(tg.tensor(X)).sum().backward()
    for only in (None, ["spare"]):
        assert monitor.plot(tmp_path / "m.png", only=only).is_file()
