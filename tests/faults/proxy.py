"""A TCP proxy that loses answers: what was asked takes effect, and the connection is gone before anyone hears.

This is the fault that proves exactly-once. A process that is killed rarely dies between its commit and its answer, so
killing alone shows no missing dedup.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

_CHUNK: Final = 1 << 16
_SEQUENCER: Final = b"twinmesh-sequencer"
_ENCRYPTION_REQUESTS: Final = (80877103, 80877104)  # SSLRequest, GSSENCRequest
_FRAME_HEAD: Final = 9
_DATA: Final = 0
_HEADERS: Final = 1
_END_STREAM: Final = 1


class Reader(Protocol):
    """Understands one connection well enough to know the answers that matter."""

    def asked(self, data: bytes) -> None:
        """Take what the client sends."""
        ...

    def answered(self, data: bytes) -> str:
        """Take what the server sends; returns what kind of answer that matters is in it, "" = none."""
        ...


@dataclass(slots=True)
class Scissors:
    """Decides which answers are lost.

    Attributes:
        rng: decides.
        share: by kind of answer, the share that is lost.
        cuts: by kind, answers lost so far.
    """

    rng: random.Random
    share: dict[str, float]
    cuts: Counter[str] = field(default_factory=Counter)

    def cut(self, kind: str) -> bool:
        """Decide about one answer."""
        if self.rng.random() >= self.share.get(kind, 0.0):
            return False
        self.cuts[kind] += 1
        return True


class Proxy:
    """Listens on a port of its own and passes connections on to another one.

    Args:
        target: port on this machine.
        reader: makes the reader of one connection.
        scissors: decides which answers are lost.
    """

    def __init__(self, target: int, reader: Callable[[], Reader], scissors: Scissors) -> None:
        self.target = target
        self.port = 0
        self.scissors = scissors
        self._reader = reader
        self._listener = socket.socket()
        self._open: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        # Not asyncio's server: that one loses sockets which it accepted in the moment of its end.
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def close(self) -> None:
        """Stop listening and end every connection."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self.cut_all()
        while self._connections:
            await asyncio.wait(self._connections, timeout=0.1)
            self.cut_all()  # also what was only just being connected

    def cut_all(self) -> None:
        """End every connection now, whatever is on its way."""
        for writer in list(self._open):
            writer.transport.abort()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = self._listener.accept()
            task = asyncio.create_task(self._pass_on(accepted))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _pass_on(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=accepted)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        ends = (writer, there_writer)
        self._open.update(ends)
        understands = self._reader()
        ways = [
            asyncio.create_task(self._ask(reader, there_writer, understands)),
            asyncio.create_task(self._answer(there_reader, writer, understands)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.transport.abort()
            self._open.difference_update(ends)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in ends:
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, understands: Reader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                understands.asked(data)
                writer.write(data)
                await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, understands: Reader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                kind = understands.answered(data)
                if kind and self.scissors.cut(kind):
                    return
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def proxy(target: int, reader: Callable[[], Reader], scissors: Scissors) -> AsyncIterator[Proxy]:
    """Run a proxy."""
    between = Proxy(target, reader, scissors)
    await between.start()
    try:
        yield between
    finally:
        await between.close()


class PostgresReader:
    """Knows the answer to COMMIT: CommandComplete with that tag, which comes when the transaction is durable.

    Kinds: ``commit`` of the sequencer, ``fold`` = a commit of another connection that copied rows, ``read`` = any other
    commit, ``early`` = the sequencer's answers before its commit, so that nothing is committed.

    Args:
        on_copy: told when a connection that is not the sequencer's begins to copy into a table.
    """

    def __init__(self, on_copy: Callable[[], None]) -> None:
        self._on_copy = on_copy
        self._asked = bytearray()
        self._answered = bytearray()
        self._started = False
        self._sequencer = False
        self._copied = False
        self._bare = 0  # answers of one byte that are due, to requests for encryption

    def asked(self, data: bytes) -> None:
        """Read what comes before the session; later, statements that copy."""
        if self._started:
            if not self._sequencer and b"copy " in data[:200].lower():
                self._copied = True
                self._on_copy()
            return
        self._asked += data
        while len(self._asked) >= 8:
            length = int.from_bytes(self._asked[:4], "big")
            if len(self._asked) < length:
                return
            packet = bytes(self._asked[4:length])
            del self._asked[:length]
            if int.from_bytes(packet[:4], "big") in _ENCRYPTION_REQUESTS:
                self._bare += 1
                continue
            self._started = True
            self._sequencer = _SEQUENCER in packet
            return

    def answered(self, data: bytes) -> str:
        """See `Reader.answered`."""
        self._answered += data
        if self._bare and self._answered:
            del self._answered[0]
            self._bare -= 1
        found = ""
        while len(self._answered) >= 5:
            end = 1 + int.from_bytes(self._answered[1:5], "big")
            if len(self._answered) < end:
                break
            if self._answered[:1] == b"C":
                found = self._completed(bytes(self._answered[5 : end - 1])) or found
            del self._answered[:end]
        return found

    def _completed(self, tag: bytes) -> str:
        if tag != b"COMMIT":
            return "early" if self._sequencer else ""
        if self._sequencer:
            return "commit"
        copied, self._copied = self._copied, False
        return "fold" if copied else "read"


class Http2Reader:
    """Knows answers of gRPC by their frames.

    Args:
        kind: what its answers are called.
        streamed: each message of a stream is an answer (DATA); else the end of a call is (HEADERS that end the stream).
        stream: on connections where this method was called, each message is an answer too.
    """

    def __init__(self, kind: str, *, streamed: bool, stream: bytes = b"") -> None:
        self._kind = kind
        self._streamed = streamed
        self._stream = stream
        self._rest = bytearray()

    def asked(self, data: bytes) -> None:
        """Look for the call of the method whose messages are answers: gRPC sends its name as it is."""
        if self._stream and self._stream in data:
            self._streamed = True

    def answered(self, data: bytes) -> str:
        """See `Reader.answered`."""
        self._rest += data
        found = ""
        while len(self._rest) >= _FRAME_HEAD:
            length = int.from_bytes(self._rest[:3], "big")
            kind, flags = self._rest[3], self._rest[4]
            if len(self._rest) < _FRAME_HEAD + length:
                break
            if (kind == _DATA and length) if self._streamed else (kind == _HEADERS and flags & _END_STREAM):
                found = self._kind
            del self._rest[: _FRAME_HEAD + length]
        return found
