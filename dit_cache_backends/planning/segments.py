"""The error of each segment: where only the steps between two computed ones are skipped (LeMiCa, arXiv 2511.00090)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from dit_cache_backends.planning.candidates import FITTED, Candidate
from dit_cache_backends.planning.plan_search import PlanSearch
from dit_cache_backends.planning.rehearsal import Rehearsal
from dit_cache_backends.planning.work import Work

__all__ = ["SHARE", "Segments", "Table"]

SHARE = 0.25
"""Part of the time after which no further predictor's segments are measured."""

Table = dict[tuple[int, int], float]
"""By the two computed steps the mean error."""


@dataclass(frozen=True)
class Segments:
    """Measures them, on as few prompts as it is given: there are many, and they only say where to begin."""

    rehearsal: Rehearsal
    work: Work
    search: PlanSearch

    def error(self, first: int, second: int, steps: int, predictor: str) -> float:
        """The mean error of one segment in a run of so many steps."""
        mask = tuple(int(not first < step < second) for step in range(steps))
        errors = self.work.numbers(
            f"segment {predictor} {first}-{second}",
            lambda: self.rehearsal.errors(Candidate(mask, predictor)),
        )
        return sum(errors) / len(errors)

    def tables(
        self, steps: int, forced: Collection[int], advance: Callable[[str, float], None]
    ) -> dict[str, Table]:
        """By predictor those that a plan may have, as far as the time goes.

        Fitted predictors have none: with a single gap they foretell all but exactly.
        """
        search = self.search
        limit = None if search.seconds is None else search.seconds * SHARE
        pairs = [
            (first, second)
            for first in range(steps - 1)
            for second in range(first + 2, min(first + search.max_skip + 1, steps - 1) + 1)
            if not any(first < step < second for step in forced)
        ]
        tables: dict[str, Table] = {}
        unfitted = [predictor for predictor in search.predictors if predictor not in FITTED]
        for predictor in unfitted[: search.segments]:
            table: Table = {}
            for pair in pairs:
                if limit is not None and self.work.seconds >= limit:
                    return tables
                table[pair] = self.error(*pair, steps, predictor)
                part = len(table) / len(pairs) if limit is None else self.work.seconds / limit
                advance(f"segments, {predictor}", SHARE * min(part, 1.0))
            tables[predictor] = table
        return tables
