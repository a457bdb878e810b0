"""Who is meant: dictionaries resolved against the registry, series ids fetched from storage, and both remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from twinmesh_core.observations import SeriesKey
from twinmesh_core.quality import FlagReason
from twinmesh_core.registry_fold import RegistryFold
from twinmesh_core.units import TABLE, Units
from twinmesh_ingestion.domain.ports import Log, NewSeries, Registry
from twinmesh_ingestion.domain.resolution import Refused, Resolution, Resolved, SeriesTable, build_table, resolve
from twinmesh_ingestion.domain.unknown_twins import TwinMaker

MAX_TABLES: Final = 256
MAX_TABLE_ENTRIES: Final = 500_000
"""Bounds of the resolved dictionaries kept: how many, and how many entries together."""
MAX_SERIES_IDS: Final = 1_000_000
"""Bound of the series ids kept; beyond it they are fetched again."""
RESOLVE_AT_ONCE: Final = 100_000
"""Most series in one question to storage."""
MAX_LEARNT_AT_ONCE: Final = 1_000
"""Most units of one dictionary that are looked up beside the event loop."""
_MAY_BE_NEW: Final = (FlagReason.UNKNOWN_TWIN, FlagReason.UNKNOWN_CHANNEL)

_SeriesName = tuple[str, str, str]
"""(tenant, twin id, channel)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    table: SeriesTable
    fold: RegistryFold
    generation: int
    may_improve: bool
    """Whether it refuses series that the registry may come to know."""


class Directory:
    """Resolves dictionaries; asks the registry to catch up with the log once before it calls a twin unknown."""

    def __init__(self, log: Log, registry: Registry, units: Units = TABLE, maker: TwinMaker | None = None) -> None:
        self._log = log
        self._units = units
        self._maker = maker
        self._registry = registry
        self._tables: OrderedDict[tuple[str, int], _Kept] = OrderedDict()
        self._entries = 0
        self._ids: dict[_SeriesName, tuple[NewSeries, int]] = {}
        self._fold = registry.fold

    async def table(self, tenant: str, keys: tuple[SeriesKey, ...]) -> SeriesTable:
        """Return the resolved dictionary.

        Raises:
            Unavailable: storage is away, and without it a twin cannot be called unknown, nor a new series be named.
        """
        kept = self._tables.get((tenant, id(keys)))
        if kept is not None and kept.table.keys is keys and self._current(kept):
            self._tables.move_to_end((tenant, id(keys)))
            return kept.table
        resolutions = await self._resolve(tenant, keys)
        if any(isinstance(r, Refused) and r.reason in _MAY_BE_NEW for r in resolutions):
            await self._registry.catch_up()
            resolutions = await self._resolve(tenant, keys)
            if self._maker is not None and await self._make(tenant, keys, resolutions):
                await self._registry.catch_up()
                resolutions = await self._resolve(tenant, keys)
        fold, generation = self._registry.fold, self._registry.generation
        landed = await self._with_ids(tenant, resolutions, fold.offset)
        table = build_table(keys, resolutions, landed)
        may_improve = any(isinstance(r, Refused) and r.reason in _MAY_BE_NEW for r in resolutions)
        self._keep(tenant, _Kept(table=table, fold=fold, generation=generation, may_improve=may_improve))
        return table

    async def _make(self, tenant: str, keys: tuple[SeriesKey, ...], resolutions: list[Resolution]) -> bool:
        unknown = (
            key.twin_id
            for key, r in zip(keys, resolutions, strict=True)
            if isinstance(r, Refused) and r.reason == FlagReason.UNKNOWN_TWIN
        )
        return self._maker is not None and await self._maker.make(self._registry.fold, tenant, unknown) > 0

    def _current(self, kept: _Kept) -> bool:
        if kept.fold is not self._registry.fold:
            return False
        # A table with refusals may be better now; one without can only be spoilt by a change of the registry.
        return kept.generation == self._registry.generation and not kept.may_improve

    async def _resolve(self, tenant: str, keys: tuple[SeriesKey, ...]) -> list[Resolution]:
        unlearnt = self._units.unlearnt({key.unit for key in keys})
        if unlearnt:
            await asyncio.to_thread(self._units.learn, unlearnt[:MAX_LEARNT_AT_ONCE])
        fold = self._registry.fold
        return [resolve(fold, tenant, key, f"batch.series[{i}]", self._units) for i, key in enumerate(keys)]

    async def _with_ids(self, tenant: str, resolutions: list[Resolution], offset: int) -> list[SeriesKey | None]:
        if self._registry.fold is not self._fold:
            # The log was rewound: ids issued after its new end are not valid any more.
            self._fold = self._registry.fold
            self._ids.clear()
        wanted: dict[NewSeries, None] = {}
        named = [r.new_series() if isinstance(r, Resolved) else None for r in resolutions]
        known: dict[NewSeries, int] = {}
        for series in named:
            if series is None:
                continue
            # What storage was told last counts: a class of retention may change, and change back.
            told, series_id = self._ids.get((tenant, series.twin_id, series.channel), (None, 0))
            if told == series:
                known[series] = series_id
            else:
                wanted[series] = None
        found = await self._fetch(tenant, list(wanted), offset)
        landed: list[SeriesKey | None] = []
        for resolution, series in zip(resolutions, named, strict=True):
            if series is None or not isinstance(resolution, Resolved):
                landed.append(None)
                continue
            series_id = found.get(series) or known[series]
            landed.append(replace(resolution.landed, series_id=series_id))
        self._remember(tenant, found)
        return landed

    async def _fetch(self, tenant: str, wanted: list[NewSeries], offset: int) -> dict[NewSeries, int]:
        found: dict[NewSeries, int] = {}
        for start in range(0, len(wanted), RESOLVE_AT_ONCE):
            part = wanted[start : start + RESOLVE_AT_ONCE]
            found.update(zip(part, await self._log.resolve_series(tenant, part, offset), strict=True))
        return found

    def _remember(self, tenant: str, found: dict[NewSeries, int]) -> None:
        if len(self._ids) + len(found) > MAX_SERIES_IDS:
            self._ids.clear()
        self._ids.update(((tenant, s.twin_id, s.channel), (s, series_id)) for s, series_id in found.items())

    def _keep(self, tenant: str, kept: _Kept) -> None:
        key = (tenant, id(kept.table.keys))
        before = self._tables.pop(key, None)
        self._entries += len(kept.table.keys) - (len(before.table.keys) if before is not None else 0)
        self._tables[key] = kept
        while len(self._tables) > MAX_TABLES or (self._entries > MAX_TABLE_ENTRIES and len(self._tables) > 1):
            _, evicted = self._tables.popitem(last=False)
            self._entries -= len(evicted.table.keys)
