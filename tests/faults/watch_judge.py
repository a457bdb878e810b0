"""Judges what watchers were told against an independent fold of the log: etcd's six properties, and what follows.

Each violation begins with the name of the property it violates, so that a canary can demand to be caught for the right
reason:

* ordered: offsets never go back;
* unique: no event is told twice, over all sessions;
* reliable: nothing between two positions is left out;
* atomic: all changes of an offset come in one frame;
* resumable: a resumed session goes on exactly after its position;
* bookmarkable: once a position is told, nothing at or before it follows; positions never go back, and silence is short;
* dense: each twin's revisions follow on one another, without a hole;
* snapshot: a snapshot is the replicas at the position of its SYNCED;
* replica: snapshot and events together are the replicas at the last position;
* truth: what an event says is what the fold of the log says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from tests.faults.watch_story import Session, Story
from tests.unit.statesync.checker import WatchChecker, normal

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_statesync.domain.entries import LogEntry
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.rpc.mapping.replicas import change_to_message, replica_to_message

SILENCE_S: Final = 5.0
_SLACK_S: Final = 5.0
"""A busy machine; the promise itself is measured where nothing else runs."""
_SHOWN: Final = 5
"""Violations of one property by one watcher that are listed."""

Replicas = dict[str, Any]
"""Normal forms of replicas by twin id."""


class Truth:
    """The log of one tenant, folded by nobody but the judge."""

    def __init__(self, entries: Sequence[LogEntry], tenant: str = "default") -> None:
        self._entries = entries
        self._tenant = tenant
        self.events: dict[int, dict[str, bytes]] = defaultdict(dict)
        fold = Fold()
        for entry in entries:
            for change in fold.apply(entry).changes:
                if change.tenant == tenant:
                    self.events[change.offset][change.twin.twin_id] = _bytes(change_to_message(change))
        self.offsets = sorted(self.events)
        self.fold = fold

    def between(self, after: int, through: int, twin_ids: Collection[str]) -> dict[int, dict[str, bytes]]:
        """Return the events with offsets in (after, through] that pass a filter."""
        found = {}
        for offset in self.offsets:
            if after < offset <= through:
                events = {t: e for t, e in self.events[offset].items() if not twin_ids or t in twin_ids}
                if events:
                    found[offset] = events
        return found

    def replicas(self, offsets: Iterable[int], twin_ids: Collection[str]) -> dict[int, Replicas]:
        """Return the living twins as they were at some offsets."""
        found, fold, at = {}, Fold(), 0
        for offset in sorted(set(offsets)):
            while at < len(self._entries) and self._entries[at].offset <= offset:
                fold.apply(self._entries[at])
                at += 1
            found[offset] = {
                twin_id: normal(replica_to_message(state.twin, state.replica))
                for twin_id, state in fold.states(self._tenant).items()
                if state.alive and (not twin_ids or twin_id in twin_ids)
            }
        return found


def violations(story: Story, truth: Truth) -> list[str]:
    """Return what is wrong with a watcher's history; nothing = every promise was kept."""
    reading = _Reading(story, truth)
    for session in story.sessions:
        reading.session(session)
    reading.end()
    shown: Counter[str] = Counter()
    found = []
    for violation in reading.found:
        name = violation.split(": ")[0]
        shown[name] += 1
        if shown[name] <= _SHOWN:
            found.append(f"{story.name}: {violation}")
    return found


def named(found: Iterable[str]) -> set[str]:
    """Return the names of the properties that were violated."""
    return {violation.split(": ")[1] for violation in found}


