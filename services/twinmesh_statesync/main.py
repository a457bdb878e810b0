"""The composition root of state-sync: every port an argument, nothing at import time."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final
from uuid import uuid4

import grpc.aio

from twinmesh.statesync.v1.statesync_pb2_grpc import (
    add_AlarmServiceServicer_to_server,
    add_CommandServiceServicer_to_server,
    add_EventServiceServicer_to_server,
    add_SubscriptionServiceServicer_to_server,
    add_TwinServiceServicer_to_server,
)
from twinmesh_client.transport import open_blocking_channel, open_channel
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.time import Clock, SystemClock
from twinmesh_core.units import Units
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_runtime.service import Service
from twinmesh_runtime.telemetry import counter, gauge, log
from twinmesh_runtime.unit_library import UcumLibrary
from twinmesh_statesync.adapters.guard import Guard, networks_of
from twinmesh_statesync.adapters.leases import PostgresLeases
from twinmesh_statesync.adapters.mqtt import MqttCarrier
from twinmesh_statesync.adapters.outbox import PostgresOutbox
from twinmesh_statesync.adapters.postgres import PostgresCheckpoints
from twinmesh_statesync.adapters.storage_log import StorageLog
from twinmesh_statesync.adapters.webhook import WebhookCarrier
from twinmesh_statesync.domain.catalogue import Catalogue
from twinmesh_statesync.domain.delivery.dispatcher import Dispatcher
from twinmesh_statesync.domain.delivery.ports import Carrier, Outbox
from twinmesh_statesync.domain.generations import Spacing
from twinmesh_statesync.domain.leases import CHECKPOINT, Leases, LeaseStore
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.past import Past
from twinmesh_statesync.domain.ports import CheckpointStore, Log
from twinmesh_statesync.domain.replay import Replays
from twinmesh_statesync.domain.timekeeper import Timekeeper
from twinmesh_statesync.domain.verification import Verifier
from twinmesh_statesync.domain.writer import Writer
from twinmesh_statesync.rpc.alarms import AlarmServicer
from twinmesh_statesync.rpc.commands import CommandServicer
from twinmesh_statesync.rpc.events import EventServicer
from twinmesh_statesync.rpc.listing import Listing
from twinmesh_statesync.rpc.mapping.control import control_from_message, control_to_message
from twinmesh_statesync.rpc.past import PastReads
from twinmesh_statesync.rpc.reading import Reading
from twinmesh_statesync.rpc.replicas import SERVICE, ReplicaServicer
from twinmesh_statesync.rpc.subscriptions import SubscriptionServicer
from twinmesh_statesync.rpc.twins import TwinServicer
from twinmesh_statesync.rpc.units import UnitConversions
from twinmesh_statesync.rpc.watch import Watches
from twinmesh_statesync.settings import StatesyncSettings

_NAMES = (
    "twinmesh.statesync.v1.TwinService",
    SERVICE,
    "twinmesh.statesync.v1.CommandService",
    "twinmesh.statesync.v1.EventService",
    "twinmesh.statesync.v1.AlarmService",
    "twinmesh.statesync.v1.SubscriptionService",
)

_LAST_SAVE_S: Final = 3.0
_LEAVE_S: Final = 1.0
_MEASURE_S: Final = 5.0


async def compose(settings: StatesyncSettings, stack: AsyncExitStack) -> Service:
    """Return the service on the real log and the real checkpoints."""
    await migrate(settings.database_url, "statesync", "twinmesh_statesync")
    pool = await stack.enter_async_context(open_pool(settings.database_url, min_size=1, max_size=4, schema="statesync"))
    tag = uuid4().hex[:8]  # ends the holder's name in the leases and that of its database session
    line = await stack.enter_async_context(
        open_pool(
            settings.database_url, min_size=1, max_size=1, schema="statesync", autocommit=True, name=f"statesync-{tag}"
        )
    )
    channel = await stack.enter_async_context(
        open_channel(settings.mesh_storage, max_message_bytes=settings.max_message_bytes)
    )
    reading = open_blocking_channel(settings.mesh_storage, max_message_bytes=settings.max_message_bytes)
    stack.callback(reading.close)
    storage = StorageLog(channel, reading=reading, encode=control_to_message, decode=control_from_message)
    # The database is no readiness check: only checkpoints need it, and a missed one costs a longer start at most.
    outbox = PostgresOutbox(pool, max_pending=settings.delivery_max_pending)
    carriers = await stack.enter_async_context(_carriers(settings))
    return assemble(
        settings,
        source=storage,
        checkpoints=PostgresCheckpoints(pool),
        lease_store=PostgresLeases(line),
        holder=f"{socket.gethostname()}/{os.getpid()}/{tag}",
        outbox=outbox,
        carriers=carriers,
        clock=SystemClock(),
    )


@asynccontextmanager
async def _carriers(settings: StatesyncSettings) -> AsyncIterator[dict[str, Carrier]]:
    guard = Guard(networks_of(settings.delivery_allowed_networks))
    carriers: dict[str, Carrier] = {
        "webhook": WebhookCarrier(guard, timeout_s=settings.delivery_timeout_s),
        "mqtt": MqttCarrier(guard, timeout_s=settings.delivery_timeout_s),
    }
    try:
        yield carriers
    finally:
        for carrier in carriers.values():
            await carrier.close()


def assemble(
    settings: StatesyncSettings,
    *,
    source: Log,
    checkpoints: CheckpointStore,
    lease_store: LeaseStore,
    holder: str,
    outbox: Outbox,
    carriers: Mapping[str, Carrier],
    clock: Clock,
) -> Service:
    """Return the service on any log and any checkpoint store.

    Args:
        settings: intervals and bounds.
        source: the log.
        checkpoints: where the fold is kept.
        lease_store: where processes that share the work tell each other so.
        holder: the name of this process there.
        outbox: where subscriptions and their deliveries are kept.
        carriers: carry deliveries, by kind of target.
        clock: the time.
    """
    leases = Leases(
        store=lease_store,
        holder=holder,
        clock=clock,
        lease_s=settings.lease_s,
        beat_s=settings.lease_beat_s,
        report=_report,
    )
    live = LiveFold(
        log=source,
        checkpoints=checkpoints,
        clock=clock,
        tick_s=settings.watch_tick_ms / 1_000,
        ring_changes=settings.ring_changes,
        ring_bytes=settings.ring_bytes,
        spacing=Spacing(interval_s=settings.generation_interval_s, horizon_s=settings.replay_horizon_s),
        report=_report,
        leases=leases,
    )
    reading, writer = Reading(live), Writer(source, live)
    replays = Replays(live=live, log=source, store=checkpoints, clock=clock)
    catalogue = Catalogue(live, clock)
    watches = Watches(reading, catalogue, replays, clock, close_after=settings.close_after_changes)
    timekeeper = Timekeeper(log=source, live=live, clock=clock, report=_report, leases=leases)
    verifier = Verifier(log=source, live=live, checkpoints=checkpoints, clock=clock)
    attempts = counter("statesync", "delivery_attempts", "Attempts to deliver to a subscriber.", ["outcome"])
    dispatcher = Dispatcher(
        live=live,
        outbox=outbox,
        carriers=carriers,
        log=source,
        clock=clock,
        report=_report,
        mine=lambda: leases.holds(CHECKPOINT),
        first_pause_s=settings.delivery_first_pause_s,
        count=lambda outcome: attempts.labels(outcome=outcome).inc(),
    )
    units = Units(UcumLibrary())
    conversions = UnitConversions(units)
    past = PastReads(reading, Past(live=live, log=source, store=checkpoints))
    replicas = ReplicaServicer(reading, writer, watches, past, clock, verifier, conversions)

    def register(server: grpc.aio.Server) -> None:
        add_TwinServiceServicer_to_server(
            TwinServicer(reading, writer, Listing(reading, catalogue), past, units), server
        )
        add_CommandServiceServicer_to_server(CommandServicer(reading, writer, watches, clock, conversions), server)
        add_EventServiceServicer_to_server(EventServicer(reading, writer), server)
        add_AlarmServiceServicer_to_server(AlarmServicer(reading, writer, clock), server)
        subscriptions = SubscriptionServicer(live, outbox, dispatcher, clock)
        add_SubscriptionServiceServicer_to_server(subscriptions, server)
        server.add_generic_rpc_handlers((replicas.handler(),))

    async def keep_checkpoints() -> None:
        await live.keep_checkpoints(settings.checkpoint_interval_s)

    async def measure_deliveries() -> None:
        pending = gauge("statesync", "deliveries_pending", "Deliveries that wait for their receivers.")
        dead = gauge("statesync", "deliveries_dead", "Deliveries that were given up and are kept.")
        while True:
            with suppress(TwinmeshError):
                waiting, given_up = await outbox.totals()
                pending.set(waiting)
                dead.set(given_up)
            await asyncio.sleep(_MEASURE_S)

    async def drain() -> None:
        # Saved first, and never after: watchers resume from positions behind which the next process must have changes.
        try:
            async with asyncio.timeout(_LAST_SAVE_S):
                await live.save(last=True)
        except (TwinmeshError, TimeoutError) as error:
            # Nothing is lost: the next start folds again from the checkpoint before.
            log("checkpoint_failed", level="warning", reason=str(getattr(error, "reason", "DEADLINE")))
        try:
            async with asyncio.timeout(_LEAVE_S):
                await leases.leave()
        except (TwinmeshError, TimeoutError) as error:
            # The others take over once the session is gone.
            log("leases_not_handed_over", level="warning", reason=str(getattr(error, "reason", "DEADLINE")))
        await watches.drain()

    _measure(live, leases, replays)
    return Service(
        register=register,
        service_names=_NAMES,
        checks={"log": live.check},
        background=(
            leases.run,
            live.run,
            replays.run,
            timekeeper.run,
            watches.beat,
            keep_checkpoints,
            dispatcher.run,
            measure_deliveries,
        ),
        drain=drain,
    )


def _measure(live: LiveFold, leases: Leases, replays: Replays) -> None:
    changes = counter("statesync", "changes", "Changes of replicas that were folded and told.")
    live.listeners.on_changes(lambda told: changes.inc(len(told)))
    gauge("statesync", "offset", "Log offset that the replicas reflect.").set_function(lambda: live.fold.offset)
    gauge("statesync", "entries_behind", "Entries of the log not folded yet.").set_function(lambda: live.entries_behind)
    gauge("statesync", "replays", "Folds of the past for watchers that were behind.").set_function(
        lambda: replays.count
    )
    gauge(
        "statesync", "shards_held", "Shards, of 64, for which this process writes what time brings about."
    ).set_function(lambda: len(leases.held - {CHECKPOINT}))
    gauge("statesync", "saves_checkpoints", "1 in the process that writes checkpoints.").set_function(
        lambda: int(leases.holds(CHECKPOINT))
    )
    gauge("statesync", "watchers", "Watches being served.").set_function(lambda: live.pulse.crowd)


def _report(event: str, fields: dict[str, Any]) -> None:
    log(event, **fields)
