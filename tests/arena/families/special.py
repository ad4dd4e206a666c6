"""Autoencoders, regression, embeddings, experts, GANs, contrast, distillation, rewards, fine-tuning."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arena import faults as f
from arena import tasks
from arena.families import nets
from arena.fitting import fit, optimizer_of, quality
from arena.tasks import Task
from arena.training import Family, Training


def _autoencoder(
    task: Task | None = None, activation: nets.Activation = nn.ReLU, code: int = 12, **changes: Any
) -> Training:
    task = task or tasks.digits()
    same = Task(task.x, task.x, task.test_x, task.test_x)
    model = nets.mlp((64, 48, code, 48, 64), activation)
    return fit(model, same, **({"lr": 3e-3, "steps": 400} | changes))


def _regression(scaled: bool = True, target: float = 1.0, **changes: Any) -> Training:
    task = tasks.diabetes(scaled)
    task = Task(task.x, task.y * target, task.test_x, task.test_y * target)
    return fit(nets.mlp((10, 32, 32, 1)), task, **({"lr": 2e-3, "steps": 150, "batch": 32} | changes))


def _bag(sparse: bool = False, **changes: Any) -> Training:
    settings = {"lr": 1e-2, "steps": 300} | ({"opt": "sgd", "lr": 2.0, "steps": 500} if sparse else {})
    return fit(nets.Bag(sparse=sparse), tasks.origins(), **(settings | changes))


def _experts(idle: int = 0, **changes: Any) -> Training:
    task = changes.pop("task", tasks.digits())
    return fit(nets.Experts(idle=idle), task, **({"lr": 2e-3, "steps": 250} | changes))


def _gan(
    *,
    lr_g: float = 1e-3,
    lr_d: float = 1e-3,
    steps: int = 600,
    watched: str = "both",
    prepare: Any = None,
    poison: Any = None,
) -> Training:
    """Digits out of noise; the score is the share of the pixels' means and spreads that is right."""
    x = tasks.digits().x
    model = nn.ModuleDict(
        {"g": nets.mlp((16, 64, 64)), "d": nets.mlp((64, 64, 1), lambda: nn.LeakyReLU(0.2))}
    )
    if prepare:
        prepare(model)
    g, d = model["g"], model["d"]
    best_g = torch.optim.Adam(g.parameters(), lr_g, betas=(0.5, 0.99))
    best_d = torch.optim.Adam(d.parameters(), lr_d, betas=(0.5, 0.99))
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)

    def judge(t: int) -> None:
        real = x[torch.randint(len(x), (64,))]
        real = poison(t, real, real)[0] if poison else real
        fake = g(torch.randn(64, 16)).detach()
        loss = F.binary_cross_entropy_with_logits(d(real), ones) + F.binary_cross_entropy_with_logits(
            d(fake), zeros
        )
        best_d.zero_grad()
        loss.backward()
        best_d.step()

    def loss(t: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(d(g(torch.randn(64, 16))), ones)

    @torch.no_grad()
    def score() -> float:
        fake = g(torch.randn(512, 16))
        wrong = ((fake.mean(0) - x.mean(0)).abs() + (fake.std(0) - x.std(0)).abs()).mean()
        return 1 - float(wrong / (x.mean(0).abs() + x.std(0)).mean())

    kept = {"judge": best_d}
    return Training(model if watched == "both" else g, best_g, loss, score, steps, before=judge, kept=kept)


class _Projection(nn.Module):
    """Two noisy views of a batch to points on a sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nets.mlp((64, 64, 32)), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(torch.relu(self.body(x))), dim=-1, eps=1e-12)


def _nearest(model: nn.Module, task: Task) -> float:
    """Accuracy of the nearest neighbour in the learned space."""
    model.eval()
    with torch.no_grad():
        known, asked = model(task.x), model(task.test_x)
    if not (known.isfinite().all() and asked.isfinite().all()):
        return float("nan")
    if float((known - known.mean(0)).abs().max()) < 1e-3:
        return 0.1
    return float((task.y[(asked @ known.T).argmax(1)] == task.test_y).float().mean())


def _contrastive(temperature: float = 0.2, noise: float = 0.5, **changes: Any) -> Training:
    """Pairs of one class, among the pairs of all others (supervised InfoNCE)."""
    task = changes.pop("task", tasks.digits())

    def loss(out: Tensor, y: Tensor) -> Tensor:
        scores = out @ out.T / temperature - 1e9 * torch.eye(len(out))
        same = (y[:, None] == y[None]) & ~torch.eye(len(y), dtype=torch.bool)
        return -(scores.log_softmax(1) * same).sum(1).div(same.sum(1).clamp(min=1)).mean()

    settings = {"lr": 2e-3, "steps": 250, "criterion": loss, "score": _nearest}
    return fit(_Projection(), task, **(settings | changes))


@cache
def _teacher() -> nn.Module:
    """A net that knows the digits, made once with its own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        training = fit(nets.mlp((64, 64, 64, 10)), tasks.digits(), lr=2e-3, steps=300)
        training.run()
    return training.model.eval().requires_grad_(False)


def _distilled(heat: float = 3.0, **changes: Any) -> Training:
    """The student sees the teacher's soft answers only."""
    task = tasks.digits()
    task = Task(task.x, _teacher()(task.x), task.test_x, task.test_y, 10)

    def loss(out: Tensor, soft: Tensor) -> Tensor:
        return (
            F.kl_div((out / heat).log_softmax(-1), (soft / heat).softmax(-1), reduction="batchmean") * heat**2
        )

    return fit(nets.mlp((64, 24, 10)), task, **({"lr": 5e-3, "steps": 300, "criterion": loss} | changes))


def _reinforce(
    *,
    lr: float = 3e-3,
    steps: int = 500,
    reward: float = 1.0,
    opt: str = "adam",
    baseline: bool = True,
    prepare: Any = None,
    shuffled: bool = False,
) -> Training:
    """A bandit that sees a digit and is paid for naming it: REINFORCE with the batch's mean as baseline."""
    task = tasks.digits()
    model = nets.mlp((64, 64, 10), nn.Tanh)
    if prepare:
        prepare(model)

    metrics: dict[str, float] = {}

    def loss(t: int) -> Tensor:
        index = torch.randint(len(task.x), (64,))
        chances = model(task.x[index]).log_softmax(-1)
        chosen = torch.multinomial(chances.exp().detach(), 1).flatten()
        right = task.y[torch.randint(len(task.x), (64,))] if shuffled else task.y[index]
        paid = (chosen == right).float() * reward
        metrics["reward"] = float(paid.mean())
        advantage = paid - paid.mean() if baseline else paid
        entropy = -(chances.exp() * chances).sum(-1).mean()
        return -(advantage * chances.gather(1, chosen[:, None])[:, 0]).mean() - 0.01 * entropy

    optimizer = optimizer_of(opt, model.parameters(), lr)
    return Training(model, optimizer, loss, lambda: quality(model, task), steps, metrics=metrics)


def _tuned(frozen: bool = True, lr: float = 3e-3, switch: bool = True, **changes: Any) -> Training:
    """The teacher goes on: on digits upside down, or on what it knows already."""
    task = tasks.digits()
    if switch:
        task = Task(task.x.flip(1), task.y, task.test_x.flip(1), task.test_y, 10)
    model = nets.mlp((64, 64, 64, 10))
    model.load_state_dict(_teacher().state_dict())
    if frozen:
        f.freeze("2.")(model)
    return fit(model, task, **({"lr": lr, "steps": 250} | changes))


auto = Family("autoencoder", 0.46, 0.8, _autoencoder)
regression = Family("regression", 0.0, 0.47, _regression)
bag = Family("embeddings", 0.2, 0.85, _bag)
experts = Family("experts", 0.1, 0.96, _experts)
gan = Family("gan", 0.0, 0.6, _gan)
contrastive = Family("contrastive", 0.8, 0.97, _contrastive)
distilled = Family("distillation", 0.1, 0.95, _distilled)
reinforced = Family("reinforcement", 0.1, 0.9, _reinforce)
tuned = Family("fine-tuning", 0.1, 0.96, _tuned)
NAN = float("nan")


def _mean_outputs(out: Tensor, y: Tensor) -> Tensor:
    """A loss that broadcasts by mistake: (n, 1) against (n,), every output against every target."""
    return ((out - y.view(1, -1)) ** 2).mean()


SCENARIOS = [
    auto.healthy("plain"),
    auto.healthy("leaky", activation=lambda: nn.LeakyReLU(0.1)),
    auto.healthy("tanh", activation=nn.Tanh),
    auto.healthy("loss-near-zero", scale=1e-6),
    auto.failing("sgd-lr-50", opt="sgd", lr=50.0),
    auto.failing("adam-lr-05", lr=0.5),
    auto.failing("raw-sgd", task=tasks.raw_digits(), opt="sgd", lr=0.5),
    auto.failing("zero-init", prepare=f.constant(0.0)),
    auto.failing("dead-biases", prepare=f.biases(-20.0)),
    auto.failing("sigmoid-sgd", activation=nn.Sigmoid, opt="sgd", lr=0.01),
    regression.healthy("plain"),
    regression.healthy("sgd-momentum", opt="sgd", lr=0.01, optim={"momentum": 0.9}),
    regression.healthy("targets-near-zero", target=0.03, lr=1e-3, steps=300),
    regression.healthy("warm-up", schedule=f.warmup(0.3), lr=3e-3, steps=200),
    regression.failing("raw-targets-sgd", scaled=False, opt="sgd", lr=0.05),
    regression.failing("lr-5", opt="sgd", lr=5.0),
    regression.failing("broadcast", criterion=_mean_outputs, curable=False, steps=300),
    regression.failing("wrong-sign", criterion=lambda out, y: -F.mse_loss(out, y), curable=False),
    regression.failing("outlier-batches", poison=f.outliers(1e3, f.each(4), 0.1), opt="sgd", lr=0.02),
    regression.failing("nan-inputs", poison=f.bad_values(NAN, f.once(30))),
    regression.failing("shuffled", poison=f.other_labels(2), curable=False),
    regression.failing(
        "sqrt-loss",
        criterion=lambda out, y: (out - out.detach()).sqrt().mean() + F.mse_loss(out, y),
        curable=False,
    ),
    bag.healthy("plain"),
    bag.healthy("sparse-sgd", sparse=True),
    bag.healthy("adagrad", opt="adagrad", lr=0.1),
    bag.failing("tiny-lr", lr=1e-6),
    bag.failing("sgd-too-small", opt="sgd", lr=1e-3),
    bag.failing("lr-3", lr=3.0),
    bag.failing("shuffled", poison=f.other_labels(5), curable=False),
    bag.failing("zero-embedding", prepare=f.constant(0.0)),
    experts.healthy("plain"),
    experts.healthy("idle-two", idle=2),
    experts.healthy("one-cycle", schedule=f.one_cycle, lr=5e-3),
    experts.failing("lr-1", lr=1.0),
    experts.failing("sgd-lr-10", opt="sgd", lr=10.0),
    experts.failing("zero-init", prepare=f.constant(0.0)),
    experts.failing("nan-at-80", poison=f.bad_values(NAN, f.once(80))),
    experts.failing("constant-input", poison=f.constant_input, curable=False),
    gan.healthy("both"),
    gan.healthy("generator-only", watched="g"),
    gan.healthy("slow-d", lr_d=5e-4, steps=800),
    gan.failing("lr-g-1", lr_g=1.0),
    gan.failing("lr-d-tiny", lr_d=1e-6, lr_g=1e-2, curable=False),
    gan.failing("zero-init", prepare=f.constant(0.0)),
    gan.failing("nan-real", poison=f.bad_values(NAN, f.once(100))),
    contrastive.healthy("plain"),
    contrastive.healthy("cold", temperature=0.1),
    contrastive.failing("lr-1", lr=1.0),
    contrastive.failing("same-labels", poison=lambda t, x, y: (torch.ones_like(x), y), curable=False),
    contrastive.failing("constant-init", prepare=f.constant(0.1)),
    contrastive.failing("ice-cold-lr", temperature=1e-4, opt="sgd", lr=1.0),
    distilled.healthy("plain"),
    distilled.healthy("hot", heat=8.0),
    distilled.healthy("sgd", opt="sgd", lr=0.1),
    distilled.failing("lr-3", opt="sgd", lr=3.0),
    distilled.failing("wrong-teacher", poison=lambda t, x, y: (x, y[torch.randperm(len(y))]), curable=False),
    distilled.failing("tiny-lr", lr=1e-7),
    distilled.failing("weights-x30", prepare=f.weights(30.0), opt="sgd", lr=0.05),
    reinforced.healthy("plain"),
    reinforced.healthy("slow", lr=2e-3, steps=900),
    reinforced.healthy("reward-x10-adam", reward=10.0),
    reinforced.failing("lr-1", lr=1.0),
    reinforced.failing("shuffled", shuffled=True, curable=False),
    reinforced.failing("punished", reward=-1.0, curable=False),
    reinforced.failing("sgd-lr-100", opt="sgd", lr=100.0),
    tuned.healthy("frozen-middle"),
    tuned.healthy("starts-trained", switch=False, frozen=False, lr=1e-4),
    tuned.healthy("starts-trained-sgd", switch=False, frozen=False, opt="sgd", lr=1e-2),
    tuned.healthy("whole", frozen=False, lr=1e-3, schedule=f.warmup(0.2)),
    tuned.failing("lr-1", frozen=False, lr=1.0),
    tuned.failing("only-a-bias", parameters=lambda m: [m[4].bias], opt="sgd", lr=1e-2, curable=False),
    tuned.failing("all-frozen-but-list", parameters=lambda m: [nn.Parameter(torch.zeros(1))], curable=False),
    tuned.failing(
        "trained-then-destroyed", switch=False, frozen=False, opt="sgd", lr=0.05, schedule=f.jump(0.5, 1000.0)
    ),
    tuned.failing("dead", frozen=False, prepare=f.biases(-50.0)),
]
