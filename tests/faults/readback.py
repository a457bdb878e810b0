"""What the mesh holds at the end, read in full through the public API, and kept in files beside the ledger."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tests.faults.points import CHANNEL, rows_digest
from tests.integration.storage.mesh import Storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, Unavailable
from twinmesh_runtime.caller import ALL_TENANTS

_COUNTS = ("landed_point_count", "point_count", "quarantined_count", "entry_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """One observation entry of the log.

    Attributes:
        series: (twin, channel, first event time) of each series that has rows.
        rows: number of rows.
        digest: of its rows' times and value bits.
    """

    offset: int
    series: tuple[tuple[str, str, int], ...]
    rows: int
    digest: str


@dataclass(slots=True, kw_only=True)
class Readback:
    """Everything that was read.

    Attributes:
        log: the observation entries.
        followed: (offset, digest of the body) of every entry, as a follower from the beginning got them.
        reads: by twin, event times and values of its series.
        quarantine: rows kept aside: twin, channel, event time, reason, offset of the entry.
        statistics: the service's own counts.
        followers: what each follower saw that followed while all went on, as in `followed`.
    """

    log: list[Landed] = field(default_factory=list)
    followed: list[tuple[int, str]] = field(default_factory=list)
    reads: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = field(default_factory=dict)
    quarantine: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    statistics: dict[str, int] = field(default_factory=dict)
    followers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def points(self) -> int:
        """Points that were read back from the log."""
        return sum(entry.rows for entry in self.log)

    def save(self, directory: Path) -> None:
        """Keep it."""
        plain = {
            "log": [asdict(entry) for entry in self.log],
            "followed": self.followed,
            "quarantine": self.quarantine,
            "statistics": self.statistics,
            "followers": self.followers,
        }
        (directory / "readback.json").write_text(json.dumps(plain))
        arrays: dict[str, Any] = {}
        for twin, (times, values) in self.reads.items():
            arrays |= {f"{twin}/t": times, f"{twin}/v": values}
        np.savez(directory / "readback.npz", **arrays)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what was kept."""
        plain = json.loads((directory / "readback.json").read_text())
        with np.load(directory / "readback.npz", allow_pickle=False) as arrays:
            twins = {name.removesuffix("/t") for name in arrays.files if name.endswith("/t")}
            reads = {twin: (arrays[f"{twin}/t"], arrays[f"{twin}/v"]) for twin in sorted(twins)}
        return cls(
            log=[
                Landed(
                    offset=entry["offset"],
                    series=tuple((t, c, first) for t, c, first in entry["series"]),
                    rows=entry["rows"],
                    digest=entry["digest"],
                )
                for entry in plain["log"]
            ],
            followed=[(offset, digest) for offset, digest in plain["followed"]],
            reads=reads,
            quarantine=[(t, c, at, reason, offset) for t, c, at, reason, offset in plain["quarantine"]],
            statistics=plain["statistics"],
            followers={n: [(offset, digest) for offset, digest in seen] for n, seen in plain["followers"].items()},
        )


def body_digest(entry: storage_pb2.LogEntry) -> str:
    """Return what stands for an entry's content."""
    body = entry.observations or entry.control.SerializeToString(deterministic=True)
    return blake2b(body, digest_size=8).hexdigest()


def landed(entry: storage_pb2.LogEntry) -> Landed:
    """Return what an observation entry holds."""
    batch = wire.walk(entry.observations)
    assert batch is not None, "the log holds what is not canonical"
    rows = batch.doubles
    order = np.lexsort((rows.time_unix_us, rows.series))
    first: dict[int, int] = {}
    for handle, time in zip(rows.series[order].tolist(), rows.time_unix_us[order].tolist(), strict=True):
        first.setdefault(handle, time)
    others = [(name, s) for name, s in batch.sections() if name != "doubles" and len(s)]
    return Landed(
        offset=entry.offset,
        series=(
            *((batch.series[h].twin_id, batch.series[h].channel, t) for h, t in first.items()),
            *((name, "", 0) for name, _ in others),
        ),
        rows=batch.point_count(),
        digest=rows_digest(rows.time_unix_us[order], rows.values[order]),
    )


