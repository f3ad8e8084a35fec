"""``dit-cache demo``: the same prompts dense and cached, with what it costs and what it changes."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dit_cache_backends.compare import measures
from dit_cache_backends.compare.measures import SAME_DB
from dit_cache_backends.demo.settings import FULL, SHORT, STRATEGIES
from dit_cache_backends.registry import installed_names
from dit_cache_backends.trials.setting import Setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from dit_cache_backends.trials import Drawing

STEPS = 28


@dataclass
class Result:
    """What one setting did with every prompt."""

    setting: Setting
    pictures: list[Image] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each whole call, from prompt to picture."""
    transformer_seconds: list[float] = field(default_factory=list)
    blocks_run: int = 0
    blocks: int = 0
    """Blocks that a dense run of the same number of steps runs."""
    cached_steps: list[int] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    adherent: list[bool] = field(default_factory=list)
    held: int = 0
    """Bytes that the backend holds at the most, within one picture."""

    def add(self, drawn: Drawing, dense: Result) -> None:
        """Take one more drawing; ``dense`` has that of the same prompt already, or is this result."""
        picture, summary = drawn.images[0], drawn.summary
        self.pictures.append(picture)
        self.seconds.append(drawn.seconds)
        self.transformer_seconds.append(drawn.transformer_seconds)
        self.blocks += drawn.blocks
        self.blocks_run += drawn.blocks_run
        self.cached_steps.append(0 if summary is None else len(summary.cached_steps()))
        self.psnr.append(min(measures.psnr(dense.pictures[-1], picture), SAME_DB))
        self.ssim.append(measures.ssim(dense.pictures[-1], picture))

    def speed_up(self, dense: Result, part: str = "seconds") -> float:
        """Median over the prompts of how many times faster than dense; each pair was timed one after the other."""
        pairs = zip(getattr(dense, part), getattr(self, part), strict=True)
        return float(statistics.median(slow / fast for slow, fast in pairs))


