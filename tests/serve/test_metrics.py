"""What Prometheus reads is what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.conftest import Served
from tests.serve.held import Held

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def read(served: Served) -> Samples:
    families = text_string_to_metric_families(served.http.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_steps_blocks_and_hits_are_those_of_the_answers(serve: Callable[..., Served]) -> None:
    served = serve()
    eager = {"residual_diff_threshold": 10.0, "max_warmup_steps": 1}
    answers = [
        served.ask(num_inference_steps=6, cache_backend="cache_dit", cache_config=eager).json()["cache"],
        served.ask(num_inference_steps=4, cache_backend="Cache-DiT", cache_config=eager).json()["cache"],
    ]
    dense = served.ask(num_inference_steps=3, cache_backend="none").json()["cache"]
    found = read(served)

    def value(name: str, backend: str) -> float:
        return found[f"dit_cache_{name}_total", (("cache_backend", backend),)]

    assert value("steps", "cache_dit") == sum(each["steps"] for each in answers) == 10
    assert value("cached_steps", "cache_dit") == sum(each["steps_cached"] for each in answers) > 0
    assert value("blocks_run", "cache_dit") == sum(each["blocks_run"] for each in answers)
    assert value("blocks_skipped", "cache_dit") == sum(each["blocks_skipped"] for each in answers) > 0
    assert value("steps", "none") == dense["steps"] == 3
    assert value("cached_steps", "none") == 0


def test_requests_and_their_seconds_are_counted_by_how_they_ended(serve: Callable[..., Served]) -> None:
    served = serve()
    served.ask(num_inference_steps=1)
    served.ask(num_inference_steps=1, stream=True)
    served.ask(num_inference_steps=0)
    served.http.get("/some/path/of/a/stranger")
    found = read(served)
    path = ("path", "/v1/images/generations")
    assert found["dit_cache_requests_total", (path, ("status", "200"))] == 2
    assert found["dit_cache_requests_total", (path, ("status", "400"))] == 1
    assert found["dit_cache_requests_total", (("path", "other"), ("status", "404"))] == 1
    assert found["dit_cache_request_seconds_count", (("status", "200"),)] == 2
    assert found["dit_cache_request_seconds_sum", (("status", "200"),)] > 0


def test_what_waits_runs_and_is_held_is_shown_while_it_is_so(
    serve: Callable[..., Served], held: Held
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tests.serve.test_queue import waits_or_runs

    served = serve(cache_backend="cache_dit", max_concurrent=1)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(served.ask, num_inference_steps=2) for _ in range(2)]
        held.reached()
        waits_or_runs(served, 2)
        found = read(served)
        assert [found[f"dit_cache_{name}", ()] for name in ("running", "queue_length", "sessions")] == [
            1,
            1,
            1,
        ]
        held.let_go()
        assert [each.result().status_code for each in asked] == [200, 200]
    served.free()
    found = read(served)
    names = ("running", "queue_length", "sessions", "held_tensors", "held_bytes")
    assert [found[f"dit_cache_{name}", ()] for name in names] == [0, 0, 0, 0, 0]
