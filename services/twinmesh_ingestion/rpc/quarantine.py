"""Replay and discard of rows kept aside: the requests checked, the answers written."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.type.v1 import quarantine_pb2
from twinmesh_client.registry_mapping import time_from_message
from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import require_request_id
from twinmesh_core.quality import FlagReason
from twinmesh_ingestion.domain.ports import QuarantineFilter
from twinmesh_ingestion.domain.quarantine import MAX_ROWS, Order, Quarantine
from twinmesh_ingestion.rpc.acks import discard_response, replay_response
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.telemetry import counter, log

MAX_COMMENT_LENGTH: Final = 1_000
_REASONS: Final = frozenset(int(reason) for reason in FlagReason if reason.quarantines)
_Asked = ingestion_pb2.ReplayQuarantineRequest | ingestion_pb2.DiscardQuarantineRequest


class QuarantineServicer:
    """Serves ``ReplayQuarantine`` and ``DiscardQuarantine``."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._rows = counter("ingestion", "quarantine_rows", "Rows of quarantine looked at, by outcome.", ("outcome",))

    async def replay(
        self, request: ingestion_pb2.ReplayQuarantineRequest, _: Any
    ) -> ingestion_pb2.ReplayQuarantineResponse:
        """Take a page of rows through the pipeline again."""
        order = _order(request, backfill=request.backfill)
        sweep = await self._quarantine.replay(current_caller().tenant, order)
        if not order.dry_run and not sweep.ack.replayed:
            stay = sweep.ack.quarantined_count + sweep.skipped
            self._rows.labels("replayed").inc(sweep.examined - stay)
            self._rows.labels("kept").inc(stay)
            _audit("quarantine_replayed", order, sweep.examined - stay)
        return replay_response(sweep)

    async def discard(
        self, request: ingestion_pb2.DiscardQuarantineRequest, _: Any
    ) -> ingestion_pb2.DiscardQuarantineResponse:
        """Take a page of rows out of quarantine."""
        if not request.filter.ByteSize():
            raise invalid_field("filter", "names no condition; say which rows are not wanted, e.g. by twin or reason")
        if not request.comment.strip() and not request.dry_run:
            raise invalid_field("comment", "is required: why the rows are not wanted, for those who look later")
        if len(request.comment) > MAX_COMMENT_LENGTH:
            raise invalid_field("comment", f"is longer than {MAX_COMMENT_LENGTH} characters")
        order = _order(request, comment=request.comment)
        sweep = await self._quarantine.discard(current_caller().tenant, order)
        if not order.dry_run and not sweep.ack.replayed:
            self._rows.labels("discarded").inc(sweep.examined)
            _audit("quarantine_discarded", order, sweep.examined)
        return discard_response(sweep)


def _audit(event: str, order: Order, rows: int) -> None:
    log(event, tenant=current_caller().tenant, principal=order.principal, request_id=order.request_id, rows=rows)


def _order(request: _Asked, **fields: Any) -> Order:
    if not request.request_id and not request.dry_run:
        raise invalid_field("request_id", "is required: sent again, the request must not take effect twice")
    if request.request_id:
        require_request_id(request.request_id)
    if not 0 <= request.max_rows <= MAX_ROWS:
        raise invalid_field("max_rows", f"must be 1 to {MAX_ROWS}, or 0 for {MAX_ROWS}")
    if request.after_quarantine_id < 0:
        raise invalid_field("after_quarantine_id", "must not be negative; 0 = from the oldest")
    content = request.SerializeToString(deterministic=True)
    return Order(
        wanted=_wanted(request.filter),
        after=request.after_quarantine_id,
        max_rows=request.max_rows or MAX_ROWS,
        principal=current_caller().principal,
        request_id=request.request_id,
        content_hash=blake2b(content, digest_size=16).digest(),
        dry_run=request.dry_run,
        **fields,
    )


def _wanted(asked: quarantine_pb2.QuarantineFilter) -> QuarantineFilter:
    for i, reason in enumerate(asked.reasons):
        if reason not in _REASONS:
            raise invalid_field(f"filter.reasons[{i}]", f"{reason} is no reason for which rows are kept aside")
    return QuarantineFilter(
        reasons=tuple(FlagReason(reason) for reason in asked.reasons),
        twin_id=asked.twin_id,
        channel=asked.channel,
        start_time_unix_us=time_from_message(asked.start_time) if asked.HasField("start_time") else None,
        end_time_unix_us=time_from_message(asked.end_time) if asked.HasField("end_time") else None,
        start_offset=asked.start_offset,
        end_offset=asked.end_offset,
        quarantine_ids=tuple(asked.quarantine_ids),
    )
