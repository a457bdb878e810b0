"""The class of retention that a twin type gives a channel reaches storage, whenever it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tests.unit.ingestion.plant import PUMP, gauges, intake, registry

from twinmesh_core.registry import Twin
from twinmesh_ingestion.adapters.memory import MemoryLog
from twinmesh_ingestion.domain.ports import NewSeries

CLASSED = replace(PUMP, version=2, channels=(replace(PUMP.channels[0], retention_class="slow"), *PUMP.channels[1:]))


class ToldLog(MemoryLog):
    """Keeps what it is told of series."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int]] = []

    async def resolve_series(self, tenant: str, series: Sequence[NewSeries], registry_offset: int) -> list[int]:
        self.told += [(s.retention_class, registry_offset) for s in series]
        return await super().resolve_series(tenant, series, registry_offset)


async def test_storage_is_told_of_a_class_once_and_again_when_it_changes_and_changes_back():
    log, known = ToldLog(), registry()
    known.create(CLASSED)
    taking = intake(log, known)
    expected = []
    for version, name in ((2, "slow"), (1, ""), (2, "slow")):
        known.delete("P1")
        known.create(Twin(twin_id="P1", twin_type_id="pump", twin_type_version=version))
        for turn in range(2):
            batch = gauges("temperature", [20.0 + turn])
            prepared = await taking.prepare("default", batch, content_hash=b"h" * 16, backfill=False)
            await taking.append("default", prepared, request_id="")
        expected.append((name, known.fold.offset))
    assert log.told == expected
