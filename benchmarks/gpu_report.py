"""What ``gpu.py`` says of its runs: rows as plain data, tables, and the document in which runs come together."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import typer
from gpu_measure import Costs, Outcome
from rich.table import Table

GB, MB = 1e9, 1e6
WHOLE_MODEL = "every row"
"""Stands for the rows of a model of which none could be measured."""
NOT_REACHED = "not reached: the time was over"
HEAD = (
    "row", "s per image", "x dense", "blocks run", "over ideal", "peak GB", "above dense MB", "held MB",
    "waits a step (most in a call)", "graphs (later)", "breaks", "from dense",
)  # fmt: skip
NARROW = ("row", "s per image", "x dense", "blocks run", "over ideal", "peak GB", "graphs (later)")
"""What of it fits on a terminal."""
NUMBERS = (
    "blocks_run", "blocks_total", "cached_steps", "ideal_seconds", "over_ideal", "waits_per_step", "waits_most",
    "peak_bytes", "above_dense_bytes", "held_bytes", "distance_from_dense",
)  # fmt: skip
LEGEND = """\
x dense: how many times faster than the dense run without torch.compile. Over ideal: how much longer than the blocks
that ran and the rest of the model take in the dense run with the same torch.compile. Held: still there behind the run.
Waits: host synchronisations in calls of the transformer. Graphs and breaks: compiled before the first timed run, and
(later) behind it; what an earlier row has compiled is not counted again. From dense: relative distance of the latents
at the end; the weights are random, so it only tells whether two libraries compute the same. dbcache, dbprune and
tea_cache decide by numbers that mean nothing with random weights: read their times beside the blocks that ran."""


def row_of(
    outcome: Outcome, outcomes: Sequence[Outcome], costs: Costs | None, weights: int
) -> dict[str, Any]:
    """What a row says, as plain data. Seconds and bytes; null where nothing was measured."""
    row, median = outcome.row, outcome.median
    dense = {each.row.name: each for each in outcomes if not each.row.library}
    base = dense["dense"]
    same = next(
        each
        for each in dense.values()
        if each.row.compiled == row.compiled and each.row.steps == base.row.steps
    )
    told: dict[str, Any] = {
        "row": row.name,
        "library": row.library or None,
        "strategy": row.strategy or None,
        "taylorseer": row.taylor,
        "compiled": row.compiled or None,
        "steps": row.steps,
        "seconds": median,
        "seconds_of_rounds": outcome.seconds,
        "first_seconds": outcome.first_seconds,
        "speed_up": base.median / median if base.median and median else None,
        "graphs": outcome.graphs,
        "graphs_later": outcome.graphs_later,
        "graph_breaks": outcome.breaks,
        "error": outcome.error,
    }
    numbers: dict[str, Any] = dict.fromkeys(NUMBERS)
    if outcome.waits:
        numbers["waits_per_step"] = sum(outcome.waits) / row.steps
        numbers["waits_most"] = max(outcome.waits)
    if outcome.skipped and costs is not None:
        calls = len(outcome.skipped)
        branches = calls // row.steps
        numbers["blocks_total"] = calls * len(costs.blocks)
        numbers["blocks_run"] = numbers["blocks_total"] - sum(map(len, outcome.skipped))
        numbers["cached_steps"] = [
            call // branches for call in range(0, calls, branches) if outcome.skipped[call]
        ]
        if median and same.median:
            share = costs.total(outcome.skipped, row.steps) / costs.total(same.skipped, same.row.steps)
            numbers["ideal_seconds"] = share * same.median
            numbers["over_ideal"] = median / numbers["ideal_seconds"] - 1
    if outcome.working is not None and base.working is not None:
        numbers["peak_bytes"] = weights + outcome.working
        numbers["above_dense_bytes"] = outcome.working - base.working
        numbers["held_bytes"] = outcome.held
    if outcome.latents is not None and base.latents is not None:
        numbers["distance_from_dense"] = float((outcome.latents - base.latents).norm() / base.latents.norm())
    return told | numbers


def cells(row: dict[str, Any]) -> list[str]:
    """A row as the tables show it."""

    def shown(name: str, form: str, unit: float = 1.0) -> str:
        return "" if row.get(name) is None else format(row[name] / unit, form)

    if row.get("error") and row.get("seconds") is None:
        return [row["row"], row["error"][:100], *[""] * (len(HEAD) - 2)]
    ran = "" if row["blocks_run"] is None else f"{row['blocks_run']}/{row['blocks_total']}"
    waits = "" if row["waits_most"] is None else f"{row['waits_per_step']:.2f} ({row['waits_most']})"
    graphs = "" if row["graphs"] is None else f"{row['graphs']} ({row['graphs_later']})"
    return [
        row["row"],
        shown("seconds", ".3f") + (f"; then {row['error'][:100]}" if row["error"] else ""),
        shown("speed_up", ".2f"),
        ran,
        shown("over_ideal", "+.1%"),
        shown("peak_bytes", ".2f", GB),
        shown("above_dense_bytes", "+.0f", MB),
        shown("held_bytes", ".0f", MB),
        waits,
        graphs,
        shown("graph_breaks", ".0f"),
        shown("distance_from_dense", ".2e"),
    ]


def versions() -> dict[str, str | None]:
    """Of what the numbers depend on."""
    names = ("torch", "triton", "diffusers", "cache-dit", "dit-cache-backends")
    own = {"python": sys.version.split()[0], "cuda": torch.version.cuda}
    return own | {name: _installed(name) for name in names}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class Document:
    """The results on one device with one set of versions; runs with other models or rows add to it."""

    def __init__(self, path: Path | None, device: str, tiny: bool) -> None:
        self.path = path
        self.data: dict[str, Any] = {
            "device": device,
            "tiny": tiny,
            "versions": versions(),
            "models": {},
            "rows": [],
        }
        if path is not None and path.exists():
            before = json.loads(path.read_text())
            changed = [name for name in ("device", "tiny", "versions") if before.get(name) != self.data[name]]
            if changed:
                was, now = ({name: each.get(name) for name in changed} for each in (before, self.data))
                raise typer.BadParameter(
                    f"{path} has results of {was}, but this is {now}: they cannot stand in one table. "
                    "Give another file, or remove that one."
                )
            self.data = before

    def head(self) -> str:
        """The device and the versions, in a line."""
        told = ", ".join(f"{name} {number}" for name, number in self.data["versions"].items() if number)
        return f"{self.data['device']}: {told}\n"

    def expect(self, model: str, steps: int) -> None:
        """Refuse a model of which the file has rows for another number of steps."""
        there = self.data["models"].get(model)
        if there is not None and there["steps"] != steps:
            raise typer.BadParameter(
                f"{self.path} has rows of {model} for {there['steps']} steps, and this would be {steps}. Give --steps "
                f"{there['steps']}, or another file."
            )

    def rows(self, model: str) -> list[dict[str, Any]]:
        """What there is of a model."""
        return [row for row in self.data["rows"] if row["model"] == model]

    def put(self, model: str, told: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """Rows of a model, in the place of rows of the same names; the file is written anew."""
        new = {row["row"]: {"model": model, **row} for row in rows}
        kept = []
        for row in self.data["rows"]:
            own = row["model"] == model
            now = new.pop(row["row"], row) if own else row
            if not (own and row["row"] == WHOLE_MODEL):
                kept.append(row if now["error"] == NOT_REACHED else now)
        self.data["models"][model] = told
        self.data["rows"] = [*kept, *new.values()]
        if self.path is not None:
            written = self.path.with_suffix(".part")
            written.write_text(json.dumps(self.data, indent=1) + "\n")
            written.replace(self.path)

    def markdown(self, model: str) -> str:
        """The rows of a model as a Markdown table under its title."""
        told = self.data["models"][model]
        table = [HEAD, ["---"] * len(HEAD), *(cells(row) for row in self.rows(model))]
        lines = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in table]
        shape = (
            f"{told['transformer']}, {told['parameters'] / 1e9:.2f} B parameters in {told['dtype']}, "
            f"{told['blocks']} blocks, {told['steps']} steps on {' and '.join(told['branches'])}, "
            f"latents {told['latents']}."
        )
        return "\n".join([f"### {told['title']}", "", shape, "", *lines, ""])

    def table(self, model: str) -> Table:
        """What fits of it on a terminal."""
        table = Table(title=self.data["models"][model]["title"])
        for title in NARROW:
            table.add_column(title, justify="left" if title == "row" else "right", no_wrap=title == "row")
        for row in self.rows(model):
            shown = dict(zip(HEAD, cells(row), strict=True))
            table.add_row(*(shown[title] for title in NARROW))
        return table
