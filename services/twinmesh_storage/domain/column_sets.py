"""One column of many blocks packed at once: the very bytes that `columns` gives for each block by itself.

A fold makes thousands of blocks, and the calls that pack one of them cost some 50 us before a value is looked at. Here
each question (one value? runs? short decimals? how wide?) is asked of the rows of all blocks together, so a block costs
the joining of its bytes; blocks of forms that telemetry rarely has are packed one by one. numpy leaves the interpreter
to others meanwhile.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain import columns

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Edges = npt.NDArray[np.intp]
"""First row of each block, and the row count: every block has at least one row."""

_SAMPLES: Final = 8
_FRAME_HEAD: Final = 10
_DELTA_HEAD: Final = 18
_RUN_BYTES: Final = 4  # a run's length
_NONE: Final = -1


def pack_times(ts: Int64s, edges: Edges) -> list[bytes]:
    """Return `columns.encode_times` of each block."""
    rows = _Rows(ts, edges, frames=False)
    even = (rows.sizes > 1) & (rows.step_low == rows.step_high)
    first, step = ts[rows.starts].tolist(), rows.step_low.tolist()
    packed = [columns.even_times(t, s) if e else b"" for t, s, e in zip(first, step, even.tolist(), strict=True)]
    rows.pack_deltas(packed, (rows.sizes > 1) & ~even & (rows.delta_width > 0))
    return _the_rest(packed, ts, edges, columns.encode_times)


def pack_ints(values: Int64s, edges: Edges) -> list[bytes]:
    """Return `columns.encode_ints` of each block."""
    rows = _Rows(values, edges)
    packed, runs = _constants(values, rows)
    framed, stepped = rows.shorter()
    rows.pack_frames(packed, ~runs & framed)
    rows.pack_deltas(packed, ~runs & stepped)
    rows.pack_raw(packed, ~(runs | framed | stepped))
    return _the_rest(packed, values, edges, columns.encode_ints)


def pack_doubles(bits: Int64s, edges: Edges) -> list[bytes]:
    """Return `columns.encode_doubles` of each block; float64 values as their bits."""
    rows = _Rows(bits, edges, frames=False, steps=False)
    packed, runs = _constants(bits, rows)
    exponents = _exponents(bits, rows, ~runs)
    rows.pack_raw(packed, ~runs & (exponents == _NONE))
    for exponent in np.unique(exponents[exponents >= 0]).tolist():
        chosen = np.flatnonzero(exponents == exponent)
        mine, sizes = rows.of(chosen)
        scaled = np.rint(bits[mine].view(np.float64) * 10.0**exponent).astype(np.int64)
        part = _Rows(scaled, np.append(0, np.cumsum(sizes)))
        framed, stepped = part.shorter()
        found = [b""] * len(chosen)
        part.pack_frames(found, framed, bytes([columns.DECIMAL, exponent]))
        part.pack_deltas(found, stepped, bytes([columns.SLOPE, exponent]))
        for block, column in zip(chosen.tolist(), found, strict=True):
            packed[block] = column
    return _the_rest(packed, bits, edges, columns.encode_doubles)


def pack_bytes(values: npt.NDArray[np.uint8], edges: Edges) -> list[bytes]:
    """Return `columns.encode_bytes` of each block."""
    starts = edges[:-1]
    constant = np.minimum.reduceat(values, starts) == np.maximum.reduceat(values, starts)
    packed = [
        columns.constant_byte(value) if same else b""
        for value, same in zip(values[starts].tolist(), constant.tolist(), strict=True)
    ]
    return _the_rest(packed, values, edges, columns.encode_bytes)


class _Rows:
    """Values of many blocks, and how wide what packs them must be; width 0 = it does not fit.

    Args:
        values: int64 [n].
        edges: of the blocks.
        frames: False = none is packed as a frame.
        steps: False = none is packed by its differences.
    """

    def __init__(self, values: Int64s, edges: Edges, *, frames: bool = True, steps: bool = True) -> None:
        self.starts, self.sizes = edges[:-1], np.diff(edges)
        self._values, self._edges = values, edges
        if frames:
            self.low = np.minimum.reduceat(values, self.starts)
            self.frame_width = _widths(self.low, np.maximum.reduceat(values, self.starts))
        if steps:
            self._find_steps(values, edges)

    def _find_steps(self, values: Int64s, edges: Edges) -> None:
        # Differences that do not fit 64 bits wrap, there and back. What lies between two blocks is no step of either.
        steps = np.empty(len(values), np.int64)
        np.subtract(values[1:], values[:-1], out=steps[1:])
        second = np.minimum(self.starts + 1, edges[1:] - 1)
        steps[self.starts] = 0
        steps[self.starts] = steps[second]
        self._steps = steps
        self.step_low, self.step_high = (
            np.minimum.reduceat(steps, self.starts),
            np.maximum.reduceat(steps, self.starts),
        )
        self.delta_width = _widths(self.step_low, self.step_high)

    def of(self, blocks: npt.NDArray[np.intp]) -> tuple[slice | npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the rows of some blocks, one block after the other, and the blocks' sizes."""
        sizes = self.sizes[blocks]
        if len(blocks) == len(self.sizes):
            return slice(None), sizes
        ends = np.cumsum(sizes)
        return np.arange(ends[-1]) + np.repeat(self.starts[blocks] - (ends - sizes), sizes), sizes

    def shorter(self) -> tuple[Bools, Bools]:
        """Return which blocks a frame, and which differences, pack in fewer bytes; a frame where both do."""
        framed, stepped = self.frame_width > 0, self.delta_width > 0
        frame = _FRAME_HEAD + self.frame_width * self.sizes
        delta = _DELTA_HEAD + self.delta_width * (self.sizes - 1)
        return framed & (~stepped | (frame <= delta)), stepped & (~framed | (frame > delta))

    def pack_frames(self, packed: list[bytes], which: Bools, tag: bytes = bytes([columns.FRAME])) -> None:
        """Pack these blocks as FRAME, or as what has its payload behind another tag."""
        for width, dtype in columns.WIDTHS.items():
            blocks = np.flatnonzero(which & (self.frame_width == width))
            if not len(blocks):
                continue
            mine, sizes = self.of(blocks)
            low = self.low[blocks]
            data = (self._values[mine] - np.repeat(low, sizes)).astype(dtype).tobytes()
            end = 0
            for block, least, size in zip(blocks.tolist(), low.tolist(), (sizes * width).tolist(), strict=True):
                start, end = end, end + size
                packed[block] = b"".join((tag, struct.pack("<qB", least, width), data[start:end]))

    def pack_deltas(self, packed: list[bytes], which: Bools, tag: bytes = bytes([columns.DELTA])) -> None:
        """Pack these blocks as DELTA, or as what has its payload behind another tag."""
        for width, dtype in columns.WIDTHS.items():
            blocks = np.flatnonzero(which & (self.delta_width == width))
            if not len(blocks):
                continue
            mine, sizes = self.of(blocks)
            low = self.step_low[blocks]
            data = (self._steps[mine] - np.repeat(low, sizes)).astype(dtype).tobytes()
            firsts = self._values[self.starts[blocks]].tolist()
            end = 0
            for block, first, least, size in zip(
                blocks.tolist(), firsts, low.tolist(), (sizes * width).tolist(), strict=True
            ):
                start, end = end, end + size
                head = struct.pack("<qqB", first, least, width)
                packed[block] = b"".join((tag, head, data[start + width : end]))  # the first row is no step

    def pack_raw(self, packed: list[bytes], which: Bools) -> None:
        """Pack these blocks as RAW."""
        blocks = np.flatnonzero(which)
        if not len(blocks):
            return
        mine, sizes = self.of(blocks)
        data = self._values[mine].astype("<i8", copy=False).tobytes()
        tag = bytes([columns.RAW])
        end = 0
        for block, size in zip(blocks.tolist(), (sizes * 8).tolist(), strict=True):
            start, end = end, end + size
            packed[block] = tag + data[start:end]


