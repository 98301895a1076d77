"""A ResNet-20 trained in PyTorch goes on here, and the other way round, as if it had stayed where it was."""

import numpy as np
import pytest
import torch_twins
from threadpoolctl import threadpool_limits

import tinygrad_bn as tg
from tinygrad_bn import interop

safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs safetensors and PyTorch")

STEPS = 50  # in each of the two
LR = 0.01  # at larger ones two correct engines drift apart by rounding alone
MOMENTUM = 0.9  # so that the optimizer has a state that must travel too
TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def batches():
    """100 batches of eight images of the embedded MNIST, every other pixel, in float64."""
    (x, y), _ = tg.datasets.mnist()
    found = iter(tg.datasets.batches(x[:, :, ::2, ::2].astype(np.float64), y, 8, shuffle=True, seed=1))
    return [next(found) for _ in range(2 * STEPS)]


def ours():
    model = tg.models.resnet20().double()
    return model, tg.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def theirs(torch):
    model = torch_twins.resnet20(torch).double()
    return model, torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def train_here(pair, batches):
    model, optimizer = pair
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = tg.cross_entropy(model(tg.tensor(x)), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_there(torch, pair, batches):
    model, optimizer = pair
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_pytorchs_training_goes_on_here(torch, batches, tmp_path):
    torch.manual_seed(0)
    there, here = theirs(torch), ours()
    with threadpool_limits(1):
        before = train_there(torch, there, batches[:STEPS])
        path = tmp_path / "model.safetensors"
        safetensors_torch.save_file(there[0].state_dict(), path)
        assert interop.load_weights(here[0], path) == ([], [])
        here[1].load_state_dict(there[1].state_dict())
        stayed, moved = train_there(torch, there, batches[STEPS:]), train_here(here, batches[STEPS:])
    distance = np.abs(np.subtract(stayed, moved)).max()
    print(f"losses within {distance:.2g}")
    assert distance <= TOLERANCE
    assert np.mean(stayed[-10:]) < 0.8 * np.mean(before[:10]), "it has learnt something"


def test_our_training_goes_on_in_pytorch(torch, batches, tmp_path):
    tg.manual_seed(0)
    there, here = theirs(torch), ours()
    with threadpool_limits(1):
        before = train_here(here, batches[:STEPS])
        path = tmp_path / "model.safetensors"
        interop.save_weights(here[0], path)
        there[0].load_state_dict(safetensors_torch.load_file(path))
        there[1].load_state_dict(interop.to_torch(here[1].state_dict()))
        stayed, moved = train_here(here, batches[STEPS:]), train_there(torch, there, batches[STEPS:])
    distance = np.abs(np.subtract(stayed, moved)).max()
    print(f"losses within {distance:.2g}")
    assert distance <= TOLERANCE
    assert np.mean(stayed[-10:]) < 0.8 * np.mean(before[:10]), "it has learnt something"
