"""Each kind of step of `dit-cache bench` under pytest-benchmark, whose files of two machines or two commits can be
compared (`--benchmark-save`, `--benchmark-compare`).

The groups hold one shape each; for ratios to the dense and the ideal step, measured in turns, see docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import Plain
from dit_cache_backends.bench.rounds import Key
from dit_cache_backends.bench.shapes import DEMO, PYTHON, Shape
from dit_cache_backends.bench.steps import DENSE, FIRST_BLOCK, IDEAL, KINDS, contenders

KEYS: list[Key] = [
    (DENSE, "plain"),
    (IDEAL, "plain"),
    *((kind, who) for kind in KINDS for who in ("ours", "cache-dit")),
    *((kind, "FirstBlockCache") for kind in FIRST_BLOCK),
]


@pytest.fixture(scope="module", params=[PYTHON, DEMO], ids=lambda shape: shape.name)
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Shape, dict[Key, Plain]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.param, {each.key: each for each in contenders(request.param, Asked())}
    torch.set_num_threads(threads)


@torch.no_grad()
@pytest.mark.parametrize("key", KEYS, ids=" by ".join)
def test_a_step(made: tuple[Shape, dict[Key, Plain]], key: Key, benchmark: Any) -> None:
    shape, takers = made
    if key not in takers:
        pytest.skip(f"{key[1]} is not installed")
    benchmark.group = shape.name
    taker = takers[key]
    taker.enter()
    try:
        benchmark.pedantic(taker.step, rounds=20, warmup_rounds=3)
    finally:
        taker.leave()
