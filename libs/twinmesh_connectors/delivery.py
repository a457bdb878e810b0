"""When what was handed to the writer is safe, so that its source may forget it."""

from __future__ import annotations

from twinmesh_client.aio.writer import Writer


async def until_safe(writer: Writer) -> None:
    """Wait until everything that the writer took survives us: durable in the mesh, or on the disk of its spool."""
    if not getattr(writer, "spooled", False):
        await writer.flush()
