"""Windows from memory: whatever lies in tail, blocks and hot rows, each value is that of a plain reckoning."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.integration.storage.mesh import Storage, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section, int64_section
from twinmesh_runtime.registry_mapping import duration_to_message, time_to_message

S = 1_000_000
T0 = 1_700_000_000 * S
N = 200
Rows = dict[tuple[str, str], list[tuple[int, float, int]]]
CHANNELS = ["even", "shifted", "bad", "strange", "uneven", "stage"]


def history() -> Rows:
    """Return time, value and quality of each series: evenly spaced in most ways that telemetry is, and not."""
    rng = np.random.default_rng(7)
    rows: Rows = {}
    for twin, length in (("t1", N), ("t2", N - 50), ("t3", N)):
        times = [T0 + i * S for i in range(length)]
        rows[twin, "even"] = [(t, float(i), 1) for i, t in enumerate(times)]
        rows[twin, "shifted"] = [(t + 300_000, 10.0 + i, 1) for i, t in enumerate(times)]
        rows[twin, "bad"] = [(t, float(-i), 3 if i % 17 == 5 else 2) for i, t in enumerate(times)]
        rows[twin, "strange"] = [(t, float("nan") if i == length - 9 else i / 4, 1) for i, t in enumerate(times)]
        kept = [t for t in times if rng.random() > 0.4]
        rows[twin, "uneven"] = [(t + int(rng.integers(0, S)), float(rng.normal()), 1) for t in kept]
        if twin != "t3":
            rows[twin, "stage"] = [(t, float(i // 30), 1) for i, t in enumerate(times)]
    return rows


async def fill(store: Storage, rows: Rows, first: int, last: int) -> int:
    """Append what has an event time within these seconds; returns the offset."""
    keys: list[SeriesKey] = []
    for twin in sorted({twin for twin, _ in rows}):
        reals = [c for c in CHANNELS if (twin, c) in rows and c != "stage"]
        keys += await store.series(twin, reals)
        if (twin, "stage") in rows:
            keys += await store.series(twin, ["stage"], kind=ChannelKind.STATE)
    doubles: list[tuple[int, int, float, int]] = []
    states: list[tuple[int, int, float, int]] = []
    for handle, key in enumerate(keys):
        into = states if key.channel == "stage" else doubles
        part = [r for r in rows[key.twin_id, key.channel] if T0 + first * S <= r[0] < T0 + last * S]
        into += [(handle, *r) for r in part]
    batch = ObservationBatch(
        series=tuple(keys),
        doubles=double_section(*_columns(doubles)),
        int64s=int64_section(*_columns([(h, t, int(v), q) for h, t, v, q in states])),
    )
    return int((await store.append(batch, request_id=f"{first}")).position.offset)


async def folded(store: Storage) -> int:
    return int((await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())).fold_offset)


def _columns(rows: list[tuple[int, int, Any, int]]) -> tuple[Any, Any, Any, Any]:
    return ([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], [r[3] for r in rows])


def plain(rows: Rows, twin: str, channel: str, end: int, step: int, steps: int, hold: bool) -> list[float]:
    """Return a column, value by value."""
    mine = [r for r in rows.get((twin, channel), []) if r[2] <= 2]
    out = []
    for i in range(steps):
        low = end - (steps - i) * step
        inside = [v for t, v, _ in mine if low <= t < low + step]
        if channel == "stage":
            value = inside[-1] if inside else float("nan")
        else:
            value = float(np.mean(inside)) if inside else float("nan")
        out.append(value)
    if hold:
        before = [v for t, v, _ in mine if t < end - steps * step]
        last = before[-1] if before else float("nan")
        for i, value in enumerate(out):
            if np.isnan(value):
                out[i] = last
            else:
                low = end - (steps - i) * step
                last = [v for t, v, _ in mine if low <= t < low + step][-1]
    return out


@pytest.mark.parametrize(
    ("fold_after_s", "most"), [(0.05, None), (60.0, None), (0.05, 0)], ids=["blocks", "tail", "blocks, in a thread"]
)
async def test_every_window_is_that_of_a_plain_reckoning(
    database_url: str, fold_after_s: float, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if most is not None:  # what is large enough to leave the event loop
        monkeypatch.setattr("twinmesh_storage.domain.window_reader._LOOP_VALUES", most)
        monkeypatch.setattr("twinmesh_storage.domain.window_reader._THREAD_VALUES", most)
    rows = history()
    async with storage(database_url, fold_after_s=fold_after_s, fold_rows=1) as store:
        await fill(store, rows, 0, 120)
        offset = await fill(store, rows, 120, N + 1)
        if fold_after_s < 1:
            async with asyncio.timeout(20):
                while await folded(store) < offset:  # noqa: ASYNC110 another process's work
                    await asyncio.sleep(0.05)
        for step, steps, at, hold in (
            (S, 64, None, False),
            (S, 64, T0 + 150 * S, False),
            (S, 64, None, True),
            (2 * S, 40, None, False),
            (S // 2, 50, None, True),
            (S, 260, T0 + 210 * S, False),
            (S, 30, T0 + 205 * S, True),
        ):
            request = storage_pb2.ReadWindowRequest(
                twin_ids=["t1", "t2", "t3"],
                channels=CHANNELS,
                step=duration_to_message(step),
                steps=steps,
                gap_policy=storage_pb2.GAP_POLICY_HOLD if hold else storage_pb2.GAP_POLICY_NONE,
                min_offset=offset,
            )
            if at is not None:
                request.at.CopyFrom(time_to_message(at))
            for _ in range(2):  # the second time from what the first has put into memory
                answer = await store.ask("ReadWindow", request)
                window = np.frombuffer(answer.values).reshape(3, steps, len(CHANNELS))
                coverage = np.array(answer.coverage).reshape(3, len(CHANNELS))
                for i, twin in enumerate(request.twin_ids):
                    end = answer.at_unix_us[i]
                    for j, channel in enumerate(CHANNELS):
                        if channel == "strange" and step > S:
                            continue  # a mean with a NaN in it is NaN; ingestion lets none through
                        known = {k: [r for r in v if not np.isnan(r[1])] for k, v in rows.items()}
                        expected = plain(known, twin, channel, end, step, steps, hold)
                        where = f"{twin}/{channel} step {step} at {at} hold {hold}"
                        np.testing.assert_allclose(window[i, :, j], expected, err_msg=where)
                        bare = plain(known, twin, channel, end, step, steps, False)
                        assert coverage[i, j] == pytest.approx(np.mean(~np.isnan(bare))), where


async def test_the_matrix_is_written_as_the_message_says(database_url: str) -> None:
    """The answer is put together from bytes; protobuf must write the same for what it reads in it."""
    rows = history()
    async with storage(database_url) as store:
        await fill(store, rows, 0, N + 1)
        request = storage_pb2.ReadWindowRequest(twin_ids=["t1", "t3"], channels=CHANNELS, steps=16)
        request.step.FromSeconds(1)
        raw: Any = store.channel.unary_unary("/twinmesh.storage.v1.StorageService/ReadWindow")
        body = await raw(request.SerializeToString(), timeout=20)
        parsed = storage_pb2.ReadWindowResponse.FromString(body)
        assert parsed.SerializeToString() == body
        assert len(parsed.values) == 8 * 2 * 16 * len(CHANNELS)
