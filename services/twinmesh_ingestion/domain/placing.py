"""Numbers in the section of their channel's kind: whole doubles for a STATE, whole numbers for a GAUGE or COUNTER."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import FLOAT64, INT64, ObservationBatch, Section
from twinmesh_ingestion.domain.resolution import SeriesTable

MOST_EXACT: Final = 2**53
"""Whole numbers up to this one, either sign, are the same number as a double and as an int64."""


def by_kind(batch: ObservationBatch, table: SeriesTable) -> ObservationBatch:
    """Move numbers to where their channel's kind has them, as far as that changes no value.

    Whoever sends numbers need not know which channels are states. What is not moved is of the wrong kind. A section
    whose dictionary holds no kind but its own is not looked at.

    Args:
        batch: as sent.
        table: its dictionary, resolved.

    Returns:
        The same rows; moved ones stand behind those of their new section. The batch itself where none moves.
    """
    doubles, int64s = batch.doubles, batch.int64s
    whole = _of_kind(doubles, table.kind == ChannelKind.STATE)
    if whole is not None:
        values = doubles.values
        whole &= (np.abs(values) <= MOST_EXACT) & (np.trunc(values) == values)
    measured = _of_kind(int64s, (table.kind == ChannelKind.GAUGE) | (table.kind == ChannelKind.COUNTER))
    if measured is not None:
        measured &= (int64s.values <= MOST_EXACT) & (int64s.values >= -MOST_EXACT)
    if not _any(whole) and not _any(measured):
        return batch
    return replace(
        batch,
        doubles=_exchanged(doubles, whole, int64s, measured, FLOAT64),
        int64s=_exchanged(int64s, measured, doubles, whole, INT64),
    )


def _of_kind(section: Section, entries: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    """Return which rows are of these dictionary entries; None = none can be."""
    if not len(section) or not entries.any():
        return None
    rows = entries.take(section.series, mode="clip")
    if int(section.series.max()) >= len(entries):
        rows &= section.series < len(entries)
    return rows


def _any(rows: npt.NDArray[np.bool_] | None) -> bool:
    return rows is not None and bool(rows.any())


def _exchanged(
    section: Section,
    leaving: npt.NDArray[np.bool_] | None,
    other: Section,
    coming: npt.NDArray[np.bool_] | None,
    dtype: np.dtype[Any],
) -> Section:
    kept = section if leaving is None else section.select(~leaving)
    if coming is None:
        return kept
    moved = other.select(coming)
    if not len(kept):
        return replace(moved, values=moved.values.astype(dtype))
    return Section(
        series=np.concatenate([kept.series, moved.series]),
        time_unix_us=np.concatenate([kept.time_unix_us, moved.time_unix_us]),
        quality=np.concatenate([kept.quality, moved.quality]),
        values=np.concatenate([kept.values, moved.values.astype(dtype)]),
    )
