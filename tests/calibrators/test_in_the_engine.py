"""Every calibrator through the engine: on toys that stand still or grow, on tiny models, and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build, build_transformer

from ..engine.runs import inputs, relative, run_told
from ..engine.test_compile import Graphs, compile_blocks
from ..engine.test_taylorseer import make, set_time
from ..engine.toys import DIM, ONE, Toy, adds, image

CALIBRATORS: dict[str, dict[str, Any]] = {
    "taylorseer": {},
    "foca": {},
    "dmd": {},
    "hermite": {"hermite_order": 1, "hermite_scale": 0.5**0.5},
    "chebyshev": {"chebyshev_degree": 2, "chebyshev_ridge": 1e-9},
    "newton": {"newton_order": 2},
}
EVERY = pytest.mark.parametrize("kind", CALIBRATORS)
MASKED: dict[str, Any] = {"steps_computation_mask": "11111001000", "steps_computation_policy": "static"}


def with_calibrator(kind: str, **options: Any) -> dict[str, Any]:
    return {"calibrator": kind, **CALIBRATORS[kind], **options}


@EVERY
@pytest.mark.parametrize("cache_type", ["residual", "hidden_states"])
def test_a_model_whose_residual_grows_is_foretold(kind: str, cache_type: str) -> None:
    """By even steps, or for DMD by a factor. Five steps are seen, the next two skipped; plain reuse is far off."""
    model = make((lambda time: 1.1**time) if kind == "dmd" else None)
    steps = 11
    plain = []
    for step in range(steps):
        set_time(model, step)
        plain.append(model(image())[0])
    errors: dict[str, float] = {}
    for name in (kind, "none"):
        options = with_calibrator(kind) if name == kind else {}
        with enable_cache(
            model, "cache_dit", card=ONE, taylorseer_cache_type=cache_type, **MASKED, **options
        ) as backend:
            for step in range(steps):
                set_time(model, step)
                with backend.step(step, steps):
                    out = model(image())[0]
                if step in (5, 6):
                    errors[name] = max(errors.get(name, 0.0), relative(out, plain[step]))
            assert backend.summary().cached_steps() == [5, 6, 8, 9, 10]
    assert errors[kind] <= 1e-4
    assert errors["none"] > 0.05


@EVERY
def test_another_shape_in_the_middle_of_a_run_starts_afresh(kind: str) -> None:
    """A second run of the first shape alone shows that nothing of the other one is left."""
    model = make()

    def run(shapes: list[tuple[int, int]]) -> list[Tensor]:
        outputs = []
        with enable_cache(
            model,
            "cache_dit",
            card=ONE,
            residual_diff_threshold=2.0,
            max_warmup_steps=0,
            max_continuous_cached_steps=1,
            **with_calibrator(kind),
        ) as backend:
            for step, (batch, tokens) in enumerate(shapes):
                set_time(model, step)
                with backend.step(step, len(shapes)):
                    outputs.append(model(torch.ones(batch, tokens, DIM))[0])
            assert any(row.blocks_skipped for row in backend.summary().rows[10:])
        return outputs

    outputs = run([(1, 4)] * 8 + [(2, 6)] * 12)
    assert [tuple(out.shape[:2]) for out in outputs] == [(1, 4)] * 8 + [(2, 6)] * 12
    assert all(out.isfinite().all() for out in outputs)
    alone = run([(2, 6)] * 20)
    assert relative(outputs[-1], alone[-1]) < 0.5


@EVERY
def test_a_finished_run_holds_nothing(kind: str) -> None:
    tiny = build("flux")
    held: list[int] = []
    with enable_cache(
        tiny.pipe, "cache_dit", **with_calibrator(kind), **(MASKED | {"max_warmup_steps": 4})
    ) as backend:

        def look(_pipe: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            held.append(len(backend.held_tensors()))
            return values

        tiny.run(11, callback_on_step_end=look)
        assert backend.held_tensors() == []
    assert max(held) >= 2


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_stays_in_it(kind: str, dtype: torch.dtype) -> None:
    model: Any = Toy(adds, adds, adds, adds).to(dtype)
    with enable_cache(model, "cache_dit", card=ONE, **MASKED, **with_calibrator(kind)) as backend:
        for step in range(11):
            with backend.step(step, 11):
                out = model(image().to(dtype))[0]
            assert out.dtype == dtype
            assert out.isfinite().all()


@EVERY
def test_a_forced_refresh_forgets_what_was_seen(kind: str) -> None:
    """After it the run goes on as one that begins there."""
    model = make()

    def run(first: int, **options: Any) -> list[Tensor]:
        outputs = []
        with enable_cache(
            model,
            "cache_dit",
            card=ONE,
            residual_diff_threshold=2.0,
            max_warmup_steps=5,
            max_continuous_cached_steps=-1,
            **with_calibrator(kind),
            **options,
        ) as backend:
            for step in range(first, 20):
                set_time(model, step)
                with backend.step(step - first, 20):
                    outputs.append(model(image())[0])
        return outputs

    refreshed = run(0, force_refresh_step_hint=9)
    fresh = run(9)
    assert all(torch.equal(one, other) for one, other in zip(refreshed[9:], fresh, strict=True))


@EVERY
def test_the_same_seed_gives_the_same_bits(kind: str) -> None:
    latents = []
    for _ in range(3):
        tiny = build("flux")
        with enable_cache(tiny.pipe, "cache_dit", **MASKED, **with_calibrator(kind)):
            latents.append(tiny.run(11))
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@EVERY
@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_model_is_as_many_graphs_as_without_a_calibrator(kind: str, whole: bool) -> None:
    """Nothing of a predictor is compiled, or a step number in it would be a new graph."""
    run = inputs("wan", 11)

    def outputs(graphs: Graphs | None, options: dict[str, Any]) -> list[Tensor]:
        torch._dynamo.reset()
        model: Any = build_transformer("wan")
        if graphs is not None and not whole:
            compile_blocks(model, graphs)
        with enable_cache(model, "cache_dit", **MASKED, **options) as backend:
            called = torch.compile(model, backend=graphs) if graphs is not None and whole else model
            return run_told(backend, called, run)

    plain, graphs = Graphs(), Graphs()
    reused, found = outputs(plain, {}), outputs(graphs, with_calibrator(kind))
    assert graphs.compiled == plain.compiled
    expected = outputs(None, with_calibrator(kind))
    assert all(relative(one, other) < 1e-5 for one, other in zip(found, expected, strict=True))
    assert not torch.equal(found[6], reused[6])
