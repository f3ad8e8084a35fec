"""How a server ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.serve.conftest import PROMPT, Served
from tests.serve.held import Held, until

COMMAND = (sys.executable, "-c", "from dit_cache_backends.cli import app; app()")


def test_a_server_that_ends_finishes_what_it_has_and_takes_no_more(
    serve: Callable[..., Served], held: Held
) -> None:
    served = serve(cache_backend="cache_dit")
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(served.ask, num_inference_steps=2)
        held.reached()
        served.server.end()
        until(lambda: served.server.service.draining)
        for answer in (served.ask(num_inference_steps=2), served.http.get("/health")):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "shutting_down"
            assert int(answer.headers["retry-after"]) > 0
        held.let_go()
        assert first.result().status_code == 200
    assert served.ended()


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_done_in_time_is_cancelled_and_told_so(
    serve: Callable[..., Served], held: Held, stream: bool
) -> None:
    served = serve(cache_backend="cache_dit", drain_seconds=0.1)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(served.ask, num_inference_steps=2, stream=stream)
        held.reached()
        served.server.end()
        answer = first.result(30)  # although its step goes on
        assert answer.status_code == (200 if stream else 503)
        assert '"shutting_down"' in answer.text
        held.let_go()
    assert served.ended()
    assert served.engine.stats().sessions == 0


def test_the_command_serves_until_it_is_told_to_end_and_its_status_is_0() -> None:
    command = [*COMMAND, "serve", "--port", "0", "--cache-backend", "cache_dit", "--max-steps", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIT_CACHE_API_KEY": "sesame"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError("".join(lines))
        with httpx2.Client(base_url=found[1], timeout=60) as client:
            assert client.get("/health").json() == {"status": "ok"}
            body = {"prompt": PROMPT, "num_inference_steps": 2}
            assert client.post("/v1/images/generations", json=body).status_code == 401
            client.headers["Authorization"] = "Bearer sesame"
            assert client.post("/v1/images/generations", json=body).json()["cache"]["blocks_run"] == 24
            assert client.get("/v1/models").json()["data"][0]["limits"]["max_steps"] == 5
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0
    assert "Traceback" not in rest
    assert "Finished server process" in rest
