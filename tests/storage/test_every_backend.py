"""All that a backend remembers between steps lies where its options say, in the dtype that they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import Storage
from dit_cache_backends.engine.storage import DTYPES, Packed

from ..engine.runs import inputs, output, relative, same
from .elsewhere import NOWHERE, Elsewhere, fetch, keeping, send
from .runs import CLASSES, OURS, STEPS, eager, made, run, skipped

EVERY = pytest.mark.parametrize("name", OURS)
MODELS = pytest.mark.parametrize("model", ["flux", "wan"])
SEER: dict[str, Any] = {"calibrator": "taylorseer", "taylorseer_order": 2}
SMALL = 4
"""Numbers: what is no larger is a number for each sample, not a stream."""


class Seen:
    """Everything that was held after some step."""

    def __init__(self) -> None:
        self.streams = 0
        self.small = 0
        self.dtypes: set[torch.dtype] = set()
        self.kinds: set[type] = set()

    def __call__(self, held: Sequence[Tensor]) -> None:
        for tensor in held:
            if tensor.numel() <= SMALL:
                self.small += 1
                continue
            self.streams += 1
            self.kinds.add(type(tensor))
            self.dtypes.add(tensor.dtype)


@EVERY
@pytest.mark.parametrize(("dtype", "more"), [("bfloat16", {}), ("float8_e4m3fn", SEER)])
def test_everything_is_held_in_the_dtype_asked_for(name: str, dtype: str, more: dict[str, Any]) -> None:
    seen, backend = Seen(), made(name, cache_dtype=dtype, **more)
    outputs = run(backend, look=seen)
    assert seen.dtypes == {DTYPES[dtype]}
    assert seen.streams
    assert backend.summary().blocks_skipped
    assert {each.dtype for each in outputs} == {torch.float32}
    assert all(each.isfinite().all() for each in outputs)


@EVERY
@MODELS
def test_everything_lies_on_the_other_device_and_no_bit_changes(
    name: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is computed there: a tensor that lies elsewhere refuses."""
    monkeypatch.setattr(Packed, "_sent", send)
    monkeypatch.setattr(Packed, "_fetched", fetch)
    seen, plain = Seen(), made(name, **SEER)
    expected = run(plain, model)
    backend = keeping(CLASSES[name], Storage(NOWHERE))({**eager(name), **SEER})
    assert same(run(backend, model, seen), expected)
    assert skipped(backend) == skipped(plain)
    assert seen.kinds == {Elsewhere}
    assert seen.dtypes == {torch.float32}


@pytest.mark.parametrize("kind", ["none", "taylorseer", "foca", "dmd", "hermite", "chebyshev", "newton"])
@pytest.mark.parametrize("cache_type", ["residual", "hidden_states"])
def test_every_calibrator_keeps_its_tensors_there(
    kind: str, cache_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Packed, "_sent", send)
    monkeypatch.setattr(Packed, "_fetched", fetch)
    options: dict[str, Any] = {
        "calibrator": kind,
        "taylorseer_cache_type": cache_type,
        "steps_computation_mask": "11111101001",
        "steps_computation_policy": "static",
    }
    expected = run(CLASSES["cache_dit"](options), steps=11)
    seen = Seen()
    backend = keeping(CLASSES["cache_dit"], Storage(NOWHERE))(options)
    assert same(run(backend, look=seen, steps=11), expected)
    assert seen.kinds == {Elsewhere}


@EVERY
@pytest.mark.parametrize("options", [{"cache_device": "cpu"}, {"cache_dtype": "float32"}])
def test_what_the_streams_have_anyway_changes_no_bit(name: str, options: dict[str, Any]) -> None:
    expected, backend = run(made(name)), made(name, **options)
    assert same(run(backend), expected)
    assert backend.summary().settings


@pytest.mark.parametrize("name", ["cache_dit", "dbprune", "easy_cache"])
def test_a_model_in_bfloat16_keeps_bfloat16_without_a_loss(name: str) -> None:
    bare, seen = made(name, **SEER), Seen()
    expected = run(bare, dtype=torch.bfloat16)
    backend = made(name, cache_dtype="bfloat16", **SEER)
    assert same(run(backend, look=seen, dtype=torch.bfloat16), expected)
    assert seen.dtypes == {torch.bfloat16}
    # A wider dtype holds the same numbers, but for differences of TaylorSeer's.
    wide = made(name, cache_dtype="float32", calibrator="none")
    assert same(run(wide, dtype=torch.bfloat16), run(made(name, calibrator="none"), dtype=torch.bfloat16))


