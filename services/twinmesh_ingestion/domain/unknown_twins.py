"""What becomes of data for a twin that does not exist: kept aside, unless a rule says of which type the twin is.

A rule is written ``tenant:pattern=type@version``, e.g. ``default:pump-*=pump@1``; several are separated by commas, and
the first whose pattern fits counts. ``*`` as tenant means every tenant; without ``@version`` the newest is taken.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.ids import entity_id_violation, resource_id_violation
from twinmesh_core.registry import MAX_TYPE_VERSION, Twin
from twinmesh_core.registry_fold import RegistryFold
from twinmesh_core.registry_rules import check_twin, missing_properties
from twinmesh_ingestion.domain.ports import Log

MAX_CREATED_AT_ONCE: Final = 10_000
"""Most twins that one batch may create; rows of the others are kept aside, and the next batch creates those."""
_TOGETHER: Final = 64
_RULE: Final = re.compile(
    r"(?P<tenant>\*|[a-z0-9][a-z0-9._-]*):(?P<pattern>[A-Za-z0-9._*?\[\]!-]+)=(?P<type>[^@=]+)(@(?P<version>\d+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinRule:
    """Twins of the tenant (``*`` = of any) whose id fits the pattern are of this type; version 0 = the newest."""

    tenant: str
    pattern: str
    twin_type_id: str
    version: int = 0

    def fits(self, tenant: str, twin_id: str) -> bool:
        """Return whether the rule is about this twin."""
        return self.tenant in ("*", tenant) and fnmatchcase(twin_id, self.pattern)


def parse_rules(text: str) -> tuple[TwinRule, ...]:
    """Return the rules written in a setting; empty = none, which keeps all unknown twins' rows aside.

    Raises:
        ValueError: with the rule that is none, and how one is written.
    """
    return tuple(_rule(part.strip()) for part in text.split(",") if part.strip())


def _rule(text: str) -> TwinRule:
    found = _RULE.fullmatch(text)
    version = int(found["version"] or 0) if found is not None else 0
    wrong = found is None or resource_id_violation("type", found["type"]) is not None or version > MAX_TYPE_VERSION
    if found is None or wrong:
        raise ValueError(f"{text!r} is no rule; write tenant:pattern=type@version, e.g. default:pump-*=pump@1")
    return TwinRule(tenant=found["tenant"], pattern=found["pattern"], twin_type_id=found["type"], version=version)


class TwinMaker:
    """Creates the twins that a rule covers.

    Args:
        log: where their entries go; a twin that exists by then is left as it is, whoever made it.
        rules: in the order in which they count.
    """

    def __init__(self, log: Log, rules: tuple[TwinRule, ...]) -> None:
        self._log = log
        self._rules = rules

    async def make(self, fold: RegistryFold, tenant: str, twin_ids: Iterable[str]) -> int:
        """Create those of the twins that a rule covers and whose type allows it; returns how many entries were written.

        Raises:
            Unavailable: storage does not answer in time.
        """
        found = (self._twin(fold, tenant, twin_id) for twin_id in dict.fromkeys(twin_ids))
        wanted = [twin for twin in found if twin is not None][:MAX_CREATED_AT_ONCE]
        for start in range(0, len(wanted), _TOGETHER):
            try:
                async with asyncio.TaskGroup() as group:
                    for twin in wanted[start : start + _TOGETHER]:
                        group.create_task(self._log.create_twin(tenant, twin))
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None  # those who wait for storage know single errors
        return len(wanted)

    def _twin(self, fold: RegistryFold, tenant: str, twin_id: str) -> Twin | None:
        """Return the twin to create; None = no rule, or one that the registry would reject."""
        rule = next((rule for rule in self._rules if rule.fits(tenant, twin_id)), None)
        if (
            rule is None
            or entity_id_violation("twin_id", twin_id) is not None
            or fold.twin(tenant, twin_id) is not None
        ):
            return None
        twin_type = fold.twin_type(tenant, rule.twin_type_id, rule.version)
        twin = Twin(twin_id=twin_id, twin_type_id=rule.twin_type_id, twin_type_version=rule.version)
        if twin_type is None or missing_properties(twin, twin_type):
            return None
        try:
            check_twin(twin)
        except InvalidArgument:
            return None
        return twin
