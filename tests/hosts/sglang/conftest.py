"""These tests need SGLang-Diffusion: ``make test-sglang`` has it. Elsewhere none of them is collected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

if not find_spec("sglang"):
    collect_ignore_glob = ["*"]
elif os.environ.get("DIT_CACHE_BACKEND"):
    collect_ignore_glob = ["test_native.py"]
else:
    collect_ignore_glob = ["test_stage.py", "test_lifecycle.py", "test_cards.py"]

OWN_TESTS = 85
"""In the files of SGLang 0.5.23 that `run.py` names."""
NOT_OURS = {
    "test_request_override_and_active_transformers_survive_transition": "it refreshes what was never mounted, and "
    "looks at what cache-dit is told",
    "test_request_scm_bins_require_both": "it expects half a mask to be refused later than it is here",
}
"""Of those, the ones that cannot hold while our functions stand around SGLang's."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count SGLang's own tests, so that none gets lost, and leave out those that look into cache-dit itself."""
    own = [item for item in items if "multimodal_gen" in item.path.parts]
    if own and len(own) != OWN_TESTS:
        raise pytest.UsageError(f"expected {OWN_TESTS} tests of SGLang's own, found {len(own)}")
    if os.environ.get("DIT_CACHE_BACKEND"):
        left_out = [item for item in own if item.name in NOT_OURS]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


Serving = Callable[..., None]


@pytest.fixture(scope="session")
def sglang() -> Iterator[None]:
    """SGLang as a worker has it, with every plugin that is installed."""
    from .real import plain_kernels, start

    start()
    with plain_kernels():
        yield


@pytest.fixture
def serving(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Have the hooks serve another backend with other settings, as if the server had been started with them."""
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry

    from dit_cache_backends.hosts.sglang.settings import BACKEND, CONFIG, find_settings

    (hooks,) = {hook.__self__ for found in HookRegistry._hooks.values() for _, hook, _ in found}

    def change(backend: str, config: str = "", **environ: str) -> None:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)  # SGLang reads them, too
        settings = find_settings({**os.environ, BACKEND: backend, CONFIG: config})
        monkeypatch.setattr(hooks, "_settings", settings)

    return change


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[Any]:
    import torch

    with torch.no_grad():
        yield
