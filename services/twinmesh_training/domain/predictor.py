"""A trained model as plain arrays: what is fitted, calibrated, judged, exported and reproduced by the exported graph.

::

    window -> features --+--> linear map --+
                         +--> network -----+--> (sum) x scale + base --> + offsets per step and level --> quantiles
              DYNAMICS:  +--> rollout (with the planned controls) ^
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinmesh_training.domain.dataset import Batch
from twinmesh_training.domain.features import FeatureMap
from twinmesh_training.domain.ridge import LinearMap
from twinmesh_training.domain.rollout import Rollout

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A multi-layer perceptron with SiLU between layers, reading standardised features.

    Attributes:
        mean, scale: float64 [features].
        layers: pairs of weights float64 [in, out] and biases float64 [out].
    """

    mean: Float64
    scale: Float64
    layers: tuple[tuple[Float64, Float64], ...]

    def apply(self, features: Float64) -> Float64:
        """Return float64 [n, horizon], in normalised units."""
        x = (features - self.mean) / self.scale
        last = len(self.layers) - 1
        for index, (weights, bias) in enumerate(self.layers):
            x = x @ weights + bias
            if index < last:
                x = x / (1.0 + np.exp(-np.clip(x, -60, 60)))
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """One candidate.

    Attributes:
        features: how windows are read.
        linear: features -> [horizon], normalised units.
        rollout: DYNAMICS only: the trajectory under the planned controls, to which everything else is added.
        network: the MLP's residual; None = the gate.
        offsets: float64 [horizon, levels], normalised units: from the point forecast to each quantile; median 0.
    """

    features: FeatureMap
    linear: LinearMap
    rollout: Rollout | None
    network: Network | None
    offsets: Float64

    def point(self, batch: Batch) -> tuple[Float64, Float64]:
        """Return the point forecast float64 [n, horizon] in target units, and each row's scale float64 [n]."""
        found = self.features.compute(batch.window, batch.calendar)
        if self.rollout is None:
            base = found.centre[:, None]
        else:
            base = self.rollout.trajectory(found, batch.calendar, batch.future)
        change = self.linear.apply(found.values)
        if self.network is not None:
            change = change + self.network.apply(found.values)
        return base + found.scale[:, None] * change, found.scale

    def quantiles(self, batch: Batch) -> Float64:
        """Return float64 [n, horizon, levels], target units, increasing along levels."""
        point, scale = self.point(batch)
        return point[:, :, None] + scale[:, None, None] * self.offsets
