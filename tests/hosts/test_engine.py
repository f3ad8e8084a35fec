"""Several requests on one pipeline, a step of each in turn: each as if it were alone."""

from __future__ import annotations

import copy
import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dit_cache_backends import enable_cache
from dit_cache_backends.errors import (
    AlreadyEnabledError,
    CancelledGeneration,
    ConfigError,
    EngineClosedError,
    QueueFullError,
    UnknownBackendError,
)
from dit_cache_backends.hosts.engine import Engine, Generation, OmniDiffusionSamplingParams
from dit_cache_conformance.state import differences, state_of
from dit_cache_conformance.tiny import Tiny, build
from dit_cache_conformance.tiny.more_pipelines import ALL_PIPELINES

from .engine_runs import (
    EAGER,
    PRUNE,
    Case,
    Hold,
    alone,
    by_default,
    hand_in,
    held,
    latents,
    request,
    with_callback,
)

FLUX = [
    Case(8, 1, "cache_dit", EAGER),
    Case(5, 2, None, None, {"height": 32}),
    Case(7, 3, "dbprune", PRUNE),
    Case(9, 4, "cache_dit", EAGER, {"width": 96}),
    Case(6, 5, "cache_dit", {**EAGER, "enable_taylorseer": True}),
]
GUIDED = [
    Case(6, 1, "cache_dit", EAGER),
    Case(4, 2, None, None, {"height": 32}),
    Case(7, 3, "dbprune", PRUNE),
    Case(6, 4, "cache_dit", EAGER, {"width": 96}),
]


def watched(engine: Engine, name: str, cases: list[Case]) -> tuple[list[Generation], list[int]]:
    """Every case in the engine, of which the first is held until all are in; and who made each step, in order."""
    order: list[int] = []
    first, hold = held(engine, name, cases[0])
    first.add_step_listener(lambda event: order.append(0))
    generations = [first]
    for number, case in enumerate(cases[1:], 1):
        generation = hand_in(engine, name, case)
        generation.add_step_listener(lambda event, number=number: order.append(number))
        generations.append(generation)
    hold.let_go()
    return generations, order


@pytest.mark.parametrize(("name", "cases"), [("flux", FLUX), ("qwen_image", GUIDED), ("wan22", GUIDED)])
def test_interleaved_requests_draw_what_each_draws_alone(name: str, cases: list[Case]) -> None:
    expected = [alone(name, case) for case in cases]
    with Engine(build(name).pipe, max_concurrent=len(cases)) as engine:
        generations, order = watched(engine, name, cases)
        outputs = [generation.result(60) for generation in generations]
    for output, latent in zip(outputs, expected, strict=True):
        assert torch.equal(latents(output).reshape(-1), latent.reshape(-1))
    assert any(later != earlier for earlier, later in pairwise(order))
    assert order.index(1) < len(order) - 1 - order[::-1].index(0)
    for case, output, generation in zip(cases, outputs, generations, strict=True):
        events = list(generation.steps())
        assert [event.index for event in events] == list(range(case.steps))
        assert {event.total for event in events} == {case.steps}
        skipped = 0 if output.cache_summary is None else output.cache_summary.blocks_skipped
        assert sum(event.blocks_skipped for event in events) == skipped
        assert (skipped > 0) == (case.backend is not None)


def test_between_two_steps_of_one_request_each_other_has_exactly_one() -> None:
    cases = [Case(9, seed, "cache_dit", EAGER) for seed in range(3)] + [Case(9, 3)]
    with Engine(build("flux").pipe) as engine:
        generations, order = watched(engine, "flux", cases)
        for generation in generations:
            generation.result(60)
    for one in range(4):
        for other in range(4):
            places = [place for place, who in enumerate(order) if who == other]
            mine = [place for place, who in enumerate(order) if who == one]
            for earlier, later in pairwise(mine):
                between = sum(earlier < place < later for place in places)
                begun, over = places[0] < earlier, places[-1] < later
                assert other == one or between == 1 or not begun or over


def test_a_step_with_two_schedulers_is_one_step() -> None:
    spec = ALL_PIPELINES["ltx2"]  # for the sound it steps a copy of its scheduler
    expected = Tiny(spec).run(4, 1)
    arguments = spec.arguments(1)
    prompt = {key: arguments.pop(key) for key in ("prompt_embeds", "negative_prompt_embeds")}
    with Engine(Tiny(spec).pipe) as engine:
        params = OmniDiffusionSamplingParams(num_inference_steps=4, seed=1, extra_args=arguments)
        generation = engine.submit(prompt, params)
        found = latents(generation.result(60))
        other = engine.submit(prompt, params)
        assert torch.equal(latents(other.result(60)), found)
    assert torch.equal(found.reshape(-1), expected.reshape(-1))
    assert [(event.index, event.total) for event in generation.steps()] == [(step, 4) for step in range(4)]


