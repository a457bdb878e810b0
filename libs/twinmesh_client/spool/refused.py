"""The spool's file of batches that the mesh refused for good: appended to, listed, emptied by whoever looked at them.

A record: magic ``tmx1``, number u64, time u64 (microseconds since 1970), rows u32, a back-fill bit u8, length of the
error u32, length of the batch u32, CRC-32 of all that u32; then the error, a serialized ``google.rpc.Status``, and the
batch. Integers are little-endian. A record that is not whole ends the file: what a killed process had begun.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from twinmesh_client.refusals import RefusedBatch
from twinmesh_client.rpc_status import error_from_status, status_from_error
from twinmesh_client.spool.state import sync_directory
from twinmesh_core.errors import ResourceExhausted

MAX_BYTES: Final = 64 * 1024 * 1024
"""Bound of the file."""
_NAME: Final = "refused"
_MAGIC: Final = b"tmx1"
_HEAD: Final = struct.Struct("<4sQQIBII")
_CRC: Final = struct.Struct("<I")


class RefusedFile:
    """The file in one spool's directory; every method blocks."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._path = directory / _NAME
        self._max_bytes = min(max_bytes, MAX_BYTES)
        self._end = 0
        self._numbers: set[int] | None = None
        """What is kept, as soon as somebody looked."""

    def append(self, refused: RefusedBatch) -> None:
        """Keep one, on disk when this returns; once, however often it is kept.

        Raises:
            ResourceExhausted: the file is full.
        """
        if self._numbers is None:
            self._numbers = self._look()
        if refused.number in self._numbers:
            return
        end = self._end
        status = status_from_error(refused.error).SerializeToString()
        head = _HEAD.pack(
            _MAGIC,
            refused.number,
            refused.time_unix_us,
            refused.points,
            refused.backfill,
            len(status),
            len(refused.columns),
        )
        body = status + refused.columns
        if end + len(head) + _CRC.size + len(body) > self._max_bytes:
            raise ResourceExhausted(
                f"The mesh refused a batch ({refused.error.message}), and the spool's file of refused batches is full "
                f"({end:,} of {self._max_bytes:,} bytes). Look at Writer.refused_batches(), mend what makes such "
                "batches, and empty the file with Writer.forget_refused().",
                metadata={"number": str(refused.number), "refused_bytes": str(end)},
            )
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, end)
            os.lseek(fd, end, os.SEEK_SET)
            left = memoryview(head + _CRC.pack(zlib.crc32(head + body)) + body)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self._path.parent)
        self._end = end + len(head) + _CRC.size + len(body)
        self._numbers.add(refused.number)

    def load(self) -> list[RefusedBatch]:
        """Return what is kept, oldest first."""
        return [refused for _, refused in self._walk()]

    def clear(self) -> None:
        """Forget what is kept."""
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
        self._end, self._numbers = 0, set()

    def _look(self) -> set[int]:
        kept = list(self._walk())
        self._end = kept[-1][0] if kept else 0
        return {refused.number for _, refused in kept}

    def _walk(self) -> Iterator[tuple[int, RefusedBatch]]:
        """Yield whole records with where they end."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        position = 0
        while len(data) >= position + _HEAD.size + _CRC.size:
            head = data[position : position + _HEAD.size]
            magic, number, time_unix_us, points, backfill, status_size, size = _HEAD.unpack(head)
            start = position + _HEAD.size + _CRC.size
            body = data[start : start + status_size + size]
            (checksum,) = _CRC.unpack_from(data, position + _HEAD.size)
            if magic != _MAGIC or len(body) < status_size + size or checksum != zlib.crc32(head + body):
                return
            try:
                error = error_from_status(status_pb2.Status.FromString(body[:status_size]))
            except DecodeError:
                return
            position = start + len(body)
            yield (
                position,
                RefusedBatch(
                    number=number,
                    points=points,
                    backfill=bool(backfill),
                    time_unix_us=time_unix_us,
                    error=error,
                    columns=body[status_size:],
                ),
            )
