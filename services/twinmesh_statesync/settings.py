"""What an operator may choose about state-sync."""

from __future__ import annotations

from dataclasses import dataclass

from twinmesh_runtime.settings import ServiceSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesyncSettings(ServiceSettings):
    """Settings of state-sync, read from ``TWINMESH_STATESYNC_*``."""

    port: int = setting(7402, help="Where gRPC is served; 0 takes a free one.", unit="port", minimum=0, maximum=65535)
    database_url: str = setting(
        help="PostgreSQL for checkpoints (schema statesync); the truth is the log, this only makes starts fast.",
        unit="libpq URL",
        secret=True,
    )
    checkpoint_interval_s: float = setting(
        10.0,
        help="How often the fold is saved; a start folds again what came after the last save.",
        unit="s",
        minimum=0.1,
        maximum=3600,
    )
    generation_interval_s: float = setting(
        60.0,
        help="Least time between two earlier positions that the checkpoint can be taken back to; older ones lie wider.",
        unit="s",
        minimum=0.1,
        maximum=86_400,
    )
    replay_horizon_s: float = setting(
        86_400.0,
        help="How far back watches resume and replicas can be asked for at least; storage keeps the log from there on.",
        unit="s",
        minimum=1,
        maximum=30 * 86_400,
    )
    lease_s: float = setting(
        5.0,
        help="How long a sign of life counts: a process that hangs for longer hands its shards over. One that is "
        "killed does so within LEASE_BEAT_S.",
        unit="s",
        minimum=1,
        maximum=60,
    )
    lease_beat_s: float = setting(
        0.5,
        help="How often a process gives a sign of life and looks who else lives.",
        unit="s",
        minimum=0.05,
        maximum=10,
    )
    watch_tick_ms: float = setting(
        20.0,
        help="Longest time for which changes are gathered into one frame; few watchers are told earlier.",
        unit="ms",
        minimum=0,
        maximum=20,
    )
    ring_changes: int = setting(
        200_000,
        help="Recent changes kept per tenant, from which watchers resume.",
        unit="changes",
        minimum=1_000,
        maximum=10_000_000,
    )
    ring_bytes: int = setting(
        256 * 1024 * 1024,
        help="Their estimated memory per tenant; whichever bound is reached first counts.",
        unit="bytes",
        minimum=1024 * 1024,
        maximum=64 * 1024**3,
    )
    close_after_changes: int = setting(
        10_000,
        help="Changes that a watcher with policy CLOSE may lie behind before its stream is ended.",
        unit="changes",
        minimum=1,
        maximum=10_000_000,
    )
    delivery_allowed_networks: str = setting(
        "",
        help="Networks that webhooks and brokers of subscriptions may be in although they are loopback, link-local or "
        "private, separated by commas, e.g. 10.0.0.0/8; there, plain http and mqtt are allowed too. Empty = none: "
        "whoever may subscribe could otherwise reach what only this process can.",
        unit="CIDR",
    )
    delivery_timeout_s: float = setting(
        10.0, help="Time of one attempt to deliver to a subscriber.", unit="s", minimum=0.1, maximum=60
    )
    delivery_first_pause_s: float = setting(
        1.0,
        help="Pause before the second attempt of a delivery; doubled each time, up to 15 min, with jitter.",
        unit="s",
        minimum=0.01,
        maximum=60,
    )
    delivery_max_pending: int = setting(
        10_000,
        help="Deliveries that may wait for one subscription; of more the oldest are given up.",
        unit="deliveries",
        minimum=1,
        maximum=1_000_000,
    )
