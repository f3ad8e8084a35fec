"""Two processes that hold the two halves of one request's tokens take the decisions of one that holds them all."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from dit_cache_backends import (
    CacheBackend,
    ConfigError,
    Decision,
    Gate,
    Place,
    Probe,
    SpanBackend,
    Step,
    get_cache_backend,
    relative_difference,
    summed_over_ranks,
)
from tests.engine.strategies import Planned, PlannedGate
from tests.engine.toys import DIM, ONE, Toy, adds

STEPS, TOKENS = 8, 12
HALVES = (slice(0, TOKENS // 2), slice(TOKENS // 2, TOKENS))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cache_dit": ("cache_dit", {"max_warmup_steps": 1, "residual_diff_threshold": 0.1}),
    "cache_dit, all samples": (
        "cache_dit",
        {"max_warmup_steps": 1, "residual_diff_threshold": 0.1, "batch_decision": "all"},
    ),
    "dbprune": ("dbprune", {"max_warmup_steps": 1, "residual_diff_threshold": 0.1}),
}
PLANS = ("10000100", "10010000")
"""What each rank would do by itself, in a strategy that says nothing of ranks."""


class Stubborn(Planned):
    def gate(self, place: Place) -> Gate:
        return StubbornGate(PLANS[torch.distributed.get_rank()])


class StubbornGate(PlannedGate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        if torch.distributed.get_rank():
            # One rank alone measures: a sum over the ranks here would be met by the other's vote.
            relative_difference(probe.streams[0], probe.streams[0])
        return super().should_run(step, probe)


def _tokens() -> list[Tensor]:
    """The latents of a run: the first half of the tokens all but stands still, the second moves."""
    torch.manual_seed(3)
    start, drift = torch.randn(2, TOKENS, DIM), torch.randn(2, TOKENS, DIM)
    speed = torch.cat([torch.full((TOKENS // 2, 1), 0.02), torch.full((TOKENS // 2, 1), 0.2)])
    return [start + step * speed * drift for step in range(STEPS)]


@torch.no_grad()
def _run(backend: SpanBackend, part: slice = slice(None)) -> tuple[list[int], list[Tensor]]:
    """How many blocks were skipped at each step, and what came out."""
    model, out = Toy(adds, adds, adds, adds), []
    backend.enable(model, card=ONE)
    for step, tokens in enumerate(_tokens()):
        with backend.step(step, STEPS, "cond"):
            out.append(model(tokens[:, part])[0])
    skipped = [row.blocks_skipped for row in backend.summary().rows]
    backend.disable()
    return skipped, out


def _backend(case: str) -> SpanBackend:
    backend = get_cache_backend(*CASES[case])
    assert isinstance(backend, SpanBackend)
    return backend


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    world = torch.distributed.group.WORLD
    found: dict[str, Any] = {}
    for case in CASES:
        backend = _backend(case)
        backend.agree_over(world)
        found[case] = _run(backend, HALVES[rank])
    backend = Stubborn({"plan": "1"})
    backend.agree_over(world)
    found["stubborn"] = _run(backend, HALVES[rank])
    backend.agree_over()
    found["nobody to agree with"] = _run(backend, HALVES[rank])
    found["summed outside a call"] = summed_over_ranks(torch.ones(1))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(_rank, args=(str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_skip_what_one_process_with_all_tokens_skips(case: str, ranks: Any) -> None:
    whole, _ = _run(_backend(case))
    assert ranks[0][case][0] == ranks[1][case][0] == whole
    assert 0 < sum(whole) < 3 * (STEPS - 1)


@pytest.mark.parametrize("case", CASES)
def test_the_halves_together_are_what_one_process_draws(case: str, ranks: Any) -> None:
    _, whole = _run(_backend(case))
    for step, (one, other) in enumerate(zip(ranks[0][case][1], ranks[1][case][1], strict=True)):
        torch.testing.assert_close(torch.cat([one, other], dim=1), whole[step], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_each_half_alone_would_decide_otherwise(case: str) -> None:
    """Else the tests above could not tell agreement from chance."""
    first, second = (_run(_backend(case), half)[0] for half in HALVES)
    assert first != second


def test_ranks_of_a_strategy_that_adds_nothing_up_vote_and_one_that_has_to_run_makes_all_run(
    ranks: Any,
) -> None:
    either = [0 if "1" in digits else 3 for digits in zip(*PLANS, strict=True)]
    assert ranks[0]["stubborn"][0] == ranks[1]["stubborn"][0] == either


def test_without_groups_each_rank_decides_for_itself(ranks: Any) -> None:
    for rank, plan in enumerate(PLANS):
        assert ranks[rank]["nobody to agree with"][0] == [0 if digit == "1" else 3 for digit in plan]


def test_nothing_is_added_up_outside_the_calls_of_a_backend_with_groups(ranks: Any) -> None:
    assert ranks[0]["summed outside a call"].tolist() == [1.0]


def test_a_backend_that_cannot_agree_says_so() -> None:
    class Lonely(CacheBackend):
        name = "lonely"
        Config = type(_backend("cache_dit").config)
        enable = refresh = disable = is_enabled = summary = None  # type: ignore[assignment]

    backend = Lonely()
    backend.agree_over()
    with pytest.raises(ConfigError, match="lonely cannot agree with other ranks"):
        backend.agree_over(object())  # type: ignore[arg-type]
