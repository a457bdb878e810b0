"""Every legal encoding of what is walked, against the typed parser: the same content, or the same refusal.

A default run compares 100 random encodings of batches, 50 each of write and stream requests, 50 damaged ones of each of
the three, every truncation and seven changes of every byte of a full batch, 13 traps, 100 random byte strings, and 50
of each writer; the slow suite runs 1,000 of each of the first six.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.wire.encodings import scrambled
from tests.wire.test_observation_wire import assert_same_verdict, batches, rows, typed, typed_rows

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, observation_pb2
from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_ingestion.rpc.requests import BatchMessage, HelloMessage, WriteCall, read_stream, read_write
from twinmesh_runtime.observation_codec import decode_batch
from twinmesh_runtime.telemetry import counter
from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.frame_shelf import Frame
from twinmesh_storage.rpc import raw
from twinmesh_storage.rpc.concerns import twins_of

RANDOM = st.randoms(use_true_random=False)
REQUEST_IDS = st.text(max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


def check_batch(batch: ObservationBatch, rnd: Random) -> None:
    message = typed(batch)
    data = scrambled(message, rnd)
    # The scrambler is right: protobuf reads the same content from it.
    assert typed_rows(data) == rows(batch)
    assert rows(decode_batch(data)) == rows(batch)
    walked = wire.walk(data)
    assert walked is None or rows(walked) == rows(batch)
    entry = LogEntry(offset=1, tenant="t", kind=EntryKind.OBSERVATIONS, commit_time_unix_us=1, point_count=0, body=data)
    assert twins_of(entry) == frozenset(key.twin_id for key in batch.series)


def check_write(message: ingestion_pb2.WriteRequest, rnd: Random) -> None:
    data = scrambled(message, rnd)
    assert same_write(read_write(data), message)


def same_write(call: WriteCall, message: ingestion_pb2.WriteRequest) -> bool:
    if (call.batch is not None) != message.HasField("batch"):
        return False
    if call.batch is not None and typed_rows(call.batch) != typed_rows(message.batch.SerializeToString()):
        return False
    known = ingestion_pb2.WriteRequest(observations=call.observations)
    known.DiscardUnknownFields()  # type: ignore[attr-defined]  # missing in types-protobuf
    return (call.request_id, call.backfill, list(known.observations)) == (
        message.request_id,
        message.backfill,
        list(message.observations),
    )


def check_stream(message: ingestion_pb2.WriteStreamRequest, rnd: Random) -> None:
    found = read_stream(scrambled(message, rnd))
    assert same_stream(found, message)


def same_stream(found: HelloMessage | BatchMessage, message: ingestion_pb2.WriteStreamRequest) -> bool:
    if isinstance(found, HelloMessage):
        return bool(message.HasField("hello") and found.producer_id == message.hello.producer_id)
    batch = message.batch
    return bool(
        message.HasField("batch")
        and (found.sequence, found.backfill) == (batch.sequence, batch.backfill)
        and typed_rows(found.batch) == typed_rows(batch.batch.SerializeToString())
    )


@st.composite
def writes(draw: Any) -> ingestion_pb2.WriteRequest:
    message = ingestion_pb2.WriteRequest(request_id=draw(REQUEST_IDS), backfill=draw(st.booleans()))
    if draw(st.booleans()):
        message.batch.CopyFrom(typed(draw(batches())))
    for name in draw(st.lists(REQUEST_IDS, max_size=2)):
        message.observations.add(twin_id=name, channel="c", value=observation_pb2.Value(double_value=1.5))
    return message


@st.composite
def stream_messages(draw: Any) -> ingestion_pb2.WriteStreamRequest:
    if draw(st.integers(0, 4)) == 0:
        return ingestion_pb2.WriteStreamRequest(hello=ingestion_pb2.ProducerHello(producer_id=draw(REQUEST_IDS)))
    batch = ingestion_pb2.ProducerBatch(
        sequence=draw(NUMBERS), batch=typed(draw(batches())), backfill=draw(st.booleans())
    )
    return ingestion_pb2.WriteStreamRequest(batch=batch)


def damaged(data: bytes, draw: Any) -> bytes:
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "long"]))
        if kind == "set" and out:
            out[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out.insert(at, draw(st.integers(0, 255)))
        elif kind == "long":
            out[at:at] = b"\xff" * draw(st.integers(1, 12))  # a varint that does not end in time
    return bytes(out)


def check_damaged_request(read: Any, same: Any, kind: Any, data: bytes) -> None:
    """Hold a reader of requests to the typed parser's verdict on the same bytes."""
    try:
        message = kind.FromString(data)
        message.DiscardUnknownFields()
    except DecodeError:
        # A walked request leaves its batch unread, so what is wrong inside may come to light there only.
        with pytest.raises(InvalidArgument) as refused:
            decode_batch(read(data).batch)
        assert refused.value.reason == "MALFORMED_MESSAGE"
        return
    if kind is ingestion_pb2.WriteStreamRequest and message.WhichOneof("message") is None:
        with pytest.raises(InvalidArgument) as refused:
            read(data)
        assert refused.value.reason == "INVALID_FIELD"
        return
    assert same(read(data), message)


