from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stepguard.series import columns
from stepguard.signals import HIST_BINS, SIGNALS, Frame, Vector

NAMES = dict(enumerate([*SIGNALS, "metric.val_accuracy", "metric.ü b"]))
NUMBERS = {name: number for number, name in NAMES.items()}
BITS = st.integers(0, 2**32 - 1)
COUNT = st.sampled_from([0, 1, 255, 256, 70_000, 2**24, 2**31 - 1, -1, -(2**31)]) | st.integers(0, 4000)


def assert_same(got: Frame, expected: Frame) -> None:
    """Bit for bit, the payload of a NaN and the sign of a zero included."""
    assert got.step == expected.step
    assert set(got.scalars) == set(expected.scalars)
    for name, value in got.scalars.items():
        np.testing.assert_array_equal(bits(value), bits(expected.scalars[name]))
    assert set(got.vectors) == set(expected.vectors)
    for name, vector in got.vectors.items():
        assert vector.values.dtype == np.float32 and vector.known.dtype == np.bool_
        np.testing.assert_array_equal(bits(vector.values), bits(expected.vectors[name].values))
        np.testing.assert_array_equal(vector.known, expected.vectors[name].known)
    assert (got.hist is None) == (expected.hist is None)
    if got.hist is not None:
        assert got.hist.dtype == np.int32 and got.hist.shape == expected.hist.shape
        np.testing.assert_array_equal(got.hist, expected.hist)


def bits(values: object) -> np.ndarray:
    flat = np.atleast_1d(np.asarray(values, getattr(values, "dtype", np.float64)))
    return flat.view(np.uint32)


def again(*frames: Frame) -> list[Frame]:
    data, hist = columns.encode(frames, NUMBERS.__getitem__)
    return list(columns.decode(data, NAMES, hist=hist).frames())


@st.composite
def frames(draw: st.DrawFn, layers: int) -> Frame:
    names = st.sets(st.sampled_from(sorted(NUMBERS)), max_size=6)
    scalars = draw(st.dictionaries(st.sampled_from(sorted(NUMBERS)), st.floats(), max_size=5))
    vectors = {
        name: Vector(
            draw(arrays.arrays(np.uint32, layers, elements=BITS)).view(np.float32),
            draw(arrays.arrays(np.bool_, layers)),
        )
        for name in draw(names)
    }
    hist = draw(st.none() | arrays.arrays(np.int32, (layers, HIST_BINS + 1), elements=COUNT, fill=st.just(0)))
    return Frame(draw(st.integers(0, 2**40)), scalars, vectors, hist)


@settings(max_examples=200)
@given(st.sampled_from([0, 1, 3, 9]).flatmap(lambda layers: st.lists(frames(layers), min_size=1, max_size=5)))
def test_reads_back_bit_for_bit(given: list[Frame]):
    for got, expected in zip(again(*given), given, strict=True):
        assert_same(got, expected)


def test_some_signals_of_frames_that_lack_some():
    whole, bare = looks_real(3), Frame(9, {"loss": 1.5})
    data, hist = columns.encode([bare, whole, bare], NUMBERS.__getitem__)
    block = columns.decode(data, NAMES, {"loss", "act.std", "lr"})
    assert set(block.scalars) == {"loss", "lr"} and set(block.vectors) == {"act.std"} and block.hist is None
    assert block.steps.tolist() == [9, 7, 9]
    std = block.vectors["act.std"]
    assert std.present.tolist() == [False, True, False]
    assert std.known[1].all() and not std.known[[0, 2]].any() and np.isnan(std.values[[0, 2]]).all()
    np.testing.assert_array_equal(std.values[1], whole.vectors["act.std"].values)
    np.testing.assert_array_equal(block.scalars["lr"].values, [np.nan, 0.1, np.nan])
    assert [frame.step for frame in block.part(slice(1, None)).frames()] == [7, 9]
    assert columns.decode(data, NAMES, (), hist).hist_present.tolist() == [False, True, False]


