"""What `dbprune` holds between the steps of a run, and that nothing is left behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import SpanBackend, enable_cache
from dit_cache_conformance.tiny import Tiny, build, build_transformer, transformer_inputs

from ..engine.runs import PIPELINES, inputs, output, run_told, same
from ..engine.test_memory import newborn
from ..engine.toys import ONE, Toy, adds, image

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS = 6
SEER: dict[str, Any] = {"residual_diff_threshold": 0.9, "max_warmup_steps": 2, "enable_taylorseer": True}


def seer(tiny: Tiny) -> SpanBackend:
    backend: Any = enable_cache(tiny.pipe, "dbprune", **SEER)
    assert isinstance(backend, SpanBackend)
    return backend


@pytest.mark.parametrize("name", PIPELINES)
def test_a_finished_run_leaves_no_tensor(name: str) -> None:
    tiny = build(name)
    tiny.run(STEPS)
    with newborn() as alive:
        tiny.run(STEPS)
        of_the_scheduler = alive()
        backend = seer(tiny)
        for _ in range(2):
            tiny.run(STEPS)
            assert backend.summary().blocks_skipped
            assert not backend.held_tensors()
            assert alive() == of_the_scheduler
        backend.disable()


def held(name: str, mode: Any, **options: Any) -> tuple[int, int]:
    """Tensors held after the first step, and the bytes of the memory that they keep alive."""
    model = build_transformer(name)
    backend: Any = enable_cache(model, "dbprune", residual_diff_threshold=0.5, **options)
    with mode(), backend.step(0, 9):
        output(model, inputs(name, 9)[0])
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in backend.held_tensors()
    }
    return len(backend.held_tensors()), sum(storages.values())


MAIN = 16 * 32 * 4
"""Bytes of the main stream of FLUX and Chroma: 16 tokens of 32 channels in float32."""


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_one_input_a_block_is_held_beside_what_the_predictors_hold(mode: Any) -> None:
    """Also where the input is a part of a larger tensor, as in FLUX's single blocks, with the text in front."""
    text = 8 * 32 * 4
    prunable = 11
    tensors, size = held("flux", mode)
    assert tensors == 3 * prunable
    assert size == prunable * (2 * MAIN + text)
    assert held("flux", mode, Fn_compute_blocks=4, Bn_compute_blocks=2) == (3 * 6, 6 * (2 * MAIN + text))
    # Chroma's single blocks have one stream, in which text and image are joined.
    assert held("chroma", mode) == (3 * 2 + 2 * 4, 2 * (2 * MAIN + text) + 4 * 2 * (MAIN + text))


def test_the_inputs_can_be_held_in_part_or_in_a_smaller_type() -> None:
    _, whole = held("wan", torch.no_grad)
    inputs_alone = whole // 2
    for options, share in [
        ({"downsample_factor": 2}, 2),
        ({"downsample_factor": 4}, 4),
        ({"compare_dtype": "bfloat16"}, 2),
        ({"compare_dtype": "float16", "downsample_factor": 2}, 4),
    ]:
        assert held("wan", torch.no_grad, **options)[1] == inputs_alone + inputs_alone // share, options


@pytest.mark.parametrize(("threshold", "residuals"), [(0.0, 0), (1.0, 5)])
def test_no_input_is_held_where_none_is_compared(threshold: float, residuals: int) -> None:
    model = build_transformer("wan")
    backend: Any = enable_cache(model, "dbprune", residual_diff_threshold=threshold)
    with backend.step(0, 9):
        output(model, inputs("wan", 9)[0])
    assert len(backend.held_tensors()) == residuals


@pytest.mark.parametrize("options", [{"downsample_factor": 3}, {"compare_dtype": "bfloat16"}])
@pytest.mark.parametrize("name", ["flux", "wan", "hunyuan_video"])
def test_a_comparison_in_part_or_in_a_smaller_type_comes_close_to_the_whole_one(
    name: str, options: dict[str, Any]
) -> None:
    def differences(**more: Any) -> list[float]:
        model = build_transformer(name)
        backend: Any = enable_cache(
            model, "dbprune", residual_diff_threshold=1e-9, max_warmup_steps=1, **more
        )
        run_told(backend, model, inputs(name, 6))
        return [value for row in backend.summary().rows for value in row.differences]

    whole, part = differences(), differences(**options)
    assert part != whole
    assert part == pytest.approx(whole, rel=0.25)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_still_input_has_no_difference_in_a_smaller_type_either(dtype: str) -> None:
    model = build_transformer("sd3")
    backend: Any = enable_cache(model, "dbprune", max_warmup_steps=1, compare_dtype=dtype)
    for step in range(2):
        with backend.step(step, 9):
            output(model, transformer_inputs("sd3"))
    assert backend.summary().rows[1].differences[0] == 0.0


class Recycles(Toy):
    """Writes into the tensors that its blocks were given once it is done with them, as a CUDA graph does."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> tuple[Tensor]:
        h = hidden_states.clone()
        for block in self.blocks:
            before, h = h, block(h)
            before.zero_()
        return (h,)


def test_a_model_may_use_the_memory_of_its_streams_again() -> None:
    found = []
    for model in (Toy(*[adds] * 4), Recycles(*[adds] * 4)):
        backend: Any = enable_cache(
            model, "dbprune", card=ONE, residual_diff_threshold=0.2, max_warmup_steps=1
        )
        outputs = []
        for step in range(8):
            with backend.step(step, 8):
                outputs.append(model(image() + 0.04 * step * image(seed=5))[0])
        found.append((outputs, backend.summary().pruned_blocks()))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert {*found[0][1].values()} > {0}
