"""The one error of filters: where it is wrong, and what would be right."""

from __future__ import annotations

from twinmesh_core.errors import FieldViolation, InvalidArgument


class FilterError(InvalidArgument):
    """A filter that cannot be read, or that asks for what a field does not have.

    Args:
        column: the place in the text, from 1.
        problem: what is wrong there, and the remedy.

    Attributes:
        column: the place in the text, from 1.
    """

    def __init__(self, column: int, problem: str, *, reason: str | None = None) -> None:
        described = f"column {column}: {problem}"
        super().__init__(
            f"filter, {described}",
            reason=reason,
            metadata={"column": str(column)},
            field_violations=(FieldViolation(field="filter", description=described),),
        )
        self.column = column

    def __reduce__(self) -> tuple[object, ...]:
        """Copyable, as every error of the tree."""
        return _rebuilt, (self.column, self.field_violations[0].description, str(self.reason))


def _rebuilt(column: int, described: str, reason: str) -> FilterError:
    return FilterError(column, described.removeprefix(f"column {column}: "), reason=reason)
