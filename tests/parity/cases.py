"""The declared list of parity cases: a pipeline and the options of this project's `cache_dit` backend.

A residual threshold may be a level, "low", "mid" or "high": differences of random models lie between 0.03 and
0.9, so each pipeline has its own numbers, chosen so that a dynamic run both computes and skips after warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STEPS = 28

LEVELS: dict[str, dict[str, float]] = {
    "flux": {"low": 0.31, "mid": 0.42, "high": 0.62},
    "qwen_image": {"low": 0.32, "mid": 0.43, "high": 0.62},
    "sd3": {"low": 0.31, "mid": 0.42, "high": 0.62},
    "wan": {"low": 0.1, "mid": 0.14, "high": 0.24},
    "wan22": {"low": 0.055, "mid": 0.113, "high": 0.2},
    "cogvideox": {"low": 0.23, "mid": 0.32, "high": 0.48},
    "hunyuan_video": {"low": 0.28, "mid": 0.4, "high": 0.55},
    "dit": {"low": 0.125, "mid": 0.165, "high": 0.24},
    "pixart": {"low": 0.065, "mid": 0.09, "high": 0.15},
}
ALL = tuple(LEVELS)
CFG = ("qwen_image", "wan", "wan22")
NO_SD3 = tuple(name for name in ALL if name != "sd3")
TEXT_STREAM = ("flux", "qwen_image", "cogvideox", "hunyuan_video")


@dataclass(frozen=True)
class Case:
    """One parity case.

    Attributes:
        options: arguments of `enable_cache(pipe, "cache_dit", ...)`.
        skips: false where the options forbid every skip.
        batch: number of samples drawn at once.
    """

    pipeline: str
    label: str
    options: dict[str, Any] = field(hash=False)
    skips: bool = True
    batch: int = 1

    @property
    def id(self) -> str:
        return f"{self.pipeline}-{self.label}"


CASES: list[Case] = []


def _add(
    label: str, pipelines: tuple[str, ...] | str, skips: bool = True, batch: int = 1, **options: Any
) -> None:
    for pipeline in (pipelines,) if isinstance(pipelines, str) else pipelines:
        resolved = {
            key: LEVELS[pipeline][value]
            if key == "residual_diff_threshold" and value in LEVELS["flux"]
            else value
            for key, value in options.items()
        }
        CASES.append(Case(pipeline, label, resolved, skips, batch))


def _threshold(level: float | str, **options: Any) -> dict[str, Any]:
    return {"residual_diff_threshold": level} | options


def _free(level: float | str, **options: Any) -> dict[str, Any]:
    """A threshold and no limit on the streak of skipped steps."""
    return _threshold(level, max_continuous_cached_steps=-1) | options


def _seer(order: int = 1, encoder: bool = True, **options: Any) -> dict[str, Any]:
    return {
        "enable_taylorseer": True,
        "taylorseer_order": order,
        "enable_encoder_taylorseer": encoder,
    } | options


# The residual difference rule.
_add("mid", ALL, **_free("mid"))
_add("streak-of-3", ALL, **_threshold("high"))
_add("low", ("flux", "wan22", "hunyuan_video", "pixart"), **_free("low"))
_add("zero", ("flux", "wan22", "dit"), skips=False, **_free(0.0))
_add("one", ("flux", "qwen_image", "wan22", "hunyuan_video", "pixart"), **_threshold(1.0))
_add("two", ("sd3", "cogvideox"), **_free(2.0, max_cached_steps=12))

# Front and back blocks.
_add("F2B0", ALL, **_free("mid", Fn_compute_blocks=2, max_warmup_steps=3))
_add("F1B1", ALL, **_free("high", Bn_compute_blocks=1))
_add("F4B0", ("flux", "dit"), **_free("mid", Fn_compute_blocks=4))
_add("F5B2", "flux", **_free("mid", Fn_compute_blocks=5, Bn_compute_blocks=2))
_add("F1B7", "flux", **_free("high", Bn_compute_blocks=7))
_add("F6B5", "flux", **_threshold("mid", Fn_compute_blocks=6, Bn_compute_blocks=5))
_add("F3B2", ("qwen_image", "wan", "cogvideox"), **_free("mid", Fn_compute_blocks=3, Bn_compute_blocks=2))
_add("F3B3", ("sd3", "pixart"), **_free("mid", Fn_compute_blocks=3, Bn_compute_blocks=3))

# Warm-up.
_add("W0", ("flux", "qwen_image", "hunyuan_video"), **_free("mid", max_warmup_steps=0))
_add("W1", ("sd3", "wan22", "dit"), **_free("mid", max_warmup_steps=1))
_add("W8I2", ("flux", "wan", "cogvideox", "dit"), **_free("high", max_warmup_steps=8, warmup_interval=2))
_add("W10I3", ("qwen_image", "pixart"), **_free("high", max_warmup_steps=10, warmup_interval=3))
_add("W28", "flux", skips=False, **_free("high", max_warmup_steps=28))

# Limits.
_add("M0", "flux", skips=False, **_free("high", max_cached_steps=0))
_add("M3", ("flux", "qwen_image", "wan22"), **_free("high", max_cached_steps=3))
_add(
    "M7-streak-of-2",
    ("cogvideox", "hunyuan_video"),
    **_threshold("high", max_cached_steps=7, max_continuous_cached_steps=2),
)
_add("streak-of-0", "sd3", skips=False, **_threshold("high", max_continuous_cached_steps=0))
_add("streak-of-1", ("flux", "wan", "dit"), **_threshold("high", max_continuous_cached_steps=1))
_add("streak-of-2", ("qwen_image", "hunyuan_video"), **_threshold(1.5, max_continuous_cached_steps=2))
_add(
    "accumulated-2",
    ("flux", "qwen_image", "sd3"),
    **_free("high", max_accumulated_residual_diff_threshold=2.0),
)
_add("accumulated-0.5", ("wan22", "pixart"), **_free("high", max_accumulated_residual_diff_threshold=0.5))
_add("accumulated-1.5", "hunyuan_video", **_free("high", max_accumulated_residual_diff_threshold=1.5))
_add("accumulated-1", "dit", **_free("high", max_accumulated_residual_diff_threshold=1.0))

# Step masks.
for _policy in ("slow", "medium", "fast", "ultra"):
    _add(f"{_policy}-static", ("flux", "wan22"), scm_steps_mask_policy=_policy, scm_steps_policy="static")
    _add(
        f"{_policy}-dynamic",
        ("qwen_image", "hunyuan_video"),
        scm_steps_mask_policy=_policy,
        scm_steps_policy="dynamic",
        **_free("mid"),
    )
_add(
    "ultra-static",
    ("qwen_image", "sd3", "wan", "cogvideox", "hunyuan_video", "dit", "pixart"),
    scm_steps_mask_policy="ultra",
    scm_steps_policy="static",
)
_add(
    "fast-dynamic",
    ("flux", "sd3", "wan", "wan22", "cogvideox", "dit", "pixart"),
    scm_steps_mask_policy="fast",
    scm_steps_policy="dynamic",
    **_threshold("high"),
)

_ODD_MASK = "1101001000100001100100010011"
_LATE_MASK = "1111111100101010110010101001"
_add(
    "mask-static", ("flux", "wan", "dit"), steps_computation_mask=_ODD_MASK, steps_computation_policy="static"
)
_add("mask-dynamic", ("sd3", "hunyuan_video"), steps_computation_mask=_LATE_MASK, **_free("high"))
_add(
    "mask-list-shortens-the-warm-up",
    ("qwen_image", "cogvideox"),
    steps_computation_mask=[int(digit) for digit in _ODD_MASK],
    **_free("high", max_warmup_steps=8),
)
_add(
    "bins-static",
    ("flux", "pixart"),
    scm_compute_bins=[3, 2, 1, 1, 2],
    scm_cache_bins=[2, 4, 5, 6, 2],
    scm_steps_policy="static",
)
_add(
    "bins-dynamic",
    ("qwen_image", "dit"),
    scm_compute_bins=[5, 1, 1, 1],
    scm_cache_bins=[4, 6, 6, 4],
    **_free("high"),
)

# Forced refresh, counted in steps.
_add("refresh-once-10", ("flux", "sd3", "hunyuan_video"), force_refresh_step_hint=10, **_free("high"))
_add(
    "refresh-repeat-9",
    ("flux", "cogvideox", "dit"),
    force_refresh_step_hint=9,
    force_refresh_step_policy="repeat",
    **_free("high"),
)
_add(
    "refresh-once-12", ("qwen_image", "wan"), force_refresh_step_hint=12, **_free("high", max_cached_steps=4)
)
_add(
    "refresh-repeat-8-seer",
    ("flux", "pixart"),
    force_refresh_step_hint=8,
    force_refresh_step_policy="repeat",
    **_free("high", **_seer(1)),
)
_add(
    "refresh-once-9-accumulated",
    ("flux", "qwen_image"),
    force_refresh_step_hint=9,
    **_free("high", max_accumulated_residual_diff_threshold=2.0),
)
_add(
    "refresh-restarts-the-mask",
    "sd3",
    force_refresh_step_hint=14,
    steps_computation_mask=_ODD_MASK,
    steps_computation_policy="static",
)

# TaylorSeer.
_add("seer1", NO_SD3, **_free("mid", **_seer(1)))
_add("seer1-text-reused", ("sd3", *TEXT_STREAM), **_free("mid", **_seer(1, encoder=False)))
_add(
    "seer2-fast-static",
    NO_SD3,
    scm_steps_mask_policy="fast",
    scm_steps_policy="static",
    **_seer(2),
)
_add(
    "seer2-text-reused",
    ("sd3", "flux"),
    scm_steps_mask_policy="medium",
    scm_steps_policy="static",
    **_seer(2, encoder=False),
)
_add(
    "seer2-uneven",
    ("flux", "qwen_image", "wan"),
    steps_computation_mask=_ODD_MASK,
    steps_computation_policy="static",
    **_seer(2),
)
_add("seer2-W1", ("cogvideox", "hunyuan_video", "pixart"), **_free("mid", max_warmup_steps=1, **_seer(2)))
_add("seer1-one", ("flux", "wan22"), **_threshold(1.0, **_seer(1)))
_add("seer1-hidden", TEXT_STREAM, **_free("mid", taylorseer_cache_type="hidden_states", **_seer(1)))
_add(
    "seer1-hidden-text-reused",
    ("sd3", "wan", "dit"),
    **_free("mid", taylorseer_cache_type="hidden_states", **_seer(1, encoder=False)),
)
_add(
    "seer2-hidden-F2B1",
    ("flux", "wan22", "pixart"),
    scm_steps_mask_policy="slow",
    scm_steps_policy="static",
    taylorseer_cache_type="hidden_states",
    Fn_compute_blocks=2,
    Bn_compute_blocks=1,
    **_seer(2),
)

# The text stream of the last block is thrown away by most models: it takes back blocks to see its forecast.
_BACK = {"Bn_compute_blocks": 1}
_add("seer1-F1B1", ("sd3", *TEXT_STREAM), **_free("mid", **_BACK, **_seer(1)))
_add(
    "seer1-F1B1-text-reused", ("sd3", "flux", "cogvideox"), **_free("mid", **_BACK, **_seer(1, encoder=False))
)
_add(
    "seer1-hidden-F1B1",
    ("flux", "qwen_image", "hunyuan_video"),
    **_free("mid", taylorseer_cache_type="hidden_states", **_BACK, **_seer(1)),
)
_add(
    "seer2-hidden-F1B1-text-reused",
    ("qwen_image", "cogvideox"),
    **_free("mid", taylorseer_cache_type="hidden_states", **_BACK, **_seer(2, encoder=False)),
)

# FoCa.
_FOCA = {"calibrator": "foca"}
_add("foca", ("flux", "qwen_image", "wan22", "hunyuan_video", "dit", "pixart"), **_free("mid", **_FOCA))
_add("foca-text-reused", ("sd3", "cogvideox"), **_free("mid", enable_encoder_calibrator=False, **_FOCA))
_add(
    "foca-fast-static",
    ("flux", "wan", "pixart"),
    scm_steps_mask_policy="fast",
    scm_steps_policy="static",
    enable_foca=True,
)
_add(
    "foca-uneven",
    ("flux", "qwen_image", "dit"),
    steps_computation_mask=_ODD_MASK,
    steps_computation_policy="static",
    **_FOCA,
)
_add("foca-F1B1", ("sd3", "flux", "cogvideox"), **_threshold("high", **_BACK, **_FOCA))
_add("foca-hidden", ("flux", "wan"), **_free("mid", taylorseer_cache_type="hidden_states", **_FOCA))

# DMD, with four steps computed in a row before any is skipped: see difference C1 of docs/parity.md.
_ROWS_MASK = "1111000111100011110001111000"
_DMD: dict[str, Any] = {
    "calibrator": "dmd",
    "steps_computation_mask": _ROWS_MASK,
    "steps_computation_policy": "static",
}
_add("dmd", ("flux", "qwen_image", "wan", "hunyuan_video", "dit", "pixart"), **_DMD)
_add("dmd-rank-2", ("flux", "wan"), **(_DMD | {"dmd_rank": 2, "dmd_ridge": 1e-6}))
_LONG_ROWS_MASK = "1111111100111111000111111000"
for _history in (4, 8):
    _add(
        f"dmd-history-{_history}",
        ("flux", "qwen_image"),
        dmd_history=_history,
        dmd_svd_precision="high",
        **(_DMD | {"steps_computation_mask": _LONG_ROWS_MASK}),
    )
_add("dmd-text-reused", ("sd3", "flux"), enable_encoder_calibrator=False, **_DMD)
_add("dmd-F1B1", ("sd3", "cogvideox"), **_BACK, **_DMD)
_add("dmd-hidden", ("flux", "pixart"), taylorseer_cache_type="hidden_states", **_DMD)
_add(
    "dmd-refresh-repeat-9",
    ("flux", "dit", "wan22"),
    enable_dmd=True,
    force_refresh_step_hint=9,
    force_refresh_step_policy="repeat",
    **_free(1.0, max_warmup_steps=6),
)
_add("dmd-batch-of-2", ("flux", "qwen_image"), batch=2, **_DMD)

# Two branches.
_add("shared-diff", CFG, cfg_diff_compute_separate=False, **_free("mid"))
_add(
    "shared-diff-streak",
    CFG,
    cfg_diff_compute_separate=False,
    **_threshold("mid", max_continuous_cached_steps=2),
)
_add("shared-diff-seer", ("qwen_image", "wan22"), cfg_diff_compute_separate=False, **_free("mid", **_seer(1)))
_add("cfg-first", CFG, cfg_compute_first=True, cfg_diff_compute_separate=False, **_free("mid"))
_add(
    "cfg-first-seer",
    ("qwen_image", "wan"),
    cfg_compute_first=True,
    cfg_diff_compute_separate=False,
    **_free("mid", **_seer(2)),
)

# One decision for a batch.
_add("batch-of-2", ("flux", "qwen_image", "sd3", "pixart"), batch=2, **_free("mid"))
_add("batch-of-3-seer", "hunyuan_video", batch=3, **_free("mid", **_seer(1)))
