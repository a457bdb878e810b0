"""The collector of a service's process: cycles are freed, and what was there already is not looked at again."""

from __future__ import annotations

import gc
import weakref

import pytest

from twinmesh_runtime.collector import FULL_LOOKS, THRESHOLDS, calm_collector, collector_off


class Knot:
    """Refers to itself: references alone never free it."""

    def __init__(self) -> None:
        self.me = self


def test_cycles_are_freed_by_themselves() -> None:
    with calm_collector():
        gone = weakref.ref(Knot())
        kept: list[object] = []
        for _ in range(THRESHOLDS[0] * 3):
            kept.append([])
        assert gone() is None


def test_what_outlived_a_look_is_left_alone_and_found_by_a_look_at_everything() -> None:
    with calm_collector():
        knot = Knot()
        gone = weakref.ref(knot)
        gc.collect()  # it is in use
        del knot
        for _ in range(FULL_LOOKS - 2):
            gc.collect()
            assert gone() is not None
        gc.collect()
        assert gone() is None


def test_nothing_is_looked_at_while_modules_are_imported_and_then_it_is_again() -> None:
    with collector_off():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), collector_off():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_everything_is_as_before_afterwards() -> None:
    before = gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)
    with calm_collector():
        assert gc.get_freeze_count() > 0
    assert (gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)) == before
