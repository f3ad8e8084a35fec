"""What cache-dit, SGLang and vLLM-Omni write in a configuration, in this package's words.

Most of their names are names here, too (see the options of each backend). This module knows the rest: which of their
keys choose a backend, which stand for several options, which are misspelt in their own documentation, and which are
meant for another strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

from dit_cache_backends.errors import near
from dit_cache_backends.options import members, rules_of

__all__ = [
    "CACHE_DIT_KEYS",
    "CACHE_TYPES",
    "MISSPELT",
    "VLLM_OMNI_KEYS",
    "Translation",
    "calibrator_options",
    "meant_for",
    "null_means_default",
    "translate",
    "without_nulls",
]

CACHE_TYPES = {"DBCache": "cache_dit", "DBPrune": "dbprune"}
"""cache-dit's ``cache_type``, and the backend that it means."""

MISSPELT = {"enable_sperate_cfg": "enable_separate_cfg"}
"""Keys as the examples of cache-dit's documentation spell them (1.5.3); cache-dit itself takes no notice of these."""

CACHE_DIT_KEYS = frozenset(
    (
        "Fn_compute_blocks",
        "Bn_compute_blocks",
        "residual_diff_threshold",
        "max_accumulated_residual_diff_threshold",
        "max_warmup_steps",
        "warmup_interval",
        "max_cached_steps",
        "max_continuous_cached_steps",
        "enable_separate_cfg",
        "cfg_compute_first",
        "cfg_diff_compute_separate",
        "num_inference_steps",
        "steps_computation_mask",
        "steps_computation_policy",
        "force_refresh_step_hint",
        "force_refresh_step_policy",
        "enable_dynamic_prune_threshold",
        "max_dynamic_prune_threshold",
        "dynamic_prune_threshold_relax_ratio",
        "non_prune_block_ids",
        "force_reduce_calibrator_vram",
        "enable_taylorseer",
        "enable_encoder_taylorseer",
        "taylorseer_cache_type",
        "taylorseer_order",
        "enable_dmd",
        "enable_encoder_dmd",
        "dmd_history",
        "dmd_rank",
        "dmd_ridge",
        "dmd_svd_precision",
        "enable_foca",
        "enable_encoder_foca",
        "calibrator_cache_type",
    )
)
"""What may stand in a ``cache_config`` of cache-dit 1.5.3 (``load_configs``), where null means: not said."""

VLLM_OMNI_KEYS = {
    "tea_cache": ("rel_l1_thresh", "coefficients"),
    "sea_cache": (
        "sea_threshold",
        "sea_residual_order",
        "sea_max_consecutive_cached",
        "sea_power_exp",
    ),
    "mag_cache": (
        "mag_threshold",
        "mag_max_skip_steps",
        "mag_retention_ratio",
        "mag_ratios",
        "mag_calibrate",
    ),
    "cache_dit": (
        "Fn_compute_blocks",
        "Bn_compute_blocks",
        "max_warmup_steps",
        "max_cached_steps",
        "residual_diff_threshold",
        "max_continuous_cached_steps",
        "enable_taylorseer",
        "taylorseer_order",
        "scm_steps_mask_policy",
        "scm_steps_policy",
        "num_inference_steps",
        "force_refresh_step_hint",
        "force_refresh_step_policy",
    ),
    "step_cache": (
        "step_cache_dit_enabled",
        "velocity_sim_thresholds",
        "velocity_skip_countdowns",
        "step_cache_dit_min_history",
        "step_cache_dit_max_history",
    ),
}
"""The keys of vLLM-Omni 0.30's ``DiffusionCacheConfig``, which is one for all its strategies, by the strategy."""

CALIBRATORS = ("taylorseer", "foca", "dmd")
CALIBRATOR_KEYS = (
    "calibrator_type",
    "enable_calibrator",
    "enable_encoder_calibrator",
    "calibrator_cache_type",
    "calibrator_kwargs",
    "taylorseer_order",
    "dmd_history",
    "dmd_rank",
    "dmd_ridge",
    "dmd_svd_precision",
)
"""The fields of cache-dit's ``CalibratorConfig`` classes, which a mapping ``calibrator_config`` may have."""

_CALIBRATOR = "calibrator_config"


