"""Tiny real Qwen-Image and FLUX.1 in the real runner: ours beside the dense run, and beside vLLM-Omni's own caches."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm_omni.diffusion.worker.diffusion_model_runner import DiffusionModelRunner

from dit_cache_backends.hosts.vllm_omni.hosted import HostedBackend
from dit_cache_backends.hosts.vllm_omni.plugin import register

from .counting import executed
from .running import FLUX, QWEN, draw, request, runner

pytestmark = pytest.mark.usefixtures("one_rank")

STEPS = 20
LISTS = {QWEN: ["transformer_blocks"], FLUX: ["transformer_blocks", "single_transformer_blocks"]}
PLAIN = [0.0, 0.0, 0.0, 1.0, 0.0]
"""A polynomial for tea_cache that changes nothing: none was fitted on a tiny model."""


@dataclass(frozen=True)
class Drawn:
    """One picture, and the blocks that ran for it."""

    latents: Tensor
    blocks: tuple[tuple[str, int], ...]

    def off(self, dense: Drawn) -> float:
        return float((self.latents - dense.latents).norm() / dense.latents.norm())


def drawn(made: DiffusionModelRunner, pipeline: str, **more: Any) -> Drawn:
    with executed(made.pipeline.transformer, LISTS[pipeline]) as ran:
        latents = draw(made, request(steps=STEPS, **more))
    return Drawn(latents, tuple(ran.take()))


@functools.cache
def dense(pipeline: str) -> Drawn:
    return drawn(runner(pipeline=pipeline), pipeline)


def under(name: str, options: dict[str, Any], pipeline: str) -> tuple[Drawn, DiffusionModelRunner]:
    register()
    made = runner(name, options, pipeline)
    return drawn(made, pipeline), made


EAGER: dict[str, dict[str, Any]] = {
    "dcb:cache_dit": {"residual_diff_threshold": 0.8},
    "dcb:tea_cache": {"rel_l1_thresh": 0.3, "coefficients": "identity"},
    "dbprune": {"residual_diff_threshold": 0.5},
    "easy_cache": {"threshold": 0.5},
}


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("pipeline", [QWEN, FLUX])
def test_each_backend_skips_in_the_real_runner_and_stays_near_the_dense_picture(
    pipeline: str, name: str
) -> None:
    found, made = under(name, EAGER[name], pipeline)
    whole = dense(pipeline)
    assert isinstance(made.cache_backend, HostedBackend)
    assert len(found.blocks) < 0.8 * len(whole.blocks)
    assert 0 < found.off(whole) < 0.1
    summary = made.cache_backend.summary()
    assert summary.blocks_run == len(found.blocks)
    assert summary.blocks_run + summary.blocks_skipped == len(whole.blocks)
    assert [row.total for row in summary.rows] == [STEPS] * len(summary.rows)


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("pipeline", [QWEN, FLUX])
def test_a_threshold_of_nothing_changes_no_bit(pipeline: str, name: str) -> None:
    never = {"rel_l1_thresh": 0.0, "coefficients": "identity"} if name == "dcb:tea_cache" else None
    options = never or dict.fromkeys(EAGER[name], 0.0)
    found, _ = under(name, options, pipeline)
    assert torch.equal(found.latents, dense(pipeline).latents)
    assert found.blocks == dense(pipeline).blocks


CACHE_DIT: dict[str, dict[str, Any]] = {
    "plain": {"residual_diff_threshold": 0.8},
    "careful": {"residual_diff_threshold": 0.5, "max_warmup_steps": 8, "max_continuous_cached_steps": 2},
    "taylorseer": {"residual_diff_threshold": 0.8, "enable_taylorseer": True},
    "mask": {"residual_diff_threshold": 0.8, "scm_steps_mask_policy": "fast"},
    "back": {"residual_diff_threshold": 0.8, "Bn_compute_blocks": 1},
}


@pytest.mark.parametrize("case", CACHE_DIT)
def test_cache_dit_runs_the_blocks_that_vllm_omnis_own_runs(case: str) -> None:
    """On Qwen-Image with guidance by two forwards, under the very configuration."""
    own, made = under("cache_dit", CACHE_DIT[case], QWEN)
    assert not isinstance(made.cache_backend, HostedBackend)
    found, _ = under("dcb:cache_dit", CACHE_DIT[case], QWEN)
    assert len(own.blocks) < len(dense(QWEN).blocks)
    assert found.blocks == own.blocks
    assert torch.allclose(found.latents, own.latents, atol=1e-4)


def test_on_flux_cache_dit_holds_the_two_lists_for_one_stack_and_does_about_as_well() -> None:
    """vLLM-Omni's own compares after the first block of each list; ours once for both, and runs one block less."""
    own, _ = under("cache_dit", CACHE_DIT["plain"], FLUX)
    found, _ = under("dcb:cache_dit", CACHE_DIT["plain"], FLUX)
    whole = dense(FLUX)
    assert len(found.blocks) <= len(own.blocks) < len(whole.blocks)
    assert found.off(whole) < 1.5 * own.off(whole)


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.5])
@pytest.mark.parametrize("pipeline", [QWEN, FLUX])
def test_tea_cache_gives_the_picture_of_vllm_omnis_own(pipeline: str, threshold: float) -> None:
    options = {"rel_l1_thresh": threshold, "coefficients": PLAIN}
    own, made = under("tea_cache", options, pipeline)
    assert not isinstance(made.cache_backend, HostedBackend)
    found, _ = under("dcb:tea_cache", options, pipeline)
    assert found.blocks == own.blocks
    assert torch.allclose(found.latents, own.latents, atol=1e-5)
    assert len(found.blocks) < len(dense(pipeline).blocks) or threshold == 0.2
