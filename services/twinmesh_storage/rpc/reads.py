"""History's side of StorageService: ranges, latest values, windows, aggregates, and what there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import NotFound, Reason, invalid_field
from twinmesh_runtime.registry_mapping import time_to_message
from twinmesh_storage.domain.aggregate import MAX_VALUES, Aggregator, bucket_edges
from twinmesh_storage.domain.counting import Counting, TailDelta
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.history import History, answers
from twinmesh_storage.domain.latest_reader import LatestReader, Selection
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import HistoryCounts, HistoryStore, QuarantineStore, SeriesSpan, SeriesStore
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.window_reader import WindowReader
from twinmesh_storage.rpc import mapping, paging, quarantine, raw
from twinmesh_storage.rpc.latest import LatestEncoder, TwinSelections
from twinmesh_storage.rpc.serving import Handler, byte_stream, byte_unary, own_tenant, unary

_MAX_WINDOW_STEPS: Final = 1_000_000
_QUARANTINE_PAGE_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadServicer:
    """Reads."""

    view: LogView
    directory: Directory
    history: History
    latest: LatestReader
    selections: TwinSelections
    encoder: LatestEncoder
    windows: WindowReader
    aggregator: Aggregator
    counting: Counting
    store: HistoryStore
    series: SeriesStore
    quarantine: QuarantineStore

    async def read_range(self, request: storage_pb2.ReadRangeRequest, _: Any) -> AsyncIterator[bytes]:
        """Stream the rows of series within a time range."""
        tenant = own_tenant()
        start, end = mapping.time_range(request)
        names = mapping.names(request.series, "series", 10_000)
        quality = mapping.max_quality(request.min_quality, default=3)
        await self.view.wait_for(request.min_offset)
        as_of = self.view.head
        series = await self.directory.require(tenant, names)
        any_rows = False
        async for parts in self.history.stream(tenant, series, start, end, quality):
            for batch in answers(parts):
                any_rows = True
                yield raw.batch_answer(batch, self.view.incarnation, as_of)
        if not any_rows:
            position = mapping.position(self.view.incarnation, as_of)
            yield storage_pb2.ReadRangeResponse(as_of=position).SerializeToString()

    async def read_latest(self, request: storage_pb2.ReadLatestRequest, _: Any) -> bytes:
        """Return the newest row of each series."""
        tenant = own_tenant()
        if not request.series and not request.twin_ids:
            raise invalid_field("series", "is empty, and so is twin_ids; name series or twins")
        if request.series and request.twin_ids:
            raise invalid_field("twin_ids", "excludes series; name one of the two")
        await self.view.wait_for(request.min_offset)
        if request.series:
            names = mapping.names(request.series, "series", 100_000)
            selection = Selection.of([s for s in await self.directory.known(tenant, names) if s is not None])
        else:
            for index, twin_id in enumerate(request.twin_ids):
                mapping.require_text(twin_id, f"twin_ids[{index}]")
            selection = await self.selections.of(tenant, list(dict.fromkeys(request.twin_ids)))
        if len(selection.ids) > 100_000:
            raise invalid_field("twin_ids", f"have {len(selection.ids)} series; at most 100,000 are read at once")
        as_of, rows = await self.latest.rows(tenant, selection)
        return raw.encoded_batch_answer(self.encoder.encode(selection, rows), self.view.incarnation, as_of)

    async def read_window(self, request: storage_pb2.ReadWindowRequest, _: Any) -> storage_pb2.ReadWindowResponse:
        """Return aligned windows of many twins."""
        tenant = own_tenant()
        spec = mapping.window_spec(request, _MAX_WINDOW_STEPS)
        twins, channels = mapping.window_axes(request)
        at = mapping.window_end(request)
        if request.as_of_offset:
            self.view.check_position("", request.as_of_offset)
        await self.view.wait_for(request.min_offset)
        known = await self.directory.known(tenant, [(t, c) for t in twins for c in channels])
        grid = [known[row * len(channels) : (row + 1) * len(channels)] for row in range(len(twins))]
        _require_numeric(grid, channels)
        windows = await self.windows.read(tenant, grid, at, spec)
        units = [next((s.unit for s in column if s is not None), "") for column in zip(*grid, strict=True)]
        return storage_pb2.ReadWindowResponse(
            values=windows.values.tobytes(),
            at_unix_us=list(windows.at),
            coverage=windows.coverage.reshape(-1).tolist(),
            units=units,
            as_of=mapping.position(self.view.incarnation, windows.as_of),
        )

    async def aggregate(self, request: storage_pb2.AggregateRequest, _: Any) -> storage_pb2.AggregateResponse:
        """Return aggregates per bucket."""
        tenant = own_tenant()
        names = mapping.names(request.series, "series", 1_000)
        functions = mapping.functions(request)
        bucket_us = mapping.positive_duration(request.bucket, "bucket")
        start, end = mapping.required_range(request)
        most = MAX_VALUES // (len(names) * len(functions))
        edges = bucket_edges(start, end, bucket_us, request.time_zone, most)
        await self.view.wait_for(request.min_offset)
        as_of = self.view.head
        series = await self.directory.require(tenant, names)
        _require_numeric([series], [s.channel for s in series])
        values = await self.aggregator.read(tenant, series, edges, functions)
        return storage_pb2.AggregateResponse(
            bucket_unix_us=edges[:-1].tolist(),
            values=values.tobytes(),
            as_of=mapping.position(self.view.incarnation, as_of),
        )

    async def list_series(self, request: storage_pb2.ListSeriesRequest, _: Any) -> storage_pb2.ListSeriesResponse:
        """Return a page of the catalogue."""
        tenant = own_tenant()
        size = paging.page_size(request.page_size, default=1_000, most=10_000)
        after = paging.names_after(request.page_token)
        twin_id = mapping.require_text(request.twin_id, "twin_id")

        page = await self.series.page(tenant, twin_id, after, size)

        async def count() -> tuple[dict[int, SeriesSpan], dict[int, TailDelta]]:
            return await self.store.spans(tenant, page), await self.counting.tail_delta(tenant, page)

        _, (spans, deltas) = await self.counting.steady(count)
        last = page[-1] if len(page) == size else None
        return storage_pb2.ListSeriesResponse(
            series=[_series_info(s, spans.get(s.series_id), deltas.get(s.series_id)) for s in page],
            next_page_token=paging.names_token(last.twin_id, last.channel) if last is not None else "",
        )

    async def list_quarantine(
        self, request: storage_pb2.ListQuarantineRequest, _: Any
    ) -> storage_pb2.ListQuarantineResponse:
        """Return a page of quarantined rows."""
        size = paging.page_size(request.page_size, default=100, most=10_000)
        wanted = quarantine.wanted(request)
        if request.page_token:
            mark = paging.id_before(request.page_token)
            wanted = replace(wanted, after=mark) if request.oldest_first else replace(wanted, before=mark)
        rows, more, total = await self.quarantine.page(
            own_tenant(), wanted, oldest_first=request.oldest_first, limit=size, max_bytes=_QUARANTINE_PAGE_BYTES
        )
        return storage_pb2.ListQuarantineResponse(
            rows=[quarantine.message(row) for row in rows],
            next_page_token=paging.id_token(rows[-1].quarantine_id) if more else "",
            total_count=total,
        )

    async def get_statistics(
        self, request: storage_pb2.GetStatisticsRequest, _: Any
    ) -> storage_pb2.GetStatisticsResponse:
        """Return exact counts."""
        tenant = own_tenant()
        mapping.require_text(request.twin_id, "twin_id")

        async def count() -> tuple[HistoryCounts, dict[int, TailDelta]]:
            counts = await self.store.counts(tenant, request.twin_id)
            series = [
                s for s in self.directory.all_series(tenant) if not request.twin_id or s.twin_id == request.twin_id
            ]
            return counts, await self.counting.tail_delta(tenant, series)

        as_of, (counts, deltas) = await self.counting.steady(count)
        by_quality = [
            folded + sum(delta.by_quality[q] for delta in deltas.values())
            for q, folded in enumerate(counts.folded_points)
        ]
        return storage_pb2.GetStatisticsResponse(
            entry_count=counts.entry_count,
            landed_point_count=counts.landed_point_count,
            point_count=sum(by_quality),
            series_count=counts.series_count,
            quarantined_count=counts.quarantined_count,
            disk_bytes=counts.disk_bytes,
            as_of=mapping.position(self.view.incarnation, as_of),
            point_count_by_quality=by_quality,
            fold_offset=counts.fold_offset,
            trim_offset=counts.trim_offset,
            history_form=self.store.form,
        )

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "ReadRange": byte_stream(self.read_range, pb.ReadRangeRequest),
            "ReadLatest": byte_unary(self.read_latest, pb.ReadLatestRequest),
            "ReadWindow": unary(self.read_window, pb.ReadWindowRequest, pb.ReadWindowResponse),
            "Aggregate": unary(self.aggregate, pb.AggregateRequest, pb.AggregateResponse),
            "ListSeries": unary(self.list_series, pb.ListSeriesRequest, pb.ListSeriesResponse),
            "ListQuarantine": unary(self.list_quarantine, pb.ListQuarantineRequest, pb.ListQuarantineResponse),
            "GetStatistics": unary(self.get_statistics, pb.GetStatisticsRequest, pb.GetStatisticsResponse),
        }


def _require_numeric(grid: Sequence[Sequence[Series | None]], channels: Sequence[str]) -> None:
    """Refuse channels without numbers, and names that no twin of the request has."""
    for index, channel in enumerate(channels):
        column = [twin[index] for twin in grid if twin[index] is not None]
        if not column:
            raise NotFound(
                f"channels[{index}]: none of the twins has observations of channel {channel!r}; "
                "check the names (list series), or write some first.",
                reason=Reason.CHANNEL_NOT_FOUND,
                metadata={"channel": channel},
            )
        for series in column:
            if series is not None and not series.kind.numeric:
                raise invalid_field(
                    f"channels[{index}]", f"{series.twin_id}/{channel} is {series.kind.name}; only numbers can be used"
                )


def _series_info(series: Series, span: SeriesSpan | None, delta: TailDelta | None) -> storage_pb2.SeriesInfo:
    points = (span.point_count if span else 0) + (sum(delta.by_quality) if delta else 0)
    firsts = [span.first_time_unix_us] if span else []
    lasts = [span.last_time_unix_us] if span else []
    if delta:
        firsts.append(delta.first)
        lasts.append(delta.last)
    return storage_pb2.SeriesInfo(
        key=mapping.series_message(series),
        point_count=points,
        first_time=time_to_message(min(firsts)) if firsts else None,
        last_time=time_to_message(max(lasts)) if lasts else None,
    )
