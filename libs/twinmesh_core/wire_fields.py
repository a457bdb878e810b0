"""Fields of a protobuf message, walked over its bytes without a schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
LEN: Final = 2
FIXED32: Final = 5


class NotCanonical(Exception):  # noqa: N818 -- not a failure: a signal to take the other path
    """The bytes are not in the form that can be walked; they may still be a valid message."""


def fields(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, value, end) for each field of a message.

    For VARINT `value` is the number (0 to 2**64 - 1); for the others it is the position where the payload starts, and
    `end` where it ends.

    Raises:
        NotCanonical: truncated, a group, a field number above 15 or zero, or an over-long varint.
    """
    position = start
    stop = len(data) if end is None else end
    while position < stop:
        tag = data[position]
        position += 1
        number, wire_type = tag >> 3, tag & 7
        if tag > 0x7F or number == 0:
            raise NotCanonical
        if wire_type == VARINT:
            value, position = decode_varint(data, position, stop)
            yield number, wire_type, value, position
            continue
        if wire_type == LEN:
            length, position = decode_varint(data, position, stop)
        elif wire_type == FIXED64:
            length = 8
        elif wire_type == FIXED32:
            length = 4
        else:
            raise NotCanonical
        if length > stop - position:
            raise NotCanonical
        yield number, wire_type, position, position + length
        position += length


def decode_varint(data: bytes, position: int, stop: int) -> tuple[int, int]:
    """Return the number of a varint, 0 to 2**64 - 1, and where it ends; raises `NotCanonical`."""
    value = shift = 0
    while position < stop:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > 0xFFFF_FFFF_FFFF_FFFF:
                raise NotCanonical
            return value, position
        shift += 7
        if shift >= 70:
            raise NotCanonical
    raise NotCanonical


def encode_varint(value: int) -> bytes:
    """Return the base-128 varint of a number from 0 to 2**64 - 1."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
