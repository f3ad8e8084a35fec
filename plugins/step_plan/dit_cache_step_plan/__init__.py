"""``step_plan``: which steps are computed is written down beforehand.

For the output of any planner: the masks of LeMiCa (arXiv 2511.00090) and BudCache (arXiv 2606.13496), step computation
masks (SCM) of cache-dit, the decisions of MagCache or TeaCache noted in a run. Nothing is measured: no tensor is read,
no device is waited for, every rank decides alike, and a run takes the same time whatever the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dit_cache_backends import (
    CalibratorOptions,
    Capabilities,
    ConfigError,
    Decision,
    Fitted,
    Gate,
    PartOptions,
    Place,
    Predictor,
    Probe,
    ProvenanceOptions,
    Span,
    SpanBackend,
    Step,
    StorageOptions,
    Stream,
    make_calibrator,
    option,
)
from dit_cache_backends.configuration.schema_terms import (
    Schema,
    any_of,
    given,
    never,
    option_is,
    refine,
    when,
)
from dit_cache_backends.search import PREDICTORS, Search, even_steps
from dit_cache_step_plan.origin import check_provenance
from dit_cache_step_plan.plan import Mask, Plan, read_plan, read_plan_file, read_weights, resampled

if TYPE_CHECKING:
    from torch import nn

    from dit_cache_backends import Card

__all__ = ["Plan", "StepPlan", "StepPlanConfig", "read_plan", "read_plan_file", "read_weights", "resampled"]

SWITCHES = ("enable_taylorseer", "enable_foca", "enable_dmd")
BLOCKS = ("Fn_compute_blocks", "Bn_compute_blocks")
OF_THE_FILE = ("calibrator", "weights", *SWITCHES, *BLOCKS)
"""What a file of ``dit-cache plan`` says by itself."""


@dataclass(frozen=True, kw_only=True)
class StepPlanConfig(CalibratorOptions, PartOptions, ProvenanceOptions, StorageOptions):
    """The options of ``step_plan``."""

    one_of: ClassVar = ("mask", "plan")
    mask: list[int] | str | None = option(
        None,
        group="mask",
        help="Steps to compute, 1, and to skip, 0: a list, a text such as 110100, or the path of a JSON or YAML file "
        "with one, or with a mapping of mask and branches.",
    )
    branches: dict[str, Any] = option(
        {},
        group="mask",
        help="Other masks for guidance branches, by the branch's name: cond, uncond, 0, 1, ...",
    )
    weights: dict[str, Any] = option(
        {},
        group="mask",
        help="A forecast that was fitted to the mask: for each skipped step, counted from 0, the weights of the last "
        "computed steps before it, the newest last.",
    )
    plan: str | None = option(
        None,
        group="mask",
        help="A file of `dit-cache plan`, instead of a mask: it says the steps, the predictor and the blocks.",
    )
    compute: int | None = option(
        None,
        minimum=2,
        help="Which of the plans in that file: the one of so many computed steps. Null: the file's own choice.",
    )
    fit: str = option(
        "error",
        choices=("error", "resample"),
        help="Where a mask has not as many steps as the run: refuse it, or take for each step the nearest digit.",
    )
    Fn_compute_blocks: int = option(0, minimum=0, help="First blocks of each stack, which always run.")
    Bn_compute_blocks: int = option(0, minimum=0, help="Last blocks of each stack, which always run.")

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of a mask."""
        path = {"type": "string", "pattern": r"\.([jJ][sS][oO][nN]|[yY][aA]?[mM][lL])$"}
        text = {"type": "string", "pattern": "^1[01]*$"}
        listed = {
            "type": "array",
            "minItems": 1,
            "prefixItems": [{"const": 1}],
            "items": {"enum": [0, 1]},
        }
        digits = any_of(text, listed)
        some = {"minProperties": 1}
        predictor = [given("calibrator"), *(option_is(name, {"const": True}) for name in SWITCHES)]
        said = [*predictor, option_is("weights", some), *(option_is(name, {"minimum": 1}) for name in BLOCKS)]
        listed_weights = {"type": "array", "minItems": 1, "items": {"type": "number"}}
        return [
            refine("mask", any_of(digits, path, {"type": "null"})),
            refine("branches", {"additionalProperties": digits}),
            refine(
                "weights",
                {"propertyNames": {"pattern": "^[0-9]+$"}, "additionalProperties": listed_weights},
            ),
            when(
                option_is("weights", some),
                never(any_of(option_is("branches", some), *predictor)),
            ),
            any_of(*map(given, StepPlanConfig.one_of)),
            when(
                given("plan"),
                never(any_of(given("mask"), option_is("branches", some), *said)),
            ),
            when(given("compute"), given("plan")),
        ]

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = self._problems()
        if problems:
            raise ConfigError("; ".join(problems), problems)
        self.read()

    def _problems(self) -> list[str]:
        """What contradicts itself."""
        if self.plan is None:
            problems = [] if self.mask is not None else ["mask has to be given, or a plan"]
            if self.compute is not None:
                problems.append("compute chooses among the plans of a file; give it as plan")
            return problems + (self._problems_of_weights() if self.weights else [])
        problems = []
        if self.mask is not None or self.branches:
            problems.append("mask and plan say the same; give one of them")
        said = [name for name in OF_THE_FILE if getattr(self, name)]
        if said:
            problems.append(
                f"{', '.join(said)}: the plan brings its own predictor and blocks, which it was found with; leave "
                "that out, or give its mask as mask"
            )
        return problems

    def _problems_of_weights(self) -> list[str]:
        """What weights cannot go with."""
        said = [name for name in ("calibrator", *SWITCHES) if getattr(self, name)]
        problems = [f"weights are a predictor of their own; leave out {', '.join(said)}"] if said else []
        if self.branches:
            problems.append(
                "weights are fitted to the mask, and branches have other masks; leave one of them out"
            )
        return problems

    def read(self) -> Plan:
        """The masks, and the weights where there are some.

        Raises:
            ConfigError: as ``read_plan``, ``read_plan_file`` and ``read_weights``.
        """
        if self.plan is not None:
            return read_plan_file(self.plan, self.compute)
        plan = read_plan(self.mask, self.branches)
        return replace(plan, weights=read_weights(self.weights, plan.mask)) if self.weights else plan