def _widths(low: Int64s, high: Int64s) -> Int64s:
    """Return how many bytes hold 0..high - low: 1, 2 or 4; 0 = more."""
    span = high.view(np.uint64) - low.view(np.uint64)
    return np.select([span < 1 << 8, span < 1 << 16, span < 1 << 32], [1, 2, 4], 0)


def _constants(values: Int64s, rows: _Rows) -> tuple[list[bytes], Bools]:
    """Return the blocks of one value, packed, the others empty; and which blocks are of runs (one is one, too)."""
    changes = np.empty(len(values), np.int64)
    np.not_equal(values[1:], values[:-1], out=changes[1:], casting="unsafe")
    changes[rows.starts] = 1
    runs = np.add.reduceat(changes, rows.starts)
    one = runs == 1
    packed = [
        columns.constant_int(value) if same else b""
        for value, same in zip(values[rows.starts].tolist(), one.tolist(), strict=True)
    ]
    return packed, one | (runs * (8 + _RUN_BYTES) * 4 <= rows.sizes * 8)


def _exponents(bits: Int64s, rows: _Rows, wanted: Bools) -> Int64s:
    """Return the decimals that each block's values were rounded to; -1 = they were not, or it is not wanted."""
    found = np.full(len(rows.sizes), _NONE, np.int64)
    values = bits.view(np.float64)
    left = np.flatnonzero(wanted)
    # A few rows of each block rule out most exponents.
    each = (rows.sizes[left, None] * np.arange(_SAMPLES) // _SAMPLES + rows.starts[left, None]).astype(np.intp)
    for exponent in range(columns.MAX_EXPONENT + 1):
        if not len(left):
            break
        sampled = _are_decimals(values, bits, each.ravel(), 10.0**exponent).reshape(each.shape)
        likely: Bools = np.logical_and.reduce(sampled, axis=1)
        blocks = left[likely]
        if len(blocks):
            mine, sizes = rows.of(blocks)
            right = np.logical_and.reduceat(_are_decimals(values, bits, mine, 10.0**exponent), np.cumsum(sizes) - sizes)
            found[blocks[right]] = exponent
            likely[likely] = right
        left, each = left[~likely], each[~likely]
    return found


def _are_decimals(
    values: npt.NDArray[np.float64], bits: Int64s, rows: slice | npt.NDArray[np.intp], scale: float
) -> Bools:
    chosen = values[rows]
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.rint(chosen * scale)
        exact = np.abs(chosen) * scale < columns.EXACT  # not of NaN
        # As the reader restores it: from an integer, which knows no -0.0.
        restored = (scaled + 0.0) / scale
    exact &= restored.view(np.int64) == bits[rows]
    return exact


def _the_rest(packed: list[bytes], values: npt.NDArray[Any], edges: Edges, encode: Any) -> list[bytes]:
    """Pack one by one what is not packed yet."""
    for block, column in enumerate(packed):
        if not column:
            packed[block] = encode(values[edges[block] : edges[block + 1]])
    return packed