def compare(
    pipeline: Any,
    prompts: Sequence[str],
    settings: Sequence[Setting],
    steps: int = STEPS,
    seed: int = 0,
    advance: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Draw every prompt with every setting, prompt by prompt, so that a busy machine is unfair to none.

    Args:
        pipeline: the demo's pipeline.
        prompts: what to draw; only sentences of the demo's grammar (``dit_cache_backends.demo.scenes``) are scored.
        settings: the rows; the first one is what the others are compared with.
        steps: denoising steps.
        seed: prompt number ``i`` starts from the noise of ``seed + i``.
        advance: told the label of a setting before it draws.
    """
    from dit_cache_backends.demo import adherence
    from dit_cache_backends.trials import Trial

    results = [Result(setting) for setting in settings]
    with Trial(pipeline) as trial:
        # The first call of a process pays for what others find ready.
        trial.draw(prompts[0], settings[0], seed=seed, steps=2)
        for result in results:
            drawn = trial.draw(prompts[0], result.setting, seed=seed, steps=steps, measure_held=True)
            result.held = drawn.held
        for number, prompt in enumerate(prompts):
            scored = _has_grammar(prompt)
            for result in results:
                advance(result.setting.label)
                result.add(trial.draw(prompt, result.setting, seed=seed + number, steps=steps), results[0])
                if scored:
                    result.adherent.append(adherence.score(prompt, result.pictures[-1]).total)
    return results


def _families(results: Sequence[Result]) -> dict[str, list[tuple[float, float]]]:
    """Work saved and quality of every setting that has a family; the first result is the dense run."""
    families: dict[str, list[tuple[float, float]]] = {}
    for result in results[1:]:
        if result.setting.family and result.blocks_run:
            point = (results[0].blocks / result.blocks_run, statistics.mean(result.psnr))
            families.setdefault(result.setting.family, []).append(point)
    return families


def _has_grammar(prompt: str) -> bool:
    """Whether the demo's scenes know every word of the prompt, so that its pictures can be scored."""
    from dit_cache_backends.demo import scenes

    try:
        scenes.parse(prompt)
    except ValueError:
        return False
    return True


Comparison = Literal["short", "full", "strategies"]
COMPARISONS: dict[Comparison, tuple[tuple[Setting, ...], int]] = {
    "short": (SHORT, 0),
    "full": (FULL, 32),
    "strategies": (STRATEGIES, 16),
}
"""The settings and how many held-out prompts they draw."""

MEMORY = """"Memory held" is what the backend keeps between two steps at the most; the model's weights take 18 MB.
"""
BEAT = """
The line to beat is the dense run of fewer steps: it costs as much as a cached run that computes as many, and keeps
nothing. A setting below that line in the plot is not worth its cache.
"""

HEADS = ("configuration", "seconds", "speed-up", "blocks run", "cached steps", "PSNR", "SSIM", "as asked")
FULL_HEADS = (*HEADS[:3], "transformer speed-up", *HEADS[3:], "memory held")


def cells(result: Result, dense: Result, full: bool) -> tuple[str, ...]:
    """One row of the table: means over the prompts, PSNR also of the worst."""
    same = result is dense
    cached = statistics.mean(result.cached_steps)
    return (
        result.setting.label,
        f"{statistics.median(result.seconds):.3f}",
        f"{result.speed_up(dense):.2f}x",
        *((f"{result.speed_up(dense, 'transformer_seconds'):.2f}x",) if full else ()),
        f"{result.blocks_run}/{result.blocks}",
        f"{cached:.1f}".removesuffix(".0"),
        "-" if same else f"{statistics.mean(result.psnr):.1f} ({min(result.psnr):.1f})",
        "-" if same else f"{statistics.mean(result.ssim):.4f}",
        f"{statistics.mean(result.adherent):.0%}" if result.adherent else "-",
        *((f"{result.held / 1024:.0f} KB",) if full else ()),
    )


def main(
    prompts: Sequence[str] = (),
    steps: int = STEPS,
    seed: int = 0,
    output: Path = Path("dit-cache-demo.png"),
    comparison: Comparison = "short",
    report: Path | None = None,
) -> list[Result]:
    """Load the shipped model, compare, print the table and write the sheet of pictures.

    Args:
        prompts: what to draw; the demo's own prompts unless given, in a longer comparison held-out ones.
        steps: denoising steps.
        seed: of the first prompt's noise.
        output: where the sheet goes.
        comparison: a few settings, every mask policy ("full"), or every strategy, predictor and preset, with a plot.
        report: also write the table to this Markdown file.
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dit_cache_backends.compare import sheet
    from dit_cache_backends.compare.plot import front
    from dit_cache_backends.demo import DEMO_PROMPTS, held_out_prompts, load_demo

    # One thread: at this size more threads wait for each other longer than they work.
    torch.set_num_threads(1)
    asked, count = COMPARISONS[comparison]
    there = installed_names()
    settings = [setting for setting in asked if setting.config is None or setting.backend in there]
    full = comparison != "short"
    chosen = list(prompts) or (held_out_prompts(count) if full else list(DEMO_PROMPTS))
    console = Console()
    if not console.is_terminal:  # piped: as wide as the table
        console = Console(width=160)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loading the model", total=len(chosen) * len(settings))
        pipeline = load_demo()
        results = compare(
            pipeline,
            chosen,
            settings,
            steps,
            seed,
            lambda label: progress.update(task, description=label, advance=1),
        )
    console.print(_table(results, full))
    for name in sorted({str(setting.backend) for setting in asked if setting not in settings}):
        console.print(f"Left out: {name} is not installed. pip install dit-cache-{name.replace('_', '-')}")
    shown = min(len(chosen), 8)
    if comparison == "strategies":
        front(_families(results), output, to_beat="dense, fewer steps")
    else:
        rows = [(result.setting.label, result.pictures[:shown]) for result in _shown(results)]
        sheet.make(chosen[:shown], rows, output)
    console.print(f"{len(chosen)} prompts, {steps} steps. The pictures: {output}")
    if report is not None:
        report.write_text(
            _markdown(results, comparison, steps, len(chosen), output, report), encoding="utf-8"
        )
        console.print(f"The table: {report}")
    return results


def _shown(results: Sequence[Result]) -> Sequence[Result]:
    labels = {setting.label for setting in SHORT}
    return (
        [result for result in results if result.setting.label in labels]
        if len(results) > len(SHORT)
        else results
    )


def _table(results: Sequence[Result], full: bool) -> Any:
    from rich.table import Table

    table = Table()
    for number, head in enumerate(FULL_HEADS if full else HEADS):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for result in results:
        table.add_row(*cells(result, results[0], full))
    return table


def _markdown(
    results: Sequence[Result],
    comparison: Comparison,
    steps: int,
    prompts: int,
    picture: Path,
    report: Path,
) -> str:
    import torch

    full = comparison != "short"
    heads = FULL_HEADS if full else HEADS
    rows = [
        heads,
        ("---", *("---:" for _ in heads[1:])),
        *(cells(result, results[0], full) for result in results),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    path = Path(os.path.relpath(picture, report.parent)).as_posix()
    asked = f" --{comparison}" if full else ""
    command = f"dit-cache demo{asked} --output docs/{picture.name} --report docs/{report.name}"
    title = "Every strategy on the demo model" if comparison == "strategies" else "The demo model, cached"
    return f"""# {title}

Made by `{command}`: {prompts} held-out prompts, {steps} steps, one thread of a {platform.machine()} CPU,
torch {torch.__version__}. Seconds are the median of a whole call, from prompt to picture; a speed-up is the median over
the prompts of dense seconds over cached ones, each pair measured one after the other. PSNR (in dB, the worst picture in
brackets; {SAME_DB:.0f} for an equal one) and SSIM compare with the dense picture of the same noise. "As asked" is the
share of pictures whose shapes, colours, sizes, background and relation are those of the prompt, measured from the
pixels. {MEMORY if full else ""}
{BEAT if comparison == "strategies" else ""}
{table}

![{"quality over speed-up" if comparison == "strategies" else "dense and cached pictures"}]({path})
"""
