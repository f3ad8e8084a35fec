"""The cards of SGLang's transformers, each on a tiny real one."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import SpanBackend, enable_cache, get_cache_backend, list_cards
from dit_cache_backends.models import card_for
from dit_cache_backends.models.signals import BlockArguments, Signal, TimeSignal
from dit_cache_backends.strategies.tea_cache_models import choose

from ...engine.strategies import LAYOUTS, always, never
from .models import CONFIGS, TINY, Tiny, build
from .real import make_batch

STEPS = 4
STILL = 2e-6
FOLLOWED = 0.9
"""Error of a skipped step, of what the output changed by: 1 is as bad as not following at all."""

pytestmark = pytest.mark.usefixtures("sglang")


class Model:
    """A tiny model, its arguments, and how often its blocks ran."""

    def __init__(self, kind: str) -> None:
        self.tiny: Tiny = TINY[kind]
        self.module = build(kind)
        random = torch.Generator().manual_seed(1)
        self.latents = torch.randn(self.tiny.latents, generator=random)
        self.further = torch.randn(self.tiny.latents, generator=random)
        self.prompt = self.tiny.prompt(random, self.module)
        self.ran: Counter[tuple[str, int]] = Counter()
        for path in self.tiny.blocks:
            for number, block in enumerate(self.module.get_submodule(path)):  # type: ignore[arg-type]
                child = block.get_submodule(self.tiny.inner)
                child.register_forward_hook(lambda *_, key=(path, number): self.ran.update([key]))

    def __call__(self, moved: float = 0.0, time: float = 500.0) -> Tensor:
        from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context

        with set_forward_context(0, None, forward_batch=make_batch(STEPS)):
            latents, timestep = self.tiny.names
            given = {latents: self.latents + moved * self.further, timestep: torch.full((1,), time)}
            out = self.module(**given, **self.prompt)
        found: Tensor = out if isinstance(out, Tensor) else out[0]
        return found


@pytest.fixture(params=TINY)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


@contextmanager
def on(model: Model, backend: SpanBackend) -> Iterator[None]:
    backend.enable(model.module)
    try:
        yield
    finally:
        backend.disable()


def steps(backend: SpanBackend, model: Model, moved: float = 0.0) -> list[Tensor]:
    outputs = []
    for index in range(STEPS):
        with backend.step(index, STEPS, "cond"):
            outputs.append(model(moved * index))
    return outputs


def test_every_card_of_sglang_has_a_tiny_model() -> None:
    mine = {card.transformer for card in list_cards() if card.library == "sglang"}
    assert mine == {tiny.name for tiny in TINY.values()}


def test_the_card_is_the_one_of_sglang_and_names_lists_that_are_there(model: Model) -> None:
    card = card_for(model.module)
    assert card.library == "sglang"
    depths = {
        blocks.path: len(model.module.get_submodule(blocks.path))
        for each in card.stacks
        for blocks in each.lists
    }  # type: ignore[arg-type]
    assert depths == model.tiny.blocks


@pytest.mark.parametrize("layout", LAYOUTS)
def test_never_skipping_changes_no_bit(model: Model, layout: str) -> None:
    plain = [model(0.1 * index) for index in range(STEPS)]
    backend = never(layout)
    with on(model, backend):
        assert all(map(torch.equal, steps(backend, model, moved=0.1), plain))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_still_input_is_reproduced_though_blocks_are_skipped(model: Model, layout: str) -> None:
    plain = model()
    model.ran.clear()
    backend = always(layout)
    with on(model, backend):
        for found in steps(backend, model):
            torch.testing.assert_close(found, plain, atol=STILL * float(plain.abs().max()), rtol=0)
    assert min(model.ran.values()) == 1
    assert set(model.ran) == {(path, n) for path, depth in model.tiny.blocks.items() for n in range(depth)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_small_move_of_the_input_is_followed_through_a_skipped_span(model: Model, layout: str) -> None:
    """A wrong layout or a wrong order of streams reproduces a still input, and cannot follow."""
    before, now = model(), model(0.01)
    backend = always(layout)
    with on(model, backend):
        for index, moved in enumerate((0.0, 0.01)):
            with backend.step(index, STEPS, "cond"):
                found = model(moved)
    assert float((found - now).norm() / (now - before).norm()) < FOLLOWED


EAGER: dict[str, dict[str, Any]] = {
    "cache_dit": {"residual_diff_threshold": 1.0, "max_warmup_steps": 1},
    "dbprune": {"residual_diff_threshold": 1.0, "max_warmup_steps": 1},
    "tea_cache": {"rel_l1_thresh": 1e6, "coefficients": "identity", "end_step": 1.0},
}


@pytest.mark.parametrize("name", EAGER)
def test_an_eager_configuration_of_each_built_in_strategy_skips(model: Model, name: str) -> None:
    backend = get_cache_backend(name, EAGER[name])
    assert isinstance(backend, SpanBackend)
    with on(model, backend):
        steps(backend, model, moved=0.05)
    for path, depth in model.tiny.blocks.items():
        assert model.ran[path, depth - 1] == 1, (path, model.ran)


def test_enable_cache_needs_no_more_than_the_model(model: Model) -> None:
    with enable_cache(model.module, "cache_dit", **EAGER["cache_dit"]) as backend:
        for time in (900.0, 600.0, 300.0):
            model(time=time)
        assert backend.summary().blocks_skipped > 0


READERS = {
    "anima": lambda block: (block.attn1, 0),
    "ernie_image": lambda block: (block.self_attention, 0),
    "glm_image": lambda block: (block.attn1, "hidden_states"),
    "ideogram4": lambda block: (block.attention, 0),
    "krea2": lambda block: (block.attn, 0),
    "longcat_image": lambda block: (block.attn, "hidden_states"),
    "sana": lambda block: (block.attn1, 0),
    "sana_video": lambda block: (block.attn1, 0),
    "sd3": lambda block: (block.attn, "hidden_states"),
    "flux": lambda block: (block.attn, "x"),
    "flux2": lambda block: (block.attn, "hidden_states"),
    "qwen_image": lambda block: (block.attn, "hidden_states"),
    "hunyuan_video": lambda block: (block.img_attn_qkv, 0),
    "z_image": lambda block: (block.attention, 0),
}
"""What takes the modulated input in the model's own first block."""


