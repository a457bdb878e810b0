"""The producers' ledger: one JSON line before each call and one after it, so that a run can be judged again later.

``invoke``: a batch is about to be sent. ``ok``: it is durable, says the service (``via`` tells how it said so).
``info``: the call ended without telling. ``welcome``: a session opened and named the last durable sequence. ``wrong``:
a producer was answered against the protocol.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from tests.faults.points import Plan

Batch = tuple[str, int]
"""Producer and sequence."""


class History:
    """Writes the ledger of one run, or of one process of it; each line is in the file before the call goes on.

    Attributes:
        resent: how often a batch was sent again.
        acks: how many acknowledgements there were.
        reasons: why calls ended without telling, by reason.
        newest: producer to its newest acknowledged sequence and the offset it was given.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self.resent = self.acks = 0
        self.reasons: Counter[str] = Counter()
        self.newest: dict[str, tuple[int, int]] = {}
        self._sent: set[Batch] = set()
        self._file = path.open("a", buffering=1)
        self._line({"op": "run", **plan.to_json()})

    def note(self, op: str, producer: str, sequence: int, **fields: Any) -> None:
        """Note an event of a batch."""
        if op == "invoke":
            self.resent += (producer, sequence) in self._sent
            self._sent.add((producer, sequence))
        elif op == "ok":
            self.acks += 1
            self.newest[producer] = (sequence, fields["offset"])
        elif op == "info":
            self.reasons[fields["reason"]] += 1
        self._line({"t": round(time.monotonic(), 6), "op": op, "p": producer, "n": sequence, **fields})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")


class Told:
    """What producers sent and were told, read from the ledgers of a run.

    Attributes:
        plan: of the run.
        sent: batches sent at least once.
        acked: batch to what it was answered: offset (0 = named by a welcome), accepted and quarantined rows.
        ambiguous: times that a batch proved durable whose answer had been lost: it was answered as a replay, or a
            welcome named it.
        unknown: calls that ended without telling.
        wrong: answers against the protocol.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.sent: set[Batch] = set()
        self.acked: dict[Batch, dict[str, Any]] = {}
        self.wrong: list[str] = []
        self.ambiguous = self.unknown = self.ops = 0
        self._newest: dict[str, int] = {}
        records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        plan = next(record for record in records if record["op"] == "run")
        self.plan = Plan(**{name: value for name, value in plan.items() if name != "op"})
        # One clock for all processes of a machine.
        for record in sorted((r for r in records if r["op"] != "run"), key=lambda r: float(r["t"])):
            self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        batch = (record["p"], record["n"])
        match record["op"]:
            case "invoke":
                self.ops += 1
                self.sent.add(batch)
            case "ok":
                self._take_ack(batch, record)
            case "info":
                self.unknown += 1
            case "welcome":
                self._take_welcome(batch)
            case "wrong":
                self.wrong.append(f"{record['what']}: {batch}")

    def _take_ack(self, batch: Batch, ack: dict[str, Any]) -> None:
        self.ambiguous += ack["via"] == "welcome" or ack["replayed"]
        self._newest[batch[0]] = max(self._newest.get(batch[0], 0), batch[1])
        before = self.acked.get(batch)
        if before is None or not before["offset"]:
            self.acked[batch] = ack
        elif ack["offset"] and ack["exact"] and before["exact"] and ack["offset"] != before["offset"]:
            self.wrong.append(f"acknowledged at {before['offset']} and at {ack['offset']}: {batch}")

    def _take_welcome(self, last: Batch) -> None:
        producer, sequence = last
        if sequence and last not in self.sent:
            self.wrong.append(f"a welcome names a batch that was never sent: {last}")
        if self._newest.get(producer, 0) > sequence:
            self.wrong.append(f"a welcome forgot {self._newest[producer]}, which was acknowledged: {last}")
