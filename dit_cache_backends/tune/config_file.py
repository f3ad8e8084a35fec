"""What was found as a file for ``--cache-config``, with what was measured in its comments."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from dit_cache_backends.trials import Provenance
from dit_cache_backends.tune.outcome import Checked, Measured, mebibytes
from dit_cache_backends.tune.tuning import Found

WIDTH = 110


def config_text(found: Found, model: str, made_for: Provenance) -> str:
    """The file: backend and options, below comments that say what they are for and what they do."""
    setting = found.best.setting
    request = found.request
    versions = ", ".join(f"{name} {version}" for name, version in made_for.versions.items())
    lines = [
        f"Found by `dit-cache tune {model} {request.aim.text}` ({versions}).",
        f"Model: {made_for.pipeline} {made_for.model}; "
        + "; ".join(
            f"{name}: {each}, weights {made_for.weights[name]}"
            for name, each in made_for.transformers.items()
        ),
        f"Scheduler: {made_for.scheduler}. For runs of {request.steps} steps; other numbers were not measured.",
        f"Searched on {len(request.calibration)} prompts: {setting.label}.",
        *found.verdict.lines,
        *(_condition(checked) for checked in found.checks),
    ]
    head = "\n".join(
        textwrap.fill(
            _one_line(line), WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
        )
        for line in lines
    )
    return f"{head}\n{_body(setting.backend, setting.config)}"


def write_config(path: Path, text: str) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _body(backend: Any, config: Any) -> str:
    return yaml.safe_dump(
        {"cache_backend": backend, "cache_config": dict(config or {})},
        sort_keys=False,
        default_flow_style=None,
        width=WIDTH,
    )


def _condition(checked: Checked) -> str:
    if checked.found is None or checked.rival is None:
        return f"{checked.condition}: {checked.why_not}"
    return (
        f"{checked.condition} ({checked.prompts} prompts): {_numbers(checked.found)}; memory held "
        f"{mebibytes(checked.found.held)} MiB. {checked.rival.setting}: {_numbers(checked.rival)}."
    )


def _numbers(measured: Measured) -> str:
    return (
        f"PSNR {measured.psnr.mean:.1f} dB, 5th percentile {measured.psnr.p5:.1f}, worst {measured.psnr.worst:.1f}; "
        f"SSIM {measured.ssim.mean:.4f}, {measured.ssim.p5:.4f}, {measured.ssim.worst:.4f}; "
        f"{measured.seconds:.3f} s against {measured.dense_seconds:.3f} s ({measured.speedup:.2f}x), "
        f"in the transformer {measured.transformer_seconds:.3f} s ({measured.transformer_speedup:.2f}x); "
        f"blocks run {measured.blocks_run} of {measured.blocks} ({measured.blocks_speedup:.2f}x)"
    )


def _one_line(text: str) -> str:
    """Nothing may end a comment early."""
    return re.sub(r"\s+", " ", "".join(each if each.isprintable() else " " for each in text))
