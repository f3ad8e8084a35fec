"""Requests that share one call of the pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import enable_cache
from dit_cache_backends.backend import Capabilities
from dit_cache_backends.hosts.batching import fit_together
from dit_cache_backends.hosts.engine import Engine, Generation
from dit_cache_backends.strategies.cache_dit import CacheDiT
from dit_cache_conformance.counting import counted
from dit_cache_conformance.tiny import build
from dit_cache_conformance.tiny.configs import TEXT_DIM, TEXT_TOKENS
from dit_cache_conformance.tiny.weights import noise

from .engine_runs import EAGER, Case, alone, hand_in, held, latents, request

MEASURED = {"residual_diff_threshold": 0.35, "max_warmup_steps": 1}
NEAR = 1e-5
"""How far a batched picture may be off alone, without a cache: float32 sums in another order."""


def texts(seed: int) -> dict[str, Tensor]:
    return {"prompt_embeds": noise(1, TEXT_TOKENS, TEXT_DIM, seed=seed)}


def together(engine: Engine, name: str, cases: list[Case], **settings: Any) -> list[Generation]:
    """The cases, handed in while another request keeps the only place, so that they wait together."""
    first, hold = held(engine, name, Case(2, 99))
    generations = []
    for case in cases:
        prompt, params = request(name, case)
        generations.append(
            engine.submit(prompt, params, cache_backend=case.backend, cache_config=case.config, **settings)
        )
    hold.let_go()
    first.result(60)
    return generations


def batched_by_hand(name: str, cases: list[Case]) -> Tensor:
    """The pipeline called once, with all prompts and a generator for each."""
    tiny = build(name)
    arguments = tiny.spec.arguments(1)
    for key, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[key] = torch.cat([case.more.get(key, value) for case in cases])
    generators = [torch.Generator().manual_seed(case.seed) for case in cases]
    call = {**arguments, "generator": generators, "num_inference_steps": cases[0].steps, "return_dict": False}
    if cases[0].backend is None:
        return tiny.pipe(**call)[0]
    with enable_cache(tiny.pipe, cases[0].backend, **(cases[0].config or {})):
        return tiny.pipe(**call)[0]


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_batched_without_a_cache_each_picture_is_that_of_the_request_alone_up_to_rounding(name: str) -> None:
    cases = [Case(4, seed, None, None, texts(seed)) for seed in range(3)]
    tiny = build(name)
    with Engine(tiny.pipe, max_concurrent=1, max_batch=4) as engine, counted(tiny.transformers) as counter:
        outputs = [generation.result(60) for generation in together(engine, name, cases)]
    calls = (2 + 4) * len(tiny.spec.branches)
    assert len(counter.calls) == calls
    for case, output in zip(cases, outputs, strict=True):
        expected = alone(name, case)
        assert latents(output).shape == expected.shape
        assert (latents(output) - expected).abs().max() <= NEAR * expected.abs().max()


@pytest.mark.parametrize("config", [EAGER, MEASURED])
def test_a_cache_decides_for_the_batch_as_it_does_when_the_pipeline_is_called_with_it(
    config: dict[str, Any],
) -> None:
    cases = [Case(8, seed, "cache_dit", config, texts(seed)) for seed in range(3)]
    expected = batched_by_hand("flux", cases)
    with Engine(build("flux").pipe, max_concurrent=1, max_batch=3) as engine:
        generations = together(engine, "flux", cases)
        outputs = [generation.result(60) for generation in generations]
        assert engine.stats().tensors == 0
    for number, output in enumerate(outputs):
        assert torch.equal(latents(output)[0], expected[number])
        # One decision a step for all of them.
        assert [row.step for row in output.cache_summary.rows] == list(range(8))
        assert output.cache_summary.blocks_skipped > 0
    assert len({tuple(event.blocks_skipped for event in each.steps()) for each in generations}) == 1


def test_where_decisions_do_not_depend_on_the_sample_a_batch_gives_what_each_gives_alone() -> None:
    cases = [Case(8, seed, "cache_dit", EAGER, texts(seed)) for seed in range(2)]
    with Engine(build("flux").pipe, max_concurrent=1, max_batch=2) as engine:
        outputs = [generation.result(60) for generation in together(engine, "flux", cases)]
    for case, output in zip(cases, outputs, strict=True):
        expected = alone("flux", case)
        assert (latents(output) - expected).abs().max() <= NEAR * expected.abs().max()


def test_requests_that_differ_in_more_than_the_prompt_run_by_themselves() -> None:
    cases = [
        Case(4, 1),
        Case(5, 2),
        Case(4, 3, "cache_dit", EAGER),
        Case(4, 4, None, None, {"height": 32}),
        Case(4, 5),
    ]
    tiny = build("flux")
    with Engine(tiny.pipe, max_concurrent=1, max_batch=8) as engine, counted(tiny.transformers) as counter:
        outputs = [generation.result(60) for generation in together(engine, "flux", cases)]
    # The first and the last go together.
    assert len(counter.calls) == 2 + 4 + 5 + 4 + 4
    for case, output in zip(cases[1:4], outputs[1:4], strict=True):
        assert torch.equal(latents(output), alone("flux", case))


def test_a_batch_holds_no_more_requests_than_it_may() -> None:
    tiny = build("flux")
    cases = [Case(3, seed) for seed in range(5)]
    with Engine(tiny.pipe, max_concurrent=1, max_batch=2) as engine, counted(tiny.transformers) as counter:
        for generation in together(engine, "flux", cases):
            generation.result(60)
    assert len(counter.calls) == 2 + 3 * 3


def test_whoever_makes_a_batch_fail_fails_alone() -> None:
    cases = [Case(4, seed, None, None, texts(seed)) for seed in range(3)]
    cases[1].more["prompt_embeds"][...] = float("nan")

    def refuse(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not tensors["latents"].isfinite().all():
            raise ArithmeticError("not finite")
        return tensors

    for case in cases:
        case.more["callback_on_step_end"] = refuse
    with Engine(build("flux").pipe, max_concurrent=1, max_batch=3) as engine:
        first, second, third = together(engine, "flux", cases)
        with pytest.raises(ArithmeticError, match="not finite"):
            second.result(60)
        assert torch.equal(latents(first.result(60)), alone("flux", cases[0]))
        assert torch.equal(latents(third.result(60)), alone("flux", cases[2]))
        assert [len(list(each.steps())) for each in (first, third)] == [4, 4]
        stats = engine.stats()
    assert (stats.failed, stats.finished, stats.waiting, stats.sessions) == (1, 3, 0, 0)


def test_one_of_a_batch_is_cancelled_and_the_others_go_on() -> None:
    cases = [Case(5, seed, None, None, texts(seed)) for seed in range(3)]
    with Engine(build("flux").pipe, max_concurrent=1, max_batch=3) as engine:
        blocked, hold = held(engine, "flux", Case(2, 99))
        generations = [hand_in(engine, "flux", case) for case in cases]
        generations[0].add_step_listener(lambda event: event.index == 1 and generations[1].cancel())
        hold.let_go()
        blocked.result(60)
        for case, generation in zip(cases, generations, strict=True):
            if generation is not generations[1]:
                expected = alone("flux", case)
                found = latents(generation.result(60))
                assert (found - expected).abs().max() <= NEAR * expected.abs().max()
        assert generations[1].state == "cancelled"
        assert len(list(generations[1].steps())) == 1


def test_what_fits_together() -> None:
    one = torch.Generator(), torch.Generator()
    base = {"prompt": "a", "generator": one[0], "num_inference_steps": 4}
    assert fit_together(base, base | {"prompt": "b", "generator": one[1]})
    for other in (
        {"num_inference_steps": 5},
        {"generator": [one[1]]},
        {"prompt": ["b"]},
        {"sigmas": None},
        {"num_images_per_prompt": 2},
    ):
        assert not fit_together(base, base | other)
    pictures = base | {"image": torch.zeros(1, 3, 4, 4)}
    assert fit_together(pictures, pictures | {"image": torch.zeros(1, 3, 4, 4)})
    assert not fit_together(pictures, pictures | {"image": torch.ones(1, 3, 4, 4)})
    long = base | {"prompt": None, "prompt_embeds": torch.zeros(1, 7, 3)}
    assert fit_together(long, long | {"prompt_embeds": torch.ones(1, 7, 3)})
    assert not fit_together(long, long | {"prompt_embeds": torch.ones(1, 8, 3)})


class Undivided(CacheDiT):
    """A backend that cannot keep requests apart."""

    name = "undivided"
    capabilities = Capabilities(interleaved_requests=False)


def test_a_backend_that_cannot_keep_requests_apart_has_each_from_its_beginning_to_its_end() -> None:
    order: list[str] = []
    cases = [Case(5, seed, "cache_dit", EAGER) for seed in range(2)]
    with Engine(build("flux").pipe, Undivided, EAGER, max_concurrent=4, max_batch=2) as engine:
        blocked, hold = held(engine, "flux", Case(6, 99))
        generations = []
        for case in cases:
            prompt, params = request("flux", case)
            generations.append(engine.submit(prompt, params))
        for generation in (blocked, *generations):
            generation.add_step_listener(lambda event, name=generation.request_id: order.append(name))
        hold.let_go()
        outputs = [generation.result(60) for generation in generations]
        blocked.result(60)
    for case, output in zip(cases, outputs, strict=True):
        assert torch.equal(latents(output), alone("flux", case))
    for generation in generations:
        at = order.index(generation.request_id)
        assert order[at : at + 5] == [generation.request_id] * 5
