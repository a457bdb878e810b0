"""A producer session: batches in sequence, each stored exactly once, whatever happens to connections and servers."""

from __future__ import annotations

import asyncio
import math
import time as clock
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import grpc.aio
import numpy.typing as npt

from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.backlog import MemoryBacklog, copied
from twinmesh_client.aio.pump import Pump, Taken
from twinmesh_client.aio.session import Dial, Session
from twinmesh_client.aio.spooling import SpoolBacklog, SpoolOptions
from twinmesh_client.durations import Moment, moment_us
from twinmesh_client.gathering import column_batch, pieces
from twinmesh_client.limits import GATHER_DELAY_S, GATHER_ROWS, LINGER_S, PATIENCE_S
from twinmesh_client.refusals import OnRefused, RefusedBatch
from twinmesh_client.transport import MAX_MESSAGE_BYTES
from twinmesh_core.errors import FailedPrecondition, Reason, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import MAX_ROWS, ObservationBatch
from twinmesh_core.quality import Quality
from twinmesh_core.wire import encode

if TYPE_CHECKING:
    import pandas as pd

SILENCE_S: Final = 30.0
"""A session without a welcome, or without an acknowledgement of what it sent, for so long is opened anew."""
MAX_PIECE_ROWS: Final = 100_000
"""Rows of a column or a frame that go into one message at most."""


