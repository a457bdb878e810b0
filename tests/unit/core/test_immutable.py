"""Values that only type checkers hold to be frozen are otherwise like frozen ones."""

from dataclasses import field, replace

import pytest

from twinmesh_core.immutable import frozen_for_checkers


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class Value:
    """A value with a part that does not count."""

    name: str
    number: int = 0
    note: str = field(default="", compare=False)


def test_they_are_equal_hashed_and_replaced_by_what_counts() -> None:
    one, other = Value(name="a", note="x"), Value(name="a", note="y")
    assert one == other
    assert len({one, other, replace(one, number=1)}) == 2
    assert not hasattr(one, "__dict__")


def test_frozen_must_be_said() -> None:
    with pytest.raises(TypeError, match="frozen=True"):
        frozen_for_checkers(frozen=False)(type("Loose", (), {}))
