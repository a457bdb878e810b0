"""Windows from the storage service: the same implementation that training learned from."""

from __future__ import annotations

from typing import Final

import grpc.aio
import numpy as np

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh_client.transport import call, tenant_metadata
from twinmesh_core.errors import Internal
from twinmesh_inference.adapters.dependency import dependency
from twinmesh_inference.domain.models import Signature
from twinmesh_inference.domain.ports import LogPosition, Window

_TIMEOUT_S: Final = 20.0


class StorageWindows:
    """Asks the storage service; see `WindowReader`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = storage_pb2_grpc.StorageServiceStub(channel)

    async def read(
        self,
        tenant: str,
        twin_id: str,
        signature: Signature,
        *,
        at_unix_us: int | None,
        min_offset: int,
        as_of_offset: int,
        incarnation: str,
    ) -> Window:
        """Return the window that a model of this signature eats; gaps stay NaN, since the graph fills them."""
        request = storage_pb2.ReadWindowRequest(
            twin_ids=[twin_id],
            channels=signature.channels,
            steps=signature.context_steps,
            gap_policy=storage_pb2.GAP_POLICY_NONE,
            min_offset=min_offset,
            as_of_offset=as_of_offset,
            incarnation=incarnation,
        )
        request.step.FromMicroseconds(signature.step_us)
        if at_unix_us is not None:
            request.at.FromMicroseconds(at_unix_us)
        with dependency("storage"):
            answer = await call(self._stub.ReadWindow, request, timeout_s=_TIMEOUT_S, metadata=tenant_metadata(tenant))
        shape = (signature.context_steps, len(signature.channels))
        if len(answer.values) != 8 * shape[0] * shape[1] or len(answer.at_unix_us) != 1:
            raise Internal("Storage answered with a window of another size than it was asked for.")
        units = tuple(answer.units)
        return Window(
            values=np.frombuffer(answer.values, "<f8").reshape(shape),
            at_unix_us=answer.at_unix_us[0],
            units=units if len(units) == shape[1] else ("",) * shape[1],
            as_of=LogPosition(incarnation=answer.as_of.incarnation, offset=answer.as_of.offset),
        )
