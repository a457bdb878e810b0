"""What a watcher was told, as it came: each session with where it resumed, each frame's bytes and when it came."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from twinmesh.statesync.v1 import statesync_pb2


@dataclass(slots=True)
class Session:
    """One call of Watch.

    Attributes:
        resume: offset it resumed after; None = it began with a snapshot.
        frames: the responses, serialized, in the order received.
        at_s: when each came, on the monotonic clock.
        ended: why it ended.
    """

    resume: int | None
    frames: list[bytes] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    ended: str = ""


@dataclass(slots=True)
class Story:
    """The whole history of one watcher.

    Attributes:
        name: says what kind of watcher it was.
        twin_ids: what it watched; empty = all.
        latest: whether its policy was LATEST, so that changes of one twin may come as one.
        prompt: whether it always read at once, so that silence is the server's.
        sessions: in order.
    """

    name: str
    twin_ids: frozenset[str] = frozenset()
    latest: bool = False
    prompt: bool = True
    sessions: list[Session] = field(default_factory=list)

    @property
    def events(self) -> int:
        """How many events it was told."""
        return sum(len(statesync_pb2.WatchResponse.FromString(f).events) for s in self.sessions for f in s.frames)

    def save(self, path: Path) -> None:
        """Write it as lines of JSON."""
        with path.open("w") as lines:
            head = {"name": self.name, "twins": sorted(self.twin_ids), "latest": self.latest, "prompt": self.prompt}
            lines.write(json.dumps(head) + "\n")
            for session in self.sessions:
                lines.write(json.dumps({"resume": session.resume, "ended": session.ended}) + "\n")
                for at_s, frame in zip(session.at_s, session.frames, strict=True):
                    lines.write(json.dumps([at_s, base64.b64encode(frame).decode()]) + "\n")


def load(path: Path) -> Story:
    """Return a story that was saved."""
    first, *lines = map(json.loads, path.read_text().splitlines())
    story = Story(first["name"], frozenset(first["twins"]), first["latest"], first["prompt"])
    for line in lines:
        if isinstance(line, dict):
            story.sessions.append(Session(line["resume"], ended=line["ended"]))
        else:
            story.sessions[-1].at_s.append(line[0])
            story.sessions[-1].frames.append(base64.b64decode(line[1]))
    return story


def save_all(stories: Iterable[Story], directory: Path) -> None:
    """Write each story beside the others."""
    for number, story in enumerate(stories):
        story.save(directory / f"watch-{number:03}-{story.name}.jsonl")


def load_all(directory: Path) -> list[Story]:
    """Return the stories of a run, in the order in which they were saved."""
    return [load(path) for path in sorted(directory.glob("watch-*.jsonl"))]
