"""Run these tests, and those that SGLang ships for its caches, in one process; `make test-sglang` does so twice.

With DIT_CACHE_BACKEND set ours stand around SGLang's functions; without it nothing may be touched.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OWN = (
    "cache_dit_integration",
    "cache_dit_per_request",
    "diffusion_plugins",
    "denoising_cache_reset",
    "teacache_lifecycle",
    "cfg_policy",
    "cfg_gating",
)


def own_tests() -> list[Path]:
    """The files in the installed package, which is not imported."""
    found = importlib.util.find_spec("sglang")
    if found is None or found.origin is None:
        raise SystemExit("SGLang is not installed here: make test-sglang")
    unit = Path(found.origin).parent / "multimodal_gen" / "test" / "unit"
    return [unit / f"test_{name}.py" for name in OWN]


if __name__ == "__main__":
    root = HERE.parents[2]
    options = ["-c", str(HERE / "pytest.ini"), "--rootdir", str(root), str(HERE), *map(str, own_tests())]
    sys.exit(pytest.main(options + sys.argv[1:]))
