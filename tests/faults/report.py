"""What the runs amounted to: a line each, and totals (``python -m tests.faults.report DIRECTORY`` for saved ones)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

LINE: Final = "{name:28} {seed:>6} {faults:>6} {ambiguous:>9} {ops:>7} {points:>9} {violations:>10} {canaries:>8}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run.

    Attributes:
        name: of the run.
        seed: replays it.
        faults: faults survived: kills, restarts, stops, full disks, lost answers.
        ambiguous: batches that proved durable although their answer had been lost, plus commits whose answer was lost
            between storage and PostgreSQL.
        ops: batches sent, resent ones included.
        points: points read back and compared bit by bit.
        violations: what the judge found.
        caught: canaries caught.
        canaries: canaries let loose.
        note: figures of its own.
    """

    name: str
    seed: int
    faults: int = 0
    ambiguous: int = 0
    ops: int = 0
    points: int = 0
    violations: int = 0
    caught: int = 0
    canaries: int = 0
    note: str = ""

    def line(self) -> str:
        """Return it as a line of the report."""
        fields = {**asdict(self), "canaries": f"{self.caught}/{self.canaries}"}
        return f"{LINE.format(**fields)}  {self.note}".rstrip()

    def save(self, directory: Path) -> None:
        """Keep it."""
        (directory / f"{self.name}-{self.seed}.outcome.json").write_text(json.dumps(asdict(self)))


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the report: a head, a line each, the totals."""
    outcomes = list(outcomes)
    names = ("name", "seed", "faults", "ambiguous", "ops", "points", "violations", "canaries")
    total = Outcome(
        name="total",
        seed=0,
        faults=sum(o.faults for o in outcomes),
        ambiguous=sum(o.ambiguous for o in outcomes),
        ops=sum(o.ops for o in outcomes),
        points=sum(o.points for o in outcomes),
        violations=sum(o.violations for o in outcomes),
        caught=sum(o.caught for o in outcomes),
        canaries=sum(o.canaries for o in outcomes),
    )
    return [LINE.format(**{n: n for n in names}), *(o.line() for o in outcomes), total.line()]


def load(directory: Path) -> list[Outcome]:
    """Return saved outcomes, below a directory."""
    return [Outcome(**json.loads(path.read_text())) for path in sorted(directory.rglob("*.outcome.json"))]


if __name__ == "__main__":
    print(*table(load(Path(sys.argv[1]))), sep="\n")
