"""For each built-in backend a configuration that skips and one that never does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WITHOUT_LIMITS = {"max_warmup_steps": 1, "max_continuous_cached_steps": 2}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cache_dit": {
        "eager": {"residual_diff_threshold": 0.9, **_WITHOUT_LIMITS},
        "never": {"residual_diff_threshold": 0.0},
    },
    "dbprune": {
        "eager": {"residual_diff_threshold": 0.9, **_WITHOUT_LIMITS},
        "never": {"residual_diff_threshold": 0.0},
    },
    "tea_cache": {
        # The tiny models' weights are random, so that no published polynomial is theirs.
        "eager": {"coefficients": "identity", "rel_l1_thresh": 0.9, "max_continuous_cached_steps": 2},
        "never": {"coefficients": "identity", "rel_l1_thresh": 0.0},
    },
}
