"""Which candidates pass, and which one is promoted.

Selection and report use different data: the winner is the candidate with the least error on the *calibration* part, and
what is reported is its error on the *held-out tail*. The tail can only veto: a candidate that does not beat both
seasonal-naive and the gate there is registered, and not promoted; then the gate itself is, if it beats seasonal-naive.
"""

from __future__ import annotations

from collections.abc import Mapping

from twinmesh_training.domain.values import Family


def passes_gate(family: Family, held_out_mae: Mapping[Family, float]) -> bool:
    """Return whether a family beats seasonal-naive and, unless it is the gate, the gate on the held-out tail.

    Args:
        family: whose.
        held_out_mae: MAE on the held-out tail of every family, SEASONAL_NAIVE and RIDGE among them. A baseline that
            could not be measured (NaN) is beaten by any number.
    """
    own = held_out_mae[family]
    if own != own:
        return False
    rivals = [Family.SEASONAL_NAIVE] if family is Family.RIDGE else [Family.SEASONAL_NAIVE, Family.RIDGE]
    return all(not own >= held_out_mae[rival] for rival in rivals)


def winner(calibration_mae: Mapping[Family, float], held_out_mae: Mapping[Family, float]) -> Family | None:
    """Return the family to promote, or None when nothing beats seasonal-naive.

    Args:
        calibration_mae: MAE on the calibration part of every trained family.
        held_out_mae: as for `passes_gate`.
    """
    selected = min(calibration_mae, key=lambda family: (calibration_mae[family], family))
    for family in (selected, Family.RIDGE):
        if passes_gate(family, held_out_mae):
            return family
    return None