@given(batches(), RANDOM)
@settings(max_examples=100)
def test_every_legal_encoding_of_a_batch_gives_its_rows(batch, rnd):
    check_batch(batch, rnd)


@given(writes(), RANDOM)
@settings(max_examples=50)
def test_every_legal_encoding_of_a_write_is_the_same_call(message, rnd):
    check_write(message, rnd)


@given(stream_messages(), RANDOM)
@settings(max_examples=50)
def test_every_legal_encoding_of_a_stream_message_is_the_same(message, rnd):
    check_stream(message, rnd)


@given(batches(), RANDOM, st.data())
@settings(max_examples=50)
def test_damaged_batches_are_judged_as_protobuf_judges_them(batch, rnd, data):
    assert_same_verdict(damaged(scrambled(typed(batch), rnd), data.draw))


@given(writes(), RANDOM, st.data())
@settings(max_examples=50)
def test_damaged_writes_are_judged_as_protobuf_judges_them(message, rnd, data):
    bad = damaged(scrambled(message, rnd), data.draw)
    check_damaged_request(read_write, same_write, ingestion_pb2.WriteRequest, bad)


@given(stream_messages(), RANDOM, st.data())
@settings(max_examples=50)
def test_damaged_stream_messages_are_judged_as_protobuf_judges_them(message, rnd, data):
    bad = damaged(scrambled(message, rnd), data.draw)
    check_damaged_request(read_stream, same_stream, ingestion_pb2.WriteStreamRequest, bad)


@pytest.mark.slow
@pytest.mark.timeout(900)
@given(batches(), writes(), stream_messages(), RANDOM, st.data())
@settings(max_examples=1_000)
def test_the_same_many_times_over(batch, write, stream, rnd, data):
    check_batch(batch, rnd)
    check_write(write, rnd)
    check_stream(stream, rnd)
    assert_same_verdict(damaged(scrambled(typed(batch), rnd), data.draw))
    bad = damaged(scrambled(write, rnd), data.draw)
    check_damaged_request(read_write, same_write, ingestion_pb2.WriteRequest, bad)
    bad = damaged(scrambled(stream, rnd), data.draw)
    check_damaged_request(read_stream, same_stream, ingestion_pb2.WriteStreamRequest, bad)


FULL = ObservationBatch(
    series=tuple(
        SeriesKey(twin_id="pümp-1", channel=f"c{i}", unit="Cel", series_id=300 + i, kind=ChannelKind.GAUGE)
        for i in range(3)
    ),
    doubles=double_section([0, 1], [1, -2], [1.5, float("nan")], [1, 3]),
    int64s=int64_section([2], [5], [-7]),
    bools=bool_section([1], [6], [True]),
    texts=text_section([0, 0], [7, 8], [b"on", b""]),
    jsons=text_section([2], [9], [b"{}"]),
)


def test_every_truncation_and_every_changed_byte_is_judged_as_protobuf_judges_it():
    data = wire.encode(FULL)
    for end in range(len(data) + 1):
        assert_same_verdict(data[:end])
    for at in range(len(data)):
        for value in (0, 0x0A, 0x12, 0x7F, 0x80, 0xFF, data[at] ^ 1):
            assert_same_verdict(data[:at] + bytes([value]) + data[at + 1 :])


