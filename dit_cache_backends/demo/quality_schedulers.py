"""What holds under other schedulers, with guidance and in shorter and longer runs: a table of ``docs/quality.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_cache_backends.strategies.presets import even_mask

if TYPE_CHECKING:
    from dit_cache_backends.trials import Prompt, Trial

__all__ = ["CONDITIONS", "HEADS", "Condition", "compared"]

Advance = Callable[[str, float], None]

PROMPTS = 6
"""Prompts that are scored, and as many others that plans are found on."""
EVALUATIONS = 20
"""Runs of all prompts in the search of one plan, not more."""

EVEN: tuple[tuple[str, int, str], ...] = (
    ("three, TaylorSeer", 3, "taylorseer 1"),
    ("two, TaylorSeer", 2, "taylorseer 1"),
    ("three, order 2", 3, "taylorseer 2"),
    ("two, order 2", 2, "taylorseer 2"),
    ("two, HiCache 2 (0.7)", 2, "hermite 2"),
)
"""Heading, leading computed steps of the evenly spread mask, and predictor."""

HEADS = ("computed", "fewer dense steps", *(name for name, _, _ in EVEN), "planned")


@dataclass(frozen=True)
class Condition:
    """How the demo model is run."""

    label: str
    computed: tuple[int, ...]
    steps: int = 28
    scheduler: str = "euler"
    call: Mapping[str, Any] = field(default_factory=dict)


GUIDED = {"true_cfg_scale": 2.0, "negative_prompt": ""}

CONDITIONS = (
    Condition("28, Euler", (17, 11, 8)),
    Condition("28, Euler, `shift` 3", (11, 8), scheduler="shifted"),
    Condition("28, Euler, `true_cfg_scale` 2", (11, 8), call=GUIDED),
    Condition("28, DPM-Solver++", (11, 8), scheduler="dpm"),
    Condition("29, Heun", (11, 8), 15, "heun"),
    Condition("20, Euler", (7, 6), 20),
    Condition("50, Euler", (18, 14), 50),
)


def compared(
    trial: Trial,
    prompts: Sequence[Prompt],
    others: Sequence[Prompt],
    folder: Path,
    advance: Advance,
    conditions: Sequence[Condition] = CONDITIONS,
    evaluations: int = EVALUATIONS,
) -> list[tuple[str, ...]]:
    """The rows of the table: mean (worst) signal-to-noise ratio of the final latents.

    Args:
        trial: the demo model.
        prompts: plans are found on these.
        others: scored.
        folder: keeps what was measured.
        advance: told what is done; how far it is, is told from 0 to 1.
        conditions: how the model is run.
        evaluations: of all prompts, in the search of one plan.
    """
    from dit_cache_backends.planning import Candidate, Planner, PlanSearch
    from dit_cache_backends.trials import Trial as Run

    search = PlanSearch(seconds=None, evaluations=evaluations, segments=0)
    batch = max(len(prompts), len(others))
    rows: list[tuple[str, ...]] = []
    for number, condition in enumerate(conditions):

        def told(*_: object, number: int = number, label: str = condition.label) -> None:
            advance(f"{label.replace('`', '')}, compared", number / len(conditions))

        told()
        call = {**trial.call, **condition.call}
        with _scheduled(trial.pipeline, condition.scheduler), Run(trial.pipeline, call) as run:
            work = (
                folder / f"{condition.scheduler}-{condition.steps}{'-guided' if condition.call else ''}.jsonl"
            )
            planner = Planner(run, prompts, others, condition.steps, search, batch, work)
            plans = planner.plan(condition.computed, told)
            for computed in condition.computed:
                told()
                even = [
                    planner.quality(
                        Candidate(tuple(even_mask(plans.steps, computed, leading)), predictor),
                        planner.held_out,
                    )
                    for _, leading, predictor in EVEN
                ]
                plan = plans[computed]
                cells = [
                    str(each).removesuffix(" dB") for each in (plan.fewer_held_out, *even, plan.held_out)
                ]
                rows.append((f"{computed} of {condition.label}", *cells))
    return rows


@contextmanager
def _scheduled(pipeline: Any, name: str) -> Iterator[None]:
    """The pipeline with another scheduler, until it is left."""
    before = pipeline.scheduler
    try:
        pipeline.scheduler = _scheduler(name, before)
        yield
    finally:
        pipeline.scheduler = before


def _scheduler(name: str, own: Any) -> Any:
    import diffusers

    if name == "shifted":
        return type(own).from_config(own.config, shift=3.0)
    if name == "dpm":
        return diffusers.DPMSolverMultistepScheduler.from_config(
            own.config,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            use_dynamic_shifting=True,
            time_shift_type="exponential",
        )
    if name == "heun":

        class Heun(diffusers.FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
            """FLUX's pipeline names the sigmas, which this scheduler does not take."""

            def set_timesteps(
                self, steps: int | None = None, device: Any = None, sigmas: Any = None, **_: Any
            ) -> None:
                super().set_timesteps(len(sigmas) if steps is None else steps, device)

        return Heun(num_train_timesteps=own.config.num_train_timesteps)
    return own
