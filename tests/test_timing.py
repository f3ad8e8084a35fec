"""How long modules take, told by hooks that are gone afterwards."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from dit_cache_backends.hosts.timing import transformer_seconds


class Slow(nn.Module):
    def forward(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("no time")
        time.sleep(seconds)


def test_only_what_the_watched_modules_take_is_counted() -> None:
    watched, other = Slow(), Slow()
    with transformer_seconds([watched]) as watch:
        watched(0.01)
        watched(0.01)
        other(0.05)
    assert watch.calls == 2
    assert watch.seconds >= 0.02
    before = watch.seconds
    watched(0.01)
    assert watch.seconds == before
    assert not watched._forward_hooks
    assert not watched._forward_pre_hooks


def test_a_failed_forward_counts_and_leaves_the_next_one_alone() -> None:
    module = Slow()
    with transformer_seconds([module]) as watch:
        with pytest.raises(ValueError, match="no time"):
            module(-1.0)
        failed = watch.seconds
        time.sleep(0.01)
        began = time.perf_counter()
        module(0.0)
        took = time.perf_counter() - began
    assert watch.calls == 2
    assert watch.seconds - failed <= took


def test_a_module_compiled_in_place_gets_no_hooks_that_would_be_compiled_with_it() -> None:
    module = nn.Linear(2, 2)
    module.compile(backend="eager")
    with transformer_seconds([module]) as watch:
        assert not module._forward_hooks
        module(torch.ones(1, 2))
    assert watch.calls == 0