class Writer:
    """Sends batches of one producer exactly once; made by `Mesh.writer`.

    A background task keeps the session: it reconnects, asks the server for the last durable sequence, drops what is
    durable and sends the rest again. What was taken is kept until it is acknowledged: in memory, or with a spool on
    disk, where it survives this process. Batches of `write` and rows of `observe` arrive in the order of the calls.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | Dial,
        producer_id: str,
        *,
        backfill: bool = False,
        on_ack: Callable[[WriteAck], None] | None = None,
        on_refused: OnRefused | None = None,
        patience_s: float | None = None,
        silence_s: float = SILENCE_S,
        gather_rows: int = GATHER_ROWS,
        gather_delay_s: float = GATHER_DELAY_S,
        spool: SpoolOptions | None = None,
    ) -> None:
        self._spool = None if spool is None else SpoolBacklog(producer_id, spool)
        self._backlog = self._spool or MemoryBacklog(producer_id)
        self._backfill = backfill
        if patience_s is None:
            patience_s = PATIENCE_S if spool is None else math.inf
        self._session = Session(
            channel,
            producer_id,
            self._backlog,
            on_ack=on_ack,
            on_refused=on_refused,
            sets_aside=spool is not None or on_refused is not None,
            patience_s=patience_s,
            silence_s=silence_s,
        )
        self._pump = Pump(self._put, self._until_stored, rows=gather_rows, delay_s=gather_delay_s)
        self._tasks: list[asyncio.Task[None]] = []
        self._abandoned = False

    @property
    def failure(self) -> TwinmeshError | None:
        """Why the session ended for good; None while it lives."""
        return self._session.failure

    @property
    def last_error(self) -> TwinmeshError | None:
        """Why the last connection broke or could not be made; None when there was no such thing."""
        return self._session.last_error

    @property
    def connected(self) -> bool:
        """Whether a session with the mesh is open right now."""
        return self._session.connected

    @property
    def reconnects(self) -> int:
        """Sessions opened again after a failure."""
        return self._session.reconnects

    @property
    def replayed(self) -> int:
        """Acknowledgements that answered a repeated delivery."""
        return self._session.replayed

    @property
    def durable_without_ack(self) -> int:
        """Points that a server said are durable, but whose acknowledgement was lost with a connection."""
        return self._session.durable_without_ack

    @property
    def acknowledged(self) -> WriteAck:
        """The sum of all acknowledgements so far."""
        return self._session.acknowledged

    @property
    def taken(self) -> int:
        """Number of the last batch taken; with a spool: that is on disk, counted from the spool's first."""
        return self._backlog.taken

    @property
    def durable(self) -> int:
        """Number up to which every batch is durable in the mesh, or was refused by it."""
        return self._backlog.durable

    @property
    def spooled(self) -> bool:
        """Whether what it takes is on disk before it says so."""
        return self._spool is not None

    @property
    def spool_bytes(self) -> int:
        """Bytes of the spool on disk; 0 without one."""
        return 0 if self._spool is None else self._spool.used_bytes

    @property
    def spool_damaged(self) -> int:
        """Batches whose record was damaged on disk: they were not sent, and are gone."""
        return 0 if self._spool is None else self._spool.damaged

    @property
    def refused_count(self) -> int:
        """Batches that the mesh refused for good and that were set aside, by this spool's earlier processes too."""
        return self._backlog.refusals.batches

    @property
    def refused_points(self) -> int:
        """Their rows."""
        return self._backlog.refusals.points

    @property
    def last_refusal(self) -> TwinmeshError | None:
        """Why the last of them was refused; None when there was none in this process."""
        return self._backlog.refusals.last

    @property
    def spool_cut_bytes(self) -> int:
        """Bytes that a killed process had begun to write and told nobody of; cut off when the spool was opened."""
        return 0 if self._spool is None else self._spool.cut_bytes

    async def __aenter__(self) -> Self:
        if self._spool is not None:
            try:
                await self._spool.open()
            except BaseException:
                await self._spool.close()
                raise
        self._tasks = [
            asyncio.create_task(self._guarded(work), name="twinmesh-writer")
            for work in (self._session.run, self._backlog.work, self._pump.run)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._abandoned:
                await self._leave()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            # A task that is cancelled before its first step says nothing itself.
            await self._session.fail(Unavailable("The writer was closed."))
            if self._spool is not None:
                await self._spool.close()

    async def observe(
        self,
        twin_id: str,
        channel: str,
        value: Any,
        *,
        time: Moment | None = None,
        unit: str = "",
        quality: Quality = Quality.UNSPECIFIED,
        kind: ChannelKind | None = None,
    ) -> Taken:
        """Take one row; rows are gathered into batches by size and time. Waits while too much is unacknowledged.

        Args:
            twin_id: the twin.
            channel: the channel.
            value: a number, a truth, a text, or a dict or list for JSON.
            time: when it was true; None = now, by this machine's clock.
            unit: of the value, if not the channel's own.
            quality: what the source says of it.
            kind: of the channel; None = as the value looks: numbers go as a gauge's, and whole ones count for a STATE.

        Returns:
            Tells when the row is written, and when it is durable.

        Raises:
            InvalidArgument: the value is none that the kind takes; it alone is left out.
            TwinmeshError: the session ended for good, or rows taken before could not be written.
        """
        time_unix_us = clock.time_ns() // 1_000 if time is None else moment_us(time, "time")
        await self._pump.room()
        self._check_open()
        return self._pump.add(twin_id, channel, value, time_unix_us, unit=unit, quality=quality, kind=kind)

    async def observe_many(
        self,
        twin_id: str,
        channel: str,
        times: npt.ArrayLike,
        values: npt.ArrayLike,
        *,
        unit: str = "",
        quality: npt.ArrayLike | None = None,
        kind: ChannelKind | None = None,
    ) -> Taken:
        """Take a column of rows of one series, at the speed of numpy; else as `observe`.

        Args:
            twin_id: the twin.
            channel: the channel.
            times: [n] event times: integers in microseconds since 1970, or numpy ``datetime64`` in UTC.
            values: [n] numbers, truths, or texts.
            unit: of the values, if not the channel's own.
            quality: [n] `Quality` codes; None = not stated.
            kind: of the channel; None = as the dtype says: numbers go as a gauge's, and whole ones count for a STATE.
        """
        batch = column_batch(twin_id, channel, times, values, unit=unit, quality=quality, kind=kind)
        return await self.observe_batch(batch)

    async def observe_batch(self, batch: ObservationBatch) -> Taken:
        """Take the rows of a batch, gathered with others where it is small; else as `observe`."""
        taken = [await self._observe_piece(part) for part in pieces(batch, MAX_PIECE_ROWS)]
        return taken[-1]

    async def _observe_piece(self, batch: ObservationBatch) -> Taken:
        if self._pump.rows + batch.point_count() > MAX_PIECE_ROWS:
            await self._pump.drain()
        await self._pump.room()
        self._check_open()
        return self._pump.add_batch(batch)

    async def write(self, batch: ObservationBatch) -> int:
        """Take one batch as it is and return its number: its sequence, unless there is a spool or one was refused.

        Waits while too much is unacknowledged. With a spool the batch is on disk when this returns.

        Raises:
            ResourceExhausted: the batch is too large for one message, or the spool is full where that is an error;
                nothing was taken.
            TwinmeshError: the session ended for good (fenced by a newer one, or the mesh was away for too long).
        """
        await self._pump.drain()
        return await self._put(batch) if batch.point_count() else self.taken

    async def write_frame(
        self,
        frame: pd.DataFrame | pd.Series[Any],
        *,
        twin_id: str,
        time_zone: str | None = None,
        units: Mapping[str, str] | None = None,
        columns: Mapping[str, str] | None = None,
        kinds: Mapping[str, ChannelKind] | None = None,
    ) -> int:
        """Take a pandas frame, a row per time and a column per channel, and return the number of its last batch.

        Args:
            frame: the index (or a column ``time``) is the event time; empty cells are absent.
            twin_id: the twin.
            time_zone: zone of naive times; required for them.
            units: unit of columns that are not in their channel's own.
            columns: channel of columns that are named otherwise.
            kinds: kind of channels; None = as the dtypes say.

        Raises:
            InvalidArgument: times or cells that cannot be read; names the row and the remedy.
        """
        from twinmesh_client.frames import frame_batches

        number = self._backlog.taken
        batches = frame_batches(
            frame,
            twin_id=twin_id,
            kinds=kinds or {},
            time_zone=time_zone,
            units=units,
            columns=columns,
            max_rows=MAX_PIECE_ROWS,
        )
        for batch in batches:
            number = await self.write(batch)
        return number

    async def flush(self) -> WriteAck:
        """Wait until everything taken is durable; returns the sum of all acknowledgements so far; raises as `write`."""
        await self.until_durable(await self.sync())
        return self.acknowledged

    async def sync(self) -> int:
        """Wait until everything taken is written: with a spool on disk; returns the number of the last batch."""
        await self._pump.drain()
        self._raise_failure()
        return self.taken

    async def until_durable(self, number: int) -> None:
        """Wait until every batch up to this number is durable in the mesh, or refused by it; raises as `write`."""
        async with self._backlog.changed:
            await self._backlog.changed.wait_for(lambda: self.failure is not None or self.durable >= number)
            self._raise_failure()

    async def refused_batches(self) -> list[RefusedBatch]:
        """Return the refused batches that the spool keeps, oldest first; none without a spool."""
        return [] if self._spool is None else await self._spool.refused()

    async def forget_refused(self) -> None:
        """Remove them from the spool, when they were looked at; the counts stay."""
        if self._spool is not None:
            await self._spool.forget_refused()

    async def resumed(self) -> int:
        """Wait for the first session and return the producer's last durable number: go on behind it.

        This is how a source that can be read again (a file) needs no record of its own of how far it came.
        """
        async with self._backlog.changed:
            await self._backlog.changed.wait_for(lambda: self.failure is not None or self._backlog.started)
            self._raise_failure()
        return self._backlog.durable

    def abandon(self) -> None:
        """Give up what is not yet acknowledged: leaving the session no longer waits for it."""
        self._abandoned = True

    async def _until_stored(self, number: int) -> None:
        await self.until_durable(number)
        if (refusal := self._backlog.refusals.error_of(number)) is not None:
            raise copied(refusal)

    async def _leave(self) -> None:
        if self._spool is None:
            await self.flush()
            return
        await self.sync()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                # A short block ends before the first session is open, which says nothing about the mesh.
                while self.durable < self.taken and not (self.connected or self.last_error or self.failure):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                if self.connected:
                    await self.flush()

    async def _put(self, batch: ObservationBatch) -> int:
        points = batch.point_count()
        columns = encode(batch)
        if len(columns) > MAX_MESSAGE_BYTES - 1_024 or points > MAX_ROWS:
            raise ResourceExhausted(
                f"The batch has {len(columns):,} bytes and {points:,} rows; a message holds {MAX_MESSAGE_BYTES:,} "
                f"bytes and {MAX_ROWS:,} rows. Write it in smaller batches.",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        self._check_open()
        self._session.something_waits()
        return await self._backlog.put(columns, points, backfill=self._backfill)

    def _check_open(self) -> None:
        if not self._tasks:
            raise FailedPrecondition("The writer is not open: use it in its block, `async with mesh.writer(...)`.")
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise copied(self.failure)

    async def _guarded(self, work: Callable[[], Any]) -> None:
        """Run one of the background tasks; a defect in it must reach whoever waits."""
        try:
            await work()
        except Exception:
            await self._session.fail_by_defect()
            raise
