"""A small plant for tests of ingestion: one type, two pumps, and short ways to write batches of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_core.registry import ChannelSpec, Twin, TwinType
from twinmesh_core.time import US_PER_S
from twinmesh_ingestion.adapters.memory import MemoryLog, MemoryRegistry
from twinmesh_ingestion.domain.intake import Intake
from twinmesh_ingestion.rpc.acks import AckReceipts
from twinmesh_testing.clock import FakeClock

NOW = FakeClock().now_unix_us()
S = US_PER_S

PUMP = TwinType(
    twin_type_id="pump",
    version=1,
    channels=(
        ChannelSpec(name="temperature", kind=K.GAUGE, unit="°C", min_value=-40, max_value=150),
        ChannelSpec(name="pressure", kind=K.GAUGE, unit="bar", max_rate_per_s=1.0),
        ChannelSpec(name="vibration", kind=K.GAUGE, unit="mm/s", spike_threshold=4.0),
        ChannelSpec(name="level", kind=K.GAUGE, unit="%", stuck_after_us=10 * S),
        ChannelSpec(name="energy", kind=K.COUNTER, unit="kWh", max_rate_per_s=5.0),
        ChannelSpec(name="stage", kind=K.STATE, min_value=0, max_value=3),
        ChannelSpec(name="running", kind=K.BOOL),
        ChannelSpec(name="note", kind=K.TEXT),
        ChannelSpec(name="config", kind=K.JSON),
    ),
)


class Monotonic(FakeClock):
    """The fake clock under the port's name for monotonic time, which moves a little with every look."""

    def monotonic_s(self) -> float:
        self.jump(0.01)
        return self.monotonic()


def registry(*, visible: bool = True) -> MemoryRegistry:
    found = MemoryRegistry(visible=visible)
    found.create(PUMP)
    for twin_id in ("P1", "P2"):
        found.create(Twin(twin_id=twin_id, twin_type_id="pump"))
    return found


def intake(
    log: MemoryLog, known: MemoryRegistry | None = None, *, patience_s: float = 5.0, remembered_series: int = 100
) -> Intake:
    return Intake(
        log=log,
        registry=known or registry(),
        receipts=AckReceipts(),
        clock=Monotonic(),
        patience_s=patience_s,
        remembered_series=remembered_series,
    )


def gauges(
    channel: str,
    values: npt.ArrayLike,
    *,
    start: int = NOW - 1_000 * S,
    step: int = S,
    twin: str = "P1",
    unit: str = "",
) -> ObservationBatch:
    n = len(np.asarray(values))
    return ObservationBatch(
        series=(SeriesKey(twin_id=twin, channel=channel, unit=unit),),
        doubles=double_section(np.zeros(n), start + step * np.arange(n), values),
    )


def landed(log: MemoryLog, entry: int = -1) -> ObservationBatch:
    batch = wire.walk(log.entries[entry].submission.body)
    assert batch is not None
    return batch
