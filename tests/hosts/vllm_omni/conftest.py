"""Run by `make test-vllm-omni` in an environment of its own; elsewhere nothing of this folder is collected."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

HERE = importlib.util.find_spec("vllm_omni") is not None
collect_ignore_glob = [] if HERE else ["*"]


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """vLLM-Omni's groups with this process alone in them, and its forward context."""
    import gc

    import torch

    from . import running
    from .host import worker

    torch.set_num_threads(1)
    # The runner collects garbage three times while it loads a pipeline, and what was imported is large.
    del running
    gc.collect()
    gc.freeze()
    with worker():
        yield


@pytest.fixture
def in_a_worker(one_rank: None) -> Iterator[None]:
    """As within a forward of vLLM-Omni's runner."""
    import torch

    with torch.no_grad():
        yield
