"""History: `latest` and `range`."""

from __future__ import annotations

import argparse
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import CommandFailedError, UsageError
from twinmesh_cli.output import Output, plain, show_number, show_time
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    import pandas as pd

    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.readings import Reading


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    latest = commands.add_parser("latest", parents=[common], help="the newest value of each channel")
    latest.add_argument("twin", metavar="TWIN", help="whose values")
    latest.add_argument("channels", nargs="*", metavar="CHANNEL", help="only these (default: all)")
    latest.add_argument("--at", metavar="TIME", help="the newest at or before this time")
    latest.add_argument("--as-of", type=int, default=0, metavar="OFFSET", help="what was known at this log offset")
    latest.set_defaults(run=on_mesh(_latest))
    history = commands.add_parser("range", parents=[common], help="history: rows, or aggregates with --every")
    history.add_argument("twin", metavar="TWIN", help="whose history")
    history.add_argument("channels", nargs="*", metavar="CHANNEL", help="only these (default: all)")
    history.add_argument("--last", metavar="SPAN", help="up to the newest value, e.g. 6h (default: 1h)")
    history.add_argument("--start", metavar="TIME", help="from here on, e.g. 2026-11-23T00:00:00Z")
    history.add_argument("--end", metavar="TIME", help="up to here, not included")
    history.add_argument("--at", metavar="TIME", help="where --last ends, instead of at the newest value")
    history.add_argument("--every", metavar="SPAN", help="aggregate, e.g. 5min, 1d, month")
    history.add_argument(
        "--agg",
        default="mean",
        help="mean (default), min, max, sum, count, first, last, stddev, median, p95, increase, rate, "
        "time_weighted_mean, time_at:2; several joined by commas",
    )
    history.add_argument("--fill", default="none", choices=("none", "hold", "linear"), help="what empty buckets show")
    history.add_argument("--max-gap", metavar="SPAN", help="the longest gap that --fill bridges")
    history.add_argument(
        "--points", type=int, metavar="N", help="at most N rows per channel that show the shape of all"
    )
    history.add_argument(
        "--method", choices=("lttb", "min_max"), help="how --points chooses: shape (lttb, default), or every peak"
    )
    history.add_argument("--rows", type=int, default=0, metavar="N", help="only the newest N rows per channel")
    history.add_argument("--tz", default="", metavar="ZONE", help="zone in which buckets begin, with --every")
    history.add_argument("--as-of", type=int, default=0, metavar="OFFSET", help="what was known at this log offset")
    history.add_argument(
        "--quality", choices=("good", "uncertain", "bad"), help="the worst that counts (default: bad for rows)"
    )
    history.add_argument(
        "--limit", type=int, default=40, metavar="ROWS", help="rows of the table (default: 40; 0 = all)"
    )
    history.add_argument("--csv", metavar="FILE", help="write a CSV file instead; - = standard output")
    history.set_defaults(run=on_mesh(_range))


