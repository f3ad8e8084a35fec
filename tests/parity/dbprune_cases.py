"""The declared list of parity cases of `dbprune`, in the form of those of `cache_dit` (cases.py).

A threshold may be a level: the inputs of the blocks of each tiny pipeline move at a speed of their own, and at "mid" a
run both prunes and computes, block by block.
"""

from __future__ import annotations

from typing import Any

from .cases import Case

STEPS = 20

LEVELS: dict[str, dict[str, float]] = {
    "flux": {"low": 0.062, "mid": 0.125, "high": 0.25},
    "qwen_image": {"low": 0.042, "mid": 0.083, "high": 0.165},
    "wan": {"low": 0.044, "mid": 0.088, "high": 0.175},
    "sd3": {"low": 0.035, "mid": 0.069, "high": 0.14},
    "cogvideox": {"low": 0.157, "mid": 0.25, "high": 0.45},
    "hunyuan_video": {"low": 0.037, "mid": 0.07, "high": 0.14},
}
ALL = tuple(LEVELS)
NO_SD3 = tuple(name for name in ALL if name != "sd3")

CASES: list[Case] = []


def _add(
    label: str,
    pipelines: tuple[str, ...] | str,
    level: str | float = "mid",
    skips: bool = True,
    batch: int = 1,
    **options: Any,
) -> None:
    for pipeline in (pipelines,) if isinstance(pipelines, str) else pipelines:
        threshold = LEVELS[pipeline][level] if isinstance(level, str) else level
        CASES.append(Case(pipeline, label, {"residual_diff_threshold": threshold} | options, skips, batch))


def _seer(order: int = 1, encoder: bool = True) -> dict[str, Any]:
    return {"enable_taylorseer": True, "taylorseer_order": order, "enable_encoder_taylorseer": encoder}


for _level in ("low", "mid", "high"):
    _add(_level, ALL, _level)
_add("zero", "flux", 0.0, skips=False)
_add("one", ("flux", "wan", "hunyuan_video"), 1.0)

# Blocks that always run.
_add("F3B2", ("flux", "qwen_image", "cogvideox"), Fn_compute_blocks=3, Bn_compute_blocks=2)
_add("F2B0-W1", ("wan", "hunyuan_video"), Fn_compute_blocks=2, max_warmup_steps=1)
_add("spared", ("flux", "sd3"), non_prune_block_ids=[3, 4], Bn_compute_blocks=1)
_add("spared-beyond-the-depth", "hunyuan_video", non_prune_block_ids=[2, 4, 40])

# Warm-up and limits.
_add("W8I2", ("flux", "qwen_image"), "high", max_warmup_steps=8, warmup_interval=2)
_add("W20", "wan", "high", skips=False, max_warmup_steps=20)
_add("M0", "sd3", "high", skips=False, max_cached_steps=0)
_add("streak-of-0", "flux", "high", skips=False, max_continuous_cached_steps=0)
_add("streak-of-2", ("flux", "wan", "cogvideox"), "high", max_continuous_cached_steps=2)
_add("streak-of-1-one", "hunyuan_video", 1.0, max_continuous_cached_steps=1)

# Step masks.
_add("ultra-static", ("flux", "qwen_image"), scm_steps_mask_policy="ultra", scm_steps_policy="static")
_add("fast-dynamic", ("sd3", "wan"), "high", scm_steps_mask_policy="fast")
_add(
    "mask-shortens-the-warm-up",
    ("cogvideox", "hunyuan_video"),
    "high",
    steps_computation_mask="11010010001000011001",
    max_warmup_steps=8,
)

# The threshold that rises with the first differences of the step.
_DYNAMIC: dict[str, Any] = {"enable_dynamic_prune_threshold": True}
_add("dynamic", ("flux", "sd3", "cogvideox", "hunyuan_video"), "low", **_DYNAMIC)
_add("dynamic-capped", "flux", "low", max_dynamic_prune_threshold=0.11, **_DYNAMIC)
_add("dynamic-capped", "sd3", "low", max_dynamic_prune_threshold=0.06, **_DYNAMIC)
_add(
    "dynamic-relaxed",
    ("cogvideox", "hunyuan_video"),
    "low",
    max_dynamic_prune_threshold=0.4,
    dynamic_prune_threshold_relax_ratio=1.6,
    **_DYNAMIC,
)

# Forced refresh, counted in steps.
_add("refresh-once-8", ("flux", "qwen_image"), force_refresh_step_hint=8)
_add(
    "refresh-repeat-7-seer",
    ("flux", "wan"),
    force_refresh_step_hint=7,
    force_refresh_step_policy="repeat",
    **_seer(),
)

# A calibrator for each block.
_add("seer1", NO_SD3, **_seer())
_add("seer1-text-reused", ("sd3", "flux"), **_seer(encoder=False))
_add("seer2", ("qwen_image", "hunyuan_video"), "high", **_seer(2))
_add("seer1-hidden-text-reused", "wan", taylorseer_cache_type="hidden_states", **_seer(encoder=False))
_add("foca", ("flux", "cogvideox"), "high", calibrator="foca")

# Two branches, and batches.
_add("cfg-first", ("qwen_image", "wan"), cfg_compute_first=True, cfg_diff_compute_separate=False)
_add("batch-of-2", ("flux", "sd3"), batch=2)
