"""How long `import dit_cache_backends` takes beside `import torch`, each in a process of its own.

The package promises at most 10 % more. Not a bound in a test: it is the machine's load that decides a single run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 5


def seconds(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def test_import_beside_torch(benchmark) -> None:
    """Taken in turns, so that a change of the load meets both; the ratio of the medians is in `extra_info`."""
    pairs: list[tuple[float, float]] = []

    def pair() -> None:
        pairs.append((seconds("torch"), seconds("dit_cache_backends")))

    benchmark.pedantic(pair, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    torch_alone, package = (statistics.median(times) for times in zip(*pairs, strict=True))
    benchmark.extra_info["seconds of torch"] = round(torch_alone, 3)
    benchmark.extra_info["ratio to torch"] = round(package / torch_alone, 3)
    print(
        f"\nimport torch {torch_alone:.3f} s, import dit_cache_backends {package:.3f} s,"
        f" ratio {package / torch_alone:.3f} ({time.strftime('%Y-%m-%d')})"
    )
