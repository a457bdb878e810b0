"""One twin: write its facts, read its history, forecast it, direct it, watch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client import history
from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.connection import Connection
from twinmesh_client.aio.direction import Direction
from twinmesh_client.aio.history import Scope, Shape, list_series, read, read_latest
from twinmesh_client.aio.identified import Identified
from twinmesh_client.aio.questions import ask_past, forecast_request, optimize_request
from twinmesh_client.aio.typed import type_of
from twinmesh_client.aio.watcher import Watcher
from twinmesh_client.aio.write import write_batch, write_frame, write_values
from twinmesh_client.durations import Moment, Span
from twinmesh_client.forecasts import Decision, Forecast, decision
from twinmesh_client.readings import Buckets, Reading, SeriesSummary
from twinmesh_client.replicas import (
    Position,
    Replica,
    position,
    replica,
)
from twinmesh_client.transport import call
from twinmesh_core.errors import NotFound, Reason
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.registry import TwinType

if TYPE_CHECKING:
    import pandas as pd


class Twin(Direction, Identified):
    """A handle on one twin; it costs nothing until something is asked of it."""

    def __init__(self, connection: Connection, twin_id: str) -> None:
        super().__init__(connection, twin_id)
        self._type: TwinType | None = None

    def __repr__(self) -> str:
        return f"Twin({self.twin_id!r})"

    async def get(self, *, min_offset: int = 0, at_offset: int | None = None, at: Moment | None = None) -> Replica:
        """Return the replica as it is, or as it was; raises `NotFound`.

        Args:
            min_offset: waits until it is as new.
            at_offset: as it was then.
            at: with the facts of this event time, all else as committed by then.
        """
        request = statesync_pb2.GetReplicaRequest(twin_id=self.twin_id)
        ask_past(request, min_offset, at_offset, at)
        answer = await call(self._connection.replicas.GetReplica, request, timeout_s=self._connection.timeout_s)
        return replica(answer.replica, position(answer.as_of))

    async def type(self) -> TwinType:
        """Return the twin's type (asked once); raises `NotFound`."""
        if self._type is None:
            self._type = await type_of(self._connection, self.twin_id)
        return self._type

    async def write(
        self,
        frame: pd.DataFrame | pd.Series[Any],
        *,
        time_zone: str | None = None,
        units: Mapping[str, str] | None = None,
        columns: Mapping[str, str] | None = None,
        backfill: bool = False,
    ) -> WriteAck:
        """Write a pandas frame: a row per time, a column per channel; empty cells are absent. Returns after the commit.

        Args:
            frame: the index (or a column ``time``) is the event time.
            time_zone: zone of naive times; required for them.
            units: unit of columns that are not in their channel's own, e.g. ``{"oil": "degF"}``.
            columns: channel of columns that are named otherwise.
            backfill: declares recorded history: times back to 1970 are accepted.

        Raises:
            InvalidArgument: times or cells that cannot be read, or clocks that changed; names the row and the remedy.
        """
        kinds = await self._kinds()
        return await write_frame(
            self._connection,
            self.twin_id,
            frame,
            kinds=kinds,
            time_zone=time_zone,
            units=units,
            columns=columns,
            backfill=backfill,
        )

    async def write_values(
        self, values: Mapping[str, Any], *, time: Moment | None = None, units: Mapping[str, str] | None = None
    ) -> WriteAck:
        """Write one value each of several channels, at one time (None = when the server receives it)."""
        return await write_values(self._connection, self.twin_id, values, time=time, units=units)

    async def write_batch(self, batch: ObservationBatch, *, backfill: bool = False) -> WriteAck:
        """Write one columnar batch; returns after the commit. Repeated safely by itself while the mesh restarts."""
        return await write_batch(self._connection, batch, backfill=backfill)

    async def read(
        self,
        *channels: str,
        last: Span | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        at: Moment | None = None,
        every: Span | None = None,
        agg: str | Sequence[str] = "mean",
        fill: str = "none",
        max_gap: Span | None = None,
        points: int | None = None,
        method: str = "lttb",
        last_count: int = 0,
        min_offset: int = 0,
        as_of: int = 0,
        min_quality: str | None = None,
        time_zone: str = "",
    ) -> Reading | Buckets:
        """Read history: rows, with `points` few rows that show the shape of all, with `every` aggregates on a grid.

        Args:
            channels: which; none = all that a value was ever received of.
            last: a span that ends at `at`.
            start: from here on (included); instead of `last`.
            end: up to here (excluded).
            at: the end of `last`; None = the newest event time of these channels: recorded twins read as live ones.
            every: bucket length, or day, week, month, quarter or year of `time_zone`'s calendar.
            agg: count, min, max, mean, sum, first, last, stddev, median, p95 (any percentage), time_weighted_mean, of
                counters increase and rate, of states time_at:2 (seconds at 2); one or several.
            fill: what a bucket without a value shows: none, hold (the last value before) or linear.
            max_gap: longest gap filled, and how long a value holds; None = no limit.
            points: most rows of each channel, chosen by `method`.
            method: lttb (the shape) or min_max (no peak is lost).
            last_count: only the newest so many rows of each channel; 0 = all.
            min_offset: waits until the answer reflects it, e.g. the offset of a `WriteAck`.
            as_of: what was known as of this offset of the log; 0 = the present.
            min_quality: the worst that is used: good, uncertain or bad; None = bad for rows, uncertain for the others.
            time_zone: aligns buckets; empty = UTC.
        """
        scope = Scope(min_offset=min_offset, as_of=as_of, min_quality=min_quality)
        shape = Shape(
            every=every,
            functions=(agg,) if isinstance(agg, str) else tuple(agg),
            time_zone=time_zone,
            fill=fill,
            max_gap=max_gap,
            points=points,
            method=method,
            last_count=last_count,
        )
        names = channels or await self._heard(min_offset)
        window = await history.resolve_window(
            lambda: read_latest(self._connection, self.twin_id, names, scope), last=last, start=start, end=end, at=at
        )
        return await read(self._connection, self.twin_id, names, window, scope, shape)

    async def latest(
        self,
        *channels: str,
        at: Moment | None = None,
        min_offset: int = 0,
        as_of: int = 0,
        min_quality: str | None = None,
    ) -> Reading:
        """Return the newest observation of each channel (none named = all); channels never heard from are absent.

        Args:
            channels: which.
            at: the newest at or before this event time; None = the newest of all.
            min_offset: waits until the answer reflects it.
            as_of: what was known as of this offset of the log; 0 = the present.
            min_quality: the newest that is at least good, or uncertain; None = of any quality.
        """
        scope = Scope(min_offset=min_offset, as_of=as_of, min_quality=min_quality)
        return await read_latest(self._connection, self.twin_id, channels, scope, at)

    async def series(self, *, min_offset: int = 0, as_of: int = 0) -> list[SeriesSummary]:
        """Return what history holds of each channel as of an offset (0 = now): how many observations, since when."""
        return await list_series(self._connection, self.twin_id, Scope(min_offset=min_offset, as_of=as_of))

    async def forecast(
        self,
        channel: str,
        *,
        horizon: Span | None = None,
        quantiles: Sequence[float] = (),
        at: Moment | None = None,
        model: str = "",
        record: bool = False,
        min_offset: int = 0,
        as_of_offset: int = 0,
        max_staleness: Span | None = None,
    ) -> Forecast:
        """Forecast a channel from the twin's own window.

        Args:
            channel: which.
            horizon: at most the model's; None = all of it.
            quantiles: levels among the model's; empty = all.
            at: nothing later is seen; None = the newest event time of the inputs.
            model: ``name`` or ``name@version``; empty = the one that serves this channel.
            record: write it to the predicted facet.
            min_offset: waits until the inputs reflect it.
            as_of_offset: reads the inputs as of this log offset.
            max_staleness: refuse when the newest input is older than this by the wall clock.

        Raises:
            NotFound: no model predicts this channel: train one.
            Unavailable: the model is being loaded, or Triton is away.
            FailedPrecondition: NOT_ENOUGH_HISTORY.
        """
        request = forecast_request(
            self.twin_id,
            channel,
            horizon=horizon,
            quantiles=quantiles,
            at=at,
            model=model,
            record=record,
            min_offset=min_offset,
            as_of_offset=as_of_offset,
            max_staleness=max_staleness,
        )
        answer = await call(self._connection.inference.Forecast, request, timeout_s=self._connection.timeout_s)
        return Forecast.from_response(answer)

    async def optimize(
        self,
        control: str,
        *,
        options: Mapping[float, float],
        limit: float,
        model: str = "",
        limit_quantile: float = 0.9,
        target: float | None = None,
        target_weight: float = 0.0,
        switch_cost: float = 0.0,
        max_switches: int = 0,
        min_dwell: Span | None = None,
        at: Moment | None = None,
        min_offset: int = 0,
        as_of_offset: int = 0,
    ) -> Decision:
        """Choose the planned values of a control so that the predicted channel keeps `limit` at the lowest cost.

        Args:
            control: the channel to plan.
            options: what each possible value costs per hour.
            limit: in the predicted channel's unit, held at `limit_quantile`.
            model: a dynamics model; empty = the one that serves this control.
            limit_quantile: e.g. 0.9: the upper edge of the forecast band.
            target: soft target of the median; None = the limit.
            target_weight: of the squared excess over the target, per hour.
            switch_cost: of one change.
            max_switches: changes allowed over the horizon, 0 to 3.
            min_dwell: shortest time between changes.
            at: nothing later is seen; None = the newest event time of the inputs.
            min_offset: waits until the inputs reflect it.
            as_of_offset: reads the inputs as of this log offset.
        """
        request = optimize_request(
            self.twin_id,
            control,
            options=options,
            limit=limit,
            model=model,
            limit_quantile=limit_quantile,
            target=target,
            target_weight=target_weight,
            switch_cost=switch_cost,
            max_switches=max_switches,
            min_dwell=min_dwell,
            at=at,
            min_offset=min_offset,
            as_of_offset=as_of_offset,
        )
        return decision(await call(self._connection.inference.Optimize, request, timeout_s=self._connection.timeout_s))

    def watch(
        self,
        *,
        resume_after: Position | None = None,
        policy: str = "reliable",
        resync: bool | None = None,
        keep_replicas: bool = False,
        mask: Sequence[str] = (),
    ) -> Watcher:
        """Watch this twin's changes: an iterator that never ends, reconnects and resumes by itself.

        Args:
            mask: only changes of these parts, e.g. ``["reported.temperature", "delta"]``; empty = all.
            resume_after: continue after this position; None = begin with a snapshot.
            policy: when you are slow: ``reliable`` (every change), ``latest`` (merged), ``close`` (an error).
            resync: RESET and a snapshot instead of an error; None = unless `resume_after` is given.
            keep_replicas: see `Watcher.replicas`.

        Raises:
            GapDetected: the revisions prove that something was missed; never passes silently.
            OutOfRange: `resume_after` is too old to resume from (without `resync`).
        """
        return Watcher(self._connection, (self.twin_id,), "", resume_after, policy, resync, keep_replicas, mask=mask)

    async def _heard(self, min_offset: int) -> tuple[str, ...]:
        newest = await self.latest(min_offset=min_offset)
        if not newest.series:
            # A twin that does not exist is an error of its own; one that has not spoken has nothing to be read.
            await self.type()
            raise NotFound(
                f"{self.twin_id!r} has no value yet; write one, e.g. `twinmesh write {self.twin_id} CHANNEL=VALUE`.",
                reason=Reason.CHANNEL_NOT_FOUND,
            )
        return tuple(s.channel for s in newest.series)

    async def _kinds(self) -> dict[str, ChannelKind]:
        try:
            return {c.name: c.kind for c in (await self.type()).channels}
        except NotFound:
            return {}  # the server says so for every row, with the command that creates the twin
