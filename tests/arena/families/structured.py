"""Graph convolutions on neighbours of digits, normalising flows, deep and cross nets on cars."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from mlxtend.data import autompg_data
from torch import Tensor, nn

from arena import faults as f
from arena import tasks
from arena.families import blocks
from arena.fitting import fit
from arena.tasks import Task
from arena.training import Family, Training

NAN, INF = float("nan"), float("inf")
NODES = 900
LABELLED = 150


@cache
def _edges(power: float, loops: bool = True) -> Tensor:
    """The six nearest neighbours of each digit by pixels, both ways, divided by the degree to a power.

    Without `loops` forty nodes have no edge at all, as scraped graphs have them, and a degree of zero.
    """
    x = tasks.digits().x[:NODES]
    near = torch.cdist(x, x).topk(7, largest=False).indices
    joined = torch.zeros(NODES, NODES).scatter_(1, near, 1.0)
    joined = torch.maximum(joined, joined.T)
    if not loops:
        joined.fill_diagonal_(0)
        joined[:40], joined[:, :40] = 0, 0
    scale = joined.sum(1) ** -power
    places = joined.nonzero().T
    values = joined[places[0], places[1]] * scale[places[0]] * scale[places[1]]
    if not loops:
        places, values = (
            torch.cat([places, torch.arange(40).expand(2, 40)], 1),
            torch.cat([values, scale[:40]]),
        )
    return torch.sparse_coo_tensor(places, values, (NODES, NODES)).coalesce()


def _graph(
    *,
    depth: int = 2,
    power: float = 0.5,
    loops: bool = True,
    residual: bool = False,
    raw: float = 1.0,
    labelled: int = LABELLED,
    **changes: Any,
) -> Training:
    """All nodes' features are seen, the first ones' classes too; the others' classes are asked."""
    digits, nodes = tasks.digits(), torch.arange(NODES)
    y = digits.y[:NODES]
    task = Task(nodes[:labelled], y[:labelled], nodes[LABELLED:], y[LABELLED:], 10)
    model = blocks.Graph(digits.x[:NODES] * raw, _edges(power, loops), depth, residual=residual)
    settings = {"lr": 1e-2, "steps": 150, "order": lambda t, n: torch.arange(labelled)}
    return fit(model, task, **(settings | changes))


@cache
def _components(size: int = 10, spare: bool = False) -> Task:
    """The first principal components of the digits, in units of the whole data's spread.

    With `spare` the last column is always zero, as of a sensor that is broken.
    """
    task = tasks.digits()
    axes = torch.linalg.svd(task.x - task.x.mean(0), full_matrices=False).Vh[:size]
    x, test = ((part - task.x.mean(0)) @ axes.T / 8 for part in (task.x, task.test_x))
    if spare:
        x = x * (torch.arange(size) < size - 1)
    return Task(x, x, test, test)