def test_numbers_may_be_views():
    block = np.arange(12, dtype=np.float32).reshape(4, 3)
    frame = Frame(1, {}, {"act.std": Vector(block[:, 1], block[:, 0] > 3)}, np.ones((51, 4), np.int32).T)
    (got,) = again(frame)
    assert_same(got, frame)


def looks_real(layers: int, seed: int = 0) -> Frame:
    """All signals at once as a network of normal-like activations gives them, from 4,096 samples a layer."""
    random = np.random.default_rng(seed)
    x = np.abs(random.normal(size=(layers, 4096))) * np.exp(random.normal(0, 0.6, (layers, 1)))
    x[: layers // 2] *= random.random((layers // 2, 4096)) < 0.5
    hist = np.stack([np.bincount(row, minlength=51) for row in np.minimum(x / 0.2, 50).astype(int)])
    share, gradient, weight = (
        random.random((8, layers)),
        np.exp(random.normal(-5, 1, layers)),
        random.random(layers),
    )
    values = {
        "act.mean": x.mean(1), "act.std": x.std(1), "act.rms": np.sqrt((x**2).mean(1)),
        "act.absmax": x.max(1),
        "act.near_zero": (x < 0.4).mean(1), "act.tiny": (x < 0.01).mean(1), "act.variation": share[0],
        "act.dead": np.round(share[1] * 64) / 64, "act.dormant": np.round(share[2] * 64) / 64,
        "act.saturated": np.full(layers, np.nan), "act.nonfinite": np.zeros(layers),
        "grad.norm": gradient, "grad.rms": gradient * share[3], "grad.absmax": gradient * share[4],
        "grad.zero": share[5], "grad.nonfinite": np.zeros(layers), "weight.norm": 30 * weight,
        "weight.rms": weight / 10, "weight.absmax": weight * share[6], "weight.nonfinite": np.zeros(layers),
        "update.ratio": 1e-3 * share[7], "optim.rms_ratio": 1 + share[0] / 10,
    }  # fmt: skip
    vectors = {
        name: Vector(value.astype(np.float32), np.full(layers, name != "act.saturated"))
        for name, value in values.items()
    }
    return Frame(7, {"loss": 2.3, "lr": 0.1, "grad_norm": 1.7}, vectors, hist.astype(np.int32))


@pytest.mark.parametrize(("layers", "frames"), [(10, 128), (100, 32), (1000, 8)])
def test_at_most_100_bytes_a_layer(layers: int, frames: int):
    given = [looks_real(layers, seed) for seed in range(frames)]
    assert set(given[0].vectors) == {signal.name for signal in SIGNALS.values() if signal.per == "layer"}
    data, hist = columns.encode(given, NUMBERS.__getitem__)
    assert hist is not None and len(data) + len(hist) <= 100 * layers * frames


def test_layers_that_do_not_match_are_refused():
    good = Vector(np.zeros(3, np.float32), np.ones(3, np.bool_))
    bad = Vector(np.zeros(2, np.float32), np.ones(2, np.bool_))
    for frame in (
        Frame(4, {}, {"act.std": good, "act.mean": bad}),
        Frame(4, {}, {}, np.zeros((3, 51), np.int32)),
    ):
        frame.vectors.setdefault("act.std", bad)
        with pytest.raises(ValueError, match=r"frame of step 4: expected [23] layers"):
            columns.encode([frame], NUMBERS.__getitem__)


@given(st.data())
def test_damage_is_an_error_and_no_other_frame(data: st.DataObject):
    whole, hist = columns.encode([looks_real(3)], NUMBERS.__getitem__)
    assert hist is not None
    damaged = (ValueError, LookupError, TypeError, struct.error, zlib.error)
    with pytest.raises(damaged):
        columns.decode(whole[: data.draw(st.integers(0, len(whole) - 1))], NAMES)
    with pytest.raises(damaged):
        columns.decode(whole, NAMES, hist=hist[: data.draw(st.integers(0, len(hist) - 1))])