TRAPS: dict[str, Any] = {
    "a section in two pieces": lambda m: (
        m.SerializeToString()
        + observation_pb2.ObservationBatch(
            doubles=observation_pb2.DoubleSection(series=[2], time_unix_us=[3], value=[9.0], quality=b"\1\1\1")
        ).SerializeToString()
    ),
    "a dictionary entry after the columns": lambda m: m.SerializeToString() + b"\x0a\x03\x0a\x01z",
    "a column of varints": lambda m: m.SerializeToString() + b"\x12\x02\x20\x05",
    "a field number of two bytes": lambda m: m.SerializeToString() + b"\xa2\x06\x01x",
    "a group": lambda m: m.SerializeToString() + b"\x7b\x7c",
    "empty columns": lambda m: m.SerializeToString() + b"\x12\x06\x0a\0\x12\0\x22\0",
    "a group that does not end": lambda m: m.SerializeToString() + b"\x7b",
    "an end of no group": lambda m: m.SerializeToString() + b"\x7c",
    "a length that is no multiple of its column's": lambda m: b"\x12\x09\x22\x07" + b"\0" * 7,
    "a length beyond the end": lambda m: b"\x12\xff\xff\xff\xff\x07",
    "a length of more than 64 bits": lambda m: b"\x12" + b"\xff" * 10 + b"\x01",
    "field number zero": lambda m: b"\x02\x01x",
    "groups without end, deeper than anybody reads": lambda m: b"\x7b" * 10_000,
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_judged_as_protobuf_judges_it_and_never_walked(trap):
    data = TRAPS[trap](typed(FULL))
    assert wire.walk(data) is None
    before = slow("ObservationBatch")
    assert_same_verdict(data)
    assert slow("ObservationBatch") == before + 1


def slow(message: str) -> float:
    value: float = counter("wire", "slow_path", "", ("message",)).labels(message)._value.get()
    return value


def test_each_fallback_is_counted_by_what_it_was():
    """In whatever service walks: the counter is of the process."""
    batch = typed(FULL)
    write = ingestion_pb2.WriteRequest(request_id="r", batch=batch)
    stream = ingestion_pb2.WriteStreamRequest(batch=ingestion_pb2.ProducerBatch(sequence=1, batch=batch))
    names = ("ObservationBatch", "WriteRequest", "WriteStreamRequest")
    start = [slow(name) for name in names]
    decode_batch(batch.SerializeToString())
    read_write(write.SerializeToString())
    read_stream(stream.SerializeToString())
    read_write(ingestion_pb2.WriteRequest(observations=[ingestion_pb2.Observation(twin_id="a")]).SerializeToString())
    read_stream(ingestion_pb2.WriteStreamRequest(hello=ingestion_pb2.ProducerHello()).SerializeToString())
    assert [slow(name) for name in names] == start, "the canonical forms, and what has no columns, are not slow"
    unknown = b"\xa2\x06\x01x"
    decode_batch(batch.SerializeToString() + unknown)
    read_write(write.SerializeToString() + unknown)
    read_stream(stream.SerializeToString() + unknown)
    assert [slow(name) for name in names] == [count + 1 for count in start]


@given(batches(), st.uuids().map(str), st.integers(0, 2**62))
@settings(max_examples=50)
def test_answers_are_the_bytes_that_protobuf_would_write(batch, incarnation, offset):
    for kind in (storage_pb2.ReadRangeResponse, storage_pb2.ReadLatestResponse):
        message = kind(batch=typed(batch))
        message.as_of.incarnation, message.as_of.offset = incarnation, offset
        assert raw.batch_answer(batch, incarnation, offset) == message.SerializeToString()


@st.composite
def entries(draw: Any) -> LogEntry:
    kind = draw(st.sampled_from(EntryKind))
    if kind is EntryKind.OBSERVATIONS:
        body = wire.encode(draw(batches()))
    else:
        deleted = entry_pb2.DeleteTwinEntry(twin_id=draw(REQUEST_IDS))
        body = entry_pb2.ControlEntry(request_id=draw(REQUEST_IDS), delete_twin=deleted).SerializeToString()
    return LogEntry(
        offset=draw(st.integers(1, 2**62)),
        tenant=draw(REQUEST_IDS),
        kind=kind,
        commit_time_unix_us=draw(st.integers(0, 2**52)),
        point_count=0,
        body=body,
    )


@given(st.lists(entries(), max_size=4), st.uuids().map(str), st.integers(0, 2**62), st.integers(0, 2**62))
@settings(max_examples=50)
def test_frames_are_the_bytes_that_protobuf_would_write(entries, incarnation, through, head):
    message = storage_pb2.FollowResponse(entries=[raw.entry_message(e) for e in entries], head_offset=head)
    message.through.incarnation, message.through.offset = incarnation, through
    written = raw.frame_bytes(Frame(entries=tuple(entries), through=through, head=head), incarnation)
    assert written == message.SerializeToString()


@given(st.binary(max_size=120))
@settings(max_examples=100)
def test_random_bytes_as_requests_are_read_as_protobuf_reads_them_or_refused(data):
    check_damaged_request(read_write, same_write, ingestion_pb2.WriteRequest, data)
    check_damaged_request(read_stream, same_stream, ingestion_pb2.WriteStreamRequest, data)
    assert_same_verdict(data)


def test_columns_of_a_slow_batch_are_as_good_as_those_of_a_fast_one():
    rnd = Random(3)  # noqa: S311
    found = decode_batch(scrambled(typed(FULL), rnd))
    fast = decode_batch(wire.encode(FULL))
    for name, section in fast.sections():
        for column in ("series", "time_unix_us", "quality"):
            assert getattr(getattr(found, name), column).dtype == getattr(section, column).dtype
    np.testing.assert_array_equal(found.doubles.values, fast.doubles.values)
