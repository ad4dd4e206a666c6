"""Whether a model and an optimizer belong together. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer

from stepguard.collect.layers import watched_modules


def complaints(model: nn.Module, optimizer: Optimizer) -> Iterator[str]:
    """What is wrong with this model and this optimizer as a pair, each as a sentence.

    What an optimizer leaves out may be another one's, and what it holds beside may be another model's; both
    together come of a part that was replaced.
    """
    if not watched_modules(model):
        yield "the model has no layer to watch: no module with parameters, no activation module"
    named = list(model.named_parameters())
    of_model = {parameter for _, parameter in named}
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if named and not held & of_model:
        yield (
            "the optimizer holds none of the model's parameters, so the model will never learn"
            " (was it made before the model was, or for another one?)"
        )
        return
    left_out = [name for name, parameter in named if parameter.requires_grad and parameter not in held]
    if left_out and held - of_model:
        yield (
            f"the optimizer leaves out {len(left_out)} of the model's parameters, first {left_out[0]!r}, and"
            f" holds {len(held - of_model)} that are not the model's: was a part of it replaced after the"
            " optimizer was made?"
        )
