"""The columnar codec against protobuf itself: same bytes out, same rows in, same refusals."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from twinmesh.type.v1 import observation_pb2 as pb
from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    TextSection,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_runtime.observation_codec import batch_from_message, decode_batch, message_from_batch

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=12)
KEYS = st.builds(
    SeriesKey,
    twin_id=TEXT,
    channel=TEXT,
    unit=TEXT,
    series_id=INT64,
    twin_type_id=TEXT,
    twin_type_version=st.integers(-(2**31), 2**31 - 1),
    kind=st.sampled_from(ChannelKind),
)


@st.composite
def sections(draw, values):
    n = draw(st.integers(0, 20))
    column = lambda element: draw(st.lists(element, min_size=n, max_size=n))  # noqa: E731
    quality = column(st.integers(0, 255)) if draw(st.booleans()) else [0] * n
    return column(st.integers(0, 2**32 - 1)), column(INT64), column(values), quality


@st.composite
def batches(draw):
    texts = lambda: text_section(*draw(sections(st.binary(max_size=8))))  # noqa: E731
    return ObservationBatch(
        series=tuple(draw(st.lists(KEYS, max_size=4))),
        doubles=double_section(*draw(sections(st.floats(width=64)))),
        int64s=int64_section(*draw(sections(INT64))),
        bools=bool_section(*draw(sections(st.booleans()))),
        texts=texts(),
        jsons=texts(),
    )


def typed(batch: ObservationBatch) -> pb.ObservationBatch:
    """Fill the typed message field by field: the independent road."""
    message = pb.ObservationBatch()
    for key in batch.series:
        message.series.add(
            twin_id=key.twin_id,
            channel=key.channel,
            unit=key.unit,
            series_id=key.series_id,
            twin_type_id=key.twin_type_id,
            twin_type_version=key.twin_type_version,
            kind=int(key.kind),
        )
    for name, section in batch.sections():
        if not len(section):
            continue
        target = getattr(message, name)
        target.series.extend(section.series.tolist())
        target.time_unix_us.extend(section.time_unix_us.tolist())
        if section.quality.any():
            target.quality = section.quality.tobytes()
        if isinstance(section, TextSection):
            target.end_offset.extend(section.end_offset.tolist())
            target.heap = section.heap
        elif name == "bools":
            target.value = section.values.tobytes()
        else:
            target.value.extend(section.values.tolist())
    return message


def rows(batch: ObservationBatch) -> list[object]:
    out: list[object] = [batch.series]
    for name, section in batch.sections():
        values = list(section.texts()) if isinstance(section, TextSection) else section.values.tobytes()
        out.append((name, section.series.tolist(), section.time_unix_us.tolist(), section.quality.tolist(), values))
    return out


def typed_rows(data: bytes) -> list[object]:
    """Read the bytes with the typed parser only, one Python value at a time."""
    m = pb.ObservationBatch.FromString(data)
    out: list[object] = [
        tuple(
            SeriesKey(
                twin_id=k.twin_id,
                channel=k.channel,
                unit=k.unit,
                series_id=k.series_id,
                twin_type_id=k.twin_type_id,
                twin_type_version=k.twin_type_version,
                kind=ChannelKind.of(k.kind),
            )
            for k in m.series
        )
    ]
    for name in ("doubles", "int64s", "bools", "texts", "jsons"):
        s = getattr(m, name)
        values: object
        if name in ("texts", "jsons"):
            starts = [0, *s.end_offset]
            values = [s.heap[a:b] for a, b in zip(starts, s.end_offset, strict=False)]
        elif name == "bools":
            values = s.value
        else:
            values = struct.pack(f"<{len(s.value)}{'d' if name == 'doubles' else 'q'}", *s.value)
        quality = list(s.quality) if s.quality else [0] * len(s.series)
        out.append((name, list(s.series), list(s.time_unix_us), quality, values))
    return out


def varint(n: int) -> bytes:
    return wire.encode_varint(n)


def record(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(payload)) + payload


def scrambled_section(data: bytes, text: bool, rnd: random.Random) -> bytes:
    """The same rows in another legal encoding: columns split, unpacked, interleaved, unknown fields between."""
    pieces: dict[int, list[bytes]] = {}
    for number, _, start, end in wire.fields(data):
        payload = data[start:end]
        width = {1: 4, 2: 8, 4: 4 if text else 8}.get(number, 0)
        if not width or (number == 4 and len(payload) % width):
            pieces[number] = [record(number, payload)]
            continue
        out: list[bytes] = []
        values = [payload[i : i + width] for i in range(0, len(payload), width)]
        while values:
            take = rnd.randint(1, len(values))
            chunk, values = values[:take], values[take:]
            if rnd.random() < 0.5:
                out.append(record(number, b"".join(chunk)))
            else:
                tag = bytes([number << 3 | (5 if width == 4 else 1)])
                out.append(b"".join(tag + v for v in chunk))
        pieces[number] = out
    merged = b""
    while pieces:
        number = rnd.choice(list(pieces))
        merged += pieces[number].pop(0)
        if not pieces[number]:
            del pieces[number]
        if rnd.random() < 0.2:
            merged += record(15, b"unknown") + bytes([14 << 3]) + varint(rnd.getrandbits(60))
    return merged


def scrambled(data: bytes, rnd: random.Random) -> bytes:
    keys, others = [], []
    for number, _, start, end in wire.fields(data):
        payload = data[start:end]
        if number == 1:
            keys.append(record(1, payload + (record(15, b"x") if rnd.random() < 0.2 else b"")))
        elif number == 4:
            others.append(record(4, payload))
        else:
            others.append(record(number, scrambled_section(payload, number in (5, 6), rnd)))
    out = b""
    while keys or others:
        source = rnd.choice([s for s in (keys, others) if s])
        out += source.pop(0 if source is keys else rnd.randrange(len(source)))
    return out


@given(batches())
def test_encoder_writes_the_bytes_of_protobuf(batch):
    assert wire.encode(batch) == typed(batch).SerializeToString()


@given(batches())
def test_decoding_what_was_encoded_gives_the_batch(batch):
    walked = wire.walk(wire.encode(batch))
    assert walked is not None
    assert rows(walked) == rows(batch)


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_other_legal_encodings_give_the_same_rows(batch, rnd):
    data = scrambled(wire.encode(batch), rnd)
    assert rows(decode_batch(data)) == typed_rows(data) == rows(batch)


@given(batches(), st.data())
@settings(max_examples=150)
def test_damaged_bytes_are_read_as_protobuf_reads_them_or_refused(batch, data):
    encoded = bytearray(wire.encode(batch))
    if encoded and data.draw(st.booleans()):
        del encoded[data.draw(st.integers(0, len(encoded) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if encoded:
            encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    assert_same_verdict(bytes(encoded))


@given(st.binary(max_size=200))
def test_random_bytes_are_read_as_protobuf_reads_them_or_refused(data):
    assert_same_verdict(data)


def assert_same_verdict(data: bytes) -> None:
    try:
        expected = typed_rows(data)
    except DecodeError:
        with pytest.raises(InvalidArgument) as refused:
            decode_batch(data)
        assert refused.value.reason == "MALFORMED_MESSAGE"
        return
    refusal: InvalidArgument | None = None
    try:
        found = rows(decode_batch(data))
    except InvalidArgument as error:
        refusal = error
    if refusal is not None:
        # The bytes are a message, but its columns contradict each other.
        assert refusal.reason in ("UNEQUAL_COLUMNS", "INVALID_FIELD")
        assert refusal.field_violations[0].field.startswith("batch.")
        return
    assert found == expected


@given(batches())
def test_messages_and_batches_turn_into_each_other(batch):
    assert rows(batch_from_message(message_from_batch(batch))) == rows(batch)


def test_walk_refuses_a_repeated_section():
    batch = ObservationBatch(series=(SeriesKey(twin_id="t", channel="c"),), doubles=double_section([0], [1], [2.0]))
    data = wire.encode(batch)
    doubled = data + wire.encode(ObservationBatch(doubles=double_section([0], [2], [3.0])))
    assert wire.walk(doubled) is None
    assert decode_batch(doubled).doubles.values.tolist() == [2.0, 3.0]


def test_columns_are_views_of_the_message():
    batch = ObservationBatch(doubles=double_section([0] * 100, range(100), np.arange(100.0)))
    walked = wire.walk(wire.encode(batch))
    assert walked is not None
    assert not walked.doubles.values.flags.writeable
    assert walked.doubles.values.base is not None


def test_unequal_columns_are_named():
    message = pb.ObservationBatch()
    message.doubles.series.extend([0, 0])
    message.doubles.time_unix_us.extend([1, 2])
    message.doubles.value.extend([1.0])
    with pytest.raises(InvalidArgument) as refused:
        decode_batch(message.SerializeToString())
    assert refused.value.reason == "UNEQUAL_COLUMNS"
    assert "series 2, time_unix_us 2, quality 2, value 1" in refused.value.message
