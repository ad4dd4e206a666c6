"""Networks of the later families: mixer, U-net, variational, dilated, tagger, graph, flow and cross nets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arena.families.nets import mlp
from arena.tasks import VOCABULARY


class MixerBlock(nn.Module):
    """A small net across the patches, then one across the channels, each with a norm before it."""

    def __init__(self, tokens: int, width: int, drop: float) -> None:
        super().__init__()
        self.ln1, self.token = nn.LayerNorm(width), mlp((tokens, 2 * tokens, tokens), nn.GELU)
        self.ln2, self.channel = nn.LayerNorm(width), mlp((width, 2 * width, width), nn.GELU)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.token(self.ln1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop(self.channel(self.ln2(x)))


class Mixer(nn.Module):
    """An MLP-Mixer on 8 x 8: sixteen patches of 2 x 2."""

    def __init__(self, width: int = 24, blocks: int = 2, drop: float = 0.0) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.Sequential(*(MixerBlock(16, width, drop) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x.view(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def _twice(i: int, o: int, norm: bool) -> nn.Module:
    """A convolution, its norm and its activation."""
    return nn.Sequential(
        nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o) if norm else nn.Identity(), nn.ReLU()
    )


class Unet(nn.Module):
    """Two scales of 8 x 8 images with a bridge between equals; flat images in and out."""

    def __init__(self, width: int = 12, norm: bool = True, positive: bool = False) -> None:
        super().__init__()
        self.enter, self.down = _twice(1, width, norm), _twice(width, 2 * width, norm)
        self.middle = _twice(2 * width, 2 * width, norm)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join, self.out = _twice(2 * width, width, norm), nn.Conv2d(width, 1, 3, padding=1)
        self.last = nn.ReLU() if positive else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enter(x.view(-1, 1, 8, 8))
        coarse = self.middle(self.down(F.max_pool2d(fine, 2)))
        return self.last(self.out(self.join(torch.cat([fine, self.up(coarse)], 1)))).flatten(1)


class Vae(nn.Module):
    """A variational autoencoder: logits of the pixels, means and log variances of the code, side by side."""

    def __init__(self, code: int = 8, width: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.mean, self.spread = nn.Linear(width, code), nn.Linear(width, code)
        self.decoder = mlp((code, width, 64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mean, spread = self.mean(h), self.spread(h)
        code = mean + (torch.randn_like(mean) * (spread / 2).exp() if self.training else 0)
        return torch.cat([self.decoder(code), mean, spread], 1)


class Dilated(nn.Module):
    """Gated causal convolutions of growing reach, residual, as in WaveNet; letters in, the next ones out."""

    def __init__(self, width: int = 32, dilations: Sequence[int] = (1, 2, 4, 8), skip: bool = True) -> None:
        super().__init__()
        self.embed, self.dilations, self.skip = nn.Embedding(VOCABULARY, width), dilations, skip
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=d) for d in dilations)
        self.mix = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).transpose(1, 2)
        for dilation, gate, mix in zip(self.dilations, self.gates, self.mix, strict=True):
            value, door = gate(F.pad(h, (dilation, 0))).chunk(2, 1)
            h = mix(value.tanh() * door.sigmoid()) + (h if self.skip else 0)
        return self.head(h.relu().transpose(1, 2))


class Tagger(nn.Module):
    """A recurrent net that reads both ways and names the kind of each letter."""

    def __init__(self, classes: int, width: int = 24, drop: float = 0.0) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(VOCABULARY, width), nn.Dropout(drop)
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(self.drop(self.embed(x)))[0]))


class Translator(nn.Module):
    """`nn.Transformer` on letters: source and target side by side in, the target's letters out."""

    def __init__(self, width: int = 32, depth: int = 1, first: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY + 1, width), nn.Embedding(32, width)
        self.body = nn.Transformer(
            width, 4, depth, depth, 2 * width, drop, batch_first=True, norm_first=first
        )
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, pairs: Tensor, padding: Tensor | None = None) -> Tensor:
        source, target = pairs.chunk(2, 1)
        start = torch.full_like(target[:, :1], VOCABULARY)
        known = torch.cat([start, target[:, :-1]], 1)
        places = self.place(torch.arange(source.shape[1]))
        causal = nn.Transformer.generate_square_subsequent_mask(source.shape[1])
        out = self.body(
            self.embed(source) + places,
            self.embed(known) + places,
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.head(out)


class Graph(nn.Module):
    """Graph convolutions: neighbours' mean, then a matrix. In: node numbers; out: their classes' scores."""

    def __init__(
        self, features: Tensor, edges: Tensor, depth: int = 2, width: int = 32, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.register_buffer("features", features)
        self.register_buffer("edges", edges)
        widths = [features.shape[1], *[width] * (depth - 1), 10]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    def forward(self, nodes: Tensor) -> Tensor:
        h = self.features
        for layer in self.layers[:-1]:
            new = torch.relu(layer(torch.sparse.mm(self.edges, h)))
            h = new + h if self.residual and new.shape == h.shape else new
        return self.layers[-1](torch.sparse.mm(self.edges, h))[nodes]


class Flow(nn.Module):
    """RealNVP: couplings that scale and shift one half by the other. Out: log density of each example."""

    def __init__(self, size: int, couplings: int = 4, width: int = 32, bounded: bool = True) -> None:
        super().__init__()
        self.half, self.bounded = size // 2, bounded
        self.nets = nn.ModuleList(mlp((self.half, width, width, 2 * self.half)) for _ in range(couplings))

    def forward(self, x: Tensor) -> Tensor:
        fixed, moved = x.split(self.half, 1)
        volume = x.new_zeros(len(x))
        for net in self.nets:
            scale, shift = net(fixed).chunk(2, 1)
            scale = 2 * torch.tanh(scale / 2) if self.bounded else scale
            moved, volume = moved * scale.exp() + shift, volume + scale.sum(1)
            fixed, moved = moved, fixed
        z = torch.cat([fixed, moved], 1)
        return torch.stack([-0.5 * (z**2 + 1.8378770664).sum(1), volume], 1)


class Cross(nn.Module):
    """Deep and cross: two polynomial layers beside a small net, on numbers and embedded categories."""

    def __init__(self, numbers: int, sizes: Sequence[int], width: int = 32, each: int = 4) -> None:
        super().__init__()
        self.numbers = numbers
        self.embed = nn.ModuleList(nn.Embedding(size, each) for size in sizes)
        whole = numbers + each * len(sizes)
        self.crosses = nn.ModuleList(nn.Linear(whole, whole) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(whole, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(whole + width, 1)

    def forward(self, x: Tensor) -> Tensor:
        kinds = x[:, self.numbers :].long()
        x0 = torch.cat([x[:, : self.numbers], *(e(k) for e, k in zip(self.embed, kinds.T, strict=True))], 1)
        crossed = x0
        for layer in self.crosses:
            crossed = x0 * layer(crossed) + crossed
        return self.head(torch.cat([crossed, self.deep(x0)], 1))


class Maxout(nn.Module):
    """A linear layer of several pieces, of which the largest counts."""

    def __init__(self, i: int, o: int, pieces: int = 2) -> None:
        super().__init__()
        self.lin, self.pieces = nn.Linear(i, o * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x).view(len(x), -1, self.pieces).amax(-1)
