"""The demo's pictures, drawn from what storage answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import matplotlib as mpl
import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinmesh_client.aio.twin import Twin
from twinmesh_client.forecasts import Forecast
from twinmesh_client.readings import Reading, SeriesData
from twinmesh_core.quality import Quality
from twinmesh_demo.recorded import Dirt
from twinmesh_demo.thermal import LIMIT_C

mpl.use("Agg")
mpl.rcParams.update({
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold", "legend.frameon": False,
    "figure.dpi": 110,
})  # fmt: skip
# matplotlib.dates carries no types.
_DATE2NUM: Any = mdates.date2num
_LOCATOR: Any = mdates.AutoDateLocator
_FORMATTER: Any = mdates.ConciseDateFormatter
INK, BLUE, ORANGE, RED, GREY = "#1f2933", "#1f6feb", "#d9730d", "#c62828", "#8a94a0"


async def forecast_figure(twin: Twin, forecast: Forecast, *, zone: str, title: str, path: Path) -> None:
    """Draw a day of facts, the forecast made at its end with its band, what then happened, and the limit."""
    before = _rows(await twin.read(forecast.channel, start=forecast.at - timedelta(hours=24), end=forecast.at))
    after = _rows(await twin.read(forecast.channel, start=forecast.at, end=forecast.valid_until))
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    axes = figure.subplots()
    centre = [t + forecast.step / 2 for t in forecast.times]
    axes.fill_between(
        _numbers(centre), forecast.values[:, 0], forecast.values[:, -1], color=BLUE, alpha=0.18, lw=0,
        label=f"forecast, {forecast.levels[-1] - forecast.levels[0]:.0%} band",
    )  # fmt: skip
    axes.plot(_numbers(centre), forecast.quantile(0.5), color=BLUE, lw=1.8, label="forecast, median")
    axes.plot(_times(before[0]), before[0].values, color=GREY, lw=1.0, label="measured before")
    if after and len(after[0]):
        axes.plot(_times(after[0]), after[0].values, color=INK, lw=1.3, label="what then happened")
    if forecast.upper_limit is not None:
        axes.axhline(forecast.upper_limit, color=RED, lw=1.2, ls="--", label=f"limit {forecast.upper_limit:g} °C")
    axes.axvline(_numbers([forecast.at])[0], color=INK, lw=0.8, ls=":")
    unit = "" if forecast.unit in ("", "1") else f", {forecast.unit.replace('Cel', '°C')}"
    _finish(axes, zone, title, forecast.channel.replace("_", " ") + unit)
    figure.savefig(path)


async def control_figure(twins: dict[str, Twin], *, start: datetime, end: datetime, zone: str, path: Path) -> None:
    """Draw T1 against T2: hot-spot above, cooling stage below."""
    figure = Figure(figsize=(9.5, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    for name, colour, who in (("T1", BLUE, "T1, Twinmesh"), ("T2", ORANGE, "T2, own thermostat")):
        reading = await twins[name].read("hot_spot", "cooling_stage", start=start, end=end)
        assert isinstance(reading, Reading)  # noqa: S101  no `every` was given
        upper.plot(_times(reading["hot_spot"]), reading["hot_spot"].values, color=colour, lw=1.4, label=who)
        lower.step(
            _times(reading["cooling_stage"]), reading["cooling_stage"].values, where="post", color=colour, lw=1.6
        )
    upper.axhline(LIMIT_C, color=RED, lw=1.2, ls="--", label=f"limit {LIMIT_C:g} °C")
    _finish(upper, zone, "Same load, same weather: who decides the cooling", "hot spot, °C")
    lower.set_yticks([0, 1, 2, 3])
    _finish(lower, zone, "", "cooling stage")
    figure.savefig(path)


async def dirt_figure(twins: dict[str, Twin], dirt: Dirt, *, zone: str, path: Path) -> None:
    """Draw the dirt as the mesh kept it: spikes and the stuck sensor flagged, the gap left as a gap."""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    busiest = dirt.spike_times[len(dirt.spike_times) // 2]
    await _flagged(left, twins["T1"], "oil", busiest - timedelta(hours=12), busiest + timedelta(hours=12), zone)
    left.set_title("Spikes (T1 oil)")
    hours = timedelta(hours=4)
    await _flagged(middle, twins["T2"], "ambient", dirt.stuck[0] - hours, dirt.stuck[1] + hours, zone)
    middle.set_title("Stuck sensor (T2 ambient)")
    hour = timedelta(hours=1)
    await _flagged(right, twins["T1"], "hot_spot", dirt.gap[0] - hour, dirt.gap[1] + hour, zone)
    right.axvspan(*_numbers(list(dirt.gap)), color=GREY, alpha=0.2, lw=0)
    right.set_title("Gap (T1 hot spot)")
    figure.savefig(path)


async def _flagged(axes: Axes, twin: Twin, channel: str, start: datetime, end: datetime, zone: str) -> None:
    series = _rows(await twin.read(channel, start=start, end=end))[0]
    good = series.quality == Quality.GOOD
    times = _times(series)
    axes.plot(times[good], series.values[good], ".", ms=1.6, color=INK, label="GOOD")
    axes.plot(times[~good], series.values[~good], ".", ms=4, color=ORANGE, label="flagged")
    _finish(axes, zone, "", "°C", ticks=4)


def _rows(answer: Any) -> tuple[SeriesData, ...]:
    assert isinstance(answer, Reading)  # noqa: S101  no `every` was given
    return answer.series


def _times(series: SeriesData) -> Any:
    return series.time_unix_us.view("M8[us]")


def _numbers(moments: list[datetime]) -> Any:
    return np.array([_DATE2NUM(m) for m in moments])


def _finish(axes: Axes, zone: str, title: str, label: str, *, ticks: int = 9) -> None:
    locator = _LOCATOR(tz=ZoneInfo(zone), minticks=2, maxticks=ticks)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(_FORMATTER(locator, tz=ZoneInfo(zone)))
    axes.set_ylabel(label)
    if title:
        axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)
