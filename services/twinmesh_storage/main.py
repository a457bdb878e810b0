"""The composition root of the storage service."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import uuid4

from twinmesh_core.errors import TwinmeshError, Unavailable
from twinmesh_core.time import SystemClock
from twinmesh_runtime.logs import log
from twinmesh_runtime.observation_codec import decode_batch
from twinmesh_runtime.postgres import migrate, open_pool, ping
from twinmesh_runtime.service import Service
from twinmesh_runtime.telemetry import counter, gauge, histogram
from twinmesh_storage.adapters.history_forms import open_history
from twinmesh_storage.adapters.memory import NoRecords
from twinmesh_storage.adapters.peer import Peer
from twinmesh_storage.adapters.postgres.catalogue import PostgresQuarantine, PostgresSeries
from twinmesh_storage.adapters.postgres.erasable import PostgresErasableHistory
from twinmesh_storage.adapters.postgres.erasures import PostgresErasures
from twinmesh_storage.adapters.postgres.log import PostgresLog
from twinmesh_storage.adapters.postgres.retention import PostgresRetention
from twinmesh_storage.adapters.postgres.retention_rules import PostgresRetentionRules
from twinmesh_storage.adapters.postgres.tallies import PostgresTallies
from twinmesh_storage.adapters.redis import RedisRecords
from twinmesh_storage.domain.aggregate import Aggregator
from twinmesh_storage.domain.catchup import CatchUp
from twinmesh_storage.domain.compactor import Compactor, Fold
from twinmesh_storage.domain.counting import Counting
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.downsample import Downsampler
from twinmesh_storage.domain.eraser import Eraser
from twinmesh_storage.domain.fold_cache import FoldCache
from twinmesh_storage.domain.folding import Hide
from twinmesh_storage.domain.follow import Follower
from twinmesh_storage.domain.history import History
from twinmesh_storage.domain.history_retention import HistoryRetention
from twinmesh_storage.domain.landing import Landing
from twinmesh_storage.domain.latest_reader import LatestReader
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.packing import Packer
from twinmesh_storage.domain.ports import RecordStore
from twinmesh_storage.domain.sequencer import Sequencer, SequencerLimits
from twinmesh_storage.domain.series import Catalogue, Series
from twinmesh_storage.domain.trimming import Trimmer
from twinmesh_storage.domain.window_cache import WindowCache
from twinmesh_storage.domain.window_reader import WindowReader
from twinmesh_storage.rpc import raw
from twinmesh_storage.rpc.aggregates import AggregateServicer
from twinmesh_storage.rpc.append_streams import AppendStreams
from twinmesh_storage.rpc.catalogue import CatalogueServicer
from twinmesh_storage.rpc.concerns import twins_of
from twinmesh_storage.rpc.control_entries import hide_of, redact
from twinmesh_storage.rpc.forwarding import append_control
from twinmesh_storage.rpc.latest import LatestEncoder, TwinSelections
from twinmesh_storage.rpc.log import LogServicer
from twinmesh_storage.rpc.reads import ReadServicer
from twinmesh_storage.rpc.removal import RemovalServicer, drop_with, hide_with
from twinmesh_storage.rpc.retention import RetentionServicer
from twinmesh_storage.rpc.serving import SERVICE_NAME, Servicer, register
from twinmesh_storage.rpc.window_grids import WindowGrids
from twinmesh_storage.settings import StorageSettings

_PRUNE_S: Final = 600.0
_ANSWER_SLACK_BYTES: Final = 64 << 10
"""Of a message, for what is beside the values: positions, tags, metadata."""


async def compose(settings: StorageSettings, stack: AsyncExitStack) -> Service:
    """Open database and cache, bring the view to the head, and wire the service."""
    schema = settings.database_schema
    tag = uuid4().hex[:8]  # ends the holder's name in the lease and that of its database sessions
    address = _advertised(settings)
    await migrate(settings.database_url, schema, "twinmesh_storage")
    pool = await stack.enter_async_context(
        open_pool(
            settings.database_url,
            min_size=2,
            max_size=settings.pool_max_size,
            schema=schema,
            name=f"storage-{tag}",
        )
    )
    clock = SystemClock()
    store = PostgresLog(
        pool=pool,
        url=settings.database_url,
        schema=schema,
        lease_s=settings.lease_s,
        request_keep_s=settings.request_keep_s,
        timeout_s=settings.database_timeout_s,
        address=address,
    )
    stack.push_async_callback(store.close)
    peer = Peer(max_message_bytes=settings.max_message_bytes, timeout_s=settings.forward_timeout_s)
    stack.push_async_callback(peer.close)
    series_store = PostgresSeries(pool=pool, timeout_s=settings.database_timeout_s)
    catalogue = Catalogue(await series_store.load())
    history_store = await open_history(
        pool,
        wanted=settings.history_form,
        timeout_s=settings.database_timeout_s,
        series_of=catalogue.require,
        report=_report,
    )
    gauge("storage", "history_form", "1 for the form that history is kept in.", ["form"]).labels(
        history_store.form
    ).set(1)
    at_start = await store.position()
    view = LogView(
        incarnation=at_start.incarnation,
        fold_offset=at_start.fold_offset,
        ring_bytes=settings.ring_bytes,
        hot_rows=settings.hot_rows,
        clock=clock,
        hide_of=hide_of,
    )
    landing = Landing(decode_batch)
    # One of its own: it runs in a thread at start.
    catch_up = CatchUp(log=store, series=series_store, catalogue=catalogue, view=view, landing=Landing(decode_batch))
    await catch_up.to_head()
    sequencer = Sequencer(
        store=store,
        view=view,
        catch_up=catch_up,
        holder=f"{socket.gethostname()}/{os.getpid()}/{tag}",
        limits=SequencerLimits(
            queue_bytes=settings.queue_bytes,
            group_bytes=settings.group_bytes,
            tail_rows=settings.tail_rows,
            tail_age_s=settings.tail_age_s,
            renew_s=settings.lease_s / 4,
        ),
        report=_report,
        address=address,
        taken=peer.close,
    )
    gauge("storage", "tail_points", "Observations that are not in history yet.").set_function(
        lambda: view.tail.row_count
    )
    gauge("storage", "tail_seconds", "How long the oldest of them have waited.").set_function(view.uncompacted_s)
    records = _records(settings, stack)
    history = History(store=history_store, view=view)
    latest_records = _fold_cache(records, "latest", settings.cache_latest_bytes)
    latest = LatestReader(view=view, history=history, store=history_store, cache=latest_records, catalogue=catalogue)
    window_records = _fold_cache(records, "windows", settings.cache_window_bytes)
    window_cache = WindowCache(cache=window_records, view=view)

    async def folded(fold: Fold) -> None:
        counter("storage", "folded_points", "Observations folded into history.").inc(fold.rows)
        written = fold.result
        counter("storage", "fold_written_points", "Observations written by folds, earlier ones included.").inc(
            written.rows_written
        )
        counter("storage", "fold_written_bytes", "Packed bytes written by folds.").inc(written.bytes_written)
        counter("storage", "superseded_points", "Observations that folds moved aside.").inc(written.superseded)
        histogram("storage", "fold_seconds", "Duration of a fold into history.").observe(fold.seconds)
        await latest.store(fold)
        await window_cache.store(fold)

    rules = PostgresRetentionRules(pool=pool, timeout_s=settings.database_timeout_s)

    async def prepare(hide: Hide) -> None:
        # Another process may have created them, and this one never had rows of them.
        series = await series_store.find_ids(hide.tenant, sorted(hide.series_ids))
        catalogue.add(series)
        if hide.drops:
            await history_store.drop_before(hide.tenant, series, hide.end)

    compactor = Compactor(
        view=view,
        history=history_store,
        lease=lambda: sequencer.lease,
        fold_rows=settings.fold_rows,
        fold_after_s=settings.fold_after_s,
        clock=clock,
        report=_report,
        folded=folded,
        prepare=prepare,
    )
    directory = Directory(store=series_store, catalogue=catalogue, landing=landing)
    aggregator = Aggregator(history=history)
    follower = Follower(log=store, view=view, twins_of=twins_of, encode=raw.frame_bytes)
    streams = AppendStreams()
    log_servicer = LogServicer(
        log=store,
        view=view,
        sequencer=sequencer,
        directory=directory,
        follower=follower,
        packer=Packer(),
        forward=peer,
        streams=streams,
    )
    read_servicer = ReadServicer(
        view=view,
        directory=directory,
        history=history,
        latest=latest,
        selections=TwinSelections(directory),
        encoder=LatestEncoder(),
        windows=WindowReader(history=history, latest=latest, view=view, cache=window_cache),
        grids=WindowGrids(directory),
    )
    aggregate_servicer = AggregateServicer(
        view=view,
        directory=directory,
        latest=latest,
        aggregator=aggregator,
        max_answer_bytes=settings.max_message_bytes - _ANSWER_SLACK_BYTES,
        downsampler=Downsampler(history=history, aggregator=aggregator),
    )
    catalogue_servicer = CatalogueServicer(
        view=view,
        directory=directory,
        aggregator=aggregator,
        counting=Counting(history=history, log=store, view=view),
        store=history_store,
        series=series_store,
        quarantine=PostgresQuarantine(pool=pool, timeout_s=settings.database_timeout_s),
        tallies=PostgresTallies(pool=pool, timeout_s=settings.database_timeout_s),
    )

    retention = PostgresRetention(pool=pool, timeout_s=settings.database_timeout_s)
    trimmer = Trimmer(
        store=retention,
        lease=lambda: sequencer.lease,
        keep_s=settings.log_keep_s,
        every_s=settings.log_trim_every_s,
        report=_report,
        trimmed=lambda offsets: counter("storage", "trimmed_offsets", "Offsets passed by the trimming.").inc(offsets),
    )
    retention_servicer = RetentionServicer(view=view, retention=retention, rules=rules, directory=directory)
    history_retention = HistoryRetention(
        history=history_store,
        rules=rules,
        series=series_store,
        drop=drop_with(sequencer.append),
        lease=lambda: sequencer.lease,
        horizon_s=settings.as_of_keep_s,
        every_s=settings.retention_every_s,
        clock=clock,
        report=_report,
    )

    async def forget(series: Sequence[Series], before_offset: int) -> None:
        follower.forget()
        ids = [s.series_id for s in series]
        if not (await latest.forget(ids) and await window_cache.forget(ids)):
            latest_records.distrust_before(before_offset)
            window_records.distrust_before(before_offset)
            raise Unavailable("The cache cannot be reached; what it holds of the twin is removed when it answers.")

    append_own = append_control(sequencer, peer)
    erasures = PostgresErasures(pool=pool, timeout_s=settings.database_timeout_s)
    eraser = Eraser(
        store=erasures,
        log=store,
        history=PostgresErasableHistory(
            store=history_store, pool=pool, timeout_s=settings.database_timeout_s, series_of=catalogue.require
        ),
        series_of_twin=lambda tenant, twin_id: directory.every_series(tenant, [twin_id]),
        hide=hide_with(append_own),
        twins_of=twins_of,
        redact=redact,
        forget=forget,
        lease=lambda: sequencer.lease,
        clock=clock,
        report=_report,
    )
    removal_servicer = RemovalServicer(
        view=view, directory=directory, append=append_own, eraser=eraser, erasures=erasures, clock=clock
    )

    servicers: tuple[Servicer, ...] = (
        log_servicer,
        read_servicer,
        aggregate_servicer,
        catalogue_servicer,
        retention_servicer,
        removal_servicer,
    )

    async def prune() -> None:
        while True:
            try:
                while await store.prune_requests():
                    pass
            except TwinmeshError as error:
                _report("pruning_failed", reason=error.reason)
            await asyncio.sleep(_PRUNE_S)

    async def drain() -> None:
        view.close()
        streams.drain()

    return Service(
        register=lambda server: register(server, *(part.handlers() for part in servicers)),
        service_names=(SERVICE_NAME,),
        checks={"postgres": lambda: ping(pool)},
        capabilities={"storage.append": sequencer.check},
        background=(sequencer.run, compactor.run, trimmer.run, eraser.run, history_retention.run, prune),
        drain=drain,
    )


def _advertised(settings: StorageSettings) -> str:
    """Return where other storage processes reach this one; "" = nowhere, since the system chooses the port."""
    if settings.advertise or not settings.port:
        return settings.advertise
    wildcard = settings.host in ("0.0.0.0", "::")  # noqa: S104 -- compared, not bound
    host = socket.gethostname() if wildcard else settings.host
    return f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"


def _report(event: str, **fields: Any) -> None:
    log(event, **fields)


def _records(settings: StorageSettings, stack: AsyncExitStack) -> RecordStore:
    if not settings.redis_url:
        return NoRecords()
    records = RedisRecords(
        url=settings.redis_url,
        timeout_s=settings.redis_timeout_ms / 1000,
        prefix=settings.database_schema,
        keep_s=settings.cache_keep_s,
    )
    stack.push_async_callback(records.close)
    return records


def _fold_cache(records: RecordStore, kind: str, max_bytes: int) -> FoldCache:
    documented = {
        "hit": counter("storage", "cache_hits", "Records of the cache that were used.", ("kind",)),
        "bypass": counter("storage", "cache_bypassed", "Records not asked for: the cache is away.", ("kind",)),
    }
    misses = counter("storage", "cache_misses", "Records of no use, by reason.", ("kind", "reason"))

    def count(event: str, reason: str, records: int) -> None:
        (misses.labels(kind, reason) if event == "miss" else documented[event].labels(kind)).inc(records)

    return FoldCache(store=records, kind=kind, max_bytes=max_bytes, count=count)
