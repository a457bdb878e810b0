"""Values that are built by the ten thousand every second, and never changed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as frozen_for_checkers
else:

    def frozen_for_checkers(*, frozen: bool, **options: Any) -> Any:
        """Make a dataclass that type checkers hold to be frozen, and the interpreter does not.

        A frozen dataclass sets each field through ``object.__setattr__``: building one with twenty fields takes five
        times as long. Everything else is the same, equality and hash included; `frozen` must be said, for the reader
        and the checker.
        """
        if not frozen:
            raise TypeError("say frozen=True, which is what type checkers see")
        return dataclasses.dataclass(unsafe_hash=True, **options)


__all__ = ["frozen_for_checkers"]
