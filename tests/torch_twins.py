"""Models of ours, in PyTorch."""


def resnet20(torch, in_channels=1):
    """ResNet-20, written from the paper, with the names that ours has."""
    functional = torch.nn.functional

    class Block(torch.nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.norm1 = torch.nn.BatchNorm2d(width)
            self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.norm2 = torch.nn.BatchNorm2d(width)
            self.stride, self.extra = stride, width - before

        def forward(self, x):
            y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
            if self.extra:
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
            return (y + x).relu()

    class ResNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
            self.norm = torch.nn.BatchNorm2d(16)
            plan = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
            self.blocks = torch.nn.Sequential(*(Block(*sizes) for sizes in plan))
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.fc(self.blocks(self.norm(self.conv(x)).relu()).mean((2, 3)))

    return ResNet()
