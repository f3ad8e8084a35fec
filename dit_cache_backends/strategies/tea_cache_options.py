"""The options of ``tea_cache``, and the four rules under which TeaCache is in use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_cache_backends.calibrators import CalibratorOptions
from dit_cache_backends.config import option
from dit_cache_backends.configuration.schema_terms import (
    Schema,
    all_of,
    any_of,
    forgiving,
    given,
    never,
    option_is,
    refine,
    when,
)
from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.parts import PartOptions
from dit_cache_backends.provenance_options import (
    CALIBRATION_FILE,
    ProvenanceOptions,
    is_calibration_file,
)
from dit_cache_backends.storage_options import StorageOptions
from dit_cache_backends.strategies.tea_cache_coefficients import IDENTITY, PUBLISHED, CoefficientSet

if TYPE_CHECKING:
    from dit_cache_backends.calibrate.calibration import Calibration

Boundary = int | float


@dataclass(frozen=True, slots=True)
class Rule:
    """What the projects do differently under the one name."""

    absolute: bool
    """Accumulates the size of the polynomial's value; else a negative value is no value, and the step runs."""
    start_step: Boundary = 1
    end_step: Boundary = 1.0
    most_in_row: int = -1
    own_window: bool = False
    """A set of coefficients may bring a window of its own."""
    threshold: float | None = None
    """None: the most careful one published with the coefficients."""


RULES: dict[str, Rule] = {
    # vLLM-Omni 0.30.0, diffusion/cache/teacache/hook.py
    "vllm_omni": Rule(absolute=True, threshold=0.2),
    # The scripts of the TeaCache repository: first and last step; Wan with retention steps and HiDream otherwise
    "official": Rule(absolute=False, end_step=-1, own_window=True),
    # SGLang 0.5.23, multimodal_gen: TeaCacheParams.start_skipping and end_skipping
    "sglang": Rule(absolute=False, start_step=5, end_step=-1),
    # ComfyUI-TeaCache of March 2025: max_skip_steps, and no counting of steps
    "comfyui": Rule(absolute=False, most_in_row=3),
}

FALLBACK_THRESHOLD = 0.2


