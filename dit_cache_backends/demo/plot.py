"""Quality over speed-up: a line for each family of settings, above or below that of the dense runs of fewer steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_cache_backends.demo.run import Result


def make(results: Sequence[Result], path: Path) -> None:
    """Write the plot as PNG.

    Across stands the work saved (blocks of the dense run over blocks run), which is the same on every machine; upwards
    the mean PSNR against the dense pictures, in dB. The first result is the dense run itself; those without a family
    are left out.
    """
    from matplotlib.figure import Figure

    dense = results[0]
    families: dict[str, list[tuple[float, float]]] = {}
    for result in results[1:]:
        if result.setting.family and result.blocks_run:
            point = (dense.blocks / result.blocks_run, statistics.mean(result.psnr))
            families.setdefault(result.setting.family, []).append(point)
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(families.items()):
        to_beat = name.startswith("dense")
        across, upwards = zip(*sorted(points), strict=True)
        axes.plot(
            across,
            upwards,
            label=name,
            marker="osD^vPX*"[number % 8],
            color="black" if to_beat else f"C{number % 10}",
            linewidth=2.5 if to_beat else 1.2,
            linestyle="-" if to_beat or number < 10 else "--",
        )
    axes.set_xlabel("blocks of the dense run / blocks run")
    axes.set_ylabel("PSNR against the dense picture, dB (mean)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper right")
    figure.savefig(path, dpi=100)
