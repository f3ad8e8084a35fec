"""The real OpenAI client against the real server."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from dit_cache_backends.demo import load_demo
from tests.serve.conftest import PROMPT, Served
from tests.serve.drawn import alone, pixels

EAGER = {"residual_diff_threshold": 10.0, "max_warmup_steps": 1, "max_continuous_cached_steps": 2}


@pytest.fixture(scope="module")
def own() -> Any:
    """Another copy of the served model: the served one belongs to its engine."""
    return load_demo()


def test_a_picture_is_the_one_that_omni_draws_with_the_servers_own_cache(served: Served, own: Any) -> None:
    answer = served.openai.images.generate(prompt=PROMPT, extra_body={"seed": 3, "num_inference_steps": 6})
    expected, summary = alone(
        own, PROMPT, "cache_dit", {"max_warmup_steps": 2}, seed=3, num_inference_steps=6
    )
    assert np.array_equal(pixels(answer.data[0].b64_json), expected)
    assert answer.cache["blocks_skipped"] == summary.blocks_skipped > 0
    assert answer.cache["blocks_run"] == summary.blocks_run
    assert answer.cache["images"][0]["cached_steps"] == summary.cached_steps()
    assert answer.cache["backend"] == "cache_dit"
    assert answer.size == "64x64"


@pytest.mark.parametrize(
    ("backend", "config"),
    [
        ("cache_dit", EAGER),
        ("dbprune", {"residual_diff_threshold": 0.5, "max_warmup_steps": 2}),
        ("none", None),
    ],
)
def test_a_request_brings_its_own_cache_in_extra_body(
    served: Served, own: Any, backend: str, config: dict[str, Any] | None
) -> None:
    body = {"seed": 1, "num_inference_steps": 5, "cache_backend": backend}
    answer = served.openai.images.generate(
        prompt=PROMPT, extra_body=body | ({"cache_config": config} if config else {})
    )
    expected, summary = alone(own, PROMPT, backend, config, seed=1, num_inference_steps=5)
    assert np.array_equal(pixels(answer.data[0].b64_json), expected)
    if summary is None:
        assert answer.cache["backend"] is None
        assert answer.cache["blocks_skipped"] is None
    else:
        assert answer.cache["blocks_skipped"] == summary.blocks_skipped > 0


def test_options_without_a_backend_stand_over_those_of_the_server(served: Served, own: Any) -> None:
    answer = served.openai.images.generate(
        prompt=PROMPT,
        extra_body={"seed": 1, "num_inference_steps": 5, "cache_config": {"residual_diff_threshold": 10.0}},
    )
    expected, _ = alone(
        own,
        PROMPT,
        "cache_dit",
        {"max_warmup_steps": 2, "residual_diff_threshold": 10.0},
        seed=1,
        num_inference_steps=5,
    )
    assert np.array_equal(pixels(answer.data[0].b64_json), expected)


def test_each_of_several_pictures_can_be_drawn_again_alone(served: Served) -> None:
    several = served.openai.images.generate(prompt=PROMPT, n=3, extra_body={"num_inference_steps": 2})
    seeds = [image["seed"] for image in several.cache["images"]]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    again = served.openai.images.generate(
        prompt=PROMPT, extra_body={"num_inference_steps": 2, "seed": seeds[2]}
    )
    assert np.array_equal(pixels(again.data[0].b64_json), pixels(several.data[2].b64_json))
    assert not np.array_equal(pixels(several.data[0].b64_json), pixels(several.data[2].b64_json))
    assert several.cache["steps"] == 6


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_comes_in_the_size_and_file_format_that_were_asked_for(served: Served, kind: Any) -> None:
    answer = served.openai.images.generate(
        prompt=PROMPT, size="48x80", output_format=kind, extra_body={"num_inference_steps": 1}
    )
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert picture.size == (48, 80)
    assert picture.format == kind.upper()
    assert answer.size == "48x80"


def test_a_stream_tells_every_step_in_order_and_then_the_picture(served: Served) -> None:
    body = {"num_inference_steps": 5, "seed": 2, "cache_config": EAGER}
    events = list(served.openai.images.generate(prompt=PROMPT, stream=True, extra_body=body))
    *steps, done = events
    assert [step.type for step in steps] == ["image_generation.step"] * 5
    assert [(step.index, step.total) for step in steps] == [(index, 5) for index in range(5)]
    assert done.type == "image_generation.completed"
    whole = served.openai.images.generate(prompt=PROMPT, extra_body=body)
    assert done.b64_json == whole.data[0].b64_json
    assert sum(step.blocks_run for step in steps) == done.cache["blocks_run"] == whole.cache["blocks_run"]
    assert [step.index for step in steps if step.cached] == done.cache["cached_steps"]
    assert sum(step.blocks_skipped for step in steps) == done.cache["blocks_skipped"] > 0


def test_a_stream_of_several_pictures_says_which_one_a_step_is_of(served: Served) -> None:
    events = list(
        served.openai.images.generate(prompt=PROMPT, stream=True, n=2, extra_body={"num_inference_steps": 3})
    )
    for image in (0, 1):
        mine = [event for event in events if event.image == image]
        assert [event.index for event in mine[:-1]] == [0, 1, 2]
        assert mine[-1].type == "image_generation.completed"


def test_the_stream_ends_with_done_as_openais_do(served: Served) -> None:
    answer = served.ask(num_inference_steps=1, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


def test_the_served_model_is_listed_and_every_installed_backend_with_its_options(served: Served) -> None:
    (model,) = served.openai.models.list().data
    assert (model.id, model.cache_backend, model.pipeline) == ("demo", "cache_dit", "FluxPipeline")
    assert served.openai.models.retrieve("demo") == model
    with pytest.raises(openai.NotFoundError, match="this server has 'demo'"):
        served.openai.models.retrieve("an/other")
    backends = {each["id"]: each for each in served.http.get("/v1/cache_backends").json()["data"]}
    assert {"cache_dit", "dbprune", "tea_cache"} <= set(backends)
    names = [option["name"] for option in backends["tea_cache"]["options"]]
    assert "rel_l1_thresh" in names


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (
            openai.BadRequestError,
            {"extra_body": {"inference_steps": 3}},
            "Did you mean 'num_inference_steps'?",
        ),
        (openai.BadRequestError, {"response_format": "url"}, "keeps no pictures"),
        (openai.NotFoundError, {"model": "dall-e-3"}, "this server has 'demo'"),
        (openai.UnprocessableEntityError, {"extra_body": {"cache_backend": "cache_dot"}}, "'cache_dit'"),
        (
            openai.UnprocessableEntityError,
            {"extra_body": {"cache_config": {"max_warmup_step": 3}}},
            "Did you mean 'max_warmup_steps'",
        ),
    ],
)
def test_a_mistake_is_the_clients_own_error_with_what_to_do(
    served: Served, error: type[openai.APIStatusError], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(error) as caught:
        served.openai.images.generate(prompt=PROMPT, **arguments)
    assert words in caught.value.body["message"]
