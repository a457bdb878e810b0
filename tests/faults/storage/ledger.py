"""What a producer was told against what the log holds: the judge of every fault test.

The ledger notes each batch that was sent and whether it was acknowledged. The log, followed from the beginning, must
hold every acknowledged batch exactly once, no batch twice, nothing that was never sent, and offsets without a gap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b


def digest(body: bytes) -> bytes:
    """Return what stands for a batch in the ledger."""
    return blake2b(body, digest_size=16).digest()


@dataclass(slots=True)
class Ledger:
    """What producers sent and were told.

    Attributes:
        sent: digest of each batch sent at least once.
        acked: digest to the offset acknowledged.
    """

    sent: set[bytes] = field(default_factory=set)
    acked: dict[bytes, int] = field(default_factory=dict)

    def violations(self, log: list[tuple[int, bytes]]) -> list[str]:
        """Return what is wrong with a log, given as (offset, body) in the order followed; empty = nothing."""
        wrong = []
        offsets = [offset for offset, _ in log]
        if offsets != list(range(1, len(log) + 1)):
            wrong.append("offsets have gaps, repeats or another order")
        found = [(offset, digest(body)) for offset, body in log]
        counts = Counter(d for _, d in found)
        where = {d: offset for offset, d in reversed(found)}
        wrong += [f"twice: batch at {where[d]}" for d, n in counts.items() if n > 1]
        wrong += [f"never sent: batch at {where[d]}" for d in counts if d not in self.sent]
        wrong += [f"lost: batch acknowledged at {offset}" for d, offset in self.acked.items() if d not in counts]
        wrong += [
            f"moved: batch acknowledged at {offset} stands at {where[d]}"
            for d, offset in self.acked.items()
            if counts[d] == 1 and where[d] != offset
        ]
        return wrong
