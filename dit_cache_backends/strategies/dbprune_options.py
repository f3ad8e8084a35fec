"""The options of ``dbprune``, under the names that cache-dit gave them."""

from __future__ import annotations

from dataclasses import dataclass

from dit_cache_backends.calibrators import CalibratorOptions
from dit_cache_backends.config import option
from dit_cache_backends.configuration.schema_terms import Schema, given, option_is, when
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.storage_options import StorageOptions
from dit_cache_backends.strategies.schedule_options import ScheduleOptions


@dataclass(frozen=True)
class DBPruneConfig(CalibratorOptions, ScheduleOptions, StorageOptions):
    """The options of ``dbprune``.

    Defaults are cache-dit's (1.5.3, ``DBPruneConfig``), but for 1 first block and 4 warm-up steps, as with
    ``cache_dit``: cache-dit's 8 and 8 fit neither a stack of fewer blocks nor a run of fewer steps.
    """

    residual_diff_threshold: float = option(
        0.08,
        help="Prune a block while its input differs by less from that at which it last ran. "
        "0 or less: never; 1 or more: always, uncompared.",
    )
    max_cached_steps: int = option(
        -1, minimum=-1, help="Steps of a run in which blocks are pruned at most; -1: no limit."
    )
    max_continuous_cached_steps: int = option(
        -1, minimum=-1, help="Steps in a row in which blocks are pruned at most; -1: no limit."
    )
    non_prune_block_ids: list[int] = option(
        [],
        minimum=0,
        help="Further blocks that always run, by their number in their stack; beyond its depth they mean nothing.",
    )
    enable_dynamic_prune_threshold: bool = option(
        False, help="Raise the threshold in a step whose first five differences are large."
    )
    dynamic_prune_threshold_relax_ratio: float = option(
        1.25,
        exclusive_minimum=0,
        help="The raised threshold, in means of the step's first five differences.",
    )
    max_dynamic_prune_threshold: float | None = option(
        None,
        exclusive_minimum=0,
        help="From here on it is not raised at all. Null: twice residual_diff_threshold.",
    )
    downsample_factor: int = option(
        1, minimum=1, help="Keep and compare only every so many tokens of the inputs, to save memory."
    )
    compare_dtype: str | None = option(
        None,
        choices=("bfloat16", "float16"),
        help="Keep and compare the inputs in this type, to save memory. Null: in cache_dtype, else the model's own.",
    )

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of several options at once."""
        raised = option_is("enable_dynamic_prune_threshold", {"const": True})
        return [when(given("max_dynamic_prune_threshold"), raised)]

    def __post_init__(self) -> None:
        problems = self.schedule_problems() + self.calibrator_problems()
        if self.max_dynamic_prune_threshold is not None and not self.enable_dynamic_prune_threshold:
            problems.append(
                "max_dynamic_prune_threshold has no effect without enable_dynamic_prune_threshold: true"
            )
        if problems:
            raise ConfigError("; ".join(problems), problems)
