"""Classes whose blocks fill a store that later calls read: a call that fills it runs in full, whatever the strategy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build_transformer, transformer_inputs

from ..engine.counting import executed
from ..engine.runs import STILL, kinds, relative, same
from ..engine.strategies import always

pytestmark = pytest.mark.usefixtures("as_in_a_run")

NAMES = [name for name, spec in TINY_TRANSFORMERS.items() if spec.kv_cache is not None]


def store_of(name: str) -> Any:
    make = TINY_TRANSFORMERS[name].kv_cache
    assert make is not None
    return make()


def tensors(thing: Any) -> Iterator[Tensor]:
    """Every tensor in a store, whatever its classes are called."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            yield from tensors(item)
    elif isinstance(thing, dict):
        yield from tensors(list(thing.values()))
    else:
        slots = [getattr(thing, slot, None) for slot in getattr(type(thing), "__slots__", ())]
        yield from tensors([*slots, *getattr(thing, "__dict__", {}).values()])


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_fills_the_store_runs_in_full_and_those_that_read_it_are_skipped(name: str) -> None:
    model, depth = build_transformer(name), sum(TINY_TRANSFORMERS[name].stacks.values())
    expected, store = store_of(name), store_of(name)

    def call(into: Any, mode: str) -> Any:
        """What the model gives; AnyFlow-FAR gives nothing in a call that fills the store."""
        sample = model(**transformer_inputs(name, kv_cache=into, kv_mode=mode))[0]
        return torch.stack(sample) if isinstance(sample, list) else sample

    written, read = call(expected, "write"), call(expected, "read")
    assert list(tensors(expected))
    with always("whole") as backend, executed(model) as ran:
        backend.enable(model)
        for step in range(2):
            with backend.step(step, 9):
                again = call(store, "write")
                assert torch.equal(again, written) if isinstance(written, Tensor) else again is None
                assert len(ran.take()) == depth
            if not step:
                assert same(tensors(store), tensors(expected))
                call(store_of(name), "write")
                ran.take()
            with backend.step(step, 9):
                assert relative(call(store, "read"), read) <= STILL
            assert len(ran.take()) == (0 if step else depth)
        assert kinds(backend) == {"plain_call": 3}
