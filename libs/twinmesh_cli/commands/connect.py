"""`connect`: run the connectors of a file; `host`: this machine as a twin."""

from __future__ import annotations

import argparse
import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any

from twinmesh_cli.commands.local import extra
from twinmesh_cli.errors import FAILED, UsageError
from twinmesh_cli.output import Output

SPOOL_MAX = 1_000_000_000


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    connect = commands.add_parser("connect", parents=[common], help="run the connectors of a TOML file until Ctrl-C")
    connect.add_argument("file", type=Path, help="which sources become which twins; see docs/connectors.md")
    connect.add_argument("--check", action="store_true", help="read the file, say what it holds, and end")
    connect.add_argument("--every", metavar="SPAN", default="10s", help="between two status lines (default: 10s)")
    connect.set_defaults(run=_connect)
    host = commands.add_parser("host", parents=[common], help="write this machine's own telemetry until Ctrl-C")
    host.add_argument("--twin", default="this-machine", help="the twin; created if absent (default: this-machine)")
    host.add_argument("--spool", type=Path, metavar="DIR", help="keep readings on disk while the mesh is away")
    host.add_argument("--spool-max", type=int, default=SPOOL_MAX, metavar="BYTES", help="bound of it (default: 1 GB)")
    host.add_argument("--every", metavar="SPAN", default="1s", help="between two readings (default: 1s)")
    host.set_defaults(run=_host)


def _connect(arguments: Namespace, out: Output) -> int:
    from twinmesh_client.durations import span_us
    from twinmesh_connectors.config import read_config
    from twinmesh_connectors.service import run_all

    config = read_config(arguments.file)
    every_s = span_us(arguments.every, "--every") / 1e6
    if arguments.check:
        for entry in config.entries:
            spool = f", spool {entry.spool}" if entry.spool else ""
            out.line(f"{entry.connector.name}: {entry.kind}, producer {entry.producer_id}{spool}")
        out.document({"connectors": [entry.connector.name for entry in config.entries]})
        return 0
    failed = asyncio.run(
        run_all(config, target=arguments.target, context=arguments.context, say=out.note, every_s=every_s)
    )
    return FAILED if failed else 0


def _host(arguments: Namespace, out: Output) -> int:
    with extra("host"):
        from twinmesh_connectors.host import HostConnector
    from twinmesh_client.durations import span_us
    from twinmesh_connectors.config import Config, Entry
    from twinmesh_connectors.service import run_all
    from twinmesh_core.ids import entity_id_violation

    violation = entity_id_violation("--twin", arguments.twin)
    if violation is not None:
        raise UsageError(f"--twin {arguments.twin!r}: {violation.description}", remedy="--twin this-machine")
    every_s = span_us(arguments.every, "--every") / 1e6
    connector = HostConnector(twin_id=arguments.twin, every_s=every_s)
    producer_id = f"host-{arguments.twin}"[:128]
    entry = Entry(connector=connector, kind="host", producer_id=producer_id, spool=arguments.spool)
    config = Config(target=None, spool_max_bytes=arguments.spool_max, spool_full="wait", entries=(entry,))
    failed = asyncio.run(run_all(config, target=arguments.target, context=arguments.context, say=out.note))
    return FAILED if failed else 0
