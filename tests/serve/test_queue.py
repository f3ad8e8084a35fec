"""Waiting, being refused, giving up: what one request does to the others, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from dit_cache_backends.demo import load_demo
from dit_cache_backends.serve.limits import Limits
from tests.serve.conftest import PROMPT, Served
from tests.serve.drawn import alone, pixels
from tests.serve.held import Held, until


def body(**more: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "num_inference_steps": 4, **more}


def waits_or_runs(served: Served, count: int) -> None:
    until(lambda: served.engine.stats().waiting + served.engine.stats().running == count)


def test_a_full_queue_refuses_one_more_and_says_when_to_come_back(
    serve: Callable[..., Served], held: Held
) -> None:
    served = serve(max_concurrent=1, max_waiting=2)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(served.ask, **body())
        held.reached()
        waiting = [threads.submit(served.ask, **body()) for _ in range(2)]
        waits_or_runs(served, 3)
        refused = served.ask(**body())
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        held.let_go()
        assert [each.result().status_code for each in (first, *waiting)] == [200, 200, 200]
    assert served.ask(**body()).status_code == 200


def test_of_a_request_for_more_pictures_than_fit_nothing_stays(
    serve: Callable[..., Served], held: Held
) -> None:
    served = serve(max_concurrent=1, max_waiting=1)
    assert served.ask(**body(n=3)).status_code == 429
    held.let_go()
    served.free()
    assert served.engine.stats().finished == 0


def test_a_request_that_takes_too_long_is_cancelled_and_the_others_are_not(
    serve: Callable[..., Served], held: Held
) -> None:
    served = serve(cache_backend="cache_dit", limits=Limits(request_seconds=0.3), max_concurrent=1)
    for stream in (False, True):
        late = served.ask(**body(stream=stream))
        assert "--request-timeout" in late.text
        assert late.status_code == (200 if stream else 504)  # a stream has begun by then
    held.let_go()
    served.free()
    assert served.engine.stats().cancelled == 2
    assert served.ask(**body(num_inference_steps=1)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_leaves_frees_its_place_and_its_cache(
    serve: Callable[..., Served], held: Held, stream: bool, waits: bool
) -> None:
    served = serve(cache_backend="cache_dit", max_concurrent=1)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(served.ask, **body()) if waits else None
        if waits:
            held.reached()
        leaver = served.ask_on_a_line(**body(stream=stream))
        waits_or_runs(served, 1 + waits)
        if not waits:
            held.reached()
        leaver.close()
        until(lambda: served.engine.stats().cancelled == 1)
        held.let_go()
        served.free()
        if first is not None:
            assert first.result().status_code == 200
    assert served.engine.stats().finished == int(waits)
    text = served.http.get("/metrics").text
    assert 'dit_cache_requests_total{path="/v1/images/generations",status="499"} 1.0' in text


def test_requests_with_other_settings_at_the_same_time_give_what_they_give_alone(
    serve: Callable[..., Served],
) -> None:
    served = serve(max_concurrent=3)
    own = load_demo()
    asked: list[dict[str, Any]] = [
        {"seed": 1, "num_inference_steps": 4},
        {
            "seed": 2,
            "num_inference_steps": 6,
            "cache_backend": "cache_dit",
            "cache_config": {"max_warmup_steps": 1},
        },
        {
            "seed": 3,
            "num_inference_steps": 5,
            "cache_backend": "tea_cache",
            "cache_config": {"rel_l1_thresh": 0.3, "coefficients": "identity"},
        },
        {"seed": 4, "num_inference_steps": 3, "size": "48x48"},
        {"seed": 5, "num_inference_steps": 6, "cache_backend": "dbprune"},
    ]
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda each: served.ask(**each), asked))
    for each, answer in zip(asked, answers, strict=True):
        params = dict(each)
        side = int(params.pop("size", "64x64").partition("x")[0])
        expected, _ = alone(
            own,
            PROMPT,
            params.pop("cache_backend", None),
            params.pop("cache_config", None),
            height=side,
            width=side,
            **params,
        )
        assert np.array_equal(pixels(answer.json()["data"][0]["b64_json"]), expected)
    served.free()
