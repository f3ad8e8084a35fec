"""``dit-cache tune``: the backend and options for a speed-up or a quality, found on the user's own model."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_cache_backends.cli_call import DeviceOption, DtypeOption
from dit_cache_backends.cli_compare import CallOption, call_of, progress_line
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.terminal import quiet, readable_errors

if TYPE_CHECKING:
    from dit_cache_backends.trials import Prompt
    from dit_cache_backends.tune.tuning import Found

__all__ = ["tune"]

INTERRUPTED = 130
DEMO_PROMPTS = 16


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="'demo' (the shipped one), a folder, or a name on the model hub."
        ),
    ],
    speedup: Annotated[
        float | None, typer.Option(help="The best picture at so many times the speed.")
    ] = None,
    psnr: Annotated[
        float | None, typer.Option(help="The fastest with so many dB to the dense picture.")
    ] = None,
    by: Annotated[str, typer.Option(help="What the speed-up is of: time, or blocks.")] = "time",
    of: Annotated[str, typer.Option(help="Which PSNR counts: mean, p5 or worst.")] = "mean",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="What to draw (.txt, .json, .jsonl, .yaml). Every other one is held out, unless --held-out is given."
        ),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Prompts to measure with, which the search never sees.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise.")] = 0,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=2, help="Denoising steps; the model's own unless said.")
    ] = None,
    other_size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="To measure with, too; three quarters unless said."),
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these backends, with commas; all unless said.")
    ] = None,
    options: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|@FILE",
            help='Options that every trial of a backend has: \'{"mag_cache": {"ratios": "mag.yaml"}}\'.',
        ),
    ] = None,
    plans: Annotated[bool, typer.Option(help="Look for plans (`dit-cache plan`) among others.")] = True,
    time_budget: Annotated[
        str, typer.Option(metavar="TIME", help="90s, 10m, 1.5h, or none: until everything was tried.")
    ] = "10m",
    work: Annotated[
        Path,
        typer.Option(
            help="What was drawn is kept in this folder; the same command goes on there after a stop."
        ),
    ] = Path("dit-cache-tune"),
    output: Annotated[
        Path | None, typer.Option(help="The file for --cache-config; cache.yaml in WORK unless said.")
    ] = None,
    call: CallOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find the backend and options that give a speed-up or a quality, and measure them on prompts not searched with."""
    with readable_errors():
        from dit_cache_backends.tune.aim import Aim
        from dit_cache_backends.tune.candidates import families
        from dit_cache_backends.tune.deadline import seconds_of

        # A mistake here is told before the model is loaded.
        aim, budget, size = Aim(speedup, psnr, by, of), seconds_of(time_budget), _size(other_size)
        searched, measured = _prompts(model, prompts, held_out, seed)
        only = [name for name in (strategies or "").split(",") if name.strip()]
        given = call_of(options)
        families(only, given)
        # What the report needs is missed now, not after the search.
        for needed in ("jinja2", "matplotlib.figure", "skimage.metrics", "dit_cache_backends.tune.report"):
            import_module(needed)
        quiet()
        from dit_cache_backends.trials import Trial, provenance
        from dit_cache_backends.tune.tuning import Request
        from dit_cache_backends.tune.tuning import tune as search

        try:
            with progress_line(not as_json) as say, Trial(model, call_of(call), dtype, device) as trial:
                steps = num_inference_steps or trial.steps
                request = Request(aim, searched, measured, steps, only, given, plans, size)
                found = search(trial, request, work, budget, say)
                made_for = provenance(trial.pipeline)
            _write(found, model, made_for, work, output or work / "cache.yaml", as_json)
        except KeyboardInterrupt:
            typer.echo(f"\ndit-cache: stopped. The same command goes on from what is in {work}.", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _write(found: Found, model: str, made_for: Any, work: Path, output: Path, as_json: bool) -> None:
    from dit_cache_backends.tune.config_file import config_text, write_config
    from dit_cache_backends.tune.report import result_data, write_plot, write_report, write_sheets

    text = config_text(found, model, made_for)
    write_config(output, text)
    plot, report = work / "pareto.png", work / "report.html"
    write_plot(found, plot)
    sheets = write_sheets(found, work)
    write_report(found, model, made_for, text, plot, sheets, report)
    data = result_data(found, model, made_for)
    (work / "result.json").write_text(json.dumps(data, indent=2), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    _print(found)
    typer.echo(f"The file: {output}\nThe report: {report}\nThe plot: {plot}")


def _print(found: Found) -> None:
    from rich.markup import escape
    from rich.table import Table

    from dit_cache_backends.compare.tables import console_of
    from dit_cache_backends.tune.outcome import mebibytes

    console = console_of()
    table = Table(title=escape(found.best.setting.label))
    for number, head in enumerate(
        ("", "PSNR", "5th pct.", "worst", "SSIM", "seconds", "time", "blocks", "MiB held")
    ):
        table.add_column(head, justify="right" if number else "left", no_wrap=bool(number))
    for check in found.checks:
        if check.found is None or check.rival is None:
            table.add_row(escape(f"{check.condition}: {check.why_not}"))
            continue
        for name, each in (
            (f"{check.condition}, {check.prompts}", check.found),
            (check.rival.setting, check.rival),
        ):
            table.add_row(
                escape(name),
                f"{each.psnr.mean:.1f}",
                f"{each.psnr.p5:.1f}",
                f"{each.psnr.worst:.1f}",
                f"{each.ssim.mean:.4f}",
                f"{each.seconds:.3f}",
                f"{each.speedup:.2f}x",
                f"{each.blocks_speedup:.2f}x",
                mebibytes(each.held),
            )
    console.print(table)
    for line in found.verdict.lines:
        console.print(line, markup=False)
    if found.left_out:
        console.print(f"{len(found.left_out)} candidates could not be tried here; the report says why.")
    if found.ended_early:
        console.print("The time budget ended the search. The same command goes on from here.")


def _prompts(
    model: str, prompts: Path | None, held_out: Path | None, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to search with, and those to measure with."""
    from dit_cache_backends.trials import Prompt, read_prompts

    if prompts is not None:
        found = read_prompts(prompts, seed)
    elif model == "demo":
        from dit_cache_backends.demo import held_out_prompts

        found = [Prompt(text, seed + n) for n, text in enumerate(held_out_prompts(DEMO_PROMPTS))]
    else:
        raise ConfigError(f"what should {model} draw? Give a file with prompts, 16 or more: --prompts FILE")
    if held_out is not None:
        return found, read_prompts(held_out, seed + len(found))
    if len(found) < 2:
        raise ConfigError(
            f"{prompts} has one prompt; give at least two, of which one is held out, or --held-out FILE"
        )
    return found[::2], found[1::2]


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ConfigError(f"--other-size is WIDTHxHEIGHT in pixels, such as 768x512; got {text!r}")
    return int(width), int(height)