class Copying:
    """A pipeline that steps copies of its scheduler only, as those of diffusion forcing do."""

    def __init__(self) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def __call__(self, prompt: str, num_inference_steps: int = 4) -> Any:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        latent = torch.ones(1, 4)
        for time in scheduler.timesteps:
            latent = scheduler.step(0.1 * latent, time, latent).prev_sample
        return SimpleNamespace(images=latent)


def test_a_step_of_a_copied_scheduler_is_a_step_too() -> None:
    expected = Copying()("a", 5).images
    with Engine(Copying()) as engine:
        generation = engine.submit("a", OmniDiffusionSamplingParams(num_inference_steps=5))
        assert torch.equal(latents(generation.result(60)), expected)
        assert [event.index for event in generation.steps()] == list(range(5))


def test_only_the_steps_of_a_picture_to_picture_run_count() -> None:
    spec = ALL_PIPELINES["sd3_picture"]
    expected = Tiny(spec).run(6, 1)
    arguments = spec.arguments(1)
    prompt = {key: arguments.pop(key) for key in ("prompt_embeds", "negative_prompt_embeds")}
    with Engine(Tiny(spec).pipe) as engine:
        params = OmniDiffusionSamplingParams(num_inference_steps=6, seed=1, extra_args=arguments)
        both = [engine.submit(prompt, params), engine.submit(prompt, params)]
        for generation in both:
            assert torch.equal(latents(generation.result(60)).reshape(-1), expected.reshape(-1))
            assert [(event.index, event.total) for event in generation.steps()] == [(0, 3), (1, 3), (2, 3)]


def test_a_request_joins_while_another_is_under_way_and_leaves_before_it() -> None:
    long, short = Case(12, 1, "cache_dit", EAGER), Case(3, 2, "dbprune", PRUNE)
    with Engine(build("flux").pipe) as engine:
        first, hold = held(engine, "flux", long, step=2)
        second = hand_in(engine, "flux", short)
        ended: list[str] = []
        for generation in (first, second):
            generation.add_step_listener(
                lambda event, name=generation.request_id: (
                    ended.append(name) if event.index + 1 == event.total else None
                )
            )
        hold.let_go()
        outputs = [first.result(60), second.result(60)]
    assert ended == [second.request_id, first.request_id]
    assert torch.equal(latents(outputs[0]), alone("flux", long))
    assert torch.equal(latents(outputs[1]), alone("flux", short))


def test_threads_may_hand_in_at_once() -> None:
    cases = [
        Case(4 + number % 3, number, *[("cache_dit", EAGER), (None, None)][number % 2])
        for number in range(12)
    ]
    expected = [alone("flux", case) for case in cases]
    found: dict[int, Any] = {}
    with Engine(build("flux").pipe, max_concurrent=3) as engine:

        def work(number: int) -> None:
            found[number] = hand_in(engine, "flux", cases[number]).result(60)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = engine.stats()
    assert all(torch.equal(latents(found[number]), latent) for number, latent in enumerate(expected))
    assert (stats.finished, stats.running, stats.waiting, stats.sessions, stats.tensors) == (12, 0, 0, 0, 0)


def test_requests_wait_in_order_and_only_as_many_as_may() -> None:
    case = Case(2, 1)
    with Engine(build("flux").pipe, max_concurrent=1, max_waiting=2) as engine:
        first, hold = held(engine, "flux", case)
        begun: list[str] = []
        waiting = [hand_in(engine, "flux", case, request_id=name) for name in ("b", "c")]
        for generation in waiting:
            generation.add_step_listener(lambda event, name=generation.request_id: begun.append(name))
        assert [generation.state for generation in (first, *waiting)] == ["running", "waiting", "waiting"]
        assert (engine.stats().running, engine.stats().waiting) == (1, 2)
        with pytest.raises(QueueFullError, match="max_waiting=2"):
            hand_in(engine, "flux", case)
        with pytest.raises(ConfigError, match="'b' is under way"):
            hand_in(engine, "flux", case, request_id="b")
        hold.let_go()
        for generation in (first, *waiting):
            generation.result(60)
        assert begun == ["b", "b", "c", "c"]
        assert hand_in(engine, "flux", case, request_id="b").result(60).request_id == "b"


def test_a_request_without_a_seed_gets_its_own_numbers_and_torchs_are_left_alone() -> None:
    prompt, params = request("flux", Case(2, 0))
    params.seed = None
    state = torch.get_rng_state()
    with Engine(build("flux").pipe) as engine:
        one, other = [engine.submit(prompt, params) for _ in range(2)]
        assert not torch.equal(latents(one.result(60)), latents(other.result(60)))
    assert torch.equal(torch.get_rng_state(), state)


