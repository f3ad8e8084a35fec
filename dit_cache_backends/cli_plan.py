"""``dit-cache plan``: find which steps to compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_cache_backends.cli_call import (
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    HeightOption,
    NegativePromptOption,
    TrueCfgOption,
    WidthOption,
)
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.terminal import quiet, readable_errors

if TYPE_CHECKING:
    from dit_cache_backends.planning import Plans
    from dit_cache_backends.trials import Prompt

__all__ = ["plan"]

KEPT_APART = 3
"""Every third prompt is kept for the comparison, where no file with others is given."""


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="'demo' (the shipped one), a folder, or a name on the model hub."
        ),
    ],
    prompts: Annotated[
        Path, typer.Option(metavar="FILE", help="What to draw: one prompt a line, or JSON, JSONL, YAML.")
    ],
    compute: Annotated[
        list[int],
        typer.Option(min=2, metavar="N", help="Computed steps of the plan; several times for several plans."),
    ],
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts for the comparison with fewer dense steps. Unless given, every third of --prompts is kept.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The YAML file to write.")] = Path("plan.yaml"),
    time_budget: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="For the search, over all plans.")
    ] = 600.0,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keeps what was evaluated, so that a search that was stopped goes on; OUTPUT.work.jsonl unless said.",
        ),
    ] = None,
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="May fill the skipped steps, such as 'fitted 3 0.5' or 'taylorseer 2'; several times for several. "
            "None given: three that are fitted to the model, and four others.",
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What is compared: latents, or pictures, which are decoded for each try.")
    ] = "latents",
    max_skip: Annotated[int, typer.Option(min=1, help="Steps skipped in a row at most.")] = 6,
    first: Annotated[int, typer.Option(min=1, help="First steps that always compute.")] = 1,
    last: Annotated[int, typer.Option(min=0, help="Last steps that always compute.")] = 1,
    fn: Annotated[int, typer.Option(min=0, help="First blocks of each stack that always run.")] = 0,
    bn: Annotated[int, typer.Option(min=0, help="Last blocks of each stack that always run.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts in one call of the pipeline.")] = 1,
    replay: Annotated[
        bool,
        typer.Option(
            help="Record the dense runs in the CPU's memory, to run each try from its first skip on."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise, and of the search.")] = 0,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=3, help="Denoising steps; the model's own number unless said.")
    ] = None,
    height: HeightOption = None,
    width: WidthOption = None,
    guidance_scale: GuidanceOption = None,
    true_cfg_scale: TrueCfgOption = None,
    negative_prompt: NegativePromptOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Find which steps to compute, and which predictor fills the others: a file for the backend `step_plan`."""
    with readable_errors():
        from dit_cache_backends.planning import Planner, PlanSearch
        from dit_cache_backends.planning.candidates import DEFAULT_PREDICTORS
        from dit_cache_backends.trials import Trial, read_prompts

        # A mistake here is told before a model is loaded.
        search = PlanSearch(
            tuple(predictor or DEFAULT_PREDICTORS),
            max_skip,
            first,
            last,
            fn,
            bn,
            time_budget,
            objective=objective,
            seed=seed,
        )
        found_on, others = _apart(read_prompts(prompts, seed), held_out, seed)
        call = {
            name: value
            for name, value in {
                "height": height,
                "width": width,
                "guidance_scale": guidance_scale,
                "true_cfg_scale": true_cfg_scale,
                "negative_prompt": negative_prompt,
            }.items()
            if value is not None
        }
        quiet()
        with Trial(model, call, dtype=dtype, device=device) as trial:
            planner = Planner(
                trial,
                found_on,
                others,
                num_inference_steps,
                search,
                batch,
                work or output.with_name(f"{output.name}.work.jsonl"),
                replay,
            )
            plans = _with_bar(planner, compute)
        plans.write(output)
        _report(plans, output)


def _apart(
    prompts: Sequence[Prompt], held_out: Path | None, seed: int
) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """The prompts to find the plan on, and those to compare on."""
    from dit_cache_backends.trials import read_prompts

    if held_out is not None:
        # Other noises than those of the first file.
        return prompts, read_prompts(held_out, seed + len(prompts))
    if len(prompts) < KEPT_APART:
        raise ConfigError(
            f"{len(prompts)} prompts are too few to keep some apart. Give at least {KEPT_APART}, or others for the "
            "comparison with --held-out."
        )
    kept = prompts[KEPT_APART - 1 :: KEPT_APART]
    return [each for each in prompts if each not in kept], kept


def _with_bar(planner: Any, compute: Sequence[int]) -> Plans:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<40}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading the model", total=1.0)
        plans: Plans = planner.plan(
            compute, lambda what, part: progress.update(task, description=what, completed=part)
        )
    return plans


def _report(plans: Plans, output: Path) -> None:
    from dit_cache_backends.terminal import print_columns

    rows = [("COMPUTED", "BLOCKS RUN", "PREDICTOR", "MASK", "FOUND ON", "HELD OUT", "FEWER STEPS")]
    for each in plans.plans:
        candidate = each.candidate
        rows.append(
            (
                f"{candidate.computed} of {plans.steps}",
                f"{each.blocks:.0%}",
                candidate.predictor,
                candidate.digits,
                str(each.found),
                "-" if each.held_out is None else str(each.held_out),
                "-" if each.fewer_held_out is None else str(each.fewer_held_out),
            )
        )
    print_columns(rows)
    what = "PSNR of the pictures" if plans.objective == "pictures" else "Nearness of the final latents"
    typer.echo(f"\n{what} to the dense run's: mean (worst prompt).")
    for each in plans.plans:
        typer.echo(each.verdict)
    typer.echo(
        f'\nRun it: --cache-backend step_plan --cache-config \'{{"plan": "{output}", "compute": '
        f"{plans.plans[0].candidate.computed}}}'"
    )
