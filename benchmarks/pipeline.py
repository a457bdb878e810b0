"""What each stage of ingestion's pipeline costs: ``python -m benchmarks.pipeline``.

No server: batches of 10,000 rows, of one series and of a thousand, go through `pipeline.run` in this process, for a
channel with no check, and for channels with one check each. The floor is one copy of the batch's columns. Medians of
nine rounds of interleaved runs; nanoseconds per point.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from typing import Final

import numpy as np

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_core.registry import ChannelSpec, Twin, TwinType
from twinmesh_core.registry_fold import RegistryFold
from twinmesh_core.time import US_PER_S
from twinmesh_ingestion.domain import pipeline
from twinmesh_ingestion.domain.memory import SeriesMemory
from twinmesh_ingestion.domain.resolution import Resolved, SeriesTable, build_table, resolve

ROWS: Final = 10_000
ROUNDS: Final = 9
NOW: Final = 1_790_000_000_000_000
_KNOWN: Final = {field.name for field in dataclasses.fields(ChannelSpec)}

PLAIN: Final = {"name": "plain", "kind": ChannelKind.GAUGE, "unit": "Cel"}
CHANNELS: Final = {
    "plain": PLAIN,
    "unit": PLAIN,
    "range": PLAIN | {"min_value": -50.0, "max_value": 150.0},
    "rate": PLAIN | {"max_rate_per_s": 50.0},
    "stuck": PLAIN | {"stuck_after_us": 3_600 * US_PER_S},
    "spike": PLAIN | {"spike_threshold": 8.0},
    "deadband_keeps": PLAIN | {"deadband": 1e-9},
    "deadband_drops": PLAIN | {"deadband": 1.0},
    "deadband_mixed": PLAIN | {"deadband": 0.2},
}


def table_of(name: str, series: int) -> SeriesTable:
    """Resolve a dictionary of `series` twins with one channel."""
    spec = ChannelSpec(**(CHANNELS[name] | {"name": name}))  # type: ignore[arg-type]  # the table above
    fold = RegistryFold()
    fold.create_twin_type("default", 1, TwinType(twin_type_id="t", version=1, channels=(spec,)))
    for i in range(series):
        fold.create_twin("default", 2 + i, Twin(twin_id=f"T{i}", twin_type_id="t"))
    unit = "[degF]" if name == "unit" else ""
    keys = tuple(SeriesKey(twin_id=f"T{i}", channel=name, unit=unit) for i in range(series))
    found = [resolve(fold, "default", key, "batch.series") for key in keys]
    landed = [dataclasses.replace(r.landed, series_id=i + 1) for i, r in enumerate(found) if isinstance(r, Resolved)]
    return build_table(keys, found, landed)


def batches(table: SeriesTable, series: int) -> list[ObservationBatch]:
    """Return one batch for each round: seconds of a random walk, by time, then series."""
    rng = np.random.default_rng(7)
    ticks = ROWS // series
    value = np.cumsum(rng.normal(0, 0.1, (ROUNDS * ticks, series)), axis=0) + 20
    handle = np.tile(np.arange(series), ticks)
    made = []
    for i in range(ROUNDS):
        at = NOW - 86_400 * US_PER_S + (i * ticks + np.repeat(np.arange(ticks), series)) * US_PER_S
        section = double_section(handle, at, value[i * ticks : (i + 1) * ticks].ravel())
        made.append(ObservationBatch(series=table.keys, doubles=section))
    return made


def main() -> None:
    """Measure and print."""
    figures: dict[str, list[float]] = {}
    for series in (1, 1_000):
        runs = []
        for name, wanted in CHANNELS.items():
            if set(wanted) <= _KNOWN:
                table = table_of(name, series)
                runs.append((name, table, SeriesMemory(4_096), batches(table, series)))
        for round_ in range(ROUNDS):
            for name, table, memory, made in runs:
                started = time.perf_counter_ns()
                slots = memory.slots("default", table.landed) if table.remembers else np.empty(0, np.intp)
                pipeline.run(made[round_], table, slots, memory, receive_time_unix_us=NOW, backfill=False)
                figures.setdefault(f"{name}_{series}", []).append((time.perf_counter_ns() - started) / ROWS)
            columns = runs[0][3][round_].doubles
            started = time.perf_counter_ns()
            _ = columns.series.copy(), columns.time_unix_us.copy(), columns.quality.copy(), columns.values.copy()
            figures.setdefault(f"copy_{series}", []).append((time.perf_counter_ns() - started) / ROWS)
    median = {name: round(statistics.median(found), 1) for name, found in figures.items()}
    print(
        f"{'stage':<18}{'1 series':>12}{'1,000 series':>14}   ns per point, of the whole pipeline with this stage alone"
    )
    for name in dict.fromkeys(key.rpartition("_")[0] for key in median):
        print(f"{name:<18}{median[f'{name}_1']:>12}{median[f'{name}_1000']:>14}")
    print(json.dumps({"ns_per_point": median}))


if __name__ == "__main__":
    main()
