"""Writing on: which letter of a source text comes next, which names a name becomes, who wrote this."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from arena import tasks
from arena.fitting import Pair, criterion_of, fit
from arena.tasks import VOCABULARY
from arena.training import Family, Training

WIDTH, BITS = 40, 6


class Window(nn.Module):
    """The last eight letters at once, and a direct way beside the hidden layer (Bengio et al. 2003)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY + 1, 12)
        self.hidden, self.head = nn.Linear(96, 96), nn.Linear(96, VOCABULARY)
        self.direct = nn.Linear(96, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.embed(F.pad(x, (7, 0), value=VOCABULARY)).unfold(1, 8, 1).flatten(2)
        return self.head(torch.tanh(self.hidden(seen))) + self.direct(seen)


class Carried(nn.Module):
    """A GRU whose state goes on from batch to batch, as the text does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(VOCABULARY, 24), nn.GRU(24, 64, batch_first=True)
        self.head, self.state = nn.Linear(64, VOCABULARY), None

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.rnn(self.embed(x), self.state if self.training else None)
        if self.training:
            self.state = last.detach()
        return self.head(out)


class Glance(nn.Module):
    """Attention without places: what is further away counts less (Press et al. 2022), or fades away."""

    def __init__(self, linear: bool, strict: bool) -> None:
        super().__init__()
        self.linear, self.strict = linear, strict
        self.ask = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = (p.unflatten(2, (4, -1)).transpose(1, 2) for p in self.ask(self.norm(x)).chunk(3, 2))
        away = torch.arange(n)[:, None] - torch.arange(n)
        slopes = torch.tensor([1.0, 0.5, 0.2, 0.02])[:, None, None] * away
        hidden = away < (1 if self.strict else 0)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if self.linear:
            weight = (scores * (-slopes).exp()).masked_fill(hidden, 0.0) / 3
        else:
            weight = (scores - slopes).masked_fill(hidden, -math.inf).softmax(3)
        return x + self.out((weight @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """A hidden layer times a gate, no biases (Shazeer 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.norm(x)).chunk(2, 2)
        return x + self.down(F.silu(gate) * value)


class Tied(nn.Module):
    """Letters are said by the vectors by which they are read."""

    def __init__(
        self, *, linear: bool = False, strict: bool = False, noise: float = 0.0, std: float = 0.15
    ) -> None:
        super().__init__()
        self.noise, self.heat = noise, 1.0
        self.embed, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.RMSNorm(WIDTH)
        self.layers = nn.Sequential(Glance(linear, strict), Gated(), Glance(linear, strict), Gated())
        nn.init.normal_(self.embed.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.training and self.noise:
            h = h + self.noise * (2 * torch.rand_like(h) - 1)
        return self.norm(self.layers(h)) @ self.embed.weight.T / self.heat


class Ahead(nn.Module):
    """Says four letters ahead, each by its own head (Gloeckle et al. 2024); asked, the first one only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(VOCABULARY, 24), nn.GRU(24, 64, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(64, VOCABULARY) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(self.embed(x))[0]
        return torch.cat([head(h) for head in self.heads], 2) if self.training else self.heads[0](h)


class Bits(nn.Module):
    """The number of the next letter as six bits, each told the ones before; all logs of chances come out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.seen = Window(), nn.Parameter(torch.zeros(2**BITS, BITS))
        numbers = torch.arange(VOCABULARY)[:, None] >> torch.arange(BITS - 1, -1, -1)
        self.register_buffer("bits", (numbers & 1).float())
        self.body.head = nn.Linear(96, 2**BITS - 1)
        self.body.direct = nn.Linear(96, 2**BITS - 1, bias=False)
        nodes = 2 ** torch.arange(BITS) - 1 + (torch.arange(VOCABULARY)[:, None] >> torch.arange(BITS, 0, -1))
        self.register_buffer("nodes", nodes)

    def forward(self, x: Tensor) -> Tensor:
        asked = self.body(x)[..., self.nodes]
        return -F.softplus(asked * (1 - 2 * self.bits)).sum(-1)


class Rare(nn.Module):
    """Rare letters are told in two stages (Grave et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(VOCABULARY, 24), nn.LSTM(24, 64, batch_first=True)
        self.told = nn.AdaptiveLogSoftmaxWithLoss(64, VOCABULARY, cutoffs=[8, 24], div_value=2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.told.log_prob(self.rnn(self.embed(x))[0].flatten(0, 1)).view(*x.shape, -1)


def four_ahead(out: Tensor, y: Tensor) -> Tensor:
    """The sum over the four, where a stretch has so many letters left."""
    if out.shape[2] == VOCABULARY:
        return criterion_of(tasks.letters())(out, y)
    each = out.chunk(4, 2)
    return sum(F.cross_entropy(o[:, : 32 - k].flatten(0, 1), y[:, k:].flatten()) for k, o in enumerate(each))


def against_few(out: Tensor, y: Tensor) -> Tensor:
    """The right letter against twelve others by lot, instead of against all."""
    others = torch.randint(VOCABULARY, (*y.shape, 12))
    mine, their = out.gather(2, y[..., None]), out.gather(2, others)
    their = their.masked_fill(others == y[..., None], -math.inf) + math.log(VOCABULARY / 12)
    return (torch.cat([mine, their], 2).logsumexp(2) - mine[..., 0]).mean()


def longer(steps: int) -> Callable[[int, Tensor, Tensor], Pair]:
    """Two letters at first, all 32 at two thirds."""
    return lambda t, x, y: (x[:, : 2 + 45 * t // steps], y[:, : 2 + 45 * t // steps])


def same_letter(t: int, x: Tensor, y: Tensor) -> Pair:
    """Targets that were not shifted: each letter is asked to say itself."""
    return x, x


def unknown(t: int, x: Tensor, y: Tensor) -> Pair:
    """The vocabulary of another text, which knows none of the forty most frequent letters."""
    return x.where(x > 40, VOCABULARY - 1), y


def cooling(model: nn.Module, _: Optimizer, progress: float) -> None:
    """What is said is divided by a heat that goes down to a thousandth."""
    model.heat = 10 ** (-4 * max(0.0, progress - 0.25))


class Plateau:
    """Cuts the rate to a third where what it looks at has not risen for ten steps; it looks at the loss."""

    def __init__(self) -> None:
        self.best, self.bad, self.model = -math.inf, 0, None

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        loss = criterion_of(tasks.letters())(out, y)
        self.bad = 0 if float(loss) > self.best else self.bad + 1
        self.best = max(self.best, float(loss))
        return loss

    def look(self, model: nn.Module, optimizer: Optimizer, _: float) -> None:
        if self.bad >= 10:
            self.bad, optimizer.param_groups[0]["lr"] = 0, optimizer.param_groups[0]["lr"] / 3


def _written(model: Callable[[], nn.Module] = Tied, **changes: Any) -> Training:
    return fit(model(), tasks.letters(), **({"lr": 5e-3, "steps": 250, "batch": 16} | changes))


def _plateau(**changes: Any) -> Training:
    plateau = Plateau()
    return _written(criterion=plateau, before=plateau.look, **changes)


def _carried(**changes: Any) -> Training:
    """Sixteen texts are read on and on, 24 letters a step."""
    whole = torch.cat([code[:36_000] for code in tasks.codes()])
    streams = whole[: len(whole) // 16 * 16].view(16, -1)
    training = _written(Carried, **changes)

    def loss(t: int) -> Tensor:
        at = 24 * t % (streams.shape[1] - 25)
        out = training.model(streams[:, at : at + 24])
        return F.cross_entropy(out.flatten(0, 1), streams[:, at + 1 : at + 25].flatten())

    training.loss = loss
    return training


class Phrases(nn.Module):
    """Stretches of three, four and five letters; the strongest trace of each kind counts (Kim 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(VOCABULARY, 16), nn.Dropout(0.4)
        self.traces = nn.ModuleList(nn.Conv1d(16, 32, k) for k in (3, 4, 5))
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).transpose(1, 2)
        return self.head(self.drop(torch.cat([trace(h).amax(2) for trace in self.traces], 1)))


class Weighed(nn.Module):
    """Texts of unequal length; each letter's context is weighed by what a learnt question finds in it."""

    def __init__(self, empty: bool = False) -> None:
        super().__init__()
        self.shortest = 0 if empty else 36
        self.embed, self.near = nn.Embedding(VOCABULARY, 16), nn.Conv1d(16, 64, 5, padding=2)
        self.ask, self.head, self.drop = nn.Linear(64, 1), nn.Linear(64, 5), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.near(self.embed(x).transpose(1, 2))).transpose(1, 2)
        length = torch.randint(self.shortest, 49, (len(x), 1)) if self.training else torch.tensor([[48]])
        beyond = torch.arange(48) >= length
        weight = self.ask(h)[..., 0].masked_fill(beyond, -math.inf).softmax(1)
        return self.head(self.drop((weight[..., None] * h).sum(1)))


def _signed(model: Callable[[], nn.Module] = Phrases, **changes: Any) -> Training:
    return fit(model(), tasks.origins(), **({"lr": 5e-3, "steps": 300, "batch": 32} | changes))


written = Family("writing", -3.35, -1.85, _written)
carried = Family("writing", -3.35, -1.85, _carried)
plateau = Family("writing", -3.35, -1.85, _plateau)
signed = Family("writing", 0.2, 0.85, _signed)

SCENARIOS = [
    written.healthy("window", model=Window, steps=400),
    carried.healthy("reads-on", steps=350),
    written.healthy("tied-and-sloped"),
    written.healthy("fading", model=partial(Tied, linear=True)),
    written.healthy("shaken-letters", model=partial(Tied, noise=0.3), steps=280),
    written.healthy("four-ahead", model=Ahead, criterion=four_ahead, lr=1e-2),
    written.healthy("tree-of-bits", model=Bits, lr=1e-2, steps=330),
    written.healthy("rare-in-two-stages", model=Rare, criterion=None, lr=1e-2),
    written.healthy("against-a-few", criterion=against_few, steps=300),
    written.healthy("longer-and-longer", poison=longer(330), steps=330),
    signed.healthy("phrases", steps=400),
    signed.healthy("weighed", model=Weighed, lr=8e-3, steps=600),
    written.failing("says-the-same-letter", poison=same_letter, curable=False),
    written.failing("first-sees-nothing", model=partial(Tied, strict=True), curable=False),
    written.failing("vocabulary-of-another", poison=unknown, curable=False),
    written.failing("cools-to-nothing", before=cooling, curable=False),
    written.failing("tied-x200", model=partial(Tied, std=30.0), lr=1e-3),
    plateau.failing("rate-cut-unless-loss-rises", opt="sgd", lr=0.1),
    signed.failing("empty-texts", model=partial(Weighed, empty=True), curable=False),
]
