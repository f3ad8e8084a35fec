"""What users combine with a cache, before or after enabling it: adapters, casts, quantization, offload, compiling."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build, build_transformer

from ..engine.counting import block_lists
from ..engine.runs import STILL, inputs, output, relative, run_plain, run_told, same

pytestmark = pytest.mark.usefixtures("as_in_a_run")

MODELS = ("flux", "wan", "qwen_image")
STEPS = 6
MASK: dict[str, Any] = {
    "max_warmup_steps": 0,
    "Bn_compute_blocks": 1,
    "steps_computation_mask": [1, 0, 1, 0, 0, 1],
    "steps_computation_policy": "static",
}
NEVER: dict[str, Any] = MASK | {"steps_computation_mask": [1] * STEPS}
SKIPPED = [1, 3, 4]

Change = Callable[[Any, Path], None]


def lora(model: Any, folder: Path) -> None:
    peft = pytest.importorskip("peft")
    layers = {"to_q", "to_k", "to_v"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.add_adapter(peft.LoraConfig(r=2, target_modules=list(layers), init_lora_weights=False))
    model.requires_grad_(False)


def casting(model: Any, folder: Path) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def int8(model: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())


def native_attention(model: Any, folder: Path) -> None:
    model.set_attention_backend("native")


def leaf_offload(model: Any, folder: Path) -> None:
    model.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


def block_offload(model: Any, folder: Path) -> None:
    """To the disk: between their uses there are no weights at all, which shows what memory on one device cannot."""
    model.enable_group_offload(
        torch.device("cpu"),
        torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=2,
        offload_to_disk_path=str(folder),
    )


CHANGES: dict[str, Change] = {
    change.__name__: change for change in (lora, casting, int8, native_attention, leaf_offload, block_offload)
}
THE_SAME_NUMBERS = ("native_attention", "leaf_offload", "block_offload")


def agree(found: list[Tensor], expected: list[Tensor], change: str) -> bool:
    """Bit for bit; weights read from a file lie in memory as they come, which changes the last bit of a product."""
    if change != "block_offload":
        return same(found, expected)
    return max(relative(*pair) for pair in zip(found, expected, strict=True)) <= STILL


@contextmanager
def cached(model: nn.Module, options: dict[str, Any], backend: str = "cache_dit") -> Iterator[Any]:
    with enable_cache(model, backend, **options) as enabled:
        yield enabled


def changed(name: str, change: Change, folder: Path) -> Any:
    model = build_transformer(name)
    change(model, folder)
    return model


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODELS)
def test_a_cache_and_what_it_is_combined_with_go_together_in_either_order(
    name: str, change: str, tmp_path: Path
) -> None:
    run = inputs(name, STEPS)
    bare = build_transformer(name)
    plain = run_plain(changed(name, CHANGES[change], tmp_path / "plain"), run)
    assert agree(plain, run_plain(bare, run), change) == (change in THE_SAME_NUMBERS)
    found: dict[str, list[Tensor]] = {}
    for order in ("before", "after"):
        model = build_transformer(name)
        if order == "before":
            CHANGES[change](model, tmp_path / order)
        with cached(model, NEVER) as backend:
            if order == "after":
                CHANGES[change](model, tmp_path / order)
            assert agree(run_told(backend, model, run), plain, change)
        with cached(model, MASK) as backend:
            found[order] = run_told(backend, model, run)
            assert backend.summary().cached_steps() == SKIPPED
            still = run_told(backend, model, [run[0]] * 3)
        assert all(relative(one, plain[0]) <= STILL for one in still)
        assert agree(run_plain(model, run), plain, change)
    assert agree(found["before"], found["after"], change)
    for step, (one, other) in enumerate(zip(found["before"], plain, strict=True)):
        assert agree([one], [other], change) == (step not in SKIPPED)
        assert relative(one, other) < 0.25
    if change in THE_SAME_NUMBERS:
        with cached(bare, MASK) as backend:
            assert agree(run_told(backend, bare, run), found["before"], change)


@pytest.mark.parametrize("change", CHANGES)
def test_dbprune_goes_together_with_them_too(change: str, tmp_path: Path) -> None:
    run = inputs("flux", STEPS)
    options = {"max_warmup_steps": 1, "residual_diff_threshold": 0.2}
    model = build_transformer("flux")
    with cached(model, options, "dbprune") as backend:
        CHANGES[change](model, tmp_path / "after")
        found = run_told(backend, model, run)
        assert backend.summary().blocks_skipped > 0
        still = run_told(backend, model, [run[0]] * 3)
    plain = run_plain(model, run)
    assert agree(found[:1], plain[:1], change)
    assert all(relative(one, plain[0]) <= STILL for one in still)
    other = changed("flux", CHANGES[change], tmp_path / "before")
    with cached(other, options, "dbprune") as backend:
        assert agree(run_told(backend, other, run), found, change)


@pytest.mark.parametrize(
    "options", [{"Bn_compute_blocks": 1}, {"Fn_compute_blocks": 3}, {"Bn_compute_blocks": 4}]
)
@pytest.mark.parametrize("group", [2, 3, 4])
def test_a_block_whose_group_was_to_be_brought_in_by_a_skipped_one_still_has_its_weights(
    group: int, options: dict[str, int], tmp_path: Path
) -> None:
    run = inputs("wan", STEPS)
    bare, model = build_transformer("wan"), build_transformer("wan")
    with cached(bare, MASK | options) as backend:
        expected = run_told(backend, bare, run)
    model.enable_group_offload(  # type: ignore[operator]
        torch.device("cpu"),
        torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=group,
        offload_to_disk_path=str(tmp_path),
    )
    with cached(model, MASK | options) as backend:
        assert agree(run_told(backend, model, run), expected, "block_offload")


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_switched_between_two_generations_is_seen_in_the_next(name: str, tmp_path: Path) -> None:
    model = changed(name, lora, tmp_path)
    run = inputs(name, STEPS)
    with cached(model, MASK) as backend:
        with_adapter = run_told(backend, model, run)
        model.disable_adapters()
        without = run_told(backend, model, run)
        model.enable_adapters()
        again = run_told(backend, model, run)
    bare = build_transformer(name)
    with cached(bare, MASK) as backend:
        expected = run_told(backend, bare, run)
    assert same(without, expected)
    assert same(again, with_adapter)
    assert not same(without, with_adapter)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", MODELS)
def test_a_pipeline_with_model_offload_runs_cached_as_without(name: str, order: str) -> None:
    tiny = build(name)
    plain = tiny.run(STEPS)
    with cached(tiny.pipe, MASK):
        expected = tiny.run(STEPS)
    assert not torch.equal(expected, plain)
    if order == "before":
        tiny.pipe.enable_model_cpu_offload(device="cpu")
    with cached(tiny.pipe, MASK) as backend:
        if order == "after":
            tiny.pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert torch.equal(tiny.run(STEPS), expected)
            assert backend.summary().cached_steps() == SKIPPED
    assert torch.equal(tiny.run(STEPS), plain)


def test_compiled_blocks_with_an_adapter_run_cached_as_eager_ones(tmp_path: Path) -> None:
    """Adapter, compiling and cache at once, on the one of the three models that `test_compile.py` does not compile."""
    torch._dynamo.reset()
    name = "qwen_image"
    run = inputs(name, STEPS)
    eager = changed(name, lora, tmp_path)
    plain = run_plain(eager, run)
    with cached(eager, MASK) as backend:
        expected = run_told(backend, eager, run)
    model = build_transformer(name)
    with cached(model, MASK) as backend:
        lora(model, tmp_path)
        model.compile_repeated_blocks(backend="aot_eager", fullgraph=True)  # type: ignore[operator]
        found = run_told(backend, model, run)
        assert backend.summary().cached_steps() == SKIPPED
    torch._dynamo.reset()
    assert all(relative(*pair) < 1e-5 for pair in zip(found, expected, strict=True))
    assert relative(output(model, run[0]), plain[0]) < 1e-5


def test_the_tiny_models_have_blocks_enough_that_a_group_is_cut_by_a_span() -> None:
    for name in MODELS:
        depth = sum(map(len, block_lists(build_transformer(name)).values()))
        assert depth % 2 == 0
        assert depth >= 6
