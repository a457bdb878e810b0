"""Removal's side of StorageService: hiding observations, and erasing twins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from google.protobuf.message import Message

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import NotFound, Reason, invalid_field
from twinmesh_core.ids import require_request_id
from twinmesh_core.time import Clock
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.registry_mapping import time_from_message, time_to_message
from twinmesh_runtime.telemetry import counter
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.entries import HASH_BYTES, Appended, EntryKind, NewEntry
from twinmesh_storage.domain.eraser import Eraser
from twinmesh_storage.domain.erasure import Erasure, ErasureStore, Step
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.series import Series
from twinmesh_storage.rpc import control_entries, mapping, paging
from twinmesh_storage.rpc.serving import Handler, own_tenant, unary

_MAX_SERIES: Final = 10_000
_MAX_TWINS: Final = 1_000
_PROGRESS: Final = {
    Step.HIDE: (0.0, 0.0),
    Step.FOLD: (0.05, 0.0),
    Step.HISTORY: (0.1, 0.0),
    Step.LOG: (0.2, 0.4),
    Step.ROWS: (0.6, 0.0),
    Step.CACHE: (0.65, 0.0),
    Step.VERIFY: (0.7, 0.3),
    Step.DONE: (1.0, 0.0),
}
"""Where each step begins, and its share that follows the log."""

AppendEntry = Callable[[NewEntry], Awaitable[Appended]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalServicer:
    """Calls that take observations away."""

    view: LogView
    directory: Directory
    append: AppendEntry
    eraser: Eraser
    erasures: ErasureStore
    clock: Clock

    async def delete_range(self, request: storage_pb2.DeleteRangeRequest, _: Any) -> storage_pb2.DeleteRangeResponse:
        """Append the entry that hides observations."""
        tenant = own_tenant()
        _require_key(request.request_id)
        start = time_from_message(request.start_time) if request.HasField("start_time") else None
        end = time_from_message(request.end_time) if request.HasField("end_time") else None
        if start is not None and end is not None and end <= start:
            raise invalid_field("end_time", "must be after start_time")
        series = await self._named(tenant, request)
        body = control_entries.delete_range_body(request.request_id, current_caller().principal, series, start, end)
        appended = await self.append(
            NewEntry(
                tenant=tenant,
                kind=EntryKind.CONTROL,
                body=body,
                content_hash=_hash(request),
                request_id=request.request_id,
            )
        )
        counter("storage", "deletions", "Entries that hide observations.").inc(not appended.replayed)
        return storage_pb2.DeleteRangeResponse(
            position=mapping.position(self.view.incarnation, appended.offset),
            commit_time=time_to_message(appended.commit_time_unix_us),
            replayed=appended.replayed,
        )

    async def _named(self, tenant: str, request: storage_pb2.DeleteRangeRequest) -> list[Series]:
        if not request.series and not request.twin_ids:
            raise invalid_field("series", "is empty, and so is twin_ids; name series or twins")
        if len(request.twin_ids) > _MAX_TWINS:
            raise invalid_field("twin_ids", f"has {len(request.twin_ids)} entries; at most {_MAX_TWINS} go at once")
        named: dict[int, Series] = {}
        if request.series:
            names = mapping.names(request.series, "series", _MAX_SERIES)
            named.update((s.series_id, s) for s in await self.directory.require(tenant, names))
        for index, twin_id in enumerate(request.twin_ids):
            mapping.require_text(twin_id, f"twin_ids[{index}]")
            of_twin = await self.directory.every_series(tenant, [twin_id])
            if not of_twin:
                raise NotFound(
                    f"twin_ids[{index}]: storage never had an observation of twin {twin_id!r}; "
                    "check the name (list series).",
                    reason=Reason.CHANNEL_NOT_FOUND,
                    metadata={"twin_id": twin_id},
                )
            named.update((s.series_id, s) for s in of_twin)
        if len(named) > _MAX_SERIES:
            raise invalid_field("twin_ids", f"have {len(named)} series; at most {_MAX_SERIES} go at once")
        return list(named.values())

    async def erase_twin(self, request: storage_pb2.EraseTwinRequest, _: Any) -> storage_pb2.EraseTwinResponse:
        """Begin to erase a twin."""
        tenant = own_tenant()
        _require_key(request.request_id)
        if not mapping.require_text(request.twin_id, "twin_id"):
            raise invalid_field("twin_id", "is missing; name the twin to be erased")
        if not await self.eraser.may_hold(tenant, request.twin_id):
            raise NotFound(
                f"twin_id: storage holds nothing of twin {request.twin_id!r}; check the name (list twins or series).",
                reason=Reason.TWIN_NOT_FOUND,
                metadata={"twin_id": request.twin_id},
            )
        erasure, known = await self.eraser.start(
            Erasure(
                tenant=tenant,
                erasure_id=blake2b(request.request_id.encode(), digest_size=12).hexdigest(),
                twin_id=request.twin_id,
                principal=current_caller().principal,
                content_hash=_hash(request),
                create_time_unix_us=self.clock.now_unix_us(),
            )
        )
        counter("storage", "erasures", "Erasures of twins begun.").inc(not known)
        return storage_pb2.EraseTwinResponse(erasure=_erasure_message(erasure))

    async def get_erasure(self, request: storage_pb2.GetErasureRequest, _: Any) -> storage_pb2.GetErasureResponse:
        """Return an erasure."""
        erasure_id = mapping.require_text(request.erasure_id, "erasure_id")
        erasure = await self.erasures.get(own_tenant(), erasure_id)
        if erasure is None:
            raise NotFound(
                f"erasure_id: there is no erasure {erasure_id!r}; take the id from EraseTwin or ListErasures.",
                reason=Reason.RUN_NOT_FOUND,
            )
        return storage_pb2.GetErasureResponse(erasure=_erasure_message(erasure))

    async def list_erasures(self, request: storage_pb2.ListErasuresRequest, _: Any) -> storage_pb2.ListErasuresResponse:
        """Return a page of erasures."""
        size = paging.page_size(request.page_size, default=100, most=1_000)
        _, after = paging.names_after(request.page_token)
        twin_id = mapping.require_text(request.twin_id, "twin_id")
        page = await self.erasures.page(own_tenant(), twin_id, after, size)
        return storage_pb2.ListErasuresResponse(
            erasures=[_erasure_message(erasure) for erasure in page],
            next_page_token=paging.names_token("", page[-1].erasure_id) if len(page) == size else "",
        )

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "DeleteRange": unary(self.delete_range, pb.DeleteRangeRequest, pb.DeleteRangeResponse),
            "EraseTwin": unary(self.erase_twin, pb.EraseTwinRequest, pb.EraseTwinResponse),
            "GetErasure": unary(self.get_erasure, pb.GetErasureRequest, pb.GetErasureResponse),
            "ListErasures": unary(self.list_erasures, pb.ListErasuresRequest, pb.ListErasuresResponse),
        }


def hide_with(append: AppendEntry) -> Callable[[Erasure, Sequence[Series]], Awaitable[int]]:
    """Return what appends the entry by which an erasure begins, and answers its offset."""

    async def hide(erasure: Erasure, series: Sequence[Series]) -> int:
        request_id = f"erasure/{erasure.erasure_id}/{erasure.rounds}"
        appended = await append(
            NewEntry(
                tenant=erasure.tenant,
                kind=EntryKind.CONTROL,
                body=control_entries.erase_twin_body(
                    request_id, erasure.principal, erasure.twin_id, series, erasure.erasure_id
                ),
                content_hash=erasure.content_hash,
                request_id=request_id,
            )
        )
        return appended.offset

    return hide


def _require_key(request_id: str) -> None:
    if not require_request_id(request_id, "request_id"):
        raise invalid_field("request_id", "is missing; without one a repetition would take away what arrived since")


def drop_with(append: AppendEntry) -> Callable[[str, Sequence[Series], int], Awaitable[None]]:
    """Return what appends the entry that drops history before an event time."""

    async def drop(tenant: str, series: Sequence[Series], before_unix_us: int) -> None:
        body = control_entries.drop_history_body("", series, before_unix_us)
        content = blake2b(body, digest_size=HASH_BYTES)
        await append(NewEntry(tenant=tenant, kind=EntryKind.CONTROL, body=body, content_hash=content.digest()))

    return drop


def _hash(request: Message) -> bytes:
    """Return the hash of what was asked: what a name resolves to may have changed when it is asked again."""
    return blake2b(request.SerializeToString(deterministic=True), digest_size=HASH_BYTES).digest()


def _erasure_message(erasure: Erasure) -> storage_pb2.Erasure:
    begins, share = _PROGRESS[erasure.step]
    through = erasure.done_offset / erasure.offset if erasure.offset else 0.0
    return storage_pb2.Erasure(
        erasure_id=erasure.erasure_id,
        twin_id=erasure.twin_id,
        principal=erasure.principal,
        state=int(erasure.state),  # type: ignore[arg-type]  # equal numbers
        offset=erasure.offset,
        progress=begins + share * through,
        entries_rewritten=erasure.entries_rewritten,
        rows_erased=erasure.rows_erased,
        scrubbed=erasure.scrubbed,
        message=erasure.message,
        create_time=time_to_message(erasure.create_time_unix_us),
        end_time=time_to_message(erasure.end_time_unix_us) if erasure.end_time_unix_us else None,
    )
