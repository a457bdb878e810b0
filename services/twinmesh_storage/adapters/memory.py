"""What stands in where no outside system is configured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


class NoRecords:
    """`RecordStore` that has nothing."""

    @property
    def enabled(self) -> bool:
        """False."""
        return False

    async def get(self, names: Sequence[str], most: Sequence[int]) -> list[bytes | None]:
        """Return nothing."""
        return [None] * len(names)

    async def put(self, records: Mapping[str, bytes]) -> bool:
        """Keep nothing."""
        return False

    async def drop(self, names: Collection[str]) -> bool:
        """Have nothing left: True."""
        return True
