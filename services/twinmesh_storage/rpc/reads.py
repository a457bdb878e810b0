"""Reads of observations as they are: ranges, newest values, aligned windows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_storage.domain.answers import answers
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.history import History, Seen, SeriesRows, cut
from twinmesh_storage.domain.latest_reader import LatestReader, Selection
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.window_reader import WindowReader
from twinmesh_storage.rpc import mapping, questions, raw, seeing
from twinmesh_storage.rpc.latest import LatestEncoder, TwinSelections
from twinmesh_storage.rpc.serving import Handler, byte_stream, byte_unary, own_tenant
from twinmesh_storage.rpc.window_grids import WindowGrids

_MAX_WINDOW_STEPS: Final = 1_000_000
_SERIES_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadServicer:
    """ReadRange, ReadLatest and ReadWindow."""

    view: LogView
    directory: Directory
    history: History
    latest: LatestReader
    selections: TwinSelections
    encoder: LatestEncoder
    windows: WindowReader
    grids: WindowGrids

    async def read_range(self, request: storage_pb2.ReadRangeRequest, _: Any) -> AsyncIterator[bytes]:
        """Stream the rows of series within a time range."""
        tenant = own_tenant()
        names = mapping.names(request.series, "series", 10_000)
        asked, count = questions.time_range(request), questions.last_count(request)
        seen = questions.seen(request.min_quality, request.as_of_offset, default_quality=3)
        as_of = await seeing.settle(self.view, request.min_offset, request.as_of_offset, request.incarnation)
        series = await self.directory.require(tenant, names)
        start, end, at = await seeing.bounds(self.latest, tenant, series, asked, seen, newest=count > 0)
        if count:
            pages = self._newest(tenant, series, start, end, count, seen)
        else:
            pages = self.history.stream(tenant, series, start, end, seen)
        any_rows = False
        async for parts in pages:
            for batch in answers(parts):
                any_rows = True
                yield raw.batch_answer(batch, self.view.incarnation, as_of, at)
        if not any_rows:
            yield raw.empty_answer(self.view.incarnation, as_of, at)

    async def _newest(
        self, tenant: str, series: Sequence[Series], start: int, end: int, count: int, seen: Seen
    ) -> AsyncIterator[list[SeriesRows]]:
        """Yield the newest `count` rows of each series within a range."""
        for first in range(0, len(series), _SERIES_AT_ONCE):
            part = series[first : first + _SERIES_AT_ONCE]
            found = await self.history.newest(tenant, [(one, end) for one in part], count, seen)
            yield [SeriesRows(series=one, rows=cut(found[one.series_id], start, end)) for one in part]

    async def read_latest(self, request: storage_pb2.ReadLatestRequest, _: Any) -> bytes:
        """Return the newest row of each series."""
        tenant = own_tenant()
        if not request.series and not request.twin_ids:
            raise invalid_field("series", "is empty, and so is twin_ids; name series or twins")
        if request.series and request.twin_ids:
            raise invalid_field("twin_ids", "excludes series; name one of the two")
        seen = questions.seen(request.min_quality, request.as_of_offset, default_quality=3)
        before = questions.latest_before(request)
        await seeing.settle(self.view, request.min_offset, request.as_of_offset, request.incarnation)
        if request.series:
            names = mapping.names(request.series, "series", 100_000)
            selection = Selection.of([s for s in await self.directory.known(tenant, names) if s is not None])
        else:
            for index, twin_id in enumerate(request.twin_ids):
                mapping.require_text(twin_id, f"twin_ids[{index}]")
            selection = await self.selections.of(tenant, list(dict.fromkeys(request.twin_ids)))
        if len(selection.ids) > 100_000:
            raise invalid_field("twin_ids", f"have {len(selection.ids)} series; at most 100,000 are read at once")
        as_of, rows = await self.latest.rows_seen(tenant, selection, seen, before)
        encoded = self.encoder.encode(selection, rows, lasting=not request.series)
        return raw.latest_answer(encoded, request.known_dictionary_id, self.view.incarnation, as_of)

    async def read_window(self, request: storage_pb2.ReadWindowRequest, _: Any) -> bytes:
        """Return aligned windows of many twins."""
        tenant = own_tenant()
        spec = questions.window_spec(request, _MAX_WINDOW_STEPS)
        twins, channels = questions.window_axes(request)
        at = questions.window_end(request)
        await seeing.settle(self.view, request.min_offset, request.as_of_offset, request.incarnation)
        grid = await self.grids.of(tenant, twins, channels)
        windows = await self.windows.read(tenant, grid, at, spec)
        return raw.window_answer(windows, grid.units, self.view.incarnation)

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "ReadRange": byte_stream(self.read_range, pb.ReadRangeRequest),
            "ReadLatest": byte_unary(self.read_latest, pb.ReadLatestRequest),
            "ReadWindow": byte_unary(self.read_window, pb.ReadWindowRequest),
        }
