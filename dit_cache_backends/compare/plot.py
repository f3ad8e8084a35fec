"""Quality over speed-up: a line for each family of settings, above or below that of the dense runs of fewer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Point = tuple[float, float]

WORK_SAVED = "blocks of the dense run / blocks run"
PSNR = "PSNR against the dense picture, dB (mean)"


def front(
    families: Mapping[str, Sequence[Point]],
    path: Path | str,
    *,
    to_beat: str,
    across: str = WORK_SAVED,
    upwards: str = PSNR,
    found: Point | None = None,
    title: str = "",
) -> None:
    """Write the plot as PNG.

    Args:
        families: each line's points, speed-up first.
        path: the PNG.
        to_beat: the family that the others have to beat, in black.
        across: what the speed-up is of.
        upwards: what quality is.
        found: a point to be marked as the one that was chosen.
        title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots()
    others = 0
    for name, points in families.items():
        across_values, upward_values = zip(*sorted(points), strict=True)
        line = name == to_beat
        axes.plot(
            across_values,
            upward_values,
            label=name,
            marker="o" if line else "osD^vPX*"[(others + 1) % 8],
            color="black" if line else f"C{others % 10}",
            linewidth=2.5 if line else 1.2,
            linestyle="-" if line or others < 10 else "--",
            zorder=3 if line else 2,
        )
        others += not line
    if found is not None:
        axes.plot(
            *found,
            marker="*",
            markersize=22,
            color="gold",
            markeredgecolor="black",
            linestyle="none",
            label="found",
            zorder=4,
        )
    axes.set_xlabel(across)
    axes.set_ylabel(upwards)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=100)
