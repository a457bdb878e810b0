"""What may leave: the log what followers have, history what was kept long enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import PermissionDenied, invalid_field
from twinmesh_core.ids import require_retention_class
from twinmesh_core.time import US_PER_DAY, US_PER_S
from twinmesh_runtime.caller import Role, current_caller
from twinmesh_runtime.registry_mapping import duration_from_message, duration_to_message, time_to_message
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.history_retention import RetentionRule, RetentionRules
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import LogRetention
from twinmesh_storage.rpc import mapping
from twinmesh_storage.rpc.serving import Handler, own_tenant, unary

_EXPIRE_AFTER_US: Final = 7 * US_PER_DAY
_MAX_EXPIRE_AFTER_US: Final = 90 * US_PER_DAY
_MIN_KEEP_US: Final = 60 * US_PER_S
_MAX_KEEP_US: Final = 365_250 * US_PER_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionServicer:
    """Calls about what may leave."""

    view: LogView
    retention: LogRetention
    rules: RetentionRules
    directory: Directory

    async def register_checkpoint(
        self, request: storage_pb2.RegisterCheckpointRequest, _: Any
    ) -> storage_pb2.RegisterCheckpointResponse:
        """Note what a follower has made durable."""
        if current_caller().role is not Role.SERVICE:
            raise PermissionDenied("Only a service may register a checkpoint: it speaks for all tenants.")
        if not mapping.require_text(request.consumer, "consumer"):
            raise invalid_field("consumer", "is missing; name the follower")
        covered = request.covered
        if not covered.incarnation or covered.offset < 0:
            raise invalid_field("covered", "must name the incarnation and an offset from 0 on")
        expire_after_us = duration_from_message(request.expire_after) or _EXPIRE_AFTER_US
        if not US_PER_S <= expire_after_us <= _MAX_EXPIRE_AFTER_US:
            raise invalid_field("expire_after", "must be 1 s to 90 days; 0 = 7 days")
        await self.view.wait_for(covered.offset)
        self.view.check_position(covered.incarnation, covered.offset)
        state = await self.retention.register(
            request.consumer, covered.incarnation, covered.offset, expire_after_us / US_PER_S
        )
        return storage_pb2.RegisterCheckpointResponse(
            trimmed=mapping.position(self.view.incarnation, state.trim_offset)
        )

    async def set_retention(self, request: storage_pb2.SetRetentionRequest, _: Any) -> storage_pb2.SetRetentionResponse:
        """Set, replace or remove a rule."""
        tenant = own_tenant()
        if not request.HasField("rule"):
            raise invalid_field("rule", "is missing; say for which twin and channel, or class, and how long")
        rule = request.rule
        twin_id = mapping.require_text(rule.twin_id, "rule.twin_id")
        channel = mapping.require_text(rule.channel, "rule.channel")
        retention_class = require_retention_class(rule.retention_class, "rule.retention_class")
        if retention_class and (twin_id or channel):
            raise invalid_field(
                "rule.retention_class", "excludes twin_id and channel; set a rule for the class and another for them"
            )
        if not rule.HasField("keep"):
            await self.rules.remove(tenant, twin_id, channel, retention_class)
            return storage_pb2.SetRetentionResponse()
        keep_us = duration_from_message(rule.keep)
        if keep_us and not _MIN_KEEP_US <= keep_us <= _MAX_KEEP_US:
            raise invalid_field("rule.keep", "must be 1 minute to 1000 years; 0 = for ever, absent = remove the rule")
        kept = RetentionRule(
            tenant=tenant, twin_id=twin_id, channel=channel, keep_us=keep_us, retention_class=retention_class
        )
        await self.rules.put(kept, current_caller().principal)
        return storage_pb2.SetRetentionResponse()

    async def list_retention(
        self, request: storage_pb2.ListRetentionRequest, _: Any
    ) -> storage_pb2.ListRetentionResponse:
        """Return the rules, and what they have done to a twin."""
        tenant = own_tenant()
        twin_id = mapping.require_text(request.twin_id, "twin_id")
        series = await self.directory.every_series(tenant, [twin_id]) if twin_id else []
        starts = await self.rules.starts(tenant, series) if series else {}
        return storage_pb2.ListRetentionResponse(
            rules=[
                storage_pb2.RetentionRule(
                    twin_id=rule.twin_id,
                    channel=rule.channel,
                    keep=duration_to_message(rule.keep_us),
                    retention_class=rule.retention_class,
                )
                for rule in await self.rules.of(tenant)
            ],
            starts=[
                storage_pb2.HistoryStart(
                    twin_id=s.twin_id, channel=s.channel, history_start=time_to_message(starts[s.series_id])
                )
                for s in sorted(series, key=lambda s: s.channel)
                if s.series_id in starts
            ],
        )

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "RegisterCheckpoint": unary(
                self.register_checkpoint, pb.RegisterCheckpointRequest, pb.RegisterCheckpointResponse
            ),
            "SetRetention": unary(self.set_retention, pb.SetRetentionRequest, pb.SetRetentionResponse),
            "ListRetention": unary(self.list_retention, pb.ListRetentionRequest, pb.ListRetentionResponse),
        }
