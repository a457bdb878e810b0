"""What there is: the catalogue of series, quarantine, and counts that account for everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_runtime.registry_mapping import time_to_message
from twinmesh_storage.domain.aggregate import Aggregator
from twinmesh_storage.domain.counting import Counting, LogTallies, TailDelta
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.history import Seen
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import (
    HistoryCounts,
    HistoryStore,
    QuarantineStore,
    SeriesFilter,
    SeriesSpan,
    SeriesStore,
)
from twinmesh_storage.domain.series import Series
from twinmesh_storage.rpc import mapping, paging, quarantine, questions, seeing
from twinmesh_storage.rpc.serving import Handler, own_tenant, unary

_QUARANTINE_PAGE_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueServicer:
    """ListSeries, ListQuarantine and GetStatistics."""

    view: LogView
    directory: Directory
    aggregator: Aggregator
    counting: Counting
    store: HistoryStore
    series: SeriesStore
    quarantine: QuarantineStore
    tallies: LogTallies

    async def list_series(self, request: storage_pb2.ListSeriesRequest, _: Any) -> storage_pb2.ListSeriesResponse:
        """Return a page of the catalogue."""
        tenant = own_tenant()
        size = paging.page_size(request.page_size, default=1_000, most=10_000)
        twin_id = mapping.require_text(request.twin_id, "twin_id")
        channel = mapping.require_text(request.channel, "channel")
        kinds = _kinds(request.kinds)
        seen = questions.seen(0, request.as_of_offset, default_quality=3)
        asked = (twin_id, channel, [int(k) for k in kinds], request.as_of_offset)
        after, pin = paging.series_after(request.page_token, asked)
        await self._settle(request, pin)
        newest_id = pin.newest_id if pin is not None else await self.series.newest_id(tenant)
        wanted = SeriesFilter(twin_id=twin_id, channel=channel, kinds=kinds, newest_id=newest_id)
        if pin is not None:
            seen = Seen(as_of=pin.as_of)
        page = await self.series.page(tenant, wanted, after, size)
        if seen.as_of:
            as_of, infos = seen.as_of, await self._infos_as_of(tenant, page, seen)
        else:

            async def count() -> tuple[dict[int, SeriesSpan], dict[int, TailDelta]]:
                return await self.store.spans(tenant, page), await self.counting.tail_delta(tenant, page)

            as_of, (spans, deltas) = await self.counting.steady(count)
            infos = [_series_info(s, spans.get(s.series_id), deltas.get(s.series_id)) for s in page]
        token = ""
        if len(page) == size:
            last = page[-1]
            pin = paging.Pin(as_of=as_of, incarnation=self.view.incarnation, newest_id=newest_id, asked=asked)
            token = paging.series_token((last.twin_id, last.channel), pin)
        return storage_pb2.ListSeriesResponse(
            series=infos, next_page_token=token, as_of=mapping.position(self.view.incarnation, as_of)
        )

    async def _settle(
        self, request: storage_pb2.ListSeriesRequest | storage_pb2.ListQuarantineRequest, pin: paging.Pin | None
    ) -> int:
        if pin is not None:
            self.view.check_position(pin.incarnation, pin.as_of)
        as_of = pin.as_of if pin is not None else request.as_of_offset
        return await seeing.settle(self.view, request.min_offset, as_of, request.incarnation)

    async def _infos_as_of(self, tenant: str, series: Sequence[Series], seen: Seen) -> list[storage_pb2.SeriesInfo]:
        tally = await self.aggregator.tally(tenant, series, seen)
        return [
            storage_pb2.SeriesInfo(
                key=mapping.series_message(one),
                point_count=count,
                first_time=time_to_message(first) if count else None,
                last_time=time_to_message(last) if count else None,
            )
            for one, count, first, last in zip(
                series, tally.count.tolist(), tally.first.tolist(), tally.last.tolist(), strict=True
            )
        ]

    async def list_quarantine(
        self, request: storage_pb2.ListQuarantineRequest, _: Any
    ) -> storage_pb2.ListQuarantineResponse:
        """Return a page of quarantined rows."""
        tenant = own_tenant()
        size = paging.page_size(request.page_size, default=100, most=10_000)
        wanted = quarantine.wanted(request)
        questions.seen(0, request.as_of_offset, default_quality=3)
        asked = (_digest(request), request.oldest_first)
        mark, pin = paging.id_mark(request.page_token, asked)
        as_of = await self._settle(request, pin)
        wanted = replace(wanted, end_offset=min(wanted.end_offset or as_of + 1, as_of + 1))
        if pin is not None:
            wanted = replace(wanted, after=mark) if request.oldest_first else replace(wanted, before=mark)
        rows, more, total = await self.quarantine.page(
            tenant, wanted, oldest_first=request.oldest_first, limit=size, max_bytes=_QUARANTINE_PAGE_BYTES
        )
        pin = paging.Pin(as_of=as_of, incarnation=self.view.incarnation, newest_id=0, asked=asked)
        return storage_pb2.ListQuarantineResponse(
            rows=[quarantine.message(row) for row in rows],
            next_page_token=paging.id_token(rows[-1].quarantine_id, pin) if more else "",
            total_count=total,
            as_of=mapping.position(self.view.incarnation, as_of),
        )

    async def get_statistics(
        self, request: storage_pb2.GetStatisticsRequest, _: Any
    ) -> storage_pb2.GetStatisticsResponse:
        """Return exact counts."""
        tenant = own_tenant()
        mapping.require_text(request.twin_id, "twin_id")
        questions.seen(0, request.as_of_offset, default_quality=3)
        await seeing.settle(self.view, request.min_offset, request.as_of_offset, request.incarnation)
        if request.as_of_offset:
            return await self._statistics_as_of(tenant, request.twin_id, request.as_of_offset)

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

    async def _statistics_as_of(self, tenant: str, twin_id: str, as_of: int) -> storage_pb2.GetStatisticsResponse:
        tally = await self.tallies.as_of(tenant, twin_id, as_of)
        series = [s for s in self.directory.all_series(tenant) if not twin_id or s.twin_id == twin_id]
        # Trusted at least so much, from GOOD to any: each tally holds the one before.
        tallies = [
            (await self.aggregator.tally(tenant, series, Seen(max_quality=quality, as_of=as_of))).count
            for quality in (1, 2, 3)
        ]
        up_to = [int(counts.sum()) for counts in tallies]
        return storage_pb2.GetStatisticsResponse(
            entry_count=tally.entry_count,
            landed_point_count=tally.landed_point_count,
            point_count=up_to[-1],
            series_count=int((tallies[-1] > 0).sum()),
            quarantined_count=tally.quarantined_count,
            as_of=mapping.position(self.view.incarnation, as_of),
            point_count_by_quality=[up_to[0], up_to[1] - up_to[0], up_to[2] - up_to[1]],
            fold_offset=tally.fold_offset,
            trim_offset=tally.trim_offset,
            history_form=self.store.form,
        )

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "ListSeries": unary(self.list_series, pb.ListSeriesRequest, pb.ListSeriesResponse),
            "ListQuarantine": unary(self.list_quarantine, pb.ListQuarantineRequest, pb.ListQuarantineResponse),
            "GetStatistics": unary(self.get_statistics, pb.GetStatisticsRequest, pb.GetStatisticsResponse),
        }


def _kinds(numbers: Sequence[int]) -> tuple[ChannelKind, ...]:
    kinds = tuple(ChannelKind.of(number) for number in numbers)
    for index, kind in enumerate(kinds):
        if kind is ChannelKind.UNSPECIFIED:
            raise invalid_field(f"kinds[{index}]", "is not a kind of channel")
    return kinds


def _digest(request: storage_pb2.ListQuarantineRequest) -> str:
    """Return what tells one list from another: the request without its place, size and wait."""
    asked = storage_pb2.ListQuarantineRequest()
    asked.CopyFrom(request)
    for field in ("page_token", "page_size", "min_offset"):
        asked.ClearField(field)
    return blake2b(asked.SerializeToString(deterministic=True), digest_size=12).hexdigest()


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
