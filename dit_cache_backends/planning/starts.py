"""Where a search begins: placements that others found good."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dit_cache_backends.planning.candidates import Mask
from dit_cache_backends.strategies.presets import even_mask
from dit_cache_backends.strategies.scm import POLICIES, has_preset, policy_mask

__all__ = ["fitted", "starting_masks"]


def starting_masks(
    steps: int, computed: int, forced: Collection[int], change: Sequence[float], max_skip: int
) -> dict[str, Mask]:
    """Masks of ``computed`` ones by where they come from.

    Args:
        steps: of the run.
        computed: of them.
        forced: steps that have to compute.
        change: how much the output changes from each step to the next.
        max_skip: how many may be skipped in a row.
    """
    found: dict[str, Iterable[int]] = {}
    for leading in (1, 2, 3):
        if computed >= leading + 2 and steps >= leading + 2:
            found[f"even, {leading} leading"] = even_mask(steps, computed, leading)
    if has_preset(steps):
        policies = {policy: policy_mask(policy, steps) for policy in POLICIES}
        nearest = min(policies, key=lambda policy: abs(sum(policies[policy]) - computed))
        found[f"SCM {nearest}"] = policies[nearest]
    found["equal change"] = _equal_change(change, computed)
    masks: dict[str, Mask] = {}
    for name, mask in found.items():
        fit = fitted(mask, computed, forced, max_skip)
        if fit is not None and fit not in masks.values():
            masks[name] = fit
    return masks


def fitted(mask: Iterable[int], computed: int, forced: Collection[int], max_skip: int) -> Mask | None:
    """The mask with as many ones as asked for, the forced ones among them; None where that cannot be.

    What is missing goes into the middle of the longest gaps, what is too much is taken where the gap that it leaves is
    shortest.
    """
    digits = list(mask)
    steps = len(digits)
    for step in forced:
        digits[step] = 1
    while sum(digits) < computed:
        start, stop = max(_gaps(digits), key=lambda gap: gap[1] - gap[0])
        digits[(start + stop) // 2] = 1
    while sum(digits) > computed:
        free = [step for step in range(steps) if digits[step] and step not in forced]
        if not free:
            return None
        digits[min(free, key=lambda step: _gap_without(digits, step))] = 0
    # A gap that is too long is halved, and the step for it taken from where it leaves the shortest one.
    for _ in range(steps):
        start, stop = max(_gaps(digits), key=lambda gap: gap[1] - gap[0], default=(0, 0))
        if stop - start <= max_skip:
            return tuple(digits)
        free = [step for step in range(steps) if digits[step] and step not in forced]
        if not free:
            return None
        digits[min(free, key=lambda step: _gap_without(digits, step))] = 0
        digits[(start + stop) // 2] = 1
    return None


def _gaps(digits: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of zeros as ranges."""
    found: list[tuple[int, int]] = []
    start: int | None = None
    for step, digit in enumerate([*digits, 1]):
        if digit and start is not None:
            found.append((start, step))
            start = None
        elif not digit and start is None:
            start = step
    return found


def _gap_without(digits: Sequence[int], step: int) -> int:
    """The length of the gap if ``step`` did not compute."""
    before = next((d for d in range(1, step + 1) if digits[step - d]), step + 1)
    after = next((d for d in range(1, len(digits) - step) if digits[step + d]), len(digits) - step)
    return before + after - 1


def _equal_change(change: Sequence[float], computed: int) -> list[int]:
    """Between computed steps the output changes as much everywhere, which MagCache's threshold comes to."""
    total = sum(change)
    digits = [0] * len(change)
    digits[0] = digits[-1] = 1
    passed, number = 0.0, 1
    for step, each in enumerate(change):
        passed += each
        if total and passed >= total * number / max(computed - 1, 1):
            digits[step] = 1
            while total and passed >= total * number / max(computed - 1, 1):
                number += 1
    return digits
