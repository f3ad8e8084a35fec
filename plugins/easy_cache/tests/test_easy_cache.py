"""Decisions as the formula has them, worked out again in numpy from what the plain model's blocks take and give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from dit_cache_easy_cache import EasyCache
from torch import Tensor, nn

from dit_cache_backends import ConfigError, SpanBackend, enable_cache
from dit_cache_conformance.counting import block_lists, counted
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

STEPS = 20
MODELS = ("flux", "flux_controlled", "qwen_image", "sd3", "wan", "cogvideox", "dit", "chroma")
Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(name: str, still: bool = False, batch: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """A run whose latents drift unevenly, the samples of a batch each at its own pace."""
    run = []
    for step in range(STEPS):
        arguments = transformer_inputs(name, seed=seed, step=0 if still else step, total=STEPS, batch=batch)
        if not still:
            first, drift = (
                transformer_inputs(name, seed=seed, step=at, total=STEPS, batch=batch)["hidden_states"]
                for at in (0, 1)
            )
            pace = torch.tensor(
                [4 * np.sin(0.8 * step + 2 * sample) for sample in range(batch)], dtype=torch.float32
            )
            shape = (batch,) + (1,) * (first.dim() - 1)
            arguments["hidden_states"] = first + pace.view(shape) * (drift - first)
        run.append(arguments)
    return run


def run(
    model: nn.Module, backend: SpanBackend | None, calls: Sequence[dict[str, Any]]
) -> tuple[list[Tensor], list[int]]:
    """What comes out at each step, and the steps at which no block ran, counted from outside."""
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
    return outputs, [step for step, call in enumerate(counter.calls) if not call.blocks]


def tokens(name: str, calls: Sequence[dict[str, Any]]) -> list[Pair]:
    """The denoised stream where it enters and leaves the blocks at each step of the plain model."""
    model = build_transformer(name)
    lists = list(block_lists(model).values())
    # Chroma's two lists are two stacks; the first of them decides.
    last = (lists[0] if name == "chroma" else lists[-1])[-1]
    seen: list[Tensor] = []

    def entry(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(kwargs.get("hidden_states", args[0] if args else None))

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        outs = [out] if isinstance(out, Tensor) else [each for each in out if each is not None]
        seen.append(next(each for each in outs if each.shape == seen[-1].shape).clone())

    lists[0][0].register_forward_pre_hook(entry, with_kwargs=True)
    last.register_forward_hook(leave, with_kwargs=True)
    run(model, None, calls)
    return [
        (into.double().numpy(), out.double().numpy()) for into, out in zip(seen[::2], seen[1::2], strict=True)
    ]


def size(values: np.ndarray, batch: str) -> np.ndarray:
    return np.abs(values).mean(axis=None if batch == "mean" else tuple(range(1, values.ndim)))


def reference(
    pairs: Sequence[Pair], threshold: float, start: float = 0.15, end: float = 0.95, batch: str = "all"
) -> tuple[list[int], list[float]]:
    """Skipped steps and the sums that were compared; k from the last two computed steps (arXiv 2507.02860, 3.2)."""
    skipped, sums = [], []
    computed: list[int] = []
    rate: Any = None
    total: Any = 0.0
    for step, (entry, _) in enumerate(pairs):
        run = True
        if start * STEPS <= step < end * STEPS and rate is not None:
            total = total + rate * size(entry - pairs[step - 1][0], batch) / size(
                pairs[computed[-1]][1], batch
            )
            sums.append(float(np.max(total)))
            run = not sums[-1] < threshold
        if not run:
            skipped.append(step)
            continue
        total = 0.0
        if computed:
            before = pairs[computed[-1]]
            rate = size(pairs[step][1] - before[1], batch) / size(entry - before[0], batch)
        computed.append(step)
    return skipped, sums


def mixing(pairs: Sequence[Pair], **options: Any) -> float:
    """A threshold at which some steps are skipped and some are not, off every sum that is compared."""
    for factor in (2.0, 3.0, 1.5, 5.0, 1.1):
        threshold = factor * float(np.median(reference(pairs, 0.0, **options)[1]))
        skipped, sums = reference(pairs, threshold, **options)
        if 2 < len(skipped) < STEPS - 5 and min(abs(each / threshold - 1) for each in sums) > 1e-3:
            return threshold
    raise AssertionError("no threshold mixes")


@pytest.mark.parametrize("name", MODELS)
def test_decisions_are_those_of_the_formula(name: str) -> None:
    calls = inputs(name)
    pairs = tokens(name, calls)
    threshold = mixing(pairs)
    backend = EasyCache({"threshold": threshold})
    _, skipped = run(build_transformer(name), backend, calls)
    expected, sums = reference(pairs, threshold)
    assert skipped == expected
    found = [number for row in backend.summary().rows for number in row.differences]
    assert found == pytest.approx(sums, rel=1e-3)


@pytest.mark.parametrize("decision", ["all", "mean"])
def test_every_sample_has_a_rate_of_its_own_unless_the_mean_decides(decision: str) -> None:
    calls = inputs("wan", batch=3)
    pairs = tokens("wan", calls)
    threshold = mixing(pairs, batch=decision)
    _, skipped = run(
        build_transformer("wan"), EasyCache({"threshold": threshold, "batch_decision": decision}), calls
    )
    assert skipped == reference(pairs, threshold, batch=decision)[0]
    other = "mean" if decision == "all" else "all"
    assert skipped != reference(pairs, threshold, batch=other)[0]


def test_a_batch_is_skipped_only_where_each_of_its_samples_would_agree_alone() -> None:
    """One sample stands still and one does not: alone the first is skipped throughout, together the other decides."""
    calls = inputs("wan", batch=2)
    for arguments in calls:
        arguments["hidden_states"][0] = calls[0]["hidden_states"][0]
        arguments["timestep"][0] = calls[0]["timestep"][0]
    pairs = tokens("wan", [{**each, **{k: each[k][1:] for k in LIKE_SAMPLES}} for each in calls])
    threshold = mixing(pairs)
    _, together = run(build_transformer("wan"), EasyCache({"threshold": threshold}), calls)
    assert together == reference(pairs, threshold)[0]


LIKE_SAMPLES = ("hidden_states", "encoder_hidden_states", "timestep")


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.15, 0.95), (0.5, 0.75), (1.0, 1.0)])
def test_steps_are_skipped_only_in_the_part_of_the_run_between(start: float, end: float) -> None:
    options = {"threshold": 1e9, "start_percent": start, "end_percent": end}
    _, skipped = run(build_transformer("wan"), EasyCache(options), inputs("wan"))
    # Two computed steps make a rate.
    assert skipped == list(range(max(2, int(start * STEPS)), int(end * STEPS)))


@pytest.mark.parametrize("name", MODELS)
def test_threshold_0_changes_no_bit_not_even_on_a_still_input(name: str) -> None:
    for still in (False, True):
        calls = inputs(name, still)
        dense, _ = run(build_transformer(name), None, calls)
        cached, skipped = run(build_transformer(name), EasyCache({"threshold": 0}), calls)
        assert not skipped
        assert all(torch.equal(one, other) for one, other in zip(cached, dense, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_still_input_is_skipped_and_reproduced(name: str) -> None:
    calls = inputs(name, still=True)
    dense, _ = run(build_transformer(name), None, calls)
    cached, skipped = run(build_transformer(name), EasyCache(), calls)
    assert skipped
    for one, other in zip(cached, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def test_branches_decide_each_by_its_own_input() -> None:
    runs = {"cond": inputs("qwen_image"), "uncond": inputs("qwen_image", seed=5)}
    threshold = mixing(tokens("qwen_image", runs["cond"]))
    model = build_transformer("qwen_image")
    together: dict[str, list[Tensor]] = {branch: [] for branch in runs}
    with enable_cache(model, EasyCache, threshold=threshold) as backend:
        for step in range(STEPS):
            for branch, calls in runs.items():
                with backend.step(step, STEPS, branch):  # type: ignore[attr-defined]
                    together[branch].append(model(**calls[step])[0])
    for branch, calls in runs.items():
        alone, skipped = run(build_transformer("qwen_image"), EasyCache({"threshold": threshold}), calls)
        assert backend.summary().cached_steps(branch=branch) == skipped
        assert all(torch.equal(one, other) for one, other in zip(together[branch], alone, strict=True))


@pytest.mark.parametrize("pipeline", ["flux", "wan22", "sd3"])
def test_it_runs_in_a_pipeline(pipeline: str) -> None:
    tiny = build(pipeline)
    with EasyCache({"threshold": 1e9}) as backend:
        backend.enable(tiny.pipe)
        cached = tiny.run(num_inference_steps=12)
        assert backend.summary().blocks_skipped > 0
        assert not backend.held_tensors()
    assert torch.isfinite(cached).all()


def test_comfyuis_name_of_the_threshold_is_taken_and_what_is_wrong_is_refused() -> None:
    assert EasyCache({"reuse_threshold": 0.1}).config.threshold == 0.1
    with pytest.raises(ConfigError, match="start_percent: expected a number, at least 0 and at most 1"):
        EasyCache({"start_percent": 15.0})
