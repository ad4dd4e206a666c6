"""The networks of the arena, each of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arena.tasks import VOCABULARY

Activation = Callable[[], nn.Module]


def mlp(
    widths: Sequence[int], activation: Activation = nn.ReLU, drop: float = 0.0, norm: bool = False
) -> nn.Module:
    """Linear layers with activations between."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), *([nn.LayerNorm(o)] if norm else []), activation()]
        layers += [nn.Dropout(drop)] if drop else []
    last = len(layers) - (2 if drop else 1)
    return nn.Sequential(*layers[: last - (1 if norm else 0)])


def lecture_cnn(activation: Activation = nn.ReLU, norm: bool = False) -> nn.Module:
    """The lecture's five stride-2 convolutions, 1-8-16-32-64-10, on 28 x 28."""
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 5, stride=2, padding=2)]
    for i, o in ((8, 16), (16, 32), (32, 64), (64, 10)):
        layers += [
            *([nn.BatchNorm2d(i)] if norm else []),
            activation(),
            nn.Conv2d(i, o, 3, stride=2, padding=1),
        ]
    return nn.Sequential(*layers, nn.Flatten())


class Functional(nn.Module):
    """A convolutional net on 8 x 8 whose activations are plain functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(512, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """A stack of residual blocks on flat inputs, with or without norm."""

    def __init__(self, width: int = 64, blocks: int = 8, norm: bool = True, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(blocks)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


class Recurrent(nn.Module):
    """An RNN, LSTM or GRU over the rows of a digit; the last state is classified."""

    def __init__(self, kind: str = "LSTM", width: int = 48, inputs: int = 8, layers: int = 1) -> None:
        super().__init__()
        self.inputs = inputs
        self.rnn = getattr(nn, kind)(inputs, width, layers, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.view(len(x), -1, self.inputs))
        return self.head(out[:, -1])


class Cell(nn.Module):
    """A recurrent net by hand, ReLU or tanh: the state goes through the same matrix again and again."""

    def __init__(self, width: int = 48, inputs: int = 8, relu: bool = False) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width
        self.read, self.keep = nn.Linear(inputs, width), nn.Linear(width, width, bias=False)
        self.act = nn.ReLU() if relu else nn.Tanh()
        self.head = nn.Linear(width, 10)
        nn.init.orthogonal_(self.keep.weight)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.width)
        for part in x.view(len(x), -1, self.inputs).unbind(1):
            state = self.act(self.read(part) + self.keep(state))
        return self.head(state)


class Attention(nn.Module):
    """Self-attention of some heads, causal or not."""

    def __init__(self, width: int, heads: int = 2, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(out.transpose(1, 2).reshape(b, n, w))


class Block(nn.Module):
    """A transformer's block, norm before or after each part."""

    def __init__(self, width: int, post: bool, causal: bool, drop: float = 0.0) -> None:
        super().__init__()
        self.post = post
        self.ln1, self.attn = nn.LayerNorm(width), Attention(width, causal=causal)
        self.ln2, self.mlp = nn.LayerNorm(width), mlp((width, 2 * width, width), nn.GELU)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.ln1(x + self.attn(x))
            return self.ln2(x + self.drop(self.mlp(x)))
        x = x + self.attn(self.ln1(x))
        return x + self.drop(self.mlp(self.ln2(x)))


class Transformer(nn.Module):
    """Letters in, scores of the next letter at each place out."""

    def __init__(self, width: int = 32, blocks: int = 2, post: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(Block(width, post, causal=True, drop=drop) for _ in range(blocks)))
        self.norm = nn.Identity() if post else nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY)
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.normal_(self.place.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.lm_head(self.norm(self.blocks(self.embed(x) + self.place(places))))


class Vit(nn.Module):
    """A vision transformer on 8 x 8: sixteen patches of 2 x 2."""

    def __init__(self, width: int = 32, blocks: int = 2, post: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, width, 2, stride=2), nn.Parameter(torch.randn(16, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, post, causal=False, drop=drop) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x.view(-1, 1, 8, 8)).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


class Bag(nn.Module):
    """The mean of the letters' and letter pairs' embeddings, classified."""

    def __init__(self, classes: int = 5, width: int = 32, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(VOCABULARY * VOCABULARY, width, sparse=sparse)
        self.hidden, self.act, self.head = nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x[:, :-1] * VOCABULARY + x[:, 1:]
        return self.head(self.act(self.hidden(self.embed(pairs))))


class Experts(nn.Module):
    """A mixture of experts: a gate sends each example to its best expert, weighted by its sureness."""

    def __init__(self, experts: int = 4, width: int = 48, idle: int = 0) -> None:
        super().__init__()
        self.stem, self.gate, self.idle = nn.Linear(64, width), nn.Linear(64, experts), idle
        self.experts = nn.ModuleList(mlp((width, width, width)) for _ in range(experts))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        scores = self.gate(x)
        if self.idle:
            scores = torch.cat([scores[:, : -self.idle], scores[:, -self.idle :] - 1e4], dim=1)
        sure, chosen = scores.softmax(-1).max(-1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            mine = torch.nonzero(chosen == number).flatten()
            if len(mine):
                out = out.index_add(0, mine, expert(h[mine]) * sure[mine, None])
        return self.head(h + out)
