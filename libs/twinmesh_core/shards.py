"""Shards: how fold work and followers are divided. A shard has no offsets of its own; it is a filter on the one log.

The function is part of the wire contract: whoever computes it, in any language and release, must get the same number.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final

SHARDS: Final = 64
"""Number of shards; never changes."""


@lru_cache(maxsize=65_536)
def shard_of(tenant: str, twin_id: str) -> int:
    """Return the shard of a twin, 0 to 63.

    It is BLAKE2b with 8 bytes of digest, no key, over tenant, one zero byte and twin id (both UTF-8), read as a
    little-endian number, modulo 64.
    """
    digest = blake2b(tenant.encode() + b"\0" + twin_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % SHARDS
