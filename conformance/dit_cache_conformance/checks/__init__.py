"""The checks, a module for each group; importing this package fills the list."""

from dit_cache_conformance.check import CHECKS, GROUPS
from dit_cache_conformance.checks import (
    composition,
    configuration,
    decisions,
    exactness,
    hosts,
    isolation,
    lifecycle,
    shapes,
    summary,
)

__all__ = [
    "composition",
    "configuration",
    "decisions",
    "exactness",
    "hosts",
    "isolation",
    "lifecycle",
    "shapes",
    "summary",
]

for _check in sorted(CHECKS.values(), key=lambda each: GROUPS.index(each.group)):
    CHECKS[_check.name] = CHECKS.pop(_check.name)
