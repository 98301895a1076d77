"""Training the MNIST CNN on CUDA gives what it gives on the CPU: in full on a GPU, the first steps of it on the stand-in."""

from __future__ import annotations

from functools import cache

import emulated_gpu
import numpy as np
import pytest

import tinygrad_bn as tg


@cache
def images():
    (x, y), (x_test, y_test) = tg.datasets.mnist()
    mean, std = x.mean(), x.std()
    return (x - mean) / std, y, (x_test - mean) / std, y_test


def made(dtype, device):
    tg.manual_seed(1)
    model = tg.models.cnn()
    model = (model.double() if dtype == "float64" else model).to(device)
    return model, tg.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batches(dtype, size, device=None):
    x, y, _, _ = images()
    return tg.datasets.batches(x.astype(dtype), y, size, shuffle=True, drop_last=True, device=device)


def step(model, optimizer, x, labels):
    """The loss, before the step."""
    optimizer.zero_grad()
    loss = tg.cross_entropy(model(tg.Tensor(x)), tg.Tensor(labels))
    loss.backward()
    optimizer.step()
    return loss.detach()


def trained(device, steps, size, test_images):
    """Losses of so many steps in float64, and what the network then says of the test images."""
    model, optimizer = made("float64", device)
    losses = []
    loops = (pair for _ in range(steps) for pair in batches("float64", size, device))
    for (x, labels), _ in zip(loops, range(steps), strict=False):
        losses.append(step(model, optimizer, x, labels))
    model.eval()
    _, _, x_test, _ = images()
    with tg.no_grad():
        logits = model(tg.tensor(x_test[:test_images].astype("float64"), device=device)).cpu().numpy()
    return [float(v) for v in losses], logits.argmax(1)


def test_float64_follows_the_cpu(device):
    if device.label == "cpu":
        pytest.skip("that is what the others are held against")
    steps, size, test_images = (200, 64, 2000) if device.label == "cuda" else (3, 8, 20)
    steps = 10 if emulated_gpu.installed() else steps  # (which takes a second for each)
    losses, predictions = trained(device.name, steps, size, test_images)
    expected, expected_predictions = trained("cpu", steps, size, test_images)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(predictions, expected_predictions)


def test_each_float32_step_from_the_cpus_state(device):
    if device.label == "cpu":
        pytest.skip("that is what the others are held against")
    steps, size = (20, 64) if device.label == "cuda" else (2, 8)
    steps = 5 if emulated_gpu.installed() else steps
    model, optimizer = made("float32", "cpu")
    other, other_optimizer = made("float32", device.name)
    loop = iter(batches("float32", size))
    for _ in range(steps):
        x, labels = next(loop)
        other.load_state_dict(model.state_dict())
        other_optimizer.load_state_dict(optimizer.state_dict())
        there = step(other, other_optimizer, device.array(x), device.array(labels))
        here = step(model, optimizer, x, labels)
        assert abs(float(there) - float(here)) < 2e-4
        a = np.concatenate([device.numpy(p.grad).ravel() for p in other.parameters()])
        b = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
        assert np.linalg.norm(a - b) < 3e-2 * np.linalg.norm(b)
