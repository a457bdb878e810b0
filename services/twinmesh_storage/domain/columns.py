"""How a column of a block is packed: little-endian bytes behind a one-byte tag, always exactly reversible.

Each encoder tries what telemetry usually is (constant, runs, evenly spaced, short decimal numbers) and keeps the
plain form when nothing fits. A reader needs the tag and the row count only, so new forms can be added beside these.

====  =======  ==================================================================================
tag   form     payload
====  =======  ==================================================================================
0     RAW      n values
1     CONST    one value
2     RUNS     u4 count k, k values, k u4 lengths
3     STEP     i8 start, i8 step
4     DELTA    i8 start, i8 smallest difference, u1 width, n - 1 unsigned: difference - smallest
5     FRAME    i8 smallest, u1 width, n unsigned: value - smallest
6     DECIMAL  u1 exponent e, then as FRAME of the integers value * 10**e
7     TEXT     n u4 end offsets, heap
8     SLOPE    u1 exponent e, then as DELTA of the integers value * 10**e
====  =======  ==================================================================================
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

RAW, CONST, RUNS, STEP, DELTA, FRAME, DECIMAL, TEXT, SLOPE = range(9)

WIDTHS: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
MAX_EXPONENT: Final = 6
EXACT: Final = 2.0**53  # integers up to here are exact in float64
_SAMPLE: Final = 16
_FRAME_HEAD: Final = 10
_DELTA_HEAD: Final = 18
_ENDLESS: Final = 1 << 62
_I8: Final = np.dtype("<i8")
_U4: Final = np.dtype("<u4")


def encode_times(ts: Int64s) -> bytes:
    """Pack increasing event times, int64 [n >= 1]."""
    if len(ts) == 1:
        return struct.pack("<Bq", CONST, int(ts[0]))
    steps = np.diff(ts)
    low, high = int(steps.min()), int(steps.max())
    if low == high:
        return struct.pack("<Bqq", STEP, int(ts[0]), low)
    return _encode_delta(ts) or bytes([RAW]) + ts.astype(_I8, copy=False).tobytes()


def even_times(start: int, step: int) -> bytes:
    """Return what `encode_times` gives for two or more evenly spaced times."""
    return struct.pack("<Bqq", STEP, start, step)


def constant_int(value: int) -> bytes:
    """Return what `encode_ints` gives for one value, however often."""
    return struct.pack("<Bq", CONST, value)


def constant_byte(value: int) -> bytes:
    """Return what `encode_bytes` gives for one value, however often."""
    return bytes([CONST, value])


def encode_ints(values: Int64s) -> bytes:
    """Pack any integers, int64 [n >= 1]."""
    packed = _encode_runs(values, _I8) or _encode_spans(values)
    return packed or bytes([RAW]) + values.astype(_I8, copy=False).tobytes()


def encode_doubles(bits: Int64s) -> bytes:
    """Pack float64 values given as their bits, int64 [n >= 1]; every bit is kept, of NaN and -0.0 too."""
    return _encode_runs(bits, _I8) or _encode_decimal(bits) or bytes([RAW]) + bits.astype(_I8, copy=False).tobytes()


def encode_bytes(values: npt.NDArray[np.uint8]) -> bytes:
    """Pack small numbers, uint8 [n >= 1]."""
    return _encode_runs(values, np.dtype("u1")) or bytes([RAW]) + values.tobytes()


def encode_texts(texts: npt.NDArray[Any]) -> bytes:
    """Pack byte strings, object [n >= 1]."""
    ends = np.cumsum([len(t) for t in texts], dtype=np.int64).astype(_U4)
    return b"".join([bytes([TEXT]), ends.tobytes(), *texts])


def decode_ints(data: bytes, n: int) -> Int64s:
    """Unpack what `encode_times`, `encode_ints` or `encode_doubles` (as bits) packed, int64 [n]."""
    tag = data[0]
    if tag == RAW:
        return np.frombuffer(data, _I8, n, 1)
    if tag == CONST:
        return np.full(n, struct.unpack_from("<q", data, 1)[0], np.int64)
    if tag == RUNS:
        return _decode_runs(data, _I8)
    if tag == STEP:
        start, step = struct.unpack_from("<qq", data, 1)
        evenly: Int64s = start + step * np.arange(n, dtype=np.int64)
        return evenly
    if tag == DELTA:
        return _decode_delta(data, 1, n)
    if tag == FRAME:
        return _decode_frame(data, 1, n)
    if tag == DECIMAL:
        return (_decode_frame(data, 2, n) / 10.0 ** data[1]).view(np.int64)
    if tag == SLOPE:
        return (_decode_delta(data, 2, n) / 10.0 ** data[1]).view(np.int64)
    raise ValueError(f"column tag {tag} is not known")


def decode_bytes(data: bytes, n: int) -> npt.NDArray[np.uint8]:
    """Unpack what `encode_bytes` packed, uint8 [n]."""
    if data[0] == RAW:
        return np.frombuffer(data, np.uint8, n, 1)
    if data[0] == CONST:
        return np.full(n, data[1], np.uint8)
    return _decode_runs(data, np.dtype("u1"))


def decode_texts(data: bytes, n: int) -> npt.NDArray[Any]:
    """Unpack what `encode_texts` packed, object [n] of bytes."""
    ends = np.frombuffer(data, _U4, n, 1).tolist()
    heap = 1 + 4 * n
    out = np.empty(n, object)
    start = 0
    for row, end in enumerate(ends):
        out[row] = data[heap + start : heap + end]
        start = end
    return out


def _width(span: int) -> int | None:
    """Return how many bytes hold 0..span: 1, 2 or 4; None = more."""
    return 1 if span < 1 << 8 else 2 if span < 1 << 16 else 4 if span < 1 << 32 else None


def _encode_runs(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> bytes | None:
    n = len(values)
    starts = np.flatnonzero(values[1:] != values[:-1])
    runs = len(starts) + 1
    if runs == 1:
        return bytes([CONST]) + values[:1].astype(dtype, copy=False).tobytes()
    if runs * (dtype.itemsize + 4) * 4 > n * dtype.itemsize:
        return None
    edges = np.concatenate(([0], starts + 1, [n]))
    heads = values[edges[:-1]].astype(dtype, copy=False).tobytes()
    return struct.pack("<BI", RUNS, runs) + heads + np.diff(edges).astype(_U4).tobytes()


def _decode_runs(data: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    (runs,) = struct.unpack_from("<I", data, 1)
    heads = np.frombuffer(data, dtype, runs, 5)
    return np.repeat(heads, np.frombuffer(data, _U4, runs, 5 + runs * dtype.itemsize))


def _encode_spans(values: Int64s, frame: bytes = bytes([FRAME]), delta: bytes = bytes([DELTA])) -> bytes | None:
    """Pack two or more values as FRAME or as DELTA, whichever is shorter, behind these tags; None = they fit neither.

    Differences that do not fit 64 bits wrap, there and back.
    """
    n, low = len(values), int(values.min())
    width = _width(int(values.max()) - low)
    framed = _FRAME_HEAD + width * n if width else _ENDLESS
    if width == 1:
        return _frame(values, low, width, frame)  # differences need a longer head, and no less for each value
    steps = values[1:] - values[:-1]
    least = int(steps.min())
    step_width = _width(int(steps.max()) - least)
    stepped = _DELTA_HEAD + step_width * (n - 1) if step_width else _ENDLESS
    if width and framed <= stepped:
        return _frame(values, low, width, frame)
    if not step_width:
        return None
    packed = np.subtract(steps, least, out=steps).astype(WIDTHS[step_width]).tobytes()
    return b"".join((delta, struct.pack("<qqB", int(values[0]), least, step_width), packed))


def _frame(values: Int64s, low: int, width: int, tag: bytes) -> bytes:
    return b"".join((tag, struct.pack("<qB", low, width), (values - low).astype(WIDTHS[width]).tobytes()))


def _decode_frame(data: bytes, at: int, n: int) -> Int64s:
    low, width = struct.unpack_from("<qB", data, at)
    values: Int64s = np.frombuffer(data, WIDTHS[width], n, at + 9).astype(np.int64) + low
    return values


def _encode_delta(values: Int64s) -> bytes | None:
    """Pack values by the differences of neighbours; differences that do not fit 64 bits wrap, there and back."""
    steps = np.diff(values)
    low, high = int(steps.min()), int(steps.max())
    width = _width(high - low)
    if width is None:
        return None
    packed = (steps - low).astype(WIDTHS[width]).tobytes()
    return struct.pack("<BqqB", DELTA, int(values[0]), low, width) + packed


def _decode_delta(data: bytes, at: int, n: int) -> Int64s:
    start, low, width = struct.unpack_from("<qqB", data, at)
    out = np.empty(n, np.int64)
    out[0] = start
    np.cumsum(np.frombuffer(data, WIDTHS[width], n - 1, at + 17).astype(np.int64) + low, out=out[1:])
    out[1:] += start
    return out


def _encode_decimal(bits: Int64s) -> bytes | None:
    """Pack values that a sensor rounded to a few decimals; the division restores each one to the bit."""
    values = bits.view(np.float64)
    most = float(np.abs(values).max())
    if not math.isfinite(most):
        return None
    sample = slice(None, None, max(1, len(values) // _SAMPLE))
    few, few_bits = values[sample], bits[sample]
    for exponent in range(MAX_EXPONENT + 1):
        scale = 10.0**exponent
        if most * scale >= EXACT:
            return None
        if _scaled(few, few_bits, scale) is None:
            continue
        scaled = _scaled(values, bits, scale)
        if scaled is not None:
            return _encode_spans(
                scaled.astype(np.int64), frame=bytes([DECIMAL, exponent]), delta=bytes([SLOPE, exponent])
            )
    return None


def _scaled(values: npt.NDArray[np.float64], bits: Int64s, scale: float) -> npt.NDArray[np.float64] | None:
    """Return the whole numbers that the values are of 1 / scale; None = not all are."""
    scaled = values * scale
    np.rint(scaled, out=scaled)
    scaled += 0.0  # an integer knows no -0.0
    return scaled if ((scaled / scale).view(np.int64) == bits).all() else None
