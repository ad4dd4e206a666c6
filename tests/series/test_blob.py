from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stepguard.series import blob
from stepguard.signals import HIST_BINS, SIGNALS, Frame, Vector

NAMES = dict(enumerate([*SIGNALS, "metric.val_accuracy", "metric.ü b"]))
NUMBERS = {name: number for number, name in NAMES.items()}
BITS = st.integers(0, 2**32 - 1)
COUNT = st.sampled_from([0, 1, 255, 256, 70_000, 2**24, 2**31 - 1, -1, -(2**31)]) | st.integers(0, 4000)


def assert_same(got: Frame, expected: Frame) -> None:
    """Bit for bit, the payload of a NaN and the sign of a zero included."""
    assert got.step == expected.step
    assert list(got.scalars) == list(expected.scalars)
    np.testing.assert_array_equal(bits(list(got.scalars.values())), bits(list(expected.scalars.values())))
    assert list(got.vectors) == list(expected.vectors)
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


def again(frame: Frame) -> Frame:
    return blob.decode(frame.step, blob.encode(frame, NUMBERS.__getitem__), NAMES)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    layers = draw(st.sampled_from([0, 1, 3, 9]))
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
@given(frames())
def test_reads_back_bit_for_bit(frame: Frame):
    assert_same(again(frame), frame)


def test_numbers_may_be_views_and_are_writable_again():
    block = np.arange(12, dtype=np.float32).reshape(4, 3)
    frame = Frame(1, {}, {"act.std": Vector(block[:, 1], block[:, 0] > 3)}, np.ones((51, 4), np.int32).T)
    got = again(frame)
    assert_same(got, frame)
    got.vectors["act.std"].values[:] = 0


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


@pytest.mark.parametrize("layers", [10, 100, 1000])
def test_at_most_120_bytes_a_layer(layers: int):
    frame = looks_real(layers)
    assert set(frame.vectors) == {signal.name for signal in SIGNALS.values() if signal.per == "layer"}
    assert len(blob.encode(frame, NUMBERS.__getitem__)) <= 120 * layers


def test_layers_that_do_not_match_are_refused():
    good = Vector(np.zeros(3, np.float32), np.ones(3, np.bool_))
    bad = Vector(np.zeros(2, np.float32), np.ones(2, np.bool_))
    for frame in (
        Frame(4, {}, {"act.std": good, "act.mean": bad}),
        Frame(4, {}, {}, np.zeros((3, 51), np.int32)),
    ):
        frame.vectors.setdefault("act.std", bad)
        with pytest.raises(ValueError, match=r"frame of step 4: expected [23] layers"):
            blob.encode(frame, NUMBERS.__getitem__)


@given(st.data())
def test_damage_is_an_error_and_no_other_frame(data: st.DataObject):
    body = zlib.decompress(blob.encode(looks_real(3), NUMBERS.__getitem__))
    short = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises((ValueError, KeyError, TypeError, blob.struct.error)):
        blob.decode(7, zlib.compress(body[:short]), NAMES)
    with pytest.raises(zlib.error):
        blob.decode(7, body, NAMES)
