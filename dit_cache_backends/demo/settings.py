"""What the demo compares: dense runs, and cached ones with the options of ``cache_dit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One row of the comparison."""

    label: str
    config: Mapping[str, Any] | None = field(default=None)
    """Options of ``cache_dit``; None draws dense."""
    steps: int | None = None
    """Steps of this setting, where it is not the number of the others."""


DENSE = Setting("dense")


def _masked(policy: str, how: str, taylor: bool) -> Setting:
    config: dict[str, Any] = {"scm_steps_mask_policy": policy, "scm_steps_policy": how}
    if taylor:
        config["enable_taylorseer"] = True
    return Setting(f"SCM {policy}, {how}{', TaylorSeer 1' if taylor else ''}", config)


SHORT: tuple[Setting, ...] = (
    DENSE,
    Setting("cache_dit, defaults", {}),
    _masked("medium", "static", taylor=True),
    _masked("fast", "static", taylor=True),
    _masked("ultra", "static", taylor=True),
)
"""What ``dit-cache demo`` draws."""

ATTACHED = Setting("attached, threshold 0", {"residual_diff_threshold": 0.0})

FULL: tuple[Setting, ...] = (
    DENSE,
    ATTACHED,
    Setting("DBCache, defaults", {}),
    Setting("DBCache, threshold 0.12", {"residual_diff_threshold": 0.12}),
    Setting("DBCache, defaults, TaylorSeer 1", {"enable_taylorseer": True}),
    *(
        _masked(policy, how, taylor)
        for policy in ("slow", "medium", "fast", "ultra")
        for how in ("dynamic", "static")
        for taylor in (False, True)
    ),
    *(Setting(f"dense, {steps} steps", steps=steps) for steps in (18, 15, 11, 8)),
)
"""What ``dit-cache demo --full`` compares. The dense runs of fewer steps take as many as the masks compute."""
