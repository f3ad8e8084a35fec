"""Several requests on one transformer, several pipelines, several threads: each as if it were alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import SpanBackend, enable_cache
from dit_cache_conformance.tiny import build, build_transformer

from .runs import inputs, kinds, output, run_plain, run_told, same
from .strategies import planned
from .toys import ONE, Toy, adds, image

LENGTHS = {"a": 4, "b": 6, "c": 5}


def threshold() -> SpanBackend:
    from dit_cache_backends.strategies.cache_dit import CacheDiT

    return CacheDiT({"residual_diff_threshold": 0.9, "max_warmup_steps": 1})


MAKERS: list[Callable[[], SpanBackend]] = [lambda: planned("101"), threshold]


def alone(make: Callable[[], SpanBackend], name: str) -> dict[str, list[Tensor]]:
    """Each request by itself, on a backend and a model of its own."""
    found = {}
    for seed, (key, steps) in enumerate(LENGTHS.items()):
        model = build_transformer(name)
        with make() as backend:
            backend.enable(model)
            found[key] = run_told(backend, model, inputs(name, steps, seed=seed), "cond")
            assert backend.summary().blocks_skipped
    return found


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["flux", "hunyuan_video"])
@pytest.mark.parametrize("order", range(3))
def test_interleaved_requests_are_as_alone(make: Callable[[], SpanBackend], name: str, order: int) -> None:
    expected = alone(make, name)
    model = build_transformer(name)
    backend = make()
    backend.enable(model)
    todo = [key for key, steps in LENGTHS.items() for _ in range(steps)]
    random.Random(order).shuffle(todo)
    at = dict.fromkeys(LENGTHS, 0)
    found: dict[str, list[Tensor]] = {key: [] for key in LENGTHS}
    runs = {key: inputs(name, steps, seed=seed) for seed, (key, steps) in enumerate(LENGTHS.items())}
    for key in todo:
        with backend.session(key), backend.step(at[key], LENGTHS[key], "cond"):
            found[key].append(output(model, runs[key][at[key]]))
        at[key] += 1
    assert all(same(found[key], expected[key]) for key in LENGTHS)
    assert not backend.held_tensors()
    for key, steps in LENGTHS.items():
        steps_of_rows = [
            row.step for row in backend.summary(key).rows if row.stack == backend.summary(key).rows[0].stack
        ]
        assert steps_of_rows == list(range(steps))


@pytest.mark.parametrize("make", MAKERS)
def test_two_branches_of_interleaved_requests_are_kept_apart_too(make: Callable[[], SpanBackend]) -> None:
    model = build_transformer("sd3")
    runs = {
        (key, branch): inputs("sd3", 5, seed=seed)
        for seed, (key, branch) in enumerate((key, branch) for key in "ab" for branch in ("cond", "uncond"))
    }
    expected = {}
    for place, run in runs.items():
        with make() as single:
            single.enable(model)
            expected[place] = run_told(single, model, run, "cond")
    backend = make()
    backend.enable(model)
    found: dict[tuple[str, str], list[Tensor]] = {place: [] for place in runs}
    for step in range(5):
        for (key, branch), run in runs.items():
            with backend.session(key), backend.step(step, 5, branch):
                found[key, branch].append(output(model, run[step]))
    assert all(same(found[place], expected[place]) for place in runs)


def test_a_cancelled_request_is_forgotten_and_its_key_can_be_used_again() -> None:
    model = build_transformer("sd3")
    run, other = inputs("sd3", 5), inputs("sd3", 5, seed=3)
    backend = planned("10")
    backend.enable(model)
    with backend.session("fresh"):
        expected = run_told(backend, model, other)
    with backend.session("a"):
        run_told(backend, model, run)
    for step in range(3):
        with backend.session("b"), backend.step(step, 5):
            output(model, run[step])
    assert backend.held_tensors()
    backend.end_session("b")
    backend.end_session("never seen")
    assert not backend.held_tensors()
    assert len(backend.summary("b").rows) == 3
    with backend.session("b"):
        assert same(run_told(backend, model, other), expected)


def test_a_request_of_one_step_with_two_branches_keeps_both_in_its_summary() -> None:
    model = build_transformer("sd3")
    arguments = inputs("sd3", 1)[0]
    backend = planned("10")
    backend.enable(model)
    with backend.session("a"):
        for branch in ("cond", "uncond"):
            with backend.step(0, 1, branch):
                output(model, arguments)
    assert [row.branch for row in backend.summary("a").rows] == ["cond", "uncond"]
    assert not backend.held_tensors()


def test_a_request_of_one_step_is_not_cut_by_others_that_come_between_its_two_calls() -> None:
    model = Toy(adds, adds)
    backend = planned("10")
    backend.enable(model, card=ONE)

    def call(key: object, branch: str) -> None:
        with backend.session(key), backend.step(0, 1, branch):
            model(image())

    for key in range(70):
        call(key, "cond")
    call("a", "cond")
    call("b", "cond")
    call("a", "uncond")
    assert [row.branch for row in backend.summary("a").rows] == ["cond", "uncond"]


@pytest.mark.parametrize("finished", [True, False])
def test_hundreds_of_requests_do_not_pile_up(finished: bool) -> None:
    model = Toy(adds, adds)
    backend = planned("10")
    backend.enable(model, card=ONE)
    for key in range(300):
        for step in range(2 if finished else 1):
            with backend.session(key), backend.step(step, 2):
                model(image())
        if not finished:
            backend.end_session(key)
    assert not backend.held_tensors()
    kept = sum(len(each._live) + len(each._ended) for each in backend._generations)
    assert kept <= 2 * 64 + 1
    assert len(backend.summary(299).rows) == (2 if finished else 1)


def test_pipelines_in_sessions_do_not_pile_up_either() -> None:
    tiny = build("sd3")
    backend = planned("10")
    backend.enable(tiny.pipe)
    plain = tiny.run(2)
    for key in range(80):
        with backend.session(key):
            assert torch.equal(tiny.run(2), plain)
    assert not backend.held_tensors()
    assert sum(len(each._live) for each in backend._generations) <= 65
    assert len(backend.summary(79).rows) == 2


def test_one_backend_on_two_models_keeps_them_apart() -> None:
    first, second = build_transformer("sd3"), build_transformer("sd3")
    run, other = inputs("sd3", 6), inputs("sd3", 6, seed=7)
    expected = []
    for arguments in (run, other):
        with planned("10") as single:
            single.enable(first)
            expected.append(run_plain(first, arguments))
    backend = planned("10")
    backend.enable(first)
    backend.enable(second)
    found: list[list[Tensor]] = [[], []]
    for part in (slice(0, 3), slice(3, 6)):
        found[0] += run_plain(first, run[part])
        found[1] += run_plain(second, other[part])
    assert same(found[0], expected[0])
    assert same(found[1], expected[1])


def test_one_backend_on_two_pipelines_whose_steps_alternate_keeps_them_apart() -> None:
    outer, inner = build("flux"), build("flux")
    with planned("10") as single:
        single.enable(outer.pipe)
        expected, expected_inner = outer.run(4), outer.run(3, seed=4)
    backend = planned("10")
    backend.enable(outer.pipe)
    backend.enable(inner.pipe)
    found: list[Tensor] = []

    def nested(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        found.append(inner.run(3, seed=4))
        return kwargs

    assert torch.equal(outer.run(4, callback_on_step_end=nested), expected)
    assert all(torch.equal(one, expected_inner) for one in found)


def test_disabling_one_of_two_models_lets_go_of_its_tensors_and_leaves_the_other() -> None:
    first, second = build_transformer("sd3"), build_transformer("sd3")
    run = inputs("sd3", 6)
    backend = planned("10")
    backend.enable(first)
    backend.enable(second)
    run_plain(first, run[:3])
    backend.disable(first)
    assert not backend.held_tensors()
    assert backend.is_enabled()
    with planned("10") as single:
        single.enable(first)
        expected = run_plain(first, run)
    assert same(run_plain(second, run), expected)


def in_threads(jobs: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    barrier = threading.Barrier(len(jobs))

    def work(key: str) -> None:
        barrier.wait()
        with torch.no_grad():
            found[key] = jobs[key]()

    threads = [threading.Thread(target=work, args=(key,)) for key in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("shared_backend", [False, True])
def test_pipelines_in_threads_give_what_they_give_one_after_the_other(shared_backend: bool) -> None:
    names = ["flux", "flux", "qwen_image", "wan22"]
    tinies = {f"{name} {number}": build(name) for number, name in enumerate(names)}
    one = planned("101")
    for tiny in tinies.values():
        (one if shared_backend else planned("101")).enable(tiny.pipe)
    expected = {key: tiny.run(5, seed=3) for key, tiny in tinies.items()}
    for _ in range(2):
        found = in_threads({key: lambda tiny=tiny: tiny.run(5, seed=3) for key, tiny in tinies.items()})  # type: ignore[misc]
        assert all(torch.equal(found[key], expected[key]) for key in tinies)
    if shared_backend:
        assert not one.held_tensors()


def test_requests_in_threads_share_one_transformer() -> None:
    expected = alone(MAKERS[0], "flux")
    model = build_transformer("flux")
    backend = planned("101")
    backend.enable(model)

    def request(key: str, seed: int) -> list[Tensor]:
        with backend.session(key):
            return run_told(backend, model, inputs("flux", LENGTHS[key], seed=seed), "cond")

    found = in_threads(
        {key: lambda key=key, seed=seed: request(key, seed) for seed, key in enumerate(LENGTHS)}
    )  # type: ignore[misc]
    assert all(same(found[key], expected[key]) for key in LENGTHS)


def test_a_session_left_by_an_exception_gives_way_to_the_one_around_it() -> None:
    tiny = build("sd3")
    backend: Any = enable_cache(tiny.pipe, "cache_dit", max_warmup_steps=1)
    with backend.session("outer"):
        with pytest.raises(ZeroDivisionError), backend.session("inner"):
            tiny.run(3, callback_on_step_end=lambda *_: 1 / 0)
        tiny.run(3)
        assert len(backend.summary().rows) == 3
    assert len(backend.summary("inner").rows) == 1
    assert kinds(backend) == {}