def test_two_requests_cannot_draw_from_one_generator() -> None:
    prompt, params = request("flux", Case(2, 0))
    params.seed, params.generator = None, torch.Generator().manual_seed(0)
    with Engine(build("flux").pipe) as engine:
        first, hold = held(engine, "flux", Case(2, 0))
        second = engine.submit(prompt, params)
        with pytest.raises(ConfigError, match="used by the request"):
            engine.submit(prompt, params)
        hold.let_go()
        assert torch.equal(latents(second.result(60)), latents(first.result(60)))


class Bare:
    """A pipeline that looks at what torch keeps for each thread."""

    def __call__(self, prompt: str) -> Any:
        class Result:
            images = (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
            )

        return Result()


def test_a_run_has_the_grad_mode_and_autocast_of_whoever_handed_it_in() -> None:
    with Engine(Bare()) as engine:
        assert engine.submit("a").result(60).images == [True, False, False]
        with torch.no_grad():
            assert engine.submit("a").result(60).images == [False, False, False]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert engine.submit("a").result(60).images == [False, True, True]
        assert torch.is_grad_enabled()


# What is refused, and whom it concerns


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"cache_backend": "cache_dot"}, UnknownBackendError, "cache_dit"),
        ({"cache_config": {"residual_dif_threshold": 1}}, ConfigError, "residual_diff_threshold"),
        (
            {"cache_backend": "dbprune", "cache_config": {"max_warmup_steps": "x"}},
            ConfigError,
            "max_warmup_steps",
        ),
        ({"cache_config": {"Fn_compute_blocks": 99}}, ConfigError, "12 blocks"),
        ({"cache_config": {"overrides": {"transformer_9": {}}}}, ConfigError, "transformer_9"),
        ({"request_id": ""}, ConfigError, "request_id"),
    ],
)
def test_what_does_not_fit_refuses_that_request_alone(settings: Any, error: type, words: str) -> None:
    case = Case(6, 1, "cache_dit", EAGER)
    prompt, params = request("flux", case)
    with Engine(build("flux").pipe, "cache_dit", EAGER) as engine:
        first, hold = held(engine, "flux", case)
        with pytest.raises(error, match=words):
            engine.submit(prompt, params, **settings)
        assert engine.stats().waiting == 0
        hold.let_go()
        assert torch.equal(latents(first.result(60)), alone("flux", case))