def likelihood(sign: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Minus the mean log density; with a sign of -1 the volume is counted the wrong way round."""
    return lambda out, y: -(out[:, 0] + sign * out[:, 1]).mean()


@torch.no_grad()
def _density(model: nn.Module, task: Task) -> float:
    """The mean log density of the test part, in nats."""
    return float(model.eval()(task.test_x).sum(1).mean())


def _flow(bounded: bool = True, couplings: int = 4, spare: bool = False, **changes: Any) -> Training:
    settings = {"lr": 2e-3, "steps": 400, "criterion": likelihood(), "score": _density}
    model = blocks.Flow(10, couplings, bounded=bounded)
    return fit(model, _components(spare=spare), **(settings | changes))


@cache
def _cars(scaled: bool = True, names: bool = False) -> Task:
    """392 cars: weight, power and the like, then codes of cylinders, year and origin; miles a gallon.

    Unscaled, all numbers are as they are in the file. With `names` the column of names, which the file
    reads as not a number, is among the features.
    """
    columns, miles = (torch.tensor(part, dtype=torch.float32) for part in autompg_data())
    numbers = columns[:, 1:5]
    numbers = (numbers - numbers.mean(0)) / numbers.std(0) if scaled else numbers
    kinds = [torch.unique(columns[:, i], return_inverse=True)[1].float() for i in (0, 5, 6)]
    x = torch.cat([numbers, *([columns[:, 7:]] if names else []), torch.stack(kinds, 1)], 1)
    y = miles.view(-1, 1)
    return tasks.split(x, (y - y.mean()) / y.std() if scaled else y, 0)


def _cross(scaled: bool = True, names: bool = False, **changes: Any) -> Training:
    task = _cars(scaled, names)
    settings = {"lr": 3e-3, "steps": 250, "batch": 32}
    return fit(blocks.Cross(5 if names else 4, (5, 13, 3)), task, **(settings | changes))


def pinball(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The quantile loss."""
    return lambda out, y: torch.maximum(share * (y - out), (share - 1) * (y - out)).mean()


def relative(out: Tensor, y: Tensor) -> Tensor:
    """The error as a share of the target, which may be next to nothing."""
    return ((out - y) / y.abs().clamp(min=1e-12)).square().mean()


def broadcast(out: Tensor, y: Tensor) -> Tensor:
    """Every output against every target: a missing `squeeze`."""
    return (out - y.flatten()).square().mean()


graph = Family("graph", 0.1, 0.96, _graph)
flow = Family("flow", 2.93, 4.9, _flow)
cross = Family("cross", 0.0, 0.86, _cross)


SCENARIOS = [
    graph.healthy("plain"),
    graph.healthy("full-batch-sgd", opt="sgd", lr=0.3, optim={"momentum": 0.9}),
    graph.healthy("adamw-decay-1", opt="adamw", optim={"weight_decay": 1.0}),
    graph.healthy("thousand-steps", steps=1000, lr=3e-3),
    graph.healthy("deep-residual", depth=6, residual=True, lr=5e-3),
    graph.healthy("small-features", raw=0.01, lr=3e-2),
    graph.failing("isolated-nodes", loops=False, curable=False),
    graph.failing("deep-over-smoothed", depth=24, opt="sgd", lr=0.05, steps=100),
    graph.failing("sums-without-degrees", power=0.0, depth=6, opt="sgd", lr=0.1),
    graph.failing("lr-x100", lr=1.0, depth=3),
    graph.failing("shuffled", poison=f.other_labels(10), curable=False),
    graph.failing("zero-init", prepare=f.constant(0.0)),
    flow.healthy("one-cycle", schedule=f.one_cycle, lr=5e-3),
    flow.healthy("far-below-zero", criterion=lambda out, y: likelihood()(out, y) - 40.0),
    flow.healthy("outlier-heals", poison=f.outliers(5.0, f.once(150), 0.05), clip=10.0),
    flow.healthy("unbounded-clip", bounded=False, clip=5.0, lr=2e-3, steps=600),
    flow.healthy("adamax-clip", opt=torch.optim.Adamax, steps=400, lr=8e-3, clip=5.0),
    flow.failing("volume-wrong-way", criterion=likelihood(-1.0), curable=False),
    flow.failing("unbounded-lr-x100", bounded=False, lr=0.2),
    flow.failing("weights-x5", bounded=False, prepare=f.weights(5.0), opt="sgd", lr=1e-3),
    flow.failing("broken-sensor", spare=True, bounded=False, steps=600, lr=5e-3, curable=False),
    flow.failing("infinite-value", poison=f.bad_values(INF, f.once(90))),
    # With all bad batches left out it comes to 0.50 at the best of six rates from 0.003 to 1.
    flow.failing(
        "outlier-batches",
        bounded=False,
        poison=f.outliers(1e3, f.each(7), 0.1),
        opt="sgd",
        lr=0.01,
        curable=False,
    ),
    cross.healthy("plain"),
    cross.healthy("loss-of-1e-5", scale=1e-5),
    cross.healthy("median", criterion=pinball(0.5)),
    cross.healthy(
        "two-rates",
        parameters=lambda m: [
            {"params": m.embed.parameters(), "lr": 0.05},
            {"params": [*m.crosses.parameters(), *m.deep.parameters(), *m.head.parameters()]},
        ],
    ),
    cross.healthy("batch-4", batch=4, lr=1e-3, steps=700),
    cross.failing("raw-adam-lr-1", scaled=False, lr=1.0),
    cross.failing("name-column", names=True, curable=False),
    cross.failing("relative-error", criterion=relative, opt="sgd", lr=0.01),
    cross.failing("broadcast", criterion=broadcast, curable=False),
    cross.failing("sgd-lr-1", opt="sgd", lr=1.0),
    cross.failing(
        "embeddings-alone", parameters=lambda m: m.embed[2].parameters(), opt="sgd", lr=1e-3, curable=False
    ),
]
