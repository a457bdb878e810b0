"""A twin's replica at one offset, immutable, and the laws of its targets and its delta.

Being immutable it can be handed to any number of readers while the fold goes on; a change makes a new one that shares
whatever stayed the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from twinmesh_core.immutable import frozen_for_checkers
from twinmesh_core.registry import ChannelSpec
from twinmesh_statesync.domain.alarms.alarm import Alarm
from twinmesh_statesync.domain.events import Connectivity, Prediction
from twinmesh_statesync.domain.residuals import Residual
from twinmesh_statesync.domain.values import ReportedValue, Value


class DesiredState(IntEnum):
    """Where a desired value stands; numbers equal ``twinmesh.type.v1.DesiredState``."""

    UNSPECIFIED = 0
    PENDING = 1
    DELIVERED = 2
    APPLIED = 3
    REJECTED = 4
    EXPIRED = 5


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class DesiredValue:
    """The target of one channel and how far it got.

    Attributes:
        channel: the channel.
        value: the target, in the channel's unit.
        progress: how far it got apart from being met: PENDING, DELIVERED, REJECTED or EXPIRED.
        in_sync: whether reported meets it now.
        ever_met: whether reported met it at any time since it was set; its deadline is then over.
        deadline_unix_us: by when reported should meet it; None = no deadline.
        offset: the entry that set it.
        rejection: why the device refused it.
        command_id: the command that carries it; "" = the device watches.
        tolerance: how near reported must come, in place of the channel's own; None = the channel's own.
        set_time_unix_us: commit time of the entry that set it; 0 = not known.
        delta_since_unix_us: commit time of the entry since which reported does not meet it; None = it does.
        first_met_unix_us: commit time of the entry by which it was first met; None = never so far.
        drift_count: how often reported went away from it after having met it.
    """

    channel: str
    value: Value
    progress: DesiredState = DesiredState.PENDING
    in_sync: bool = False
    ever_met: bool = False
    deadline_unix_us: int | None = None
    offset: int = 0
    rejection: str = ""
    command_id: str = ""
    tolerance: float | None = None
    set_time_unix_us: int = 0
    delta_since_unix_us: int | None = None
    first_met_unix_us: int | None = None
    drift_count: int = 0

    @property
    def state(self) -> DesiredState:
        """What callers see: APPLIED exactly while reported meets it, else how far it got."""
        return DesiredState.APPLIED if self.in_sync else self.progress


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class DeltaItem:
    """One desired value that reported does not meet; `reported` None = nothing reported yet."""

    channel: str
    desired: Value
    reported: Value | None


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class Reported:
    """The facts: one per channel heard from; `revision` moves by one with each entry that changed any."""

    revision: int = 0
    values: Mapping[str, ReportedValue] = field(default_factory=dict)


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class Desired:
    """The targets by channel; `revision` moves only when a caller changes targets, never by the device's doing."""

    revision: int = 0
    values: Mapping[str, DesiredValue] = field(default_factory=dict)


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class Predicted:
    """The newest prediction per (channel, model)."""

    revision: int = 0
    predictions: Mapping[tuple[str, str], Prediction] = field(default_factory=dict)


NOTHING_REPORTED: Final = Reported(values=MappingProxyType({}))
NOTHING_DESIRED: Final = Desired(values=MappingProxyType({}))
NOTHING_PREDICTED: Final = Predicted(predictions=MappingProxyType({}))
NO_RESIDUALS: Final[Mapping[tuple[str, str], Residual]] = MappingProxyType({})
NO_ALARMS: Final[Mapping[str, Alarm]] = MappingProxyType({})


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class Replica:
    """A twin's whole state at one offset.

    Attributes:
        revision: dense, 1..n, going on across delete and re-create.
        offset: the last entry that changed it.
        reported: facts.
        desired: targets.
        predicted: expectations of models.
        delta: desired minus reported, by channel in order.
        connectivity: whether the entity is heard from.
        residuals: how predictions compare with facts, by channel and model.
        alarms: by rule, every one that was ever raised or shelved.
    """

    revision: int
    offset: int
    reported: Reported = NOTHING_REPORTED
    desired: Desired = NOTHING_DESIRED
    predicted: Predicted = NOTHING_PREDICTED
    delta: tuple[DeltaItem, ...] = ()
    connectivity: Connectivity = Connectivity.UNSPECIFIED
    residuals: Mapping[tuple[str, str], Residual] = field(default_factory=lambda: NO_RESIDUALS)
    alarms: Mapping[str, Alarm] = field(default_factory=lambda: NO_ALARMS)


def delta_of(desired: Mapping[str, DesiredValue], reported: Mapping[str, ReportedValue]) -> tuple[DeltaItem, ...]:
    """Return the open items, ordered by channel: exactly the targets that are not in sync."""
    return tuple(
        DeltaItem(
            channel=channel,
            desired=desired[channel].value,
            reported=reported[channel].value if channel in reported else None,
        )
        for channel in sorted(desired)
        if not desired[channel].in_sync
    )


def settled(
    target: DesiredValue, fact: ReportedValue | None, spec: ChannelSpec | None, commit_time_unix_us: int
) -> DesiredValue:
    """Return a target with what a fact says about it: newly met, drifted away, or as it was."""
    tolerance = target.tolerance
    if tolerance is None:
        tolerance = spec.tolerance if spec is not None else 0.0
    met = fact is not None and fact.meets(target.value, tolerance)
    if met is target.in_sync:
        return target
    if not met:
        return replace(
            target,
            in_sync=False,
            delta_since_unix_us=commit_time_unix_us,
            drift_count=target.drift_count + 1,
        )
    # Whatever was said before, the entity has it now; only a command that waits still has to be delivered.
    waits = target.progress is DesiredState.PENDING and target.command_id
    return replace(
        target,
        in_sync=True,
        ever_met=True,
        progress=DesiredState.PENDING if waits else DesiredState.DELIVERED,
        rejection="",
        delta_since_unix_us=None,
        first_met_unix_us=target.first_met_unix_us or commit_time_unix_us,
    )
