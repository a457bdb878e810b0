"""Field masks: which parts of a replica a caller wants, of a whole one and of a change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import name_violation, quoted
from twinmesh_core.registry import Twin
from twinmesh_statesync.domain.changes import Change, ChangeKind
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.replica import NO_ALARMS, DeltaItem, Replica

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")
CHANNELLED: Final = ("reported", "desired", "predicted", "residuals", "delta")
"""Parts that may be narrowed to a channel."""
PARTS: Final = ("twin", *CHANNELLED, "connectivity", "commands", "events", "alarms")
MAX_PATHS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """The parts wanted; no path = all of them, those of later versions included.

    Identity (twin id and type), revision and offset are always told.

    Attributes:
        paths: ``reported``, ``reported.temperature``, ``delta``, ``twin`` …; none lies within another.
    """

    paths: frozenset[str] = frozenset()
    _channels: Mapping[str, frozenset[str] | None] = field(
        init=False, repr=False, compare=False, hash=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        channels: dict[str, frozenset[str] | None] = {}
        for path in sorted(self.paths):
            part, _, channel = path.partition(".")
            held = channels.get(part, frozenset())
            channels[part] = None if held is None or not channel else held | {channel}
        object.__setattr__(self, "_channels", channels)

    @property
    def whole(self) -> bool:
        """Whether everything is wanted."""
        return not self.paths

    def wants(self, part: str, channel: str = "") -> bool:
        """Whether a part (of a channel) is wanted."""
        if not self.paths:
            return True
        if part not in self._channels:
            return False
        channels = self._channels[part]
        return channels is None or channel in channels

    def cut_twin(self, twin: Twin) -> Twin:
        """Return an identity with only what is wanted of it."""
        if self.wants("twin"):
            return twin
        return Twin(twin_id=twin.twin_id, twin_type_id=twin.twin_type_id, twin_type_version=twin.twin_type_version)

    def cut_replica(self, replica: Replica) -> Replica:
        """Return a replica with only the parts wanted; revisions stay."""
        if self.whole:
            return replica
        reported, desired, predicted = replica.reported, replica.desired, replica.predicted
        return replace(
            replica,
            reported=replace(reported, values=self._within("reported", reported.values, lambda channel: channel)),
            desired=replace(desired, values=self._within("desired", desired.values, lambda channel: channel)),
            predicted=replace(
                predicted, predictions=self._within("predicted", predicted.predictions, lambda pair: pair[0])
            ),
            residuals=self._within("residuals", replica.residuals, lambda pair: pair[0]),
            delta=self._cut_delta(replica.delta),
            connectivity=replica.connectivity if self.wants("connectivity") else Connectivity.UNSPECIFIED,
            alarms=replica.alarms if self.wants("alarms") else NO_ALARMS,
        )

    def cut(self, change: Change) -> Change | None:
        """Return a change with only the parts wanted; None = it changed none of them."""
        if self.whole:
            return change
        delta = None
        if change.delta is not None:
            delta = self._cut_delta(change.delta)
            if change.before is not None and delta == self._cut_delta(change.before.replica.delta):
                delta = None
        cut = replace(
            change,
            twin=self.cut_twin(change.twin),
            replica=None if change.replica is None else self.cut_replica(change.replica),
            reported=tuple(v for v in change.reported if self.wants("reported", v.channel)),
            desired=tuple(v for v in change.desired if self.wants("desired", v.channel)),
            removed=tuple(channel for channel in change.removed if self.wants("desired", channel)),
            predicted=tuple(p for p in change.predicted if self.wants("predicted", p.channel)),
            residuals=tuple(r for r in change.residuals if self.wants("residuals", r.channel)),
            delta=delta,
            connectivity=change.connectivity if self.wants("connectivity") else None,
            commands=change.commands if self.wants("commands") else (),
            events=change.events if self.wants("events") else (),
            alarms=change.alarms if self.wants("alarms") else (),
            identity=change.identity and self.wants("twin"),
        )
        return cut if change.kind is not ChangeKind.CHANGED or self._tells(cut) else None

    def _tells(self, cut: Change) -> bool:
        if cut.reported or cut.desired or cut.removed or cut.predicted or cut.residuals:
            return True
        if cut.commands or cut.events or cut.delta is not None or cut.connectivity is not None:
            return True
        return bool(cut.alarms) or cut.identity or cut.replica is not None

    def _cut_delta(self, items: Iterable[DeltaItem]) -> tuple[DeltaItem, ...]:
        return tuple(item for item in items if self.wants("delta", item.channel))

    def _within(
        self, part: str, items: Mapping[KeyT, ItemT], channel_of: Callable[[KeyT], str]
    ) -> Mapping[KeyT, ItemT]:
        if part not in self._channels:
            return {}
        if self._channels[part] is None:
            return items
        return {key: item for key, item in items.items() if self.wants(part, channel_of(key))}


ALL: Final = Mask()


def read_mask(paths: Iterable[str], name: str) -> Mask:
    """Return the mask of these paths.

    Args:
        paths: as in ``google.protobuf.FieldMask``; none = everything.
        name: the request's field, for errors.

    Raises:
        InvalidArgument: a path that no replica has, or too many of them.
    """
    given = list(paths)
    if len(given) > MAX_PATHS:
        raise invalid_field(name, f"must hold at most {MAX_PATHS} paths; name a whole part, e.g. reported")
    for i, path in enumerate(given):
        part, dot, channel = path.partition(".")
        if part not in PARTS:
            raise invalid_field(f"{name}.paths[{i}]", f"{quoted(path)} is none of {', '.join(PARTS)}")
        if dot and (part not in CHANNELLED or name_violation("", channel) is not None):
            narrowed = ", ".join(f"{p}.CHANNEL" for p in CHANNELLED)
            raise invalid_field(f"{name}.paths[{i}]", f"{quoted(path)} does not name a channel; write {narrowed}")
    wide = {path for path in given if "." not in path}
    return Mask(paths=frozenset(wide | {path for path in given if path.partition(".")[0] not in wide}))
