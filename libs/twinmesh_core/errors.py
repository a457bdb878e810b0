"""The one error tree of Twinmesh: raised by services, travelling as ``google.rpc.Status``, raised again by the SDK.

::

    TwinmeshError                gRPC status          typical reasons
    ├── InvalidArgument          INVALID_ARGUMENT     INVALID_FIELD, INCOMPATIBLE_UNIT, MALFORMED_MESSAGE
    ├── OutOfRange               OUT_OF_RANGE         COMPACTED, FUTURE_OFFSET, AS_OF_PRUNED, PAGE_EXPIRED
    ├── Unauthenticated          UNAUTHENTICATED      UNAUTHENTICATED
    ├── PermissionDenied         PERMISSION_DENIED    PERMISSION_DENIED
    ├── NotFound                 NOT_FOUND            TWIN_NOT_FOUND, CHANNEL_NOT_FOUND, MODEL_NOT_FOUND
    ├── AlreadyExists            ALREADY_EXISTS       ALREADY_EXISTS
    ├── Conflict                 ABORTED              REVISION_CONFLICT
    ├── FailedPrecondition       FAILED_PRECONDITION  PRODUCER_FENCED, SEQUENCE_GAP, LOG_REWOUND
    ├── ResourceExhausted        RESOURCE_EXHAUSTED   OVERLOADED, MESSAGE_TOO_LARGE     (retryable when told when)
    ├── Unavailable              UNAVAILABLE          DEPENDENCY_UNAVAILABLE, DRAINING  (retryable)
    ├── DeadlineExceeded         DEADLINE_EXCEEDED    DEADLINE
    ├── Unimplemented            UNIMPLEMENTED        UNIMPLEMENTED
    ├── Internal                 INTERNAL             INTERNAL
    └── DataLoss                 DATA_LOSS            CHECKSUM_MISMATCH

A class says how a program should react (it is the status code); a reason says what happened (it is frozen in
``twinmesh.type.v1.ErrorReason`` and may be matched by callers); a message says to a person what is wrong and what
would be right, and never carries Python text, a path or SQL. Cancellation is not an error of this tree:
``asyncio.CancelledError`` passes through everything.
"""

# ruff: noqa: N818  the names are the status codes; a suffix on each would say less

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar

ERROR_DOMAIN = "twinmesh"
"""``google.rpc.ErrorInfo.domain`` of every error of this tree."""


