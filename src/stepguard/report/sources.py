"""Where a fault comes from, as the newest frame shows it: batch, weights, layers, loss, or the set-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from stepguard.recover.prescription import is_raw
from stepguard.report.findings import Findings
from stepguard.report.words import count, layer_name, number

_DIVERGED = 10.0
"""So many times its first value, and what it was of late, is a loss that was on its way out of bounds."""
_NO_FLOOR = 100.0
"""So many times its first value, or 1 where that is less, lies a loss below zero that has no end."""
_ENOUGH = 4
"""The step from which on it is known which layers get a gradient."""
_MUCH_DROPPED = 0.9
"""The share that a dropout leaves out of which few runs recover; half of the units is much already."""
_SHRUNK = 0.1
"""What is left of weights that decay has taken away."""
_FAR_BELOW = 3.0
"""Spreads below zero from which on a ReLU passes next to nothing: one number in a thousand."""


def not_finite(findings: Findings) -> str | None:
    """Where NaN or Inf begin: in the batch, the weights, a layer, the loss, or on the way back."""
    if not findings.not_finite:
        return None
    if findings.where("weight.nonfinite", 1):
        return _in_the_weights(findings)
    batch = findings.past.bad_batch
    if batch is not None and batch.step == findings.past.frame.step:
        return f"the batch itself: its inputs hold {_values(batch.values)} at step {batch.step}"
    return _diverged(findings) or _in_a_layer(findings) or _behind_the_model(findings)


def _in_the_weights(findings: Findings) -> str | None:
    """They are read before the step at hand is taken, so that an earlier one has done it."""
    past, last = findings.past, findings.past.frame.step - 1
    layers = count(len(findings.where("weight.nonfinite", 1)), "layer")
    why = _diverged(findings)
    if past.bad_batch is not None and past.bad_batch.step == last:
        why = f"the batch of step {last} held {_values(past.bad_batch.values)}"
    elif why is None and past.bad_loss == last:
        why = f"they came with step {last}, whose loss was not finite"
    since = f"NaN or Inf stand in the weights of {layers} since a step before"
    told = (None if findings.evidence.signal == "weight.nonfinite" else since, why)
    return ": ".join(filter(None, told)) or None


def _diverged(findings: Findings) -> str | None:
    first, recent = findings.past.loss, findings.past.recent
    if not first or not recent:
        return None
    before = recent[-1]
    # A loss that is noise about zero, as one of rewards, may be a hundred times its first value by chance.
    if abs(before) < _DIVERGED * max(abs(first), median(map(abs, recent))):
        return None
    return f"the loss went from {number(first)} to {number(before)}: it diverged until numbers overflowed"


def _values(bad: int) -> str:
    return count(bad, "value") + " that " + ("is" if bad == 1 else "are") + " NaN or Inf"


def _in_a_layer(findings: Findings) -> str | None:
    """Only a first layer that was given finite numbers by others than itself."""
    bad = findings.where("act.nonfinite", 1)
    if not bad or findings.evidence.signal == "act.nonfinite" or findings.scalar("input.nonfinite") is None:
        return None
    first = layer_name(findings.layers[bad[0]])
    return f"inputs and weights are finite: the first output that is not is that of {first}"


def _behind_the_model(findings: Findings) -> str | None:
    """All that the model puts out is finite: what comes behind it makes the loss, or the way back."""
    if not findings.known("act.nonfinite").any() or findings.where("act.nonfinite", 1):
        return None
    loss = findings.scalar("loss")
    if loss is None:
        return None
    if not np.isfinite(loss):
        largest = max(findings.value("act.absmax", i) or 0.0 for i in range(len(findings.layers)))
        outputs = f"the model's outputs are finite ({number(largest)} at most)"
        return f"{outputs}: look at the targets, their masks and the loss itself"
    if findings.scalar("loss_scale") is not None:
        return None
    return "the loss and the model's outputs are finite: a derivative is not, as of sqrt, log or norm at zero"


def no_gradient(findings: Findings) -> str | None:
    """Half of the layers or more have never had a gradient, or none of them need one."""
    if findings.not_finite or findings.past.frame.step < _ENOUGH:
        return None
    never = np.ones(len(findings.layers), np.bool_)
    if findings.past.reached is not None:
        never = ~findings.past.reached
    # Updates are told of weights that require a gradient, of the others nothing but their size.
    trained, owning = findings.known("update.ratio"), findings.known("weight.norm")
    if owning.any() and not trained.any() and never[owning].all():
        return "no weight requires a gradient: all of the model is frozen"
    cut_off = np.flatnonzero(trained & never)
    if not len(cut_off) or 2 * len(cut_off) < trained.sum():
        return None
    if len(cut_off) == trained.sum():
        return (
            "no layer ever had a gradient, though they require one: the loss does not depend on the model"
            " (detach(), no_grad(), item(), numpy)"
        )
    first, last = (layer_name(findings.layers[cut_off[place]]) for place in (0, -1))
    span = first if len(cut_off) == 1 else f"{first} to {last}"
    return (
        f"{len(cut_off)} of {trained.sum()} layers, {span}, require a gradient and never had one: look behind"
        " them for detach(), no_grad(), item()"
    )


def not_moved(findings: Findings) -> str | None:
    """Layers that have a gradient, and weights that stay exactly as they were."""
    still = set(findings.where("update.ratio", 0, 0)) & set(findings.where("grad.norm", 1e-30))
    if findings.not_finite or not still or not findings.scalar("lr"):
        return None
    trained = int(findings.known("update.ratio").sum())
    if 2 * len(still) < trained:
        return None
    which = "all layers have gradients and none moves" if len(still) == trained else ""
    which = which or f"{len(still)} of {trained} layers have gradients and do not move"
    return f"{which}: the optimizer does not hold their weights, or its updates are rounded off"


def dead(findings: Findings) -> str | None:
    """Activations whose outputs are all zero let no gradient through; why are they?"""
    owning = findings.known("weight.norm")
    silent = [place for place in findings.where("act.dead", 1) if not owning[place]]
    if not silent or findings.not_finite or not findings.evidence.signal.startswith(("act.", "grad.")):
        return None
    first = silent[0]
    name, before = layer_name(findings.layers[first]), first - 1
    told = f"{name} puts out zeros only, for every example"
    mean, std = (findings.value(f"act.{of}", before) if first else None for of in ("mean", "std"))
    if mean is not None and std is not None and mean < -_FAR_BELOW * std:
        given = f"what {layer_name(findings.layers[before])} gives it is below zero"
        return f"{told}: {given} (mean {number(mean)}, std {number(std)}), by a bias or by too large a step"
    return None if findings.evidence.signal == "act.dead" else f"{told}: no gradient passes it"


def raw_inputs(findings: Findings) -> str | None:
    """Inputs far from mean 0 and std 1."""
    if findings.not_finite and _diverged(findings) is None:
        return None
    mean, std = findings.scalar("input.mean"), findings.scalar("input.std")
    if mean is None or std is None or not is_raw(mean, std):
        return None
    return f"the inputs are not normalised: mean {number(mean)}, std {number(std)}"


def no_floor(findings: Findings) -> str | None:
    """A loss that fell far below zero has nothing that it comes to an end at."""
    first, loss, recent = findings.past.loss, findings.scalar("loss"), findings.past.recent
    if loss is not None and not np.isfinite(loss) and recent:
        loss = recent[-1]
    if first is None or loss is None or not loss < -_NO_FLOOR * max(abs(first), 1.0):
        return None
    return f"the loss fell from {number(first)} to {number(loss)}, as if without an end: is its sign right?"


def shrunk(findings: Findings) -> str | None:
    """Half of the layers with next to nothing left of the weights that they began with."""
    first, now = findings.past.weights, findings.past.frame.vectors.get("weight.norm")
    if first is None or now is None or findings.not_finite:
        return None
    both = first.known & now.known & (first.values > 0)
    left = now.values[both] / first.values[both]
    gone = left < _SHRUNK
    if not gone.any() or 2 * gone.sum() < len(left):
        return None
    return (
        f"the weights of {count(int(gone.sum()), 'layer')} have shrunk to {number(float(left[gone].max()))}"
        " of what they were, or less: too much weight decay?"
    )


def much_dropout(findings: Findings) -> str | None:
    """A dropout that leaves next to nothing."""
    dropout = None if findings.not_finite else findings.scalar("dropout")
    if dropout is None or dropout < _MUCH_DROPPED or findings.evidence.signal == "dropout":
        return None
    return f"a dropout of {number(dropout)} leaves out all but {1 - dropout:.2g} of the units"


SOURCES: Sequence[Callable[[Findings], str | None]] = (
    *(no_gradient, not_moved, raw_inputs, no_floor, not_finite, shrunk, much_dropout, dead),
)
"""In the order of how much each of them explains."""
