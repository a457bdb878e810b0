"""What producers were told against what the mesh holds: the judge of every run.

Pure, and it works from files: a better judge can judge an old run again (``python -m tests.faults.judge DIRECTORY``).
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from tests.faults.history import Batch, Told
from tests.faults.points import CHANNEL, Kept, Plan
from tests.faults.readback import Landed, Readback

_SHOWN = 20


def violations(told: Told, found: Readback) -> list[str]:
    """Return what is wrong, in words; empty = nothing.

    Every acknowledged batch stands in the log exactly once, whole, with its value bits, where its acknowledgement said;
    no other batch stands there twice; nothing stands there that was not sent; offsets are dense; each producer's
    batches stand in its order. Quarantine holds what belongs there, once. What can be read by range, and what is
    counted, is what the log holds. Every follower saw the log, entry by entry.
    """
    where, wrong = _identify(told.plan, found)
    wrong += told.wrong
    wrong += _log(told, found, where)
    wrong += _order(where)
    wrong += _quarantine(told, found, where)
    wrong += _acks(told)
    wrong += _reads(told.plan, found, where)
    wrong += _counts(told.plan, found, where)
    for name, seen in found.followers.items():
        wrong += [f"follower {name}: {what}" for what in follower_violations(seen, found.followed)]
    return wrong


def follower_violations(seen: list[tuple[int, str]], log: list[tuple[int, str]]) -> list[str]:
    """Return what is wrong with what a follower saw, (offset, digest) in order, against the log read at the end."""
    offsets = [offset for offset, _ in seen]
    wrong = []
    if any(b <= a for a, b in itertools.pairwise(offsets)):
        wrong.append("saw an entry twice or out of order")
    missed = sorted({offset for offset, _ in log} - set(offsets))
    if missed:
        wrong.append(f"missed {len(missed)} of {len(log)} entries, the first at {missed[0]}")
    truth = dict(log)
    if any(truth.get(offset) != digest for offset, digest in seen):
        wrong.append("saw an entry that is not the log's")
    return wrong


def _identify(plan: Plan, found: Readback) -> tuple[dict[Batch, list[Landed]], list[str]]:
    """Return the entries by batch."""
    where: dict[Batch, list[Landed]] = defaultdict(list)
    wrong = []
    for entry in found.log:
        if not entry.series:
            wrong.append(f"an entry without rows at {entry.offset}")
            continue
        (producer, channel, first), *more = entry.series
        if more or channel != CHANNEL:
            wrong.append(f"never sent: rows of {[s[:2] for s in entry.series]} at {entry.offset}")
        else:
            where[producer, plan.sequence_at(first)].append(entry)
    return where, wrong


def _log(told: Told, found: Readback, where: dict[Batch, list[Landed]]) -> list[str]:
    wrong = []
    offsets = [offset for offset, _ in found.followed]
    if offsets != list(range(1, len(offsets) + 1)):
        wrong.append("offsets have gaps, repeats or another order")
    for batch, entries in where.items():
        if batch not in told.sent:
            wrong.append(f"never sent: {batch} at {entries[0].offset}")
        elif len(entries) > 1:
            wrong.append(f"twice: {batch} at {[e.offset for e in entries]}")
        elif entries[0].digest != told.plan.digest(*batch):
            wrong.append(f"altered: {batch} at {entries[0].offset}, {entries[0].rows} rows")
    for batch, ack in told.acked.items():
        if batch not in where:
            wrong.append(f"lost: {batch}, acknowledged at {ack['offset']}")
        elif ack["offset"] and ack["exact"] and ack["offset"] not in [e.offset for e in where[batch]]:
            wrong.append(f"moved: {batch}, acknowledged at {ack['offset']}, stands at {where[batch][0].offset}")
    return wrong


def _order(where: dict[Batch, list[Landed]]) -> list[str]:
    by_producer: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for (producer, sequence), entries in where.items():
        by_producer[producer] += [(entry.offset, sequence) for entry in entries]
    wrong = []
    for producer, stands in by_producer.items():
        sequences = [sequence for _, sequence in sorted(stands)]
        if sequences != list(range(1, len(sequences) + 1)):
            wrong.append(f"batches of {producer} stand out of order or with a gap")
    return wrong


def _quarantine(told: Told, found: Readback, where: dict[Batch, list[Landed]]) -> list[str]:
    due: Counter[tuple[Kept, int]] = Counter()
    for batch, entries in where.items():
        for kept in told.plan.kept(*batch):
            due.update((kept, entry.offset) for entry in entries)
    stands: Counter[tuple[Kept, int]] = Counter((row[:4], row[4]) for row in found.quarantine)
    wrong = [f"not in quarantine: {row} of entry {offset}" for row, offset in due - stands]
    return wrong + [f"in quarantine without cause or twice: {row} of {offset}" for row, offset in stands - due]


def _acks(told: Told) -> list[str]:
    wrong = []
    for batch, ack in told.acked.items():
        kept = len(told.plan.kept(*batch))
        if ack["accepted"] is not None and (ack["accepted"], ack["quarantined"]) != (told.plan.rows, kept):
            wrong.append(f"acknowledged {ack['accepted']} rows and {ack['quarantined']} in quarantine: {batch}")
    return wrong


def _reads(plan: Plan, found: Readback, where: dict[Batch, list[Landed]]) -> list[str]:
    wrong = []
    by_producer: dict[str, list[int]] = defaultdict(list)
    for producer, sequence in where:
        by_producer[producer].append(sequence)
    for producer in sorted(set(by_producer) | set(found.reads)):
        sequences = sorted(by_producer[producer])
        times, values = found.reads.get(producer, (np.empty(0, np.int64), np.empty(0)))
        due_times = np.concatenate([plan.times(n) for n in sequences]) if sequences else np.empty(0, np.int64)
        due_values = np.concatenate([plan.values(producer, n) for n in sequences]) if sequences else np.empty(0)
        if not np.array_equal(times, due_times):
            gone, extra = len(np.setdiff1d(due_times, times)), len(np.setdiff1d(times, due_times))
            wrong.append(f"read of {producer}: {gone} points missing, {extra} too many, {len(times)} read")
        elif not np.array_equal(values.view(np.int64), due_values.view(np.int64)):
            changed = int(np.count_nonzero(values.view(np.int64) != due_values.view(np.int64)))
            wrong.append(f"read of {producer}: {changed} points have other value bits")
    return wrong


def _counts(plan: Plan, found: Readback, where: dict[Batch, list[Landed]]) -> list[str]:
    entries = sum(len(stands) for stands in where.values())
    due = {
        "landed_point_count": entries * plan.rows,
        "point_count": len(where) * plan.rows,
        "quarantined_count": sum(len(plan.kept(*batch)) * len(stands) for batch, stands in where.items()),
        "entry_count": len(found.followed),
    }
    return [
        f"statistics say {name} {found.statistics[name]}, and it is {count}"
        for name, count in due.items()
        if found.statistics[name] != count
    ]


def judge_directory(directory: Path) -> list[str]:
    """Judge a saved run again."""
    return violations(Told(sorted(directory.glob("history*.jsonl"))), Readback.load(directory))


if __name__ == "__main__":
    worst = 0
    for argument in sys.argv[1:]:
        wrong = judge_directory(Path(argument))
        print(f"{argument}: {len(wrong)} violations", *wrong[:_SHOWN], sep="\n  ")
        worst = max(worst, len(wrong))
    sys.exit(1 if worst else 0)
