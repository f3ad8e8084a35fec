"""Requests that are cancelled or fail: nothing of them stays, and the others do not notice."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch

from dit_cache_backends.errors import CancelledGeneration
from dit_cache_backends.hosts.engine import Engine
from dit_cache_conformance.tiny import build

from .engine_runs import EAGER, PRUNE, Case, alone, hand_in, held, latents, request, to_be_held, with_callback

EAGER_CASE = Case(8, 1, "cache_dit", EAGER)


def alive(references: list[weakref.ref[torch.Tensor]]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


def test_a_waiting_request_is_cancelled_at_once() -> None:
    with Engine(build("flux").pipe, max_concurrent=1) as engine:
        first, hold = held(engine, "flux", EAGER_CASE)
        second, third = hand_in(engine, "flux", EAGER_CASE), hand_in(engine, "flux", Case(3, 2))
        assert second.cancel()
        assert not second.cancel()
        assert (second.state, engine.stats().waiting, engine.stats().cancelled) == ("cancelled", 1, 1)
        with pytest.raises(CancelledGeneration, match="cancelled"):
            second.result(60)
        assert list(second.steps()) == []
        hold.let_go()
        assert torch.equal(latents(first.result(60)), alone("flux", EAGER_CASE))
        assert torch.equal(latents(third.result(60)), alone("flux", Case(3, 2)))


@pytest.mark.parametrize("victim", [Case(9, 2, "dbprune", PRUNE), Case(9, 2, "cache_dit", EAGER), Case(9, 2)])
def test_a_request_between_two_steps_is_gone_when_cancel_returns(victim: Case) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    with Engine(build("flux").pipe) as engine:
        prompt, params = request("flux", victim)
        first, hold = held(engine, "flux", EAGER_CASE)
        second = engine.submit(
            prompt,
            with_callback(params, lambda step: None, seen),
            cache_backend=victim.backend,
            cache_config=victim.config,
        )
        del prompt, params
        # The third one is held when the second has made as many steps.
        third, again = to_be_held(engine, "flux", Case(6, 3, "cache_dit", EAGER), step=2)
        hold.let_go()
        again.reached()
        before = engine.stats()
        assert second.state == "running"
        assert second.cancel()
        stats = engine.stats()
        assert alive(seen) == 0
        assert stats.sessions == before.sessions - (victim.backend is not None)
        assert stats.tensors < before.tensors or victim.backend is None
        assert stats.running == before.running - 1
        again.let_go()
        assert torch.equal(latents(first.result(60)), alone("flux", EAGER_CASE))
        assert torch.equal(latents(third.result(60)), alone("flux", Case(6, 3, "cache_dit", EAGER)))
        assert len(list(second.steps())) < 9
        assert engine.stats().tensors == 0


def test_a_request_that_computes_ends_before_its_next_transformer_call() -> None:
    tiny = build("qwen_image")
    calls = 0
    with Engine(tiny.pipe) as engine:
        first, hold = held(engine, "qwen_image", Case(6, 1, "cache_dit", EAGER))

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1
            # In the middle of the first of the two calls of a step.
            assert calls > 1 or first.cancel()

        handle = tiny.pipe.transformer.transformer_blocks[0].attn.register_forward_hook(count)
        hold.let_go()
        with pytest.raises(CancelledGeneration):
            first.result(60)
        found = hand_in(engine, "qwen_image", Case(3, 2)).result(60)
        handle.remove()
        assert torch.equal(latents(found), alone("qwen_image", Case(3, 2)))
        stats = engine.stats()
    assert calls == 1 + 2 * 3
    assert (stats.cancelled, stats.finished, stats.sessions, stats.tensors) == (1, 1, 0, 0)


def test_a_listener_may_cancel_its_own_request() -> None:
    prompt, params = request("flux", Case(9, 1))
    with Engine(build("flux").pipe) as engine:
        done: list[int] = []

        def stop(step: int) -> None:
            done.append(step)
            if step == 2:
                assert generation.cancel()

        first, hold = held(engine, "flux", Case(3, 1))
        generation = engine.submit(prompt, with_callback(params, stop))
        hold.let_go()
        with pytest.raises(CancelledGeneration):
            generation.result(60)
        first.result(60)
    assert done == [0, 1, 2]


def test_what_has_ended_cannot_be_cancelled() -> None:
    with Engine(build("flux").pipe) as engine:
        generation = hand_in(engine, "flux", Case(2, 1))
        output = generation.result(60)
        assert not generation.cancel()
        assert (generation.state, generation.result(0) is output) == ("done", True)


@pytest.mark.parametrize("at", [0, 3])
def test_an_error_in_one_request_leaves_the_others_alone(at: int) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    def fail(step: int) -> None:
        if step == at:
            raise ZeroDivisionError("on purpose")

    cases = [EAGER_CASE, Case(6, 2), Case(7, 3, "dbprune", PRUNE)]
    with Engine(build("flux").pipe) as engine:
        prompt, params = request("flux", EAGER_CASE)
        first, hold = held(engine, "flux", cases[0])
        failing = engine.submit(
            prompt, with_callback(params, fail, seen), cache_backend="cache_dit", cache_config=EAGER
        )
        others = [first, *(hand_in(engine, "flux", case) for case in cases[1:])]
        hold.let_go()
        del prompt, params
        with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
            failing.result(60)
        assert "fail" in [entry.name for entry in caught.traceback]
        for generation, case in zip(others, cases, strict=True):
            assert torch.equal(latents(generation.result(60)), alone("flux", case))
        stats = engine.stats()
    assert failing.state == "failed"
    assert len(list(failing.steps())) == at + 1
    assert alive(seen) == 0
    assert (stats.failed, stats.finished, stats.sessions, stats.tensors) == (1, 3, 0, 0)


def test_a_listener_that_raises_fails_its_request_alone() -> None:
    def fail(event: Any) -> None:
        raise LookupError("listener")

    with Engine(build("flux").pipe) as engine:
        first, hold = held(engine, "flux", EAGER_CASE)
        second = hand_in(engine, "flux", Case(4, 2))
        second.add_step_listener(fail)
        hold.let_go()
        with pytest.raises(LookupError, match="listener"):
            second.result(60)
        assert torch.equal(latents(first.result(60)), alone("flux", EAGER_CASE))


def test_nothing_of_a_finished_request_stays() -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    with Engine(build("flux").pipe) as engine:
        prompt, params = request("flux", EAGER_CASE)
        generation = engine.submit(
            prompt,
            with_callback(params, lambda step: None, seen),
            cache_backend="cache_dit",
            cache_config=EAGER,
        )
        del prompt, params
        output = generation.result(60)
        assert engine.stats().tensors == 0
        # What is left is the picture: the last latents, whose storage it is.
        assert alive(seen[:-1]) == 0
        del generation, output
        assert alive(seen) == 0


def test_no_thread_runs_any_more_when_an_engine_is_closed() -> None:
    before = set(threading.enumerate())
    for seed in range(12):
        with Engine(build("flux").pipe, "cache_dit", EAGER) as engine:
            for number in range(3):
                hand_in(engine, "flux", Case(3, seed + number)).result(60)
        assert set(threading.enumerate()) == before
