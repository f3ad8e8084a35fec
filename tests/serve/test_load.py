"""The load test in small: `make load` is the same with more of everything, and a server of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dit_cache_backends.demo import load_demo
from tests.serve.conftest import Served

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import load
import load_clients


@pytest.fixture(scope="module")
def jobs() -> list[load_clients.Job]:
    return load_clients.make_jobs(24, cancelled=0.25, seed=3, steps=(3, 4, 5))


def test_under_load_every_picture_is_the_one_drawn_alone_and_nothing_stays(
    serve: Callable[..., Served], jobs: list[load_clients.Job]
) -> None:
    served = serve(cache_backend="cache_dit")
    outcomes, seconds = asyncio.run(load_clients.ask(served.url, jobs, 8))
    report = load.Report(outcomes, seconds, load.read_metrics(served.url))
    load.compare(report, load_demo())
    assert report.problems() == []
    assert report.compared >= 18
    assert served.engine.stats().cancelled >= 4  # one or the other may have had its picture before it left
    assert sum(outcome.blocks_skipped for outcome in outcomes) > 0
    assert load.table(report, 8).row_count == 9


def test_the_load_is_mixed_and_the_same_each_time(jobs: list[load_clients.Job]) -> None:
    assert jobs == load_clients.make_jobs(24, cancelled=0.25, seed=3, steps=(3, 4, 5))
    assert {job.cache for job in jobs} == set(range(len(load_clients.CACHES)))
    assert {job.stream for job in jobs} == {True, False}
    assert sum(job.leaves_after is not None for job in jobs) == 6


def test_a_wrong_picture_a_refusal_and_what_stays_are_problems(jobs: list[load_clients.Job]) -> None:
    job = next(job for job in jobs if job.leaves_after is None)
    metrics = dict.fromkeys(
        (f"dit_cache_{name}" for name in ("queue_length", "running", "held_tensors", "held_bytes")), 0.0
    )
    report = load.Report(
        [
            load_clients.Outcome(job, 200, 1.0, np.zeros((64, 64, 3), np.uint8)),
            load_clients.Outcome(job, 429, 0.1, message="full"),
        ],
        1.0,
        metrics | {"dit_cache_sessions": 1.0},
        resident=[100] * 4 + [100 + load.GROWTH * 2] * 4,
    )
    load.compare(report, load_demo())
    problems = "\n".join(report.problems())
    for words in ("429 full", "another picture than alone", "sessions is 1", "grew by 64 MiB"):
        assert words in problems
