"""What the demo compares: dense runs, and cached ones with the options of a backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dit_cache_backends.strategies.presets import even_mask
from dit_cache_backends.trials.setting import DENSE, Setting


def _masked(policy: str, how: str, taylor: bool) -> Setting:
    config: dict[str, Any] = {"scm_steps_mask_policy": policy, "scm_steps_policy": how}
    if taylor:
        config["enable_taylorseer"] = True
    label = f"SCM {policy}, {how}{', TaylorSeer 1' if taylor else ''}"
    return Setting(label, config, family=label.replace(f" {policy}", ""))


def _fewer(steps: int) -> Setting:
    return Setting(f"dense, {steps} steps", steps=steps, family="dense, fewer steps")


PLAN = Path(__file__).with_name("plan.yaml")
"""Found by ``make quality``, from other noises than the demo draws."""
PLANNED = (18, 15, 11, 8, 6)
"""Computed steps of its plans."""


def _planned(computed: int) -> Setting:
    """In a run of another length than 28 the mask is resampled, to be seen and not to be taken."""
    config = {"plan": str(PLAN), "compute": computed, "fit": "resample"}
    return Setting(
        f"step_plan, planned, {computed} steps", config, backend="step_plan", family="step_plan, planned"
    )


SHORT: tuple[Setting, ...] = (
    DENSE,
    Setting("cache_dit, defaults", {}),
    _masked("medium", "static", taylor=True),
    _masked("fast", "static", taylor=True),
    _masked("ultra", "static", taylor=True),
    _planned(11),
    _planned(8),
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
    *(_fewer(steps) for steps in (18, 15, 11, 8)),
)
"""What ``dit-cache demo --full`` compares. The dense runs of fewer steps take as many as the masks compute."""

COMPUTED = (17, 13, 10, 8)
"""Of 28 steps, as the presets compute."""


def _spread(computed: int, calibrator: str, **options: Any) -> Setting:
    """Evenly placed steps: what a predictor can do is seen best without a gate."""
    config: dict[str, Any] = {
        "steps_computation_mask": even_mask(28, computed, 3),
        "steps_computation_policy": "static",
        "max_warmup_steps": 0,
        "calibrator": calibrator,
        **options,
    }
    name = " ".join(["reuse" if calibrator == "none" else calibrator, *map(str, options.values())])
    return Setting(f"{computed} even steps, {name}", config, family=name)


PREDICTORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("taylorseer", {"taylorseer_order": 1}),
    ("taylorseer", {"taylorseer_order": 2}),
    ("newton", {"newton_order": 2}),
    ("hermite", {"hermite_order": 2}),
    ("chebyshev", {}),
    ("foca", {}),
    ("dmd", {}),
)

STRATEGIES: tuple[Setting, ...] = (
    DENSE,
    *(_fewer(steps) for steps in COMPUTED),
    *(
        Setting(f"cache_dit, threshold {at}", {"residual_diff_threshold": at}, family="cache_dit, threshold")
        for at in (0.06, 0.12, 0.24, 0.4)
    ),
    *(
        Setting(
            f"dbprune, threshold {at}", {"residual_diff_threshold": at}, backend="dbprune", family="dbprune"
        )
        for at in (0.04, 0.08, 0.12, 0.2)
    ),
    *(
        Setting(
            f"tea_cache, threshold {at}",
            {"rel_l1_thresh": at, "coefficients": "flux_dev"},
            backend="tea_cache",
            family="tea_cache",
        )
        for at in (0.25, 0.4, 0.6, 0.8)
    ),
    *(_masked(policy, "static", taylor=True) for policy in ("slow", "medium", "fast", "ultra")),
    *(_planned(computed) for computed in PLANNED),
    *(_spread(computed, name, **options) for name, options in PREDICTORS for computed in COMPUTED),
    *(
        Setting(
            f"{backend}, preset {preset}",
            {"preset": preset, **({"coefficients": "flux_dev"} if backend == "tea_cache" else {})},
            backend=backend,
            family=f"{backend}, presets",
        )
        for backend in ("cache_dit", "dbprune", "tea_cache")
        for preset in ("quality", "balanced", "fast", "ultra")
    ),
)
"""What ``dit-cache demo --strategies`` compares: every strategy, every predictor, every preset."""
