"""Two transformers under one load: weather, demand, thermostats, operators, and the thermal model.

Everything random comes from one seed, and load and ambient depend on time alone, so T1 and T2 always see the same
world and the recorded past continues into the played future without a seam.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from twinmesh_demo.thermal import FAN_KW, Nameplate, Thermal, ageing_rate, steady, step

RATED_KW: Final = 40_000.0
"""Rated active power of each transformer, kW."""
MINUTE: Final = timedelta(minutes=1)
THERMOSTAT_C: Final = ((58.0, 50.0), (70.0, 62.0), (80.0, 72.0))
"""Top-oil temperature that switches stage 1, 2, 3 on, and off again: like most, it does not know the hot-spot."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """What both transformers see, minute by minute.

    Attributes:
        start: first minute, aware.
        load: float64 [minutes], per unit of the rated power.
        ambient_c: float64 [minutes].
    """

    start: datetime
    load: npt.NDArray[np.float64]
    ambient_c: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.load)

    def index(self, moment: datetime) -> int:
        """Return the minute's index."""
        return int((moment - self.start) // MINUTE)


def build_world(start: datetime, minutes: int, *, zone: str, heat_from: datetime, seed: int) -> World:
    """Return load and ambient for `minutes` from `start`.

    Load has a morning and an afternoon peak on working days, less at weekends, follows the heat (air conditioning), and
    wanders; ambient has the day's swing, slow weather, and heat waves every three weeks, the last one from `heat_from`.
    """
    rng = np.random.default_rng(seed)
    tz = ZoneInfo(zone)
    offset_h = np.array([_utc_offset_h(start + timedelta(days=d), tz) for d in range(minutes // 1440 + 2)])
    t = np.arange(minutes)
    utc_h = start.hour + start.minute / 60 + t / 60
    local_h = utc_h + offset_h[t // 1440]
    hour = local_h % 24
    weekday = (start.weekday() + np.floor(local_h / 24)).astype(int) % 7
    weather = _smooth(rng, minutes, 2_160) * 2.0
    heat = _heat_waves(t, (heat_from - start) / MINUTE)
    ambient = 19.0 + 6.5 * np.cos((hour - 15.5) / 24 * 2 * np.pi) + weather + heat
    working = np.where(weekday < 5, 1.0, 0.95)
    shape = (
        0.52
        + 0.25 * np.exp(-(((hour - 11.4) / 2.9) ** 2))
        + 0.20 * np.exp(-(((hour - 17.5) / 2.6) ** 2))
        - 0.06 * np.exp(-(((hour - 3.5) / 2.5) ** 2))
    )
    cooling_demand = 0.009 * np.clip(ambient - 20.0, 0.0, None)
    load = shape * working + cooling_demand + 0.022 * _smooth(rng, minutes, 180) + 0.006 * rng.standard_normal(minutes)
    return World(start=start, load=np.clip(load, 0.15, 1.4), ambient_c=ambient)


@dataclass(slots=True, kw_only=True)
class Transformer:
    """One transformer with its cooling; `obeys` True = its stage is set from outside, False = its own thermostat.

    Attributes:
        thermal: state of the thermal model.
        stage: cooling stage, 0 to 3.
        obeys: who decides the stage.
        life_used_h: hours of insulation life used so far.
        fan_kwh: energy of the fans so far.
    """

    twin_id: str
    thermal: Thermal
    stage: int = 0
    obeys: bool = False
    life_used_h: float = 0.0
    fan_kwh: float = 0.0
    nameplate: Nameplate = field(default_factory=Nameplate)

    def minute(self, load: float, ambient_c: float, override: int | None = None) -> dict[str, float]:
        """Advance one minute and return what its sensors would read without noise."""
        if override is not None:
            self.stage = override
        elif not self.obeys:
            self.stage = thermostat(self.stage, self.thermal.oil_c)
        self.thermal = step(self.nameplate, self.thermal, load, ambient_c, self.stage, 1.0)
        hot_spot = self.thermal.hot_spot_c
        self.life_used_h += ageing_rate(hot_spot) / 60
        self.fan_kwh += FAN_KW[self.stage] / 60
        return {
            "load": load * RATED_KW,
            "ambient": ambient_c,
            "oil": self.thermal.oil_c,
            "hot_spot": hot_spot,
            "cooling_stage": float(self.stage),
            "fan_power": FAN_KW[self.stage],
        }

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values; `from_json` continues from it."""
        return {"twin_id": self.twin_id, "stage": self.stage, "thermal": asdict(self.thermal)}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Transformer:
        """Continue from a state written by `to_json`, with the meters at zero."""
        return cls(twin_id=state["twin_id"], stage=int(state["stage"]), thermal=Thermal(**state["thermal"]))


def thermostat(stage: int, oil_c: float) -> int:
    """Return the stage that the transformer's own two-point controller chooses."""
    for index, (on_c, off_c) in enumerate(THERMOSTAT_C, start=1):
        if stage < index and oil_c >= on_c:
            stage = index
        elif stage >= index and oil_c < off_c:
            return index - 1
    return stage


SENSORS: Final = {"load": 60.0, "ambient": 0.15, "oil": 0.12, "hot_spot": 0.2, "fan_power": 0.01}
"""Standard deviation of each sensor's noise, in its unit."""


def sense(rng: np.random.Generator, truth: dict[str, float]) -> dict[str, float]:
    """Return what noisy sensors make of the truth; the stage is exact, and no meter shows a negative power."""
    readings = {
        name: value + SENSORS[name] * float(rng.standard_normal()) if name in SENSORS else value
        for name, value in truth.items()
    }
    readings["fan_power"] = max(0.0, readings["fan_power"])
    return readings


def record(
    world: World, transformer: Transformer, minutes: int, *, seed: int
) -> Iterator[tuple[datetime, dict[str, float]]]:
    """Play the recorded past of one transformer and yield its readings, minute by minute.

    Its operators test the cooling now and then: a random stage for one to four hours, a seventh of the time. Without
    such moments no model could learn what the stages do, since the thermostat makes them follow the temperature.
    """
    rng = np.random.default_rng(seed)
    override: int | None = None
    left = int(rng.integers(300, 900))
    for minute in range(minutes):
        left -= 1
        if left <= 0:
            if override is None:
                override, left = int(rng.integers(0, 4)), int(rng.integers(60, 240))
            else:
                override, left = None, int(rng.integers(360, 1_500))
        if override is not None and override < 2 and transformer.thermal.hot_spot_c > 96.0:
            override = None  # no operator tests with less cooling on a hot transformer
        truth = transformer.minute(float(world.load[minute]), float(world.ambient_c[minute]), override)
        yield world.start + minute * MINUTE, sense(rng, truth)


def initial(world: World, twin_id: str) -> Transformer:
    """Return a transformer that has settled under the world's first minute."""
    nameplate = Nameplate()
    thermal = steady(nameplate, float(world.load[0]), float(world.ambient_c[0]), 1)
    return Transformer(twin_id=twin_id, thermal=thermal, stage=1, nameplate=nameplate)


SITES: Final = (
    "Pacific/Auckland",
    "Australia/Sydney",
    "Asia/Tokyo",
    "Asia/Shanghai",
    "Asia/Bangkok",
    "Asia/Dhaka",
    "Asia/Karachi",
    "Asia/Dubai",
    "Africa/Nairobi",
    "Africa/Johannesburg",
    "Europe/Berlin",
    "Europe/London",
    "Atlantic/Cape_Verde",
    "America/Noronha",
    "America/Sao_Paulo",
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
    "America/Anchorage",
    "Pacific/Honolulu",
    "Pacific/Pago_Pago",
)


def morning_site(moment: datetime, hour: float = 7.0) -> str:
    """Return the site whose local time is nearest to `hour` at `moment`: so the demo sees a day's peak at any time."""

    def distance(zone: str) -> float:
        local = moment.astimezone(ZoneInfo(zone))
        off = abs(local.hour + local.minute / 60 - hour)
        return min(off, 24 - off)

    return min(SITES, key=distance)


def floor_half_hour(moment: datetime) -> datetime:
    """Return the half hour that holds the moment, UTC: a whole number of steps of 10 or 15 min."""
    whole = moment.astimezone(UTC).replace(second=0, microsecond=0)
    return whole - timedelta(minutes=whole.minute % 30)


def _heat_waves(minute: npt.NDArray[np.int64], last_begins: float) -> npt.NDArray[np.float64]:
    """Return what heat waves add, K: three days up to 10 K, three days there, two days down; one every 22 days."""
    day = (minute - last_begins) / 1_440
    heat = np.clip(day / 3.2, 0.0, 1.0)
    for earlier in (22, 44, 66):
        past = day + earlier
        heat = heat + np.clip(past / 3.2, 0.0, 1.0) * np.clip((8.2 - past) / 2.0, 0.0, 1.0)
    return np.asarray(10.2 * heat)


def _utc_offset_h(moment: datetime, zone: ZoneInfo) -> float:
    offset = moment.astimezone(zone).utcoffset()
    return 0.0 if offset is None else offset / timedelta(hours=1)


def _smooth(rng: np.random.Generator, minutes: int, correlation_minutes: int) -> npt.NDArray[np.float64]:
    """Return a unit-variance wandering series: white noise through a first-order lag, at 10 min and interpolated."""
    coarse_n = minutes // 10 + 2
    decay = float(np.exp(-10.0 / correlation_minutes))
    noise = rng.standard_normal(coarse_n) * np.sqrt(1.0 - decay * decay)
    coarse = np.empty(coarse_n)
    coarse[0] = rng.standard_normal()
    for i in range(1, coarse_n):
        coarse[i] = decay * coarse[i - 1] + noise[i]
    return np.asarray(np.interp(np.arange(minutes), np.arange(coarse_n) * 10, coarse))