@dataclass
class Translation:
    """Options in this package's words, with the keys that led to each, and what could not be understood."""

    options: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    backend: str | None = None
    """Which backend the options are for, where cache-dit's ``cache_type`` tells."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def translate(options: Mapping[str, Any], path: tuple[str, ...] = ()) -> Translation:
    """Put the options of any dialect into this package's words; ``path`` is where they stand."""
    result = Translation()
    for key, value in options.items():
        if key in MISSPELT:
            right = MISSPELT[key]
            result.warnings.append(f"{key!r} is taken for {right!r}; please write it so.")
            if right in options:
                result.problems.append(f"{key!r} and {right!r} are the same option; give one of them")
                continue
            result.options[right], result.paths[right] = value, (*path, key)
        elif key == "cache_type":
            _cache_type(value, result)
        elif key == _CALIBRATOR and (value is None or isinstance(value, Mapping)):
            beside = [each for each in options if each in calibrator_options()] if value else []
            if beside:
                result.problems.append(
                    f"{', '.join(beside)} and {key} both tell of the calibrator; say all of it in one place"
                )
            _calibrator(value or {}, (*path, key), result)
        else:
            result.options[key], result.paths[key] = value, (*path, key)
    return result


def meant_for(key: str) -> str:
    """For which of vLLM-Omni's strategies a key is, in words to follow the key; empty for a key it has not."""
    owners = [name for name, keys in VLLM_OMNI_KEYS.items() if key in keys]
    return f" is an option of vLLM-Omni's {owners[0]}" if owners else ""


def null_means_default(name: str, annotations: Mapping[str, Any]) -> bool:
    """Whether null for this key says nothing, as in cache-dit's files, instead of being a value or a mistake."""
    return name in CACHE_DIT_KEYS and not (name in annotations and _admits_null(annotations[name]))


def without_nulls(config_class: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those of cache-dit that are null where the configuration has no null."""
    annotations = {
        name: annotation
        for option, (annotation, rule) in rules_of(config_class).items()
        for name in (option, *rule.aliases)
    }
    return {
        name: value
        for name, value in options.items()
        if value is not None or not null_means_default(name, annotations)
    }


def calibrator_options() -> list[str]:
    """Every name of every option that tells of the calibrator."""
    from dit_cache_backends.calibrators import CalibratorOptions

    rules = rules_of(CalibratorOptions)
    return [each for option, (_, rule) in rules.items() for each in (option, *rule.aliases)]


def _admits_null(annotation: Any) -> bool:
    return annotation is Any or not {None, NoneType}.isdisjoint(members(annotation))


def _cache_type(value: object, result: Translation) -> None:
    if value is None:
        return
    forgiven = {name.lower(): backend for name, backend in CACHE_TYPES.items()}
    backend = forgiven.get(value.strip().lower()) if isinstance(value, str) else None
    if backend is None:
        result.problems.append(
            f"cache_type: expected one of {', '.join(CACHE_TYPES)}, got {value!r}.{near(str(value), CACHE_TYPES)}"
        )
    result.backend = backend


def _calibrator(given: Mapping[str, Any], path: tuple[str, ...], result: Translation) -> None:
    """cache-dit's ``CalibratorConfig``, whose switches for the denoised and the other streams are apart."""
    if not given:
        return
    unknown = [key for key in given if key not in CALIBRATOR_KEYS]
    result.problems += [
        f"{_CALIBRATOR}: unknown option {key!r}.{near(str(key), CALIBRATOR_KEYS)}" for key in unknown
    ]
    rest = {key: value for key, value in given.items() if key not in unknown}
    kind, main = rest.pop("calibrator_type", None), rest.pop("enable_calibrator", True)
    if rest.pop("calibrator_kwargs", None):
        result.problems.append(
            f"{_CALIBRATOR}: calibrator_kwargs is not read; give the options by their names"
        )
    if kind not in CALIBRATORS:
        hint = near(kind, CALIBRATORS) if isinstance(kind, str) else ""
        result.problems.append(
            f"{_CALIBRATOR}: calibrator_type: expected one of {', '.join(CALIBRATORS)}, got {kind!r}.{hint}"
        )
        return
    if not isinstance(main, bool):
        result.problems.append(f"{_CALIBRATOR}: enable_calibrator: expected true or false, got {main!r}")
        return
    made = {key: value for key, value in rest.items() if value is not None}
    if main:
        made["calibrator"] = kind
    elif made.pop("enable_encoder_calibrator", False):
        if kind != "taylorseer":
            result.problems.append(
                f"{_CALIBRATOR}: {kind} for the other streams alone is not possible; set enable_calibrator: true"
            )
            return
        made["enable_encoder_taylorseer"] = True
    for name, value in made.items():
        came_from = {"calibrator": "calibrator_type"}.get(name, name)
        result.options[name], result.paths[name] = value, (*path, came_from)
