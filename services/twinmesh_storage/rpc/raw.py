"""Messages written as bytes where their bulk is bytes already: no column and no body passes through Python values.

What is written here is what protobuf would write for the same content; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_core import wire
from twinmesh_core.observations import ObservationBatch
from twinmesh_runtime.registry_mapping import time_to_message
from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.frame_shelf import Frame
from twinmesh_storage.domain.window_reader import Windows
from twinmesh_storage.rpc.latest import EncodedBatch

_BATCH_FIELD: Final = 1
_AS_OF_FIELD: Final = 2
_BODY_FIELDS: Final = {EntryKind.OBSERVATIONS: 4, EntryKind.CONTROL: 5}


def _record(number: int, length: int) -> bytes:
    """Return what comes before the bytes of a length-delimited field."""
    return bytes([number << 3 | 2]) + wire.encode_varint(length)


def position_bytes(incarnation: str, offset: int) -> bytes:
    """Return a serialized LogPosition."""
    return position_pb2.LogPosition(incarnation=incarnation, offset=offset).SerializeToString()


def batch_answer(batch: ObservationBatch, incarnation: str, offset: int, at: int | None = None) -> bytes:
    """Return a serialized ReadRangeResponse or DownsampleResponse.

    Both are a batch (1), a position (2), and where a relative read ends (3).
    """
    body, as_of = wire.encode(batch), position_bytes(incarnation, offset)
    answer = b"".join((_record(_BATCH_FIELD, len(body)), body, _record(_AS_OF_FIELD, len(as_of)), as_of))
    return answer if at is None else answer + at_bytes(at)


def empty_answer(incarnation: str, offset: int, at: int | None = None) -> bytes:
    """Return the same without a batch: there is no row."""
    position = position_pb2.LogPosition(incarnation=incarnation, offset=offset)
    answer = storage_pb2.ReadRangeResponse(as_of=position).SerializeToString()
    return answer if at is None else answer + at_bytes(at)


def at_bytes(at: int) -> bytes:
    """Return the field that states where a relative read ends."""
    return storage_pb2.ReadRangeResponse(at=time_to_message(at)).SerializeToString()


def latest_answer(batch: EncodedBatch, known_dictionary_id: int, incarnation: str, offset: int) -> bytes:
    """Return a serialized ReadLatestResponse; the dictionary is left out where the caller knows it."""
    dictionary = b"" if batch.dictionary_id and batch.dictionary_id == known_dictionary_id else batch.dictionary
    tail = storage_pb2.ReadLatestResponse(
        as_of=position_pb2.LogPosition(incarnation=incarnation, offset=offset), dictionary_id=batch.dictionary_id
    ).SerializeToString()
    size = len(dictionary) + sum(map(len, batch.sections))
    return b"".join((_record(_BATCH_FIELD, size), dictionary, *batch.sections, tail))


def window_answer(windows: Windows, units: Sequence[str], incarnation: str) -> bytes:
    """Return a serialized ReadWindowResponse; the matrix (1) is copied once, as it lies."""
    values = windows.values.reshape(-1).view(np.uint8)
    rest = storage_pb2.ReadWindowResponse(
        at_unix_us=windows.at,
        coverage=windows.coverage.reshape(-1).tolist(),
        units=units,
        as_of=position_pb2.LogPosition(incarnation=incarnation, offset=windows.as_of),
    ).SerializeToString()
    return b"".join((_record(1, len(values)) if len(values) else b"", values.data, rest))


def frame_bytes(frame: Frame, incarnation: str) -> bytes:
    """Return a serialized FollowResponse; the bodies of its entries are copied once, as they are in the log."""
    parts: list[bytes] = []
    for entry in frame.entries:
        head = storage_pb2.LogEntry(
            offset=entry.offset, tenant=entry.tenant, commit_time=time_to_message(entry.commit_time_unix_us)
        ).SerializeToString()
        record = _record(_BODY_FIELDS[entry.kind], len(entry.body))
        parts += (_record(1, len(head) + len(record) + len(entry.body)), head, record, entry.body)
    tail = storage_pb2.FollowResponse(
        through=position_pb2.LogPosition(incarnation=incarnation, offset=frame.through),
        head_offset=frame.head,
    ).SerializeToString()
    parts.append(tail)
    return b"".join(parts)


def entry_message(entry: LogEntry) -> storage_pb2.LogEntry:
    """Return an entry as the typed message: what the bytes of `frame_bytes` parse to."""
    message = storage_pb2.LogEntry(
        offset=entry.offset, tenant=entry.tenant, commit_time=time_to_message(entry.commit_time_unix_us)
    )
    if entry.kind is EntryKind.OBSERVATIONS:
        message.observations = entry.body
    else:
        message.control.ParseFromString(entry.body)
    return message
