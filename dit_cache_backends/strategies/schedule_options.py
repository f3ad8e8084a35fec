"""The options of a schedule and of its difference, under the names that cache-dit and vLLM-Omni gave them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from dit_cache_backends.config import option
from dit_cache_backends.configuration.schema_terms import (
    Schema,
    all_of,
    any_of,
    both_or_neither,
    given,
    never,
    refine,
)
from dit_cache_backends.parts import PartOptions
from dit_cache_backends.strategies.scm import POLICIES, bins_mask

_MASKS = ("steps_computation_mask", "scm_compute_bins", "scm_steps_mask_policy")
"""Options each of which gives a mask."""


@dataclass(frozen=True)
class ScheduleOptions(PartOptions):
    """Which blocks and steps may be skipped, how guidance branches and batches are decided, when all is forgotten.

    The ``Config`` of a strategy inherits these options and refuses ``schedule_problems()``. Defaults are vLLM-Omni's
    (0.30).
    """

    Fn_compute_blocks: int = option(1, minimum=0, help="First blocks of each stack, which always run.")
    Bn_compute_blocks: int = option(0, minimum=0, help="Last blocks of each stack, which always run.")
    residual_diff_threshold: float = option(
        0.24, help="Skip while the difference is less. 0 or less: never; 1 or more: always, uncompared."
    )
    max_warmup_steps: int = option(4, minimum=0, help="Steps at the start of a run that are computed.")
    warmup_interval: int = option(
        1, minimum=1, help="Of the warm-up steps only every so many are forced to compute."
    )
    max_cached_steps: int = option(-1, minimum=-1, help="Cached steps in a run at most; -1: no limit.")
    max_continuous_cached_steps: int = option(
        3, minimum=-1, help="Cached steps in a row at most; -1: no limit."
    )
    num_inference_steps: int | None = option(
        None,
        minimum=1,
        help="Steps of the runs to come, where no scheduler tells; an explicit mask must have that length.",
    )
    steps_computation_mask: list[int] | str | None = option(
        None,
        group="mask",
        help='Steps to compute, 1, and to cache, 0: a list, a text such as "1101", or the name of a policy.',
    )
    steps_computation_policy: str = option(
        "dynamic",
        choices=("dynamic", "static"),
        group="mask policy",
        help="At a 0 of the mask: decide by the difference, or cache in any case.",
    )
    scm_steps_mask_policy: str | None = option(
        None,
        choices=("none", *POLICIES),
        group="mask",
        help="A preset mask for the number of steps; the further right, the faster.",
    )
    scm_steps_policy: str | None = option(
        None,
        choices=("dynamic", "static"),
        group="mask policy",
        help="vLLM-Omni's name for steps_computation_policy.",
    )
    scm_compute_bins: list[int] | None = option(
        None,
        minimum=1,
        group="mask",
        help="A mask of one's own: lengths of the runs of computed steps. Goes with scm_cache_bins.",
    )
    scm_cache_bins: list[int] | None = option(
        None, minimum=1, group="mask", help="Lengths of the runs of cached steps between them."
    )
    force_refresh_step_hint: int | None = option(
        None, minimum=1, help="After that many steps everything is forgotten and the warm-up begins again."
    )
    force_refresh_step_policy: str = option(
        "once", choices=("once", "repeat"), help="Once in a run, or each time."
    )
    enable_separate_cfg: bool | None = option(
        None,
        help="Calls alternate between two branches. Needed only for a bare transformer without a timestep argument.",
    )
    cfg_compute_first: bool = option(False, help="The first call of a step is the unconditional one.")
    cfg_diff_compute_separate: bool = option(
        True,
        help="Each branch takes its own differences; else the unconditional one takes those of the conditional.",
    )
    batch_decision: str = option(
        "mean",
        choices=("mean", "all"),
        help="Decide for a batch by its mean difference, or skip only if every sample agrees.",
    )

    def schedule_problems(self) -> list[str]:
        """What contradicts itself among these options."""
        problems = [problem for problem in (self._mask_problem(), self._bins_problem()) if problem]
        said = [name for name in _MASKS if getattr(self, name) not in (None, "none")]
        if len(said) > 1:
            problems.append(f"{' and '.join(said)} each give a mask; give one of them")
        return problems

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of several options at once."""
        digits = {"type": "array", "minItems": 1, "items": {"enum": [0, 1]}}
        text = {"type": "string", "pattern": f"^(none|{'|'.join(POLICIES)}|[01]+)$"}
        bins = {"type": ["array", "null"], "minItems": 1}
        masks = [given(name) for name in _MASKS]
        return [
            refine("steps_computation_mask", any_of(digits, text, {"type": "null"})),
            refine("scm_compute_bins", bins),
            refine("scm_cache_bins", bins),
            *both_or_neither(given("scm_compute_bins"), given("scm_cache_bins")),
            *(never(all_of(one, other)) for one, other in combinations(masks, 2)),
        ]

    @property
    def policy(self) -> str | None:
        """The preset asked for, by either option."""
        if isinstance(self.steps_computation_mask, str) and self.steps_computation_mask in POLICIES:
            return self.steps_computation_mask
        return None if self.scm_steps_mask_policy in (None, "none") else self.scm_steps_mask_policy

    @property
    def static(self) -> bool:
        """Whether a 0 of the mask is cached in any case."""
        return (self.scm_steps_policy or self.steps_computation_policy) == "static"

    @property
    def explicit_mask(self) -> tuple[int, ...] | None:
        """The mask that was given itself, by its digits or its bins."""
        if self.scm_compute_bins is not None and self.scm_cache_bins is not None:
            return bins_mask(self.scm_compute_bins, self.scm_cache_bins, self.num_inference_steps)
        if self.steps_computation_mask is None or self.steps_computation_mask in ("none", *POLICIES):
            return None
        return tuple(int(digit) for digit in self.steps_computation_mask)

    def _mask_problem(self) -> str | None:
        mask = self.steps_computation_mask
        if mask is None or mask in ("none", *POLICIES):
            return None
        if not mask or any(str(digit) not in "01" for digit in mask):
            return (
                f"steps_computation_mask: expected a list or a text of 0 and 1, or one of {', '.join(POLICIES)}; "
                f"got {mask!r}"
            )
        if self.num_inference_steps is not None and len(mask) != self.num_inference_steps:
            return (
                f"steps_computation_mask has {len(mask)} steps, but num_inference_steps is "
                f"{self.num_inference_steps}; give a mask of that length, or leave num_inference_steps out"
            )
        return None

    def _bins_problem(self) -> str | None:
        compute, cache = self.scm_compute_bins, self.scm_cache_bins
        if compute == [] or cache == []:
            return "scm_compute_bins and scm_cache_bins: expected lengths of runs of steps, got an empty list"
        if (compute is None) != (cache is None):
            return "scm_compute_bins and scm_cache_bins go together; give both or neither"
        steps = self.num_inference_steps
        if compute and cache and steps and sum(compute) + sum(cache) < steps:
            return (
                f"scm_compute_bins and scm_cache_bins make {sum(compute) + sum(cache)} steps, but "
                f"num_inference_steps is {steps}"
            )
        return None
