"""Disable leaves the model as it was: classes, instances, class dictionaries; in any order, after anything."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import torch
from torch import nn

from dit_cache_backends import AlreadyEnabledError, NotEnabledError, enable_cache
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .counting import block_lists, executed
from .runs import STILL, inputs, output, relative, run_plain, run_told, same
from .strategies import LAYOUTS, always, never, planned


class State:
    """What there is to see of a model and its classes, by identity."""

    def __init__(self, model: nn.Module) -> None:
        modules = [model, *(block for blocks in block_lists(model).values() for block in blocks)]
        self.classes = [type(module) for module in modules]
        self.instances = [{name: id(value) for name, value in vars(module).items()} for module in modules]
        self.dictionaries = [
            {name: id(value) for name, value in vars(cls).items()}
            for module in modules
            for cls in type(module).__mro__[:-1]
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "sd3", "qwen_image"])
def test_classes_instances_and_class_dictionaries_are_as_before(name: str, layout: str) -> None:
    model = build_transformer(name)
    run = inputs(name, 3)
    plain = run_plain(model, run)
    before = State(model)
    backend = always(layout)
    backend.enable(model)
    assert State(model) != before
    run_told(backend, model, run)
    backend.disable(model)
    assert State(model) == before
    assert same(run_plain(model, run), plain)


@pytest.mark.parametrize("name", ["wan22", "dit"])
def test_pipelines_are_as_before_too(name: str) -> None:
    tiny = build(name)
    plain = tiny.run(3)
    before = [State(model) for model in tiny.transformers.values()]
    pipeline = {key: id(value) for key, value in vars(type(tiny.pipe)).items()}
    scheduler = {key: id(value) for key, value in vars(type(tiny.pipe.scheduler)).items()}
    attributes = set(vars(tiny.pipe)), set(vars(tiny.pipe.scheduler))
    backend = planned("10")
    backend.enable(tiny.pipe)
    tiny.run(3)
    backend.disable(tiny.pipe)
    assert [State(model) for model in tiny.transformers.values()] == before
    assert {key: id(value) for key, value in vars(type(tiny.pipe)).items()} == pipeline
    assert {key: id(value) for key, value in vars(type(tiny.pipe.scheduler)).items()} == scheduler
    assert (set(vars(tiny.pipe)), set(vars(tiny.pipe.scheduler))) == attributes
    assert torch.equal(tiny.run(3), plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_in_a_block_everything_is_as_before(error: type[BaseException]) -> None:
    model = build_transformer("sd3")
    before = State(model)
    backend = always()
    backend.enable(model)

    def fail(*_: object) -> None:
        raise error

    inside: nn.Module = model.transformer_blocks[3].attn  # type: ignore[index, union-attr, assignment]
    with backend.step(0, 9):
        hook = inside.register_forward_pre_hook(fail)
        with pytest.raises(error):
            output(model, transformer_inputs("sd3"))
        hook.remove()
    backend.disable()
    assert State(model) == before


def test_the_context_manager_disables_at_its_end_and_after_an_exception() -> None:
    tiny = build("sd3")
    before = State(tiny.pipe.transformer)
    with enable_cache(tiny.pipe, "cache_dit") as backend:
        assert backend.is_enabled()
        assert State(tiny.pipe.transformer) != before
    assert State(tiny.pipe.transformer) == before
    with pytest.raises(ZeroDivisionError), enable_cache(tiny.pipe, "cache_dit"):
        tiny.run(2, callback_on_step_end=lambda *_: 1 / 0)
    assert State(tiny.pipe.transformer) == before


def test_enabling_twice_is_an_error_that_changes_nothing() -> None:
    tiny = build("wan22")
    backend = planned("10")
    backend.enable(tiny.pipe)
    cached = tiny.run(3)
    states = [State(model) for model in tiny.transformers.values()]
    for second in (backend, planned("10"), never()):
        for target in (tiny.pipe, tiny.pipe.transformer_2):
            with pytest.raises(AlreadyEnabledError, match="disable"):
                second.enable(target)
    assert [State(model) for model in tiny.transformers.values()] == states
    assert torch.equal(tiny.run(3), cached)


def test_a_pipeline_of_which_one_expert_is_enabled_is_refused_as_a_whole() -> None:
    tiny = build("wan22")
    before = State(tiny.pipe.transformer)
    first, second = planned("10"), planned("10")
    first.enable(tiny.pipe.transformer_2)
    with pytest.raises(AlreadyEnabledError):
        second.enable(tiny.pipe)
    assert State(tiny.pipe.transformer) == before
    assert not second.is_enabled()


def test_one_module_as_both_experts_is_enabled_once() -> None:
    tiny = build("wan22")
    tiny.pipe.transformer_2 = tiny.pipe.transformer
    plain = tiny.run(4)
    before = State(tiny.pipe.transformer)
    backend = never()
    backend.enable(tiny.pipe)
    assert torch.equal(tiny.run(4), plain)
    backend.disable(tiny.pipe)
    assert State(tiny.pipe.transformer) == before


def test_diffusers_own_cache_is_not_doubled() -> None:
    from diffusers import FirstBlockCacheConfig

    model: Any = build_transformer("flux")
    model.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with pytest.raises(AlreadyEnabledError, match="Disable it first"):
        always().enable(model)
    model.disable_cache()
    always().enable(model)


def test_disabling_twice_or_what_was_never_enabled_is_harmless() -> None:
    model, stranger = build_transformer("sd3"), build_transformer("sd3")
    before = State(model), State(stranger)
    backend = always()
    backend.disable()
    backend.disable(model)
    backend.enable(model)
    backend.disable(stranger)
    assert backend.is_enabled()
    for _ in range(3):
        backend.disable(model)
        backend.disable()
    assert not backend.is_enabled()
    assert (State(model), State(stranger)) == before


@pytest.mark.parametrize("now", [None, "another"])
def test_what_was_enabled_is_found_although_its_transformer_was_exchanged_or_taken_out(
    now: str | None,
) -> None:
    tiny = build("sd3")
    old: nn.Module = tiny.pipe.transformer
    before = State(old)
    backend = planned("10")
    backend.enable(tiny.pipe)
    tiny.pipe.transformer = None if now is None else build_transformer("sd3")
    backend.disable(tiny.pipe)
    assert State(old) == before
    assert not backend.is_enabled()


def test_refreshing_what_is_not_enabled_is_an_error() -> None:
    backend = always()
    with pytest.raises(NotEnabledError, match="enable"):
        backend.refresh(build_transformer("sd3"), 4)


@pytest.mark.parametrize("seed", range(4))
def test_pipelines_of_one_class_are_enabled_and_disabled_in_any_order(seed: int) -> None:
    order = random.Random(seed)
    tinies = [build("sd3") for _ in range(3)]
    before = [State(tiny.pipe.transformer) for tiny in tinies]
    plain = tinies[0].run(3)
    backends = [planned("10") for _ in tinies]
    cached = None
    live: set[int] = set()
    for _ in range(12):
        number = order.randrange(3)
        if number in live:
            backends[number].disable(tinies[number].pipe)
        else:
            backends[number].enable(tinies[number].pipe)
        live ^= {number}
        for other, tiny in enumerate(tinies):
            found = tiny.run(3)
            if other in live:
                cached = found if cached is None else cached
                assert torch.equal(found, cached)
            else:
                assert torch.equal(found, plain)
                assert State(tiny.pipe.transformer) == before[other]
    assert cached is not None
    assert not torch.equal(cached, plain)


def number_of_classes() -> int:
    gc.collect()
    return sum(issubclass(type(thing), type) for thing in gc.get_objects())


def test_two_hundred_rounds_leave_no_class_behind() -> None:
    model = build_transformer("flux")
    run = inputs("flux", 2)

    def round_trip() -> None:
        backend = planned("10")
        backend.enable(model)
        backend.disable()

    round_trip()
    run_plain(model, run)
    before = State(model)
    classes = number_of_classes()
    for _ in range(200):
        round_trip()
    assert number_of_classes() == classes
    assert State(model) == before


def put_on_top(block: nn.Module) -> type:
    """Change the class of a block once more, as FSDP2 does."""
    below = type(block)

    class Sharded(below):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.__dict__["gathered"] = self.__dict__.get("gathered", 0) + 1
            return super().__call__(*args, **kwargs)

    block.__class__ = Sharded
    return Sharded


def test_another_swap_of_a_block_class_is_not_dropped() -> None:
    model = build_transformer("sd3")
    arguments = transformer_inputs("sd3")
    plain = output(model, arguments)
    backend = always()
    backend.enable(model)
    blocks: Any = model.transformer_blocks
    swapped = [put_on_top(block) for block in blocks]
    assert relative(run_told(backend, model, [arguments] * 3)[2], plain) <= STILL
    with pytest.warns(UserWarning, match="changed again"):
        backend.disable()
    assert [type(block) for block in blocks] == swapped
    assert torch.equal(output(model, arguments), plain)
    assert blocks[1].__dict__["gathered"] > 0

    # And what lies below it works again, once, when a backend is enabled anew.
    second = always()
    second.enable(model)
    with executed(model) as ran:
        found = run_told(second, model, [arguments] * 3)
    assert max(relative(one, plain) for one in found) <= STILL
    assert len(ran) == 7 + 2 * 1
    assert (second.summary().blocks_run, second.summary().blocks_skipped) == (9, 12)
    with pytest.warns(UserWarning, match="changed again"):
        second.disable()
    assert torch.equal(output(model, arguments), plain)


def test_a_swap_that_is_taken_off_again_before_disabling_leaves_nothing() -> None:
    model = build_transformer("sd3")
    before = State(model)
    backend = always()
    backend.enable(model)
    blocks: Any = model.transformer_blocks
    ours = [type(block) for block in blocks]
    for block in blocks:
        put_on_top(block)
    for block, cls in zip(blocks, ours, strict=True):
        block.__class__ = cls
    backend.disable()
    assert State(model) == before
