"""What a person reads of a rule test that failed: the alerts that differ, and the series, drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from stepguard.rules.testfile import Alert, RuleTest, Series
from stepguard.rules.testing import Outcome

WIDTH = 60
"""Columns of a drawn series."""
_BARS = "▁▂▃▄▅▆▇█"
_MISSING, _NOT_FINITE = " ", "!"


def diff(outcome: Outcome) -> str:
    """Say what a failed test expected and what fired, with the series that the rules look at.

    Text of several lines, without colours.
    """
    test = outcome.test
    lines = [f"{test.place}: {test.name}"]
    lines += [f"  rule '{rule}' failed: {reason}" for rule, reason in outcome.failures]
    lines += [f"  {line}" for line in _alerts(outcome)]
    differing = sorted(outcome.missing | outcome.unexpected, key=_order)
    for name, series in _drawn(test, differing):
        lines.append(f"    {sparkline(series)}  {name}: {_extent(series)}")
    return "\n".join(lines)


def _order(alert: Alert) -> tuple[str, str, int]:
    return alert.rule, alert.layer or "", alert.step


def _alerts(outcome: Outcome) -> Iterator[str]:
    """Pair what was expected with what fired instead, as far as rule and layer agree."""
    unexpected = sorted(outcome.unexpected, key=_order)
    for alert in sorted(outcome.missing, key=_order):
        instead = next((each for each in unexpected if each[:2] == alert[:2]), None)
        if instead:
            unexpected.remove(instead)
            yield f"{_who(alert)}: expected at step {alert.step}, fired at step {instead.step}"
        else:
            yield f"{_who(alert)}: expected at step {alert.step}, did not fire"
    yield from (f"{_who(alert)}: fired at step {alert.step}, not expected" for alert in unexpected)


def _who(alert: Alert) -> str:
    return f"{alert.rule} at {alert.layer}" if alert.layer else alert.rule


def _drawn(test: RuleTest, alerts: Sequence[Alert]) -> Iterator[tuple[str, Series]]:
    """Pick the series behind some alerts: of the layer where there is one, else of every layer."""
    picked: dict[str, Series] = {}
    for alert in alerts:
        condition = next(rule.condition for rule in test.rules if rule.name == alert.rule)
        for name in sorted(condition.signals):
            if name in test.run:
                picked[name] = test.run[name]
            for layer, series in test.per_layer.get(name, {}).items():
                if alert.layer in {None, layer}:
                    picked[f"{name} at {layer}"] = series
    yield from picked.items()


def sparkline(series: Series) -> str:
    """Draw a series in one line: blank where nothing was measured, ! where it was not finite.

    >>> sparkline([0, 1, 2, 3, None, float("nan"), 7])
    '▁▂▃▄ !█'
    """
    finite = [value for value in series if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    return "".join(_bar(value, low, high) for value in _thinned(series))


def _thinned(series: Series) -> Series:
    """Keep at most WIDTH values: of each stretch the one that stands out most."""
    if len(series) <= WIDTH:
        return series
    edges = [round(index * len(series) / WIDTH) for index in range(WIDTH + 1)]
    return [max(series[begin:end], key=_prominence) for begin, end in pairwise(edges)]


def _prominence(value: float | None) -> float:
    if value is None:
        return -1.0
    return abs(value) if math.isfinite(value) else math.inf


def _bar(value: float | None, low: float, high: float) -> str:
    if value is None:
        return _MISSING
    if not math.isfinite(value):
        return _NOT_FINITE
    return _BARS[int((value - low) / (high - low) * (len(_BARS) - 1))] if high > low else _BARS[0]


def _extent(series: Series) -> str:
    finite = [value for value in series if value is not None and math.isfinite(value)]
    shown = f"{min(finite):.4g} to {max(finite):.4g}" if finite else "nothing finite"
    return f"{shown}, steps 0 to {len(series) - 1}"
