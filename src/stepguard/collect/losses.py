"""What a training loop gives as its loss."""

from __future__ import annotations

from torch import Tensor


def scalar_loss(loss: object) -> Tensor:
    """The loss as a detached tensor of no dimension.

    Raises:
        TypeError: it is not a tensor with one real number.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss should be a tensor with one real number, got {type(loss).__name__}")
    if loss.numel() != 1 or loss.is_complex():
        raise TypeError(
            f"the loss should be a tensor with one real number, got one of shape {list(loss.shape)} and"
            f" {loss.dtype} (give loss.mean(), say)"
        )
    return loss.detach().reshape(())
