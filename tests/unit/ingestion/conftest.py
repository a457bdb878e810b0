"""Fixtures of ingestion's unit tests."""

from __future__ import annotations

import pytest
from tests.unit.ingestion import plant

from twinmesh_ingestion.adapters.memory import MemoryLog


@pytest.fixture
def log():
    return MemoryLog()


@pytest.fixture
def write(log):
    """Write batches through one intake."""
    taking = plant.intake(log)

    async def send(batch, *, backfill=False, request_id=""):
        prepared = await taking.prepare("default", batch, content_hash=b"h" * 16, backfill=backfill)
        return await taking.append("default", prepared, request_id=request_id)

    return send
