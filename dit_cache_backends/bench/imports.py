"""How much longer a program takes to start with a library than with torch and diffusers alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.document import Part, Table

BASES = {
    "torch and diffusers": ("import torch, diffusers", 3),
    "torch and a pipeline of diffusers": ("import torch; from diffusers import FluxPipeline", 1),
}
"""What a program has imported before, and how often it is tried. diffusers loads a pipeline when it is asked for."""
_TIMED = """
import time
{base}
began = time.process_time()
import {module}
print(time.process_time() - began)
"""


def run(asked: Asked) -> dict[str, Any]:
    """Import each library behind each of ``BASES``, in a process of its own each time."""
    modules = {
        "ours": "dit_cache_backends",
        **({"cache-dit": "cache_dit"} if asked.cache_dit and not asked.quick else {}),
    }
    taken: dict[tuple[str, str], list[float]] = {}
    for base, (code, rounds) in list(BASES.items())[: 1 if asked.quick else None]:
        for number in range(1 if asked.quick else rounds):
            for who, module in modules.items():
                asked.say(f"{who} behind {base}, {number + 1}")
                taken.setdefault((base, who), []).append(seconds(code, module))
    return {
        "rows": [
            {"base": base, "who": who, "median_s": statistics.median(each), "minimum_s": min(each)}
            for (base, who), each in taken.items()
        ]
    }


def seconds(base: str, module: str) -> float:
    """CPU seconds that importing ``module`` takes in a fresh process in which the code ``base`` has run."""
    code = _TIMED.format(base=base, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


_WORDS = """
Each import in a process of its own, with the files in the memory of the system; the process's own (CPU) seconds.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    rows = [
        (row["who"], row["base"], f"{row['median_s']:.3f}", f"{row['minimum_s']:.3f}")
        for row in found["rows"]
    ]
    return [
        Part(
            "Import time", (_WORDS, Table(("library", "behind", "median s more", "minimum s more"), rows, 2))
        )
    ]
