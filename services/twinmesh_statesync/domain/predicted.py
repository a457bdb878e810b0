"""Predictions: which one a twin holds of each channel and model."""

from __future__ import annotations

from twinmesh_statesync.domain.conditions import check_conditions, check_revision
from twinmesh_statesync.domain.entries import RecordPrediction
from twinmesh_statesync.domain.twin_state import Draft, require_channel


def record_prediction(draft: Draft, action: RecordPrediction) -> None:
    """Take a prediction, unless one from newer inputs is there.

    Raises:
        NotFound: CHANNEL_NOT_FOUND.
        Conflict: REVISION_CONFLICT, with the current revision and state.
        FailedPrecondition: CONDITION_NOT_MET, with the current state.
    """
    state, prediction = draft.state, action.prediction
    require_channel(state, prediction.channel)
    predicted = state.replica.predicted
    check_revision(state, "predicted", predicted.revision, action.if_revision, (prediction.channel,))
    check_conditions(state, action.conditions)
    known = predicted.predictions.get((prediction.channel, prediction.model_id))
    if known is None or prediction.freshness >= known.freshness:
        draft.predicted.append(prediction)
