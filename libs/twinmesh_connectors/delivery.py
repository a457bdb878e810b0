"""When what was handed to the writer is safe, so that its source may forget it."""

from __future__ import annotations

from twinmesh_client.aio.writer import Writer


async def until_safe(writer: Writer, number: int) -> None:
    """Wait until a batch survives us: durable in the mesh, or, where there is a spool, on its disk already."""
    if not writer.spooled:
        await writer.until_durable(number)
