"""Copies between a CUDA device and the host, where there is one: nobody waits, and nothing is read too early."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_cache_backends import Storage, relative_difference
from dit_cache_backends.engine.storage import Packed, storage

from ..engine.runs import inputs, output, same
from .runs import STEPS, made

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZE = (1, 2048, 1024)


def busy(cycles: int = 20_000_000) -> None:
    """Keeps the present stream from getting on for some milliseconds."""
    torch.cuda._sleep(cycles)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float8_e4m3fn"])
def test_what_was_sent_to_the_host_comes_back(dtype: str | None) -> None:
    given = torch.randn(SIZE, device="cuda")
    kept = storage("cpu", dtype).keep(given)
    assert isinstance(kept, Packed)
    assert kept.tensor.device.type == "cpu"
    assert kept.tensor.is_pinned()
    expected = Storage.give(storage(None, dtype).keep(given))
    assert torch.equal(Storage.give(kept), expected)
    assert Storage.give(kept).device == given.device


def test_memory_that_is_let_go_of_is_not_used_again_before_its_copy_is_done() -> None:
    """The stream is held up, so that each copy comes long after its source and, later, its target were freed."""
    far = storage("cpu", None)
    expected = [torch.full(SIZE, float(number)) for number in range(8)]
    kept = []
    for number in range(8):
        busy()
        given = torch.full(SIZE, float(number), device="cuda")
        kept.append(far.keep(given))
        del given
        torch.full(SIZE, -1.0, device="cuda")  # takes the memory that was just freed
    found = []
    for _ in range(8):
        busy()
        found.append(Storage.give(kept.pop(0)))
        torch.empty(SIZE, pin_memory=True).fill_(-2.0)
    assert same([each.cpu() for each in found], expected)


def test_another_stream_waits_for_the_copy() -> None:
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    for number in range(4):
        with torch.cuda.stream(first):
            busy()
            kept = storage("cpu", "bfloat16").keep(torch.full(SIZE, float(number), device="cuda"))
        with torch.cuda.stream(second):
            found = Storage.give(kept)
        torch.cuda.synchronize()
        assert torch.equal(found.cpu(), torch.full(SIZE, float(number)))


def test_nobody_waits_for_the_device() -> None:
    far = storage("cpu", "float8_e4m3fn")
    given = torch.randn(SIZE, device="cuda")
    far.keep(given)  # the first pinned memory may have to be asked of the driver
    torch.cuda.set_sync_debug_mode("error")
    try:
        kept = far.keep(given)
        relative_difference(*far.pair(kept, given))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["cache_dit", "dbprune"])
def test_a_run_with_everything_on_the_host_gives_the_same_bits(name: str) -> None:
    from dit_cache_conformance.tiny import build_transformer

    runs = []
    for options in ({}, {"cache_device": "cpu"}):
        model = build_transformer("flux").to("cuda")
        backend = made(name, calibrator="taylorseer", **options)
        backend.enable(model)
        outputs = []
        for step, arguments in enumerate(inputs("flux", STEPS)):
            given: dict[str, Any] = {
                key: value.to("cuda") if isinstance(value, torch.Tensor) else value
                for key, value in arguments.items()
            }
            with backend.step(step, STEPS, "cond"):
                outputs.append(output(model, given))
            here = {tensor.device.type for tensor in backend.held_tensors() if tensor.numel() > 4}
            assert here <= {"cpu" if options else "cuda"}
        assert backend.summary().blocks_skipped
        runs.append(outputs)
    assert same(*runs)
