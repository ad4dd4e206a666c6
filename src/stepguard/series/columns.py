"""Frames in columns: some frames of an attempt as a few bytes, signal by signal, every float bit for bit.

A reader unpacks the columns that it wants and no others; histograms, half of all bytes, lie apart. In a
column the readings of a layer stand side by side, and the bytes of the numbers are sorted by significance
before zlib sees them, since signs and exponents of such neighbours look alike and their last bits never do.
Names are numbers that the run file explains once.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.series.blocks import Bits, Block, Column
from stepguard.signals import HIST_BINS, Frame, Vector

_HEAD = struct.Struct("<IIHH")
"""Frames, layers, scalars, vectors; then follow the names' numbers, the parts' lengths, the parts."""
_HIST_HEAD = struct.Struct("<IIB")
"""Frames, layers, and how many bytes a count takes."""
_LEVEL = 1
"""Of zlib: higher ones save 4 % and take three times as long."""
_DAMAGED = "expected columns of frames, got damaged bytes"


def encode(frames: Sequence[Frame], number: Callable[[str], int]) -> tuple[bytes, bytes | None]:
    """Frames of one attempt, and their histograms apart; None where no frame has one.

    `number` gives each name its number. ValueError if frames do not have the same layers throughout.
    """
    layers = _layers(frames)
    scalars = dict.fromkeys(name for frame in frames for name in frame.scalars)
    vectors = dict.fromkeys(name for frame in frames for name in frame.vectors)
    steps = np.array([frame.step for frame in frames], "<i8")
    parts = [_pack(_planes(np.diff(steps, prepend=0)))]
    parts += [_pack(_scalar([frame.scalars.get(name) for frame in frames])) for name in scalars]
    for name in vectors:
        parts += map(_pack, _vector([frame.vectors.get(name) for frame in frames]))
    data = (
        _HEAD.pack(len(frames), layers, len(scalars), len(vectors)),
        np.array([number(name) for name in (*scalars, *vectors)], "<u2").tobytes(),
        np.array([len(part) for part in parts], "<u4").tobytes(),
        *parts,
    )
    return b"".join(data), _histograms(frames, layers)


def _layers(frames: Sequence[Frame]) -> int:
    """How many layers the frames have."""
    layers: int | None = None
    for frame in frames:
        sizes = {len(part) for vector in frame.vectors.values() for part in vector}
        sizes |= set() if frame.hist is None else {len(frame.hist)}
        sizes |= set() if layers is None else {layers}
        if len(sizes) > 1:
            raise ValueError(
                f"frame of step {frame.step}: expected {layers or max(sizes)} layers in every vector and"
                f" histogram, got {' and '.join(map(str, sorted(sizes)))}"
            )
        layers = next(iter(sizes), layers)
    return layers or 0


def _scalar(readings: Sequence[float | None]) -> bytes:
    present = np.array([reading is not None for reading in readings])
    values = np.array([reading for reading in readings if reading is not None], "<f8")
    return np.packbits(present).tobytes() + _planes(values)


def _vector(readings: Sequence[Vector | None]) -> tuple[bytes, bytes]:
    """The upper two bytes of the numbers with what is known, and the lower two."""
    there = [reading for reading in readings if reading is not None]
    present = np.array([reading is not None for reading in readings])
    known = np.array([reading.known for reading in there], np.bool_).T
    planes = _planes(np.array([reading.values for reading in there], "<f4").T)
    half = len(planes) // 2
    return np.packbits(present).tobytes() + np.packbits(known).tobytes() + planes[half:], planes[:half]


def _histograms(frames: Sequence[Frame], layers: int) -> bytes | None:
    there = [frame.hist for frame in frames if frame.hist is not None]
    if not there:
        return None
    present = np.packbits(np.array([frame.hist is not None for frame in frames])).tobytes()
    counts = np.array(there, "<i4").view("<u4")
    width = (int(counts.max(initial=0)).bit_length() + 7) // 8
    planes = _planes(counts.transpose(2, 1, 0))  # equal bins of equal layers side by side
    kept = planes[: len(planes) // 4 * width]
    return _HIST_HEAD.pack(len(frames), layers, width) + present + zlib.compress(kept, _LEVEL)


def _planes(values: NDArray[Any]) -> bytes:
    """The bytes of numbers: first the lowest of all of them."""
    octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return octets.reshape(-1, values.dtype.itemsize).T.tobytes()


def _pack(part: bytes) -> bytes:
    """The part compressed; or as it is, if that does not make it smaller. The first byte tells."""
    packed = zlib.compress(part, _LEVEL)
    return b"\1" + packed if len(packed) < len(part) else b"\0" + part


def _unpack(part: bytes) -> bytes:
    return zlib.decompress(part[1:]) if part[:1] == b"\1" else part[1:]


def decode(
    data: bytes, names: Mapping[int, str], signals: Collection[str] | None = None, hist: bytes | None = None
) -> Block:
    """The block that was encoded, with all its signals or some of them.

    ValueError, LookupError, TypeError, struct.error or zlib.error if damaged.
    """
    frames, layers, scalars, vectors = _HEAD.unpack_from(data)
    at = _HEAD.size
    numbers = np.ndarray((scalars + vectors,), "<u2", data, at)
    called = [names[number] for number in numbers.tolist()]
    at += numbers.nbytes
    lengths = np.ndarray((1 + scalars + 2 * vectors,), "<u4", data, at)
    bounds = np.cumsum((at + lengths.nbytes, *lengths.tolist())).tolist()
    if bounds[-1] != len(data):
        raise ValueError(_DAMAGED)
    parts = [data[begin:end] for begin, end in pairwise(bounds)]
    steps = np.cumsum(_numbers(_unpack(parts[0]), frames, "<i8"))
    read_scalars, read_vectors = dict[str, Column](), dict[str, Column]()
    for place, name in enumerate(called):
        if signals is not None and name not in signals:
            continue
        if place < scalars:
            read_scalars[name] = _read_scalar(parts[1 + place], frames)
        else:
            first = 1 + scalars + 2 * (place - scalars)
            read_vectors[name] = _read_vector(parts[first], parts[first + 1], frames, layers)
    counts, present = (None, np.zeros(frames, np.bool_)) if hist is None else _read_hist(hist, frames, layers)
    return Block(steps, read_scalars, read_vectors, counts, present)


def _read_scalar(part: bytes, frames: int) -> Column:
    whole = _unpack(part)
    present = _bits(whole, frames)
    count = int(present.sum())
    read = _numbers(whole[_octets(frames) :], count, "<f8")
    if count == frames:
        return Column(read, present, present)
    values = np.full(frames, np.nan)
    values[present] = read
    return Column(values, present, present)


def _read_vector(upper: bytes, lower: bytes, frames: int, layers: int) -> Column:
    whole = _unpack(upper)
    present = _bits(whole, frames)
    there = int(present.sum())
    cells, at = there * layers, _octets(frames)
    known = _bits(whole[at:], cells).reshape(layers, there).T
    planes = _unpack(lower) + whole[at + _octets(cells) :]
    read = _numbers(planes, cells, "<f4").reshape(layers, there).T
    if there == frames:
        return Column(np.ascontiguousarray(read), np.ascontiguousarray(known), present)
    values, measured = np.full((frames, layers), np.nan, np.float32), np.zeros((frames, layers), np.bool_)
    values[present], measured[present] = read, known
    return Column(values, measured, present)


def _read_hist(data: bytes, frames: int, layers: int) -> tuple[NDArray[np.int32], Bits]:
    head = _HIST_HEAD.unpack_from(data)
    if head[:2] != (frames, layers):
        raise ValueError(_DAMAGED)
    present = _bits(data[_HIST_HEAD.size :], frames)
    there = int(present.sum())
    cells = there * layers * (HIST_BINS + 1)
    kept = zlib.decompress(data[_HIST_HEAD.size + _octets(frames) :])
    counts = _numbers(kept + bytes(cells * (4 - head[2])), cells, "<i4")
    hist = np.zeros((frames, layers, HIST_BINS + 1), np.int32)
    hist[present] = counts.reshape(HIST_BINS + 1, layers, there).transpose(2, 1, 0)
    return hist, present


def _octets(bits: int) -> int:
    return -(-bits // 8)


def _bits(data: bytes, count: int) -> Bits:
    return np.unpackbits(np.frombuffer(data, np.uint8, _octets(count)), count=count).astype(np.bool_)


def _numbers(planes: bytes, count: int, kind: str) -> NDArray[Any]:
    """The numbers whose bytes were sorted; ValueError if there are more or fewer."""
    octets = np.frombuffer(planes, np.uint8).reshape(np.dtype(kind).itemsize, count)
    return np.ascontiguousarray(octets.T).reshape(-1).view(kind)
