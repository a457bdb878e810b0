"""Settings of training: the service and its workers read the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinmesh_runtime.settings import ServiceSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings(ServiceSettings):
    """Environment prefix ``TWINMESH_TRAINING_``."""

    port: int = setting(7403, help="Where gRPC is served; 0 takes a free one.", unit="port", minimum=0, maximum=65535)
    database_url: str = setting(help="PostgreSQL with runs, models and versions.", unit="libpq URL", secret=True)
    artifact_dir: Path = setting(
        help="Where model files are kept; the service and its workers share it.", unit="directory"
    )
    worker_count: int = setting(
        1,
        help="Worker processes this service starts and supervises; 0 where workers are deployed by themselves.",
        unit="processes",
        minimum=0,
        maximum=64,
    )
    threads: int = setting(
        1,
        help="Threads of linear algebra per worker. More than the free cores slow training down, badly.",
        unit="threads",
        minimum=1,
        maximum=256,
    )
    lease_s: float = setting(
        15.0, help="A worker silent for this long has lost its run.", unit="s", minimum=1, maximum=600
    )
