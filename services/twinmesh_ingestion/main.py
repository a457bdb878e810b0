"""The composition root of ingestion: every port gets its adapter here, and nothing happens at import time."""

from __future__ import annotations

from contextlib import AsyncExitStack

from twinmesh_client.transport import open_channel
from twinmesh_core.time import SystemClock
from twinmesh_core.units import Units
from twinmesh_ingestion.adapters.registry import FollowedRegistry
from twinmesh_ingestion.adapters.storage import StorageLog
from twinmesh_ingestion.domain.intake import Intake
from twinmesh_ingestion.domain.quarantine import Quarantine
from twinmesh_ingestion.domain.unknown_twins import TwinMaker, parse_rules
from twinmesh_ingestion.rpc.acks import AckReceipts
from twinmesh_ingestion.rpc.quarantine import QuarantineServicer
from twinmesh_ingestion.rpc.servicer import SERVICE, IngestionServicer
from twinmesh_ingestion.settings import IngestionSettings
from twinmesh_runtime.service import Service
from twinmesh_runtime.unit_library import UcumLibrary


async def compose(settings: IngestionSettings, stack: AsyncExitStack) -> Service:
    """Wire the service to storage; it is ready once it knows the registry as of the log's head."""
    # Two connections: a batch of some megabytes must not hold up the registry's entries.
    appends = await stack.enter_async_context(
        open_channel(settings.mesh_storage, max_message_bytes=settings.max_message_bytes)
    )
    follows = await stack.enter_async_context(
        open_channel(settings.mesh_storage, max_message_bytes=settings.max_message_bytes)
    )
    registry = FollowedRegistry(follows, catch_up_timeout_s=settings.catch_up_timeout_s)
    clock = SystemClock()
    rules = parse_rules(settings.create_twins)
    storage, receipts = StorageLog(appends, append_timeout_s=settings.append_timeout_s), AckReceipts()
    stack.push_async_callback(storage.close)
    intake = Intake(
        log=storage,
        registry=registry,
        receipts=receipts,
        clock=clock,
        patience_s=settings.storage_patience_s,
        remembered_series=settings.remembered_series,
        units=Units(UcumLibrary()),
        maker=TwinMaker(storage, rules) if rules else None,
        max_entry_bytes=settings.max_message_bytes - (256 << 10),  # beside the rows: receipt, stamp, framing
    )
    registry.forget = intake.forget
    servicer = IngestionServicer(
        intake,
        clock,
        QuarantineServicer(Quarantine(intake, storage, receipts)),
        session_points=settings.session_points,
        session_bytes=settings.session_bytes,
        process_bytes=settings.process_bytes,
        process_points=settings.process_points,
    )
    # What lands is up to a tenth larger than what was sent (quality, ids), and storage has the same bound.
    largest = settings.max_message_bytes * 3 // 4
    return Service(
        register=servicer.register,
        service_names=(SERVICE,),
        checks={"registry": registry.ready},
        background=(registry.follow,),
        drain=servicer.drain,
        max_request_bytes={f"/{SERVICE}/Write": largest, f"/{SERVICE}/WriteStream": largest},
    )
