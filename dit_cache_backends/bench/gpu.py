"""The table of ``benchmarks/gpu.py``, which measures real shapes where there is a GPU, read from what it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_cache_backends.bench.document import Part, Table
from dit_cache_backends.errors import ConfigError

FILE = "gpu_benchmarks.json"
"""Beside the report."""
TITLE = "On a GPU"
_NOT_RUN = """
`benchmarks/gpu.py` measures FLUX.1-dev, Qwen-Image, Wan 2.1 and DiT-XL/2 in their real shapes with random weights.
It has not run on a GPU: there is no `docs/gpu_benchmarks.json`, which it writes. Its own text says how to run it.
"""
_WORDS = """
Measured by `benchmarks/gpu.py` on {device} ({versions}) with random weights, so a dynamic strategy's decisions mean
nothing: its time is to be read beside the blocks that ran. "Over ideal" is how much longer than the blocks that ran
and the rest of the model take in the dense run.
"""
_HEADS = (
    "row",
    "s per image",
    "x dense",
    "blocks run",
    "over ideal",
    "peak GB",
    "waits a step",
    "graph breaks",
)
_COLUMNS = (
    ("speed_up", "{:.2f}", 1.0),
    ("over_ideal", "{:+.1%}", 1.0),
    ("peak_bytes", "{:.2f}", 1e9),
    ("waits_per_step", "{:.2f}", 1.0),
    ("graph_breaks", "{:.0f}", 1.0),
)


def report(path: Path) -> list[Part]:
    """The tables of the file at ``path``, one for each model; what to do where there is none.

    Raises:
        ConfigError: the file is not what ``benchmarks/gpu.py`` writes.
    """
    if not path.exists():
        return [Part(TITLE, (_NOT_RUN,))]
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["tiny"]:
            return [Part(TITLE, (_NOT_RUN,))]
        versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items() if number)
        parts = [Part(TITLE, (_WORDS.format(device=data["device"], versions=versions),))]
        for model, told in data["models"].items():
            words = (
                f"{told['transformer']}, {told['parameters'] / 1e9:.2f} B parameters in {told['dtype']}, "
                f"{told['blocks']} blocks, {told['steps']} steps."
            )
            rows = [_cells(row) for row in data["rows"] if row["model"] == model]
            parts.append(Part(told["title"], (words, Table(_HEADS, rows))))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not what benchmarks/gpu.py writes ({type(error).__name__}: {error}); run it anew or remove"
            " the file"
        ) from error
    return parts


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["seconds"] is None:
        return [row["row"], row["error"] or "", *[""] * (len(_HEADS) - 2)]
    shown = {
        name: "" if row.get(name) is None else form.format(row[name] / unit) for name, form, unit in _COLUMNS
    }
    ran = "" if row["blocks_run"] is None else f"{row['blocks_run']}/{row['blocks_total']}"
    return [
        row["row"],
        f"{row['seconds']:.3f}",
        shown["speed_up"],
        ran,
        *(shown[name] for name in ("over_ideal", "peak_bytes", "waits_per_step", "graph_breaks")),
    ]
