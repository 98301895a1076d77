"""The tools on a model of another device: arrays stay there, and numbers are the same."""

import numpy as np
from numpy.testing import assert_allclose

import tinygrad_bn as tg
from tinygrad_bn.batchnorm import Monitor, diagnose, fold, layers, recalibrate, watch

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 1, 8, 8)).astype(np.float32), RNG.integers(0, 10, 24)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 24, 8)]


def made():
    tg.manual_seed(0)
    return tg.models.cnn((3, 4), 6, image_size=8)


def test_recalibrate_diagnose_and_fold(device):
    here, there = recalibrate(made(), BATCHES), made().to(device.name)
    inputs = [tg.Tensor(device.array(x)) for x, _ in BATCHES]
    recalibrate(there, inputs)
    for (_, a), (_, b) in zip(layers(here), layers(there), strict=True):
        assert b.running_mean.device == device.name
        assert_allclose(device.numpy(b.running_var), a.running_var.numpy(), rtol=1e-4)
    recalibrate(there, BATCHES)  # batches of the host go where the model is: so a report's mend runs as printed
    assert_allclose(device.numpy(layers(there)[0][1].running_var), layers(here)[0][1].running_var.numpy(), rtol=1e-4)
    first, second = (diagnose(m, BATCHES) for m in (here, there))
    assert second.codes == first.codes and abs(first.cost.evaluation.loss - second.cost.evaluation.loss) < 1e-4
    with tg.no_grad():
        before = device.numpy(there.eval()(inputs[0]))
        assert not fold(there, inputs[0]).kept
        assert_allclose(device.numpy(there(inputs[0])), before, atol=1e-4)


def test_watch_and_monitor(device):
    model = made().to(device.name)
    x, y = tg.Tensor(device.array(X)), tg.Tensor(device.array(Y))
    with watch(model) as seen, Monitor(model, 1, stream=False) as monitor:
        tg.cross_entropy(model(x), y).backward()
        with tg.no_grad():
            tg.cross_entropy(model(x), y)
    assert seen.report().codes == ["evaluated_in_training_mode"] and monitor.steps == [1]
