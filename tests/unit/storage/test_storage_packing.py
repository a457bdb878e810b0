"""Bodies at rest: every byte comes back, whatever the batch looks like, and what batches repeat costs nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from twinmesh.type.v1 import observation_pb2 as pb
from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_storage.domain.packing import Packer

T0 = 1_700_000_000_000_000
KEYS = tuple(
    SeriesKey(twin_id=f"pump-{i}", channel="temperature", unit="Cel", series_id=i + 1, kind=ChannelKind.GAUGE)
    for i in range(100)
)
PACKER = Packer()
ORDERS = st.sampled_from(["rounds", "series", "any"])


@st.composite
def columns(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], int]:
    """Return handles and times as senders give them: round by round, series by series, or in no order."""
    series, rounds = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    handle, tick = np.arange(series, dtype=np.uint32), np.arange(rounds) * draw(st.sampled_from([0, 1, 1_000_000]))
    order = draw(ORDERS)
    if order == "rounds":
        return np.tile(handle, rounds), T0 + np.repeat(tick, series), series * rounds
    if order == "series":
        return np.repeat(handle, rounds), T0 + np.tile(tick, series), series * rounds
    n = draw(st.integers(1, 60))
    shuffled = draw(st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n))
    times = draw(st.lists(st.integers(-(2**62), 2**62), min_size=n, max_size=n))
    return np.array(shuffled, np.uint32), np.array(times, np.int64), n


@st.composite
def batches(draw: st.DrawFn) -> ObservationBatch:
    def section(values: st.SearchStrategy[Any]) -> tuple[Any, Any, list[Any], list[int] | None]:
        handle, time, n = draw(columns())
        few = draw(st.lists(values, min_size=1, max_size=n))
        quality = [draw(st.integers(0, 3)) for _ in range(n)] if draw(st.booleans()) else None
        return handle, time, [few[i % len(few)] for i in range(n)], quality

    decimals = st.integers(-(10**6), 10**6).map(lambda i: i / 100)
    return ObservationBatch(
        series=KEYS[: draw(st.integers(0, len(KEYS)))],
        doubles=double_section(*section(st.one_of(decimals, st.floats(width=64)))),
        int64s=int64_section(*section(st.integers(-(2**63), 2**63 - 1))),
        bools=bool_section(*section(st.booleans())),
        texts=text_section(*section(st.text(max_size=20))),
    )


@given(batches())
def test_every_byte_comes_back(batch: ObservationBatch) -> None:
    body = wire.encode(batch)
    stored = PACKER.pack(body)
    assert PACKER.unpack(stored) == body
    assert Packer().unpack(stored) == body  # nothing but the stored bytes is needed
    assert len(stored) <= len(body)


@given(batches(), batches(), st.binary(max_size=16))
def test_what_is_laid_out_in_another_way_comes_back_too(
    one: ObservationBatch, two: ObservationBatch, tail: bytes
) -> None:
    first, second = wire.encode(one), wire.encode(two)
    for body in (first + second, first + tail, first[: len(first) // 2], second + first + tail):
        assert PACKER.unpack(PACKER.pack(body)) == body


def test_columns_out_of_order_come_back_out_of_order() -> None:
    body = wire.encode(
        ObservationBatch(
            series=KEYS,
            doubles=double_section(np.tile(np.arange(100), 5), T0 + np.repeat(np.arange(5), 100), np.full(500, 1.5)),
        )
    )
    section = pb.ObservationBatch.FromString(body).doubles.SerializeToString()
    starts = [
        bytes([number << 3 | wire.LEN]) + wire.encode_varint(end - start)
        for number, _, start, end in wire.fields(section)
    ]
    columns = [head + section[start:end] for head, (_, _, start, end) in zip(starts, wire.fields(section), strict=True)]
    assert b"".join(columns) == section
    turned = b"".join(reversed(columns))
    odd = wire.encode_dictionary(KEYS) + bytes([2 << 3 | wire.LEN]) + wire.encode_varint(len(turned)) + turned
    assert PACKER.unpack(PACKER.pack(odd)) == odd
    assert pb.ObservationBatch.FromString(odd) == pb.ObservationBatch.FromString(body)


def test_live_telemetry_takes_a_tenth_of_its_room() -> None:
    rng = np.random.default_rng(1)
    values = np.round(20 + rng.normal(size=10_000), 2)
    handle, second = np.tile(np.arange(100), 100), np.repeat(np.arange(100), 100) * 1_000_000
    body = wire.encode(ObservationBatch(series=KEYS, doubles=double_section(handle, T0 + second, values)))
    assert len(PACKER.pack(body)) < len(body) / 8
    # The worst values there are still leave out handles and times.
    body = wire.encode(
        ObservationBatch(series=KEYS, doubles=double_section(handle, T0 + second, rng.normal(size=10_000)))
    )
    assert len(PACKER.pack(body)) < len(body) / 2


def test_a_small_body_stays_as_it_is() -> None:
    body = wire.encode(ObservationBatch(series=KEYS[:1], doubles=double_section([0], [T0], [1.0])))
    assert PACKER.pack(body) is body
    assert PACKER.unpack(b"") == b""
