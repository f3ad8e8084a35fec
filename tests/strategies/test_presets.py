"""Where the presets' masks compute."""

from __future__ import annotations

import pytest

from dit_cache_backends.strategies.presets import SHARES, THREE_LEADING, planned_steps


@pytest.mark.parametrize("steps", [16, 20, 28, 50])
@pytest.mark.parametrize("preset", SHARES)
def test_three_leading_steps_are_computed_only_where_enough_are_left_for_the_rest(
    preset: str, steps: int
) -> None:
    mask = planned_steps(preset, steps)["steps_computation_mask"]
    computed = round(steps * SHARES[preset])
    assert sum(mask) == computed
    assert mask[-1] == 1
    leading = 3 if computed >= THREE_LEADING else 2
    assert mask.index(0) == leading
    gaps = [len(gap) for gap in "".join(map(str, mask[leading:])).split("1")[:-1]]
    assert max(gaps) - min(gaps) <= 1