@dataclass(frozen=True)
class TeaCacheConfig(CalibratorOptions, PartOptions, ProvenanceOptions, StorageOptions):
    """The options of ``tea_cache``. What is null is as the rule has it."""

    rule: str = option(
        "vllm_omni",
        choices=tuple(RULES),
        help="Whose TeaCache: thresholds and coefficients mean different things in different projects.",
    )
    rel_l1_thresh: float | None = option(
        None,
        group="threshold",
        help="Skip while the rescaled differences since the last computed step sum up to less. 0 or less: never. "
        "Null: 0.2 under vllm_omni with published coefficients, else the lowest that comes with the coefficients.",
    )
    rel_l1_thresh_scale: float | None = option(
        None,
        exclusive_minimum=0,
        group="threshold",
        help="The threshold instead as so many times the lowest that comes with the coefficients.",
    )
    coefficients: list[float] | str | None = option(
        None,
        help="The polynomial that makes the output's difference out of the signal's: its numbers, highest power "
        "first, the name of a published set, identity, or a file of `dit-cache calibrate`. Null: the published set "
        "for the model.",
    )
    coefficients_range: list[float] | None = option(
        None,
        help="The differences that the coefficients were fitted on, [lowest, highest]. Null: what a file says.",
    )
    coefficients_outside: str | None = option(
        None,
        choices=("compute", "clamp"),
        help="What a difference outside of that range does: compute the step, or count as the nearest one within. "
        "Null: clamp with a file of `dit-cache calibrate`, else compute.",
    )
    start_step: int | float | None = option(
        None,
        minimum=0,
        help="Steps before this one are computed; a fraction such as 0.1 is a part of the steps. Counted for each "
        "transformer, whose first step is computed in any case.",
    )
    end_step: int | float | None = option(
        None,
        help="Steps of the run from this one on are computed: -1 is the last step, 0.9 the last tenth, 1.0 none.",
    )
    max_continuous_cached_steps: int | None = option(
        None, minimum=-1, help="Cached steps in a row at most; -1: no limit."
    )

    def __post_init__(self) -> None:
        problems = [
            problem
            for problem in (
                self._coefficients_problem(),
                self._range_problem(),
                self._window_problem(),
                self._threshold_problem(),
            )
            if problem
        ]
        problems += self.calibrator_problems()
        if problems:
            raise ConfigError("; ".join(problems), problems)

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of several options at once, and of values closer than their type."""
        null: Schema = {"type": "null"}
        whole: Schema = {"type": ["integer", "null"]}
        names = forgiving([*PUBLISHED, "identity"], also=".")
        return [
            refine("coefficients", any_of(null, names, CALIBRATION_FILE, {"type": "array", "minItems": 1})),
            refine("coefficients_range", any_of(null, {"type": "array", "minItems": 2, "maxItems": 2})),
            refine("start_step", any_of(whole, {"maximum": 1})),
            refine("end_step", any_of(whole, {"type": "number", "minimum": 0, "maximum": 1})),
            never(all_of(given("rel_l1_thresh"), given("rel_l1_thresh_scale"))),
            when(
                given("coefficients_outside"),
                any_of(given("coefficients_range"), option_is("coefficients", CALIBRATION_FILE)),
            ),
        ]

    def given_set(self) -> CoefficientSet | None:
        """The coefficients that were given; None where those for the model are to be found."""
        given = self.coefficients
        if isinstance(given, str):
            return {**PUBLISHED, "identity": IDENTITY}.get(_forgiven(given))
        return None if given is None else CoefficientSet(tuple(given), "given", "given")

    def calibration(self) -> Calibration | None:
        """The file that was given as coefficients, as it was when this configuration was made."""
        found: Calibration | None = getattr(self, "_calibration", None)
        return found

    def _coefficients_problem(self) -> str | None:
        given = self.coefficients
        if isinstance(given, str):
            names = [*PUBLISHED, "identity"]
            if _forgiven(given) in names:
                return None
            if is_calibration_file(given):
                return self._file_problem(given)
            return (
                f"coefficients: there is no published set {given!r}.{near(given, names)} There are "
                f"{', '.join(names)}; or give the numbers, highest power first, or a file of `dit-cache calibrate`"
            )
        if given is not None and (not given or not all(math.isfinite(number) for number in given)):
            return f"coefficients: expected at least one finite number, highest power first; got {given}"
        return None

    def _file_problem(self, given: str) -> str | None:
        from dit_cache_backends.calibrate.calibration import read_calibration

        try:
            object.__setattr__(self, "_calibration", read_calibration(given))
        except ConfigError as error:
            return f"coefficients: {error}"
        return None

    def _threshold_problem(self) -> str | None:
        if self.rel_l1_thresh is None or self.rel_l1_thresh_scale is None:
            return None
        return "rel_l1_thresh and rel_l1_thresh_scale each give the threshold; give one of them"

    def _range_problem(self) -> str | None:
        given = self.coefficients_range
        if given is None and self.coefficients_outside is not None and self.calibration() is None:
            return "coefficients_outside: there is no range to be outside of; give coefficients_range"
        if given is None or (len(given) == 2 and given[0] < given[1]):
            return None
        return f"coefficients_range: expected [lowest, highest] of the fitted differences, got {given}"

    def _window_problem(self) -> str | None:
        start = self.start_step
        if isinstance(start, float) and start > 1:
            return (
                f"start_step: a fraction of the steps is at most 1.0, got {start}; a number of steps is whole"
            )
        end = self.end_step
        if isinstance(end, float) and not 0 <= end <= 1:
            return f"end_step: a fraction of the steps lies between 0.0 and 1.0, got {end}; a step is a whole number"
        return None


def _forgiven(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(".", "_")
