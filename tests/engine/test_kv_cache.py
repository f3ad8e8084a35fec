"""Calls that fill a key-value store run in full and are no steps."""

from __future__ import annotations

from torch import Tensor, nn

from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build_transformer, transformer_inputs

from .counting import executed
from .runs import kinds, output, run_plain, run_told, same
from .strategies import always, planned

NAME = "glm_image"


def make_cache() -> object:
    make = TINY_TRANSFORMERS[NAME].kv_cache
    assert make is not None
    return make()


def filled(cache: object) -> list[Tensor]:
    layers = cache.caches  # type: ignore[attr-defined]
    return [tensor for layer in layers for tensor in (*layer.k_caches, *layer.v_caches)]


def write(model: nn.Module, store: object) -> list[Tensor]:
    return [
        output(model, transformer_inputs(NAME, step=step, kv_cache=store, kv_mode="write"))
        for step in range(3)
    ]


def test_calls_that_write_the_store_always_run_in_full() -> None:
    model = build_transformer(NAME)
    expected = make_cache()
    plain = write(model, expected)
    backend = always()
    backend.enable(model)
    store = make_cache()
    with executed(model) as ran:
        found = write(model, store)
    assert same(found, plain)
    assert len(ran) == 3 * 6
    assert len(filled(store)) == 12
    assert same(filled(store), filled(expected))
    assert kinds(backend) == {"plain_call": 3}
    assert backend.summary().rows == []


def test_writing_calls_before_and_within_a_run_are_no_steps_of_it() -> None:
    model = build_transformer(NAME)
    store = make_cache()
    output(model, transformer_inputs(NAME, seed=3, kv_cache=store, kv_mode="write"))
    run = [transformer_inputs(NAME, step=step, total=5, kv_cache=store, kv_mode="read") for step in range(5)]
    plain = run_plain(model, run)
    backend = planned("10")
    backend.enable(model)
    alone = run_plain(model, run)
    assert backend.summary().cached_steps() == [1, 2, 3, 4]
    backend.disable()

    backend = planned("10")
    backend.enable(model)
    found = []
    for arguments in run:
        other = make_cache()
        output(model, transformer_inputs(NAME, seed=4, kv_cache=other, kv_mode="write"))
        assert len(filled(other)) == 12
        arguments["kv_caches"].set_mode("read")
        found.append(output(model, arguments))
    assert same(found, alone)
    assert not same(found, plain)
    assert [row.step for row in backend.summary().rows] == [0, 1, 2, 3, 4]
    assert kinds(backend) == {"plain_call": 5}


def test_told_steps_do_not_make_a_writing_call_skip() -> None:
    model = build_transformer(NAME)
    backend = always()
    backend.enable(model)
    store = make_cache()
    run_told(backend, model, [transformer_inputs(NAME)] * 2)
    with backend.step(2, 9), executed(model) as ran:
        output(model, transformer_inputs(NAME, kv_cache=store, kv_mode="write"))
    assert len(ran) == 6
    assert len(filled(store)) == 12
