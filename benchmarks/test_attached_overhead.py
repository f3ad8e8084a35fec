"""A dense run of the demo's transformer with the engine attached, beside the plain one, call by call in turns."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from dit_cache_backends import enable_cache
from dit_cache_backends.demo import load_demo

ROUNDS = 150


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.no_grad()
def test_a_dense_step_with_the_engine_attached(benchmark: Any) -> None:
    torch.set_num_threads(1)
    plain = load_demo().transformer
    attached, config = copy.deepcopy(plain), plain.config
    inputs = {
        "hidden_states": torch.randn(1, 64, 16),
        "encoder_hidden_states": torch.randn(1, 14, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(14, 3),
        "timestep": torch.tensor([0.5]),
    }
    with enable_cache(attached, "cache_dit", residual_diff_threshold=0.0) as backend:
        index = iter(range(10**9))

        def pair() -> tuple[float, float]:
            with backend.step(next(index), 10**9, "cond"):
                slow = _seconds(lambda: attached(**inputs))
            return _seconds(lambda: plain(**inputs)), slow

        for _ in range(10):
            pair()
        pairs = [pair() for _ in range(ROUNDS)]
        benchmark(pair)
    ratio = statistics.median(slow / fast for fast, slow in pairs)
    benchmark.extra_info["attached / plain"] = round(ratio, 4)
    print(
        f"\na dense step: plain {statistics.median(p[0] for p in pairs) * 1e3:.2f} ms, attached x{ratio:.4f}"
    )
