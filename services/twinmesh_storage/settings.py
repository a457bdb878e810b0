"""Settings of the storage service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twinmesh_runtime.settings import ServiceSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings(ServiceSettings):
    """What can be chosen when a storage process starts; each variable is TWINMESH_STORAGE_<FIELD>."""

    port: int = setting(7401, help="Where this service listens for gRPC.", unit="port", minimum=0, maximum=65535)
    database_url: str = setting(
        help="PostgreSQL 16 or newer that holds the log and the history.", unit="libpq URL", secret=True
    )
    database_schema: str = setting("storage", help="Schema of this service's tables; one log per schema.", unit="name")
    advertise: str = setting(
        "",
        help="Where other storage processes reach this one, to forward appends while it holds the lease; "
        "empty = HOST and PORT, or this machine's name where HOST is a wildcard.",
        unit="host:port",
    )
    forward_timeout_s: float = setting(
        10.0, help="How long an append may take that is forwarded to the lease holder.", unit="s", minimum=0.1
    )
    redis_url: str = setting(
        "",
        help="Valkey or Redis for latest values and recent rows after a restart; empty = do without.",
        unit="URL",
        secret=True,
    )
    redis_timeout_ms: float = setting(
        50.0, help="Longest wait for the cache; beyond it the database answers.", unit="ms", minimum=1, maximum=5000
    )
    cache_keep_s: float = setting(
        3_600.0, help="How long a record stays in the cache after it was written.", unit="s", minimum=1
    )
    cache_latest_bytes: int = setting(
        32 << 20, help="Most bytes of latest values in the cache (28 per series).", unit="bytes", minimum=0
    )
    cache_window_bytes: int = setting(
        64 << 20, help="Most bytes of recent rows in the cache (25 per row).", unit="bytes", minimum=0
    )
    pool_max_size: int = setting(
        8, help="Database connections for reads and folds.", unit="connections", minimum=2, maximum=100
    )
    database_timeout_s: float = setting(
        10.0, help="Bound of a database call; folds and counts may take ten times this.", unit="s", minimum=0.1
    )
    lease_s: float = setting(
        10.0,
        help="After this long without a sign of life a sequencer whose database session still stands is replaced.",
        unit="s",
        minimum=2,
    )
    request_keep_s: float = setting(
        86_400.0, help="How long the request_id of a unary write is remembered.", unit="s", minimum=60
    )
    queue_bytes: int = setting(64 << 20, help="Appends that wait beyond this are shed.", unit="bytes", minimum=1 << 20)
    group_bytes: int = setting(
        8 << 20, help="Most bytes of one commit: greater groups fsync less often.", unit="bytes", minimum=1 << 16
    )
    ring_bytes: int = setting(
        64 << 20, help="Newest entries kept in memory for followers.", unit="bytes", minimum=1 << 20
    )
    tail_rows: int = setting(
        16_000_000, help="Uncompacted observations beyond which appends are shed.", unit="rows", minimum=10_000
    )
    tail_age_s: float = setting(
        60.0, help="Age of the oldest uncompacted observations beyond which appends are shed.", unit="s", minimum=1
    )
    fold_rows: int = setting(
        2_000_000, help="Observations that are folded into blocks without waiting.", unit="rows", minimum=1
    )
    fold_after_s: float = setting(
        5.0, help="Longest time that observations wait to be folded.", unit="s", minimum=0.05, maximum=60
    )
    history_form: Literal["auto", "blocks", "hypertable"] = setting(
        "auto",
        help="How history is kept: auto = as hypertables where the database has TimescaleDB 2.29.2 or newer with its "
        "Timescale licence, else as blocks. A history that has rows keeps the form it has.",
    )
    log_keep_s: float = setting(
        604_800.0,
        help="Observations younger than this stay in the log even when they are folded and every registered follower "
        "has them; 0 = all stay for ever.",
        unit="s",
        minimum=0,
    )
    as_of_keep_s: float = setting(
        2_592_000.0,
        help="How long superseded and deleted observations can be read as of an earlier offset.",
        unit="s",
        minimum=0,
    )
    retention_every_s: float = setting(
        600.0, help="How often history is looked at for what was kept long enough.", unit="s", minimum=0.05
    )
    log_trim_every_s: float = setting(
        30.0, help="How often the log is looked at for observations that may leave it.", unit="s", minimum=0.05
    )
    hot_rows: int = setting(4_000_000, help="Rows of recent history kept unpacked for windows.", unit="rows", minimum=0)
