"""The options of `twinmesh demo`: here, since the command line is installed without the demo itself."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

OUTPUT = Path("demo")


def add_options(parser: ArgumentParser) -> None:
    """Add the demo's options to a parser."""
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where its mesh keeps its data, emptied first (~/.twinmesh/demo)"
    )
    parser.add_argument("--out", type=Path, default=OUTPUT, metavar="DIR", help="where report and pictures go (./demo)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="twin a recorded CSV instead of the simulated plant")
    parser.add_argument("--tz", metavar="ZONE", help="IANA zone of a CSV's naive times, e.g. Europe/Berlin")
    parser.add_argument(
        "--target-column", metavar="NAME", help="CSV: the column to forecast (default: the last numeric one)"
    )
