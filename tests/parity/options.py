"""Translates this project's `cache_dit` options into the configuration objects of the cache-dit library."""

from __future__ import annotations

import copy
from typing import Any

from dit_cache_conformance.tiny import Tiny

# The defaults of this project are vLLM-Omni's, not the library's.
DEFAULTS: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "max_warmup_steps": 4,
    "warmup_interval": 1,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": 3,
    "residual_diff_threshold": 0.24,
    "max_accumulated_residual_diff_threshold": None,
    "cfg_compute_first": False,
    "cfg_diff_compute_separate": True,
    "force_refresh_step_hint": None,
    "force_refresh_step_policy": "once",
}

MASK_KEYS = {
    "steps_computation_mask",
    "steps_computation_policy",
    "scm_steps_mask_policy",
    "scm_steps_policy",
    "scm_compute_bins",
    "scm_cache_bins",
}
CALIBRATOR_KEYS = {
    "enable_taylorseer",
    "taylorseer_order",
    "enable_encoder_taylorseer",
    "enable_encoder_calibrator",
    "taylorseer_cache_type",
    "calibrator",
    "enable_foca",
    "enable_dmd",
    "dmd_history",
    "dmd_rank",
    "dmd_ridge",
    "dmd_svd_precision",
}


def cache_dit_arguments(tiny: Tiny, options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Arguments for `cache_dit.enable_cache` that mean what `options` mean to this project's backend.

    Raises:
        KeyError: an option that this table does not know.
    """
    from cache_dit import DBCacheConfig, ParamsModifier

    options = dict(options)
    overrides = options.pop("overrides", {})
    for key in options:
        if key not in DEFAULTS and key not in MASK_KEYS and key not in CALIBRATOR_KEYS:
            raise KeyError(key)
    plain = DEFAULTS | {key: value for key, value in options.items() if key in DEFAULTS}
    if plain["force_refresh_step_hint"] is not None:
        # Ours counts steps, the library counts calls of the transformer.
        plain["force_refresh_step_hint"] *= len(tiny.spec.branches)
    calibrator = calibrator_config(options)
    arguments: dict[str, Any] = {"cache_config": DBCacheConfig(**plain, **mask_arguments(options, steps))}
    if calibrator is not None:
        arguments["calibrator_config"] = calibrator
    experts = expert_steps(tiny, steps)
    if len(experts) > 1 and options.get("scm_steps_mask_policy") is not None:
        arguments["params_modifiers"] = [
            ParamsModifier(
                cache_config=DBCacheConfig(**plain, **mask_arguments(options, own)),
                calibrator_config=calibrator,
            )
            for own in experts
        ]
    if overrides:
        arguments["params_modifiers"] = _modifiers(tiny, options, overrides, steps)
    return arguments


def _modifiers(
    tiny: Tiny, options: dict[str, Any], overrides: dict[str, dict[str, Any]], steps: int
) -> list[Any]:
    """One for each stack of each transformer, in the library's order."""
    from cache_dit import DBCacheConfig, ParamsModifier

    modifiers = []
    for transformer, own in zip(tiny.transformers, expert_steps(tiny, steps), strict=True):
        for stack in tiny.spec.stacks:
            merged = options | overrides.get(transformer, {}) | overrides.get(stack, {})
            plain = DEFAULTS | {key: value for key, value in merged.items() if key in DEFAULTS}
            modifiers.append(
                ParamsModifier(
                    cache_config=DBCacheConfig(**plain, **mask_arguments(merged, own)),
                    calibrator_config=calibrator_config(merged),
                )
            )
    return modifiers


def expert_steps(tiny: Tiny, steps: int) -> list[int]:
    """Steps that each transformer takes of a run; two numbers for Wan 2.2, which hands over at a boundary."""
    boundary = tiny.pipe.config.get("boundary_ratio")
    if boundary is None:
        return [steps]
    scheduler = copy.deepcopy(tiny.pipe.scheduler)
    scheduler.set_timesteps(steps)
    first = int((scheduler.timesteps >= boundary * scheduler.config.num_train_timesteps).sum())
    return [first, steps - first]


def mask_arguments(options: dict[str, Any], steps: int) -> dict[str, Any]:
    from cache_dit import steps_mask

    mask = options.get("steps_computation_mask")
    if isinstance(mask, str):
        mask = [int(digit) for digit in mask]
    if "scm_compute_bins" in options:
        mask = steps_mask(options["scm_compute_bins"], options["scm_cache_bins"], total_steps=steps)
    elif options.get("scm_steps_mask_policy") is not None:
        mask = steps_mask(total_steps=steps, mask_policy=options["scm_steps_mask_policy"])
    if mask is None:
        return {}
    policy = options.get("steps_computation_policy", options.get("scm_steps_policy", "dynamic"))
    return {"steps_computation_mask": mask, "steps_computation_policy": policy}


def calibrator_config(options: dict[str, Any]) -> Any:
    from cache_dit import DMDCalibratorConfig, FoCaCalibratorConfig, TaylorSeerCalibratorConfig

    shared = {
        "enable_calibrator": True,
        "calibrator_cache_type": options.get("taylorseer_cache_type", "residual"),
    }
    if options.get("enable_taylorseer"):
        return TaylorSeerCalibratorConfig(
            enable_encoder_calibrator=options.get("enable_encoder_taylorseer", False),
            taylorseer_order=options.get("taylorseer_order", 1),
            **shared,
        )
    shared["enable_encoder_calibrator"] = options.get("enable_encoder_calibrator", True)
    if options.get("enable_foca") or options.get("calibrator") == "foca":
        return FoCaCalibratorConfig(**shared)
    if options.get("enable_dmd") or options.get("calibrator") == "dmd":
        own = {key: value for key, value in options.items() if key.startswith("dmd_")}
        return DMDCalibratorConfig(**own, **shared)
    return None
