"""A model from PyTorch that scores well there and badly here: the doctor says why, and one line mends it. Needs PyTorch."""

import sys

import torch

import tinygrad_bn as tg
from tinygrad_bn import nn

(x, y), (x_test, y_test) = tg.datasets.mnist()


def network(lib):  # the same in both libraries
    first = [lib.Conv2d(1, 8, 3, padding=1, bias=False), lib.BatchNorm2d(8), lib.ReLU(), lib.MaxPool2d(2)]
    second = [lib.Conv2d(8, 16, 3, padding=1, bias=False), lib.BatchNorm2d(16), lib.ReLU(), lib.MaxPool2d(2)]
    return lib.Sequential(*first, *second, lib.Flatten(), lib.Linear(16 * 7 * 7, 10))


torch.manual_seed(0)
theirs = network(torch.nn)
optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
for images, labels in tg.datasets.batches(x, y, 64, shuffle=True, drop_last=True):
    loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(images)), torch.tensor(labels))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
right = (theirs.eval()(torch.tensor(x_test)).argmax(1).numpy() == y_test).mean()
print(f"in PyTorch: {right:.1%} of the test images\n")

model = network(nn)
model.load_state_dict(dict(theirs.named_parameters()), strict=False)  # the bug: parameters are not all of a model

train_batches = list(tg.datasets.batches(x[:2000], y[:2000], 64, drop_last=True))
test_batches = list(tg.datasets.batches(x_test, y_test, 500))
report = tg.batchnorm.diagnose(model, train_batches, test_batches)
print(report)
print(f"\nwrote {report.to_html(sys.argv[1] if len(sys.argv) > 1 else 'doctor.html')}; now the mend:\n")
exec(report.findings[0].mend)
print(tg.batchnorm.diagnose(model, train_batches, test_batches))
