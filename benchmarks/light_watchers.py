"""Watchers as light as they can be: one thread reads the HTTP/2 frames of many streams and notes when each came.

A watcher of a real mesh runs on a machine of its own. A hundred of them as gRPC clients in Python take half a core, and
on two cores that hold the whole mesh that is taken from what is measured. Here a frame costs some ten microseconds: the
header of nine bytes is read, and of the message only where it leads to. What is sent is a plain gRPC call (RFC 9113;
the request's headers are literals, RFC 7541 section 6.2.2); of what comes back, headers are not decoded, since only
their END_STREAM matters here.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_INITIAL_WINDOW_SIZE: Final = 4
_RECEIVE_BYTES: Final = 1 << 18
STREAMS_PER_CONNECTION: Final = 50


class LightConnection:
    """One connection with one call for each request, all of them streams of answers.

    Args:
        target: ``host:port``.
        path: of the method.
        requests: serialized, one for each stream.
        message: called with the number of the stream, when it came (µs since 1970) and the serialized answer.
    """

    def __init__(
        self, target: str, path: str, requests: Sequence[bytes], message: Callable[[int, int, bytes], None]
    ) -> None:
        host, port = target.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._message = message
        self._rest = b""
        self._parts: list[bytearray] = [bytearray() for _ in requests]
        settings = struct.pack("!HI", _INITIAL_WINDOW_SIZE, _WINDOW)
        sent = [_PREFACE, _frame(_SETTINGS, 0, 0, settings)]
        sent.append(_frame(_WINDOW_UPDATE, 0, 0, struct.pack("!I", _WINDOW - _FIRST_WINDOW)))
        headers = _headers(path, target)
        for number, request in enumerate(requests):
            stream = 2 * number + 1
            sent.append(_frame(_HEADERS, _END_HEADERS, stream, headers))
            sent.append(_frame(_DATA, _END_STREAM, stream, struct.pack("!BI", 0, len(request)) + request))
        self.socket.sendall(b"".join(sent))

    def read(self) -> None:
        """Take what has arrived; blocks until there is something.

        Raises:
            ConnectionError: the server ended the connection or a stream.
        """
        got = self.socket.recv(_RECEIVE_BYTES)
        now_us = time.time_ns() // 1000
        if not got:
            raise ConnectionError("the server closed the connection")
        data = self._rest + got
        at, size = 0, len(data)
        while size - at >= 9:
            length = int.from_bytes(data[at : at + 3])
            end = at + 9 + length
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9]) & _WINDOW
            if kind == _DATA:
                self._data(stream // 2, now_us, data[at + 9 : end], flags)
            else:
                self._control(kind, flags, stream, data[at + 9 : end])
            at = end
        self._rest = data[at:]

    def _data(self, number: int, now_us: int, body: bytes, flags: int) -> None:
        if flags & (_PADDED | _END_STREAM):
            raise ConnectionError(f"stream {number} was ended or padded (flags {flags})")
        parts = self._parts[number]
        parts += body
        while len(parts) >= 5 and len(parts) >= 5 + (length := int.from_bytes(parts[1:5])):
            self._message(number, now_us, bytes(parts[5 : 5 + length]))
            del parts[: 5 + length]

    def _control(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.socket.sendall(_frame(kind, _ACK, 0, body if kind == _PING else b""))
        elif kind in (_RST, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
            raise ConnectionError(f"the server ended stream {stream // 2} (frame {kind})")


def read_all(
    target: str, path: str, requests: Sequence[bytes], message: Callable[[int, int, bytes], None], stop: Any
) -> None:
    """Hold one stream for each request, on as few connections as clients would, until the event `stop` is set.

    Args:
        target: ``host:port``.
        path: of the method.
        requests: serialized.
        message: see `LightConnection`; numbers are those of `requests`.
        stop: has `is_set`.

    Raises:
        ConnectionError: a stream ended.
    """
    with selectors.DefaultSelector() as selector:
        for first in range(0, len(requests), STREAMS_PER_CONNECTION):

            def told(number: int, now_us: int, body: bytes, first: int = first) -> None:
                message(first + number, now_us, body)

            part = requests[first : first + STREAMS_PER_CONNECTION]
            connection = LightConnection(target, path, part, told)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        try:
            while not stop.is_set():
                for key, _ in selector.select(timeout=0.1):
                    key.data.read()
        finally:
            for key in list(selector.get_map().values()):
                key.data.socket.close()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + struct.pack("!BBI", kind, flags, stream) + body


def _headers(path: str, authority: str) -> bytes:
    pairs = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in pairs.items())


def _text(value: str) -> bytes:
    if len(value) >= 0x7F:
        raise ValueError("longer than one byte of length")
    return bytes([len(value)]) + value.encode()
