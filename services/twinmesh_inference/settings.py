"""Settings of the inference service, read from ``TWINMESH_INFERENCE_*``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinmesh_runtime.settings import ServiceSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSettings(ServiceSettings):
    """What an operator of the inference service may choose."""

    port: int = setting(7404, help="Where gRPC is served; 0 takes a free one.", unit="port", minimum=0, maximum=65535)
    database_url: str = setting(
        help="PostgreSQL that holds deployments and traffic pointers.", unit="libpq URL", secret=True
    )
    triton_url: str = setting("127.0.0.1:8001", help="Triton's gRPC endpoint, which runs the models.", unit="host:port")
    model_repository: Path = setting(
        help="Directory that Triton loads models from; this service writes it, so both must see the same one."
    )
    max_batch_size: int = setting(
        256, help="Most rows of one call to Triton; written into each model's configuration.", minimum=1, maximum=65_536
    )
    max_batch_bytes: int = setting(
        4 * 1024 * 1024,
        help="Largest tensor data of one call to Triton: wide windows travel in smaller batches.",
        unit="bytes",
        minimum=64 * 1024,
        maximum=256 * 1024 * 1024,
    )
    max_queued_rows: int = setting(
        16_384, help="Rows waiting for Triton; beyond it callers are told to come back.", unit="rows", minimum=1
    )
    infer_timeout_s: float = setting(
        20.0, help="Longest wait of a caller for its rows.", unit="s", minimum=0.1, maximum=600
    )
    load_timeout_s: float = setting(
        120.0, help="Longest load of a model, and longest golden check.", unit="s", minimum=1, maximum=3600
    )
    poll_s: float = setting(
        1.0, help="How often promotions and Triton are looked at.", unit="s", minimum=0.05, maximum=60
    )
    lease_ttl_s: float = setting(
        10.0, help="After which a silent replica's right to deploy passes on.", unit="s", minimum=0.3, maximum=300
    )
    twin_cache_s: float = setting(
        5.0, help="How long a twin's zone and channels are used before asking again.", unit="s", minimum=0, maximum=3600
    )
    database_connections: int = setting(
        4, help="Most connections to PostgreSQL.", unit="connections", minimum=1, maximum=100
    )
