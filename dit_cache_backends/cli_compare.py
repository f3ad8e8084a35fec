"""``dit-cache compare``: how far pictures and videos are from each other, from files or drawn on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_cache_backends.cli_call import DtypeOption
from dit_cache_backends.cli_config import CacheBackendOption, CacheConfigOption, told_settings
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.terminal import quiet, readable_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dit_cache_backends.compare.live import LivePair
    from dit_cache_backends.trials import Prompt, Setting

__all__ = ["call_of", "compare", "drawn_with", "progress_line", "prompts_of"]

PromptsOption = Annotated[
    Path | None,
    typer.Option(
        help="What to draw: one prompt a line (.txt), or a list in .json, .jsonl or .yaml. With files, their prompts, "
        "in the order of their names."
    ),
]
CallOption = Annotated[
    str | None,
    typer.Option(metavar="JSON|@FILE", help="Further arguments of the pipeline's call: '{\"height\": 512}'."),
]


def compare(
    reference: Annotated[
        Path | None, typer.Argument(metavar="A", help="A picture, a video or a folder: the reference.")
    ] = None,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="B", help="The other; files in folders are paired by their names."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Draw instead, dense and cached: 'demo', a folder, or a name on the model hub."),
    ] = None,
    prompts: PromptsOption = None,
    cache_backend: CacheBackendOption = None,
    cache_config: CacheConfigOption = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; the model's own unless said.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise.")] = 0,
    call: CallOption = None,
    dtype: DtypeOption = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; also of the networks that measure.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Write the drawn pictures into this folder.")] = None,
    measures: Annotated[
        str,
        typer.Option(help="Beside psnr, ssim and mse: lpips, clip, image_reward, fid; several with commas."),
    ] = "",
    clip_model: Annotated[
        str | None, typer.Option(help="Scores with this CLIP: a folder, or a name on the model hub.")
    ] = None,
    only_common: Annotated[
        bool,
        typer.Option("--only-common", help="Leave out files without a partner instead of refusing them."),
    ] = False,
    background: Annotated[
        str | None, typer.Option(help="The colour behind transparent pictures: white, black, #rrggbb.")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Write a PNG with the worst pairs, side by side with their differences."),
    ] = None,
    sheet_pairs: Annotated[int, typer.Option(min=1, help="Pairs on the sheet at most.")] = 8,
    fail_under: Annotated[
        str | None,
        typer.Option(
            metavar="BARS",
            help="Exit with 1 unless kept: psnr=30,ssim=0.97; of the mean, or psnr.p5=..., psnr.worst=...",
        ),
    ] = None,
    fail_over: Annotated[
        str | None,
        typer.Option(metavar="BARS", help="The same where less is better: mse=20,lpips.worst=0.2."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Measure how far two pictures, videos or folders are apart, or a model's cached pictures from its dense ones."""
    with readable_errors():
        from dit_cache_backends.compare.comparison import checked, frames_of_files, scorers
        from dit_cache_backends.compare.comparison import compare as measure
        from dit_cache_backends.compare.limits import bars
        from dit_cache_backends.compare.live import Cost, frames_of_pairs
        from dit_cache_backends.compare.pairs import pairs_of
        from dit_cache_backends.compare.tables import print_comparison, side_by_side

        names = checked(measures.split(",") if measures else ())
        kept = [
            *(bars(fail_under, True, names) if fail_under else ()),
            *(bars(fail_over, False, names) if fail_over else ()),
        ]
        _one_way(reference, other, model)
        cost = None
        if model is None:
            _only_live(cache_backend=cache_backend, cache_config=cache_config, call=call, keep=keep)
            assert reference is not None
            assert other is not None
            pairs = pairs_of(reference, other, only_common)
            texts = _texts(prompts, len(pairs), names)
            scores = scorers(names, clip_model, device or "cpu")
            result = measure(frames_of_files(pairs, texts, background), scores)
            again = lambda: frames_of_files(pairs, texts, background)  # noqa: E731
        else:
            chosen, setting = prompts_of(prompts, model, seed), drawn_with(cache_backend, cache_config)
            quiet()
            scores = scorers(names, clip_model, device or "cpu")
            drawn = _draw(
                model, chosen, setting, num_inference_steps, call_of(call), dtype, device, not as_json
            )
            if keep is not None:
                from dit_cache_backends.compare.live import keep as write

                write(drawn, keep)
            result, cost = measure(frames_of_pairs(drawn), scores), Cost.of(drawn)
            again = lambda: frames_of_pairs(drawn)  # noqa: E731
        if sheet is not None:
            side_by_side(result, again, sheet, sheet_pairs)
        failures = [failure for bar in kept if (failure := bar.failure(result))]
        if as_json:
            report: dict[str, Any] = {**result.to_dict(), "failures": failures}
            typer.echo(json.dumps(report if cost is None else {**report, "cost": cost.to_dict()}, indent=2))
        else:
            print_comparison(result, cost, sheet)
        for failure in failures:
            typer.echo(f"dit-cache: {failure}", err=True)
        if failures:
            raise typer.Exit(1)