async def _latest(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    reading = await mesh.twins[arguments.twin].latest(*arguments.channels, at=arguments.at, as_of=arguments.as_of)
    silent = set(arguments.channels) - {s.channel for s in reading.series}
    if silent or not reading.series:
        # Unknown names are told apart from what has not spoken yet.
        kind = await mesh.twins[arguments.twin].type()
        for channel in (c for c in arguments.channels if c in silent):
            if kind.channel(channel) is None:
                raise CommandFailedError(
                    f"twin {arguments.twin!r} has no channel {channel!r}; it has: {kind.channel_names()}"
                )
    now_us = int(datetime.now(UTC).timestamp() * 1e6)
    rows = [
        (
            s.channel,
            show_number(s.values[-1].item() if hasattr(s.values[-1], "item") else s.values[-1]),
            s.unit,
            _quality(int(s.quality[-1])),
            show_time(_moment(int(s.time_unix_us[-1]))),
            _age((now_us - int(s.time_unix_us[-1])) / 1e6),
        )
        for s in reading.series
        if len(s)
    ]
    out.table(
        ("channel", "value", "unit", "quality", "event time", "age"),
        rows,
        empty=f"no value yet; write one: twinmesh write {arguments.twin} CHANNEL=VALUE",
    )
    out.document({"twin_id": arguments.twin, "channels": _points(reading), "as_of": reading.as_of})
    return 0


def _points(reading: Reading) -> dict[str, Any]:
    return {
        s.channel: {
            "value": plain(s.values[-1]),
            "unit": s.unit,
            "quality": _quality(int(s.quality[-1])),
            "event_time": plain(_moment(int(s.time_unix_us[-1]))),
        }
        for s in reading.series
        if len(s)
    }


async def _range(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    if arguments.last and (arguments.start or arguments.end):
        raise UsageError("--last excludes --start and --end", remedy=f"twinmesh range {arguments.twin} --last 6h")
    for option, given, needs, missing in (
        ("--fill", arguments.fill != "none", "--every 5min", not arguments.every),
        ("--tz", arguments.tz, "--every 1d", not arguments.every),
        ("--max-gap", arguments.max_gap, "--fill hold", arguments.fill == "none"),
        ("--method", arguments.method, "--points 500", not arguments.points),
    ):
        if given and missing:
            raise UsageError(f"{option} needs {needs.split()[0]}", remedy=f"twinmesh range {arguments.twin} {needs}")
    bounded = arguments.start or arguments.end or arguments.rows
    last = arguments.last or (None if bounded else "1h")
    answer = await mesh.twins[arguments.twin].read(
        *arguments.channels,
        last=last,
        start=arguments.start,
        end=arguments.end,
        at=arguments.at,
        every=arguments.every,
        agg=[a.strip() for a in arguments.agg.split(",")],
        fill=arguments.fill,
        max_gap=arguments.max_gap,
        points=arguments.points,
        method=arguments.method or "lttb",
        last_count=arguments.rows,
        as_of=arguments.as_of,
        min_quality=arguments.quality,
        time_zone=arguments.tz,
    )
    frame = answer.to_pandas()
    if arguments.csv:
        _write_csv(frame, arguments.csv, out)
        return 0
    _print_frame(frame, arguments.limit, out)
    times = [plain(t.to_pydatetime()) for t in frame.index]
    columns = {str(c): [plain(v) for v in frame[c].tolist()] for c in frame.columns}
    out.document({"twin_id": arguments.twin, "time": times, "columns": columns, "as_of": answer.as_of})
    return 0


def _write_csv(frame: pd.DataFrame, path: str, out: Output) -> None:
    import sys

    if path == "-":
        frame.to_csv(sys.stdout, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
        return
    frame.to_csv(Path(path), date_format="%Y-%m-%dT%H:%M:%S.%fZ")
    out.line(f"{len(frame):,} rows in {path}")
    out.document({"rows": len(frame), "file": path})


def _print_frame(frame: pd.DataFrame, limit: int, out: Output) -> None:
    shown = frame if limit <= 0 or len(frame) <= limit else frame.iloc[-limit:]
    rows = [
        (show_time(time.to_pydatetime()), *(show_number(_none_if_missing(v)) for v in row))
        for time, row in zip(shown.index, shown.itertuples(index=False, name=None), strict=True)
    ]
    out.table(("time", *map(str, shown.columns)), rows, empty="no value in this range")
    if len(shown) < len(frame):
        out.line(f"the last {len(shown):,} of {len(frame):,} rows; all of them: --limit 0, or --csv FILE")


def _none_if_missing(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def _moment(time_unix_us: int) -> datetime:
    from twinmesh_core.time import to_datetime

    return to_datetime(time_unix_us)


def _quality(number: int) -> str:
    from twinmesh_core.quality import Quality

    return Quality(number).name


def _age(seconds: float) -> str:
    if seconds < 0:
        return "in the future"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