class Reason(StrEnum):
    """Why a call failed; equal, name by name, to ``twinmesh.type.v1.ErrorReason`` (a test holds them together)."""

    UNSPECIFIED = "UNSPECIFIED"
    INVALID_FIELD = "INVALID_FIELD"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    INCOMPATIBLE_UNIT = "INCOMPATIBLE_UNIT"
    UNEQUAL_COLUMNS = "UNEQUAL_COLUMNS"
    SEQUENCE_REUSED = "SEQUENCE_REUSED"
    TWIN_TYPE_NOT_FOUND = "TWIN_TYPE_NOT_FOUND"
    TWIN_NOT_FOUND = "TWIN_NOT_FOUND"
    CHANNEL_NOT_FOUND = "CHANNEL_NOT_FOUND"
    COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    REVISION_CONFLICT = "REVISION_CONFLICT"
    PRODUCER_FENCED = "PRODUCER_FENCED"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    LOG_REWOUND = "LOG_REWOUND"
    NOT_SEQUENCER = "NOT_SEQUENCER"
    COMMAND_STATE = "COMMAND_STATE"
    NOT_CONTROLLABLE = "NOT_CONTROLLABLE"
    NOT_ENOUGH_HISTORY = "NOT_ENOUGH_HISTORY"
    RUN_ENDED = "RUN_ENDED"
    COMPACTED = "COMPACTED"
    FUTURE_OFFSET = "FUTURE_OFFSET"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    OVERLOADED = "OVERLOADED"
    WATCHER_TOO_SLOW = "WATCHER_TOO_SLOW"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    DRAINING = "DRAINING"
    MODEL_NOT_READY = "MODEL_NOT_READY"
    DEADLINE = "DEADLINE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INTERNAL = "INTERNAL"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    GATE_NOT_PASSED = "GATE_NOT_PASSED"
    QUARANTINE_CHANGED = "QUARANTINE_CHANGED"
    AS_OF_PRUNED = "AS_OF_PRUNED"
    CONDITION_NOT_MET = "CONDITION_NOT_MET"
    COMMAND_QUEUE_FULL = "COMMAND_QUEUE_FULL"
    DATA_ERASED = "DATA_ERASED"
    RELATIONSHIP_TARGET = "RELATIONSHIP_TARGET"
    PAGE_EXPIRED = "PAGE_EXPIRED"
    RULE_NOT_FOUND = "RULE_NOT_FOUND"
    ALARM_STATE = "ALARM_STATE"
    SUBSCRIPTION_NOT_FOUND = "SUBSCRIPTION_NOT_FOUND"
    EVENT_NOT_FOUND = "EVENT_NOT_FOUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One field of the request that is wrong, and what would be right.

    Attributes:
        field: path of the field as the proto spells it, e.g. ``batch.series[2].channel``.
        description: what was found and what is allowed, for a person.
    """

    field: str
    description: str


class TwinmeshError(Exception):
    """A failure with a stated reason; use a subclass, which says how a caller should react.

    Args:
        message: one or two sentences for a person: what is wrong, and the remedy.
        reason: what happened; a `Reason`, or the text of one that this version does not know yet.
        metadata: facts for a program, e.g. ``{"current_revision": "7"}``; short keys and values.
        field_violations: the fields that are wrong, where the fault lies in the request.
        retry_after_s: seconds after which the same call may succeed; None when waiting does not help or is unknown.
    """

    code: ClassVar[str] = "UNKNOWN"
    """Name of the gRPC status code that carries this class."""
    default_reason: ClassVar[Reason] = Reason.UNSPECIFIED

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        field_violations: Iterable[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason: str = known_reason(reason) if reason is not None else self.default_reason
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.field_violations: tuple[FieldViolation, ...] = tuple(field_violations)
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        """Whether the same call, unchanged, may succeed later without anybody mending anything."""
        return self.retry_after_s is not None

    def __str__(self) -> str:
        """The message, then the violated fields and the reason: what a person should read first comes first."""
        fields = "".join(
            f"; {v.field}: {v.description}" for v in self.field_violations if v.description not in self.message
        )
        return f"{self.message}{fields} [{self.reason}]"

    def __reduce__(self) -> tuple[object, ...]:
        """Copyable and transferable between processes with every field, which `Exception` would drop."""
        state = (
            self.message,
            str(self.reason),
            dict(self.metadata),
            self.field_violations,
            self.retry_after_s,
        )
        return _rebuild, (type(self), *state)


class InvalidArgument(TwinmeshError):
    """The request is wrong whatever the state of the system is; mend the request."""

    code: ClassVar[str] = "INVALID_ARGUMENT"
    default_reason: ClassVar[Reason] = Reason.INVALID_FIELD


class OutOfRange(TwinmeshError):
    """The request asks for a position that is not there now: already compacted, or still in the future."""

    code: ClassVar[str] = "OUT_OF_RANGE"


class Unauthenticated(TwinmeshError):
    """The caller has not shown who it is."""

    code: ClassVar[str] = "UNAUTHENTICATED"
    default_reason: ClassVar[Reason] = Reason.UNAUTHENTICATED


class PermissionDenied(TwinmeshError):
    """The caller is known and may not do this."""

    code: ClassVar[str] = "PERMISSION_DENIED"
    default_reason: ClassVar[Reason] = Reason.PERMISSION_DENIED


class NotFound(TwinmeshError):
    """The thing named does not exist; the message says what would create it."""

    code: ClassVar[str] = "NOT_FOUND"


class AlreadyExists(TwinmeshError):
    """The thing to be created exists, with other content."""

    code: ClassVar[str] = "ALREADY_EXISTS"
    default_reason: ClassVar[Reason] = Reason.ALREADY_EXISTS


class Conflict(TwinmeshError):
    """Somebody else changed the resource first; read it again, decide again, write again (status ABORTED)."""

    code: ClassVar[str] = "ABORTED"
    default_reason: ClassVar[Reason] = Reason.REVISION_CONFLICT


class FailedPrecondition(TwinmeshError):
    """The system is not in the state that this call needs; the reason says which step is missing."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


