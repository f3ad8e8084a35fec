"""The report: one HTML file with plot, tables and pictures in it, which needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dit_cache_backends.compare import sheet
from dit_cache_backends.compare.plot import WORK_SAVED, front
from dit_cache_backends.trials import DENSE, Provenance
from dit_cache_backends.tune.candidates import FEWER
from dit_cache_backends.tune.outcome import mebibytes, to_dict
from dit_cache_backends.tune.tuning import Found

SHOWN = 6
"""Pictures on a sheet at most."""
RANKED = 15
"""Candidates in the table at most."""


def result_data(found: Found, model: str, made_for: Provenance) -> dict[str, Any]:
    """Everything that was measured, as plain data for ``result.json``."""
    return {
        "model": model,
        "aim": found.request.aim.text,
        "steps": found.request.steps,
        "backend": found.best.setting.backend,
        "options": dict(found.best.setting.config or {}),
        "reached": found.verdict.reached,
        "beats_fewer_steps": found.verdict.beats,
        "verdict": found.verdict.lines,
        "rival": found.rival.label,
        "checks": [
            {
                "condition": each.condition,
                "prompts": each.prompts,
                "found": to_dict(each.found),
                "rival": to_dict(each.rival),
                "why_not": each.why_not,
            }
            for each in found.checks
        ],
        "candidates": [
            {
                "label": each.candidate.label,
                "backend": each.setting.backend,
                "options": dict(each.setting.config or {}),
                "prompts": each.result.prompts,
                "psnr": vars(each.result.psnr),
                "speedup": each.result.speedup,
                "blocks_part": each.result.share,
            }
            for each in found.ranked
        ],
        "front": {
            "families": found.front.families,
            "found": found.front.found,
            "prompts": found.front.prompts,
        },
        "left_out": found.left_out,
        "drawings": found.scores.made,
        "taken_up": found.scores.taken_up,
        "ended_early": found.ended_early,
        "provenance": made_for.to_dict(),
    }


def write_plot(found: Found, path: Path) -> None:
    """The Pareto plot: every family, and the dense runs of fewer steps that they have to beat."""
    prompts = found.front.prompts
    front(
        found.front.families,
        path,
        to_beat=FEWER,
        across=WORK_SAVED,
        found=found.front.found,
        title=f"{prompts} calibration prompt{'s' if prompts > 1 else ''}, {found.request.steps} steps",
    )


def write_sheets(found: Found, folder: Path) -> list[Path]:
    """For each condition that was measured a sheet: dense, found and fewer steps, with their differences from dense."""
    from PIL import Image as Images

    written = []
    for number, (condition, checked) in enumerate(zip(found.conditions, found.checks, strict=True)):
        if checked.found is None:
            continue
        prompts = condition.prompts[: min(SHOWN, checked.prompts)]
        rows = []
        for label, setting in (
            ("dense", DENSE),
            ("found", found.best.setting),
            (found.rival.label, found.rival),
        ):
            frames = [found.scores.picture(setting, prompt, condition.call) for prompt in prompts]
            # Of a video the frame in the middle.
            rows.append((label, [Images.fromarray(each[len(each) // 2]) for each in frames]))
        texts = [prompt.text for prompt in prompts]
        path = folder / f"sheet_{number}.png"
        written.append(sheet.make(texts, rows, path, scale=sheet.scale_for(rows[0][1][0].size)))
    return written


def write_report(
    found: Found,
    model: str,
    made_for: Provenance,
    config: str,
    plot: Path,
    sheets: Sequence[Path],
    path: Path,
) -> None:
    """Write the report. Whatever comes from prompts, names and errors is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("dit_cache_backends.tune").joinpath("report.html").read_text(encoding="utf-8")
    )
    measured = [check for check in found.checks if check.found is not None]
    text = template.render(
        found=found,
        mebibytes=mebibytes,
        model=model,
        made_for=made_for,
        config=config,
        plot=_data_uri(plot),
        sheets=[(check.condition, _data_uri(each)) for check, each in zip(measured, sheets, strict=True)],
        ranked=found.ranked[:RANKED],
        more=max(0, len(found.ranked) - RANKED),
    )
    path.write_text(text, encoding="utf-8")


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
