"""A comparison as its reader sees it: a table, and a sheet of the worst pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dit_cache_backends.compare.comparison import Comparison, Frame
from dit_cache_backends.compare.measures import MEASURES
from dit_cache_backends.compare.pixels import eight_bit

if TYPE_CHECKING:
    from rich.console import Console

    from dit_cache_backends.compare.live import Cost

WIDTH = 140
"""Of a table that is not on a terminal, in letters."""
ROWS = 40
"""Pairs in the table at most; JSON has all."""


def print_comparison(found: Comparison, cost: Cost | None = None, sheet: Path | None = None) -> None:
    """Print the pairs, their spreads, and what drawing them cost."""
    from rich.table import Table

    console = console_of()
    table = Table()
    video = any(pair.frames > 1 for pair in found.pairs)
    table.add_column("pair", overflow="fold")
    if video:
        table.add_column("frames", justify="right")
    for name in found.single:
        table.add_column(MEASURES[name].label, justify="right", no_wrap=True)
    for pair in found.pairs[:ROWS]:
        cells = [_value(name, _mean(name, pair.values[name])) for name in found.single]
        table.add_row(_plain(pair.name), *([str(pair.frames)] if video else []), *cells)
    if len(found.pairs) > ROWS:
        table.add_row(f"... and {len(found.pairs) - ROWS} more (--json has them)")
    table.add_section()
    for end, label in (("mean", "mean"), ("p5", "5th percentile, of the bad end"), ("worst", "worst")):
        cells = [_value(name, found.spread(name).of(end)) for name in found.single]
        table.add_row(label, *([""] if video else []), *cells)
    console.print(table)
    worst = found.spread("psnr")
    console.print(f"Worst by PSNR: {worst.worst_name}", markup=False)
    for name in found.single:
        if MEASURES[name].needs_prompt:
            console.print(
                f"{MEASURES[name].label} of the references: {_value(name, found.spread(name, True).mean)} (mean)"
            )
    for name, value in found.of_all.items():
        console.print(f"{MEASURES[name].label} of all pairs: {_value(name, value)}")
    if cost is not None:
        told = cost.to_dict()
        console.print(
            f"Seconds: dense {told['seconds_dense']:.3f}, cached {told['seconds_cached']:.3f} (medians); "
            f"{told['speed_up']:.2f}x, transformer {told['transformer_speed_up']:.2f}x (medians of pairs)\n"
            f"Blocks run: {told['blocks_run']} of {told['blocks']}, {told['blocks_speed_up']:.2f}x fewer"
        )
    if sheet is not None:
        console.print(f"The sheet: {sheet}", markup=False)


def side_by_side(found: Comparison, frames: Callable[[], Iterable[Frame]], path: Path, most: int) -> Path:
    """Write a sheet of the worst pairs by PSNR, each with its difference, worst first; of one video some of its frames.

    ``frames`` gives what was measured once more, so that not all of it has to be kept.
    """
    from PIL import Image as Images

    from dit_cache_backends.compare import sheet

    shown = _shown(found, most)
    pictures = {
        (frame.pair, frame.number): [
            Images.fromarray(eight_bit(each)) for each in (frame.reference, frame.other)
        ]
        for frame in frames()
        if (frame.pair, frame.number) in shown
    }
    values = {pair.name: pair.values for pair in found.pairs}
    captions = [
        f"{_value('psnr', values[name]['psnr'][number])} dB, SSIM {_value('ssim', values[name]['ssim'][number])}: "
        f"{name}{f', frame {number}' if len(values[name]['psnr']) > 1 else ''}"
        for name, number in shown
    ]
    rows = []
    for place, label in enumerate(("reference", "compared")):
        rows.append((label, [pictures[each][place] for each in shown]))
    if len({each.size for _, row in rows for each in row}) > 1:
        every = sheet.of_one_size([each for _, row in rows for each in row])
        rows = [
            (label, every[place * len(shown) : (place + 1) * len(shown)])
            for place, (label, _) in enumerate(rows)
        ]
    return sheet.make(captions, rows, path, scale=sheet.scale_for(rows[0][1][0].size))


def console_of() -> Console:
    """The terminal; what is piped is as wide as a table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _shown(found: Comparison, most: int) -> list[tuple[str, int]]:
    """The frames that are shown: the worst of each of the worst pairs, or even ones of the only pair."""
    if len(found.pairs) == 1:
        pair = found.pairs[0]
        count = min(most, pair.frames)
        places = [round(n * (pair.frames - 1) / max(count - 1, 1)) for n in range(count)]
        return [(pair.name, place) for place in places]
    worst = []
    for pair in found.pairs:
        values = pair.values["psnr"]
        place = min(range(len(values)), key=values.__getitem__)
        worst.append((values[place], pair.name, place))
    return [(name, place) for _, name, place in sorted(worst)[:most]]


def _mean(measure: str, values: list[float]) -> float:
    from dit_cache_backends.compare.spread import spread

    return spread(measure, values, [""] * len(values)).mean


def _value(measure: str, value: float) -> str:
    return f"{value:.{MEASURES[measure].digits}f}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
