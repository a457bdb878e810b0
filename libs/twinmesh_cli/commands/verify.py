"""`verify`: proves that the replicas are what the log says, in every process of state-sync."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import FAILED
from twinmesh_cli.output import Output
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.verification import ReplicaVerification


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    verify = commands.add_parser(
        "verify",
        parents=[common],
        help="fold the log anew and compare the replicas of every state-sync process with it",
    )
    verify.add_argument(
        "--from-checkpoint", action="store_true", help="begin from the kept checkpoint: sooner, but takes its word"
    )
    verify.add_argument("--patience", default="10m", metavar="SPAN", help="how long the fold may take (default: 10m)")
    verify.set_defaults(run=on_mesh(_verify))


async def _verify(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.durations import span_us
    from twinmesh_client.verification import disagreeing_shards

    patience_s = span_us(arguments.patience, "--patience") / 1e6
    found = await mesh.verify(from_checkpoint=arguments.from_checkpoint, patience_s=patience_s)
    apart = disagreeing_shards(found)
    for one in found:
        _tell(one, out)
    if apart:
        out.line(f"the processes differ from one another in shards {', '.join(map(str, apart))}")
    equal = all(one.equal for one in found) and not apart
    out.document({"equal": equal, "processes": found, "disagreeing_shards": apart})
    return 0 if equal else FAILED


def _tell(one: ReplicaVerification, out: Output) -> None:
    begin = f"the checkpoint at {one.start_offset:,}" if one.start_offset else "the beginning of the log"
    verdict = "equal" if one.equal else f"{one.difference_count:,} DIFFER"
    out.line(
        f"{one.endpoint}  {verdict}: {one.twin_count:,} twins at offset {one.at.offset:,}, folded from {begin}; "
        f"digest {one.digest}"
    )
    if not one.registry_equal:
        out.line("  twin types or remembered verdicts differ")
    for twin in one.differences:
        out.line(
            f"  {twin.twin_id}: revision {twin.revision}, by the log {twin.expected_revision}; "
            f"differs in {', '.join(twin.parts)}"
        )
