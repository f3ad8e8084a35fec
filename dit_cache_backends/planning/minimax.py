"""The lexicographic minimax path over the graph of steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dit_cache_backends.errors import ConfigError

__all__ = ["minimax_path"]

Worst = tuple[float, ...]
"""The weights of a path, the largest first."""


def minimax_path(
    weights: Mapping[tuple[int, int], float], steps: int, computed: int, forced: Collection[int] = ()
) -> tuple[int, ...]:
    """The mask of ``computed`` ones whose gaps are, the worst first, as small as can be (LeMiCa, arXiv 2511.00090).

    A node is a step, an edge from ``i`` to ``j`` says that ``i`` and ``j`` compute and the steps between are skipped.
    Among the paths of ``computed`` nodes from the first step to the last one, that is taken whose weights, sorted from
    the largest on, come first in the order of the alphabet. A weight more on both sides changes nothing in that order,
    so that the best path to a step is part of the best one that leads over it.

    Args:
        weights: of each gap that may be, by its two ends; to compute neighbouring steps costs nothing.
        steps: of the run.
        computed: how many of them compute, the first and the last one among them.
        forced: steps that have to compute.

    Raises:
        ConfigError: if no path has so many steps.
    """
    last = steps - 1
    wanted = {0, last, *forced}
    best: dict[tuple[int, int], tuple[Worst, tuple[int, ...]]] = {(0, 1): ((), (0,))}
    for count in range(1, computed):
        for step in range(last):
            if (step, count) not in best:
                continue
            weights_so_far, path = best[step, count]
            for following in range(step + 1, steps):
                if following > step + 1 and (step, following) not in weights:
                    continue
                if any(step < between < following for between in wanted):
                    break
                added = 0.0 if following == step + 1 else weights[step, following]
                candidate = (tuple(sorted((*weights_so_far, added), reverse=True)), (*path, following))
                key = (following, count + 1)
                if key not in best or candidate < best[key]:
                    best[key] = candidate
    if (last, computed) not in best:
        longest = max((j - i - 1 for i, j in weights), default=0)
        raise ConfigError(
            f"no plan computes {computed} of {steps} steps with at most {longest} skipped in a row and {len(wanted)} "
            "that have to compute. Compute more, or skip more in a row (max_skip)."
        )
    chosen = set(best[last, computed][1])
    return tuple(int(step in chosen) for step in range(steps))