def test_bounds_are_whole_numbers_that_make_sense() -> None:
    pipe = build("flux").pipe
    for name, value in {"max_concurrent": 0, "max_waiting": -1, "max_batch": 1.5}.items():
        with pytest.raises(ConfigError, match=name):
            Engine(pipe, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("early", [True, False])
def test_a_cache_that_the_engine_does_not_know_is_refused(early: bool) -> None:
    pipe = build("flux").pipe
    if early:
        with enable_cache(pipe, "cache_dit"), pytest.raises(AlreadyEnabledError, match="as cache_backend"):
            Engine(pipe)
    with Engine(pipe) as engine:
        with enable_cache(pipe, "cache_dit"), pytest.raises(AlreadyEnabledError):
            hand_in(engine, "flux", Case(3, 1)).result(60)
        found = hand_in(engine, "flux", Case(3, 1)).result(60)
    assert torch.equal(latents(found), alone("flux", Case(3, 1)))


# Whose cache


def test_a_request_says_its_own_cache_over_the_engines() -> None:
    plain, eager = Case(6, 1), Case(6, 1, "cache_dit", EAGER)
    prompt, params = request("flux", plain)
    with Engine(build("flux").pipe, "cache_dit", EAGER) as engine:
        default = by_default(engine, "flux", plain).result(60)
        off = engine.submit(prompt, params, cache_backend="none").result(60)
        longer = engine.submit(prompt, params, cache_config={"max_warmup_steps": 4}).result(60)
        assert engine.submit(prompt, params, cache_backend=None).result(60).cache_summary is None
        # Also between requests, and behind one without a cache, nobody else's cache fits in.
        with pytest.raises(AlreadyEnabledError):
            enable_cache(engine.pipeline, "dbprune")
    assert torch.equal(latents(default), alone("flux", eager))
    assert torch.equal(latents(off), alone("flux", plain))
    assert off.cache_summary is None
    # The rest of its options are the engine's: at the default threshold nothing of this would be skipped.
    assert longer.cache_summary.cached_steps() == [4, 5]


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_a_step_tells_which_blocks_were_skipped_through_stacks_and_branches(name: str) -> None:
    case = Case(6, 1, "cache_dit", EAGER)
    with Engine(build(name).pipe) as engine:
        generation = hand_in(engine, name, case)
        summary = generation.result(60).cache_summary
        for event in generation.steps():
            rows = [row for row in summary.rows if row.step == event.index]
            depths = [row.blocks_run + row.blocks_skipped for row in rows]
            expected = [sum(depths[:at]) + n for at, row in enumerate(rows) for n in row.skipped]
            assert list(event.skipped) == expected
            assert len(expected) == event.blocks_skipped
            # The first block of each branch runs, all others of a cached step are skipped.
            assert not expected or len(expected) == sum(depths) - len({row.branch for row in rows})
    assert summary.blocks_skipped > 0


def test_sampling_parameters_may_say_it_too_and_the_call_says_it_over_them() -> None:
    prompt, params = request("flux", Case(6, 1))
    params.cache_backend, params.cache_config = "cache_dit", EAGER
    with Engine(build("flux").pipe) as engine:
        assert engine.submit(prompt, params).result(60).cache_summary.cached_steps() == [2, 3, 4]
        assert engine.submit(prompt, params, cache_backend=None).result(60).cache_summary is None
        own = engine.submit(prompt, params, cache_config={**EAGER, "max_warmup_steps": 3})
        assert own.result(60).cache_summary.cached_steps() == [3, 4, 5]
        without = OmniDiffusionSamplingParams(num_inference_steps=6, seed=1, extra_args=params.extra_args)
        with pytest.raises(ConfigError, match="cache_backend"):
            engine.submit(prompt, without, cache_config=EAGER)


def test_many_different_settings_do_not_pile_up() -> None:
    tiny = build("flux")
    tiny.run(1)  # diffusers' own cache_context leaves an attribute on the model
    before = state_of(tiny.pipe.transformer)
    expected = alone("flux", Case(3, 1, "cache_dit", EAGER))
    with Engine(tiny.pipe) as engine:
        for number in range(20):
            case = Case(3, 1, "cache_dit", {**EAGER, "residual_diff_threshold": 10.0 + number})
            assert torch.equal(latents(hand_in(engine, "flux", case).result(60)), expected)
            assert len(engine._caches._served) <= 10
        assert engine.stats().tensors == 0
    assert not differences(before, state_of(tiny.pipe.transformer))


# The pipeline's life


@pytest.mark.parametrize("name", ["flux", "wan22"])
def test_closing_cancels_everything_and_leaves_the_pipeline_as_it_was(name: str) -> None:
    tiny = build(name)
    plain = tiny.run(4)
    states = {key: state_of(module) for key, module in tiny.transformers.items()}
    own = {key: id(value) for key, value in vars(tiny.pipe).items()}
    scheduler = dict(vars(tiny.pipe.scheduler))
    config = dict(tiny.pipe.config)
    engine = Engine(tiny.pipe, "cache_dit", EAGER, max_concurrent=2)
    first, hold = held(engine, name, Case(9, 1, "cache_dit", EAGER), step=3)
    others = [hand_in(engine, name, case) for case in (Case(9, 2), Case(9, 3, "dbprune", PRUNE))]
    closing = threading.Thread(target=engine.close)
    closing.start()
    for other in others:
        with pytest.raises(CancelledGeneration):
            other.result(60)
    hold.let_go()
    closing.join()
    assert [each.state for each in (first, *others)] == ["cancelled"] * 3
    with pytest.raises(EngineClosedError):
        hand_in(engine, name, Case(2, 1))
    engine.close()
    for key, module in tiny.transformers.items():
        assert not differences(states[key], state_of(module))
    assert {key: id(value) for key, value in vars(tiny.pipe).items()} == own
    assert vars(tiny.pipe.scheduler) == scheduler
    assert dict(tiny.pipe.config) == config
    assert torch.equal(tiny.run(4), plain)


def test_closing_can_wait_for_what_was_handed_in() -> None:
    engine = Engine(build("flux").pipe, max_concurrent=1)
    first, hold = held(engine, "flux", Case(4, 1))
    second = hand_in(engine, "flux", Case(3, 2))
    closing = threading.Thread(target=engine.close, kwargs={"drain": True})
    closing.start()
    hold.let_go()
    closing.join()
    assert torch.equal(latents(first.result(0)), alone("flux", Case(4, 1)))
    assert torch.equal(latents(second.result(0)), alone("flux", Case(3, 2)))


def test_a_step_listener_cannot_close_the_engine_it_runs_in() -> None:
    caught: list[BaseException] = []
    prompt, params = request("flux", Case(3, 1))
    with Engine(build("flux").pipe) as engine:

        def close(step: int) -> None:
            with pytest.raises(RuntimeError, match="another thread") as error:
                engine.close()
            caught.append(error.value)

        engine.submit(prompt, with_callback(params, close)).result(60)
    assert len(caught) == 3


def test_waiting_for_a_result_may_end_before_it() -> None:
    with Engine(build("flux").pipe) as engine:
        first, hold = held(engine, "flux", Case(3, 1))
        with pytest.raises(TimeoutError, match="running"):
            first.result(0)
        hold.let_go()
        assert first.result(60).finished
        assert isinstance(hold, Hold)
