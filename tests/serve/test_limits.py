"""What is refused, before any work, with the field that is meant."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.serve.limits import Limits
from tests.serve.conftest import PROMPT, Served

SMALL = Limits(max_steps=4, max_images=2, max_side=128, max_body=2000, body_seconds=0.2)


@pytest.fixture(scope="module")
def small(demo: Any) -> Any:
    running = Served(demo, limits=SMALL)
    yield running
    assert running.engine.stats().finished == 0
    running.close()


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"num_inference_steps": 5}, "num_inference_steps", "at most 4 (--max-steps), got 5"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
        ({"num_inference_steps": "3"}, "num_inference_steps", 'got "3"'),
        ({"n": 3}, "n", "at most 2 (--max-images), got 3"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"size": "64x256"}, "size", "at most 128 (--max-side), got 256"),
        ({"size": "64x60"}, "size", "multiples of 8 pixels; 60 is none, 64 is"),
        ({"size": "big"}, "size", "WIDTHxHEIGHT"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"response_format": "url"}, "response_format", "ask for b64_json"),
        ({"output_format": "gif"}, "output_format", "png"),
        ({"guidance_scale": float("nan")}, None, ""),
        ({"cache_config": "fast"}, "cache_config", "valid dictionary"),
        ({"step": 3}, "step", "unknown field 'step'. Did you mean"),
        ({"quality": "high"}, "quality", "unknown field 'quality'"),
    ],
)
def test_a_field_out_of_bounds_is_refused_by_name(
    small: Served, body: dict[str, Any], param: str | None, words: str
) -> None:
    answer = small.http.post(
        "/v1/images/generations",
        content=json.dumps({"prompt": PROMPT, **body}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    "config",
    [
        {"cache_config": "@/etc/passwd"},
        {"mask": "/etc/passwd"},
        {"mask": "plan.json"},
        {"ratios": "~/ratios"},
        {"overrides": {"transformer": {"mask": "..\\plan.yaml"}}},
        {"branches": [{"cond": "masks.YML"}]},
        {"calibrate": True, "save_as": "mine"},
    ],
)
def test_a_request_cannot_have_the_server_touch_a_file(small: Served, config: dict[str, Any]) -> None:
    answer = small.ask(cache_config=config, cache_backend="step_plan")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "cache_config"
    assert "a file, which a request cannot" in answer.json()["error"]["message"]


def test_what_the_pipeline_has_no_argument_for_is_refused_by_the_model(
    small: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(self: Any, prompt: str, num_inference_steps: int = 2, generator: Any = None) -> None: ...

    monkeypatch.setattr(type(small.pipeline), "__call__", call)
    answer = small.ask(true_cfg_scale=2.0)
    assert answer.status_code == 422
    assert "'true_cfg_scale'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_that_is_too_large_is_refused_whether_or_not_it_says_so(
    small: Served, declared: bool
) -> None:
    body = json.dumps({"prompt": "x" * 2000}).encode()
    answer = small.http.post(
        "/v1/images/generations",
        content=body if declared else iter([body[:1000], body[1000:]]),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert "2000 (--max-body)" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("length", "status"), [(100, 408), (1_000_000_000, 413)])
def test_a_request_that_does_not_arrive_is_not_waited_for_nor_one_that_says_it_is_too_large(
    small: Served, length: int, status: int
) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {length}\r\n\r\n{{".encode())
        answer = line.recv(10_000)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_a_foreign_page_could_have_a_browser_post_is_refused(small: Served, kind: str | None) -> None:
    body = json.dumps({"prompt": PROMPT}).encode()
    headers = {"Content-Type": kind} if kind else {}
    answer = small.http.post("/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "words"), [(b"{", "not valid JSON"), (b"[]", "the body"), (b"", "has to be given")]
)
def test_a_body_that_is_no_request_is_explained(small: Served, content: bytes, words: str) -> None:
    answer = small.http.post(
        "/v1/images/generations", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "not_found"), ("GET", "/v1/images/generations", 405, "method_not_allowed")],
)
def test_what_is_not_there_is_told_in_the_same_form(
    small: Served, method: str, path: str, status: int, code: str
) -> None:
    answer = small.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert path in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", list(vars(Limits())))
def test_a_bound_that_lets_nothing_through_is_no_bound(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: 0})


def test_a_failure_of_the_model_says_nothing_of_the_server_and_frees_what_it_held(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(cache_backend="cache_dit")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in /secret/place")

    hook = running.pipeline.transformer.register_forward_pre_hook(fail)
    try:
        answer = running.ask(num_inference_steps=2)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        stream = running.ask(num_inference_steps=2, stream=True)
        assert stream.status_code == 200  # it had begun
        assert '"internal_error"' in stream.text
        assert "secret" not in answer.text + stream.text
    finally:
        hook.remove()
    assert running.ask(num_inference_steps=2).status_code == 200
    running.free()
