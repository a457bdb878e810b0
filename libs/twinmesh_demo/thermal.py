"""A power transformer's temperatures: the dynamic thermal model of the loading guide IEC 60076-7:2018, section 8.2.

Top-oil temperature follows load and ambient with the oil's time constant; the hot-spot rises above it with the
winding's own, faster one, with an overshoot while the oil is not yet moving. Cooling stages scale the rated rises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

STAGES: Final = (0, 1, 2, 3)
"""Cooling stages: natural circulation, then one to three banks of fans."""
FAN_KW: Final = (0.0, 1.2, 2.8, 5.2)
"""Electrical power of the fans at each stage, kW."""
LIMIT_C: Final = 98.0
"""Hot-spot temperature of normal ageing (non-upgraded paper), °C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nameplate:
    """Constants of one transformer, as in Table 4 of the guide for a large power transformer with forced air.

    Attributes:
        oil_exponent: x, of the total losses.
        winding_exponent: y, of the current.
        loss_ratio: R, load losses at rated current over no-load losses.
        oil_rise_k: top-oil rise at rated losses with stage 2, K.
        hot_spot_rise_k: hot-spot over top-oil at rated current with stage 2, K.
        oil_minutes: oil time constant, minutes.
        winding_minutes: winding time constant, minutes.
        k11, k21, k22: shape constants of the guide.
        oil_factor: rated oil rise of each stage, relative to stage 2.
        winding_factor: rated hot-spot rise of each stage, relative to stage 2.
    """

    oil_exponent: float = 0.8
    winding_exponent: float = 1.3
    loss_ratio: float = 6.0
    oil_rise_k: float = 52.0
    hot_spot_rise_k: float = 26.0
    oil_minutes: float = 150.0
    winding_minutes: float = 7.0
    k11: float = 0.5
    k21: float = 2.0
    k22: float = 2.0
    oil_factor: tuple[float, float, float, float] = (1.42, 1.18, 1.0, 0.84)
    winding_factor: tuple[float, float, float, float] = (1.12, 1.05, 1.0, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermal:
    """State of the model: top-oil temperature (°C) and the two parts of the hot-spot rise (K)."""

    oil_c: float
    rise_fast_k: float
    rise_slow_k: float

    @property
    def hot_spot_c(self) -> float:
        """Hot-spot temperature, °C."""
        return self.oil_c + self.rise_fast_k - self.rise_slow_k


def steady(nameplate: Nameplate, load: float, ambient_c: float, stage: int) -> Thermal:
    """Return the state that the model settles in under constant load (per unit), ambient (°C) and stage."""
    gradient = _gradient(nameplate, load, stage)
    return Thermal(
        oil_c=ambient_c + _oil_rise(nameplate, load, stage),
        rise_fast_k=nameplate.k21 * gradient,
        rise_slow_k=(nameplate.k21 - 1.0) * gradient,
    )


def step(nameplate: Nameplate, state: Thermal, load: float, ambient_c: float, stage: int, minutes: float) -> Thermal:
    """Return the state after `minutes`, which must be well below the winding time constant.

    Source: IEC 60076-7:2018, equations (17) to (20), as difference equations (Annex C).
    """
    n = nameplate
    gradient = _gradient(n, load, stage)
    oil_pull = ambient_c + _oil_rise(n, load, stage) - state.oil_c
    return replace(
        state,
        oil_c=state.oil_c + minutes / (n.k11 * n.oil_minutes) * oil_pull,
        rise_fast_k=state.rise_fast_k + minutes / (n.k22 * n.winding_minutes) * (n.k21 * gradient - state.rise_fast_k),
        rise_slow_k=state.rise_slow_k
        + minutes * n.k22 / n.oil_minutes * ((n.k21 - 1.0) * gradient - state.rise_slow_k),
    )


def ageing_rate(hot_spot_c: float) -> float:
    """Return how many hours of insulation life one hour costs: doubles every 6 K, 1 at 98 °C.

    Source: IEC 60076-7:2018, equation (2), non-thermally-upgraded paper.
    """
    return float(2.0 ** ((hot_spot_c - LIMIT_C) / 6.0))


def _oil_rise(n: Nameplate, load: float, stage: int) -> float:
    losses = (1.0 + load * load * n.loss_ratio) / (1.0 + n.loss_ratio)
    return float(losses**n.oil_exponent) * n.oil_rise_k * n.oil_factor[stage]


def _gradient(n: Nameplate, load: float, stage: int) -> float:
    return float(load**n.winding_exponent) * n.hot_spot_rise_k * n.winding_factor[stage]