@pytest.mark.parametrize("kind", READERS)
def test_the_signal_is_what_the_first_block_itself_computes_with(kind: str) -> None:
    model = Model(kind)
    (signal,) = card_for(model.module).signals
    assert isinstance(signal, Signal)
    block = model.module.get_submodule(next(iter(model.tiny.blocks)))[0]  # type: ignore[index]
    taker, name = READERS[kind](block)
    seen: dict[str, Tensor] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["signal"] = signal.read(block, BlockArguments(block, args, kwargs))

    def taken(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = {**dict(enumerate(args)), **kwargs}
        seen["model"] = given.get(name, next(iter(given.values())))

    handles = [
        block.register_forward_pre_hook(before, with_kwargs=True),
        taker.register_forward_pre_hook(taken, with_kwargs=True),
    ]
    model()
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(seen["signal"], seen["model"])


@pytest.mark.parametrize("number", [0, 1])
def test_wans_time_signals_are_what_its_embedder_gives(number: int) -> None:
    model = Model("wan")
    signal = card_for(model.module).signals[number]
    assert isinstance(signal, TimeSignal)
    seen: list[Tensor] = []
    handle = model.module.condition_embedder.register_forward_hook(lambda *all: seen.append(all[2][number]))
    model(time=321.0)
    handle.remove()
    made = signal.embed(model.module, torch.tensor([321.0]), torch.float32, lambda name: None)
    torch.testing.assert_close(made, seen[0])


@pytest.mark.parametrize(
    ("module", "config", "changes", "experts", "name"),
    [
        ("flux", "FluxConfig", {}, 1, "flux_dev"),
        ("hunyuanvideo", "HunyuanVideoConfig", {}, 1, "hunyuan_video"),
        ("wanvideo", "WanVideoConfig", {"num_layers": 30, "num_attention_heads": 12}, 1, "wan21_t2v_1_3b"),
        ("wanvideo", "WanVideoConfig", {}, 1, "wan21_t2v_14b"),
        ("wanvideo", "WanVideoConfig", {}, 2, "wan21_t2v_14b"),
        ("qwenimage", "QwenImageDitConfig", {"num_layers": 60}, 1, "qwen_image"),
        ("zimage", "ZImageDitConfig", {}, 1, "hunyuan_video"),
        ("longcat_image", "LongCatImageDitConfig", {}, 1, "longcat_image"),
    ],
)
def test_published_coefficients_are_found_by_the_configuration_that_sglang_gives_a_model(
    module: str, config: str, changes: dict[str, int], experts: int, name: str
) -> None:
    made = getattr(importlib.import_module(f"{CONFIGS}.{module}"), config)()
    for key, value in changes.items():
        setattr(made.arch_config, key, value)
    (transformer,) = {
        tiny.name
        for tiny in TINY.values()
        if tiny.config.startswith(f"{module}.") and tiny.name != "Flux2Transformer2DModel"
    }
    model: Any = SimpleNamespace(config=made)
    assert choose(transformer, model, "", experts, "sglang").name == name
