"""What stands in where no outside system is configured."""

from __future__ import annotations


class NoCache:
    """`LatestCache` that has nothing."""

    @property
    def enabled(self) -> bool:
        """False."""
        return False

    async def load(self, incarnation: str, oldest_fold: int) -> dict[int, bytes]:
        """Return nothing."""
        return {}

    async def store(self, incarnation: str, fold_offset: int, chunks: dict[int, bytes]) -> None:
        """Keep nothing."""
