"""How a dynamics model answers its controls on held-out windows: an operator should see it before trusting it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from twinmesh_training.domain.dataset import Dataset, thin
from twinmesh_training.domain.predictor import Predictor
from twinmesh_training.domain.values import Metric

_ROWS = 256


def control_metrics(dataset: Dataset, predictor: Predictor) -> tuple[Metric, ...]:
    """Return how the forecast at the horizon's end answers each control; empty for FORECAST.

    ``control_effect`` is the mean change, in target units, when the control is held at its highest instead of its
    lowest recorded value; ``control_sign_share`` the share of windows whose change has the sign of that mean. Scope:
    ``control=<channel>``.
    """
    spec = dataset.spec
    if not spec.controls:
        return ()
    batch = dataset.batch(thin(dataset.holdout, _ROWS))
    found: list[Metric] = []
    for column, name in enumerate(spec.controls):
        channel = spec.channels.index(name)
        seen = np.concatenate([h.values[: dataset.fit_end, channel] for h in dataset.histories])
        if not np.isfinite(seen).any():
            continue
        ends = []
        for value in (np.nanmin(seen), np.nanmax(seen)):
            future = batch.future.copy()
            future[:, :, column] = value
            ends.append(predictor.point(replace(batch, future=future))[0][:, -1])
        effect = ends[1] - ends[0]
        mean = float(effect.mean())
        scope = f"control={name}"
        found.append(Metric(name="control_effect", value=mean, scope=scope))
        share = float((np.sign(effect) == np.sign(mean)).mean())
        found.append(Metric(name="control_sign_share", value=share, scope=scope))
    return tuple(found)
