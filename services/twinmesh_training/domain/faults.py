"""The errors that every registry raises alike."""

from __future__ import annotations

from twinmesh_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Reason
from twinmesh_core.ids import quoted
from twinmesh_training.domain.values import Task


def run_not_found(run_id: str) -> NotFound:
    """No such run."""
    return NotFound(
        f"There is no training run {quoted(run_id)}; list the runs to find its id.", reason=Reason.RUN_NOT_FOUND
    )


def run_ended(run_id: str) -> FailedPrecondition:
    """The run has ended and cannot be cancelled."""
    return FailedPrecondition(
        f"The run {quoted(run_id)} has ended; there is nothing to cancel.", reason=Reason.RUN_ENDED
    )


def request_id_reused() -> InvalidArgument:
    """The request_id came before, with another spec."""
    return InvalidArgument(
        "request_id was used before with another spec; choose a new one.", reason=Reason.REQUEST_ID_REUSED
    )


def model_has_task(model_id: str, task: Task, asked: Task) -> AlreadyExists:
    """The model exists and answers another task."""
    return AlreadyExists(
        f"The model {quoted(model_id)} answers {task.name}, not {asked.name}; choose another model_id.",
        metadata={"task": task.name},
    )


def version_not_found(model_id: str, version: int) -> NotFound:
    """No such version, or (version 0) none that serves."""
    if version:
        text = f"The model {quoted(model_id)} has no version {version}; list its versions to see which there are."
    else:
        text = f"No version of the model {quoted(model_id)} is in production; train it, or promote a version."
    return NotFound(text, reason=Reason.MODEL_NOT_FOUND, metadata={"model_id": model_id, "version": str(version)})


def data_erased(model_id: str, version: int, twin_ids: tuple[str, ...]) -> FailedPrecondition:
    """The version learned from twins that were erased since."""
    named = ", ".join(map(quoted, twin_ids[:5])) + (", ..." if len(twin_ids) > 5 else "")
    return FailedPrecondition(
        f"Version {version} of {quoted(model_id)} is invalidated: it learned from {named}, erased since; train the"
        " model again.",
        reason=Reason.DATA_ERASED,
        metadata={"model_id": model_id, "version": str(version), "twin_ids": ",".join(twin_ids[:20])},
    )


def gate_not_passed(model_id: str, version: int) -> FailedPrecondition:
    """The version did not beat what it must beat."""
    return FailedPrecondition(
        f"Version {version} of {quoted(model_id)} did not beat seasonal-naive and the gate on held-out data;"
        " set force to promote it all the same.",
        reason=Reason.GATE_NOT_PASSED,
        metadata={"model_id": model_id, "version": str(version), "remedy": "set force"},
    )
