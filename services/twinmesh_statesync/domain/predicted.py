"""Predictions: which one a twin holds of each channel and model, and how they compare with the facts that arrive."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import ChannelSpec
from twinmesh_core.units import TABLE
from twinmesh_statesync.domain.conditions import check_conditions, check_revision
from twinmesh_statesync.domain.entries import RecordPrediction
from twinmesh_statesync.domain.events import Prediction
from twinmesh_statesync.domain.reduce import Rows
from twinmesh_statesync.domain.residuals import MAX_NUMBER, MAX_STEP_US, Track
from twinmesh_statesync.domain.twin_state import Draft, TwinState, require_channel

_NUMBERS: Final = (ChannelKind.GAUGE, ChannelKind.COUNTER, ChannelKind.STATE)


def record_prediction(draft: Draft, action: RecordPrediction) -> None:
    """Take a prediction, and compare the facts to come with it.

    One that comes from older inputs than the known one, or from what was erased, is passed over.

    Raises:
        NotFound: CHANNEL_NOT_FOUND.
        Conflict: REVISION_CONFLICT, with the current revision and state.
        FailedPrecondition: CONDITION_NOT_MET, with the current state.
    """
    state, prediction = draft.state, action.prediction
    if 0 < prediction.input_offset < state.erase_offset:
        return
    spec = require_channel(state, prediction.channel)
    predicted = state.replica.predicted
    check_revision(state, "predicted", predicted.revision, action.if_revision, (prediction.channel,))
    check_conditions(state, action.conditions)
    key = (prediction.channel, prediction.model_id)
    known = predicted.predictions.get(key)
    if known is not None and prediction.freshness < known.freshness:
        return
    draft.predicted.append(prediction)
    if not _comparable(spec, prediction):
        state.tracks.pop(key, None)
        return
    track = state.tracks.get(key)
    if track is None or track.prediction.model_version != prediction.model_version:
        track = state.tracks[key] = Track(prediction, draft.offset)
    else:
        track.follow(prediction)
    before = state.replica.residuals.get(key)
    residual = track.newest(before)
    if residual != before:
        draft.residuals[key] = residual


def compare(draft: Draft, rows: Rows) -> None:
    """Compare the facts of a batch with the predictions of the draft's twin."""
    state = draft.state
    for key, track in state.tracks.items():
        spec = state.specs.get(key[0])
        found = None if spec is None else rows.of(state.twin.twin_id, spec.name, spec.kind)
        if found is None:
            continue
        times, values, qualities = found
        kept = state.rescaled.get(key[0])
        if kept is not None:
            values = values * kept.scale + kept.offset
        if track.take(times, values, qualities):
            draft.residuals[key] = track.newest(state.replica.residuals.get(key))


def present_of(state: TwinState, now_unix_us: int) -> int:
    """Return the present of a twin: its newest event time plus the time since that arrived.

    For a live twin that is the time now, for a recorded one the time of its recording.
    """
    newest = state.last_event_time_unix_us
    if newest is None:
        return now_unix_us
    return newest + max(0, now_unix_us - state.last_arrival_unix_us)


def _comparable(spec: ChannelSpec, prediction: Prediction) -> bool:
    if spec.kind not in _NUMBERS or not prediction.quantile_levels or not 0 < prediction.step_us <= MAX_STEP_US:
        return False
    if not prediction.values or len(prediction.values) % len(prediction.quantile_levels):
        return False
    if max(map(abs, prediction.values)) > MAX_NUMBER:
        return False
    return prediction.unit in ("", spec.unit) or _same_unit(prediction.unit, spec.unit)


@lru_cache(maxsize=1_024)
def _same_unit(one: str, other: str) -> bool:
    try:
        return TABLE.canonical(one) == TABLE.canonical(other)
    except InvalidArgument:
        return False
