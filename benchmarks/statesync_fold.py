"""How fast state-sync folds: ``python -m benchmarks.statesync_fold``.

One core, no network: landed batches as bytes, decoded, folded, and each change encoded for watchers. CPU seconds are
counted, since the wall clock of a shared machine is not ours. Beside the history load stands its floor: decoding the
same bytes and sorting their rows by numpy, without any replica. Medians of three.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_core.registry import ChannelSpec, Twin, TwinType
from twinmesh_runtime.observation_codec import decode_batch
from twinmesh_statesync.domain.entries import Action, ControlEntry, CreateTwin, CreateTwinType, LogEntry
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.rpc.mapping.replicas import encode_event

T0 = 1_700_000_000_000_000
SECOND = 1_000_000
CHANNELS = tuple(f"c{i}" for i in range(8))
ROWS = 10_000
BATCHES = 160
UPDATED_TWINS = 1_000
UPDATE_ROUNDS = 40


def fold_with(twins: int) -> Fold:
    """Return a fold with one type and so many twins."""
    channels = tuple(ChannelSpec(name=name, kind=ChannelKind.GAUGE) for name in CHANNELS)
    kind = TwinType(twin_type_id="pump", version=1, channels=channels)
    actions: list[Action] = [CreateTwinType(twin_type=kind), *(CreateTwin(twin=_twin(i)) for i in range(twins))]
    fold = Fold()
    for offset, action in enumerate(actions, start=1):
        control = ControlEntry(request_id=f"r{offset}", principal="bench", action=action)
        fold.apply(LogEntry(offset=offset, tenant="default", commit_time_unix_us=T0, body=control))
    return fold


def _twin(number: int) -> Twin:
    return Twin(twin_id=f"t{number}", twin_type_id="pump")


def history() -> list[bytes]:
    """Return batches of 10,000 rows of eight series: a recorded past being loaded."""
    keys = tuple(SeriesKey(twin_id="t0", channel=name, kind=ChannelKind.GAUGE) for name in CHANNELS)
    handles = np.arange(ROWS) % len(keys)
    quality = np.ones(ROWS, np.uint8)
    return [
        wire.encode(
            ObservationBatch(
                series=keys,
                doubles=double_section(handles, T0 + (i * ROWS + np.arange(ROWS)) * SECOND, handles + 0.5, quality),
            )
        )
        for i in range(BATCHES)
    ]


def updates() -> list[bytes]:
    """Return batches in which each row is another twin: a fleet reporting live."""
    keys = tuple(SeriesKey(twin_id=f"t{i}", channel="c0", kind=ChannelKind.GAUGE) for i in range(UPDATED_TWINS))
    rows, quality = np.arange(UPDATED_TWINS), np.ones(UPDATED_TWINS, np.uint8)
    return [
        wire.encode(
            ObservationBatch(
                series=keys,
                doubles=double_section(rows, np.full(UPDATED_TWINS, T0 + i * SECOND), rows + float(i), quality),
            )
        )
        for i in range(UPDATE_ROUNDS)
    ]


def fold_all(bodies: list[bytes], twins: int) -> float:
    """Fold and encode everything; returns CPU seconds."""
    fold = fold_with(twins)
    started = time.process_time()
    for body in bodies:
        entry = LogEntry(offset=fold.offset + 1, tenant="default", commit_time_unix_us=T0, body=decode_batch(body))
        for change in fold.apply(entry).changes:
            encode_event(change)
    return time.process_time() - started


def sort_all(bodies: list[bytes]) -> float:
    """Decode and sort everything; returns CPU seconds: what the fold cannot be faster than."""
    started = time.process_time()
    for body in bodies:
        doubles = decode_batch(body).doubles
        np.lexsort((doubles.time_unix_us, doubles.series))
    return time.process_time() - started


def median(measure: Callable[[], float]) -> float:
    """Return the median of three."""
    return statistics.median(measure() for _ in range(3))


def main() -> None:
    """Print one JSON object."""
    past, live = history(), updates()
    load_s, floor_s = median(lambda: fold_all(past, 1)), median(lambda: sort_all(past))
    update_s = median(lambda: fold_all(live, UPDATED_TWINS))
    points, changed = BATCHES * ROWS, UPDATED_TWINS * UPDATE_ROUNDS
    print(f"history: {points / load_s:,.0f} points per CPU second; numpy alone {points / floor_s:,.0f}")
    print(f"updates: {changed / update_s:,.0f} replicas folded and encoded per CPU second (target 20,000)")
    print(
        json.dumps(
            {
                "state_updates_per_s": round(changed / update_s),
                "history_points_per_s": round(points / load_s),
                "history_fold_vs_sort": round(floor_s / load_s, 3),
                "cores": 1,
            }
        )
    )


if __name__ == "__main__":
    main()
