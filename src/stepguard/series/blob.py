"""A frame as a few bytes, exactly: every float bit for bit, NaN and masks included.

The bytes of the numbers are sorted by their significance before zlib sees them, since signs and exponents of
many layers look alike and their last bits never do. Names are numbers that the run file explains once.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.signals import HIST_BINS, Frame, Vector

_HEAD = struct.Struct("<IHHb")
"""Layers, scalars, vectors, and how many bytes a count of the histogram takes (-1: there is none)."""
_LEVEL = 1
"""Of zlib: higher ones save 3 % and take twice the time."""


def encode(frame: Frame, number: Callable[[str], int]) -> bytes:
    """The frame without its step; `number` gives each name its number. ValueError if layers do not match."""
    vectors, hist = frame.vectors.values(), _counts(frame)
    layers = len(next(iter(vectors)).values) if vectors else len(hist)
    if any(len(part) != layers for vector in vectors for part in vector) or len(hist) not in (layers, 0):
        raise ValueError(
            f"frame of step {frame.step}: expected {layers} layers in every vector and histogram"
        )
    width = -1 if frame.hist is None else (int(hist.max(initial=0)).bit_length() + 7) // 8
    parts = (
        _HEAD.pack(layers, len(frame.scalars), len(vectors), width),
        np.array([number(name) for name in (*frame.scalars, *frame.vectors)], "<u2").tobytes(),
        np.array(list(frame.scalars.values()), "<f8").tobytes(),
        np.packbits(np.array([vector.known for vector in vectors], np.bool_)).tobytes(),
        _planes(np.array([vector.values for vector in vectors], "<f4"), 4),
        _planes(hist, max(width, 0)),
    )
    return zlib.compress(b"".join(parts), _LEVEL)


def decode(step: int, data: bytes, names: Mapping[int, str]) -> Frame:
    """The frame that was encoded. ValueError, KeyError, TypeError, struct.error or zlib.error if damaged."""
    body = _Body(zlib.decompress(data))
    layers, scalars, vectors, width = body.head
    called = [names[int(number)] for number in body.take(scalars + vectors, "<u2")]
    numbers: list[float] = body.take(scalars, "<f8").tolist()
    cells = vectors * layers
    mask = np.unpackbits(body.take(-(-cells // 8), "u1"), count=cells).astype(np.bool_)
    values = body.planes(cells, 4, "<f4")
    hist = body.planes(layers * (HIST_BINS + 1), width, "<i4") if width >= 0 else None
    rows = zip(called[scalars:], values.reshape(vectors, layers), mask.reshape(vectors, layers), strict=True)
    return Frame(
        step,
        dict(zip(called[:scalars], numbers, strict=True)),
        {name: Vector(value, known) for name, value, known in rows},
        None if hist is None else hist.reshape(layers, HIST_BINS + 1),
    )


def _counts(frame: Frame) -> NDArray[np.uint32]:
    hist = np.zeros((0, HIST_BINS + 1), np.int32) if frame.hist is None else frame.hist
    return np.ascontiguousarray(hist, "<i4").view("<u4")


def _planes(values: NDArray[Any], width: int) -> bytes:
    """The `width` low bytes of numbers of four: first the lowest bytes of all of them."""
    octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, 4)
    return octets.T[:width].tobytes()


class _Body:
    """What is left to be read of a blob."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.head: tuple[int, int, int, int] = _HEAD.unpack_from(data)
        self._at = _HEAD.size

    def take(self, count: int, kind: str) -> NDArray[Any]:
        """The next numbers; TypeError if there are fewer."""
        part: NDArray[Any] = np.ndarray((count,), kind, self._data, self._at)
        self._at += part.nbytes
        return part

    def planes(self, count: int, width: int, kind: str) -> NDArray[Any]:
        """The next numbers of four bytes, of which `width` are stored."""
        octets = np.zeros((count, 4), np.uint8)
        octets[:, :width] = self.take(width * count, "u1").reshape(width, count).T
        return octets.reshape(-1).view(kind)
