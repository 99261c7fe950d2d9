"""Networks of a reader's own that hooks may stumble over, and pictures for them."""

import torch
from torch import nn
from torch.nn import functional as F


class Functional(nn.Module):
    """Rectifiers as functions, one of them in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu_(self.conv1(x))
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


class Reused(nn.Module):
    """One rectifier, in place, for two convolutions, and a convolution that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.again, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(True)
        self.last, self.head = nn.Conv2d(4, 7, 1), nn.Linear(7, 3)

    def forward(self, x):
        x = self.relu(self.again(self.relu(self.again(self.relu(self.stem(x))))))
        return self.head(self.last(x).amax((2, 3)))


class Recurrent(nn.Module):
    """Rows of the picture as a sequence: tuples of tuples, and no feature maps."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        _, (last, _) = self.lstm(x.transpose(1, 2).flatten(2))
        return self.head(last[-1])


class Tokens(nn.Module):
    """Attention over rows: no convolution anywhere."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(24, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.5, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.block(self.embed(x.transpose(1, 2).flatten(2))).mean(1))


class Failing(nn.Module):
    """Breaks after its first layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        self.norm(self.conv(x))
        raise RuntimeError("the reader's own error\nwith a second line")


def plain():
    """Two convolutions with batch norms and dropout, in train mode."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def pictures(n=4, channels=3, height=10, width=8):
    """(n, channels, height, width), not square."""
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def hooks(model):
    """How many hooks a model carries."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def photograph(model):
    """Everything about a model that looking at it must not change."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(module.training, getattr(module, "inplace", None)) for module in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    return state, flags, grads, hooks(model), torch.get_rng_state()


def unchanged(before, model):
    """Whether a model is as it was photographed."""
    after = photograph(model)
    same = all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    return same and before[1:4] == after[1:4] and torch.equal(before[4], after[4])