class ResourceExhausted(TwinmeshError):
    """A stated bound is reached: size, rate, memory or disk; with `retry_after_s`, waiting helps."""

    code: ClassVar[str] = "RESOURCE_EXHAUSTED"
    default_reason: ClassVar[Reason] = Reason.OVERLOADED


class Unavailable(TwinmeshError):
    """The service, or something it needs, cannot answer now; the same call may succeed later."""

    code: ClassVar[str] = "UNAVAILABLE"
    default_reason: ClassVar[Reason] = Reason.DEPENDENCY_UNAVAILABLE

    @property
    def retryable(self) -> bool:
        """Always true: this is what the class means."""
        return True


class DeadlineExceeded(TwinmeshError):
    """Time ran out; whether a mutation took effect is unknown unless its `request_id` is asked again."""

    code: ClassVar[str] = "DEADLINE_EXCEEDED"
    default_reason: ClassVar[Reason] = Reason.DEADLINE


class Unimplemented(TwinmeshError):
    """This server does not have the method; it is older or younger than the caller."""

    code: ClassVar[str] = "UNIMPLEMENTED"
    default_reason: ClassVar[Reason] = Reason.UNIMPLEMENTED


class Internal(TwinmeshError):
    """A fault of the service; the message carries only an incident id, the service's log has the rest."""

    code: ClassVar[str] = "INTERNAL"
    default_reason: ClassVar[Reason] = Reason.INTERNAL


class DataLoss(TwinmeshError):
    """Stored data failed its checksum or is missing; an operator must act."""

    code: ClassVar[str] = "DATA_LOSS"
    default_reason: ClassVar[Reason] = Reason.CHECKSUM_MISMATCH


ERROR_TYPES: Mapping[str, type[TwinmeshError]] = MappingProxyType(
    {
        kind.code: kind
        for kind in (
            InvalidArgument,
            OutOfRange,
            Unauthenticated,
            PermissionDenied,
            NotFound,
            AlreadyExists,
            Conflict,
            FailedPrecondition,
            ResourceExhausted,
            Unavailable,
            DeadlineExceeded,
            Unimplemented,
            Internal,
            DataLoss,
        )
    }
)
"""Status code name to class; a code that is absent here (UNKNOWN, CANCELLED) is read as plain `TwinmeshError`."""


def known_reason(text: str) -> str:
    """Return the `Reason` spelt `text`, or `text` itself when a newer peer sent one that is unknown here."""
    return Reason.__members__.get(text, text)


def invalid_field(field: str, description: str, *, reason: str | None = None, message: str = "") -> InvalidArgument:
    """Build the `InvalidArgument` for one wrong field: the commonest error, in one line at the place that finds it."""
    return InvalidArgument(
        message or f"{field}: {description}",
        reason=reason,
        field_violations=(FieldViolation(field=field, description=description),),
    )


def _rebuild(
    kind: type[TwinmeshError],
    message: str,
    reason: str,
    metadata: Mapping[str, str],
    field_violations: tuple[FieldViolation, ...],
    retry_after_s: float | None,
) -> TwinmeshError:
    return kind(
        message, reason=reason, metadata=metadata, field_violations=field_violations, retry_after_s=retry_after_s
    )
