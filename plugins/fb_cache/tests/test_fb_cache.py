"""Decisions as the rule has them, worked out again in numpy from the plain model; and as diffusers' own has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from dit_cache_fb_cache import FirstBlockCache
from torch import Tensor, nn

from dit_cache_backends import ConfigError, SpanBackend
from dit_cache_conformance.counting import block_lists, counted
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

STEPS = 12
DRIFT = 8.0
"""Tiny models change little from step to step; so far do their latents drift here."""
MODELS = ("flux", "flux_controlled", "qwen_image", "sd3", "wan", "cogvideox", "dit", "ltx_video", "mochi")
IN_DIFFUSERS = ("flux", "wan", "qwen_image", "ltx_video", "mochi", "cogvideox")


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(name: str, still: bool = False, batch: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """A run whose latents drift unevenly, so that some steps are alike and others are not."""
    run = []
    for step in range(STEPS):
        arguments = transformer_inputs(name, seed=seed, step=0 if still else step, total=STEPS, batch=batch)
        first, drift = (
            transformer_inputs(name, seed=seed, step=at, total=STEPS, batch=batch)["hidden_states"]
            for at in (0, 1)
        )
        if not still:
            arguments["hidden_states"] = first + DRIFT * np.sin(0.9 * step) * (drift - first)
        run.append(arguments)
    return run


def run(
    model: nn.Module, backend: SpanBackend | None, calls: Sequence[dict[str, Any]]
) -> tuple[list[Tensor], list[int]]:
    """What comes out at each step, and how many blocks ran, counted from outside."""
    outputs = []
    if backend is not None:
        backend.enable(model)
    with counted({"model": model}) as counter:
        for index, arguments in enumerate(calls):
            if backend is None:
                outputs.append(model(**arguments)[0])
            else:
                with backend.step(index, len(calls), "cond"):
                    outputs.append(model(**arguments)[0])
    if backend is not None:
        backend.disable()
    return outputs, [len(call.blocks) for call in counter.calls]


def added_by_the_first_block(model: nn.Module, calls: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """The denoised stream where it enters the second block, less that where it enters the first, on the plain model.

    A ControlNet residual that the model adds between the two is part of it.
    """
    seen: list[Tensor] = []

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(kwargs.get("hidden_states", args[0] if args else None))

    blocks = next(iter(block_lists(model).values()))[:2]
    hooks = [block.register_forward_pre_hook(entered, with_kwargs=True) for block in blocks]
    for arguments in calls:
        model(**arguments)
    for hook in hooks:
        hook.remove()
    return [(after - before).double().numpy() for before, after in zip(seen[::2], seen[1::2], strict=True)]


def reference(
    added: Sequence[np.ndarray], threshold: float, batch: str = "mean"
) -> tuple[list[int], list[float]]:
    """The steps at which the blocks behind the first are skipped, and every difference that was taken."""
    skipped, taken = [], []
    kept: np.ndarray | None = None
    for step, now in enumerate(added):
        if kept is not None:
            axes = tuple(range(1, now.ndim)) if batch == "all" else None
            difference = float(np.max(np.abs(now - kept).sum(axes) / np.abs(kept).sum(axes)))
            taken.append(difference)
            if difference <= threshold:
                skipped.append(step)
                continue
        kept = now
    return skipped, taken


def mixing(added: Sequence[np.ndarray], batch: str = "mean") -> float:
    """A threshold at which some steps are skipped and some are not, off every difference."""
    candidates = sorted(reference(added, 0.0, batch)[1])
    for share in (0.5, 0.6, 0.4, 0.75, 0.3):
        at = int(share * len(candidates))
        threshold = (candidates[at - 1] + candidates[at]) / 2
        if 1 < len(reference(added, threshold, batch)[0]) < STEPS - 2:
            return float(threshold)
    raise AssertionError(f"no threshold mixes: {candidates}")


@pytest.mark.parametrize("name", MODELS)
def test_decisions_are_those_of_the_formula(name: str) -> None:
    calls = inputs(name)
    added = added_by_the_first_block(build_transformer(name), calls)
    threshold = mixing(added)
    skipped, _ = reference(added, threshold)
    model = build_transformer(name)
    _, full = run(model, None, calls)
    _, ran = run(model, FirstBlockCache({"threshold": threshold}), calls)
    assert ran == [1 if step in skipped else count for step, count in enumerate(full)]


@pytest.mark.parametrize("decision", ["mean", "all"])
def test_a_batch_is_decided_by_its_mean_or_by_its_worst_sample(decision: str) -> None:
    calls = inputs("wan", batch=3)
    added = added_by_the_first_block(build_transformer("wan"), calls)
    threshold = mixing(added, decision)
    skipped, _ = reference(added, threshold, decision)
    options = {"threshold": threshold, "batch_decision": decision}
    _, ran = run(build_transformer("wan"), FirstBlockCache(options), calls)
    assert [step for step, count in enumerate(ran) if count == 1] == skipped


@pytest.mark.parametrize("name", MODELS)
def test_threshold_0_changes_no_bit_not_even_on_a_still_input(name: str) -> None:
    for calls in (inputs(name), inputs(name, still=True)):
        dense, full = run(build_transformer(name), None, calls)
        cached, ran = run(build_transformer(name), FirstBlockCache({"threshold": 0}), calls)
        assert ran == full
        assert all(torch.equal(one, other) for one, other in zip(cached, dense, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_still_input_is_skipped_and_reproduced(name: str) -> None:
    calls = inputs(name, still=True)
    dense, _ = run(build_transformer(name), None, calls)
    cached, ran = run(build_transformer(name), FirstBlockCache(), calls)
    assert ran[1:] == [1] * (STEPS - 1)
    for one, other in zip(cached, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def test_warm_up_and_the_limit_on_skips_in_a_row_hold_whatever_the_difference() -> None:
    options = {"threshold": 1e9, "max_warmup_steps": 3, "max_continuous_cached_steps": 2}
    _, ran = run(build_transformer("wan"), FirstBlockCache(options), inputs("wan"))
    assert "".join("s" if count == 1 else "r" for count in ran) == "rrrssrssrssr"


def test_branches_are_compared_each_with_itself() -> None:
    """Two branches with different prompts, in turns: each decides and adds as if it were alone."""
    runs = {branch: inputs("qwen_image", seed=seed) for branch, seed in (("cond", 0), ("uncond", 5))}
    added = [added_by_the_first_block(build_transformer("qwen_image"), calls) for calls in runs.values()]
    threshold = mixing(added[0])
    model = build_transformer("qwen_image")
    backend = FirstBlockCache({"threshold": threshold})
    backend.enable(model)
    together: dict[str, list[Tensor]] = {branch: [] for branch in runs}
    for step in range(STEPS):
        for branch, calls in runs.items():
            with backend.step(step, STEPS, branch):
                together[branch].append(model(**calls[step])[0])
    backend.disable()
    for (branch, calls), each in zip(runs.items(), added, strict=True):
        assert backend.summary().cached_steps(branch=branch) == reference(each, threshold)[0]
        alone, _ = run(build_transformer("qwen_image"), FirstBlockCache({"threshold": threshold}), calls)
        assert all(torch.equal(one, other) for one, other in zip(together[branch], alone, strict=True))


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_it_gives_the_very_tensors_of_diffusers_own_first_block_cache(name: str) -> None:
    from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, apply_first_block_cache

    calls = inputs(name)
    threshold = mixing(added_by_the_first_block(build_transformer(name), calls))
    ours, ran = run(build_transformer(name), FirstBlockCache({"threshold": threshold}), calls)
    assert 1 in ran
    assert max(ran[1:]) > 1
    model: Any = build_transformer(name)
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=threshold))
    HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()
    theirs = []
    for arguments in calls:
        with model.cache_context("cond"):
            theirs.append(model(**arguments)[0])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("pipeline", ["flux", "wan22", "sd3"])
def test_it_runs_in_a_pipeline(pipeline: str) -> None:
    tiny = build(pipeline)
    dense = tiny.run(num_inference_steps=8)
    with FirstBlockCache({"threshold": 0.5}) as backend:
        backend.enable(tiny.pipe)
        cached = tiny.run(num_inference_steps=8)
        assert backend.summary().blocks_skipped > 0
    assert torch.isfinite(cached).all()
    assert not torch.equal(cached, dense)


def test_what_is_wrong_in_the_options_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'treshold'.*threshold"):
        FirstBlockCache({"treshold": 0.1})
