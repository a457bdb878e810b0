"""The command line's grammar; nothing that is slow to import may be imported here."""

from __future__ import annotations

import argparse
from importlib import metadata

from twinmesh_cli.commands import (
    alarms,
    connect,
    desired,
    history,
    importing,
    local,
    models,
    quarantine,
    removal,
    smoke,
    subscriptions,
    twins,
    types,
    verify,
    watch,
    write,
)

_GROUPS = (
    local,
    smoke,
    types,
    twins,
    write,
    importing,
    connect,
    history,
    watch,
    models,
    desired,
    alarms,
    subscriptions,
    quarantine,
    removal,
    verify,
)
_MODEL_ACTIONS = ("list", "versions", "promote", "deployments")
_EPILOG = "Where the mesh is: --target, else --context, else $TWINMESH_TARGET, else the mesh of `twinmesh up`."


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command sets ``run``."""
    parser = argparse.ArgumentParser(
        prog="twinmesh",
        description="Self-hosted digital twins: measure, remember, learn, predict, decide, act.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"twinmesh {_version()}")
    _add_common(parser, first=True)
    common = argparse.ArgumentParser(add_help=False)
    _add_common(common, first=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in _GROUPS:
        group.add(commands, common)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, first: bool) -> None:
    """Add the options that may stand before or after the command; what stands before keeps its value."""

    def default(value: object) -> object:
        return value if first else argparse.SUPPRESS

    shared = parser.add_argument_group("connection and output")
    shared.add_argument("--target", metavar="HOST:PORT", default=default(None), help="any one service of the mesh")
    shared.add_argument("--context", metavar="NAME", default=default(None), help="a saved context (default: local)")
    shared.add_argument(
        "--timeout", metavar="SPAN", default=default("30s"), help="deadline of each call (default: 30s)"
    )
    shared.add_argument("--json", action="store_true", default=default(False), help="JSON for programs, not tables")


def spelled_out(arguments: list[str]) -> list[str]:
    """Return the arguments with ``models NAME`` spelled ``models versions NAME``, and ``models`` ``models list``."""
    command = _position_of_command(arguments)
    if command is None or arguments[command] != "models":
        return arguments
    after = arguments[command + 1] if command + 1 < len(arguments) else ""
    if after in _MODEL_ACTIONS or after in ("-h", "--help"):
        return arguments
    action = "list" if not after or after.startswith("-") else "versions"
    return [*arguments[: command + 1], action, *arguments[command + 1 :]]


def _position_of_command(arguments: list[str]) -> int | None:
    skip = False
    for i, argument in enumerate(arguments):
        if not skip and not argument.startswith("-"):
            return i
        skip = not skip and argument in ("--target", "--context", "--timeout")
    return None


def _version() -> str:
    try:
        return metadata.version("twinmesh")
    except metadata.PackageNotFoundError:
        return "(not installed)"
