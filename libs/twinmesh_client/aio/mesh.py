"""A connected mesh: the door to everything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import quarantine_pb2
from twinmesh_client import accounting
from twinmesh_client.accounting import Quarantine, QuarantineReplay, Statistics
from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.alarms import Alarms, Subscriptions
from twinmesh_client.aio.connection import Connection, open_connection
from twinmesh_client.aio.device import Device
from twinmesh_client.aio.keeping import Keeping
from twinmesh_client.aio.models import Models
from twinmesh_client.aio.spooling import spool_options
from twinmesh_client.aio.twins import Twins, TwinTypes
from twinmesh_client.aio.verifying import verify_replicas
from twinmesh_client.aio.writer import Writer
from twinmesh_client.durations import Moment
from twinmesh_client.limits import DEFAULT_TIMEOUT_S, GATHER_DELAY_S, GATHER_ROWS, SPOOL_MAX_BYTES
from twinmesh_client.offsets import incarnation_of
from twinmesh_client.orders import Handler
from twinmesh_client.refusals import OnRefused
from twinmesh_client.replicas import Position, position
from twinmesh_client.targets import resolve_target
from twinmesh_client.transport import call
from twinmesh_client.values import enum_name
from twinmesh_client.verification import ReplicaVerification


class Mesh(Keeping):
    """A connected mesh; made by `connect`.

    Attributes:
        twins: twins, and their state.
        types: twin types.
        models: training runs, the model registry, deployments.
        alarms: alarms that the rules of types raise.
        subscriptions: who is told of them.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.twins = Twins(connection)
        self.types = TwinTypes(connection)
        self.models = Models(connection)
        self.alarms = Alarms(connection)
        self.subscriptions = Subscriptions(connection)

    @property
    def endpoints(self) -> Mapping[str, str]:
        """Target of each service by token."""
        return dict(self._connection.endpoints)

    @property
    def version(self) -> str:
        """Version of the service that was dialled."""
        return self._connection.version

    @property
    def mode(self) -> str:
        """How callers are identified: ``open`` or ``secured``."""
        return self._connection.mode

    async def head(self) -> int:
        """Return the newest durable offset of the log."""
        return (await self.position()).offset

    async def position(self) -> Position:
        """Return the newest durable position of the log: a watch may resume after it, or after an earlier offset."""
        answer = await call(
            self._connection.storage.GetHead, storage_pb2.GetHeadRequest(), timeout_s=self._connection.timeout_s
        )
        return position(answer.position)

    async def verify(
        self, *, from_checkpoint: bool = False, patience_s: float = 600.0
    ) -> tuple[ReplicaVerification, ...]:
        """Have each process of state-sync fold the log anew and compare its replicas with that, all at one offset.

        Args:
            from_checkpoint: begin from the kept checkpoint; sooner, but takes its word.
            patience_s: how long the fold may take.

        Returns:
            One answer per process; all is well if each is `equal` and all digests are the same.
        """
        return await verify_replicas(self._connection, from_checkpoint=from_checkpoint, patience_s=patience_s)

    async def quarantine(
        self,
        *,
        twin_id: str = "",
        channel: str = "",
        reason: str = "",
        start: Moment | None = None,
        end: Moment | None = None,
        start_offset: int = 0,
        end_offset: int = 0,
        state: str = "open",
        limit: int = 100,
    ) -> Quarantine:
        """Return quarantined rows, newest first.

        Args:
            twin_id: only those sent for this twin.
            channel: only those sent for this channel.
            reason: only this one, e.g. ``unknown_twin``.
            start: first event time.
            end: event time after the last.
            start_offset: first log entry that they came with.
            end_offset: log entry after the last.
            state: ``open``, or those that left: ``replayed`` or ``discarded``.
            limit: most rows returned, at most 10,000; the total is counted in any case.
        """
        wanted = accounting.quarantine_filter(
            twin_id=twin_id,
            channel=channel,
            reasons=[reason] if reason else (),
            start=start,
            end=end,
            start_offset=start_offset,
            end_offset=end_offset,
        )
        request = storage_pb2.ListQuarantineRequest(filter=wanted, page_size=limit)
        names = quarantine_pb2.QuarantineState.keys()
        request.state = quarantine_pb2.QuarantineState.Value(enum_name(names, "QUARANTINE_STATE", state, "state"))
        answer = await call(self._connection.storage.ListQuarantine, request, timeout_s=self._connection.timeout_s)
        return accounting.quarantine(answer)

    async def replay_quarantine(
        self,
        *,
        twin_id: str = "",
        channel: str = "",
        reasons: Sequence[str] = (),
        start: Moment | None = None,
        end: Moment | None = None,
        start_offset: int = 0,
        end_offset: int = 0,
        ids: Sequence[int] = (),
        backfill: bool = False,
        dry_run: bool = False,
        page_rows: int = 10_000,
        request_id: str = "",
    ) -> QuarantineReplay:
        """Take quarantined rows through the pipeline again, page by page, after their cause was mended.

        Each row leaves quarantine in the transaction in which it lands, or stays with the reason found now. Stopped
        anywhere, it may be run again; with the same request_id, pages that are done are not done twice.

        Args:
            twin_id: only rows sent for this twin.
            channel: only rows sent for this channel.
            reasons: only these; rows of ``time_in_future`` are replayed only where named.
            start: first event time.
            end: event time after the last.
            start_offset: first log entry that they came with.
            end_offset: log entry after the last.
            ids: only these rows.
            backfill: the rows are recorded history: event times back to 1970 are accepted.
            dry_run: only say what would become of them.
            page_rows: rows of one page, at most 10,000.
            request_id: makes it idempotent; given by the SDK unless you do.
        """
        wanted = accounting.quarantine_filter(
            twin_id=twin_id,
            channel=channel,
            reasons=reasons,
            start=start,
            end=end,
            start_offset=start_offset,
            end_offset=end_offset,
            ids=ids,
        )
        name, after, pages = request_id or f"replay-{uuid4().hex}", 0, []
        while True:
            request = ingestion_pb2.ReplayQuarantineRequest(
                request_id=f"{name}.{after}",
                filter=wanted,
                after_quarantine_id=after,
                max_rows=page_rows,
                backfill=backfill,
                dry_run=dry_run,
            )
            answer = await call(
                self._connection.ingestion.ReplayQuarantine, request, timeout_s=self._connection.timeout_s
            )
            pages.append(answer)
            after = answer.next_after_quarantine_id
            if not after:
                return accounting.replayed(pages)

    async def discard_quarantine(
        self,
        comment: str,
        *,
        twin_id: str = "",
        channel: str = "",
        reasons: Sequence[str] = (),
        start: Moment | None = None,
        end: Moment | None = None,
        start_offset: int = 0,
        end_offset: int = 0,
        ids: Sequence[int] = (),
        dry_run: bool = False,
        request_id: str = "",
    ) -> int:
        """Take quarantined rows out because they are not wanted; returns how many. They stay on record.

        Args:
            comment: why, for those who look later.
            twin_id: only rows sent for this twin; at least one condition is required.
            channel: only rows sent for this channel.
            reasons: only these.
            start: first event time.
            end: event time after the last.
            start_offset: first log entry that they came with.
            end_offset: log entry after the last.
            ids: only these rows.
            dry_run: only count them.
            request_id: makes it idempotent; given by the SDK unless you do.
        """
        wanted = accounting.quarantine_filter(
            twin_id=twin_id,
            channel=channel,
            reasons=reasons,
            start=start,
            end=end,
            start_offset=start_offset,
            end_offset=end_offset,
            ids=ids,
        )
        name, after, discarded = request_id or f"discard-{uuid4().hex}", 0, 0
        while True:
            request = ingestion_pb2.DiscardQuarantineRequest(
                request_id=f"{name}.{after}",
                filter=wanted,
                comment=comment,
                after_quarantine_id=after,
                dry_run=dry_run,
            )
            answer = await call(
                self._connection.ingestion.DiscardQuarantine, request, timeout_s=self._connection.timeout_s
            )
            discarded += int(answer.discarded_count)
            after = answer.next_after_quarantine_id
            if not after:
                return discarded

    async def statistics(self, twin_id: str = "", *, as_of: int = 0) -> Statistics:
        """Return counts of everything, or of one twin; of the present, or as of an offset of the log."""
        request = storage_pb2.GetStatisticsRequest(
            twin_id=twin_id, as_of_offset=as_of, incarnation=incarnation_of(as_of)
        )
        answer = await call(self._connection.storage.GetStatistics, request, timeout_s=self._connection.timeout_s)
        return accounting.statistics(answer)

    def writer(
        self,
        producer_id: str,
        *,
        backfill: bool = False,
        on_ack: Callable[[WriteAck], None] | None = None,
        on_refused: OnRefused | None = None,
        patience_s: float | None = None,
        gather_rows: int = GATHER_ROWS,
        gather_delay_s: float = GATHER_DELAY_S,
        spool: str | Path | None = None,
        spool_max_bytes: int = SPOOL_MAX_BYTES,
        spool_full: Literal["wait", "error"] = "wait",
        spool_fsync: bool = True,
        spool_keep_bytes: int = 0,
        accept_gap: bool = False,
    ) -> Writer:
        """Return a producer session (``async with``): many batches, each stored exactly once through any failure.

        Args:
            producer_id: one per source of ordered batches; a newer session of the same producer fences this one.
            backfill: declares recorded history: times back to 1970 are accepted.
            on_ack: called after each acknowledgement; one may be of several batches.
            on_refused: told of each batch that the mesh refuses for good, after which the session goes on without it;
                with a spool it does so anyhow, and keeps them. Without either such a batch ends the session.
            patience_s: how long the mesh may be away before it gives up; None = 120 s, with a spool for ever.
            gather_rows: `observe` closes a batch at so many rows.
            gather_delay_s: or when its first row is so old.
            spool: a directory of this producer alone: what is taken is on disk before anybody is told so, and is sent
                in order when the mesh is there, by this process or the next one that opens it.
            spool_max_bytes: bound of the spool on disk.
            spool_full: ``wait`` for the mesh to take something, or raise an ``error``; nothing is ever dropped.
            spool_fsync: False = in the system's cache is enough: batches survive this process, not the machine.
            spool_keep_bytes: acknowledged batches to keep at most, for a mesh that is restored from a backup.
            accept_gap: go on where a restored mesh lacks batches that the spool no longer has, rather than fail.

        Raises:
            InvalidArgument: a bound that makes no sense. Opening the block may raise `FailedPrecondition`: another
                process has the spool open, or it is another producer's.
        """
        return Writer(
            self._connection.channels["ingestion"],
            producer_id,
            backfill=backfill,
            on_ack=on_ack,
            on_refused=on_refused,
            patience_s=patience_s,
            gather_rows=gather_rows,
            gather_delay_s=gather_delay_s,
            spool=spool_options(
                spool,
                max_bytes=spool_max_bytes,
                full=spool_full,
                fsync=spool_fsync,
                keep_bytes=spool_keep_bytes,
                accept_gap=accept_gap,
            ),
        )

    def device(
        self,
        twin_ids: str | Sequence[str],
        handlers: Mapping[str, Handler] | None = None,
        *,
        state: str | Path | None = None,
        producer_id: str = "",
        spool_max_bytes: int = SPOOL_MAX_BYTES,
    ) -> Device:
        """Return the device side of twins: it reports, obeys and answers while its block lasts, or by `run` alone.

        Args:
            twin_ids: the twin, or the twins, it stands for.
            handlers: functions by command name; more by `Device.on_command`.
            state: a directory of this device alone. With it reports survive outages and restarts, and a command that
                was done is not done again by the next process; one that was under way when a process died is failed,
                since nobody knows whether it took effect.
            producer_id: of its reports; "" = ``device-`` and the first twin's id. A second device of one id fences it.
            spool_max_bytes: bound of the reports kept in `state`.
        """
        return Device(
            self._connection,
            [twin_ids] if isinstance(twin_ids, str) else twin_ids,
            handlers=handlers,
            state=state,
            producer_id=producer_id,
            spool_max_bytes=spool_max_bytes,
        )


@asynccontextmanager
async def connect_async(
    target: str | None = None, *, context: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> AsyncIterator[Mesh]:
    """Connect to a mesh: ``async with connect_async() as mesh``.

    Args:
        target: ``host:port`` of any one service; None = by context, else ``TWINMESH_TARGET``, else context ``local``.
        context: name of a saved context.
        timeout_s: deadline of each call that is not told otherwise.

    Raises:
        Unavailable: no mesh there; the message says how to start one.
    """
    async with open_connection(resolve_target(target, context), timeout_s=timeout_s) as connection:
        yield Mesh(connection)
