"""What the measured values say about the cause of an alert. Where they say nothing, neither does this."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from stepguard.report.findings import Findings
from stepguard.report.sources import SOURCES, not_finite
from stepguard.report.words import count, number

_PASSED_ON = {"act.std", "act.rms", "act.absmax", "grad.norm", "grad.rms", "grad.absmax"}
"""Signals that one layer hands to the next, so that a factor per layer multiplies up with depth."""


def likely_causes(findings: Findings) -> tuple[str, ...]:
    """Every cause that the evidence supports, in plain words; mostly none or one."""
    found = (look(findings) for look in (*SOURCES, *_LOOKS))
    causes = tuple(dict.fromkeys(cause for cause in found if cause))
    zero = _zero(findings)
    return (zero,) if zero and not causes else causes


def _overflow(findings: Findings) -> str | None:
    """Not finite now, and no source known: had it grown before, was it steady, or was it never finite?"""
    evidence, values = findings.evidence, np.asarray(findings.evidence.values, float)
    if values.size == 0 or math.isfinite(values[-1]) or not_finite(findings):
        return None
    before = np.abs(values[np.isfinite(values)][-9:])
    if before.size == 0:
        return (
            f"{evidence.signal} was never finite in {count(values.size, 'reading')}: look at the first step"
        )
    if before.size < 4 or before[0] <= 0:
        return None
    growth = number(before[-1] / before[0])
    if before[-1] >= 10 * before[0]:
        return f"{evidence.signal} grew {growth}x just before: it diverged until it overflowed"
    if before.max() <= 2 * before.min():
        return (
            f"{evidence.signal} was steady just before: one bad batch or operation rather than a divergence"
        )
    return None


def _origin(findings: Findings) -> str | None:
    """NaN in an unbroken run of layers that reaches one end of the network: it starts at its other end."""
    depths = [site.depth for site in findings.sites]
    if len(depths) < 2 or depths != list(range(depths[0], depths[-1] + 1)):
        return None
    signal = findings.evidence.signal
    last_of_all = len(findings.layers) - 1
    if signal == "act.nonfinite" and depths[0] > 0 and depths[-1] == last_of_all:
        first = findings.sites[0].layer.name
        return f"every layer from {first} on, and none before it: it starts at {first}"
    if signal == "grad.nonfinite" and depths[0] == 0 and depths[-1] < last_of_all:
        last = findings.sites[-1].layer.name
        return f"every layer up to {last}, and none behind it: going backwards, it starts at {last}"
    return None


def _depth(findings: Findings) -> str | None:
    """The value climbs or falls from layer to layer of one type."""
    signal, kind = findings.evidence.signal, findings.sites[0].layer.type if findings.sites else ""
    alike = [(site.layer.name, site.value) for site in findings.sites if site.layer.type == kind]
    alike = [(name, value) for name, value in alike if value is not None and 0 < value < math.inf]
    if signal not in _PASSED_ON or len(alike) < 3:
        return None
    (first, start), (last, end) = alike[0], alike[-1]
    factors = [b[1] / a[1] for a, b in pairwise(alike)]
    span = f"{signal} {{}} with depth, from {number(start)} at {first} to {number(end)} at {last}"
    if end >= 10 * start and min(factors) > 1:
        return span.format("grows")
    if start >= 10 * end and max(factors) < 1:
        return span.format("shrinks")
    return None


def _zero(findings: Findings) -> str | None:
    """Exactly zero at every reading: no rounding, nothing arrives."""
    evidence = findings.evidence
    if len(evidence.values) < 2 or any(value != 0 for value in evidence.values):
        return None
    return _ZERO.get(evidence.signal)


_ZERO: Mapping[str, str] = {
    "grad.norm": "exactly zero: nothing flows back to these parameters",
    "act.std": "exactly constant: the same output for every input",
}
_LOOKS: Sequence[Callable[[Findings], str | None]] = (_overflow, _origin, _depth)