@EVERY
@pytest.mark.parametrize(("dtype", "limit"), [("float16", 1e-3), ("float8_e4m3fn", 0.1)])
def test_the_outputs_are_off_by_the_rounding_of_what_is_kept(name: str, dtype: str, limit: float) -> None:
    plain, backend = made(name), made(name, cache_dtype=dtype)
    expected, found = run(plain), run(backend)
    assert skipped(backend) == skipped(plain)
    assert 0 < max(relative(*pair) for pair in zip(found, expected, strict=True)) < limit


@EVERY
def test_never_skipping_changes_no_bit(name: str) -> None:
    never = dict((getattr(CLASSES[name], "conformance", None) or _presets(name))["never"])
    bare = run(CLASSES[name](never))
    backend = CLASSES[name]({**never, "cache_dtype": "float8_e4m3fn"})
    assert same(run(backend), bare)
    assert not backend.summary().blocks_skipped


def _presets(name: str) -> Any:
    from dit_cache_conformance.presets import PRESETS

    return PRESETS[name]


def test_what_a_block_shows_outside_its_span_is_kept_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hunyuan-DiT's long skips take what the blocks of its first half added."""
    monkeypatch.setattr(Packed, "_sent", send)
    monkeypatch.setattr(Packed, "_fetched", fetch)
    last_run = {**eager("step_plan"), "Bn_compute_blocks": 2}
    expected = run(CLASSES["step_plan"](last_run), "hunyuan_dit")
    seen, residuals = Seen(), Seen()
    run(made("step_plan"), "hunyuan_dit", residuals)
    backend = keeping(CLASSES["step_plan"], Storage(NOWHERE))(last_run)
    assert same(run(backend, "hunyuan_dit", seen), expected)
    assert seen.streams > residuals.streams
    assert seen.kinds == {Elsewhere}


def test_parts_of_a_model_may_keep_theirs_otherwise() -> None:
    seen = Seen()
    overrides = {"single_transformer_blocks": {"cache_dtype": "float16"}}
    run(made("dbprune", cache_dtype="bfloat16", overrides=overrides), "chroma", seen)
    assert seen.dtypes == {torch.bfloat16, torch.float16}


def test_the_dtype_in_which_dbprune_compares_goes_before() -> None:
    seen = Seen()
    run(made("dbprune", cache_dtype="float8_e4m3fn", compare_dtype="bfloat16"), look=seen)
    assert seen.dtypes == {torch.float8_e4m3fn, torch.bfloat16}


@pytest.mark.parametrize("name", ["cache_dit", "dbprune"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_inference_mode_makes_no_difference(name: str, dtype: str) -> None:
    options: dict[str, Any] = {"cache_dtype": dtype, **SEER}
    expected = run(made(name, **options))
    with torch.inference_mode():
        found = run(made(name, **options))
    assert same(found, expected)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("name", ["cache_dit", "dbprune"])
def test_under_autocast_the_outputs_have_the_dtype_that_they_have_without_the_option(name: str) -> None:
    seen, backend = Seen(), made(name, cache_dtype="float8_e4m3fn", **SEER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = run(made(name, **SEER)), run(backend, look=seen)
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    assert max(relative(*pair) for pair in zip(found, expected, strict=True)) < 0.2
    assert seen.dtypes == {torch.float8_e4m3fn}


def test_weights_that_are_offloaded_in_groups_make_no_difference() -> None:
    """Streams stay where they are computed; only modules come and go."""
    from diffusers.hooks import apply_group_offloading

    from dit_cache_conformance.tiny import build_transformer

    outputs = []
    for offloaded in (False, True):
        model = build_transformer("flux")
        if offloaded:
            place = torch.device("cpu")
            apply_group_offloading(model, place, place, offload_type="block_level", num_blocks_per_group=1)
        backend = made("cache_dit", cache_dtype="bfloat16", cache_device="cpu")
        backend.enable(model)
        found = []
        for step, arguments in enumerate(inputs("flux", STEPS)):
            with backend.step(step, STEPS, "cond"):
                found.append(output(model, arguments))
        assert backend.summary().blocks_skipped
        backend.disable()
        outputs.append(found)
    assert same(*outputs)
