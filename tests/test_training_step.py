"""A whole training step on every device: the same numbers, no wait for the device, and no copy that was not asked for."""

from __future__ import annotations

from functools import cache

import fake_cupy
import numpy as np
import pytest

import tinygrad_bn as tg

MODELS = {
    "cnn": lambda: tg.models.cnn(channels=(4, 8), hidden=16),
    "mlp": lambda: tg.nn.Sequential(tg.models.mlp((784, 20, 20, 10)), tg.nn.Dropout(0.1)),
    "group": lambda: tg.models.cnn(channels=(4,), hidden=8, norm="group"),
    "composed": lambda: tg.nn.Sequential(tg.nn.Flatten(), tg.nn.BatchNorm1d(784, fused=False), tg.nn.Linear(784, 10)),
}
OPTIMIZERS = {
    "sgd": lambda p: tg.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: tg.optim.AdamW(p, lr=1e-2),
}


@cache
def images():
    (x, y), _ = tg.datasets.mnist()
    return x[:64].astype(np.float64), y[:64]


def train(device_name, make_model, make_optimizer, steps, counted):
    """Losses of some steps in float64, and the model; ``counted`` holds the last steps."""
    tg.manual_seed(3)
    model = make_model().double().to(device_name)
    optimizer = make_optimizer(model.parameters())
    x, y = images()
    losses = []

    def step(i):
        batch = tg.tensor(x[16 * i : 16 * i + 16], device=device_name)
        labels = tg.tensor(y[16 * i : 16 * i + 16], device=device_name)
        loss = tg.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        tg_norm = tg.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append((loss.detach(), tg_norm))

    step(0)  # what is made on first use is made here
    with counted():
        for i in range(1, steps):
            step(i)
    return [[float(v) for v in pair] for pair in losses], model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_waits_for_nothing_and_gives_the_cpus_numbers(device, name, optimizer):
    losses, model = train(device.name, MODELS[name], OPTIMIZERS[optimizer], 4, device.no_syncs)
    expected, on_cpu = train("cpu", MODELS[name], OPTIMIZERS[optimizer], 4, device.no_syncs)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for key, value in on_cpu.state_dict().items():
        np.testing.assert_allclose(device.numpy(model.state_dict()[key]), value, rtol=1e-7, atol=1e-10, err_msg=key)


def test_a_step_uploads_its_batch_and_nothing_else(device):
    if device.label != "stand-in":
        pytest.skip("only the stand-in counts uploads")
    with fake_cupy.count_syncs() as counts:
        train("cuda", MODELS["cnn"], OPTIMIZERS["sgd"], 1, device.no_syncs)
        before = counts.uploads
        before_implicit = counts.implicit_uploads
    with fake_cupy.count_syncs() as counts:
        train("cuda", MODELS["cnn"], OPTIMIZERS["sgd"], 3, device.no_syncs)
    assert before_implicit == counts.implicit_uploads == 0, counts.sites
    assert counts.uploads - before == 2 * 2  # images and labels of two more steps
