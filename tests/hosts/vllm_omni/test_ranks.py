"""Two processes with gloo: shards of a sequence take one decision, guidance branches on two ranks one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_cache_backends.hosts.vllm_omni.plugin import register

from .host import free_port
from .ranks import SHARES, drawn

ROOT = Path(__file__).parents[3]
BACKEND = "dcb:cache_dit"


@pytest.fixture(scope="module")
def options(one_rank: None) -> dict[str, Any]:
    """A threshold just above the first difference that is measured: one half of the tokens lies above it, one below."""
    register()
    found = drawn(BACKEND, {"residual_diff_threshold": 0.8})
    return {"residual_diff_threshold": 1.001 * found["first"]}


@pytest.fixture(scope="module")
def alone(options: dict[str, Any]) -> dict[str, Any]:
    """What one process finds."""
    found = drawn(BACKEND, options)
    assert found["groups"] == []
    assert found["tokens"] == [16]
    assert any(skipped for _, _, skipped in found["skipped"])
    return found


@pytest.fixture(scope="module")
def shared(
    options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What each of two processes finds, by the way they share the work."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = [str(free_port()) for _ in SHARES]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"{__package__}.ranks",
                str(rank),
                BACKEND,
                json.dumps(options),
                str(folder),
                *ports,
            ],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-3000:] for text in said)
    return {
        kind: [torch.load(folder / f"{kind}-{rank}.pt", weights_only=True) for rank in range(2)]
        for kind in SHARES
    }


def test_ranks_with_shards_of_one_sequence_decide_as_one_process_does(alone: Any, shared: Any) -> None:
    """The threshold is dynamic: each rank alone would measure its own half, and could wait for ever."""
    for rank in shared["sequence"]:
        assert rank["groups"] == [2]
        assert rank["tokens"] == [8]
        assert rank["blocks"] == alone["blocks"]
        assert rank["skipped"] == alone["skipped"]
        assert torch.allclose(rank["latents"], alone["latents"], atol=1e-4)


def test_guidance_branches_on_two_ranks_decide_each_for_itself(alone: Any, shared: Any) -> None:
    for rank, branch in zip(shared["guidance"], ("0", "1"), strict=True):
        assert rank["groups"] == []
        assert rank["tokens"] == [16]
        expected = [(step, skipped) for step, name, skipped in alone["skipped"] if name == branch]
        assert [(step, skipped) for step, _, skipped in rank["skipped"]] == expected
        assert torch.allclose(rank["latents"], alone["latents"], atol=1e-5)