def prompts_of(path: Path | None, model: str, seed: int = 0) -> list[Prompt]:
    """The prompts of a file; the demo model's own where there is none.

    Raises:
        ConfigError: there is no file, and it is another model.
    """
    from dit_cache_backends.trials import Prompt, read_prompts

    if path is not None:
        return read_prompts(path, seed)
    if model != "demo":
        raise ConfigError(f"what should {model} draw? Give a file with prompts: --prompts FILE")
    from dit_cache_backends.demo import DEMO_PROMPTS

    return [Prompt(text, seed + number) for number, text in enumerate(DEMO_PROMPTS)]


def call_of(text: str | None) -> dict[str, Any]:
    """The arguments of the pipeline's call that were given as JSON or as a file of it."""
    from dit_cache_backends.config import load_config

    return {} if text is None else dict(load_config(text))


def drawn_with(cache_backend: str | None, cache_config: str | None) -> Setting:
    """The setting that a command's options, a file and the environment give.

    Raises:
        ConfigError: no backend is named, or the file is for how the whole pipeline runs.
    """
    from dit_cache_backends.trials import Setting

    settings = told_settings(cache_backend, cache_config)
    settings.make_backend()
    if not isinstance(settings.backend, str):
        raise ConfigError(
            "which cache? Give --cache-backend NAME, or a file that names it by --cache-config FILE"
        )
    sections = {
        "parallelism_config": settings.parallelism,
        "quantize_config": settings.quantization,
        "attention_backend": settings.attention_backend,
        "compile": settings.compile is not None,
    }
    if said := [name for name, value in sections.items() if value]:
        raise ConfigError(
            f"{', '.join(said)}: what is drawn here is drawn without. Leave it out of the configuration."
        )
    return Setting(settings.backend, dict(settings.options), backend=settings.backend)


@contextmanager
def progress_line(shown: bool) -> Iterator[Callable[[str], None]]:
    """What is told is shown as a line on a terminal, with a spinner; nothing where there is none."""
    from rich.console import Console

    console = Console(stderr=True)
    status: Any = console.status("loading the model") if shown and console.is_terminal else nullcontext()
    with status as line:
        yield lambda text: None if line is None else line.update(text)


def _draw(
    model: str,
    prompts: Sequence[Prompt],
    setting: Setting,
    steps: int | None,
    call: dict[str, Any],
    dtype: str | None,
    device: str | None,
    shown: bool,
) -> list[LivePair]:
    from dit_cache_backends.compare.live import draw_pairs
    from dit_cache_backends.trials import Trial

    with progress_line(shown) as advance, Trial(model, call, dtype, device) as trial:
        return draw_pairs(trial, prompts, setting, steps, advance=advance)


def _one_way(reference: Path | None, other: Path | None, model: str | None) -> None:
    files = [path for path in (reference, other) if path is not None]
    if (model is None) != (len(files) == 2) or (model is not None and files):
        raise ConfigError(
            "give two files or folders, A and B, or a model that draws, --model NAME; got "
            f"{len(files)} paths and {'no model' if model is None else f'the model {model}'}"
        )


def _only_live(**given: object) -> None:
    if said := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
        raise ConfigError(
            f"{', '.join(said)}: only where a model draws, with --model; files are compared as they are"
        )


def _texts(path: Path | None, count: int, measures: Sequence[str]) -> list[str] | None:
    """The prompts of pairs of files."""
    from dit_cache_backends.compare.measures import MEASURES
    from dit_cache_backends.trials import read_prompts

    asking = [name for name in measures if MEASURES[name].needs_prompt]
    if path is None:
        if asking:
            raise ConfigError(
                f"{' and '.join(asking)}: the pictures' prompts are needed. Give them by --prompts FILE."
            )
        return None
    texts = [prompt.text for prompt in read_prompts(path)]
    if len(texts) != count:
        raise ConfigError(
            f"{path} has {len(texts)} prompts for {count} pairs; one is needed for each, by their names"
        )
    return texts
