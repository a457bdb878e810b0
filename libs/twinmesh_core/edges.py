"""A twin's relationships held to its type: which edges, how many, and to what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from twinmesh_core.errors import FailedPrecondition, FieldViolation, Reason, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.registry import Relationship, RelationshipSpec, Twin, TwinType


def check_edges(
    twin: Twin,
    twin_type: TwinType,
    type_by_id: Callable[[str], TwinType | None],
    *,
    known: Iterable[Relationship] = (),
) -> None:
    """Refuse edges that the type does not allow; a type without kinds of relationships allows all.

    Args:
        twin: whose.
        twin_type: its type, resolved.
        type_by_id: the type of a living twin; None = there is no such twin.
        known: edges that it has already: their targets are not judged anew.

    Raises:
        InvalidArgument: an edge of a name the type does not have, one too many, or one twice.
        FailedPrecondition: RELATIONSHIP_TARGET, the target does not exist or is of another type.
    """
    if not twin_type.relationships or not twin.relationships:
        return
    fault = _count_fault(twin, twin_type)
    if fault is not None:
        raise invalid_field(*fault)
    had = set(known)
    for i, edge in enumerate(twin.relationships):
        spec = twin_type.relationship(edge.name)
        if spec is None or edge in had:
            continue
        wrong = target_fault(spec, edge.target_twin_id, type_by_id(edge.target_twin_id), missing_is_wrong=True)
        if wrong:
            field = f"twin.relationships[{i}].target_twin_id"
            raise FailedPrecondition(
                f"{field}: {wrong}",
                reason=Reason.RELATIONSHIP_TARGET,
                field_violations=(FieldViolation(field=field, description=wrong),),
                metadata={"target_twin_id": edge.target_twin_id},
            )


def target_fault(spec: RelationshipSpec, target_id: str, target: TwinType | None, *, missing_is_wrong: bool) -> str:
    """Return what is wrong with a target; "" = nothing."""
    if target is None:
        missing = missing_is_wrong and not spec.allow_missing_target
        return f"twin {quoted(target_id)} does not exist; create it first" if missing else ""
    wanted = spec.target_twin_type_id
    if wanted and not target.is_a(wanted):
        return f"twin {quoted(target_id)} is a {target.reference}; {quoted(spec.name)} leads to {quoted(wanted)} only"
    return ""


def _count_fault(twin: Twin, twin_type: TwinType) -> tuple[str, str] | None:
    counts: Counter[str] = Counter()
    seen: set[Relationship] = set()
    for i, edge in enumerate(twin.relationships):
        spec = twin_type.relationship(edge.name)
        at = f"twin.relationships[{i}]"
        if spec is None:
            has = ", ".join(r.name for r in twin_type.relationships)
            return f"{at}.name", f"{quoted(edge.name)} is no relationship of {twin_type.reference}; it has: {has}"
        if edge in seen:
            return at, f"{quoted(edge.name)} to {quoted(edge.target_twin_id)} is there twice"
        seen.add(edge)
        counts[edge.name] += 1
        if spec.max_count and counts[edge.name] > spec.max_count:
            return f"{at}.name", f"{twin_type.reference} allows at most {spec.max_count} of {quoted(edge.name)}"
    return None
