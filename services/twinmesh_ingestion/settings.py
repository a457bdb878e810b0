"""Settings of the ingestion service."""

from __future__ import annotations

from dataclasses import dataclass

from twinmesh_ingestion.domain.unknown_twins import parse_rules
from twinmesh_runtime.settings import ServiceSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestionSettings(ServiceSettings):
    """What an operator may change about ingestion; it keeps nothing on disk."""

    port: int = setting(7400, help="Where this service listens for gRPC.", unit="port", minimum=0, maximum=65535)
    metrics_port: int = setting(
        7410, help="Where Prometheus reads this service's metrics; 0 = off.", unit="port", minimum=0, maximum=65535
    )
    session_points: int = setting(
        500_000,
        help="Points of one producer session on their way to storage at once; beyond it the session is not read.",
        unit="points",
        minimum=1_000,
    )
    process_points: int = setting(
        2_000_000,
        help="Points of all callers on their way at once; beyond it sessions wait and unary writes are shed.",
        unit="points",
        minimum=1_000,
    )
    session_bytes: int = setting(
        32 << 20,
        help="Bytes of one producer session's batches on their way at once; beyond it the session is not read.",
        unit="bytes",
        minimum=64 << 10,
    )
    process_bytes: int = setting(
        256 << 20,
        help="Bytes of all callers' batches on their way at once; beyond it sessions wait and unary writes are shed.",
        unit="bytes",
        minimum=64 << 10,
    )
    storage_patience_s: float = setting(
        60.0,
        help="How long a write waits for a storage service that is away, under the same stamp, before it fails.",
        unit="s",
        minimum=0,
        maximum=3600,
    )
    append_timeout_s: float = setting(
        10.0, help="How long one attempt to append may take before it is made again.", unit="s", minimum=0.1
    )
    catch_up_timeout_s: float = setting(
        5.0,
        help="How long a verdict on an unknown twin waits for the registry to reach the log's head.",
        unit="s",
        minimum=0.1,
    )
    remembered_series: int = setting(
        65_536,
        help="Series whose newest values are remembered for rate, spike and stuck checks (about 120 bytes each).",
        unit="series",
        minimum=1,
    )
    create_twins: str = setting(
        "",
        help="Of which type a twin is that sends without existing; it is created. Others' rows are kept aside.",
        unit="tenant:pattern=type@version, ...",
    )

    def __post_init__(self) -> None:
        parse_rules(self.create_twins)