async def read_back(store: Storage, twins: Iterable[str], witness: Follow | None = None) -> Readback:
    """Read everything through the public API; what has left the log is taken from a follower that saw it."""
    head = (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position.offset
    found = Readback()
    if witness is None:
        async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as frames:
            async for frame in frames:
                for entry in frame.entries:
                    found.followed.append((entry.offset, body_digest(entry)))
                    if entry.WhichOneof("body") == "observations":
                        found.log.append(landed(entry))
                if frame.through.offset >= head:
                    break
    else:
        found.log, found.followed = list(witness.kept), list(witness.seen)
    found.reads = await _read(store, sorted(set(twins)), head)
    found.quarantine = await _quarantine(store)
    statistics = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
    found.statistics = {name: getattr(statistics, name) for name in _COUNTS}
    return found


async def _read(
    store: Storage, twins: list[str], head: int
) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    parts: dict[str, list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]] = defaultdict(list)
    listed = await store.ask("ListSeries", storage_pb2.ListSeriesRequest(page_size=10_000))
    known = {s.key.twin_id for s in listed.series if s.key.channel == CHANNEL}
    wanted = [storage_pb2.SeriesSelector(twin_id=t, channel=CHANNEL) for t in twins if t in known]
    if not wanted:
        return {}
    async for part in store.stream("ReadRange", storage_pb2.ReadRangeRequest(series=wanted, min_offset=head)):
        rows = part.batch.doubles
        handles = np.array(rows.series, np.uint32)
        times, values = np.array(rows.time_unix_us, np.int64), np.array(rows.value, np.float64)
        for handle, key in enumerate(part.batch.series):
            own = handles == handle
            parts[key.twin_id].append((times[own], values[own]))
    return {t: (np.concatenate([p[0] for p in ps]), np.concatenate([p[1] for p in ps])) for t, ps in parts.items()}


async def _quarantine(store: Storage) -> list[tuple[str, str, int, int, int]]:
    rows: list[tuple[str, str, int, int, int]] = []
    token = ""
    while True:
        page = await store.ask("ListQuarantine", storage_pb2.ListQuarantineRequest(page_size=10_000, page_token=token))
        rows += [(r.twin_id, r.channel, r.time_unix_us, int(r.reason), r.offset) for r in page.rows]
        token = page.next_page_token
        if not token:
            return rows


class Follow:
    """A follower that lives through everything: it resumes after the last entry it saw.

    Args:
        dallies_s: pause after each frame, which makes it fall behind what is in memory.
        consumer: name under which it tells the log how far it has come, so that what it has seen may leave.

    Attributes:
        seen: (offset, digest) of every entry, in the order seen.
        rewound: the log was found to have lost what had been followed.
        kept: what the observation entries held; only of a `consumer`.
    """

    def __init__(self, store: Storage, *, dallies_s: float = 0.0, consumer: str = "") -> None:
        self.seen: list[tuple[int, str]] = []
        self.kept: list[Landed] = []
        self.rewound = False
        self.dallies_s = dallies_s
        self._store = store
        self._consumer = consumer

    async def run(self) -> None:
        """Follow for ever."""
        incarnation = ""
        while True:
            request = storage_pb2.FollowRequest()
            if self.seen:
                request.after.offset, request.after.incarnation = self.seen[-1][0], incarnation
            try:
                async with aclosing(self._store.stream("Follow", request)) as frames:
                    async for frame in frames:
                        incarnation = frame.through.incarnation
                        self.seen += [(entry.offset, body_digest(entry)) for entry in frame.entries]
                        if self._consumer:
                            self.kept += [landed(e) for e in frame.entries if e.WhichOneof("body") == "observations"]
                            await self._register(frame.through)
                        if self.dallies_s:
                            await asyncio.sleep(self.dallies_s)
            except Unavailable:
                await asyncio.sleep(0.05)
            except FailedPrecondition:
                # The log ends before what was followed already: no build but a broken one says so.
                self.rewound = True
                self.seen.clear()

    async def _register(self, through: position_pb2.LogPosition) -> None:
        request = storage_pb2.RegisterCheckpointRequest(consumer=self._consumer, covered=through)
        await replace(self._store, tenant=ALL_TENANTS).ask("RegisterCheckpoint", request)

    async def reached(self, head: int) -> None:
        """Wait until it saw everything up to the head."""
        while head and (not self.seen or self.seen[-1][0] < head):  # noqa: ASYNC110 -- plain data
            await asyncio.sleep(0.02)
