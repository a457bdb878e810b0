"""An edge node for tests: Sparkplug B payloads written field by field, apart from the code that reads them.

The tag numbers are those of the specification (3.0, chapter 6); values are encoded by hand so that a wrong number in
the reader's descriptor cannot hide.
"""

from __future__ import annotations

import struct

INT16, INT32, UINT32, INT64, FLOAT, DOUBLE, BOOLEAN, STRING, DATASET = 2, 3, 7, 4, 9, 10, 11, 12, 16


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def field(number: int, value: int | bytes | float, *, double: bool = False) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return (
            varint(number << 3 | 1) + struct.pack("<d", value)
            if double
            else (varint(number << 3 | 5) + struct.pack("<f", value))
        )
    return varint(number << 3) + varint(value & (1 << 64) - 1)


def metric(
    name: str = "",
    value: object = None,
    datatype: int = DOUBLE,
    *,
    alias: int | None = None,
    ms: int | None = None,
    unit: str = "",
    quality: int | None = None,
    historical: bool = False,
) -> bytes:
    body = field(1, name.encode()) if name else b""
    body += field(2, alias) if alias is not None else b""
    body += field(3, ms) if ms is not None else b""
    body += field(4, datatype)
    body += field(5, 1) if historical else b""
    if unit or quality is not None:
        keys = ([b"engUnit"] if unit else []) + ([b"Quality"] if quality is not None else [])
        values = ([field(1, STRING) + field(8, unit.encode())] if unit else []) + (
            [field(1, INT32) + field(3, quality)] if quality is not None else []
        )
        body += field(9, b"".join(field(1, k) for k in keys) + b"".join(field(2, v) for v in values))
    if value is None and datatype != DATASET:
        body += field(7, 1)
    elif isinstance(value, bool):
        body += field(14, int(value))
    elif isinstance(value, float):
        body += field(13, value, double=True) if datatype == DOUBLE else field(12, value)
    elif isinstance(value, int):
        bits = {INT16: 16, INT32: 32, UINT32: 32}.get(datatype)
        body += field(10, value & (1 << bits) - 1) if bits else field(11, value)
    elif isinstance(value, str):
        body += field(15, value.encode())
    elif datatype == DATASET:
        body += field(17, b"")
    return field(2, body)


def payload(*metrics: bytes, ms: int = 1_772_362_800_000, seq: int | None = None) -> bytes:
    return field(1, ms) + b"".join(metrics) + (field(3, seq) if seq is not None else b"")
