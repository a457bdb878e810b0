"""What the fold remembers of a twin's rules beside its alarms: standings, who suppresses, and when to look again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from twinmesh_statesync.domain.alarms.standing import Standing

NEVER: Final = 2**62
"""Later than any time: nothing is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmMemory:
    """How the rules of one twin stand.

    Attributes:
        standings: by rule; a rule that nothing is known of has none.
        suppressed_by: the maintenance event that covered the twin when it was last looked at; "" = none.
        looked_unix_us: when that was, by commit time; never falls, also across lives.
        due_unix_us: from when on an entry's commit time changes something by itself; `NEVER` = nothing is due.
    """

    standings: Mapping[str, Standing] = field(default_factory=dict)
    suppressed_by: str = ""
    looked_unix_us: int = 0
    due_unix_us: int = NEVER


NO_MEMORY: Final = AlarmMemory(standings=MappingProxyType({}))
