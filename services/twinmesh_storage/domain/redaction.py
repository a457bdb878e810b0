"""Taking series out of a landed batch: everything else stays as it was, handles and order included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from twinmesh_core import wire
from twinmesh_core.observations import ObservationBatch


def without_series(batch: ObservationBatch, series_ids: frozenset[int]) -> bytes | None:
    """Return the batch's bytes without the rows of these series; None = it has no row of them.

    The dictionary stays whole, since the other rows' handles count its entries.
    """
    named = np.array([key.series_id in series_ids for key in batch.series], np.bool_)
    sections: dict[str, Any] = {}
    for name, section in batch.sections():
        gone = named[section.series] if len(section) else np.empty(0, np.bool_)
        if gone.any():
            sections[name] = section.select(~gone)
    return wire.encode(replace(batch, **sections)) if sections else None
