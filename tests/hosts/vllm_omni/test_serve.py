"""The real `vllm serve --omni` with a cache of ours: a picture over HTTP, and what it says of its cache."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .host import free_port

ROOT = Path(__file__).parents[3]
WAIT = 240
"""Seconds until it must be up; it takes about 30 on one core."""


class Server:
    """A running server and what it prints."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.log = folder / "log.txt"
        pipeline = {"pipeline_class": f"{__package__}.pipelines.TinyFluxPipeline"}
        command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--omni"]
        command += ["--model-class-name", "TinyFluxPipeline", "--custom-pipeline-args", json.dumps(pipeline)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--dtype", "float32"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(asked, timeout=120) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None

    def until_up(self) -> None:
        for _ in range(WAIT):
            try:
                self.process.wait(1)
            except subprocess.TimeoutExpired:
                pass
            else:
                raise AssertionError(self.said()[-3000:])
            try:
                if self.ask("/health")[0] == 200:
                    return
            except (urllib.error.URLError, ConnectionError):
                continue
        raise AssertionError(self.said()[-3000:])

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    index = {"_class_name": "TinyFluxPipeline", "_diffusers_version": "0.40.0"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    options = json.dumps({"residual_diff_threshold": 0.8, "max_warmup_steps": 3})
    served = Server(
        tmp_path, "--cache-backend", "dcb:cache_dit", "--cache-config", options, "--enable-cache-dit-summary"
    )
    try:
        yield served
    finally:
        served.stop()


def test_a_picture_comes_over_http_and_blocks_were_skipped_for_it(server: Server) -> None:
    server.until_up()
    body = {"prompt": "a red cube", "size": "64x64", "num_inference_steps": 9, "seed": 1, "n": 1}
    status, answer = server.ask("/v1/images/generations", body)
    assert status == 200
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert picture.size == (64, 64)
    said = server.said()
    assert (
        "Cache backend cache_dit of dit-cache-backends is enabled on transformer (FluxTransformer2DModel)"
        in said
    )
    last = said[said.rindex("blocks run (") :]
    skipped = int(last.removeprefix("blocks run (").partition("%")[0])
    assert skipped > 0
    assert re.search(r"cached steps of transformer, branch 0, transformer_blocks: \d", last)
    assert (
        "options of transformer, transformer_blocks: residual_diff_threshold=0.8, max_warmup_steps=3" in last
    )
