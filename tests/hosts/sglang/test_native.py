"""SGLang's own use of cache-dit beside ours, in a process without DIT_CACHE_BACKEND: the same steps, and what fails.

cache-dit mounts once in a process, so the tests keep to their order.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from dit_cache_backends.hosts.sglang.hooks import Hooks
from dit_cache_backends.hosts.sglang.mount import mounted
from dit_cache_backends.hosts.sglang.settings import BACKEND, find_settings

from .real import STEPS, Server

pytestmark = pytest.mark.usefixtures("sglang")
PARAMS: dict[str, Any] = {"residual_diff_threshold": 0.6, "max_warmup_steps": 1, "Fn_compute_blocks": 1}


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our functions where the stage has SGLang's."""
    from sglang.multimodal_gen.runtime.pipelines_core.stages import denoising

    settings = find_settings({BACKEND: "cache_dit"})
    assert settings is not None
    for name, hook in Hooks(settings).by_name().items():
        monkeypatch.setattr(denoising, name, functools.partial(hook, getattr(denoising, name)))


@pytest.fixture(scope="module")
def native(sglang: None) -> tuple[torch.Tensor, dict[str, int], Server]:
    """One request with SGLang's own cache, the first of the process."""
    server = Server("flux")
    with torch.no_grad():
        latents = server.request(enable_cache_dit=True, cache_dit_params=PARAMS)
    return latents, dict(server.ran), server


def test_without_the_variable_nothing_of_sglangs_is_touched() -> None:
    from sglang.multimodal_gen.runtime.cache import cache_dit_integration
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry

    assert not HookRegistry._hooks
    assert not HookRegistry._patched
    for name in ("enable_cache_on_transformer", "refresh_context_on_transformer"):
        function = getattr(cache_dit_integration, name)
        assert function.__module__ == cache_dit_integration.__name__
        assert not hasattr(function, "__wrapped__")


def test_cache_dit_skips_the_same_blocks_and_gives_the_same_latents_as_there(
    native: tuple[torch.Tensor, dict[str, int], Server], ours: None
) -> None:
    latents, ran, _ = native
    server = Server("flux")
    found = server.request(enable_cache_dit=True, cache_dit_params=PARAMS)
    compared = mounted(server.first).summary()
    assert 0 < len(compared.cached_steps()) < STEPS - 1, compared
    assert server.ran == ran
    torch.testing.assert_close(found, latents)


def test_cache_dit_cannot_be_mounted_twice_in_a_process_there(
    native: tuple[torch.Tensor, dict[str, int], Server],
) -> None:
    _, _, server = native
    with pytest.raises(AssertionError):
        server.request(enable_cache_dit=True, cache_dit_params={"max_warmup_steps": 2})
    with pytest.raises(AssertionError):
        Server("wan").request(enable_cache_dit=True)


def test_hunyuan_video_cannot_be_mounted_at_all_there(
    native: tuple[torch.Tensor, dict[str, int], Server],
) -> None:
    with pytest.raises(AttributeError, match="transformer_blocks"):
        Server("hunyuan_video").request(enable_cache_dit=True)
