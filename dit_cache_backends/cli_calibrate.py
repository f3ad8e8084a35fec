"""``dit-cache calibrate``: dense runs measured once, and what strategies take from them, in a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from dit_cache_backends.terminal import print_columns, quiet, readable_errors

if TYPE_CHECKING:
    from dit_cache_backends.calibrate import Calibration, Record

__all__ = ["calibrate"]


def calibrate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|RECORD...",
            help="What to measure: 'demo' (the shipped one), a folder, or a name on the model hub. Or records that "
            "were made before (.jsonl), shards of one run: they are merged and fitted, and nothing is drawn.",
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A .txt file with a prompt a line, or a .json, .jsonl or .yaml list; better some tens of them."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The calibration to write, .yaml or .json.")
    ] = Path("calibration.yaml"),
    record: Annotated[
        Path | None,
        typer.Option(help="The record to write or to go on with (.jsonl); beside the output unless said."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="2/8", help="Measure this part of the prompts alone, and fit nothing yet."),
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=2, help="Denoising steps; the model's own unless said.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the first prompt's noise, where the file does not say it.")
    ] = 0,
    height: HeightOption = None,
    width: WidthOption = None,
    guidance_scale: GuidanceOption = None,
    true_cfg_scale: TrueCfgOption = None,
    negative_prompt: NegativePromptOption = None,
    call: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE|PATH", help="Further arguments of the pipeline's call."),
    ] = None,
    first_blocks: Annotated[
        int,
        typer.Option(min=1, help="Measure what so many first blocks add, as Fn_compute_blocks of cache_dit."),
    ] = 1,
    no_prompts: Annotated[
        bool, typer.Option("--no-prompts", help="Write the prompts' number and hash down, not their texts.")
    ] = False,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Measure a model's dense runs, and fit what tea_cache and mag_cache decide by."""
    with readable_errors():
        from dit_cache_backends.calibrate import fit, merge_records
        from dit_cache_backends.calibrate.record import SUFFIX

        records = [source for source in sources if source.lower().endswith(SUFFIX)]
        if output.suffix.lower() not in (".yaml", ".yml", ".json"):
            raise ConfigError(f"--output is the name of a .yaml or .json file, got {output}")
        if records:
            if len(records) < len(sources) or prompts is not None or shard is not None:
                raise ConfigError(
                    "records are merged and fitted alone: give no model, no --prompts and no --shard with them"
                )
            merged = merge_records(records)
            _warn_of_missing(merged)
            _finish(fit(merged), output)
            return
        if len(sources) != 1 or prompts is None:
            raise ConfigError(
                "give one model and --prompts FILE, or the records (.jsonl) of earlier runs; got "
                f"{', '.join(sources)}{'' if prompts is None else f' with --prompts {prompts}'}"
            )
        part = _shard(shard)
        path = record or _record_path(output, part)
        arguments = {
            "height": height,
            "width": width,
            "guidance_scale": guidance_scale,
            "true_cfg_scale": true_cfg_scale,
            "negative_prompt": negative_prompt,
        }
        given = {name: value for name, value in arguments.items() if value is not None} | _call(call)
        found = _measured(
            sources[0],
            prompts,
            given,
            path,
            (dtype, device),
            steps=num_inference_steps,
            shard=part,
            first_blocks=first_blocks,
            texts=not no_prompts,
            seed=seed,
        )
        if part != (1, 1):
            typer.echo(
                f"{path}: shard {part[0]} of {part[1]}. When all are there: dit-cache calibrate "
                f"{output.with_suffix('')}.*{SUFFIX} -o {output}"
            )
            return
        _finish(fit(found), output)


def _measured(
    model: str,
    prompts: Path,
    call: dict[str, Any],
    path: Path,
    place: tuple[str | None, str | None],
    *,
    seed: int,
    **how: Any,
) -> Record:
    from dit_cache_backends.calibrate import record
    from dit_cache_backends.trials import Trial, read_prompts

    listed = read_prompts(prompts, seed)  # a mistake in it is told before the model is loaded
    quiet()
    recorded = 0
    try:
        with Trial(model, call, *place) as trial, _bar() as advance:

            def told(done: int, of: int) -> None:
                nonlocal recorded
                recorded = done
                advance(done, of)

            return record(trial, listed, path, told=told, **how)
    except KeyboardInterrupt:
        typer.echo(
            f"\ndit-cache: stopped; {recorded} recorded runs are in {path}, and the same command goes on",
            err=True,
        )
        raise typer.Exit(130) from None


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("measured"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("measured", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    part, parts = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise ConfigError(f"--shard is one of so many, such as 2/8; got {text!r}")
    return part, parts


def _record_path(output: Path, shard: tuple[int, int]) -> Path:
    from dit_cache_backends.calibrate.record import SUFFIX

    part, parts = shard
    name = f"{output.stem}{'' if parts == 1 else f'.{part}-of-{parts}'}{SUFFIX}"
    return output.with_name(name)


def _call(given: str | None) -> dict[str, Any]:
    from dit_cache_backends.config import load_config

    return {} if given is None else load_config(given)


def _warn_of_missing(merged: Record) -> None:
    if merged.missing:
        numbers = ", ".join(str(number + 1) for number in merged.missing[:8])
        typer.echo(
            f"dit-cache: {len(merged.missing)} of {merged.origin.prompts} prompts are in none of the records "
            f"({numbers}{', ...' if len(merged.missing) > 8 else ''}); what there is is fitted",
            err=True,
        )


def _finish(found: Calibration, output: Path) -> None:
    found.write(output)
    typer.echo(f"{output}: {found.origin.prompts} prompts, {found.origin.steps} steps\n")
    rows = [("TEA_CACHE", "TAKES", "DEGREE", "R2", "HELD OUT", "FITTED ON")]
    for name, each in found.curves.items():
        degree = len(getattr(each.polynomial.curve, "coefficients", ())) - 1
        shown = str(degree) if each.use == "polynomial" else "-"
        low, high = each.x_range
        held_out = "-" if each.used.held_out_r2 is None else f"{each.used.held_out_r2:.3f}"
        rows.append((name, each.use, shown, f"{each.used.r2:.3f}", held_out, f"{low:.4g} to {high:.4g}"))
    if found.curves:
        print_columns(rows)
        typer.echo()
    table = [("STRATEGY", "THRESHOLD", "COMPUTED STEPS", "SPEED-UP")]
    for strategy, thresholds in found.thresholds.items():
        table += [
            (strategy, f"{each.value:g}", f"{each.computed:g} of {found.origin.steps}", f"{each.speedup:g}x")
            for each in thresholds
        ]
    if len(table) > 1:
        print_columns(table)
    for strategy, reasons in found.left_out.items():
        for name, why in reasons.items():
            typer.echo(f"left out: {strategy}, {name}: {why}")
