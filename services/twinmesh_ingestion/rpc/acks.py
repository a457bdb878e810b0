"""Acknowledgements on the wire, and as the receipts that storage keeps for a repeated delivery."""

from __future__ import annotations

from dataclasses import replace

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.registry_mapping import duration_from_message, duration_to_message
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_ingestion.domain.outcomes import Ack, OutcomeCount, Sweep


class AckReceipts:
    """Implements `domain.ports.Receipts`: a receipt is the serialized answer without its position."""

    def encode(self, ack: Ack) -> bytes:
        """Return the acknowledgement as bytes."""
        return ack_to_message(replace(ack, offset=0, incarnation="", replayed=False)).SerializeToString()

    def decode(self, receipt: bytes) -> Ack:
        """Return the acknowledgement that `encode` wrote."""
        return ack_from_message(ingestion_pb2.WriteAck.FromString(receipt))

    def encode_sweep(self, sweep: Sweep) -> bytes:
        """Return the answer to a sweep of quarantine as bytes."""
        ack = replace(sweep.ack, offset=0, incarnation="", replayed=False)
        return replay_response(replace(sweep, ack=ack)).SerializeToString()

    def decode_sweep(self, receipt: bytes) -> Sweep:
        """Return the answer that `encode_sweep` wrote."""
        return _sweep_from_message(ingestion_pb2.ReplayQuarantineResponse.FromString(receipt))


def ack_to_message(ack: Ack) -> ingestion_pb2.WriteAck:
    """Return the acknowledgement as its message."""
    skew = ack.clock_skew_us
    return ingestion_pb2.WriteAck(
        accepted_count=ack.accepted_count,
        flagged_count=ack.flagged_count,
        quarantined_count=ack.quarantined_count,
        duplicate_count=ack.duplicate_count,
        offset=ack.offset,
        incarnation=ack.incarnation,
        outcomes=(
            ingestion_pb2.OutcomeCount(
                reason=observation_pb2.FlagReason.ValueType(o.reason),
                quality=observation_pb2.Quality.ValueType(o.quality),
                count=o.count,
                example=o.example,
            )
            for o in ack.outcomes
        ),
        replayed=ack.replayed,
        deadbanded_count=ack.deadbanded_count,
        clock_skew=duration_to_message(skew) if skew is not None else None,
    )


def ack_from_message(message: ingestion_pb2.WriteAck) -> Ack:
    """Return the message as an acknowledgement."""
    return Ack(
        accepted_count=message.accepted_count,
        flagged_count=message.flagged_count,
        quarantined_count=message.quarantined_count,
        duplicate_count=message.duplicate_count,
        offset=message.offset,
        incarnation=message.incarnation,
        outcomes=tuple(
            OutcomeCount(reason=FlagReason(o.reason), quality=Quality(o.quality), count=o.count, example=o.example)
            for o in message.outcomes
        ),
        replayed=message.replayed,
        deadbanded_count=message.deadbanded_count,
        clock_skew_us=duration_from_message(message.clock_skew) if message.HasField("clock_skew") else None,
    )


def replay_response(sweep: Sweep) -> ingestion_pb2.ReplayQuarantineResponse:
    """Return what became of a page of quarantine as its message."""
    return ingestion_pb2.ReplayQuarantineResponse(
        examined_count=sweep.examined,
        skipped_count=sweep.skipped,
        ack=ack_to_message(sweep.ack),
        next_after_quarantine_id=sweep.next_after,
        matched_count=sweep.matched,
    )


def discard_response(sweep: Sweep) -> ingestion_pb2.DiscardQuarantineResponse:
    """Return what became of a page of quarantine as its message."""
    return ingestion_pb2.DiscardQuarantineResponse(
        discarded_count=sweep.examined,
        next_after_quarantine_id=sweep.next_after,
        matched_count=sweep.matched,
        offset=sweep.ack.offset,
        replayed=sweep.ack.replayed,
    )


def _sweep_from_message(message: ingestion_pb2.ReplayQuarantineResponse) -> Sweep:
    return Sweep(
        examined=message.examined_count,
        skipped=message.skipped_count,
        ack=ack_from_message(message.ack),
        next_after=message.next_after_quarantine_id,
        matched=message.matched_count,
    )
