"""The options of ``cache_dit``, under the names that cache-dit and vLLM-Omni gave them."""

from __future__ import annotations

from dataclasses import dataclass

from dit_cache_backends.calibrators import CalibratorOptions
from dit_cache_backends.config import option
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.storage_options import StorageOptions
from dit_cache_backends.strategies.schedule_options import ScheduleOptions


@dataclass(frozen=True)
class CacheDiTConfig(CalibratorOptions, ScheduleOptions, StorageOptions):
    """The options of ``cache_dit``. Defaults are vLLM-Omni's (0.30)."""

    Fn_compute_blocks: int = option(
        1, minimum=1, help="First blocks of each stack, which always run; what they add is compared."
    )
    residual_diff_threshold: float = option(
        0.24,
        help="Skip while what the first blocks add differs by less. 0 or less: never; 1 or more: always, uncompared.",
    )
    max_accumulated_residual_diff_threshold: float | None = option(
        None,
        help="Skip no more once the differences of a run have summed up to this. Null, 0 or less: no limit.",
    )

    def __post_init__(self) -> None:
        problems = self.schedule_problems() + self.calibrator_problems()
        if problems:
            raise ConfigError("; ".join(problems), problems)
