"""Two backends take turns on one transformer: one is suspended while the other works, and forgets nothing."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import (
    AlreadyEnabledError,
    ConfigError,
    NotEnabledError,
    SpanBackend,
    get_cache_backend,
)
from tests.engine.runs import same
from tests.engine.strategies import always, planned
from tests.engine.toys import DIM, ONE, Toy, adds

STEPS = 6


def _latents(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, DIM, generator=generator) for _ in range(STEPS)]


def _toy() -> Toy:
    return Toy(adds, adds, adds, adds)


def _step(backend: SpanBackend, model: Toy, index: int, latent: Tensor) -> Tensor:
    with backend.step(index, STEPS, "cond"):
        return model(latent)[0]


def _alone(backend: SpanBackend, seed: int) -> list[Tensor]:
    model = _toy()
    backend.enable(model, card=ONE)
    return [_step(backend, model, index, latent) for index, latent in enumerate(_latents(seed))]


def _look(model: Toy) -> list[tuple[type, set[str]]]:
    return [(type(module), set(vars(module))) for module in model.modules()]


def test_in_turns_each_gives_what_it_gives_alone() -> None:
    model = _toy()
    one, other = planned("1001"), planned("101010", "whole")
    one.enable(model, card=ONE)
    one.suspend(model)
    other.enable(model, card=ONE)
    other.suspend(model)
    found: dict[SpanBackend, list[Tensor]] = {one: [], other: []}
    for index, latents in enumerate(zip(_latents(1), _latents(2), strict=True)):
        for backend, latent in zip((one, other), latents, strict=True):
            backend.resume(model)
            found[backend].append(_step(backend, model, index, latent))
            backend.suspend(model)
    assert same(found[one], _alone(planned("1001"), 1))
    assert same(found[other], _alone(planned("101010", "whole"), 2))
    assert one.summary().cached_steps() == [1, 2]
    assert other.summary().cached_steps() == [1, 3, 5]


def test_a_suspended_backend_leaves_the_model_as_it_was() -> None:
    model = _toy()
    before, plain = _look(model), model(_latents(1)[1])[0]
    backend = always()
    backend.enable(model, card=ONE)
    _step(backend, model, 0, _latents(1)[0])
    backend.suspend(model)
    assert _look(model) == before
    assert torch.equal(model(_latents(1)[1])[0], plain)
    assert backend.held_tensors()


def test_suspending_and_resuming_twice_is_harmless() -> None:
    model, backend = _toy(), always()
    backend.enable(model, card=ONE)
    for change in (backend.resume, backend.suspend, backend.suspend, backend.resume, backend.resume):
        change(model)
    for index, latent in enumerate(_latents(1)):
        _step(backend, model, index, latent)
    assert backend.summary().cached_steps() == [1, 2, 3, 4, 5]


def test_a_backend_that_was_suspended_can_be_disabled_and_forgets() -> None:
    model, backend = _toy(), always()
    before = _look(model)
    backend.enable(model, card=ONE)
    _step(backend, model, 0, _latents(1)[0])
    backend.suspend(model)
    backend.disable(model)
    assert not backend.is_enabled()
    assert not backend.held_tensors()
    assert _look(model) == before
    with pytest.raises(NotEnabledError):
        backend.resume(model)


def test_resuming_beside_another_backend_is_refused_and_changes_nothing() -> None:
    model, one, other = _toy(), always(), always()
    one.enable(model, card=ONE)
    one.suspend(model)
    other.enable(model, card=ONE)
    before = _look(model)
    with pytest.raises(AlreadyEnabledError):
        one.resume(model)
    assert _look(model) == before
    other.disable(model)
    one.resume(model)
    for index, latent in enumerate(_latents(1)):
        _step(one, model, index, latent)
    assert one.summary().blocks_skipped > 0


def test_a_suspended_backend_keeps_no_block_alive() -> None:
    model, backend = _toy(), always()
    backend.enable(model, card=ONE)
    backend.suspend(model)
    gone = [weakref.ref(block) for block in model.blocks]
    del model
    assert [each() for each in gone] == [None] * 4


@pytest.mark.parametrize(
    ("config", "message"), [({"Fn_compute_blocks": 9}, "leave no block"), ({"Fn_compute_blocks": 1}, "")]
)
def test_checking_says_what_enabling_would_and_touches_nothing(config: dict[str, Any], message: str) -> None:
    model, backend = _toy(), get_cache_backend("cache_dit", config)
    assert isinstance(backend, SpanBackend)
    busy, before = always(), _look(model)
    busy.enable(model, card=ONE)
    enabled = _look(model)
    if message:
        with pytest.raises(ConfigError, match=message):
            backend.check(model, card=ONE)
    else:
        backend.check(model, card=ONE)
    assert _look(model) == enabled
    assert not backend.is_enabled()
    busy.disable(model)
    assert _look(model) == before
