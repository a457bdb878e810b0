"""A trained model as plain arrays: what is fitted, calibrated, judged, exported and reproduced by the exported graph.

::

    window -> features --+--> linear map --> x scale + base --> mean with others --> + --> + offsets --> quantiles
                         +--> network ----> x scale --------------------------------^
              DYNAMICS:  +--> rollout (with the planned controls) = base
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
class Member:
    """Another linear map with a reading of the window of its own; its answer is averaged with the predictor's."""

    features: FeatureMap
    linear: LinearMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """One candidate.

    Attributes:
        features: how windows are read.
        linear: features -> [horizon], normalised units.
        others: linear maps averaged with `linear`, FORECAST only: maps that validate alike err differently.
        rollout: DYNAMICS only: the trajectory under the planned controls, to which everything else is added.
        network: the MLP's residual; None = the gate.
        network_features: how the network reads windows; None = as `linear` does.
        offsets: float64 [horizon, levels], normalised units: from the point forecast to each quantile; median 0.
    """

    features: FeatureMap
    linear: LinearMap
    rollout: Rollout | None
    network: Network | None
    offsets: Float64
    others: tuple[Member, ...] = ()
    network_features: FeatureMap | None = None

    def point(self, batch: Batch) -> tuple[Float64, Float64]:
        """Return the point forecast float64 [n, horizon] in target units, and each row's scale float64 [n]."""
        found = self.features.compute(batch.window, batch.calendar)
        if self.rollout is None:
            base = found.centre[:, None]
        else:
            base = self.rollout.trajectory(found, batch.calendar, batch.future)
        answer = base + found.scale[:, None] * self.linear.apply(found.values)
        if self.others:
            answer = (answer + sum(_member(other, batch) for other in self.others)) / (1 + len(self.others))
        if self.network is not None:
            read = (
                found if self.network_features is None else self.network_features.compute(batch.window, batch.calendar)
            )
            answer = answer + read.scale[:, None] * self.network.apply(read.values)
        return answer, found.scale

    def quantiles(self, batch: Batch) -> Float64:
        """Return float64 [n, horizon, levels], target units, increasing along levels."""
        point, scale = self.point(batch)
        return point[:, :, None] + scale[:, None, None] * self.offsets


def _member(member: Member, batch: Batch) -> Float64:
    found = member.features.compute(batch.window, batch.calendar)
    return found.centre[:, None] + found.scale[:, None] * member.linear.apply(found.values)
