"""The filter language: which twins are meant, said in a line; after AIP-160, described in ``docs/filters.md``.

``parse_filter`` turns text into a checked tree or raises an error that names the column and the remedy; ``compiled``
makes it a function of a twin at one offset; ``plan`` names the few twins that can match, from an index; ``anchors``
names the watch buckets outside which none can. Bounded in length, depth, conditions and hops, so that no text can cost
more than stated here.
"""

from twinmesh_statesync.domain.filter.compiling import Test, compiled
from twinmesh_statesync.domain.filter.errors import FilterError
from twinmesh_statesync.domain.filter.expressions import EVERYTHING, Expression, hops
from twinmesh_statesync.domain.filter.parsing import parse_filter
from twinmesh_statesync.domain.filter.planning import Anchor, anchors, plan

__all__ = [
    "EVERYTHING",
    "Anchor",
    "Expression",
    "FilterError",
    "Test",
    "anchors",
    "compiled",
    "hops",
    "parse_filter",
    "plan",
]
