"""How much longer a program takes to start with the package than with torch and diffusers alone."""

from __future__ import annotations

from typing import Any

from dit_cache_backends.bench.imports import BASES, seconds


def test_the_import_behind_torch_and_diffusers(benchmark: Any) -> None:
    code, rounds = BASES["torch and diffusers"]
    taken: list[float] = []
    benchmark.pedantic(lambda: taken.append(seconds(code, "dit_cache_backends")), rounds=rounds)
    benchmark.extra_info["seconds of the import itself"] = taken
