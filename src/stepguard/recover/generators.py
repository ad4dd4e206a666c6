"""The random generators that a training draws from: python's, numpy's, torch's on every device in use."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def generators() -> dict[str, Any]:
    """Where all generators stand; CUDA's only if CUDA is in use."""
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (keys.tolist(), place, has_gauss, gauss),  # pyright: ignore[reportAttributeAccessIssue]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_generators(state: Mapping[str, Any]) -> None:
    """Put all generators where `generators` found them."""
    version, inner, gauss_next = state["python"]
    random.setstate((version, tuple(inner), gauss_next))
    keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if "cuda" in state else 0
    for device, cuda in enumerate(state.get("cuda", ())[:devices]):
        torch.cuda.set_rng_state(cuda, device)
