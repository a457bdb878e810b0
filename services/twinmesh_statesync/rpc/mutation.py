"""What all mutations share: the bytes by which a repeated request is told from a reused id."""

from __future__ import annotations

from google.protobuf.message import Message


def content_of(request: Message) -> bytes:
    """Return the request as bytes that are equal for equal requests, its type included."""
    name: str = request.DESCRIPTOR.full_name
    return name.encode() + b"\0" + request.SerializeToString(deterministic=True)
