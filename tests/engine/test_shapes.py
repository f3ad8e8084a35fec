"""A stored residual of another shape, dtype or device is never added, and dtypes are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .counting import executed
from .runs import kinds, output, relative, run_told, same
from .strategies import LAYOUTS, always, planned


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batches", [(2, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("name", ["z_image", "flux"])
def test_a_batch_that_changes_within_a_run_runs_once_and_is_counted(
    name: str, batches: tuple[int, int], layout: str
) -> None:
    model = build_transformer(name)
    run = [transformer_inputs(name, step=step, batch=batches[step > 1]) for step in range(4)]
    plain = [output(model, arguments) for arguments in run]
    backend = always(layout)
    backend.enable(model)
    found = run_told(backend, model, run)
    assert torch.equal(found[2], plain[2])
    assert [row.step for row in backend.summary().rows if row.blocks_skipped] == [1, 3]
    assert found[3].shape == plain[3].shape
    spans = len(LAYOUTS[layout]({"z_image": 6, "flux": 12}[name]))
    assert kinds(backend).get("shape_changed") == spans


def test_a_sequence_that_changes_within_a_run_runs_once_and_is_counted() -> None:
    model = build_transformer("sd3")
    short = transformer_inputs("sd3")
    long = short | {"encoder_hidden_states": torch.cat([short["encoder_hidden_states"]] * 2, dim=1)}
    plain = output(model, long)
    backend = always()
    backend.enable(model)
    found = run_told(backend, model, [short, long, long])
    assert torch.equal(found[1], plain)
    assert relative(found[2], plain) <= 1e-6
    assert kinds(backend).get("shape_changed") == 1


def test_another_dtype_within_a_run_runs_once_and_is_counted() -> None:
    model = build_transformer("sd3")
    half = build_transformer("sd3").to(torch.bfloat16)
    low = {
        name: value.to(torch.bfloat16) if isinstance(value, torch.Tensor) else value
        for name, value in transformer_inputs("sd3").items()
    }
    plain = output(half, low)
    backend = always()
    backend.enable(model)
    with backend.step(0, 9):
        output(model, transformer_inputs("sd3"))
    model.to(torch.bfloat16)
    with backend.step(1, 9), executed(model) as ran:
        found = output(model, low)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, plain)
    assert len(ran) == 7
    assert kinds(backend).get("shape_changed") == 1


def test_cache_dit_says_in_the_row_that_the_batch_changed() -> None:
    model = build_transformer("z_image")
    run = [transformer_inputs("z_image", step=step, batch=2 - (step > 3)) for step in range(7)]
    plain = [output(model, arguments) for arguments in run]
    backend: Any = enable_cache(model, "cache_dit", residual_diff_threshold=0.99, max_warmup_steps=2)
    found = run_told(backend, model, run)
    assert torch.equal(found[4], plain[4])
    reasons = {row.step: row.reason for row in backend.summary().rows}
    assert reasons[4] == "shape changed"
    assert backend.summary().cached_steps() == [2, 3, 5, 6]


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen_image", "wan"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_half_precision_runs_keep_their_dtype_and_stay_near(name: str, dtype: torch.dtype, mode: Any) -> None:
    model = build_transformer(name).to(dtype)
    arguments = {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in transformer_inputs(name).items()
    }
    with mode():
        plain = output(model, arguments)
        backend = always()
        backend.enable(model)
        found = run_told(backend, model, [arguments] * 3)
    assert [one.dtype for one in found] == [dtype] * 3
    assert torch.equal(found[0], plain)
    assert backend.summary().cached_steps() == [1, 2]
    # A residual rounded to the dtype: some units in its last place.
    assert max(relative(one, plain) for one in found) <= 6 * torch.finfo(dtype).eps


def test_a_half_precision_pipeline_keeps_its_dtype_with_and_without_skipping() -> None:
    tiny = build("flux")
    tiny.pipe.transformer.to(torch.bfloat16)
    arguments = {
        name: value.to(torch.bfloat16) if isinstance(value, torch.Tensor) else value
        for name, value in tiny.spec.arguments(1).items()
    }
    plain = tiny.run(4, **arguments)
    assert plain.dtype == torch.bfloat16
    for plan, cached in (("1", []), ("10", [1, 2, 3])):
        backend = planned(plan)
        backend.enable(tiny.pipe)
        found = tiny.run(4, **arguments)
        assert found.dtype == torch.bfloat16
        assert backend.summary().cached_steps() == cached
        assert same([found], [plain]) == (not cached)
        backend.disable()
