"""A dense run of the demo's transformer with the engine attached, beside the plain one, run by run in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from dit_cache_backends import enable_cache
from dit_cache_backends.demo import load_demo

ROUNDS, STEPS = 60, 28


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.no_grad()
def test_a_dense_run_with_the_engine_attached(benchmark: Any) -> None:
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

    def plain() -> list[float]:
        return [_seconds(lambda: model(**inputs)) for _ in range(STEPS)]

    def attached() -> list[float]:
        """The same module: a copy lies elsewhere in memory, which alone costs up to a per cent."""

        def call(index: int) -> None:
            with backend.step(index, STEPS, "cond"):
                model(**inputs)

        with enable_cache(model, "cache_dit", residual_diff_threshold=0.0) as backend:
            return [_seconds(lambda index=index: call(index)) for index in range(STEPS)]  # type: ignore[misc]

    plain(), attached()
    rounds = [(plain(), attached(), plain()) for _ in range(ROUNDS)]
    benchmark.pedantic(attached, rounds=3)
    # The median over the rounds of each step's time: whoever else uses the machine is in single steps of single rounds.
    fast = [
        statistics.median(time for before, _, after in rounds for time in (before[i], after[i]))
        for i in range(STEPS)
    ]
    slow = [statistics.median(run[i] for _, run, _ in rounds) for i in range(STEPS)]
    ratio = sum(slow) / sum(fast)
    benchmark.extra_info["attached / plain"] = round(ratio, 4)
    print(f"\n{STEPS} dense steps: plain {sum(fast) * 1e3:.1f} ms, attached x{ratio:.4f}")