class StepPlan(SpanBackend):
    """Runs a step mask that was planned beforehand; looks at no tensor."""

    name = "step_plan"
    Config = StepPlanConfig
    capabilities = Capabilities(rank_agreement=True)
    conformance: ClassVar = {
        "eager": {"mask": "10101010", "fit": "resample"},
        "never": {"mask": "1", "fit": "resample"},
    }
    searches: ClassVar = (Search("even steps", even_steps("mask"), {"predictor": PREDICTORS}),)
    config: StepPlanConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._plan = self.config.read()
        self._options = _with_options(self.config, self._plan)

    def layout(self, depth: int) -> Sequence[Span]:
        front, back = self._options.Fn_compute_blocks, self._options.Bn_compute_blocks
        if front + back >= depth:
            raise ConfigError(
                f"Fn_compute_blocks={front} and Bn_compute_blocks={back} leave no block that could be skipped. "
                f"Expected them to be at most {depth - 1} together."
            )
        return [Span(front, depth - back)]

    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None:
        if self.config.plan is not None and self.config.provenance == "check":
            check_provenance(self._plan.provenance, pipeline, transformer, self.config.plan)

    def gate(self, place: Place) -> Gate:
        return PlanGate(self._plan.of(place.branch), self.config.fit == "resample", place)

    def predictor(self, stream: Stream) -> Predictor:
        foretold = stream.main or self._options.enable_encoder_calibrator is not False
        if self._plan.weights and foretold:
            return Fitted(self._plan.weights, self._plan.mask)
        return make_calibrator(self._options, stream)


def _with_options(config: StepPlanConfig, plan: Plan) -> StepPlanConfig:
    """The configuration with what the plan's file says."""
    if config.plan is None:
        return config
    known = config.__dataclass_fields__
    unknown = [name for name in plan.options if name not in known]
    if unknown:
        raise ConfigError(
            f"plan: {config.plan}: {', '.join(unknown)} is no option of this version of step_plan"
        )
    options: Mapping[str, Any] = plan.options
    return replace(config, plan=None, compute=None, mask=list(plan.mask), **options)


class PlanGate(Gate):
    """Looks the step up in its mask."""

    def __init__(self, mask: Mask, resample: bool, place: Place) -> None:
        self._mask = mask
        self._resample = resample
        self._place = place

    def should_run(self, step: Step, probe: Probe) -> Decision:
        mask, index = self._in_force(step)
        if index >= len(mask):
            return Decision(True, "beyond the plan", store=False)
        # What no later step is skipped with need not be kept.
        # As long as the number of steps is not known this has to be asked further, to find out a run that is too long.
        return Decision(bool(mask[index]), "plan", store=step.total is None or 0 in mask[index + 1 :])

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        mask, index = self._in_force(step)
        where = self._place.transformer
        if index >= len(mask):
            self._place.report(
                "steps_unknown",
                f"{where}: how many steps the run has is not known, so the mask was not resampled, and steps beyond "
                f"its {len(mask)} were computed. Tell it: backend.refresh(pipeline, steps).",
            )
        elif decision.run and not mask[index]:
            self._place.report(
                "plan_not_kept",
                f"{where}, branch {self._place.branch}: a step that the plan skips was computed, because of: "
                f"{decision.reason}.",
            )

    def _in_force(self, step: Step) -> tuple[Mask, int]:
        """The mask for this run, and the place of the step in it.

        A mask as long as the run is for the run, also where two experts share it; else it is for this transformer.
        """
        mask, where = self._mask, self._place.transformer
        if len(mask) == step.run_total:
            return mask, step.run_index
        if step.total is None and not self._resample and step.index >= len(mask):
            raise ConfigError(
                f"step_plan: the mask has {len(mask)} steps, but this is step {step.index + 1} of {where}, and how "
                "many there are is not known. Tell it before the run: backend.refresh(pipeline, steps)."
            )
        if step.total is None or len(mask) == step.total:
            return mask, step.index
        if not self._resample:
            runs = f"{step.total} steps" + (
                f" of a run of {step.run_total}" if step.run_total != step.total else ""
            )
            raise ConfigError(
                f"step_plan: the mask has {len(mask)} steps, but {where} makes {runs}. Give a mask of that length, "
                "or fit: resample."
            )
        return resampled(mask, step.total), step.index
