"""Random legal encodings of a message: everything that protobuf lets an encoder do, by the descriptor alone."""

from __future__ import annotations

import struct
from itertools import pairwise
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from twinmesh_core.wire import encode_varint

VARINT, FIXED64, LEN, GROUP, END_GROUP, FIXED32 = range(6)
_FIXED: Final = {
    FieldDescriptor.TYPE_FIXED32: ("<I", FIXED32),
    FieldDescriptor.TYPE_SFIXED32: ("<i", FIXED32),
    FieldDescriptor.TYPE_FLOAT: ("<f", FIXED32),
    FieldDescriptor.TYPE_FIXED64: ("<Q", FIXED64),
    FieldDescriptor.TYPE_SFIXED64: ("<q", FIXED64),
    FieldDescriptor.TYPE_DOUBLE: ("<d", FIXED64),
}
_TEXTS: Final = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def scrambled(message: Message, rnd: Random) -> bytes:
    """Return another encoding of the same message.

    Packed columns are split, unpacked, mixed and joined by empty ones; singular messages come in pieces that merge,
    singular values several times (the last counts); fields are in any order; lengths and numbers are longer than they
    need be; unknown fields of every wire type, groups among them, lie between.
    """
    return b"".join(_records(message, rnd))


def varint(value: int, rnd: Random) -> bytes:
    """Return a varint, sometimes one or two bytes longer than it need be."""
    out = encode_varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if rnd.random() < 0.1 and len(out) < 3:
        more = rnd.randint(1, 2)
        out = out[:-1] + bytes([out[-1] | 0x80]) + b"\x80" * (more - 1) + b"\0"
    return out


def _tag(number: int, wire_type: int) -> bytes:
    return encode_varint(number << 3 | wire_type)


def _records(message: Message, rnd: Random) -> list[bytes]:
    """Return the message's records, those of each field in order."""
    queues = [_field(message, field, value, rnd) for field, value in message.ListFields()]
    known = {field.number for field in message.DESCRIPTOR.fields}
    out: list[bytes] = []
    while queues := [queue for queue in queues if queue]:
        # Half of the time in the order of fields: the canonical form differs from this one in nothing else then.
        out.append((queues[0] if rnd.random() < 0.5 else rnd.choice(queues)).pop(0))
        if rnd.random() < 0.1:
            out.append(_unknown(known, rnd))
    return out


def _field(message: Message, field: FieldDescriptor, value: Any, rnd: Random) -> list[bytes]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if field.is_repeated:
            return [_record(field.number, scrambled(one, rnd), rnd) for one in value]
        return [_record(field.number, part, rnd) for part in _pieces(_records(value, rnd), rnd)]
    if field.is_repeated and field.type not in _TEXTS:
        return _column(field, list(value), rnd)
    values = list(value) if field.is_repeated else [value]
    if not field.is_repeated and rnd.random() < 0.1 and field.containing_oneof is None:
        values = [b"decoy" if field.type == FieldDescriptor.TYPE_BYTES else type(value)(), value]
    return [_scalar(field, one, rnd) for one in values]


def _pieces(records: list[bytes], rnd: Random) -> list[bytes]:
    """Cut a message into one to three pieces that merge into it again."""
    cuts = sorted(rnd.randint(0, len(records)) for _ in range(rnd.choice((0, 0, 1, 2))))
    bounds = [0, *cuts, len(records)]
    return [b"".join(records[a:b]) for a, b in pairwise(bounds)]


def _column(field: FieldDescriptor, values: list[Any], rnd: Random) -> list[bytes]:
    out: list[bytes] = []
    whole = rnd.random() < 0.4
    while values:
        take = len(values) if whole else rnd.randint(0, len(values))
        part, values = values[:take], values[take:]
        if whole or rnd.random() < 0.5:
            out.append(_record(field.number, b"".join(_payload(field, v, rnd) for v in part), rnd))
        else:
            out += [_scalar(field, v, rnd) for v in part]
    return out


def _scalar(field: FieldDescriptor, value: Any, rnd: Random) -> bytes:
    if field.type in _TEXTS:
        return _record(field.number, value.encode() if isinstance(value, str) else value, rnd)
    wire_type = _FIXED[field.type][1] if field.type in _FIXED else VARINT
    return _tag(field.number, wire_type) + _payload(field, value, rnd)


def _payload(field: FieldDescriptor, value: Any, rnd: Random) -> bytes:
    if field.type in _FIXED:
        return struct.pack(_FIXED[field.type][0], value)
    return varint(int(value), rnd)


def _record(number: int, payload: bytes, rnd: Random) -> bytes:
    return _tag(number, LEN) + varint(len(payload), rnd) + payload


def _unknown(known: set[int], rnd: Random, depth: int = 0) -> bytes:
    number = rnd.choice([n for n in (*range(1, 16), 16, 1_000, 2**29 - 1) if n not in known])
    kind = rnd.choice((VARINT, FIXED64, LEN, FIXED32, GROUP) if depth < 3 else (VARINT, LEN))
    if kind == VARINT:
        return _tag(number, VARINT) + varint(rnd.getrandbits(64), rnd)
    if kind == LEN:
        return _record(number, rnd.randbytes(rnd.randint(0, 9)), rnd)
    if kind == GROUP:
        inner = b"".join(_unknown(known, rnd, depth + 1) for _ in range(rnd.randint(0, 2)))
        return _tag(number, GROUP) + inner + _tag(number, END_GROUP)
    return _tag(number, kind) + rnd.randbytes(8 if kind == FIXED64 else 4)
