"""Training the CNN of the examples beside PyTorch, on the embedded MNIST, from the same weights and batches."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from threadpoolctl import threadpool_limits

import tinygrad_bn as tg
from tinygrad_bn.datasets import batches, mnist

STEPS, LR, MOMENTUM = 100, 0.05, 0.9


def pytorch_twin(torch, model):
    """The default models.cnn() in PyTorch: the same layers, so that the state dict's keys are the same."""
    c, h = (8, 16), 64
    layers = []
    for before, width in ((1, c[0]), (c[0], c[1])):
        layers += [torch.nn.Conv2d(before, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width)]
        layers += [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    layers += [torch.nn.Flatten(), torch.nn.Linear(c[1] * 49, h, bias=False), torch.nn.BatchNorm1d(h), torch.nn.ReLU()]
    twin = torch.nn.Sequential(*layers, torch.nn.Linear(h, 10))
    twin.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in model.state_dict().items()})
    return twin


@pytest.fixture(scope="module")
def hundred_batches():
    (x, y), _ = mnist()
    found = list(batches(x, y, 64, shuffle=True, seed=3))[:STEPS]
    assert len(found) == STEPS
    return found


@pytest.fixture(autouse=True)
def one_thread():
    """Two workers of pytest with two threads each take three times as long."""
    with threadpool_limits(1):
        yield


def pair(torch, dtype):
    """The model in both engines, and its optimizers."""
    tg.manual_seed(0)
    ours = tg.models.cnn().to(dtype=dtype)
    theirs = pytorch_twin(torch, ours).to(getattr(torch, dtype))
    return (
        (ours, tg.optim.SGD(ours.parameters(), lr=LR, momentum=MOMENTUM)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=LR, momentum=MOMENTUM)),
    )


def relative(a, b):
    """The distance of two lists of arrays over the norm of the second."""
    distance = sum(((p - q) ** 2).sum() for p, q in zip(a, b, strict=True))
    return float(np.sqrt(distance / sum((q**2).sum() for q in b)))


def numpy_state(torch, optimizer):
    """PyTorch's optimizer state with arrays for tensors, and without its options that choose an implementation."""
    state = optimizer.state_dict()
    return {
        "state": {
            i: {k: v.numpy().copy() if torch.is_tensor(v) else v for k, v in s.items()} for i, s in state["state"].items()
        },
        "param_groups": [
            {k: group[k] for k in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "params")}
            for group in state["param_groups"]
        ],
    }


def test_100_momentum_steps_in_float64(torch, hundred_batches):
    """The same losses within 1e-10, relative, and the same running statistics."""
    (ours, sgd), (theirs, torch_sgd) = pair(torch, "float64")
    for step, (x, labels) in enumerate(hundred_batches):
        x = x.astype(np.float64)
        sgd.zero_grad()
        loss = tg.cross_entropy(ours(tg.tensor(x)), labels)
        loss.backward()
        sgd.step()
        torch_sgd.zero_grad()
        expected = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
        expected.backward()
        torch_sgd.step()
        assert_allclose(loss.item(), expected.item(), rtol=1e-10, err_msg=f"step {step}")
    assert loss.item() < 0.3, "it has learnt something"
    end = {k: v.numpy() for k, v in theirs.state_dict().items()}
    assert end["1.num_batches_tracked"] == STEPS
    for key, value in ours.state_dict().items():
        assert_allclose(value, end[key], rtol=1e-10 if "running" in key else 1e-8, atol=1e-10, err_msg=key)


def test_each_of_100_steps_in_float32(torch, hundred_batches):
    """Each from PyTorch's weights, buffers and optimizer state: loss within 2e-4, gradient within 3e-2 in norm, relative.

    A free run would drift: max-pooling and ReLU flip, and PyTorch in another memory layout differs from itself by 0.02 to 1.
    """
    (ours, sgd), (theirs, torch_sgd) = pair(torch, "float32")
    worst_loss = worst_gradient = worst_step = 0.0
    for x, labels in hundred_batches:
        ours.load_state_dict(theirs.state_dict())
        sgd.load_state_dict(numpy_state(torch, torch_sgd))
        before = [p.data.copy() for p in ours.parameters()]
        sgd.zero_grad()
        loss = tg.cross_entropy(ours(tg.tensor(x)), labels)
        loss.backward()
        gradient = [p.grad.data.copy() for p in ours.parameters()]
        sgd.step()
        torch_sgd.zero_grad()
        expected = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
        expected.backward()
        torch_sgd.step()
        worst_loss = max(worst_loss, abs(loss.item() / expected.item() - 1))
        worst_gradient = max(worst_gradient, relative(gradient, [p.grad.numpy() for p in theirs.parameters()]))
        moved = [p.data - b for p, b in zip(ours.parameters(), before, strict=True)]
        moved_there = [p.detach().numpy() - b for p, b in zip(theirs.parameters(), before, strict=True)]
        worst_step = max(worst_step, relative(moved, moved_there))
        for a, b in zip(ours.buffers(), (b for b in theirs.buffers() if b.ndim), strict=True):
            assert_allclose(a.data, b.numpy(), rtol=1e-4, atol=1e-5)
    print(f"worst: loss {worst_loss:.2g}, gradient {worst_gradient:.2g}, step {worst_step:.2g}")
    assert worst_loss < 2e-4
    assert worst_gradient < 3e-2
    assert worst_step < 3e-2
