"""The short ways of the evaluation against the plain definitions of `windows`, whatever is missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.rules import shortcuts
from stepguard.rules.circuit import Circuit
from stepguard.rules.expression import compile_condition
from stepguard.rules.tree import Node, walk
from stepguard.rules.values import Value
from stepguard.series import windows
from stepguard.series.history import History
from stepguard.signals import Frame, Vector

LAYERS = 4
NAMES = ("growth", "delta", "prev", "min", "max", "median")


def node(text: str, name: str) -> Node:
    return next(part for part in walk(compile_condition(text).root) if part.text.startswith(name))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(NAMES), st.sampled_from([1, 2, 5, 12]))
def test_functions_over_steps(seed: int, name: str, n: int) -> None:
    random = np.random.default_rng(seed)
    mask, circuit, plain = np.ones(LAYERS, np.bool_), Circuit(LAYERS), History()
    cell = circuit.cell(node(f"any({name}(act.std, {n}) > 0)", name), mask)
    reach = windows.REACH[name](n)
    plain.reserve("x", reach, (LAYERS,))
    often, never, cadence = random.choice([0.0, 0.1]), random.random(LAYERS) < 0.2, random.choice([1, 3])
    for step in range(60):
        frame = Frame(step)
        if step % cadence == 0 and random.random() < 0.95:
            values = random.choice([0.0, 0.5, 1.5, 4.0, np.nan, -1.0], LAYERS).astype(np.float32)
            known = (random.random(LAYERS) >= often) & ~never
            frame.vectors["act.std"] = Vector(values, known)
            plain.push("x", step, np.where(known, values, np.nan).astype(np.float64))
        circuit.feed(frame, None, circuit.series.values())
        found: Value = cell.get()
        expected = getattr(windows, name)(plain.window("x", step, reach), step, n)
        np.testing.assert_array_equal(np.where(found.known, found.data, np.nan), expected)


@pytest.mark.parametrize("signal", ["act.std", "act.mean"])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["median", "mad", "zscore"]), st.sampled_from([8, 9, 20]))
def test_long_windows_of_layers(signal: str, seed: int, name: str, n: int) -> None:
    """Kept sorted, and after a `rewind` too; positive signals by their logarithms."""
    random, log = np.random.default_rng(seed), signal == "act.std"
    reach = windows.REACH[name](n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcuts, "LONG", 1)
        circuit, plain = Circuit(LAYERS), History()
        cell = circuit.cell(node(f"any({name}({signal}, {n}) > 0)", name), np.ones(LAYERS, np.bool_))
    plain.reserve("x", reach, (LAYERS,))
    few = random.random() < 0.5
    step, back = 0, int(random.integers(30, 60))
    for moment in range(80):
        step += int(random.choice([1, 1, 1, 3]))
        if moment == back:
            step -= int(random.integers(1, n))
            circuit.history.rewind(step)
            circuit.renew()
            plain.rewind(step)
            step += 1
        frame = Frame(step)
        if random.random() < 0.95:
            values = random.choice([0.0, 0.5, 1.5, 4.0], LAYERS) if few else random.normal(1, 1, LAYERS)
            values = (np.abs(values) if log else values).astype(np.float32)
            known = random.random(LAYERS) >= 0.1
            frame.vectors[signal] = Vector(values, known)
            plain.push("x", step, np.where(known, values, np.nan).astype(np.float64))
        circuit.feed(frame, None, circuit.series.values())
        if random.random() < 0.8:
            found: Value = cell.get()
            how = {"log": log} if name == "zscore" else {}
            expected = getattr(windows, name)(plain.window("x", step, reach), step, n, **how)
            got = np.where(found.known, found.data, np.nan)
            np.testing.assert_allclose(got, expected, rtol=1e-12 if name == "zscore" else 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["first", "last"]), st.sampled_from([3, 40]))
def test_the_first_and_the_last_layer(seed: int, name: str, layers: int) -> None:
    """Those of a signal, and those of an expression that is the same number for number."""
    random = np.random.default_rng(seed)
    mask, circuit = random.random(layers) < 0.8, Circuit(layers)
    short = circuit.cell(node(f"{name}(act.std) > 0", name), mask)
    plain = circuit.cell(node(f"{name}(act.std * 1) > 0", name), mask)
    for step in range(20):
        values = random.normal(size=layers).astype(np.float32)
        vector = Vector(values, random.random(layers) < random.choice([0, 0.05, 0.9]))
        circuit.feed(Frame(step, vectors={"act.std": vector}), None, ())
        assert short.get() == plain.get()
