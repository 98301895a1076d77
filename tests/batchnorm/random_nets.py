"""Random networks with BatchNorm in every place where it can stand, and random statistics, gammas and betas in it."""

import numpy as np

import tinygrad_bn as tg
from tinygrad_bn import nn
from tinygrad_bn.batchnorm import layers


def randomised(model, rng):
    """Running statistics, gammas and betas that no two channels share, and that are not the start values."""
    for _, layer in layers(model):
        c, dtype = layer.num_features, layer.running_mean.dtype
        layer.running_mean = nn.Buffer(rng.normal(size=c).astype(dtype))
        layer.running_var = nn.Buffer(rng.uniform(0.3, 3, c).astype(dtype))
        if layer.weight is not None:
            layer.weight.data = (rng.uniform(0.3, 2, c) * rng.choice([-1, 1], c)).astype(dtype)
            layer.bias.data = rng.normal(size=c).astype(dtype)
    return model


def mlp(rng):
    widths = rng.integers(2, 9, rng.integers(2, 5))
    members = []
    for a, b in zip(widths, widths[1:], strict=False):
        norm = nn.BatchNorm1d(int(b), affine=bool(rng.integers(2)))
        members += [nn.Linear(int(a), int(b), bias=bool(rng.integers(2))), norm]
        members += [nn.ReLU()] if rng.integers(2) else []  # without one, what follows a BatchNorm is a Linear
    if rng.integers(2):
        members = [nn.BatchNorm1d(int(widths[0])), *members]  # of the input: folded forward
    return nn.Sequential(*members, nn.Linear(int(widths[-1]), 3)), (5, int(widths[0]))


def cnn(rng):
    groups = int(rng.choice([1, 2]))
    a, b, c = (groups * int(n) for n in rng.integers(1, 4, 3))
    pad = int(rng.integers(2))
    members = [nn.BatchNorm2d(a)] if rng.integers(2) else []
    members += [nn.Conv2d(a, b, 3, int(rng.integers(1, 3)), pad, groups=groups, bias=bool(rng.integers(2))), nn.BatchNorm2d(b)]
    members += [nn.Sequential(nn.Identity(), nn.Tanh())]
    members += [nn.ConvTranspose2d(b, c, 3, int(rng.integers(1, 3)), pad, groups=groups, bias=bool(rng.integers(2)))]
    members += [nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.Conv2d(c, 2, 2, padding=pad, groups=1)]
    return nn.Sequential(*members), (2, a, 9, 9)


def sequence(rng):
    a, b = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    return nn.Sequential(
        nn.BatchNorm1d(a),
        nn.Conv1d(a, 2 * b, 3, padding=int(rng.integers(2)), bias=False),
        nn.BatchNorm1d(2 * b),
        nn.ReLU(),
        nn.Conv1d(2 * b, 2, 2, groups=2),
    ), (3, a, 8)


class Residual(nn.Module):
    """Two layers beside a shortcut: no Sequential says what comes before its BatchNorms."""

    def __init__(self, rng):
        c = self.c = 2 * int(rng.integers(1, 4))
        self.conv1, self.norm1 = nn.Conv2d(c, c, 3, padding=1, groups=2), nn.BatchNorm2d(c)
        self.conv2, self.norm2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.norm3 = nn.BatchNorm2d(c)  # of a sum: it stays, since conv3 pads
        self.conv3 = nn.Conv2d(c, 1, 3, padding=1)

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        return self.conv3(self.norm3(self.norm2(self.conv2(y)) + x))


def residual(rng):
    net = Residual(rng)
    return net, (2, net.c, 5, 5)


def random_net(seed):
    """(model in evaluation mode, an input as float64)."""
    rng = np.random.default_rng(seed)
    tg.manual_seed(seed)
    model, shape = [mlp, cnn, sequence, residual][seed % 4](rng)
    return randomised(model, rng).eval(), rng.normal(size=shape)
