"""What the producers send: every point follows from the plan, so a judge can compute what should be there.

Producer ``p3`` writes one series, channel ``v`` of a twin of its own name. Its batch of sequence n has event times
of its own, and values whose 64 bits are as good as random: a point that is doubled, cut, moved or altered shows.
Some batches carry poison: rows that must end in quarantine, with a known reason, and harm nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import HANDLE, QUALITY, TIME, ObservationBatch, SeriesKey, TextSection, double_section
from twinmesh_core.quality import FlagReason
from twinmesh_core.registry import ChannelSpec, TwinType

T0: Final = 1_700_000_000_000_000
S: Final = 1_000_000
CHANNEL: Final = "v"

PROBE: Final = TwinType(
    twin_type_id="probe",
    version=1,
    channels=(
        ChannelSpec(name=CHANNEL, kind=ChannelKind.GAUGE, unit="Cel"),
        ChannelSpec(name="pressure", kind=ChannelKind.GAUGE, unit="Pa"),
        ChannelSpec(name="note", kind=ChannelKind.TEXT),
        ChannelSpec(name="config", kind=ChannelKind.JSON),
    ),
)
"""The type of the producers' twins."""

Kept = tuple[str, str, int, int]
"""A row that belongs in quarantine: twin, channel, event time, reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run sends.

    Attributes:
        name: of the run.
        seed: everything follows from it.
        rows: good rows of a batch.
        poison: share of batches that carry poison.
    """

    name: str
    seed: int
    rows: int = 200
    poison: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as the first line of a history holds it."""
        return asdict(self)

    def times(self, sequence: int) -> npt.NDArray[np.int64]:
        """Return the event times of a batch's good rows."""
        return T0 + S * ((sequence - 1) * self.rows + np.arange(self.rows, dtype=np.int64))

    def values(self, producer: str, sequence: int) -> npt.NDArray[np.float64]:
        """Return their values."""
        return self._random(producer, sequence).standard_normal(self.rows)

    def is_poisoned(self, producer: str, sequence: int) -> bool:
        """Whether the batch carries poison."""
        if not self.poison:
            return False
        return float(self._random(producer, sequence, b"poison").random()) < self.poison

    def sequence_at(self, time_unix_us: int) -> int:
        """Return the sequence of the batch that holds this event time."""
        return (time_unix_us - T0) // S // self.rows + 1

    def _random(self, producer: str, sequence: int, purpose: bytes = b"") -> np.random.Generator:
        key = blake2b(f"{self.seed}/{producer}/{sequence}/".encode() + purpose, digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))

    def batch(self, producer: str, sequence: int, keys: tuple[SeriesKey, ...] = ()) -> ObservationBatch:
        """Return a batch as the producer sends it; `keys` are resolved ones for a sender that talks to storage."""
        good = keys or (SeriesKey(twin_id=producer, channel=CHANNEL),)
        handles, times = np.zeros(self.rows, HANDLE), self.times(sequence)
        values = self.values(producer, sequence)
        if not self.is_poisoned(producer, sequence):
            return ObservationBatch(series=good, doubles=double_section(handles, times, values))
        at = int(times[0])
        series = (
            *good,
            SeriesKey(twin_id=f"ghost-{producer}", channel=CHANNEL),
            SeriesKey(twin_id=producer, channel="nowhere"),
            SeriesKey(twin_id=producer, channel="pressure", unit="kg"),
            SeriesKey(twin_id=producer, channel="pressure", unit="bar"),
            SeriesKey(twin_id=producer, channel="note"),
            SeriesKey(twin_id=producer, channel="config"),
        )
        spoilt = np.array([np.nan, np.inf, 1.0, 2.0, 3.0, 1e305, 4.0])
        doubles = double_section(
            np.concatenate([handles, np.array([0, 0, 1, 2, 3, 4, 5], HANDLE)]),
            np.concatenate([times, [at - 3 * 86_400 * S * 365, at - 1, at, at, at, at + 1, at]]),
            np.concatenate([values, spoilt]),
        )
        bad = (b"\xff\xfe\xc3", b"fine\xf0\x28")
        texts = _texts(5, at + 1, bad)
        jsons = _texts(6, at, (b'{"open": ', b"\xff"))
        return ObservationBatch(series=series, doubles=doubles, texts=texts, jsons=jsons)

    def kept(self, producer: str, sequence: int) -> list[Kept]:
        """Return the rows of the batch that belong in quarantine."""
        if not self.is_poisoned(producer, sequence):
            return []
        at = int(self.times(sequence)[0])
        return [
            (producer, CHANNEL, at - 3 * 86_400 * S * 365, FlagReason.NOT_FINITE),
            (producer, CHANNEL, at - 1, FlagReason.NOT_FINITE),
            (f"ghost-{producer}", CHANNEL, at, FlagReason.UNKNOWN_TWIN),
            (producer, "nowhere", at, FlagReason.UNKNOWN_CHANNEL),
            (producer, "pressure", at, FlagReason.INCOMPATIBLE_UNIT),
            (producer, "pressure", at + 1, FlagReason.NOT_FINITE),
            (producer, "note", at, FlagReason.WRONG_KIND),
            (producer, "note", at + 1, FlagReason.MALFORMED_VALUE),
            (producer, "note", at + 2, FlagReason.MALFORMED_VALUE),
            (producer, "config", at, FlagReason.MALFORMED_VALUE),
            (producer, "config", at + 1, FlagReason.MALFORMED_VALUE),
        ]

    def digest(self, producer: str, sequence: int) -> str:
        """Return what stands for the batch's good rows in a log."""
        return rows_digest(self.times(sequence), self.values(producer, sequence))


def rows_digest(times: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> str:
    """Return the digest of rows: their times and the bits of their values."""
    return blake2b(times.tobytes() + values.tobytes(), digest_size=16).hexdigest()


def _texts(handle: int, start: int, texts: tuple[bytes, ...]) -> TextSection:
    return TextSection(
        series=np.full(len(texts), handle, HANDLE),
        time_unix_us=np.array([start + i for i in range(len(texts))], TIME),
        quality=np.zeros(len(texts), QUALITY),
        end_offset=np.cumsum([len(t) for t in texts]).astype(np.uint32),
        heap=b"".join(texts),
    )


def producers(count: int, prefix: str = "p") -> Iterator[str]:
    """Yield the names of producers."""
    return (f"{prefix}{i}" for i in range(count))
