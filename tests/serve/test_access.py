"""Who is let in, and by which name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.serve.access import is_loopback
from dit_cache_backends.serve.server import Serving
from tests.serve.conftest import PROMPT, Served

PAGE = Path(__file__).parents[2] / "dit_cache_backends" / "serve" / "page"


@pytest.fixture
def locked(serve: Callable[..., Served]) -> Served:
    return serve(api_key="open sesame")


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer open", "Bearer open sesame!", "Basic open sesame"]
)
def test_without_the_key_nothing_is_drawn_or_told(locked: Served, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for answer in (
        locked.http.post("/v1/images/generations", json={"prompt": PROMPT}, headers=headers),
        locked.http.get("/v1/models", headers=headers),
        locked.http.get("/v1/anything", headers=headers),
    ):
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "sesame" not in answer.text
    assert locked.engine.stats().finished == 0


def test_with_the_key_the_openai_client_is_let_in(locked: Served) -> None:
    answer = locked.openai.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 1})
    assert answer.data[0].b64_json
    stranger = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="other", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="is not it"):
        stranger.images.generate(prompt=PROMPT)


def test_health_metrics_and_the_page_need_no_key(locked: Served) -> None:
    for path in ("/health", "/metrics", "/", "/page/draw.js"):
        assert locked.http.get(path).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::2]:1", ""])
def test_on_the_loopback_a_name_that_is_not_its_own_is_refused(served: Served, host: str) -> None:
    answer = served.http.get("/health", headers={"Host": host})
    assert answer.status_code == 403
    assert "--allowed-host" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8091"])
def test_on_the_loopback_its_own_names_are_right(served: Served, host: str) -> None:
    assert served.http.get("/health", headers={"Host": host}).status_code == 200


def test_a_wider_address_is_called_as_its_owner_says() -> None:
    assert Serving(host="0.0.0.0").hosts == ()
    assert "pictures.example" in Serving(host="0.0.0.0", allowed_hosts=["pictures.example"]).hosts
    assert "pictures.example" in Serving(allowed_hosts=["pictures.example"]).hosts


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.1.2.3", True),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


def test_the_page_and_its_parts_come_with_headers_that_keep_them_to_this_server(served: Served) -> None:
    answer = served.http.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in re.findall(r'(?:href|src)="(/page/[^"]+)"', answer.text):
        assert served.http.get(name).status_code == 200


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        addresses = re.findall(r"https?://[^\"'\s)]+", path.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cache-backend", "cache_dot"], "Unsupported cache backend: cache_dot"),
        (["--cache-backend", "cache_dit", "--cache-config", '{"x": 1}'], "unknown option 'x'"),
        (["--cache-config", '{"max_warmup_steps": 1}'], "no cache backend"),
        (["--api-key", " "], "the API key is empty"),
        (["no such model"], "no such model"),
    ],
)
def test_a_mistake_in_the_command_is_explained_and_nothing_is_served(
    arguments: list[str], words: str
) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments], env={"HF_HUB_OFFLINE": "1"})
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_the_command_warns_where_everybody_may_draw() -> None:
    told = CliRunner().invoke(
        app, ["serve", "no such model", "--host", "0.0.0.0"], env={"HF_HUB_OFFLINE": "1"}
    )
    assert "every one of them may draw here" in told.stderr
    for quiet in (["--host", "0.0.0.0", "--api-key", "k"], ["--host", "127.0.0.1"]):
        result = CliRunner().invoke(app, ["serve", "no such model", *quiet], env={"HF_HUB_OFFLINE": "1"})
        assert "warning" not in result.stderr
