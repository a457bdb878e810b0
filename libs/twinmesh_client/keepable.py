"""Whether an entry of the log can be kept: every fold leaves aside the same ones."""

from __future__ import annotations

from math import isfinite
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh_core.time import MAX_TIME_UNIX_US, MIN_TIME_UNIX_US, US_PER_S


def can_be_kept(message: Message) -> bool:
    """Whether a checkpoint can hold all of it: ids without NUL, finite numbers, times within the years 1 to 9999.

    The services refuse the rest at their doors. Whoever may append to the log can go around them, and one entry that
    no checkpoint can hold would keep every state-sync process from saving, now and after each restart.
    """
    if isinstance(message, Timestamp):
        return MIN_TIME_UNIX_US <= message.seconds * US_PER_S + message.nanos // 1_000 <= MAX_TIME_UNIX_US
    return all(_field_can_be_kept(field, value) for field, value in message.ListFields())


def _field_can_be_kept(field: FieldDescriptor, value: Any) -> bool:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        held = field.message_type.fields_by_name["value"]
        if any("\0" in key for key in value):
            return False
        if held.message_type is not None:
            return all(map(can_be_kept, value.values()))
        return held.type != FieldDescriptor.TYPE_DOUBLE or all(map(isfinite, value.values()))
    parts = value if field.is_repeated else (value,)
    if field.message_type is not None:
        return all(map(can_be_kept, parts))
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return all(map(isfinite, parts))
    is_id = field.type == FieldDescriptor.TYPE_STRING and field.name.endswith(("_id", "_ids"))
    return not is_id or all("\0" not in part for part in parts)
