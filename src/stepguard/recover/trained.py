"""Whether a model comes trained, so that initialising it anew would throw away what it knows."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_NORMS = ("weight", "bias")


def comes_trained(model: nn.Module) -> str | None:
    """The first normalisation that has seen training, by its path and what tells; None if there is none.

    However a model is initialised, the weights of a normalisation begin all alike, 1 or 0, and its running
    statistics at none: what differs came from a training. Of a model without normalisations nothing is known.
    """
    for name, module in model.named_modules():
        moved = next((what for what in _NORMS if _moved(module, what)), None)
        if moved is not None:
            return f"{name}.{moved} is not that of a new {type(module).__name__}"
        seen = getattr(module, "num_batches_tracked", None)
        if isinstance(seen, Tensor) and int(seen) > 0:
            return f"{name} has seen {int(seen)} batches"
    return None


def normalises(model: nn.Module) -> bool:
    """Whether a model has normalisations."""
    return any(map(_is_norm, model.modules()))


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _moved(module: nn.Module, what: str) -> bool:
    """Whether the entries of a normalisation's parameter differ from each other."""
    if not _is_norm(module):
        return False
    values = getattr(module, what, None)
    if not isinstance(values, nn.Parameter) or is_lazy(values):
        return False
    return values.ndim == 1 and bool((values != values[0]).any())