class _Reading:
    def __init__(self, story: Story, truth: Truth) -> None:
        self.found: list[str] = []
        self._story = story
        self._truth = truth
        self._through = -1
        self._told: set[tuple[int, str]] = set()
        self._model = WatchChecker()
        self._states: list[tuple[str, int, Replicas]] = []

    def session(self, session: Session) -> None:
        frames = [statesync_pb2.WatchResponse.FromString(body) for body in session.frames]
        if session.resume is None:
            rest = self._snapshot(frames)
            if rest is None:
                return
            frames = rest
        elif session.resume != self._through:
            self.found.append(f"harness: resumed after {session.resume}, but {self._through} was told last")
        resumed = session.resume is not None
        for frame in frames:
            self._frame(frame, resumed)
            resumed = resumed and not frame.events
        if self._story.prompt:
            for before, after in zip(session.at_s, session.at_s[1:], strict=False):
                if after - before > SILENCE_S + _SLACK_S:
                    self.found.append(f"bookmarkable: nothing was told for {after - before:.1f} s")

    def end(self) -> None:
        if self._through >= 0:
            self._note("replica")
        for name, offset, told in self._states:
            wanted = self._truth.replicas([offset], self._story.twin_ids)[offset]
            for twin_id in sorted(told.keys() | wanted.keys()):
                if told.get(twin_id) != wanted.get(twin_id):
                    self.found.append(f"{name}: {twin_id} at {offset} is not what the log says")

    def _note(self, name: str) -> None:
        model = {twin_id: normal(replica) for twin_id, replica in self._model.model.items()}
        self._states.append((name, self._through, model))

    def _snapshot(self, frames: list[Any]) -> list[Any] | None:
        """Begin anew with a snapshot; returns the frames behind it, or None if it was cut off."""
        model = WatchChecker()
        for number, frame in enumerate(frames):
            for event in frame.events:
                if event.kind != statesync_pb2.WATCH_EVENT_KIND_SNAPSHOT or event.twin_id in model.model:
                    self.found.append(f"snapshot: {event.twin_id} at {event.offset} does not belong there")
                model._apply(event)
            if frame.synced:
                self._model, self._through = model, frame.through.offset
                self._told.clear()
                self._note("snapshot")
                return frames[number + 1 :]
        return None

    def _frame(self, frame: Any, resumed: bool) -> None:
        before, through = self._through, frame.through.offset
        if through < before:
            self.found.append(f"bookmarkable: the position went back from {before} to {through}")
        last = 0
        here: dict[int, dict[str, bytes]] = defaultdict(dict)
        for event in frame.events:
            if event.offset < last:
                self.found.append(f"ordered: offset {event.offset} after {last}")
            last = max(last, event.offset)
            if (event.offset, event.twin_id) in self._told:
                self.found.append(f"unique: {event.twin_id} at {event.offset} again")
            elif event.offset <= before:
                self.found.append(f"bookmarkable: {event.twin_id} at {event.offset} after position {before}")
            elif event.offset > through:
                self.found.append(f"bookmarkable: {event.twin_id} at {event.offset} in a frame up to {through}")
            self._told.add((event.offset, event.twin_id))
            self._revision(event)
            here[event.offset][event.twin_id] = _bytes(event)
            self._apply(event)
        self._through = max(before, through)
        if not self._story.latest:
            self._compare(here, self._truth.between(before, through, self._story.twin_ids), resumed)

    def _revision(self, event: Any) -> None:
        known = self._model.revisions.get(event.twin_id)
        if known is not None and event.previous_revision != known:
            self.found.append(f"dense: {event.twin_id} went from {known} to one after {event.previous_revision}")
        if event.revision - event.previous_revision != event.merged_count + 1:
            self.found.append(f"dense: {event.twin_id} at {event.offset} counts its merged changes wrong")

    def _apply(self, event: Any) -> None:
        if event.twin_id in self._model.model or event.HasField("replica"):
            self._model._apply(event)
        else:
            self._model.revisions[event.twin_id] = event.revision
            if event.kind != statesync_pb2.WATCH_EVENT_KIND_DELETED:
                self.found.append(f"dense: {event.twin_id} changed at {event.offset} and had not been told of")

    def _compare(self, here: dict[int, dict[str, bytes]], wanted: dict[int, dict[str, bytes]], resumed: bool) -> None:
        for offset, events in wanted.items():
            missing = events.keys() - here.get(offset, {}).keys()
            if missing and here.get(offset):
                self.found.append(f"atomic: of offset {offset} {', '.join(sorted(missing))} did not come with the rest")
            elif missing:
                name = "resumable" if resumed else "reliable"
                self.found.append(f"{name}: offset {offset} was left out ({', '.join(sorted(missing))})")
            for twin_id in events.keys() & here.get(offset, {}).keys():
                if events[twin_id] != here[offset][twin_id]:
                    self.found.append(f"truth: {twin_id} at {offset} is told otherwise than the log says")
        for offset in here.keys() - wanted.keys():
            if offset not in self._truth.events:
                self.found.append(f"truth: nothing happened at {offset}, and {', '.join(here[offset])} was told")


def _bytes(event: Any) -> bytes:
    return bytes(event.SerializeToString(deterministic=True))
