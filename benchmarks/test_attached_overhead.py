"""A dense run of the demo's transformer with the engine attached, beside the plain one, call by call in turns."""

from __future__ import annotations

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
    model = load_demo().transformer
    config = model.config
    inputs = {
        "hidden_states": torch.randn(1, 64, 16),
        "encoder_hidden_states": torch.randn(1, 14, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(14, 3),
        "timestep": torch.tensor([0.5]),
    }

    def pair() -> tuple[float, float]:
        """The same module, plain and attached: a copy lies elsewhere in memory, which alone costs up to a per cent."""
        fast = _seconds(lambda: model(**inputs))
        with enable_cache(model, "cache_dit", residual_diff_threshold=0.0) as backend:
            for index in range(2):  # the first call checks the card
                with backend.step(index, 28, "cond"):
                    slow = _seconds(lambda: model(**inputs))
        return fast, slow

    for _ in range(5):
        pair()
    pairs = [pair() for _ in range(ROUNDS)]
    benchmark(pair)
    ratio = statistics.median(slow / fast for fast, slow in pairs)
    benchmark.extra_info["attached / plain"] = round(ratio, 4)
    print(
        f"\na dense step: plain {statistics.median(p[0] for p in pairs) * 1e3:.2f} ms, attached x{ratio:.4f}"
    )
