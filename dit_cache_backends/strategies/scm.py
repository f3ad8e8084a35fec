"""Step computation masks (SCM): which steps compute, 1, and which are cached, 0.

The presets are those of cache-dit 1.5.3 (``steps_mask``); they are data: bins of steps to compute and to cache, in
turn.
"""

from collections.abc import Sequence

POLICIES = ("slow", "medium", "fast", "ultra")

Bins = tuple[tuple[int, ...], tuple[int, ...]]
"""Lengths of the runs of computed steps, and of the runs of cached steps between them."""

_BINS_28: dict[str, Bins] = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}
_BINS_10_TO_15: dict[str, Bins] = {
    "slow": ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
    "medium": ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
    "fast": ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
    "ultra": ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
}
_BINS_FEW: dict[int, dict[str, Bins]] = {
    9: {
        "slow": ((5, 2, 1), (1,)),
        "medium": ((5, 1, 1), (1, 1)),
        "fast": ((4, 1, 1), (1, 2)),
        "ultra": ((3, 1, 1), (2, 2)),
    },
    8: {
        "slow": ((5, 1, 1), (1,)),
        "medium": ((4, 1, 1), (1, 1)),
        "fast": ((3, 1, 1), (1, 2)),
        "ultra": ((2, 1, 1), (2, 2)),
    },
    6: dict.fromkeys(POLICIES, ((3, 1), (2,))),
    4: dict.fromkeys(POLICIES, ((2, 1), (1,))),
}


def has_preset(steps: int) -> bool:
    """Whether the policies know a mask for a run of that many steps: 4, 6, and 8 or more."""
    return steps in (4, 6) or steps >= 8


def policy_mask(policy: str, steps: int) -> tuple[int, ...]:
    """The mask of a preset for a run of ``steps`` steps; its last step always computes.

    Raises:
        ValueError: for an unknown policy, or a count without a preset (``has_preset``).
    """
    if policy not in POLICIES:
        raise ValueError(f"Unknown policy {policy!r}; expected one of {', '.join(POLICIES)}.")
    if not has_preset(steps):
        raise ValueError(f"There is no preset for {steps} steps; there are presets for 4, 6, and 8 or more.")
    if steps in _BINS_FEW:
        compute, cache = _BINS_FEW[steps][policy]
    elif steps < 16:
        compute, cache = _BINS_10_TO_15[policy]
    else:
        compute, cache = _BINS_28[policy]
        if steps > 28:
            compute, cache = _grown(compute, cache, steps)
    compute, cache = _shrunk(list(compute), list(cache), steps)
    return (*bins_mask(compute, cache, steps)[:-1], 1)


def bins_mask(compute: Sequence[int], cache: Sequence[int], steps: int | None = None) -> tuple[int, ...]:
    """Runs of ones and of zeros in turn, cut to ``steps`` (all of them by default).

    Raises:
        ValueError: if the bins do not reach that far.
    """
    mask: list[int] = []
    for number in range(max(len(compute), len(cache))):
        mask += [1] * (compute[number] if number < len(compute) else 0)
        mask += [0] * (cache[number] if number < len(cache) else 0)
    if steps is not None and len(mask) < steps:
        raise ValueError(
            f"The bins {list(compute)} and {list(cache)} make {len(mask)} steps; {steps} are needed."
        )
    return tuple(mask[:steps])


def _grown(compute: Sequence[int], cache: Sequence[int], steps: int) -> Bins:
    """Lengthen the bins of 28 steps in turn by half their share until they reach ``steps``."""
    more_compute = [max(int(n * steps / 28 * 0.5), 1) for n in compute]
    more_cache = [max(int(n * steps / 28 * 0.5), 1) for n in cache]
    ones, zeros = list(compute), list(cache)
    while sum(ones) + sum(zeros) < steps:
        for number in range(min(len(ones), len(zeros))):
            ones[number] += more_compute[number]
            if sum(ones) + sum(zeros) >= steps:
                return tuple(ones), tuple(zeros)
            zeros[number] += more_cache[number]
            if sum(ones) + sum(zeros) >= steps:
                return tuple(ones), tuple(zeros)
        ones[-1] += 1
    return tuple(ones), tuple(zeros)


def _shrunk(ones: list[int], zeros: list[int], steps: int) -> Bins:
    """Shorten the last bins, cached and computed in turn, until they make ``steps``."""
    while sum(ones) + sum(zeros) > steps:
        for bins in (zeros, ones):
            if bins and sum(ones) + sum(zeros) > steps:
                bins[-1] -= 1
                if bins[-1] == 0:
                    bins.pop()
    return tuple(ones), tuple(zeros)
