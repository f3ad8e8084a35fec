"""Step mode of the real runner: several requests under way, each at its own step, with a state of its own.

vLLM-Omni 0.30 refuses every cache there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.sched.interface import (
    CachedRequestData,
    DiffusionSchedulerOutput,
    NewRequestData,
)
from vllm_omni.diffusion.worker.diffusion_model_runner import DiffusionModelRunner

from dit_cache_backends import CacheBackend, Capabilities, ConfigError
from dit_cache_backends.hosts.vllm_omni.plugin import register
from dit_cache_backends.strategies.cache_dit import CacheDiT

from .counting import executed
from .running import draw, request, runner

pytestmark = pytest.mark.usefixtures("one_rank")

EAGER = {"residual_diff_threshold": 0.8}
LISTS = ["transformer_blocks"]


@pytest.fixture(autouse=True)
def opened() -> None:
    register()


def stepping(
    backend: str | None = "dcb:cache_dit", options: dict[str, Any] | None = None
) -> DiffusionModelRunner:
    return runner(backend, EAGER if options is None else options, step_execution=True)


def step(
    made: DiffusionModelRunner,
    new: Sequence[OmniDiffusionRequest] = (),
    going_on: Sequence[str] = (),
    finished: Sequence[str] = (),
) -> Any:
    """One wave of the scheduler."""
    return made.execute_stepwise(
        DiffusionSchedulerOutput(
            step_id=0,
            scheduled_new_reqs=[NewRequestData(request_id=each.request_id, req=each) for each in new],
            scheduled_cached_reqs=CachedRequestData(request_ids=list(going_on)),
            finished_req_ids=set(finished),
            num_running_reqs=len(new) + len(going_on),
            num_waiting_reqs=0,
        )
    )


def run(made: DiffusionModelRunner, joining: dict[int, OmniDiffusionRequest]) -> dict[str, Tensor]:
    """Requests that join at the given waves, until all are done."""
    live: list[str] = []
    done: dict[str, Tensor] = {}
    wave = 0
    while live or any(start >= wave for start in joining):
        new = [joining[wave]] if wave in joining else []
        output = step(made, new, live)
        live += [each.request_id for each in new]
        for each in output.runner_outputs:
            if each.finished:
                assert each.result.error is None
                done[each.request_id] = each.result.output.clone()
                live.remove(each.request_id)
        wave += 1
    return done


def requests() -> list[OmniDiffusionRequest]:
    return [
        request("a red cube", steps=12, seed=1),
        request("a green sphere on a table", steps=20, seed=2),
        request("a blue cone", steps=12, seed=3),
    ]


def test_interleaved_requests_get_the_pictures_that_each_gets_alone() -> None:
    """They join at different waves and have different numbers of steps."""
    asked = requests()
    made = stepping()
    with executed(made.pipeline.transformer, LISTS) as ran:
        done = run(made, {0: asked[0], 3: asked[1], 5: asked[2]})
    blocks = (12 + 20 + 12) * 2 * 4
    assert len(ran) < 0.9 * blocks
    for each, same in zip(asked, requests(), strict=True):
        alone = draw(runner("dcb:cache_dit", EAGER), same)
        assert torch.equal(done[each.request_id], alone)
        summary = made.cache_backend.summary((each.request_id, 0))
        steps = each.sampling_params.num_inference_steps
        assert Counter(row.branch for row in summary.rows) == {"0": steps, "1": steps}
        assert {row.total for row in summary.rows} == {steps}
        assert summary.blocks_skipped > 0
    assert not made.cache_backend.backend.held_tensors()


@pytest.mark.parametrize("name", ["dcb:tea_cache", "dbprune", "easy_cache"])
def test_any_of_ours_serves_it(name: str) -> None:
    options = {
        "dcb:tea_cache": {"rel_l1_thresh": 0.3, "coefficients": "identity"},
        "dbprune": {"residual_diff_threshold": 0.5},
        "easy_cache": {"threshold": 0.5},
    }[name]
    made = stepping(name, options)
    first, second = request(seed=1), request("a green sphere", seed=2, steps=16)
    done = run(made, {0: first, 4: second})
    for each, same in ((first, request(seed=1)), (second, request("a green sphere", seed=2, steps=16))):
        assert torch.equal(done[each.request_id], draw(runner(name, options), same))


def test_a_cache_that_never_skips_is_the_step_mode_without_a_cache() -> None:
    dense, made = stepping(None, {}), stepping("dcb:cache_dit", {"residual_diff_threshold": 0.0})
    for each in (dense, made):
        asked = request(seed=4)
        each.found = run(each, {0: asked})[asked.request_id]
    assert torch.equal(dense.found, made.found)


def test_a_cancelled_request_is_forgotten_at_once_and_the_others_go_on() -> None:
    made = stepping()
    kept, gone = request(seed=1), request("a green sphere", seed=2)
    step(made, [kept, gone])
    for _ in range(5):
        step(made, going_on=[kept.request_id, gone.request_id])
    backend = made.cache_backend.backend
    before = len(backend.held_tensors())
    step(made, going_on=[kept.request_id], finished=[gone.request_id])
    assert 0 < len(backend.held_tensors()) < before
    made.state_cache.clear()
    step(made, [request(seed=5)])
    assert made.cache_backend.summary((kept.request_id, 0)).blocks_run > 0


def test_the_pipeline_and_the_configuration_are_as_before_after_each_step() -> None:
    made = stepping()
    step(made, [request()])
    assert made.od_config.cache_backend == "dcb:cache_dit"
    assert "denoise_step" not in vars(made.pipeline)


def test_vllm_omnis_own_caches_are_refused_as_before() -> None:
    made = stepping("tea_cache", {})
    with pytest.raises(ValueError, match="Step mode does not support cache_backend yet"):
        step(made, [request()])


def test_a_backend_that_keeps_no_state_for_each_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stepping()
    monkeypatch.setattr(CacheDiT, "capabilities", Capabilities(interleaved_requests=False))
    with pytest.raises(ConfigError, match="no state for each request"):
        step(made, [request()])
    assert issubclass(CacheDiT, CacheBackend)
