"""How often dbprune waits for the device: numbers of several blocks are read at once, and decide the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from dit_cache_backends import Gate, enable_cache
from dit_cache_backends.demo import load_demo
from dit_cache_backends.engine.gates import Probe
from dit_cache_backends.strategies.dbprune import DBPrune
from dit_cache_conformance.tiny import build
from dit_cache_conformance.tiny.transformers import build_transformer, transformer_inputs
from tests.engine.toys import Toy, adds, card, image

STEPS = 28
READINGS = {
    getattr(torch.Tensor, name)
    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy", "__index__")
}


class Readings(TorchFunctionMode):
    """Counts what would wait for an accelerator, while a block's own work is not going on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READINGS
        return func(*args, **(kwargs or {}))


@contextmanager
def one_by_one() -> Iterator[None]:
    """With nothing to see ahead every difference is read at its own block."""
    before = Probe.ahead
    Probe.ahead = lambda probe: iter(())  # type: ignore[method-assign]
    try:
        yield
    finally:
        Probe.ahead = before  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_demo().transformer


def _calls(
    model: Any, threshold: float, mode: Any = torch.no_grad, **config: Any
) -> tuple[list[torch.Tensor], list[int], list[Any]]:
    outputs, readings = [], []
    generator = torch.Generator().manual_seed(0)
    start, drift = torch.randn(2, 1, 64, 16, generator=generator)
    inputs = {
        "encoder_hidden_states": torch.randn(1, 14, model.config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(1, model.config.pooled_projection_dim, generator=generator),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(14, 3),
    }
    options = {"max_warmup_steps": 2, "max_continuous_cached_steps": -1, **config}
    with (
        enable_cache(model, "dbprune", residual_diff_threshold=threshold, **options) as backend,
        mode(),
    ):
        for index in range(STEPS):
            latents = start + drift * (index / STEPS)
            with backend.step(index, STEPS, "cond"), Readings() as seen:
                outputs.append(
                    model(hidden_states=latents, timestep=torch.tensor([1 - index / STEPS]), **inputs)[0]
                )
            readings.append(seen.count)
        rows = backend.summary().rows
    return outputs, readings, rows


def _dense_readings(model: Any) -> int:
    """What the model itself reads in a call."""
    return min(_calls(model, 0.0)[1])


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.08, 0.12, 0.3])
@pytest.mark.parametrize(
    "config", [{}, {"enable_dynamic_prune_threshold": True}, {"calibrator": "taylorseer"}]
)
def test_it_reads_at_most_once_for_each_block_that_runs_and_once_more(
    model: Any, threshold: float, config: dict[str, Any]
) -> None:
    outputs, readings, rows = _calls(model, threshold, **config)
    own = _dense_readings(model)
    for count, row in zip(readings, rows, strict=True):
        assert count - own <= row.blocks_run + 1, row
    with one_by_one():
        expected, many, same_rows = _calls(model, threshold, **config)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert [(r.blocks_run, r.differences) for r in rows] == [(r.blocks_run, r.differences) for r in same_rows]
    pruned = sum(row.blocks_skipped for row in rows)
    assert sum(readings) < sum(many) if pruned else sum(readings) == sum(many)
    assert pruned or threshold < 0.05
    if threshold == 0.3:  # everything is pruned: one reading, where one by one there are eleven
        assert min(readings[2:]) - own == 1
        assert max(many) - own == 11


def test_it_reads_as_rarely_in_inference_mode(model: Any) -> None:
    outputs, readings, _ = _calls(model, 0.12)
    same, as_many, _ = _calls(model, 0.12, torch.inference_mode)
    assert readings[2:] == as_many[2:]  # at first the blocks are looked at for writes into their inputs
    assert all(torch.equal(a, b) for a, b in zip(outputs, same, strict=True))


def test_a_model_that_adds_something_between_its_blocks_is_measured_with_it() -> None:
    name = "flux_controlled"
    model = build_transformer(name)

    def run() -> list[torch.Tensor]:
        outputs = []
        with enable_cache(model, "dbprune", residual_diff_threshold=0.2, max_warmup_steps=2) as backend:
            for index in range(12):
                with torch.no_grad(), backend.step(index, 12, "cond"):
                    outputs.append(model(**transformer_inputs(name, step=index))[0])
            assert backend.summary().blocks_skipped
        return outputs

    outputs = run()
    with one_by_one():
        expected = run()
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


class _Writing(Toy):
    """Writes into what a block has handed out, after its second block."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor]:  # type: ignore[override]
        h = hidden_states.clone()
        for number, block in enumerate(self.blocks):
            h = block(h)
            if number == 1:
                h[:, :2] += 0.5
        return (h,)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_model_writes_into_a_tensor_that_it_was_handed_is_seen(mode: Any) -> None:
    model = _Writing(*[adds] * 6)
    row = replace(card(), transformer="_Writing")

    def run() -> tuple[list[torch.Tensor], list[float], int]:
        outputs = []
        backend = DBPrune({"residual_diff_threshold": 0.2, "max_warmup_steps": 1, "Fn_compute_blocks": 0})
        backend.enable(model, card=row)
        for index in range(10):
            with mode(), backend.step(index, 10, "cond"):
                outputs.append(model(image() * (1 + index / 20))[0])
        summary = backend.summary()
        backend.disable()
        return outputs, [d for each in summary.rows for d in each.differences], summary.blocks_skipped

    outputs, differences, skipped = run()
    with one_by_one():
        expected, same, _ = run()
    assert skipped
    assert differences == same
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("pipeline", ["hunyuan_video", "qwen_image", "sd3", "dit"])
@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2])
def test_pipelines_come_out_the_same_as_when_read_one_by_one(pipeline: str, threshold: float) -> None:
    def run() -> torch.Tensor:
        tiny = build(pipeline)
        with enable_cache(tiny.pipe, "dbprune", residual_diff_threshold=threshold):
            return tiny.run(14)

    ahead = run()
    with one_by_one():
        assert torch.equal(ahead, run())


def test_what_is_ahead_is_what_comes() -> None:
    """Another strategy's gate looks ahead too: what it is shown are the very values that the next span gets."""
    shown: list[torch.Tensor] = []
    came: list[torch.Tensor] = []

    class Looking(DBPrune):
        name = "looking"

        def gate(self, place: Any) -> Gate:
            gate = super().gate(place)
            ask = gate.should_run

            def asked(step: Any, probe: Probe) -> Any:
                came.append(probe.streams[0])
                decision = ask(step, probe)
                if not decision.run:
                    shown.extend(ahead.probe.streams[0] for ahead in list(probe.ahead())[:1])
                return decision

            gate.should_run = asked  # type: ignore[method-assign]
            return gate

    tiny = build("qwen_image")
    with enable_cache(tiny.pipe, Looking, residual_diff_threshold=1.0, max_warmup_steps=1):
        tiny.run(3, true_cfg_scale=1.0)
    assert shown
    assert all(any(torch.equal(one, other) for other in came) for one in shown)
