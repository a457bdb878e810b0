"""The error tree: complete, copyable, and equal to the frozen register of the protos."""

import copy

import pytest

from twinmesh.type.v1 import error_pb2
from twinmesh_core.errors import (
    ERROR_TYPES,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
    invalid_field,
)


def test_reasons_are_exactly_those_of_the_protos() -> None:
    in_protos = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert {reason.value for reason in Reason} == in_protos
    assert all(reason.name == reason.value for reason in Reason)


def test_every_class_of_the_tree_has_its_own_code_and_a_known_default_reason() -> None:
    subclasses = set(TwinmeshError.__subclasses__())
    assert subclasses == set(ERROR_TYPES.values())
    assert len({kind.code for kind in subclasses}) == len(subclasses)
    assert all(kind.default_reason in Reason for kind in subclasses)


def test_an_error_reads_as_its_message_then_its_fields_then_its_reason() -> None:
    error = InvalidArgument(
        "The batch is wrong.",
        field_violations=(FieldViolation(field="batch.series[0].unit", description="'furlong' is not a length"),),
        reason=Reason.INCOMPATIBLE_UNIT,
    )
    assert str(error) == "The batch is wrong.; batch.series[0].unit: 'furlong' is not a length [INCOMPATIBLE_UNIT]"
    assert str(invalid_field("at", "must not be empty")) == "at: must not be empty [INVALID_FIELD]"


def test_a_copy_keeps_every_field() -> None:
    error = FailedPrecondition(
        "Behind.",
        reason=Reason.SEQUENCE_GAP,
        metadata={"expected_sequence": "4"},
        field_violations=(FieldViolation(field="sequence", description="skips 4"),),
        retry_after_s=1.5,
    )
    twin = copy.copy(error)
    assert type(twin) is FailedPrecondition
    assert (twin.message, twin.reason, twin.metadata, twin.field_violations, twin.retry_after_s) == (
        error.message,
        error.reason,
        error.metadata,
        error.field_violations,
        error.retry_after_s,
    )


def test_retryable_is_what_a_caller_may_simply_repeat() -> None:
    assert Unavailable("away").retryable
    assert ResourceExhausted("full", retry_after_s=1).retryable
    assert not ResourceExhausted("too large", reason=Reason.MESSAGE_TOO_LARGE).retryable


def test_a_reason_of_a_newer_peer_is_kept_as_text() -> None:
    assert TwinmeshError("?", reason="FROM_THE_FUTURE").reason == "FROM_THE_FUTURE"
    assert TwinmeshError("?", reason="INTERNAL").reason is Reason.INTERNAL


def test_metadata_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TwinmeshError("?", metadata={"a": "b"}).metadata["a"] = "c"  # type: ignore[index]
