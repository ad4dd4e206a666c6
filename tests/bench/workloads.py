"""Trainings of the sizes that people run on two cores: a model, an optimizer, batches of real shape.

All of them learn something, since a guard looks more closely at a run that fails. So that they never come to
an end, each step has other labels for a fifth of its examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class Training:
    """One model in training."""

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[], Tensor]

    def step(self, take: Callable[[Tensor], object] | None = None) -> None:
        """One step; `take` stands in place of the optimizer's step."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        if take is None:
            self.optimizer.step()
        else:
            take(loss.detach())


def _classify(model: nn.Module, inputs: Tensor, classes: int, optimizer: Optimizer) -> Training:
    flat = inputs.flatten(1).float()
    labels = (flat @ torch.randn(flat.shape[1], classes)).argmax(1)

    def loss() -> Tensor:
        others = torch.randint(0, classes, labels.shape)
        return F.cross_entropy(model(inputs), torch.where(torch.rand(len(labels)) < 0.2, others, labels))

    return Training(model, optimizer, loss)


def _kaiming(*layers: nn.Module) -> nn.Sequential:
    """In a row, as the lecture initialises them."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers)


def lecture() -> Training:
    """The lecture's five convolutions on 256 images of 28 x 28."""
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 5, stride=2, padding=2)]
    for inputs, outputs in ((8, 16), (16, 32), (32, 64), (64, 10)):
        layers += [nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)]
    model = _kaiming(*layers, nn.Flatten())
    return _classify(model, torch.randn(256, 1, 28, 28), 10, torch.optim.SGD(model.parameters(), lr=0.01))


def mlp() -> Training:
    """Six linear layers of 512 on 256 flat images."""
    widths = [784, 512, 512, 512, 512, 512]
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    model = _kaiming(*layers, nn.Linear(512, 10))
    return _classify(model, torch.randn(256, 784), 10, torch.optim.SGD(model.parameters(), lr=0.01))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.shortcut(x))


def resnet() -> Training:
    """ResNet-18 for 32 x 32 images, 11 million parameters, 8 images a batch."""
    blocks = [
        _Block(i, o, s)
        for i, o, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        for i, s in ((i, stride), (o, 1))
    ]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return _classify(model, torch.randn(8, 3, 32, 32), 10, optimizer)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(batch, time, width))


class _Gpt(nn.Module):
    def __init__(self, vocabulary: int, width: int, depth: int, context: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        blocks: list[nn.Module] = []
        for _ in range(depth):
            wide = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            blocks.append(nn.ModuleDict({"attention": _Attention(width, 8), "mlp": wide}))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block["attention"](x)
            x = x + block["mlp"](x)
        return self.head(self.norm(x))


def gpt() -> Training:
    """A GPT of 4 layers, width 256, on 16 texts of 128 tokens."""
    model = _Gpt(1000, 256, 4, 128)
    tokens = torch.randint(0, 1000, (16, 129))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss() -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return Training(model, optimizer, loss)


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(100, 128), nn.LSTM(128, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


def lstm() -> Training:
    """A two-layer LSTM of 256 on 32 texts of 64 letters."""
    model = _Lstm()
    return _classify(
        model, torch.randint(0, 100, (32, 64)), 100, torch.optim.Adam(model.parameters(), lr=1e-3)
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.tanh = nn.Linear(width, width), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.tanh(self.linear(x))


def tiny_layers() -> Training:
    """A thousand layers of 16 units, in residual blocks of two."""
    model = nn.Sequential(*(_Residual(16) for _ in range(500)))
    return _classify(model, torch.randn(32, 16), 16, torch.optim.SGD(model.parameters(), lr=0.01))


def embedding() -> Training:
    """An embedding of 1,000,000 x 64 with sparse gradients, 512 rows a batch."""
    model = nn.Sequential(nn.Embedding(1_000_000, 64, sparse=True), nn.Flatten(), nn.Linear(64 * 8, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return _classify(model, torch.randint(0, 1_000_000, (64, 8)), 10, optimizer)


class _SideBySide(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers]).mean(0)


def side_by_side(layers: int, width: int) -> Training:
    """So many square layers on the same 8 inputs: any number of them, and no gradient vanishes."""
    model = _SideBySide(layers, width)
    inputs = torch.randn(8, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Training(model, optimizer, lambda: model(inputs).square().mean())


WORKLOADS: dict[str, Callable[[], Training]] = {
    "lecture": lecture,
    "mlp": mlp,
    "resnet": resnet,
    "gpt": gpt,
    "lstm": lstm,
    "1000 layers": tiny_layers,
    "embedding": embedding,
}
