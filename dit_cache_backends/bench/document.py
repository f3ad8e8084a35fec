"""What a section has to tell, once: as Markdown with plots beside it, and on a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


@dataclass(frozen=True)
class Table:
    """Rows of text under heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    """So many on the left are words, the others numbers."""


@dataclass(frozen=True)
class Plot:
    """A picture beside the report."""

    name: str
    """Goes into the file name, behind that of the report."""
    alternative: str
    save: Callable[[Path], None]
    """Writes it into a PNG file."""


@dataclass(frozen=True)
class Part:
    """A heading and what stands under it, in order."""

    title: str
    body: Sequence[str | Table | Plot] = field(default_factory=tuple)


def markdown(parts: Sequence[Part], report: Path) -> str:
    """The text of the report; its plots are written beside it."""
    lines: list[str] = []
    for part in parts:
        lines.append(f"## {part.title}")
        for piece in part.body:
            if isinstance(piece, Table):
                lines.append(_markdown_table(piece))
            elif isinstance(piece, Plot):
                picture = report.with_name(f"{report.stem}_{piece.name}.png")
                picture.parent.mkdir(parents=True, exist_ok=True)
                piece.save(picture)
                path = Path(os.path.relpath(picture, report.parent)).as_posix()
                lines.append(f"![{piece.alternative}]({path})")
            else:
                lines.append(piece.strip())
    return "\n\n".join(lines) + "\n"


def drawn(draw: Callable[[Figure], None], size: tuple[float, float] = (11.0, 4.5)) -> Callable[[Path], None]:
    """What saves a figure of ``size`` (in inches, of 100 pixels each) that ``draw`` has drawn."""

    def save(path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(path, dpi=100)

    return save


def show(parts: Sequence[Part], console: Console) -> None:
    """Print the tables, each under its part's title; texts and plots are for the report."""
    from rich import box
    from rich.table import Table as Grid

    for part in parts:
        for number, piece in enumerate(each for each in part.body if isinstance(each, Table)):
            grid = Grid(title=part.title if number == 0 else None, title_justify="left", box=box.SIMPLE_HEAD)
            for column, head in enumerate(piece.heads):
                left = column < piece.text_columns
                grid.add_column(head, justify="left" if left else "right", overflow="fold")
            for row in piece.rows:
                grid.add_row(*(cell.replace("**", "") for cell in row))
            console.print(grid)


def _markdown_table(table: Table) -> str:
    marks = ["---" if column < table.text_columns else "---:" for column in range(len(table.heads))]
    rows: list[Sequence[Any]] = [table.heads, marks, *table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
